"""The three task types over HTTP: every shape of function, both ways, checked by MLflow's types."""

import asyncio
import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import httpx2
import pytest
from mlflow.types.agent import ChatAgentChunk, ChatAgentMessage, ChatAgentRequest, ChatAgentResponse
from mlflow.types.chat import ChatCompletionChunk, ChatCompletionResponse
from openai import AsyncOpenAI, OpenAI
from openai.types.chat import ChatCompletion
from openai.types.chat import ChatCompletionChunk as OpenAIChunk
from openai.types.responses import Response
from support.model_stand_in import ModelStandIn, Turn

from agent_kit import server as default_server
from agent_kit.protocol import TASKS, ChatRequest
from agent_kit.runs.handlers import Registry
from agent_kit.server import AgentServer, create_server
from agent_kit.settings import load_settings

RESPONSES, CHAT, AGENT = TASKS
MESSAGES = {"messages": [{"role": "user", "content": "Hi"}]}
ASK: dict[str, dict[str, Any]] = {RESPONSES: {"input": "Hi"}, CHAT: MESSAGES, AGENT: MESSAGES}


@pytest.fixture(autouse=True)
def untraced(monkeypatch):
    monkeypatch.setenv("AGENT_KIT_MLFLOW_TRACING", "false")


def post(url: str, path: str = "/invocations", **body: Any) -> httpx2.Response:
    return httpx2.post(url + path, json=body)


def frames(answer: httpx2.Response) -> list[dict]:
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"].startswith("text/event-stream")
    data = [line[6:] for line in answer.text.splitlines() if line.startswith("data: ")]
    assert data.pop() == "[DONE]"
    return [json.loads(line) for line in data]


def text_of(task: str, body: dict) -> str:
    if task == RESPONSES:
        return "".join(part["text"] for item in body["output"] for part in item["content"])
    if task == CHAT:
        return body["choices"][0]["message"]["content"]
    return "".join(message["content"] for message in body["messages"])


def text_of_stream(task: str, events: list[dict]) -> str:
    if task == RESPONSES:
        kind = "response.output_text.delta"
        return "".join(event["delta"] for event in events if event["type"] == kind)
    if task == CHAT:
        choices = (choice for event in events for choice in event["choices"])
        return "".join(choice["delta"].get("content", "") for choice in choices)
    return "".join(event["delta"]["content"] for event in events)


# Every shape of function -----------------------------------------------------------------------


def returns(request):
    return "Hello you"


async def returns_async(request):
    await asyncio.sleep(0)
    return "Hello you"


def yields(request):
    yield "Hello "
    yield "you"


async def yields_async(request):
    yield "Hello "
    yield "you"


SHAPES: list[tuple[str, Callable]] = [
    ("invoke", returns),
    ("invoke", returns_async),
    ("stream", yields),
    ("stream", yields_async),
]


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize(
    ("decorator", "function"), SHAPES, ids=[function.__name__ for _, function in SHAPES]
)
def test_each_shape_alone_serves_both_ways(task, decorator, function):
    server = create_server(task)
    getattr(server, decorator)()(function)
    with server.serve() as url:
        assert text_of(task, post(url, **ASK[task]).json()) == "Hello you"
        events = frames(post(url, **ASK[task], stream=True))
        assert text_of_stream(task, events) == "Hello you"
        with OpenAI(base_url=f"{url}/v1", api_key="any", max_retries=0) as client:
            assert client.responses.create(model="m", input="Hi").output_text == "Hello you"
            chunks = list(
                client.chat.completions.create(
                    model="m", messages=MESSAGES["messages"], stream=True
                )
            )
    deltas = [choice.delta.content or "" for chunk in chunks for choice in chunk.choices]
    assert "".join(deltas) == "Hello you"


# Responses fit the types of MLflow and OpenAI --------------------------------------------------

