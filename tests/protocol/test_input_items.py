"""Calls and outputs in the history that a caller sends, in any protocol."""

import asyncio
import json
from typing import Any

import pytest
from openai import AsyncOpenAI, BadRequestError
from support.model_stand_in import ModelStandIn, Turn

from agent_kit.loop import run_agent
from agent_kit.models import create_model
from agent_kit.protocol import RequestError, ResponsesRequest, parse_request
from agent_kit.protocol.input_items import pair_calls
from agent_kit.server import AgentServer, create_server
from agent_kit.settings import load_settings
from agent_kit.tools import tool

USER = {"role": "user", "content": "Go on."}
MINE = [{"type": "function", "name": "mine", "parameters": {"type": "object", "properties": {}}}]


def call(call_id: Any = "call_1", arguments: str = "{}", **more: Any) -> dict[str, Any]:
    named = {"type": "function_call", "call_id": call_id, "name": "mine"}
    return {**named, "arguments": arguments, **more}


def output(call_id: Any = "call_1", text: str = "done") -> dict[str, Any]:
    return {"type": "function_call_output", "call_id": call_id, "output": text}


@pytest.fixture(autouse=True)
def environment(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "any")
    monkeypatch.setenv("AGENT_KIT_MLFLOW_TRACING", "false")


@tool
def look(city: str) -> str:
    """Look at a city."""
    return f"{city} is sunny"


def serve(url: str, provider: str) -> AgentServer:
    values = {"agent.model": f"{provider}:any", "agent.base_url": url}
    model = create_model(load_settings(overrides=values))
    server = create_server()

    @server.stream()
    async def answer(request: ResponsesRequest):
        return run_agent(request, model=model, tools=[look])

    return server


def sent_arguments(body: dict[str, Any]) -> list[str]:
    """Return the arguments of all calls in the body of a request to a model, of either protocol."""
    calls = [each for message in body.get("messages", ()) for each in message.get("tool_calls", ())]
    items = [item for item in body.get("input", ()) if item.get("type") == "function_call"]
    return [each.get("function", each)["arguments"] for each in (*calls, *items)]


@pytest.mark.parametrize("provider", ["openai", "openai-responses"])
@pytest.mark.parametrize(
    "arguments", ['{"city": "Ro\nme"}', '{"city": "Ro', '{"a":1}{"a":2}', "null"]
)
def test_a_model_never_gets_arguments_back_that_are_not_an_object(provider, arguments):
    async def converse(client: AsyncOpenAI) -> None:
        first = await client.responses.create(input="Hi")
        await client.responses.create(input="More", previous_response_id=first.id)
        history = [item.model_dump() for item in first.output]
        await client.responses.create(input=[USER, *history, USER])
        conversation = await client.conversations.create()
        for text in ("Hi", "More"):
            await client.responses.create(input=text, conversation=conversation.id)
        body = {"input": [USER, call(arguments=arguments), output(), USER]}
        client = client.with_options(base_url=client.base_url.copy_with(path="/"))
        await client.post("/invocations", body=body, cast_to=object)

    turn = Turn(calls=[("look", arguments)])
    with ModelStandIn([turn, "END", "END", "END", turn, "END", "END", "END"]) as service:
        server = serve(service.url, provider)

        async def run() -> None:
            async with server.client() as client:
                await converse(client)

        asyncio.run(run())
        found = [text for request in service.requests for text in sent_arguments(request.body)]
    assert len(found) >= 6
    assert all(isinstance(json.loads(text), dict) for text in found)


def test_a_call_that_the_token_limit_cut_off_does_not_end_the_conversation():
    with ModelStandIn([Turn(calls=[("mine", '{"ci')], finish="length"), "END"]) as service:
        server = serve(service.url, "openai")

        async def run() -> Any:
            async with server.client() as client:
                cut = await client.responses.create(input="Hi", tools=MINE)
                return await client.responses.create(
                    input="Go on", previous_response_id=cut.id, tools=MINE
                )

        assert asyncio.run(run()).output_text == "END"
        messages = service.requests[-1].body["messages"]
    assert [message["role"] for message in messages] == ["user", "assistant", "tool", "user"]
    assert messages[1]["tool_calls"][0]["function"]["arguments"] == "{}"
    assert "cut off" in messages[2]["content"]


@pytest.mark.parametrize("where", ["input", "chain", "conversation"])
def test_a_call_without_an_output_is_refused_by_its_id(where):
    with ModelStandIn([Turn(calls=[("mine", {})]), "END"]) as service:
        server = serve(service.url, "openai")

        async def run() -> str:
            async with server.client() as client:
                more: dict[str, Any] = {}
                if where == "conversation":
                    more["conversation"] = (await client.conversations.create()).id
                first = await client.responses.create(input="Hi", tools=MINE, **more)
                named = next(item.call_id for item in first.output if item.type == "function_call")
                history: Any = [USER, call(named), USER] if where == "input" else "Go on"
                if where == "chain":
                    more["previous_response_id"] = first.id
                with pytest.raises(BadRequestError) as caught:
                    await client.responses.create(input=history, tools=MINE, **more)
                error: Any = caught.value
                assert (error.type, error.param) == ("invalid_request_error", "input")
                assert f"No tool output found for function call {named}." in error.message
                before = history[:2] if where == "input" else []
                answered = [*before, output(named), USER]
                last = await client.responses.create(input=answered, tools=MINE, **more)
                return last.output_text

        assert asyncio.run(run()) == "END"


def test_ids_may_be_numbers_and_stand_twice():
    history = [call(1), call(1, '{"a":1}'), output(1, "one"), output(1, "two"), call(1), output(1)]
    request: Any = parse_request("agent/v1/responses", {"input": history})
    items = request.input
    calls = [item["call_id"] for item in items if item["type"] == "function_call"]
    outputs = [item["call_id"] for item in items if item["type"] != "function_call"]
    assert calls == outputs == ["1", "1_2", "1_3"]
    plain = [call(), output()]
    assert pair_calls(plain) == plain
    long = [call("x" * 64), call("x" * 64), output("x" * 64), output("x" * 64)]
    assert max(len(item["call_id"]) for item in pair_calls(long)) <= 64


def test_the_calls_of_a_chat_are_paired_too():
    def calling(*ids: Any, arguments: str = "{}") -> dict[str, Any]:
        function = {"name": "mine", "arguments": arguments}
        calls = [{"id": each, "type": "function", "function": dict(function)} for each in ids]
        return {"role": "assistant", "tool_calls": calls}

    def result(call_id: Any) -> dict[str, Any]:
        return {"role": "tool", "tool_call_id": call_id, "content": "done"}

    messages = [calling(7, 7, arguments='{"a'), result(7), result(7)]
    request: Any = parse_request("agent/v1/chat", {"messages": messages})
    assert [each["id"] for each in request.messages[0]["tool_calls"]] == ["7", "7_2"]
    assert [each["tool_call_id"] for each in request.messages[1:]] == ["7", "7_2"]
    assert request.messages[0]["tool_calls"][0]["function"]["arguments"] == "{}"
    with pytest.raises(RequestError, match="did not have response messages: b") as caught:
        parse_request("agent/v1/chat", {"messages": [calling("a", "b"), result("a"), USER]})
    assert (caught.value.status, caught.value.param) == (400, "messages")
