"""Traces: complete in MLflow, cheap for requests, harmless to neighbours, never lost."""

import asyncio
import json
import signal
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

import httpx2
import psutil
import pytest
from support.environment import free_port
from support.tracing_support import (
    change,
    mlflow_server,
    run_script,
    serving,
    stored_trace,
    stored_traces,
    tree,
    wait_until,
)

from agent_kit.context import RequestContext
from agent_kit.server import create_server
from agent_kit.settings import Settings
from agent_kit.tracing import (
    TraceNotFoundError,
    close_tracing,
    flush_traces,
    log_feedback,
    span,
    start_trace,
    trace_tree,
    tracing_status,
)
from agent_kit.tracing.drain import DrainState

pytest_plugins = ["support.tracing_fixtures"]
SECRET = "sk-1234567890abcdefghij"


def traced(settings: Settings, inputs: object = "question", **result: object) -> str:
    """Trace a request that does nothing; return the trace's id."""
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
        ours = process.info["cwd"] == str(settings.project_dir)
        if ours and "agent_kit.tracing.drain" in command:
            found.append(process)
    return found


# --- what a trace says


def test_a_trace_tells_about_its_request(settings: Settings) -> None:
    context = RequestContext(request_id="req_1", user="ada", session_id="tea")
    trace = start_trace(
        "agent", inputs={"a": 1}, context=context, settings=settings, task="agent/v1/responses"
    )
    with trace.activate(), span("lookup", span_type="RETRIEVER", inputs=["x"]) as step:
        step.set_outputs(["y"])
        step.set_attributes({"rank": 3})
    usage = {"input_tokens": 3, "output_tokens": 4, "total_tokens": 7}
    trace.finish(outputs={"b": 2}, usage=usage)

    stored = stored_trace(settings, trace.trace_id)
    assert stored.info.state == "OK"
    assert stored.info.tags["mlflow.traceName"] == "agent"
    assert stored.info.tags["agent_kit.task"] == "agent/v1/responses"
    assert stored.info.tags["agent_kit.model"] == "offline"
    assert stored.info.tags["agent_kit.request_id"] == "req_1"
    assert stored.info.tags["agent_kit.status"] == "OK"
    assert stored.info.trace_metadata["mlflow.trace.user"] == "ada"
    assert stored.info.trace_metadata["mlflow.trace.session"] == "tea"
    assert stored.info.token_usage == usage
    assert (stored.info.request_preview, stored.info.response_preview) == ('{"a":1}', '{"b":2}')
    root, lookup = stored.data.spans
    assert (root.inputs, root.outputs, root.span_type) == ({"a": 1}, {"b": 2}, "AGENT")
    assert (lookup.inputs, lookup.outputs, lookup.span_type) == (["x"], ["y"], "RETRIEVER")
    assert lookup.get_attribute("rank") == 3
    assert tree(stored.data.spans) == {("agent", None), ("lookup", "agent")}
    assert root.start_time_ns <= lookup.start_time_ns <= lookup.end_time_ns <= root.end_time_ns


def test_what_a_model_costs_is_computed(settings: Settings) -> None:
    trace = start_trace("agent", inputs="x", settings=settings)
    with trace.activate(), span("model", span_type="CHAT_MODEL", inputs="x") as step:
        step.set_usage({"prompt_tokens": 1000, "completion_tokens": 500}, model="gpt-4o")
        step.set_outputs("y")
    trace.finish(outputs="y")
    info = stored_trace(settings, trace.trace_id).info
    assert info.token_usage["total_tokens"] == 1500
    assert info.cost["total_cost"] > 0


def test_a_failed_request_is_an_error(settings: Settings) -> None:
    trace = start_trace("agent", inputs="x", settings=settings)
    with trace.activate(), pytest.raises(ValueError, match="no such city"), span("lookup"):
        raise ValueError("no such city")
    trace.finish(status="ERROR", error="Traceback:\n  in lookup\nValueError: no such city")
    stored = stored_trace(settings, trace.trace_id)
    assert (stored.info.state, stored.info.tags["agent_kit.status"]) == ("ERROR", "ERROR")
    for item in stored.data.spans:
        assert item.status.description == "ValueError: no such city"
        assert item.events[0].attributes["exception.type"] == "ValueError"
        assert "Traceback" in item.events[0].attributes["exception.stacktrace"]


