"""Requests in another protocol: what both support is converted, the rest is a 400."""

import copy
import functools
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent_kit.protocol import (
    TASKS,
    ChatRequest,
    RequestError,
    ResponsesRequest,
    parse_request,
)
from agent_kit.protocol.assembler import make_assembler
from agent_kit.protocol.request_conversion import (
    chat_to_responses,
    responses_to_agent,
    responses_to_chat,
)

USER = {"role": "user", "content": "Hi"}
SEARCH = {"type": "function", "function": {"name": "search", "parameters": {"type": "object"}}}
SQL = {"type": "custom", "custom": {"name": "sql"}}
PICTURE = "data:image/png;base64,AAAA"


def chat(**fields: Any) -> ChatRequest:
    request = parse_request("agent/v1/chat", {"messages": [USER], **fields})
    assert isinstance(request, ChatRequest)
    return request


def responses(**fields: Any) -> ResponsesRequest:
    request = parse_request("agent/v1/responses", {"input": "Hi", **fields})
    assert isinstance(request, ResponsesRequest)
    return request


# Parameters ------------------------------------------------------------------------------------

SCHEMA = {"type": "object", "properties": {}, "additionalProperties": False}
FORMAT = {
    "type": "json_schema",
    "json_schema": {"name": "sum", "schema": SCHEMA, "strict": True},
}
ALLOWED = {"mode": "required", "tools": [{"type": "function", "function": {"name": "search"}}]}
PARAMETERS = [
    ("temperature", 0.5, {"temperature": 0.5}),
    ("top_p", 0.5, {"top_p": 0.5}),
    ("max_tokens", 7, {"max_output_tokens": 7}),
    ("max_completion_tokens", 7, {"max_output_tokens": 7}),
    ("stop", ["\n"], {"stop": ["\n"]}),
    ("stop", "\n", {"stop": ["\n"]}),
    ("seed", 7, {"seed": 7}),
    ("logprobs", True, {"include": ["message.output_text.logprobs"]}),
    ("top_logprobs", 2, {"top_logprobs": 2}),
    ("frequency_penalty", 0.5, {"frequency_penalty": 0.5}),
    ("presence_penalty", 0.5, {"presence_penalty": 0.5}),
    ("logit_bias", {"7": 1.0}, {"logit_bias": {"7": 1.0}}),
    ("parallel_tool_calls", False, {"parallel_tool_calls": False}),
    ("reasoning_effort", "low", {"reasoning": {"effort": "low"}}),
    ("verbosity", "low", {"text": {"verbosity": "low"}}),
    ("response_format", {"type": "json_object"}, {"text": {"format": {"type": "json_object"}}}),
    ("metadata", {"a": "b"}, {"metadata": {"a": "b"}}),
    ("user", "ada", {"user": "ada"}),
    ("store", True, {"store": True}),
    ("service_tier", "flex", {"service_tier": "flex"}),
    ("custom_inputs", {"a": 1}, {"custom_inputs": {"a": 1}}),
    ("an_extension", 7, {"an_extension": 7}),
    ("n", 1, {}),
    ("stream_options", {"include_usage": True}, {}),
    ("modalities", ["text"], {}),
]


@pytest.mark.parametrize(("name", "value", "expected"), PARAMETERS)
def test_a_chat_parameter_is_converted_to_the_responses_api(name, value, expected):
    payload = chat_to_responses(chat(**{name: value})).payload()
    assert {key: payload.get(key) for key in expected} == expected


@pytest.mark.parametrize(("name", "value", "expected"), PARAMETERS)
def test_a_chat_parameter_survives_the_conversion_there_and_back(name, value, expected):
    given_request = chat(**{name: value})
    again = responses_to_chat(chat_to_responses(given_request))
    if name == "max_tokens":
        assert again.max_completion_tokens == value
    elif name not in ("n", "modalities", "stream_options"):
        assert again.payload()[name] == given_request.payload()[name]


