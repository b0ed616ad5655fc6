"""The chat without a browser: called from code, headless, and stored in a notebook."""

import asyncio
import json
import os
import re
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nbformat
import pytest
from nbclient import NotebookClient

from agent_kit.chat import Chat
from agent_kit.evaluate.datasets import load_cases
from agent_kit.server import AgentServer, create_server

PATIENCE = 60


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> AgentServer:
    """A server whose agent repeats its input, word by word."""
    monkeypatch.setenv("AGENT_KIT_MLFLOW_TRACING", "false")
    server = create_server()

    @server.stream()
    async def repeat(request):  # type: ignore[no-untyped-def]
        content = request.input[-1]["content"]
        parts = content if isinstance(content, list) else [{"text": content}]
        for word in " ".join(part.get("text", "") for part in parts).split():
            yield f"{word} "

    return server


@pytest.fixture
def chat(server: AgentServer) -> Iterator[Chat]:
    with Chat(server) as chat:
        yield chat


def shown(chat: Chat) -> str:
    """The HTML of the messages in the panel."""
    children = [child for box in chat.panel.messages.children for child in box.children]
    return "".join(getattr(child, "value", "") for child in children)


def buttons(chat: Chat) -> dict[str, object]:
    """The buttons under the last answer."""
    return {button.description: button for button in chat.panel.actions.box.children[0].children}


def settle(chat: Chat) -> None:
    """Wait until the panel shows the end of the answer."""
    deadline = time.monotonic() + PATIENCE
    while chat.session.is_running or chat.panel.actions.turn is None:
        assert time.monotonic() < deadline
        time.sleep(0.01)
        chat.panel.sync()


def test_sends_from_async_and_from_sync_code(chat: Chat) -> None:
    first = asyncio.run(chat.send("one two"))
    second = chat.send_sync("three")
    assert (first.text, second.text) == ("one two ", "three ")
    assert [item["role"] for item in chat.items] == ["user", "assistant"] * 2
    assert "one two" in shown(chat)
    assert "three" in shown(chat)


def test_buttons_retry_edit_and_undo(chat: Chat, server: AgentServer) -> None:
    for text in ("one", "two"):
        chat.submit(text).result(PATIENCE)

    @server.stream()
    async def shout(request):  # type: ignore[no-untyped-def]
        yield request.input[-1]["content"].upper()

    buttons(chat)["Retry"].click()
    settle(chat)
    assert [turn.answer.text for turn in chat.turns] == ["one ", "TWO"]
    assert "the agent changed" in shown(chat)

    chat.edit_turn(chat.turns[0])
    chat.panel.composer.field.value = "once"
    chat.panel.composer.button.click()
    settle(chat)
    assert [turn.answer.text for turn in chat.turns] == ["ONCE"]

    buttons(chat)["Undo"].click()
    assert chat.turns == []
    assert chat.panel.composer.field.value == "once"


def test_files_go_with_a_question(chat: Chat) -> None:
    answer = chat.send_sync("Read:", files=[("notes.txt", b"milk"), ("dot.png", b"\x89PNG")])
    assert answer.text == "Read: File notes.txt: milk "
    assert [part["type"] for part in chat.items[0]["content"]] == [
        "input_text",
        "input_text",
        "input_image",
    ]
    assert "📎 notes.txt" in shown(chat)
    with pytest.raises(ValueError, match="neither an image"):
        chat.send_sync("Read:", files=[("a.zip", b"PK\x00")])


def test_options_reach_the_agent(chat: Chat, server: AgentServer) -> None:
    @server.stream()
    async def reply(request):  # type: ignore[no-untyped-def]
        yield f"{request.instructions} {request.temperature} {request.max_output_tokens}"

    fields = chat.panel.options.fields
    fields["instructions"].value = "Be brief."
    fields["temperature"].value = "0.5"
    fields["max_output_tokens"].value = "many"
    assert "is not a number" in chat.panel.composer.note.value
    fields["max_output_tokens"].value = "90"
    assert chat.send_sync("?").text == "Be brief. 0.5 90"


