"""The page with hostile content, misbehaving servers, small screens and long conversations."""

import json
import threading
from collections.abc import AsyncIterator
from typing import Any

import pytest
from playwright.sync_api import Browser, Locator, Page, expect
from starlette.responses import JSONResponse, Response
from support.browser import open_page
from support.page_support import (
    Stage,
    answer,
    ask,
    call_item,
    expect_end,
    result_item,
    untraced_server,
    visit,
)
from support.web_stand_in import CUT, StandIn, login_redirect, serve_app, stand_in_server

pytest_plugins = ["support.page_fixtures"]

# Hostile model output -------------------------------------------------------------------------

ATTACKS = [
    "<img src=x onerror=\"window.broken='image'\">",
    "<script>window.broken='script'</script>",
    "<svg onload=\"window.broken='svg'\"><script>window.broken='svg script'</script></svg>",
    "<math><mtext><table><mglyph><style><!--</style><img title='--><img src=x "
    "onerror=window.broken=1>'>",
    "<style>* { display: none !important }</style><link rel=stylesheet href=//evil.example>",
    "<iframe srcdoc=\"<script>parent.broken='frame'</script>\"></iframe>",
    "<form action=https://evil.example><button id=message>Sign in</button></form>",
    '<a href="jav&#x09;ascript:broken=1" style="position:fixed;inset:0">everywhere</a>',
    "[link](javascript:window.broken='link') [data](data:text/html,<script>broken=1</script>)",
    "[vb](vbscript:broken) [file](file:///etc/passwd) [odd](java\tscript:broken=1)",
    '![image](https://evil.example/pixel.png) ![x](x"onerror="broken=1)',
    '```"><script>window.broken=1</script>\nx\n```',
    '<details open ontoggle="window.broken=1"><summary>x</summary></details>',
    "<b id=turns>clobbered</b> <input name=body autofocus onfocus=broken=1>",
]


def expect_harmless(page: Page) -> None:
    assert page.evaluate("window.broken") is None
    found = page.evaluate(
        """() => [...document.querySelectorAll("#turns *")].flatMap((element) => [
          ...(/^(script|style|link|iframe|form|object|embed|base|meta|math)$/i.test(element.tagName)
            && !element.matches(".comment, .editor") ? [element.outerHTML] : []),
          ...[...element.attributes].filter(({ name, value }) =>
            /^(on|style$|srcdoc$|id$)/i.test(name)
            || /^\\s*(javascript|vbscript|file):/i.test(value)
          ).map(({ name }) => `${element.tagName} ${name}`),
        ])"""
    )
    assert found == []
    links = page.evaluate("[...document.querySelectorAll('#turns a')].map((a) => a.href)")
    assert [link for link in links if not link.startswith(("https:", "http:", "mailto:"))] == []
    expect(page.get_by_role("textbox", name="Message")).to_be_visible()


def test_hostile_output_is_shown_harmless(page: Page, stage: Stage) -> None:
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    stage.steps = ["\n\n".join(ATTACKS)]
    visit(page, stage.url)
    ask(page, ATTACKS[0])
    expect_end(page)
    expect(answer(page)).to_contain_text("onerror")
    expect_harmless(page)
    assert not [url for url in asked if "evil" in url]


def test_hostile_output_is_harmless_while_it_streams(page: Page, stage: Stage) -> None:
    text = "\n\n".join(ATTACKS)
    stage.steps = [text[i : i + 5] for i in range(0, len(text), 5)]
    visit(page, stage.url)
    ask(page, "Go")
    expect_end(page)
    expect_harmless(page)


def test_hostile_tools_and_reasoning_are_shown_harmless(page: Page, stage: Stage) -> None:
    text = "\n\n".join(ATTACKS)
    source = {"type": "url_citation", "url": "javascript:broken=1", "title": "Source"}
    source |= {"start_index": 0, "end_index": 1}
    message = {"type": "message", "role": "assistant", "id": "msg_1", "status": "completed"}
    part = {"type": "output_text", "text": "Read this.", "annotations": [source]}
    reasoning = {
        "type": "reasoning",
        "id": "rs_1",
        "summary": [{"type": "summary_text", "text": text}],
    }
    stage.steps = [
        {"type": "response.output_item.done", "item": reasoning},
        call_item("<img src=x onerror=broken=1>", json.dumps({"code": text})),
        result_item(text),
        call_item("search", json.dumps({text: text}), "call_2"),
        result_item(json.dumps({"html": ATTACKS}), "call_2"),
        {"type": "response.output_item.done", "item": message | {"content": [part]}},
    ]
    visit(page, stage.url)
    ask(page, "Go")
    expect_end(page)
    for summary in answer(page).locator("summary").all():
        summary.click()
    expect_harmless(page)
    page.reload()
    expect(answer(page).locator(".bar")).to_be_attached()
    expect_harmless(page)


