"""Tool calls from the chunks that model services send, for a model's reader and a chat agent."""

import asyncio
import json
from typing import Any

import pytest
from support.model_stand_in import ModelStandIn, Turn

from agent_kit.models import create_model
from agent_kit.models.interface import ModelError, ModelRequest
from agent_kit.protocol import ChatRequest, ResponsesRequest
from agent_kit.protocol.chat_assemblers import ChatAssembler
from agent_kit.protocol.output_items import AgentOutputError, new_id
from agent_kit.protocol.response_assembler import ResponseAssembler
from agent_kit.protocol.tool_calls import ToolCalls
from agent_kit.settings import load_settings

ROME, OSLO = '{"city":"Rome"}', '{"city":"Oslo"}'
ASKED = {"messages": [{"role": "user", "content": "Hi"}]}


def part(arguments: str | None = None, name: str | None = None, **more: Any) -> dict[str, Any]:
    given = {"name": name, "arguments": arguments}
    return {**more, "function": {key: value for key, value in given.items() if value is not None}}


def look(arguments: str = ROME, **more: Any) -> dict[str, Any]:
    return part(arguments, "look", **more)


# Each a list of deltas, which are lists of chunks, and the calls that they are.
ONE, TWO = [("look", ROME)], [("look", ROME), ("look", OSLO)]
CHUNKS = {
    "the name after the id": (
        [[part("", index=0, id="a")], [part(name="look", index=0)], [part(ROME, index=0)]],
        ONE,
    ),
    "the name after arguments": (
        [[part('{"city":', index=0, id="a")], [look('"Rome"}', index=0)]],
        ONE,
    ),
    "an empty name first": ([[part("", "", index=0, id="a")], [look(index=0)]], ONE),
    "the name in every chunk": (
        [[look('{"city":', index=0, id="a")], [look('"Rome"}', index=0, id="a")]],
        ONE,
    ),
    "neither index nor id": ([[look("")], [part('{"city":')], [part('"Rome"}')]], ONE),
    "neither index nor id, two calls": (
        [[look('{"city":')], [part('"Rome"}')], [look('{"city":')], [part('"Oslo"}')]],
        TWO,
    ),
    "the id only later": ([[part(name="look")], [part(id="a")], [part(ROME)]], ONE),
    "an id alone": ([[look('{"city":', id="a")], [part('"Rome"}', id="a")]], ONE),
    "another id in every chunk": (
        [[look('{"city":', index=0, id="a")], [part('"Rome"}', index=0, id="b")]],
        ONE,
    ),
    "index 0 twice, two ids": ([[look(index=0, id="a")], [look(OSLO, index=0, id="b")]], TWO),
    "index 0 twice, empty ids": ([[look(index=0, id="")], [look(OSLO, index=0, id="")]], TWO),
    "index 0 twice, equal ids": ([[look(index=0, id="a")], [look(OSLO, index=0, id="a")]], TWO),
    "index 0 twice, no ids": ([[look(index=0)], [look(OSLO, index=0)]], TWO),
    "one delta, no index, no ids": ([[look(), look(OSLO)]], TWO),
    "one delta, index 0 and equal ids": (
        [[look(index=0, id="a"), look(OSLO, index=0, id="a")]],
        TWO,
    ),
    "two indexes, one id": ([[look(index=0, id="a"), look(OSLO, index=1, id="a")]], TWO),
    "ids that are numbers": ([[look(index=0, id=0), look(OSLO, index=1, id=1)]], TWO),
    "index 0 and two tools": (
        [[part("{}", "now", index=0)], [look(index=0)]],
        [("now", "{}"), ("look", ROME)],
    ),
    "an empty object before the real one": (
        [[look("{}", index=0, id="a")], [part(ROME, index=0)]],
        ONE,
    ),
    "the same, with the name and the id": (
        [[look("{}", index=0, id="a")], [look(ROME, index=0, id="a")]],
        ONE,
    ),
    "null before the real one": ([[look("null", index=0, id="a")], [part(ROME, index=0)]], ONE),
    "no arguments": ([[look("", index=0, id="a")]], [("look", "{}")]),
    "null instead of arguments": ([[look("null", index=0, id="a")]], [("look", "{}")]),
    "an object instead of JSON": (
        [[{"function": {"name": "look", "arguments": {"city": "Rome"}}}]],
        ONE,
    ),
    "an empty chunk that begins nothing": (
        [[look(index=0, id="a")], [part("", index=0, id="b")]],
        ONE,
    ),
}


