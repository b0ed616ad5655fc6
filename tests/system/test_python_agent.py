"""An agent with `python_exec` that runs real programs, over HTTP and by the official clients."""

import asyncio
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import httpx2
import pytest
from openai import AsyncOpenAI, OpenAI
from support.environment import PROJECT
from support.model_stand_in import ModelStandIn, Refusal, Turn
from support.python_agent import APP, python_agent
from support.stream_checker import check_sse

from agent_kit.server import AgentServer

QUESTION = {"input": [{"role": "user", "content": "What is 17*23?"}]}
CHAT_QUESTION = {"messages": [{"role": "user", "content": "What is 17*23?"}]}
PLACE = {"type": "object", "properties": {"place": {"type": "string"}}, "required": ["place"]}
WEATHER = {"type": "function", "name": "weather", "description": "Say it.", "parameters": PLACE}
RAIN = ("weather", {"place": "Basel"})
PYTHON = ("python_exec", {"code": "print(6 * 7)"})


@pytest.fixture(autouse=True)
def untraced(monkeypatch):
    monkeypatch.setenv("AGENT_KIT_MLFLOW_TRACING", "false")


@pytest.fixture
def server() -> AgentServer:
    return python_agent()


def text_of(response: dict[str, Any]) -> str:
    return "".join(part["text"] for item in response["output"] for part in item.get("content", ()))


# Nothing is configured ------------------------------------------------------------------------


def test_the_answer_is_computed_in_the_sandbox(server):
    with server.serve() as url:
        output = httpx2.post(f"{url}/invocations", json=QUESTION, timeout=30).json()["output"]
    assert [item["type"] for item in output] == ["function_call", "function_call_output", "message"]
    assert output[0]["name"] == "python_exec"
    assert output[1]["output"].strip() == "391"
    assert "391" in output[2]["content"][0]["text"]


def test_the_answer_streams(server):
    with server.serve() as url:
        answer = httpx2.post(f"{url}/invocations", json={**QUESTION, "stream": True}, timeout=30)
    events = check_sse(answer.content)
    assert events[-1]["type"] == "response.completed"
    assert "391" in json.dumps(events[-1]["response"]["output"])


def test_chat_completions_hide_the_agents_own_tool_calls(server):
    async def ask():
        async with server.client() as client:
            return await client.chat.completions.create(
                model="any", messages=[{"role": "user", "content": "What is 2 + 2?"}]
            )

    choice = asyncio.run(ask()).choices[0]
    assert choice.finish_reason == "stop"
    assert not choice.message.tool_calls
    assert "4" in choice.message.content


def test_a_question_without_a_rule_gets_an_explanation(server):
    async def ask():
        async with server.client() as client:
            return await client.responses.create(input="Write me a poem about the sea.")

    assert "no language model" in asyncio.run(ask()).output_text


# A model behind an endpoint -------------------------------------------------------------------


class Served(NamedTuple):
    """The URL of the agent, and the model service that it calls."""

    url: str
    service: ModelStandIn

    def post(self, path: str, **body: Any) -> httpx2.Response:
        return httpx2.post(f"{self.url}{path}", json=body, timeout=30)

    def client(self) -> OpenAI:
        return OpenAI(base_url=f"{self.url}/v1", api_key="none", max_retries=0)


@pytest.fixture(params=["openai:stand-in"])
def served(request, monkeypatch) -> Iterator[Served]:
    """Serve the agent with the model service that the environment names."""
    with ModelStandIn(key="sk-stand-in") as service:
        monkeypatch.setenv("AGENT_KIT_MODEL", request.param)
        monkeypatch.setenv("OPENAI_BASE_URL", service.url)
        monkeypatch.setenv("OPENAI_API_KEY", "sk-stand-in")
        with python_agent().serve() as url:
            yield Served(url, service)


each_provider = pytest.mark.parametrize(
    "served", ["openai:stand-in", "openai-responses:stand-in"], indirect=True
)


def test_one_variable_selects_a_model_service(tmp_path: Path):
    with ModelStandIn(key="sk-stand-in") as service:
        environment = os.environ | {
            "AGENT_KIT_MODEL": "openai:stand-in",
            "OPENAI_BASE_URL": service.url,
            "OPENAI_API_KEY": "sk-stand-in",
            "PYTHONPATH": str(PROJECT / "tests"),
        }
        (tmp_path / "my_agent.py").write_text(APP)
        (tmp_path / "settings.ini").write_text("[server]\napp = my_agent:app\n")
        command = [Path(sys.executable).with_name("agent-server"), "--port", "0"]
        with subprocess.Popen(
            command, cwd=tmp_path, env=environment, stderr=subprocess.PIPE, text=True
        ) as process:
            assert process.stderr
            line = next(line for line in process.stderr if "http://" in line)
            url = "http://" + line.split("http://")[1].split()[0]
            answer = httpx2.post(f"{url}/invocations", json=QUESTION, timeout=30).json()
            streamed = httpx2.post(
                f"{url}/invocations", json={**QUESTION, "stream": True}, timeout=30
            )
            process.terminate()
            process.stderr.read()
    kinds = [item["type"] for item in answer["output"]]
    assert kinds == ["function_call", "function_call_output", "message"]
    assert text_of(answer) == "The result is 391."
    assert text_of(check_sse(streamed.content)[-1]["response"]) == "The result is 391."


