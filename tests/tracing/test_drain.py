"""The drain: stores every trace in MLflow, whatever fails or is killed."""

import signal
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import httpx2
import pytest
from support.environment import free_port
from support.faulty_proxy import faulty_proxy, wait_for_requests
from support.tracing_support import (
    change,
    drains,
    is_sound,
    mlflow_server,
    no_drain,
    run_script,
    serving,
    stored_trace,
    stored_traces,
    traced,
    wait_until,
)

from agent_kit.server import AgentServer, create_server
from agent_kit.settings import Settings
from agent_kit.tracing import (
    close_tracing,
    drain_leftovers,
    flush_traces,
    log_feedback,
    tracing_status,
)
from agent_kit.tracing.drain import DrainState
from agent_kit.tracing.spool import list_segments

pytest_plugins = ["support.tracing_fixtures"]


def test_values_that_json_does_not_support_are_stored(settings: Settings) -> None:
    cycle: list[object] = []
    cycle.append(cycle)
    deep: list[object] = []
    for _ in range(5000):
        deep = [deep]
    inputs = [
        "lone \ud83d",
        cycle,
        deep,
        {1: 2**70},
        float("nan"),
        "\x00",
        object(),
        {"é": b"\xff"},
    ]
    ids = [traced(settings, value, outputs=value) for value in inputs]
    assert {stored_trace(settings, trace_id).info.state for trace_id in ids} == {"OK"}
    assert all(stored_trace(settings, trace_id).data.spans for trace_id in ids)
    assert DrainState.load(settings.mlflow.spool_dir).refused == 0


def test_a_record_that_mlflow_refuses_does_not_affect_the_others(settings: Settings) -> None:
    ids = [traced(settings), traced(settings)]
    spool = settings.mlflow.spool_dir
    (segment,) = spool.glob("*.jsonl")
    first, second = segment.read_bytes().splitlines()
    bad = b'{"info": null, "data": {"spans": [{"name": "no ids"}]}}'
    close_tracing(timeout=0)
    segment.write_bytes(b"\n".join([first, bad, second, b"no JSON", b""]))
    assert all(stored_trace(settings, trace_id).data.spans for trace_id in ids)
    assert DrainState.load(spool).refused == 2
    assert (spool / "refused.txt").read_bytes() == bad + b"\nno JSON\n"


# --- failures


def test_traces_wait_while_the_tracking_server_fails(
    project: Settings, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "2")
    port = free_port()
    with faulty_proxy(port) as proxy:
        settings = change(project, tracking_uri=proxy.url)
        ids = [traced(settings) for _ in range(3)]
        wait_until(lambda: "failed" in (tracing_status()["error"] or ""))
        assert tracing_status()["waiting_bytes"] > 0
        with pytest.raises(TimeoutError, match="cannot be stored"):
            log_feedback(ids[0], value=True, timeout=0.1)
        with mlflow_server(project, port):
            assert flush_traces(timeout=150)
            log_feedback(ids[0], value=True)
            # More requests than the five after which a record might be refused, and a wait.
            for mode, requests in (("500", 6), ("429", 2), ("503", 2), ("down", 2), ("hang", 1)):
                proxy.change(mode)
                ids += [traced(settings) for _ in range(2)]
                wait_for_requests(proxy, mode, requests)
                proxy.change("ok")
                assert flush_traces(timeout=150), mode
    assert {trace.info.trace_id for trace in stored_traces(project)} == set(ids)
    status = tracing_status()
    assert (status["stored"], status["refused"], status["dropped"]) == (len(ids), 0, 0)
    assert (status["waiting_bytes"], status["error"]) == (0, None)
    assert "cannot be stored" in caplog.text


