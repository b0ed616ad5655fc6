"""The server over HTTP: requests it refuses, responses it returns, and how streams end."""

import asyncio
import json
import re
import socket
import threading
import time
from collections.abc import Callable, Iterator
from urllib.parse import urlsplit

import httpx2
import pytest
from starlette.exceptions import HTTPException
from support.stream_checker import check_sse
from support.tracing_support import stored_trace

from agent_kit.server import AgentServer, create_server
from agent_kit.settings import load_settings

pytest_plugins = ["support.tracing_fixtures"]
QUESTION = {"input": "Hello"}
UNTRACED = {"AGENT_KIT_MLFLOW_TRACING": "false"}
JSON = {"content-type": "application/json"}


@pytest.fixture(autouse=True)
def untraced(monkeypatch):
    for name, value in UNTRACED.items():
        monkeypatch.setenv(name, value)


@pytest.fixture(scope="module")
def echo() -> Iterator[str]:
    """The URL of a server whose agent returns its input."""
    server = create_server(settings=load_settings(environ=UNTRACED))

    @server.stream()
    async def answer(request):
        yield request.input[-1]["content"]

    with server.serve() as url:
        yield url


def events_of(lines: list[str]) -> list[dict]:
    return [json.loads(line[6:]) for line in lines if line.startswith("data: {")]


# Every path -----------------------------------------------------------------------------------


@pytest.mark.parametrize("prefix", ["", "/api"])
@pytest.mark.parametrize("path", ["/invocations", "/responses", "/v1/responses"])
def test_the_responses_paths_answer(echo, prefix, path):
    answer = httpx2.post(echo + prefix + path, json=QUESTION)
    assert answer.status_code == 200
    assert answer.json()["output"][0]["content"][0]["text"] == "Hello"


@pytest.mark.parametrize("prefix", ["", "/api"])
def test_chat_completions_answer(echo, prefix):
    body = {"messages": [{"role": "user", "content": "Hello"}]}
    answer = httpx2.post(f"{echo}{prefix}/v1/chat/completions", json=body)
    assert answer.status_code == 200
    assert answer.json()["choices"][0]["message"]["content"] == "Hello"


@pytest.mark.parametrize("prefix", ["", "/api"])
def test_the_small_routes_answer(echo, prefix):
    assert httpx2.get(f"{echo}{prefix}/health").json() == {"status": "healthy"}
    assert httpx2.get(f"{echo}{prefix}/ready").json() == {"status": "ready"}
    info = httpx2.get(f"{echo}{prefix}/agent/info").json()
    assert info["task"] == "agent/v1/responses"
    assert info["title"]
    models = httpx2.get(f"{echo}{prefix}/v1/models").json()["data"]
    name = models[0]["id"]
    assert httpx2.get(f"{echo}{prefix}/v1/models/{name}").json() == models[0]
    assert httpx2.get(f"{echo}{prefix}/models").json()["data"] == models
    assert httpx2.get(f"{echo}{prefix}/models/{name}").json() == models[0]
    assert httpx2.get(f"{echo}{prefix}/v1/models/other").status_code == 404


def test_the_openapi_document_describes_the_agents_routes(echo):
    document = httpx2.get(f"{echo}/openapi.json").json()
    assert "/v1/responses" in document["paths"]
    assert "/health" in document["paths"]
    reference = document["paths"]["/v1/responses"]["post"]["requestBody"]["content"]
    name = reference["application/json"]["schema"]["$ref"].rpartition("/")[2]
    assert "input" in document["components"]["schemas"][name]["properties"]


def references(part):
    """Yield every `$ref` in a JSON document."""
    for key, value in part.items() if isinstance(part, dict) else enumerate(part):
        if key == "$ref" and isinstance(value, str):
            yield value
        elif isinstance(value, dict | list):
            yield from references(value)


def test_the_openapi_document_is_sound(echo):
    document = httpx2.get(f"{echo}/openapi.json").json()
    schemas = document["components"]["schemas"]
    for reference in references(document):
        assert reference.removeprefix("#/components/schemas/") in schemas
    found = [
        (path, operation)
        for path, operations in document["paths"].items()
        for operation in operations.values()
    ]
    assert len({operation["operationId"] for _, operation in found}) == len(found)
    for path, operation in found:
        declared = {it["name"] for it in operation.get("parameters", []) if it["in"] == "path"}
        assert declared == set(re.findall(r"{(\w+)}", path)), path
    below = httpx2.get(f"{echo}/api/openapi.json").json()
    assert below["servers"] == [{"url": "/api"}]
    assert below["paths"] == document["paths"]