def test_tools_their_choice_and_the_response_format_are_converted_both_ways():
    choice = {"type": "function", "function": {"name": "search"}}
    request = chat(tools=[SEARCH, SQL], tool_choice=choice, response_format=FORMAT)
    converted = chat_to_responses(request)
    assert converted.tools[0] == {"type": "function", **SEARCH["function"]}
    assert converted.tools[1] == {"type": "custom", "name": "sql"}
    assert converted.tool_choice == {"type": "function", "name": "search"}
    assert converted.text == {"format": {"type": "json_schema", **FORMAT["json_schema"]}}
    again = responses_to_chat(converted)
    assert (again.tools, again.tool_choice) == (request.tools, choice)
    assert again.response_format == FORMAT


@pytest.mark.parametrize(
    "choice", ["none", "required", {"type": "allowed_tools", "allowed_tools": ALLOWED}]
)
def test_a_tool_choice_is_converted_both_ways(choice):
    request = chat(tools=[SEARCH], tool_choice=choice)
    assert responses_to_chat(chat_to_responses(request)).tool_choice == choice


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("n", 2),
        ("modalities", ["text", "audio"]),
        ("audio", {"voice": "alloy", "format": "wav"}),
        ("prediction", {"type": "content", "content": "x"}),
        ("web_search_options", {"search_context_size": "low"}),
        ("functions", [{"name": "search", "parameters": {}}]),
        ("function_call", "auto"),
    ],
)
def test_a_parameter_without_a_counterpart_in_the_responses_api_is_refused_by_name(name, value):
    with pytest.raises(RequestError) as caught:
        chat_to_responses(chat(**{name: value}))
    assert (caught.value.status, caught.value.param) == (400, name)
    assert name in caught.value.message
    assert ("Send 'tool" in caught.value.message) == name.startswith("function")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("max_tool_calls", 3),
        ("prompt", {"id": "pmpt_1"}),
        ("tools", [{"type": "web_search"}]),
        ("context_management", [{"type": "compaction"}]),
    ],
)
def test_a_parameter_without_a_counterpart_in_chat_completions_is_refused_by_name(name, value):
    with pytest.raises(RequestError) as caught:
        responses_to_chat(responses(**{name: value}))
    assert (caught.value.param or "").startswith(name)


@pytest.mark.parametrize(
    "fields",
    [
        {"tools": [{"type": "function", "name": "search", "parameters": {}}]},
        {"text": {"format": {"type": "json_object"}}},
        {"input": [{"role": "user", "content": [{"type": "input_image", "image_url": PICTURE}]}]},
        {
            "input": [
                {"type": "custom_tool_call", "call_id": "c", "name": "sql", "input": "x"},
            ]
        },
    ],
    ids=["tools", "format", "image", "custom"],
)
def test_a_parameter_that_a_chat_agent_does_not_support_is_refused_by_name(fields):
    with pytest.raises(RequestError) as caught:
        responses_to_agent(responses(**fields))
    assert (caught.value.param or "").startswith(next(iter(fields)))


def test_a_parameter_with_its_default_is_not_refused():
    explicit = {
        "tool_choice": "auto",
        "tools": [],
        "text": {"format": {"type": "text"}},
        "truncation": "disabled",
        "max_tool_calls": None,
    }
    assert responses_to_agent(responses(**explicit)).messages == [USER]
    assert responses_to_agent(responses(tool_choice="none")).messages == [USER]
    assert responses_to_chat(responses(**explicit)).messages == [USER]


def test_model_parameters_reach_a_chat_agent_as_additional_fields():
    request = responses(temperature=0.5, max_output_tokens=7, stop=["x"], model="m", user="ada")
    converted = responses_to_agent(request).payload()
    assert converted["temperature"] == 0.5
    assert converted["max_output_tokens"] == 7
    assert (converted["stop"], converted["model"]) == (["x"], "m")
    assert converted["context"] == {"user_id": "ada"}


def test_the_context_of_a_request_reaches_a_chat_agent():
    context = {"conversation_id": "c1", "user_id": "eve"}
    converted = responses_to_agent(responses(context=context, custom_inputs={"a": 1}, user="ada"))
    assert converted.payload()["context"] == context
    assert converted.custom_inputs == {"a": 1}


# Messages and items ----------------------------------------------------------------------------

