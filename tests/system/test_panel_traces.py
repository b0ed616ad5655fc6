"""Traces in the chat panel, and the assessments that it stores on them."""

import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from agent_kit.chat import Chat
from agent_kit.chat.controls import trace_link
from agent_kit.cli import agent_evaluate
from agent_kit.server import create_server
from agent_kit.settings import Settings, load_settings
from agent_kit.tracing.spans import span

pytest_plugins = ["support.tracing_fixtures"]


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
    """Press a button under the answer; return the fields that open in the pane."""
    bar = chat.panel.actions.box.children[0].children
    next(button for button in bar if button.description == label).click()
    return chat.panel.actions.pane.children


def test_thumb_and_comment_are_found_in_mlflow(chat: Chat, project: Settings) -> None:
    answer = chat.send_sync("What is 17*23?")
    assert answer.status == "completed", answer.failure
    comment, send = press(chat, "👎")
    comment.value = "Show your work."
    send.click()
    deadline = time.monotonic() + 100
    while "Storing" in (shown := chat.panel.actions.pane.children[0].value):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    assert "Thank you" in shown

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


def test_trace_of_a_failure_states_its_location(chat: Chat) -> None:
    @chat.session.target.server.stream()
    async def fail(request):  # type: ignore[no-untyped-def]
        with span("look up"):
            raise KeyError("weather")
        yield

    chat.send_sync("?")
    (tree,) = press(chat, "Trace")
    assert "ak-broken" in tree.value
    assert "KeyError" in tree.value


@pytest.fixture
def evaluated(project: Settings, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder whose settings name an agent that returns the text of response.txt."""
    folder = project.project_dir
    (folder / "settings.ini").write_text(
        f"[server]\napp = evaluated:app\n[mlflow]\ntracing = false\n"
        f"[evaluate]\ndataset = {project.evaluate.dataset}\n"
    )
    (folder / "evaluated.py").write_text(
        "from pathlib import Path\n"
        "from agent_kit.server import create_server\n"
        "server = create_server()\n"
        "app = server.app\n"
        "server.invoke()(lambda request: Path('response.txt').read_text())\n"
    )
    monkeypatch.syspath_prepend(folder)
    yield folder
    sys.modules.pop("evaluated", None)


@pytest.mark.parametrize(
    ("kind", "expected", "passes", "fails"),
    [
        ("expected_facts", "391", "It is 391.", "It is 390."),
        ("expected_response", None, "17 * 23 = 391", "It is 391."),
    ],
)
def test_saved_case_is_evaluated(
    chat: Chat,
    project: Settings,
    evaluated: Path,
    kind: str,
    expected: str | None,
    passes: str,
    fails: str,
) -> None:
    chat.send_sync("What is 17*23?")
    choice, text, path, save = press(chat, "Save as test case")
    assert (choice.value, text.value) == ("expected_facts", "")
    assert path.value == str(project.evaluate.dataset)
    choice.value = kind
    text.value = expected or text.value
    save.click()
    assert "Saved in" in chat.panel.actions.pane.children[0].value
    for response, code in ((passes, 0), (fails, 1)):
        (evaluated / "response.txt").write_text(response)
        assert agent_evaluate(["--no-mlflow", "-t", "correctness >= 1"]) == code


def test_link_leads_to_the_experiment_of_a_tracking_server() -> None:
    uri = {"mlflow.tracking_uri": "http://127.0.0.1:9", "mlflow.experiment_id": "7"}
    settings = load_settings(environ={}, overrides=uri)
    assert trace_link("tr-1", settings).endswith(
        "/#/experiments/7/traces?selectedEvaluationId=tr-1"
    )
    assert trace_link("tr-1", load_settings(environ={})) == ""