def test_the_openapi_document_shows_the_query_parameters(echo):
    paths = httpx2.get(f"{echo}/openapi.json").json()["paths"]
    listed = paths["/v1/responses/{response_id}/input_items"]["get"]["parameters"]
    names = {parameter["name"] for parameter in listed if parameter["in"] == "query"}
    assert names == {"limit", "order", "after", "include", "include[]"}


def test_every_route_of_the_document_is_below_api_too(echo):
    for path, operations in httpx2.get(f"{echo}/openapi.json").json()["paths"].items():
        for method in operations:
            answer = httpx2.request(method, f"{echo}/api{path}", json={})
            message = answer.json().get("error", {}).get("message", "")
            assert not message.startswith("There is nothing at"), path
            assert answer.status_code != 405, path


def test_the_page_is_served_with_a_strict_policy(echo):
    page = httpx2.get(f"{echo}/")
    assert page.status_code == 200
    assert page.headers["content-type"].startswith("text/html")
    policy = page.headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy


def test_a_users_own_route_is_found_before_the_page():
    server = create_server()
    server.invoke()(lambda request: "answer")

    @server.app.get("/mine")
    def mine() -> dict[str, int]:
        return {"answer": 42}

    with server.serve() as url:
        assert httpx2.get(f"{url}/mine").json() == {"answer": 42}


# Bad requests ---------------------------------------------------------------------------------

BAD_BODIES = [
    (b"[1,2]", None),
    (b'"x"', None),
    (b"null", None),
    (b"17", None),
    (b"", None),
    (b"{", None),
    (b"{}", "input"),
    (b'{"input": NaN}', None),
    (b'{"input": "a\\ud800b"}', None),
    (b'{"input": "\xff\xfe"}', None),
    (b'{"input": ' + b"[" * 5_000 + b"]" * 5_000 + b"}", None),
    (b'{"input": {}}', "input"),
    (b'{"input": 17}', "input"),
    (b'{"input": "x", "stream": "false"}', "stream"),
    (b'{"input": "x", "stream": 1}', "stream"),
    (b'{"input": "x", "temperature": "hot"}', "temperature"),
    (b'{"input": "x", "max_output_tokens": -1}', "max_output_tokens"),
    (b'{"input": [{"role": "king", "content": "x"}]}', "input[0].role"),
]


@pytest.mark.parametrize("path", ["/invocations", "/v1/responses"])
@pytest.mark.parametrize(("body", "param"), BAD_BODIES, ids=lambda value: str(value)[:40])
def test_a_bad_body_is_a_400_that_names_the_field(echo, path, body, param):
    answer = httpx2.post(echo + path, content=body, headers=JSON)
    assert answer.status_code == 400
    error = answer.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["type"] == "invalid_request_error"
    if param:
        assert error["param"] == param
        assert param.split("[")[0] in error["message"]


@pytest.mark.parametrize("media_type", ["text/plain", "application/x-www-form-urlencoded", None])
def test_only_json_is_accepted(echo, media_type):
    headers = {"content-type": media_type} if media_type else {}
    answer = httpx2.post(f"{echo}/invocations", content=b'{"input": "x"}', headers=headers)
    assert answer.status_code == 415
    assert "application/json" in answer.json()["error"]["message"]


def test_a_compressed_body_is_refused(echo):
    headers = {**JSON, "content-encoding": "gzip"}
    answer = httpx2.post(f"{echo}/invocations", content=b"x", headers=headers)
    assert answer.status_code == 415


@pytest.mark.parametrize("size", [4_000_100, 12_000_000])
def test_a_body_over_the_limit_is_a_413(echo, size):
    body = b'{"input": "' + b"x" * size + b'"}'
    answer = httpx2.post(f"{echo}/invocations", content=body, headers=JSON, timeout=30)
    assert answer.status_code == 413
    assert "max_body_bytes" in answer.json()["error"]["message"]
    assert httpx2.post(f"{echo}/invocations", json=QUESTION).status_code == 200


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [("GET", "/nothing", 404), ("POST", "/nothing", 404), ("GET", "/invocations", 405)],
)
def test_a_wrong_address_has_the_same_error_format(echo, method, path, status):
    answer = httpx2.request(method, echo + path)
    assert answer.status_code == status
    assert set(answer.json()["error"]) == {"message", "type", "param", "code"}


