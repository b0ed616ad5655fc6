"""Evaluations: of agents that are right, wrong and failing, in process and by the command."""

import asyncio
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path

import pytest
from support.environment import PROJECT, free_port
from support.python_agent import APP
from support.tracing_support import change

from agent_kit.cli import agent_evaluate
from agent_kit.evaluate import evaluate
from agent_kit.evaluate.cases import DatasetError
from agent_kit.evaluate.datasets import load_cases
from agent_kit.evaluate.evaluation import Evaluation, EvaluationError, read_evaluation
from agent_kit.evaluate.mlflow_log import EvaluationLog
from agent_kit.evaluate.results import ThresholdError
from agent_kit.evaluate.scorers import DEFAULT_SCORERS, Score, expectation, scorer
from agent_kit.runs.handlers import Registry
from agent_kit.server import AgentServer, ServerError, create_server
from agent_kit.settings import Settings, load_settings
from agent_kit.tracing import tracing_status

pytest_plugins = ["support.tracing_fixtures"]


@pytest.fixture
def untraced(tmp_path: Path) -> Settings:
    """A project whose requests leave no trace."""
    return load_settings(tmp_path, environ={}, overrides={"mlflow.tracing": False})


def serve(settings: Settings, answer: Callable[[str], str], task: str = "agent/v1/responses"):
    """A server whose agent answers the user's last words by a function."""
    server = create_server(task, settings=settings)

    @server.invoke()
    def invoke(request):
        messages = request.input if task == "agent/v1/responses" else request.messages
        return answer(messages[-1]["content"])

    return server


@scorer(measures=True)
def length(text: str) -> int:
    """A measurement whose value can be foretold."""
    return len(text)


def echoes(*words: str) -> list[dict]:
    return [{"inputs": word, "expectations": {"expected_response": word}} for word in words]


# What is counted


def fail_on_b(word: str) -> str:
    if word == "b":
        raise RuntimeError("no b")
    return "x" if word == "c" else word


def test_a_failed_answer_counts_as_a_failure_and_no_row_is_lost(untraced: Settings) -> None:
    found = evaluate(serve(untraced, fail_on_b), dataset=echoes(*"abcd"), repeats=2, log=False)
    assert [row.case.question for row in found.rows] == list("aabbccdd")
    assert [row.repeat for row in found.rows] == [0, 1] * 4
    assert found.values["correctness"] == 0.5
    assert found.values["answered"] == 0.75
    assert found.values["rows"] == 8
    assert found.values["agent_errors"] == 2
    assert found.values["correctness/pass_all_2"] == 0.5
    assert found.values["correctness/low"] < 0.5 < found.values["correctness/high"]
    assert found.passed, "there is no threshold"
    assert {row.case.question for row in found.failures} == {"b", "c"}
    assert "no answer: 500" in found.failures[0].failures[0]
    # An agent that fails is not a fast one: its time is no measurement.
    latency = next(each for each in found.measures if each.name == "latency")
    assert latency.estimate
    assert latency.estimate.cases == 3


def test_as_many_concurrent_requests_as_workers(untraced: Settings) -> None:
    server, running, most = create_server(settings=untraced), 0, 0

    @server.invoke()
    async def wait(request):
        nonlocal running, most
        running += 1
        most = max(most, running)
        await asyncio.sleep(0.01)
        running -= 1
        return request.input[-1]["content"]

    words = [f"word {number}" for number in range(60)]
    seen = []
    found = evaluate(
        server,
        dataset=echoes(*words),
        workers=8,
        log=False,
        progress=lambda done, total: seen.append((done, total)),
    )
    assert most == 8
    assert [row.answer.text for row in found.rows] == words
    assert seen == [(number, 60) for number in range(1, 61)]


def test_a_scorer_error_invalidates_the_evaluation(untraced: Settings) -> None:
    @scorer
    def picky(text: str) -> bool:
        return {"a": True}[text]

    server = serve(untraced, str)
    found = evaluate(server, dataset=["a", "b"], scorers=[picky], thresholds=[], log=False)
    assert not found.passed
    assert found.problems == ["the scorer picky failed on 1 of 2 rows"]
    assert found.values["picky"] == 0.5
    assert found.values["picky/errors"] == 1
    assert "KeyError" in found.to_markdown()
    assert found.title.startswith("invalid")


