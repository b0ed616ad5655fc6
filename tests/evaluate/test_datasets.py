"""Datasets: files preserve cases exactly, mistakes are named by line, appending is safe."""

import json
import multiprocessing
import resource
from collections.abc import Iterator
from itertools import count
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from agent_kit.evaluate.cases import Case, DatasetError, cases_digest, make_case
from agent_kit.evaluate.datasets import (
    append_case,
    case_from_conversation,
    cases_from_table,
    cases_from_traces,
    load_cases,
    save_cases,
)

TEXT = st.text(st.characters(exclude_categories=["Cs"]))
JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=8,
)
CASES = st.builds(
    Case,
    inputs=TEXT
    | st.dictionaries(
        TEXT.filter(lambda key: key not in ("input", "messages", "turns")), JSON, min_size=1
    ),
    expectations=st.dictionaries(TEXT, JSON, max_size=3),
    tags=st.dictionaries(TEXT, TEXT, max_size=2),
)


def case(question: str = "What is 2+2?", answer: str = "4") -> Case:
    return Case(question, {"expected_facts": [answer]}, {"topic": "sums"})


@given(cases=st.lists(CASES, min_size=1, max_size=4, unique_by=lambda each: each.id))
@settings(
    max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None
)
def test_a_file_returns_exactly_what_was_saved(tmp_path: Path, cases: list[Case]) -> None:
    path = tmp_path / "cases.jsonl"
    save_cases(cases, path)
    assert load_cases(path) == cases
    assert [make_case(each.row()) for each in cases] == cases
    assert path.read_bytes().count(b"\n") == len(cases)


def test_line_separators_inside_a_text_do_not_end_a_row(tmp_path: Path) -> None:
    path = tmp_path / "cases.jsonl"
    odd = Case("one\u2028two\x85three\x0bfour\r\nfive")
    save_cases([odd], path)
    assert load_cases(path) == [odd]


def test_abbreviations_are_the_same_case() -> None:
    message = {"role": "user", "content": "Hi"}
    assert Case("Hi") == Case([message]) == Case({"input": "Hi"}) == Case({"input": [message]})
    assert Case("Hi").id != Case("Ho").id
    assert Case({"a": 1, "b": 2}).id == Case({"b": 2, "a": 1}).id
    assert Case("Hi", {"expected_facts": ["x"]}).id == Case("Hi").id


def test_a_case_does_not_change_with_its_arguments() -> None:
    message = {"role": "user", "content": "Hi"}
    made = Case([message])
    message["content"] = "Ho"
    assert made == Case("Hi")


@pytest.mark.parametrize(
    ("inputs", "question"),
    [
        ("Hi", "Hi"),
        ([{"role": "user", "content": "a"}, {"role": "user", "content": "b"}], "b"),
        (
            {
                "messages": [
                    {
                        "role": "user",
                        "content": [{"type": "text", "text": "see"}, {"type": "image_url"}],
                    }
                ]
            },
            "see",
        ),
        ({"turns": ["first", "last"]}, "last"),
        ({"query": "own", "k": 3}, '{"query": "own", "k": 3}'),
    ],
)
def test_the_question_is_the_users_last_message(inputs: object, question: str) -> None:
    assert make_case({"inputs": inputs}).question == question


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"inputs": "Hi", "expectation": {}}, "unknown field 'expectation'"),
        ({"expectations": {}}, "'inputs' is missing"),
        ({"inputs": {}}, "'inputs' must be"),
        ({"inputs": 3}, "'inputs' must be"),
        ({"inputs": []}, "at least one entry"),
        ({"inputs": {"turns": "Hi"}}, "'inputs.turns' must be a list"),
        ({"inputs": ["Hi"]}, "not a message: 'Hi'"),
        ({"inputs": "Hi", "expectations": ["x"]}, "'expectations' must be an object"),
        ({"inputs": "Hi", "tags": {"n": 1}}, '"tags" must be strings'),
        ({"inputs": {"x": float("nan")}}, "cannot be written as JSON"),
        ({"inputs": {"x": object()}}, "cannot be written as JSON"),
        ({"inputs": "\ud800"}, "surrogate"),
    ],
)
def test_an_invalid_row_is_explained(row: dict, message: str) -> None:
    with pytest.raises(DatasetError, match=message):
        make_case(row)