def test_failure_shows_one_line_and_the_traceback(chat: Chat, server: AgentServer, caplog) -> None:
    @server.stream()
    async def fail(request):  # type: ignore[no-untyped-def]
        yield "Half of "
        raise KeyError("weather")

    answer = chat.send_sync("?")
    assert answer.status == "failed"
    assert answer.failure.message.startswith("KeyError: 'weather' (in fail, line ")
    assert "Traceback" in shown(chat)
    assert chat.items[-1]["content"][0]["text"] == "Half of "
    assert not caplog.records, "the panel shows it, so the log is silent"


def test_interrupt_of_await_stops_the_agent(chat: Chat, server: AgentServer) -> None:
    started, closed = threading.Event(), threading.Event()

    @server.stream()
    async def endless(request):  # type: ignore[no-untyped-def]
        try:
            while True:
                started.set()
                yield "on "
                await asyncio.sleep(0.01)
        finally:
            closed.set()

    async def impatient() -> None:
        waiting = asyncio.create_task(chat.send("go"))
        assert await asyncio.to_thread(started.wait, PATIENCE)
        waiting.cancel()
        await waiting

    with pytest.raises(asyncio.CancelledError):
        asyncio.run(impatient())
    assert closed.wait(PATIENCE)
    settle(chat)
    assert chat.turns[0].answer.status == "stopped"


def test_stop_right_after_sending_ends_the_answer(chat: Chat) -> None:
    gate = threading.Event()

    async def hold_the_loop() -> None:
        gate.wait(PATIENCE)

    chat.session.submit(hold_the_loop())
    future = chat.submit("one two")
    chat.stop()
    gate.set()
    future.result(PATIENCE)
    assert chat.turns[0].answer.status == "stopped"
    assert "ak-wait" not in shown(chat)


def test_one_answer_at_a_time(chat: Chat, server: AgentServer) -> None:
    gate = threading.Event()

    @server.stream()
    def wait(request):  # type: ignore[no-untyped-def]
        gate.wait(PATIENCE)
        yield "done"

    future = chat.submit("first")
    assert chat.submit("second") is None
    assert "in progress" in chat.panel.composer.note.value
    with pytest.raises(RuntimeError, match="in progress"):
        chat.send_sync("third")
    gate.set()
    future.result(PATIENCE)
    assert [turn.answer.text for turn in chat.turns] == ["done"]


def test_saves_a_case_that_the_dataset_reads(chat: Chat, tmp_path: Path) -> None:
    chat.send_sync("one")
    chat.send_sync("What is 17*23?")
    buttons(chat)["Save as test case"].click()
    _, facts, path, save = chat.panel.actions.pane.children
    facts.value, path.value = "391", str(tmp_path / "cases.jsonl")
    save.click()
    (case,) = load_cases(tmp_path / "cases.jsonl")
    assert case.expectations == {"expected_facts": ["391"]}
    assert [entry["role"] for entry in case.inputs["input"]] == ["user", "assistant", "user"]
    assert case.question == "What is 17*23?"
    buttons(chat)["Save as test case"].click()
    _, facts, path, save = chat.panel.actions.pane.children
    facts.value, path.value = "392", str(tmp_path / "cases.jsonl")
    save.click()
    assert "other expectations" in chat.panel.actions.pane.children[0].value


def test_remote_agent_over_http(server: AgentServer) -> None:
    with server.serve() as url, Chat(url=f"{url}/v1", token="secret") as chat:
        assert chat.send_sync("one two").text == "one two "
        buttons(chat)["👍"].click()
        _, send = chat.panel.actions.pane.children
        send.click()
        while "Storing" in (text := chat.panel.actions.pane.children[0].value):
            time.sleep(0.01)
        assert "no trace" in text
        assert "secret" not in repr(chat) + chat._repr_html_()


