"""Servers: registration, the ways to run one, its arguments and its lifecycle."""

import asyncio
import gc
import json
import os
import re
import signal
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path

import httpx2
import pytest
from support.environment import free_port

import agent_kit
from agent_kit.runs.handlers import Registry
from agent_kit.server import ServerError, create_server, load_server, parse_server_args
from agent_kit.server.in_process import RequestRefused

QUESTION = {"input": "Hello"}
PATIENCE = 60


@pytest.fixture(autouse=True)
def untraced(monkeypatch):
    monkeypatch.setenv("AGENT_KIT_MLFLOW_TRACING", "false")


def text_of(body: dict) -> str:
    return "".join(part["text"] for item in body["output"] for part in item["content"])


# Registration ---------------------------------------------------------------------------------


def returns(request):
    return "answer"


async def returns_async(request):
    await asyncio.sleep(0)
    return "answer"


def yields(request):
    yield "ans"
    yield "wer"


async def yields_async(request):
    yield "ans"
    yield "wer"


SHAPES = [
    ("invoke", returns),
    ("invoke", returns_async),
    ("stream", yields),
    ("stream", yields_async),
]


@pytest.mark.parametrize(("decorator", "function"), SHAPES)
def test_each_shape_alone_answers_plain_and_streamed_requests(decorator, function):
    server = create_server()
    getattr(server, decorator)()(function)

    async def ask():
        async with server.client() as client:
            plain = await client.responses.create(input="Hello")
            events = [
                event async for event in await client.responses.create(input="Hi", stream=True)
            ]
            return plain, events

    plain, events = asyncio.run(ask())
    assert plain.output_text == "answer"
    assert events[-1].type == "response.completed"
    assert events[-1].response.output_text == "answer"


def test_a_plain_request_prefers_invoke_and_a_streamed_one_prefers_stream():
    server = create_server()

    @server.invoke()
    def plain(request):
        return "from invoke"

    @server.stream()
    def streamed(request):
        yield "from stream"

    async def ask():
        async with server.client() as client:
            events = [
                event async for event in await client.responses.create(input="Hi", stream=True)
            ]
            return (await client.responses.create(input="Hi")).output_text, events[-1].response

    text, response = asyncio.run(ask())
    assert text == "from invoke"
    assert response.output_text == "from stream"


def test_the_newest_registration_answers():
    server = create_server()

    async def ask():
        answers = []
        for word in ("first", "second"):
            server.invoke()(lambda request, word=word: word)
            answers.append(text_of(await server.respond(QUESTION)))
        return answers

    assert asyncio.run(ask()) == ["first", "second"]


def test_servers_in_one_process_keep_their_own_functions():
    one, two = create_server(), create_server()
    one.invoke()(lambda request: "one")
    two.invoke()(lambda request: "two")

    async def ask():
        return [text_of(await server.respond(QUESTION)) for server in (one, two)]

    assert asyncio.run(ask()) == ["one", "two"]


@pytest.mark.parametrize(
    "function", [lambda: None, lambda one, two: None, "not a function"], ids=["none", "two", "text"]
)
def test_a_function_with_wrong_parameters_is_refused_when_registered(function):
    with pytest.raises(TypeError, match="one parameter"):
        create_server().invoke()(function)


def test_decorators_work_without_parentheses():
    server = create_server()
    assert server.invoke(first := lambda request: "First.") is first
    assert server.registry.find(streamed=False).function is first

    @server.stream
    def second(request):
        yield "Second."

    assert server.registry.find(streamed=True).function is second


def test_a_generator_registered_as_invoke_is_refused():
    with pytest.raises(TypeError, match="@stream"):
        create_server().invoke()(yields)


def test_without_a_function_the_start_fails_and_states_what_to_write(monkeypatch):
    monkeypatch.setattr("agent_kit.server.default_registry", Registry())
    with pytest.raises(ServerError, match="@invoke"):
        asyncio.run(create_server().respond(QUESTION))


def test_an_unknown_task_names_the_known_ones():
    with pytest.raises(ValueError, match="agent/v1/chat"):
        create_server("agent/v9/smoke")


# Sync functions -------------------------------------------------------------------------------


def test_blocking_functions_run_side_by_side_and_health_answers_meanwhile():
    server = create_server()
    together, asked_health = threading.Barrier(33), threading.Event()

    @server.invoke()
    def slow(request):
        together.wait(PATIENCE)
        assert asked_health.wait(PATIENCE)
        return "done"

    async def ask(url):
        async with httpx2.AsyncClient(base_url=url, timeout=PATIENCE) as http:
            asked = [http.post("/invocations", json=QUESTION) for _ in range(32)]
            answers = asyncio.gather(*asked)
            await asyncio.to_thread(together.wait, PATIENCE)
            health = await http.get("/health")
            asked_health.set()
            return await answers, health

    with server.serve() as url:
        answers, health = asyncio.run(ask(url))
    assert {answer.status_code for answer in answers} == {200}
    assert health.status_code == 200


# Loading and arguments ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("agent_kit.server", "module:variable"),
        ("agent_kit.server:nothing", "has no 'nothing'"),
        ("json:dumps", "create_server"),
    ],
)
def test_a_wrong_import_string_is_explained(name, message):
    with pytest.raises(ServerError, match=message):
        load_server(name)


