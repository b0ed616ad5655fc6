"""Scorers: functions by the names of their parameters, and errors of the agent and of scorers."""

import asyncio
import threading

import pytest

from agent_kit.evaluate.cases import Case
from agent_kit.evaluate.checks import Answer
from agent_kit.evaluate.scorers import (
    DEFAULT_SCORERS,
    Score,
    Scorer,
    answered,
    as_scorer,
    correctness,
    expectation,
    latency,
    score_answer,
    scorer,
    tokens,
    tool_calls,
)

CASE = Case("What is 17*23?", {"expected_facts": ["391"], "max_seconds": 1}, {"topic": "sums"})
ANSWER = Answer(
    (
        {
            "output_text": 1,
            "output": [{"role": "assistant", "content": "391"}],
            "usage": {"total_tokens": 7},
        },
    ),
    0.5,
)


def test_a_function_gets_the_arguments_it_names() -> None:
    seen = {}

    @scorer
    def nosy(
        inputs,
        outputs,
        expectations,
        trace,
        text,
        tool_calls,
        tokens,
        seconds,
        case,
        answer,
        bonus=1,
    ):
        seen.update(locals())
        return True

    assert score_answer(nosy, CASE, ANSWER, trace="the trace") == Score(True, name="nosy")
    assert seen["inputs"] == CASE.inputs
    assert seen["outputs"] == ANSWER.outputs
    assert seen["expectations"] == CASE.expectations
    assert (seen["trace"], seen["text"], seen["tokens"], seen["seconds"]) == (
        "the trace",
        "391",
        7,
        0.5,
    )
    assert (seen["case"], seen["answer"], seen["bonus"]) == (CASE, ANSWER, 1)


def test_an_unknown_parameter_is_named_when_the_scorer_is_created() -> None:
    with pytest.raises(TypeError, match="scorer strange asks for 'context'"):

        @scorer
        def strange(context: str) -> bool:
            return bool(context)


def test_the_decorator_has_a_name_and_expectations() -> None:
    @scorer(name="polite", reads=["manners"], measures=True)
    async def is_polite(text: str) -> float:
        await asyncio.sleep(0)
        return 0.5

    assert (is_polite.name, is_polite.reads, is_polite.measures) == ("polite", {"manners"}, True)
    assert score_answer(is_polite, CASE, ANSWER).value is None
    assert score_answer(is_polite, Case("Hi", {"manners": "good"}), ANSWER) == Score(
        0.5, name="polite"
    )


def test_the_values_a_scorer_may_return() -> None:
    import numpy

    def returned(value: object) -> Score:
        return score_answer(Scorer("x", lambda: value), CASE, ANSWER)

    assert returned(1).value == 1.0
    assert returned(numpy.bool_(False)).value is False
    assert returned(numpy.float32(0.5)).value == 0.5
    assert returned("Yes").value is True
    assert returned(None) == Score(None, name="x")
    assert returned(Score(False, "because", name="other")) == Score(False, "because", "x")
    for invalid in (float("nan"), float("inf"), "good", [True], {}, Score("good")):  # type: ignore[arg-type]
        assert "returned" in (returned(invalid).error or "")


def test_a_scorer_that_raises_results_in_an_error() -> None:
    score = score_answer(Scorer("x", lambda text: text.index("nowhere")), CASE, ANSWER)
    assert score.value is None
    assert score.error == "ValueError: substring not found"


@pytest.mark.parametrize("error", [SystemExit(0), KeyboardInterrupt(), asyncio.CancelledError()])
def test_a_scorer_that_ends_the_program_or_its_task_has_failed(error: BaseException) -> None:
    def leave() -> bool:
        raise error

    async def leave_later() -> bool:
        raise error

    for function in (leave, leave_later):
        score = score_answer(Scorer("x", function), CASE, ANSWER)
        assert score.value is None
        assert (score.error or "").startswith(type(error).__name__)