def test_a_hostile_server_is_shown_harmless(page: Page, stand_in: StandIn) -> None:
    stand_in.info |= {"title": ATTACKS[0], "greeting": ATTACKS[1], "icon": ATTACKS[2]}
    stand_in.info |= {"example_prompts": [ATTACKS[0]], "model": ATTACKS[5]}
    failed = {"status": "failed", "error": {"message": ATTACKS[0], "code": ATTACKS[1]}}
    stand_in.answer({"type": "response.failed", "response": failed})
    visit(page, stand_in.url)
    expect(page.locator("#title")).to_have_text(ATTACKS[0])
    page.get_by_role("button", name=ATTACKS[0]).click()
    expect(answer(page).locator(".problem")).to_contain_text("onerror")
    expect_harmless(page)


# Servers that misbehave -----------------------------------------------------------------------


def test_items_alone_are_an_answer(page: Page, stand_in: StandIn) -> None:
    message = {"type": "message", "role": "assistant", "content": "It is 391."}
    call = {"type": "function_call", "call_id": "c", "name": "add", "arguments": "{}"}
    stand_in.answer(
        {"type": "response.output_item.done", "item": call},
        {
            "type": "response.output_item.done",
            "item": {"type": "function_call_output", "call_id": "c", "output": "391"},
        },
        {"type": "response.output_item.done", "item": message},
    )
    visit(page, stand_in.url)
    ask(page, "What is 17*23?")
    expect_end(page)
    expect(answer(page).locator(".message")).to_have_text("It is 391.")
    expect(answer(page).locator("details.tool")).to_have_attribute("data-state", "done")
    expect(answer(page).locator(".problem")).to_have_count(0)


def test_unusual_framing_is_read(page: Page, stand_in: StandIn) -> None:
    delta = {
        "type": "response.output_text.delta",
        "item_id": "m",
        "output_index": 0,
        "delta": "Zürich 🏔",
    }
    data = json.dumps(delta, ensure_ascii=False).encode()
    whole = b": hello\r\n\r\nretry: 5\r\nevent: x\r\ndata: " + data + b"\r\n\r\n"
    chunks = [whole[i : i + 3] for i in range(0, len(whole), 3)]
    stand_in.answer(*chunks, b"data: [DONE]\r\n\r\n")
    visit(page, stand_in.url)
    ask(page, "Where?")
    expect(answer(page).locator(".message")).to_have_text("Zürich 🏔")
    expect_end(page)
    expect(answer(page).locator(".problem")).to_have_count(0)


DELTA = {
    "type": "response.output_text.delta",
    "item_id": "m",
    "output_index": 0,
    "content_index": 0,
}
HALF = [
    {"type": "response.created", "response": {"status": "in_progress", "output": []}},
    {**DELTA, "delta": "Half of it"},
]
REFUSAL = {"error": {"message": "The request body is too large.", "code": "request_too_large"}}
PROBLEMS: dict[str, tuple[list[Any], Response | None, str]] = {
    "cut": ([*HALF, CUT], None, "The connection was cut before the answer was complete."),
    "ended early": (HALF, None, "The connection was cut before the answer was complete."),
    "failed": (
        [
            *HALF,
            {
                "type": "response.failed",
                "response": {"status": "failed", "error": {"message": "The tool is broken."}},
            },
        ],
        None,
        "The tool is broken.",
    ),
    "error event": (
        [*HALF, {"type": "error", "message": "No more tokens."}],
        None,
        "No more tokens.",
    ),
    "nested error": (
        [*HALF, b'data: {"error": {"message": "Overloaded."}}\n\n'],
        None,
        "Overloaded.",
    ),
    "not JSON": ([*HALF, b"data: <html>\n\n"], None, "an event that cannot be read"),
    "too large": ([], JSONResponse(REFUSAL, 413), "The request body is too large."),
    "plain text": (
        [],
        Response("Bad gateway", 502),
        "The server answered with an error (HTTP 502).",
    ),
    "login": ([], login_redirect(), "You are signed out."),
    "unauthorized": ([], JSONResponse({}, 401), "You are signed out."),
    "login page": ([], Response("<h1>Sign in</h1>", media_type="text/html"), "You are signed out."),
}


