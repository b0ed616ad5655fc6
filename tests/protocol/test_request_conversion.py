"""A request in another protocol: what both can say stays the same, the rest is a clear 400."""

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
def test_a_chat_parameter_reaches_an_agent_of_the_responses_api(name, value, expected):
    payload = chat_to_responses(chat(**{name: value})).payload()
    assert {key: payload.get(key) for key in expected} == expected


@pytest.mark.parametrize(("name", "value", "expected"), PARAMETERS)
def test_a_chat_parameter_comes_back_from_the_responses_api(name, value, expected):
    given_request = chat(**{name: value})
    again = responses_to_chat(chat_to_responses(given_request))
    if name == "max_tokens":
        assert again.max_completion_tokens == value
    elif name not in ("n", "modalities", "stream_options"):
        assert again.payload()[name] == given_request.payload()[name]


def test_tools_their_choice_and_the_form_of_the_answer_are_said_both_ways():
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
def test_a_choice_of_tools_is_said_both_ways(choice):
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
def test_what_the_responses_api_cannot_say_is_refused_by_name(name, value):
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
        ("truncation", "auto"),
        ("tools", [{"type": "web_search"}]),
        ("context_management", [{"type": "compaction"}]),
    ],
)
def test_what_chat_completions_cannot_say_is_refused_by_name(name, value):
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
def test_what_a_chat_agent_cannot_be_told_is_refused_by_name(fields):
    with pytest.raises(RequestError) as caught:
        responses_to_agent(responses(**fields))
    assert (caught.value.param or "").startswith(next(iter(fields)))


def test_a_parameter_at_its_default_is_no_wish():
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


def test_what_tunes_a_model_reaches_a_chat_agent_as_a_field_more():
    request = responses(temperature=0.5, max_output_tokens=7, stop=["x"], model="m", user="ada")
    told = responses_to_agent(request).payload()
    assert told["temperature"] == 0.5
    assert told["max_output_tokens"] == 7
    assert (told["stop"], told["model"]) == (["x"], "m")
    assert told["context"] == {"user_id": "ada"}


def test_the_context_of_a_request_reaches_a_chat_agent():
    context = {"conversation_id": "c1", "user_id": "eve"}
    told = responses_to_agent(responses(context=context, custom_inputs={"a": 1}, user="ada"))
    assert told.payload()["context"] == context
    assert told.custom_inputs == {"a": 1}


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


def test_a_history_with_tools_images_and_files_is_said_both_ways():
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


def test_instructions_are_a_system_message_in_chat():
    converted = responses_to_chat(responses(instructions="Be brief."))
    assert converted.messages == [{"role": "system", "content": "Be brief."}, USER]


def test_the_texts_of_a_chat_agent_are_joined_and_tools_are_named():
    told = responses_to_agent(chat_to_responses(chat(messages=[HISTORY[0], USER]))).messages
    assert told == [HISTORY[0], USER]
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


def test_thoughts_among_the_parts_of_a_message_become_an_item():
    thought = {"type": "reasoning", "summary": [{"type": "summary_text", "text": "Hm."}]}
    parts = [thought, {"type": "text", "text": "Yes"}]
    converted = chat_to_responses(chat(messages=[{"role": "assistant", "content": parts}, USER]))
    assert converted.input[0] == thought
    assert converted.input[1]["content"] == [{"type": "output_text", "text": "Yes"}]
    assert responses_to_chat(converted).messages[0]["reasoning_content"] == "Hm."


def test_a_thought_that_led_nowhere_has_no_message():
    thought = {"type": "reasoning", "summary": [{"type": "summary_text", "text": "Hm."}]}
    silent = {"type": "reasoning", "summary": [], "encrypted_content": "x"}
    assert responses_to_chat(responses(input=[silent, thought, USER])).messages == [USER]


@pytest.mark.parametrize(
    "message",
    [
        {"role": "assistant", "audio": {"id": "audio_1"}},
        {"role": "assistant", "function_call": {"name": "old", "arguments": "{}"}},
        {"role": "function", "name": "old", "content": "391"},
    ],
)
def test_a_message_that_has_no_item_is_refused_by_its_place(message):
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
def test_an_item_that_has_no_message_is_refused_by_its_place(item):
    with pytest.raises(RequestError) as caught:
        responses_to_chat(responses(input=[USER, item]))
    assert (caught.value.param or "").startswith("input[1]")


texts = st.text(min_size=1, max_size=6)
spoken = st.sampled_from(["user", "system", "developer", "assistant"])
plain_messages = st.builds(lambda role, text: [{"role": role, "content": text}], spoken, texts)
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
def test_any_history_survives_the_way_there_and_back(turns):
    messages = [message for turn in turns for message in turn]
    again = responses_to_chat(chat_to_responses(chat(messages=messages))).messages
    assert _flat(again) == _flat(messages)


def _flat(messages: list[dict[str, Any]]) -> list[tuple[Any, ...]]:
    """What is said and called, in order; a text and the calls after it may share a message."""
    flat: list[tuple[Any, ...]] = []
    for message in messages:
        if message.get("content"):
            flat.append((message["role"], message["content"], message.get("tool_call_id")))
        flat += [("call", call["id"]) for call in message.get("tool_calls", ())]
    return flat


# Whatever a body says, it is converted or refused -----------------------------------------------

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
@pytest.mark.parametrize("face", BODIES)
@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_a_body_with_a_wrong_value_anywhere_is_converted_or_refused(face, agent, data):
    body = copy.deepcopy(BODIES[face])
    *way, last = data.draw(st.sampled_from(_places(body)))
    place = functools.reduce(lambda node, step: node[step], way, body)
    place[last] = copy.deepcopy(data.draw(st.sampled_from(WRONG)))
    refused = None
    try:
        request, assembler = make_assembler(face, agent, parse_request(face, body))
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
