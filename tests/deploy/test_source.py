"""The source of a deployed app, and the mistakes that are found before the upload."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest
from support.environment import PROJECT, require

from agent_kit.deploy.source import (
    MAX_FILE_BYTES,
    DeployError,
    export_requirements,
    gather_source,
    has_uncommitted_changes,
    list_files,
    read_app_config,
)


def write(path: Path, text: str = "") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path


def git(project: Path, *arguments: str) -> None:
    identity = ["-c", "user.name=Ada", "-c", "user.email=ada@example.com"]
    command = ["git", "-C", str(project), *identity, *arguments]
    subprocess.run(command, check=True, capture_output=True)


@pytest.fixture
def uv() -> str:
    found = os.environ.get("UV") or shutil.which("uv")
    require(found, "uv")
    assert found
    return found


def lock(project: Path, uv: str) -> Path:
    """Make a project with a locked development group and an extra, none of which needs an index."""
    write(project / "local" / "pyproject.toml", '[project]\nname = "local"\nversion = "1"\n')
    write(
        project / "pyproject.toml",
        '[project]\nname = "mine"\nversion = "1"\nrequires-python = ">=3.11"\ndependencies = []\n'
        '[project.optional-dependencies]\nmore = ["local"]\n'
        '[dependency-groups]\ndev = ["local"]\n'
        '[build-system]\nrequires = ["hatchling"]\nbuild-backend = "hatchling.build"\n'
        '[tool.uv.sources]\nlocal = { path = "local" }\n',
    )
    subprocess.run([uv, "lock", "--offline"], cwd=project, check=True, capture_output=True)
    return project


# app.yaml


def test_the_shipped_app_yaml_starts_the_server() -> None:
    config = read_app_config(PROJECT / "app.yaml")
    assert config.command == ("agent-server",)
    assert {each.name: each.value or f"<{each.value_from}>" for each in config.env} == {
        "MLFLOW_TRACKING_URI": "databricks",
        "MLFLOW_REGISTRY_URI": "databricks-uc",
        "MLFLOW_EXPERIMENT_ID": "<experiment>",
    }


def test_the_port_is_the_one_variable_in_a_command(tmp_path: Path) -> None:
    path = write(tmp_path / "app.yaml", "command: [agent-server, --port, $DATABRICKS_APP_PORT]")
    assert read_app_config(path).command[2] == "$DATABRICKS_APP_PORT"


def test_the_spelling_of_bundles(tmp_path: Path) -> None:
    path = write(tmp_path / "app.yaml", "command: [a]\nenv: [{name: A, value_from: b}]")
    assert read_app_config(path).env[0].value_from == "b"


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("command: agent-server", "command: should be a list of words"),
        ("command: []", "command: should be a list of words"),
        ("env: []", "command: Field required"),
        ("command: [a, 3]", "command.1: Input should be a valid string"),
        ("command: [sh, -c, 'a && b']", "the command is not run in a shell"),
        ("command: [agent-server, $HOME]", "the command is not run in a shell"),
        ("command: [a]\nport: 1", "port: Extra inputs are not permitted"),
        ("command: [a]\nenv: [{name: A}]", "A needs either a value or a valueFrom"),
        ("command: [a]\nenv: [{name: A, value: b, valueFrom: c}]", "A needs either"),
        ("command: [a]\nenv: [{name: A, value: 1}]", "env.0.value: Input should be a valid string"),
        (
            "command: [a]\nenv: [{name: A, value: b}, {name: A, value: c}]",
            "A is set more than once",
        ),
        ("command: [a]\nenv: [{name: MY_API_KEY, value: hunter2}]", "MY_API_KEY contains a secret"),
        ("command: [a]\nenv: [{name: A, value: dapi%s}]" % ("1" * 32), "A contains a secret"),
        ("command: [a", "is not YAML"),
        ("- a", "the file: Input should be a valid dictionary"),
    ],
)
def test_an_app_yaml_that_would_not_start_an_app(tmp_path: Path, text: str, reason: str) -> None:
    with pytest.raises(DeployError) as caught:
        read_app_config(write(tmp_path / "app.yaml", text))
    message = str(caught.value)
    assert message.startswith(str(tmp_path / "app.yaml"))
    assert reason in message
    assert "hunter2" not in message
    assert "\n" not in message


def test_a_missing_app_yaml_results_in_an_example(tmp_path: Path) -> None:
    with pytest.raises(DeployError, match=r'is missing.*command: \["agent-server"\]'):
        read_app_config(tmp_path / "app.yaml")


# The files


def test_the_files_that_git_tracks_or_does_not_ignore(tmp_path: Path) -> None:
    write(tmp_path / ".gitignore", "notes/\n*.log\n")
    for name in ["a.py", "nbs/b ü.ipynb", "notes/c.txt", "d.log", ".env", "pkg/__pycache__/e.pyc"]:
        write(tmp_path / name)
    write(tmp_path / "gone.py")
    git(tmp_path, "init")
    git(tmp_path, "add", "-f", ".")
    git(tmp_path, "commit", "-m", "first")
    assert not has_uncommitted_changes(tmp_path)
    (tmp_path / "gone.py").unlink()
    write(tmp_path / "new.py")
    # a file that was added in spite of .gitignore is a part of the project; .env never is
    names = [".gitignore", "a.py", "d.log", "nbs/b ü.ipynb", "new.py", "notes/c.txt"]
    assert list_files(tmp_path) == names
    assert has_uncommitted_changes(tmp_path)


def test_a_project_within_a_repository(tmp_path: Path) -> None:
    write(tmp_path / "above.py")
    write(tmp_path / "mine" / "a.py")
    git(tmp_path, "init")
    assert list_files(tmp_path / "mine") == ["a.py"]


def test_without_git_all_files_but_those_never_deployed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in [
        "a.py",
        ".venv/x.py",
        "mlflow.db-wal",
        ".agent_kit/spool/x",
        ".env.local",
        "k.pem",
    ]:
        write(tmp_path / name)
    monkeypatch.setenv("PATH", "")
    assert list_files(tmp_path) == ["a.py"]
    assert not has_uncommitted_changes(tmp_path)


def test_a_file_over_the_limit_is_named(tmp_path: Path) -> None:
    write(tmp_path / "requirements.txt")
    write(tmp_path / "fits.bin").write_bytes(bytes(MAX_FILE_BYTES))
    assert "fits.bin" in gather_source(tmp_path)
    write(tmp_path / "weights.bin").write_bytes(bytes(MAX_FILE_BYTES + 1))
    with pytest.raises(DeployError, match=r"weights\.bin \(10\.0 MB\)") as caught:
        gather_source(tmp_path)
    assert "fits.bin" not in str(caught.value)


# The requirements


def test_requirements_of_the_lock_without_groups(tmp_path: Path, uv: str) -> None:
    lock(tmp_path, uv)
    assert export_requirements(tmp_path) == "-e .\n"
    assert "./local" in export_requirements(tmp_path, ["more"])
    assert gather_source(tmp_path)["requirements.txt"].endswith(b"-e .\n")


def test_a_stale_lock_is_refused(tmp_path: Path, uv: str) -> None:
    lock(tmp_path, uv)
    text = (tmp_path / "pyproject.toml").read_text().replace("[]", '["local"]', 1)
    write(tmp_path / "pyproject.toml", text)
    with pytest.raises(DeployError, match=r"uv cannot write the requirements.*needs to be updated"):
        export_requirements(tmp_path)


def test_an_unknown_extra_is_refused(tmp_path: Path, uv: str) -> None:
    with pytest.raises(DeployError, match=r"(?i)extra `?nothing`? is not defined"):
        export_requirements(lock(tmp_path, uv), ["nothing"])


def test_a_project_without_lock_keeps_its_requirements(tmp_path: Path) -> None:
    write(tmp_path / "requirements.txt", "agent-kit==0.1\n")
    assert export_requirements(tmp_path) == "agent-kit==0.1\n"


def test_a_project_with_neither_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DeployError, match="run `uv lock`"):
        export_requirements(tmp_path)


def test_a_missing_uv_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "uv.lock")
    monkeypatch.delenv("UV", raising=False)
    monkeypatch.setenv("PATH", "")
    with pytest.raises(DeployError, match="pip install uv"):
        export_requirements(tmp_path)


@pytest.mark.parametrize("line", ["-e ../kit", "/opt/kit", "kit @ file:///opt/kit"])
def test_a_requirement_outside_of_the_project_is_refused(tmp_path: Path, line: str) -> None:
    write(tmp_path / "requirements.txt", f"agent-kit\n-e .\n{line}\n")
    with pytest.raises(DeployError, match="outside of the project"):
        export_requirements(tmp_path)


def test_the_kit_itself_can_be_exported(uv: str) -> None:
    names = {
        line.partition("==")[0] for line in export_requirements(PROJECT, ["databricks"]).split()
    }
    assert {"-e", ".", "mlflow", "databricks-connect"} <= names
    assert not {"pytest", "ruff", "playwright"} & names
