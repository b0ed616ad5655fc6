"""Answers folded from events, drawn as HTML, painted into widgets."""

import asyncio
import re
from typing import Any

import pytest

from agent_kit.chat import Chat
from agent_kit.chat.html import (
    comparison_html,
    footer_html,
    format_seconds,
    part_html,
    transcript_html,
    transcript_text,
    user_html,
)
from agent_kit.chat.markdown import code_block, render_markdown, split_finished
from agent_kit.chat.rendering import Budget, PartView, TurnView, WidgetKit
from agent_kit.chat.session import RemoteAgent
from agent_kit.chat.transcript import Answer, Part, Turn, attach, output_text
from agent_kit.server import AgentServer, create_server

CALL = {"type": "function_call", "id": "f1", "call_id": "c1", "name": "look", "arguments": "{}"}
REASONING = {
    "type": "reasoning",
    "id": "r1",
    "summary": [{"type": "summary_text", "text": "Hmm, six times seven."}],
}


def done(item: dict[str, Any]) -> dict[str, Any]:
    return {"type": "response.output_item.done", "item": item}


def answer_of(*events: dict[str, Any]) -> Answer:
    answer = Answer()
    for event in events:
        answer.add(event)
    return answer


def test_whole_items_and_deltas_fold_to_the_same() -> None:
    text = [{"type": "output_text", "text": "It is 42."}]
    message = {"type": "message", "id": "m1", "role": "assistant", "content": text}
    deltas = [
        {"type": "response.output_item.added", "item": {"type": "reasoning", "id": "r1"}},
        {"type": "response.reasoning_summary_text.delta", "item_id": "r1", "delta": "Hmm, six "},
        {"type": "response.reasoning_summary_text.delta", "item_id": "r1", "delta": "times seven."},
        done(REASONING),
        {"type": "response.output_item.added", "item": CALL},
        {"type": "response.output_text.delta", "item_id": "m1", "delta": "It is "},
    ]
    output = {"type": "function_call_output", "call_id": "c1", "output": [{"text": "42"}]}
    ends = [done(CALL), done(output), done(message)]
    long, short = answer_of(*deltas, *ends), answer_of(done(REASONING), *ends)
    for answer in (long, short):
        assert sorted((part.kind, part.text, part.output) for part in answer.parts) == [
            ("reasoning", "Hmm, six times seven.", None),
            ("text", "It is 42.", None),
            ("tool", "", "42"),
        ]
        assert answer.first_at is not None
        assert answer.history() == answer.items


HOSTED = {"type": "mcp_call", "id": "h1", "call_id": "c1", "name": "look", "server_label": "any"}


@pytest.mark.parametrize(
    ("end", "status", "output"),
    [
        ({"status": "completed", "output": "42"}, "done", "42"),
        ({"status": "failed", "error": {"content": "no eyes"}}, "failed", "no eyes"),
        ({"status": "failed", "error": "no eyes"}, "failed", "no eyes"),
        ({"status": "incomplete"}, "failed", ""),
    ],
)
def test_a_call_that_the_server_runs_is_a_tool_from_its_beginning(end, status, output) -> None:
    answer = answer_of(
        {"type": "response.output_item.added", "item": {**HOSTED, "arguments": ""}},
        {"type": "response.mcp_call_arguments.done", "item_id": "h1", "arguments": '{"at": 1}'},
    )
    (part,) = answer.parts
    assert (part.name, part.arguments, part.status) == ("look", '{"at": 1}', "running")
    answer.add(done({**HOSTED, "arguments": '{"at": 1}', **end}))
    assert (part.status, part.output) == (status, output)
    assert part.seconds is not None


def test_reasoning_in_two_parts_keeps_them_apart() -> None:
    answer = answer_of(
        {"type": "response.reasoning_text.delta", "item_id": "r1", "delta": "One."},
        {"type": "response.reasoning_summary_part.added", "item_id": "r1"},
        {"type": "response.reasoning_summary_text.delta", "item_id": "r1", "delta": "Two."},
    )
    assert answer.parts[0].text == "One.\n\nTwo."
    assert "Thinking … One." in part_html(answer.parts[0])


def test_tools_of_the_server_bring_their_own_output() -> None:
    search = {"type": "web_search_call", "id": "w", "status": "completed", "action": {"query": "q"}}
    broken = {"type": "mcp_call", "id": "x", "name": "read", "arguments": "{}", "error": "no file"}
    parts = answer_of(done(search), done(broken)).parts
    assert [(part.name, part.status, part.output) for part in parts] == [
        ("web search", "done", ""),
        ("read", "failed", "no file"),
    ]
    assert "query" in parts[0].arguments


@pytest.mark.parametrize(
    ("event", "status", "shown"),
    [
        ({"type": "response.completed", "response": {}}, "completed", "first word"),
        (
            {
                "type": "response.incomplete",
                "response": {"incomplete_details": {"reason": "max_output_tokens"}},
            },
            "incomplete",
            "incomplete (max output tokens)",
        ),
        (
            {"type": "response.failed", "response": {"error": {"message": "No."}}},
            "failed",
            "<b>failed</b>",
        ),
        ({"type": "error", "message": "No."}, "failed", "<b>failed</b>"),
    ],
)
def test_each_end_is_told(event: dict[str, Any], status: str, shown: str) -> None:
    delta = {"type": "response.output_text.delta", "item_id": "m", "delta": "So"}
    answer = answer_of(delta, event, event)
    assert answer.status == status
    assert shown in footer_html(answer)
    assert (answer.trouble is not None) == (status == "failed")


def test_usage_is_shown_where_there_is_one() -> None:
    usage = {"input_tokens": 1200, "output_tokens": 34, "total_tokens": 1234}
    answer = answer_of({"type": "response.completed", "response": {"usage": usage}})
    assert "1,200 → 34 tokens" in footer_html(answer)