PARTS = [
    {"type": "text", "text": "Look"},
    {"type": "image_url", "image_url": {"url": PICTURE, "detail": "low"}},
    {"type": "file", "file": {"file_data": "data:text/plain;base64,AAAA", "filename": "a.txt"}},
    {"type": "input_audio", "input_audio": {"data": "AAAA", "format": "wav"}},
]
TWO_CALLS = {
    "role": "assistant",
    "content": None,
    "tool_calls": [
        {"id": "c1", "type": "function", "function": {"name": "search", "arguments": '{"q":1}'}},
        {"id": "c2", "type": "custom", "custom": {"name": "sql", "input": "SELECT 1"}},
    ],
}
HISTORY: list[dict[str, Any]] = [
    {"role": "developer", "content": "Be brief."},
    {"role": "system", "content": "Be kind."},
    {"role": "user", "content": PARTS, "name": "ada"},
    {**TWO_CALLS, "reasoning_content": "Search first."},
    {"role": "tool", "tool_call_id": "c1", "content": "found"},
    {"role": "tool", "tool_call_id": "c2", "content": [{"type": "text", "text": "1"}]},
    {"role": "assistant", "content": "Here.", "reasoning_content": "Tell."},
    {"role": "assistant", "content": [{"type": "refusal", "refusal": "No."}]},
    {"role": "user", "content": "Thanks"},
]


def test_a_history_with_tools_images_and_files_is_converted_both_ways():
    converted = chat_to_responses(chat(messages=HISTORY))
    kinds = [item.get("type", item.get("role")) for item in converted.input]
    assert kinds == [
        "developer",
        "system",
        "user",
        "reasoning",
        "function_call",
        "custom_tool_call",
        "function_call_output",
        "custom_tool_call_output",
        "reasoning",
        "assistant",
        "assistant",
        "user",
    ]
    kinds = [part["type"] for part in converted.input[2]["content"]]
    assert kinds == ["input_text", "input_image", "input_file", "input_audio"]
    assert responses_to_chat(converted).messages == HISTORY


def test_instructions_become_a_system_message_in_chat():
    converted = responses_to_chat(responses(instructions="Be brief."))
    assert converted.messages == [{"role": "system", "content": "Be brief."}, USER]


def test_a_chat_agent_gets_joined_texts_and_the_names_of_tools():
    converted = responses_to_agent(chat_to_responses(chat(messages=[HISTORY[0], USER]))).messages
    assert converted == [HISTORY[0], USER]
    items = [
        {"role": "user", "content": [{"type": "input_text", "text": text} for text in "ab"]},
        {"type": "function_call", "call_id": "c1", "name": "search", "arguments": "{}"},
        {"type": "function_call_output", "call_id": "c1", "output": "found"},
        {"type": "reasoning", "summary": [{"type": "summary_text", "text": "Hm."}]},
        {"role": "assistant", "content": [{"type": "refusal", "refusal": "No."}]},
    ]
    user, call, tool, last = responses_to_agent(responses(input=items)).messages
    assert user["content"] == "ab"
    assert call["tool_calls"][0]["function"]["name"] == "search"
    assert tool == {"role": "tool", "tool_call_id": "c1", "name": "search", "content": "found"}
    assert last["content"] == "No."


def test_reasoning_among_the_parts_of_a_message_becomes_an_item():
    reasoning = {"type": "reasoning", "summary": [{"type": "summary_text", "text": "Hm."}]}
    parts = [reasoning, {"type": "text", "text": "Yes"}]
    converted = chat_to_responses(chat(messages=[{"role": "assistant", "content": parts}, USER]))
    assert converted.input[0] == reasoning
    assert converted.input[1]["content"] == [{"type": "output_text", "text": "Yes"}]
    assert responses_to_chat(converted).messages[0]["reasoning_content"] == "Hm."


def test_reasoning_without_text_or_call_has_no_message():
    reasoning = {"type": "reasoning", "summary": [{"type": "summary_text", "text": "Hm."}]}
    silent = {"type": "reasoning", "summary": [], "encrypted_content": "x"}
    assert responses_to_chat(responses(input=[silent, reasoning, USER])).messages == [USER]


@pytest.mark.parametrize(
    "message",
    [
        {"role": "assistant", "audio": {"id": "audio_1"}},
        {"role": "assistant", "function_call": {"name": "old", "arguments": "{}"}},
        {"role": "function", "name": "old", "content": "391"},
    ],
)
def test_a_message_without_a_counterpart_is_refused_with_its_path(message):
    with pytest.raises(RequestError) as caught:
        chat_to_responses(chat(messages=[USER, message]))
    assert (caught.value.param or "").startswith("messages[1]")


