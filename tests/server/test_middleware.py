"""Who may call a server, under which name, and as which user."""

import asyncio
import json
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import httpx2
import pytest
from support.databricks_stand_in import (
    ADA_TOKEN,
    BOB_TOKEN,
    Workspace,
    remove_credentials,
    serve_workspace,
)
from websockets.exceptions import InvalidStatus
from websockets.sync.client import connect

from agent_kit import context as context_module
from agent_kit.context import current_context
from agent_kit.sandbox import sandbox_status
from agent_kit.server import AgentServer, create_server
from agent_kit.settings import SettingsError, get_settings, load_settings, settings_table
from agent_kit.tracing.recorder import recent_traces

pytest_plugins = ["support.tracing_fixtures"]
QUESTION = {"input": "Hello"}
ADA = {"x-forwarded-email": "ada@example.com"}
PATIENCE = 60


def make_server(**environ: str) -> AgentServer:
    """Return a server whose agent returns the name of its caller."""
    environ = {f"AGENT_KIT_{name}": value for name, value in environ.items()}
    environ["AGENT_KIT_MLFLOW_TRACING"] = "false"
    server = create_server(settings=load_settings(environ=environ))

    @server.invoke()
    async def answer(request):
        return current_context().user or "no one"

    return server


def post(url: str, headers: object = None, **body: object) -> httpx2.Response:
    body = QUESTION | body
    return httpx2.post(f"{url}/v1/responses", json=body, headers=headers, timeout=PATIENCE)


def text_of(answer: httpx2.Response) -> str:
    return answer.json()["output"][0]["content"][0]["text"]


# Headers --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with make_server().serve() as url:
        yield url


def send_raw(url: str, *lines: bytes) -> bytes:
    """Return the response to a GET request with these headers, byte by byte."""
    port = int(url.rpartition(":")[2])
    with socket.create_connection(("127.0.0.1", port), timeout=PATIENCE) as connection:
        request = (b"GET /agent/info HTTP/1.1", *lines, b"connection: close", b"", b"")
        connection.sendall(b"\r\n".join(request))
        return b"".join(iter(lambda: connection.recv(65_536), b""))


LOCAL = b"host: localhost"
AMBIGUOUS = {
    "a host in Latin-1": (b"host: \xe9vil", b"host"),
    "a host in UTF-8": ("host: é".encode(), b"host"),
    "two hosts": (LOCAL + b"\r\nhost: evil", b"host"),
    "an origin": (LOCAL + b"\r\norigin: http://\xff", b"origin"),
    "two users": (LOCAL + b"\r\nx-forwarded-email: a@b" * 2, b"x-forwarded-email"),
    "two protocols": (LOCAL + b"\r\nx-forwarded-proto: http" * 2, b"x-forwarded-proto"),
    "two tokens": (LOCAL + b"\r\nX-Forwarded-Access-Token: a" * 2, b"x-forwarded-access-token"),
}


@pytest.mark.parametrize(("headers", "param"), AMBIGUOUS.values(), ids=AMBIGUOUS)
@pytest.mark.parametrize("host", ["127.0.0.1", "0.0.0.0"])
def test_an_ambiguous_header_is_a_400_that_names_it(host, headers, param):
    with make_server(SERVER_HOST=host).serve() as url:
        answer = send_raw(url, headers)
        assert answer.startswith(b"HTTP/1.1 400 ")
        assert b'"param":"' + param in answer
        fine = (b"origin: http://localhost", b"x-forwarded-for: 1.2.3.4", b"x-forwarded-for: ::1")
        assert send_raw(url, LOCAL, *fine).startswith(b"HTTP/1.1 200 ")


def test_a_key_as_the_id_of_a_request_is_not_returned(url):
    key = "sk-" + "a1B2" * 8
    answer = post(url, {"x-request-id": key})
    assert answer.headers["x-request-id"].startswith("req_")
    assert post(url, {"x-request-id": "mine-7"}).headers["x-request-id"] == "mine-7"


def test_keys_in_ids_bodies_and_answers_are_not_traced(settings):
    key = "glpat-" + "a1B2" * 6
    server = create_server(settings=settings)
    server.invoke()(lambda request: f"The key is {key}")
    body = {
        "input": f"Use {key}",
        "metadata": {"a": key},
        "user": key,
        "custom_inputs": {"session_id": key},
    }
    with server.serve() as url:
        headers = {"x-request-id": key, "authorization": f"Bearer {key}"}
        answer = post(url, headers, **body)
        assert answer.is_success
    _, lines = recent_traces.get(answer.headers["x-mlflow-trace-id"])
    assert "The key is ***" in json.dumps([json.loads(line) for line in lines])
    assert key not in "".join(map(str, lines))


def test_the_sandbox_is_described(url):
    deadline = time.monotonic() + PATIENCE
    while (sandbox := httpx2.get(f"{url}/agent/info").json()["sandbox"])["engine"] is None:
        assert "tested" in sandbox["note"]
        assert time.monotonic() < deadline
    assert sandbox == sandbox_status()


# Forwarded users ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("trust", "app", "caller"),
    [
        ("auto", "", "no one"),
        ("auto", "my-app", "ada@example.com"),
        ("always", "", "ada@example.com"),
        ("never", "my-app", "no one"),
    ],
)
def test_a_forwarded_user_counts_only_behind_a_trusted_proxy(monkeypatch, trust, app, caller):
    monkeypatch.setenv("DATABRICKS_APP_NAME", app)
    with make_server(SERVER_TRUST_FORWARDED=trust).serve() as url:
        assert text_of(post(url, ADA, store=False)) == caller