def chunks_of(deltas: list[list[dict[str, Any]]]) -> list[dict[str, Any]]:
    chunks = [{"choices": [{"index": 0, "delta": {"tool_calls": delta}}]} for delta in deltas]
    return [*chunks, {"choices": [{"index": 0, "delta": {}, "finish_reason": "tool_calls"}]}]


def read_by_model(deltas: list[list[dict[str, Any]]]) -> list[dict[str, Any]]:
    """Return the items that the reader of chat completions makes of the chunks of a service."""

    async def collect(url: str) -> list[dict[str, Any]]:
        values = {"agent.model": "openai:any", "agent.base_url": url}
        model = create_model(load_settings(overrides=values))
        request = ModelRequest([{"role": "user", "content": "Hi"}])
        return [event async for event in model.stream(request)]

    with ModelStandIn([Turn(chunks=chunks_of(deltas))]) as service:
        events = asyncio.run(collect(service.url))
    assembler = ResponseAssembler(ResponsesRequest(input=ASKED["messages"]))
    for event in events:  # they are valid: deltas and whole items agree
        assembler.add(event)
    assembler.finish()
    return assembler.body["output"]


def passed_on(deltas: list[list[dict[str, Any]]]) -> list[dict[str, Any]]:
    """Return the calls that a client adds up from the stream of a chat agent."""
    assembler = ChatAssembler(ChatRequest.model_validate(ASKED))
    sent = [each for chunk in chunks_of(deltas) for each in assembler.add(chunk)]
    calls: dict[int, dict[str, Any]] = {}
    for chunk in (*sent, *assembler.finish()):
        for delta in chunk["choices"][0]["delta"].get("tool_calls", ()):
            if delta["index"] not in calls:
                assert delta["function"]["name"]
                calls[delta["index"]] = {**delta, "function": {"name": "", "arguments": ""}}
            for name, text in delta["function"].items():
                calls[delta["index"]]["function"][name] += text
    whole = assembler.body["choices"][0]["message"]["tool_calls"]
    added = [calls[index] for index in sorted(calls)]
    assert [call["function"] for call in added] == [call["function"] for call in whole]
    return added


@pytest.mark.parametrize("label", CHUNKS)
def test_calls_are_put_together_whatever_their_chunks_leave_out(label, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "any")
    deltas, expected = CHUNKS[label]
    items, calls = read_by_model(deltas), passed_on(deltas)
    found = [(item["name"], json.loads(item["arguments"])) for item in items]
    assert found == [(name, json.loads(arguments)) for name, arguments in expected]
    passed = [(call["function"]["name"], call["function"]["arguments"]) for call in calls]
    assert [(name, json.loads(arguments)) for name, arguments in passed] == found
    for ids in ([item["call_id"] for item in items], [call["id"] for call in calls]):
        assert len(set(ids)) == len(expected)
        assert all(isinstance(each, str) and 0 < len(each) <= 40 for each in ids)


def test_a_call_without_a_name_is_an_error_that_says_so(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "any")
    with pytest.raises(ModelError, match="no name"):
        read_by_model([[part(ROME, index=0, id="a")]])
    calls = ToolCalls()
    calls.add([part(ROME, index=0)])
    with pytest.raises(AgentOutputError, match="no name"):
        calls.finish()


def test_an_id_of_ours_fits_every_service():
    prefixes = ("call", "resp", "chatcmpl", "conv", "mcpl", "item")
    assert max(len(new_id(prefix)) for prefix in prefixes) <= 40
