"""A strict checker of Responses event streams.

Every event is validated against the openai SDK's own types, every stream against the ordering rules
of the Responses API and, last, against the SDK's stream helper. Use `check_sse` for the bytes of an
answer, `check_stream` for a list of events, `check_response` for a Response alone. Each raises
`BrokenStream` with a message that names the rule. `check_sse` returns the events, the other two
return the Response.
"""

import json
import typing
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from openai import omit
from openai.lib.streaming.responses._responses import ResponseStreamState
from openai.types.responses import Response, ResponseError, ResponseOutputItem, ResponseStreamEvent
from pydantic import BaseModel, ValidationError


class BrokenStream(AssertionError):
    """A stream breaks a rule of the Responses API."""


def _expect(condition: object, rule: str, *details: object) -> None:
    if not condition:
        raise BrokenStream(": ".join([rule, *(f"{detail!r:.300}" for detail in details)]))


def _by_type(union: Any) -> dict[str, type[BaseModel]]:
    members = typing.get_args(typing.get_args(union)[0])
    return {
        name: member
        for member in members
        for name in typing.get_args(member.model_fields["type"].annotation)
    }


EVENT_CLASSES = _by_type(ResponseStreamEvent)
ITEM_CLASSES = _by_type(ResponseOutputItem)
LIFECYCLE = ("created", "queued", "in_progress", "completed", "failed", "incomplete")
TERMINAL = ("response.completed", "response.failed", "response.incomplete")


def _validate(model: type[BaseModel], value: Mapping[str, Any], what: str) -> None:
    try:
        model.model_validate(value, strict=True)
    except ValidationError as error:
        problem = error.errors(include_url=False)[0]
        raise BrokenStream(f"{what} is no {model.__name__}: {problem}: {value!r:.300}") from None


# The Response object

NOT_NULL = (
    *("id", "created_at", "model", "object", "output", "parallel_tool_calls", "tool_choice"),
    *("tools", "temperature", "top_p", "presence_penalty", "frequency_penalty", "top_logprobs"),
    *("truncation", "text", "store", "background", "service_tier", "status"),
)
NULLABLE = (
    *("completed_at", "error", "incomplete_details", "instructions", "max_output_tokens"),
    *("max_tool_calls", "previous_response_id", "reasoning", "usage", "safety_identifier"),
    "prompt_cache_key",
)
ERROR_CODES = typing.get_args(ResponseError.model_fields["code"].annotation)
USAGE = {
    "input_tokens": None,
    "input_tokens_details": ("cached_tokens", "cache_write_tokens"),
    "output_tokens": None,
    "output_tokens_details": ("reasoning_tokens",),
    "total_tokens": None,
}


def _check_usage(usage: Mapping[str, Any]) -> None:
    for name, details in USAGE.items():
        _expect(usage.get(name) is not None, "usage lacks a field", name, usage)
        for detail in details or ():
            count = usage[name].get(detail)
            _expect(isinstance(count, int), "usage lacks a detail", detail, usage)


def _check_ending(response: Mapping[str, Any]) -> None:
    status, output = response["status"], response["output"]
    completed = response["completed_at"] is not None
    _expect(completed == (status == "completed"), "completed_at is set only when completed", status)
    failed = response["error"] is not None
    _expect(failed == (status == "failed"), "error is set only when failed", status)
    details = response["incomplete_details"]
    if status == "completed":
        _expect(details is None, "a completed response has no incomplete_details", details)
    if status == "incomplete":
        _expect(details and details.get("reason"), "an incomplete response says why", details)
    if details and details.get("reason") == "max_output_tokens" and output:
        last = output[-1].get("status")
        _expect(last == "incomplete", "the token limit leaves the last item incomplete", output[-1])


def check_response(response: Mapping[str, Any]) -> Mapping[str, Any]:
    """Check a Response object by itself."""
    _validate(Response, _known_items(response), "the response")
    for name in NOT_NULL:
        _expect(response.get(name) is not None, "a field of the response is null or absent", name)
    for name in NULLABLE:
        _expect(name in response, "a field of the response is absent", name)
    if response["error"] is not None:
        _expect(response["error"]["code"] in ERROR_CODES, "unknown error code", response["error"])
    if response["usage"] is not None:
        _check_usage(response["usage"])
    if response["status"] in ("queued", "in_progress"):
        _expect(response["error"] is None, "a running response has no error")
        _expect(response["completed_at"] is None, "a running response has no completed_at")
    else:
        _check_ending(response)
    for item in response["output"]:
        _check_item(item)
    return response


