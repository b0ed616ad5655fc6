"""Runs that do not end when they are told to, and the limits of how many there are."""

import asyncio
import contextlib
import json
import threading
import time
from collections.abc import Iterator

import httpx2
import pytest
from openai import OpenAI
from support.state_support import UNTRACED
from websockets.sync.client import connect

from agent_kit.protocol import RequestError
from agent_kit.runs import admission
from agent_kit.server import AgentServer, create_server
from agent_kit.server.in_process import RequestRefused
from agent_kit.settings import load_settings

PATIENCE = 60
ADA = {"x-forwarded-email": "ada@example.com"}
EVE = {"x-forwarded-email": "eve@example.com"}


def make_server(**environ: str) -> AgentServer:
    """Return a server whose agent ignores its cancellation until `server.go_on` is set."""
    server = create_server(settings=load_settings(environ=UNTRACED | environ))
    server.go_on = threading.Event()
    server.began = threading.Semaphore(0)

    async def ignore() -> None:
        server.began.release()
        while not server.go_on.is_set():
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.sleep(0.05)

    @server.invoke()
    async def plain(request):
        if request.input[-1]["content"] == "ignore":
            await ignore()
        return "plain"

    @server.stream()
    async def streamed(request):
        yield "so far"
        if request.input[-1]["content"] == "ignore":
            await ignore()
        yield " and more"

    return server


@pytest.fixture
def served() -> Iterator[tuple[AgentServer, str]]:
    server = make_server()
    with server.serve() as url:
        try:
            yield server, url
        finally:
            server.go_on.set()


def ask(url: str, text: str = "Hello", headers=None, path="/v1/responses", **fields):
    body = {"input": text, **fields}
    return httpx2.post(f"{url}{path}", json=body, headers=headers, timeout=PATIENCE)


# Abandoned runs -------------------------------------------------------------------------------


def test_a_run_that_ignores_its_cancellation_is_cancelled(served):
    server, url = served
    started = ask(url, "ignore", background=True).json()
    stream = f"{url}/v1/responses/{started['id']}?stream=true"
    with httpx2.stream("GET", stream, timeout=PATIENCE) as answer:
        lines = answer.iter_lines()
        assert any("so far" in line for line in lines)
        assert server.began.acquire(timeout=PATIENCE)
        cancelled = httpx2.post(f"{url}/v1/responses/{started['id']}/cancel", timeout=PATIENCE)
        rest = list(lines)
    assert cancelled.json()["status"] == "cancelled"
    assert cancelled.json()["output"][0]["content"][0]["text"] == "so far"
    assert "data: [DONE]" in rest
    server.go_on.set()
    again = ask(url).json()
    assert again["status"] == "completed"
    assert httpx2.get(f"{url}/v1/responses/{started['id']}").json() == cancelled.json()


@pytest.mark.parametrize("fields", [{"stream": True}, {"store": False, "stream": True}, {}])
def test_a_client_that_leaves_a_run_that_ignores_it_frees_its_place(fields):
    server = make_server(AGENT_KIT_SERVER_MAX_RUNS="1")
    with server.serve() as url:
        with contextlib.suppress(httpx2.TimeoutException):
            httpx2.post(f"{url}/v1/responses", json={"input": "ignore", **fields}, timeout=1)
        assert server.began.acquire(timeout=PATIENCE)
        deadline = time.monotonic() + PATIENCE
        while (answer := ask(url)).status_code == 429:
            assert time.monotonic() < deadline
        assert answer.status_code == 200
        server.go_on.set()


def test_an_event_loop_ends_although_a_run_ignores_it():
    server = make_server()

    async def leave():
        async with server.client() as client:
            asked = asyncio.create_task(client.responses.create(input="ignore"))
            await asyncio.to_thread(server.began.acquire)
            asked.cancel()
            await asyncio.wait([asked])

    asyncio.run(asyncio.wait_for(leave(), PATIENCE))


# Limits ---------------------------------------------------------------------------------------


FACES = ["/v1/responses", "/invocations", "/v1/chat/completions"]


@pytest.fixture
def impatient(monkeypatch) -> None:
    monkeypatch.setattr(admission, "_QUEUE_SECONDS", 0.1)


