"""The agent loop as clients see it: over HTTP, with scripted models."""

import asyncio
import json
import threading
import time
from collections.abc import AsyncGenerator, Callable
from typing import Any

import pytest
from openai import AsyncOpenAI, AsyncStream, BadRequestError
from openai.types.responses import Response, ResponseStreamEvent
from support.stream_checker import check_stream

from agent_kit.loop import run_agent
from agent_kit.models.interface import (
    ModelError,
    ModelRequest,
    function_call,
    item_done,
    text_delta,
    token_usage,
    turn_ended,
)
from agent_kit.models.replay import ScriptedModel
from agent_kit.protocol import ResponsesRequest
from agent_kit.server import AgentServer, create_server
from agent_kit.tools import tool
from agent_kit.tracing.spans import Span, TraceRecord, current_span, enter, leave, span

WEATHER = {
    "type": "function",
    "name": "weather",
    "parameters": {"type": "object", "properties": {"place": {"type": "string"}}},
}
CHAT_WEATHER = {
    "type": "function",
    "function": {"name": "weather", "parameters": WEATHER["parameters"]},
}
RAIN = function_call("weather", {"place": "Basel"}, "call_rain")


@pytest.fixture(autouse=True)
def untraced(monkeypatch):
    monkeypatch.setenv("AGENT_KIT_MLFLOW_TRACING", "false")


@tool
def add(first: int, second: int) -> int:
    """Add two numbers."""
    return first + second


def sum_of(first: int, second: int, call_id: str = "call_add") -> dict[str, Any]:
    return function_call("add", {"first": first, "second": second}, call_id)


def serve(model: Any, **options: Any) -> AgentServer:
    """Return a server whose agent is a loop around a model."""
    server = create_server()
    options = {"tools": [add], **options}

    @server.stream()
    async def answer(request: ResponsesRequest) -> AsyncGenerator[dict[str, Any], None]:
        return run_agent(request, model=model, **options)

    return server


def at_invocations(client: AsyncOpenAI) -> AsyncOpenAI:
    """The same client where calls and their outputs are separate items."""
    return client.with_options(base_url=client.base_url.copy_with(path="/"))


def ask(server: AgentServer, **body: Any) -> dict[str, Any]:
    """Return the Response to a plain request."""

    async def create() -> dict[str, Any]:
        async with server.client() as client:
            response = await at_invocations(client).post(
                "/invocations", cast_to=Response, body={"input": "Hello", **body}
            )
            return response.model_dump(exclude_unset=True)

    return asyncio.run(create())


def stream(server: AgentServer, **body: Any) -> list[dict[str, Any]]:
    """Return the events of a streamed request, checked against the contract."""

    async def read() -> list[dict[str, Any]]:
        async with server.client() as client:
            events = await at_invocations(client).post(
                "/invocations",
                cast_to=Response,
                body={"input": "Hello", **body, "stream": True},
                stream=True,
                stream_cls=AsyncStream[ResponseStreamEvent],
            )
            return [event.model_dump(exclude_unset=True) async for event in events]

    events = asyncio.run(read())
    check_stream(events)
    return events


def kinds(response: dict[str, Any]) -> list[str]:
    return [item["type"] for item in response["output"]]


def text_of(response: dict[str, Any]) -> str:
    parts = (part for item in response["output"] for part in item.get("content") or ())
    return "".join(part.get("text", "") for part in parts)


def names(request: ModelRequest) -> list[str]:
    return [each["name"] for each in request.tools]


# Turns ----------------------------------------------------------------------------------------


