"""The model of fixed rules: its tool calls, responses and explanation."""

import asyncio

import pytest

from agent_kit.models.interface import ModelRequest
from agent_kit.models.offline import OfflineModel

TOOL = {"type": "function", "name": "python_exec", "parameters": {"type": "object"}}
QUESTION = {"role": "user", "content": "What is 17*23?"}


def answer(*items, **more):
    async def collect():
        return [event async for event in OfflineModel().stream(ModelRequest(list(items), **more))]

    events = asyncio.run(collect())
    assert events[-1]["type"] == "response.completed"
    assert events[-1]["response"]["usage"]["total_tokens"] > 0
    calls = [event["item"] for event in events if "item" in event]
    return calls, "".join(event.get("delta", "") for event in events)


def printed(call, text):
    return {"type": "function_call_output", "call_id": call["call_id"], "output": text}


def test_a_call_then_the_response():
    (call,), text = answer(QUESTION, tools=[TOOL])
    assert call["name"] == "python_exec"
    assert not text
    calls, text = answer(QUESTION, call, printed(call, "391\n"), tools=[TOOL])
    assert not calls
    assert "391" in text


def test_an_output_in_parts_is_read_too():
    (call,), _ = answer(QUESTION, tools=[TOOL])
    output = printed(call, [{"type": "input_text", "text": "391"}])
    assert "391" in answer(QUESTION, call, output, tools=[TOOL])[1]


def test_a_repeated_question_is_computed_again():
    (call,), _ = answer(QUESTION, tools=[TOOL])
    calls, _ = answer(QUESTION, call, printed(call, "391"), QUESTION, tools=[TOOL])
    assert len(calls) == 1


def test_the_output_of_another_program_is_ignored():
    other = {"type": "function_call", "call_id": "call_1", "name": "python_exec"}
    strange = other | {"arguments": "{not JSON"}
    calls, _ = answer(QUESTION, strange, printed(other, "nonsense"), tools=[TOOL])
    assert len(calls) == 1


@pytest.mark.parametrize(
    "more",
    [
        {},
        {"tools": [TOOL | {"name": "other"}]},
        {"tools": [TOOL], "tool_choice": "none"},
        {"tools": [TOOL], "tool_choice": {"type": "function", "name": "other"}},
        {"tools": [TOOL], "tool_choice": {"type": "allowed_tools", "mode": "auto", "tools": []}},
    ],
)
def test_a_tool_that_may_not_be_called_is_not(more):
    calls, text = answer(QUESTION, **more)
    assert not calls
    assert "17 * 23" in text


@pytest.mark.parametrize("items", [[], [{"role": "user", "content": "Write me a poem."}]])
def test_a_prompt_without_a_rule_is_explained(items):
    calls, text = answer(*items, tools=[TOOL])
    assert not calls
    assert "no language model" in text
    assert "AGENT_KIT_MODEL" in text
