"""Where the model's programs run: in the sandbox here, in Unity Catalog on Databricks."""

import asyncio
import importlib.util
import json
import logging
import re
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import httpx2
import pytest
from support.databricks_stand_in import (
    ADA_TOKEN,
    Refusal,
    Workspace,
    remove_credentials,
    serve_workspace,
)
from support.spark_stand_in import Spark, install_spark
from support.tracing_support import wait_until

from agent_kit.databricks import get_workspace_client
from agent_kit.server import create_server
from agent_kit.settings import get_settings, load_settings
from agent_kit.tools import ToolResult
from agent_kit.tools import python_exec as python_exec_module
from agent_kit.tools.python_exec import python_exec, runs_in_unity_catalog
from agent_kit.tracing.spans import Span, TraceRecord, enter, leave, span

STATEMENTS = "/api/2.0/sql/statements"


def arguments(code: str) -> str:
    return json.dumps({"code": code})


def run(code: str) -> ToolResult:
    return asyncio.run(python_exec.call(arguments(code)))


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


async def cancel_when(begun: threading.Event) -> None:
    """Cancel a call once something has begun."""
    task = asyncio.create_task(python_exec.call(arguments("print(1)")))
    await asyncio.to_thread(begun.wait, 60)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


def test_a_cancelled_call_cancels_the_statement(workspace: Workspace):
    workspace.polls_to_wait = 100_000
    asyncio.run(cancel_when(workspace.submitting))
    assert workspace.statements["statement-1"]["cancelled"]


def test_a_call_that_is_cancelled_while_it_is_submitted(workspace: Workspace, monkeypatch):
    """The statement is cancelled once its id is known; the caller does not wait for that."""
    monkeypatch.setattr(python_exec_module, "_STOP_SECONDS", 0.01)
    workspace.polls_to_wait = 100_000
    workspace.accept.clear()
    asyncio.run(cancel_when(workspace.submitting))
    workspace.accept.set()
    wait_until(lambda: workspace.statements["statement-1"].get("cancelled"))


def test_a_call_that_takes_too_long_cancels_the_statement(workspace: Workspace):
    workspace.polls_to_wait = 100_000
    impatient = replace(python_exec, timeout_seconds=0.5)
    result = asyncio.run(impatient.call(arguments("print(1)")))
    assert result == ToolResult("python_exec failed: it took longer than 0.5 s", failed=True)
    assert workspace.statements["statement-1"]["cancelled"]


def test_a_statement_that_cannot_be_followed_is_cancelled(workspace: Workspace, monkeypatch):
    monkeypatch.setattr(python_exec_module, "_POLL_SECONDS", 0.01)
    workspace.polls_to_wait = 1
    workspace.poll = Refusal(400, "BAD_REQUEST", "no such statement")
    assert run("print(1)").failed
    assert workspace.statements["statement-1"]["cancelled"]


def test_a_submission_without_an_answer_is_not_repeated(workspace: Workspace):
    """The program may have run, so it is neither submitted again nor run in the sandbox."""
    workspace.submission = ConnectionResetError()
    result = run("print(1)")
    assert result.failed
    assert "onnection" in result.text
    assert len(workspace.called("POST", STATEMENTS)) == 1


def test_calls_have_threads_of_their_own(workspace: Workspace):
    """They run while asyncio's default threads are all busy."""
    release = threading.Event()

    async def run_beside() -> ToolResult:
        loop = asyncio.get_running_loop()
        loop.set_default_executor(ThreadPoolExecutor(1))
        busy = loop.run_in_executor(None, release.wait)
        try:
            return await python_exec.call(arguments("print(17 * 23)"))
        finally:
            release.set()
            await busy

    impatient = threading.Timer(30, release.set)
    impatient.start()
    assert asyncio.run(run_beside()) == ToolResult("391")
    assert impatient.is_alive()
    impatient.cancel()