# Items

NEVER_IN_PROGRESS = ("program_output", "apply_patch_call_output")
STREAMED_FIELDS = {
    "function_call": ("response.function_call_arguments", "arguments"),
    "mcp_call": ("response.mcp_call_arguments", "arguments"),
    "custom_tool_call": ("response.custom_tool_call_input", "input"),
    "code_interpreter_call": ("response.code_interpreter_call_code", "code"),
}
PARTS = {
    ("message", "content"): ("output_text", "refusal"),
    ("reasoning", "content"): ("reasoning_text",),
    ("reasoning", "summary"): ("summary_text",),
}
PART_EVENTS = {
    "response.content_part": ("content", "content_index"),
    "response.reasoning_summary_part": ("summary", "summary_index"),
}
TEXT_EVENTS = {
    "response.output_text": ("output_text", "text"),
    "response.refusal": ("refusal", "refusal"),
    "response.reasoning_text": ("reasoning_text", "text"),
    "response.reasoning_summary_text": ("summary_text", "text"),
}


def _check_item(item: Mapping[str, Any]) -> None:
    kind = item.get("type")
    if ":" in str(kind):
        return
    _expect(kind in ITEM_CLASSES, "unknown type of item", item)
    _validate(ITEM_CLASSES[str(kind)], item, "the item")
    _expect(item.get("id"), "an item of an output has an id", item)


def _is_extension(item: Mapping[str, Any]) -> bool:
    return ":" in str(item.get("type"))


def _known_items(response: Mapping[str, Any]) -> Mapping[str, Any]:
    output = response.get("output")
    if not isinstance(output, list) or not any(map(_is_extension, output)):
        return response
    return {**response, "output": [item for item in output if not _is_extension(item)]}


