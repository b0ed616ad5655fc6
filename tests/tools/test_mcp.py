"""MCP tools of real servers, as a program and over HTTP, within the agent loop."""

import asyncio
import importlib.util
import json
import logging
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import uvicorn
from mcp.server.mcpserver import Image, MCPServer
from mcp.server.mcpserver.exceptions import ToolError
from support.databricks_stand_in import remove_credentials

from agent_kit import tools as toolbox
from agent_kit.context import RequestContext, current_context, use_context
from agent_kit.databricks import get_workspace_client
from agent_kit.loop import run_agent
from agent_kit.models import ScriptedModel, function_call
from agent_kit.protocol import ResponsesRequest
from agent_kit.protocol.response_assembler import ResponseAssembler
from agent_kit.tools import ToolResult, ToolsUnavailable, open_tools
from agent_kit.tools.mcp import McpServer, databricks_mcp_server, mcp_server

PROGRAM = """
import os
from mcp.server.mcpserver import MCPServer

server = MCPServer("tea house")

@server.tool()
def steep(tea: str, minutes: int = 4) -> str:
    "Describe how to make a tea."
    return f"{tea}: {minutes} minutes in {os.environ.get('CUP', 'a pot')}"

server.run("stdio")
"""


class Guarded:
    """An MCP server over HTTP that requires a token, and records those it received."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.accepted: set[str] | None = None
        self.tokens: list[str] = []
        self.url = ""
        server = MCPServer("guarded")

        @server.tool(name="tea.steep")
        def steep(tea: str) -> str:
            """Describe how to make a tea."""
            if tea == "coffee":
                raise ToolError("coffee is not a tea")
            return f"{tea} tea"

        @server.tool()
        async def dawdle() -> str:
            """Take one's time."""
            await asyncio.sleep(60)
            return "late"

        @server.tool()
        def picture() -> Any:
            """Draw a cup."""
            return ["A cup:", Image(data=b"\x89PNG", format="png")]

        @server.tool()
        def table() -> dict[str, int]:
            """Count cups."""
            return {"cups": 3}

        self.app = server.streamable_http_app(streamable_http_path=path)

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        token = dict(scope["headers"]).get(b"authorization", b"").decode()
        self.tokens.append(token)
        if self.accepted is None or token in self.accepted or scope["path"] != self.path:
            return await self.app(scope, receive, send)
        await send({"type": "http.response.start", "status": 401, "headers": []})
        await send({"type": "http.response.body", "body": b"who are you?"})


@contextmanager
def serving(path: str = "/mcp") -> Iterator[Guarded]:
    """Serve the guarded server on a free port, in a thread."""
    guarded = Guarded(path)
    config = uvicorn.Config(guarded, host="127.0.0.1", port=0, log_level="error", lifespan="on")
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        while not server.started:
            assert thread.is_alive()
            time.sleep(0.01)
        port = server.servers[0].sockets[0].getsockname()[1]
        guarded.url = f"http://127.0.0.1:{port}{path}"
        yield guarded
    finally:
        server.should_exit = True
        thread.join()


@pytest.fixture
def guarded() -> Iterator[Guarded]:
    with serving() as guarded:
        yield guarded


@pytest.fixture
def program(tmp_path: Path) -> list[str]:
    path = tmp_path / "tea_house.py"
    path.write_text(PROGRAM)
    return [sys.executable, str(path)]


def use(server: McpServer, *calls: tuple[str, str]) -> list[ToolResult]:
    """Return the results of calls within one connection."""

    async def run() -> list[ToolResult]:
        async with server.connect() as tools:
            by_name = {tool.name: tool for tool in tools}
            return [await by_name[name].call(arguments) for name, arguments in calls]

    return asyncio.run(run())


def names(server: McpServer) -> list[str]:
    async def run() -> list[str]:
        async with server.connect() as tools:
            return [tool.name for tool in tools]

    return asyncio.run(run())


def answer(
    server: McpServer, *turns: Any, caller_tools: Any = (), **options: Any
) -> tuple[dict[str, Any], ScriptedModel]:
    """Return the Response of an agent with the server's tools, and the scripted model."""

    async def run() -> tuple[dict[str, Any], ScriptedModel]:
        messages = [{"role": "user", "content": "Tea?"}]
        request = ResponsesRequest(input=messages, tools=list(caller_tools))
        model, assembler = ScriptedModel(turns), ResponseAssembler(request)
        async for event in run_agent(request, model=model, tools=[server], **options):
            assembler.add(event)
        assembler.finish()
        return assembler.body, model

    return asyncio.run(run())


