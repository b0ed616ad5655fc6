"""Models of services over HTTP: requests, responses and errors."""

import asyncio
import json
import re
import threading

import pytest
from support.databricks_stand_in import (
    ADA_TOKEN,
    APP_USER,
    CLIENT_ID,
    CLIENT_SECRET,
    remove_credentials,
    serve_workspace,
)
from support.databricks_stand_in import Refusal as WorkspaceRefusal
from support.model_stand_in import ModelStandIn, Refusal, Turn

from agent_kit.databricks import get_workspace_client
from agent_kit.models import create_model
from agent_kit.models.interface import ModelError, ModelRequest
from agent_kit.protocol import RequestError
from agent_kit.settings import load_settings

PROMPT = [{"role": "user", "content": "What is 17*23?"}]
TOOL = {
    "type": "function",
    "name": "python_exec",
    "description": "Run Python.",
    "parameters": {"type": "object", "properties": {"code": {"type": "string"}}},
    "strict": None,
}
KEY = "sk-test-0123456789abcdef0123456789"
BOTH = pytest.mark.parametrize("provider", ["openai", "openai-responses"])
AT_ONCE = {"x-should-retry": "false"}


@pytest.fixture(autouse=True)
def key(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", KEY)


def model_at(url, provider="openai", **settings):
    values = {"agent.model": f"{provider}:some-model", "agent.base_url": url}
    more = {f"agent.{name}": value for name, value in settings.items()}
    return create_model(load_settings(overrides=values | more))


async def collect(model, items=PROMPT, **more):
    return [event async for event in model.stream(ModelRequest(list(items), **more))]


def ask(turns, items=PROMPT, provider="openai", **more):
    """Return the events of a response, and the body of the last request."""
    with ModelStandIn(turns, key=KEY) as service:
        events = asyncio.run(collect(model_at(service.url, provider), items, **more))
    return events, service.requests[-1].body


def text(events, kind="response.output_text.delta"):
    return "".join(event["delta"] for event in events if event["type"] == kind)


def calls(events):
    done = [event["item"] for event in events if event["type"] == "response.output_item.done"]
    return [item for item in done if item["type"] == "function_call"]


def fail(answer, provider="openai", **more):
    with pytest.raises(ModelError) as caught:
        ask([answer], provider=provider, **more)
    assert KEY not in str(caught.value)
    return caught.value


# --- answers


@BOTH
def test_text_streams_with_usage_and_the_name_of_the_model(provider):
    events, body = ask(["It is 391."], provider=provider)
    assert text(events) == "It is 391."
    assert sum(event["type"] == "response.output_text.delta" for event in events) == 3
    assert events[-1]["type"] == "response.completed"
    assert events[-1]["response"]["usage"]["total_tokens"] == 15
    assert events[-1]["response"]["model"] == body["model"] == "some-model"


@BOTH
def test_the_first_words_arrive_before_the_last(provider):
    go = threading.Event()

    async def first(model):
        async for event in model.stream(ModelRequest(PROMPT)):
            if event["type"] == "response.output_text.delta":
                go.set()
                return event["delta"]

    with ModelStandIn([Turn("It is 391.", pause=0.05, wait=go)]) as service:
        go.set() if provider == "openai-responses" else None
        assert asyncio.run(first(model_at(service.url, provider))) == "It "


@BOTH
def test_function_calls_are_streamed_and_finished(provider):
    code = {"code": "print(17 * 23)"}
    events, body = ask([Turn(calls=[("python_exec", code), ("other", {})])], provider=provider)
    first, second = calls(events)
    assert json.loads(first["arguments"]) == code
    assert (second["name"], second["arguments"]) == ("other", "{}")
    deltas = [e for e in events if e["type"] == "response.function_call_arguments.delta"]
    assert len(deltas) > 3
    assert first["call_id"] != second["call_id"]
    assert "tools" not in body
    assert "tool_choice" not in body


@BOTH
def test_reasoning_and_refusals(provider):
    events, _ = ask([Turn("391", reasoning="A product.")], provider=provider)
    assert text(events, "response.reasoning_text.delta") == "A product."
    events, _ = ask([Turn(refusal="I will not.")], provider=provider)
    assert text(events, "response.refusal.delta") == "I will not."


@BOTH
@pytest.mark.parametrize(
    ("finish", "reason"),
    [("length", "max_output_tokens"), ("content_filter", "content_filter")],
)
def test_a_stopped_response_is_incomplete(provider, finish, reason):
    events, _ = ask([Turn("It is", finish=finish)], provider=provider)
    assert events[-1]["type"] == "response.incomplete"
    assert events[-1]["response"]["incomplete_details"] == {"reason": reason}


def test_a_stopped_call_is_not_finished():
    events, _ = ask([Turn(calls=[("python_exec", '{"code": "pri')], finish="length")])
    assert events[-1]["type"] == "response.incomplete"
    assert not calls(events)


@BOTH
def test_a_service_without_usage_or_streaming(provider):
    events, _ = ask([Turn("391", usage=False)], provider=provider)
    assert events[-1]["response"]["usage"] is None
    whole = {
        "openai": {"choices": [{"message": {"content": "391"}, "finish_reason": "stop"}]},
        "openai-responses": {
            "object": "response",
            "status": "completed",
            "output": [{"type": "message", "role": "assistant", "content": "391"}],
        },
    }[provider]
    turn = Turn(frames=[json.dumps(whole)], kind="application/json")
    events, _ = ask([turn], provider=provider)
    assert "391" in json.dumps(events)
    assert events[-1]["response"]["model"] == "some-model"


# --- requests

PARAMETERS = {
    "temperature": 0.3,
    "top_p": 0.9,
    "max_output_tokens": 50,
    "parallel_tool_calls": False,
    "reasoning": {"effort": "low"},
    "text": {"format": {"type": "json_schema", "name": "sum", "schema": {"type": "object"}}},
    "metadata": {"team": "blue"},
    "top_k": 7,
}
KIT_PARAMETERS = {"stream": False, "store": True, "background": False, "custom_inputs": {"a": 1}}


def test_parameters_reach_chat_completions():
    more = {"stop": ["END"], "seed": 5, "frequency_penalty": 0.5, "user": "ada"}
    _, body = ask(
        ["391"],
        instructions="Be brief.",
        tools=[TOOL],
        tool_choice={"type": "function", "name": "python_exec"},
        parameters=PARAMETERS | more | KIT_PARAMETERS,
    )
    assert body.items() >= (more | {"temperature": 0.3, "top_p": 0.9, "top_k": 7}).items()
    assert body["max_tokens"] == 50
    assert body["parallel_tool_calls"] is False
    assert body["reasoning_effort"] == "low"
    assert body["metadata"] == {"team": "blue"}
    assert body["response_format"]["json_schema"]["name"] == "sum"
    assert body["tool_choice"] == {"type": "function", "function": {"name": "python_exec"}}
    assert "strict" not in body["tools"][0]["function"]
    assert body["messages"][0] == {"role": "system", "content": "Be brief."}
    assert body["stream"] is True
    assert not {"store", "background", "custom_inputs", "input", "text"} & body.keys()


def test_parameters_reach_the_responses_api():
    _, body = ask(
        ["391"],
        provider="openai-responses",
        instructions="Be brief.",
        tools=[TOOL],
        tool_choice="required",
        parameters=PARAMETERS | KIT_PARAMETERS | {"include": ["message.output_text.logprobs"]},
    )
    assert body.items() >= PARAMETERS.items()
    assert body["tool_choice"] == "required"
    assert body["instructions"] == "Be brief."
    assert body["store"] is False
    assert set(body["include"]) == {
        "message.output_text.logprobs",
        "reasoning.encrypted_content",
    }
    assert not {"background", "custom_inputs"} & body.keys()


HISTORY = [
    {
        "role": "user",
        "content": [
            {"type": "input_text", "text": "What is it?"},
            {"type": "input_image", "image_url": "data:image/png;base64,iVBORw0KGgo="},
        ],
    },
    {"type": "reasoning", "id": "rs_1", "summary": [], "content": [{"type": "reasoning_text"}]},
    {"type": "function_call", "id": "fc_1", "call_id": "call_1", "name": "look", "arguments": "{}"},
    {
        "type": "function_call_output",
        "call_id": "call_1",
        "output": [{"type": "input_text", "text": "A cat."}],
    },
    {"role": "assistant", "content": [{"type": "output_text", "text": "A cat."}]},
    {"role": "user", "content": "Sure?"},
]
HISTORY[1]["content"][0]["text"] = "I should look."


def test_a_conversation_reaches_chat_completions():
    _, body = ask(["Yes."], HISTORY)
    image, call, output, message, _ = body["messages"]
    assert image["content"][1]["image_url"]["url"].startswith("data:image/png")
    assert call["tool_calls"][0]["id"] == output["tool_call_id"] == "call_1"
    assert call["reasoning_content"] == "I should look."
    assert output["content"] == "A cat."
    assert message == {"role": "assistant", "content": "A cat."}


def test_the_developer_role_becomes_the_system_role():
    _, body = ask(["Yes."], [{"role": "developer", "content": "Be brief."}, *PROMPT])
    assert body["messages"][0] == {"role": "system", "content": "Be brief."}


def test_a_service_on_this_machine_is_called_without_a_proxy(monkeypatch):
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    monkeypatch.delenv("NO_PROXY")
    events, _ = ask(["391"])
    assert text(events) == "391"


def test_concurrent_requests():
    async def all_at_once(model):
        return await asyncio.gather(*(collect(model) for _ in range(16)))

    with ModelStandIn(["391"] * 16) as service:
        answers = asyncio.run(all_at_once(model_at(service.url)))
    assert [text(events) for events in answers] == ["391"] * 16


def test_a_conversation_reaches_the_responses_api():
    empty = {"type": "reasoning", "id": "rs_2", "summary": [{"type": "summary_text", "text": "x"}]}
    _, body = ask(["Yes."], [*HISTORY[:2], empty, *HISTORY[2:]], "openai-responses")
    assert [item.get("type") for item in body["input"]] == [item.get("type") for item in HISTORY]
    assert not any("id" in item for item in body["input"])


def test_what_chat_completions_cannot_express_is_refused():
    with pytest.raises(RequestError, match="tools") as caught:
        ask(["never"], tools=[{"type": "web_search"}])
    assert (caught.value.status, caught.value.param) == (400, "tools[0]")


def test_the_key_is_sent_and_connections_are_reused():
    async def twice(model):
        for _ in range(2):
            await collect(model)

    with ModelStandIn(["one", "two", "three"], key=KEY) as service:
        model = model_at(service.url)
        asyncio.run(twice(model))
        assert service.connections == 1
        asyncio.run(collect(model))  # another event loop
    assert service.requests[0].headers["authorization"] == f"Bearer {KEY}"


def test_a_local_service_needs_no_key(monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY")
    with ModelStandIn(["Hello."]) as service:
        assert text(asyncio.run(collect(model_at(service.url)))) == "Hello."
    assert "authorization" not in service.requests[0].headers


@pytest.mark.parametrize("key", ["", "sk-\nnot-a-key", "sk-ключ"])
def test_openai_requires_a_key(monkeypatch, key):
    monkeypatch.setenv("OPENAI_API_KEY", key)
    with pytest.raises(ModelError, match="OPENAI_API_KEY"):
        asyncio.run(collect(create_model(spec="openai:gpt-5-mini")))


# --- services that support less


@pytest.mark.parametrize(
    ("refused", "message"),
    [
        ("stream_options", "Unrecognized request argument supplied: stream_options"),
        ("metadata", "The 'metadata' parameter is only allowed when 'store' is not supported"),
        ("max_tokens", "Unsupported parameter: use max_completion_tokens instead of max_tokens"),
    ],
)
def test_an_unsupported_parameter_is_omitted(refused, message):
    def strict(body):
        return Refusal(400, message) if refused in body else "391"

    parameters = {"max_output_tokens": 9, "metadata": {"team": "blue"}}

    async def twice(model):
        return [text(await collect(model, parameters=parameters)) for _ in range(2)]

    with ModelStandIn([strict] * 3) as service:
        assert asyncio.run(twice(model_at(service.url))) == ["391", "391"]
    assert len(service.requests) == 3
    last = service.requests[-1].body
    assert refused not in last
    assert last.get("max_tokens", last.get("max_completion_tokens")) == 9


def test_an_invalid_value_is_not_an_unsupported_parameter():
    error = fail(Refusal(400, "max_tokens must be at most 8"), parameters={"max_output_tokens": 9})
    assert error.status == 400
    assert "at most 8" in error.message


def test_a_parameter_unsupported_under_both_names_is_an_error():
    with pytest.raises(ModelError, match="unsupported") as caught:
        ask(
            [Refusal(400, "unsupported: max_tokens, max_completion_tokens")] * 3,
            parameters={"max_output_tokens": 9},
        )
    assert caught.value.status == 400


@pytest.mark.parametrize(
    ("name", "delta"),
    [
        ("reasoning", {"reasoning": "Hm."}),
        (
            "parts",
            {
                "content": [
                    {"type": "reasoning", "summary": [{"type": "summary_text", "text": "Hm."}]},
                    {"type": "text", "text": "391"},
                ]
            },
        ),
    ],
)
def test_reasoning_under_other_names(name, delta):
    chunks = [{"choices": [{"delta": delta}]}, {"choices": [{"finish_reason": "stop"}]}]
    events, _ = ask([Turn(chunks=chunks)])
    assert text(events, "response.reasoning_text.delta") == "Hm."
    assert name == "reasoning" or text(events) == "391"


@pytest.mark.parametrize("index", [[0, 0], [1, 2], [None, None]])
def test_calls_with_unusual_indexes(index):
    deltas = [
        {"index": place, "id": f"id_{number}", "function": {"name": "add", "arguments": "{}"}}
        for number, place in enumerate(index)
    ]
    chunks = [{"choices": [{"delta": {"tool_calls": [delta]}}]} for delta in deltas]
    chunks.append({"choices": [{"delta": {}, "finish_reason": "tool_calls"}]})
    events, _ = ask([Turn(chunks=chunks)])
    assert [call["call_id"] for call in calls(events)] == ["id_0", "id_1"]


def test_further_choices_and_logprobs():
    likely = [{"token": "391", "bytes": [51, 57, 49], "logprob": -0.1, "top_logprobs": []}]
    chunks = [
        {"choices": [{"index": 1, "delta": {"content": "another"}}]},
        {"choices": [{"delta": {"content": "391"}, "logprobs": {"content": likely}}]},
        {"choices": [{"delta": None, "finish_reason": "stop"}]},
    ]
    events, _ = ask([Turn(chunks=chunks)])
    assert text(events) == "391"
    assert events[0]["logprobs"] == likely


# --- failures


@BOTH
@pytest.mark.parametrize(
    ("refusal", "status", "code", "advice"),
    [
        (Refusal(401, f"Incorrect API key: {KEY}"), 401, "invalid_api_key", "OPENAI_API_KEY"),
        (Refusal(403, "no access"), 403, "permission_denied", "OPENAI_API_KEY"),
        (Refusal(404, "no such model"), 404, "model_not_found", "base_url"),
        (Refusal(400, "too long", "context_length_exceeded"), 400, "context_length_exceeded", ""),
        (Refusal(413, "too large"), 413, None, "too large"),
        (Refusal(422, "odd"), 422, None, "odd"),
        (Refusal(429, f"quota of {KEY}"), 429, "rate_limit_exceeded", "Wait"),
        (Refusal(500, "x" * 5000), 500, None, "later"),
    ],
)
def test_a_refusal_is_explained(provider, refusal, status, code, advice):
    refusal = Refusal(refusal.status, refusal.message, refusal.code, headers=AT_ONCE)
    error = fail(refusal, provider)
    assert (error.status, error.code) == (status, code)
    assert advice in error.message
    assert len(error.message) < 800


def test_a_temporary_error_is_retried():
    busy = Refusal(429, "busy", headers={"retry-after-ms": "1"})
    events, _ = ask([busy, "391"])
    assert text(events) == "391"


@BOTH
@pytest.mark.parametrize(
    "frames",
    [
        ["data: {not JSON\n\n"],
        ["data: [1, 2]\n\n"],
        ['data: "text"\n\n'],
        ['data: {"choices": "x", "type": 1}\n\n'],
        ['data: {"choices": [1]}\n\n'],
        ['data: {"choices": [{"delta": "x"}]}\n\n'],
        ['data: {"choices": [{"delta": {"content": 5}}]}\n\n'],
        ['data: {"choices": [{"delta": {"tool_calls": "x"}}]}\n\n'],
        ['data: {"choices": [{"delta": {"tool_calls": [{"index": 0}]}}]}\n\n'],
        ['data: {"choices": [{"delta": {"tool_calls": [{"function": 5}]}}]}\n\n'],
        ['data: {"usage": {"prompt_tokens": 5}}\n\n'],
        ['data: {"type": "response.completed", "response": 5}\n\n'],
        ['data: {"type": "response.completed", "response": {"output": 5}}\n\n'],
        ['data: {"type": "response.completed", "response": {"output": [5]}}\n\n'],
        ['data: {"type": "response.output_text.delta", "delta": 5}\n\n'],
        ['data: {"type": "response.output_item.done", "item": {"type": "message"}}\n\n'],
        ['data: {"choices": []}\n\n', "data: [DONE]\n\n"],
        ["data: [DONE]\n\n"],
        [": nothing\n\n"],
    ],
)
def test_an_invalid_response_is_an_error(provider, frames):
    error = fail(Turn(frames=frames), provider)
    assert error.status == 502
    assert error.code in ("invalid_answer", "incomplete_answer")


@BOTH
def test_an_error_within_the_stream(provider):
    nested = {"error": {"message": f"overloaded, {KEY}", "code": 429}}
    flat = {"type": "error", "message": "overloaded", "code": "rate_limit_exceeded"}
    frame = json.dumps(nested if provider == "openai" else flat)
    error = fail(Turn(frames=[f"data: {frame}\n\n"]), provider)
    assert error.status == 429
    assert "overloaded" in error.message


def test_a_failed_response_is_an_error():
    response = {"status": "failed", "error": {"code": "server_error", "message": "Out of memory"}}
    frame = json.dumps({"type": "response.failed", "response": response})
    error = fail(Turn(frames=[f"data: {frame}\n\n"]), "openai-responses")
    assert (error.status, error.code) == (502, "server_error")
    assert "Out of memory" in error.message


@BOTH
def test_a_truncated_response_is_an_error(provider):
    error = fail(Turn("one two three four five six", cut=True), provider)
    assert (error.status, error.code) == (502, "incomplete_answer")


def test_a_web_page_instead_of_a_stream_is_an_error():
    error = fail(Turn(frames=["<h1>Welcome</h1>"], kind="text/html"))
    assert "base_url" in error.message
    error = fail(Turn(frames=['{"error": {"message": "nope"}}'], kind="application/json"))
    assert "nope" in error.message


@pytest.mark.parametrize(
    "url", ["http://127.0.0.1:9/v1", "models.example/v1", "http://localhost:port/v1"]
)
def test_a_service_that_cannot_be_reached(url, monkeypatch):
    monkeypatch.setattr("openai._base_client.INITIAL_RETRY_DELAY", 0.01)
    with pytest.raises(ModelError, match="base_url") as caught:
        asyncio.run(collect(model_at(url)))
    assert caught.value.status == 503


def test_a_silent_service_times_out(monkeypatch):
    monkeypatch.setattr("openai._base_client.INITIAL_RETRY_DELAY", 0.01)
    with ModelStandIn([Turn("one two", pause=0.5)]) as service:
        model = model_at(service.url, timeout_seconds="0.2")
        with pytest.raises(ModelError, match="sent nothing for") as caught:
            asyncio.run(collect(model))
    assert caught.value.status == 504


@BOTH
@pytest.mark.parametrize("how", ["close", "cancel"])
def test_stopping_closes_the_connection_at_once(provider, how):
    async def read_on(events):
        async for _ in events:
            pass

    async def stop(model):
        events = model.stream(ModelRequest(PROMPT))
        async for event in events:
            if event["type"] == "response.output_text.delta":
                break
        if how == "close":
            await events.aclose()
            return
        task = asyncio.create_task(read_on(events))
        await asyncio.sleep(0.05)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    with ModelStandIn([Turn("word " * 500, pause=0.02)]) as service:
        asyncio.run(stop(model_at(service.url, provider)))
        assert service.gone.wait(5)


# --- services with habits of their own


def frame(value):
    return f"data: {json.dumps(value)}\n\n"


def delta(finish=None, **fields):
    return {"choices": [{"delta": fields, "finish_reason": finish}]}


def done(item, **more):
    return {"type": "response.output_item.done", "item": item, **more}


def ending(*output, status="completed", **fields):
    response = {"status": status, "output": list(output), **fields}
    return {"type": f"response.{status}", "response": response}


def message(text="391", **fields):
    part = {"type": "output_text", "text": text}
    return {"type": "message", "role": "assistant", "content": [part], **fields}


def ask_each(turns, provider="openai"):
    """Return the events or the error of each turn."""

    async def each(model):
        results = []
        for _ in turns:
            try:
                results.append(await collect(model))
            except ModelError as error:
                results.append(error)
        return results

    with ModelStandIn(turns) as service:
        return asyncio.run(each(model_at(service.url, provider)))


def word(provider, text):
    if provider == "openai":
        return delta(content=text)
    return {"type": "response.output_text.delta", "delta": text}


def last(provider, **fields):
    if provider == "openai":
        return {"choices": [{"delta": {}, "finish_reason": "stop"}], **fields}
    return ending(**fields)


def ask_in_frames(provider, *frames, **more):
    frames = [each if isinstance(each, str) else frame(each) for each in frames]
    return ask([Turn(frames=frames)], provider=provider, **more)[0]


def types(events):
    return [event["item"]["type"] for event in events if "item" in event]


EMPTY_EVENTS = (
    *("retry: 3000\n\n", ": ping\n\n", "id: 7\n\n", "data:\n\n", "data: \n\n", "\n\n"),
    *("event: ping\n\n", ": a comment\nid: 7\nretry: 5\n\n", "other: field\n\n"),
)


@BOTH
def test_events_without_data_are_ignored(provider):
    first, second, end = map(frame, (word(provider, "It "), word(provider, "is"), last(provider)))
    turns = [Turn(frames=[each, first, each, second, each, end]) for each in EMPTY_EVENTS]
    for between, events in zip(EMPTY_EVENTS, ask_each(turns, provider), strict=True):
        assert not isinstance(events, ModelError), between
        assert text(events) == "It is"
        assert events[-1]["type"] == "response.completed"


@BOTH
@pytest.mark.parametrize(
    "rewrite",
    [
        lambda stream: stream.replace("\n", "\r\n"),
        lambda stream: stream.replace("\n", "\r"),
        lambda stream: "\ufeff" + stream,
        lambda stream: stream.removesuffix("\n\n"),
        lambda stream: stream.replace(", ", ",\ndata: "),
        lambda stream: stream.replace("data: ", "data:"),
        lambda stream: stream.replace("data: ", "id: 1\nevent: message\ndata: "),
        lambda stream: stream.replace("}}", '}, "score": NaN}'),
    ],
    ids=["crlf", "cr", "bom", "no-end", "lines", "no-space", "fields", "nan"],
)
def test_the_framing_of_a_stream_may_vary(provider, rewrite):
    values = [word(provider, "It is \u2028 391"), word(provider, "."), last(provider)]
    stream = rewrite("".join(map(frame, values)))
    halves = [stream[:30], stream[30:31], stream[31:]]
    assert text(ask_in_frames(provider, *halves)) == "It is \u2028 391."


def test_half_a_surrogate_pair_in_a_chunk():
    events = ask_in_frames("openai", delta(content="\ud83d"), delta("stop", content="\ude00"))
    assert text(events) == "\ud83d\ude00"


@pytest.mark.parametrize("reason", ["stop", "STOP", "eos_token", "", "end_turn", "stop_sequence"])
def test_the_words_for_a_complete_response(reason):
    events = ask_in_frames("openai", delta(content="391"), delta(reason))
    assert events[-1]["type"] == "response.completed"


@pytest.mark.parametrize(
    "turn",
    [
        Turn(frames=[frame(delta(content="391")), "data: [DONE]\n\n"]),
        Turn(frames=[json.dumps({"choices": [{"message": {"content": "391"}}]})], kind="text/json"),
    ],
)
def test_a_marked_end_needs_no_finish_reason(turn):
    events, _ = ask([turn])
    assert text(events) == "391"
    assert events[-1]["type"] == "response.completed"


@pytest.mark.parametrize(
    ("provider", "end"),
    [
        ("openai", frame(delta("stop"))),
        ("openai", "data: [DONE]\n\n"),
        ("openai-responses", frame(ending())),
    ],
)
def test_a_connection_that_breaks_after_the_end(provider, end):
    events, _ = ask([Turn(frames=[frame(word(provider, "391")), end], cut=True)], provider=provider)
    assert text(events) == "391"
    assert events[-1]["type"] == "response.completed"


@pytest.mark.parametrize(
    ("provider", "end"),
    [("openai", "data: [DONE]\n\n"), ("openai-responses", frame(ending()))],
)
def test_a_connection_that_stays_open_after_the_end(provider, end):
    closes = threading.Event()
    turn = Turn(frames=[frame(word(provider, "391")), end], wait=closes)
    with ModelStandIn([turn]) as service:
        try:
            model = model_at(service.url, provider, timeout_seconds="20")
            events = asyncio.run(collect(model))
        finally:
            closes.set()
    assert events[-1]["type"] == "response.completed"


@pytest.mark.parametrize(
    ("reported", "reason"),
    [
        ("model_length", "max_output_tokens"),
        ("MAX_TOKENS", "max_output_tokens"),
        ("sensitive", "content_filter"),
        ({"type": "length"}, "max_output_tokens"),
    ],
)
def test_the_words_for_an_incomplete_response(reported, reason):
    call = {"index": 0, "function": {"name": "look", "arguments": '{"ci'}}
    events = ask_in_frames("openai", delta(content="39", tool_calls=[call]), delta(reported))
    assert events[-1]["response"]["incomplete_details"] == {"reason": reason}
    assert not calls(events)
    details = {"reason": reported}
    if isinstance(reported, str):
        last = ending(status="incomplete", incomplete_details=details)
        events = ask_in_frames("openai-responses", last)
        assert events[-1]["response"]["incomplete_details"] == {"reason": reason}


@pytest.mark.parametrize("reason", ["error", "abort", "network_error", "of_another_kind"])
def test_an_end_by_a_failure_is_an_error(reason):
    call = {"index": 0, "function": {"name": "look", "arguments": "{}"}}
    chunks = [delta(content="39", tool_calls=[call]), delta(reason), "data: [DONE]\n\n"]
    for provider, frames in (
        ("openai", chunks),
        ("openai-responses", [ending(status="incomplete", incomplete_details={"reason": reason})]),
    ):
        with pytest.raises(ModelError, match=reason) as caught:
            ask_in_frames(provider, *frames)
        assert (caught.value.status, caught.value.code) == (502, "incomplete_answer")


def test_the_error_of_a_choice_is_reported():
    choice = {"delta": {}, "finish_reason": "error", "error": {"message": f"GPU, {KEY}"}}
    error = fail(Turn(frames=[frame({"choices": [choice]})]))
    assert "GPU" in error.message


@pytest.mark.parametrize("status", ["failed", "cancelled"])
def test_a_response_that_failed_without_an_error(status):
    for turn in (
        Turn(frames=[frame(ending(status=status))]),
        Turn(frames=[json.dumps(ending(status=status)["response"] | {"object": "response"})]),
    ):
        turn.kind = "text/event-stream" if "type" in turn.frames[0][:9] else "application/json"
        assert status in fail(turn, "openai-responses").message


def test_an_older_function_call_is_a_call():
    parts = [{"name": "look"}, {"arguments": '{"city":'}, {"arguments": ' "Rome"}'}]
    chunks = [delta(function_call=part, content=None) for part in parts]
    events = ask_in_frames("openai", *chunks, delta("function_call"))
    (call,) = calls(events)
    assert (call["name"], call["arguments"]) == ("look", '{"city": "Rome"}')


def test_fields_without_a_value_and_numbers_as_ids():
    function = {"name": "look", "arguments": "{}"}
    call = {"index": 0, "id": 7, "type": "function", "function": function, "custom": None}
    (found,) = calls(ask_in_frames("openai", delta(tool_calls=[call]), delta("tool_calls")))
    assert found["call_id"] == "7"


THOUGHT = {"type": "reasoning", "id": "rs_1", "summary": []}
CALL = {"type": "function_call", "call_id": "call_1", "name": "look", "arguments": "{}"}


@pytest.mark.parametrize(
    ("before", "output", "expected"),
    [
        ([], [THOUGHT, message()], ["reasoning", "message"]),
        ([done(THOUGHT)], [THOUGHT, message()], ["reasoning", "message"]),
        ([done(THOUGHT, output_index=0)], [THOUGHT, CALL], ["reasoning", "function_call"]),
        ([done(CALL), done(message())], [THOUGHT, CALL, message()], None),
        ([done(CALL, output_index=0)], [CALL], ["function_call"]),
        ([done({**CALL, "id": "fc_1"})], [{**CALL, "id": "fc_2"}], ["function_call"]),
        ([done(message(id="a"), output_index=0)], [message(id="b")], ["message"]),
        ([done(message())], [], ["message"]),
    ],
)
def test_the_last_event_loses_and_repeats_no_item(before, output, expected):
    events = ask_in_frames("openai-responses", *before, ending(*output))
    assert types(events) == (expected or ["function_call", "message", "reasoning"])


def test_an_item_of_the_last_event_ends_a_streamed_text():
    first = {"type": "response.output_text.delta", "delta": "39", "item_id": "msg_1"}
    events = ask_in_frames("openai-responses", first, ending(message(id="msg_1")))
    assert types(events) == ["message"]


ODD_USAGES = [
    *(5, [5], {}, {"total_tokens": 5}, {"prompt_tokens": 5}, {"output_tokens": 5}),
    *({"prompt_tokens": count, "completion_tokens": 2} for count in (-1, "5", [5], 2.5, {})),
    *({"input_tokens": 2, "output_tokens": count} for count in (-1, "5", True, 1e400, None)),
]


@BOTH
def test_tokens_that_cannot_be_counted_are_unknown(provider):
    word_frame = frame(word(provider, "391"))
    turns = [Turn(frames=[word_frame, frame(last(provider, usage=usage))]) for usage in ODD_USAGES]
    for usage, events in zip(ODD_USAGES, ask_each(turns, provider), strict=True):
        assert not isinstance(events, ModelError), usage
        assert text(events) == "391"
        assert events[-1]["response"]["usage"] is None, usage


@BOTH
def test_odd_details_of_a_usage_are_omitted(provider):
    usage = {"input_tokens": 3.0, "output_tokens": 4, "total_tokens": "7", "cost": "5 $"}
    usage["input_tokens_details"] = {"cached_tokens": "all"}
    usage["output_tokens_details"] = 5
    counts = ask_in_frames(provider, last(provider, usage=usage))[-1]["response"]["usage"]
    assert (counts["input_tokens"], counts["total_tokens"]) == (3, 7)
    assert counts["input_tokens_details"]["cached_tokens"] == 0


@BOTH
def test_the_tier_of_the_service_is_reported(provider):
    events = ask_in_frames(provider, last(provider, service_tier="flex"))
    assert events[-1]["response"]["service_tier"] == "flex"


def test_unknown_items_and_parts_are_omitted(caplog):
    box = {"type": "a_box_for_this_test", "id": "x"}
    inner = {"type": "response.output_text.delta", "delta": "no", "item_id": "x"}
    parts = [{"type": "a_part_for_this_test"}, {"type": "text", "text": "391"}]
    odd = {"type": "response.content_part.added", "part": parts[0]}
    event = {"type": "response.output_text.of_this_test"}
    items = [box, message() | {"content": parts}]
    frames = [{"type": "response.output_item.added", "item": box}, inner, odd, event]
    for events in (
        ask_in_frames("openai-responses", *frames, *map(done, items), ending(*items)),
        ask_in_frames("openai-responses", ending(*items)),
    ):
        assert types(events) == ["message"]
        assert "no" not in text(events)
        (part,) = events[0]["item"]["content"]
        assert part == {"type": "output_text", "text": "391"}
    parts[0]["type"] = "another_part_for_this_test"
    assert text(ask_in_frames("openai", delta(content=parts), delta("stop"))) == "391"
    named = [record.args[1] for record in caplog.records if "unknown" in record.msg]
    assert sorted(named) == sorted(
        [box["type"], "a_part_for_this_test", event["type"], "another_part_for_this_test"]
    )


@pytest.mark.parametrize(
    "part",
    [
        {"type": "thinking", "thinking": [{"type": "text", "text": "Hm."}]},
        {"type": "reasoning", "text": "Hm."},
    ],
)
def test_a_part_with_reasoning_is_no_text(part):
    events = ask_in_frames("openai", delta(content=[part]), delta("stop", content="391"))
    assert text(events, "response.reasoning_text.delta") == "Hm."
    assert text(events) == "391"


# --- the reasons of a service


REPORTED = [
    {"error": {"message": "too hot", "code": "hot"}},
    {"error": "too hot"},
    {"error": {"message": "", "detail": "too hot"}},
    {"error": None, "message": "too hot"},
    {"error": True, "message": "too hot"},
    {"object": "error", "message": "too hot", "type": "BadRequestError", "code": 400},
    {"error_code": "BAD_REQUEST", "message": "too hot"},
    {"detail": "too hot"},
    {"detail": [{"loc": ["body", "heat"], "msg": "too hot", "type": "value_error"}]},
    {"detail": {"error": {"message": "too hot"}}},
    {"errors": [{"message": "too hot"}]},
    {"errors": ["too hot"]},
    {"message": {"detail": [{"msg": "too hot"}]}},
    [{"error": {"code": 400, "message": "too hot", "status": "INVALID_ARGUMENT"}}],
    "too hot",
]


@BOTH
def test_every_form_of_an_error_becomes_the_reason(provider):
    begun = frame(word(provider, "3"))
    for reported in REPORTED:
        as_text = reported if isinstance(reported, str) else json.dumps(reported)
        turns = [
            Refusal(400, body=reported, headers=AT_ONCE),
            Turn(frames=[begun, f"event: error\ndata: {as_text}\n\n"]),
        ]
        if isinstance(reported, dict):
            turns.append(Turn(frames=[begun, frame(reported)]))
            turns.append(Turn(frames=[as_text], kind="application/json"))
        errors = ask_each(turns, provider)
        assert errors[0].status == 400
        for error in errors:
            assert isinstance(error, ModelError), reported
            assert error.message.endswith(("reported: too hot", "reported: body.heat: too hot"))
            assert error.status in (400, 502)


@BOTH
@pytest.mark.parametrize(
    ("reported", "status"),
    [
        ({"error": {"type": "overloaded_error", "message": "busy"}, "type": "error"}, 503),
        ({"error": {"code": "429", "message": "busy"}}, 429),
        ({"error_code": "REQUEST_LIMIT_EXCEEDED", "message": "busy"}, 429),
        ({"error": {"code": 404, "message": "no such model"}}, 404),
        ({"error": {"code": "context_length_exceeded", "message": "long"}}, 400),
        ({"error": {"code": "99999999", "message": "odd"}}, 502),
    ],
)
def test_the_status_of_an_error_within_the_stream(provider, reported, status):
    error = fail(Turn(frames=[frame(word(provider, "3")), frame(reported)]), provider)
    assert error.status == status
    assert status != 404 or "some-model" in error.message


def test_a_reason_without_content():
    assert "nothing" in fail(Refusal(400, body="{}")).message
    assert "nothing" in fail(Turn(frames=["event: error\n\n"])).message


@BOTH
@pytest.mark.parametrize("status", [429, 503])
def test_the_time_to_try_again_is_passed_on(provider, status):
    refusal = Refusal(status, headers=AT_ONCE | {"retry-after": "7"})
    assert fail(refusal, provider).retry_after == "7"
    assert fail(Refusal(status, headers=AT_ONCE), provider).retry_after is None


# --- fields that a service refuses

STRICT_TOOL = {
    **TOOL,
    "strict": True,
    "parameters": {
        "type": "object",
        "properties": {"strict": {"type": "object", "additionalProperties": False}},
        "additionalProperties": False,
    },
}


@BOTH
@pytest.mark.parametrize(
    ("name", "error"),
    [
        ("strict", {"detail": [{"loc": ["body", "tools", 0, "strict"], "msg": "Extra inputs"}]}),
        ("additionalProperties", 'Unknown name "additionalProperties": Cannot find field.'),
        ("parallel_tool_calls", {"error": "parallel_tool_calls isn't supported"}),
        ("service_tier", {"message": "property 'service_tier' is unsupported"}),
        ("prompt_cache_key", {"error_code": "BAD", "message": "prompt_cache_key: forbidden"}),
    ],
)
def test_a_refused_field_is_omitted_from_then_on(provider, name, error):
    field = re.compile(rf'"{name}": (?!{{"type")')  # not the parameter of that name

    def picky(body):
        return Refusal(422, body=error) if field.search(json.dumps(body)) else "391"

    parameters = {"parallel_tool_calls": False, "service_tier": "auto", "prompt_cache_key": "a"}
    more = {"tools": [STRICT_TOOL], "parameters": parameters}

    async def twice(model):
        return [text(await collect(model, **more)) for _ in range(2)]

    with ModelStandIn([picky] * 3) as service:
        assert asyncio.run(twice(model_at(service.url, provider))) == ["391", "391"]
    assert len(service.requests) == 3
    sent = service.requests[-1].body
    others = {"strict", "additionalProperties", *parameters} - {name}
    assert all(f'"{other}":' in json.dumps(sent) for other in others)
    (tool,) = sent["tools"]
    assert "strict" in tool.get("function", tool)["parameters"]["properties"]


def test_refused_reasoning_is_omitted():
    def picky(body):
        refused = any("reasoning_content" in message for message in body["messages"])
        return Refusal(400, "property 'reasoning_content' is unsupported") if refused else "Yes."

    with ModelStandIn([picky] * 2) as service:
        events = asyncio.run(collect(model_at(service.url), HISTORY))
    assert text(events) == "Yes."
    assert service.requests[-1].body["messages"][1]["tool_calls"]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(("stop", ["END"]), ("seed", 0), ("logit_bias", {"5": 1})),
        *(("frequency_penalty", 0.5), ("presence_penalty", -0.5)),
    ],
)
def test_parameters_that_the_responses_api_lacks_are_refused(name, value):
    with pytest.raises(RequestError, match=name) as caught:
        ask(["never"], provider="openai-responses", parameters={name: value})
    assert (caught.value.status, caught.value.param) == (400, name)