def test_the_model_is_asked_again_with_the_output_of_its_call():
    model = ScriptedModel([["Let me see. ", sum_of(1, 2)], "It is 3."])
    response = ask(serve(model, instructions="Add."), input="What is 1+2?")
    assert kinds(response) == ["message", "function_call", "function_call_output", "message"]
    assert response["output"][2]["output"] == "3"
    first, second = model.requests
    assert first.instructions == "Add."
    assert first.input == [{"role": "user", "content": "What is 1+2?"}]
    assert [item.get("type", "question") for item in second.input] == [
        *("question", "message", "function_call", "function_call_output")
    ]
    assert second.input[1]["content"][0]["text"] == "Let me see. "
    assert response["usage"]["total_tokens"] == sum(
        response["usage"][name] for name in ("input_tokens", "output_tokens")
    )


def test_the_stream_has_every_event_of_every_turn():
    turns = [["Let me see. ", sum_of(1, 2)], "It is 3."]
    events = stream(serve(ScriptedModel(turns)))
    seen = [event["type"] for event in events]
    assert seen.count("response.completed") == 1
    assert seen.count("response.output_item.done") == 4
    deltas = [event["delta"] for event in events if event["type"].endswith("text.delta")]
    assert "".join(deltas) == "Let me see. It is 3."


def test_usage_is_the_sum_of_the_turns_and_the_model_names_itself():
    turns = [
        [sum_of(1, 2), turn_ended("real-model", token_usage(10, 5, cached=4))],
        ["Three.", turn_ended("real-model", token_usage(20, 7, reasoning=2))],
    ]
    response = ask(serve(ScriptedModel(turns)))
    assert response["model"] == "real-model"
    usage = response["usage"]
    assert (usage["input_tokens"], usage["output_tokens"], usage["total_tokens"]) == (30, 12, 42)
    assert usage["input_tokens_details"]["cached_tokens"] == 4
    assert usage["output_tokens_details"]["reasoning_tokens"] == 2


def test_an_unknown_tool_and_bad_arguments_are_reported_to_the_model():
    turns = [
        [
            function_call("divide", {}, "call_1"),
            sum_of(1, 2, "call_2"),
            {**function_call("add", {}, "call_3"), "arguments": "{"},
        ],
        "Sorry.",
    ]
    model = ScriptedModel(turns)
    outputs = [item.get("output") for item in ask(serve(model))["output"]]
    sent = [item["arguments"] for item in model.requests[1].input if "arguments" in item]
    assert sent[-1] == "{}"
    assert "There is no tool divide. Available are: add." in outputs
    assert "3" in outputs
    assert any("not valid JSON" in (output or "") for output in outputs)


def test_plain_functions_are_accepted_as_tools():
    def greet(name: str) -> str:
        """Greet a person."""
        return f"Hello {name}"

    model = ScriptedModel([function_call("greet", {"name": "Ada"}), "Done."])
    assert ask(serve(model, tools=[greet]))["output"][1]["output"] == "Hello Ada"


def test_a_model_that_fails_fails_the_answer():
    async def fails() -> None:
        model = ScriptedModel([[sum_of(1, 2)], ModelError("Slow down.", 429, "rate_limit")])
        async with serve(model).client() as client:
            await client.responses.create(input="Hello")

    with pytest.raises(Exception, match="Slow down") as caught:
        asyncio.run(fails())
    assert caught.value.status_code == 429


def test_a_failed_response_of_the_model_is_a_failure():
    failed = {"type": "response.failed", "response": {"error": {"message": "Broke.", "code": "x"}}}
    events = stream(serve(ScriptedModel([["Well, ", 0.5, failed]])))
    assert events[-1]["type"] == "response.failed"
    assert events[-1]["response"]["error"]["message"] == "Broke."


def test_calls_of_several_turns_have_ids_of_their_own():
    turns = [
        [sum_of(1, 2, "call_0"), sum_of(3, 4, "call_0")],
        [sum_of(5, 6, "call_0")],
        "Done.",
    ]
    events = stream(serve(ScriptedModel(turns)))
    output = events[-1]["response"]["output"]
    calls = [item["call_id"] for item in output if item["type"] == "function_call"]
    outputs = {item["call_id"]: item["output"] for item in output if "output" in item}
    assert len(set(calls)) == 3
    assert calls[0] == "call_0"
    assert [outputs[call] for call in calls] == ["3", "7", "11"]


