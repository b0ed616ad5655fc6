"""WebSockets at /v1/responses: the openai SDK, the responses a connection stores, refusals."""

import asyncio
import json
import socket
import threading
from collections.abc import Iterator
from typing import Any

import httpx2
import pytest
import websockets.exceptions
from openai import AsyncOpenAI, NotFoundError, OpenAI
from support.stream_checker import check_response, check_stream
from websockets.sync.client import ClientConnection, connect

from agent_kit.context import current_context
from agent_kit.server import AgentServer, create_server
from agent_kit.settings import load_settings

UNTRACED = {"AGENT_KIT_MLFLOW_TRACING": "false", "AGENT_KIT_SERVER_TRUST_FORWARDED": "always"}
PATIENCE = 60
LAST = ("response.completed", "response.failed", "response.incomplete", "error")


def make_server(task: str = "agent/v1/responses", **environ: str) -> AgentServer:
    """Return a server whose agent returns the number of its items, or follows a command."""
    server = create_server(task, settings=load_settings(environ=UNTRACED | environ))
    server.began, server.closed, server.go_on = (threading.Event() for _ in range(3))

    @server.stream()
    async def answer(request):
        items = request.input if task == "agent/v1/responses" else request.messages
        prompt = items[-1].get("content", "")
        if prompt == "fail":
            raise RuntimeError("on purpose")
        if prompt == "fail later":
            yield "so far"
            await asyncio.sleep(0.2)
            raise RuntimeError("on purpose")
        if prompt == "who":
            yield str(current_context().user)
            return
        if prompt == "wait":
            try:
                yield "I wait"
                server.began.set()
                while not server.go_on.is_set():  # noqa: ASYNC110
                    await asyncio.sleep(0.01)
                yield " no more"
            finally:
                server.closed.set()
            return
        if prompt == "silence":
            await asyncio.sleep(0.2)
        yield f"{len(items)} "
        yield "items"

    return server


@pytest.fixture
def served() -> Iterator[tuple[AgentServer, str]]:
    server = make_server()
    with server.serve() as url:
        yield server, url


@pytest.fixture
def url(served) -> str:
    return served[1]


def opened(
    url: str, path: str = "/v1/responses", host: str = "127.0.0.1", **options: Any
) -> ClientConnection:
    """Connect to the server, under the name `host`."""
    port = int(url.rpartition(":")[2])
    options["sock"] = socket.create_connection(("127.0.0.1", port))
    return connect(f"ws://{host}:{port}{path}", open_timeout=PATIENCE, **options)


def send(connection: ClientConnection, **body: Any) -> None:
    connection.send(json.dumps({"type": "response.create", **body}))


def read(connection: ClientConnection) -> list[dict[str, Any]]:
    """Read the events of one answer."""
    events = []
    while not events or events[-1]["type"] not in LAST:
        events.append(json.loads(connection.recv(PATIENCE)))
    return events


def ask(connection: ClientConnection, **body: Any) -> dict[str, Any]:
    """Return the last event of the answer to a request; its stream is checked."""
    send(connection, **body)
    events = read(connection)
    if events[-1]["type"] != "error":
        check_stream(events)
    return events[-1]


def text(event: dict[str, Any]) -> str:
    assert event["type"] == "response.completed", event
    return event["response"]["output"][0]["content"][0]["text"]


def test_the_sdk_asks_one_question_after_another_and_finds_what_was_stored(url: str) -> None:
    with OpenAI(base_url=f"{url}/v1", api_key="none") as client:
        previous = None
        with client.responses.connect() as connection:
            for number in range(3):
                asked = {"input": f"question {number}", "previous_response_id": previous}
                connection.response.create(model="agent", **asked)
                events = []
                for event in connection:
                    events.append(event.to_dict())
                    if event.type in LAST:
                        break
                check_stream(events)
                assert text(events[-1]) == f"{2 * number + 1} items"
                assert events[-1]["response"]["previous_response_id"] == previous
                previous = events[-1]["response"]["id"]
                assert client.responses.retrieve(previous).to_dict() == events[-1]["response"]


