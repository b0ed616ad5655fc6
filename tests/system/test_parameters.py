"""Every parameter of the Responses API: accepted, echoed, passed on, or refused by name."""

import asyncio
import inspect
import json
import logging
from collections.abc import Iterator
from typing import Any

import httpx2
import pytest
from openai import AsyncOpenAI, OpenAI
from openai.resources.responses import AsyncResponses, Responses
from pydantic import BaseModel, ConfigDict
from support.stream_checker import check_response, check_sse

from agent_kit import protocol
from agent_kit.server import create_server
from agent_kit.settings import load_settings

UNTRACED = {"AGENT_KIT_MLFLOW_TRACING": "false"}
TOOL = {"type": "function", "name": "add", "parameters": {"type": "object"}, "strict": True}
SCHEMA = {"type": "json_schema", "name": "sum", "schema": {"type": "object"}}

# Each parameter with a valid value and its echo in the response; None if it is not echoed.
SAME = object()
ACCEPTED: dict[str, tuple[Any, Any]] = {
    "access_programs": ({"biology": "enabled"}, None),
    "background_options": ({"retention": 1}, None),
    "context_management": ([{"type": "compaction", "compact_threshold": 1000}], None),
    "image": ({"size": "auto"}, None),
    "include": (["message.output_text.logprobs"], None),
    "input": ([{"role": "user", "content": "Hi"}], None),
    "instructions": ("Be brief.", SAME),
    "max_output_tokens": (100, SAME),
    "max_tool_calls": (3, SAME),
    "metadata": ({"a": "b"}, SAME),
    "model": ("any-model", SAME),
    "moderation": ({"mode": "auto"}, None),
    "parallel_tool_calls": (False, SAME),
    "prompt": ({"id": "pmpt_1", "version": "2"}, SAME),
    "prompt_cache_key": ("key", SAME),
    "prompt_cache_options": ({"ttl": "30m"}, None),
    "prompt_cache_retention": ("24h", SAME),
    "reasoning": ({"effort": "low", "summary": "auto"}, SAME),
    "safety_identifier": ("user-1", SAME),
    "service_tier": ("flex", SAME),
    "store": (False, SAME),
    "stream": (False, None),
    "stream_options": ({"include_obfuscation": False}, None),
    "temperature": (0.5, SAME),
    "text": ({"format": SCHEMA, "verbosity": "low"}, SAME),
    "tool_choice": ("auto", SAME),
    "tools": ([TOOL], [{"description": None, **TOOL}]),
    "top_logprobs": (5, SAME),
    "top_p": (0.5, SAME),
    "truncation": ("auto", SAME),
    "user": ("user-1", SAME),
}
# These parameters need a store; the tests of the store cover them.
OF_THE_STORE = {"background", "conversation", "previous_response_id"}
MANY = {str(number): "v" for number in range(17)}
WRONG: dict[str, list[Any]] = {
    "access_programs": [7],
    "background_options": ["x"],
    "background": ["true", 1],
    "context_management": [{}, ["x"]],
    "conversation": [7, {}, {"id": 7}, "", {"id": ""}],
    "image": ["x"],
    "include": ["x", ["odd"]],
    "input": [7, {}, [7], [{"role": "user"}]],
    "instructions": [7, []],
    "max_output_tokens": [0, -1, 1.5, "many", 1e400],
    "max_tool_calls": [0, "x"],
    "metadata": [{"a": 1}, {"k" * 65: "v"}, {"k": "v" * 513}, MANY],
    "model": [7, {}],
    "moderation": [7],
    "parallel_tool_calls": ["false", 0],
    "previous_response_id": [7, ""],
    "prompt": ["x", {}, {"id": 7}],
    "prompt_cache_key": [7],
    "prompt_cache_options": [7],
    "prompt_cache_retention": ["odd", 7],
    "reasoning": ["low", {"effort": "odd"}, {"effort": []}, {"summary": {}}],
    "safety_identifier": [7],
    "service_tier": ["odd", []],
    "store": ["false", 0],
    "stream": ["false", 0, []],
    "stream_options": ["x"],
    "temperature": [2.1, -0.1, "hot", True, [], 10**400],
    "text": ["x", {"format": {"type": "xml"}}, {"format": {"type": []}}, {"verbosity": []}],
    "tool_choice": [7, "odd", {"type": []}, {"type": "odd"}, {"type": "function"}, {},
                    {"type": "function", "name": []}, {"type": "allowed_tools", "mode": "auto",
                                                       "tools": [7]}],
    "tools": ["x", [7], [{}], [{"type": []}], [{"type": "function"}], [{**TOOL, "name": "a b"}],
              [TOOL, TOOL], [{**TOOL, "parameters": "x"}], [{**TOOL, "strict": "x"}]],
    "top_logprobs": [21, -1, 1.5],
    "top_p": [1.1, "x"],
    "truncation": ["odd"],
    "user": [7],
}  # fmt: skip


