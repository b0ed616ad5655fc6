"""The agent's own tool calls as `mcp_call` items, which the server has run."""

import asyncio
import json
from collections.abc import AsyncIterator, Iterator
from typing import Any

import httpx2
import pytest
from openai import OpenAI
from support.stream_checker import check_response, check_sse, check_stream, read_sse

from agent_kit.protocol import parse_request
from agent_kit.protocol.mcp_calls import McpCalls, expand_mcp_calls
from agent_kit.protocol.response_assembler import ResponseAssembler
from agent_kit.server import AgentServer, create_server
from agent_kit.settings import load_settings

WEATHER: Any = {"type": "function", "name": "weather", "parameters": {"type": "object"}}
OPENAI_PATHS = ("/v1/responses", "/responses", "/api/v1/responses", "/api/responses")
TIMEOUT = 20


def call(name: str, arguments: str = "{}", call_id: str = "") -> dict[str, Any]:
    call_id = call_id or f"call_{name}"
    return {"type": "function_call", "call_id": call_id, "name": name, "arguments": arguments}


def result(name: str, output: Any, **more: Any) -> dict[str, Any]:
    return {"type": "function_call_output", "call_id": f"call_{name}", "output": output, **more}


PICTURE = {"detail": "auto", "type": "input_image", "image_url": "data:image/png;base64,AAAA"}
RESPONSES: dict[str, list[Any]] = {
    "one": ["Let me see. ", call("multiply", '{"a": 17}'), result("multiply", "391"), "It is 391."],
    "parallel": [call("first"), call("second"), result("second", "2"), result("first", "1"), "Ok"],
    "both": [call("multiply"), call("weather"), result("multiply", "391")],
    "lost": ["Hm. ", call("multiply"), "I do not know."],
    "parts": [call("draw"), result("draw", [{"type": "input_text", "text": "A map:"}, PICTURE])],
    "failed": [call("multiply"), result("multiply", "no such number", status="incomplete")],
    "twice": [call("multiply"), result("multiply", "391"), result("multiply", "again"), "Ok"],
    "fail": [call("multiply", '{"a": 1}')],
    "wait": ["Let me see. ", call("multiply")],
}


def make_server(task: str = "agent/v1/responses", **environ: str) -> AgentServer:
    """A server whose agent yields the chunks in `RESPONSES`, or the input that it got."""
    untraced = {"AGENT_KIT_MLFLOW_TRACING": "false"}
    server = create_server(task, settings=load_settings(environ=untraced | environ))

    @server.stream()
    async def answer(request: Any) -> AsyncIterator[Any]:
        users = [item for item in request.input if item.get("role") == "user"]
        prompt = users[-1]["content"] if users else ""
        for chunk in RESPONSES.get(prompt, [json.dumps(request.input)]):
            yield chunk
            await asyncio.sleep(0)
        if prompt == "fail":
            raise RuntimeError("on purpose")
        if prompt == "wait":
            await asyncio.Event().wait()

    return server


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    store = tmp_path_factory.mktemp("store") / "store.db"
    with make_server(AGENT_KIT_STORE_URL=f"sqlite:///{store}").serve() as url:
        yield url


@pytest.fixture
def client(url: str) -> Iterator[OpenAI]:
    with OpenAI(base_url=f"{url}/v1", api_key="any", max_retries=0) as client:
        yield client


def ask(url: str, path: str = "/v1/responses", **body: Any) -> dict[str, Any]:
    response = httpx2.post(url + path, json=body, timeout=TIMEOUT)
    assert response.status_code == 200, response.text
    return response.json()


def stream(url: str, path: str = "/v1/responses", **body: Any) -> list[dict[str, Any]]:
    return check_sse(httpx2.post(url + path, json={**body, "stream": True}).content)


def output_of(url: str, **body: Any) -> list[dict[str, Any]]:
    """The output of a non-streaming and of a streaming response, which differ only in their ids."""
    outputs = []
    for response in (ask(url, **body), stream(url, **body)[-1]["response"]):
        check_response(response)
        outputs.append([{**item, "id": None} for item in response["output"]])
    assert outputs[0] == outputs[1]
    return outputs[0]


def kinds(items: list[dict[str, Any]]) -> list[str]:
    return [item["type"] for item in items]


def agent_input(url: str, **body: Any) -> list[dict[str, Any]]:
    """The input that the agent got with a request."""
    return json.loads(ask(url, **body)["output"][-1]["content"][0]["text"])