def _without_extensions(event: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """Return an event without the items of extensions, which the SDK's types do not support."""
    if "item" in event and _is_extension(event["item"]):
        return None
    if "response" in event and (known := _known_items(event["response"])) != event["response"]:
        return {**event, "response": known}
    return event


def _identity(item: Mapping[str, Any]) -> tuple[object, ...]:
    return item["type"], item["id"], item.get("call_id"), item.get("name")


@dataclass
class _Text:
    """A streamed text: a part, or the arguments of a call."""

    kind: str
    value: str = ""
    annotations: list[Any] = field(default_factory=list)
    complete: bool = False
    part: Mapping[str, Any] | None = None  # as done


@dataclass
class _OpenItem:
    item: Mapping[str, Any]
    parts: dict[str, list[_Text]] = field(default_factory=lambda: {"content": [], "summary": []})
    text: _Text | None = None
    steps: list[str] = field(default_factory=list)  # of progress
    done: Mapping[str, Any] | None = None


# Streams


class StreamChecker:
    """Checks the events of one stream as they come: `feed` each, then `finish`."""

    def __init__(self) -> None:
        self.events: list[Mapping[str, Any]] = []
        self.items: list[_OpenItem] = []
        self.response: Mapping[str, Any] | None = None
        self.ended = False
        self._extended = False  # the SDK's helper does not support extensions
        self._helper: ResponseStreamState[Any] = ResponseStreamState(
            input_tools=omit, text_format=omit
        )

    def feed(self, event: Mapping[str, Any]) -> None:
        """Check one event."""
        kind = event.get("type")
        _expect(isinstance(kind, str), "an event has a type", event)
        number = event.get("sequence_number")
        _expect(number == len(self.events), "sequence numbers are contiguous from 0", number, kind)
        _expect(not self.ended, "nothing follows the last event of a response", event)
        first = not self.events
        _expect(first == (kind == "response.created"), "created is the first event", kind)
        self.events.append(event)
        if ":" in str(kind):
            return
        _expect(kind in EVENT_CLASSES, "unknown type of event", kind)
        _expect(kind != "error", "a failure inside a stream is response.failed", event)
        known = _without_extensions(event)
        if known is not None:
            _validate(EVENT_CLASSES[str(kind)], known, "the event")
        self._extended = self._extended or known is not event
        self._dispatch(str(kind), event)
        if not self._extended:
            self._feed_helper(event)

    def finish(self) -> Mapping[str, Any]:
        """Check that the stream has ended; return the final Response."""
        _expect(self.ended, "a stream ends with completed, failed or incomplete")
        assert self.response is not None
        return self.response

    def _dispatch(self, kind: str, event: Mapping[str, Any]) -> None:
        name, _, step = kind.rpartition(".")
        if name == "response" and step in LIFECYCLE:
            self._on_lifecycle(step, event)
            return
        _expect(len(self.events) > 2, "items come after in_progress", kind)
        handlers: dict[str, Callable[[str, str, Mapping[str, Any]], None]] = {
            "response.output_item": self._on_item,
            **dict.fromkeys(PART_EVENTS, self._on_part),
            **dict.fromkeys(TEXT_EVENTS, self._on_text),
            **dict.fromkeys((name for name, _ in STREAMED_FIELDS.values()), self._on_field),
            "response.output_text.annotation": self._on_annotation,
        }
        handlers.get(name, self._on_progress)(name, step, event)

    def _feed_helper(self, event: Mapping[str, Any]) -> None:
        typed = EVENT_CLASSES[event["type"]].model_validate(event)
        try:
            self._helper.handle_event(typing.cast(Any, typed))
        except (RuntimeError, AssertionError, IndexError) as error:
            raise BrokenStream(
                f"the SDK's stream helper refuses {event!r:.300}: {error}"
            ) from error

    # The response as a whole

    def _on_lifecycle(self, step: str, event: Mapping[str, Any]) -> None:
        response, before = check_response(event["response"]), self.response
        if step in ("created", "queued", "in_progress"):
            self._check_running(step, response)
        else:
            self._check_terminal(step, response)
        if before is not None:
            self._check_unchanged(before, response)
        self.response = response

    def _check_running(self, step: str, response: Mapping[str, Any]) -> None:
        steps = [event["type"].removeprefix("response.") for event in self.events]
        allowed = (["created"], ["created", "queued"], ["created", "in_progress"])
        also = ["created", "queued", "in_progress"]
        _expect(steps in (*allowed, also), "created, queued, in_progress come once, first", steps)
        _expect(response["output"] == [], "a response begins with an empty output", response)
        expected = {"created": ("in_progress", "queued")}.get(step, (step,))
        _expect(response["status"] in expected, "the status follows the event", step, response)

    def _check_terminal(self, step: str, response: Mapping[str, Any]) -> None:
        self.ended = True
        started = any(event["type"] == "response.in_progress" for event in self.events)
        _expect(started, "in_progress comes before the end", step)
        allowed = {"incomplete": ("incomplete", "cancelled")}.get(step, (step,))
        _expect(response["status"] in allowed, "the status follows the event", step, response)
        unfinished = [item.item for item in self.items if item.done is None]
        _expect(not unfinished, "every item is done before the end", unfinished)
        done = [item.done for item in self.items]
        _expect(
            response["output"] == done, "the output is the items as done", response["output"], done
        )

    @staticmethod
    def _check_unchanged(before: Mapping[str, Any], after: Mapping[str, Any]) -> None:
        may_change = ("status", "output", "usage", "completed_at", "error", "incomplete_details")
        may_change = (*may_change, "model", "metadata", "custom_outputs", "service_tier")
        for name in before.keys() | after.keys():
            if name not in may_change:
                same = before.get(name) == after.get(name)
                _expect(
                    same, "a field of the response changed", name, before.get(name), after.get(name)
                )

    # Items

    def _item(self, event: Mapping[str, Any]) -> _OpenItem:
        index = event["output_index"]
        _expect(0 <= index < len(self.items), "an event comes after its item was added", event)
        item = self.items[index]
        _expect(item.done is None, "nothing is said of an item that is done", event)
        if "item_id" in event:
            _expect(event["item_id"] == item.item["id"], "item_id and output_index agree", event)
        return item

    def _on_item(self, _: str, step: str, event: Mapping[str, Any]) -> None:
        item, index = event["item"], event["output_index"]
        _check_item(item)
        if step == "added":
            _expect(index == len(self.items), "output_index counts the items", index, item)
            for other in self.items:
                _expect(other.item["id"] != item["id"], "item ids are unique", item)
                same_call = _call(other.item) is not None and _call(other.item) == _call(item)
                _expect(not same_call, "call ids are unique", item)
            self._check_start(item)
            self.items.append(_OpenItem(item))
        else:
            self._check_done(self._item(event), item)

    @staticmethod
    def _check_start(item: Mapping[str, Any]) -> None:
        if _is_extension(item):
            return
        if (
            "status" in ITEM_CLASSES[item["type"]].model_fields
            and item["type"] not in NEVER_IN_PROGRESS
        ):
            _expect(item.get("status") == "in_progress", "an item begins in progress", item)
        for kind, name in (
            ("message", "content"),
            ("reasoning", "summary"),
            ("reasoning", "content"),
        ):
            if item["type"] == kind:
                _expect(not item.get(name), "an item begins without parts", item)
        if item["type"] in STREAMED_FIELDS:
            _expect(
                not item.get(STREAMED_FIELDS[item["type"]][1]),
                "a call begins without arguments",
                item,
            )

    @staticmethod
    def _check_done(opened: _OpenItem, item: Mapping[str, Any]) -> None:
        _expect(
            _identity(opened.item) == _identity(item),
            "an item keeps its identity",
            opened.item,
            item,
        )
        opened.done = item
        if _is_extension(item):
            return
        status = item.get("status")
        if (
            "status" in ITEM_CLASSES[item["type"]].model_fields
            and item["type"] != "apply_patch_call"
        ):
            running = (None, "in_progress", "searching", "generating", "interpreting", "calling")
            _expect(status not in running, "a done item has a final status", item)
        for home, texts in opened.parts.items():
            if (item["type"], home) in PARTS:
                _expect(
                    all(text.part for text in texts), "every part is done before its item", item
                )
                parts = [text.part for text in texts]
                _expect(
                    (item.get(home) or []) == parts, "an item has the parts as done", item, parts
                )
        if item["type"] in STREAMED_FIELDS:
            text = opened.text
            if item["type"] in ("function_call", "mcp_call"):
                _expect(text and text.complete, "arguments are done before their call", item)
            if text:
                _expect(text.complete, "a text is done before its item", item)
                value = item.get(STREAMED_FIELDS[item["type"]][1])
                _expect(value == text.value, "a call has the sum of its deltas", item, text.value)
        if item["type"] == "mcp_call":
            _check_hosted(item, opened.steps)

    # Parts and texts

    def _parts(
        self, item: _OpenItem, home: str, part_type: str, event: Mapping[str, Any]
    ) -> list[_Text]:
        allowed = PARTS.get((item.item["type"], home), ())
        _expect(part_type in allowed, "the part fits its item", event, item.item)
        return item.parts[home]

    def _on_part(self, name: str, step: str, event: Mapping[str, Any]) -> None:
        home, index_name = PART_EVENTS[name]
        part, index, item = event["part"], event[index_name], self._item(event)
        parts = self._parts(item, home, part["type"], event)
        field_name = "refusal" if part["type"] == "refusal" else "text"
        if step == "added":
            _expect(index == len(parts), "the index counts the parts", event)
            _expect(part[field_name] == "", "a part begins empty", event)
            _expect(not part.get("annotations"), "a part begins without annotations", event)
            parts.append(_Text(part["type"]))
            return
        text = self._open_text(item, home, part["type"], event, index_name)
        _expect(text.complete, "a text is done before its part", event)
        _expect(
            part[field_name] == text.value, "a part has the sum of its deltas", event, text.value
        )
        if part["type"] == "output_text":
            same = part["annotations"] == text.annotations
            _expect(same, "a part has the annotations that were added", event, text.annotations)
        text.part = part

    def _open_text(
        self, item: _OpenItem, home: str, part_type: str, event: Mapping[str, Any], index_name: str
    ) -> _Text:
        parts, index = self._parts(item, home, part_type, event), event[index_name]
        _expect(0 <= index < len(parts), "an event comes after its part was added", event)
        text = parts[index]
        _expect(text.kind == part_type, "an event fits the type of its part", event, text.kind)
        _expect(text.part is None, "nothing is said of a part that is done", event)
        return text

    def _accumulate(
        self, text: _Text, step: str, event: Mapping[str, Any], field_name: str
    ) -> None:
        _expect(not text.complete, "nothing is said of a text that is done", event)
        if step == "delta":
            text.value += event["delta"]
        else:
            whole = event[field_name]
            _expect(whole == text.value, "the end is the sum of the deltas", event, text.value)
            text.complete = True

    def _on_text(self, name: str, step: str, event: Mapping[str, Any]) -> None:
        part_type, field_name = TEXT_EVENTS[name]
        summary = part_type == "summary_text"
        home, index_name = ("summary", "summary_index") if summary else ("content", "content_index")
        text = self._open_text(self._item(event), home, part_type, event, index_name)
        self._accumulate(text, step, event, field_name)

    def _on_annotation(self, _: str, step: str, event: Mapping[str, Any]) -> None:
        _expect(step == "added", "annotations are only added", event)
        text = self._open_text(self._item(event), "content", "output_text", event, "content_index")
        index = event["annotation_index"]
        _expect(index == len(text.annotations), "annotation_index counts the annotations", event)
        text.annotations.append(event["annotation"])

    def _on_field(self, name: str, step: str, event: Mapping[str, Any]) -> None:
        item = self._item(event)
        stream, field_name = STREAMED_FIELDS.get(item.item["type"], ("", ""))
        _expect(stream == name, "an event fits the type of its item", event, item.item)
        if name == "response.mcp_call_arguments":
            _expect(item.steps == ["in_progress"], "arguments come while in progress", event)
        item.text = item.text or _Text(item.item["type"])
        self._accumulate(item.text, step, event, field_name)

    def _on_progress(self, name: str, step: str, event: Mapping[str, Any]) -> None:
        if "output_index" not in event:
            return
        item = self._item(event)
        kind = item.item["type"]
        fits = name == f"response.{kind}" or not name.endswith("_call")
        _expect(fits, "an event fits the type of its item", event, kind)
        if kind == "mcp_call" and step != "in_progress":
            complete = item.text and item.text.complete
            _expect(complete, "arguments are done before their tool has run", event)
        item.steps.append(step)


def _check_hosted(item: Mapping[str, Any], steps: list[str]) -> None:
    """Check the end of a call that the server has run."""
    status, results = item["status"], (item.get("output"), item.get("error"))
    if status in ("completed", "failed"):
        _expect(steps == ["in_progress", status], "a hosted call ends as its steps say", item)
    if item["server_label"] != "agent_kit":
        return  # an agent's own item, whose result is optional
    has_result = (results[0] is not None, results[1] is not None)
    expected = {"completed": (True, False), "failed": (False, True)}.get(status, (False, False))
    _expect(has_result == expected, "a hosted call has the result that its status says", item)


def _call(item: Mapping[str, Any]) -> tuple[str, str] | None:
    call = item.get("call_id") if str(item["type"]).endswith("_call") else None
    return (item["type"], call) if call else None


def check_stream(events: Iterable[Mapping[str, Any]]) -> Mapping[str, Any]:
    """Check a whole stream of events; return its final Response."""
    checker = StreamChecker()
    for event in events:
        checker.feed(event)
    return checker.finish()


# Frames


def read_sse(body: bytes) -> list[dict[str, Any]]:
    """Read the frames of a stream of server-sent events, strictly, up to `[DONE]`."""
    _expect(body.endswith(b"\n\n"), "a stream ends with a whole frame", body[-80:])
    frames = [frame for frame in body.decode().split("\n\n") if frame]
    frames = [frame for frame in frames if not frame.startswith(":")]
    _expect(frames and frames[-1] == "data: [DONE]", "the last frame is [DONE]", frames[-1:])
    events = []
    for frame in frames[:-1]:
        lines = frame.split("\n")
        _expect(len(lines) == 2, "a frame is an event line and a data line", frame)
        _expect(lines[0].startswith("event: "), "a frame begins with its event", frame)
        _expect(lines[1].startswith("data: "), "the data follows the event", frame)
        event = json.loads(lines[1].removeprefix("data: "))
        named = lines[0].removeprefix("event: ")
        _expect(event.get("type") == named, "the event line equals the type", frame)
        events.append(event)
    return events


def check_sse(body: bytes) -> list[dict[str, Any]]:
    """Check the bytes of an event stream; return its events."""
    events = read_sse(body)
    check_stream(events)
    return events
