"""The reloading server: real notebooks, a real export, real server processes on a real port."""

import contextlib
import importlib
import os
import queue
import select
import signal
import socket
import subprocess
import sys
import threading
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from fastcore.nbio import mk_cell, new_nb, write_nb

from agent_kit.server.notebook_export import ExportError, explain_error, export_notebooks, find_cell

PATIENCE = 60
PYPROJECT = """
[project]
name = "greeter"
version = "0.1"
[tool.nbdev]
update_pyproject = false
"""

APP = """
import asyncio, os

async def app(scope, receive, send):
    if scope["path"] == "/die":
        os._exit(7)
    if scope["path"] == "/slow":
        await send({{"type": "http.response.start", "status": 200, "headers": []}})
        await send({{"type": "http.response.body", "body": b"start ", "more_body": True}})
        await asyncio.sleep(1)
        await send({{"type": "http.response.body", "body": b"{reply}"}})
        return
    body = str(os.getpid()).encode() if scope["path"] == "/process" else b"{reply}"
    await send({{"type": "http.response.start", "status": 200, "headers": []}})
    await send({{"type": "http.response.body", "body": body}})
"""

PROGRAM = """
import sys
from pathlib import Path
from agent_kit.server.reload import serve_with_reload
from agent_kit.settings import load_settings

serve_with_reload(
    sys.argv[1], host="127.0.0.1", port=int(sys.argv[2]), settings=load_settings(Path.cwd(), {}),
    uvicorn_options={"lifespan": "off", "log_level": "warning"},
)
"""


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """An nbdev project with one notebook, in a folder, which exports `greeter/web/app.py`."""
    (tmp_path / "nbs/web").mkdir(parents=True)
    (tmp_path / "pyproject.toml").write_text(PYPROJECT)
    save_notebook(tmp_path, APP.format(reply="one"))
    return tmp_path


def save_notebook(project: Path, app: str) -> None:
    cells = [
        mk_cell("# Greeter", "markdown", id="title"),
        mk_cell("#| default_exp web.app", id="default"),
        mk_cell(f"#| export\n\n{app.strip()}", id="app"),
    ]
    write_nb(new_nb(cells), project / "nbs/web/10_app.ipynb")


class Supervisor:
    """A running `serve_with_reload`; `output` contains everything it prints."""

    def __init__(self, folder: Path, app: str = "greeter.web.app:app", port: int = 0) -> None:
        self.output: list[str] = []
        self.process = subprocess.Popen(
            [sys.executable, "-c", PROGRAM, app, str(port)],
            cwd=folder,
            stderr=subprocess.PIPE,
            text=True,
        )
        self._lines: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stderr
        with self.process.stderr as lines:
            for line in lines:
                self._lines.put(line)
        self._lines.put(None)

    def wait_for(self, words: str) -> str:
        """Wait for a line with `words` and return it."""
        while (line := self._lines.get(timeout=PATIENCE)) is not None:
            self.output.append(line)
            if words in line:
                return line
        raise AssertionError(f"it ended without printing {words!r}:\n{''.join(self.output)}")

    def start(self) -> "Supervisor":
        self.url = self.wait_for("http://").split()[-1]
        self.wait_for("reload: ready")
        return self

    def ask(self, path: str = "/") -> str:
        with urllib.request.urlopen(self.url + path, timeout=PATIENCE) as response:
            return response.read().decode()

    def end(self, number: int = signal.SIGTERM) -> int:
        self.process.send_signal(number)
        code = self.process.wait(timeout=PATIENCE)
        self._reader.join()
        while line := self._lines.get():
            self.output.append(line)
        assert "Unknown child process" not in "".join(self.output)
        return code


@contextlib.contextmanager
def supervised(folder: Path, app: str = "greeter.web.app:app") -> Iterator[Supervisor]:
    supervisor = Supervisor(folder, app)
    try:
        yield supervisor
    finally:
        if supervisor.process.poll() is None:
            supervisor.end()


def wait_until_gone(process: int) -> None:
    """Wait for the end of a process that is not a child of this one."""
    with contextlib.suppress(ProcessLookupError):
        descriptor = os.pidfd_open(process)
        try:
            ended, _, _ = select.select([descriptor], [], [], PATIENCE)
            assert ended, f"process {process} is still there"
        finally:
            os.close(descriptor)


# --- errors with their notebook cells


