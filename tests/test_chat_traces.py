"""What the chat shows of traces, and the judgements that it stores on them."""

import time
from collections.abc import Iterator

import pytest

from agent_kit.chat import Chat
from agent_kit.controls import trace_link
from agent_kit.evaluate import evaluate
from agent_kit.server import create_server
from agent_kit.settings import Settings, load_settings
from agent_kit.spans import span

pytest_plugins = ["tracing_fixtures"]


@pytest.fixture
def chat(project: Settings) -> Iterator[Chat]:
    server = create_server(settings=project)

    @server.stream()
    async def multiply(request):  # type: ignore[no-untyped-def]
        with span("look up <things>"):
            yield "17 * 23 = "
        yield "391"

    with Chat(server) as chat:
        yield chat


def press(chat: Chat, label: str) -> tuple:
    """Press a button under the answer; return what opens in the pane."""
    bar = chat.panel.actions.box.children[0].children
    next(button for button in bar if button.description == label).click()
    return chat.panel.actions.pane.children


def test_thumb_and_comment_are_found_in_mlflow(chat: Chat, project: Settings) -> None:
    answer = chat.send_sync("What is 17*23?")
    assert answer.status == "completed", answer.trouble
    comment, send = press(chat, "👎")
    comment.value = "Show your work."
    send.click()
    deadline = time.monotonic() + 100
    while "Storing" in (said := chat.panel.actions.pane.children[0].value):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    assert "Thank you" in said

    from mlflow.tracing.client import TracingClient

    info = TracingClient(project.mlflow.tracking_uri).get_trace_info(answer.trace_id)
    assert [(each.value, each.rationale) for each in info.assessments] == [
        (False, "Show your work.")
    ]


def test_trace_is_a_tree_without_a_tracking_server(chat: Chat, project: Settings) -> None:
    chat.send_sync("What is 17*23?")
    (tree,) = press(chat, "Trace")
    assert tree.value.count("ak-step") == 2
    assert "look up &lt;things&gt;" in tree.value
    assert "17 * 23 = 391" in tree.value
    assert "Open in MLflow" not in tree.value


def test_trace_of_a_failure_says_where(chat: Chat) -> None:
    @chat._server.stream()
    async def fail(request):  # type: ignore[no-untyped-def]
        with span("look up"):
            raise KeyError("weather")
        yield

    chat.send_sync("?")
    (tree,) = press(chat, "Trace")
    assert "ak-broken" in tree.value
    assert "KeyError" in tree.value


def test_saved_case_is_evaluated(chat: Chat, project: Settings) -> None:
    chat.send_sync("What is 17*23?")
    facts, path, save = press(chat, "Save as test case")
    assert path.value == str(project.evaluate.dataset)
    facts.value = "391"
    save.click()
    assert "Saved in" in chat.panel.actions.pane.children[0].value
    server = create_server(settings=project)
    server.invoke()(lambda request: "It is 391.")
    assert not evaluate(server, log=False).failures


def test_link_leads_to_the_experiment_of_a_tracking_server() -> None:
    uri = {"mlflow.tracking_uri": "http://127.0.0.1:9", "mlflow.experiment_id": "7"}
    settings = load_settings(environ={}, overrides=uri)
    assert trace_link("tr-1", settings).endswith(
        "/#/experiments/7/traces?selectedEvaluationId=tr-1"
    )
    assert trace_link("tr-1", load_settings(environ={})) == ""
