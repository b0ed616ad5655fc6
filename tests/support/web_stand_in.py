"""A scripted agent server for the chat page: it cuts connections and redirects on demand.

It also stores background runs, so that resuming a response can be tested.
"""

import asyncio
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Any

import orjson
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, RedirectResponse, Response, StreamingResponse
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles

WEB = Path(__file__).resolve().parents[2] / "agent_kit" / "server" / "web"
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    "img-src 'self' data:; base-uri 'none'; form-action 'none'; frame-ancestors 'self'; "
    "require-trusted-types-for 'script'; trusted-types dompurify"
)

# A step of a script: an event, raw bytes, an event to wait for, or CUT.
CUT = object()


class ConnectionCut(Exception):
    """Ends a response in the middle, as a proxy does after its timeout."""


def frame(event: dict[str, Any]) -> bytes:
    return b"event: " + event["type"].encode() + b"\ndata: " + orjson.dumps(event) + b"\n\n"


@dataclass
class Run:
    """A background run: the frames it has sent so far, and the number of connections to cut."""

    id: str
    frames: list[bytes] = field(default_factory=list)
    numbers: list[int] = field(default_factory=list)
    cuts: int = 0
    is_over: bool = False


@dataclass
class StandIn:
    """The script of the server, and the requests it has received.

    Attributes:
        script: The steps of the next responses, in the order of requests; the last one repeats.
    """

    script: list[list[Any]] = field(default_factory=list)
    info: dict[str, Any] = field(default_factory=dict)
    refusal: Response | None = None
    refuse_feedback: bool = False
    requests: list[dict[str, Any]] = field(default_factory=list)
    resumed_after: list[int] = field(default_factory=list)
    cancelled: list[str] = field(default_factory=list)
    closed: threading.Event = field(default_factory=threading.Event)
    runs: dict[str, Run] = field(default_factory=dict)
    url: str = ""

    def answer(self, *steps: Any) -> None:
        """Answer the next requests with these steps."""
        self.script = [list(steps)]

    def _next_steps(self) -> list[Any]:
        return self.script.pop(0) if len(self.script) > 1 else self.script[0]

    async def _play(self, steps: list[Any], response_id: str) -> AsyncIterator[Any]:
        numbers = count()
        for step in steps:
            if isinstance(step, threading.Event):
                await asyncio.to_thread(step.wait)
            elif isinstance(step, dict):
                step = {**step, "sequence_number": next(numbers)}
                if "response" in step:
                    step["response"] = {"id": response_id, **step["response"]}
                yield step
            else:
                yield step

    async def respond(self, request: Request) -> Response:
        body = await request.json()
        self.requests.append(body)
        if self.refusal:
            refusal, self.refusal = self.refusal, None
            return refusal
        response_id = f"resp_{len(self.requests)}"
        steps = self._play(self._next_steps(), response_id)
        if not body.get("background"):
            return self._stream(self._foreground(steps))
        run = self.runs[response_id] = Run(response_id)
        task = asyncio.create_task(self._record(run, steps))
        request.app.state.tasks.append(task)
        return self._stream(self._replay(run, -1))

    def _stream(self, frames: AsyncIterator[bytes]) -> StreamingResponse:
        return StreamingResponse(frames, media_type="text/event-stream")

    async def _foreground(self, steps: AsyncIterator[Any]) -> AsyncIterator[bytes]:
        try:
            async for step in steps:
                if step is CUT:
                    await asyncio.sleep(0.1)  # The earlier frames must arrive.
                    raise ConnectionCut
                yield step if isinstance(step, bytes) else frame(step)
        except asyncio.CancelledError:
            self.closed.set()
            raise

    async def _record(self, run: Run, steps: AsyncIterator[Any]) -> None:
        async for step in steps:
            if run.is_over:
                return
            if step is CUT:
                run.cuts += 1
            else:
                run.frames.append(frame(step))
                run.numbers.append(step["sequence_number"])
        run.is_over = True

    async def _replay(self, run: Run, after: int) -> AsyncIterator[bytes]:
        position, cuts = after + 1, run.cuts
        while True:
            while position < len(run.frames):
                yield run.frames[position]
                position += 1
            if run.cuts > cuts:
                raise ConnectionCut
            if run.is_over:
                yield b"data: [DONE]\n\n"
                return
            await asyncio.sleep(0.005)

    async def resume(self, request: Request) -> Response:
        run = self.runs.get(request.path_params["id"])
        if run is None:
            error = {"message": "No such response.", "type": "invalid_request_error"}
            return JSONResponse({"error": error}, 404)
        after = int(request.query_params.get("starting_after", -1))
        self.resumed_after.append(after)
        return self._stream(self._replay(run, after))

    async def cancel(self, request: Request) -> Response:
        run = self.runs[request.path_params["id"]]
        run.is_over = True
        self.cancelled.append(run.id)
        return JSONResponse({"id": run.id, "status": "cancelled"})

    async def show_info(self, request: Request) -> Response:
        return JSONResponse(self.info)

    async def receive_feedback(self, request: Request) -> Response:
        if self.refuse_feedback:
            return JSONResponse({"error": {"message": "MLflow does not answer."}}, 503)
        return JSONResponse({})


class Page(StaticFiles):
    """The page's files under the policy that the server sends."""

    def file_response(self, *args: Any, **kwargs: Any) -> Response:
        response = super().file_response(*args, **kwargs)
        response.headers["content-security-policy"] = POLICY
        response.headers["x-content-type-options"] = "nosniff"
        response.headers["cache-control"] = "no-cache"
        return response


def _application(stand_in: StandIn, prefix: str) -> Starlette:
    routes = [
        Route("/agent/info", stand_in.show_info),
        Route("/agent/feedback", stand_in.receive_feedback, methods=["POST"]),
        Route("/v1/responses", stand_in.respond, methods=["POST"]),
        Route("/v1/responses/{id}", stand_in.resume),
        Route("/v1/responses/{id}/cancel", stand_in.cancel, methods=["POST"]),
        Mount("/", Page(directory=WEB, html=True)),
    ]
    login = Route("/login", lambda request: Response("Sign in", media_type="text/html"))
    app = Starlette(routes=[login, Mount(prefix, routes=routes)] if prefix else routes)
    app.state.tasks = []
    return app


@contextmanager
def serve_app(app: Any) -> Iterator[str]:
    """Run an ASGI application on a free port and yield its URL."""
    config = uvicorn.Config(app, port=0, log_level="critical", timeout_graceful_shutdown=1)
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, name="stand-in")
    thread.start()
    try:
        while not server.started:
            assert thread.is_alive(), "the stand-in did not start"
            threading.Event().wait(0.01)
        port = server.servers[0].sockets[0].getsockname()[1]
        yield f"http://127.0.0.1:{port}"
    finally:
        server.should_exit = True
        thread.join()


@contextmanager
def stand_in_server(prefix: str = "") -> Iterator[StandIn]:
    """Run a stand-in on a free port; `url` is the address of its page."""
    stand_in = StandIn()
    with serve_app(_application(stand_in, prefix)) as url:
        stand_in.url = f"{url}{prefix}/"
        yield stand_in


def login_redirect() -> Response:
    return RedirectResponse("/login", 302)