@pytest.mark.parametrize(
    ("task", "inputs"),
    [
        ("agent/v1/responses", "messages"),
        ("agent/v1/chat", "input"),
        ("agent/v2/chat", "input"),
        ("agent/v2/chat", "messages"),
    ],
)
def test_an_agent_of_any_task_type_is_evaluated(untraced: Settings, task: str, inputs: str) -> None:
    server = serve(untraced, str.upper, task)
    dataset = [
        {"inputs": {inputs: [{"role": "user", "content": "hello"}]}},
        {"inputs": {"turns": ["one", "two"]}},
    ]
    found = evaluate(server, dataset=dataset, log=False)
    assert [row.answer.text for row in found.rows] == ["HELLO", "TWO"]
    assert len(found.rows[1].answer.responses) == 2


def test_a_conversation_is_played_with_its_new_answers(untraced: Settings) -> None:
    server = create_server(settings=untraced)

    @server.invoke()
    def recall(request):
        return " ".join(item["content"] for item in request.input)

    found = evaluate(server, dataset=[{"inputs": {"turns": ["a", "b", "c"]}}], log=False)
    assert found.rows[0].answer.text == "a a b a a b c"


def test_an_answer_that_exceeds_the_timeout(tmp_path: Path) -> None:
    settings = load_settings(
        tmp_path, environ={}, overrides={"mlflow.tracing": False, "agent.timeout_seconds": 1}
    )
    server, closed = create_server(settings=settings), []

    @server.stream()
    async def hang(request):
        try:
            yield "I begin "
            await asyncio.sleep(60)
        finally:
            closed.append(True)

    found = evaluate(server, dataset=["a"], log=False)
    assert found.rows[0].answer.error == "no answer within 1 seconds"
    assert closed


