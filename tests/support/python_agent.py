"""An agent for tests, composed as the default one: a model, `python_exec`, the loop."""

from collections.abc import AsyncIterator
from typing import Any

from agent_kit.loop import run_agent
from agent_kit.models import create_model
from agent_kit.protocol import ResponsesRequest
from agent_kit.server import AgentServer, create_server
from agent_kit.settings import Settings, load_settings
from agent_kit.tools.python_exec import python_exec

# The module of a project that serves the agent in a process of its own; the folder of the tests
# has to be on its path.
APP = "from support.python_agent import python_agent\n\napp = python_agent().app\n"


def python_agent(settings: Settings | None = None) -> AgentServer:
    """Return a server with the agent, with `settings` or those of the environment."""
    server = create_server("agent/v1/responses", settings=settings or load_settings())
    model = create_model(server.settings)

    @server.stream()
    async def answer(request: ResponsesRequest) -> AsyncIterator[dict[str, Any]]:
        limits = server.settings.agent
        return run_agent(
            request,
            model=model,
            tools=[python_exec],
            instructions=limits.instructions,
            max_turns=limits.max_turns,
            timeout_seconds=limits.timeout_seconds,
        )

    return server