@pytest.mark.parametrize("problem", PROBLEMS)
def test_problems_are_readable(page: Page, stand_in: StandIn, problem: str) -> None:
    stand_in.script, stand_in.refusal, message = [PROBLEMS[problem][0]], *PROBLEMS[problem][1:]
    visit(page, stand_in.url)
    ask(page, "Go")
    shown = answer(page).locator(".problem")
    expect(shown.locator("p")).to_contain_text(message)
    expect(page.locator("#announcements")).to_contain_text(message)
    if stand_in.script[0]:
        expect(answer(page).locator(".message")).to_have_text("Half of it")
    name = "Reload" if "signed out" in message else "Retry"
    stand_in.answer({**DELTA, "delta": "Well now."}, b"data: [DONE]\n\n")
    shown.get_by_role("button", name=name).click()
    if name == "Retry":
        expect(answer(page).locator(".message")).to_have_text("Well now.")


def test_a_failure_of_the_agent_after_it_started_is_shown(page: Page, stage: Stage, caplog) -> None:
    stage.steps = ["Well, ", RuntimeError("the password is hunter2")]
    visit(page, stage.url)
    ask(page, "Go")
    shown = answer(page).locator(".problem")
    expect(shown).to_contain_text("The agent failed.")
    expect(answer(page).locator(".message")).to_have_text("Well,")
    assert "hunter2" not in page.content()
    stage.steps = ["Better."]
    shown.get_by_role("button", name="Retry").click()
    expect(answer(page).locator(".message")).to_have_text("Better.")


def test_retry_is_offered_for_the_last_question_alone(page: Page, stage: Stage, caplog) -> None:
    stage.steps = [RuntimeError("out of order")]
    visit(page, stage.url)
    ask(page, "First")
    retry = page.get_by_role("button", name="Retry", exact=True)
    expect(retry).to_be_visible()
    stage.steps = ["Here I am."]
    ask(page, "Second")
    expect_end(page)
    expect(page.locator(".problem")).to_be_visible()
    expect(retry).to_be_hidden()


def test_a_body_over_the_limit_is_reported(page: Page) -> None:
    server = untraced_server(SERVER_MAX_BODY_BYTES="1000")
    server.invoke()(lambda request: "answer")
    with server.serve() as url:
        visit(page, url)
        ask(page, "x" * 2000)
        expect(answer(page).locator(".problem")).to_contain_text("larger than 1,000 bytes")


def test_an_unreachable_server_is_reported(page: Page) -> None:
    with stand_in_server() as stand_in:
        stand_in.answer({**DELTA, "delta": "Hello"}, b"data: [DONE]\n\n")
        visit(page, stand_in.url)
        ask(page, "Go")
        expect_end(page)
    ask(page, "Are you there?")
    expect(answer(page).locator(".problem")).to_contain_text("The server cannot be reached.")
    expect(page.locator(".turn").first).to_contain_text("Hello")


@pytest.mark.parametrize("task", ["agent/v1/chat", "agent/v2/chat"])
def test_agents_of_the_chat_tasks_answer(page: Page, task: str) -> None:
    server = untraced_server(task)

    @server.stream()
    async def repeat(request: Any) -> AsyncIterator[str]:
        asked = [message for message in request.payload()["messages"] if message["role"] == "user"]
        for word in ("You", " said", f" **{asked[-1]['content']}**", f" ({len(asked)})"):
            yield word

    with server.serve() as url:
        visit(page, url)
        ask(page, "one")
        expect_end(page)
        ask(page, "two")
        expect(answer(page).locator(".message")).to_have_text("You said two (2)")
        expect(answer(page).locator("strong")).to_have_text("two")
        expect_end(page)


# Background runs ------------------------------------------------------------------------------


def background(stand_in: StandIn) -> threading.Event:
    """Script a background run; return the event that starts its second half."""
    go_on = threading.Event()
    stand_in.info["features"] = {"background": True}
    end = {"type": "response.completed", "response": {"status": "completed"}}
    stand_in.answer(*HALF, go_on, {**DELTA, "delta": ", and the rest."}, end)
    return go_on


