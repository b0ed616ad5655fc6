"""Feedback over HTTP: an assessment on the trace of a response, only from the user who owns it."""

import re
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import httpx2
import pytest

from agent_kit.server import create_server, feedback
from agent_kit.settings import Settings, load_settings
from agent_kit.tracing import close_tracing

pytest_plugins = ["support.tracing_fixtures"]
ADA = {"x-forwarded-email": "ada@example.com"}
EVE = {"x-forwarded-email": "eve@example.com"}
UNKNOWN = "tr-" + "0" * 32


@pytest.fixture
def traced(project) -> Iterator[str]:
    environ = {"AGENT_KIT_SERVER_TRUST_FORWARDED": "always"}
    server = create_server(settings=load_settings(project.project_dir, environ=environ))
    server.invoke()(lambda request: "391")
    with server.serve() as url:
        yield url
        assert close_tracing(60)


def ask(url: str, headers: dict[str, str]) -> str:
    """Ask a question; return the id of its trace."""
    answer = httpx2.post(f"{url}/v1/responses", json={"input": "What?"}, headers=headers)
    return answer.headers["x-mlflow-trace-id"]


def send_feedback(url: str, headers: dict[str, str], **body: object) -> httpx2.Response:
    return httpx2.post(f"{url}/agent/feedback", json=body, headers=headers, timeout=60)


def assessments(settings: Settings, trace_id: str) -> list[tuple]:
    from mlflow.tracing.client import TracingClient

    info = TracingClient(settings.mlflow.tracking_uri).get_trace_info(trace_id)
    return [(each.value, each.rationale, each.source.source_id) for each in info.assessments]


def test_feedback_becomes_an_assessment_of_its_user(traced, project, monkeypatch):
    trace_id = ask(traced, ADA)
    stored = send_feedback(traced, ADA, trace_id=trace_id, value=True)
    assert stored.status_code == 200
    assert stored.json()["trace_id"] == trace_id
    assert assessments(project, trace_id) == [(True, None, ADA["x-forwarded-email"])]

    changed = send_feedback(traced, ADA, trace_id=trace_id, value=False, comment="It is 390.")
    assert changed.json() == stored.json()
    assert assessments(project, trace_id) == [(False, "It is 390.", ADA["x-forwarded-email"])]

    # A trace that is not in the memory of this worker is looked up in MLflow.
    monkeypatch.setattr("agent_kit.tracing.recorder.recent_traces._records", {})
    for stranger in (EVE, ADA | EVE, {}):
        refused = send_feedback(traced, stranger, trace_id=trace_id, value=True)
        assert refused.status_code == 404
        assert refused.json()["error"]["code"] == "trace_not_found"
    assert send_feedback(traced, ADA, trace_id=trace_id, value=0.5).status_code == 200
    unknown = send_feedback(traced, ADA, trace_id=UNKNOWN, value=True)
    assert unknown.status_code == 404
    assert [value for value, *_ in assessments(project, trace_id)] == [0.5]


def test_a_stored_response_names_its_trace(traced, project):
    body = {"input": "What?"}
    answer = httpx2.post(f"{traced}/v1/responses", json=body, headers=ADA).json()
    refused = send_feedback(traced, EVE, response_id=answer["id"], value=True)
    assert refused.status_code == 404
    stored = send_feedback(traced, ADA, response_id=answer["id"], value=True)
    assert stored.json()["trace_id"] == answer["trace_id"]
    assert len(assessments(project, stored.json()["trace_id"])) == 1
    nowhere = send_feedback(traced, ADA, response_id="resp_0", value=True)
    assert nowhere.status_code == 404


@pytest.mark.parametrize(
    ("owner", "stranger"),
    [
        (ADA, EVE),
        (ADA, {}),
        ({}, ADA),
        ({"x-forwarded-access-token": "of Ada"}, {"x-forwarded-access-token": "of Eve"}),
        ({"x-forwarded-access-token": "of Ada"}, {}),
    ],
    ids=str,
)
def test_the_trace_of_another_user_does_not_exist(traced, owner, stranger):
    trace_id = ask(traced, owner)
    refused = send_feedback(traced, stranger, trace_id=trace_id, value=True)
    assert refused.status_code == 404
    assert refused.json()["error"]["param"] == "trace_id"
    assert send_feedback(traced, owner, trace_id=trace_id, value=True).status_code == 200


def test_a_name_in_the_body_is_not_an_owner(traced):
    body = {"input": "What?", "user": "eve@example.com"}
    answer = httpx2.post(f"{traced}/v1/responses", json=body)
    trace_id = answer.headers["x-mlflow-trace-id"]
    assert send_feedback(traced, EVE, trace_id=trace_id, value=True).status_code == 404
    assert send_feedback(traced, {}, trace_id=trace_id, value=True).status_code == 200