# What a client gets --------------------------------------------------------------------------


@pytest.mark.parametrize("path", OPENAI_PATHS)
def test_a_call_of_the_agents_own_tool_is_one_item(url, path):
    events = stream(url, path, input="one")
    about_it = [event["type"] for event in events if event.get("output_index") == 1]
    assert about_it == [
        "response.output_item.added",
        "response.mcp_call.in_progress",
        "response.mcp_call_arguments.delta",
        "response.mcp_call_arguments.done",
        "response.mcp_call.completed",
        "response.output_item.done",
    ]
    for response in (events[-1]["response"], ask(url, path, input="one")):
        before, item, after = response["output"]
        assert (before["type"], after["type"]) == ("message", "message")
        assert item == {
            "id": item["id"],
            "type": "mcp_call",
            "server_label": "agent_kit",
            "call_id": "call_multiply",
            "name": "multiply",
            "arguments": '{"a": 17}',
            "output": "391",
            "error": None,
            "status": "completed",
        }
        assert item["id"].startswith("mcp_")


@pytest.mark.parametrize("path", ["/invocations", "/api/invocations"])
def test_mlflow_gets_a_call_and_its_output(url, path):
    for response in (ask(url, path, input="one"), stream(url, path, input="one")[-1]["response"]):
        pair = ["function_call", "function_call_output"]
        assert kinds(response["output"]) == ["message", *pair, "message"]


def test_each_of_parallel_calls_ends_with_its_output(url):
    events = stream(url, input="parallel")
    names = {event["item"]["id"]: event["item"]["name"] for event in events if _is_call(event)}
    ended = [names[e["item_id"]] for e in events if e["type"] == "response.mcp_call.completed"]
    assert ended == ["second", "first"]
    first, second, last = output_of(url, input="parallel")
    assert (first["name"], first["output"]) == ("first", "1")
    assert (second["name"], second["output"]) == ("second", "2")
    assert last["type"] == "message"


def _is_call(event: dict[str, Any]) -> bool:
    return event["type"] == "response.output_item.added" and event["item"]["type"] == "mcp_call"


def test_a_call_of_the_clients_tool_remains_a_function_call(url):
    own, callers = output_of(url, input="both", tools=[WEATHER])
    assert (own["type"], own["output"]) == ("mcp_call", "391")
    assert (callers["type"], callers["name"]) == ("function_call", "weather")
    own, callers = output_of(url, input="both", tools=[{**WEATHER, "name": "multiply"}])[::2]
    assert own["type"] == "function_call"
    assert callers["type"] == "function_call_output"


@pytest.mark.parametrize(
    ("question", "status", "output", "error"),
    [
        ("lost", "incomplete", None, None),
        ("parts", "completed", "A map:\n" + json.dumps(PICTURE, separators=(",", ":")), None),
        ("failed", "failed", None, "no such number"),
        ("twice", "completed", "391", None),
    ],
)
def test_a_call_ends_with_the_status_of_its_result(url, question, status, output, error):
    (item,) = [item for item in output_of(url, input=question) if item["type"] == "mcp_call"]
    assert (item["status"], item["output"]) == (status, output)
    assert (item["error"] or {}).get("content") == error


def test_a_failure_while_a_tool_runs_leaves_its_call_incomplete(url, caplog):
    events = stream(url, input="fail")
    assert events[-1]["type"] == "response.failed"
    (item,) = events[-1]["response"]["output"]
    assert (item["type"], item["status"]) == ("mcp_call", "incomplete")
    assert item["arguments"] == '{"a": 1}'


def test_a_run_that_is_cancelled_leaves_its_call_incomplete(client):
    started = client.responses.create(input="wait", background=True)
    with client.responses.retrieve(started.id, stream=True) as events:
        next(event for event in events if event.type == "response.mcp_call_arguments.done")
    cancelled = client.responses.cancel(started.id)
    assert cancelled.status == "cancelled"
    assert [(item.type, item.status) for item in cancelled.output] == [
        ("message", "completed"),
        ("mcp_call", "incomplete"),
    ]
    sent = [event.to_dict() for event in client.responses.retrieve(started.id, stream=True)]
    assert check_stream(sent) == client.responses.retrieve(started.id).to_dict()


ITEM = "response.output_item"
ARGUMENTS = "response.function_call_arguments"


