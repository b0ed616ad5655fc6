"""The checker of streams itself: each rule catches a stream that breaks it."""

import ast
import copy
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support import stream_checker
from support.stream_checker import BrokenStream, check_response, check_sse, check_stream

from agent_kit.protocol import parse_request
from agent_kit.protocol.response_assembler import DONE, ResponseAssembler, encode_event

REQUEST = parse_request("agent/v1/responses", {"input": "Hi", "model": "m"})
Events = list[dict[str, Any]]

PARTS = [
    {
        "type": "output_text",
        "text": "It is 391.",
        "annotations": [{"type": "url_citation", "url": "https://example.org"}],
    },
    {"type": "refusal", "refusal": "No more."},
]
CHUNKS: list[Any] = [
    {"type": "reasoning", "summary": ["First"], "content": ["Thinking"]},
    {"type": "function_call", "name": "multiply", "call_id": "call_1", "arguments": "{}"},
    {"type": "function_call_output", "call_id": "call_1", "output": "391"},
    {"type": "web_search_call"},
    {"type": "function_call", "name": "multiply", "call_id": "call_2", "arguments": "{}"},
    {"content": PARTS},
    {"type": "custom_tool_call", "call_id": "call_3", "name": "f", "input": "x"},
    {
        "type": "mcp_call",
        "server_label": "agent_kit",
        "name": "f",
        "arguments": "{}",
        "output": "391",
    },
]


def good() -> Events:
    """A valid stream in which most kinds of events occur."""
    assembler = ResponseAssembler(REQUEST)
    events = assembler.start()
    for chunk in CHUNKS:
        events += assembler.add(chunk)
    return copy.deepcopy(events + assembler.finish())


def first(events: Events, kind: str, number: int = 0) -> dict[str, Any]:
    return [event for event in events if event["type"] == f"response.{kind}"][number]


def renumber(events: Events) -> Events:
    for number, event in enumerate(events):
        event["sequence_number"] = number
    return events


def without(kind: str, number: int = 0) -> Callable[[Events], Events]:
    return lambda events: renumber([e for e in events if e is not first(events, kind, number)])


def twice(kind: str) -> Callable[[Events], Events]:
    def break_it(events: Events) -> Events:
        at = events.index(first(events, kind))
        return renumber([*events[: at + 1], copy.deepcopy(events[at]), *events[at + 1 :]])

    return break_it


def moved(kind: str, before: str) -> Callable[[Events], Events]:
    def break_it(events: Events) -> Events:
        event = first(events, kind)
        events.remove(event)
        events.insert(events.index(first(events, before)), event)
        return renumber(events)

    return break_it


def changed(kind: str, path: str, value: object, number: int = 0) -> Callable[[Events], Events]:
    """Set a field, such as `item.name`, of an event."""

    def break_it(events: Events) -> Events:
        *parents, name = path.split(".")
        target: Any = first(events, kind, number)
        for parent in parents:
            target = target[int(parent) if parent.isdigit() else parent]
        target[int(name) if name.isdigit() else name] = value
        return events

    return break_it


def lost(kind: str, path: str) -> Callable[[Events], Events]:
    def break_it(events: Events) -> Events:
        *parents, name = path.split(".")
        target: Any = first(events, kind)
        for parent in parents:
            target = target[parent]
        del target[name]
        return events

    return break_it


def ending(**fields: object) -> Callable[[Events], Events]:
    """Change the final Response."""

    def break_it(events: Events) -> Events:
        events[-1]["response"].update(fields)
        return events

    return break_it


def ends_with(kind: str, **fields: object) -> Callable[[Events], Events]:
    def break_it(events: Events) -> Events:
        events[-1]["type"] = f"response.{kind}"
        events[-1]["response"].update(fields)
        return events

    return break_it


def with_event(event: dict[str, Any], at: int = 2) -> Callable[[Events], Events]:
    return lambda events: renumber([*events[:at], dict(event), *events[at:]])


def same_ids(events: Events) -> Events:
    text = json.dumps(events)
    ids = [e["item"]["id"] for e in events if e["type"] == "response.output_item.added"]
    return json.loads(text.replace(ids[4], ids[1]))


def same_call_ids(events: Events) -> Events:
    return json.loads(json.dumps(events).replace("call_2", "call_1"))