@pytest.fixture
def full(impatient) -> Iterator[tuple[AgentServer, str]]:
    """A server that has as many runs in progress as it may have: one."""
    server = make_server(AGENT_KIT_SERVER_MAX_RUNS="1")
    with server.serve() as url:
        ask(url, "ignore", background=True)
        assert server.began.acquire(timeout=PATIENCE)
        try:
            yield server, url
        finally:
            server.go_on.set()


@pytest.mark.parametrize("path", FACES)
@pytest.mark.parametrize("stream", [False, True])
def test_a_request_too_many_is_a_429_with_the_time_to_wait(full, path, stream):
    _, url = full
    body = {"stream": stream, "model": "any"}
    prompt = {"role": "user", "content": "Hello"}
    body |= {"messages": [prompt]} if "chat" in path else {"input": [prompt]}
    answer = httpx2.post(f"{url}{path}", json=body, timeout=PATIENCE)
    assert answer.status_code == 429
    assert answer.headers["retry-after"] == "5"
    assert answer.json()["error"]["type"] == "rate_limit_error"
    assert answer.json()["error"]["code"] == "rate_limit_exceeded"
    assert httpx2.get(f"{url}/health").status_code == 200


def test_a_request_too_many_is_refused_on_a_websocket_and_in_process_too(full):
    server, url = full
    with connect(f"ws{url[4:]}/v1/responses") as connection:
        connection.send(json.dumps({"type": "response.create", "input": "Hello"}))
        event = json.loads(connection.recv(PATIENCE))
    assert (event["status"], event["error"]["headers"]["retry-after"]) == (429, "5")
    with pytest.raises(RequestRefused) as caught:
        asyncio.run(server.respond({"input": "Hello"}))
    assert caught.value.status == 429


def test_a_request_waits_for_its_place(monkeypatch):
    monkeypatch.setattr(admission, "_QUEUE_SECONDS", PATIENCE)
    server = make_server(AGENT_KIT_SERVER_MAX_RUNS="1")
    with server.serve() as url, OpenAI(base_url=f"{url}/v1", api_key="any") as client:
        started = ask(url, "ignore", background=True).json()
        assert server.began.acquire(timeout=PATIENCE)
        waiting = threading.Thread(target=lambda: answers.append(ask(url).json()))
        answers: list[dict] = []
        waiting.start()
        client.responses.cancel(started["id"])
        waiting.join(PATIENCE)
        server.go_on.set()
    assert answers[0]["status"] == "completed"


def test_one_user_does_not_take_the_places_of_the_others(impatient):
    environ = {
        "AGENT_KIT_SERVER_MAX_RUNS_PER_USER": "1",
        "AGENT_KIT_SERVER_TRUST_FORWARDED": "always",
    }
    server = make_server(**environ)
    with server.serve() as url:
        ask(url, "ignore", ADA, background=True)
        assert server.began.acquire(timeout=PATIENCE)
        assert ask(url, headers=ADA).status_code == 429
        assert ask(url, headers=EVE).status_code == 200
        assert ask(url).status_code == 200
        server.go_on.set()


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"stream": True},
        {"background": True},
        {"store": False},
        {"input": 391},
        {"text": "fail"},
    ],
)
def test_a_run_that_has_ended_leaves_its_place(fields, impatient):
    server = make_server(AGENT_KIT_SERVER_MAX_RUNS="1")
    with server.serve() as url:
        for _ in range(3):
            answer = ask(url, **fields)
            assert answer.status_code != 429
            deadline = time.monotonic() + PATIENCE
            while server.service.admission.places:
                assert time.monotonic() < deadline
                time.sleep(0.01)


def test_a_full_queue_refuses_at_once_and_a_cancelled_wait_leaves_it(monkeypatch):
    monkeypatch.setattr(admission, "_MAX_WAITING", 1)

    async def fill():
        limits = admission.Admission(total=1)
        place = await limits.admit("ada")
        waiting = asyncio.create_task(limits.admit("eve"))
        await asyncio.sleep(0)
        with pytest.raises(RequestError) as caught:
            await limits.admit("bob")
        waiting.cancel()
        await asyncio.wait([waiting])
        place.release()
        assert not limits.places
        await limits.admit("bob")
        return caught.value

    refused = asyncio.run(fill())
    assert (refused.status, refused.headers()) == (429, {"retry-after": "5"})
