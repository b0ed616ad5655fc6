"""Conversations as HTML and as text."""

from agent_kit.chat.html import (
    comparison_html,
    format_seconds,
    part_html,
    transcript_html,
    transcript_text,
    user_html,
)
from agent_kit.chat.transcript import Part, Turn, attach, output_text


def test_values_are_shown_in_short_forms() -> None:
    assert format_seconds(75) == "1 min 15 s"
    assert output_text({"a": 1}) == '{\n  "a": 1\n}'
    assert output_text(None) == ""
    assert "📎 input_file" in user_html(
        [{"type": "input_text", "text": "x"}, {"type": "input_file"}]
    )
    picture = attach("dot.png", b"\x89PNG")
    assert "data:image/png" in user_html([{"type": "input_text", "text": "x"}, picture])


def test_a_long_output_is_shortened() -> None:
    part = Part("tool", "k", 0.0, output="x" * 30_000, status="done", arguments="not JSON")
    assert "10,000 more characters" in part_html(part)
    assert "not JSON" in part_html(part)


def test_transcripts_for_readers_without_a_kernel() -> None:
    first, second = Turn("One?", version=1), Turn("Two?", version=2)
    first.answer.add({"type": "response.output_text.delta", "item_id": "m", "delta": "1"})
    first.answer.stop()
    second.answer.close()
    page = transcript_html([first, second], "stored")
    assert "the agent changed" in page
    assert "onclick" not in page
    assert "The connection ended" in transcript_text([first, second])
    assert transcript_text([first, second], max_characters=10) == "You: One?\n …"
    assert "running" in comparison_html([first, second], [])


def test_empty_conversation_is_an_empty_transcript() -> None:
    assert "ak-user" not in transcript_html([])
