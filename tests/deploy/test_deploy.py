"""Deployment as a Databricks app, over HTTP, to a simulated workspace."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from support.databricks_stand_in import (
    ADA_TOKEN,
    APP_USER,
    CLIENT_ID,
    CLIENT_SECRET,
    Workspace,
    remove_credentials,
    serve_workspace,
)

from agent_kit.databricks import CredentialsError, get_workspace_client
from agent_kit.deploy import LoginRequired, ask_app, check_login, deploy, parse_resource
from agent_kit.deploy.source import DeployError
from agent_kit.settings import Settings, load_settings

FOLDER = "/Workspace/Users/ada@example.com/apps/my-agent"
COMMIT = "0123456789abcdef0123456789abcdef01234567"
APP_YAML = """\
command: [agent-server]
env:
  - {name: MLFLOW_TRACKING_URI, value: databricks}
  - {name: MLFLOW_EXPERIMENT_ID, valueFrom: experiment}
"""


@pytest.fixture
def workspace(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Workspace]:
    """A workspace that Ada reaches with a personal access token."""
    remove_credentials(monkeypatch, tmp_path / "databrickscfg")
    monkeypatch.setenv("AGENT_KIT_GIT_COMMIT", COMMIT)
    get_workspace_client.cache_clear()
    with serve_workspace() as workspace:
        monkeypatch.setenv("DATABRICKS_HOST", workspace.url)
        monkeypatch.setenv("DATABRICKS_TOKEN", ADA_TOKEN)
        yield workspace
    get_workspace_client.cache_clear()


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A small project: a module, a notebook, and a .py file that looks like a notebook."""
    folder = tmp_path / "project"
    for name, text in {
        "my_agent/agent.py": "app = 1\n",
        "nbs/agent.ipynb": "{}",
        "nbs/job.py": "# Databricks notebook source\n",
        "app.yaml": APP_YAML,
        "requirements.txt": "agent-kit\n",
    }.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    return folder


def settings_of(project: Path, text: str = "", app_name: str = "my-agent") -> Settings:
    (project / "settings.ini").write_text(f"[deploy]\napp_name = {app_name}\n{text}")
    return load_settings(project, {})


def run(settings: Settings, **options: bool) -> tuple[str | None, str]:
    """Deploy; return the URL and the output."""
    lines: list[str] = []
    url = deploy(settings, report=lines.append, **options)
    return url, "\n".join(lines)


def resource_names(workspace: Workspace) -> list[str]:
    return [each["name"] for each in workspace.apps["my-agent"]["resources"]]


# The whole deployment


def test_a_first_deployment(workspace: Workspace, project: Path) -> None:
    url, report = run(settings_of(project, "user_api_scopes = sql\n"))
    app = workspace.apps["my-agent"]
    assert url == app["url"] == f"{workspace.url}/deployed/my-agent"
    assert app["description"] == "Agent Kit"
    assert app["user_api_scopes"] == ["sql"]
    experiment = {"experiment_id": "1000", "permission": "CAN_EDIT"}
    assert app["resources"] == [{"name": "experiment", "experiment": experiment}]
    assert workspace.experiments["1000"]["name"] == "/Users/ada@example.com/agent-kit"

    [deployment] = workspace.deployments
    assert deployment["source_code_path"] == FOLDER
    assert deployment["mode"] == "SNAPSHOT"
    assert deployment["env_vars"] == [
        {"name": "MLFLOW_TRACKING_URI", "value": "databricks"},
        {"name": "MLFLOW_EXPERIMENT_ID", "value_from": "experiment"},
        {"name": "AGENT_KIT_GIT_COMMIT", "value": COMMIT},
    ]
    assert f"curl {url}/api/invocations" in report
    assert f"databricks auth login --host {workspace.url}" in report


def test_the_files_arrive_as_files(workspace: Workspace, project: Path) -> None:
    run(settings_of(project))
    assert workspace.notebooks == {}
    for path in project.rglob("*.*"):
        name = path.relative_to(project).as_posix()
        assert workspace.files[f"{FOLDER}/{name}"] == path.read_bytes(), name


def test_files_deleted_here_are_deleted_there(workspace: Workspace, project: Path) -> None:
    settings = settings_of(project)
    run(settings)
    workspace.files[f"{FOLDER}/by_hand.txt"] = b"not ours"
    (project / "nbs" / "job.py").unlink()
    (project / "my_agent" / "agent.py").write_text("app = 2\n")
    run(settings)
    assert f"{FOLDER}/nbs/job.py" not in workspace.files
    assert workspace.files[f"{FOLDER}/my_agent/agent.py"] == b"app = 2\n"
    assert workspace.files[f"{FOLDER}/by_hand.txt"] == b"not ours"
    # deleted by hand in the meantime: no error
    (project / "nbs" / "agent.ipynb").unlink()
    del workspace.files[f"{FOLDER}/nbs/agent.ipynb"]
    run(settings)