ERROR = {"code": "server_error", "message": "No."}

BROKEN: list[tuple[str, Callable[[Events], Events]]] = [
    # numbers and order of the whole
    ("sequence numbers are contiguous", lambda events: [*events[:3], *events[4:]]),
    ("sequence numbers are contiguous", changed("in_progress", "sequence_number", 5)),
    ("created is the first event", lambda events: renumber(events[1:])),
    ("created is the first event", twice("created")),
    ("an event has a type", changed("in_progress", "type", 3)),
    ("nothing follows the last event", twice("completed")),
    ("ends with completed, failed or incomplete", lambda events: events[:-1]),
    ("created, queued, in_progress come once", twice("in_progress")),
    ("in_progress comes before the end", lambda events: renumber([events[0], events[-1]])),
    ("items come after in_progress", without("in_progress")),
    ("unknown type of event", changed("in_progress", "type", "response.cancelled")),
    ("a failure inside a stream", with_event({"type": "error", "message": "No."})),
    ("is no ResponseTextDeltaEvent", lost("output_text.delta", "logprobs")),
    ("is no ResponseOutputItemAddedEvent", lost("output_item.added", "output_index")),
    # the response
    ("is no Response", changed("created", "response.object", "thing")),
    ("field of the response is null", changed("created", "response.temperature", None)),
    ("field of the response is absent", lost("created", "response.max_tool_calls")),
    ("begins with an empty output", changed("created", "response.output", [])),
    ("a running response has no error", changed("created", "response.error", ERROR)),
    ("a running response has no completed_at", changed("created", "response.completed_at", 1)),
    (
        "the status follows the event",
        ends_with("failed", status="cancelled", completed_at=None),
    ),
    ("completed_at is set only when completed", ending(completed_at=None)),
    ("error is set only when failed", ending(error=ERROR)),
    ("is no Response", ending(error={"code": "odd", "message": "x"})),
    ("has no incomplete_details", ending(incomplete_details={"reason": "content_filter"})),
    (
        "an incomplete response says why",
        ends_with("incomplete", status="incomplete", completed_at=None),
    ),
    (
        "the token limit leaves the last item incomplete",
        ends_with(
            "incomplete",
            status="incomplete",
            completed_at=None,
            incomplete_details={"reason": "max_output_tokens"},
        ),
    ),
    ("is no Response", changed("completed", "response.usage", {"input_tokens": 1})),
    ("a field of the response changed", changed("completed", "response.instructions", "x")),
    ("a field of the response changed", changed("completed", "response.id", "resp_other")),
    ("the output is the items as done", ending(output=[])),
    ("every item is done before the end", without("output_item.done", 5)),
    # items
    ("output_index counts the items", changed("output_item.added", "output_index", 1)),
    ("item ids are unique", same_ids),
    ("call ids are unique", same_call_ids),
    ("an event comes after its item", moved("content_part.added", before="output_item.added")),
    ("nothing is said of an item that is done", twice("output_item.done")),
    ("item_id and output_index agree", changed("output_text.delta", "item_id", "msg_other")),
    ("an item begins in progress", changed("output_item.added", "item.status", "completed")),
    (
        "an item begins without parts",
        changed("output_item.added", "item.summary", [{"type": "summary_text", "text": "x"}]),
    ),
    ("a call begins without arguments", changed("output_item.added", "item.arguments", "{}", 1)),
    ("an item keeps its identity", changed("output_item.done", "item.name", "divide", 1)),
    ("a done item has a final status", changed("output_item.done", "item.status", "in_progress")),
    ("an item of an output has an id", changed("output_item.added", "item.id", "", 1)),
    (
        "an event fits the type of its item",
        changed("web_search_call.completed", "type", "response.file_search_call.completed"),
    ),
    # parts and texts
    ("the index counts the parts", changed("content_part.added", "content_index", 7)),
    ("a part begins empty", changed("content_part.added", "part.text", "x")),
    ("the part fits its item", changed("content_part.added", "part", PARTS[1])),
    (
        "a part begins without annotations",
        changed(
            "content_part.added",
            "part.annotations",
            [{"type": "file_path", "file_id": "f", "index": 0}],
            1,
        ),
    ),
    ("an event comes after its part", without("content_part.added")),
    ("the end is the sum of the deltas", changed("output_text.done", "text", "It is 392.")),
    ("the end is the sum of the deltas", without("output_text.delta")),
    ("the end is the sum of the deltas", changed("function_call_arguments.done", "arguments", "x")),
    ("nothing is said of a text that is done", twice("output_text.done")),
    ("nothing is said of a part that is done", twice("content_part.done")),
    ("a text is done before its part", without("output_text.done")),
    ("every part is done before its item", without("content_part.done")),
    ("a part has the sum of its deltas", changed("content_part.done", "part.text", "x")),
    ("a part has the annotations", without("output_text.annotation.added")),
    ("annotation_index counts", changed("output_text.annotation.added", "annotation_index", 3)),
    ("an item has the parts as done", changed("output_item.done", "item.summary.0.text", "x")),
    ("arguments are done before their call", without("function_call_arguments.done")),
    ("a text is done before its item", without("custom_tool_call_input.done")),
    ("a call has the sum of its deltas", changed("output_item.done", "item.arguments", "x", 1)),
    (
        "an event fits the type of its item",
        changed("function_call_arguments.delta", "type", "response.mcp_call_arguments.delta"),
    ),
    ("an event fits the type of its part", changed("refusal.delta", "content_index", 0)),
    # calls which the server runs
    ("arguments come while in progress", without("mcp_call.in_progress")),
    (
        "arguments are done before their tool has run",
        moved("mcp_call.completed", before="mcp_call_arguments.done"),
    ),
    ("a hosted call ends as its steps say", without("mcp_call.completed")),
    ("a hosted call ends as its steps say", twice("mcp_call.completed")),
    (
        "a hosted call has the result that its status says",
        changed("output_item.done", "item.output", None, -1),
    ),
]