@pytest.fixture(scope="module")
def untraced() -> Iterator[str]:
    server = create_server(settings=load_settings(environ={"AGENT_KIT_MLFLOW_TRACING": "false"}))
    server.invoke()(lambda request: "391")
    with server.serve() as url:
        yield url


BAD = [
    ({"value": True}, "trace_id"),
    ({"trace_id": "", "value": True}, "trace_id"),
    ({"trace_id": UNKNOWN}, "value"),
    ({"trace_id": UNKNOWN, "response_id": "resp_1", "value": True}, "trace_id"),
    ({"response_id": 17, "value": True}, "response_id"),
    ({"trace_id": UNKNOWN, "value": None}, "value"),
    ({"trace_id": UNKNOWN, "value": {"a": 1}}, "value"),
    ({"trace_id": "../../etc", "value": True}, "trace_id"),
    ({"trace_id": 17, "value": True}, "trace_id"),
    ({"trace_id": UNKNOWN, "value": True, "comment": 3}, "comment"),
    ({"trace_id": UNKNOWN, "value": True, "comment": "x" * 10_001}, "comment"),
    ({"trace_id": UNKNOWN, "value": True, "name": "a/b"}, "name"),
    ({"trace_id": UNKNOWN, "value": True, "user": "eve"}, "user"),
]


@pytest.mark.parametrize(("body", "param"), BAD, ids=lambda value: str(value)[:40])
def test_invalid_feedback_is_a_400_that_names_the_field(untraced, body, param):
    answer = send_feedback(untraced, {}, **body)
    assert answer.status_code == 400
    error = answer.json()["error"]
    assert error["param"] == param
    assert re.fullmatch(
        rf"(Invalid|Missing required parameter:) '{param}'[^^\\[\]]*\.", error["message"]
    )


def test_the_error_states_the_valid_values_of_feedback(untraced):
    answer = send_feedback(untraced, {}, trace_id="tr-1", value=True)
    assert "x-mlflow-trace-id" in answer.json()["error"]["message"]
    answer = send_feedback(untraced, {}, trace_id=UNKNOWN, value=[])
    assert "true, false, a number, or a text" in answer.json()["error"]["message"]


def test_without_traces_there_is_nothing_to_assess(untraced):
    answer = send_feedback(untraced, {}, trace_id=UNKNOWN, value=True)
    assert answer.status_code == 409
    assert "[mlflow] tracing" in answer.json()["error"]["message"]
    info = httpx2.get(f"{untraced}/agent/info").json()
    assert info["features"]["feedback"] is False


def test_a_page_of_another_site_cannot_send_feedback(untraced):
    url = f"{untraced}/api/agent/feedback"
    form = httpx2.post(url, content=b'{"value": true}', headers={"content-type": "text/plain"})
    assert form.status_code == 415
    asked_first = {"origin": "https://evil.example", "access-control-request-method": "POST"}
    preflight = httpx2.options(url, headers=asked_first)
    assert "access-control-allow-origin" not in preflight.headers
    rebound = httpx2.post(url, json={}, headers={"host": "evil.example"})
    assert rebound.status_code == 421


def test_feedback_does_not_wait_for_the_tracking_server(tmp_path, monkeypatch):
    environ = {"AGENT_KIT_MLFLOW_TRACKING_URI": "http://127.0.0.1:9"}
    server = create_server(settings=load_settings(tmp_path, environ=environ))
    server.invoke()(lambda request: "391")

    def cannot_store(*_: object, **__: object) -> str:
        raise TimeoutError("traces cannot be stored")

    monkeypatch.setattr("agent_kit.server.feedback._trace_owner", cannot_store)
    with server.serve() as url:
        answer = send_feedback(url, {}, trace_id=UNKNOWN, value=True)
    assert answer.status_code == 503
    assert answer.json()["error"]["code"] == "mlflow_unavailable"


def test_feedback_that_hangs_is_a_503_in_time_and_keeps_nothing_else_waiting(tmp_path, monkeypatch):
    environ = {"AGENT_KIT_MLFLOW_TRACKING_URI": "http://127.0.0.1:9"}
    server = create_server(settings=load_settings(tmp_path, environ=environ))
    go_on = threading.Event()
    server.invoke()(lambda request: "391")
    monkeypatch.setattr(feedback, "_trace_owner", lambda *_: "")
    monkeypatch.setattr(feedback, "log_feedback", lambda *_, **__: go_on.wait(60))
    monkeypatch.setattr(feedback, "_STORE_SECONDS", 5)
    with server.serve() as url, ThreadPoolExecutor(12) as clients:
        sent = [
            clients.submit(send_feedback, url, {}, trace_id=UNKNOWN, value=1) for _ in range(12)
        ]
        assert httpx2.get(f"{url}/health").status_code == 200
        answers = [each.result(60) for each in sent]
        go_on.set()
    for refused in answers:
        assert refused.status_code == 503
        assert refused.json()["error"]["code"] == "mlflow_unavailable"
        assert refused.headers["retry-after"] == "5"