@pytest.mark.parametrize("store", [False, True])
def test_the_trace_of_a_client_that_went_away_says_cancelled(settings: Settings, store) -> None:
    server, ended = create_server(settings=settings), threading.Event()

    @server.stream()
    async def answer(request):
        try:
            yield "half an ans"
            await asyncio.sleep(60)
        finally:
            ended.set()

    body = {"input": "Hi", "stream": True, "store": store}
    with server.serve() as url:
        with httpx2.stream("POST", f"{url}/v1/responses", json=body, timeout=30) as response:
            assert any("output_text.delta" in line for line in response.iter_lines())
            trace_id = response.headers["x-mlflow-trace-id"]
        assert ended.wait(5)
    stored = stored_trace(settings, trace_id)
    assert stored.info.tags["agent_kit.status"] == "CANCELLED"
    assert "half an ans" in str(stored.data.spans[0].outputs)


def test_a_cancelled_request_says_so(settings: Settings) -> None:
    async def request() -> str:
        trace = start_trace("agent", inputs="x", settings=settings)
        with trace.activate():
            try:
                with span("slow"):
                    await asyncio.sleep(60)
            except asyncio.CancelledError:
                trace.finish(outputs="half an ans", status="CANCELLED")
        return trace.trace_id

    async def stop_it() -> str:
        task = asyncio.create_task(request())
        await asyncio.sleep(0)
        task.cancel()
        return await task

    stored = stored_trace(settings, asyncio.run(stop_it()))
    assert (stored.info.state, stored.info.tags["agent_kit.status"]) == ("ERROR", "CANCELLED")
    root, slow = stored.data.spans
    assert (root.outputs, root.status.description) == ("half an ans", "cancelled")
    assert slow.status.description.startswith("cancelled")


def test_a_generator_closed_early_is_no_error(settings: Settings) -> None:
    def pieces() -> Iterator[int]:
        with span("model"):
            yield from range(10)

    trace = start_trace("agent", inputs="x", settings=settings)
    with trace.activate():
        generator = pieces()
        next(generator)
        generator.close()
    trace.finish()
    step = trace_tree(trace.trace_id)[1]
    assert (step["status"], step["attributes"]["agent_kit.closed_early"]) == ("OK", True)


def test_a_trace_ends_once(settings: Settings) -> None:
    trace = start_trace("agent", inputs="x", settings=settings)
    trace.finish(outputs="first")
    trace.finish(outputs="second", status="ERROR")
    assert tracing_status()["spooled"] == 1
    assert stored_trace(settings, trace.trace_id).data.spans[0].outputs == "first"


def test_inputs_are_kept_as_they_were(settings: Settings) -> None:
    messages = ["one"]
    trace = start_trace("agent", inputs=messages, settings=settings)
    messages.append("two")
    trace.finish()
    assert trace_tree(trace.trace_id)[0]["inputs"] == ["one"]


def test_steps_of_tasks_and_threads_are_in_the_tree(settings: Settings) -> None:
    def in_thread(name: str) -> None:
        with span(name):
            pass

    async def request() -> str:
        trace = start_trace("agent", inputs="x", settings=settings)
        with trace.activate():
            with span("tools"):
                await asyncio.gather(*(asyncio.to_thread(in_thread, name) for name in "ab"))
            in_thread("c")
        trace.finish()
        return trace.trace_id

    steps = trace_tree(asyncio.run(request()))
    assert [(step["name"], step["depth"]) for step in steps if step["name"] not in "ab"] == [
        ("agent", 0),
        ("tools", 1),
        ("c", 1),
    ]
    assert {step["depth"] for step in steps if step["name"] in "ab"} == {2}