def test_every_invalid_line_is_named(tmp_path: Path) -> None:
    path = tmp_path / "invalid.jsonl"
    lines = [
        '{"inputs": "Hi"}',
        "",
        "{",
        "[1]",
        '{"inputs": NaN}',
        '{"inputs": 1, "inputs": 2}',
        '{"inputs": "Hi"}',
    ]
    path.write_text("\n".join(lines))
    with pytest.raises(DatasetError) as raised:
        load_cases(path)
    problems = str(raised.value).splitlines()
    assert [line.removeprefix(f"{path}:").split(":")[0] for line in problems] == [
        "3",
        "4",
        "5",
        "6",
        "7",
    ]
    assert "the same inputs as line 1" in problems[-1]


def test_the_list_of_invalid_lines_is_short(tmp_path: Path) -> None:
    path = tmp_path / "invalid.jsonl"
    path.write_text("x\n" * 500)
    with pytest.raises(DatasetError, match="and 490 more lines") as raised:
        load_cases(path)
    assert len(str(raised.value).splitlines()) == 11


@pytest.mark.parametrize("text", ["[" * 100_000, "1" * 5000, '"\\ud800"', "\x00"])
def test_hostile_json_is_a_dataset_error(tmp_path: Path, text: str) -> None:
    path = tmp_path / "hostile.jsonl"
    path.write_text(f'{{"inputs": {text}}}')
    with pytest.raises(DatasetError, match=r"hostile\.jsonl:1: "):
        load_cases(path)


def test_files_that_are_not_datasets(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match=r"settings\.ini"):
        load_cases(tmp_path / "missing.jsonl")
    with pytest.raises(DatasetError, match="cannot be read"):
        load_cases(tmp_path)
    empty = tmp_path / "empty.jsonl"
    empty.write_text("\n")
    with pytest.raises(DatasetError, match="has no cases"):
        load_cases(empty)
    empty.write_bytes(b"\xff\xfe")
    with pytest.raises(DatasetError, match="not UTF-8"):
        load_cases(empty)


def test_windows_files_are_read(tmp_path: Path) -> None:
    path = tmp_path / "cases.jsonl"
    path.write_bytes(b'\xef\xbb\xbf{"inputs": "Hi"}\r\n{"inputs": "Ho"}\r\n')
    assert load_cases(path) == [Case("Hi"), Case("Ho")]
    assert append_case(path, "He")
    assert len(load_cases(path)) == 3


def test_saving_the_same_inputs_twice_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "cases.jsonl"
    save_cases([case()], path)
    with pytest.raises(DatasetError, match="the same inputs"):
        save_cases([case(), case(answer="5")], path)
    assert load_cases(path) == [case()]
    assert list(tmp_path.iterdir()) == [path]


def test_appending(tmp_path: Path) -> None:
    path = tmp_path / "new" / "cases.jsonl"
    assert append_case(path, case())
    assert not append_case(path, case())
    with pytest.raises(DatasetError, match="other expectations"):
        append_case(path, case(answer="5"))
    path.write_text(path.read_text().rstrip("\n"))
    assert append_case(path, "Hi")
    assert load_cases(path) == [case(), Case("Hi")]


def test_appending_to_an_invalid_file_does_not_change_it(tmp_path: Path) -> None:
    path = tmp_path / "cases.jsonl"
    path.write_text("{\n")
    with pytest.raises(DatasetError, match=":1: "):
        append_case(path, "Hi")
    assert path.read_text() == "{\n"
    with pytest.raises(DatasetError, match="cannot be written"):
        append_case(tmp_path, "Hi")


