"""The servers that are compared, each with the same agent: it says the words of the request again.

`python servers.py NAME PORT` runs one; `compare.py` starts them this way.
"""

import json
import sys
from collections.abc import AsyncIterator, Callable
from typing import Any

WORDS = [f"word{number} " for number in range(40)]
ITEM = {"type": "message", "id": "msg_1", "role": "assistant", "status": "completed"}


def part(text: str) -> dict[str, Any]:
    return {"type": "output_text", "text": text, "annotations": []}


def delta(word: str, number: int) -> dict[str, Any]:
    place = {"item_id": "msg_1", "output_index": 0, "content_index": 0, "sequence_number": number}
    return {"type": "response.output_text.delta", "delta": word, "logprobs": [], **place}


def bare_asgi() -> Any:
    """The least that can be done on uvicorn: parse the body, answer, no validation."""

    async def app(scope: dict[str, Any], receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            return
        body = b""
        while message := await receive():
            body += message.get("body", b"")
            if not message.get("more_body"):
                break
        data = json.loads(body or b"{}")
        streamed = data.get("stream", False)
        kind = b"text/event-stream" if streamed else b"application/json"
        headers = [(b"content-type", kind)]
        if not streamed:
            answer = json.dumps({"output": [{**ITEM, "content": [part("".join(WORDS))]}]}).encode()
            headers.append((b"content-length", str(len(answer)).encode()))
            await send({"type": "http.response.start", "status": 200, "headers": headers})
            await send({"type": "http.response.body", "body": answer})
            return
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        for number, word in enumerate(WORDS):
            frame = f"data: {json.dumps(delta(word, number))}\n\n".encode()
            await send({"type": "http.response.body", "body": frame, "more_body": True})
        await send({"type": "http.response.body", "body": b"data: [DONE]\n\n"})

    return app


def agent_kit() -> Any:
    """This kit; whether it traces and stores is said by the environment."""
    from agent_kit.server import create_server

    server = create_server()

    @server.invoke()
    async def answer(request: Any) -> str:
        return "".join(WORDS)

    @server.stream()
    async def stream(request: Any) -> AsyncIterator[str]:
        for word in WORDS:
            yield word

    return server.app


def mlflow() -> Any:
    """MLflow's AgentServer without tracing, on the same uvicorn with the same options."""
    import mlflow as library
    from mlflow.genai.agent_server import AgentServer, invoke, stream

    library.tracing.disable()

    @invoke()
    async def answer(request: Any) -> dict[str, Any]:
        return {"output": [{**ITEM, "content": [part("".join(WORDS))]}]}

    @stream()
    async def stream_words(request: Any) -> AsyncIterator[dict[str, Any]]:
        for number, word in enumerate(WORDS):
            yield delta(word, number)
        done = {**ITEM, "content": [part("".join(WORDS))]}
        yield {"type": "response.output_item.done", "output_index": 0, "item": done}

    return AgentServer("ResponsesAgent").app


SERVERS: dict[str, Callable[[], Any]] = {
    "bare-asgi": bare_asgi,
    "agent-kit-stateless": agent_kit,
    "agent-kit": agent_kit,
    "agent-kit-traced": agent_kit,
    "mlflow": mlflow,
}

if __name__ == "__main__":
    import uvicorn

    app = SERVERS[sys.argv[1]]()
    uvicorn.run(app, port=int(sys.argv[2]), log_level="warning", access_log=False)
