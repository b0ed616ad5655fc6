"""An agent's output in the protocol of its caller: nothing is lost, a failure remains a failure."""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import httpx2
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.tracing_support import stored_trace

from agent_kit.protocol import TASKS, RequestError, parse_request
from agent_kit.protocol.assembler import make_assembler
from agent_kit.protocol.wire import clean_text, dump_json
from agent_kit.server import AgentServer, create_server
from agent_kit.tracing.drain import DrainSupervisor

pytest_plugins = ["support.tracing_fixtures"]

RESPONSES, CHAT, AGENT = TASKS
ASK: dict[str, Any] = {
    RESPONSES: {"input": "Hi"},
    CHAT: {"messages": [{"role": "user", "content": "Hi"}]},
    AGENT: {"messages": [{"role": "user", "content": "Hi"}]},
}
PATHS = {RESPONSES: "/v1/responses", CHAT: "/v1/chat/completions"}
WEATHER = {"type": "function", "function": {"name": "get_weather", "parameters": {}}}


@pytest.fixture(autouse=True)
def untraced(monkeypatch):
    monkeypatch.setenv("AGENT_KIT_MLFLOW_TRACING", "false")


def agent_yielding(task: str, *chunks: Any) -> AgentServer:
    server = create_server(task)

    @server.stream()
    async def answer(request):
        for chunk in chunks:
            yield chunk

    return server


@contextmanager
def served(task: str, *chunks: Any) -> Iterator[str]:
    with agent_yielding(task, *chunks).serve() as url:
        yield url


def ask(url: str, api: str, **more: Any) -> httpx2.Response:
    return httpx2.post(url + PATHS[api], json={**ASK[api], **more})


def streamed(url: str, api: str, **more: Any) -> list[dict]:
    answer = ask(url, api, stream=True, **more)
    assert answer.status_code == 200, answer.text
    lines = [line[6:] for line in answer.text.splitlines() if line.startswith("data: ")]
    assert lines.pop() == "[DONE]"
    return [json.loads(line) for line in lines]


def accumulate(chunks: list[dict]) -> dict:
    """Return the message and finish reason that a chat client accumulates from a stream."""
    total: dict[str, Any] = {"content": "", "reasoning_content": "", "refusal": ""}
    lists: dict[str, list] = {}
    ended: list[str] = []
    for choice in (choice for chunk in chunks for choice in chunk["choices"]):
        for name, value in choice["delta"].items():
            if isinstance(value, list):
                lists.setdefault(name, []).extend(value)
            elif name in total:
                total[name] += value
        ended += [choice["finish_reason"]] if choice["finish_reason"] else []
    assert len(ended) == 1
    return {**total, **lists, "finish_reason": ended[0]}


def called(name: str, call_id: str = "call_1") -> dict:
    return {"type": "function_call", "call_id": call_id, "name": name, "arguments": "{}"}


def output_of(call_id: str, output: str = "391") -> dict:
    return {"type": "function_call_output", "call_id": call_id, "output": output}


# Chat completions of an agent of another task type ---------------------------------------------


def test_a_chat_agent_answers_in_chat_completions():
    with served(AGENT, "Hello ", "you") as url:
        answer = ask(url, CHAT)
        assert answer.status_code == 200, answer.text
        assert answer.json()["choices"][0]["message"]["content"] == "Hello you"
        assert accumulate(streamed(url, CHAT, tool_choice="auto"))["content"] == "Hello you"


@pytest.mark.parametrize(("code", "status"), [("server_error", 500), ("rate_limit_exceeded", 429)])
def test_an_agents_error_event_is_an_error_in_chat_completions(code, status, caplog):
    error = {"type": "error", "code": code, "message": "The model is tired.", "param": None}
    with served(RESPONSES, "I was ", error) as url:
        answer = ask(url, CHAT)
        assert answer.status_code == status
        assert answer.json()["error"]["message"] == "The model is tired."
        assert answer.json()["error"]["code"] == code
        chunks = streamed(url, CHAT)
    assert chunks[-1]["error"]["message"] == "The model is tired."
    reasons = [choice["finish_reason"] for chunk in chunks[:-1] for choice in chunk["choices"]]
    assert set(reasons) == {None}