CALL = {"id": "call_1", "type": "function", "function": {"name": "f", "arguments": "{}"}}
TOOL = {"role": "tool", "name": "f", "tool_call_id": "call_1", "content": "391"}
ITEM = {"type": "function_call", "call_id": "call_1", "name": "f", "arguments": "{}"}
OUTPUT = {"type": "function_call_output", "call_id": "call_1", "output": "391"}
USAGE = {"prompt_tokens": 3, "completion_tokens": 4, "total_tokens": 7}
RICH: dict[str, list[Any]] = {
    RESPONSES: [
        "Let me see.",
        {"type": "reasoning", "summary": [{"type": "summary_text", "text": "Hm."}]},
        ITEM,
        OUTPUT,
        "It is 391.",
        {"type": "response.completed", "response": {"usage": USAGE, "custom_outputs": {"a": 1}}},
    ],
    CHAT: [
        {"role": "assistant", "content": "It is "},
        {"choices": [{"index": 0, "delta": {"content": "391."}}]},
        {"choices": [{"index": 0, "delta": {"tool_calls": [CALL]}}]},
        {"choices": [], "usage": USAGE},
    ],
    AGENT: [
        "Let me see.",
        {"role": "assistant", "content": "", "tool_calls": [CALL]},
        TOOL,
        {"delta": {"role": "assistant", "content": "It is ", "id": "7"}},
        {"delta": {"role": "assistant", "content": "391.", "id": "7"}, "usage": USAGE},
        {"custom_outputs": {"a": 1}},
    ],
}


@contextmanager
def rich(task: str) -> Iterator[str]:
    server = create_server(task)

    @server.stream()
    async def answer(request):
        for chunk in RICH[task]:
            yield chunk

    with server.serve() as url:
        yield url


def test_responses_satisfy_mlflow_and_openai():
    from mlflow.types.responses import ResponsesAgentResponse, ResponsesAgentStreamEvent

    with rich(RESPONSES) as url:
        body = post(url, input="Hi").json()
        events = frames(post(url, input="Hi", stream=True))
    checked = ResponsesAgentResponse.model_validate(body)
    kinds = [item.type for item in checked.output]
    assert kinds == ["message", "reasoning", "function_call", "function_call_output", "message"]
    assert checked.custom_outputs == {"a": 1}
    assert Response.model_validate(body).usage.total_tokens == 7
    for event in events:
        ResponsesAgentStreamEvent.model_validate(event)
    assert [item["type"] for item in events[-1]["response"]["output"]] == kinds


def test_chat_completions_satisfy_mlflow_and_openai():
    with rich(CHAT) as url:
        body = post(url, **MESSAGES, model="m").json()
        stream = {"stream": True, "stream_options": {"include_usage": True}}
        events = frames(post(url, **MESSAGES, model="m", **stream))
    checked = ChatCompletionResponse.model_validate(body)
    assert checked.choices[0].message.content == "It is 391."
    assert checked.choices[0].message.tool_calls[0].function.name == "f"
    assert checked.choices[0].finish_reason == "tool_calls"
    assert checked.usage.total_tokens == 7
    assert ChatCompletion.model_validate(body).choices[0].message.tool_calls[0].id == "call_1"
    for event in events:
        assert OpenAIChunk.model_validate(event).object == "chat.completion.chunk"
        ChatCompletionChunk.model_validate(event)
    assert [choice["finish_reason"] for choice in events[-2]["choices"]] == ["tool_calls"]
    assert (events[-1]["choices"], events[-1]["usage"]["total_tokens"]) == ([], 7)


def test_chat_agents_satisfy_mlflow():
    with rich(AGENT) as url:
        body = post(url, **MESSAGES).json()
        events = frames(post(url, **MESSAGES, stream=True))
    checked = ChatAgentResponse.model_validate(body)
    assert [message.role for message in checked.messages] == ["assistant"] * 2 + [
        "tool",
        "assistant",
    ]
    assert checked.messages[-1].content == "It is 391."
    assert (checked.finish_reason, checked.custom_outputs) == ("stop", {"a": 1})
    assert checked.usage.total_tokens == 7
    chunks = [ChatAgentChunk.model_validate(event) for event in events]
    texts: dict[str | None, str] = {}
    for chunk in chunks:
        texts[chunk.delta.id] = texts.get(chunk.delta.id, "") + (chunk.delta.content or "")
    assert list(texts.values()) == ["Let me see.", "", "391", "It is 391."]
    assert (chunks[-1].finish_reason, chunks[-1].custom_outputs) == ("stop", {"a": 1})


# MLflow's own objects, in and out --------------------------------------------------------------


