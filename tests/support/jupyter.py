"""A real JupyterLab in a real browser, for tests of the output of notebooks."""

import json
import os
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import nbformat
from playwright.sync_api import Browser, Locator, Page
from support.browser import PATIENCE_MS
from support.environment import free_port

TOKEN = "only-for-tests"
OVERRIDES = {
    "@jupyterlab/apputils-extension:notification": {"fetchNews": "false", "checkForUpdates": False},
    "@jupyterlab/docmanager-extension:plugin": {"autosave": False},
}
START_SECONDS = 120


@contextmanager
def serve_lab(folder: Path, older_widgets: Path | None = None) -> Iterator[str]:
    """Serve JupyterLab on `folder`.

    Args:
        folder: The root folder of JupyterLab.
        older_widgets: A folder with another ipywidgets and its extension, which override the
            installed ones in the kernel and in the browser.
    """
    settings = folder / "settings"
    settings.mkdir()
    (settings / "overrides.json").write_text(json.dumps(OVERRIDES))
    own = {
        f"JUPYTER_{name}_DIR": str(folder / name.lower()) for name in ("CONFIG", "DATA", "RUNTIME")
    }
    environment = os.environ | own | {"IPYTHONDIR": str(folder / "ipython")}
    environment |= {"AGENT_KIT_MLFLOW_TRACING": "false", "PYDEVD_DISABLE_FILE_VALIDATION": "1"}
    extra = []
    if older_widgets:
        environment["PYTHONPATH"] = str(older_widgets)
        extensions = older_widgets / "share/jupyter/labextensions"
        extra = [f"--LabServerApp.extra_labextensions_path={extensions}"]
    port = free_port()
    command = [
        *(sys.executable, "-m", "jupyterlab", "--no-browser", "--allow-root"),
        *(
            f"--ServerApp.port={port}",
            "--ServerApp.ip=127.0.0.1",
            f"--IdentityProvider.token={TOKEN}",
        ),
        *(f"--ServerApp.root_dir={folder}", f"--LabApp.app_settings_dir={settings}"),
        *("--LabApp.expose_app_in_browser=True", *extra),
        "--LabApp.extension_manager=readonly",
    ]
    with (folder / "lab.log").open("w") as log:
        process = subprocess.Popen(command, env=environment, cwd=folder, stdout=log, stderr=log)
    url = f"http://127.0.0.1:{port}"
    try:
        _wait_until_up(process, f"{url}/api?token={TOKEN}", folder / "lab.log")
        yield url
    finally:
        process.terminate()
        process.wait(60)


def _wait_until_up(process: subprocess.Popen, url: str, log: Path) -> None:
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        with suppress(OSError):
            urllib.request.urlopen(url, timeout=5).close()
            return
        assert process.poll() is None, log.read_text()
        time.sleep(0.1)
    raise AssertionError(log.read_text())


class Lab:
    """One notebook with its kernel, open in a browser."""

    def __init__(self, page: Page, url: str) -> None:
        self.page = page
        page.set_default_timeout(PATIENCE_MS)
        self.received = 0
        self._url = url
        page.on("websocket", lambda ws: ws.on("framereceived", self._count))

    def _count(self, payload: str | bytes) -> None:
        self.received += len(payload)

    def open(self) -> None:
        """Open the notebook and wait for a kernel that answers."""
        self.page.goto(f"{self._url}/lab/tree/notebook.ipynb?token={TOKEN}")
        self.wait_for_kernel()

    def reload(self) -> None:
        """Save the notebook, reload the page and wait for the kernel."""
        self.page.evaluate("jupyterapp.commands.execute('docmanager:save')")
        self.page.reload()
        self.wait_for_kernel()

    def wait_for_kernel(self) -> None:
        """Wait until the kernel really answers; it may report "idle" before it does."""
        self.page.wait_for_function("window.jupyterapp?.shell.currentWidget?.sessionContext")
        self.page.evaluate(
            """async () => {
              const context = jupyterapp.shell.currentWidget.sessionContext;
              await context.ready;
              for (let again = 0; again < 100; again++) {
                const kernel = context.session?.kernel;
                const ready = kernel?.connectionStatus === 'connected';
                const asked = ready && kernel.requestKernelInfo().catch(() => null);
                const late = new Promise(done => setTimeout(done, 3000));
                const answer = asked && await Promise.race([asked, late]);
                if (answer) return;
                await new Promise(done => setTimeout(done, 100));
              }
              throw new Error('the kernel does not answer');
            }"""
        )

    def run(self, source: str, wait: bool = True) -> Locator:
        """Run source in a new cell at the end; return the cell."""
        number = self.page.evaluate(
            """async ([source, wait]) => {
              const panel = jupyterapp.shell.currentWidget, notebook = panel.content;
              const cells = notebook.model.sharedModel;
              cells.insertCell(cells.cells.length, {cell_type: 'code', source});
              const number = cells.cells.length - 1;
              notebook.activeCellIndex = number;
              const done = jupyterapp.commands.execute('notebook:run-cell');
              if (wait) await done;
              return number;
            }""",
            [source, wait],
        )
        return self.page.locator(".jp-Notebook .jp-Cell").nth(number)


@contextmanager
def open_lab(
    browser: Browser, folder: Path, older_widgets: Path | None = None, **options: Any
) -> Iterator[Lab]:
    """Open JupyterLab with an empty notebook in a browser.

    Args:
        browser: The browser that opens JupyterLab.
        folder: The root folder of JupyterLab.
        older_widgets: A folder with another ipywidgets, see `serve_lab`.
        options: Options of the browser's profile.
    """
    notebook = nbformat.v4.new_notebook(
        metadata={"kernelspec": {"name": "python3", "display_name": "Python 3"}}
    )
    nbformat.write(notebook, folder / "notebook.ipynb")
    view = {"viewport": {"width": 1100, "height": 900}}
    with (
        serve_lab(folder, older_widgets) as url,
        browser.new_context(**view, **options) as context,
    ):
        lab = Lab(context.new_page(), url)
        lab.open()
        yield lab
        lab.page.evaluate("jupyterapp.shell.currentWidget.sessionContext.shutdown()")
