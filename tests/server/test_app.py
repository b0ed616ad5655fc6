"""The application: HEAD, calls from pages of other origins, and the OpenAPI document."""

import json
from collections.abc import Iterator
from itertools import islice
from typing import Any

import httpx2
import pytest
from fastapi import Response
from starlette.exceptions import HTTPException
from websockets.sync.client import connect
from websockets.typing import Origin

from agent_kit.models.interface import ModelError
from agent_kit.server import create_server
from agent_kit.settings import load_settings

PORTAL = "https://portal.example.com"


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The URL of a server that stores responses and may be called by pages of `PORTAL`."""
    store = tmp_path_factory.mktemp("store") / "store.db"
    environ = {
        "AGENT_KIT_MLFLOW_TRACING": "false",
        "AGENT_KIT_STORE_URL": f"sqlite:///{store}",
        "AGENT_KIT_SERVER_CORS_ORIGINS": PORTAL,
        "AGENT_KIT_SERVER_MAX_BODY_BYTES": "10000",
    }
    server = create_server(settings=load_settings(environ=environ))

    @server.invoke()
    async def answer(request: Any) -> str:
        asked = request.input[-1]["content"]
        if asked.isdigit():
            raise HTTPException(int(asked), "No.")
        if asked == "model":
            raise ModelError("The model is away.", status=504)
        return asked

    @server.app.head("/mine")
    def mine() -> Response:
        return Response(headers={"x-mine": "yes"})

    with server.serve() as url:
        yield url


# HEAD -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "path", ["/health", "/api/ready", "/v1/models", "/openapi.json", "/", "/v1/responses/{id}"]
)
def test_head_answers_as_get_does_without_a_body(url, path):
    answer = httpx2.post(f"{url}/v1/responses", json={"input": "Hello"}).json()
    path = path.format(id=answer["id"])
    got, head = httpx2.get(url + path), httpx2.head(url + path)
    assert head.status_code == got.status_code == 200
    assert head.content == b""
    for name in ("content-type", "content-length"):
        assert head.headers.get(name) == got.headers.get(name)


def test_head_of_a_stored_stream_ends_with_its_headers(url):
    body = {"input": "Hello", "stream": True}
    events = httpx2.post(f"{url}/v1/responses", json=body).text.splitlines()
    created = json.loads(events[1].removeprefix("data: "))
    stored = f"{url}/v1/responses/{created['response']['id']}?stream=true"
    head = httpx2.head(stored)
    assert head.headers["content-type"] == httpx2.get(stored).headers["content-type"]
    assert head.content == b""


def test_head_is_refused_where_there_is_no_get(url):
    assert httpx2.head(f"{url}/v1/responses").status_code == 405
    assert httpx2.head(f"{url}/v1/responses/resp_none").status_code == 404
    assert httpx2.head(f"{url}/nothing-here").status_code == 404
    assert httpx2.head(f"{url}/mine").headers["x-mine"] == "yes"


# Pages of other origins -----------------------------------------------------------------------


def preflight(url: str, origin: str) -> Any:
    headers = {
        "origin": origin,
        "access-control-request-method": "POST",
        "access-control-request-headers": "authorization, content-type, x-stainless-lang",
    }
    return httpx2.request("OPTIONS", f"{url}/v1/responses", headers=headers)


def test_a_page_of_a_listed_origin_may_call_the_server(url):
    allowed = preflight(url, PORTAL)
    assert allowed.status_code == 200
    assert allowed.headers["access-control-allow-origin"] == PORTAL
    assert "content-type" in allowed.headers["access-control-allow-headers"]
    for body, status in (({"input": "Hello"}, 200), ({"input": 7}, 400)):
        answer = httpx2.post(f"{url}/v1/responses", json=body, headers={"origin": PORTAL})
        assert answer.status_code == status
        assert answer.headers["access-control-allow-origin"] == PORTAL
        assert "x-request-id" in answer.headers["access-control-expose-headers"]


def test_a_page_of_a_listed_origin_may_open_a_websocket(url):
    address = f"ws{url.removeprefix('http')}/v1/responses"
    with connect(address, origin=Origin(PORTAL)) as connection:
        connection.send(json.dumps({"type": "response.create", "input": "Hello"}))
        kinds = [json.loads(message)["type"] for message in islice(connection, 9)]
    assert kinds[-1] == "response.completed"


def test_a_page_of_another_origin_may_not_call_the_server(url):
    refused = preflight(url, "https://elsewhere.example.com")
    assert refused.status_code == 400
    assert "access-control-allow-origin" not in refused.headers


def test_no_other_origin_is_allowed_by_default(tmp_path):
    server = create_server(settings=load_settings(tmp_path, environ={}))
    server.invoke()(lambda request: "Hello")
    with server.serve() as url:
        refused = preflight(url, PORTAL)
        answer = httpx2.get(f"{url}/health", headers={"origin": PORTAL})
    assert refused.status_code in (404, 405)
    assert "access-control-allow-origin" not in answer.headers


# Declared errors ------------------------------------------------------------------------------

AGENT = "/v1/responses"
HELLO = {"input": "Hello"}
REQUESTS: list[tuple[str, str, dict[str, Any], int]] = [
    ("post", AGENT, {"json": {"input": 7}}, 400),
    ("post", AGENT, {"json": {**HELLO, "previous_response_id": "resp_none"}}, 400),
    ("post", AGENT, {"json": {**HELLO, "conversation": "conv_none"}}, 404),
    ("post", AGENT, {"json": {"input": "x" * 10_001}}, 413),
    ("post", AGENT, {"content": b"Hello"}, 415),
    ("post", AGENT, {"json": HELLO, "headers": {"host": "elsewhere.example.com"}}, 421),
    ("post", AGENT, {"json": {"input": "403"}}, 403),
    ("post", AGENT, {"json": {"input": "418"}}, 418),
    ("post", AGENT, {"json": {"input": "507"}}, 507),
    ("post", AGENT, {"json": {"input": "model"}}, 504),
    ("post", "/invocations", {"json": {"input": "500"}}, 500),
    ("post", "/v1/chat/completions", {"json": {"messages": []}}, 400),
    ("post", "/v1/responses/input_tokens", {"json": {**HELLO, "conversation": "conv_1"}}, 404),
    ("post", "/v1/responses/compact", {"content": b"{"}, 415),
    ("get", "/v1/responses/{response_id}", {}, 404),
    ("get", "/v1/responses/{response_id}", {"params": {"stream": "odd"}}, 400),
    ("post", "/v1/responses/{response_id}/cancel", {}, 404),
    ("get", "/v1/responses/{response_id}/input_items", {"params": {"limit": 0}}, 400),
    ("post", "/v1/conversations", {"json": {"metadata": 7}}, 400),
    ("post", "/v1/conversations", {"json": {"metadata": {"a": "x" * 10_001}}}, 413),
    ("delete", "/v1/conversations/{conversation_id}", {}, 404),
    ("get", "/agent/conversations", {"params": {"after": "conv_none"}}, 404),
    ("get", "/v1/models/{name}", {}, 404),
    ("get", "/health", {"headers": {"host": "elsewhere.example.com"}}, 421),
    ("post", "/agent/feedback", {"json": {"value": True}}, 400),
    ("post", "/agent/feedback", {"json": {"response_id": "resp_none", "value": True}}, 409),
]


@pytest.mark.parametrize(("method", "path", "options", "status"), REQUESTS)
def test_the_openapi_document_declares_the_error(url, method, path, options, status):
    answer = httpx2.request(method, url + path.replace("{", "no-").replace("}", ""), **options)
    assert answer.status_code == status
    document = httpx2.get(f"{url}/openapi.json").json()
    declared = document["paths"][path][method]["responses"]
    found = declared.get(str(status)) or declared[f"{status // 100}XX"]
    reference = found["content"]["application/json"]["schema"]["$ref"]
    fields = document["components"]["schemas"][reference.rpartition("/")[2]]["properties"]
    assert fields.keys() == answer.json().keys()
    assert fields["error"]["properties"].keys() == answer.json()["error"].keys()


def test_the_openapi_document_declares_no_error_that_is_never_answered(url):
    document = httpx2.get(f"{url}/openapi.json").json()
    for path, operations in document["paths"].items():
        for operation in operations.values():
            assert "422" not in operation["responses"], path
    assert "HTTPValidationError" not in document["components"]["schemas"]