def test_mlflows_chat_agent_classes_go_in_and_out():
    server = create_server(AGENT)
    seen: list[ChatAgentRequest] = []

    @server.invoke()
    def answer(request: ChatAgentRequest) -> ChatAgentResponse:
        seen.append(request)
        message = ChatAgentMessage(id="1", role="assistant", content="Hello you")
        return ChatAgentResponse(messages=[message], finish_reason="stop")

    @server.stream()
    def answer_in_chunks(request: ChatAgentRequest):
        for word in ("Hello ", "you"):
            message = ChatAgentMessage(id="1", role="assistant", content=word)
            yield ChatAgentChunk(delta=message)

    context = {"conversation_id": "c1", "user_id": "ada"}
    with server.serve() as url:
        body = post(url, **MESSAGES, context=context, custom_inputs={"a": 1}).json()
        chat = post(url, "/v1/chat/completions", **MESSAGES, temperature=0.5)
        events = frames(post(url, **MESSAGES, stream=True))
    assert body["messages"] == [{"role": "assistant", "content": "Hello you", "id": "1"}]
    assert seen[0].context.user_id == "ada"
    assert seen[0].custom_inputs == {"a": 1}
    assert chat.json()["choices"][0]["message"]["content"] == "Hello you"
    assert text_of_stream(AGENT, events) == "Hello you"


def test_mlflows_chat_objects_go_out():
    server = create_server(CHAT)
    chunk = {"choices": [{"index": 0, "delta": {"role": "assistant", "content": "Hello you"}}]}
    whole = {
        "id": "1",
        "created": 1,
        "model": "m",
        "choices": [
            {
                "index": 0,
                "message": {"role": "assistant", "content": "Hello you"},
                "finish_reason": "length",
            }
        ],
        "usage": USAGE,
    }

    @server.invoke()
    async def answer(request) -> ChatCompletionResponse:
        return ChatCompletionResponse.model_validate(whole)

    @server.stream()
    async def answer_in_chunks(request):
        yield ChatCompletionChunk.model_validate({**whole, **chunk})

    with server.serve() as url:
        body = post(url, **MESSAGES).json()
        events = frames(post(url, **MESSAGES, stream=True))
    assert body["choices"][0]["finish_reason"] == "length"
    assert body["usage"]["total_tokens"] == 7
    assert body["model"] == "m"
    assert text_of_stream(CHAT, events) == "Hello you"


def test_a_chat_agent_may_return_several_choices():
    server = create_server(CHAT)

    @server.stream()
    async def answer(request):
        for index in range(request.n):
            yield {"choices": [{"index": index, "delta": {"content": f"Answer {index}"}}]}
        yield {"choices": [{"index": 1, "delta": {}, "finish_reason": "length"}]}

    with server.serve() as url:
        choices = post(url, **MESSAGES, n=2).json()["choices"]
        events = frames(post(url, **MESSAGES, n=2, stream=True))
    assert [choice["message"]["content"] for choice in choices] == ["Answer 0", "Answer 1"]
    assert [choice["finish_reason"] for choice in choices] == ["stop", "length"]
    reasons = {
        choice["index"]: choice["finish_reason"]
        for event in events
        for choice in event["choices"]
        if choice["finish_reason"]
    }
    assert reasons == {0: "stop", 1: "length"}


# Checked both ways -----------------------------------------------------------------------------

BAD_CHAT = [
    ({}, "messages"),
    ({"messages": []}, "messages"),
    ({"messages": "Hi"}, "messages"),
    ({"messages": [{"role": "king", "content": "x"}]}, "messages[0].role"),
    ({"messages": [{"role": "user"}]}, "messages[0].content"),
    ({"messages": [{"role": "tool", "content": "x"}]}, "messages[0].tool_call_id"),
    ({**MESSAGES, "stream": "false"}, "stream"),
]
BAD = [
    *((CHAT, body, param) for body, param in BAD_CHAT),
    *((AGENT, body, param) for body, param in BAD_CHAT if "tool_call_id" not in param),
    (CHAT, {**MESSAGES, "n": 0}, "n"),
    (CHAT, {**MESSAGES, "tools": [{"type": "function"}]}, "tools[0].function"),
    (CHAT, {**MESSAGES, "tool_choice": "required"}, "tool_choice"),
    (AGENT, {"messages": [{**TOOL, "name": None}]}, "messages[0].name"),
    (AGENT, {"messages": [{"role": "user", "content": [{"type": "text"}]}]}, "messages[0].content"),
    (AGENT, {**MESSAGES, "context": {"user_id": 7}}, "context.user_id"),
    (AGENT, {**MESSAGES, "custom_inputs": 7}, "custom_inputs"),
]


