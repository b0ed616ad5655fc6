"""Model services with habits of their own, as the callers of an agent see them."""

import asyncio
import copy
import json
from collections.abc import Iterator
from typing import Any

import openai
import pytest
from support.model_stand_in import ModelStandIn, Refusal, Turn

from agent_kit.evaluate.checks import Answer
from agent_kit.loop import run_agent
from agent_kit.models import create_model
from agent_kit.models.chat import _ChatReader
from agent_kit.models.interface import ModelError
from agent_kit.models.responses import _ResponsesReader
from agent_kit.protocol import ResponsesRequest, parse_request
from agent_kit.protocol.response_assembler import ResponseAssembler
from agent_kit.server import create_server
from agent_kit.settings import load_settings

BOTH = pytest.mark.parametrize("provider", ["openai", "openai-responses"])
CALLS = [("look", {"city": "Rome"})]


@pytest.fixture(autouse=True)
def untraced(monkeypatch):
    monkeypatch.setenv("AGENT_KIT_MLFLOW_TRACING", "false")
    monkeypatch.setenv("OPENAI_API_KEY", "sk-not-a-key")


def look(city: str) -> str:
    """Look at a city."""
    return f"{city} is sunny."


def ask(*turns, provider="openai", chat=False, **body):
    """Return the answer of an agent whose model responds in `turns`, and the model's service."""
    with ModelStandIn(turns) as service:
        values = {"agent.model": f"{provider}:some-model", "agent.base_url": service.url}
        model = create_model(load_settings(overrides=values))
        server = create_server()

        @server.stream()
        def answer(request: ResponsesRequest):
            return run_agent(request, model=model, tools=[look])

        async def create():
            async with server.client() as client:
                if chat:
                    messages = [{"role": "user", "content": "Hi"}]
                    more = {"model": "any", "messages": messages}
                    return await client.chat.completions.create(**more, **body)
                return await client.responses.create(input="Hi", **body)

        return asyncio.run(create()), service


def refuse(*turns, **more) -> openai.APIStatusError:
    with pytest.raises(openai.APIStatusError) as caught:
        ask(*turns, **more)
    return caught.value


# --- tokens and tiers


@BOTH
def test_tokens_of_which_some_are_unknown_are_null(provider):
    turns = [Turn(calls=CALLS), Turn("Sunny.", usage=False)]
    for each in (turns, turns[1:]):
        answer, _ = ask(*each, provider=provider)
        assert (answer.output_text, answer.usage) == ("Sunny.", None)
        assert Answer((answer.to_dict(),)).tokens is None
        completion, _ = ask(*each, provider=provider, chat=True)
        assert (completion.choices[0].message.content, completion.usage) == ("Sunny.", None)


def test_known_tokens_are_counted():
    answer, _ = ask(Turn(calls=CALLS), "Sunny.")
    assert answer.usage.total_tokens == 30
    assert Answer((answer.to_dict(),)).tokens == 30
    completion, _ = ask(Turn(calls=CALLS), "Sunny.", chat=True)
    assert completion.usage.total_tokens == 30


def test_unknown_tokens_count_against_the_limit():
    turns = [Turn(calls=[("look", {"city": "R" * 400})], usage=False), "Sunny."]
    _, service = ask(*turns, max_output_tokens=1000)
    first, second = (received.body["max_tokens"] for received in service.requests)
    assert first == 1000
    assert 700 < second < 900


@BOTH
def test_the_answer_has_the_tier_of_the_model(provider):
    def respond(body):
        assert body["service_tier"] == "auto"
        chat = {"choices": [{"delta": {"content": "Hi."}, "finish_reason": "stop"}]}
        response = {"status": "completed", "output": [], "service_tier": "flex"}
        event = {"type": "response.completed", "response": response}
        frame = chat | {"service_tier": "flex"} if provider == "openai" else event
        return Turn(frames=[f"data: {json.dumps(frame)}\n\n"])

    answer, _ = ask(respond, provider=provider, service_tier="auto")
    assert answer.service_tier == "flex"