def test_a_reload_resumes_the_answer(page: Page, stand_in: StandIn) -> None:
    go_on = background(stand_in)
    visit(page, stand_in.url)
    ask(page, "Go")
    expect(answer(page).locator(".message")).to_have_text("Half of it")
    page.reload()
    expect(page.get_by_role("button", name="Stop")).to_be_visible()
    expect(answer(page).locator(".message")).to_have_text("Half of it")
    go_on.set()
    expect(answer(page).locator(".message")).to_have_text("Half of it, and the rest.")
    expect_end(page)
    assert stand_in.requests[0]["background"] is True
    assert stand_in.resumed_after[-1] == 1


def test_a_cut_connection_resumes_the_answer(page: Page, stand_in: StandIn) -> None:
    go_on = background(stand_in)
    stand_in.script[0].insert(2, CUT)
    visit(page, stand_in.url)
    ask(page, "Go")
    expect(answer(page).locator(".message")).to_have_text("Half of it")
    go_on.set()
    expect(answer(page).locator(".message")).to_have_text("Half of it, and the rest.")
    expect_end(page)
    expect(answer(page).locator(".problem")).to_have_count(0)
    assert len(stand_in.requests) == 1


def test_stop_cancels_a_background_run(page: Page, stand_in: StandIn) -> None:
    go_on = background(stand_in)
    visit(page, stand_in.url)
    ask(page, "Go")
    expect(answer(page).locator(".message")).to_have_text("Half of it")
    with page.expect_response("**/cancel"):
        page.get_by_role("button", name="Stop").click()
    expect(answer(page).locator(".note")).to_have_text("Stopped")
    assert stand_in.cancelled == ["resp_1"]
    go_on.set()


# Appearance and accessibility -----------------------------------------------------------------


def test_the_settings_name_the_page(page: Page) -> None:
    server = untraced_server(
        SERVER_TITLE="Sales helper",
        SERVER_ICON="🧮",
        SERVER_GREETING="Ask me about <sales>.",
        SERVER_EXAMPLE_PROMPTS="Best month?\nWorst month?",
    )
    server.invoke()(lambda request: "May.")
    with server.serve() as url:
        visit(page, url)
        expect(page).to_have_title("Sales helper")
        expect(page.get_by_role("heading", name="Sales helper")).to_be_visible()
        expect(page.locator("#greeting")).to_have_text("Ask me about <sales>.")
        expect(page.locator(".agent-icon.large")).to_have_text("🧮")
        expect(page.locator("#examples button")).to_have_text(["Best month?", "Worst month?"])
        icon = page.evaluate("fetch(document.querySelector('#favicon').href).then((r) => r.text())")
        assert "🧮" in icon


def test_a_custom_page_reloads_when_it_changes(page: Page, tmp_path) -> None:
    path = tmp_path / "index.html"
    path.write_text("<!doctype html><html><head><title>One</title></head><body>Mine</body></html>")
    server = untraced_server(SERVER_WEB_DIR=str(tmp_path))
    server.invoke()(lambda request: "answer")
    with server.serve() as url:
        page.goto(f"{url}/")
        expect(page).to_have_title("One")
        page.wait_for_function(
            "performance.getEntriesByName(location.href + 'agent/page-version').length"
        )
        path.write_text(path.read_text().replace("One", "Two"))
        expect(page).to_have_title("Two")


def test_the_page_works_under_a_prefix(page: Page) -> None:
    server = untraced_server()
    server.invoke()(lambda request: "Found.")

    async def proxy(scope: Any, receive: Any, send: Any) -> None:
        """Forward requests below /agents/sales, as a reverse proxy does."""
        if scope["type"] == "http":
            path = scope["path"].removeprefix("/agents/sales")
            if path == scope["path"]:
                return await Response("elsewhere", 404)(scope, receive, send)
            scope = {**scope, "path": path, "raw_path": path.encode()}
        await server.app(scope, receive, send)

    with serve_app(proxy) as url:
        visit(page, f"{url}/agents/sales/")
        ask(page, "Where are you?")
        expect_end(page)
        expect(answer(page).locator(".message")).to_have_text("Found.")
        manifest = page.evaluate(
            "fetch(document.querySelector('link[rel=manifest]').href).then((reply) => reply.json())"
        )
        assert manifest["name"] == "Agent Kit"