def test_the_async_sdk_chains_in_memory_what_is_stored_nowhere(url: str) -> None:
    async def talk() -> None:
        async with AsyncOpenAI(base_url=f"{url}/v1", api_key="none") as client:
            previous = None
            async with client.responses.connect() as connection:
                for number in range(3):
                    asked = {"input": "next", "previous_response_id": previous, "store": False}
                    await connection.response.create(model="agent", **asked)
                    async for event in connection:
                        if event.type in LAST:
                            break
                    assert event.type == "response.completed", event
                    assert event.response.output_text == f"{2 * number + 1} items"
                    assert event.response.previous_response_id == previous
                    previous = event.response.id
            with pytest.raises(NotFoundError):
                await client.responses.retrieve(previous)
            async with client.responses.connect() as connection:
                await connection.response.create(input="next", previous_response_id=previous)
                event = await connection.recv()
                assert (event.type, event.status) == ("error", 400)
                assert event.error.code == "previous_response_not_found"

    asyncio.run(talk())


@pytest.mark.parametrize("path", ["/responses", "/api/responses", "/api/v1/responses"])
def test_every_path_of_the_api_answers(url: str, path: str) -> None:
    with opened(url, path) as connection:
        assert text(ask(connection, input="Hello")) == "1 items"


BAD = {
    "not json": ("Hello", 400, "body", "invalid_json"),
    "empty": ("", 400, "body", "invalid_json"),
    "not utf-8": (b"\xff{}", 400, "body", "invalid_json"),
    "an array": ("[]", 400, "body", "invalid_type"),
    "no type": ('{"input": "Hello"}', 400, "type", "invalid_value"),
    "another type": ('{"type": "response.steer"}', 400, "type", "invalid_value"),
    "no input": ('{"type": "response.create"}', 400, "input", None),
    "background": (
        '{"type": "response.create", "input": "Hello", "background": true}',
        400,
        "background",
        "unsupported_parameter",
    ),
    "stream id": ('{"type": "response.create", "stream_id": 7}', 400, "stream_id", "invalid_value"),
    "too large": (
        json.dumps({"type": "response.create", "input": "x" * 4_000_000}),
        413,
        None,
        "request_too_large",
    ),
    "an unknown conversation": (
        '{"type": "response.create", "input": "Hello", "conversation": "conv_1"}',
        404,
        "conversation",
        "conversation_not_found",
    ),
    "a previous id that is not a string": (
        '{"type": "response.create", "input": "Hello", "previous_response_id": [1]}',
        400,
        "previous_response_id",
        None,
    ),
}


def test_a_bad_message_gets_an_error_and_the_connection_continues(url: str) -> None:
    with opened(url) as connection:
        for name, (message, status, param, code) in BAD.items():
            connection.send(message)
            (event,) = read(connection)
            assert (event["type"], event["status"]) == ("error", status), (name, event)
            error = event["error"]
            assert error["headers"]["x-request-id"].startswith("req_")
            assert error["param"] == param, (name, event)
            assert code is None or error["code"] == code, (name, event)
            assert error["message"], name
            assert error["type"] == "invalid_request_error", name
        assert text(ask(connection, input="Hello")) == "1 items"


def test_a_message_far_beyond_the_limit_ends_the_connection(url: str) -> None:
    def flood() -> None:
        with opened(url) as connection:
            connection.send("x" * 8_000_001)
            connection.recv(PATIENCE)

    with pytest.raises(websockets.exceptions.ConnectionClosed):
        flood()


@pytest.mark.usefixtures("streams_open_late")
def test_an_agent_that_fails_at_once_is_an_error_and_later_a_failed_response(url: str) -> None:
    for store in (True, False):
        with opened(url) as connection:
            at_once = ask(connection, input="fail", store=store)
            assert (at_once["type"], at_once["status"]) == ("error", 500)
            assert "on purpose" not in json.dumps(at_once)
            later = ask(connection, input="fail later", store=store)
            assert later["type"] == "response.failed"
            assert later["response"]["error"]["code"] == "server_error"


