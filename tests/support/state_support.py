"""A server with a store, for the tests of runs and of the store."""

import asyncio
import json
import threading

from agent_kit.context import get_raw_request
from agent_kit.server import AgentServer, create_server
from agent_kit.settings import load_settings

UNTRACED = {"AGENT_KIT_MLFLOW_TRACING": "false", "AGENT_KIT_SERVER_TRUST_FORWARDED": "always"}


def make_server(**environ: str) -> AgentServer:
    """Return a server whose agent returns the number of its input items, or follows a command."""
    server = create_server(settings=load_settings(environ=UNTRACED | environ))

    @server.stream()
    async def answer(request):
        text = request.input[-1].get("content", "")
        if text == "fail":
            raise RuntimeError("on purpose")
        if text == "count for ever":
            number = 0
            try:
                while True:
                    yield f"{number} "
                    number += 1
                    await asyncio.sleep(0.005)
            finally:
                server.closed.set()
        if text == "slowly":
            for number in range(8):
                yield f"{number} "
                await asyncio.sleep(0.02)
            return
        if text == "long id":
            parts = [{"type": "output_text", "text": "named"}]
            yield {"type": "message", "id": "msg_" * 200, "role": "assistant", "content": parts}
            return
        if text == "call and wait":
            yield {"type": "function_call", "call_id": "1", "name": "f", "arguments": "{}"}
            yield {"type": "function_call_output", "call_id": "1", "output": "done"}
            yield "not done"
            await asyncio.sleep(60)
        if text == "name the model":
            yield "I am it."
            yield {"type": "response.completed", "response": {"model": "real-model"}}
            return
        if text == "raw":
            yield json.dumps(get_raw_request())
            return
        yield f"{len(request.input)} items"

    server.closed = threading.Event()
    return server