def test_a_keyboard_is_enough(page: Page, stage: Stage) -> None:
    visit(page, stage.url)
    expect(page.get_by_role("textbox", name="Message")).to_be_focused()
    page.keyboard.type("First line")
    page.keyboard.press("Shift+Enter")
    page.keyboard.type("second line")
    page.keyboard.press("Enter")
    expect_end(page)
    assert stage.texts() == ["First line\nsecond line"]
    reached = []
    for _ in range(16):
        page.keyboard.press("Shift+Tab")
        reached.append(page.evaluate("document.activeElement.ariaLabel ?? ''"))
        if reached[-1] == "Answer again":
            break
    assert "Copy answer" in reached or reached[-1] == "Answer again"
    outline = page.evaluate("getComputedStyle(document.activeElement).outlineStyle")
    assert outline == "solid"
    stage.steps = ["Again"]
    page.keyboard.press("Enter")
    expect(answer(page).locator(".message")).to_have_text("Again")


def test_enter_does_not_send_while_a_character_is_composed(page: Page, stage: Stage) -> None:
    visit(page, stage.url)
    page.get_by_role("textbox", name="Message").fill("にほん")
    page.locator("#message").dispatch_event("keydown", {"key": "Enter", "isComposing": True})
    assert stage.requests == []
    expect(page.locator("#message")).to_have_value("にほん")


def test_a_screen_reader_hears_the_finished_answer(page: Page, stage: Stage) -> None:
    go_on = threading.Event()
    stage.steps = ["It is ", go_on, "391."]
    visit(page, stage.url)
    ask(page, "What is 17*23?")
    log = page.get_by_role("log", name="Conversation")
    expect(log).to_contain_text("It is")
    live = page.locator("#announcements")
    expect(live).to_have_attribute("aria-live", "polite")
    expect(live).to_have_text("The agent is working.")
    go_on.set()
    expect(live).to_have_text("It is 391.")
    expect(log.get_by_role("heading", name="You", exact=True)).to_be_attached()
    assert nameless(page) == []


def nameless(page: Page) -> list[str]:
    """Return the interactive elements without an accessible name."""
    return page.evaluate(
        """[...document.querySelectorAll("button, a, input:not([hidden]), textarea")]
        .filter((element) => element.checkVisibility() && !element.ariaLabel
          && !element.innerText.trim() && !element.labels?.length)
        .map((element) => element.outerHTML)"""
    )


def overflow(page: Page) -> list[str]:
    """Return the elements that overflow the right edge without a scroll bar of their own."""
    return page.evaluate(
        """[document.documentElement, ...document.querySelectorAll("main, .turn, .answer, .bubble")]
        .filter((element) => element.scrollWidth > element.clientWidth + 1)
        .map((element) => `${element.tagName}.${element.className}`)"""
    )


LONG = [
    "https://example.org/" + "a" * 300,
    "Donaudampfschifffahrtsgesellschaftskapitän" * 10,
    "```python\n" + "x = '" + "y" * 500 + "'\n" + "print(x)\n" * 100 + "```",
    "| " + " | ".join(f"column {i}" for i in range(20)) + " |\n" + "|--" * 20 + "|\n",
    "שלום עולם, זה **מבחן** של `code` בעברית.",
]


@pytest.mark.parametrize("width", [360, 1280])
def test_long_and_foreign_text_fits(browser: Browser, stage: Stage, width: int) -> None:
    stage.steps = ["\n\n".join(LONG)]
    viewport = {"width": width, "height": 740}
    with open_page(browser, viewport=viewport, has_touch=width < 500) as page:
        visit(page, stage.url)
        assert overflow(page) == []
        ask(page, LONG[1])
        expect_end(page)
        assert overflow(page) == []
        box = page.get_by_role("textbox", name="Message").bounding_box()
        assert box
        assert box["y"] + box["height"] < 740
        hebrew = answer(page).get_by_text("שלום עולם")
        rect = hebrew.evaluate(
            "(p) => { const r = document.createRange(); r.selectNodeContents(p.firstChild);"
            " const last = [...r.getClientRects()][0], outer = p.getBoundingClientRect();"
            " return outer.right - last.right; }"
        )
        assert rect < 2, "Hebrew begins at the right"
        if width < 500:
            sizes = page.evaluate(
                "[...document.querySelectorAll('header button, .composer button')]"
                ".filter((each) => each.checkVisibility())"
                ".map((each) => Math.min(each.offsetWidth, each.offsetHeight))"
            )
            assert min(sizes) >= 36
            assert nameless(page) == []


FOREIGN = """- פריט ראשון
- פריט שני

> ציטוט בעברית

| עמודה | ערך |
|---|---|
| שלום | 12 |

```python
print("שלום")
```

- an item
- פריט
"""


