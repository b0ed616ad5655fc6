"""Your agent: whatever it answers, its server works. Add what yours has to be able to do."""

import json
from collections.abc import Iterator
from pathlib import Path

import httpx2
import pytest
from support.environment import PROJECT
from support.run_notebook import run_notebook

from agent_kit.evaluate import load_cases
from agent_kit.settings import get_settings, load_settings

NOTEBOOKS = PROJECT / "nbs" / "agent"
QUESTION = {"input": [{"role": "user", "content": "What is 17*23?"}]}


@pytest.fixture
def url(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Serve the agent on a port of its own, without traces."""
    monkeypatch.setenv("AGENT_KIT_MLFLOW_TRACING", "false")
    get_settings.cache_clear()
    from agent_kit.agent import server

    with server.serve() as address:
        yield address


def test_it_answers(url: str) -> None:
    response = httpx2.post(f"{url}/v1/responses", json=QUESTION, timeout=60).json()
    assert response["status"] == "completed", response["error"]
    assert response["output"]


def test_it_streams(url: str) -> None:
    request = {**QUESTION, "stream": True}
    stream = httpx2.post(f"{url}/v1/responses", json=request, timeout=60).text
    events = [json.loads(line[6:]) for line in stream.splitlines() if line.startswith("data: {")]
    assert events[0]["type"] == "response.created"
    assert events[-1]["type"] == "response.completed"


def test_its_cases_can_be_read() -> None:
    assert load_cases(load_settings(PROJECT).evaluate.dataset)


@pytest.mark.parametrize(
    "notebook", sorted((PROJECT / "nbs/agent").glob("*.ipynb")), ids=lambda path: path.stem
)
def test_its_notebooks_run(notebook: Path, tmp_path: Path) -> None:
    run_notebook(str(notebook.relative_to(PROJECT)), tmp_path)
