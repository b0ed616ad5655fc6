"""What it costs to remember: stored against unstored requests, and a chain turn by turn.

    uv run --group bench python benchmarks/state.py [--quick]

One server answers both kinds of requests in turn, round after round. Read the ratios.
"""

import argparse
import http.client
import json
import statistics
import time
from typing import Any

import uvloop
from compare import Server, running, work_folder
from load import generate

CONNECTIONS = 64


def rate(server: Server, stream: bool, store: bool, seconds: float) -> tuple[float, float]:
    """Return answers a second and the server's CPU time for one, in µs."""
    before = server.cpu_seconds()
    load = uvloop.run(generate(server.port, stream, CONNECTIONS, seconds, store=store))
    spent = server.cpu_seconds() - before
    return load.requests / load.seconds, spent / load.requests * 1e6


def compare_rates(server: Server, stream: bool, rounds: int, seconds: float) -> None:
    """Print what storing costs, as a ratio of rates."""
    pairs = [
        [rate(server, stream, store, seconds) for store in (False, True)] for _ in range(rounds)
    ]
    ratio = statistics.median(stored[0] / unstored[0] for unstored, stored in pairs)
    unstored, stored = (
        [statistics.median(pair[kind][what] for pair in pairs) for what in (0, 1)]
        for kind in (0, 1)
    )
    kind = "streamed" if stream else "plain"
    print(
        f"| {kind} | {unstored[0]:.0f}/s, {unstored[1]:.0f} µs | "
        f"{stored[0]:.0f}/s, {stored[1]:.0f} µs | {ratio:.2f} |"
    )


def ask(connection: http.client.HTTPConnection, body: dict[str, Any]) -> tuple[str, float]:
    """Return the id of the answer and the seconds it took."""
    begin = time.perf_counter()
    headers = {"Content-Type": "application/json"}
    connection.request("POST", "/v1/responses", json.dumps(body), headers)
    answer = json.loads(connection.getresponse().read())
    return answer["id"], time.perf_counter() - begin


def chain(server: Server, turns: int) -> None:
    """Print the time of a turn by its place in the chain, and for each item of its context."""
    connection = http.client.HTTPConnection("127.0.0.1", server.port)
    ask(connection, {"input": "warm up"})
    times: list[float] = []
    previous: dict[str, str] = {}
    for _ in range(turns):
        identity, seconds = ask(connection, {"input": "Say some words.", **previous})
        previous = {"previous_response_id": identity}
        times.append(seconds)
    connection.close()
    for turn in (1, turns // 100, turns // 10, turns):
        near = times[max(0, turn - 6) : turn] if turn > 1 else times[:1]
        seconds = statistics.median(near)
        print(f"| {turn} | {seconds * 1e3:.1f} | {seconds / (2 * turn - 1) * 1e6:.0f} |")


def main() -> None:
    """Measure and print two tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="rough numbers in half a minute")
    parser.add_argument("--rounds", type=int, help="how often each kind of request is loaded")
    parser.add_argument("--seconds", type=float, help="how long each load lasts")
    parser.add_argument("--turns", type=int, help="the length of the chain, at least 100")
    arguments = parser.parse_args()
    rounds, seconds, turns = (2, 1.0, 200) if arguments.quick else (5, 4.0, 1000)
    rounds, seconds = arguments.rounds or rounds, arguments.seconds or seconds
    turns = max(100, arguments.turns or turns)
    with work_folder() as folder, running("agent-kit", folder) as server:
        rate(server, False, True, min(seconds, 1.0))
        print(f"| {CONNECTIONS} connections | not stored | stored | ratio |\n|---|---|---|---|")
        compare_rates(server, False, rounds, seconds)
        compare_rates(server, True, rounds, seconds)
        print("\n| turn | ms | µs for each item of context |\n|---|---|---|")
        chain(server, turns)


if __name__ == "__main__":
    main()
