"""Every notebook runs from top to bottom, in a process and a copy of the project of its own."""

import json
import re
from pathlib import Path

import pytest
from nbdev.doclinks import nbglob
from support.environment import PROJECT
from support.run_notebook import run_notebook

# Those of the agent's room are the user's, and run with the tests of the agent.
NOTEBOOKS = sorted(
    str(path.relative_to(PROJECT))
    for path in nbglob(PROJECT / "nbs", as_path=True)
    if path.parent.name != "agent"
)


@pytest.mark.parametrize("notebook", NOTEBOOKS)
def test_notebook_runs(notebook: str, tmp_path: Path) -> None:
    run_notebook(notebook, tmp_path)


@pytest.mark.parametrize("notebook", NOTEBOOKS)
def test_notebook_opens_with_title_and_summary(notebook: str) -> None:
    first = json.loads((PROJECT / notebook).read_text())["cells"][0]
    title, blank, summary = "".join(first["source"]).splitlines()[:3]
    assert re.match(r"# \w", title)
    assert not blank
    assert summary.startswith("> ")