@pytest.fixture(scope="module")
def seen() -> list[Any]:
    return []


@pytest.fixture(scope="module")
def url(seen: list[Any]) -> Iterator[str]:
    """The URL of a server whose agent records the requests it gets."""
    server = create_server(settings=load_settings(environ=UNTRACED))

    @server.invoke()
    async def answer(request):
        seen.append(request)
        return "Hello"

    with server.serve() as address:
        yield address


@pytest.fixture(scope="module")
def client(url: str) -> Iterator[OpenAI]:
    with OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as made:
        yield made


def known_to_the_sdk(create: Any) -> set[str]:
    sent_elsewhere = {"self", "extra_headers", "extra_query", "extra_body", "timeout"}
    return set(inspect.signature(create).parameters) - sent_elsewhere


def test_every_parameter_of_the_sdk_is_tested_here():
    for create in (Responses.create, AsyncResponses.create):
        assert known_to_the_sdk(create) == ACCEPTED.keys() | OF_THE_STORE
    assert known_to_the_sdk(Responses.create) == set(WRONG)


@pytest.mark.parametrize("name", ACCEPTED)
def test_a_parameter_is_accepted_echoed_and_reaches_the_agent(client, seen, name):
    value, echoed = ACCEPTED[name]
    response = client.responses.create(**{"input": "Hi", name: value})
    body = response.to_dict()
    check_response(body)
    received = getattr(seen[-1], name)
    assert (received.model_dump() if isinstance(received, BaseModel) else received) == value
    if echoed is SAME:
        assert body[name] == value
    elif echoed is not None:
        assert body[name] == echoed
    assert not seen[-1].model_extra


def test_all_parameters_together_are_echoed_in_each_event_of_a_stream(url):
    data = {name: value for name, (value, _) in ACCEPTED.items()} | {"stream": True}
    events = check_sse(httpx2.post(f"{url}/v1/responses", json=data).content)
    for response in (events[0]["response"], events[-1]["response"]):
        for name, (value, echoed) in ACCEPTED.items():
            if echoed is SAME:
                assert response[name] == value


def test_parameters_that_are_null_have_their_defaults(url):
    data: dict[str, Any] = dict.fromkeys(ACCEPTED) | dict.fromkeys(OF_THE_STORE)
    answer = httpx2.post(f"{url}/v1/responses", json=data | {"input": "Hi"})
    assert answer.status_code == 200
    body = check_response(answer.json())
    assert (body["temperature"], body["tool_choice"], body["store"]) == (1.0, "auto", True)


@pytest.mark.parametrize(
    ("name", "value"), [(name, value) for name, values in WRONG.items() for value in values]
)
def test_a_wrong_value_is_refused_by_name(url, name, value):
    body = json.dumps({"input": "Hi", name: value}).replace("Infinity", "1e400")
    headers = {"content-type": "application/json"}
    answer = httpx2.post(f"{url}/v1/responses", content=body.encode(), headers=headers)
    assert answer.status_code == 400, answer.text
    error = answer.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["type"] == "invalid_request_error"
    assert name in (error["param"] or error["message"]) or error["param"] == "body"
    assert error["code"]


def test_unknown_parameters_are_ignored_and_logged_once(url, seen, monkeypatch, caplog):
    monkeypatch.setattr(protocol, "_unknown_seen", set())
    caplog.set_level(logging.INFO, logger="agent_kit.protocol")
    odd = {"frobnicate": 1, "payload": 2, "model_fields": 3, "__class__": 4}
    for _ in range(3):
        answer = httpx2.post(f"{url}/v1/responses", json={"input": "Hi", **odd})
        assert answer.status_code == 200
        assert "frobnicate" not in answer.text
    assert seen[-1].model_extra == odd
    messages = [record.getMessage() for record in caplog.records]
    assert len([text for text in messages if "frobnicate" in text]) == 1
    assert len(messages) == len(odd)


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"tool_choice": "required"}, "tool_choice"),
        ({"tool_choice": {"type": "function", "name": "sub"}, "tools": [TOOL]}, "tool_choice"),
        ({"previous_response_id": "r", "conversation": "c"}, "previous_response_id"),
        ({"background": True, "store": False}, "background"),
        ({"input": []}, "input"),
    ],
)
def test_incompatible_parameters_are_refused(url, fields, param):
    answer = httpx2.post(f"{url}/v1/responses", json={"input": "Hi", **fields})
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == param