@each_provider
@pytest.mark.parametrize(("path", "place"), [("/invocations", 1), ("/v1/responses", 0)])
def test_the_model_calls_python_and_answers(served: Served, path, place):
    answer = served.post(path, **QUESTION).json()
    assert text_of(answer) == "The result is 391."
    assert answer["output"][place]["output"] == "391"
    assert answer["usage"]["total_tokens"] == 30
    streamed = check_sse(served.post(path, **QUESTION, stream=True).content)
    assert text_of(streamed[-1]["response"]) == "The result is 391."
    assert streamed[-1]["response"]["usage"]["total_tokens"] == 30


@each_provider
def test_a_chain_shows_the_model_what_its_tools_returned(served: Served):
    first = served.post("/v1/responses", **QUESTION).json()
    served.service.requests.clear()
    served.service.answers = ["As I said."]
    served.post("/v1/responses", input="Sure?", previous_response_id=first["id"])
    (request,) = served.service.requests
    asked = request.body.get("messages") or request.body["input"]
    assert [item.get("role") or item["type"] for item in asked if item.get("role") != "system"] in (
        ["user", "assistant", "tool", "assistant", "user"],
        ["user", "function_call", "function_call_output", "assistant", "user"],
    )
    assert "print(17*23)" in json.dumps(asked)
    assert '"391"' in json.dumps(asked)


def test_chat_completions_get_the_same_answer(served: Served):
    answer = served.post("/v1/chat/completions", **CHAT_QUESTION).json()
    assert answer["choices"][0]["message"]["content"] == "The result is 391."
    assert answer["usage"]["total_tokens"] == 30
    streamed = served.post("/v1/chat/completions", **CHAT_QUESTION, stream=True).text
    chunks = [json.loads(line[6:]) for line in streamed.splitlines() if "data: {" in line]
    deltas = [choice["delta"] for chunk in chunks for choice in chunk["choices"]]
    assert "".join(delta.get("content") or "" for delta in deltas) == "The result is 391."
    assert not any(delta.get("tool_calls") for delta in deltas)


def test_what_the_caller_sets_reaches_the_service(served: Served):
    served.service.answers = ["{}"]
    schema = {"type": "object", "properties": {}, "required": [], "additionalProperties": False}
    form = {"type": "json_schema", "name": "empty", "schema": schema, "strict": True}
    with served.client() as client:
        client.responses.create(
            model="any",
            input="Hello",
            instructions="Be brief.",
            temperature=0.3,
            top_p=0.8,
            max_output_tokens=50,
            text={"format": form},
            parallel_tool_calls=False,
            reasoning={"effort": "low"},
            metadata={"ticket": "1"},
            extra_body={"stop": ["END"]},
        )
    body = served.service.requests[0].body
    assert (body["temperature"], body["top_p"], body["stop"]) == (0.3, 0.8, ["END"])
    assert body["max_tokens"] == 50
    assert body["response_format"]["json_schema"]["schema"] == schema
    assert (body["parallel_tool_calls"], body["reasoning_effort"]) == (False, "low")
    assert body["metadata"] == {"ticket": "1"}
    system = body["messages"][0]["content"]
    assert system.startswith("You are a helpful assistant.")
    assert system.endswith("Be brief.")
    assert [each["function"]["name"] for each in body["tools"]] == ["python_exec"]


def test_a_refusal_of_the_service_is_an_error_in_the_same_format(served: Served):
    served.service.answers = [Refusal(400, "too long", "context_length_exceeded")]
    answer = served.post("/v1/responses", **QUESTION)
    assert answer.status_code == 400
    assert answer.json()["error"]["code"] == "context_length_exceeded"
    slow = ("python_exec", {"code": "import time; time.sleep(0.5)"})
    served.service.answers = [Turn(calls=[slow]), Refusal(400, "broken")]
    events = check_sse(served.post("/v1/responses", **QUESTION, stream=True).content)
    assert events[-1]["type"] == "response.failed"