# Calls at the same time -----------------------------------------------------------------------


def meeting(places: int) -> Callable[..., Any]:
    together = threading.Barrier(places)

    def meet(number: int) -> str:
        """Wait for the others."""
        together.wait(60)
        time.sleep(0.02 * (places - number))
        return f"met {number}"

    return meet


def test_calls_of_one_turn_run_concurrently_with_outputs_in_order():
    calls = [function_call("meet", {"number": number}, f"call_{number}") for number in range(3)]
    response = ask(serve(ScriptedModel([calls, "Met."]), tools=[meeting(3)]))
    outputs = [item for item in response["output"] if item["type"] == "function_call_output"]
    assert [item["output"] for item in outputs] == ["met 0", "met 1", "met 2"]
    assert [item["call_id"] for item in outputs] == ["call_0", "call_1", "call_2"]


def test_a_call_that_fails_is_incomplete():
    calls = [sum_of(1, 2, "call_1"), function_call("add", {"first": "one"}, "call_2")]
    response = ask(serve(ScriptedModel([calls, "Only one."])))
    done, failed = [item for item in response["output"] if "output" in item]
    assert (done["status"], done["output"]) == ("completed", "3")
    assert failed["status"] == "incomplete"
    assert "second" in failed["output"]


def test_without_parallel_tool_calls_they_run_one_after_the_other():
    running, most = 0, 0

    async def work(number: int) -> int:
        """Work."""
        nonlocal running, most
        running += 1
        most = max(most, running)
        await asyncio.sleep(0.01)
        running -= 1
        return number

    calls = [function_call("work", {"number": number}, f"call_{number}") for number in range(3)]
    model = ScriptedModel([calls, "Done."])
    ask(serve(model, tools=[work]), parallel_tool_calls=False)
    assert most == 1
    assert model.requests[0].parameters["parallel_tool_calls"] is False


# Limits ---------------------------------------------------------------------------------------


def test_a_model_that_never_answers_is_stopped_clearly():
    model = ScriptedModel([sum_of(number, 1, f"call_{number}") for number in range(9)])
    response = ask(serve(model, max_turns=3))
    assert len(model.requests) == 3
    assert [request.tool_choice for request in model.requests] == ["auto", "auto", "none"]
    assert response["status"] == "completed"
    assert response["custom_outputs"] == {"stopped": "max_turns"}
    assert "I stopped after 3 turns" in text_of(response)
    assert "Not run" in response["output"][-2]["output"]


def test_the_last_turn_may_sum_up():
    model = ScriptedModel([sum_of(1, 2), "It is 3."])
    response = ask(serve(model, max_turns=2))
    assert text_of(response) == "It is 3."
    assert not response.get("custom_outputs")


def test_one_turn_alone_has_its_tools():
    model = ScriptedModel([sum_of(1, 2)])
    response = ask(serve(model, max_turns=1))
    assert response["output"][1]["output"] == "3"
    assert "after one turn" in text_of(response)


def test_max_tool_calls_counts_our_own():
    model = ScriptedModel([[sum_of(1, 2, "call_1"), sum_of(3, 4, "call_2")], "Enough."])
    response = ask(serve(model), max_tool_calls=1)
    outputs = [item["output"] for item in response["output"] if "output" in item]
    assert outputs == ["3", "Not run: at most 1 tool calls are allowed."]
    assert model.requests[1].tool_choice == "none"


def test_a_slow_model_is_stopped_and_closed():
    closed = threading.Event()

    class SlowModel(ScriptedModel):
        async def stream(self, request: ModelRequest) -> AsyncGenerator[dict[str, Any], None]:
            try:
                yield text_delta("Well, ")
                await asyncio.sleep(60)
            finally:
                closed.set()

    events = stream(serve(SlowModel([]), timeout_seconds=1))
    assert events[-1]["type"] == "response.failed"
    assert "longer than 1 s" in events[-1]["response"]["error"]["message"]
    assert closed.is_set()


