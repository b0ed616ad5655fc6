"""Every notebook runs from top to bottom, in a process and a copy of the project of its own."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from nbdev.doclinks import nbglob
from support.environment import PROJECT, unmeasured

NOTEBOOKS = sorted(str(path.relative_to(PROJECT)) for path in nbglob(PROJECT / "nbs", as_path=True))
COPIED = ("nbs", "evals", "pyproject.toml", "settings.ini")


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A copy of what a notebook may read, so that it leaves nothing in the project."""
    for name in COPIED:
        if (PROJECT / name).is_dir():
            shutil.copytree(PROJECT / name, tmp_path / name)
        elif (PROJECT / name).exists():
            shutil.copy(PROJECT / name, tmp_path / name)
    return tmp_path


def _files(project: Path) -> set[Path]:
    """What a notebook may not leave: all but caches and the kit's own folder."""
    passing = {"__pycache__", ".agent_kit"}
    return {path for path in project.rglob("*") if not passing.intersection(path.parts)}


@pytest.mark.parametrize("notebook", NOTEBOOKS)
def test_notebook_runs(notebook: str, project: Path) -> None:
    before = _files(project)
    run = subprocess.run(
        [sys.executable, "-P", "-m", "support.run_notebook", project / notebook],
        cwd=project / "nbs",
        env=unmeasured() | {"PYTHONPATH": str(PROJECT / "tests")},
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert run.returncode == 0, run.stdout + run.stderr
    assert _files(project) == before, "the notebook left files behind"


@pytest.mark.parametrize("notebook", NOTEBOOKS)
def test_notebook_opens_with_title_and_summary(notebook: str) -> None:
    first = json.loads((PROJECT / notebook).read_text())["cells"][0]
    title, blank, summary = "".join(first["source"]).splitlines()[:3]
    assert re.match(r"# \w", title)
    assert not blank
    assert summary.startswith("> ")