@pytest.mark.parametrize("output_first", [False, True])
def test_a_call_streamed_alongside_a_message_keeps_its_index(output_first):
    assembler = McpCalls(
        ResponseAssembler(parse_request("agent/v1/responses", {"input": "Hi"})), []
    )
    message = {"type": "message", "id": "m", "content": []}
    started = {**call("multiply"), "id": "f"}
    ended = [
        {"type": f"{ITEM}.done", "output_index": 1, "item": {**started, "arguments": '{"a":1}'}},
        {"type": f"{ITEM}.done", "item": result("multiply", "391")},
    ]
    chunks = [
        {"type": f"{ITEM}.added", "output_index": 0, "item": message},
        {"type": f"{ITEM}.added", "output_index": 1, "item": {**started, "arguments": ""}},
        {"type": f"{ARGUMENTS}.delta", "output_index": 1, "item_id": "f", "delta": '{"a"'},
        {"type": f"{ARGUMENTS}.delta", "output_index": 1, "item_id": "f", "delta": ":1}"},
        *(reversed(ended) if output_first else ended),
        {"type": "response.output_text.delta", "item_id": "m", "delta": "Hi"},
        {"type": f"{ITEM}.done", "output_index": 0, "item": {**message, "content": "Hi"}},
        "More",
    ]
    events = [*assembler.start(), *(event for chunk in chunks for event in assembler.add(chunk))]
    final = check_stream([*events, *assembler.finish()])
    assert kinds(final["output"]) == ["message", "mcp_call", "message"]
    assert final["output"][1]["arguments"] == '{"a":1}'
    assert final == assembler.body


# What is stored ----------------------------------------------------------------------------------


def test_the_stored_response_is_the_one_that_was_sent(client, url):
    events = stream(url, input="one")
    final = events[-1]["response"]
    stored = f"{url}/v1/responses/{final['id']}"
    assert httpx2.get(stored).json() == final
    assert check_sse(httpx2.get(f"{stored}?stream=true").content) == events
    assert read_sse(httpx2.get(f"{stored}?stream=true&starting_after=9").content) == events[10:]
    with client.responses.stream(model="any", input="one") as helper:
        assert [item.type for item in helper.get_final_response().output] == kinds(final["output"])


def test_a_background_run_has_the_same_items(client):
    started = client.responses.create(input="one", background=True)
    events = [event.to_dict() for event in client.responses.retrieve(started.id, stream=True)]
    final = check_stream(events)
    assert kinds(final["output"]) == ["message", "mcp_call", "message"]
    assert client.responses.retrieve(started.id).to_dict() == final


def test_the_in_process_client_gets_the_same_items(tmp_path):
    server = make_server(AGENT_KIT_STORE_URL="none")

    async def ask_twice() -> list[list[str]]:
        async with server.client() as client:
            plain = await client.responses.create(input="one")
            async with client.responses.stream(model="any", input="one") as helper:
                final = await helper.get_final_response()
        return [[item.type for item in each.output] for each in (plain, final)]

    assert asyncio.run(ask_twice()) == [["message", "mcp_call", "message"]] * 2


@pytest.mark.parametrize("store", [True, False])
def test_a_websocket_gets_the_same_items_and_continues_them(client, store):
    with client.responses.connect() as connection:
        final = _ask_socket(connection, input="one", store=store)
        assert kinds(final["output"]) == ["message", "mcp_call", "message"]
        chain = {"previous_response_id": final["id"], "store": store}
        text = _ask_socket(connection, input="items", **chain)["output"][0]["content"][0]["text"]
    received = [item.get("type", "message") for item in json.loads(text)]
    pair = ["function_call", "function_call_output"]
    assert received == ["message", "message", *pair, "message", "message"]


def _ask_socket(connection: Any, **body: Any) -> dict[str, Any]:
    connection.response.create(**body)
    events = []
    for event in connection:
        events.append(event.to_dict())
        if event.type == "response.completed":
            break
    return dict(check_stream(events))


# What the agent gets -------------------------------------------------------------------------


