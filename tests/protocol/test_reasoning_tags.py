"""Reasoning that a model writes between tags, in whole texts and in streams."""

import asyncio
from typing import Any

import pytest
from support.model_stand_in import ModelStandIn, Turn
from support.stream_checker import check_stream

from agent_kit import loop
from agent_kit.loop import run_agent
from agent_kit.models import create_model
from agent_kit.protocol import ResponsesRequest
from agent_kit.protocol.reasoning_tags import split_reasoning
from agent_kit.protocol.response_assembler import ResponseAssembler
from agent_kit.settings import load_settings

# A text, the reasoning in it, and the answer.
TEXTS = {
    "both tags": ("<think>\nOne and two.\n</think>\n\nIt is 3.", "One and two.", "It is 3."),
    "other names": ("<thinking>One and two.</thinking>It is 3.", "One and two.", "It is 3."),
    "space before": ("\n <Think>One.</Think> It is 3.", "One.", "It is 3."),
    "no end": ("<think>One and two", "One and two", ""),
    "no reasoning": ("<think>\n\n</think>\n\nIt is 3.", "", "It is 3."),
    "a mention": (
        "A model writes <think> and </think>.",
        "",
        "A model writes <think> and </think>.",
    ),
    "a mention in code": ("The tag `</think>` ends it.", "", "The tag `</think>` ends it."),
    "a mention at the end": ("It ends with </think>.", "", "It ends with </think>."),
    "another tag": ("<thin> ice</thin>", "", "<thin> ice</thin>"),
    "JSON": ('<think>A number.</think>{"sum": 3}', "A number.", '{"sum": 3}'),
    "no text": ("", "", ""),
}
UNOPENED = ("One and two.\n</think>\n\nIt is 3.", "One and two.", "It is 3.")


@pytest.fixture(autouse=True)
def environment(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "any")
    monkeypatch.setenv("AGENT_KIT_MLFLOW_TRACING", "false")
    monkeypatch.setattr(loop, "_without_opening_tag", set())


def split_up(text: str, size: int) -> list[str]:
    return [text[at : at + size] for at in range(0, len(text), size)]


def answer(turns: list[Any], *, stream: bool, provider: str = "openai", **more: Any) -> tuple:
    """Return the events and the body of a response to a model at a service, and its requests."""
    request = ResponsesRequest(input=[{"role": "user", "content": "1+2?"}], stream=stream, **more)
    assembler = ResponseAssembler(request)

    async def run(url: str) -> list[dict[str, Any]]:
        values = {"agent.model": f"{provider}:any", "agent.base_url": url}
        model = create_model(load_settings(overrides=values))
        events = assembler.start()
        async for event in run_agent(request, model=model):
            events += assembler.add(event)
        return events + assembler.finish()

    with ModelStandIn(turns) as service:
        events = asyncio.run(run(service.url))
    check_stream(events)
    return events, assembler.body["output"], service.requests


def texts(items: list[dict[str, Any]], kind: str) -> list[str]:
    parts = [item["content"] for item in items if item["type"] == kind]
    return ["".join(part["text"] for part in content).strip() for content in parts]


def chunked(*deltas: str) -> Turn:
    chunks = [{"choices": [{"delta": {"content": delta}}]} for delta in deltas]
    return Turn(chunks=[*chunks, {"choices": [{"delta": {}, "finish_reason": "stop"}]}])


@pytest.mark.parametrize("label", TEXTS)
def test_a_whole_text_is_split(label):
    text, reasoning, rest = TEXTS[label]
    assert split_reasoning(text) == (reasoning, rest)
    assert split_reasoning(UNOPENED[0]) == UNOPENED[1:]


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("size", [1, 5, 1000])
def test_reasoning_in_tags_becomes_an_item_across_chunk_borders(size, stream):
    for text, reasoning, rest in TEXTS.values():
        _, items, _ = answer([chunked(*split_up(text, size))], stream=stream)
        assert texts(items, "reasoning") == [reasoning] * bool(reasoning)
        assert texts(items, "message") == [rest] * bool(rest)


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("label", TEXTS)
def test_the_same_over_the_responses_api(label, stream):
    text, reasoning, rest = TEXTS[label]
    _, items, _ = answer([Turn(text)], stream=stream, provider="openai-responses")
    assert texts(items, "reasoning") == [reasoning] * bool(reasoning)
    assert [each for each in texts(items, "message") if each] == [rest] * bool(rest)


def test_reasoning_is_streamed_and_the_answer_too():
    events, _, _ = answer(
        [chunked("<think>", "One", " two", "</think>", "It ", "is 3.")], stream=True
    )
    deltas = [(event["type"], event["delta"]) for event in events if "delta" in event]
    assert [delta for kind, delta in deltas if "reasoning" in kind] == ["One", " two"]
    assert [delta for kind, delta in deltas if "output_text" in kind] == ["It ", "is 3."]


@pytest.mark.parametrize("first_streams", [False, True])
def test_a_missing_opening_tag_is_noticed_and_remembered(first_streams):
    text, reasoning, rest = UNOPENED
    turn = chunked(*split_up(text, 5))
    if first_streams:  # the reasoning has been sent when its end comes
        _, items, _ = answer([turn], stream=True)
        assert texts(items, "message") == [text]
    for stream in (first_streams, True, False):
        _, items, _ = answer([turn], stream=stream)
        assert texts(items, "reasoning") == [reasoning]
        assert texts(items, "message") == [rest]


def test_reasoning_before_a_call_is_not_sent_back_as_text():
    turns = [Turn("<think>I need add.</think>", calls=[("add", {})]), "It is 3."]
    _, items, requests = answer(turns, stream=True)
    assert [item["type"] for item in items[:2]] == ["reasoning", "function_call"]
    assert "<think>" not in str(requests[-1].body)
    assert not any("need add" in str(each.get("content")) for each in requests[-1].body["messages"])
