"""Hostile request bodies on every path: each error names the field, and nothing breaks."""

import asyncio
import json
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import closing
from typing import Any
from urllib.parse import urlsplit

import httpx2
import pytest
from support.stream_checker import check_sse, read_sse

from agent_kit.server import create_server
from agent_kit.settings import load_settings

UNTRACED = {"AGENT_KIT_MLFLOW_TRACING": "false"}
JSON = {"content-type": "application/json"}
PATHS = {
    "/invocations": "input",
    "/v1/responses": "input",
    "/v1/chat/completions": "messages",
}
each_path = pytest.mark.parametrize("path", PATHS)
CONVERSATION = '[{"role": "user", "content": "Hi"}]'


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    server = create_server(settings=load_settings(environ={**UNTRACED, **SMALL}))

    @server.stream()
    async def answer(request):
        yield "Hello"

    with server.serve() as address:
        yield address


SMALL = {"AGENT_KIT_SERVER_MAX_BODY_BYTES": "100000"}


def refused(answer: httpx2.Response, status: int = 400) -> dict[str, Any]:
    """Check the format of an error and return it."""
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/json"
    error = answer.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["type"] == "invalid_request_error"
    assert error["message"]
    assert error["code"]
    return error


NOT_JSON = {
    "an array": b"[1,2]",
    "a string": b'"x"',
    "null": b"null",
    "a number": b"17",
    "nothing": b"",
    "a space": b" ",
    "half": b'{"a": ',
    "a comma too many": b'{"a": 1,}',
    "single quotes": b"{'a': 1}",
    "NaN": b'{"temperature": NaN}',
    "Infinity": b'{"temperature": Infinity}',
    "-Infinity": b'{"temperature": -Infinity}',
    "a lone surrogate": b'{"user": "a\\ud800b"}',
    "a raw surrogate": b'{"user": "\xed\xa0\x80"}',
    "invalid UTF-8": b'{"user": "\xff\xfe"}',
    "a byte order mark": b"\xef\xbb\xbf{}",
    "UTF-16": '{"user": "x"}'.encode("utf-16"),
    "a control character": b'{"user": "\x00"}',
    "two values": b"{} {}",
    "many arrays": b'{"a": ' + b"[" * 20_000 + b"]" * 20_000 + b"}",
    "many objects": b'{"a":' * 5_000 + b"1" + b"}" * 5_000,
    "101 levels": b'{"a":' + b"[" * 101 + b"]" * 101 + b"}",
}


@each_path
@pytest.mark.parametrize("body", NOT_JSON.values(), ids=NOT_JSON)
def test_a_body_that_is_not_a_json_object_is_refused(url, path, body):
    assert refused(httpx2.post(url + path, content=body, headers=JSON))["param"] == "body"


def test_the_error_names_a_byte_order_mark(url):
    body = b'\xef\xbb\xbf{"input": "Hi"}'
    error = refused(httpx2.post(f"{url}/v1/responses", content=body, headers=JSON))
    assert "byte order mark" in error["message"]


FIELDS = {
    "no conversation": ("{}", None),
    "empty": ('{"%s": []}', None),
    "a word as a flag": ('{"%s": C, "stream": "false"}', "stream"),
    "a number as a flag": ('{"%s": C, "stream": 0}', "stream"),
    "too much": ('{"%s": C, "temperature": 1e400}', "body"),
    "far too much": ('{"%s": C, "temperature": 1' + "0" * 5_000 + "}", "body"),
    "a long integer": ('{"%s": C, "top_logprobs": 123456789012345678901234567890}', "top_logprobs"),
    "twice the same key": ('{"%s": C, "user": "a", "user": "b"}', "user"),
    "twice within": ('{"%s": C, "metadata": {"a" : "x", "a":"y"}}', "a"),
    "twice in other letters": ('{"%s": C, "user": "a", "\\u0075ser": "b"}', "user"),
    "no choice": ('{"%s": C, "tool_choice": {"type": []}}', "tool_choice"),
    "metadata": ('{"%s": C, "metadata": {"a": {}}}', "metadata"),
}


@each_path
@pytest.mark.parametrize(("body", "param"), FIELDS.values(), ids=FIELDS)
def test_a_wrong_field_is_named(url, path, body, param):
    name = PATHS[path]
    content = body.replace("%s", name).replace("C,", f"{CONVERSATION},").encode()
    error = refused(httpx2.post(url + path, content=content, headers=JSON))
    assert error["param"].startswith(param or name)
    assert error["param"].partition("[")[0] in error["message"]


@each_path
def test_text_that_looks_like_a_duplicate_key_is_accepted(url, path):
    text = json.dumps({"a": 1, "b": '"a": "a": '})
    body = {PATHS[path]: [{"role": "user", "content": text}], "metadata": {"b": '"b": '}}
    assert httpx2.post(url + path, json=body).status_code == 200