NO_EXECUTE = (
    "[INSUFFICIENT_PERMISSIONS] Insufficient privileges: User does not have EXECUTE on Routine or "
    "Model 'system.ai.python_exec'. SQLSTATE: 42501"
)


@pytest.mark.parametrize(
    ("warehouse", "error", "expected"),
    [
        ("warehouse-1", NO_EXECUTE, "FunctionUnavailable.*does not have EXECUTE"),
        ("elsewhere", None, "elsewhere is not a warehouse"),
    ],
)
def test_a_refusal_is_reported_to_the_model(
    workspace: Workspace, monkeypatch, warehouse, error, expected
):
    monkeypatch.setenv("AGENT_KIT_AGENT_WAREHOUSE_ID", warehouse)
    workspace.statement_error = error
    result = run("print(1)")
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


# The fall-back: for a function that is not there, and for nothing else


@pytest.fixture
def auto(workspace: Workspace, monkeypatch) -> Workspace:
    """Let the setting `auto` choose Unity Catalog."""
    monkeypatch.setenv("AGENT_KIT_AGENT_PYTHON_EXEC", "auto")
    monkeypatch.setenv("AGENT_KIT_MODEL", "databricks:claude")
    get_settings.cache_clear()
    return workspace


@pytest.fixture
def spark(auto: Workspace, monkeypatch) -> Spark:
    """Let programs run by databricks-connect, as there is no warehouse."""
    monkeypatch.delenv("AGENT_KIT_AGENT_WAREHOUSE_ID")
    get_settings.cache_clear()
    return install_spark(monkeypatch)


def refuse_to_submit(status: int, code: str, message: str):
    return lambda workspace: setattr(workspace, "submission", Refusal(status, code, message))


def fail_with(message: str):
    return lambda workspace: setattr(workspace, "statement_error", message)


@pytest.mark.parametrize(
    "prepare",
    [
        refuse_to_submit(400, "INVALID_PARAMETER_VALUE", "12ab is not a valid endpoint id."),
        refuse_to_submit(403, "PERMISSION_DENIED", "You have no permission to use the warehouse"),
        refuse_to_submit(401, "UNAUTHENTICATED", "The token has expired"),
        fail_with("[UNRESOLVED_ROUTINE] Cannot resolve routine `system`.`ai`.`python_exec`"),
        fail_with("[ROUTINE_NOT_FOUND] The routine system.ai.python_exec cannot be found."),
        fail_with("[NO_SUCH_CATALOG_EXCEPTION] Catalog 'system' was not found."),
        fail_with("[SCHEMA_NOT_FOUND] The schema `system`.`ai` cannot be found."),
        fail_with("Function system.ai.python_exec does not exist."),
        fail_with(NO_EXECUTE),
        fail_with("PERMISSION_DENIED: User does not have USE SCHEMA on Schema 'system.ai'."),
    ],
)
def test_auto_uses_the_sandbox_where_the_function_is_not_there(auto: Workspace, prepare):
    prepare(auto)
    result = run("print(17 * 23)")
    assert not result.failed
    assert result.text.startswith("391\n[it ran in the sandbox of this server")
    assert len(auto.called("POST", STATEMENTS)) == 1


def test_auto_uses_the_sandbox_without_credentials(auto: Workspace, monkeypatch):
    monkeypatch.delenv("DATABRICKS_HOST")
    monkeypatch.delenv("DATABRICKS_TOKEN")
    assert "databricks auth login" in run("print(17 * 23)").text


