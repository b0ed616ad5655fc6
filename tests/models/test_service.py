"""Models of services over HTTP: requests, responses and errors."""

import asyncio
import json
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
    with pytest.raises(ModelError, match="tools") as caught:
        ask(["never"], tools=[{"type": "web_search"}])
    assert caught.value.status == 400


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
    likely = [{"token": "391", "logprob": -0.1, "top_logprobs": []}]
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
        ['data: {"usage": {"prompt_tokens": "many"}}\n\n'],
        ['data: {"type": "response.completed", "response": 5}\n\n'],
        [
            'data: {"type": "response.completed", "response": {"usage": 5}, "choices": []}\n\n',
        ],
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