def test_a_failed_continuation_deletes_its_context(url: str) -> None:
    with opened(url) as connection:
        for wrong in ("fail", "fail later", 17):
            first = ask(connection, input="Hello", store=False)["response"]["id"]
            failed = ask(connection, input=wrong, previous_response_id=first, store=False)
            assert failed["type"] in ("error", "response.failed")
            again = ask(connection, input="And?", previous_response_id=first, store=False)
            assert again["error"]["code"] == "previous_response_not_found"


def test_only_the_last_responses_are_stored_in_memory(url: str) -> None:
    with opened(url) as connection:
        ids = [ask(connection, input="Hi", store=False)["response"]["id"] for _ in range(17)]
        first = ask(connection, input="And?", previous_response_id=ids[0], store=False)
        assert first["error"]["code"] == "previous_response_not_found"
        second = ask(connection, input="And?", previous_response_id=ids[1], store=False)
        assert text(second) == "3 items"


def test_a_stored_response_contains_the_context_of_the_connection(url: str) -> None:
    with opened(url) as connection:
        stored = ask(connection, input="Hello")["response"]
        middle = ask(connection, input="2", previous_response_id=stored["id"], store=False)
        assert text(middle) == "3 items"
        last = ask(connection, input="3", previous_response_id=middle["response"]["id"])
        assert text(last) == "5 items"
    with OpenAI(base_url=f"{url}/v1", api_key="none") as client:
        retrieved = client.responses.retrieve(last["response"]["id"])
        assert retrieved.to_dict() == last["response"]
        assert len(client.responses.input_items.list(retrieved.id).data) == 5
        after = client.responses.create(input="4", previous_response_id=retrieved.id)
        assert after.output_text == "7 items"


def test_a_continuation_may_refer_to_an_item_and_must_not_answer_an_unknown_call(url: str) -> None:
    with opened(url) as connection:
        first = ask(connection, input="Hello", store=False)["response"]
        known = {"type": "item_reference", "id": first["output"][0]["id"]}
        asked = {"previous_response_id": first["id"], "store": False}
        again = ask(connection, input=[known, {"role": "user", "content": "x"}], **asked)
        assert text(again) == "4 items"
        output = {"type": "function_call_output", "call_id": "c1", "output": "noon"}
        for wrong in (output, {"type": "item_reference", "id": "msg_none"}):
            first = ask(connection, input="Hello", store=False)["response"]
            asked = {"previous_response_id": first["id"], "store": False}
            error = ask(connection, input=[wrong], **asked)["error"]
            assert error["param"] == "input", error


def test_a_conversation_in_memory_is_limited_to_the_size_of_a_request() -> None:
    server = make_server(AGENT_KIT_SERVER_MAX_BODY_BYTES="3000")
    with server.serve() as url, opened(url) as connection:
        asked = {"input": "x" * 1000, "store": False}
        first = ask(connection, **asked)
        second = ask(connection, **asked, previous_response_id=first["response"]["id"])
        third = ask(connection, **asked, previous_response_id=second["response"]["id"])
        assert text(second) == "3 items"
        assert (third["status"], third["error"]["code"]) == (413, "request_too_large")


def test_a_server_that_stores_nothing_and_a_chat_agent_chain_in_memory_too() -> None:
    server = make_server("agent/v1/chat", AGENT_KIT_STORE_URL="none")
    with server.serve() as url, opened(url) as connection:
        first = ask(connection, input="Hello")
        assert text(first) == "1 items"
        again = ask(connection, input="And?", previous_response_id=first["response"]["id"])
        assert text(again) == "3 items"


def test_events_contain_their_stream_id_and_come_in_order(url: str) -> None:
    with opened(url) as connection:
        send(connection, input="silence", stream_id="left")
        send(connection, input=[], stream_id='ri"ght')
        send(connection, input="Hello", stream_id="left", store=False)
        for stream_id, last in (("left", "response"), ('ri"ght', "error"), ("left", "response")):
            events = read(connection)
            assert {event.pop("stream_id") for event in events} == {stream_id}
            assert last in events[-1]