@pytest.mark.parametrize("api", PATHS)
def test_the_trace_of_a_failed_response_contains_the_error(api, project, monkeypatch, caplog):
    monkeypatch.setattr(DrainSupervisor, "check", lambda self: None)
    server = create_server(settings=project)
    server.invoke()(lambda request: {"type": "error", "message": "The model is tired."})
    with server.serve() as url:
        trace_id = ask(url, api).headers["x-mlflow-trace-id"]
    assert stored_trace(project, trace_id).info.state == "ERROR"


@pytest.mark.parametrize("task", [CHAT, AGENT])
def test_a_failure_after_the_finish_reason_is_a_failure(task, caplog):
    server = create_server(task)

    @server.stream()
    def answer(request):
        if task == CHAT:
            yield {"choices": [{"delta": {"content": "Done"}, "finish_reason": "stop"}]}
        else:
            yield {"delta": {"role": "assistant", "content": "Done", "id": "1"}}
        raise ValueError("secret")

    with server.serve() as url:
        chunks = streamed(url, CHAT)
    assert chunks[-1]["error"]["code"] == "server_error"
    assert "secret" not in json.dumps(chunks)
    assert not [c for chunk in chunks[:-1] for c in chunk["choices"] if c["finish_reason"]]


def test_reasoning_annotations_logprobs_and_own_outputs_reach_a_chat_client():
    citation = {
        "type": "url_citation",
        "url": "https://example.com",
        "title": "Example",
        "start_index": 0,
        "end_index": 3,
    }
    logprob = {"token": "Yes", "bytes": [1], "logprob": -0.1, "top_logprobs": []}
    second = [{"type": "output_text", "text": "See there.", "annotations": [citation]}]
    chunks = (
        {"type": "response.reasoning_text.delta", "delta": "Think."},
        {"type": "response.reasoning_summary_text.delta", "delta": "Thought."},
        {"type": "response.output_text.delta", "delta": "Yes.", "logprobs": [logprob]},
        {"type": "message", "role": "assistant", "content": second},
        {"type": "response.completed", "response": {"custom_outputs": {"cost": 1}}},
    )
    with served(RESPONSES, *chunks) as url:
        body = ask(url, CHAT).json()
        received = streamed(url, CHAT)
    message, accumulated = body["choices"][0]["message"], accumulate(received)
    for each in (message, accumulated):
        assert each["content"] == "Yes.\n\nSee there."
        assert each["reasoning_content"] == "Think.\n\nThought."
        (annotation,) = each["annotations"]
        inner = annotation["url_citation"]
        assert each["content"][inner["start_index"] : inner["end_index"]] == "See"
    assert body["choices"][0]["logprobs"]["content"] == [logprob]
    assert body["custom_outputs"] == {"cost": 1}
    assert received[-1]["custom_outputs"] == {"cost": 1}


def test_only_calls_of_the_callers_tools_are_passed_to_a_chat_client():
    chunks = (
        called("python_exec", "call_own"),
        output_of("call_own"),
        {"type": "web_search_call", "status": "completed"},
        called("unanswered", "call_lost"),
        called("get_weather", "call_theirs"),
        called("get_weather", "call_answered"),
        output_of("call_answered", "sunny"),
    )
    with served(RESPONSES, *chunks) as url:
        body = ask(url, CHAT, tools=[WEATHER]).json()
        accumulated = accumulate(streamed(url, CHAT, tools=[WEATHER]))
        without = ask(url, CHAT).json()["choices"][0]
    message = body["choices"][0]["message"]
    assert body["choices"][0]["finish_reason"] == accumulated["finish_reason"] == "tool_calls"
    for each in (message, accumulated):
        assert [call["id"] for call in each["tool_calls"]] == ["call_theirs"]
        shown = [item.get("call_id") or item["type"] for item in each["output_items"]]
        expected = ["call_own", "call_own", "web_search_call", "call_lost"]
        assert shown == [*expected, "call_answered", "call_answered"]
    assert "tool_calls" not in without["message"]
    assert without["finish_reason"] == "stop"