def test_a_second_deployment_changes_nothing_but_the_source(
    workspace: Workspace, project: Path
) -> None:
    settings = settings_of(project)
    run(settings)
    before = dict(workspace.apps["my-agent"])
    run(settings)
    assert workspace.apps["my-agent"] == before
    assert workspace.called("POST", ".*/update") == []
    assert len(workspace.deployments) == 2
    assert list(workspace.experiments) == ["1000"]


def test_what_the_workspace_added_is_preserved(workspace: Workspace, project: Path) -> None:
    run(settings_of(project))
    added = {"name": "hub", "sql_warehouse": {"id": "12ab", "permission": "CAN_USE"}}
    app = workspace.apps["my-agent"]
    app["resources"].append(added)
    app |= {"user_api_scopes": ["files.files"], "budget_policy_id": "budget-1"}
    run(
        settings_of(
            project,
            "user_api_scopes = sql\nresources =\n    talk: genie_space space_id=1 name=g "
            "permission=CAN_RUN\n[agent]\nmodel = databricks:my-endpoint\n",
        )
    )
    app = workspace.apps["my-agent"]
    assert resource_names(workspace) == ["experiment", "hub", "talk", "serving-endpoint"]
    assert app["resources"][1] == added
    assert app["resources"][3]["serving_endpoint"] == {
        "name": "my-endpoint",
        "permission": "CAN_QUERY",
    }
    assert app["user_api_scopes"] == ["files.files", "sql"]
    assert app["budget_policy_id"] == "budget-1"
    [update] = workspace.called("POST", ".*/update")
    assert update.body["update_mask"] == "resources,user_api_scopes"


def test_a_resource_of_the_project_replaces_the_one_of_the_same_name(
    workspace: Workspace, project: Path
) -> None:
    run(settings_of(project, "[mlflow]\nexperiment_id = 7\n"))
    run(settings_of(project, "[mlflow]\nexperiment_id = 8\n"))
    [resource] = workspace.apps["my-agent"]["resources"]
    assert resource["experiment"]["experiment_id"] == "8"
    # the settings name none any more: the one the app has stays, and none is looked for
    run(settings_of(project))
    [resource] = workspace.apps["my-agent"]["resources"]
    assert resource["experiment"]["experiment_id"] == "8"
    assert workspace.called("GET", ".*/experiments/get-by-name") == []


def test_an_app_that_reads_no_experiment_gets_none(workspace: Workspace, project: Path) -> None:
    (project / "app.yaml").write_text("command: [agent-server]")
    run(settings_of(project))
    assert workspace.experiments == {}
    assert "resources" not in workspace.apps["my-agent"]


def test_a_stopped_app_is_started(workspace: Workspace, project: Path) -> None:
    settings = settings_of(project)
    run(settings)
    workspace.apps["my-agent"]["compute_status"] = {"state": "STOPPED", "message": "stopped"}
    run(settings)
    assert len(workspace.called("POST", ".*/start")) == 1


def test_the_settings_name_another_folder(workspace: Workspace, project: Path) -> None:
    run(settings_of(project, "workspace_path = /Workspace/Shared/agents/mine/\n"))
    assert workspace.deployments[0]["source_code_path"] == "/Workspace/Shared/agents/mine"
    assert "/Workspace/Shared/agents/mine/app.yaml" in workspace.files