def test_a_valid_stream_passes():
    assert check_stream(good())["status"] == "completed"


@pytest.mark.parametrize(("rule", "break_it"), BROKEN)
def test_a_broken_stream_is_caught(rule, break_it):
    events = break_it(good())
    if rule == "begins with an empty output":
        events[0]["response"]["output"] = [events[-1]["response"]["output"][0]]
    with pytest.raises(BrokenStream, match=re.escape(rule)):
        check_stream(events)


def test_the_response_is_checked_alone_too():
    response = good()[-1]["response"]
    assert check_response(response)
    details = {"cached_tokens": None, "cache_write_tokens": 0}
    with pytest.raises(BrokenStream, match="usage lacks a detail"):
        stream_checker._check_usage({**response["usage"], "input_tokens_details": details})


BROKEN_FRAMES: list[tuple[str, Callable[[bytes], bytes]]] = [
    ("the last frame is [DONE]", lambda body: body.removesuffix(DONE)),
    ("ends with a whole frame", lambda body: body[:-1]),
    ("begins with its event", lambda body: b"id: 1\n" + body),
    ("begins with its event", lambda body: body.replace(b"event: ", b"data: ", 1)),
    (
        "an event line and a data line",
        lambda body: body.replace(b"event: response.created\n", b"", 1),
    ),
    ("the data follows the event", lambda body: body.replace(b"\ndata: ", b"\nid: ", 1)),
    (
        "equals the type",
        lambda body: body.replace(b"event: response.created", b"event: response.queued", 1),
    ),
]


@pytest.mark.parametrize(("rule", "break_it"), BROKEN_FRAMES)
def test_a_broken_frame_is_caught(rule, break_it):
    body = b": keep-alive\n\n" + b"".join(map(encode_event, good())) + DONE
    assert len(check_sse(body)) == len(good())
    with pytest.raises(BrokenStream, match=re.escape(rule)):
        check_sse(break_it(body))


def test_every_rule_has_a_stream_that_breaks_it():
    calls = [
        node
        for node in ast.walk(ast.parse(Path(stream_checker.__file__).read_text()))
        if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "_expect"
    ]
    rules = {call.args[1].value for call in calls if isinstance(call.args[1], ast.Constant)}
    told = {rule for rule, _ in (*BROKEN, *BROKEN_FRAMES)} | {"usage lacks a detail"}
    # The SDK's types say the same before, so that no stream reaches these.
    shadowed = {
        *("unknown error code", "usage lacks a field", "annotations are only added"),
        "unknown type of item",
    }
    untold = {rule for rule in rules if not any(part in rule for part in told)}
    assert untold == shadowed
