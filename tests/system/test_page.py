"""The page in a real browser: every action of a user."""

import json
import threading
from collections.abc import Iterator
from pathlib import Path

import httpx2
import pytest
from playwright.sync_api import Browser, Page, expect
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
from support.python_agent import python_agent
from support.web_stand_in import StandIn

from agent_kit.evaluate import evaluate
from agent_kit.evaluate.datasets import load_cases
from agent_kit.server import create_server
from agent_kit.settings import Settings
from agent_kit.tracing import close_tracing

pytest_plugins = ["support.page_fixtures", "support.tracing_fixtures"]
# MLflow uses what SQLAlchemy 2.1 deprecates, and warns of its own type hints on import.
pytestmark = [
    pytest.mark.filterwarnings("ignore::sqlalchemy.exc.SADeprecationWarning"),
    pytest.mark.filterwarnings("ignore:.*Any type hint:UserWarning"),
]


def test_an_agent_answers_with_a_tool(page: Page, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AGENT_KIT_MLFLOW_TRACING", "false")
    with python_agent().serve() as url:
        visit(page, url)
        expect(page).to_have_title("Agent Kit")
        page.get_by_role("button", name="What is 17*23?").click()
        expect_end(page)
        expect(answer(page).locator(".message")).to_contain_text("391")
        tool = answer(page).locator("details.tool")
        expect(tool).to_have_attribute("data-state", "done")
        expect(tool.locator(".tool-name")).to_have_text("python_exec")
        expect(tool.locator(".code").last).to_contain_text("391")
        expect(answer(page).locator(".metrics")).to_contain_text("total")


def test_text_streams_before_the_end(page: Page, stage: Stage) -> None:
    go_on = threading.Event()
    stage.steps = ["The first half, ", go_on, "the second half."]
    visit(page, stage.url)
    ask(page, "Tell me")
    expect(answer(page).locator(".message")).to_have_text("The first half,")
    expect(page.get_by_role("button", name="Stop")).to_be_visible()
    go_on.set()
    expect(answer(page).locator(".message")).to_have_text("The first half, the second half.")
    expect_end(page)


def test_markdown_tables_and_code_are_shown(page: Page, stage: Stage) -> None:
    table = "| a | b |\n|--|--|\n| 1 | 2 |"
    text = f"# Plan\n\n{table}\n\n```python\nprint('hi')  # say it\n```\n\n- [x] *done*"
    stage.steps = [text[i : i + 7] for i in range(0, len(text), 7)]
    visit(page, stage.url)
    ask(page, "Plan")
    expect_end(page)
    expect(answer(page).get_by_role("heading", name="Plan")).to_be_visible()
    expect(answer(page).get_by_role("cell", name="2")).to_be_visible()
    expect(answer(page).locator(".code-comment")).to_have_text("# say it")
    expect(answer(page).locator("em")).to_have_text("done")


def test_tools_and_reasoning_have_their_place(page: Page, stage: Stage) -> None:
    go_on = threading.Event()
    reasoning = {
        "type": "reasoning",
        "id": "rs_1",
        "summary": [{"type": "summary_text", "text": "Hm."}],
    }
    stage.steps = [
        {"type": "response.output_item.done", "item": reasoning},
        call_item("opening_hours", '{"place": "museum"}'),
        go_on,
        result_item('{"open": "10:00"}'),
        call_item("long", '{"query": "select 1"}', "call_2"),
        result_item("row\n" * 200, "call_2"),
        "Until five.",
    ]
    visit(page, stage.url)
    ask(page, "Open?")
    tool = answer(page).locator("details.tool").first
    expect(tool).to_have_attribute("data-state", "running")
    expect(tool.locator(".tool-status")).to_have_text("Running")
    go_on.set()
    expect_end(page)
    expect(tool).to_have_attribute("data-state", "done")
    expect(tool.locator(".tool-status")).to_contain_text("s")
    expect(tool.locator(".code").last).to_contain_text('"10:00"')
    long = answer(page).locator("details.tool").last
    assert long.get_attribute("open") is None
    long.locator("summary").click()
    expect(long.locator(".code").last).to_be_visible()
    thinking = answer(page).locator("details.reasoning")
    expect(thinking.get_by_text("Hm.")).to_be_hidden()
    thinking.locator("summary").click()
    expect(thinking.get_by_text("Hm.")).to_be_visible()


def test_a_tool_shows_how_it_ended_and_the_next_question_informs_the_agent(
    page: Page, stage: Stage
) -> None:
    failed = result_item("no museum", "call_2")
    failed["item"]["status"] = "incomplete"
    stage.steps = [
        *(call_item("add", '{"a": 1}'), result_item("2")),
        *(call_item("find", "{}", "call_2"), failed),
        call_item("wait", '{"place": "museum"}', "call_3"),
        threading.Event(),
    ]
    visit(page, stage.url)
    ask(page, "Try")
    tools = answer(page).locator("details.tool")
    expect(tools).to_have_count(3)
    expect(tools.nth(1).locator(".tool-status")).to_contain_text("Failed")
    expect(tools.nth(1).locator(".code").last).to_have_text("no museum")
    expect(tools.nth(2).locator(".tool-preview")).to_contain_text("museum")
    page.get_by_role("button", name="Stop").click()
    expect(tools.nth(2).locator(".tool-status")).to_contain_text("No result")
    expect_end(page)
    stage.steps = ["Yes."]
    ask(page, "And?")
    expect(answer(page).locator(".message")).to_have_text("Yes.")
    called = [item for item in stage.requests[-1].input if "call_id" in item]
    assert [(item["call_id"], item.get("name"), item.get("output")) for item in called] == [
        *(("call_1", "add", None), ("call_1", None, "2")),
        *(("call_2", "find", None), ("call_2", None, "no museum")),
    ]


@pytest.mark.parametrize("how", ["button", "escape"])
def test_stop_closes_the_agents_generator(page: Page, stage: Stage, how: str) -> None:
    stage.steps = ["Once upon a time", threading.Event()]
    visit(page, stage.url)
    ask(page, "A story")
    expect(answer(page).locator(".message")).to_have_text("Once upon a time")
    if how == "button":
        page.get_by_role("button", name="Stop").click()
    else:
        page.keyboard.press("Escape")
    expect(answer(page).locator(".note")).to_have_text("Stopped")
    assert stage.closed.wait(50), "the agent continues"
    stage.steps = ["Another one."]
    ask(page, "Another")
    expect(answer(page).locator(".message")).to_have_text("Another one.")
    assert stage.texts() == ["A story", "Once upon a time", "Another"]


def test_retry_and_edit_ask_again(page: Page, stage: Stage) -> None:
    visit(page, stage.url)
    stage.steps = ["One"]
    ask(page, "First")
    expect_end(page)
    stage.steps = ["Two"]
    ask(page, "Second")
    expect(answer(page).locator(".message")).to_have_text("Two")
    expect_end(page)
    stage.steps = ["Two, better"]
    answer(page).get_by_role("button", name="Answer again").click()
    expect(answer(page).locator(".message")).to_have_text("Two, better")
    assert stage.texts() == ["First", "One", "Second"]
    expect_end(page)

    page.locator(".question").first.hover()
    page.get_by_role("button", name="Edit question").first.click()
    editor = page.get_by_role("textbox", name="Edit question")
    expect(editor).to_be_focused()
    editor.fill("First, changed")
    stage.steps = ["Only one"]
    page.keyboard.press("Enter")
    expect(answer(page).locator(".message")).to_have_text("Only one")
    assert stage.texts() == ["First, changed"]
    expect(page.locator(".turn")).to_have_count(1)
    expect_end(page)
    page.get_by_role("button", name="Undo").click()
    expect(page.locator(".turn")).to_have_count(2)
    expect(answer(page).locator(".message")).to_have_text("Two, better")


def test_editing_can_be_cancelled(page: Page, stage: Stage) -> None:
    visit(page, stage.url)
    ask(page, "First")
    expect_end(page)
    page.locator(".question").first.hover()
    page.get_by_role("button", name="Edit question").click()
    page.get_by_role("textbox", name="Edit question").fill("Never mind")
    page.keyboard.press("Escape")
    expect(page.locator(".bubble")).to_have_text("First")
    assert len(stage.requests) == 1


def test_a_new_chat_starts_and_can_be_undone(page: Page, stage: Stage) -> None:
    visit(page, stage.url)
    ask(page, "First")
    expect_end(page)
    page.get_by_role("button", name="New chat").click()
    expect(page.locator(".turn")).to_have_count(0)
    expect(page.locator("#welcome")).to_be_visible()
    expect(page.get_by_role("textbox", name="Message")).to_be_focused()
    page.get_by_role("button", name="Undo").click()
    expect(page.locator(".turn")).to_have_count(1)


def test_a_reload_restores_the_conversation(page: Page, stage: Stage) -> None:
    visit(page, stage.url)
    ask(page, "First")
    expect_end(page)
    page.reload()
    expect(answer(page).locator(".message")).to_have_text("Hello")
    ask(page, "Second")
    expect_end(page)
    assert stage.texts() == ["First", "Hello", "Second"]


def test_a_reload_during_a_stream_continues_the_answer(page: Page, stage: Stage) -> None:
    go_on = threading.Event()
    stage.steps = ["The first half, ", go_on, "the second half."]
    visit(page, stage.url)
    ask(page, "Tell me")
    expect(answer(page).locator(".message")).to_have_text("The first half,")
    page.reload()
    expect(answer(page).locator(".message")).to_have_text("The first half,")
    expect(page.get_by_role("button", name="Stop")).to_be_visible()
    assert not stage.closed.is_set()
    go_on.set()
    expect(answer(page).locator(".message")).to_have_text("The first half, the second half.")
    expect_end(page)
    assert len(stage.requests) == 1


def test_a_reload_without_a_store_reports_an_incomplete_answer(page: Page) -> None:
    stage = Stage(["The first half", threading.Event()])
    server = untraced_server(STORE_URL="none")
    server.stream()(stage.answer)
    with server.serve() as url:
        visit(page, url)
        expect(page.get_by_role("button", name="Conversations")).to_be_hidden()
        ask(page, "Tell me")
        expect(answer(page).locator(".message")).to_have_text("The first half")
        page.reload()
        expect(answer(page).locator(".message")).to_have_text("The first half")
        expect(answer(page).locator(".problem")).to_contain_text("before the answer was complete")
        assert stage.closed.wait(50)


def test_answers_questions_and_code_can_be_copied(browser: Browser, stage: Stage) -> None:
    stage.steps = ["Run **this**:\n\n```sh\nls -l\n```\n"]
    with open_page(browser, permissions=["clipboard-read", "clipboard-write"]) as page:
        visit(page, stage.url)
        ask(page, "How?")
        expect_end(page)
        for name, text in (
            ("Copy answer", stage.steps[0]),
            ("Copy code", "ls -l"),
            ("Copy question", "How?"),
        ):
            page.locator(".question").hover()
            page.get_by_role("button", name=name).click()
            expect(page.locator("#announcements")).to_have_text("Copied")
            assert page.evaluate("navigator.clipboard.readText()").strip() == text.strip()


def saved(page: Page, name: str) -> str:
    """Choose an export and return the file's text."""
    page.get_by_role("button", name="Export").click()
    with page.expect_download() as download:
        page.get_by_role("button", name=name).click()
    return Path(download.value.path()).read_text()


def test_a_conversation_can_be_exported(page: Page, stage: Stage) -> None:
    stage.steps = [call_item("add", '{"a": 1}'), result_item("```2```"), "It is 2."]
    visit(page, stage.url)
    ask(page, "Add")
    expect_end(page)
    exported = json.loads(saved(page, "JSON"))
    (turn,) = exported["turns"]
    assert turn["input"] == {"role": "user", "content": "Add"}
    assert [item["type"] for item in turn["output"]] == ["mcp_call", "message"]
    assert turn["status"] == "completed"
    markdown = saved(page, "Markdown")
    assert "## You\n\nAdd" in markdown
    assert '**Tool add**\n\n```json\n{"a": 1}\n```' in markdown
    assert "````text\n```2```\n````" in markdown
    assert "It is 2." in markdown


@pytest.mark.parametrize(
    ("choice", "written", "expected"),
    [
        (None, "391\n\nIt is", {"expected_facts": ["391", "It is"]}),
        ("is this, word for word", None, {"expected_response": "It is 391."}),
        (None, "", {}),
    ],
)
def test_a_conversation_becomes_an_evaluation_case(
    page: Page, stage: Stage, tmp_path, choice, written, expected
) -> None:
    visit(page, stage.url)
    ask(page, "First")
    expect_end(page)
    stage.steps = ["It is 391."]
    ask(page, "What is 17*23?")
    expect(answer(page).locator(".message")).to_have_text("It is 391.")
    expect_end(page)
    page.get_by_role("button", name="Export").click()
    page.get_by_role("button", name="Evaluation case").click()
    field = page.get_by_label("What a good answer contains or is")
    expect(field).to_have_value("")
    if choice:
        page.get_by_label("A good answer", exact=True).select_option(choice)
        expect(field).to_have_value("It is 391.")
    if written:
        field.fill(written)
    with page.expect_download() as download:
        page.get_by_role("button", name="Download").click()
    path = tmp_path / "case.jsonl"
    download.value.save_as(path)
    (case,) = load_cases(path)
    assert [item["content"] for item in case.inputs["input"]] == [
        "First",
        "Hello",
        "What is 17*23?",
    ]
    assert case.expectations == expected
    expect(page.get_by_role("dialog")).to_be_hidden()
    server = untraced_server()
    server.invoke()(lambda request: "It is 391.")
    assert not evaluate(server, dataset=path, log=False).failures


def test_files_can_be_attached(page: Page, stage: Stage) -> None:
    pixel = (
        b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR\0\0\0\1\0\0\0\1\10\6\0\0\0\x1f\x15\xc4\x89\0\0\0\rIDATx\x9cc"
        b"\xf8\xcf\xc0\xf0\x1f\0\5\0\1\xff\x89\x99=\x1d\0\0\0\0IEND\xaeB`\x82"
    )
    visit(page, stage.url)
    page.locator("#picker").set_input_files(
        [
            {"name": "note.txt", "mimeType": "text/plain", "buffer": b"42"},
            {"name": "dot.png", "mimeType": "image/png", "buffer": pixel},
            {"name": "a.bin", "mimeType": "application/octet-stream", "buffer": b"\0\1"},
        ]
    )
    expect(page.locator("#toast")).to_contain_text("a.bin is no picture and no text")
    expect(page.locator("#attachments .chip")).to_have_count(2)
    ask(page, "What is this?")
    expect_end(page)
    parts = stage.requests[-1].input[0]["content"]
    assert [part["type"] for part in parts] == ["input_text", "input_text", "input_image"]
    assert parts[1]["text"].endswith("42")
    assert parts[2]["image_url"].startswith("data:image/png;base64,")
    expect(page.locator(".question img")).to_be_visible()

    page.get_by_role("button", name="New chat").click()
    page.get_by_role("button", name="Conversations").click()
    page.get_by_role("dialog").get_by_role("button", name="What is this?").first.click()
    expect(page.locator(".bubble")).to_have_text("What is this?")
    expect(page.locator(".question .chip")).to_have_text(["note.txt", "Picture"])
    expect(page.locator(".question img")).to_be_visible()


def test_earlier_conversations_are_listed_opened_and_deleted(page: Page, stage: Stage) -> None:
    visit(page, stage.url)
    stage.steps = [call_item("add", '{"a": 1}'), result_item("391"), "It is **391**."]
    ask(page, "What is 17*23?")
    expect_end(page)
    page.get_by_role("button", name="New chat").click()
    stage.steps = ["Fine."]
    ask(page, "How are you?")
    expect_end(page)

    page.get_by_role("button", name="Conversations").click()
    drawer = page.get_by_role("dialog", name="Conversations")
    newest = drawer.get_by_role("button", name="How are you?", exact=False).first
    expect(newest).to_have_attribute("aria-current", "true")
    drawer.get_by_role("button", name="What is 17*23?").first.click()
    expect(drawer).to_be_hidden()
    expect(answer(page).locator(".message")).to_have_text("It is 391.")
    expect(answer(page).locator("details.tool .tool-name")).to_have_text("add")
    ask(page, "And 17*24?")
    expect_end(page)
    assert stage.texts() == ["What is 17*23?", "It is **391**.", "And 17*24?"]

    page.get_by_role("button", name="Conversations").click()
    drawer.get_by_role("listitem").filter(has_text="How are you?").hover()
    drawer.get_by_role("button", name="Delete How are you?").click()
    expect(drawer.get_by_text("How are you?")).to_have_count(0)
    page.keyboard.press("Escape")
    expect(drawer).to_be_hidden()


def test_the_list_of_conversations_continues_after_one_that_was_deleted(
    page: Page, stage: Stage
) -> None:
    made = [
        httpx2.post(f"{stage.url}/v1/conversations", json={"metadata": {"title": f"Topic {n:02}"}})
        for n in range(54)
    ]
    visit(page, stage.url)
    page.get_by_role("button", name="Conversations").click()
    drawer = page.get_by_role("dialog", name="Conversations")
    entries = drawer.get_by_role("listitem").filter(has_text="Topic")
    expect(entries).to_have_count(50)
    drawer.get_by_role("button", name="Delete Topic 04").click()
    expect(entries).to_have_count(49)
    drawer.get_by_role("button", name="Show more").click()
    expect(entries).to_have_count(53)
    page.keyboard.press("Escape")
    page.get_by_role("button", name="Conversations").click()
    expect(entries).to_have_count(50)
    httpx2.delete(f"{stage.url}/v1/conversations/{made[3].json()['id']}")
    drawer.get_by_role("button", name="Show more").click()
    expect(drawer.get_by_text("Topic 03")).to_have_count(0)
    expect(entries).to_have_count(50)


def open_earlier(page: Page, title: str) -> None:
    page.get_by_role("button", name="Conversations").click()
    page.get_by_role("dialog").get_by_role("button", name=title).first.click()


def test_a_second_window_follows_the_answer_in_progress(
    page: Page, browser: Browser, stage: Stage
) -> None:
    go_on = threading.Event()
    stage.steps = ["The first half, ", go_on, "the second half."]
    visit(page, stage.url)
    ask(page, "Tell me a story")
    expect(answer(page).locator(".message")).to_have_text("The first half,")
    with open_page(browser) as second:
        visit(second, stage.url)
        open_earlier(second, "Tell me a story")
        expect(second.locator(".bubble")).to_have_text("Tell me a story")
        expect(answer(second).locator(".message")).to_have_text("The first half,")
        expect(second.get_by_role("button", name="Stop")).to_be_visible()
        go_on.set()
        whole = "The first half, the second half."
        for window in (second, page):
            expect(answer(window).locator(".message")).to_have_text(whole)
            expect_end(window)
        stage.steps = ["Once more."]
        ask(second, "Again")
        expect_end(second)
        assert stage.texts() == ["Tell me a story", whole, "Again"]


def test_a_second_window_can_stop_the_answer(page: Page, browser: Browser, stage: Stage) -> None:
    visit(page, stage.url)
    ask(page, "First")
    expect_end(page)
    stage.steps = ["Half", threading.Event()]
    stage.closed.clear()
    ask(page, "Second")
    expect(answer(page).locator(".message")).to_have_text("Half")
    with open_page(browser) as second:
        visit(second, stage.url)
        open_earlier(second, "First")
        expect(second.locator(".bubble")).to_have_text(["First", "Second"])
        expect(answer(second).locator(".message")).to_have_text("Half")
        second.get_by_role("button", name="Stop").click()
        assert stage.closed.wait(50), "the agent continues"
    expect_end(page)


def test_the_server_stores_what_the_page_shows(page: Page, stage: Stage) -> None:
    stage.steps = ["One"]
    visit(page, stage.url)
    ask(page, "First")
    expect_end(page)
    stage.steps = ["Half", threading.Event()]
    ask(page, "Second")
    expect(answer(page).locator(".message")).to_have_text("Half")
    page.keyboard.press("Escape")
    stage.steps = ["Three"]
    ask(page, "Third")
    expect(answer(page).locator(".message")).to_have_text("Three")
    expect_end(page)
    whole = ["First", "One", "Second", "Half", "Third"]
    assert stage.texts() == whole
    answer(page).get_by_role("button", name="Answer again").click()
    expect_end(page)
    assert stage.texts() == whole
    page.get_by_role("button", name="New chat").click()
    page.get_by_role("button", name="Undo").click()
    ask(page, "Fourth")
    expect(page.locator(".turn")).to_have_count(4)
    expect_end(page)
    assert stage.texts() == [*whole, "Three", "Fourth"]


def test_a_conversation_that_was_deleted_elsewhere_is_recreated(page: Page, stage: Stage) -> None:
    visit(page, stage.url)
    ask(page, "First")
    expect_end(page)
    page.evaluate(
        """async () => {
          const { id } = JSON.parse(sessionStorage.getItem("agent-kit:conversation:/"));
          await fetch(`v1/conversations/${id}`, { method: "DELETE" });
        }"""
    )
    ask(page, "Second")
    expect(answer(page).locator(".problem")).to_contain_text("not found")
    answer(page).get_by_role("button", name="Retry").click()
    expect(answer(page).locator(".message")).to_have_text("Hello")
    assert stage.texts() == ["First", "Hello", "Second"]


@pytest.fixture
def traced(project: Settings) -> Iterator[str]:
    """The URL of a server whose traces are stored."""
    server = create_server(settings=project)
    server.invoke()(lambda request: "It is 390.")
    with server.serve() as url:
        yield url
        assert close_tracing(60)


def give_feedback(page: Page, name: str, comment: str) -> str:
    """Press a feedback button and add a comment; return the id of the trace."""
    button = answer(page).get_by_role("button", name=name)
    with page.expect_response("**/agent/feedback") as first:
        button.click()
        expect(button).to_have_attribute("aria-pressed", "true")
        page.get_by_label("Comment on the answer").fill(comment)
    with page.expect_response("**/agent/feedback") as second:
        page.get_by_label("Comment on the answer").press("Enter")
    assert (first.value.status, second.value.status) == (200, 200)
    expect(page.get_by_text("Thank you")).to_be_visible()
    return second.value.json()["trace_id"]


def assessments(settings: Settings, trace_id: str) -> list[tuple]:
    from mlflow.tracing.client import TracingClient

    info = TracingClient(settings.mlflow.tracking_uri).get_trace_info(trace_id)
    return [(each.value, each.rationale) for each in info.assessments]


def test_feedback_becomes_an_assessment(page: Page, traced: str, project: Settings) -> None:
    visit(page, traced)
    ask(page, "What is 17*23?")
    expect_end(page)
    trace_id = give_feedback(page, "Bad answer", "It is 391.")
    assert assessments(project, trace_id) == [(False, "It is 391.")]
    page.reload()
    down = answer(page).get_by_role("button", name="Bad answer")
    expect(down).to_have_attribute("aria-pressed", "true")


def test_an_earlier_answer_is_assessed(page: Page, traced: str, project: Settings) -> None:
    visit(page, traced)
    ask(page, "What is 17*23?")
    expect_end(page)
    page.get_by_role("button", name="New chat").click()
    open_earlier(page, "What is 17*23?")
    expect(answer(page).locator(".metrics")).to_contain_text("total")
    trace_id = give_feedback(page, "Good answer", "Nearly.")
    assert assessments(project, trace_id) == [(True, "Nearly.")]


def test_feedback_that_cannot_be_stored_is_reverted(page: Page, stand_in: StandIn) -> None:
    delta = {
        "type": "response.output_text.delta",
        "item_id": "m",
        "output_index": 0,
        "delta": "Yes",
    }
    stand_in.info["features"] = {"feedback": True}
    stand_in.answer(delta, {"type": "x", "trace_id": "tr-1"}, b"data: [DONE]\n\n")
    stand_in.refuse_feedback = True
    visit(page, stand_in.url)
    ask(page, "Really?")
    expect_end(page)
    up = answer(page).get_by_role("button", name="Good answer")
    up.click()
    expect(page.locator("#toast")).to_contain_text("MLflow does not answer")
    expect(up).to_have_attribute("aria-pressed", "false")


def test_the_page_asks_once_for_the_token_of_the_server(
    page: Page, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AGENT_KIT_SERVER_TOKEN", "a secret")
    stage, server = Stage(), untraced_server()
    server.stream()(stage.answer)
    with server.serve() as url:
        page.goto(url)
        field = page.get_by_label("Token of this server").locator("input")
        field.fill("a guess")
        field.press("Enter")
        expect(page.get_by_text("does not accept this token")).to_be_visible()
        field.fill("a secret")
        field.press("Enter")
        expect(page.locator("html.ready")).to_be_attached()
        ask(page, "Hi")
        expect_end(page)
        expect(answer(page).locator(".message")).to_have_text("Hello")
        visit(page, url)  # the tab remembers it
        expect(page.get_by_label("Token of this server")).to_have_count(0)
        page.get_by_role("button", name="Conversations").click()
        expect(page.locator("#conversations").get_by_text("Hi")).to_be_visible()
