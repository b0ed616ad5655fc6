"""Streamed answers, collected from their events."""

from typing import Any

import pytest

from agent_kit.chat.html import footer_html, part_html
from agent_kit.chat.transcript import StreamedAnswer

CALL = {"type": "function_call", "id": "f1", "call_id": "c1", "name": "look", "arguments": "{}"}
REASONING = {
    "type": "reasoning",
    "id": "r1",
    "summary": [{"type": "summary_text", "text": "Hmm, six times seven."}],
}


def done(item: dict[str, Any]) -> dict[str, Any]:
    return {"type": "response.output_item.done", "item": item}


def answer_of(*events: dict[str, Any]) -> StreamedAnswer:
    answer = StreamedAnswer()
    for event in events:
        answer.add(event)
    return answer


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
def test_a_call_that_the_server_runs_is_a_tool_from_its_start(end, status, output) -> None:
    answer = answer_of(
        {"type": "response.output_item.added", "item": {**HOSTED, "arguments": ""}},
        {"type": "response.mcp_call_arguments.done", "item_id": "h1", "arguments": '{"at": 1}'},
    )
    (part,) = answer.parts
    assert (part.name, part.arguments, part.status) == ("look", '{"at": 1}', "running")
    answer.add(done({**HOSTED, "arguments": '{"at": 1}', **end}))
    assert (part.status, part.output) == (status, output)
    assert part.seconds is not None


def test_two_parts_of_reasoning_remain_separate() -> None:
    answer = answer_of(
        {"type": "response.reasoning_text.delta", "item_id": "r1", "delta": "One."},
        {"type": "response.reasoning_summary_part.added", "item_id": "r1"},
        {"type": "response.reasoning_summary_text.delta", "item_id": "r1", "delta": "Two."},
    )
    assert answer.parts[0].text == "One.\n\nTwo."
    assert "Thinking … One." in part_html(answer.parts[0])


def test_tools_of_the_server_contain_their_own_output() -> None:
    search = {"type": "web_search_call", "id": "w", "status": "completed", "action": {"query": "q"}}
    broken = {"type": "mcp_call", "id": "x", "name": "read", "arguments": "{}", "error": "no file"}
    parts = answer_of(done(search), done(broken)).parts
    assert [(part.name, part.status, part.output) for part in parts] == [
        ("web search", "done", ""),
        ("read", "failed", "no file"),
    ]
    assert "query" in parts[0].arguments


def test_usage_is_shown_where_there_is_one() -> None:
    usage = {"input_tokens": 1200, "output_tokens": 34, "total_tokens": 1234}
    answer = answer_of({"type": "response.completed", "response": {"usage": usage}})
    assert "1,200 → 34 tokens" in footer_html(answer)


def test_finished_items_and_deltas_give_the_same_parts() -> None:
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
def test_each_end_of_an_answer_is_shown(event: dict[str, Any], status: str, shown: str) -> None:
    delta = {"type": "response.output_text.delta", "item_id": "m", "delta": "So"}
    answer = answer_of(delta, event, event)
    assert answer.status == status
    assert shown in footer_html(answer)
    assert (answer.failure is not None) == (status == "failed")