# --- whose fault it is


@BOTH
@pytest.mark.parametrize(
    ("turn", "reason"),
    [
        (Turn(frames=["data: {not JSON\n\n"]), "not JSON"),
        (Turn(frames=['data: {"choices": []}\n\n', "data: [DONE]\n\n"]), "invalid response"),
        (Turn(frames=["<h1>Welcome</h1>"], kind="text/html"), "text/html"),
        (Turn("one two three four five six", cut=True), "closed the connection"),
        (Turn(frames=["event: error\ndata: no GPU\n\n"]), "no GPU"),
        (Refusal(500, body={"detail": "no GPU"}, headers={"x-should-retry": "false"}), "no GPU"),
    ],
)
def test_a_fault_of_the_model_is_reported_as_one(provider, turn, reason, streams_open_late):
    error = refuse(turn, provider=provider)
    assert (error.status_code, error.type) == (502, "model_error")
    assert reason in error.message


@BOTH
@pytest.mark.parametrize("status", [429, 503])
def test_the_caller_learns_when_to_try_again(provider, status):
    busy = Refusal(status, headers={"x-should-retry": "false", "retry-after": "7"})
    error = refuse(busy, provider=provider)
    assert error.status_code == status
    assert error.response.headers["retry-after"] == "7"


def test_a_parameter_that_the_model_lacks_is_the_callers_fault():
    error = refuse("never", provider="openai-responses", chat=True, stop=["END"])
    assert (error.status_code, error.param) == (400, "stop")
    assert error.type == "invalid_request_error"


def pass_on(reason):
    """Return the answer of a chat agent that passes the chunks of a model on."""
    server = create_server("agent/v1/chat")

    @server.stream()
    def answer(request):
        yield {"choices": [{"delta": {"content": "It is"}, "finish_reason": ""}]}
        yield {"choices": [{"delta": {"content": " 391."}, "finish_reason": reason}]}

    async def create():
        async with server.client() as client:
            messages = [{"role": "user", "content": "Hi"}]
            return await client.chat.completions.create(model="any", messages=messages)

    return asyncio.run(create()).choices[0]


@pytest.mark.parametrize(
    ("reason", "finish"),
    [("eos_token", "stop"), ("", "stop"), ("MAX_TOKENS", "length"), ("safety", "content_filter")],
)
def test_a_chat_agent_may_end_in_the_words_of_its_model(reason, finish):
    choice = pass_on(reason)
    assert (choice.message.content, choice.finish_reason) == ("It is 391.", finish)


def test_a_chat_agent_whose_model_failed_has_failed():
    with pytest.raises(openai.APIStatusError, match="network_error") as caught:
        pass_on("network_error")
    assert (caught.value.status_code, caught.value.type) == (502, "model_error")


# --- any odd value

