"""Where the model's programs run: in the sandbox here, in Unity Catalog on Databricks."""

import asyncio
import importlib.util
import json
import logging
import re
from functools import partial

import pytest
from support.databricks_stand_in import ADA_TOKEN, Workspace, remove_credentials, serve_workspace
from support.tracing_support import wait_until

from agent_kit.databricks import get_workspace_client
from agent_kit.settings import get_settings, load_settings
from agent_kit.tools import ToolResult
from agent_kit.tools import python_exec as python_exec_module
from agent_kit.tools.python_exec import python_exec, runs_in_unity_catalog


def run(code: str) -> ToolResult:
    return asyncio.run(python_exec.call(json.dumps({"code": code})))


@pytest.fixture
def workspace(tmp_path, monkeypatch):
    """Serve a workspace, with Ada's credentials and a warehouse in the settings."""
    remove_credentials(monkeypatch, tmp_path / "profiles")
    get_workspace_client.cache_clear()
    with serve_workspace() as workspace:
        monkeypatch.setenv("DATABRICKS_HOST", workspace.url)
        monkeypatch.setenv("DATABRICKS_TOKEN", ADA_TOKEN)
        monkeypatch.setenv("AGENT_KIT_AGENT_PYTHON_EXEC", "unity_catalog")
        monkeypatch.setenv("AGENT_KIT_AGENT_WAREHOUSE_ID", "warehouse-1")
        get_settings.cache_clear()
        yield workspace
    get_workspace_client.cache_clear()


def test_programs_run_in_the_sandbox_by_default():
    assert run("print(17 * 23)") == ToolResult("391")
    assert "nothing was printed" in run("17 * 23").text
    assert "ZeroDivisionError" in run("1 / 0").text


@pytest.mark.parametrize(
    "code",
    ["```python\nprint(17 * 23)\n```", "```\nprint(17 * 23)```\n", "\n```py\nprint(17 * 23)\n"],
)
def test_a_fenced_program_runs(code):
    assert run(code) == ToolResult("391")


def test_raw_line_breaks_and_tabs_in_a_program_are_read():
    code = 'if True:\n\tprint(17 * 23, "#")'
    arguments = '{"code": "' + code.replace('"', '\\"') + '"}'
    assert "\n\t" in arguments
    assert asyncio.run(python_exec.call(arguments)) == ToolResult("391 #")


def test_programs_run_in_unity_catalog(workspace: Workspace):
    code = 'print("it\'s", 17 * 23)'
    assert run(code) == ToolResult("it's 391")
    (call,) = workspace.called("POST", "/api/2.0/sql/statements")
    assert call.user == "ada@example.com"
    assert call.body["parameters"] == [{"name": "code", "value": code, "type": "STRING"}]
    assert "nothing was printed" in run("17 * 23").text


def test_a_stopped_warehouse_is_polled(workspace: Workspace, monkeypatch):
    monkeypatch.setattr(python_exec_module, "_POLL_SECONDS", 0.01)
    workspace.polls_to_wait = 3
    assert run("print(1)") == ToolResult("1")
    assert len(workspace.called("GET", "/api/2.0/sql/statements/statement-1")) == 3


def test_a_cancelled_call_cancels_the_statement(workspace: Workspace, monkeypatch):
    monkeypatch.setattr(python_exec_module, "_POLL_SECONDS", 0.01)
    workspace.polls_to_wait = 100_000

    async def give_up() -> None:
        task = asyncio.create_task(python_exec.call('{"code": "print(1)"}'))
        polled = partial(workspace.called, "GET", "/api/2.0/sql/statements/.*")
        await asyncio.to_thread(wait_until, polled)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(give_up())
    assert workspace.statements["statement-1"]["cancelled"]


@pytest.mark.parametrize(
    ("warehouse", "code", "expected"),
    [
        ("warehouse-1", "forbidden", "UnityCatalogError.*no EXECUTE on python_exec"),
        ("elsewhere", "print(1)", "elsewhere is not a warehouse"),
    ],
)
def test_a_refusal_is_reported_to_the_model(
    workspace: Workspace, monkeypatch, warehouse, code, expected
):
    monkeypatch.setenv("AGENT_KIT_AGENT_WAREHOUSE_ID", warehouse)
    result = run(code)
    assert result.failed
    assert re.search(expected, result.text)


def test_missing_credentials_are_reported_to_the_model(workspace, monkeypatch):
    monkeypatch.delenv("DATABRICKS_HOST")
    monkeypatch.delenv("DATABRICKS_TOKEN")
    result = run("print(1)")
    assert result.failed
    assert "databricks auth login" in result.text


@pytest.mark.parametrize(
    ("overrides", "app", "expected"),
    [
        ({}, False, False),
        ({"warehouse_id": "12ab"}, False, False),
        ({"warehouse_id": "12ab"}, True, True),
        ({"warehouse_id": "12ab", "model": "databricks:claude"}, False, True),
        ({"warehouse_id": "12ab", "python_exec": "sandbox"}, True, False),
        ({"python_exec": "unity_catalog"}, False, True),
    ],
)
def test_the_choice_follows_the_settings(monkeypatch, overrides, app, expected):
    if app:
        monkeypatch.setenv("DATABRICKS_APP_NAME", "my-app")
    values = {f"agent.{name}": value for name, value in overrides.items()}
    assert runs_in_unity_catalog(load_settings(environ={}, overrides=values)) == expected


def test_missing_warehouse_and_databricks_connect_are_reported(monkeypatch):
    monkeypatch.setenv("AGENT_KIT_AGENT_PYTHON_EXEC", "unity_catalog")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    result = run("print(1)")
    assert result.failed
    assert "[agent] warehouse_id" in result.text


def test_auto_uses_the_sandbox_where_the_function_cannot_be_called(workspace, monkeypatch, caplog):
    monkeypatch.setenv("AGENT_KIT_AGENT_PYTHON_EXEC", "auto")
    monkeypatch.setenv("AGENT_KIT_AGENT_WAREHOUSE_ID", "elsewhere")
    monkeypatch.setenv("AGENT_KIT_MODEL", "databricks:claude")
    get_settings.cache_clear()
    with caplog.at_level(logging.WARNING):
        assert run("print(17 * 23)") == ToolResult("391")
    assert "elsewhere is not a warehouse" in caplog.text
    assert workspace.called("POST", "/api/2.0/sql/statements")