def test_refused_request_shows_the_message_of_the_server(chat: Chat) -> None:
    chat.session.options["temperature"] = "hot"
    answer = chat.send_sync("?")
    assert answer.status == "failed"
    assert "temperature" in answer.failure.message


@pytest.fixture
def echo(monkeypatch: pytest.MonkeyPatch) -> AgentServer:
    monkeypatch.setenv("AGENT_KIT_MLFLOW_TRACING", "false")
    server = create_server()
    server.invoke()(lambda request: request.input[-1]["content"])
    return server


def test_replay_is_compared_and_accepted(echo: AgentServer) -> None:
    with Chat(echo, instructions="Be brief.", example_prompts=["Hi"]) as chat:
        assert chat.replay() is None
        assert "nothing to ask" in chat.panel.composer.note.value
        _greeting, prompts = chat.panel.messages.children
        prompts.children[0].click()
        while chat.session.is_running or not chat.turns:
            chat.session.submit(asyncio.sleep(0.01)).result()
        chat.retry()
        while chat.session.is_running:
            chat.session.submit(asyncio.sleep(0.01)).result()
        chat.send_sync("Ho")
        echo.invoke()(lambda request: "changed")
        chat.replay().result(60)
        comparison, row = chat.panel.comparison.children
        assert "0 of 2 answers are the same" in comparison.value
        row.children[0].click()
        assert [turn.answer.text for turn in chat.turns] == ["changed", "changed"]
        chat.clear()
        assert chat.panel.messages.children[0] is _greeting


@pytest.mark.parametrize(
    "options", [{"token": "t"}, {"url": "here"}, {"url": "http://x", "server": True}]
)
def test_invalid_arguments_are_refused(options: dict[str, Any], echo: AgentServer) -> None:
    given = {**options, "server": echo} if "server" in options else options
    with pytest.raises(ValueError, match="url"):
        Chat(**given)
    with Chat(echo) as chat, pytest.raises(ValueError, match="nothing to send"):
        chat.send_sync("  ")


def test_newest_server_answers_if_none_is_given(echo: AgentServer) -> None:
    with Chat() as chat:
        assert chat.send_sync("One").text == "One"
        newer = create_server()
        newer.invoke()(lambda request: "newer")
        assert chat.send_sync("Two").text == "newer"
        assert chat.turns[0].version != chat.turns[1].version
        assert re.match(r"Chat\('.+', 2 turns\)", repr(chat))


def test_an_unreachable_agent_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AGENT_KIT_MLFLOW_TRACING", "false")
    with Chat(url="http://127.0.0.1:9") as chat:
        answer = chat.send_sync("Hello")
    assert answer.failure is not None
    assert "cannot be reached" in answer.failure.message


NOTEBOOK = """
import os
os.environ["AGENT_KIT_MLFLOW_TRACING"] = "false"
from agent_kit.server import create_server
server = create_server()
@server.stream()
async def answer(request):
    yield "Hello **" + request.input[-1]["content"] + "**"
server.chat()
---
first = await server.chat().send("Ada")
first.text
---
server.chat().send_sync("Grace").text
---
server.chat().close()
"""


def test_an_executed_notebook_contains_the_transcript(tmp_path: Path) -> None:
    cells = [nbformat.v4.new_code_cell(source) for source in NOTEBOOK.strip().split("---\n")]
    notebook = nbformat.v4.new_notebook(cells=cells)
    environment = os.environ | {"IPYTHONDIR": str(tmp_path)}
    NotebookClient(notebook, kernel_name="python3", timeout=60).execute(env=environment)
    panel, transcript = notebook.cells[0].outputs
    assert "application/vnd.jupyter.widget-view+json" in panel["data"]
    page = transcript["data"]["text/html"]
    assert "Hello <strong>Ada</strong>" in page
    assert "Hello <strong>Grace</strong>" in page
    assert transcript["data"]["text/plain"].startswith("You: Ada\nAgent: Hello **Ada**")
    assert "'Hello **Grace**'" in json.dumps(notebook.cells[2].outputs)