def test_steps_that_end_after_their_trace_are_stored_too(settings: Settings) -> None:
    async def background(finished: asyncio.Event) -> None:
        with span("late"):
            await finished.wait()

    async def request() -> str:
        finished = asyncio.Event()
        trace = start_trace("agent", inputs="x", settings=settings)
        with trace.activate():
            task = asyncio.create_task(background(finished))
            await asyncio.sleep(0)
        trace.finish()
        close_tracing(timeout=0)
        finished.set()
        await task
        return trace.trace_id

    trace_id = asyncio.run(request())
    spans = stored_trace(settings, trace_id).data.spans
    assert tree(spans) == {("agent", None), ("late", "agent")}
    assert [step["name"] for step in trace_tree(trace_id)] == ["agent", "late"]


def test_steps_outside_of_a_trace_go_nowhere() -> None:
    with span("alone", inputs="x") as step:
        step.set_outputs("y")
        step.set_usage({"input_tokens": 1, "output_tokens": 1})
    assert tracing_status()["spooled"] == 0


def test_tracing_can_be_switched_off(settings: Settings) -> None:
    trace = start_trace("agent", inputs="x", settings=change(settings, tracing=False))
    with trace.activate(), span("step"):
        pass
    trace.finish(outputs="y")
    assert trace.trace_id == ""
    assert tracing_status()["spooled"] == 0


# --- what may be kept


@pytest.mark.parametrize("content", ["full", "redacted", "off"])
def test_secrets_are_never_kept(settings: Settings, content: str) -> None:
    settings = change(settings, trace_content=content)
    trace = start_trace("agent", inputs={"api_key": "hunter2", "text": SECRET}, settings=settings)
    with trace.activate():
        with suppress(RuntimeError), span("tool", inputs=SECRET) as step:
            step.set_attributes({"note": [SECRET]})
            raise RuntimeError(f"refused {SECRET}")
        with span("output") as step:
            step.set_outputs(json.dumps({"password": "hunter2"}))
    trace.finish(outputs=SECRET, status="ERROR", error=f"ValueError: {SECRET}")
    (segment,) = settings.mlflow.spool_dir.glob("*.jsonl")
    written = segment.read_text()
    assert trace.trace_id in written
    assert "sk-1234" not in written
    assert "hunter2" not in written


def test_a_redacted_trace_has_structure_and_sizes(settings: Settings) -> None:
    settings = change(settings, trace_content="redacted")
    message = {"role": "user", "content": "private matters", "tokens": 3}
    trace_id = traced(settings, {"input": [message]}, status="ERROR", error="ValueError: private")
    (root,) = trace_tree(trace_id)
    assert root["inputs"] == {"input": [message | {"content": "<15 characters>"}]}
    assert root["message"] == "ValueError"
    assert "private" not in str(stored_trace(settings, trace_id).to_dict())


def test_a_trace_without_content_still_counts(settings: Settings) -> None:
    settings = change(settings, trace_content="off")
    usage = {"input_tokens": 3, "output_tokens": 4}
    trace_id = traced(settings, "private", outputs="private", usage=usage)
    stored = stored_trace(settings, trace_id)
    assert "private" not in str(stored.to_dict())
    assert stored.data.spans[0].inputs is None
    assert stored.info.token_usage["total_tokens"] == 7


def test_big_values_and_long_traces_are_cut(settings: Settings) -> None:
    trace = start_trace("agent", inputs="x" * 5_000_000, settings=settings)
    with trace.activate():
        for _ in range(1200):
            with span("step", inputs="y" * 10_000):
                pass
    trace.finish()
    (segment,) = settings.mlflow.spool_dir.glob("*.jsonl")
    assert segment.stat().st_size < 4_500_000
    steps = trace_tree(trace.trace_id)
    assert len(steps) == 1001
    assert steps[0]["attributes"]["agent_kit.spans_left_out"] == 200


# --- what harms neighbours


def test_poison_does_not_harm_neighbours(settings: Settings) -> None:
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


def test_a_record_that_mlflow_refuses_is_set_aside(settings: Settings) -> None:
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