def _append_many(path: Path, writer: int) -> None:
    for number in range(10):
        append_case(path, f"{writer} asks {number}")
        append_case(path, f"all ask {number}")


def test_concurrent_writers_lose_and_repeat_no_case(tmp_path: Path) -> None:
    path = tmp_path / "cases.jsonl"
    spawn = multiprocessing.get_context("spawn")
    writers = [spawn.Process(target=_append_many, args=(path, writer)) for writer in range(3)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
        assert writer.exitcode == 0
    assert len(load_cases(path)) == 40


def _append_beyond_the_limit(path: Path) -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (path.stat().st_size + 10, resource.RLIM_INFINITY))
    with pytest.raises(DatasetError, match="cannot be written"):
        append_case(path, "This line finds no room any more.")


def test_a_write_that_fails_halfway_is_undone(tmp_path: Path) -> None:
    path = tmp_path / "cases.jsonl"
    save_cases([case()], path)
    before = path.read_bytes()
    writer = multiprocessing.get_context("spawn").Process(
        target=_append_beyond_the_limit, args=(path,)
    )
    writer.start()
    writer.join()
    assert writer.exitcode == 0
    assert path.read_bytes() == before


CONVERSATION = [
    {"role": "user", "content": "What is 17*23?"},
    {"type": "reasoning", "id": "rs_1", "summary": []},
    {
        "type": "function_call",
        "id": "fc_1",
        "call_id": "call_1",
        "name": "python_exec",
        "arguments": "{}",
        "status": "completed",
    },
    {"type": "function_call_output", "id": "fo_1", "call_id": "call_1", "output": "391"},
    {
        "type": "message",
        "id": "msg_1",
        "role": "assistant",
        "status": "completed",
        "content": [{"type": "output_text", "text": "391", "annotations": []}],
    },
    {"role": "user", "content": [{"type": "input_text", "text": "And plus 1?"}]},
    {
        "type": "message",
        "id": "msg_2",
        "role": "assistant",
        "content": [{"type": "output_text", "text": "393"}],
    },
]


HOSTED = {**CONVERSATION[2], "type": "mcp_call", "server_label": "agent_kit", "output": "391"}


@pytest.mark.parametrize("call", [CONVERSATION[2:4], [HOSTED]], ids=["pair", "one item"])
def test_a_conversation_becomes_a_case_that_ends_with_the_last_question(call) -> None:
    items = [*CONVERSATION[:2], *call, *CONVERSATION[4:]]
    made = case_from_conversation(items, {"expected_facts": ["392"]}, {"from": "chat"})
    assert made.inputs["input"] == [
        {"role": "user", "content": "What is 17*23?"},
        {"type": "function_call", "call_id": "call_1", "name": "python_exec", "arguments": "{}"},
        {"type": "function_call_output", "call_id": "call_1", "output": "391"},
        {"role": "assistant", "content": "391"},
        {"role": "user", "content": [{"type": "input_text", "text": "And plus 1?"}]},
    ]
    assert made.question == "And plus 1?"
    assert made.tags == {"from": "chat"}


def test_a_played_conversation_consists_of_the_users_messages() -> None:
    made = case_from_conversation(CONVERSATION, played=True)
    assert made.inputs == {
        "turns": ["What is 17*23?", [{"type": "input_text", "text": "And plus 1?"}]]
    }


def test_a_chat_keeps_its_tool_calls() -> None:
    call = {"id": "call_1", "type": "function", "function": {"name": "add", "arguments": "{}"}}
    chat = [
        {"role": "user", "content": "1+1?"},
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "call_1", "content": "2"},
        {"role": "assistant", "content": "2"},
        {"role": "user", "content": "And plus 1?"},
    ]
    assert case_from_conversation(chat).inputs == {"messages": chat}


