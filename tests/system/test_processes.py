"""The processes of a server: they end in time whatever an agent does, and with their supervisor."""

import os
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import httpx2
import psutil
import pytest
from support.environment import free_port

PATIENCE = 60
# shutdown_seconds 0.2, the six seconds more that the end of a server may take, and a busy machine
END_SECONDS = 30

AGENT = """
    import asyncio, contextlib, time
    from pathlib import Path
    from agent_kit.server import create_server

    server = create_server()
    app = server.app


    @server.stream()
    async def answer(request):
        text = request.input[-1]["content"]
        yield text
        Path("began").touch()
        while text == "ignore":
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.sleep(600)
        if text == "block":
            time.sleep(600)
        if text == "thread":
            await asyncio.to_thread(time.sleep, 600)
        if text == "wait":
            await asyncio.sleep(600)
"""


class Process:
    """`agent-server` in a process of its own, and what it has started."""

    def __init__(self, folder: Path, *arguments: str, port: int = 0, **environ: str) -> None:
        (folder / "my_agent.py").write_text(textwrap.dedent(AGENT))
        self.folder, self.port = folder, port or free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.environ = {
            **os.environ,
            "AGENT_KIT_SERVER_APP": "my_agent:app",
            "AGENT_KIT_SERVER_SHUTDOWN_SECONDS": "0.2",
            "AGENT_KIT_MLFLOW_TRACING": "false",
            "PYTHONPATH": str(folder),
            **environ,
        }
        command = "import sys; from agent_kit.cli import agent_server; sys.exit(agent_server())"
        self.command = [sys.executable, "-c", command, "--port", str(self.port), *arguments]

    def __enter__(self) -> "Process":
        with (self.folder / "log").open("a") as log:
            self.process = subprocess.Popen(
                self.command, cwd=self.folder, env=self.environ, stderr=log, stdout=log
            )
        wait_until(self.answers, lambda: (self.folder / "log").read_text())
        return self

    def answers(self) -> bool:
        assert self.process.poll() is None, "the server did not start"
        try:
            return httpx2.get(f"{self.url}/health").status_code == 200
        except httpx2.TransportError:
            return False

    def ask(self, text: str, **fields: object) -> dict:
        body = {"input": text, **fields}
        answer = httpx2.post(f"{self.url}/v1/responses", json=body, timeout=PATIENCE)
        assert answer.status_code == 200, answer.text
        return answer.json()

    def begin(self, text: str) -> dict:
        """Start a run in the background, and wait until its agent is where it stays."""
        started = self.ask(text, background=True)
        wait_until((self.folder / "began").exists)
        return started

    def family(self) -> list[psutil.Process]:
        return psutil.Process(self.process.pid).children(recursive=True)

    def __exit__(self, *exc: object) -> None:
        for process in (*(self.family() if self.process.poll() is None else ()), self.process):
            if process.is_running() if isinstance(process, psutil.Process) else True:
                process.kill()
        self.process.wait(PATIENCE)
        print((self.folder / "log").read_text())


def wait_until(holds, describe=lambda: "") -> None:
    deadline = time.monotonic() + PATIENCE
    while not holds():
        assert time.monotonic() < deadline, f"waited in vain {describe()}"
        time.sleep(0.05)


@pytest.mark.parametrize("text", ["block", "thread"])
def test_sigterm_ends_a_server_in_time_whatever_its_agent_does(tmp_path, text):
    with Process(tmp_path) as server:
        server.begin(text)
        server.process.terminate()
        server.process.wait(END_SECONDS)


def test_a_run_that_ignores_its_end_is_stored_as_failed(tmp_path):
    with Process(tmp_path) as server:
        started = server.begin("ignore")
        server.process.terminate()
        server.process.wait(END_SECONDS)
    with Process(tmp_path) as server:
        found = httpx2.get(f"{server.url}/v1/responses/{started['id']}").json()
    assert found["status"] == "failed"
    assert "stopped" in found["error"]["message"]


@pytest.mark.parametrize("workers", ["1", pytest.param("2", marks=pytest.mark.campaign)])
def test_a_second_sigterm_ends_a_server_at_once(tmp_path, workers):
    environ = {"AGENT_KIT_SERVER_SHUTDOWN_SECONDS": "300"}
    with Process(tmp_path, "--workers", workers, **environ) as server:
        body = {"input": "ignore", "stream": True}
        with httpx2.stream("POST", f"{server.url}/v1/responses", json=body, timeout=60) as answer:
            assert any("delta" in line for line in answer.iter_lines())
            family = server.family()
            server.process.terminate()
            time.sleep(1)  # a signal at the same moment is the same signal
            assert server.process.poll() is None
            server.process.terminate()
            server.process.wait(END_SECONDS)
        psutil.wait_procs(family, timeout=END_SECONDS)
        assert not [process for process in family if process.is_running()]


@pytest.mark.parametrize(
    "arguments",
    [
        pytest.param(("--workers", "2"), id="workers"),
        pytest.param(("--reload",), id="reload", marks=pytest.mark.campaign),
    ],
)
def test_workers_end_with_their_supervisor_and_the_next_start_binds(tmp_path, arguments):
    with Process(tmp_path, *arguments) as server:
        server.begin("ignore")
        family = server.family()
        assert family
        server.process.kill()
        server.process.wait(PATIENCE)
        _, alive = psutil.wait_procs(family, timeout=END_SECONDS)
        assert not alive
        with Process(tmp_path, *arguments, port=server.port) as again:
            assert again.ask("Hello")["status"] == "completed"


INIT = """
    import ctypes, os, signal, subprocess, sys, time
    from agent_kit.server.processes import fork_from_init

    ctypes.CDLL(None).prctl(36, 1)  # PR_SET_CHILD_SUBREAPER: a parent of orphans, as process 1 is
    fork_from_init()
    # A program whose child outlives it, and a child of our own.
    subprocess.run(["sh", "-c", "sleep 0.2 & echo $! > orphan"], check=True)
    stop = lambda *_: sys.exit(subprocess.run(["sh", "-c", "exit 7"]).returncode)
    signal.signal(signal.SIGTERM, stop)
    print("ready", flush=True)
    time.sleep(600)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="asks the kernel for orphans")
def test_process_1_waits_for_orphans_and_passes_signals_and_the_exit_code_on(tmp_path):
    command = [sys.executable, "-c", textwrap.dedent(INIT)]
    with subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, text=True) as init:
        assert init.stdout
        assert init.stdout.readline() == "ready\n"
        orphan = int((tmp_path / "orphan").read_text())
        wait_until(lambda: not psutil.pid_exists(orphan))
        init.terminate()
        assert init.wait(PATIENCE) == 7
