"""A model in this process: loading, streaming, grammars and stopping."""

import asyncio
import json
import time

import pytest
from support.environment import require
from support.tiny_model import write_tiny_model

from agent_kit.models import create_model
from agent_kit.models import local as local_model
from agent_kit.models.interface import ModelError, ModelRequest
from agent_kit.settings import load_settings

PROGRAM = "print(6*7)"
TOOL = {"type": "function", "name": "python_exec", "parameters": {"type": "object"}}
QUESTION = {"role": "user", "content": "What is 6*7?"}


@pytest.fixture(autouse=True)
def unloaded():
    """Let go of the weights that a test has loaded."""
    yield
    local_model._servers.clear()


@pytest.fixture
def path(tmp_path):
    try:
        import xllamacpp
    except ImportError:
        xllamacpp = None
    require(xllamacpp, "xllamacpp (the extra `local`)")
    return write_tiny_model(tmp_path / "tiny.gguf", PROGRAM)


def model_in(path):
    return create_model(load_settings(path.parent, overrides={"agent.model": f"local:{path.name}"}))


async def collect(model, *items, **more):
    return [event async for event in model.stream(ModelRequest(list(items), **more))]


def ask(path, *items, **more):
    return asyncio.run(collect(model_in(path), *items, **more))


def text(events):
    return "".join(event.get("delta", "") for event in events)


def output(call, printed):
    return {"type": "function_call_output", "call_id": call["call_id"], "output": printed}


def test_it_loads_once_and_streams(path):
    model = model_in(path)

    async def twice():
        return [await collect(model, QUESTION, parameters={"temperature": 0.0}) for _ in range(2)]

    for events in asyncio.run(twice()):
        assert text(events) == PROGRAM
        assert len(events) > 5
        assert events[-1]["type"] == "response.completed"
        assert events[-1]["response"]["usage"]["output_tokens"] >= len(PROGRAM)
    assert len(local_model._servers) == 1


def test_a_prompt_becomes_a_program_and_its_output_the_response(path):
    calm = {"tools": [TOOL], "parameters": {"temperature": 0.0}}
    events = ask(path, QUESTION, **calm)
    call = events[0]["item"]
    assert call["name"] == "python_exec"
    assert json.loads(call["arguments"]) == {"code": PROGRAM}
    assert events[-1]["response"]["usage"]["total_tokens"] > 100  # of the choice and the program
    answer = text(ask(path, QUESTION, call, output(call, "42\n"), **calm))
    assert answer.startswith(PROGRAM)
    assert "42" in answer.removeprefix(PROGRAM)


def test_a_failed_program_is_written_once_more(path):
    calm = {"tools": [TOOL], "tool_choice": "required", "parameters": {"temperature": 0.0}}
    first = ask(path, QUESTION, **calm)[0]["item"]
    failed = [first, output(first, "Traceback …\nNameError: name 'x' is not defined")]
    second = ask(path, QUESTION, *failed, **calm)[0]["item"]
    assert second["type"] == "function_call"
    again = [second, output(second, "[nothing was printed; print() what you want to see]")]
    assert text(ask(path, QUESTION, *failed, *again, **calm)).startswith(PROGRAM)


def test_other_tools_are_passed_to_the_model(path):
    other = TOOL | {"name": "other"}
    calm = {"parameters": {"temperature": 0.0}}
    assert text(ask(path, QUESTION, tools=[other, TOOL], **calm)) == PROGRAM
    assert text(ask(path, QUESTION, tools=[other], tool_choice="none", **calm)) == PROGRAM


def test_closing_stops_an_endless_model(tmp_path, path):
    endless = write_tiny_model(tmp_path / "endless.gguf", "tick", endless=True)
    model = model_in(endless)

    async def leave_and_return():
        calm = {"temperature": 0.0}
        events = model.stream(ModelRequest([QUESTION], parameters=calm))
        assert (await anext(events))["delta"] == "t"
        began = time.monotonic()
        await events.aclose()
        closed = time.monotonic() - began
        short = calm | {"max_output_tokens": 8}
        return closed, await collect(model, QUESTION, parameters=short)

    closed, events = asyncio.run(leave_and_return())
    assert closed < 5
    assert text(events) == "ticktick"
    assert events[-1]["response"]["incomplete_details"] == {"reason": "max_output_tokens"}


def test_the_server_requires_its_key(path):
    import httpx2

    ask(path, QUESTION, parameters={"temperature": 0.0, "max_output_tokens": 1})
    url = local_model._base_url(path)
    body = {"messages": [QUESTION]}
    assert httpx2.post(f"{url}/chat/completions", json=body).status_code == 401


def test_missing_weights_are_reported(tmp_path):
    with pytest.raises(ModelError, match=r"no file nothing\.gguf"):
        ask(tmp_path / "nothing.gguf", QUESTION)


def test_a_file_that_is_not_a_model_is_refused(path):
    path.write_bytes(b"no GGUF at all")
    with pytest.raises(ModelError, match="cannot be loaded"):
        ask(path, QUESTION)


def test_the_missing_extra_is_reported(path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "xllamacpp", None)
    with pytest.raises(ModelError, match="uv sync --extra local"):
        ask(path, QUESTION)