def test_a_foreign_host_name_is_refused(echo):
    answer = httpx2.get(f"{echo}/health", headers={"host": "evil.example"})
    assert answer.status_code == 421
    assert "allowed_hosts" in answer.json()["error"]["message"]


# Failures of the agent ------------------------------------------------------------------------


def failing(error: BaseException, after: int) -> AgentServer:
    server = create_server()

    @server.stream()
    async def answer(request):
        for number in range(after):
            yield f"chunk {number}"
        raise error

    return server


@pytest.mark.usefixtures("streams_open_late")
def test_the_text_of_an_exception_reaches_only_the_log(caplog):
    with failing(RuntimeError("the password is hunter2"), after=0).serve() as url:
        plain = httpx2.post(f"{url}/invocations", json=QUESTION)
        streamed = httpx2.post(f"{url}/invocations", json={**QUESTION, "stream": True})
    for answer in (plain, streamed):
        assert answer.status_code == 500
        assert "hunter2" not in answer.text
        assert answer.headers["x-request-id"] in answer.json()["error"]["message"]
    assert "hunter2" in caplog.text


@pytest.mark.usefixtures("streams_open_late")
@pytest.mark.parametrize("stream", [False, True])
def test_an_http_exception_retains_its_status(stream):
    with failing(HTTPException(403, "Not for you."), after=0).serve() as url:
        answer = httpx2.post(f"{url}/invocations", json={**QUESTION, "stream": stream})
    assert answer.status_code == 403
    assert answer.json()["error"]["message"] == "Not for you."


def test_a_failure_after_the_stream_started_is_its_last_event(caplog):
    # Stored events are sent after they are stored, and so may come later than the failure.
    data = {**QUESTION, "stream": True, "store": False}
    with failing(RuntimeError("the password is hunter2"), after=3).serve() as url:
        answer = httpx2.post(f"{url}/invocations", json=data)
    assert answer.status_code == 200
    lines = answer.text.splitlines()
    events = events_of(lines)
    assert events[-1]["type"] == "response.failed"
    assert events[-1]["response"]["error"]["code"] == "server_error"
    assert [line for line in lines if line][-1] == "data: [DONE]"
    assert "hunter2" not in answer.text


def test_an_agent_with_invalid_output_fails_clearly(caplog):
    server = create_server()

    @server.invoke()
    def answer(request):
        return object()

    with server.serve() as url:
        assert httpx2.post(f"{url}/invocations", json=QUESTION).status_code == 500
    assert "object" in caplog.text


def stops_with(error: BaseException) -> dict[str, Callable[[object], object]]:
    def plain(request):
        raise error

    async def asynchronous(request):
        raise error

    def chunks(request):
        raise error
        yield

    async def asynchronous_chunks(request):
        raise error
        yield

    return {each.__name__: each for each in (plain, asynchronous, chunks, asynchronous_chunks)}


@pytest.mark.parametrize("agent", ["plain", "asynchronous", "chunks", "asynchronous_chunks"])
@pytest.mark.parametrize(
    "error",
    [StopIteration(), SystemExit(3), KeyboardInterrupt(), BaseException()],
    ids=["next", "exit", "interrupt", "base"],
)
def test_an_exit_in_an_agent_is_an_error_and_the_server_continues(agent, error, caplog):
    server = create_server()
    function = stops_with(error)[agent]
    (server.stream if "chunks" in agent else server.invoke)()(function)
    with server.serve() as url:
        answer = httpx2.post(f"{url}/invocations", json=QUESTION, timeout=50)
        assert httpx2.get(f"{url}/health", timeout=50).status_code == 200
    assert answer.status_code == 500
    assert answer.headers["x-request-id"] in answer.json()["error"]["message"]
    assert type(error).__name__ in caplog.text


# Streams --------------------------------------------------------------------------------------


