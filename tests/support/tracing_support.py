"""Helpers of the tests of tracing, besides the fixtures in `tracing_fixtures.py`."""

import fcntl
import os
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import psutil
from support.environment import free_port

from agent_kit.settings import Settings, load_settings
from agent_kit.tracing import close_tracing, start_trace
from agent_kit.tracing.drain import Drain
from agent_kit.tracing.mlflow_setup import open_experiment

if TYPE_CHECKING:
    from mlflow.entities import Span, Trace


def change(settings: Settings, **values: object) -> Settings:
    """The settings with other values in the section [mlflow]."""
    return load_settings(
        settings.project_dir,
        environ={},
        overrides={f"mlflow.{key}": value for key, value in values.items()},
    )


def traced(settings: Settings, inputs: object = "question", **result: object) -> str:
    """Trace a request without steps; return the trace's id."""
    trace = start_trace("agent", inputs=inputs, settings=settings)
    with trace.activate():
        pass
    trace.finish(**result)  # type: ignore[arg-type]
    return trace.trace_id


def drains(settings: Settings) -> list[psutil.Process]:
    """The processes that drain the spool of a project."""
    found = []
    for process in psutil.process_iter(["cmdline", "cwd"]):
        command = " ".join(process.info["cmdline"] or [])
        same_project = process.info["cwd"] == str(settings.project_dir)
        if same_project and "agent_kit.tracing.drain" in command:
            found.append(process)
    return found


@contextmanager
def no_drain(settings: Settings) -> Iterator[None]:
    """Hold the lock of the drain, so that no process starts one; this saves seconds."""
    settings.mlflow.spool_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
    with (settings.mlflow.spool_dir / "drain.lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def drain_here(settings: Settings) -> None:
    """Store everything in the spool, in this process."""
    close_tracing(timeout=0)
    Drain(settings).run()


def stored_trace(settings: Settings, trace_id: str) -> "Trace":
    """A trace from MLflow's store, after the spool is stored in this process."""
    from mlflow import MlflowClient

    drain_here(settings)
    return MlflowClient(settings.mlflow.tracking_uri).get_trace(trace_id)


def stored_traces(settings: Settings) -> "list[Trace]":
    """All traces of a project in MLflow's store."""
    from mlflow import MlflowClient

    client = MlflowClient(settings.mlflow.tracking_uri)
    return list(client.search_traces(locations=[open_experiment(settings)], max_results=500))


def tree(spans: "list[Span]") -> set[tuple[str, str | None]]:
    """The names of spans and of their parents."""
    names = {span.span_id: span.name for span in spans}
    return {(span.name, span.parent_id and names[span.parent_id]) for span in spans}


def run_script(
    settings: Settings, code: str, **environment: str
) -> subprocess.CompletedProcess[str]:
    """Run Python code as a process of the project, with the imports of these scripts."""
    head = "import asyncio, os, signal, sys, threading, time\nfrom agent_kit.tracing import *\n"
    return subprocess.run(
        [sys.executable, "-c", head + code],
        cwd=settings.project_dir,
        env=os.environ | environment,
        capture_output=True,
        text=True,
        timeout=270,
    )


def wait_until(condition: Callable[[], object], seconds: float = 60) -> None:
    """Wait until a condition is true; fail after some seconds."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"not true after {seconds} s"
        time.sleep(0.05)


@contextmanager
def serving(
    settings: Settings, agent: str, **environment: str
) -> Iterator[tuple[str, subprocess.Popen[bytes]]]:
    """Serve an agent of the project from a separate process; yield the URL and the process."""
    folder, port = settings.project_dir, free_port()
    (folder / "my_agent.py").write_text(agent)
    (folder / "settings.ini").write_text("[server]\napp = my_agent:app\n")
    server = subprocess.Popen(
        [Path(sys.executable).with_name("agent-server"), "--port", str(port)],
        cwd=folder,
        env=os.environ | environment,
        stderr=subprocess.DEVNULL,
    )
    url = f"http://127.0.0.1:{port}"
    try:
        wait_until(lambda: _responds(f"{url}/ready"))
        yield url, server
    finally:
        server.terminate()
        server.wait(60)


def is_sound(port: int) -> bool:
    """Whether MLflow's tracking server answers on a port."""
    return _responds(f"http://127.0.0.1:{port}/health")


def _responds(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=5):
            return True
    except OSError:
        return False


@contextmanager
def mlflow_server(settings: Settings, port: int) -> Iterator[None]:
    """MLflow's own tracking server, without its processes for jobs."""
    command = [sys.executable, "-m", "uvicorn", "mlflow.server.fastapi_app:app", f"--port={port}"]
    server = subprocess.Popen(
        command,
        cwd=settings.project_dir,
        env=os.environ | {"_MLFLOW_SERVER_FILE_STORE": settings.mlflow.tracking_uri},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        yield
    finally:
        server.terminate()
        server.wait()