def test_a_conversation_without_a_user_message() -> None:
    with pytest.raises(DatasetError, match="no user message"):
        case_from_conversation([{"role": "assistant", "content": "Hello?"}])


def test_a_table_of_pandas() -> None:
    import numpy
    import pandas

    frame = pandas.DataFrame(
        {
            "inputs": [{"input": "Hi"}, '[{"role": "user", "content": "Ho"}]', "{not JSON"],
            "expectations": [
                {"expected_facts": numpy.array(["x"]), "expected_number": None},
                '{"expected_number": 4}',
                numpy.nan,
            ],
            "tags": [None, {"topic": "sums"}, numpy.nan],
            "created_by": ["a", "b", "c"],
        }
    )
    assert cases_from_table(frame) == [
        Case("Hi", {"expected_facts": ["x"]}),
        Case("Ho", {"expected_number": 4}, {"topic": "sums"}),
        Case("{not JSON"),
    ]


def test_a_table_with_other_columns() -> None:
    import pandas

    frame = pandas.DataFrame({"question": ["Hi", "Ho"], "answer": [4, 5], "note": ["", "x"]})
    cases = cases_from_table(frame, inputs="question", expectations={"expected_number": "answer"})
    assert [each.expectations for each in cases] == [{"expected_number": 4}, {"expected_number": 5}]
    assert json.loads(json.dumps([each.row() for each in cases])) == [each.row() for each in cases]
    with pytest.raises(DatasetError, match="row 1: 'inputs' must be"):
        cases_from_table(frame)
    with pytest.raises(DatasetError, match="row 1: expected an object"):
        cases_from_table(frame.rename(columns={"question": "inputs", "answer": "expectations"}))


class SparkRow(tuple):
    """What Spark's `toPandas` leaves in a cell of a struct column."""

    def asDict(self) -> dict:
        return dict(self)


def test_a_table_of_spark() -> None:
    import pandas

    class SparkTable:
        def toPandas(self) -> pandas.DataFrame:
            row = SparkRow([("input", [SparkRow([("role", "user"), ("content", "Hi")])])])
            return pandas.DataFrame({"inputs": [row]})

    assert cases_from_table(SparkTable()) == [Case("Hi")]


def test_the_digest_identifies_the_content() -> None:
    one, two = case(), case("Hi")
    assert cases_digest([one, two]) == cases_digest([two, one])
    assert cases_digest([one]) != cases_digest([case(answer="5")])


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A new MLflow store on disk."""
    import mlflow

    monkeypatch.setattr("mlflow.tracking.fluent._active_experiment_id", None)
    mlflow.set_tracking_uri(f"sqlite:///{tmp_path}/mlflow.db")
    mlflow.set_experiment("questions")
    yield
    mlflow.flush_trace_async_logging(terminate=True)
    mlflow.set_tracking_uri("")


@pytest.mark.usefixtures("store")
def test_traces_become_cases() -> None:
    import mlflow

    seconds = count(1_700_000_000)

    def ask(inputs: object) -> str:
        started = next(seconds) * 10**9
        span = mlflow.start_span_no_context("request", inputs=inputs, start_time_ns=started)
        span.end(end_time_ns=started + 1)
        return span.trace_id

    ask({"input": "What is 2+2?", "stream": True})
    ask({"input": "Hi"})
    newest = ask({"input": "What is 2+2?"})
    mlflow.flush_trace_async_logging()
    mlflow.log_expectation(trace_id=newest, name="expected_facts", value=["four"])
    mlflow.log_expectation(trace_id=newest, name="expected_facts", value=["4"])
    cases = cases_from_traces()
    assert [each.question for each in cases] == ["What is 2+2?", "Hi"]
    assert cases[0].expectations == {"expected_facts": ["4"]}
    assert cases[0].tags == {"source_trace": newest}
    empty = ask(None)
    mlflow.flush_trace_async_logging()
    with pytest.raises(DatasetError, match=f"{empty} has no inputs"):
        cases_from_traces()