def test_a_stream_opens_before_its_agent_yields():
    server = create_server()
    go_on = threading.Event()

    @server.stream()
    def answer(request):
        go_on.wait(60)
        yield "done"

    with server.serve() as url:
        body = {**QUESTION, "stream": True}
        with httpx2.stream("POST", f"{url}/v1/responses", json=body, timeout=30) as response:
            lines = response.iter_lines()
            assert next(lines) == "event: response.created"
            assert response.headers["content-type"].startswith("text/event-stream")
            assert response.headers["x-accel-buffering"] == "no"
            go_on.set()
            assert list(lines)[-2:] == ["data: [DONE]", ""]


def test_a_silent_stream_is_kept_alive(monkeypatch):
    monkeypatch.setattr("agent_kit.server.endpoint._KEEP_ALIVE_SECONDS", 1)
    server = create_server()
    go_on = threading.Semaphore(0)

    @server.stream()
    def answer(request):
        for word in ("one", "two", "three"):
            yield word
            go_on.acquire(timeout=60)

    with server.serve() as url:
        body = {**QUESTION, "stream": True}
        with httpx2.stream("POST", f"{url}/v1/responses", json=body, timeout=30) as response:
            lines = response.iter_lines()
            assert any(line.startswith(": keep-alive") for line in lines)
            time.sleep(0.2)  # an event between two beats moves the next one
            go_on.release()
            assert any('"two"' in line for line in lines)
            silent_since = time.monotonic()
            assert any(line.startswith(": keep-alive") for line in lines)
            silent = time.monotonic() - silent_since
            go_on.release(2)
            assert silent < 1.6
            assert events_of(list(lines))[-1]["type"] == "response.completed"


# A client that disconnects --------------------------------------------------------------------


def raw_request(url: str, body: dict) -> socket.socket:
    address = urlsplit(url)
    payload = json.dumps(body).encode()
    connection = socket.create_connection((address.hostname, address.port), timeout=10)
    head = (
        f"POST /invocations HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
        f"Content-Length: {len(payload)}\r\n\r\n"
    )
    connection.sendall(head.encode() + payload)
    return connection


@pytest.mark.parametrize("stream", [False, True], ids=["plain", "streamed"])
@pytest.mark.parametrize("yields", [False, True], ids=["silent", "yielding"])
def test_a_client_that_disconnects_closes_the_agents_generator(stream, yields):
    server = create_server()
    started, ended = threading.Event(), threading.Event()

    @server.stream()
    async def answer(request):
        started.set()
        try:
            while True:
                if yields:
                    yield "again "
                await asyncio.sleep(0.01)
        finally:
            ended.set()

    with server.serve() as url:
        connection = raw_request(url, {**QUESTION, "stream": stream})
        assert started.wait(60)
        connection.close()
        assert ended.wait(5), "the agent continues without a client"


def test_a_client_that_disconnects_closes_a_sync_generator():
    server = create_server()
    started, ended = threading.Event(), threading.Event()

    @server.stream()
    def answer(request):
        try:
            while True:
                started.set()
                yield "again "
        finally:
            ended.set()

    with server.serve() as url:
        connection = raw_request(url, {**QUESTION, "stream": True})
        assert started.wait(60)
        connection.close()
        assert ended.wait(5)


# Identity of a request ------------------------------------------------------------------------


@pytest.fixture
def traced(settings) -> Iterator[str]:
    """The URL of a server whose traces have a folder of their own."""
    server = create_server(settings=settings)
    server.invoke()(lambda request: "Hello")
    with server.serve() as url:
        yield url


def test_each_answer_has_a_request_id_and_a_trace_id(traced):
    given = httpx2.post(f"{traced}/invocations", json=QUESTION, headers={"x-request-id": "mine-1"})
    assert given.headers["x-request-id"] == "mine-1"
    trace_id = given.headers["x-mlflow-trace-id"]
    assert trace_id.startswith("tr-")
    assert given.json()["trace_id"] == trace_id


@pytest.mark.parametrize("sent", [None, {"trace_id": "mine"}, {str(n): "note" for n in range(16)}])
def test_the_metadata_of_a_caller_is_returned_as_it_was_sent(traced, sent):
    body = QUESTION if sent is None else {**QUESTION, "metadata": sent}
    whole = httpx2.post(f"{traced}/v1/responses", json=body)
    streamed = httpx2.post(f"{traced}/v1/responses", json={**body, "stream": True})
    responses = [event["response"] for event in check_sse(streamed.content) if "response" in event]
    stored = httpx2.get(f"{traced}/v1/responses/{whole.json()['id']}").json()
    for response in (whole.json(), *responses, stored):
        assert response["metadata"] == (sent or {})
    assert stored["trace_id"] == whole.headers["x-mlflow-trace-id"]
    assert responses[-1]["trace_id"] == streamed.headers["x-mlflow-trace-id"]


