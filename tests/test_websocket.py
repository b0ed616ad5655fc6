"""Turns over a WebSocket, with the official client."""

import asyncio
import socket
import threading
from collections.abc import Iterator

import pytest
from openai import AsyncOpenAI, NotFoundError, OpenAI
from stream_checker import check_stream

from agent_kit.server import AgentServer, create_server
from agent_kit.settings import load_settings

UNTRACED = {"AGENT_KIT_MLFLOW_TRACING": "false"}
PATIENCE = 20


@pytest.fixture
def served() -> Iterator[tuple[AgentServer, str]]:
    server = create_server(settings=load_settings(environ=UNTRACED))
    server.closed = threading.Event()

    @server.stream()
    async def answer(request):
        said = request.input[-1]["content"]
        if said == "fail":
            raise RuntimeError("on purpose")
        yield f"{len(request.input)} items"
        if said == "wait":
            try:
                await asyncio.sleep(60)
            finally:
                server.closed.set()

    with server.serve() as url:
        yield server, url


@pytest.fixture
def client(served) -> Iterator[OpenAI]:
    with OpenAI(base_url=f"{served[1]}/v1", api_key="any", max_retries=0) as made:
        yield made


def turn(connection, text="Hello", **fields) -> list[dict]:
    """Send one request and return the events up to the last one."""
    connection.send({"type": "response.create", "model": "any", "input": text, **fields})
    events = []
    while True:
        events.append(connection.recv().to_dict())
        kind = events[-1]["type"]
        if kind == "error" or kind in ("response.completed", "response.failed"):
            return events


def test_stored_turns_are_continued_here_and_over_http(client):
    with client.responses.connect() as connection:
        first = check_stream(turn(connection))
        second = check_stream(turn(connection, previous_response_id=first["id"]))
    assert second["output"][0]["content"][0]["text"] == "3 items"
    third = client.responses.create(model="any", input="Hi", previous_response_id=second["id"])
    assert third.output_text == "5 items"


def test_what_is_not_stored_lives_as_long_as_the_connection(client):
    with client.responses.connect() as connection:
        first = turn(connection, store=False)[-1]["response"]
        second = turn(connection, store=False, previous_response_id=first["id"])[-1]["response"]
        assert second["output"][0]["content"][0]["text"] == "3 items"
        assert second["previous_response_id"] == first["id"]
        stored = turn(connection, previous_response_id=second["id"])[-1]["response"]
        with pytest.raises(NotFoundError):
            client.responses.retrieve(second["id"])
    went_on = client.responses.create(model="any", input="Hi", previous_response_id=stored["id"])
    assert went_on.output_text == "7 items"
    with client.responses.connect() as connection:
        error = turn(connection, previous_response_id=first["id"])[-1]
        assert error["error"]["code"] == "previous_response_not_found"


def test_a_failed_continuation_forgets_what_it_continued(client, caplog):
    with client.responses.connect() as connection:
        first = turn(connection, store=False)[-1]["response"]
        previous = {"previous_response_id": first["id"], "store": False}
        failed = turn(connection, "fail", **previous)[-1]
        assert failed["type"] == "response.failed"
        assert "on purpose" not in str(failed)
        assert turn(connection, **previous)[-1]["error"]["param"] == "previous_response_id"
        assert turn(connection)[-1]["type"] == "response.completed"


@pytest.mark.parametrize(
    ("message", "param"),
    [
        ({"type": "response.create", "input": "Hi", "background": True}, "background"),
        ({"type": "response.delete"}, "type"),
        ({"type": "response.create", "input": "Hi", "temperature": 99}, "temperature"),
    ],
)
def test_a_bad_message_is_refused_by_name(client, message, param):
    with client.responses.connect() as connection:
        connection.send(message)
        error = connection.recv().to_dict()
    assert error["type"] == "error"
    assert error["status"] == 400
    assert error["error"]["param"] == param


def test_a_run_ends_with_its_connection(client, served):
    with client.responses.connect() as connection:
        connection.send({"type": "response.create", "model": "any", "input": "wait"})
        while connection.recv().type != "response.output_text.delta":
            pass
    assert served[0].closed.wait(PATIENCE)


def test_the_async_client_connects(served):
    async def talk() -> str:
        async with (
            AsyncOpenAI(base_url=f"{served[1]}/v1", api_key="any") as client,
            client.responses.connect() as connection,
        ):
            await connection.response.create(model="any", input="Hello")
            async for event in connection:
                if event.type == "response.completed":
                    return event.response.output_text
        raise AssertionError("no answer")

    assert asyncio.run(talk()) == "1 items"


def test_pages_of_other_sites_and_other_names_are_refused(served):
    port = served[1].rpartition(":")[2]
    upgrade = "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n"
    for headers, status in (
        (f"Host: localhost:{port}\r\nOrigin: http://evil.example\r\n", b"403"),
        ("Host: evil.example\r\n", b"403"),
        (f"Host: localhost:{port}\r\nOrigin: http://localhost:{port}\r\n", b"101"),
    ):
        with socket.create_connection(("127.0.0.1", int(port)), timeout=PATIENCE) as raw:
            key = "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"
            raw.sendall(f"GET /v1/responses HTTP/1.1\r\n{headers}{upgrade}{key}\r\n".encode())
            assert raw.recv(100).split()[1] == status