def test_a_call_of_a_custom_tool_is_passed_on():
    call = {"type": "custom_tool_call", "call_id": "call_1", "name": "sql", "input": "SELECT 1"}
    tools = [{"type": "custom", "custom": {"name": "sql"}}]
    with served(RESPONSES, call) as url:
        (made,) = ask(url, CHAT, tools=tools).json()["choices"][0]["message"]["tool_calls"]
    assert made == {
        "id": "call_1",
        "type": "custom",
        "custom": {"name": "sql", "input": "SELECT 1"},
    }


@pytest.mark.parametrize(
    ("reason", "finish"), [("max_output_tokens", "length"), ("content_filter", "content_filter")]
)
def test_an_incomplete_response_contains_the_reason_in_every_protocol(reason, finish):
    cut = {"type": "response.incomplete", "response": {"incomplete_details": {"reason": reason}}}
    with served(RESPONSES, "It is", cut) as url:
        assert ask(url, CHAT).json()["choices"][0]["finish_reason"] == finish
    ended = {"choices": [{"delta": {"content": "It is"}, "finish_reason": finish}]}
    with served(CHAT, ended) as url:
        body = ask(url, RESPONSES).json()
        assert body["status"] == "incomplete"
        assert body["incomplete_details"] == {"reason": reason}
    part = {"delta": {"role": "assistant", "content": "It is", "id": "1"}, "finish_reason": finish}
    with served(AGENT, part) as url:
        assert ask(url, RESPONSES).json()["incomplete_details"] == {"reason": reason}


def test_a_refusal_passes_between_all_protocols():
    part = {"type": "refusal", "refusal": "No."}
    with served(RESPONSES, {"type": "message", "content": [part]}) as url:
        assert ask(url, CHAT).json()["choices"][0]["message"]["refusal"] == "No."
    with served(CHAT, {"role": "assistant", "refusal": "No."}) as url:
        assert ask(url, RESPONSES).json()["output"][0]["content"] == [part]


# Responses of an agent of chat completions -----------------------------------------------------


def test_everything_in_a_chat_completion_reaches_a_responses_client():
    nested = {"type": "url_citation", "url_citation": {"url": "https://a.b", "title": "A"}}
    nested["url_citation"] |= {"start_index": 0, "end_index": 3}
    logprob = {"token": "Yes", "bytes": [1], "logprob": -0.1, "top_logprobs": []}
    call = {"index": 0, "id": "call_1", "function": {"name": "get_weather", "arguments": '{"c'}}
    chunks = (
        {"choices": [{"delta": {"reasoning_content": "Hm."}}]},
        {"choices": [{"delta": {"content": "Yes"}, "logprobs": {"content": [logprob]}}]},
        {"choices": [{"delta": {"annotations": [nested]}}]},
        {"choices": [{"delta": {"tool_calls": [call], "mood": "good"}}]},
        {"choices": [{"delta": {"tool_calls": [{"index": 0, "function": {"arguments": '":1}'}}]}}]},
        {"choices": [{"delta": {}, "finish_reason": "tool_calls"}]},
        {"choices": [], "usage": {"prompt_tokens": 3, "completion_tokens": 4}},
        {"custom_outputs": {"cost": 1}},
    )
    with served(CHAT, *chunks) as url:
        body = ask(url, RESPONSES).json()
        ended = streamed(url, RESPONSES)[-1]["response"]
    for response in (body, ended):
        reasoning, message, made = response["output"]
        assert reasoning["content"][0]["text"] == "Hm."
        (part,) = message["content"]
        assert part["text"] == "Yes"
        assert part["annotations"][0]["url"] == "https://a.b"
        assert part["logprobs"] == [logprob]
        assert made["arguments"] == '{"c":1}'
        assert response["usage"]["output_tokens"] == 4
        assert response["custom_outputs"] == {"cost": 1, "mood": "good"}