CALLER_TRACE, CALLER_SPAN = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"


def test_a_request_joins_the_trace_of_its_caller(traced, settings):
    headers = {"traceparent": f"00-{CALLER_TRACE}-{CALLER_SPAN}-01"}
    for body in (QUESTION, {**QUESTION, "input": "And?", "user": "ada"}):
        answer = httpx2.post(f"{traced}/v1/responses", json=body, headers=headers)
        assert answer.headers["x-mlflow-trace-id"] == f"tr-{CALLER_TRACE}"
    trace = stored_trace(settings, f"tr-{CALLER_TRACE}")
    assert [span.parent_id for span in trace.data.spans] == [CALLER_SPAN] * 2
    assert len({span.span_id for span in trace.data.spans}) == 2
    assert trace.info.state == "OK"
    assert "And?" in trace.info.request_preview  # the last one to end
    assert trace.info.tags["mlflow.traceName"] == "agent"
    assert trace.info.trace_metadata["mlflow.trace.user"] == "ada"


@pytest.mark.parametrize(
    "header",
    [
        "",
        f"00-{CALLER_TRACE}-{CALLER_SPAN}",
        f"00-{CALLER_TRACE.upper()}-{CALLER_SPAN}-01",
        f"ff-{CALLER_TRACE}-{CALLER_SPAN}-01",
        f"00-{'0' * 32}-{CALLER_SPAN}-01",
        f"00-{CALLER_TRACE}-{'0' * 16}-01",
    ],
)
def test_a_malformed_traceparent_begins_a_new_trace(traced, header):
    answer = httpx2.post(f"{traced}/v1/responses", json=QUESTION, headers={"traceparent": header})
    trace_id = answer.headers["x-mlflow-trace-id"]
    assert trace_id.startswith("tr-")
    assert trace_id.lower() not in (f"tr-{CALLER_TRACE}", f"tr-{'0' * 32}")


def test_the_trace_id_comes_in_the_stream_where_asked_for(traced):
    body = {**QUESTION, "stream": True}
    headers = {"x-mlflow-return-trace-id": "true"}
    answer = httpx2.post(f"{traced}/invocations", json=body, headers=headers)
    frames = [line for line in answer.text.splitlines() if line.startswith("data: ")]
    assert json.loads(frames[-2][6:]) == {"trace_id": answer.headers["x-mlflow-trace-id"]}
    assert frames[-1] == "data: [DONE]"


def test_a_trace_shows_a_conversation_whatever_the_caller_gets(settings):
    """MLflow's chat view supports neither a plain string nor the calls that OpenAI clients get."""
    call = {"type": "function_call", "call_id": "call_1", "name": "add", "arguments": "{}"}
    output = {"type": "function_call_output", "call_id": "call_1", "output": "3"}
    server = create_server(settings=settings)
    server.invoke()(lambda request: [call, output, "It is 3."])
    with server.serve() as url:
        first = httpx2.post(f"{url}/v1/responses", json={"input": "1 + 2?", "user": "ada"}).json()
        question = {"role": "user", "content": "Sure?"}
        body = {"input": [*first["output"], question]}
        second = httpx2.post(f"{url}/v1/responses", json=body).json()
    assert [item["type"] for item in first["output"]] == ["mcp_call", "message"]
    trace, later = (stored_trace(settings, each["trace_id"]) for each in (first, second))
    assert (trace.info.request_preview, trace.info.response_preview) == ("1 + 2?", "It is 3.")
    root, root_later = trace.data.spans[0], later.data.spans[0]
    asked = [{"role": "user", "content": "1 + 2?"}]
    assert root.inputs == {"input": asked, "user": "ada"}
    kinds = ["function_call", "function_call_output", "message"]
    assert [item["type"] for item in root.outputs["output"]] == kinds
    assert [item.get("type") for item in root_later.inputs["input"]] == [*kinds, None]