@pytest.mark.parametrize(
    "item",
    [
        {"type": "item_reference", "id": "msg_1"},
        {"type": "web_search_call", "status": "completed"},
        {"role": "user", "content": [{"type": "input_image", "file_id": "file_1"}]},
        {"role": "user", "content": [{"type": "input_file", "file_url": "https://a.b/c"}]},
    ],
)
def test_an_item_without_a_counterpart_is_refused_with_its_path(item):
    with pytest.raises(RequestError) as caught:
        responses_to_chat(responses(input=[USER, item]))
    assert (caught.value.param or "").startswith("input[1]")


texts = st.text(min_size=1, max_size=6)
roles = st.sampled_from(["user", "system", "developer", "assistant"])
plain_messages = st.builds(lambda role, text: [{"role": role, "content": text}], roles, texts)
exchanges = st.builds(
    lambda number, text: [
        {
            "role": "assistant",
            "content": None,
            "tool_calls": [
                {
                    "id": f"call_{number}",
                    "type": "function",
                    "function": {"name": "search", "arguments": "{}"},
                }
            ],
        },
        {"role": "tool", "tool_call_id": f"call_{number}", "content": text},
    ],
    st.integers(0, 99),
    texts,
)


@settings(max_examples=50, deadline=None)
@given(turns=st.lists(st.one_of(plain_messages, exchanges), min_size=1, max_size=6))
def test_any_history_survives_the_conversion_there_and_back(turns):
    messages = [message for turn in turns for message in turn]
    again = responses_to_chat(chat_to_responses(chat(messages=messages))).messages
    assert _flat(again) == _flat(messages)


def _flat(messages: list[dict[str, Any]]) -> list[tuple[Any, ...]]:
    """The texts and calls in order; a text and the calls after it may share a message."""
    flat: list[tuple[Any, ...]] = []
    for message in messages:
        if message.get("content"):
            flat.append((message["role"], message["content"], message.get("tool_call_id")))
        flat += [("call", call["id"]) for call in message.get("tool_calls", ())]
    return flat


# Any body is converted or refused ------------------------------------------------------------

CHAT_BODY = {
    "messages": HISTORY,
    "tools": [SEARCH, SQL],
    "tool_choice": {"type": "function", "function": {"name": "search"}},
    "response_format": FORMAT,
    "context": {"user_id": "ada"},
    "stop": ["x"],
    "logit_bias": {"7": 1.0},
}
BODIES = {
    "agent/v1/chat": CHAT_BODY,
    "agent/v1/responses": chat_to_responses(chat(**CHAT_BODY)).payload(),
    "agent/v2/chat": {
        "messages": [
            USER,
            {"role": "assistant", "content": "", "tool_calls": TWO_CALLS["tool_calls"][:1]},
            {"role": "tool", "name": "search", "tool_call_id": "c1", "content": "found"},
        ],
        "context": {"user_id": "ada"},
    },
}
WRONG: list[Any] = [None, True, 7, 0.5, "", "x", [], {}, [7], ["x"], [None], [{}], {"type": []}]


def _places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    inner = value.items() if isinstance(value, dict) else enumerate(value)
    here = [(*path, name) for name, _ in inner]
    for place in list(here):
        child = value[place[-1]]
        if isinstance(child, dict | list):
            here += _places(child, place)
    return here


@pytest.mark.parametrize("agent", TASKS)
@pytest.mark.parametrize("task", BODIES)
@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_a_body_with_a_wrong_value_anywhere_is_converted_or_refused(task, agent, data):
    body = copy.deepcopy(BODIES[task])
    *parents, last = data.draw(st.sampled_from(_places(body)))
    place = functools.reduce(lambda node, step: node[step], parents, body)
    place[last] = copy.deepcopy(data.draw(st.sampled_from(WRONG)))
    refused = None
    try:
        request, assembler = make_assembler(task, agent, parse_request(task, body))
    except RequestError as error:
        refused = error
    if refused:
        assert 400 <= refused.status < 500
        assert refused.param
        return
    assert parse_request(agent, request.payload()) == request
    assembler.add("Hello")
    assembler.finish()
    assert "Hello" in str(assembler.body)
