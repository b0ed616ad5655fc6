"""Checks: the text and tool calls of an answer, in every form, against the expectations."""

import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent_kit.evaluate.cases import Case, DatasetError
from agent_kit.evaluate.checks import (
    CHECKS,
    ORDERS,
    Answer,
    ToolCall,
    check_expectations,
    match_tool_calls,
)


def check(name: str, response: object, expected: object) -> str:
    return CHECKS[name](Answer((response,)), expected)


def message(*texts: str) -> dict:
    return {
        "type": "message",
        "role": "assistant",
        "content": [{"type": "output_text", "text": text} for text in texts],
    }


def test_text_of_every_kind_of_response() -> None:
    refusal = {"role": "assistant", "content": [{"type": "refusal", "refusal": "No."}]}
    for response, text in [
        ("Hi", "Hi"),
        (None, ""),
        (3, "3"),
        ({"output": [message("a", "b"), {"type": "reasoning"}, message("c")]}, "ab\nc"),
        ({"output": []}, ""),
        ({"output": [refusal]}, "No."),
        ({"choices": [{"message": {"role": "assistant", "content": None}}]}, ""),
        ({"choices": [{"message": {"role": "assistant", "content": "x"}}, {"message": {}}]}, "x"),
        (
            {"messages": [{"role": "tool", "content": "t"}, {"role": "assistant", "content": "m"}]},
            "m",
        ),
        ({"answer": 42}, '{"answer": 42}'),
    ]:
        assert Answer((response,)).text == text
    assert Answer().text == ""
    assert Answer(("first", "last")).text == "last"


def test_tool_calls_of_all_turns_and_kinds() -> None:
    responses_api = {
        "output": [
            {"type": "function_call", "name": "add", "arguments": '{"a": 1}', "call_id": "1"},
            {"type": "function_call_output", "call_id": "1", "output": "2"},
            {"type": "mcp_call", "name": "search", "arguments": "", "server_label": "docs"},
            {"type": "custom_tool_call", "name": "run", "input": "print(1)", "call_id": "2"},
            {"type": "web_search_call"},
        ]
    }
    chat = {
        "choices": [
            {
                "message": {
                    "role": "assistant",
                    "tool_calls": [{"function": {"name": "f", "arguments": "{"}}],
                }
            }
        ]
    }
    calls = Answer((responses_api, chat)).tool_calls
    assert calls == [
        ToolCall("add", {"a": 1}),
        ToolCall("search", {}),
        ToolCall("run", "print(1)"),
        ToolCall("f", "{"),
    ]
    assert [str(call) for call in calls] == ["add(a=1)", "search()", "run(print(1))", "f({)"]


def test_tokens_are_summed_or_unknown() -> None:
    assert (
        Answer(
            (
                {"usage": {"total_tokens": 3}},
                {"usage": {"prompt_tokens": 1, "completion_tokens": 1}},
            )
        ).tokens
        == 5
    )
    assert Answer(({"usage": {"total_tokens": 3}}, "unknown")).tokens is None
    assert (
        Answer(({"usage": {"total_tokens": "?", "input_tokens": 2, "output_tokens": 0}},)).tokens
        == 2
    )
    assert Answer().tokens is None


@pytest.mark.parametrize(
    "usage",
    [
        None,
        5,
        [],
        {},
        {"total_tokens": -1},
        {"total_tokens": "5"},
        {"total_tokens": True},
        {"total_tokens": float("nan")},
        {"input_tokens": 5},
        {"input_tokens": 5, "output_tokens": None},
        {"input_tokens": 0, "output_tokens": 0, "total_tokens": 0},
    ],
)
def test_tokens_that_cannot_be_counted_are_unknown(usage: object) -> None:
    assert Answer(({"usage": usage},)).tokens is None


@pytest.mark.parametrize(
    ("name", "expected", "met_by", "missed_by"),
    [
        ("expected_response", "It is 391.", "it  is\n391.", "391."),
        ("expected_facts", ["Ada", "LOVELACE"], "ada lovelace", "Ada King"),
        ("expected_facts", "straße", "STRASSE", "street"),
        ("forbidden_facts", ["root:"], "I may not read that.", "ROOT:x:0"),
        ("expected_pattern", r"^\d{4}$", "2024", "in 2024"),
        ("expected_number", 391, "It is 391.", "It is 3910 or 39.1"),
        ("expected_number", -1234.5, "\u22121,234.5 EUR", "1,234.5"),
        ("expected_number", {"value": 3.14159, "tolerance": 0.01}, "about 3.14", "about 3.2"),
        (
            "expected_schema",
            {"type": "object", "required": ["a"]},
            '```json\n{"a": 1}\n```',
            '{"b": 1}',
        ),
        ("expected_schema", {"type": "array"}, "[]", "[] and more"),
        (
            "expected_tool_calls",
            [],
            "just text",
            {"output": [{"type": "function_call", "name": "f", "arguments": ""}]},
        ),
        ("max_tokens", 5, {"usage": {"total_tokens": 5}}, {"usage": {"total_tokens": 6}}),
        ("max_tokens", 5, {"usage": {"total_tokens": 5}}, "does not report"),
        (
            "max_tool_calls",
            0,
            "just text",
            {"output": [{"type": "function_call", "name": "f", "arguments": ""}]},
        ),
    ],
)
def test_a_check_returns_a_reason_if_an_expectation_is_not_met(
    name: str, expected: object, met_by: object, missed_by: object
) -> None:
    assert check(name, met_by, expected) == ""
    assert check(name, missed_by, expected)