def test_a_content_of_parts_and_custom_and_legacy_calls_become_items():
    parts = [
        {"type": "reasoning", "summary": [{"type": "summary_text", "text": "Hm."}]},
        {"type": "text", "text": "Yes"},
        {"type": "refusal", "refusal": "No"},
    ]
    custom = {"id": "call_1", "type": "custom", "custom": {"name": "sql", "input": "SELECT 1"}}
    chunks = (
        {"role": "assistant", "content": parts},
        {"role": "assistant", "tool_calls": [custom]},
        {"role": "assistant", "function_call": {"name": "old", "arguments": "{}"}},
    )
    tools = [{"type": "function", "name": "old", "parameters": {"type": "object"}}]
    with served(CHAT, *chunks) as url:
        output = ask(url, RESPONSES, tools=tools).json()["output"]
    kinds = [item["type"] for item in output]
    assert kinds == ["reasoning", "message", "custom_tool_call", "function_call"]
    assert output[0]["summary"][0]["text"] == "Hm."
    assert [part["type"] for part in output[1]["content"]] == ["output_text", "refusal"]
    assert output[2]["input"] == "SELECT 1"
    assert output[3]["name"] == "old"


@pytest.mark.parametrize(
    "chunk",
    [
        {"choices": [{"index": 1, "delta": {"content": "other"}}]},
        {"role": "assistant", "content": ["text"]},
    ],
)
def test_what_a_response_cannot_contain_is_a_failure_not_a_loss(chunk, caplog):
    with served(CHAT, chunk) as url:
        assert ask(url, RESPONSES).status_code == 500
    assert "AgentOutputError" in caplog.text


# Responses and chat completions of a ChatAgent -------------------------------------------------

CALL = {"id": "call_1", "type": "function", "function": {"name": "mul", "arguments": '{"a"'}}
MESSAGES = (
    {"delta": {"id": "1", "role": "assistant", "content": "Let me "}},
    {"delta": {"id": "1", "role": "assistant", "content": "see."}},
    {"delta": {"id": "2", "role": "assistant", "content": "", "tool_calls": [CALL]}},
    {
        "delta": {
            "id": "2",
            "role": "assistant",
            "content": "",
            "tool_calls": [{"id": "call_1", "function": {"arguments": ":1}"}}],
        }
    },
    {"delta": {"id": "3", "role": "tool", "name": "mul", "tool_call_id": "call_1", "content": "3"}},
    {
        "delta": {
            "id": "3",
            "role": "tool",
            "name": "mul",
            "tool_call_id": "call_1",
            "content": "91",
        }
    },
    {
        "delta": {
            "id": "4",
            "role": "assistant",
            "content": "391",
            "name": "sums",
            "attachments": {"plot": "p.png"},
        },
        "custom_outputs": {"cost": 1},
        "usage": {"prompt_tokens": 3, "completion_tokens": 4, "total_tokens": 7},
    },
)


def test_everything_a_chat_agent_returns_reaches_a_responses_client():
    with served(AGENT, *MESSAGES) as url:
        body = ask(url, RESPONSES).json()
        ended = streamed(url, RESPONSES)[-1]["response"]
    for response in (body, ended):
        first, call, last = response["output"]
        assert first["content"][0]["text"] == "Let me see."
        assert (call["arguments"], call["output"]) == ('{"a":1}', "391")
        assert (last["name"], last["attachments"]) == ("sums", {"plot": "p.png"})
        assert response["custom_outputs"] == {"cost": 1}
        assert response["usage"]["output_tokens"] == 4


