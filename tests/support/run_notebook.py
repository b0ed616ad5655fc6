"""Runs one notebook as a test: in a copy of the project, in a process with the tests' guards."""

import shutil
import subprocess
import sys
from pathlib import Path

from support.environment import PROJECT, unmeasured
from support.guards import NetworkGuard, clean_environment, no_leaks

COPIED = ("nbs", "evals", "pyproject.toml", "settings.ini")
# The shell that runs the cells retains its event loop, and with it the threads of `to_thread`.
SHELL_THREADS = ("CaptureShell", "asyncio_")


def run_notebook(notebook: str, folder: Path) -> None:
    """Run a notebook from top to bottom in `folder`; it may read the project, not change it."""
    for name in COPIED:
        if (PROJECT / name).is_dir():
            shutil.copytree(PROJECT / name, folder / name)
        elif (PROJECT / name).exists():
            shutil.copy(PROJECT / name, folder / name)
    before = _files(folder)
    run = subprocess.run(
        [sys.executable, "-P", "-m", "support.run_notebook", folder / notebook],
        cwd=folder / "nbs",
        env=unmeasured() | {"PYTHONPATH": str(PROJECT / "tests")},
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert run.returncode == 0, run.stdout + run.stderr
    assert _files(folder) == before, "the notebook has added or removed files"


def _files(project: Path) -> set[Path]:
    """Return the files of a project, except caches and the kit's own folder."""
    passing = {"__pycache__", ".agent_kit"}
    return {path for path in project.rglob("*") if not passing.intersection(path.parts)}


def main(notebook: Path) -> int:
    """Run the cells of a notebook in this process; return the exit code."""
    clean_environment()
    # Imported after the environment is cleaned, since modules that nbdev imports read it.
    from nbdev.test import test_nb as run_cells

    network = NetworkGuard()
    with no_leaks(SHELL_THREADS):
        passed, _ = run_cells(notebook, basepath=notebook.parent, cell_timeout=60)
    if network.refused:
        print(f"tried the network: {', '.join(network.refused)}", file=sys.stderr)
    return int(not passed or bool(network.refused))


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