def test_a_slow_tool_is_stopped_when_the_time_of_the_answer_is_up():
    closed = threading.Event()

    async def dawdle() -> None:
        """Take one's time."""
        try:
            await asyncio.sleep(60)
        finally:
            closed.set()

    model = ScriptedModel([function_call("dawdle", {})])
    with pytest.raises(Exception, match="longer than") as caught:
        ask(serve(model, tools=[dawdle], timeout_seconds=1))
    assert caught.value.status_code == 504
    assert closed.is_set()


def test_a_timeout_of_the_model_itself_is_passed_on():
    async def run() -> None:
        model = ScriptedModel([TimeoutError("of its own")])
        request = ResponsesRequest(input=[{"role": "user", "content": "Hello"}])
        async for _ in run_agent(request, model=model):
            pass

    with pytest.raises(TimeoutError, match="of its own"):
        asyncio.run(run())


@pytest.mark.parametrize("limits", [{"max_turns": 0}, {"timeout_seconds": 0}])
def test_invalid_limits_are_refused(limits):
    async def run() -> None:
        request = ResponsesRequest(input=[{"role": "user", "content": "Hello"}])
        async for _ in run_agent(request, model=ScriptedModel(["Hi"]), **limits):
            pass

    with pytest.raises(ValueError, match="max_turns has to be 1 or more"):
        asyncio.run(run())


@pytest.mark.parametrize("reason", ["max_output_tokens", "content_filter"])
def test_an_incomplete_turn_ends_the_answer(reason):
    turn = ["It is ", sum_of(1, 2), turn_ended("m", token_usage(1, 1), incomplete=reason)]
    model = ScriptedModel([turn, "never asked"])
    response = ask(serve(model))
    assert response["status"] == "incomplete"
    assert response["incomplete_details"] == {"reason": reason}
    assert len(model.requests) == 1


def test_reading_no_further_stops_the_model_and_the_tools():
    waiting: list[str] = []
    stopped: list[str] = []
    both_wait = asyncio.Event()

    async def wait(name: str) -> None:
        """Wait."""
        waiting.append(name)
        if len(waiting) == 2:
            both_wait.set()
        try:
            await asyncio.sleep(60)
        finally:
            stopped.append(name)

    async def run() -> float:
        calls = [function_call("wait", {"name": name}, f"call_{name}") for name in "ab"]
        request = ResponsesRequest(input=[{"role": "user", "content": "Hello"}])
        events = run_agent(request, model=ScriptedModel([calls]), tools=[wait])
        reader = asyncio.create_task(anext_forever(events))
        await asyncio.wait_for(both_wait.wait(), 60)
        begun = time.monotonic()
        reader.cancel()
        await asyncio.gather(reader, return_exceptions=True)
        return time.monotonic() - begun

    async def anext_forever(events: AsyncGenerator[dict[str, Any], None]) -> None:
        async for _ in events:
            pass

    assert asyncio.run(run()) < 20
    assert sorted(stopped) == ["a", "b"]


def test_a_stuck_function_does_not_block_the_end():
    stuck, left = threading.Event(), threading.Event()

    def stick() -> None:
        """Get stuck."""
        stuck.set()
        left.wait(60)

    async def run() -> float:
        request = ResponsesRequest(input=[{"role": "user", "content": "Hello"}])
        model = ScriptedModel([function_call("stick", {})])
        events = run_agent(request, model=model, tools=[stick])
        reader = asyncio.create_task(read(events))
        await asyncio.to_thread(stuck.wait, 60)
        begun = time.monotonic()
        reader.cancel()
        await asyncio.gather(reader, return_exceptions=True)
        waited = time.monotonic() - begun
        left.set()
        return waited

    async def read(events: AsyncGenerator[dict[str, Any], None]) -> None:
        async for _ in events:
            pass

    assert asyncio.run(run()) < 20


