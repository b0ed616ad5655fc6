"""Reading and writing JSON, the errors of fields, and the text of a content value."""

import json

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import BaseModel

from agent_kit.protocol.wire import (
    MAX_DEPTH,
    RequestError,
    check_choice,
    check_fields,
    clean_text,
    dump_json,
    is_id,
    json_type,
    parse_arguments,
    parse_json,
    text_of,
    valid_arguments,
)

few = settings(max_examples=30, deadline=None)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**63 - 1) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)


@few
@given(st.dictionaries(st.text(), VALUES, max_size=4), st.sampled_from([None, 2]))
def test_every_object_is_parsed_to_its_value(value, indent):
    for text in (json.dumps(value, indent=indent), json.dumps(value, ensure_ascii=False)):
        assert parse_json(text.encode()) == value


@few
@given(st.text(), VALUES, VALUES)
def test_a_duplicate_key_is_refused_in_any_notation(key, first, second):
    pairs = [f"{json.dumps(key)} :{json.dumps(value)}" for value in (first, second)]
    for body in (f"{{{','.join(pairs)}}}", f'{{"outer": [{{{" , ".join(pairs)}}}]}}'):
        with pytest.raises(RequestError) as caught:
            parse_json(body.encode())
        assert caught.value.code == "duplicate_key"


@few
@given(st.binary(max_size=40))
def test_any_bytes_are_parsed_or_refused_with_a_field(body):
    refused = None
    try:
        assert type(parse_json(body)) is dict
    except RequestError as error:
        refused = error
    assert refused is None or (refused.status == 400 and refused.param)


def test_the_depth_is_limited_to_max_depth():
    def nested(depth: int) -> bytes:
        return b'{"a":' * (depth - 1) + b"{}" + b"}" * (depth - 1)

    assert parse_json(nested(MAX_DEPTH))
    with pytest.raises(RequestError, match=str(MAX_DEPTH)):
        parse_json(nested(MAX_DEPTH + 1))


@few
@given(st.text(alphabet=st.characters()) | st.text("\ud83d\ude00a"))
def test_cleaned_text_is_valid_utf8_and_valid_text_is_unchanged(text):
    cleaned = clean_text(text)
    cleaned.encode()
    assert clean_text(cleaned) == cleaned
    if "\ud83d" not in text and "\ude00" not in text:
        assert cleaned == text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


class Point(BaseModel):
    """A model with a default that is not written."""

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
def test_a_value_without_an_exact_json_form_is_repaired(value, written):
    assert orjson.loads(dump_json(value)) == written


def test_an_object_without_a_json_form_is_a_type_error():
    with pytest.raises(TypeError, match="object"):
        dump_json({"a": object()})


def test_errors_use_the_names_of_json_types():
    names = [json_type(value) for value in (None, True, 1, 1.5, "x", [], {})]
    assert names == [
        *("null", "a boolean", "an integer", "a number", "a string", "an array", "an object"),
    ]


@pytest.mark.parametrize(
    ("value", "required", "code"),
    [
        ({"name": "add"}, True, None),
        ({}, False, None),
        ({"name": None}, False, None),
        ({}, True, "missing_required_parameter"),
        ({"name": None}, True, "missing_required_parameter"),
        ({"name": 7}, True, "invalid_type"),
        ({"name": 7}, False, "invalid_type"),
    ],
)
def test_the_type_of_a_field_is_checked_and_null_counts_as_absent(value, required, code):
    error = None
    try:
        check_fields(value, {"name": str}, "tools[0]", required=required)
    except RequestError as refused:
        error = refused
    assert (error and error.code) == code
    assert error is None or (error.status, error.param) == (400, "tools[0].name")


@pytest.mark.parametrize(
    ("value", "param", "code"),
    [
        ("user", "input[0]", "invalid_type"),
        ({}, "input[0].role", "missing_required_parameter"),
        ({"role": "wizard"}, "input[0].role", "invalid_value"),
        ({"role": ["user"]}, "input[0].role", "invalid_value"),
        ({"role": "x" * 1_000_000}, "input[0].role", "invalid_value"),
    ],
)
def test_a_choice_is_one_of_the_allowed_strings(value, param, code):
    assert check_choice({"role": "user"}, "role", ("user",), "input[0]") == "user"
    with pytest.raises(RequestError) as caught:
        check_choice(value, "role", ("user",), "input[0]")
    assert (caught.value.param, caught.value.code) == (param, code)
    assert len(caught.value.message) < 200


def test_an_id_is_a_short_printable_string():
    ids = ("msg_7", "m" * 120, "m" * 121, "msg_\0", 7)
    assert [is_id(value) for value in ids] == [True, True, False, False, False]


@pytest.mark.parametrize(
    ("content", "text"),
    [
        ("Hello", "Hello"),
        (None, ""),
        ([{"text": "Hel"}, {"refusal": "lo"}, {"image_url": "data:"}, "!"], "Hel-lo-!"),
        ({"degrees": 21}, '{"degrees":21}'),
    ],
)
def test_the_text_of_a_content_is_its_texts_or_its_json(content, text):
    assert text_of(content, "-") == text


@pytest.mark.parametrize(
    ("written", "arguments"),
    [
        ('{"city": "Rome"}', {"city": "Rome"}),
        ('{"code": "x = 17\nprint(x)\t# \x01"}', {"code": "x = 17\nprint(x)\t# \x01"}),
        *((text, {}) for text in ("", "  \n", "null", "[]", "{}")),
        ('{}{"city": "Rome"}', {"city": "Rome"}),
        ('"{\\"city\\": \\"Rome\\"}"', {"city": "Rome"}),
    ],
)
def test_arguments_are_read_where_their_meaning_is_plain(written, arguments):
    assert parse_arguments(written) == arguments
    assert orjson.loads(valid_arguments(written)) == arguments


@pytest.mark.parametrize(
    "written", ['{"city": "Ro', '{"a":1}{"a":2}', "Rome", "[1]", "7", '"Rome"', "[" * 100_000]
)
def test_arguments_that_cannot_be_read_are_none_for_the_next_turn(written):
    with pytest.raises(ValueError, match="arguments"):
        parse_arguments(written)
    assert valid_arguments(written) == "{}"
