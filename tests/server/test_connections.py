"""Connections: incomplete requests, too many of them, and floods of frames and fragments."""

import base64
import json
import os
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, suppress

import httpx2
import pytest

from agent_kit.server import connections, create_server
from agent_kit.settings import load_settings

PATIENCE = 60
UNTRACED = {"AGENT_KIT_MLFLOW_TRACING": "false"}
HEAD = b"POST /v1/responses HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"


@pytest.fixture
def port(monkeypatch) -> Iterator[int]:
    monkeypatch.setattr(connections, "_CHECK_SECONDS", 0.05)
    server = create_server(settings=load_settings(environ=UNTRACED))
    server.invoke()(lambda request: "Hello")
    with server.serve() as url:
        yield int(url.rpartition(":")[2])


def connect(port: int, data: bytes = b"") -> socket.socket:
    connection = socket.create_connection(("127.0.0.1", port), timeout=PATIENCE)
    connection.sendall(data)
    return connection


def read_to_end(connection: socket.socket) -> bytes:
    received = b""
    while chunk := connection.recv(65536):
        received += chunk
    return received


HALF_REQUESTS = {
    "nothing": b"",
    "half a line": b"POST /v1/resp",
    "half a header": HEAD + b"X-More: ",
    "half a header after a request": b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\nGET /hea",
    "a line between requests": b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n\r\n",
    "half a body": HEAD + b'Content-Length: 100\r\n\r\n{"input"',
    "half a chunk": HEAD + b'Transfer-Encoding: chunked\r\n\r\n50\r\n{"input"',
    "half a body of feedback": b"POST /agent/feedback HTTP/1.1\r\nHost: localhost\r\n"
    b'Content-Type: application/json\r\nContent-Length: 100\r\n\r\n{"value"',
}


@pytest.mark.parametrize("name", HALF_REQUESTS)
def test_half_a_request_ends_its_connection(port, monkeypatch, name, caplog):
    monkeypatch.setattr(connections, "HEADER_SECONDS", 0.3)
    monkeypatch.setattr(connections, "BODY_SECONDS", 0.3)
    with connect(port, HALF_REQUESTS[name]) as connection:
        received = read_to_end(connection)
    last = received.rpartition(b"HTTP/1.1 ")[2]
    expected = {"nothing": b"", "a line between requests": b"200"}.get(name, b"408")
    assert last.startswith(expected)
    assert "Traceback" not in caplog.text


def is_closed(connection: socket.socket) -> bool:
    try:
        return connection.recv(1) == b""
    except OSError:
        return True


def test_headers_that_come_byte_by_byte_are_not_waited_for(port, monkeypatch):
    monkeypatch.setattr(connections, "HEADER_SECONDS", 1)
    with connect(port) as connection:
        deadline = time.monotonic() + PATIENCE
        with suppress(OSError):
            while time.monotonic() < deadline:
                connection.sendall(b"X")
                time.sleep(0.1)
        assert time.monotonic() < deadline


def test_a_slow_body_and_a_slow_agent_have_time(monkeypatch):
    for name in ("HEADER_SECONDS", "BODY_SECONDS", "_CHECK_SECONDS"):
        monkeypatch.setattr(connections, name, 1)
    server = create_server(settings=load_settings(environ=UNTRACED))

    @server.invoke()
    def slow(request):
        time.sleep(1.5)
        return "late"

    body = json.dumps({"input": "Hello" * 20}).encode()
    ask = HEAD + b"Content-Length: %d\r\nConnection: close\r\n\r\n" % len(body)
    with server.serve() as url, connect(int(url.rpartition(":")[2]), ask) as connection:
        for start in range(0, len(body), 20):
            connection.sendall(body[start : start + 20])
            time.sleep(0.25)
        assert b"late" in read_to_end(connection)