def test_everything_a_chat_agent_returns_reaches_a_chat_client():
    with served(AGENT, *MESSAGES) as url:
        body = ask(url, CHAT).json()
    message = body["choices"][0]["message"]
    assert message["content"] == "Let me see.\n\n391"
    assert "tool_calls" not in message
    assert [item["type"] for item in message["output_items"]] == [
        "function_call",
        "function_call_output",
    ]
    assert body["choices"][0]["finish_reason"] == "stop"
    assert body["custom_outputs"] == {"cost": 1}
    assert body["usage"]["total_tokens"] == 7


@pytest.mark.parametrize(
    "chunks",
    [
        [{"delta": {"id": "1", "role": "user", "content": "I am you"}}],
        [
            {"delta": {"id": "1", "role": "assistant", "content": "one"}},
            {"delta": {"id": "2", "role": "assistant", "content": "two"}},
            {"delta": {"id": "1", "role": "assistant", "content": "again"}},
        ],
    ],
    ids=["another role", "a message that continued"],
)
def test_messages_without_a_counterpart_in_a_response_are_a_failure(chunks, caplog):
    with served(AGENT, *chunks) as url:
        assert ask(url, RESPONSES).status_code == 500
    assert "AgentOutputError" in caplog.text


# Any chunks, any pair of task types ------------------------------------------------------------


def _event(kind: str) -> Callable[[str], dict]:
    return lambda word: {"type": f"response.{kind}.delta", "delta": word}


def _delta(name: str) -> Callable[[str], dict]:
    return lambda word: {"choices": [{"delta": {name: word}}]}


def _call(word: str) -> dict:
    call = {"id": word, "function": {"name": "get_weather", "arguments": "{}"}}
    return {"role": "assistant", "content": "", "tool_calls": [call]}


MAKERS: dict[str, list[Callable[[str], Any]]] = {
    RESPONSES: [
        str,
        _event("output_text"),
        _event("refusal"),
        _event("reasoning_text"),
        _event("reasoning_summary_text"),
        lambda word: {"type": "message", "role": "assistant", "content": word},
        lambda word: called("get_weather", word),
        lambda word: called("python_exec", word),
        lambda word: {"type": "response.completed", "response": {"custom_outputs": {word: 1}}},
    ],
    CHAT: [
        str,
        _delta("content"),
        _delta("refusal"),
        _delta("reasoning_content"),
        _delta("an_extension"),
        lambda word: {"role": "assistant", "content": [{"type": "text", "text": word}]},
        lambda word: {"custom_outputs": {word: 1}},
        _call,
    ],
    AGENT: [
        str,
        lambda word: {"role": "assistant", "content": word},
        lambda word: {"delta": {"role": "assistant", "content": word}},
        lambda word: {"role": "tool", "name": "n", "tool_call_id": "c", "content": word},
        lambda word: {"custom_outputs": {word: 1}},
        _call,
    ],
}


@pytest.mark.parametrize("agent", TASKS)
@pytest.mark.parametrize("api", PATHS)
@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_nothing_is_lost_between_any_api_and_any_agent(api, agent, data):
    makers = data.draw(st.lists(st.sampled_from(MAKERS[agent]), max_size=6))
    texts = [f"<{number}>{data.draw(st.text(max_size=4))}" for number in range(len(makers))]
    words = [clean_text(text) for text in texts]
    more = {"tools": [WEATHER]} if api == CHAT and agent != AGENT else {}
    _, assembler = make_assembler(api, agent, parse_request(api, {**ASK[api], **more}))
    events = assembler.start()
    for make, word in zip(makers, words, strict=True):
        events += assembler.add(make(word))
    events += assembler.finish()
    for output in (assembler.body, events):
        written = json.loads(dump_json(output))
        found = "\n".join(_strings(written))
        assert [word for word in words if word not in found] == []


def _strings(value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        for name, inner in value.items():
            yield name
            yield from _strings(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _strings(inner)
    elif isinstance(value, str):
        yield value


def test_a_chat_agent_request_needs_a_chat_agent():
    request = parse_request(AGENT, ASK[AGENT])
    with pytest.raises(RequestError, match="agent/v2/chat"):
        make_assembler(AGENT, RESPONSES, request)
