"""Agents of other frameworks behind `server.use`, and what handlers give in their words."""

import asyncio
import dataclasses
import json
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from openai import APIStatusError, AsyncOpenAI
from pydantic import BaseModel
from support.framework_agents import (
    AGENTS,
    client_of,
    close_clients,
    langchain_model,
    langgraph_agent,
    model,
    openai_agent,
    openai_chat_agent,
    pydantic_agent,
    weather,
)
from support.model_stand_in import ModelStandIn, Refusal, Turn

from agent_kit.loop import run_agent
from agent_kit.models import ScriptedModel
from agent_kit.models.interface import function_call
from agent_kit.server import AgentServer, create_server
from agent_kit.settings import Settings
from agent_kit.tools import tool

each_agent = pytest.mark.parametrize("make", AGENTS, ids=lambda make: make.__name__)


class Forecast(BaseModel):
    city: str
    degrees: int


def new_server() -> AgentServer:
    return create_server(settings=Settings.model_validate({"mlflow": {"tracing": False}}))


def talk(server: AgentServer, talker: Callable[[AsyncOpenAI], Any]) -> Any:
    """Let `talker` speak with the server."""

    async def run() -> Any:
        try:
            async with server.client() as client:
                return await talker(client)
        finally:
            await close_clients()

    return asyncio.run(run())


async def streamed(client: AsyncOpenAI, **request: Any) -> tuple[Any, list[str]]:
    """Return the response to a streamed request, and the pieces of its text."""
    pieces, response = [], None
    async with await client.responses.create(stream=True, **request) as events:
        async for event in events:
            if event.type == "response.output_text.delta":
                pieces.append(event.delta)
            response = getattr(event, "response", response)
    assert response is not None
    return response, pieces


def outline(response: Any) -> list[tuple[str, str | None]]:
    """Return the types of the items of a response, and what each says."""
    return [
        (item.type, item.content[0].text if item.type == "message" else item.output)
        for item in response.output
        if item.type != "reasoning"
    ]


WHOLE = [("message", "I look. "), ("mcp_call", "Sun in Rome"), ("message", "It is sunny.")]


@each_agent
def test_text_tools_usage_and_history_over_two_turns(make: Callable[..., Any]) -> None:
    with model() as service:
        server = new_server()
        server.use(make(service))

        async def two_turns(client: AsyncOpenAI) -> tuple[Any, list[str], Any]:
            first, pieces = await streamed(client, input="The weather in Rome?")
            again = {"previous_response_id": first.id, "temperature": 0.5}
            second = await client.responses.create(input="And now?", **again)
            return first, pieces, second

        first, pieces, second = talk(server, two_turns)
    assert outline(first) == WHOLE
    assert first.output[1].name == "weather"
    assert "".join(pieces) == "I look. It is sunny."
    assert len(pieces) > 3
    assert first.usage.total_tokens > 0
    assert second.output_text == "Still sunny."
    last = service.requests[-1].body
    said = json.dumps(last)
    if make is not langgraph_agent:  # a graph has no parameters but its own
        assert last["temperature"] == 0.5
    for words in ("Be kind.", "The weather in Rome?", "Sun in Rome", "It is sunny.", "And now?"):
        assert said.count(words) == 1, words


@each_agent
def test_callers_of_chat_completions_are_answered(make: Callable[..., Any]) -> None:
    with model() as service:
        server = new_server()
        server.use(make(service))
        question = [{"role": "user", "content": "The weather in Rome?"}]

        async def ask(client: AsyncOpenAI) -> Any:
            return await client.chat.completions.create(model="any", messages=question)

        answer = talk(server, ask).choices[0]
    assert answer.message.content.split() == ["I", "look.", "It", "is", "sunny."]
    assert answer.finish_reason == "stop"


@each_agent
def test_a_failing_model_is_named_to_the_caller(make: Callable[..., Any]) -> None:
    refusals = [Refusal(429, "Too many tokens.", "rate_limit_exceeded")] * 4
    with model(refusals) as service:
        server = new_server()
        server.use(make(service))
        with pytest.raises(APIStatusError) as caught:
            talk(server, lambda client: client.responses.create(input="Hello"))
    assert caught.value.status_code == 429
    assert "Too many tokens." in caught.value.message


@each_agent
def test_what_an_agent_cannot_do_is_refused(make: Callable[..., Any]) -> None:
    with model() as service:
        server = new_server()
        server.use(make(service))
        form: Any = {"format": {"type": "json_object"}}
        with pytest.raises(APIStatusError) as caught:
            talk(server, lambda client: client.responses.create(input="JSON, please.", text=form))
    assert (caught.value.status_code, caught.value.param) == (400, "text.format")