def test_seconds_are_limited() -> None:
    assert not CHECKS["max_seconds"](Answer(("x",), 0.5), 1)
    assert CHECKS["max_seconds"](Answer(("x",), 1.5), 1) == "used 1.5 seconds"


def test_a_reason_quotes_the_answer_and_is_short() -> None:
    reason = check("expected_facts", "x" * 10_000, ["391"])
    assert reason.startswith("lacks '391': 'xxx")
    assert len(reason) < 250


@given(
    number=st.floats(-1e300, 1e300),
    before=st.sampled_from(["", "is ", "= ", "$", "**", "("]),
)
def test_a_number_is_found_in_any_notation(number: float, before: str) -> None:
    for text in (repr(number), f"{number:.15e}"):
        assert check("expected_number", f"{before}{text}.", number) == ""
    if math.isfinite(number) and abs(number) >= 1:
        assert check("expected_number", f"{before}{text}.", number + abs(number) + 1)


@pytest.mark.parametrize("order", ORDERS)
@given(names=st.lists(st.sampled_from("abc"), max_size=5))
def test_the_same_calls_always_match(order: str, names: list[str]) -> None:
    calls = [ToolCall(name, {}) for name in names]
    assert match_tool_calls(calls, [{"name": name} for name in names], order) == ""
    assert match_tool_calls(calls, [{"name": name} for name in names] + [{"name": "d"}], order)
    extra = [*calls, ToolCall("d", {})]
    tolerated = order != "EXACT" and names
    assert bool(match_tool_calls(extra, [{"name": name} for name in names], order)) != bool(
        tolerated
    )


@given(names=st.lists(st.sampled_from("abc"), min_size=1, max_size=5), seed=st.randoms())
def test_only_any_order_ignores_the_order(names: list[str], seed: object) -> None:
    shuffled = list(names)
    seed.shuffle(shuffled)  # type: ignore[attr-defined]
    calls, expected = [ToolCall(name, {}) for name in shuffled], [{"name": name} for name in names]
    assert match_tool_calls(calls, expected, "ANY_ORDER") == ""
    assert bool(match_tool_calls(calls, expected, "IN_ORDER")) == (shuffled != names)
    assert bool(match_tool_calls(calls, expected, "EXACT")) == (shuffled != names)


def test_arguments_count_where_they_are_expected() -> None:
    calls = [ToolCall("add", {"a": 1}), ToolCall("add", {"a": 2})]
    two, one, some = (
        {"name": "add", "arguments": {"a": 2}},
        {"name": "add", "arguments": {"a": 1}},
        {"name": "add"},
    )
    assert not match_tool_calls(calls, [some, one], "ANY_ORDER")
    assert not match_tool_calls(calls, [two, some], "ANY_ORDER")
    assert match_tool_calls(calls, [two, two], "ANY_ORDER")
    assert match_tool_calls(calls, [two, one], "IN_ORDER") == "called add(a=1), add(a=2)"
    assert not match_tool_calls(calls, [two], "IN_ORDER")
    once = {"calls": [one], "order": "EXACT"}
    assert CHECKS["expected_tool_calls"](Answer(), once) == "called no tool"


@pytest.mark.parametrize(
    ("name", "expected", "message"),
    [
        ("expected_response", ["a", "b"], "one text"),
        ("expected_facts", [1], "a list of texts"),
        ("forbidden_facts", None, "a list of texts"),
        ("expected_pattern", "(", "not a regular expression"),
        ("expected_number", "391", "must be a number"),
        ("expected_number", True, "must be a number"),
        ("expected_number", {"value": 1, "toleranse": 1}, "must be a number"),
        ("expected_schema", {"type": "objekt"}, "not a JSON schema"),
        ("expected_schema", 3, "not a JSON schema"),
        ("expected_tool_calls", "add", "list of calls"),
        ("expected_tool_calls", ["add"], "a call is"),
        ("expected_tool_calls", {"calls": [], "order": "SORTED"}, "the order must be EXACT"),
        ("max_tokens", "many", "must be a number"),
        ("expected_facts", [], "must not be empty"),
        ("forbidden_facts", ["a", " "], "must not be empty"),
        ("expected_pattern", "", "must not be empty"),
    ],
)
def test_an_invalid_expectation_is_found_before_the_agent_is_called(
    name: str, expected: object, message: str
) -> None:
    with pytest.raises(DatasetError, match=message) as raised:
        check_expectations([Case("Hi"), Case("What is 17*23?", {name: expected})])
    assert str(raised.value).startswith(f"'What is 17*23?': {name} ")


def test_valid_expectations_and_those_of_other_scorers_pass() -> None:
    check_expectations(
        [
            Case("a", {"expected_facts": ["x"], "expected_schema": {"type": "object"}}),
            Case("b", {"guidelines": ["be polite"], "max_seconds": 1.5}),
            Case(
                "c", {"expected_number": {"value": 1, "tolerance": 0.1}, "expected_tool_calls": []}
            ),
        ]
    )


def test_texts_survive_odd_characters() -> None:
    assert check("expected_schema", json.dumps({"a": "\ud83d\ude00"}), {"type": "object"}) == ""