def test_a_scorer_that_does_not_return_has_failed() -> None:
    release = threading.Event()
    score = score_answer(Scorer("x", lambda: release.wait(60), timeout_seconds=0.1), CASE, ANSWER)
    threads = [each for each in threading.enumerate() if each.name == "scorer x"]
    release.set()
    assert score == Score(None, name="x", error="it took longer than 0.1 seconds")
    assert [each.daemon for each in threads] == [True], "it would hold the end of the process"


def test_a_missing_answer_is_a_failed_assessment_and_not_measured() -> None:
    failed = Answer(error="the model timed out", seconds=0.1)
    scores = {each.name: score_answer(each, CASE, failed) for each in DEFAULT_SCORERS}
    assert [name for name, score in scores.items() if score.value is False] == [
        "correctness",
        "answered",
    ]
    assert [name for name, score in scores.items() if score.value is None] == [
        "latency",
        "tokens",
        "tool_calls",
    ]
    assert all("the model timed out" in score.reason for score in scores.values())


def test_correctness_lists_every_expectation_that_is_not_met() -> None:
    assert score_answer(correctness, CASE, ANSWER) == Score(True, name="correctness")
    slow = score_answer(correctness, CASE, Answer(("392",), seconds=2))
    assert slow.value is False
    assert slow.reason == "expected_facts: lacks '391': '392'; max_seconds: used 2 seconds"


def test_correctness_does_not_apply_without_an_expectation() -> None:
    assert (
        score_answer(correctness, Case("Hi", {"guidelines": ["be polite"]}), ANSWER).value is None
    )


def test_correctness_with_an_expectation_it_cannot_read_is_an_error() -> None:
    score = score_answer(correctness, Case("Hi", {"expected_number": "4"}), ANSWER)
    assert "must be a number" in (score.error or "")


def test_one_expectation_alone() -> None:
    facts = expectation("expected_facts")
    assert score_answer(facts, CASE, Answer(("391",), seconds=9)).value is True
    assert score_answer(facts, CASE, Answer(("392",))).reason == "lacks '391': '392'"
    assert score_answer(facts, Case("Hi"), ANSWER).value is None
    with pytest.raises(KeyError):
        expectation("expected_fact")


def test_measurements() -> None:
    values = [
        score_answer(each, CASE, ANSWER).value for each in (answered, latency, tokens, tool_calls)
    ]
    assert values == [True, 0.5, 7, 0]
    assert score_answer(tokens, CASE, Answer(("uncounted",))).value is None


def test_plain_functions_are_scorers() -> None:
    def brief(text: str) -> bool:
        return len(text) < 5

    assert score_answer(as_scorer(brief), CASE, ANSWER) == Score(True, name="brief")
    assert as_scorer(latency) is latency
    with pytest.raises(TypeError, match="a scorer is a function"):
        as_scorer("correctness")


def test_scorers_of_mlflow_are_accepted_unchanged() -> None:
    from mlflow.entities import AssessmentError, Feedback
    from mlflow.genai.scorers import scorer as mlflow_scorer

    @mlflow_scorer
    def mentions(inputs, outputs, expectations) -> Feedback:
        found = expectations["expected_facts"][0] in str(outputs)
        return Feedback(value=found, rationale="looked")

    @mlflow_scorer
    def failing(outputs) -> Feedback:
        return Feedback(error=AssessmentError(error_code="NO_JUDGE", error_message="no model"))

    @mlflow_scorer
    def several(outputs) -> list[Feedback]:
        return [Feedback(name="a", value=1), Feedback(name="b", value=2)]

    assert score_answer(as_scorer(mentions), CASE, ANSWER) == Score(True, "looked", "mentions")
    assert score_answer(as_scorer(failing), CASE, ANSWER).error == "ValueError: no model"
    assert "returned" in (score_answer(as_scorer(several), CASE, ANSWER).error or "")


def test_a_scorer_of_whole_sessions_is_refused() -> None:
    class Session:
        name = "satisfied"
        is_session_level_scorer = True

        def run(self, **anything: object) -> bool:
            return True

    with pytest.raises(TypeError, match="satisfied assesses sessions"):
        as_scorer(Session())