# The caller's tools ---------------------------------------------------------------------------


def test_a_call_of_the_callers_tool_ends_the_response():
    model = ScriptedModel([RAIN])
    response = ask(serve(model), tools=[WEATHER])
    assert kinds(response) == ["function_call"]
    assert response["output"][0]["call_id"] == "call_rain"
    assert response["status"] == "completed"
    assert names(model.requests[0]) == ["weather", "add"]


def test_our_own_calls_of_the_same_turn_are_run_first():
    model = ScriptedModel([[RAIN, sum_of(1, 2)]])
    events = stream(serve(model), tools=[WEATHER])
    output = events[-1]["response"]["output"]
    assert [item["type"] for item in output] == [
        *("function_call", "function_call", "function_call_output")
    ]
    assert output[2]["call_id"] == "call_add"
    assert len(model.requests) == 1


def test_the_conversation_continues_with_the_callers_output():
    model = ScriptedModel([[RAIN, sum_of(1, 2)], "Rain, and 3."])
    server = serve(model)
    question = {"role": "user", "content": "Weather?"}
    first = ask(server, input=[question], tools=[WEATHER])
    told = {"type": "function_call_output", "call_id": "call_rain", "output": "rain"}
    second = ask(server, input=[question, *first["output"], told], tools=[WEATHER])
    assert text_of(second) == "Rain, and 3."
    outputs = [item["output"] for item in model.requests[1].input if "output" in item]
    assert outputs == ["3", "rain"]


@pytest.mark.parametrize("streamed", [False, True])
def test_chat_completions_show_the_callers_calls_alone(streamed):
    model = ScriptedModel([[RAIN, sum_of(1, 2)], "Rain."])
    server = serve(model)
    messages: list[Any] = [{"role": "user", "content": "Weather?"}]

    async def talk() -> tuple[Any, str]:
        async with server.client() as client:
            first = await complete(client)
            call = first.message.tool_calls[0]
            messages.append(first.message.model_dump(exclude_none=True))
            messages.append({"role": "tool", "tool_call_id": call.id, "content": "rain"})
            return first, (await complete(client)).message.content

    async def complete(client: Any) -> Any:
        asked = {"model": "any", "messages": messages, "tools": [CHAT_WEATHER]}
        if not streamed:
            return (await client.chat.completions.create(**asked)).choices[0]
        async with client.chat.completions.stream(**asked) as events:
            return (await events.get_final_completion()).choices[0]

    first, text = asyncio.run(talk())
    assert first.finish_reason == "tool_calls"
    assert [call.function.name for call in first.message.tool_calls] == ["weather"]
    assert json.loads(first.message.tool_calls[0].function.arguments) == {"place": "Basel"}
    assert text == "Rain."


@pytest.mark.parametrize("choice", ["required", {"type": "function", "name": "weather"}])
def test_a_choice_refers_to_the_callers_tools_only(choice):
    model = ScriptedModel(["Very well."])
    ask(serve(model), tools=[WEATHER], tool_choice=choice)
    assert names(model.requests[0]) == ["weather"]
    assert model.requests[0].tool_choice == choice


def test_after_a_required_call_the_choice_is_free():
    model = ScriptedModel([[function_call("add", {}, "call_1")], "Very well."])
    response = ask(serve(model), tools=[WEATHER], tool_choice="required")
    assert "not available" in response["output"][1]["output"]
    assert (names(model.requests[1]), model.requests[1].tool_choice) == (["weather", "add"], "auto")


def test_with_the_choice_none_there_is_no_tool():
    model = ScriptedModel([sum_of(1, 2), "Very well."])
    response = ask(serve(model), tools=[WEATHER], tool_choice="none", parallel_tool_calls=True)
    assert model.requests[0].tools == []
    assert "parallel_tool_calls" not in model.requests[0].parameters
    assert "not available" in response["output"][1]["output"]