def test_parameters_without_effect_are_not_sent():
    neutral = {"stop": [], "logit_bias": {}, "frequency_penalty": 0, "presence_penalty": 0.0}
    _, body = ask(["391"], provider="openai-responses", parameters=neutral)
    assert not neutral.keys() & body.keys()


# --- Databricks


@pytest.fixture
def workspace(monkeypatch, tmp_path):
    remove_credentials(monkeypatch, tmp_path / "databrickscfg")
    monkeypatch.setattr("openai._base_client.INITIAL_RETRY_DELAY", 0.01)
    get_workspace_client.cache_clear()
    with serve_workspace() as workspace:
        monkeypatch.setenv("DATABRICKS_HOST", workspace.url)
        yield workspace
    get_workspace_client.cache_clear()


def ask_endpoint():
    return text(asyncio.run(collect(create_model(spec="databricks:my-endpoint"))))


def test_an_endpoint_is_called_with_the_credentials_of_the_workspace(workspace, monkeypatch):
    monkeypatch.setenv("DATABRICKS_TOKEN", ADA_TOKEN)
    assert ask_endpoint() == "Hello, ada@example.com."
    (call,) = workspace.called("POST", "/serving-endpoints/chat/completions")
    assert call.body["model"] == "my-endpoint"
    assert call.body["stream"] is True