def test_too_many_pending_requests_are_refused(served) -> None:
    server, url = served
    with opened(url) as connection:
        send(connection, input="wait", store=False)
        assert server.began.wait(PATIENCE)
        for _ in range(9):
            send(connection, input="Hello", store=False)
        events = []
        while not events or events[-1]["type"] != "error":
            events.append(json.loads(connection.recv(PATIENCE)))
        assert (events[-1]["status"], events[-1]["error"]["code"]) == (429, "too_many_requests")
        server.go_on.set()
        for _ in range(9):
            assert read(connection)[-1]["type"] == "response.completed"


@pytest.mark.parametrize("store", [True, False])
def test_closing_the_connection_closes_the_generator_of_the_agent(served, store: bool) -> None:
    server, url = served
    with opened(url) as connection:
        send(connection, input="wait", store=store)
        created = json.loads(connection.recv(PATIENCE))
        assert server.began.wait(PATIENCE)
        send(connection, input="never answered")
    assert server.closed.wait(PATIENCE)
    with OpenAI(base_url=f"{url}/v1", api_key="none") as client:
        if not store:
            with pytest.raises(NotFoundError):
                client.responses.retrieve(created["response"]["id"])
            return
        with client.responses.retrieve(created["response"]["id"], stream=True) as events:
            seen = [event.to_dict() for event in events]
        retrieved = client.responses.retrieve(created["response"]["id"])
    assert seen[0] == created
    assert retrieved.status == "cancelled"
    assert retrieved.output_text == "I wait"


def test_a_run_may_outlive_its_connection() -> None:
    server = make_server(AGENT_KIT_SERVER_ON_DISCONNECT="continue")
    with server.serve() as url:
        with opened(url) as connection:
            send(connection, input="wait")
            created = json.loads(connection.recv(PATIENCE))
            assert server.began.wait(PATIENCE)
        server.go_on.set()
        with (
            OpenAI(base_url=f"{url}/v1", api_key="none") as client,
            client.responses.retrieve(created["response"]["id"], stream=True) as events,
        ):
            *_, last = (event.to_dict() for event in events)
        assert text(last) == "I wait no more"
        check_response(last["response"])


def test_the_user_of_a_connection_is_the_user_of_its_requests(url: str) -> None:
    ada = {"x-forwarded-email": "ada@example.com"}
    with opened(url, additional_headers=ada) as connection:
        last = ask(connection, input="who")
        assert text(last) == "ada@example.com"
    path = f"{url}/v1/responses/{last['response']['id']}"
    assert httpx2.get(path).status_code == 404
    assert httpx2.get(path, headers=ada).json() == last["response"]
    with opened(url) as connection:
        other = ask(connection, input="And?", previous_response_id=last["response"]["id"])
        assert other["error"]["code"] == "previous_response_not_found"


REFUSED = {
    "another site": ({"origin": "https://evil.example"}, 403, "foreign_origin"),
    "a page without a site": ({"origin": "null"}, 403, "foreign_origin"),
    "another port": ({"origin": "http://127.0.0.1:1"}, 403, "foreign_origin"),
    "another name": ({"host": "evil.example"}, 421, "misdirected_request"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_foreign_origins_and_hosts_are_refused_before_the_connection_opens(
    url: str, name: str
) -> None:
    options, status, code = REFUSED[name]
    with pytest.raises(websockets.exceptions.InvalidStatus) as caught, opened(url, **options):
        pass
    assert caught.value.response.status_code == status
    assert json.loads(caught.value.response.body)["error"]["code"] == code


def test_the_page_of_the_server_itself_may_connect(url: str) -> None:
    with opened(url, origin=url) as connection:
        assert text(ask(connection, input="Hello")) == "1 items"


def test_there_are_no_websockets_elsewhere(url: str) -> None:
    with pytest.raises(websockets.exceptions.InvalidStatus) as caught, opened(url, "/"):
        pass
    assert caught.value.response.status_code == 403