def test_allowed_tools_reduce_the_callers_tools():
    mail = {**WEATHER, "name": "mail"}
    only_mail = [{"type": "function", "name": "mail"}]
    choice = {"type": "allowed_tools", "mode": "auto", "tools": only_mail}
    model = ScriptedModel(["Very well."])
    ask(serve(model), tools=[WEATHER, mail], tool_choice=choice)
    assert names(model.requests[0]) == ["mail", "add"]


def test_the_callers_tool_replaces_ours_of_the_same_name():
    model = ScriptedModel([sum_of(1, 2)])
    response = ask(serve(model), tools=[{**WEATHER, "name": "add"}])
    assert kinds(response) == ["function_call"]
    assert names(model.requests[0]) == ["add"]
    assert model.requests[0].tools[0]["parameters"] == WEATHER["parameters"]


def test_a_custom_tool_is_the_callers():
    call = {"type": "custom_tool_call", "call_id": "call_1", "name": "sql", "input": "select 1"}
    model = ScriptedModel([[call, sum_of(1, 2)]])
    response = ask(serve(model), tools=[{"type": "custom", "name": "sql"}])
    assert kinds(response) == ["custom_tool_call", "function_call", "function_call_output"]


# Parameters -----------------------------------------------------------------------------------


def test_what_the_caller_asks_for_reaches_the_model():
    schema = {"type": "object", "properties": {}, "additionalProperties": False}
    given = {
        "temperature": 0.5,
        "top_p": 0.9,
        "max_output_tokens": 100,
        "text": {"format": {"type": "json_schema", "name": "out", "schema": schema}},
        "reasoning": {"effort": "low"},
        "metadata": {"a": "b"},
        "parallel_tool_calls": True,
    }
    model = ScriptedModel(["{}"])
    ask(
        serve(model, instructions="Be kind."),
        **given,
        instructions="Be brief.",
        stop=["\n"],
        seed=7,
    )
    asked = model.requests[0]
    assert asked.instructions == "Be kind.\n\nBe brief."
    assert asked.parameters == {**given, "stop": ["\n"], "seed": 7}


def test_the_output_tokens_are_those_of_the_whole_answer():
    turns = [[sum_of(1, 2), turn_ended("m", token_usage(10, 60))], "Three."]
    model = ScriptedModel(turns)
    ask(serve(model), max_output_tokens=100)
    limits = [request.parameters["max_output_tokens"] for request in model.requests]
    assert limits == [100, 40]


def test_items_that_only_the_last_event_holds_are_seen():
    class WholeModel(ScriptedModel):
        async def stream(self, request: ModelRequest) -> AsyncGenerator[dict[str, Any], None]:
            self.requests.append(request)
            first = len(self.requests) == 1
            item = sum_of(1, 2) if first else {"type": "message", "content": "It is 3."}
            ended = turn_ended("whole", None)
            yield {**ended, "response": {**ended["response"], "output": [item]}}

    response = ask(serve(WholeModel([])))
    assert kinds(response) == ["function_call", "function_call_output", "message"]


def test_item_ids_agree_between_turns_and_the_stream():
    call = {**sum_of(1, 2), "id": "fc_of_the_model"}
    model = ScriptedModel([[item_done(call)], "It is 3."])
    response = ask(serve(model))
    assert response["output"][0]["id"] == "fc_of_the_model"
    assert model.requests[1].input[1]["id"] == "fc_of_the_model"


# Traces ---------------------------------------------------------------------------------------