def test_the_token_is_renewed_for_every_request(workspace, monkeypatch):
    monkeypatch.setenv("DATABRICKS_CLIENT_ID", CLIENT_ID)
    monkeypatch.setenv("DATABRICKS_CLIENT_SECRET", CLIENT_SECRET)
    model = create_model(spec="databricks:my-endpoint")

    async def thrice():
        texts = []
        for _ in range(3):
            texts.append(text(await collect(model)))
            used = [token for token in workspace.users if token.startswith("oauth-of-app")]
            for token in used:
                del workspace.users[token]
        return texts

    assert asyncio.run(thrice()) == [f"Hello, {APP_USER}."] * 3
    assert workspace.oauth_tokens_made >= 3


@pytest.mark.parametrize(
    ("status", "advice"), [(403, "Can query"), (404, "my-endpoint"), (429, "Wait")]
)
def test_a_refusal_of_an_endpoint_is_explained(workspace, monkeypatch, status, advice):
    monkeypatch.setenv("DATABRICKS_TOKEN", ADA_TOKEN)
    workspace.model_refusal = WorkspaceRefusal(status, "SOME_CODE", "No.")
    with pytest.raises(ModelError, match=advice) as caught:
        ask_endpoint()
    assert caught.value.status == status


def test_an_unknown_token_is_refused(workspace, monkeypatch):
    monkeypatch.setenv("DATABRICKS_TOKEN", "dapi" + "0" * 32)
    with pytest.raises(ModelError, match="databricks auth login") as caught:
        ask_endpoint()
    assert caught.value.status == 401
    assert "dapi" not in str(caught.value)


