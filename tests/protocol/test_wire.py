"""JSON in and out: what is read, what is refused, what is repaired."""

import json

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import BaseModel

from agent_kit.protocol.wire import (
    MAX_DEPTH,
    RequestError,
    clean_text,
    dump_json,
    json_type,
    parse_json,
)

few = settings(max_examples=30, deadline=None)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**63 - 1) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)


@few
@given(st.dictionaries(st.text(), VALUES, max_size=4), st.sampled_from([None, 2]))
def test_every_object_is_read_as_it_was_written(value, indent):
    for text in (json.dumps(value, indent=indent), json.dumps(value, ensure_ascii=False)):
        assert parse_json(text.encode()) == value


@few
@given(st.text(), VALUES, VALUES)
def test_a_key_told_twice_is_refused_however_it_is_written(key, first, second):
    pairs = [f"{json.dumps(key)} :{json.dumps(value)}" for value in (first, second)]
    for body in (f"{{{','.join(pairs)}}}", f'{{"outer": [{{{" , ".join(pairs)}}}]}}'):
        with pytest.raises(RequestError) as caught:
            parse_json(body.encode())
        assert caught.value.code == "duplicate_key"


@few
@given(st.binary(max_size=40))
def test_any_bytes_are_an_object_or_a_clear_refusal(body):
    refused = None
    try:
        assert type(parse_json(body)) is dict
    except RequestError as error:
        refused = error
    assert refused is None or (refused.status == 400 and refused.param)


def test_the_depth_is_limited_where_it_is_said():
    def nested(depth: int) -> bytes:
        return b'{"a":' * (depth - 1) + b"{}" + b"}" * (depth - 1)

    assert parse_json(nested(MAX_DEPTH))
    with pytest.raises(RequestError, match=str(MAX_DEPTH)):
        parse_json(nested(MAX_DEPTH + 1))


@few
@given(st.text(alphabet=st.characters()) | st.text("\ud83d\ude00a"))
def test_cleaned_text_can_be_sent_and_clean_text_is_kept(text):
    cleaned = clean_text(text)
    cleaned.encode()
    assert clean_text(cleaned) == cleaned
    if "\ud83d" not in text and "\ude00" not in text:
        assert cleaned == text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


class Point(BaseModel):
    """A model with a default that is not sent."""

    x: int
    y: int = 0


@pytest.mark.parametrize(
    ("value", "written"),
    [
        ({"a": float("nan"), "b": float("inf")}, {"a": None, "b": None}),
        ({1: "a"}, {"1": "a"}),
        (Point(x=1), {"x": 1}),
        ({"a": {1}, "b": (2, 3)}, {"a": [1], "b": [2, 3]}),
        ({"a": 2**70}, {"a": float(2**70)}),
        ({"\ud800": ["\ud83d\ude00", "x\udfff"]}, {"�": ["😀", "x�"]}),
    ],
)
def test_what_json_cannot_say_is_said_as_well_as_can_be(value, written):
    assert orjson.loads(dump_json(value)) == written


def test_what_has_no_json_form_is_a_type_error():
    with pytest.raises(TypeError, match="object"):
        dump_json({"a": object()})


def test_types_have_their_json_names():
    names = [json_type(value) for value in (None, True, 1, 1.5, "x", [], {})]
    assert names == [
        *("null", "a boolean", "an integer", "a number", "a string", "an array", "an object"),
    ]