def test_custom_inputs_reach_the_agent(url, seen):
    data = {"input": "Hi", "custom_inputs": {"a": [1, {"b": None}]}, "context": {"user_id": "u"}}
    assert httpx2.post(f"{url}/invocations", json=data).status_code == 200
    assert seen[-1].custom_inputs == data["custom_inputs"]
    assert seen[-1].context.user_id == "u"


# Agents with a model of their own -------------------------------------------------------------


class Order(BaseModel):
    """A request with the fields of one agent."""

    model_config = ConfigDict(extra="ignore")

    input: list[dict[str, Any]]
    city: str
    nights: int = 1


def test_an_agent_gets_the_model_that_it_asks_for():
    server = create_server(settings=load_settings(environ=UNTRACED))

    @server.stream()
    def answer(request: Order):
        yield f"{request.nights} nights in {request.city}"

    with server.serve() as url:
        data = {"input": "Hi", "city": "Rome", "nights": 3}
        good = httpx2.post(f"{url}/invocations", json=data)
        bad = httpx2.post(f"{url}/invocations", json={**data, "nights": "some"})
        streamed = httpx2.post(f"{url}/invocations", json={"input": "Hi", "stream": True})
    assert good.json()["output"][0]["content"][0]["text"] == "3 nights in Rome"
    assert (bad.status_code, bad.json()["error"]["param"]) == (400, "nights")
    assert (streamed.status_code, streamed.json()["error"]["param"]) == (400, "city")


# The official client --------------------------------------------------------------------------


class Sum(BaseModel):
    """The structured output that the model fills in."""

    total: int


async def ask_in_every_way(url: str) -> list[str]:
    texts = []
    async with AsyncOpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as client:
        texts.append((await client.responses.create(input="Hi")).output_text)
        async with client.responses.stream(input="Hi", model="m") as stream:
            async for _ in stream:
                pass
            texts.append((await stream.get_final_response()).output_text)
        parsed = await client.responses.parse(input="Hi", model="m", text_format=Sum)
        texts.append(str(parsed.output_parsed))
    return texts


async def yields_async(request):
    yield '{"total":'
    yield " 391}"


def yields(request):
    yield '{"total":'
    yield " 391}"


async def returns_async(request):
    return '{"total": 391}'


def returns(request):
    return '{"total": 391}'


@pytest.mark.parametrize(
    ("decorator", "function"),
    [
        ("invoke", returns),
        ("invoke", returns_async),
        ("stream", yields),
        ("stream", yields_async),
    ],
)
def test_each_shape_of_agent_answers_each_kind_of_request(decorator, function):
    server = create_server(settings=load_settings(environ=UNTRACED))
    getattr(server, decorator)()(function)
    with (
        server.serve() as url,
        OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as client,
    ):
        texts = [client.responses.create(input="Hi").output_text]
        with client.responses.stream(input="Hi", model="m") as stream:
            stream.until_done()
            texts.append(stream.get_final_response().output_text)
        parsed = client.responses.parse(input="Hi", model="m", text_format=Sum)
        texts += [str(parsed.output_parsed), *asyncio.run(ask_in_every_way(url))]
        raw = httpx2.post(f"{url}/v1/responses", json={"input": "Hi", "stream": True})
        plain = httpx2.post(f"{url}/v1/responses", json={"input": "Hi"}).json()
    assert texts == ['{"total": 391}', '{"total": 391}', "total=391"] * 2
    last = check_sse(raw.content)[-1]["response"]
    own = ("id", "created_at", "completed_at", "output")
    assert {k: v for k, v in last.items() if k not in own} == {
        k: v for k, v in check_response(plain).items() if k not in own
    }
    assert last["output"][0]["content"] == plain["output"][0]["content"]