@each_path
@pytest.mark.parametrize("media_type", ["text/plain", "application/jsonx", "multipart/json", ""])
def test_only_json_is_accepted(url, path, media_type):
    headers = {"content-type": media_type}
    error = refused(httpx2.post(url + path, content=b"{}", headers=headers), 415)
    assert error["param"] == "Content-Type"


@each_path
@pytest.mark.parametrize("chunked", [False, True], ids=["of known length", "chunked"])
def test_a_body_over_the_limit_is_refused(url, path, chunked):
    body = b'{"user": "' + b"x" * 100_000 + b'"}'
    content = iter([body[:60_000], body[60_000:]]) if chunked else body
    error = refused(httpx2.post(url + path, content=content, headers=JSON), 413)
    assert error["param"] == "body"
    assert "100,000" in error["message"]


@pytest.mark.parametrize("path", ["/invocations", "/v1/responses"])
def test_a_whole_raw_stream_is_valid(url, path):
    data = {"input": "Hi", "stream": True}
    answer = httpx2.post(url + path, json=data)
    assert answer.headers["content-type"].startswith("text/event-stream")
    assert check_sse(answer.content)[-1]["response"]["status"] == "completed"


@pytest.mark.parametrize("end", [b"", b"\r\n\r\n", b"{", b"\x00" * 50])
def test_a_broken_connection_affects_no_other_client(url, end):
    address = urlsplit(url)
    with closing(socket.create_connection((address.hostname, address.port), 10)) as connection:
        head = b"POST /invocations HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100\r\n"
        connection.sendall(head + b"Content-Type: application/json\r\n\r\n" + end)
    assert httpx2.get(f"{url}/health").status_code == 200


# Failures during a stream ---------------------------------------------------------------------


def test_a_failure_after_the_first_event_ends_the_stream_validly(caplog):
    server = create_server(settings=load_settings(environ=UNTRACED))

    @server.stream()
    async def answer(request):
        yield {"type": "response.output_item.added", "item": {"type": "message", "id": "m"}}
        yield "It is"
        await asyncio.sleep(0.3)  # until the stream has opened
        yield {"type": "response.output_text.done", "text": "hunter2, which contradicts"}

    with server.serve() as url:
        answer = httpx2.post(f"{url}/v1/responses", json={"input": "Hi", "stream": True})
    events = check_sse(answer.content)
    assert events[-1]["type"] == "response.failed"
    assert events[-1]["response"]["output"][0]["status"] == "incomplete"
    assert "hunter2" not in answer.text
    assert "differs from the sum" in caplog.text


# Clients that disconnect, and slow clients ----------------------------------------------------


@pytest.mark.parametrize("sync", [False, True], ids=["async", "sync"])
def test_a_client_that_disconnects_is_noticed_at_once(sync):
    server = create_server(settings=load_settings(environ=UNTRACED))
    started, ended = threading.Event(), threading.Event()
    closed_at: list[float] = []

    def note_end() -> None:
        closed_at.append(time.monotonic())
        ended.set()

    def waits(request):
        try:
            while True:
                started.set()
                time.sleep(0.02)
                yield "again "
        finally:
            note_end()

    async def waits_async(request):
        try:
            started.set()
            yield "once"
            await asyncio.sleep(60)
        finally:
            note_end()

    server.stream()(waits if sync else waits_async)
    with server.serve() as url:
        with httpx2.stream(
            "POST", f"{url}/v1/responses", json={"input": "Hi", "stream": True}, timeout=30
        ) as response:
            assert any("output_text.delta" in line for line in response.iter_lines())
            assert started.wait(60)
        gone_at = time.monotonic()
        assert ended.wait(5), "the agent continues without a client"
    assert closed_at[0] - gone_at < 5


def test_a_slow_reader_makes_the_agent_wait():
    # A stored response is written to the store, and waits for that instead.
    server = create_server(settings=load_settings(environ=UNTRACED))
    produced = 0

    @server.stream()
    def answer(request):
        nonlocal produced
        for _ in range(3_000):
            produced += 1
            yield "x" * 10_000

    body = json.dumps({"input": "Hi", "stream": True, "store": False}).encode()
    with server.serve() as url:
        address = urlsplit(url)
        with closing(socket.create_connection((address.hostname, address.port), 10)) as connection:
            head = (
                f"POST /v1/responses HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n"
                f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
            )
            connection.sendall(head.encode() + body)
            before = -1
            while not produced or before != produced:
                before = produced
                time.sleep(0.3)
            assert produced < 3_000, "30 MB were sent although no client read them"


def test_a_chat_stream_of_the_same_server_ends_with_done(url):
    data = {"messages": [{"role": "user", "content": "Hi"}], "stream": True}
    answer = httpx2.post(f"{url}/v1/chat/completions", json=data)
    assert answer.content.endswith(b"data: [DONE]\n\n")
    with pytest.raises(AssertionError, match="event line"):
        read_sse(answer.content)
