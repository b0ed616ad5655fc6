"""Several workers on one store, and what happens when they are killed."""

import contextlib
import os
import resource
import signal
import sqlite3
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from support.cluster import LEASE, PATIENCE, Cluster, text_of, wait_until, worker_of
from support.stream_checker import check_stream

CANCEL_SECONDS = 1


def test_four_workers_behave_as_one_server(tmp_path):
    # No worker must be considered dead because the machine is busy.
    with Cluster(tmp_path, workers=4, AGENT_KIT_STORE_LEASE_SECONDS="60") as cluster:
        workers = set()
        previous: dict[str, Any] = {}
        for turn in range(40):
            follow = {"previous_response_id": previous["id"]} if previous else {}
            previous = cluster.post(input="Hello", **follow)
            assert cluster.get(previous["id"]) == previous
            assert f"items {2 * turn + 1} " in text_of(previous)
            workers.add(worker_of(text_of(previous)))
            if len(workers) > 1 and turn >= 5:
                break
        assert len(workers) > 1

        running = [cluster.post(input="wait", background=True)["id"] for _ in range(6)]
        homes = [worker_of(cluster.first_words(response_id)) for response_id in running]
        for response_id in running:
            began = time.monotonic()
            assert cluster.post(f"/{response_id}/cancel")["status"] == "cancelled"
            assert time.monotonic() - began < 10 * CANCEL_SECONDS
            assert cluster.post(f"/{response_id}/cancel") == cluster.get(response_id)
        for home in homes:
            wait_until((tmp_path / f"closed-{home}").exists)

        slow = cluster.post(input="take 1", background=True)["id"]
        seen = cluster.events(slow)
        for _ in range(4):
            assert cluster.events(slow, after=5) == seen[6:]
        check_stream(seen)


def test_an_orphaned_run_is_ended_by_another_worker(tmp_path):
    with Cluster(tmp_path, workers=2) as cluster:
        running = cluster.post(input="wait", background=True)["id"]
        os.kill(worker_of(cluster.first_words(running)), signal.SIGKILL)
        ended = cluster.wait_for_end(running)
        assert ended["status"] == "failed"
        assert ended["error"]["code"] == "server_error"
        assert "worker" in ended["error"]["message"]
        check_stream(cluster.events(running))


def test_an_outage_of_the_store_orphans_no_run(tmp_path):
    with Cluster(tmp_path, workers=4) as cluster:
        taken = [cluster.post(input="take 8", background=True)["id"] for _ in range(8)]
        for response_id in taken:
            cluster.first_words(response_id)
        with contextlib.closing(sqlite3.connect(tmp_path / ".agent_kit/store.db")) as other:
            other.execute("BEGIN IMMEDIATE")
            time.sleep(2 * LEASE)  # no worker can send a heartbeat
            other.rollback()
        ended = [cluster.wait_for_end(response_id) for response_id in taken]
        assert {response["status"] for response in ended} == {"completed"}


def test_an_orphaned_run_is_repeated_if_the_agent_is_resumable(tmp_path):
    with Cluster(tmp_path, workers=2, RESUMABLE="1") as cluster:
        running = cluster.post(input="die once", background=True)["id"]
        os.kill(worker_of(cluster.first_words(running)), signal.SIGKILL)
        ended = cluster.wait_for_end(running)
        assert ended["status"] == "completed"
        assert "attempt 2" in text_of(ended)
        events = cluster.events(running)
        check_stream(events)
        assert events[-1]["response"] == ended
        assert [(item["type"], item["status"]) for item in ended["output"]] == [
            ("mcp_call", "incomplete"),
            ("message", "incomplete"),
            ("mcp_call", "completed"),
            ("message", "completed"),
        ]


def test_a_run_that_kills_its_workers_ends_as_failed(tmp_path):
    with Cluster(tmp_path, workers=1, RESUMABLE="1") as cluster:
        running = cluster.post(input="wait", background=True)["id"]
        for attempt in (1, 2, 3):
            cluster.first_words(running, attempt)
            cluster.kill()
            cluster.start()
        assert cluster.wait_for_end(running)["status"] == "failed"