def test_what_a_sound_server_refuses_alone_is_refused_and_tried_again_at_the_next_start(
    project: Settings,
) -> None:
    port = free_port()
    with faulty_proxy(port) as proxy, mlflow_server(project, port):
        wait_until(lambda: is_sound(port))
        settings = change(project, tracking_uri=proxy.url)
        proxy.refused = b"poison"
        ids = [traced(settings, text) for text in ("first", "poison", "last")]
        assert flush_traces(timeout=150)
        status = tracing_status()
        assert (status["stored"], status["refused"]) == (2, 1)
        assert b"poison" in (settings.mlflow.spool_dir / "refused.txt").read_bytes()
        assert close_tracing(timeout=60)
        proxy.refused = None
        drain_leftovers(settings)
        wait_until(lambda: len(stored_traces(project)) == len(ids))
        wait_until(lambda: tracing_status()["stored"] == 3)
        assert tracing_status()["refused"] == 0
        assert close_tracing(timeout=60)
    assert not (settings.mlflow.spool_dir / "refused.txt").exists()


@pytest.mark.campaign
@pytest.mark.timeout(1200)
def test_a_minute_of_each_failure_loses_no_trace(
    project: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    port, sent = free_port(), 0
    with faulty_proxy(port) as proxy, mlflow_server(project, port):
        wait_until(lambda: is_sound(port))
        settings = change(project, tracking_uri=proxy.url)
        for mode in ("down", "500", "429", "503", "hang", "slow"):
            proxy.change(mode)
            for _ in range(1200):
                traced(settings)
                time.sleep(0.05)
            sent += 1200
            proxy.change("ok")
            recovered = time.monotonic()
            assert flush_traces(timeout=60), mode
            print(f"{mode}: all stored {time.monotonic() - recovered:.1f} s after the recovery")
        status = tracing_status()
        assert (status["stored"], status["refused"], status["dropped"]) == (sent, 0, 0)
        assert close_tracing(timeout=60)


def test_traces_that_exceed_the_limit_are_counted_and_logged(
    settings: Settings, caplog: pytest.LogCaptureFixture
) -> None:
    settings = change(settings, spool_max_bytes=1_000_000)
    for _ in range(12):
        traced(settings, "x" * 100_000)
    status = tracing_status()
    assert status["dropped"] > 0
    assert status["spooled"] + status["dropped"] == 12
    (warning,) = [record.getMessage() for record in caplog.records]
    assert "is full; 1 traces are lost" in warning


def test_a_killed_worker_loses_nothing(project: Settings) -> None:
    code = """
for n in range(30):
    trace = start_trace("agent", inputs=n)
    trace.finish(outputs=n)
print(trace.trace_id, flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""
    done = run_script(project, code)
    assert done.returncode == -signal.SIGKILL, done.stderr
    wait_until(lambda: not drains(project))
    assert len(stored_traces(project)) == 30
    assert list(project.mlflow.spool_dir.glob("*.jsonl")) == []


BLOCKED = """
import asyncio, time
from agent_kit.server import create_server

server = create_server()
app = server.app


@server.stream()
async def answer(request):
    yield "Started "
    blocked = asyncio.to_thread(time.sleep, 600)
    await (blocked if "thread" in request.input[-1]["content"] else asyncio.sleep(600))
"""


def test_a_stopped_server_ends_blocked_streams_and_stores_their_traces(project: Settings) -> None:
    """Databricks Apps kills a process 15 seconds after SIGTERM."""

    def ask(question: str) -> tuple[str, list[str]]:
        body = {"input": question, "stream": True}
        with httpx2.stream("POST", f"{url}/v1/responses", json=body, timeout=150) as response:
            lines = []
            for line in response.iter_lines():
                lines += [line] if line else []
                if "output_text.delta" in line:
                    started.release()
            return response.headers["x-mlflow-trace-id"], lines

    started = threading.Semaphore(0)
    with serving(project, BLOCKED) as (url, server), ThreadPoolExecutor(2) as threads:
        requests = [threads.submit(ask, question) for question in ("wait", "wait in a thread")]
        assert all(started.acquire(timeout=60) for _ in requests)
        stopped = time.monotonic()
        server.terminate()
        code = server.wait(150)
        seconds = time.monotonic() - stopped
        responses = [each.result(60) for each in requests]
    assert code == -signal.SIGTERM, f"it ended after {seconds:.1f} s"
    print(f"the server ended after {seconds:.1f} s")
    for _, lines in responses:
        assert lines[-3] == "event: response.failed"
        assert lines[-1] == "data: [DONE]"
    wait_until(lambda: not drains(project))
    for trace_id, _ in responses:
        assert stored_trace(project, trace_id).data.spans[0].outputs


def test_a_killed_drain_is_replaced_without_another_trace(project: Settings) -> None:
    traced(project)
    wait_until(lambda: drains(project))
    (drain,) = drains(project)
    drain.kill()
    wait_until(lambda: len(stored_traces(project)) == 1)
    (replacement,) = drains(project)
    assert replacement.pid != drain.pid


def test_leftovers_are_stored_after_a_restart(project: Settings) -> None:
    code = """
from agent_kit.tracing.drain import DrainSupervisor
DrainSupervisor.check = lambda self: None
start_trace("agent", inputs="from before").finish()
"""
    done = run_script(project, code)
    assert done.returncode == 0, done.stderr
    traced(project)
    assert flush_traces(timeout=60)
    inputs = {trace.data.spans[0].inputs for trace in stored_traces(project)}
    assert inputs == {"from before", "question"}


def echo_server(settings: Settings) -> AgentServer:
    server = create_server(settings=settings)
    server.invoke()(lambda request: "Hello")
    return server


def test_a_server_that_starts_stores_what_an_earlier_process_has_left(project: Settings) -> None:
    with no_drain(project):
        traced(project, "from before")
        close_tracing(timeout=0)
    with echo_server(project).serve():
        wait_until(lambda: len(stored_traces(project)) == 1)
    assert close_tracing(timeout=60)


def test_a_trace_is_stored_without_waiting_for_the_next_one(project: Settings) -> None:
    """The second comes while the drain of the first ends."""
    for number in (1, 2):
        with echo_server(project).serve() as url:
            httpx2.post(f"{url}/v1/responses", json={"input": "Hi"}, timeout=60)
            wait_until(lambda: len(stored_traces(project)) == number)  # noqa: B023
        wait_until(lambda: not list_segments(project.mlflow.spool_dir))
    wait_until(lambda: not drains(project))


def test_only_the_owner_can_read_the_traces(project: Settings) -> None:
    (project.project_dir / "mlflow.db").chmod(0o644)
    traced(project)
    assert flush_traces(timeout=60)
    folder = project.mlflow.spool_dir.parent
    files = [project.project_dir / "mlflow.db", folder, *folder.rglob("*")]
    assert len(files) > 6
    assert [file.name for file in files if file.stat().st_mode & 0o077] == []


def test_one_drain_serves_all_processes_and_ends_with_them(project: Settings) -> None:
    traced(project)
    code = """
start_trace("agent", inputs="theirs").finish()
assert flush_traces(timeout=60)
"""
    done = run_script(project, code)
    assert done.returncode == 0, done.stderr
    assert flush_traces(timeout=60)
    assert len(stored_traces(project)) == 2
    (drain,) = drains(project)
    drain.send_signal(signal.SIGINT)
    assert flush_traces(timeout=60)
    assert drain.is_running()
    assert close_tracing(timeout=30)
    assert not drain.is_running()
    assert tracing_status()["spooled"] == 0

    # A closed spool can be written again, and gets another drain.
    traced(project)
    assert flush_traces(timeout=60)
    assert len(stored_traces(project)) == 3


def test_a_trace_that_is_stored_twice_exists_once(settings: Settings) -> None:
    trace_id = traced(settings)
    spool = settings.mlflow.spool_dir
    (segment,) = spool.glob("*.jsonl")
    content = segment.read_bytes()
    assert stored_trace(settings, trace_id)
    segment.write_bytes(content)
    (spool / "drain.json").write_text("{half a state")
    assert len(stored_trace(settings, trace_id).data.spans) == 1
    assert len(stored_traces(settings)) == 1