# --- nothing is lost


def test_traces_wait_for_a_server_that_is_down(project: Settings) -> None:
    port = free_port()
    settings = change(project, tracking_uri=f"http://127.0.0.1:{port}")
    ids = [traced(settings) for _ in range(3)]
    wait_until(lambda: "failed" in (tracing_status()["error"] or ""))
    assert tracing_status()["waiting_bytes"] > 0
    with pytest.raises(TimeoutError, match="cannot be stored"):
        log_feedback(ids[0], value=True, timeout=0.1)
    with mlflow_server(project, port):
        assert flush_traces(timeout=60)
        log_feedback(ids[0], value=True)
    assert {trace.info.trace_id for trace in stored_traces(project)} == set(ids)
    status = tracing_status()
    assert (status["stored"], status["refused"], status["dropped"]) == (3, 0, 0)
    assert (status["waiting_bytes"], status["error"]) == (0, None)


def test_what_does_not_fit_is_counted_and_told(
    settings: Settings, caplog: pytest.LogCaptureFixture
) -> None:
    settings = change(settings, spool_max_bytes=1_000_000)
    for _ in range(12):
        traced(settings, "x" * 100_000)
    status = tracing_status()
    assert status["dropped"] > 0
    assert status["spooled"] + status["dropped"] == 12
    (warning,) = [record.getMessage() for record in caplog.records]
    assert "takes no more; 1 traces are lost" in warning


def test_a_killed_worker_has_lost_nothing(project: Settings) -> None:
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


STUCK = """
import asyncio, time
from agent_kit.server import create_server

server = create_server()
app = server.app


@server.stream()
async def answer(request):
    yield "I begin "
    stuck = asyncio.to_thread(time.sleep, 600)
    await (stuck if "thread" in request.input[-1]["content"] else asyncio.sleep(600))
"""


def test_a_stopped_server_cuts_stuck_streams_and_keeps_their_traces(project: Settings) -> None:
    """Databricks Apps kills what is still there 15 seconds after SIGTERM."""

    def ask(question: str) -> tuple[str, list[str]]:
        body = {"input": question, "stream": True}
        with httpx2.stream("POST", f"{url}/v1/responses", json=body, timeout=150) as response:
            lines = []
            for line in response.iter_lines():
                lines += [line] if line else []
                if "output_text.delta" in line:
                    begun.release()
            return response.headers["x-mlflow-trace-id"], lines

    begun = threading.Semaphore(0)
    with serving(project, STUCK) as (url, server), ThreadPoolExecutor(2) as threads:
        asked = [threads.submit(ask, question) for question in ("wait", "wait in a thread")]
        assert all(begun.acquire(timeout=60) for _ in asked)
        started = time.monotonic()
        server.terminate()
        code = server.wait(150)
        seconds = time.monotonic() - started
        answers = [each.result(60) for each in asked]
    assert code == -signal.SIGTERM, f"it ended after {seconds:.1f} s"
    print(f"the server ended after {seconds:.1f} s")
    for _, lines in answers:
        assert lines[-3] == "event: response.failed"
        assert lines[-1] == "data: [DONE]"
    wait_until(lambda: not drains(project))
    for trace_id, _ in answers:
        assert stored_trace(project, trace_id).data.spans[0].outputs


def test_a_killed_drain_is_replaced(project: Settings) -> None:
    traced(project)
    assert flush_traces(timeout=60)
    (drain,) = drains(project)
    drain.kill()
    drain.wait()
    traced(project)
    assert flush_traces(timeout=60)
    (replacement,) = drains(project)
    assert replacement.pid != drain.pid
    assert len(stored_traces(project)) == 2


def test_leftovers_are_stored_after_a_restart(project: Settings) -> None:
    code = """
from agent_kit.tracing.drain import DrainKeeper
DrainKeeper.check = lambda self: None
start_trace("agent", inputs="from before").finish()
"""
    done = run_script(project, code)
    assert done.returncode == 0, done.stderr
    traced(project)
    assert flush_traces(timeout=60)
    inputs = {trace.data.spans[0].inputs for trace in stored_traces(project)}
    assert inputs == {"from before", "question"}


