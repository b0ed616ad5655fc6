"""The chat panel in a real JupyterLab, in a real browser."""

import re
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Locator, expect
from support.browser import open_browser
from support.environment import PROJECT, require
from support.guards import no_leaks
from support.jupyter import Lab, open_lab


@pytest.fixture
def check_leaks() -> None:
    """Check no single test: JupyterLab outlives it; the fixture `browser` checks for leaks."""


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with no_leaks(), open_browser() as browser:
        yield browser


@pytest.fixture(scope="module")
def lab(browser: Browser, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    clipboard = ["clipboard-read", "clipboard-write"]
    with open_lab(browser, tmp_path_factory.mktemp("lab"), permissions=clipboard) as lab:
        lab.run(AGENTS)
        yield lab


@pytest.fixture(scope="module")
def older_lab(browser: Browser, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    older = PROJECT / ".older-widgets"
    require((older / "ipywidgets").is_dir(), "ipywidgets 7.8.1 in .older-widgets")
    with open_lab(browser, tmp_path_factory.mktemp("older"), older) as lab:
        lab.run(AGENTS)
        yield lab


AGENTS = """
import asyncio, threading
from agent_kit.chat import Chat
from agent_kit.server import create_server

def serve(function):
    server = create_server()
    server.stream()(function)
    return server

def call(name, arguments, output):
    yield {"type": "response.output_item.done", "item": {
        "type": "function_call", "call_id": name, "name": name, "arguments": arguments}}
    yield {"type": "response.output_item.done", "item": {
        "type": "function_call_output", "call_id": name, "output": output}}

closed, gate = [], threading.Event()

async def count(request):
    try:
        for number in range(2000):
            yield f"word{number} "
            await asyncio.sleep(0.05)
    finally:
        closed.append(True)

async def repeat(request):
    content = request.input[-1]["content"]
    parts = [{"text": content}] if isinstance(content, str) else content
    for item in call("look", '{"question": "what was said"}', "*looked*"):
        yield item
    yield "You said " + " and ".join(part["text"] for part in parts if "text" in part)
"""


def panel_of(cell: Locator) -> Locator:
    return cell.locator(".ak-chat")


def send(panel: Locator, text: str) -> None:
    panel.locator(".ak-compose textarea").fill(text)
    panel.locator(".ak-send").click()


def answers(panel: Locator) -> Locator:
    return panel.locator(".ak-turn")


def expect_ended(panel: Locator, number: int) -> None:
    expect(panel.locator(".ak-foot")).to_have_count(number)


def test_text_streams_while_other_cells_run_and_stop_closes_the_agent(lab: Lab) -> None:
    panel = panel_of(lab.run("closed.clear(); serve(count).chat()"))
    send(panel, "Count")
    text = panel.locator(".ak-turn .ak-text")
    expect(text).to_contain_text("word3")
    other = lab.run("print(6 * 7)")
    expect(other.locator(".jp-OutputArea-output")).to_have_text("42\n")
    seen = len(text.inner_text())
    expect(panel.locator(".ak-foot")).to_have_count(0)
    expect(panel.locator(".ak-send")).to_have_text("Stop")
    lab.page.wait_for_function(
        "([node, seen]) => node.innerText.length > seen", arg=[text.element_handle(), seen]
    )
    panel.locator(".ak-send").click()
    expect(panel.locator(".ak-foot")).to_contain_text("stopped")
    expect(lab.run("print(closed)").locator(".jp-OutputArea-output")).to_have_text("[True]\n")


def test_a_reload_during_a_stream_continues(lab: Lab) -> None:
    panel = panel_of(lab.run("serve(count).chat()"))
    send(panel, "Count")
    expect(panel.locator(".ak-text")).to_contain_text("word3")
    number = lab.page.locator(".jp-Notebook .jp-Cell").count() - 1
    lab.reload()
    panel = panel_of(lab.page.locator(".jp-Notebook .jp-Cell").nth(number))
    text = panel.locator(".ak-text")
    expect(text).to_contain_text("word3")
    seen = len(text.inner_text())
    lab.page.wait_for_function(
        "([node, seen]) => node.innerText.length > seen", arg=[text.element_handle(), seen]
    )
    panel.locator(".ak-send").click()
    expect(panel.locator(".ak-foot")).to_contain_text("stopped")


def test_keyboard_alone_sends_two_lines(lab: Lab) -> None:
    panel = panel_of(lab.run("serve(repeat).chat()"))
    panel.locator(".ak-compose textarea").focus()
    for key in ("One", "Enter", "two"):
        lab.page.keyboard.press(key) if key == "Enter" else lab.page.keyboard.type(key)
    for key in ("Tab", "Tab", "Enter"):
        lab.page.keyboard.press(key)
    expect_ended(panel, 1)
    assert panel.locator(".ak-bubble").inner_text() == "One\ntwo"
    expect(panel.locator(".ak-card .ak-name")).to_have_text("look")
    expect(panel.locator(".ak-card .ak-state")).to_contain_text("done")
    assert panel.locator(".ak-card .ak-pre").last.inner_text() == "*looked*"
    assert panel.locator(".ak-compose textarea").input_value() == ""


def test_swap_retry_edit_undo_and_run_again(lab: Lab) -> None:
    panel = panel_of(
        lab.run(
            "server = create_server()\n@server.stream()\nasync def slow(request):\n"
            "    for word in 'I am the old one'.split():\n        yield word + ' '\n"
            "        await asyncio.sleep(0.2)\nserver.chat()"
        )
    )
    send(panel, "Who are you?")
    expect(panel.locator(".ak-text")).to_contain_text("I am")
    lab.run("@server.stream()\nasync def quick(request):\n    yield 'I am the **new** one'")
    expect_ended(panel, 1)
    expect(panel.locator(".ak-text")).to_have_text("I am the old one")
    send(panel, "And you?")
    expect_ended(panel, 2)
    expect(panel.locator(".ak-mark")).to_have_text("the agent changed")

    panel.get_by_role("button", name="Run again").click()
    pairs = panel.locator(".ak-pair")
    expect(pairs).to_have_count(2)
    expect(pairs.first.locator("ins")).to_contain_text("**new**")
    panel.get_by_role("button", name="Close").click()

    panel.locator(".ak-more").click()
    first = panel.locator(".ak-turns > div").first
    first.get_by_role("button", name="Retry").click()
    expect(answers(panel)).to_have_count(1)
    expect(panel.locator(".ak-text")).to_have_text("I am the new one")
    expect_ended(panel, 1)

    panel.get_by_role("button", name="Edit").click()
    field = panel.locator(".ak-compose textarea")
    expect(field).to_have_value("Who are you?")
    send(panel, "Who were you?")
    expect(panel.locator(".ak-bubble")).to_have_text("Who were you?")
    expect_ended(panel, 1)
    panel.get_by_role("button", name="Undo").click()
    expect(answers(panel)).to_have_count(0)
    expect(field).to_have_value("Who were you?")


def test_copies_the_markdown_that_the_agent_wrote(lab: Lab) -> None:
    panel = panel_of(
        lab.run(
            "text = '**Bold** & \"quoted\" <b>\\n\\n```python\\nprint(1)\\n```'\n"
            "async def say(request):\n    yield text\nserve(say).chat()"
        )
    )
    send(panel, "Speak")
    expect_ended(panel, 1)
    copy = panel.locator(".ak-copy")
    copy.click()
    expect(copy).to_have_text("Copied")
    copied = lab.page.evaluate("navigator.clipboard.readText()")
    assert copied == '**Bold** & "quoted" <b>\n\n```python\nprint(1)\n```'
    expect(copy).to_have_text("Copy")
    expect(copy).to_be_focused()


HOSTILE = '''
evil = """<script>hacked = 1</script><img src=x onerror="hacked = 2"><svg onload="hacked = 3">
[a](javascript:hacked=4) <a href="javascript:hacked=5">b</a> ![c](https://example.com/?spy)
</div></div></details></pre><style>body { display: none }</style>
```"><img src=x onerror=hacked=6>
code
```
| <img src=x onerror="hacked = 7"> |
|---|
<iframe srcdoc="<script>parent.hacked = 8</script>"></iframe>"""

async def attack(request):
    yield {"type": "response.output_item.done", "item": {
        "type": "reasoning", "id": "r", "summary": [{"type": "summary_text", "text": evil}]}}
    for item in call(evil, evil, evil):
        yield item
    yield evil
    raise ValueError(evil)

chat = serve(attack).chat()
chat
'''


def test_hostile_output_is_shown_harmless(lab: Lab) -> None:
    requests: list[str] = []
    lab.page.on("request", lambda request: requests.append(request.url))
    panel = panel_of(lab.run(HOSTILE))
    lab.run("chat.submit(evil).result() and None")
    expect_ended(panel, 1)
    for fold in panel.locator("details").all():
        fold.evaluate("node => node.open = true")
    lab.page.wait_for_timeout(300)
    assert lab.page.evaluate("window.hacked") is None
    assert panel.locator(".ak-turn").locator("script, img, svg, iframe, style, object").count() == 0
    links = panel.locator("a").evaluate_all("links => links.map(link => link.protocol)")
    assert set(links) <= {"https:", "http:", "mailto:"}
    expect(panel.locator(".ak-bubble")).to_contain_text("<script>hacked = 1</script>")
    expect(panel.locator(".ak-compose")).to_be_visible()
    static = lab.run("from IPython.display import HTML; HTML(chat._repr_html_())")
    expect(static.locator(".ak-static")).to_contain_text("hacked = 1")
    assert lab.page.evaluate("window.hacked") is None
    assert not [url for url in requests if "spy" in url]
    lab.run("chat.clear()")


def test_traffic_is_linear_in_the_answer(lab: Lab) -> None:
    panel = panel_of(
        lab.run(
            "from time import sleep\nsize, pause = 50_000, 0\nasync def write(request):\n"
            "    line = 'A sentence of **some** words, and then `another`. ' * 5 + '\\n\\n'\n"
            "    for number in range(size // len(line)):\n        yield line\n"
            "        await asyncio.sleep(pause)\n    yield 'The end.'\n"
            "chat = serve(write).chat()\nchat"
        )
    )

    def traffic(settings: str) -> int:
        lab.run(f"chat.clear(); size, pause = {settings}")
        before = lab.received
        send(panel, "Write")
        expect_ended(panel, 1)
        expect(panel.locator(".ak-text").last).to_contain_text("The end.")
        lab.page.wait_for_timeout(300)
        return lab.received - before

    # A busy machine renders, and sends, less: the fuller of two measurements is the half.
    half = max(traffic("50_000, 0"), traffic("50_000, 0"))
    whole = traffic("100_000, 0")
    assert whole <= 2.3 * half
    streamed = traffic("100_000, 10 * 250 / 100_000")
    assert streamed < 5 * 100_000
    assert whole < 5 * 100_000


def test_four_hundred_messages_stay_responsive(lab: Lab) -> None:
    cell = lab.run(
        "chat = serve(repeat).chat()\n"
        "for number in range(200):\n    chat.send_sync(f'Question {number}')\nchat"
    )
    panel = panel_of(cell)
    expect(answers(panel)).to_have_count(200)
    started = time.monotonic()
    send(panel, "Still there?")
    expect(panel.locator(".ak-text").last).to_contain_text("Still there?")
    assert time.monotonic() - started < 10
    log = panel.locator(".ak-log")
    assert log.evaluate("node => Math.abs(node.scrollTop) < 5 && node.scrollHeight > 5000")
    frame = "() => new Promise(go => { const t = performance.now(); requestAnimationFrame(() => requestAnimationFrame(() => go(performance.now() - t))) })"  # noqa: E501
    panel.locator(".ak-compose textarea").press_sequentially("typing stays quick")
    assert lab.page.evaluate(frame) < 1000
    lab.run("chat.clear()")


def test_a_sent_message_comes_into_view_from_any_scroll_position(lab: Lab) -> None:
    panel = panel_of(lab.run("serve(repeat).chat()"))
    send(panel, "line\n" * 60)
    expect_ended(panel, 1)
    panel.locator(".ak-log").evaluate("node => { node.scrollTop = -node.scrollHeight }")
    expect(panel.locator(".ak-foot")).not_to_be_in_viewport()
    send(panel, "שלום")
    expect_ended(panel, 2)
    expect(panel.locator(".ak-foot").last).to_be_in_viewport()
    bubble = panel.locator(".ak-bubble").last
    assert bubble.evaluate("node => getComputedStyle(node).direction") == "rtl"


def luminance(colour: str) -> float:
    red, green, blue = (int(part) / 255 for part in re.findall(r"\d+", colour)[:3])
    return 0.2126 * red**2.2 + 0.7152 * green**2.2 + 0.0722 * blue**2.2


def test_dark_theme_is_readable(lab: Lab) -> None:
    panel = panel_of(lab.run("serve(repeat).chat()"))
    send(panel, "Hello")
    expect_ended(panel, 1)
    looks = "node => [getComputedStyle(node).color, getComputedStyle(node).backgroundColor]"
    for theme in ("JupyterLab Dark", "JupyterLab Light"):
        lab.page.evaluate(
            f"jupyterapp.commands.execute('apputils:change-theme', {{theme: '{theme}'}})"
        )
        lab.page.wait_for_function(
            "theme => document.body.dataset.jpThemeName === theme", arg=theme
        )
        lab.page.wait_for_timeout(500)
        ink, paper = panel.evaluate(looks)
        for node in (panel.locator(".ak-bubble"), panel.locator("pre.ak-pre").first):
            colour, tint = node.evaluate(looks)
            light, dark = sorted((luminance(colour), luminance(tint)), reverse=True)
            assert (light + 0.05) / (dark + 0.05) > 4.5, theme
        assert (luminance(ink) > luminance(paper)) == (theme == "JupyterLab Dark")


@pytest.mark.parametrize("which", ["lab", "older_lab"])
def test_both_widget_versions_send_attach_and_set_options(
    which: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    lab: Lab = request.getfixturevalue(which)
    version = lab.run("import ipywidgets; print(ipywidgets.__version__)")
    expect(version.locator(".jp-OutputArea-output")).to_have_text(
        "7.8.1\n" if which == "older_lab" else re.compile(r"^8\.")
    )
    panel = panel_of(
        lab.run(
            "async def tell(request):\n    yield str(request.instructions) + ' '\n"
            "    async for chunk in repeat(request):\n        yield chunk\n"
            "chat = serve(tell).chat()\nchat"
        )
    )
    panel.get_by_role("button", name="Options").click()
    panel.locator(".ak-settings textarea").fill("Be brief.")
    notes = tmp_path / "notes.txt"
    notes.write_text("milk")
    with lab.page.expect_file_chooser() as chosen:
        panel.locator(".ak-attach").click()
    chosen.value.set_files(notes)
    expect(panel.locator(".ak-compose .ak-attach")).to_contain_text("(1)")
    send(panel, "Read this")
    expect_ended(panel, 1)
    expect(panel.locator(".ak-turn")).to_contain_text("Be brief.")
    expect(panel.locator(".ak-turn")).to_contain_text("You said Read this and File notes.txt:")
    expect(panel.locator(".ak-card .ak-name")).to_have_text("look")
    expect(panel.locator(".ak-file")).to_contain_text("notes.txt")

    field = panel.locator(".ak-compose textarea")
    field.fill("Not sent yet")
    field.press("Shift+Enter")
    turns = lab.run("print(len(chat.turns))")
    expect(turns.locator(".jp-OutputArea-output")).to_have_text("1\n")
    expect(panel.locator(".ak-turn")).to_have_count(1)
    expect(field).to_have_value(re.compile("^Not sent yet"))