@each_agent
def test_a_caller_who_leaves_stops_the_model(make: Callable[..., Any]) -> None:
    words = Turn(text="word " * 20_000, pause=0.01)
    with model([words]) as service:
        server = new_server()
        server.use(make(service))

        async def leave(client: AsyncOpenAI) -> bool:
            async with await client.responses.create(input="Talk.", stream=True) as events:
                async for event in events:
                    if event.type == "response.output_text.delta":
                        break
            return await asyncio.to_thread(service.gone.wait, 30)

        assert talk(server, leave)


# --- tools


@tool
def weather_of_the_kit(city: str) -> str:
    """Return the weather of a city.

    Args:
        city: The name of the city.
    """
    return weather(city)


@each_agent
def test_tools_of_the_kit_are_tools_everywhere(make: Callable[..., Any]) -> None:
    look = Turn(calls=[("weather_of_the_kit", {"city": "Rome"})])
    with model([look, "It is sunny."]) as service:
        server = new_server()
        server.use(make(service, [weather_of_the_kit]))
        response = talk(server, lambda client: client.responses.create(input="The weather?"))
        sent = json.dumps(service.requests[0].body)
    assert outline(response) == WHOLE[1:]
    assert "The name of the city." in sent


def tools_of_frameworks() -> Iterator[Any]:
    from agents import function_tool
    from langchain_core.tools import tool as langchain_tool
    from pydantic_ai import Tool

    yield from (function_tool(weather), langchain_tool(weather), Tool(weather))


def test_tools_of_frameworks_are_tools_of_run_agent() -> None:
    for chosen in tools_of_frameworks():
        server = new_server()
        script = ScriptedModel([function_call("weather", {"city": "Rome"}), "It is sunny."])
        server.stream()(
            lambda request, chosen=chosen, script=script: run_agent(
                request, model=script, tools=[chosen]
            )
        )
        response = talk(server, lambda client: client.responses.create(input="The weather?"))
        assert outline(response) == WHOLE[1:]
        assert script.requests[0].tools[0]["parameters"]["properties"]["city"]["type"] == "string"


# --- structured output


def structured_agents(service: ModelStandIn) -> Iterator[Any]:
    from langchain.agents.structured_output import ToolStrategy

    yield openai_agent(service, output_type=Forecast).clone(tools=[])
    yield langgraph_agent(service, response_format=ToolStrategy(Forecast))
    yield pydantic_agent(service, output_type=Forecast)


def test_a_structured_output_is_json() -> None:
    values = {"city": "Rome", "degrees": 21}
    answers = [
        json.dumps(values),
        Turn(calls=[("Forecast", values)]),
        Turn(calls=[("final_result", values)]),
    ]
    with model(answers) as service:
        for agent in structured_agents(service):
            server = new_server()
            server.use(agent)
            response = talk(server, lambda client: client.responses.create(input="The weather?"))
            assert json.loads(response.output_text) == values


# --- handlers of one's own


def result_of_the_sdk(server: AgentServer, service: ModelStandIn) -> None:
    from agents import Runner

    @server.invoke()
    async def answer(request: Any) -> Any:
        return await Runner.run(openai_agent(service), request.input)


def stream_of_the_sdk(server: AgentServer, service: ModelStandIn) -> None:
    from agents import Runner

    @server.invoke()
    async def answer(request: Any) -> Any:
        return Runner.run_streamed(openai_chat_agent(service), request.input)


def state_of_a_graph(server: AgentServer, service: ModelStandIn) -> None:
    @server.invoke()
    async def answer(request: Any) -> Any:
        return await langgraph_agent(service).ainvoke({"messages": request.messages})


def parts_of_a_graph(mode: Any) -> Callable[..., None]:
    def register(server: AgentServer, service: ModelStandIn) -> None:
        @server.stream()
        async def answer(request: Any) -> Any:
            state = {"messages": request.langchain_messages()}
            async for part in langgraph_agent(service).astream(state, stream_mode=mode):
                yield part

    return register


def result_of_pydantic_ai(server: AgentServer, service: ModelStandIn) -> None:
    @server.invoke()
    async def answer(request: Any) -> Any:
        return await pydantic_agent(service).run(request.messages[-1]["content"])


def events_of_pydantic_ai(server: AgentServer, service: ModelStandIn) -> None:
    @server.stream()
    async def answer(request: Any) -> Any:
        async with pydantic_agent(service).run_stream_events("Hello") as events:
            async for event in events:
                yield event


def loop_over_chat_completions(streams: bool) -> Callable[..., None]:
    def register(server: AgentServer, service: ModelStandIn) -> None:
        @server.stream()
        async def answer(request: Any) -> Any:
            client = client_of(service)
            messages = list(request.messages)
            for _ in range(2):
                create = client.chat.completions.create
                calls = []
                if streams:
                    pieces: list[Any] = []
                    async for chunk in await create(
                        model="scripted", messages=messages, stream=True
                    ):
                        yield chunk
                        pieces += chunk.choices[0].delta.tool_calls or [] if chunk.choices else []
                    if pieces:
                        arguments = "".join(piece.function.arguments or "" for piece in pieces)
                        calls = [(pieces[0].id, arguments)]
                else:
                    completion = await create(model="scripted", messages=messages)
                    yield completion
                    found = completion.choices[0].message.tool_calls or []
                    calls = [(call.id, call.function.arguments) for call in found]
                for call_id, arguments in calls:
                    content = weather(**json.loads(arguments))
                    yield {"role": "tool", "tool_call_id": call_id, "content": content}
                if not calls:
                    return

    return register