def pair_in(items: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [item for item in items if item.get("type", "message") != "message"]


PAIR = [call("multiply", '{"a": 17}'), result("multiply", "391")]


@pytest.mark.parametrize("path", ["/v1/responses", "/invocations"])
def test_a_chain_gives_the_agent_a_call_and_its_output(url, path):
    first = ask(url, input="one")
    chain = {"input": "items", "previous_response_id": first["id"]}
    assert pair_in(agent_input(url, path=path, **chain)) == PAIR
    chained = ask(url, **chain)
    items = httpx2.get(f"{url}/v1/responses/{chained['id']}/input_items?order=asc").json()["data"]
    assert kinds(items) == ["message", "message", "mcp_call", "message", "message"]
    assert items[2] == first["output"][1]


def test_a_conversation_gives_the_agent_a_call_and_its_output(client, url):
    conversation = client.conversations.create().id
    first = ask(url, input="one", conversation=conversation)
    assert pair_in(agent_input(url, input="items", conversation=conversation)) == PAIR
    stored = client.conversations.items.retrieve(
        first["output"][1]["id"], conversation_id=conversation
    )
    assert stored.type == "mcp_call"


@pytest.mark.parametrize("dropped", [(), ("call_id",), ("call_id", "id")])
def test_a_history_gives_the_agent_a_call_and_its_output(url, dropped):
    question = {"role": "user", "content": "one"}
    first = ask(url, input=[question], store=False)["output"]
    sent = [{name: item[name] for name in item if name not in dropped} for item in first]
    prompt = {"role": "user", "content": "items"}
    call, output = pair_in(agent_input(url, input=[question, *sent, prompt], store=False))
    assert call["call_id"] == output["call_id"]
    assert {**call, "call_id": ""} == {**PAIR[0], "call_id": ""}
    assert output["output"] == "391"
    if "call_id" not in dropped:
        assert [call, output] == PAIR


def test_a_reference_gives_the_agent_a_call_and_its_output(url):
    item = ask(url, input="one")["output"][1]
    reference = {"type": "item_reference", "id": item["id"]}
    prompt = {"role": "user", "content": "items"}
    assert pair_in(agent_input(url, input=[reference, prompt])) == PAIR


def test_an_unfinished_call_gives_the_agent_an_output_that_states_so(url):
    first = ask(url, input="lost")
    _, output = pair_in(agent_input(url, input="items", previous_response_id=first["id"]))
    assert output["output"] == "The call was not finished."
    late = {"role": "user", "content": "items"}
    answered = {"input": [result("multiply", "391"), late], "previous_response_id": first["id"]}
    assert pair_in(agent_input(url, **answered)) == [call("multiply"), result("multiply", "391")]


def test_a_failed_call_gives_the_agent_its_error(url):
    first = ask(url, input="failed")
    _, output = pair_in(agent_input(url, input="items", previous_response_id=first["id"]))
    assert output == result("multiply", "no such number")


def test_a_call_of_another_server_is_unchanged(url):
    external = {"type": "mcp_call", "id": "mcp_1", "server_label": "deepwiki", "name": "ask"}
    external |= {"arguments": "{}", "output": "It is a wiki."}
    prompt = {"role": "user", "content": "items"}
    assert pair_in(agent_input(url, input=[external, prompt])) == [external]
    assert expand_mcp_calls([external]) == [external]


def test_a_compacted_context_contains_the_call(url):
    first = ask(url, input="one")["id"]
    compact = ask(url, "/v1/responses/compact", model="any", previous_response_id=first)["output"]
    prompt = {"role": "user", "content": "items"}
    summary = agent_input(url, input=[*compact, prompt])[1]["content"]
    assert "called multiply" in summary
    assert "result: 391" in summary


# Agents of another task type ------------------------------------------------------------------

CHAT_CALL = {"id": "call_mul", "type": "function", "function": {"name": "mul", "arguments": "{}"}}
MESSAGES = [
    {"id": "1", "role": "assistant", "content": "", "tool_calls": [CHAT_CALL]},
    {"id": "2", "role": "tool", "name": "mul", "tool_call_id": "call_mul", "content": "391"},
    {"id": "3", "role": "assistant", "content": "It is 391."},
]


def test_a_chat_agent_with_clients_of_the_responses_api_has_the_same_items():
    server = make_server("agent/v2/chat")
    received: list[list[dict[str, Any]]] = []

    @server.stream()
    def answer(request: Any) -> Iterator[Any]:
        received.append(request.messages)
        yield from ({"delta": message} for message in MESSAGES)

    with server.serve() as url:
        first = stream(url, input="one")[-1]["response"]
        ask(url, input="items", previous_response_id=first["id"])
    item, _ = first["output"]
    assert (item["type"], item["name"], item["output"]) == ("mcp_call", "mul", "391")
    _, called, answered, *_ = received[1]
    assert called["tool_calls"] == [CHAT_CALL]
    assert (answered["tool_call_id"], answered["content"]) == ("call_mul", "391")
