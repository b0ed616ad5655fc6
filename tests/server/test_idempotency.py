"""Requests with an Idempotency-Key: executed once, answered as often as they are sent."""

import asyncio
import sqlite3
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import httpx2
import pytest
from openai import OpenAI
from support.stream_checker import check_sse

from agent_kit.server import AgentServer, create_server
from agent_kit.settings import load_settings

PATIENCE = 60
FACES = ["/v1/responses", "/api/responses", "/invocations", "/v1/chat/completions"]
ADA = {"x-forwarded-email": "ada@example.com"}


def make_server(**environ: str) -> AgentServer:
    """Return a server whose agent counts its runs."""
    environ = {
        "AGENT_KIT_MLFLOW_TRACING": "false",
        "AGENT_KIT_SERVER_TRUST_FORWARDED": "always",
        **environ,
    }
    server = create_server(settings=load_settings(environ=environ))
    server.runs, server.go_on = [], threading.Event()

    @server.stream()
    async def answer(request):
        text = request.input[-1]["content"]
        server.runs.append(text)
        yield f"run {len(server.runs)} "
        if text == "fail once" and len(server.runs) == 1:
            raise RuntimeError("on purpose")
        while text == "wait" and not server.go_on.is_set():  # noqa: ASYNC110
            await asyncio.sleep(0.01)
        yield "end"

    return server


@pytest.fixture
def served() -> Iterator[tuple[AgentServer, str]]:
    server = make_server()
    with server.serve() as url:
        yield server, url


def ask(url: str, text="Hello", key="key-1", path="/v1/responses", headers=None, **fields):
    prompt = {"role": "user", "content": text}
    body = {"messages" if "chat" in path else "input": [prompt], "model": "any", **fields}
    headers = {**(headers or {}), **({"idempotency-key": key} if key else {})}
    return httpx2.post(f"{url}{path}", json=body, headers=headers, timeout=PATIENCE)


@pytest.mark.parametrize("path", FACES)
@pytest.mark.parametrize("stream", [False, True])
def test_a_repeated_request_gets_the_answer_of_the_first(served, path, stream):
    server, url = served
    first, second = (ask(url, path=path, stream=stream) for _ in range(2))
    assert (first.status_code, second.status_code) == (200, 200)
    assert second.content == first.content
    assert second.headers["content-type"] == first.headers["content-type"]
    assert second.headers["idempotent-replayed"] == "true"
    assert "idempotent-replayed" not in first.headers
    assert len(server.runs) == 1
    if stream and "responses" in path:
        check_sse(second.content)
    assert ask(url, path=path, stream=stream, key="key-2").status_code == 200
    assert ask(url, path=path, stream=stream, key=None).status_code == 200
    assert len(server.runs) == 3


def test_a_background_response_is_started_once(served):
    server, url = served
    first, second = (ask(url, background=True).json() for _ in range(2))
    assert second["id"] == first["id"]
    with OpenAI(base_url=f"{url}/v1", api_key="any") as client:
        deadline = time.monotonic() + PATIENCE
        while client.responses.retrieve(first["id"]).status != "completed":
            assert time.monotonic() < deadline
    assert len(server.runs) == 1


def test_another_body_with_a_key_is_a_409_and_an_odd_key_a_400(served):
    server, url = served
    ask(url)
    for other in (ask(url, "Bye"), ask(url, stream=True), ask(url, path="/invocations")):
        assert other.status_code == 409
        assert other.json()["error"]["code"] == "idempotency_key_reused"
        assert other.json()["error"]["param"] == "Idempotency-Key"
    for key in ("k" * 256, "a b"):
        assert ask(url, key=key).status_code == 400
    assert len(server.runs) == 1


def test_a_key_belongs_to_its_user(served):
    server, url = served
    assert ask(url).json() != ask(url, "Bye", headers=ADA).json()
    assert len(server.runs) == 2


def test_a_request_whose_first_run_is_in_progress_is_a_409(served):
    server, url = served
    with ThreadPoolExecutor(1) as threads:
        first = threads.submit(ask, url, "wait")
        deadline = time.monotonic() + PATIENCE
        while not server.runs:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        second = ask(url, "wait")
        server.go_on.set()
        answer = first.result(PATIENCE)
    assert second.json()["error"]["code"] == "idempotency_key_in_use"
    assert second.status_code == 409
    assert ask(url, "wait").json() == answer.json()
    assert len(server.runs) == 1


@pytest.mark.parametrize("stream", [False, True])
def test_what_has_failed_is_run_again(served, stream):
    server, url = served
    ask(url, "fail once", stream=stream)
    again = ask(url, "fail once", stream=stream)
    assert again.status_code == 200
    assert "run 2 end" in again.text
    assert len(server.runs) == 2


def test_a_client_that_left_may_send_its_request_again(served):
    server, url = served
    body, key = {"input": [{"role": "user", "content": "wait"}], "model": "any"}, "key-1"
    with pytest.raises(httpx2.TimeoutException):
        httpx2.post(f"{url}/v1/responses", json=body, headers={"idempotency-key": key}, timeout=0.5)
    server.go_on.set()
    deadline = time.monotonic() + PATIENCE
    while (again := ask(url, "wait")).status_code == 409:
        assert time.monotonic() < deadline
    assert again.status_code == 200


def test_answers_survive_a_restart_and_expire(tmp_path):
    server = make_server()
    with server.serve() as url:
        first = ask(url)
    with server.serve() as url:
        assert ask(url).json() == first.json()
        with sqlite3.connect(tmp_path / ".agent_kit/store.db") as connection:
            connection.execute("UPDATE idempotency_keys SET created_at = created_at - 90000")
        connection.close()
        server.service.recovery.supervisor.expire()
        assert ask(url).json() != first.json()
    assert len(server.runs) == 2


def test_without_a_store_the_key_is_ignored():
    server = make_server(AGENT_KIT_STORE_URL="none")
    with server.serve() as url:
        assert ask(url).json()["id"] != ask(url).json()["id"]