def test_an_agent_uses_the_tools_of_a_program(program):
    server = mcp_server(program, environment={"CUP": "a cup"})
    call = function_call("steep", {"tea": "green"}, "call_1")
    response, model = answer(server, call, "Green.")
    assert response["output"][1]["output"] == "green: 4 minutes in a cup"
    (definition,) = model.requests[0].tools
    assert definition["description"] == "Describe how to make a tea."
    assert definition["parameters"]["required"] == ["tea"]


def test_an_agent_uses_the_tools_of_a_url(guarded: Guarded):
    call = function_call("uc-tea_steep", {"tea": "green"}, "call_1")
    response, _ = answer(mcp_server(guarded.url, prefix="uc-"), call, "Green.")
    assert response["output"][1]["output"] == "green tea"


def test_results_and_errors_become_text(guarded: Guarded):
    steep, wrong, cup, table = use(
        mcp_server(guarded.url),
        ("tea_steep", '{"tea": "coffee"}'),
        ("tea_steep", "{}"),
        ("picture", ""),
        ("table", ""),
    )
    assert steep.failed
    assert "coffee is not a tea" in steep.text
    assert wrong.failed
    assert "tea" in wrong.text
    assert cup == ToolResult("A cup:\n[image of the type image/png, omitted]")
    assert "3" in table.text


def test_only_the_named_tools_are_used(guarded: Guarded):
    assert names(mcp_server(guarded.url, names=["table"])) == ["table"]
    assert len(names(mcp_server(guarded.url))) == 4


def test_a_slow_tool_ends_on_time(guarded: Guarded):
    (result,) = use(mcp_server(guarded.url, timeout_seconds=2), ("dawdle", ""))
    assert result.failed
    assert "longer than 2 s" in result.text


def test_headers_are_sent(guarded: Guarded):
    guarded.accepted = {"Bearer one"}
    headers = {"Authorization": "Bearer one"}
    assert names(mcp_server(guarded.url, headers=headers, names=["table"])) == ["table"]


def test_headers_are_computed_for_each_request_with_its_context(guarded: Guarded):
    numbers = iter(range(1000))

    def headers() -> dict[str, str]:
        context = current_context()
        assert context
        return {"Authorization": f"Bearer {context.user}-{next(numbers)}"}

    with use_context(RequestContext("request-1", user="ada")):
        use(mcp_server(guarded.url, headers=headers), ("table", ""))
    assert len(guarded.tokens) > 2
    assert len(set(guarded.tokens)) == len(guarded.tokens)
    assert all(token.startswith("Bearer ada-") for token in guarded.tokens)


def test_a_server_that_refuses_costs_the_response_its_tools_only(guarded: Guarded, caplog):
    guarded.accepted = set()
    headers = {"Authorization": "Bearer sk-abcdefghijklmnopqrstuv"}
    with caplog.at_level(logging.WARNING):
        response, model = answer(
            mcp_server(guarded.url, headers=headers), "Sorry.", instructions="Be kind."
        )
    assert response["output"][-1]["content"][0]["text"] == "Sorry."
    instructions = model.requests[0].instructions or ""
    assert instructions.startswith("Be kind.\n\nThe tools of http://127.0.0.1")
    assert "not available now" in instructions
    assert "abcdefghij" not in instructions + caplog.text


@pytest.mark.parametrize(
    ("target", "expected"),
    [
        (["/no/such/program"], "not available now .*No such file"),
        ([sys.executable, "-c", "pass"], "not available now"),
        ([sys.executable, "-c", "import time; time.sleep(60)"], "no answer within 1 s"),
    ],
)
def test_a_program_that_is_not_a_server_is_reported(target, expected):
    with pytest.raises(ToolsUnavailable, match=expected):
        names(mcp_server(target, timeout_seconds=1))


def test_leaving_early_closes_the_connection(program):
    async def leave() -> None:
        request = ResponsesRequest(input=[{"role": "user", "content": "Tea?"}], stream=True)
        model = ScriptedModel([["One ", 5.0, "two"]])
        events = run_agent(request, model=model, tools=[mcp_server(program)])
        await anext(events)
        await events.aclose()

    asyncio.run(leave())