CHAT_STREAM: list[dict[str, Any]] = [
    {
        "model": "m",
        "choices": [
            {
                "index": 0,
                "delta": {"role": "assistant", "content": "It "},
                "logprobs": {
                    "content": [{"token": "It", "logprob": -0.1, "bytes": [1], "top_logprobs": []}]
                },
                "finish_reason": None,
            }
        ],
    },
    {
        "choices": [
            {
                "delta": {
                    "content": [
                        {"type": "text", "text": "is"},
                        {"type": "thinking", "thinking": [{"type": "text", "text": "Hm."}]},
                    ],
                    "reasoning_content": "Hm.",
                    "refusal": None,
                    "function_call": {"name": "f", "arguments": "{}"},
                }
            }
        ]
    },
    {
        "choices": [
            {
                "delta": {
                    "tool_calls": [
                        {
                            "index": 0,
                            "id": "call_1",
                            "type": "function",
                            "function": {"name": "f", "arguments": '{"a": 1}'},
                        }
                    ]
                }
            }
        ]
    },
    {
        "choices": [{"delta": {}, "finish_reason": "tool_calls", "error": None}],
        "service_tier": "flex",
    },
    {"choices": [], "usage": {"prompt_tokens": 3, "completion_tokens": 4}},
]
_REASONING = {
    "type": "reasoning",
    "id": "rs_1",
    "summary": [{"type": "summary_text", "text": "Hm."}],
    "content": [{"type": "reasoning_text", "text": "Hm."}],
}
_MESSAGE = {
    "type": "message",
    "id": "msg_1",
    "role": "assistant",
    "content": [
        {
            "type": "output_text",
            "text": "It is",
            "annotations": [{"type": "url_citation", "url": "u", "title": "t"}],
            "logprobs": [{"token": "It", "logprob": -0.1}],
        }
    ],
}
_CALL = {
    "type": "function_call",
    "id": "fc_1",
    "call_id": "call_1",
    "name": "f",
    "arguments": "{}",
}
_SEARCH = {"type": "web_search_call", "id": "ws_1", "action": {"type": "search", "query": "q"}}
_TEXT = {"item_id": "msg_1", "output_index": 1, "content_index": 0}
RESPONSES_STREAM: list[dict[str, Any]] = [
    {"type": "response.reasoning_summary_text.delta", "item_id": "rs_1", "delta": "Hm."},
    {"type": "response.output_item.done", "output_index": 0, "item": _REASONING},
    {"type": "response.output_item.added", "output_index": 1, "item": _MESSAGE | {"content": []}},
    {
        "type": "response.content_part.added",
        "part": {"type": "output_text", "text": ""},
        **_TEXT,
    },
    {"type": "response.output_text.delta", "delta": "It is", **_TEXT},
    {"type": "response.content_part.done", "part": _MESSAGE["content"][0], **_TEXT},
    {"type": "response.output_item.done", "output_index": 1, "item": _MESSAGE},
    {"type": "response.output_item.added", "output_index": 2, "item": _CALL | {"arguments": ""}},
    {"type": "response.function_call_arguments.delta", "item_id": "fc_1", "delta": "{}"},
    {"type": "response.output_item.done", "output_index": 2, "item": _CALL},
    {
        "type": "response.completed",
        "response": {
            "status": "completed",
            "model": "m",
            "output": [_REASONING, _MESSAGE, _CALL, _SEARCH],
            "usage": {"input_tokens": 1, "output_tokens": 2},
            "incomplete_details": None,
            "service_tier": "flex",
        },
    },
]
ODD = (None, -1, 2.5, True, "x", [], {}, [None], ["x"], [{}], {"type": "text"}, float("inf"))


def odd_streams(stream: list[dict[str, Any]]) -> Iterator[list[dict[str, Any]]]:
    """Yield the stream once for each of its values and each odd value in its place."""

    def holders(value: Any) -> Iterator[tuple[Any, Any]]:
        keys = value if isinstance(value, dict) else range(len(value))
        for key in keys:
            yield value, key
            if isinstance(value[key], dict | list):
                yield from holders(value[key])

    for place in range(sum(1 for each in stream for _ in holders(each))):
        for odd in ODD:
            changed = copy.deepcopy(stream)
            holder, key = [found for each in changed for found in holders(each)][place]
            holder[key] = odd
            yield changed


@pytest.mark.parametrize(
    ("reader", "stream"), [(_ChatReader, CHAT_STREAM), (_ResponsesReader, RESPONSES_STREAM)]
)
def test_any_odd_value_is_an_answer_or_a_fault_of_the_model(reader, stream):
    answered = 0
    for values in odd_streams(stream):
        model = reader("some-model")
        try:
            events = [event for value in values for event in model.read(value)]
            events += model.finish() or ()
        except ModelError:
            continue
        assembler = ResponseAssembler(parse_request("agent/v1/responses", {"input": "Hi"}))
        sent = [each for event in events for each in assembler.add(event)]
        assert b"".join(map(assembler.encode, [*sent, *assembler.finish()]))
        answered += 1
    assert answered > 200