HANDLERS = {
    "result_of_the_sdk": result_of_the_sdk,
    "stream_of_the_sdk": stream_of_the_sdk,
    "state_of_a_graph": state_of_a_graph,
    **{f"{mode}_of_a_graph": parts_of_a_graph(mode) for mode in ("messages", "updates", "values")},
    "modes_of_a_graph": parts_of_a_graph(["messages", "updates", "values"]),
    "result_of_pydantic_ai": result_of_pydantic_ai,
    "events_of_pydantic_ai": events_of_pydantic_ai,
    "chat_completions": loop_over_chat_completions(False),
    "chunks_of_chat_completions": loop_over_chat_completions(True),
}


@pytest.mark.parametrize("register", HANDLERS.values(), ids=HANDLERS)
def test_handlers_give_what_their_framework_gives(register: Callable[..., None]) -> None:
    with model() as service:
        server = new_server()
        register(server, service)
        response, _ = talk(server, lambda client: streamed(client, input="The weather in Rome?"))
    assert outline(response) == WHOLE


def test_objects_and_strings_of_frameworks_are_answers() -> None:
    @dataclasses.dataclass
    class Sum:
        total: int

    class Text(str):
        """As the text of a message of LangChain."""

    for value, text in (
        (Forecast(city="Rome", degrees=21), '{"city":"Rome","degrees":21}'),
        (Sum(391), '{"total":391}'),
        (Text("Hello."), "Hello."),
    ):
        server = new_server()
        server.invoke()(lambda request, value=value: value)
        response = talk(server, lambda client: client.responses.create(input="Hello"))
        assert response.output_text == text


# --- what use() takes


def test_a_chat_model_of_langchain_is_an_agent() -> None:
    with model(["Hello."]) as service:
        server = new_server()
        server.use(langchain_model(service))
        response = talk(server, lambda client: client.responses.create(input="Hi"))
    assert response.output_text == "Hello."


def returns(messages: Any) -> str:
    return messages[-1]["content"].upper()


def yields(messages: Any) -> Iterator[str]:
    yield from messages[-1]["content"].upper()


async def returns_async(messages: Any) -> str:
    return messages[-1]["content"].upper()


async def yields_async(messages: Any) -> Any:
    for letter in messages[-1]["content"].upper():
        yield letter


@pytest.mark.parametrize("function", [returns, yields, returns_async, yields_async])
def test_a_function_of_the_messages_is_an_agent(function: Callable[..., Any]) -> None:
    server = new_server()
    server.use(function)
    response, _ = talk(server, lambda client: streamed(client, input="Hello"))
    assert response.output_text == "HELLO"


def test_a_server_without_agents_repeats_no_run() -> None:
    server = new_server()
    assert not server.registry.resumable
    server.use(returns, resumable=True)
    assert server.registry.resumable


def test_of_several_agents_the_request_names_one() -> None:
    server = new_server()
    server.use({"helper": lambda messages: "I help.", "analyst": lambda messages: "I analyse."})

    async def ask(client: AsyncOpenAI) -> list[str]:
        chosen: list[Any] = [{}, {"model": "analyst"}, {"model": "helper"}]
        texts = [(await client.responses.create(input="Hi", **each)).output_text for each in chosen]
        return [*texts, *[model.id async for model in client.models.list()]]

    assert talk(server, ask) == ["I help.", "I analyse.", "I help.", "helper", "analyst"]
    with pytest.raises(APIStatusError) as caught:
        talk(server, lambda client: client.responses.create(input="Hi", model="nobody"))
    assert (caught.value.status_code, caught.value.code) == (404, "model_not_found")
    assert "helper, analyst" in caught.value.message


def test_the_newest_registration_answers() -> None:
    server = new_server()
    server.use(lambda messages: "First.")
    server.stream()(lambda request: ["Second."])
    ask = lambda client: client.responses.create(input="Hi")  # noqa: E731
    assert talk(server, ask).output_text == "Second."
    server.use(lambda messages: "Third.")
    assert talk(server, ask).output_text == "Third."


def test_what_is_no_agent_is_refused() -> None:
    server = new_server()
    with pytest.raises(TypeError, match=r"LangGraph.*got 42"):
        server.use(42)
    with pytest.raises(TypeError, match="task type"):
        create_server("agent/v1/chat").use(lambda messages: "Hello")