def test_nothing_is_lost_when_the_whole_server_is_killed(tmp_path):
    with Cluster(tmp_path, workers=2) as cluster:
        finished = [cluster.post(input="Hello") for _ in range(10)]
        running = [
            cluster.post(input=f"take {number / 20}", background=True)["id"]
            for number in range(200)
        ]
        done = [cluster.get(response_id) for response_id in running[:20]]
        done = [response for response in done if response["status"] == "completed"]
        cluster.kill()
        cluster.start()
        for response in (*finished, *done):
            assert cluster.get(response["id"]) == response
        ended = [cluster.wait_for_end(response_id) for response_id in running]
        states = {response["status"] for response in ended}
        assert states <= {"completed", "failed"}
        assert "failed" in states
        for response in ended[::20]:
            check_stream(cluster.events(response["id"]))


def test_a_stopped_server_leaves_no_run_in_progress(tmp_path):
    with Cluster(tmp_path) as cluster:
        running = cluster.post(input="wait", background=True)["id"]
        cluster.first_words(running)
        cluster.process.terminate()
        cluster.process.wait(PATIENCE)
        cluster.start()
        ended = cluster.get(running)
        assert ended["status"] == "failed"
        assert "stopped" in ended["error"]["message"]


def test_a_full_disk_is_a_clear_error_and_loses_nothing(tmp_path):
    with Cluster(tmp_path) as cluster:
        stored = [cluster.post(input="Hello") for _ in range(3)]
        limits = resource.RLIMIT_FSIZE
        _, hard = resource.prlimit(cluster.process.pid, limits)
        log = tmp_path / ".agent_kit/store.db-wal"
        resource.prlimit(cluster.process.pid, limits, (log.stat().st_size + 30_000, hard))
        url, body = f"{cluster.url}/v1/responses", {"input": "Hello " * 1000}
        for _ in range(100):
            answer = cluster.http.post(url, json=body)
            if answer.status_code != 200:
                break
            stored.append(answer.json())
        assert answer.status_code == 503
        assert answer.json()["error"]["code"] == "store_full"
        for response in stored:
            assert cluster.get(response["id"]) == response
        resource.prlimit(cluster.process.pid, limits, (hard, hard))
        assert cluster.post(input="Hello")["status"] == "completed"


@pytest.fixture
def stopping(tmp_path) -> Iterator[Cluster]:
    """A server that does not wait for its clients when it stops, and logs no traceback then."""
    with Cluster(tmp_path, AGENT_KIT_SERVER_SHUTDOWN_SECONDS="0.2") as cluster:
        yield cluster
        cluster.process.wait(PATIENCE)
    assert "Traceback" not in cluster.log.read_text()


@pytest.mark.parametrize("store", [True, False], ids=["stored", "not stored"])
def test_a_stream_that_the_server_cuts_at_shutdown_has_an_error(stopping, store):
    body = {"input": "wait", "stream": True, "store": store}
    with stopping.http.stream("POST", f"{stopping.url}/v1/responses", json=body) as answer:
        lines = answer.iter_lines()
        assert any("output_text.delta" in line for line in lines)
        stopping.process.terminate()
        rest = [line for line in lines if line]
    assert rest[-3] == "event: response.failed"
    assert "stopped" in rest[-2]
    assert rest[-1] == "data: [DONE]"


def test_a_non_streaming_response_that_the_server_cuts_at_shutdown_is_an_error(stopping):
    with ThreadPoolExecutor(1) as threads:
        asked = threads.submit(
            stopping.http.post, f"{stopping.url}/v1/responses", json={"input": "wait"}
        )
        wait_until(lambda: (stopping.folder / "started").exists())
        stopping.process.terminate()
        answer = asked.result(PATIENCE)
    assert answer.status_code == 503
    assert "stopped" in answer.json()["error"]["message"]


def test_a_reader_of_a_run_is_disconnected_when_the_server_stops(stopping):
    running = stopping.post(input="wait", background=True)["id"]
    url = f"{stopping.url}/v1/responses/{running}?stream=true"
    with stopping.http.stream("GET", url) as answer:
        lines = answer.iter_lines()
        assert any("output_text.delta" in line for line in lines)
        stopping.process.terminate()
        list(lines)