@pytest.fixture(scope="module")
def silent(tmp_path_factory) -> Iterator[dict[str, str]]:
    """The URL of a server of each chat type."""
    folder = tmp_path_factory.mktemp("silent")
    settings = load_settings(folder, environ={"AGENT_KIT_MLFLOW_TRACING": "false"})
    chat, agent = create_server(CHAT, settings=settings), create_server(AGENT, settings=settings)
    chat.invoke()(returns)
    agent.invoke()(returns)
    with chat.serve() as chat_url, agent.serve() as agent_url:
        yield {CHAT: chat_url, AGENT: agent_url}


@pytest.mark.parametrize(("task", "body", "param"), BAD, ids=lambda value: str(value)[:40])
def test_a_bad_request_is_a_400_that_names_the_field(silent, task, body, param):
    answer = post(silent[task], **body)
    assert answer.status_code == 400
    assert answer.json()["error"]["type"] == "invalid_request_error"
    assert answer.json()["error"]["param"] == param


NONSENSE = {
    CHAT: [
        None,
        17,
        {"role": "user", "content": "I am you"},
        {"choices": [{"index": "first", "delta": {"content": "x"}}]},
        {"choices": [{"delta": {"content": 17}}]},
        {"choices": [{"delta": {"tool_calls": {"name": "f"}}}]},
        {"choices": [{"delta": {"tool_calls": ["f"]}}]},
        {"choices": [{"delta": {"tool_calls": [{"function": {"arguments": '{"a": 1}'}}]}}]},
        {"custom_outputs": 17},
        {"content": "x", "usage": {"prompt_tokens": "many"}},
        [
            {"choices": [{"delta": {"content": "x"}, "finish_reason": "stop"}]},
            {"choices": [{"delta": {"content": "y"}}]},
        ],
    ],
    AGENT: [
        None,
        17,
        {"role": "assistant"},
        {"delta": 17},
        {"messages": ["Hi"]},
        {"delta": {"role": "assistant", "content": ["x"]}},
        {"delta": {"role": "tool", "content": "x"}},
        {"custom_outputs": 17},
        [
            {"delta": {"role": "assistant", "content": "x", "id": "1"}},
            {"delta": {**TOOL, "id": "1"}},
        ],
    ],
}


@pytest.mark.parametrize(
    ("task", "chunks"), [(task, chunks) for task, many in NONSENSE.items() for chunks in many]
)
def test_invalid_output_is_a_500_and_the_log_states_why(task, chunks, caplog):
    server = create_server(task)

    @server.stream()
    async def answer(request):
        for chunk in chunks if isinstance(chunks, list) else [chunks]:
            yield chunk

    refused = asyncio.run(_refusal(server, ASK[task]))
    assert refused.status == 500
    assert "AgentOutputError" not in str(refused)
    assert "AgentOutputError" in caplog.text


async def _refusal(server: AgentServer, body: dict) -> Any:
    from agent_kit.server.in_process import RequestRefused

    with pytest.raises(RequestRefused) as caught:
        await server.respond(body)
    return caught.value


# Several servers, and functions that are replaced ----------------------------------------------


def test_the_default_functions_serve_where_a_server_has_none_of_its_own(monkeypatch):
    registry = Registry()
    monkeypatch.setattr("agent_kit.server.default_registry", registry)
    plain, own = create_server(RESPONSES), create_server(CHAT)
    own.invoke()(lambda request: "own")
    registry.invoke()(lambda request: "default")
    with plain.serve() as plain_url, own.serve() as own_url:
        assert text_of(RESPONSES, post(plain_url, input="Hi").json()) == "default"
        assert text_of(CHAT, post(own_url, **MESSAGES).json()) == "own"
        registry.invoke()(lambda request: "newer")
        assert text_of(RESPONSES, post(plain_url, input="Hi").json()) == "newer"
        assert text_of(CHAT, post(own_url, **MESSAGES).json()) == "own"
        plain.invoke()(lambda request: "own at last")
        assert text_of(RESPONSES, post(plain_url, input="Hi").json()) == "own at last"