def test_one_drain_serves_all_processes(project: Settings) -> None:
    traced(project)
    code = """
start_trace("agent", inputs="theirs").finish()
assert flush_traces(timeout=60)
"""
    done = run_script(project, code)
    assert done.returncode == 0, done.stderr
    assert flush_traces(timeout=60)
    assert len(stored_traces(project)) == 2
    assert len(drains(project)) == 1


def test_the_drain_ends_with_its_writers(project: Settings) -> None:
    traced(project)
    assert flush_traces(timeout=60)
    (drain,) = drains(project)
    drain.send_signal(signal.SIGINT)
    assert flush_traces(timeout=60)
    assert drain.is_running()
    assert close_tracing(timeout=30)
    assert not drain.is_running()
    assert tracing_status()["spooled"] == 0


def test_a_closed_trace_store_can_be_written_again(project: Settings) -> None:
    traced(project)
    assert close_tracing(timeout=60)
    traced(project)
    assert flush_traces(timeout=60)
    assert len(stored_traces(project)) == 2


def test_a_trace_that_is_stored_twice_is_there_once(settings: Settings) -> None:
    trace_id = traced(settings)
    spool = settings.mlflow.spool_dir
    (segment,) = spool.glob("*.jsonl")
    content = segment.read_bytes()
    assert stored_trace(settings, trace_id)
    segment.write_bytes(content)
    (spool / "drain.json").write_text("{half a state")
    assert len(stored_trace(settings, trace_id).data.spans) == 1
    assert len(stored_traces(settings)) == 1


# --- looking at traces


def test_an_unknown_trace_has_no_tree(settings: Settings) -> None:
    with pytest.raises(TraceNotFoundError, match="tr-0"):
        trace_tree("tr-0")


def test_only_the_last_traces_are_kept_in_memory(settings: Settings) -> None:
    ids = [traced(settings) for _ in range(201)]
    with pytest.raises(TraceNotFoundError):
        trace_tree(ids[0])
    assert trace_tree(ids[1])


def test_feedback_belongs_to_its_trace(project: Settings) -> None:
    trace_id = traced(project)
    log_feedback(trace_id, value=False, comment=f"my key is {SECRET}", user="ada")
    (trace,) = stored_traces(project)
    (feedback,) = trace.info.assessments
    assert trace.info.trace_id == trace_id
    assert (feedback.name, feedback.value) == ("user_feedback", False)
    assert (feedback.source.source_type, feedback.source.source_id) == ("HUMAN", "ada")
    assert SECRET not in feedback.rationale


def test_feedback_on_an_unknown_trace_is_refused(settings: Settings) -> None:
    stored_trace(settings, traced(settings))
    with pytest.raises(TraceNotFoundError, match="tr-0"):
        log_feedback("tr-" + "0" * 32, value=True)


# --- what it costs


def test_a_traced_request_imports_no_mlflow(settings: Settings) -> None:
    code = """
trace = start_trace("agent", inputs="x")
with trace.activate(), span("step"):
    pass
trace.finish(outputs="y")
trace_tree(trace.trace_id)
tracing_status()
slow = {"mlflow", "opentelemetry", "openai", "databricks", "sqlalchemy", "numpy", "pandas"}
print(sorted(slow & set(sys.modules)))
close_tracing(60)
"""
    done = run_script(settings, code)
    assert done.stdout.strip() == "[]", done.stderr


def test_requests_take_microseconds(settings: Settings) -> None:
    traced(settings)
    best = min(_seconds_per_trace(settings) for _ in range(5))
    assert best < 0.002  # about 0.0001 on an idle machine; MLflow's own start and end: 0.0004


def _seconds_per_trace(settings: Settings) -> float:
    started = time.perf_counter()
    for _ in range(20):
        traced(settings, {"input": "x" * 200}, outputs={"output": "y" * 200})
    return (time.perf_counter() - started) / 20