def test_lists_quotes_and_tables_run_in_the_direction_of_their_script(
    page: Page, stage: Stage
) -> None:
    stage.steps = [FOREIGN]
    visit(page, stage.url)
    ask(page, "שלום")
    expect_end(page)
    blocks = answer(page).locator(".prose > *")
    directions = blocks.evaluate_all("all => all.map((each) => getComputedStyle(each).direction)")
    assert directions == ["rtl", "rtl", "rtl", "ltr", "ltr"]
    first, second = answer(page).locator("th").all()
    assert_right_of(first, second)
    assert_right_of(blocks.nth(0), answer(page).locator("li").first, by=10)


def assert_right_of(one: Locator, other: Locator, by: float = 0) -> None:
    right, left = (each.evaluate("e => e.getBoundingClientRect().right") for each in (one, other))
    assert right > left + by


def luminance(page: Page) -> int:
    colour = page.evaluate("getComputedStyle(document.body).backgroundColor")
    return sum(int(part) for part in colour[4:-1].split(","))


def test_dark_and_light_follow_the_system_and_the_choice(browser: Browser, stage: Stage) -> None:
    with open_page(browser, color_scheme="dark") as page:
        visit(page, stage.url)
        assert luminance(page) < 150
        page.get_by_role("button", name="Light or dark").click()
        assert luminance(page) > 600
        page.reload()
        assert luminance(page) > 600


def test_nothing_moves_where_motion_is_unwanted(browser: Browser, stage: Stage) -> None:
    stage.steps = ["One", threading.Event()]
    with open_page(browser, reduced_motion="reduce") as page:
        visit(page, stage.url)
        ask(page, "Go")
        expect(answer(page).locator(".message")).to_have_text("One")
        assert page.evaluate("document.getAnimations().length") == 0
        page.keyboard.press("Escape")


# Long content ---------------------------------------------------------------------------------


def test_a_huge_result_is_folded(page: Page, stage: Stage) -> None:
    stage.steps = [call_item("read", "{}"), result_item("0123456789abcde\n" * 65_536), "Read."]
    visit(page, stage.url)
    ask(page, "Read it")
    expect_end(page)
    tool = answer(page).locator("details.tool")
    assert tool.get_attribute("open") is None
    milliseconds = tool.locator("summary").evaluate(
        """(summary) => new Promise((resolve) => {
          const started = performance.now();
          summary.click();
          const painted = () => resolve(performance.now() - started);
          requestAnimationFrame(() => requestAnimationFrame(painted));
        })"""
    )
    assert milliseconds < 2000
    expect(tool.get_by_text("Show all 1,049,000 characters")).to_be_visible()
    page.get_by_role("textbox", name="Message").fill("Next")
    page.keyboard.press("Enter")
    expect(page.locator(".turn")).to_have_count(2)


def test_a_long_conversation_stays_responsive(page: Page, stage: Stage) -> None:
    text = "Some **text**:\n\n```python\nprint('hello')\n```\n\n| a | b |\n|--|--|\n| 1 | 2 |"
    item = {"type": "message", "role": "assistant", "status": "completed", "id": "msg_1"}
    item["content"] = [{"type": "output_text", "text": text, "annotations": []}]
    done = {"status": "completed", "output": [item], "background": False, "clocks": {}}
    done |= {"startedAt": 1, "firstAt": 2, "endedAt": 3, "error": None, "usage": None}
    turns = [
        {"question": {"text": f"Question {i}", "attachments": []}, "answer": done}
        for i in range(200)
    ]
    stored = json.dumps({"version": 1, "id": "conv-1", "turns": turns})
    page.add_init_script(
        f"sessionStorage.setItem('agent-kit:conversation:/', {json.dumps(stored)});"
        "window.delays = [];"
        "new PerformanceObserver((list) => window.delays.push(...list.getEntries()"
        ".filter(({name}) => name === 'keydown').map(({duration}) => duration)))"
        ".observe({type: 'event', durationThreshold: 16, buffered: true});"
    )
    visit(page, stage.url)
    expect(page.locator(".turn")).to_have_count(200)
    expect(page.get_by_text("Question 199")).to_be_in_viewport()
    stage.steps = [f"word {i} " for i in range(300)]
    ask(page, "Go on")
    page.keyboard.type("Typed while the answer comes, and it must not lag", delay=5)
    expect_end(page)
    assert len(stage.texts()) == 401
    delays = sorted(page.evaluate("window.delays"))
    assert not delays or delays[-1] < 1000, delays
    assert len([delay for delay in delays if delay > 100]) <= 5, delays
