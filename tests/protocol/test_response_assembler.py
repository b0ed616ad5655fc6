"""Any output of an agent becomes a complete, valid event stream."""

import asyncio
import json
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from openai import InternalServerError
from support.stream_checker import BrokenStream, check_response, check_sse, check_stream

from agent_kit.protocol import output_items, parse_request
from agent_kit.protocol.response_assembler import (
    DONE,
    AgentOutputError,
    ResponseAssembler,
    encode_event,
)
from agent_kit.server import create_server

REQUEST = parse_request("agent/v1/responses", {"input": "What is 17*23?", "model": "m"})
CALL = {"type": "function_call", "call_id": "call_1", "name": "multiply", "arguments": "{}"}
OUTPUT = {"type": "function_call_output", "call_id": "call_1", "output": "391"}


def stream(*chunks: object) -> list[dict[str, Any]]:
    """The checked events of an agent that yields `chunks`."""
    assembler = ResponseAssembler(REQUEST)
    events = assembler.start()
    for chunk in chunks:
        events += assembler.add(chunk)
    events += assembler.finish()
    return check(events)


def check(events: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Check events as they arrive at a client."""
    return check_sse(b"".join(map(encode_event, events)) + DONE)


def delta(text: str, **fields: object) -> dict[str, Any]:
    return {"type": "response.output_text.delta", "delta": text, **fields}


def added(item: dict[str, Any], **fields: object) -> dict[str, Any]:
    return {"type": "response.output_item.added", "item": item, **fields}


def done(item: dict[str, Any], **fields: object) -> dict[str, Any]:
    return {"type": "response.output_item.done", "item": item, **fields}


def message(text: str, **fields: object) -> dict[str, Any]:
    parts = [{"type": "output_text", "text": text}]
    return {"type": "message", "role": "assistant", "content": parts, **fields}


def folded(events: list[dict[str, Any]]) -> dict[str, Any]:
    """The Response that a client builds from the events it has received."""
    responses = [event["response"] for event in events if "response" in event]
    items = [event["item"] for event in events if event["type"] == "response.output_item.done"]
    return {**responses[-1], "output": items}


def texts(events: list[dict[str, Any]]) -> list[str]:
    return [
        part.get("text", "")
        for item in events[-1]["response"]["output"]
        if item["type"] == "message"
        for part in item["content"]
    ]


def types(events: list[dict[str, Any]]) -> list[str]:
    return [event["type"].removeprefix("response.") for event in events]


# What is completed ----------------------------------------------------------------------------


def test_a_string_becomes_a_message_with_all_its_events():
    assert types(stream("It is 391.")) == [
        *("created", "in_progress", "output_item.added", "content_part.added"),
        *("output_text.delta", "output_text.done", "content_part.done", "output_item.done"),
        "completed",
    ]


def test_an_agent_without_output_has_an_empty_response():
    assert types(stream("")) == ["created", "in_progress", "completed"]


def test_deltas_become_one_message_and_items_keep_their_order():
    events = stream("Let me ", "see.", CALL, OUTPUT, "It is ", "391.")
    kinds = [item["type"] for item in events[-1]["response"]["output"]]
    assert kinds == ["message", "function_call", "function_call_output", "message"]
    assert texts(events) == ["Let me see.", "It is 391."]


def test_each_type_of_item_is_completed_from_its_required_fields():
    least = [
        {"content": "Hello"},
        {"type": "reasoning", "summary": "Thinking"},
        {"type": "reasoning", "content": ["First", {"text": "Second"}]},
        {"type": "function_call", "name": "f"},
        {"type": "function_call", "name": "f", "call_id": "c", "arguments": {"a": 1}},
        {"type": "function_call_output", "call_id": "c", "output": {"a": [1]}},
        {"type": "custom_tool_call", "call_id": "d", "name": "f", "input": "x"},
        {"type": "custom_tool_call_output", "call_id": "d", "output": None},
        {"type": "mcp_call", "name": "f", "server_label": "s"},
        {"type": "mcp_call", "name": "f", "server_label": "s", "error": "It broke."},
        {"type": "mcp_list_tools", "server_label": "s", "tools": []},
        {"type": "mcp_approval_request", "name": "f", "server_label": "s"},
        {"type": "web_search_call"},
        {"type": "file_search_call", "queries": ["x"]},
        {"type": "code_interpreter_call", "code": "1+1"},
        {"type": "image_generation_call", "result": "QUJD"},
        {"type": "computer_call", "call_id": "e"},
        {"type": "tool_search_call"},
        {"type": "program", "call_id": "p", "code": "1"},
        {"type": "program_output", "call_id": "p", "result": "1"},
        {"type": "compaction", "encrypted_content": "…"},
        {"type": "apply_patch_call_output", "call_id": "q", "status": "odd"},
        {"type": "acme:note", "text": "An extension's item"},
    ]
    response = stream(*(done(item) for item in least))[-1]["response"]
    assert [item["type"] for item in response["output"]] == [
        item.get("type", "message") for item in least
    ]


@pytest.mark.parametrize("status", ["failed", "incomplete", "in_progress", "completed", "strange"])
@pytest.mark.parametrize(
    "item",
    [
        {"type": "web_search_call"},
        {"type": "file_search_call", "queries": []},
        {"type": "code_interpreter_call", "code": "1"},
        {"type": "image_generation_call", "result": "QUJD"},
        {"type": "mcp_call", "name": "f", "server_label": "s"},
        {"type": "mcp_list_tools", "server_label": "s", "tools": []},
        CALL,
        OUTPUT,
        {"content": "x"},
    ],
    ids=lambda item: item.get("type", "message"),
)
def test_an_item_may_end_in_any_way(item, status):
    stream({**item, "status": status})


def test_a_failed_web_search_sends_no_event_that_does_not_exist():
    events = stream({"type": "web_search_call", "status": "failed"})
    assert "web_search_call.failed" not in types(events)
    assert events[-1]["response"]["output"][0]["status"] == "failed"


def test_a_failed_mcp_call_sends_a_failed_event():
    item = {"type": "mcp_call", "name": "f", "server_label": "s", "error": "It broke."}
    assert "mcp_call.failed" in types(stream(item))


# Which item an event belongs to ---------------------------------------------------------------


@pytest.mark.parametrize(
    "chunks",
    [
        ["It is ", "391.", message("It is 391.", id="b")],
        [delta("It is 391.", item_id="a"), message("It is 391.", id="b")],
        [delta("It is 391.", item_id="a"), done(message("It is 391.", id="b"))],
        [delta("It is 391.", item_id="a"), done(message("It is 391.\n", id="b"))],
        [delta("It is", item_id="a"), done(message("It is 391.", id="a"))],
        [delta("It is", item_id="a"), done(message("It is 391."))],
        [
            added(message("", id="a"), output_index=0),
            delta("It is 391.", item_id="a", output_index=0),
            done(message("It is 391.", id="b"), output_index=0),
        ],
        [delta("It is 391.", item_id="a"), done(message("It is 391.", id="a"))] * 1
        + [done(message("It is 391.", id="a"))],
        ["It is 391.", {"output": [message("It is 391.")]}],
        ["It is 391.", {"type": "response.completed", "response": {"output": [message("x")]}}],
    ],
)
def test_a_repeated_message_appears_once(chunks):
    assert "".join(texts(stream(*chunks))).strip() == "It is 391."
    assert len(texts(stream(*chunks))) == 1


@pytest.mark.parametrize(
    "chunks",
    [
        [message("one", id="a"), message("two", id="a")],
        [message("one"), message("two")],
        [delta("one", item_id="a"), message("two", id="b")],
        [delta("one", item_id="a"), delta("two", item_id="b")],
        ["one", message("two")],
        [
            added(message("", id="a"), output_index=0),
            delta("one", item_id="a", output_index=0),
            done(message("two", id="b"), output_index=1),
        ],
    ],
)
def test_two_messages_stay_two(chunks):
    assert texts(stream(*chunks)) == ["one", "two"]


def test_calls_with_the_same_call_id_get_different_ids_and_so_do_their_outputs():
    second = {**OUTPUT, "output": "392"}
    output = stream(CALL, OUTPUT, CALL, second)[-1]["response"]["output"]
    calls = [item["call_id"] for item in output]
    assert calls[0] == "call_1" == calls[1]
    assert calls[2] == calls[3] != "call_1"
    parallel = stream(CALL, CALL, OUTPUT, second)[-1]["response"]["output"]
    calls = [item["call_id"] for item in parallel]
    assert calls[0] == calls[2] == "call_1" != calls[1] == calls[3]


def test_a_streamed_call_with_a_used_call_id_gets_a_new_one():
    arguments = {"type": "response.function_call_arguments.delta", "delta": "{}"}
    again = {**CALL, "id": "fc_2"}
    output = stream(
        *(CALL, OUTPUT, added({**again, "arguments": ""})),
        *({**arguments, "item_id": "fc_2"}, done(again), OUTPUT),
    )[-1]["response"]["output"]
    assert [item["type"] for item in output] == ["function_call", "function_call_output"] * 2
    assert output[2]["call_id"] == output[3]["call_id"] != "call_1"


def test_a_call_ends_without_repeating_its_call_id():
    output = stream(
        added({**CALL, "id": "fc_1", "arguments": ""}),
        {"type": "response.function_call_arguments.delta", "item_id": "fc_1", "delta": "{}"},
        done({"type": "function_call", "name": "multiply"}),
    )[-1]["response"]["output"]
    assert [item["call_id"] for item in output] == ["call_1"]


def test_a_call_that_changes_its_call_id_is_an_error():
    opened = added({**CALL, "id": "fc_1", "arguments": ""})
    with pytest.raises(AgentOutputError, match="call_id"):
        stream(opened, done({**CALL, "id": "fc_1", "call_id": "call_2"}))


# Citations, probabilities, outputs, usage -----------------------------------------------------


@pytest.mark.parametrize(
    "annotation",
    [
        {"type": "url_citation", "url": "https://example.org"},
        {"type": "url_citation", "url": "https://example.org", "start_index": None},
        {"type": "file_citation", "file_id": "f"},
        {"type": "file_path", "file_id": "f"},
        {"type": "container_file_citation", "file_id": "f"},
    ],
    ids=lambda annotation: annotation["type"],
)
def test_a_citation_without_indices_is_at_the_end_of_the_text(annotation):
    event = {"type": "response.output_text.annotation.added", "annotation": annotation}
    part = {"type": "output_text", "text": "See there.", "annotations": [annotation]}
    for events in (stream("See there.", event), stream({"content": [part]})):
        citation = events[-1]["response"]["output"][0]["content"][0]["annotations"][0]
        index = citation.get("end_index", citation.get("index"))
        assert index == len("See there.")


def test_a_citation_without_its_source_is_an_error():
    part = {"type": "output_text", "text": "x", "annotations": [{"type": "url_citation"}]}
    with pytest.raises(AgentOutputError, match="url"):
        stream({"content": [part]})


def test_probabilities_without_bytes_are_completed():
    token = {"token": "é", "logprob": -1, "top_logprobs": [{"token": "è", "logprob": -2}]}
    part = stream(delta("é", logprobs=[token]))[-1]["response"]["output"][0]["content"][0]
    assert part["logprobs"][0]["bytes"] == [195, 169]


def test_custom_outputs_and_usage_may_come_alone():
    usage = {"prompt_tokens": 3, "completion_tokens": 4}
    response = stream(
        *("Hi", {"custom_outputs": {"a": 1}}),
        *({"custom_outputs": {"b": 2}, "usage": usage}, {"usage": usage}),
    )[-1]["response"]
    assert response["custom_outputs"] == {"a": 1, "b": 2}
    assert response["usage"]["total_tokens"] == 14


def test_the_metadata_of_a_model_is_sent_as_strings():
    response = {"output": [message("Hi")], "metadata": {"turns": 3, "by": "me"}}
    assert stream(response)[-1]["response"]["metadata"] == {"turns": "3", "by": "me"}


@pytest.mark.parametrize("details", [None, {"reason": "odd"}, {"reason": "content_filter"}])
def test_an_incomplete_answer_contains_the_reason(details):
    response = {"status": "incomplete", "incomplete_details": details}
    events = stream("It is", {"type": "response.incomplete", "response": response})
    assert events[-1]["type"] == "response.incomplete"
    reason = events[-1]["response"]["incomplete_details"]["reason"]
    assert reason == (
        "content_filter"
        if (details or {}).get("reason") == "content_filter"
        else "max_output_tokens"
    )


# Other ends -----------------------------------------------------------------------------------


def ended(end: str, *chunks: object) -> dict[str, Any]:
    assembler = ResponseAssembler(REQUEST)
    events = assembler.start()
    for chunk in chunks:
        events += assembler.add(chunk)
    events += assembler.fail("It broke.", "odd") if end == "fail" else assembler.cancel()
    assert assembler.finish() == assembler.cancel() == assembler.fail("again") == []
    with pytest.raises(AgentOutputError, match="ended"):
        assembler.add("more")
    return check(events)[-1]["response"]


@pytest.mark.parametrize("end", ["fail", "cancel"])
@pytest.mark.parametrize(
    "chunk",
    [
        "half a mess",
        delta("half", item_id="a"),
        added({**CALL, "arguments": "{"}),
        added({"type": "web_search_call", "id": "w"}),
        added({"type": "custom_tool_call", "id": "w", "call_id": "c", "name": "f"}),
        added({"type": "image_generation_call", "id": "w"}),
        {"type": "response.reasoning_text.delta", "delta": "hm"},
    ],
    ids=str,
)
def test_what_is_open_is_closed_by_a_failure_and_by_a_cancel(end, chunk):
    response = ended(end, chunk)
    assert response["status"] == ("failed" if end == "fail" else "cancelled")
    assert response["output"]


def test_an_unknown_error_code_becomes_a_known_one():
    assert ended("fail")["error"] == {"code": "server_error", "message": "It broke."}


def test_an_error_event_ends_the_stream_as_a_failure():
    events = stream("Hi", {"type": "error", "message": "No.", "code": "invalid_prompt"})
    assert events[-1]["response"]["error"] == {"code": "invalid_prompt", "message": "No."}


# A complete stream passes ---------------------------------------------------------------------

RICH: list[Any] = [
    {"type": "reasoning", "summary": ["First"], "content": ["Thinking"], "encrypted_content": "x"},
    "Let me see.",
    {"type": "web_search_call", "action": {"type": "search", "query": "17*23"}},
    CALL,
    OUTPUT,
    {"type": "mcp_call", "name": "f", "server_label": "s", "arguments": "{}", "output": "1"},
    {"type": "code_interpreter_call", "code": "17*23", "container_id": "c"},
    {"type": "custom_tool_call", "call_id": "d", "name": "f", "input": "x"},
    {
        "content": [
            {
                "type": "output_text",
                "text": "It is 391.",
                "annotations": [{"type": "url_citation", "url": "https://example.org"}],
            },
            {"type": "refusal", "refusal": "No more."},
        ]
    },
]


def test_a_complete_stream_passes_unchanged():
    complete = stream(*RICH)
    passed = stream(*complete)
    assert passed[2:-1] == complete[2:-1]
    assert passed[-1]["response"]["output"] == complete[-1]["response"]["output"]


def test_the_final_response_is_the_fold_of_its_events():
    events = stream(*RICH)
    assert folded(events) == events[-1]["response"]
    assert folded(events[:-1])["output"] == events[-1]["response"]["output"]


def test_a_plain_answer_is_the_streams_last_response():
    assembler = ResponseAssembler(REQUEST)
    assembler.start()
    for chunk in RICH:
        assembler.add(chunk)
    assembler.finish()
    assert check_response(assembler.body)["status"] == "completed"


# Errors -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "chunk",
    [
        *(None, 7, b"bytes", {}, {"odd": 1}, [["nested"]], object()),
        *({"type": []}, {"type": "response.output_text.delta"}),
        *({"content": 7}, {"content": "x", "role": "user"}, {"content": "x", "tool_calls": [1]}),
        *({"content": [{"type": []}]}, {"content": [7]}),
        *({"type": "function_call"}, {"type": "function_call", "name": "f", "arguments": [1]}),
        *(
            {"type": "function_call", "name": "f", "call_id": [7]},
            {"type": "reasoning", "summary": 1},
        ),
        *({"output": 7}, {"usage": {"input_tokens": "many"}}),
        *({"usage": {"input_tokens": float("nan")}}, {"usage": [1]}, {"custom_outputs": 7}),
        {"type": "response.completed", "response": [1]},
        {"type": "response.content_part.added", "part": {"type": []}},
        {"type": "response.content_part.added", "part": {"type": "summary_text"}},
        {"type": "response.content_part.done"},
        {"type": "response.output_item.done", "item": "x"},
        {"type": "response.function_call_arguments.delta", "delta": "{"},
        {"type": "response.web_search_call.searching"},
        {"type": "response.output_text.annotation.added", "annotation": 7},
        delta("x", logprobs=7),
        delta("x", logprobs=[{"token": "x"}]),
        delta("x", logprobs=[{"logprob": 1}]),
        {"content": [{"type": "output_text", "text": "x", "annotations": 7}]},
    ],
)
def test_an_invalid_chunk_is_an_error_and_the_stream_still_ends_validly(chunk):
    assembler = ResponseAssembler(REQUEST)
    events = [*assembler.start(), *assembler.add("Before. ")]
    with pytest.raises(AgentOutputError):
        assembler.result([chunk])
    events += assembler.fail("The agent failed.")
    assert check(events)[-1]["type"] == "response.failed"


UNKNOWN = {
    "an item": [{"type": "telegram", "text": "stop"}],
    "an announced item": [
        {"type": "response.output_item.added", "item": {"type": "telex_call", "id": "t"}},
        {"type": "response.telex_call.in_progress", "item_id": "t"},
        {"type": "response.output_item.done", "item": {"type": "telex_call", "id": "t"}},
    ],
    "a part of a message": [{"content": [{"type": "hologram"}]}],
    "an announced part": [
        {"type": "response.content_part.added", "part": {"type": "smell"}},
        {"type": "response.content_part.done", "part": {"type": "smell"}},
    ],
    "a part of a reasoning": [{"type": "reasoning", "summary": [{"type": "sketch"}]}],
    "an annotation": [
        {"content": [{"type": "output_text", "text": "", "annotations": [{"type": "doodle"}]}]},
        {"type": "response.output_text.annotation.added", "annotation": {"type": "scribble"}},
    ],
    "an event": [{"type": "response.odd"}, {"type": "acme:x\n\ndata: y"}, {"type": ":"}],
}


@pytest.mark.parametrize("label", UNKNOWN)
def test_what_has_an_unknown_type_is_passed_over_with_a_log_line(label, caplog):
    output_items._log_unknown.cache_clear()
    assembler = ResponseAssembler(REQUEST)
    events = assembler.start()
    for chunk in ("Before. ", *UNKNOWN[label], "After."):
        events += assembler.add(chunk)
    assert check([*events, *assembler.finish()])[-1]["type"] == "response.completed"
    texts = [part["text"] for item in assembler.body["output"] for part in item.get("content", ())]
    assert "".join(texts) == "Before. After."
    assert any("unknown type" in line.message for line in caplog.records)


TWIN = {"type": "function_call", "name": "look", "call_id": "x"}


def twin(city: str, **more: Any) -> dict[str, Any]:
    return {**TWIN, "arguments": f'{{"city":"{city}"}}', **more}


def announced(**more: Any) -> dict[str, Any]:
    return {"type": "response.output_item.added", "item": {**TWIN, "arguments": "", **more}}


TWINS = {
    "whole": [twin("Rome"), twin("Oslo")],
    "announced": [announced(), announced(), done(twin("Rome")), done(twin("Oslo"))],
    "announced with ids": [
        *(announced(id="a"), announced(id="b")),
        *(done(twin("Rome", id="a")), done(twin("Oslo", id="b"))),
    ],
    "announced with one id": [
        *(announced(id="a"), announced(id="a")),
        *(done(twin("Rome", id="a")), done(twin("Oslo", id="a"))),
    ],
    "numbers": [twin("Rome", call_id=7), twin("Oslo", call_id=7)],
    "empty": [twin("Rome", call_id=""), twin("Oslo", call_id="")],
}


@pytest.mark.parametrize("label", TWINS)
def test_calls_with_one_id_each_get_their_own_and_its_output(label):
    call_id = {"numbers": 7, "empty": ""}.get(label, "x")
    assembler = ResponseAssembler(REQUEST)
    events = assembler.start()
    for chunk in TWINS[label]:
        events += assembler.add(chunk)
    for city in ("Rome", "Oslo"):
        output = {"type": "function_call_output", "call_id": call_id, "output": city}
        events += assembler.add(output)
    check([*events, *assembler.finish()])
    calls, outputs = assembler.body["output"][:2], assembler.body["output"][2:]
    assert [json.loads(call["arguments"])["city"] for call in calls] == ["Rome", "Oslo"]
    ids = [call["call_id"] for call in calls]
    assert [output["call_id"] for output in outputs] == ids
    assert len(set(ids)) == 2


@pytest.mark.parametrize(
    "chunk",
    [
        {"custom_outputs": {"count": 10**400}},
        {"type": "function_call", "name": "f", "arguments": {"n": 10**400}},
        {"type": "web_search_call", "hits": 10**400},
    ],
)
def test_an_integer_that_json_cannot_express_is_a_failure_with_its_reason(chunk, monkeypatch):
    monkeypatch.setenv("AGENT_KIT_MLFLOW_TRACING", "false")
    server = create_server()

    @server.stream()
    async def answer(request):
        yield chunk

    async def ask():
        async with server.client() as client:
            await client.responses.create(input="Hi")

    with pytest.raises(InternalServerError, match="integer beyond 1e308"):
        asyncio.run(ask())


@pytest.mark.parametrize(
    "chunks",
    [
        [delta("one", item_id="a"), done(message("two", id="a"))],
        [message("one", id="a"), delta("more", item_id="a")],
        [{"type": "response.output_text.done", "text": "one"}, delta("more")],
        ["one", {"type": "response.output_text.done", "text": "two"}],
        [
            added(message("", id="a")),
            {"type": "response.refusal.delta", "item_id": "a", "delta": "No"},
            done(message("Yes", id="a")),
        ],
    ],
)
def test_a_text_that_contradicts_its_deltas_is_an_error(chunks):
    with pytest.raises(AgentOutputError):
        stream(*chunks)


# Any output ------------------------------------------------------------------------------

IDS = st.sampled_from([None, "", "a", "b", "__fake_id__", 7, []])
TEXT = st.sampled_from(["", "one", "two", "one two", " ", "\ud83d", "é\n"])
INDEX = st.sampled_from([None, 0, 1, 2, "x", True])
PARTS = st.one_of(
    TEXT,
    st.none(),
    st.builds(
        lambda kind, text, notes: {"type": kind, "text": text, "refusal": text, **notes},
        st.sampled_from(
            ["output_text", "refusal", "reasoning_text", "summary_text", "odd", None, []]
        ),
        TEXT,
        st.sampled_from(
            [
                {},
                {"annotations": [{"type": "file_path", "file_id": "f"}]},
                {"annotations": [{"type": "odd"}]},
                {"logprobs": [{"token": "x", "logprob": 0}]},
            ]
        ),
    ),
)
KINDS = st.sampled_from(
    [
        *("message", "reasoning", "function_call", "function_call_output", "mcp_call"),
        *("custom_tool_call", "custom_tool_call_output", "code_interpreter_call", None, []),
        *("web_search_call", "image_generation_call", "mcp_list_tools", "acme:note", "odd"),
    ]
)
ITEMS = st.fixed_dictionaries(
    {"type": KINDS},
    optional={
        "id": IDS,
        "role": st.sampled_from(["assistant", "user", None]),
        "content": st.one_of(TEXT, st.none(), st.lists(PARTS, max_size=3)),
        "summary": st.one_of(TEXT, st.lists(PARTS, max_size=2)),
        "call_id": st.sampled_from([None, "c", "d", 7]),
        "name": st.sampled_from(["f", "g", None]),
        "arguments": st.sampled_from(["{}", "{", "", None, {"a": 1}, [1]]),
        "input": TEXT,
        "output": st.sampled_from(["x", None, [1], {"a": float("nan")}]),
        "server_label": st.just("s"),
        "tools": st.just([]),
        "code": TEXT,
        "status": st.sampled_from([None, "completed", "failed", "incomplete", "odd", 7]),
        "error": st.sampled_from([None, "It broke."]),
    },
)
EVENT_TYPES = [
    *("output_item.added", "output_item.done", "content_part.added", "content_part.done"),
    *("output_text.delta", "output_text.done", "refusal.delta", "refusal.done"),
    *("reasoning_text.delta", "reasoning_text.done", "reasoning_summary_part.added"),
    *(
        "reasoning_summary_text.delta",
        "reasoning_summary_part.done",
        "function_call_arguments.done",
    ),
    *("function_call_arguments.delta", "custom_tool_call_input.delta", "mcp_call_arguments.delta"),
    *("code_interpreter_call_code.delta", "web_search_call.searching", "mcp_call.failed"),
    *("output_text.annotation.added", "created", "queued", "in_progress", "odd"),
]
EVENTS = st.fixed_dictionaries(
    {"type": st.sampled_from([f"response.{name}" for name in EVENT_TYPES])},
    optional={
        "item": ITEMS,
        "item_id": IDS,
        "output_index": INDEX,
        "content_index": INDEX,
        "summary_index": INDEX,
        "part": PARTS,
        "delta": TEXT,
        "text": TEXT,
        "refusal": TEXT,
        "arguments": TEXT,
        "annotation": st.sampled_from([{"type": "url_citation", "url": "u"}, None]),
        "sequence_number": st.integers(),
    },
)
RESPONSES = st.fixed_dictionaries(
    {},
    optional={
        "output": st.lists(ITEMS, max_size=2),
        "usage": st.sampled_from([None, {"input_tokens": 3}, {"input_tokens": None}, {"a": "b"}]),
        "status": st.sampled_from(["completed", "incomplete", "failed", None]),
        "incomplete_details": st.sampled_from([None, {"reason": "odd"}, {}, "x"]),
        "metadata": st.sampled_from([None, {"a": 1}, []]),
        "model": st.sampled_from([None, "m", 7]),
        "error": st.sampled_from([None, {"code": "odd", "message": None}, "x"]),
        "custom_outputs": st.sampled_from([{"a": 1}, None]),
    },
)
ENDINGS = st.builds(
    lambda kind, response: {"type": f"response.{kind}", "response": response},
    st.sampled_from(["completed", "incomplete", "failed"]),
    RESPONSES,
)
CHUNKS = st.one_of(TEXT, ITEMS, EVENTS, EVENTS, RESPONSES, ENDINGS)


@settings(
    max_examples=100, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck)
)
@given(st.lists(CHUNKS, max_size=8), st.sampled_from(["finish", "fail", "cancel"]))
def test_the_stream_is_valid_for_any_output_of_an_agent(chunks, end):
    assembler = ResponseAssembler(REQUEST)
    events = assembler.start()
    try:
        for chunk in chunks:
            events += assembler.add(chunk)
    except AgentOutputError:
        end = "fail"
    events += assembler.fail("It broke.") if end == "fail" else getattr(assembler, end)()
    check(events)
    assert json.loads(json.dumps(folded(events))) == json.loads(json.dumps(events[-1]["response"]))


@settings(
    max_examples=100, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck)
)
@given(st.lists(st.one_of(TEXT, ITEMS), max_size=5))
def test_a_completed_stream_is_passed_on_as_it_is(chunks):
    assembler = ResponseAssembler(REQUEST)
    events = assembler.start()
    try:
        for chunk in chunks:
            events += assembler.add(chunk)
    except AgentOutputError:
        return
    events += assembler.finish()
    passed = stream(*check(events))
    assert passed[2:-1] == check(events)[2:-1]


def test_the_checker_rejects_a_broken_stream():
    with pytest.raises(BrokenStream):
        check_stream(stream("Hi")[1:])