def test_a_server_can_be_loaded_by_app_and_by_server(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "loaded_agent.py").write_text(textwrap.dedent(AGENT))
    assert load_server("loaded_agent:app") is load_server("loaded_agent:server")


def test_arguments_are_read_from_a_command_line():
    arguments = parse_server_args(["--host", "0.0.0.0", "--port", "9", "--workers", "3"])
    switches = {"reload": False, "debug": False}
    assert vars(arguments) == {"host": "0.0.0.0", "port": 9, "workers": 3, **switches}


def test_run_inside_an_event_loop_states_what_to_use_instead():
    async def run():
        create_server().run("agent_kit.agent:app")

    with pytest.raises(ServerError, match="serve"):
        asyncio.run(run())


# Processes ------------------------------------------------------------------------------------

AGENT = """
    import os, time, asyncio
    from agent_kit.server import create_server

    server = create_server()
    app = server.app

    @server.stream()
    async def answer(request):
        yield str(os.getpid())
        if "wait" in request.input[0]["content"]:
            await asyncio.sleep(1.5)
        yield " end"

    if __name__ == "__main__":
        server.run("my_agent:app", port=int(os.environ["PORT"]), workers=int(os.environ["WORKERS"]))
"""


class Process:
    """A server in a process of its own, answering at `url`."""

    def __init__(self, folder: Path, workers: int = 1) -> None:
        (folder / "my_agent.py").write_text(textwrap.dedent(AGENT))
        port = free_port()
        environment = {**os.environ, "PORT": str(port), "WORKERS": str(workers)}
        command = [sys.executable, "my_agent.py"]
        self.url = f"http://127.0.0.1:{port}"
        self.process = subprocess.Popen(command, cwd=folder, env=environment)

    def __enter__(self) -> "Process":
        deadline = time.monotonic() + PATIENCE
        while time.monotonic() < deadline and self.process.poll() is None:
            try:
                if httpx2.get(f"{self.url}/health").status_code == 200:
                    return self
            except httpx2.TransportError:
                time.sleep(0.05)
        raise AssertionError("the server did not start")

    def __exit__(self, *exc: object) -> None:
        if self.process.poll() is None:
            self.process.terminate()
        self.process.wait(PATIENCE)


def test_sigterm_lets_a_running_stream_end(tmp_path):
    with Process(tmp_path) as server:
        body = {"input": "wait", "stream": True}
        with httpx2.stream("POST", f"{server.url}/invocations", json=body, timeout=30) as response:
            lines = response.iter_lines()
            assert any("output_text.delta" in line for line in lines)
            server.process.send_signal(signal.SIGTERM)
            rest = list(lines)
        assert "data: [DONE]" in rest
        assert any(line == "event: response.completed" for line in rest)
        server.process.wait(15)


def test_several_workers_answer(tmp_path):
    with Process(tmp_path, workers=2) as server:
        pids = set()
        deadline = time.monotonic() + PATIENCE
        while len(pids) < 2 and time.monotonic() < deadline:
            answer = httpx2.post(f"{server.url}/invocations", json=QUESTION, timeout=30)
            pids.add(text_of(answer.json()).split()[0])
        assert len(pids) == 2
        assert str(server.process.pid) not in pids


def test_respond_raises_the_error_of_the_answer():
    server = create_server()
    server.invoke()(returns)
    with pytest.raises(RequestRefused) as caught:
        asyncio.run(server.respond({"input": {"wrong": "shape"}}))
    assert caught.value.status == 400
    assert json.dumps(caught.value.error)


def test_serving_from_a_notebook_does_not_change_the_collector():
    threshold = gc.get_threshold()
    server = create_server()
    server.invoke()(returns)

    async def call():
        async with server.client() as client:
            await client.responses.create(input="Hello")
            return gc.get_threshold()

    with server.serve() as url:
        assert httpx2.post(f"{url}/invocations", json=QUESTION).status_code == 200
        assert gc.get_threshold() == threshold
    assert asyncio.run(call()) == threshold
    assert gc.get_threshold() == threshold


COLLECTOR = """
    import asyncio, gc, sys
    from agent_kit.server import create_server

    server = create_server()
    server.invoke()(lambda request: "answer")
    gc.set_threshold(int(sys.argv[1]), 11, 12)

    async def main():
        async with server.app.router.lifespan_context(server.app):
            print(*gc.get_threshold())

    asyncio.run(main())
"""


@pytest.mark.parametrize(("chosen", "serving"), [(700, 10_000), (0, 0), (50_000, 50_000)])
def test_a_process_that_only_serves_collects_less_often_unless_configured(chosen, serving):
    command = [sys.executable, "-c", textwrap.dedent(COLLECTOR), str(chosen)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.split() == [str(serving), "11", "12"]


def test_nothing_runs_in_the_threads_that_asyncio_shares():
    """An agent may fill them, and so may a service that does not answer."""
    package = Path(agent_kit.__file__).parent
    shared = re.compile(r"asyncio\.to_thread\(|run_in_executor\(\s*None")
    found = [
        f"{path.relative_to(package)}: {line.strip()}"
        for path in sorted(package.rglob("*.py"))
        for line in path.read_text().splitlines()
        if shared.search(line)
    ]
    assert not found
