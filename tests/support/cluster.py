"""A server with several workers in processes of their own, which a test may kill."""

import json
import os
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx2
import psutil
from support.environment import free_port

AGENT = """
    import asyncio, os
    from agent_kit.context import current_context
    from agent_kit.server import create_server

    server = create_server()
    app = server.app
    CALL = {"type": "function_call", "call_id": "call_1", "name": "look", "arguments": "{}"}
    FOUND = {"type": "function_call_output", "call_id": "call_1", "output": "nothing"}


    @server.stream(resumable=os.environ.get("RESUMABLE") == "1")
    async def answer(request):
        text = request.input[-1]["content"]
        if text == "die once":
            yield CALL
            if current_context().attempt == 2:
                yield FOUND
        yield f"worker {os.getpid()} attempt {current_context().attempt} items {len(request.input)}"
        if text == "wait":
            open("started", "w").close()
            try:
                await asyncio.sleep(60)
            finally:
                open(f"closed-{os.getpid()}", "w").close()
        if text == "die once" and current_context().attempt == 1:
            await asyncio.sleep(60)
        if text.startswith("take "):
            for _ in range(10):
                await asyncio.sleep(float(text[5:]) / 10)
                yield " more"
        yield " end"


    if __name__ == "__main__":
        server.run("my_agent:app", port=int(os.environ["PORT"]), workers=int(os.environ["WORKERS"]))
"""
PATIENCE = 60
LEASE = 1.5


class Cluster:
    """A server with several workers in processes of their own."""

    def __init__(self, folder: Path, workers: int = 1, **environ: str) -> None:
        (folder / "my_agent.py").write_text(textwrap.dedent(AGENT))
        self.folder = folder
        self.log = folder / "server.log"
        self.url = ""
        # Each request comes through a new connection, which any worker may take.
        self.http = httpx2.Client(timeout=PATIENCE, headers={"connection": "close"})
        self.environ = {
            **os.environ,
            "WORKERS": str(workers),
            "AGENT_KIT_MLFLOW_TRACING": "false",
            "AGENT_KIT_STORE_LEASE_SECONDS": str(LEASE),
            **environ,
        }

    def __enter__(self) -> "Cluster":
        self.start()
        return self

    def start(self) -> None:
        port = free_port()
        self.url = f"http://127.0.0.1:{port}"
        environ = self.environ | {"PORT": str(port)}
        command = [sys.executable, "my_agent.py"]
        with self.log.open("a") as log:
            self.process = subprocess.Popen(command, cwd=self.folder, env=environ, stderr=log)
        wait_until(self._is_healthy)

    def _is_healthy(self) -> bool:
        assert self.process.poll() is None, "the server did not start"
        try:
            return self.http.get(f"{self.url}/health").status_code == 200
        except httpx2.TransportError:
            return False

    def post(self, path: str = "", **body: Any) -> dict[str, Any]:
        answer = self.http.post(f"{self.url}/v1/responses{path}", json=body)
        assert answer.status_code == 200, answer.text
        return answer.json()

    def get(self, response_id: str) -> dict[str, Any]:
        answer = self.http.get(f"{self.url}/v1/responses/{response_id}")
        assert answer.status_code == 200, answer.text
        return answer.json()

    def events(self, response_id: str, after: int = -1) -> list[dict[str, Any]]:
        url = f"{self.url}/v1/responses/{response_id}?stream=true&starting_after={after}"
        text = self.http.get(url).text
        return [json.loads(line[6:]) for line in text.splitlines() if line.startswith("data: {")]

    def wait_for_end(self, response_id: str) -> dict[str, Any]:
        running = ("queued", "in_progress")
        wait_until(lambda: self.get(response_id)["status"] not in running)
        return self.get(response_id)

    def first_words(self, response_id: str, attempt: int = 1) -> str:
        """Return the first text of an attempt, once it is stored."""
        url = f"{self.url}/v1/responses/{response_id}?stream=true"
        with self.http.stream("GET", url) as answer:
            for line in answer.iter_lines():
                if line.startswith("data: {") and f"attempt {attempt} " in line:
                    return json.loads(line[6:])["delta"]
        raise AssertionError("the agent has produced no text")

    def kill(self) -> None:
        """Kill the server and all of its workers with SIGKILL, which no handler can catch."""
        family = [*psutil.Process(self.process.pid).children(recursive=True)]
        for process in (psutil.Process(self.process.pid), *family):
            process.kill()
        self.process.wait(PATIENCE)
        psutil.wait_procs(family, timeout=PATIENCE)

    def __exit__(self, *exc: object) -> None:
        self.http.close()
        if self.process.poll() is None:
            family = psutil.Process(self.process.pid).children(recursive=True)
            self.process.terminate()
            try:
                self.process.wait(PATIENCE)
            finally:
                psutil.wait_procs(family, timeout=PATIENCE)
        print(self.log.read_text())


def wait_until(holds: Callable[[], bool], patience: float = PATIENCE) -> None:
    deadline = time.monotonic() + patience
    while not holds():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.05)


def text_of(response: dict[str, Any]) -> str:
    return response["output"][-1]["content"][0]["text"]


def worker_of(text: str) -> int:
    return int(text.split()[1])
