"""Guards against network access and against leaked threads, tasks and processes.

`conftest.py` sets these guards around each test, `run_notebook.py` around each notebook.
"""

import asyncio
import contextlib
import functools
import ipaddress
import os
import socket
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil

SCRUBBED = ("AGENT_KIT_", "DATABRICKS_", "MLFLOW_", "OPENAI_", "OTEL_", "ANTHROPIC_")
PRESERVED = ("AGENT_KIT_REQUIRE_ALL",)

# These live as long as the process that runs the tests; they belong to none of them.
LASTING_PROCESSES = ("multiprocessing.resource_tracker", "multiprocessing.forkserver")
# The processes that a browser starts for its pages; they end with the browser.
LASTING_PROCESSES += ("--type=",)
# Idle workers of an event loop that serves several tests; they end with it.
# (those of the store: tests/runs/test_state.py checks that they do end)
LASTING_THREADS = ("AnyIO worker thread", "store-")
# MLflow's own exporter of spans, which it never ends.
LASTING_THREADS += ("OtelBatchSpanRecordProcessor",)
# asyncio closes abandoned generators with these.
CLOSING_TASKS = "async_generator_athrow"
PATIENCE = 30.0


def clean_environment() -> None:
    """Remove the developer's own settings: tests must not depend on them."""
    for name in list(os.environ):
        proxy = name.lower().endswith("_proxy")
        if (name.startswith(SCRUBBED) and name not in PRESERVED) or proxy:
            del os.environ[name]
    os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"
    os.environ["NO_PROXY"] = "*"


class NetworkGuard:
    """Refuses connections and look-ups beyond this machine, and records them.

    It replaces methods instead of adding an audit hook: CPython refuses `sys.settrace`, which
    coverage calls in each new thread, while a hook written in Python runs in another thread.
    """

    def __init__(self) -> None:
        self.refused: list[str] = []
        socket.getaddrinfo = self._guard(socket.getaddrinfo, lambda arguments: arguments[0])
        for name in ("connect", "connect_ex"):
            method = getattr(socket.socket, name)
            setattr(socket.socket, name, self._guard(method, _host_of_last))
        socket.socket.sendto = self._guard(socket.socket.sendto, _host_of_last)

    def _guard(self, call: Callable[..., Any], find_host: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(call)
        def guarded(*arguments: Any, **options: Any) -> Any:
            self._refuse_unless_local(find_host(arguments) if arguments else options.get("host"))
            return call(*arguments, **options)

        return guarded

    def _refuse_unless_local(self, host: str | bytes | None) -> None:
        name = host.decode() if isinstance(host, bytes) else host
        if name in (None, "", "localhost") or _is_loopback(name):
            return
        self.refused.append(name)
        raise OSError(f"tests do not use the network: {name}")


def _host_of_last(arguments: tuple[Any, ...]) -> str | None:
    """Return the host of a socket address; one of a Unix socket has none."""
    return arguments[-1][0] if isinstance(arguments[-1], tuple) else None


def _is_loopback(host: str) -> bool:
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return False
    return address.is_loopback or address.is_unspecified


@contextlib.contextmanager
def no_leaks(lasting_threads: tuple[str, ...] = ()) -> Iterator[None]:
    """Fail if the block leaks a thread, an asyncio task or a child process.

    Args:
        lasting_threads: Prefixes of the names of threads that may remain.
    """
    threads, processes = set(threading.enumerate()), set(_children())
    with _pending_tasks() as tasks:
        yield
    deadline = time.monotonic() + PATIENCE
    left = [f"task {task}" for task in tasks]
    lasting_threads += LASTING_THREADS
    new = [thread for thread in threading.enumerate() if thread not in threads]
    for thread in (thread for thread in new if not thread.name.startswith(lasting_threads)):
        thread.join(max(0, deadline - time.monotonic()))
        left += [f"thread {thread.name}"] if thread.is_alive() else []
    left += [f"process {process}" for process in _lasting_children(processes, deadline)]
    assert not left, "leaked: " + "; ".join(left)


def _children() -> list[psutil.Process]:
    found = []
    for process in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):
            command = " ".join(process.cmdline())
            if not any(lasting in command for lasting in LASTING_PROCESSES):
                found.append(process)
    return found


def _lasting_children(before: set[psutil.Process], deadline: float) -> list[psutil.Process]:
    new = [process for process in _children() if process not in before]
    _, alive = psutil.wait_procs(new, timeout=max(0, deadline - time.monotonic()))
    return alive


@contextlib.contextmanager
def _pending_tasks() -> Iterator[list[str]]:
    """Collect the tasks that were neither awaited nor cancelled at the end of `asyncio.run`."""
    found: list[str] = []
    cancel_all = asyncio.runners._cancel_all_tasks  # type: ignore[attr-defined]

    def note_and_cancel(loop: asyncio.AbstractEventLoop) -> None:
        tasks = asyncio.all_tasks(loop)
        pending = [repr(task) for task in tasks if not task.cancelling()]
        found.extend(task for task in pending if CLOSING_TASKS not in task)
        cancel_all(loop)

    asyncio.runners._cancel_all_tasks = note_and_cancel  # type: ignore[attr-defined]
    try:
        yield found
    finally:
        asyncio.runners._cancel_all_tasks = cancel_all  # type: ignore[attr-defined]


# The tables that coverage reads when it combines the files of the measured processes.
COVERAGE_TABLES = ("file", "context", "tracer", "arc", "line_bits")


def drop_broken_coverage(folder: Path) -> None:
    """Delete the incomplete coverage files of killed processes.

    Coverage writes them without a journal, and combining them fails the whole run for a file that
    opens but is incomplete: `combine_parallel_data` in coverage's `data.py`.
    """
    for path in folder.glob(".coverage.*"):
        if not _is_whole(path):
            path.unlink(missing_ok=True)


def _is_whole(path: Path) -> bool:
    uri = f"{path.as_uri()}?mode=ro&immutable=1"
    try:
        with contextlib.closing(sqlite3.connect(uri, uri=True)) as connection:
            for table in COVERAGE_TABLES:
                connection.execute(f"SELECT 1 FROM {table} LIMIT 1")
            return connection.execute("PRAGMA quick_check").fetchone() == ("ok",)
    except sqlite3.Error:
        return False