def test_each_call_of_model_and_tool_is_a_step_of_the_trace():
    lines: list[bytes] = []
    record = TraceRecord("full", lambda trace_id, line: lines.append(line))

    def nested(number: int) -> int:
        """Do it in a step of its own."""
        with span("inside"):
            return number

    async def run() -> None:
        calls = [function_call("nested", {"number": 1}, "call_1"), sum_of(1, 2, "call_2")]
        calls.append({**sum_of(1, 2, "call_3"), "arguments": "{"})
        turns = [[*calls, turn_ended("real", token_usage(7, 3))], "Done."]
        request = ResponsesRequest(input=[{"role": "user", "content": "Hello"}])
        async for _ in run_agent(request, model=ScriptedModel(turns), tools=[add, nested]):
            assert current_span() is root

    root = Span(record, "agent", "AGENT")
    token = enter(root)
    asyncio.run(run())
    leave(token)
    root.end()
    record.finish()
    spans = json.loads(lines[0])["data"]["spans"]
    by_id = {each["span_id"]: each["name"] for each in spans}
    tree = sorted((each["name"], by_id.get(each["parent_span_id"])) for each in spans[:-1])
    assert tree == [
        *[("add", "agent"), ("add", "agent"), ("inside", "nested"), ("nested", "agent")],
        *[("scripted", "agent"), ("scripted", "agent")],
    ]
    first = next(each for each in spans if each["name"] == "scripted")
    assert json.loads(first["attributes"]["mlflow.chat.tokenUsage"])["total_tokens"] == 10
    assert json.loads(first["attributes"]["mlflow.llm.model"]) == "real"
    assert len(json.loads(first["attributes"]["mlflow.spanOutputs"])) == 3
    failed = [each for each in spans if each["status"]["code"] == "STATUS_CODE_ERROR"]
    assert [each["name"] for each in failed] == ["add"]
    told = [json.loads(each["attributes"].get("mlflow.spanOutputs", '""')) for each in spans]
    assert "3" in told


def test_a_model_that_fails_fails_its_step():
    lines: list[bytes] = []
    record = TraceRecord("full", lambda trace_id, line: lines.append(line))

    async def run() -> None:
        model = ScriptedModel([["Well, ", ModelError("Slow down.")]])
        request = ResponsesRequest(input=[{"role": "user", "content": "Hello"}])
        async for _ in run_agent(request, model=model):
            pass

    token = enter(Span(record, "agent", "AGENT"))
    with pytest.raises(ModelError):
        asyncio.run(run())
    leave(token)
    record.finish()
    (step,) = json.loads(lines[0])["data"]["spans"]
    assert step["status"]["code"] == "STATUS_CODE_ERROR"
    assert "Slow down" in step["status"]["message"]


# Requests -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "value"),
    [("prompt", {"id": "pmpt_1"}), ("context_management", [{"type": "compaction"}])],
)
def test_what_the_agent_does_not_apply_is_refused_by_name(name, value):
    with pytest.raises(BadRequestError) as caught:
        ask(serve(ScriptedModel(["Hello."])), **{name: value})
    assert (caught.value.type, caught.value.param) == ("invalid_request_error", name)


def test_truncation_is_accepted_and_echoed():
    response = ask(serve(ScriptedModel(["Hello."])), truncation="auto")
    assert (response["truncation"], text_of(response)) == ("auto", "Hello.")


@pytest.mark.parametrize("ids", [("fc_0", "fc_1"), (None, None), ("fc_0", "fc_0")])
def test_parallel_calls_that_a_model_announces_under_one_id_are_both_run(ids):
    items = [{**sum_of(1, number, "twin"), "id": each} for number, each in enumerate(ids)]
    events = [
        {
            "type": f"response.output_item.{step}",
            "output_index": index,
            "item": {**item, "arguments": ""} if step == "added" else item,
        }
        for step in ("added", "done")
        for index, item in enumerate(items)
    ]

    class Model:
        name = "twins"

        async def stream(self, request: ModelRequest) -> AsyncGenerator[dict[str, Any], None]:
            for event in events if len(request.input) == 1 else [text_delta("Done.")]:
                yield event
            yield turn_ended(self.name, None)

    response = ask(serve(Model()))
    calls, outputs = response["output"][:2], response["output"][2:4]
    assert [output["output"] for output in outputs] == ["1", "2"]
    assert [call["call_id"] for call in calls] == [output["call_id"] for output in outputs]
    assert len({call["call_id"] for call in calls}) == 2