def test_the_decorators_of_the_module_fill_the_default_registry():
    from agent_kit.runs import handlers

    assert default_server.invoke == handlers.default_registry.invoke
    assert default_server.stream == handlers.default_registry.stream


def test_a_function_replaced_during_a_request_serves_the_next_one():
    server = create_server()
    asked, replaced = threading.Event(), threading.Event()

    @server.stream()
    def first(request):
        yield "from the "
        asked.set()
        assert replaced.wait(60)
        yield "first"

    answers: list[str] = []
    with server.serve() as url:

        def ask() -> None:
            answers.append(text_of(RESPONSES, post(url, input="Hi").json()))

        running = threading.Thread(target=ask)
        running.start()
        assert asked.wait(60)
        server.stream()(lambda request: iter(["from the ", "second"]))
        ask()
        replaced.set()
        running.join()
    assert answers == ["from the second", "from the first"]


def test_servers_of_all_types_live_in_one_process():
    servers = [create_server(task) for task in TASKS]
    for server in servers:
        server.invoke()(lambda request, task=server.task: f"My task type is {task}")

    async def ask() -> list[str]:
        texts = []
        for server in servers:
            async with server.client() as client:
                texts.append((await client.responses.create(model="m", input="Hi")).output_text)
        return texts

    assert asyncio.run(ask()) == [f"My task type is {task}" for task in TASKS]


# A model's own answer, passed on ---------------------------------------------------------------


@pytest.fixture
def passing_on() -> Iterator[tuple[str, ModelStandIn]]:
    """The URL of an agent that passes on what a model service answers, and the service."""
    server = create_server(CHAT)
    turn = Turn("Let me see.", reasoning="Hm.", calls=[("get_weather", {"city": "Paris"})])

    @server.stream()
    async def answer(request: ChatRequest):
        async with AsyncOpenAI(base_url=service.url, api_key="any", max_retries=0) as model:
            asked = {**request.payload(), "model": "m", "stream": True}
            async for chunk in await model.chat.completions.create(**asked):
                yield chunk

    @server.invoke()
    async def answer_at_once(request: ChatRequest):
        async with AsyncOpenAI(base_url=service.url, api_key="any", max_retries=0) as model:
            return await model.chat.completions.create(**{**request.payload(), "model": "m"})

    with ModelStandIn([turn] * 4) as service, server.serve() as url:
        yield url, service


def test_the_response_of_a_model_can_be_passed_on_unchanged(passing_on):
    url, service = passing_on
    tool = {"type": "function", "name": "get_weather", "parameters": {"type": "object"}}
    chat_tool = {"type": "function", "function": {"name": "get_weather", "parameters": {}}}
    plain = post(url, **MESSAGES, tools=[chat_tool]).json()["choices"][0]
    with OpenAI(base_url=f"{url}/v1", api_key="any", max_retries=0) as client:
        with client.chat.completions.stream(
            model="agent", messages=MESSAGES["messages"], tools=[chat_tool]
        ) as stream:
            for _ in stream:
                pass
            streamed = stream.get_final_completion().choices[0].to_dict()
        responses = [client.responses.create(model="agent", input="Hi", tools=[tool])]
        with client.responses.stream(model="agent", input="Hi", tools=[tool]) as events:
            responses.append(events.get_final_response())
    for choice in (plain, streamed):
        assert choice["finish_reason"] == "tool_calls"
        assert choice["message"]["content"] == "Let me see."
        assert choice["message"]["reasoning_content"] == "Hm."
        (call,) = choice["message"]["tool_calls"]
        assert json.loads(call["function"]["arguments"]) == {"city": "Paris"}
    for response in responses:
        assert [item.type for item in response.output] == ["reasoning", "message", "function_call"]
        assert response.output_text == "Let me see."
        assert json.loads(response.output[-1].arguments) == {"city": "Paris"}
        assert response.usage.total_tokens == 15
    assert [bool(received.body.get("stream")) for received in service.requests] == [
        False,
        True,
        False,
        True,
    ]
