"""Streaming answers, rendered in widgets within a budget."""

from agent_kit.chat.rendering import Budget, PartView, TurnView, WidgetKit
from agent_kit.chat.transcript import Part, Turn

CALL = {"type": "function_call", "id": "f1", "call_id": "c1", "name": "look", "arguments": "{}"}
REASONING = {
    "type": "reasoning",
    "id": "r1",
    "summary": [{"type": "summary_text", "text": "Hmm, six times seven."}],
}


def test_rendering_keeps_to_its_budget_and_ends_complete() -> None:
    part = Part("text", "m", 0.0)
    budget = Budget(clock=lambda: 0.0)
    view = PartView(WidgetKit(), part, budget)
    for _ in range(100):
        part.text += f"- an entry of a list{' that never ends' * 8}\n"
        part.revision += 1
        view.render(len(part.text), final=False)
    assert budget.spent < 45_000
    assert view.widgets[0].value.count("<li>") < 100
    view.render(len(part.text), final=True)
    assert view.widgets[0].value.count("<li>") == 100


def test_a_turn_shows_tools_reasoning_and_their_end() -> None:
    turn = Turn("What?")
    view = TurnView(WidgetKit(), turn)
    for event in (
        {"type": "response.output_item.added", "item": CALL},
        {"type": "response.reasoning_text.delta", "item_id": "r1", "delta": "Hmm"},
    ):
        turn.answer.add(event)
        view.render()
    shown = "".join(widget.value for widget in view.box.children)
    assert "running …" in shown
    assert "Thinking … Hmm" in shown
    turn.answer.add({"type": "response.output_item.done", "item": REASONING})
    turn.answer.stop()
    view.render()
    view.render()
    shown = "".join(widget.value for widget in view.box.children)
    assert "<b>stopped</b>" in shown
    assert "Thought" in shown
    view.close()
