"""Clients of all kinds at once, while workers are killed again and again.

    uv run --group test pytest -m campaign -n 0 --no-cov tests/system/test_soak.py

SOAK_SECONDS sets the duration, a minute by default.
"""

import itertools
import json
import os
import random
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import httpx2
import psutil
import pytest
from support.cluster import Cluster, text_of, wait_until
from support.postgres_server import PostgresServer
from support.stream_checker import check_stream

pytestmark = pytest.mark.campaign

SECONDS = float(os.environ.get("SOAK_SECONDS", "60"))
CLIENTS, WORKERS = 12, 3
KILL_EVERY = (1.0, 4.0)
ENDED = {"completed", "failed", "cancelled", "incomplete"}
LOST = (httpx2.TransportError, ConnectionError)


@dataclass
class Claim:
    """What a client has received and may rely on: the whole response, or the events so far."""

    id: str
    answer: dict[str, Any] | None = None
    events: list[dict[str, Any]] = field(default_factory=list)
    cancelled: bool = False


def ask(cluster: Cluster, chance: random.Random) -> Iterator[Claim]:
    """Ask three questions in a chain; each is acknowledged as a whole."""
    previous: dict[str, Any] = {}
    for turn in range(3):
        follow = {"previous_response_id": previous["id"]} if previous else {}
        previous = cluster.post(input="Hello", **follow)
        yield Claim(previous["id"], answer=previous)
        assert f"items {2 * turn + 1} " in text_of(previous)


def read_events(cluster: Cluster, claim: Claim, most: int) -> None:
    """Follow a response after the last received event, for at most `most` events."""
    after = len(claim.events) - 1
    url = f"{cluster.url}/v1/responses/{claim.id}?stream=true&starting_after={after}"
    with cluster.http.stream("GET", url) as answer:
        assert answer.status_code == 200, answer.read()
        for line in answer.iter_lines():
            if line.startswith("data: {"):
                claim.events.append(json.loads(line[6:]))
                most -= 1
            if not most:
                return


def follow(cluster: Cluster, chance: random.Random) -> Iterator[Claim]:
    """Follow a run in the background to its end, over connections that break."""
    seconds = chance.choice(("0.1", "1", "3"))
    claim = Claim(cluster.post(input=f"take {seconds}", background=True)["id"])
    yield claim
    while not (claim.events and "response" in claim.events[-1] and _is_last(claim.events[-1])):
        try:
            read_events(cluster, claim, most=chance.randint(1, 12))
        except LOST:
            time.sleep(0.1)


def _is_last(event: dict[str, Any]) -> bool:
    return event["type"].removeprefix("response.") in ENDED


def cancel(cluster: Cluster, chance: random.Random) -> Iterator[Claim]:
    """Start a run in the background and cancel it."""
    claim = Claim(cluster.post(input="take 3", background=True)["id"])
    yield claim
    time.sleep(chance.random())
    claim.cancelled = cluster.post(f"/{claim.id}/cancel")["status"] == "cancelled"


def leave(cluster: Cluster, chance: random.Random) -> Iterator[Claim]:
    """Read the start of a stream and disconnect: the events that were sent can be read again."""
    claim, most = None, chance.randint(1, 8)
    body = {"input": "take 1", "stream": True}
    with cluster.http.stream("POST", f"{cluster.url}/v1/responses", json=body) as answer:
        for line in itertools.islice(answer.iter_lines(), 3 * most):
            if line.startswith("data: {"):
                event = json.loads(line[6:])
                claim = claim or Claim(event["response"]["id"])
                claim.events.append(event)
    if claim:
        yield claim


KINDS: list[Callable[[Cluster, random.Random], Iterator[Claim]]] = [ask, follow, cancel, leave]


def use(cluster: Cluster, seed: int, until: float) -> list[Claim]:
    """Act as one client until a time; return everything it has received."""
    chance, claims = random.Random(seed), []
    while time.monotonic() < until:
        try:
            claims.extend(chance.choice(KINDS)(cluster, chance))
        except LOST:
            continue
    return claims


def kill_workers(cluster: Cluster, stop: threading.Event) -> int:
    """Kill a worker every few seconds; the server starts others in their place."""
    chance, killed = random.Random(0), 0
    while not stop.wait(chance.uniform(*KILL_EVERY)):
        with suppress(IndexError, psutil.Error):  # no worker is running, or it has just ended
            chance.choice(workers_of(cluster)).kill()
            killed += 1
    return killed


def workers_of(cluster: Cluster) -> list[psutil.Process]:
    children = psutil.Process(cluster.process.pid).children()
    return [child for child in children if "spawn_main" in " ".join(child.cmdline())]


def verify(cluster: Cluster, claim: Claim) -> str:
    """Check what a client has received; return the final status of its response."""
    wait_until(lambda: cluster.get(claim.id)["status"] in ENDED)
    stored = cluster.get(claim.id)
    if claim.answer:
        assert stored == claim.answer
        return stored["status"]
    events = cluster.events(claim.id)
    check_stream(events)
    assert events[: len(claim.events)] == claim.events
    assert events[-1]["response"] == stored
    assert stored["status"] == "cancelled" or not claim.cancelled
    return stored["status"]


@pytest.fixture(params=["sqlite", "postgres"])
def store(request: pytest.FixtureRequest) -> Iterator[str]:
    """The URL of a store, from the folder of the server."""
    if request.param == "sqlite":
        yield "sqlite:///store.db"
        return
    with PostgresServer() as server:
        yield server.new_database()


@pytest.mark.timeout(SECONDS + 600)
@pytest.mark.parametrize("resumable", ["0", "1"], ids=["ended", "run again"])
def test_clients_receive_what_is_stored_while_workers_are_killed(tmp_path, store, resumable):
    settings = {"RESUMABLE": resumable, "AGENT_KIT_STORE_URL": store}
    with Cluster(tmp_path, WORKERS, **settings) as cluster:
        stop, until = threading.Event(), time.monotonic() + SECONDS
        with ThreadPoolExecutor(CLIENTS + 1) as threads:
            killing = threads.submit(kill_workers, cluster, stop)
            clients = [threads.submit(use, cluster, seed, until) for seed in range(CLIENTS)]
            try:
                claims = [claim for client in clients for claim in client.result()]
            finally:
                stop.set()
        ends = [verify(cluster, claim) for claim in claims]
    counted = {status: ends.count(status) for status in sorted(set(ends))}
    print(f"{killing.result()} workers killed, {len(claims)} responses: {counted}")
    assert len(counted) > 1