def test_a_line_of_a_module_is_found_in_its_notebook(project: Path) -> None:
    export_notebooks(project)
    module = project / "greeter/web/app.py"
    rows = module.read_text().splitlines()
    found = find_cell(module, rows.index("import asyncio, os") + 1)
    assert found
    assert (found.notebook, found.cell, found.line) == (project / "nbs/web/10_app.ipynb", 3, 3)


def test_lines_without_a_notebook_cell_are_not_found(project: Path) -> None:
    export_notebooks(project)
    module = project / "greeter/web/app.py"
    assert find_cell(module, 1) is None
    assert find_cell(module, 10_000) is not None  # the end of the last cell
    assert find_cell(project / "missing.py", 1) is None
    (project / "by_hand.py").write_text("answer = 42\n")
    assert find_cell(project / "by_hand.py", 1) is None
    (project / "nbs/web/10_app.ipynb").unlink()
    assert find_cell(module, 10_000) is None


def test_an_error_is_explained_with_its_lines_in_notebook_and_file(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (project / "helper.py").write_text("def fail():\n    raise KeyError('model')\n")
    save_notebook(project, "import helper\nhelper.fail()")
    export_notebooks(project)
    monkeypatch.chdir(project)
    monkeypatch.syspath_prepend(str(project))
    with pytest.raises(KeyError) as caught:
        importlib.import_module("greeter.web.app")
    for name in ("helper", "greeter.web.app", "greeter.web", "greeter"):
        sys.modules.pop(name, None)
    explained = explain_error(caught.value.with_traceback(caught.tb.tb_next))
    assert explained.splitlines() == [
        "  nbs/web/10_app.ipynb, cell 3, line 4",
        "    helper.fail()",
        "  helper.py, line 2",
        "    raise KeyError('model')",
        "KeyError: 'model'",
    ]


# --- exporting


def test_export_writes_only_what_is_new(project: Path) -> None:
    assert project / "greeter/web/app.py" in export_notebooks(project)
    written = (project / "greeter/web/app.py").stat().st_mtime_ns
    save_notebook(project, APP.format(reply="one"))
    assert export_notebooks(project) == []
    assert (project / "greeter/web/app.py").stat().st_mtime_ns == written


@pytest.mark.parametrize(
    ("app", "where"),
    [
        ("answer = 1\ndef broken(:", "nbs/web/10_app.ipynb, cell 3, line 4"),
        ("%load_ext magic", "nbs/web/10_app.ipynb, cell 3, line 3"),
    ],
)
def test_a_cell_that_does_not_compile_writes_nothing(project: Path, app: str, where: str) -> None:
    export_notebooks(project)
    before = (project / "greeter/web/app.py").read_text()
    save_notebook(project, app)
    with pytest.raises(ExportError, match="SyntaxError") as caught:
        export_notebooks(project)
    assert where in str(caught.value)
    assert (project / "greeter/web/app.py").read_text() == before


def test_a_file_that_is_not_a_notebook_is_named(project: Path) -> None:
    (project / "nbs/half.ipynb").write_text('{"cells": [')
    with pytest.raises(ExportError, match=r"half\.ipynb is not a notebook"):
        export_notebooks(project)


MERGED = """{
<<<<<<< HEAD
 "cells": []
=======
 "cells": [1]
>>>>>>> theirs
}"""
NAMED = {
    "nbs/latin.ipynb": b'{"cells": ["caf\xe9"]}',
    "nbs/list.ipynb": b"[]",
    "nbs/no_cells.ipynb": b"{}",
    "nbs/merged.ipynb": MERGED.encode(),
    "pyproject.toml": b"[project\n",
    "./pyproject.toml": b"name = 'caf\xe9'\n",
    ".//pyproject.toml": b"tool = 3\n",
}


@pytest.mark.parametrize("path", NAMED)
def test_a_file_that_cannot_be_read_is_named(project: Path, path: str) -> None:
    (project / path).write_bytes(NAMED[path])
    with pytest.raises(ExportError, match=Path(path).name) as caught:
        export_notebooks(project)
    assert ("conflict" in str(caught.value)) == ("merged" in path)


def test_a_notebook_in_which_a_merge_has_left_both_versions_is_named(project: Path) -> None:
    export_notebooks(project)
    module = project / "greeter/web/app.py"
    before = module.read_text()
    sources = ["`<<<<<<< HEAD`", "answer = 1", "`=======`", "answer = 2", "`>>>>>>> theirs`"]
    cells = [mk_cell("#| default_exp web.app", id="default")]
    for text in sources:
        is_code = text.startswith("answer")
        cells += [mk_cell(f"#| export\n{text}") if is_code else mk_cell(text, "markdown")]
    write_nb(new_nb(cells), project / "nbs/web/10_app.ipynb")
    with pytest.raises(ExportError, match=r"10_app\.ipynb, cell 2: .*conflict"):
        export_notebooks(project)
    assert module.read_text() == before


def test_what_is_not_a_notebook_or_a_module_is_passed_over(project: Path) -> None:
    cells = [mk_cell("#| default_exp tools", id="default"), mk_cell("#| export\nx = 1", id="x")]
    write_nb(new_nb(cells), project / "nbs/00_tools.ipynb")
    export_notebooks(project)
    (project / "nbs/00_tools.ipynb").unlink()
    (project / "nbs/link.ipynb").symlink_to("/nowhere/x.ipynb")
    (project / "nbs/folder.ipynb").mkdir()
    os.mkfifo(project / "nbs/pipe.ipynb")
    (project / "greeter/folder.py").mkdir()
    (project / "greeter/link.py").symlink_to("/nowhere/x.py")
    (project / "greeter/old.py").write_bytes(b"# caf\xe9\n")
    os.mkfifo(project / "greeter/pipe.py")
    save_notebook(project, APP.format(reply="two"))
    assert export_notebooks(project) == [project / "greeter/web/app.py"]
    assert (project / "greeter/old.py").read_bytes() == b"# caf\xe9\n"
    assert "x = 1" in (project / "greeter/tools.py").read_text()


def test_a_module_that_is_not_utf8_is_written_again(project: Path) -> None:
    export_notebooks(project)
    module = project / "greeter/web/app.py"
    text = module.read_text()
    module.write_bytes(b"# caf\xe9\n")
    os.utime(module, ns=(0, 0))
    assert export_notebooks(project) == [module]
    assert module.read_text() == text


def test_an_edit_of_the_module_after_its_notebook_is_preserved(project: Path) -> None:
    export_notebooks(project)
    module = project / "greeter/web/app.py"
    module.write_text("edited = True\n")
    assert export_notebooks(project) == []
    assert module.read_text() == "edited = True\n"


def test_a_notebook_that_is_saved_during_its_export_is_exported_next(project: Path) -> None:
    notebook, module = project / "nbs/web/10_app.ipynb", project / "greeter/web/app.py"
    during = notebook.stat().st_mtime_ns + 1_000_000
    export_notebooks(project)
    save_notebook(project, APP.format(reply="two"))
    os.utime(notebook, ns=(during, during))
    assert export_notebooks(project) == [module]


def test_a_project_without_nbdev_has_nothing_to_export(tmp_path: Path) -> None:
    assert export_notebooks(tmp_path) == []
    (tmp_path / "pyproject.toml").write_text('[project]\nname = "plain"\n')
    assert export_notebooks(tmp_path) == []


# --- serving


def test_a_saved_notebook_is_served_and_no_request_is_lost(project: Path) -> None:
    replies: list[str] = []

    def keep_asking(supervisor: Supervisor) -> None:
        while replies[-1:] != ["three"]:
            replies.append(supervisor.ask())

    with ThreadPoolExecutor(1) as threads, supervised(project) as supervisor:
        supervisor.start()
        asking = threads.submit(keep_asking, supervisor)
        for reply in ("two", "three"):
            save_notebook(project, APP.format(reply=reply))
            supervisor.wait_for("the new code is serving")
            assert supervisor.ask() == reply
        asking.result(PATIENCE)
    assert sorted(set(replies), key=replies.index) == ["one", "two", "three"]


def test_a_request_in_progress_is_completed_by_the_code_that_started_it(project: Path) -> None:
    with supervised(project) as supervisor:
        supervisor.start()
        with urllib.request.urlopen(supervisor.url + "/slow", timeout=PATIENCE) as slow:
            assert slow.read(6) == b"start "
            save_notebook(project, APP.format(reply="two"))
            supervisor.wait_for("the new code is serving")
            assert supervisor.ask() == "two"
            assert slow.read() == b"one"


def test_mistakes_leave_the_old_code_answering(project: Path) -> None:
    with supervised(project) as supervisor:
        supervisor.start()
        save_notebook(project, "def app(:")
        supervisor.wait_for("nbs/web/10_app.ipynb, cell 3, line 3")
        supervisor.wait_for("SyntaxError")
        assert supervisor.ask() == "one"
        save_notebook(project, "import asyncio\n\nmissing_name")
        supervisor.wait_for("nbs/web/10_app.ipynb, cell 3, line 5")
        supervisor.wait_for("NameError: name 'missing_name' is not defined")
        supervisor.wait_for("the old code continues to serve")
        assert supervisor.ask() == "one"
        save_notebook(project, APP.format(reply="two"))
        supervisor.wait_for("the new code is serving")
        assert supervisor.ask() == "two"


def test_no_state_of_the_folder_ends_the_server(project: Path) -> None:
    with supervised(project) as supervisor:
        supervisor.start()
        (project / "pyproject.toml").write_text("[project\n")
        supervisor.wait_for("pyproject.toml")
        save_notebook(project, APP.format(reply="two"))
        (project / "pyproject.toml").write_text(PYPROJECT)
        supervisor.wait_for("the new code is serving")
        assert supervisor.ask() == "two"
        (project / "nbs").rename(project / "elsewhere")
        (project / "greeter/link.py").symlink_to("/nowhere/x.py")
        (project / "greeter/old.py").write_bytes(b"# caf\xe9\n")
        supervisor.wait_for("the new code is serving")
        (project / "elsewhere").rename(project / "nbs")
        save_notebook(project, APP.format(reply="three"))
        supervisor.wait_for("exported greeter/web/app.py")
        supervisor.wait_for("the new code is serving")
        assert supervisor.ask() == "three"
        (project / "nbs/link.ipynb").symlink_to("/nowhere/x.ipynb")
        (project / "nbs/folder.ipynb").mkdir()
        save_notebook(project, APP.format(reply="four"))
        supervisor.wait_for("the new code is serving")
        assert supervisor.ask() == "four"


def test_a_first_start_that_fails_waits_for_the_change(tmp_path: Path) -> None:
    (tmp_path / "single.py").write_text("raise SystemExit('no model configured')\n")
    with supervised(tmp_path, "single:app") as supervisor:
        supervisor.url = supervisor.wait_for("http://").split()[-1]
        supervisor.wait_for("SystemExit: no model configured")
        supervisor.wait_for("nothing is served yet")
        (tmp_path / "single.py").write_text(APP.format(reply="fixed"))
        supervisor.wait_for("ready")
        assert supervisor.ask() == "fixed"


def test_only_changed_code_starts_a_new_generation(tmp_path: Path) -> None:
    module = tmp_path / "single.py"
    module.write_text(APP.format(reply="one"))
    with supervised(tmp_path, "single:app") as supervisor:
        supervisor.start()
        first = supervisor.ask("/process")
        module.write_text(APP.format(reply="one"))
        (tmp_path / "notes.txt").write_text("no code")
        (tmp_path / "settings.ini").write_text("[agent]\nmodel = offline\n")
        supervisor.wait_for("the new code is serving")
        assert supervisor.ask("/process") != first
        supervisor.end()
        assert "".join(supervisor.output).count("the new code is serving") == 1


def test_a_server_that_died_comes_back_with_a_change(tmp_path: Path) -> None:
    (tmp_path / "single.py").write_text(APP.format(reply="one"))
    with supervised(tmp_path, "single:app") as supervisor:
        supervisor.start()
        with pytest.raises(OSError, match=r"closed connection|reset"):
            supervisor.ask("/die")
        supervisor.wait_for("ended by itself")
        (tmp_path / "single.py").write_text(APP.format(reply="two"))
        supervisor.wait_for("ready")
        assert supervisor.ask() == "two"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_end_leaves_no_process(tmp_path: Path, number: int) -> None:
    (tmp_path / "single.py").write_text(APP.format(reply="one"))
    with supervised(tmp_path, "single:app") as supervisor:
        process = int(supervisor.start().ask("/process"))
        assert supervisor.end(number) == 0
        wait_until_gone(process)


def test_the_server_ends_when_its_supervisor_is_killed(tmp_path: Path) -> None:
    (tmp_path / "single.py").write_text(APP.format(reply="one"))
    with supervised(tmp_path, "single:app") as supervisor:
        process = int(supervisor.start().ask("/process"))
        assert supervisor.end(signal.SIGKILL) == -signal.SIGKILL
        wait_until_gone(process)


def test_a_port_that_is_taken_is_an_error(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        supervisor = Supervisor(tmp_path, "single:app", taken.getsockname()[1])
        supervisor.wait_for("Address already in use")
        assert supervisor.process.wait(timeout=PATIENCE) == 1
        supervisor.end()