def test_the_request_to_the_app_uses_oauth(
    workspace: Workspace, project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("DATABRICKS_TOKEN")
    monkeypatch.setenv("DATABRICKS_CLIENT_ID", CLIENT_ID)
    monkeypatch.setenv("DATABRICKS_CLIENT_SECRET", CLIENT_SECRET)
    _, report = run(settings_of(project))
    assert "The app answers." in report
    assert workspace.called("GET", "/deployed/my-agent/api/agent/info")[0].user == APP_USER


def test_the_app_refuses_a_personal_access_token(workspace: Workspace, project: Path) -> None:
    _, report = run(settings_of(project))
    assert "Not checked: The app redirects this request to its login page" in report
    assert ADA_TOKEN not in report


def test_a_dry_run_needs_no_network(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    remove_credentials(monkeypatch, project / "no-profiles")
    monkeypatch.setenv("AGENT_KIT_GIT_COMMIT", COMMIT)
    monkeypatch.setenv("DATABRICKS_HOST", "http://127.0.0.1:1")
    monkeypatch.setenv("DATABRICKS_TOKEN", ADA_TOKEN)
    url, report = run(settings_of(project, "[agent]\nmodel = databricks:e\n"), dry_run=True)
    assert url is None
    for part in [
        "my-agent",
        "/Workspace/Users/<you>/apps/my-agent",
        "6 files",
        COMMIT,
        "MLFLOW_EXPERIMENT_ID from the resource experiment",
        "the project's own file",
        "serving-endpoint",
    ]:
        assert part in report


# Errors


def test_a_failed_deployment_names_its_log(workspace: Workspace, project: Path) -> None:
    workspace.deployment_failure = "Error installing packages"
    with pytest.raises(DeployError, match=r"Error installing packages.*/my-agent/logz"):
        run(settings_of(project))


def test_a_missing_resource_is_reported_before_the_app_is_changed(
    workspace: Workspace, project: Path
) -> None:
    (project / "app.yaml").write_text(
        "command: [agent-server]\nenv: [{name: KEY, valueFrom: my-secret}]"
    )
    with pytest.raises(DeployError, match="reads KEY from the resource my-secret"):
        run(settings_of(project))
    assert workspace.apps == {}
    assert workspace.files == {}


def test_a_deleted_experiment_is_reported(workspace: Workspace, project: Path) -> None:
    workspace.experiments["1"] = {
        "experiment_id": "1",
        "name": "/Shared/mine",
        "lifecycle_stage": "deleted",
    }
    with pytest.raises(DeployError, match="experiment /Shared/mine is deleted"):
        run(settings_of(project, "[mlflow]\nexperiment = /Shared/mine\n"))


def test_an_app_without_a_name(project: Path) -> None:
    (project / "settings.ini").write_text("")
    with pytest.raises(DeployError, match=r"app_name.*\[deploy\]"):
        deploy(load_settings(project, {}), dry_run=True)


def test_no_credentials(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    remove_credentials(monkeypatch, project / "no-profiles")
    get_workspace_client.cache_clear()
    with pytest.raises(CredentialsError, match="databricks auth login"):
        run(settings_of(project))


@pytest.mark.parametrize(
    "line",
    [
        "hub",
        "hub: sql_warehouse",
        "hub: warehouse id=1",
        "hub: sql_warehouse id=1 permission=CAN_EAT",
        "hub: sql_warehouse id=1 size=2",
        "hub: name id=1",
    ],
)
def test_invalid_resources(line: str) -> None:
    with pytest.raises(DeployError, match=r"\[deploy\] resources: .*kinds: .*sql_warehouse"):
        parse_resource(line)


def test_the_files_of_an_interrupted_upload_are_deleted_by_the_next(
    workspace: Workspace, project: Path
) -> None:
    settings = settings_of(project)
    refused = f"{FOLDER}/nbs/job.py"
    workspace.refused_uploads.add(refused)
    with pytest.raises(
        DeployError, match=r"upload to .*my-agent failed: .*still runs the old version"
    ):
        run(settings)
    assert workspace.deployments == []
    assert f"{FOLDER}/my_agent/agent.py" in workspace.files
    (project / "my_agent" / "agent.py").unlink()
    workspace.refused_uploads.clear()
    run(settings)
    assert f"{FOLDER}/my_agent/agent.py" not in workspace.files
    assert refused in workspace.files


def test_an_invalid_list_of_uploads_is_reported(workspace: Workspace, project: Path) -> None:
    settings = settings_of(project)
    run(settings)
    for invalid in (b"{half", b"7"):
        workspace.files[f"{FOLDER}/.agent-kit-files.json"] = invalid
        with pytest.raises(DeployError, match=r"agent-kit-files\.json is not the list.*delete it"):
            run(settings)


def test_an_unknown_user(
    workspace: Workspace, project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DATABRICKS_TOKEN", "dapi" + "c" * 32)
    with pytest.raises(
        DeployError, match=r"asked who you are: .*known user; .*auth login"
    ) as raised:
        run(settings_of(project))
    assert "Config:" not in str(raised.value)


def test_compute_that_does_not_start_is_reported(workspace: Workspace, project: Path) -> None:
    settings = settings_of(project)
    run(settings)
    app = workspace.apps["my-agent"]
    app["compute_status"] = {"state": "ERROR", "message": "no capacity"}
    with pytest.raises(DeployError, match=r"cannot be prepared: .*no capacity; nothing was upl"):
        run(settings)


def test_a_possible_key_is_reported_before_it_is_uploaded(project: Path) -> None:
    (project / "my_agent" / "client.py").write_text(f"# mine\nTOKEN = {ADA_TOKEN!r}\n")
    (project / "deploy.key").write_text("a private one")
    _, report = run(settings_of(project), dry_run=True)
    assert "this looks like a key: my_agent/client.py:2; remove it" in report
    assert ADA_TOKEN not in report
    assert "(7 files" in report
    (project / "my_agent" / "client.py").unlink()
    assert "warning" not in run(settings_of(project), dry_run=True)[1]


# Asking a deployed app


def test_a_request_to_a_deployed_app(workspace: Workspace, project: Path) -> None:
    url, _ = run(settings_of(project))
    assert url
    headers = {"Authorization": "Bearer oauth-of-ada"}
    answer = ask_app(url, headers, "/api/invocations", {"input": "Hello"})
    assert answer["asked"] == {"input": "Hello"}
    with pytest.raises(LoginRequired, match="not personal access tokens"):
        ask_app(url, {"Authorization": f"Bearer {ADA_TOKEN}"})
    with pytest.raises(DeployError, match="404"):
        ask_app(url, headers, "/api/nothing")
    with pytest.raises(DeployError, match="does not answer"):
        ask_app("http://127.0.0.1:1", headers)


@pytest.mark.parametrize(
    ("status", "location"),
    [(200, None), (302, None), (302, "/elsewhere"), (200, "https://host/oidc/authorize")],
)
def test_responses_that_are_not_a_login_page(status: int, location: str | None) -> None:
    check_login(status, location)