def test_without_credentials_the_endpoint_is_not_called(workspace):
    with pytest.raises(ModelError, match="databricks auth login") as caught:
        ask_endpoint()
    assert caught.value.code == "no_credentials"


def test_a_workspace_that_issues_no_token(workspace, monkeypatch):
    monkeypatch.setenv("DATABRICKS_CLIENT_ID", "nobody")
    monkeypatch.setenv("DATABRICKS_CLIENT_SECRET", "wrong-secret")
    with pytest.raises(ModelError, match="databricks auth login") as caught:
        ask_endpoint()
    assert caught.value.code == "no_credentials"
    assert "wrong-secret" not in str(caught.value)


# --- from the settings


@pytest.mark.parametrize("spec", ["gpt-5-mini", "openai:", "other:name", "scripted:", ""])
def test_an_unknown_model_is_refused_with_the_forms(spec):
    with pytest.raises(ModelError, match="openai:<name>"):
        create_model(spec=spec)


def test_a_script_is_found_next_to_the_settings(tmp_path):
    (tmp_path / "settings.ini").write_text("[agent]\nmodel = scripted:script.jsonl\n")
    (tmp_path / "script.jsonl").write_text('"Hello."\n')
    model = create_model(load_settings(tmp_path))
    assert text(asyncio.run(collect(model))) == "Hello."