@pytest.fixture
def apps(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Workspace]:
    """A workspace, and an environment as on Databricks Apps."""
    remove_credentials(monkeypatch, tmp_path / "databrickscfg")
    context_module._verified.clear()
    monkeypatch.setenv("DATABRICKS_APP_NAME", "my-app")
    with serve_workspace() as workspace:
        monkeypatch.setenv("DATABRICKS_HOST", workspace.url)
        yield workspace
    context_module._verified.clear()


def test_a_verified_token_beats_a_claimed_address(apps):
    with make_server().serve() as url:
        hers = post(url, ADA | {"x-forwarded-access-token": ADA_TOKEN})
        assert text_of(hers) == "ada@example.com"
        forged = ADA | {"x-forwarded-access-token": BOB_TOKEN}
        assert text_of(post(url, forged)) == "bob@example.com"
        path = f"{url}/v1/responses/{hers.json()['id']}"
        assert httpx2.get(path, headers=forged).status_code == 404
        renewed = {"x-forwarded-access-token": ADA_TOKEN}
        assert httpx2.get(path, headers=renewed).status_code == 200
    assert len(apps.called("GET", ".*/Me")) == 2


def test_the_first_requests_of_a_user_ask_the_workspace_once(apps):
    async def ask_together(url: str) -> list[httpx2.Response]:
        headers = {"x-forwarded-access-token": ADA_TOKEN}
        async with httpx2.AsyncClient(headers=headers, timeout=PATIENCE) as client:
            posts = (client.post(f"{url}/v1/responses", json=QUESTION) for _ in range(6))
            return await asyncio.gather(*posts)

    with make_server().serve() as url:
        answers = asyncio.run(ask_together(url))
    assert {text_of(answer) for answer in answers} == {"ada@example.com"}
    assert len(apps.called("GET", ".*/Me")) == 1


def test_a_token_that_the_workspace_refuses_is_a_401(apps):
    with make_server().serve() as url:
        refused = post(url, ADA | {"x-forwarded-access-token": "unknown"})
    assert refused.status_code == 401
    assert refused.json()["error"]["code"] == "invalid_user_token"


def test_without_the_workspace_no_user_is_believed(apps, monkeypatch):
    monkeypatch.setenv("DATABRICKS_HOST", "http://127.0.0.1:9")
    with make_server().serve() as url:
        refused = post(url, ADA | {"x-forwarded-access-token": ADA_TOKEN})
    assert refused.status_code == 503
    assert refused.json()["error"]["code"] == "workspace_unavailable"


def test_on_apps_nothing_is_stored_without_a_user(apps):
    with make_server().serve() as url:
        for refused in (post(url), httpx2.get(f"{url}/v1/responses/resp_1")):
            assert refused.status_code == 401
            assert "store: false" in refused.json()["error"]["message"]
        assert post(url, store=False).status_code == 200
        assert httpx2.post(f"{url}/invocations", json={**QUESTION, "store": False}).is_success


# The token of the server ----------------------------------------------------------------------


TOKEN = "the token of this server"
BEARER = {"authorization": f"Bearer {TOKEN}"}


@pytest.fixture
def locked(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[AgentServer, str]]:
    monkeypatch.setenv("AGENT_KIT_SERVER_TOKEN", TOKEN)
    server = make_server()
    with server.serve() as url:
        yield server, url


def test_every_route_but_health_needs_the_token(locked):
    url = locked[1]
    routes = httpx2.get(f"{url}/openapi.json", headers=BEARER).json()["paths"]
    assert len(routes) > 15
    wrong = [{}, {"authorization": "Bearer x"}, {"authorization": f"Basic {TOKEN}"}]
    for path in [*routes, "/openapi.json", "/agent/info"]:
        for prefix in ("", "/api"):
            for method in ("GET", "POST", "HEAD", "DELETE", "PUT"):
                answer = httpx2.request(method, url + prefix + path, headers=wrong[len(path) % 3])
                is_free = path == "/health" and method in ("GET", "HEAD")
                assert (answer.status_code != 401) is is_free, (method, prefix, path)
    refused = httpx2.get(f"{url}/agent/info")
    assert refused.headers["www-authenticate"].startswith("Bearer")
    assert "AGENT_KIT_SERVER_TOKEN" in refused.json()["error"]["message"]
    assert httpx2.get(f"{url}/agent/info", headers=BEARER).is_success
    assert post(url, BEARER).is_success


def test_the_files_of_the_page_need_no_token(locked):
    for path in ("", "/", "/main.js", "/chat.css", "/agent/icon.svg", "/manifest.webmanifest"):
        assert httpx2.get(locked[1] + path).is_success


def test_a_websocket_needs_the_token(locked):
    address = locked[1].replace("http", "ws") + "/v1/responses"
    with pytest.raises(InvalidStatus) as refused:
        connect(address, open_timeout=PATIENCE).close()
    assert refused.value.response.status_code == 401
    connect(address, open_timeout=PATIENCE, additional_headers=BEARER).close()


def test_this_process_needs_no_token(locked):
    server, _ = locked

    async def ask() -> tuple[str, str]:
        response = await server.respond(QUESTION)
        async with server.client() as client:
            answer = await client.responses.create(model="any", input="Hello")
        return response["status"], answer.output_text

    assert asyncio.run(ask()) == ("completed", "no one")


def test_the_token_comes_from_the_environment_alone(tmp_path, monkeypatch):
    monkeypatch.setenv("AGENT_KIT_SERVER_TOKEN", TOKEN)
    assert TOKEN not in settings_table(get_settings())
    assert TOKEN not in repr(get_settings())
    (tmp_path / "settings.ini").write_text("[server]\ntoken = x\n")
    with pytest.raises(SettingsError, match="holds a secret"):
        load_settings(tmp_path, environ={})
