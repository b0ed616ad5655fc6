"""Compare this kit's server with a bare ASGI app and MLflow's AgentServer, side by side.

    uv run --group bench python benchmarks/compare.py [--quick]

All servers run at once and are loaded in turn, round after round, so that what else the machine
does meets each of them alike. Read the ratios; the absolute numbers belong to this machine.
"""

import argparse
import contextlib
import os
import socket
import statistics
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import psutil
import uvloop
from load import generate
from servers import SERVERS

HERE = Path(__file__).resolve().parent
CONNECTIONS, STREAMS = 8, 16


@dataclass
class Plan:
    """How long to measure."""

    rounds: int
    seconds: float
    starts: int


@dataclass
class Server:
    """A server process under measurement and what was measured, a number a round."""

    name: str
    process: psutil.Popen
    port: int
    results: dict[str, list[float]] = field(default_factory=dict)

    def note(self, what: str, value: float) -> None:
        self.results.setdefault(what, []).append(value)

    def cpu_seconds(self) -> float:
        times = [process.cpu_times() for process in self._processes()]
        return sum(spent.user + spent.system for spent in times)

    def memory(self) -> float:
        """Return the proportional set size of the server and its children, in MB."""
        return sum(process.memory_full_info().pss for process in self._processes()) / 1e6

    def _processes(self) -> list[psutil.Process]:
        return [self.process, *self.process.children(recursive=True)]


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return listener.getsockname()[1]


@contextlib.contextmanager
def work_folder() -> Iterator[str]:
    """Make a folder for servers; remove it when what they have left running has ended.

    A drain outlives its server by some seconds, and writes into the folder until it ends.
    """
    with tempfile.TemporaryDirectory() as folder:
        try:
            yield folder
        finally:
            left = [
                process
                for process in psutil.process_iter(["cwd"])
                if Path(process.info["cwd"] or "/") == Path(folder).resolve()
            ]
            for process in left:
                process.kill()
            psutil.wait_procs(left)


@contextlib.contextmanager
def running(name: str, folder: str) -> Iterator[Server]:
    """Start a server and wait for its first answer to /health."""
    port = free_port()
    environ = os.environ | {
        "AGENT_KIT_MLFLOW_TRACING": str(name.endswith("-traced")).lower(),
        "MLFLOW_TRACKING_URI": f"sqlite:///{folder}/mlflow.db",
        "MLFLOW_DISABLE_TELEMETRY": "true",
    }
    if name.endswith("-stateless"):
        environ["AGENT_KIT_STORE_URL"] = "none"
    begin = time.perf_counter()
    command = [sys.executable, HERE / "servers.py", name, str(port)]
    process = psutil.Popen(command, cwd=folder, env=environ)
    try:
        server = Server(name, process, port)
        wait_for_health(server)
        server.note("cold start, s", time.perf_counter() - begin)
        yield server
    finally:
        process.terminate()
        try:
            process.wait(20)
        except psutil.TimeoutExpired:
            process.kill()
            process.wait()


def wait_for_health(server: Server, patience: float = 60) -> None:
    deadline = time.monotonic() + patience
    while time.monotonic() < deadline:
        with contextlib.suppress(OSError):
            urllib.request.urlopen(f"http://127.0.0.1:{server.port}/health", timeout=5).close()
            return
        if server.process.poll() is not None:
            raise RuntimeError(f"{server.name} did not start")
        time.sleep(0.002)
    raise TimeoutError(f"{server.name} did not answer within {patience} s")


def measure(server: Server, seconds: float) -> dict[str, float]:
    """Load one server with plain requests, then with streams."""
    before = server.cpu_seconds()
    plain = uvloop.run(generate(server.port, False, CONNECTIONS, seconds))
    between = server.cpu_seconds()
    streams = uvloop.run(generate(server.port, True, STREAMS, seconds))
    after = server.cpu_seconds()
    return {
        f"requests/s, {CONNECTIONS} connections": plain.requests / plain.seconds,
        "CPU µs/request": (between - before) / plain.requests * 1e6,
        f"stream events/s, {STREAMS} streams": streams.deltas / streams.seconds,
        "CPU µs/stream event": (after - between) / streams.deltas * 1e6,
        "first event, ms": statistics.median(streams.first_event) * 1e3,
    }


def compare(names: list[str], plan: Plan) -> list[Server]:
    """Measure all servers, interleaved."""
    with work_folder() as folder, contextlib.ExitStack() as stack:
        servers = [stack.enter_context(running(name, folder)) for name in names]
        for _ in range(plan.starts - 1):
            for server in servers:
                with running(server.name, folder) as again:
                    server.note("cold start, s", again.results["cold start, s"][0])
        time.sleep(1)
        for server in servers:
            server.note("idle memory, MB", server.memory())
        for server in servers:
            measure(server, plan.seconds)  # warms up
        for number in range(plan.rounds):
            first = number % len(servers)
            for server in servers[first:] + servers[:first]:
                for what, value in measure(server, plan.seconds).items():
                    server.note(what, value)
        for server in servers:
            server.note("memory after, MB", server.memory())
    return servers


def table(servers: list[Server]) -> str:
    """Write the medians as ratios to the first server, the measured values in brackets."""
    base = servers[0]
    names = [server.name for server in servers]
    lines = [f"| | {' | '.join(names)} |", "|---" * (len(names) + 1) + "|"]
    for what, reference in base.results.items():
        cells = []
        for server in servers:
            values = server.results[what]
            ratio = statistics.median(a / b for a, b in zip(values, reference, strict=True))
            cells.append(f"{ratio:.2f} ({statistics.median(values):,.4g})")
        lines.append(f"| {what} | {' | '.join(cells)} |")
    return "\n".join(lines)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Compare servers side by side.")
    parser.add_argument("--quick", action="store_true", help="a short run: rough numbers")
    parser.add_argument("--rounds", type=int, help="how often each server is loaded")
    parser.add_argument("--seconds", type=float, help="how long each load lasts")
    parser.add_argument(
        "--servers",
        nargs="+",
        choices=SERVERS,
        default=list(SERVERS),
        metavar="NAME",
        help=f"which, the first is the measure of the others: {', '.join(SERVERS)}",
    )
    return parser.parse_args()


def main() -> None:
    arguments = parse_arguments()
    plan = Plan(rounds=2, seconds=1.0, starts=1) if arguments.quick else Plan(5, 3.0, 5)
    plan.rounds = arguments.rounds or plan.rounds
    plan.seconds = arguments.seconds or plan.seconds
    print(table(compare(arguments.servers, plan)))


if __name__ == "__main__":
    main()
