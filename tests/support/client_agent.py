"""A small agent for the tests of official clients: its response follows from the request.

Written for the task type `agent/v1/responses`; it calls the caller's tools, and a tool of its own
where it is asked to compute.
"""

import asyncio
import json
import re
import threading
from collections.abc import AsyncIterator
from typing import Any

from starlette.exceptions import HTTPException

from agent_kit.protocol import ResponsesRequest
from agent_kit.server import AgentServer, create_server
from agent_kit.settings import Settings

WEATHER = {"city": "Paris", "degrees": 21}
USAGE = {"input_tokens": 11, "output_tokens": 7, "total_tokens": 18}


def client_agent(settings: Settings, closed: threading.Event) -> AgentServer:
    """Return a server whose agent responds as the functions below define.

    Args:
        settings: The settings of the server.
        closed: An event that is set when a client disconnects before the end of its response.
    """
    server = create_server(settings=settings)

    @server.stream()
    async def answer(request: ResponsesRequest) -> AsyncIterator[Any]:
        question = _question(request)
        if question == "Fail":
            raise HTTPException(418, "I am a teapot.")
        if question.startswith("Think") and not _outputs(request):
            yield {"type": "response.reasoning_summary_text.delta", "delta": "Thinking."}
        if question == "Never end":
            try:
                while True:
                    yield "again "
                    await asyncio.sleep(0.01)
            finally:
                closed.set()
        if question.startswith("Compute") and not _outputs(request):
            yield {"type": "function_call", "call_id": "call_own", "name": "compute"}
            yield {"type": "function_call_output", "call_id": "call_own", "output": "391"}
        for chunk in _chunks(request, question):
            yield chunk
            await asyncio.sleep(0)
        if question == "Fail late":
            raise HTTPException(503, "The model is tired.")
        yield {"type": "response.completed", "response": {"usage": USAGE}}

    return server


def _question(request: ResponsesRequest) -> str:
    asked = [item for item in request.input if item.get("role") == "user"]
    return _text(asked[-1]) if asked else ""


def _outputs(request: ResponsesRequest) -> list[dict[str, Any]]:
    return [item for item in request.input if item.get("type") == "function_call_output"]


def _text(item: dict[str, Any]) -> str:
    content = item["content"]
    if isinstance(content, str):
        return content
    return "".join(part.get("text", "") for part in content)


def _chunks(request: ResponsesRequest, question: str) -> list[Any]:
    outputs = _outputs(request)
    form = (request.text or {}).get("format", {"type": "text"})
    if outputs:
        return _words("The tools say: " + ", ".join(item["output"] for item in outputs))
    if request.tool_choice != "none" and (calls := _calls(request, question)):
        return calls
    if form["type"] != "text":
        return _words(json.dumps(WEATHER))
    if question.startswith("Repeat"):
        messages = [f"{item['role']}: {_text(item)}" for item in request.input if "role" in item]
        instructions = [f"instructions: {request.instructions}"] if request.instructions else []
        return _words(" | ".join([*instructions, *messages]))
    if question == "Name the parts":
        return _words(", ".join(part["type"] for part in request.input[-1]["content"]))
    return _words("Hello from the agent")


def _calls(request: ResponsesRequest, question: str) -> list[dict[str, Any]]:
    names = [tool["name"] for tool in request.tools if tool["type"] == "function"]
    cities = re.findall(r"\b(?:Paris|Rome)\b", question)
    if request.tool_choice != "auto":
        cities = cities or ["Paris"]
    return [
        {
            "type": "function_call",
            "call_id": f"call_{city.lower()}",
            "name": names[0],
            "arguments": json.dumps({"city": city}),
        }
        for city in cities
        if names
    ]


def _words(text: str) -> list[str]:
    return re.findall(r"\S+\s*", text)