def test_an_agent_that_cannot_be_cancelled_is_abandoned(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("agent_kit.evaluate.answers._GRACE_SECONDS", 2)
    overrides = {"mlflow.tracing": False, "agent.timeout_seconds": 0.2, "store.url": "none"}
    settings = load_settings(tmp_path, environ={}, overrides=overrides)
    server, release = create_server(settings=settings), threading.Event()

    @server.invoke()
    async def swallow(request):
        while request.input[-1]["content"] == "a" and not release.is_set():
            with suppress(asyncio.CancelledError):
                await asyncio.sleep(0.05)
        return "b"

    def end_at_last(done: int, total: int) -> None:
        if done == total:
            release.set()

    found = evaluate(server, dataset=["a", "b"], log=False, progress=end_at_last)
    assert [row.answer.error for row in found.rows] == ["no answer within 0.2 seconds", None]


def test_within_a_running_loop(untraced: Settings) -> None:
    async def cell() -> float:
        return evaluate(serve(untraced, str), dataset=echoes("a"), log=False).values["correctness"]

    assert asyncio.run(cell()) == 1


@pytest.fixture
def interruptible() -> Iterator[None]:
    """SIGINT as in a notebook's kernel; processes that run tests side by side ignore it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def test_interrupting_the_cell_stops_the_agent(untraced: Settings, interruptible: None) -> None:
    server, stopped = create_server(settings=untraced), []

    @server.invoke()
    async def wait(request):
        # By then the cell's thread waits for the answers.
        await asyncio.sleep(0.2)
        signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)
        try:
            await asyncio.sleep(60)
        finally:
            stopped.append(True)

    async def cell() -> None:
        evaluate(server, dataset=["a"], log=False)

    loop = asyncio.new_event_loop()
    with pytest.raises(KeyboardInterrupt):
        loop.run_until_complete(cell())
    loop.close()
    assert stopped


# Comparison and gate


def test_compared_with_a_baseline_case_by_case(untraced: Settings, tmp_path: Path) -> None:
    words = [f"word {number}" for number in range(10)]
    before = evaluate(
        serve(untraced, lambda word: "x"), dataset=echoes(*words, "only before"), log=False
    )
    file = before.save(tmp_path / "out/before.json")
    after = evaluate(
        serve(untraced, str),
        dataset=echoes(*words, "only after"),
        baseline=file,
        thresholds=["correctness >= 0.9", "correctness/change > 0.5", "correctness/low > 0.7"],
        log=False,
    )
    compared = after.measures[0].change
    assert compared
    assert (compared.cases, compared.up, compared.down) == (10, 10, 0)
    assert compared.is_significant()
    assert after.passed
    assert "10 up, 0 down of 10" in after.to_markdown()
    assert f"compared with {before.name}" in after.to_markdown()


def test_a_baseline_of_other_cases_is_not_comparable(untraced: Settings) -> None:
    before = evaluate(serve(untraced, str), dataset=echoes("a"), log=False)
    options = {"dataset": echoes("b"), "baseline": before, "log": False}
    after = evaluate(serve(untraced, str), **options)
    assert after.measures[0].change is None
    assert f"not comparable with {before.name}: no case is in both" in after.to_markdown()
    gate = ["correctness/change >= 0"]
    with pytest.raises(ThresholdError, match="needs a baseline with the same cases"):
        evaluate(never_asked(untraced), thresholds=gate, **options)


def test_the_report_states_how_the_baselines_dataset_differs(untraced: Settings) -> None:
    server = serve(untraced, str)
    before = evaluate(server, dataset=echoes("a", "b", "c"), log=False)
    changed = {"inputs": "b", "expectations": {"expected_response": "x"}}
    after = evaluate(server, dataset=[*echoes("a"), changed], baseline=before, log=False)
    report = after.to_markdown()
    assert "cases in both: 2, of 2 now and 3 then" in report
    assert "cases with other expectations now: 1" in report
    same = evaluate(server, dataset=echoes("a", "b", "c"), baseline=before, log=False)
    assert f"compared with {before.name}\n" in same.to_markdown()


def test_repeats_have_a_column_of_their_own(untraced: Settings) -> None:
    found = evaluate(serve(untraced, str), dataset=echoes("a"), repeats=3, log=False)
    for report in (found.to_markdown(), found._repr_html_()):
        assert "attempts that pass" in report
        assert "one of 3: 100 %, all 3: 100 %" in report
    once = evaluate(serve(untraced, str), dataset=echoes("a"), log=False)
    assert "attempts" not in once.to_markdown()


def test_an_agent_that_never_answers_invalidates_the_evaluation(untraced: Settings) -> None:
    def crash(word: str) -> str:
        raise ConnectionError("the model is down")

    found = evaluate(serve(untraced, crash), dataset=echoes("a", "b"), thresholds=[], log=False)
    assert not found.passed
    (problem,) = found.problems
    assert problem.startswith("the agent answered no case: 500: ")
    assert found.title.startswith("invalid")


def test_without_a_threshold_an_evaluation_is_done(untraced: Settings) -> None:
    found = evaluate(serve(untraced, str), dataset=["a"], thresholds=[], log=False)
    assert found.title.startswith("done · ")


def test_an_expectation_that_no_scorer_reads_is_an_error(untraced: Settings) -> None:
    dataset = [*echoes("a"), {"inputs": "b", "expectations": {"expected_fact": ["x"], "mood": 1}}]
    with pytest.raises(DatasetError) as raised:
        evaluate(never_asked(untraced), dataset=dataset, log=False)
    misspelt, unknown = str(raised.value).splitlines()
    assert misspelt.startswith("no scorer reads the expectation 'expected_fact' (cases: 1)")
    assert misspelt.endswith("did you mean 'expected_facts'?")
    assert unknown == "no scorer reads the expectation 'mood' (cases: 1)"

    def cheerful(expectations: dict) -> bool:
        return expectations.get("mood", 1) > 0

    found = evaluate(serve(untraced, str), dataset=dataset, scorers=[cheerful], log=False)
    assert found.values["cheerful"] == 1


def test_a_scorer_that_hangs_fails_and_is_not_called_for_ever(untraced: Settings) -> None:
    release, calls = threading.Event(), []

    @scorer(timeout_seconds=0.1)
    def hang(text: str) -> bool:
        calls.append(text)
        return release.wait(60)

    found = evaluate(
        serve(untraced, str), dataset=list("abcdef"), scorers=[hang, length], workers=1, log=False
    )
    release.set()
    errors = [row.score("hang").error for row in found.rows]
    assert errors[:3] == ["it took longer than 0.1 seconds"] * 3
    assert errors[3:] == ["not called: 3 times it took longer than 0.1 seconds"] * 3
    assert calls == list("abc")
    assert found.problems == ["the scorer hang failed on 6 of 6 rows"]
    assert found.values["length"] == 1


def test_a_gate_needs_a_scorer_that_can_judge_each_row(untraced: Settings) -> None:
    """Otherwise a row passes because nothing is expected of it."""
    options = {"dataset": [*echoes("a"), "b"], "log": False}
    gate = ["correctness >= 0.9"]
    with pytest.raises(DatasetError, match="no scorer can judge 1 of 2 cases, such as 'b'"):
        evaluate(never_asked(untraced), thresholds=gate, **options)

    def brief(text: str) -> bool:
        return len(text) < 5

    server = serve(untraced, str)
    judged = evaluate(server, thresholds=gate, scorers=[*DEFAULT_SCORERS, brief], **options)
    assert judged.passed
    assert evaluate(server, thresholds=[*gate, "answered >= 1"], **options).passed
    assert evaluate(server, thresholds=[], **options).title.startswith("done")
    with pytest.raises(DatasetError, match="no scorer can judge 1 of 2 cases"):
        evaluate(never_asked(untraced), scorers=[expectation("expected_response")], **options)


def test_a_table_is_a_dataset(untraced: Settings) -> None:
    import pandas

    frame = pandas.DataFrame(echoes("a", "b"))
    found = evaluate(serve(untraced, str), dataset=frame, log=False)
    assert [row.case.question for row in found.rows] == ["a", "b"]
    assert found.values["correctness"] == 1


def test_scorers_of_mlflow_need_no_trace(untraced: Settings) -> None:
    from mlflow.genai.scorers import scorer as mlflow_scorer

    @mlflow_scorer
    def answered_a(outputs) -> bool:
        return outputs["output"][-1]["content"][0]["text"] == "a"

    @mlflow_scorer
    def traced(trace) -> bool:
        return trace.info is not None

    server = serve(untraced, str)
    found = evaluate(server, dataset=["a", "b"], scorers=[answered_a, traced], log=False)
    assert [row.score("answered_a").value for row in found.rows] == [True, False]
    assert found.problems == ["the scorer traced failed on 2 of 2 rows"]


def test_the_settings_name_the_scorers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An argument has precedence; the name of a list is as good as the list."""
    (tmp_path / "tea_scorers.py").write_text(
        "def hot(text):\n    return text == 'hot'\nTEA = [hot]\n"
    )
    monkeypatch.chdir(tmp_path)
    options = {"mlflow.tracing": False, "evaluate.scorers": "tea_scorers:TEA"}
    server = serve(load_settings(tmp_path, environ={}, overrides=options), str)
    found = evaluate(server, dataset=["hot", "cold"], log=False)
    assert found.values["hot"] == 0.5
    assert list(found.scorers) == ["hot"]
    assert list(evaluate(server, dataset=["hot"], scorers=[length], log=False).scorers) == [
        "length"
    ]
    named = evaluate(server, dataset=["hot"], scorers="tea_scorers:TEA", log=False)
    assert list(named.scorers) == ["hot"]


def test_thresholds_may_use_errors_and_attempts(untraced: Settings) -> None:
    gate = ["correctness/errors <= 0", "agent_errors <= 0", "correctness/pass_all_2 >= 1"]
    options = {"dataset": echoes("a"), "repeats": 2, "thresholds": gate, "log": False}
    assert evaluate(serve(untraced, str), **options).passed


def test_the_report_escapes_answers(untraced: Settings) -> None:
    attack = "<script>alert(1)</script> | `x`"
    server = serve(untraced, lambda word: attack)
    found = evaluate(server, dataset=echoes(attack + "?"), thresholds=["answered > 1"], log=False)
    page, text = found._repr_html_(), found._repr_markdown_()
    assert "<script" not in page
    assert "&lt;script&gt;" in page
    assert "<script" not in text
    assert "\\| \\`x\\`" in text
    assert str(found) in text
    assert "fails: answered &gt; 1" in page


def test_long_reports_are_cut(untraced: Settings) -> None:
    words = [f"word {number}" for number in range(230)]
    found = evaluate(serve(untraced, lambda word: "x" * 2000), dataset=echoes(*words), log=False)
    assert "and 180 more rows that failed" in found.to_markdown()
    assert "and 30 more rows" in found._repr_html_()
    assert "x" * 601 not in found._repr_html_()


# Mistakes are reported before the agent is asked


def never_asked(settings: Settings) -> AgentServer:
    def never(word: str) -> str:
        raise AssertionError("the agent was asked")

    return serve(settings, never)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"dataset": []}, DatasetError, "no cases"),
        ({"dataset": ["a", "a"]}, DatasetError, "same inputs"),
        ({"dataset": None}, DatasetError, r"default\.jsonl; name one in settings\.ini"),
        (
            {"dataset": [{"inputs": "a", "expectations": {"expected_facts": 1}}]},
            DatasetError,
            "expected_facts must be",
        ),
        ({"scorers": []}, EvaluationError, "no scorers"),
        ({"scorers": [length, length]}, EvaluationError, "two scorers are named 'length'"),
        ({"scorers": ["correctness"]}, TypeError, "a scorer is a function"),
        ({"scorers": "json:dumps"}, EvaluationError, "'json:dumps': name a list of scorers"),
        ({"scorers": "json"}, EvaluationError, "name a list of scorers as module:variable"),
        ({"scorers": "nowhere:X"}, EvaluationError, "No module named 'nowhere': is 'nowhere:X'"),
        ({"repeats": 0}, EvaluationError, "repeats must be at least 1, not 0"),
        ({"workers": -1}, EvaluationError, "workers must be at least 1"),
        ({"thresholds": ["correct >= 0.9"]}, ThresholdError, "the scorers are correctness, "),
        ({"thresholds": ["correctness = 1"]}, ThresholdError, "should be a metric"),
        ({"thresholds": ["correctness/change > 0"]}, ThresholdError, "needs a baseline"),
        (
            {"thresholds": ["correctness/lowest > 0"]},
            ThresholdError,
            "should have low, high, .* after the /",
        ),
        ({"thresholds": ["correctness/pass_at_3 > 0"]}, ThresholdError, "needs 3 repeats, not 1"),
        ({"thresholds": ["a/pass_at_1 > 0"]}, ThresholdError, "uses an unknown number"),
        ({"dataset": {"inputs": "a"}}, DatasetError, "a JSONL file, a table or a list of rows"),
        ({"dataset": 5}, DatasetError, "a JSONL file, a table or a list of rows, not 5"),
        ({"dataset": ["a", 1]}, DatasetError, "row 2: 'inputs' must be"),
        ({"dataset": "cases.csv"}, DatasetError, "is a table.*cases_from_table"),
        ({"scorers": [lambda text: True]}, TypeError, "has no name"),
        ({"scorers": [partial(str)]}, TypeError, "has no name"),
        ({"scorers": [dict]}, TypeError, "a scorer is a function"),
        ({"baseline": "none.json"}, EvaluationError, "none.json cannot be read"),
        (
            {"scorers": [expectation("expected_facts")], "thresholds": ["expected_facts > 0"]},
            ThresholdError,
            "no case has what the scorer expected_facts reads",
        ),
        ({"thresholds": ["latency/pass_at_2 > 0"]}, ThresholdError, "latency measures"),
    ],
)
def test_invalid_arguments(
    untraced: Settings, options: dict, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        evaluate(never_asked(untraced), **{"dataset": ["a"], "log": False, **options})


def test_without_an_agent(untraced: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("agent_kit.server.default_registry", Registry())
    with pytest.raises(ServerError, match="No agent is registered"):
        evaluate(create_server(settings=untraced), dataset=["a"], log=False)


@pytest.mark.parametrize(
    "text", ["no json", "[]", "{}", '{"format": 2}', '{"format": 1, "name": "x"}']
)
def test_a_file_that_is_not_an_evaluation(tmp_path: Path, text: str) -> None:
    (tmp_path / "x.json").write_text(text)
    with pytest.raises(EvaluationError, match=r"x\.json does not contain an evaluation"):
        read_evaluation(tmp_path / "x.json")


def test_a_file_that_cannot_be_written(untraced: Settings, tmp_path: Path) -> None:
    found = evaluate(serve(untraced, str), dataset=["a"], log=False)
    with pytest.raises(EvaluationError, match="cannot be written"):
        found.save(tmp_path)


def test_a_stored_evaluation_has_no_secrets(untraced: Settings, tmp_path: Path) -> None:
    secret = "dapi" + "0123456789abcdef" * 2
    found = evaluate(serve(untraced, lambda word: f"My key is {secret}"), dataset=["a"], log=False)
    for name in ("x.json", "x.md"):
        assert secret not in found.save(tmp_path / name).read_text()


# In MLflow


def test_a_run_in_mlflow_with_traces_scores_and_expectations(project: Settings) -> None:
    from mlflow import MlflowClient

    @scorer
    def traced(trace) -> Score:
        root = trace.data.spans[0]
        return Score(root.outputs is not None, f"{len(trace.data.spans)} spans")

    def answer(word: str) -> str:
        return fail_on_b(word)

    server = serve(project, answer)
    dataset = [*echoes("a", "b"), {"inputs": {"turns": ["d", "e"]}, "tags": {"topic": "turns"}}]
    found = evaluate(
        server, dataset=dataset, scorers=[expectation("expected_response"), traced, length]
    )
    assert found.run_id, found.notes
    assert not found.problems
    assert "RuntimeError: no b" in found.rows[1].failures[0]

    client = MlflowClient(project.mlflow.tracking_uri)
    run = client.get_run(found.run_id)
    assert run.info.status == "FINISHED"
    assert run.data.tags["mlflow.runType"] == "genai_evaluate"
    assert run.data.params["digest"] == found.facts["digest"]
    assert run.data.metrics == pytest.approx(found.values)
    assert [each.dataset.digest for each in run.inputs.dataset_inputs] == [found.facts["digest"]]

    traces = client.search_traces(
        locations=[run.info.experiment_id], run_id=found.run_id, max_results=10
    )
    asked = {trace_id for row in found.rows for trace_id in row.answer.trace_ids}
    assert {trace.info.trace_id for trace in traces} == asked
    assert len(asked) == 4
    by_id = {trace.info.trace_id: trace for trace in traces}
    first, last = by_id[found.rows[0].answer.trace_ids[0]], found.rows[2].answer.trace_ids[-1]
    values = {each.name: each.value for each in first.info.assessments if each.feedback}
    assert values == {"expected_response": True, "traced": True, "length": 1}
    expected = {each.name: each.value for each in first.info.assessments if each.expectation}
    assert expected == {"expected_response": "a"}
    assert by_id[last].info.tags["topic"] == "turns"

    again = EvaluationLog(project).find_latest("rows", [found.rows[0].case])
    assert again
    assert (again.values, again.run_id) == (found.values, found.run_id)
    scorers = [length, expectation("expected_response")]
    compared = evaluate(server, dataset=dataset, scorers=scorers, baseline="latest", log=False)
    assert compared.measures[0].change
    assert compared.measures[0].change.difference == 0


def test_without_mlflow_no_evaluation_is_lost(
    project: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    port = free_port()
    settings = change(project, tracking_uri=f"http://127.0.0.1:{port}", tracing=False)

    @scorer
    def traced(trace) -> bool:
        return True

    found = evaluate(serve(settings, str), dataset=echoes("a"))
    assert found.run_id is None
    assert found.values["correctness"] == 1
    note = next(note for note in found.notes if "not in MLflow" in note)
    assert "MLflow cannot be used" in note
    file = next((project.project_dir / ".agent_kit/evaluations").glob("*.json"))
    assert file.name in note
    assert file.parent.stat().st_mode & 0o777 == 0o700
    assert read_evaluation(file).values == found.values
    shutil.rmtree(file.parent)
    file.parent.touch()
    unstored = evaluate(serve(settings, str), dataset=echoes("a"))
    assert unstored.values["correctness"] == 1
    assert "neither in MLflow" in unstored.notes[-1]
    with pytest.raises(EvaluationError, match=r"traced reads the traces .* and none are stored"):
        evaluate(never_asked(settings), dataset=["a"], scorers=[traced])


def test_a_run_without_content_and_traces(project: Settings) -> None:
    settings = change(project, trace_content="off", tracing=False)
    found = evaluate(serve(settings, lambda word: "a secret thought"), dataset=echoes("a"))
    assert "tracing is switched off" in found.notes[0]
    stored = EvaluationLog(settings).find(found.run_id or "")
    assert stored.values == found.values
    assert "secret thought" not in stored._repr_html_()
    assert "secret thought" in found._repr_html_()


def test_a_baseline_that_is_not_in_mlflow(project: Settings) -> None:
    with pytest.raises(EvaluationError, match="MLflow cannot"):
        evaluate(never_asked(change(project, tracing=False)), dataset=["a"], baseline="0123abcd")


def test_the_latest_baseline_is_the_newest_that_has_passed(project: Settings) -> None:
    from mlflow import MlflowClient

    settings = change(project, tracing=False)
    gate = ["correctness >= 0.9", "correctness/change >= 0"]

    def run(answer: Callable[[str], str], *words: str) -> Evaluation:
        options = {"thresholds": gate, "baseline": "latest"}
        return evaluate(serve(settings, answer), dataset=echoes(*words), **options)

    first = run(str, "a", "b")
    assert first.passed
    assert first.baseline is None
    assert first.notes[0] == "no evaluation of rows has passed yet, so nothing is compared"
    assert first.notes[1].startswith("not checked, for want of a baseline: correctness/change")

    failed = run(lambda word: "x", "a", "b")
    assert not failed.passed
    assert failed.baseline
    assert failed.baseline.run_id == first.run_id
    assert run(str, "c").baseline is None, "the cases are others"
    client = MlflowClient(project.mlflow.tracking_uri)
    experiment_id = client.get_run(first.run_id or "").info.experiment_id
    for tags in ({}, {"agent_kit.passed": "true"}):  # one of plain MLflow, one without a file
        tags = {"mlflow.runType": "genai_evaluate", **tags}
        other = client.create_run(experiment_id, tags=tags)
        client.log_param(other.info.run_id, "dataset", "rows")
        client.set_terminated(other.info.run_id)
    again = run(str, "a", "b")
    assert again.passed
    assert again.baseline
    assert again.baseline.run_id == first.run_id
    assert len(again.verdicts) == 2


KILLED_WHILE_STORING = """
import time
from agent_kit.evaluate import evaluate
from agent_kit.evaluate.mlflow_log import EvaluationLog
from agent_kit.server import create_server

def fill(self, client, run_id, evaluation):
    print(run_id, flush=True)
    time.sleep(600)

EvaluationLog._fill = fill
server = create_server()
server.invoke()(lambda request: "a")
evaluate(server, dataset=["a"], thresholds=[])
"""


def test_a_run_that_was_cut_is_closed_by_the_next_one(project: Settings) -> None:
    from mlflow import MlflowClient

    client = MlflowClient(project.mlflow.tracking_uri)
    settings = change(project, tracing=False)
    command = [sys.executable, "-c", KILLED_WHILE_STORING]
    environment = os.environ | {"AGENT_KIT_MLFLOW_TRACING": "false"}
    with subprocess.Popen(
        command, cwd=project.project_dir, env=environment, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout
        cut = process.stdout.readline().strip()
        process.kill()
    experiment_id = client.get_run(cut).info.experiment_id
    now = int(time.time() * 1000)

    def start(age_ms: int, **tags: str) -> str:
        return client.create_run(experiment_id, now - age_ms, tags).info.run_id

    ours = {"agent_kit.passed": "true", "agent_kit.place": "elsewhere"}
    foreign, elsewhere, old = start(7_200_000), start(0, **ours), start(7_200_000, **ours)
    assert client.get_run(cut).info.status == "RUNNING"
    evaluate(serve(settings, str), dataset=["a"])
    status = {each: client.get_run(each).info.status for each in (cut, foreign, elsewhere, old)}
    assert list(status.values()) == ["FAILED", "RUNNING", "RUNNING", "FAILED"]


def test_without_a_log_no_trace_is_stored(project: Settings) -> None:
    """The reason of a failure is known all the same."""
    found = evaluate(serve(project, fail_on_b), dataset=echoes("a", "b"), log=False)
    assert "RuntimeError: no b" in found.rows[1].failures[0]
    assert [row.answer.trace_ids for row in found.rows] == [(), ()]
    assert not project.mlflow.spool_dir.exists()
    assert tracing_status()["spooled"] == 0


# The command


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project with an agent of its own, as a user of the kit has it."""
    (tmp_path / "settings.ini").write_text(
        "[server]\napp = my_agent:app\n[mlflow]\ntracing = false\n"
        "[evaluate]\ndataset = cases.jsonl\nthresholds = correctness >= 0.9\n"
    )
    (tmp_path / "my_agent.py").write_text(
        "from agent_kit.server import create_server\n"
        "server = create_server()\n"
        "app = server.app\n"
        "@server.invoke()\n"
        "def answer(request):\n"
        "    return request.input[-1]['content'].upper()\n"
    )
    cases = [{"inputs": word, "expectations": {"expected_response": "A"}} for word in "ab"]
    (tmp_path / "cases.jsonl").write_text("\n".join(map(json.dumps, cases)))
    (tmp_path / "my_scorers.py").write_text(
        "def short(text, expectations):\n    return len(text) < 5\n"
        "def faulty(text, case):\n    return text['x']\n"
        "GOOD = [short]\nBAD = (faulty,)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    yield tmp_path
    for name in ("my_agent", "my_scorers"):
        sys.modules.pop(name, None)


def test_the_exit_codes_of_the_command(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    quiet = ["--no-mlflow"]
    assert agent_evaluate([*quiet, "--output", "a.json", "--output", "a.md"]) == 1
    output = capsys.readouterr()
    assert "fails: correctness >= 0.9 (it is 0.5)" in output.out
    assert "answered 'B'" in output.out
    assert not output.err
    assert (folder / "a.md").read_text().strip() == output.out.strip()

    gate = ["-t", "correctness >= 0.5", "-t", "correctness/change >= 0"]
    assert agent_evaluate([*quiet, *gate, "--baseline", "a.json", "--repeats", "2"]) == 0
    assert "since the baseline" in capsys.readouterr().out

    good = ["--scorers", "my_scorers:GOOD", "-t", "short >= 1", "--name", "short ones"]
    assert agent_evaluate([*quiet, *good]) == 0
    assert "short ones" in capsys.readouterr().out
    bad = ["--scorers", "my_scorers:BAD", "-t", "faulty >= 0"]
    assert agent_evaluate([*quiet, *bad]) == 2
    assert "the evaluation is invalid: the scorer faulty failed on 2" in capsys.readouterr().err


def test_the_first_baseline_is_a_note(project: Settings, folder: Path, capfd) -> None:
    arguments = ["-t", "correctness >= 0.5", "-t", "correctness/change >= 0"]
    assert agent_evaluate([*arguments, "--baseline", "latest"]) == 0
    assert "no evaluation of cases.jsonl has passed yet" in capfd.readouterr().err
    assert agent_evaluate([*arguments, "--baseline", "latest"]) == 0
    assert "holds: correctness/change >= 0 (it is 0)" in capfd.readouterr().out


@pytest.mark.parametrize("module", ["my_agent", "my_scorers"])
def test_code_that_ends_the_program_gives_no_verdict(
    folder: Path, capsys: pytest.CaptureFixture[str], module: str
) -> None:
    (folder / f"{module}.py").write_text("import sys\nsys.exit(0)\n")
    assert agent_evaluate(["--no-mlflow", "--scorers", "my_scorers:GOOD"]) == 2
    assert "the agent or a scorer has ended the program: SystemExit(0)" in capsys.readouterr().err


def test_an_agent_that_ends_the_event_loop_gives_no_verdict(folder: Path) -> None:
    (folder / "my_agent.py").write_text(
        "import asyncio, sys\n"
        "from agent_kit.server import create_server\n"
        "server = create_server()\n"
        "app = server.app\n"
        "@server.invoke()\n"
        "async def answer(request):\n"
        "    asyncio.get_running_loop().call_soon(sys.exit)\n"
        "    await asyncio.sleep(600)\n"
    )
    command = [Path(sys.executable).with_name("agent-evaluate"), "--no-mlflow"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100)
    assert done.returncode == 2
    assert "error: the agent has ended its event loop: SystemExit()" in done.stderr


def test_an_agent_that_hangs_does_not_hold_the_process(folder: Path) -> None:
    (folder / "my_agent.py").write_text(
        "import time\n"
        "from agent_kit.server import create_server\n"
        "server = create_server()\n"
        "app = server.app\n"
        "@server.invoke()\n"
        "def answer(request):\n"
        "    time.sleep(600)\n"
    )
    command = [Path(sys.executable).with_name("agent-evaluate"), "--no-mlflow"]
    environment = os.environ | {"AGENT_KIT_AGENT_TIMEOUT_SECONDS": "0.5"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=100)
    assert done.returncode == 2, done.stderr
    assert "no answer within 0.5 seconds" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--dataset", "missing.jsonl"], "there is no dataset missing.jsonl"),
        (["--threshold", "correct >= 1"], "uses an unknown number"),
        (["--scorers", "my_scorers:short"], "name a list of scorers as module:variable"),
        (["--scorers", "no_such_module:GOOD"], "No module named 'no_such_module'"),
        (["--baseline", "missing.json"], "missing.json cannot be read"),
        (["--workers", "0"], "workers must be at least 1"),
    ],
)
def test_an_error_of_the_command_is_one_line(
    folder: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    assert agent_evaluate(["--no-mlflow", *arguments]) == 2
    output = capsys.readouterr()
    assert message in output.err
    assert output.err.count("\n") == 1
    assert not output.out
    with pytest.raises((ValueError, RuntimeError, ModuleNotFoundError)):
        agent_evaluate(["--no-mlflow", "--debug", *arguments])


def test_an_offline_agent_passes_an_evaluation(project: Settings) -> None:
    """The command as a process, in a new project: dataset, gate, traces and run."""
    folder = project.project_dir
    shutil.copy(PROJECT / "tests/support/offline_cases.jsonl", folder / "cases.jsonl")
    (folder / "my_agent.py").write_text(APP)
    (folder / "settings.ini").write_text(
        "[server]\napp = my_agent:app\n"
        "[evaluate]\ndataset = cases.jsonl\nthresholds = correctness >= 0.9\n"
    )
    command = [Path(sys.executable).with_name("agent-evaluate"), "--output", "out.json"]
    environment = os.environ | {"PYTHONPATH": str(PROJECT / "tests")}
    done = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, timeout=240
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "holds: correctness >= 0.9 (it is 1)" in done.stdout
    found = json.loads((folder / "out.json").read_text())
    assert len(found["rows"]) >= 25
    assert len({row["case"]["tags"]["topic"] for row in found["rows"]}) >= 8
    assert all(row["trace_ids"] for row in found["rows"])
    cases = load_cases(folder / "cases.jsonl")
    latest = EvaluationLog(project).find_latest("cases.jsonl", cases)
    assert latest
    assert latest.run_id == found["run_id"]
