"""The pictures of the README and the tutorials, taken anew.

`uv run --group test python docs/screenshots.py` drives chromium, as the tests do, and writes
nbs/images/. The page and the first panel show the offline agent as it really answers; the
comparison shows the example agent of the chat tutorial. Look at each before it is committed.
"""

import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import nbformat
from PIL import Image
from playwright.sync_api import Browser, Locator, Page, expect

PROJECT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(PROJECT / "tests"))

from support.browser import open_browser, open_page  # noqa: E402
from support.environment import free_port  # noqa: E402
from support.jupyter import Lab, open_lab  # noqa: E402
from support.page_support import ask, expect_end, visit  # noqa: E402

IMAGES = PROJECT / "nbs" / "images"
SCHEMES: list[Any] = ["light", "dark"]
QUESTION = "What is 17*23?"
EARLIER = ["What is 12% of 250?", "Which day of the week is 29 February 2028?"]
WIDEST, COLOURS = 1080, 256

DEFAULT_AGENT = "from agent_kit.agent import server\nserver.chat()"
CHANGED_AGENT = """
from agent_kit.agent import model, server, tools
from agent_kit.loop import run_agent

@server.stream()
async def answer_briefly(request):
    return run_agent(request, model=model, tools=tools, instructions="Be brief.")
"""


def main() -> None:
    """Take all pictures."""
    with open_browser() as browser:
        for scheme in SCHEMES:
            with serve_default_agent() as url:
                take_page(browser, url, scheme)
            take_panel(browser, scheme)
        take_comparison(browser)


@contextmanager
def serve_default_agent() -> Iterator[str]:
    """Run the server as a newcomer does, in an empty folder."""
    port = free_port()
    with tempfile.TemporaryDirectory() as folder:
        command = [Path(sys.executable).with_name("agent-server"), "--port", str(port)]
        server = subprocess.Popen(command, cwd=folder)
        try:
            yield f"http://127.0.0.1:{port}/"
        finally:
            server.terminate()
            server.wait()


def take_page(browser: Browser, url: str, scheme: Any) -> None:
    """Show one answer of the page, and in the light scheme the list of conversations."""
    view: Any = {"width": 720, "height": 600}
    options = {"viewport": view, "device_scale_factor": 1.5, "color_scheme": scheme}
    with open_page(browser, **options) as page:
        wait_for_server(page, url)
        visit(page, url)
        for question in [*EARLIER, QUESTION]:
            ask(page, question)
            expect_end(page)
            if question != QUESTION:
                page.get_by_role("button", name="New chat").click()
        page.evaluate("document.querySelector('#toast').hidden = true")
        save(page, IMAGES / f"page-{scheme}.png")
        if scheme == "light":
            page.get_by_role("button", name="Conversations").click()
            expect(page.locator(".conversation")).to_have_count(len(EARLIER) + 1)
            page.evaluate("document.activeElement.blur()")
            save(page, IMAGES / "page-conversations.png")


def wait_for_server(page: Page, url: str) -> None:
    """Wait until the server answers."""
    for _ in range(600):
        try:
            page.goto(f"{url}health")
            return
        except Exception:
            page.wait_for_timeout(100)
    raise TimeoutError(f"{url} does not answer.")


@contextmanager
def open_notebook(browser: Browser, scheme: Any) -> Iterator[Lab]:
    """Open JupyterLab in a colour scheme, with room for a panel."""
    with tempfile.TemporaryDirectory() as folder:
        options = {"device_scale_factor": 1.5, "color_scheme": scheme}
        with open_lab(browser, Path(folder), **options) as lab:
            theme = f"JupyterLab {scheme.title()}"
            lab.page.evaluate(
                "theme => jupyterapp.commands.execute('apputils:change-theme', {theme})", theme
            )
            lab.page.wait_for_function("t => document.body.dataset.jpThemeName === t", arg=theme)
            lab.page.evaluate("jupyterapp.shell.collapseLeft()")
            lab.page.set_viewport_size({"width": 920, "height": 1300})
            yield lab


def take_panel(browser: Browser, scheme: Any) -> None:
    """Show two answers in the panel, the agent changed between them."""
    with open_notebook(browser, scheme) as lab:
        panel = lab.run(DEFAULT_AGENT).locator(".ak-chat")
        ask_panel(panel, QUESTION)
        lab.run(CHANGED_AGENT)
        ask_panel(panel, EARLIER[1])
        panel.locator(".ak-log").evaluate("node => { node.style.maxHeight = 'none' }")
        panel.scroll_into_view_if_needed()
        save(panel, IMAGES / f"panel-{scheme}.png")


def take_comparison(browser: Browser) -> None:
    """Show two versions of the tutorial's agent, side by side."""
    tutorial = nbformat.read(PROJECT / "nbs" / "tutorials" / "chat.ipynb", as_version=4)
    sources = [cell.source for cell in tutorial.cells if cell.cell_type == "code"]
    agent, changed = (
        next(source for source in sources if f"async def {name}(" in source)
        for name in ("sell", "sell_many")
    )
    with open_notebook(browser, "light") as lab:
        panel = lab.run(f"{agent}\nserver.chat()").locator(".ak-chat")
        for question in ("What does a melon cost?", "And 3 apples?"):
            ask_panel(panel, question)
        lab.run(changed)
        ask_panel(panel, "And 3 apples, please?")
        panel.get_by_role("button", name="Run again").click()
        expect(panel.get_by_role("button", name="Close")).to_be_visible()
        panel.locator(".ak-comparison").evaluate("node => { node.style.maxHeight = 'none' }")
        comparison = panel.locator(".ak-versions")
        comparison.scroll_into_view_if_needed()
        save(comparison, IMAGES / "panel-comparison.png")


def ask_panel(panel: Locator, question: str) -> None:
    """Ask and wait for the end of the answer."""
    answered = panel.locator(".ak-foot").count()
    panel.locator(".ak-compose textarea").fill(question)
    panel.locator(".ak-send").click()
    expect(panel.locator(".ak-foot")).to_have_count(answered + 1)
    panel.evaluate("() => document.activeElement.blur()")


def save(shown: Page | Locator, path: Path) -> None:
    """Write a picture of few colours, so that it is small."""
    page = shown if isinstance(shown, Page) else shown.page
    page.mouse.move(5, 5)
    page.wait_for_timeout(500)
    shown.screenshot(path=path)
    with Image.open(path) as taken:
        image = taken.convert("RGB")
    image.thumbnail((WIDEST, image.height))
    image.quantize(COLOURS).save(path, optimize=True)


if __name__ == "__main__":
    main()
