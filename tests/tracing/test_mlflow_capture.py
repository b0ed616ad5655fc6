"""Spans of MLflow belong to the trace of their request, whenever MLflow is imported."""

import json
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from support.model_stand_in import ModelStandIn
from support.tracing_support import (
    drain_here,
    no_drain,
    run_script,
    serving,
    stored_trace,
    stored_traces,
    tree,
)

from agent_kit.settings import Settings

pytest_plugins = ["support.tracing_fixtures"]

AGENT = """
import asyncio
{at_top}
from agent_kit.server import create_server
from agent_kit.tracing import span

server = create_server()
app = server.app


def work(name):
    import mlflow

    @mlflow.trace
    def look_up(city):
        return f"rain in {{city}}"

    with mlflow.start_span("plan") as plan:
        plan.set_inputs({{"name": name}})
        with span("tool"):
            look_up("Oslo")
    mlflow.update_current_trace(tags={{"author": name}})
    return name
"""
HANDLERS = {
    "async": """
@server.invoke()
async def answer(request):
    return await asyncio.to_thread(work, request.custom_inputs["name"])
""",
    "async-stream": """
@server.stream()
async def answer(request):
    yield "Hello "
    yield work(request.custom_inputs["name"])
""",
    "sync": """
@server.invoke()
def answer(request):
    return work(request.custom_inputs["name"])
""",
    "sync-stream": """
@server.stream()
def answer(request):
    yield "Hello "
    yield work(request.custom_inputs["name"])
""",
}
IMPORTS = {"at the top": "import mlflow", "in the handler": ""}
EXPECTED = {("agent", None), ("plan", "agent"), ("tool", "plan"), ("look_up", "tool")}


def send(url: str, **body: Any) -> str:
    """Send a request to the agent; return the id of its trace."""
    request = urllib.request.Request(
        f"{url}/invocations",
        json.dumps({"input": "Hello", **body}).encode(),
        {"Content-Type": "application/json"},
    )
    with urllib.request.urlopen(request, timeout=60) as response:
        response.read()
        return response.headers["x-mlflow-trace-id"]


@pytest.mark.parametrize(
    ("handler", "imported"),
    [(handler, "in the handler") for handler in HANDLERS] + [("sync", "at the top")],
)
def test_spans_of_mlflow_are_in_the_trace(project: Settings, handler: str, imported: str) -> None:
    """Six requests at once, the first of them while MLflow is being imported."""
    agent = AGENT.format(at_top=IMPORTS[imported]) + HANDLERS[handler]
    bodies = [
        {"custom_inputs": {"name": f"n{number}"}, "stream": number % 2 == 0} for number in range(6)
    ]
    with no_drain(project), serving(project, agent) as (url, _), ThreadPoolExecutor(6) as threads:
        traces = list(threads.map(lambda body: send(url, **body), bodies))
    drain_here(project)
    for body, trace_id in zip(bodies, traces, strict=True):
        trace = stored_trace(project, trace_id)
        assert tree(trace.data.spans) == EXPECTED
        plan = next(found for found in trace.data.spans if found.name == "plan")
        assert plan.inputs == body["custom_inputs"]
        assert trace.info.tags["author"] == body["custom_inputs"]["name"]
    assert len(stored_traces(project)) == len(traces), "a span became a trace of its own"


ATTACHMENTS = """
import json
import mlflow
from mlflow.tracing.attachments import Attachment

image = Attachment(content_type="image/png", content_bytes=b"\\x89PNG")
film = Attachment(content_type="video/mp4", content_bytes=b"x" * 1_000_000)
trace = start_trace("agent", inputs={"image": image})
with trace.activate():
    with mlflow.start_span("theirs") as step:
        step.set_inputs({"images": [image, film]})
    with span("ours") as step:
        step.set_outputs(film)
trace.finish(outputs=[image])
print(json.dumps([[step["inputs"], step["outputs"]] for step in trace_tree(trace.trace_id)]))
"""


def test_an_attachment_is_in_the_trace_with_its_bytes(project: Settings) -> None:
    with no_drain(project):
        done = run_script(project, ATTACHMENTS)
    assert done.returncode == 0, done.stderr
    url, film = "data:image/png;base64,iVBORw==", "<1000000 bytes of video/mp4>"
    root, theirs, ours = json.loads(done.stdout)
    assert root == [{"image": url}, [url]]
    assert theirs[0] == {"images": [url, film]}
    assert ours[1] == film


AUTOLOG = """
import mlflow
from openai import AsyncOpenAI
from agent_kit.server import stream, create_server

mlflow.openai.autolog()
app = create_server().app


@stream()
async def answer(request):
    async with AsyncOpenAI() as client:
        chunks = await client.chat.completions.create(
            model="any",
            messages=[{"role": "user", "content": "Hello"}],
            stream=True,
            stream_options={"include_usage": True},
        )
        async for chunk in chunks:
            yield chunk.choices[0].delta.content or "" if chunk.choices else ""
"""


def test_calls_that_mlflow_traces_automatically_are_in_the_trace(project: Settings) -> None:
    with (
        ModelStandIn(["It rains."]) as model,
        no_drain(project),
        serving(
            project,
            AUTOLOG,
            OPENAI_BASE_URL=model.url,
            OPENAI_API_KEY="sk-0123456789abcdefghij",
        ) as (url, _),
    ):
        trace_id = send(url)
    trace = stored_trace(project, trace_id)
    children = [found for found in trace.data.spans if found.parent_id]
    assert [found.span_type for found in children] == ["CHAT_MODEL"]
    assert "It rains." in json.dumps(children[0].outputs)
    usage = trace.info.token_usage or {}
    assert usage.get("total_tokens") == 15, "the agent reported none, MLflow's span did"
    assert "sk-0123456789" not in json.dumps(trace.to_dict())
