"""The commands as a shell runs them: their output, one line for an error, the exit code."""

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import urllib.request
from pathlib import Path

import pytest
from support.databricks_stand_in import remove_credentials
from support.environment import PROJECT
from support.python_agent import APP

from agent_kit import __version__
from agent_kit.cli import agent_evaluate, agent_kit, agent_server

COMMIT = "0123456789abcdef0123456789abcdef01234567"


def script(name: str) -> Path:
    """The path of a console script of this environment."""
    return Path(sys.executable).with_name(name)


def run(*command: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a command of the kit in the working directory."""
    return subprocess.run(
        [script(command[0]), *command[1:]],
        env=os.environ | environment,
        capture_output=True,
        text=True,
        timeout=120,
    )


def write(text: str) -> None:
    Path("settings.ini").write_text(text)


# agent-kit


def test_the_version() -> None:
    done = run("agent-kit", "--version")
    assert (done.returncode, done.stdout) == (0, f"agent-kit {__version__}\n")


def test_settings_and_their_sources(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    write("[server]\ntitle = Tea house\n")
    monkeypatch.setenv("AGENT_KIT_SERVER_PORT", "8123")
    assert agent_kit(["settings"]) == 0
    lines = [line.split("  ") for line in capsys.readouterr().out.splitlines()]
    output = {
        line[0]: (line[1].strip() or line[-2].strip(), line[-1].strip()) for line in lines[1:]
    }
    assert output["server.title"][1] == "settings.ini"
    assert output["server.port"][1] == "environment AGENT_KIT_SERVER_PORT"
    assert output["server.host"][1] == "default"


def test_an_error_is_one_line_and_with_debug_a_traceback() -> None:
    write("[server]\nport = many\ntitel = Tea\n")
    plain, debug = run("agent-kit", "settings"), run("agent-kit", "--debug", "settings")
    assert plain.returncode == 1
    assert plain.stderr.startswith("error: ")
    assert plain.stderr.count("\n") == 1
    assert "did you mean title?" in plain.stderr
    assert debug.returncode == 1
    assert "Traceback" in debug.stderr


@pytest.mark.parametrize("command", [agent_kit, agent_server, agent_evaluate])
def test_wrong_arguments_end_with_2(command, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        command(["--no-such-option"])
    assert ended.value.code == 2
    assert "usage:" in capsys.readouterr().err


@pytest.mark.parametrize("command", [agent_kit, agent_server, agent_evaluate])
def test_help(command, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        command(["--help"])
    assert ended.value.code == 0
    assert "--debug" in capsys.readouterr().out


def test_a_secret_in_an_error_is_hidden(capsys: pytest.CaptureFixture[str]) -> None:
    secret = "sk-" + "a1B2" * 8
    write(f"[server]\napp = {secret}\n")
    assert agent_kit(["settings"]) == 1
    assert secret not in capsys.readouterr().err


# agent-kit deploy


def test_the_plan_of_a_deployment_needs_no_network(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    remove_credentials(monkeypatch, tmp_path / "no-profiles")
    write("[deploy]\napp_name = tea-house\n")
    Path("app.yaml").write_bytes((PROJECT / "app.yaml").read_bytes())
    Path("requirements.txt").write_text("agent-kit\n")
    monkeypatch.setenv("AGENT_KIT_GIT_COMMIT", COMMIT)
    done = run("agent-kit", "deploy", "--dry-run", DATABRICKS_HOST="http://127.0.0.1:1")
    assert done.returncode == 0, done.stderr
    for part in (
        "tea-house",
        COMMIT,
        "agent-server",
        "MLFLOW_TRACKING_URI=databricks",
        "MLFLOW_REGISTRY_URI=databricks-uc",
        "MLFLOW_EXPERIMENT_ID from the resource experiment",
    ):
        assert part in done.stdout


def test_a_deployment_without_a_name_or_without_credentials(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert agent_kit(["deploy", "--dry-run"]) == 1
    assert "set app_name in settings.ini" in capsys.readouterr().err
    with pytest.raises(Exception, match="set app_name"):
        agent_kit(["--debug", "deploy"])

    from agent_kit.settings import get_settings

    get_settings.cache_clear()
    remove_credentials(monkeypatch, tmp_path / "no-profiles")
    write("[deploy]\napp_name = tea-house\n")
    Path("app.yaml").write_bytes((PROJECT / "app.yaml").read_bytes())
    Path("requirements.txt").write_text("agent-kit\n")
    assert agent_kit(["deploy"]) == 1
    output = capsys.readouterr()
    assert "databricks auth login" in output.err
    assert output.err.count("\n") == 1


def test_the_readme_deploys_what_app_yaml_reads() -> None:
    """The walk by hand makes the resource, and exports as the command does."""
    from agent_kit.deploy.source import read_app_config, requirements_command

    readme = (PROJECT / "README.md").read_text()
    read = [each.value_from for each in read_app_config(PROJECT / "app.yaml").env]
    assert [name for name in read if name] == ["experiment"]
    assert '"resources": [{"name": "experiment"' in readme
    line = next(line for line in readme.splitlines() if line.startswith("uv export"))
    command = requirements_command(PROJECT, ["databricks"]) or []
    cosmetic = {"--no-annotate", "--no-header", "--quiet"}
    assert line.split()[1:-2] == ["export", "--locked", *sorted_rest(command, cosmetic)]


def sorted_rest(command: list[str], cosmetic: set[str]) -> list[str]:
    """The other options of `uv export --locked`, in order, without the cosmetic ones."""
    return [word for word in command[3:] if word not in cosmetic]


# agent-server


def test_the_server_answers_and_ends_by_a_signal() -> None:
    write("[server]\napp = my_agent:app\n[mlflow]\ntracing = false\n")
    Path("my_agent.py").write_text(APP)
    path = str(PROJECT / "tests")
    environ = os.environ | {"PYTHONUNBUFFERED": "1", "PYTHONPATH": path}
    with subprocess.Popen(
        [script("agent-server"), "--port", "0"], stderr=subprocess.PIPE, text=True, env=environ
    ) as server:
        watchdog = threading.Timer(60, server.kill)
        watchdog.start()
        try:
            assert server.stderr
            line = next(line for line in server.stderr if "http://" in line)
            url = "http://" + line.split("http://")[1].split()[0]
            body = json.dumps({"input": "What is 17*23?"}).encode()
            headers = {"Content-Type": "application/json"}
            request = urllib.request.Request(f"{url}/invocations", body, headers)
            with urllib.request.urlopen(request, timeout=30) as reply:
                assert b"391" in reply.read()
        finally:
            server.send_signal(signal.SIGTERM)
            server.stderr and server.stderr.read()
            watchdog.cancel()
    assert server.returncode in (0, -signal.SIGTERM)


@pytest.mark.parametrize(
    ("settings", "arguments", "message"),
    [
        ("[server]\napp = no_such_module:app\n", [], "No module named 'no_such_module'"),
        ("[server]\napp = nope.app:app\n", [], "check 'nope.app:app' ([server] app)"),
        ("[server]\napp = nope:app\n", ["--workers", "2"], "No module named 'nope'"),
        ("[server]\napp = json:dumps\n", [], "json:dumps was not created by create_server()"),
        ("[server]\napp = json:app\n", [], "The module json has no 'app'"),
        ("", ["--reload", "--workers", "2"], "--reload serves with one worker"),
        ("", ["--port", "99999"], "A port is a number from 0"),
        ("", ["--port", "-1"], "A port is a number from 0"),
        ("", ["--workers", "0"], "A server has at least one worker"),
        ("[server]\ntitel = x\n", [], "did you mean title?"),
    ],
)
def test_a_server_that_cannot_start_reports_why_in_one_line(
    settings: str, arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    write(settings)
    assert agent_server(arguments) == 1
    output = capsys.readouterr()
    assert message in output.err
    assert output.err.count("\n") == 1
    with pytest.raises(Exception):  # noqa: B017, PT011
        agent_server(["--debug", *arguments])


@pytest.mark.parametrize("arguments", [[], ["--workers", "2"], ["--reload"]])
def test_a_port_in_use_is_reported_before_anything_starts(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert agent_server(["--port", str(port), *arguments]) == 1
    message = capsys.readouterr().err
    assert f"cannot listen on 127.0.0.1, port {port}: Address already in use." in message
    assert message.count("\n") == 1
