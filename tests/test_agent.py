"""The default agent: real programs, really run, over HTTP and by the official clients."""

import asyncio
import json

import httpx2
import pytest

from agent_kit.agent import server

QUESTION = {"input": [{"role": "user", "content": "What is 17*23?"}]}


@pytest.fixture(autouse=True)
def untraced(monkeypatch):
    settings = server.settings
    mlflow = settings.mlflow.model_copy(update={"tracing": False})
    monkeypatch.setattr(server.service, "settings", settings.model_copy(update={"mlflow": mlflow}))


def test_the_answer_is_computed_in_the_sandbox():
    with server.serve() as url:
        output = httpx2.post(f"{url}/invocations", json=QUESTION, timeout=30).json()["output"]
    assert [item["type"] for item in output] == ["function_call", "function_call_output", "message"]
    assert output[0]["name"] == "python_exec"
    assert output[1]["output"].strip() == "391"
    assert "391" in output[2]["content"][0]["text"]


def test_the_answer_streams():
    with server.serve() as url:
        answer = httpx2.post(f"{url}/invocations", json={**QUESTION, "stream": True}, timeout=30)
    events = [json.loads(line[6:]) for line in answer.text.splitlines() if "data: {" in line]
    assert [event["sequence_number"] for event in events] == list(range(len(events)))
    assert events[-1]["type"] == "response.completed"
    assert "391" in json.dumps(events[-1]["response"]["output"])


def test_chat_completions_hide_the_agents_own_tool_calls():
    async def ask():
        async with server.client() as client:
            return await client.chat.completions.create(
                model="any", messages=[{"role": "user", "content": "What is 2 + 2?"}]
            )

    choice = asyncio.run(ask()).choices[0]
    assert choice.finish_reason == "stop"
    assert not choice.message.tool_calls
    assert "4" in choice.message.content


def test_what_no_rule_knows_is_answered_honestly():
    async def ask():
        async with server.client() as client:
            return await client.responses.create(input="Write me a poem about the sea.")

    assert "no language model" in asyncio.run(ask()).output_text