# A server that offers exactly the tools in its second argument, whatever a library would complete.
RAW_PROGRAM = """
import json, sys

name, tools = sys.argv[1], json.loads(sys.argv[2])
for line in sys.stdin:
    message = json.loads(line)
    method, result = message["method"], {}
    if method == "initialize":
        version = message["params"]["protocolVersion"]
        server = {"name": name, "version": "1"}
        result = {"protocolVersion": version, "capabilities": {"tools": {}}, "serverInfo": server}
    elif method == "tools/list":
        result = {"tools": tools}
    elif method == "tools/call":
        text = f"{message['params']['name']} of {name}"
        result = {"content": [{"type": "text", "text": text}]}
    if "id" in message:
        print(json.dumps({"jsonrpc": "2.0", "id": message["id"], "result": result}), flush=True)
"""


@pytest.fixture
def offering(tmp_path: Path):
    """Return a function that creates servers with tools of these names."""
    path = tmp_path / "raw.py"
    path.write_text(RAW_PROGRAM)

    def create(server: str, *tools: str, **fields: Any) -> McpServer:
        offered = [{"name": name, "inputSchema": {"type": "object"}, **fields} for name in tools]
        return mcp_server([sys.executable, str(path), server, json.dumps(offered)])

    return create


def test_tools_of_several_servers_with_one_name_get_a_prefix(offering, caplog):
    def search(text: str) -> str:
        """Search here."""
        return f"{text} is here"

    async def run() -> list[tuple[str, str]]:
        servers = [offering("git hub", "search", "issue"), offering("wiki", "search")]
        async with open_tools([search, *servers]) as (tools, _):
            called = [await tool.call('{"text": "it"}') for tool in tools.values()]
            return list(zip(tools, [result.text for result in called], strict=True))

    toolbox._warn_once.cache_clear()
    expected = [
        ("search", "it is here"),
        ("git_hub_search", "search of git hub"),
        ("issue", "issue of git hub"),
        ("wiki_search", "search of wiki"),
    ]
    for _ in range(2):
        assert asyncio.run(run()) == expected
    lines = [line.message for line in caplog.records if "Several tools are named" in line.message]
    assert len(lines) == 2
    assert "wiki_search" in lines[1]


@pytest.mark.parametrize(
    ("offered", "expected"),
    [
        (["a.b", "a/b"], ["a_b", "a_b_2"]),
        (["x" * 70 + "1", "x" * 70 + "2"], ["x" * 64, "x" * 62 + "_2"]),
    ],
)
def test_names_of_one_server_that_become_the_same_are_told_apart(offering, offered, expected):
    results = use(offering("s", *offered), *((name, "{}") for name in expected))
    assert [result.text for result in results] == [f"{name} of s" for name in offered]


def test_a_tool_is_sent_to_the_model_as_every_service_requires(offering):
    server = offering("s", "look", description="d" * 2000)
    mine = {"type": "function", "name": "mine", "strict": True}
    _, model = answer(server, "Done.", caller_tools=[mine])
    (own, look) = model.requests[0].tools
    assert own["parameters"]["properties"] == {}
    assert own["parameters"]["additionalProperties"] is False
    assert look["parameters"] == {"type": "object", "properties": {}}
    assert len(look["description"]) == 1024


@pytest.mark.parametrize("target", ["", [], "ftp://example.com", "my-server --stdio"])
def test_an_invalid_target_is_refused(target):
    with pytest.raises(ValueError, match="neither a URL"):
        mcp_server(target)


def test_the_missing_package_is_reported(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r"agent-kit\[mcp\]"):
        mcp_server("http://127.0.0.1/mcp")


def test_databricks_serves_its_functions(tmp_path, monkeypatch):
    remove_credentials(monkeypatch, tmp_path / "profiles")
    get_workspace_client.cache_clear()
    with serving("/api/2.0/mcp/functions/system/ai") as guarded:
        guarded.accepted = {f"Bearer dapi{'a' * 32}"}
        monkeypatch.setenv("DATABRICKS_HOST", guarded.url.partition("/api")[0])
        monkeypatch.setenv("DATABRICKS_TOKEN", "dapi" + "a" * 32)
        (result,) = use(databricks_mcp_server(names=["tea.steep"]), ("tea_steep", '{"tea": "a"}'))
    assert result == ToolResult("a tea")
    get_workspace_client.cache_clear()