# Callers with tools of their own --------------------------------------------------------------


@each_provider
def test_a_tool_of_the_caller_by_the_responses_client(served: Served):
    served.service.answers = [Turn(calls=[RAIN, PYTHON]), "Rain, and 42."]
    with served.client() as client:
        first = client.responses.create(model="any", input="Rain?", tools=[WEATHER])
        calls = [item for item in first.output if item.type == "function_call"]
        result = {"type": "function_call_output", "call_id": calls[0].call_id, "output": "rain"}
        question = {"role": "user", "content": "Rain?"}
        history = [item.model_dump(exclude_none=True) for item in first.output]
        second = client.responses.create(
            model="any", input=[question, *history, result], tools=[WEATHER]
        )
    assert [item.type for item in first.output] == ["function_call", "mcp_call"]
    assert (calls[0].name, calls[0].arguments) == ("weather", '{"place": "Basel"}')
    assert second.output_text == "Rain, and 42."
    tools = served.service.requests[0].body["tools"]
    assert [each.get("function", each)["name"] for each in tools] == ["weather", "python_exec"]
    sent = json.dumps(served.service.requests[1].body)
    assert '"rain"' in sent
    assert '"42"' in sent


def test_a_tool_of_the_caller_in_a_stream(served: Served):
    served.service.answers = [Turn("One moment. ", calls=[RAIN])]
    with (
        served.client() as client,
        client.responses.stream(model="any", input="Rain?", tools=[WEATHER]) as stream,
    ):
        kinds = [event.type for event in stream]
        final = stream.get_final_response()
    assert [item.type for item in final.output] == ["message", "function_call"]
    assert "response.function_call_arguments.delta" in kinds
    assert kinds[-1] == "response.completed"


@pytest.mark.parametrize("streamed", [False, True])
def test_a_tool_of_the_caller_by_the_chat_client(served: Served, streamed):
    served.service.answers = [Turn(calls=[RAIN, PYTHON]), "Rain."]
    tool = {"type": "function", "function": {"name": "weather", "parameters": PLACE}}
    messages: list[Any] = [{"role": "user", "content": "Rain?"}]
    with served.client() as client:

        def complete() -> Any:
            asked = {"model": "any", "messages": messages, "tools": [tool]}
            if not streamed:
                return client.chat.completions.create(**asked).choices[0]
            with client.chat.completions.stream(**asked) as stream:
                return stream.get_final_completion().choices[0]

        first = complete()
        (call,) = first.message.tool_calls
        messages.append(first.message.model_dump(exclude_none=True))
        messages.append({"role": "tool", "tool_call_id": call.id, "content": "rain"})
        second = complete()
    assert first.finish_reason == "tool_calls"
    assert (call.function.name, call.function.arguments) == ("weather", '{"place": "Basel"}')
    assert second.message.content == "Rain."


def test_a_tool_that_has_to_be_called(served: Served):
    served.service.answers = [Turn(calls=[RAIN])]
    with served.client() as client:
        client.responses.create(model="any", input="Rain?", tools=[WEATHER], tool_choice="required")
    body = served.service.requests[0].body
    assert [each["function"]["name"] for each in body["tools"]] == ["weather"]
    assert body["tool_choice"] == "required"


@pytest.mark.parametrize("api", ["responses", "chat"])
def test_the_agents_sdk_runs_its_own_tools(served: Served, api):
    from agents import Agent, ModelSettings, RunConfig, Runner, function_tool
    from agents.models.openai_chatcompletions import OpenAIChatCompletionsModel
    from agents.models.openai_responses import OpenAIResponsesModel

    # The Agents SDK refuses a Response with calls of tools that are not its own; in chat
    # completions the agent's own calls are not offered to it.
    own = [Turn(calls=[PYTHON])] if api == "chat" else []
    served.service.answers = [*own, Turn(calls=[RAIN]), "It rains in Basel."]
    asked: list[str] = []

    @function_tool
    def weather(place: str) -> str:
        """Return the weather of a place."""
        asked.append(place)
        return "rain"

    async def run() -> str:
        async with AsyncOpenAI(base_url=f"{served.url}/v1", api_key="none") as client:
            kind = OpenAIResponsesModel if api == "responses" else OpenAIChatCompletionsModel
            agent = Agent(
                name="traveller",
                instructions="Say where it rains.",
                tools=[weather],
                model=kind(model="any", openai_client=client),
                model_settings=ModelSettings(temperature=0),
            )
            done = await Runner.run(
                agent, "Does it rain?", run_config=RunConfig(tracing_disabled=True)
            )
            return done.final_output

    assert asyncio.run(run()) == "It rains in Basel."
    assert asked == ["Basel"]