def test_a_client_that_leaves_while_it_sends_leaves_no_traceback(port, caplog):
    for name in ("half a body", "half a body of feedback"):
        connect(port, HALF_REQUESTS[name]).close()
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline and threading.active_count() > 100:
        time.sleep(0.01)
    for _ in range(3):
        assert httpx2.get(f"http://127.0.0.1:{port}/health").status_code == 200
    assert "Traceback" not in caplog.text
    assert "Exception" not in caplog.text


def test_connections_beyond_the_limit_are_refused_and_others_answered(port, monkeypatch):
    monkeypatch.setattr(connections, "MAX_CONNECTIONS", 5)
    ask = b"GET /health HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
    upgrade = (
        b"GET /v1/responses HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade\r\n"
        b"Upgrade: websocket\r\nSec-WebSocket-Version: 13\r\n"
        b"Sec-WebSocket-Key: " + base64.b64encode(os.urandom(16)) + b"\r\n\r\n"
    )
    with ExitStack() as stack:
        held = [stack.enter_context(connect(port)) for _ in range(5)]
        surplus = [stack.enter_context(connect(port, ask)) for _ in range(2)]
        for connection in surplus:
            answer = read_to_end(connection)
            assert answer.startswith(b"HTTP/1.1 503")
            assert b"too_many_connections" in answer
            assert b"\r\nretry-after: 5\r\n" in answer
        assert read_to_end(stack.enter_context(connect(port, upgrade))).startswith(b"HTTP/1.1 503")
        held[0].sendall(ask)
        assert read_to_end(held[0]).startswith(b"HTTP/1.1 200")
        silent = [stack.enter_context(connect(port)) for _ in range(60)]
        assert is_closed(silent[-1])


# Floods --------------------------------------------------------------------------------------

EMPTY_FRAGMENT = b"\x00\x80\0\0\0\0"
FLOODS = {
    "fragments": (b"\x01\x81\0\0\0\0{", EMPTY_FRAGMENT * 2000),
    "pings": (b"", b"\x89\x80\0\0\0\0" * 2000),
    "messages": (b"", b"\x81\x81\0\0\0\0{" * 2000),
    "requests": (b"", b"\x81\xa7\0\0\0\0" + b'{"type":"response.create","input":"Hi"}'),
}


def open_socket(port: int) -> socket.socket:
    connection = connect(
        port,
        b"GET /v1/responses HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade\r\n"
        b"Upgrade: websocket\r\nSec-WebSocket-Version: 13\r\n"
        b"Sec-WebSocket-Key: " + base64.b64encode(os.urandom(16)) + b"\r\n\r\n",
    )
    assert connection.recv(4096).startswith(b"HTTP/1.1 101")
    return connection


@pytest.mark.parametrize("name", FLOODS)
def test_a_flood_costs_no_other_client_half_a_second(port, name):
    first, flood = FLOODS[name]
    stop = threading.Event()

    def send() -> None:
        with open_socket(port) as connection:
            connection.settimeout(0.2)
            connection.sendall(first)
            while not stop.is_set():
                try:
                    connection.sendall(flood)
                except TimeoutError:
                    continue
                except OSError:
                    return

    floods = [threading.Thread(target=send) for _ in range(2)]
    waits = []
    with httpx2.Client(timeout=PATIENCE) as client:
        for thread in floods:
            thread.start()
        began = time.monotonic()
        while time.monotonic() - began < 2:
            asked = time.monotonic()
            assert client.get(f"http://127.0.0.1:{port}/health").status_code == 200
            waits.append(time.monotonic() - asked)
        stop.set()
        for thread in floods:
            thread.join(PATIENCE)
    # The median: the machine of the tests may stop a process for as long as that.
    assert sorted(waits)[len(waits) // 2] < 0.5
    assert len(waits) > 4


def test_a_message_of_too_many_fragments_ends_its_connection(port):
    with open_socket(port) as connection:
        connection.sendall(b"\x01\x81\0\0\0\0{" + EMPTY_FRAGMENT * 5000)
        assert b"too many fragments" in read_to_end(connection)