def test_values_for_people() -> None:
    assert format_seconds(75) == "1 min 15 s"
    assert output_text({"a": 1}) == '{\n  "a": 1\n}'
    assert output_text(None) == ""
    assert "📎 input_file" in user_html(
        [{"type": "input_text", "text": "x"}, {"type": "input_file"}]
    )
    picture = attach("dot.png", b"\x89PNG")
    assert "data:image/png" in user_html([{"type": "input_text", "text": "x"}, picture])


def test_a_long_output_is_cut_for_the_eye_alone() -> None:
    part = Part("tool", "k", 0.0, output="x" * 30_000, status="done", arguments="not JSON")
    assert "10,000 more characters" in part_html(part)
    assert "not JSON" in part_html(part)


def test_markdown_draws_what_models_write() -> None:
    shown = render_markdown(
        "# A\n\n- ~~b~~\n\n```python title=x\nx = 1\n```\n\n    plain\n\n![p](http://x)"
    )
    assert "<h1>" in shown
    assert "<s>b</s>" in shown
    assert 'class="mi"' in shown
    assert '<a href="http://x"' in shown
    assert "<img" not in shown
    assert '"mi"' not in render_markdown("```python\nx = 1", growing=True)
    assert "<span" not in code_block("x = 1", "no-such-language").split("<pre>")[1]


def test_texts_divide_where_nothing_changes_any_more() -> None:
    listing = "- one\n" * 600
    assert split_finished(listing) == ("", listing)
    words = "word " * 5000
    assert [len(part) for part in split_finished("# A\n\n" + words)] == [12_005, 13_000]
    finished, rest = split_finished(words.replace(" ", ""))
    assert (len(finished), len(rest)) == (12_000, 8_000)


def test_painting_keeps_to_its_budget_and_ends_complete() -> None:
    part = Part("text", "m", 0.0)
    budget = Budget(clock=lambda: 0.0)
    view = PartView(WidgetKit(), part, budget)
    for _ in range(100):
        part.text += f"- an entry of a list{' that never ends' * 8}\n"
        part.revision += 1
        view.paint(len(part.text), final=False)
    assert budget.spent < 45_000
    assert view.widgets[0].value.count("<li>") < 100
    view.paint(len(part.text), final=True)
    assert view.widgets[0].value.count("<li>") == 100


def test_a_turn_shows_tools_thoughts_and_their_end() -> None:
    turn = Turn("What?")
    view = TurnView(WidgetKit(), turn)
    for event in (
        {"type": "response.output_item.added", "item": CALL},
        {"type": "response.reasoning_text.delta", "item_id": "r1", "delta": "Hmm"},
    ):
        turn.answer.add(event)
        view.paint()
    shown = "".join(widget.value for widget in view.box.children)
    assert "running …" in shown
    assert "Thinking … Hmm" in shown
    turn.answer.add(done(REASONING))
    turn.answer.stop()
    view.paint()
    view.paint()
    shown = "".join(widget.value for widget in view.box.children)
    assert "<b>stopped</b>" in shown
    assert "Thought" in shown
    view.close()


def test_transcripts_for_readers_without_a_kernel() -> None:
    first, second = Turn("One?", version=1), Turn("Two?", version=2)
    first.answer.add({"type": "response.output_text.delta", "item_id": "m", "delta": "1"})
    first.answer.stop()
    second.answer.close()
    page = transcript_html([first, second], "kept")
    assert "the agent changed" in page
    assert "onclick" not in page
    assert "The connection ended" in transcript_text([first, second])
    assert transcript_text([first, second], longest=10) == "You: One?\n …"
    assert "running" in comparison_html([first, second], [])


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> AgentServer:
    monkeypatch.setenv("AGENT_KIT_MLFLOW_TRACING", "false")
    server = create_server()
    server.invoke()(lambda request: request.input[-1]["content"])
    return server


def test_replay_is_compared_and_taken_over(server: AgentServer) -> None:
    with Chat(server, instructions="Be brief.", example_prompts=["Hi"]) as chat:
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
        server.invoke()(lambda request: "changed")
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
def test_wrong_uses_are_told(options: dict[str, Any], server: AgentServer) -> None:
    given = {**options, "server": server} if "server" in options else options
    with pytest.raises(ValueError, match="url"):
        Chat(**given)
    with Chat(server) as chat, pytest.raises(ValueError, match="nothing to send"):
        chat.send_sync("  ")


def test_newest_server_answers_where_none_is_given(server: AgentServer) -> None:
    with Chat() as chat:
        assert chat.send_sync("One").text == "One"
        newer = create_server()
        newer.invoke()(lambda request: "newer")
        assert chat.send_sync("Two").text == "newer"
        assert chat.turns[0].version != chat.turns[1].version
        assert re.match(r"Chat\('.+', 2 turns\)", repr(chat))


def test_databricks_apps_are_asked_below_api() -> None:
    async def bases() -> list[str]:
        found = []
        for url in ("https://my-agent-1.databricksapps.com/", "http://localhost:8000/v1"):
            agent = RemoteAgent(url, "token")
            found.append(str((await agent.client()).base_url))
            await agent.close()
        return found

    assert asyncio.run(bases()) == [
        "https://my-agent-1.databricksapps.com/api/v1/",
        "http://localhost:8000/v1/",
    ]


def test_an_agent_out_of_reach_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AGENT_KIT_MLFLOW_TRACING", "false")
    with Chat(url="http://127.0.0.1:9") as chat:
        answer = chat.send_sync("Hello")
    assert answer.trouble is not None
    assert "cannot be reached" in answer.trouble.message
