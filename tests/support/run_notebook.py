"""Run one notebook as a test, with the guards of the other tests: `run_notebook.py NOTEBOOK`."""

import sys
from pathlib import Path

from nbdev.test import test_nb as run_cells
from support.guards import NetworkGuard, clean_environment, no_leaks

# The shell that runs the cells keeps its event loop, and with it the threads of `to_thread`.
SHELL_THREADS = ("CaptureShell", "asyncio_")


def main(notebook: Path) -> int:
    clean_environment()
    network = NetworkGuard()
    with no_leaks(SHELL_THREADS):
        passed, _ = run_cells(notebook, basepath=notebook.parent, cell_timeout=60)
    if network.refused:
        print(f"tried the network: {', '.join(network.refused)}", file=sys.stderr)
    return int(not passed or bool(network.refused))


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