def test_the_fallback_is_logged_traced_and_shown(auto: Workspace, monkeypatch, caplog):
    monkeypatch.setenv("AGENT_KIT_AGENT_WAREHOUSE_ID", "elsewhere")
    get_settings.cache_clear()
    root = Span(TraceRecord("full", lambda trace_id, line: None), "agent", "AGENT")
    token = enter(root)
    with caplog.at_level(logging.WARNING), span("python_exec") as step:
        result = run("print(17 * 23)")
    leave(token)
    reason = "elsewhere is not a warehouse"
    assert reason in result.text
    assert reason in caplog.text
    assert step.attributes["agent_kit.python_exec"] == '"sandbox"'
    assert reason in step.attributes["agent_kit.python_exec_fallback"]

    server = create_server()
    server.invoke()(lambda request: "Hello")
    with server.serve() as url:
        shown = httpx2.get(f"{url}/agent/info").json()["python_exec"]
        assert shown["place"] == "unity_catalog"
        assert reason in shown["fallback"]
        monkeypatch.setenv("AGENT_KIT_AGENT_WAREHOUSE_ID", "warehouse-1")
        get_settings.cache_clear()
        assert run("print(17 * 23)") == ToolResult("391")
        shown = httpx2.get(f"{url}/agent/info").json()["python_exec"]
        assert shown == {"place": "unity_catalog", "fallback": None}


FAULTY = [
    "1 / 0",
    "raise SystemExit(3)",
    "raise Exception('[UNRESOLVED_ROUTINE] python_exec')",
    "raise Exception('[INVALID_HANDLE.SESSION_CLOSED] the session was closed')",
]


@pytest.mark.parametrize("code", FAULTY)
def test_a_program_that_fails_is_not_run_again(auto: Workspace, code):
    result = run(code)
    assert result.failed
    assert "the program failed in Unity Catalog" in result.text
    assert "sandbox" not in result.text
    assert len(auto.called("POST", STATEMENTS)) == 1


@pytest.mark.parametrize("code", FAULTY)
def test_a_program_that_fails_in_spark_is_not_run_again(spark: Spark, code):
    result = run(code)
    assert result.failed
    assert "the program failed in Unity Catalog" in result.text
    assert spark.programs == [code]


# Spark


def test_a_program_runs_in_spark(spark: Spark):
    assert run("print(17 * 23)") == ToolResult("391")
    assert run("print(17 * 24)") == ToolResult("408")
    assert len(spark.sessions) == 1


@pytest.mark.parametrize(
    "message",
    [
        "[INVALID_HANDLE.SESSION_CLOSED] The handle is invalid. Session was closed.",
        "[INVALID_HANDLE.SESSION_CHANGED] The existing Spark server driver has restarted.",
        "BAD_REQUEST: session_id is no longer usable. Generate a new session_id",
        "Cannot invoke RPC on closed channel!",
    ],
)
def test_a_closed_session_is_opened_again_once(spark: Spark, message: str):
    assert run("print(1)") == ToolResult("1")
    spark.closed_message = message
    spark.sessions[-1].closed = True
    assert run("print(17 * 23)") == ToolResult("391")
    assert spark.programs == ["print(1)", "print(17 * 23)"]
    assert len(spark.sessions) == 2

    spark.sessions[-1].closed = spark.closes_new_sessions = True
    result = run("print(2)")
    assert result.failed
    assert message in result.text
    assert len(spark.sessions) == 3


def test_auto_uses_the_sandbox_where_spark_is_not_there(spark: Spark):
    spark.unreachable = "serverless compute is disabled in this workspace"
    assert spark.unreachable in run("print(17 * 23)").text
    spark.unreachable, spark.refusal = None, NO_EXECUTE
    assert "does not have EXECUTE" in run("print(17 * 23)").text
    assert not spark.programs


def test_a_cancelled_call_interrupts_the_operation_in_spark(spark: Spark):
    spark.hangs = True
    asyncio.run(cancel_when(spark.running))
    (interrupted,) = spark.interrupted.values()
    assert interrupted.is_set()


def test_a_call_that_takes_too_long_interrupts_the_operation_in_spark(spark: Spark):
    spark.hangs = True
    impatient = replace(python_exec, timeout_seconds=0.5)
    assert asyncio.run(impatient.call(arguments("print(1)"))).failed
    (interrupted,) = spark.interrupted.values()
    assert interrupted.is_set()
