"""MLflow's store, experiment and version of a project, also from several processes at once."""

import json
import os
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from support.environment import require_command
from support.tracing_support import change, run_script, stored_trace

from agent_kit.settings import Settings, SettingsError
from agent_kit.tracing.mlflow_setup import git_commit, open_experiment, setup_mlflow, version_name

pytest_plugins = ["support.tracing_fixtures"]

NAME = "main.agents.tea"
START = """
import json, mlflow
model = setup_mlflow(register_model_to_uc={register})
seen = []
thread = threading.Thread(target=lambda: seen.append(mlflow.get_active_model_id()))
thread.start()
thread.join()
trace = start_trace("agent", inputs={{}})
trace.finish(outputs={{}})
close_tracing(60)
print(json.dumps([model.name, model.model_id, seen[0], trace.trace_id]))
"""


def set_up(
    settings: Settings, *, register: bool = True, tracing: str = "false", **environment: str
):
    """Run a process of the project that calls `setup_mlflow` and traces a request.

    Return the name and id of its version, the id in another thread, and the trace's id.
    """
    done = run_script(
        settings, START.format(register=register), AGENT_KIT_MLFLOW_TRACING=tracing, **environment
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def commit(project: Path) -> str:
    """Commit everything in a project's folder; return the commit."""
    git = [require_command("git"), "-C", str(project)]
    who = ["-c", "user.name=Ada", "-c", "user.email=ada@example.com"]
    for arguments in (["init", "-q"], [*who, "commit", "-q", "--allow-empty", "-m", "Work"]):
        subprocess.run([*git, *arguments], check=True)
    found = git_commit(project)
    assert found
    assert len(found) == 40
    return found


def test_workers_share_a_version_that_is_registered_once_per_commit(project: Settings) -> None:
    from mlflow import MlflowClient

    folder = project.project_dir
    (folder / "settings.ini").write_text(f"[mlflow]\nmodel_name = {NAME}\n")
    first = commit(folder)
    # Both find a store without tables, which MLflow itself creates without a lock.
    (folder / "mlflow.db").unlink()
    with ThreadPoolExecutor(2) as pool:
        one = pool.submit(set_up, project, tracing="true")
        other = pool.submit(set_up, project)
        workers = [one.result(), other.result()]
    assert {name for name, *_ in workers} == {f"local-git-{first[:8]}"}
    version = workers[0][1]
    assert all(ids[:2] == [version, version] for _, *ids in workers)

    second = commit(folder)
    name, newer, *_ = set_up(project)
    assert (name, newer != version) == (f"local-git-{second[:8]}", True)
    client = MlflowClient(project.mlflow.tracking_uri)
    registered = client.search_model_versions(f"name = '{NAME}'")
    assert sorted(each.tags["git_commit"] for each in registered) == sorted([first, second])
    assert client.get_logged_model(version).tags["mlflow.source.git.commit"] == first

    trace = stored_trace(project, workers[0][3])
    assert trace.info.trace_metadata["mlflow.modelId"] == version


def test_a_machine_without_git(project: Settings) -> None:
    name, version, seen, _ = set_up(project, register=False, PATH="/nonexistent")
    assert name == "local-no-git"
    assert seen == version


def test_the_commit_and_the_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert git_commit(tmp_path) is None
    assert version_name(None) == "local-no-git"
    first = commit(tmp_path)
    (tmp_path / "nbs").mkdir()
    assert git_commit(tmp_path / "nbs") == first
    monkeypatch.setenv("PATH", str(tmp_path))
    assert git_commit(tmp_path) is None
    monkeypatch.setenv("AGENT_KIT_GIT_COMMIT", "f" * 40)
    assert git_commit(tmp_path) == "f" * 40
    assert version_name("f" * 40) == "local-git-ffffffff"
    monkeypatch.setenv("DATABRICKS_APP_NAME", "tea")
    assert version_name("f" * 40) == "tea-git-ffffffff"


def test_registering_needs_a_name(tmp_path: Path) -> None:
    (tmp_path / "settings.ini").touch()
    with pytest.raises(SettingsError, match=r"model_name = catalog\.schema\.model"):
        setup_mlflow(register_model_to_uc=True)
    assert os.listdir(tmp_path) == ["settings.ini"], "something was created"


def test_an_experiment_is_created_once_and_found_by_name_or_id(settings: Settings) -> None:
    named = change(settings, experiment="tea")
    with ThreadPoolExecutor(4) as pool:
        ids = set(pool.map(lambda _: open_experiment(named), range(4)))
    assert len(ids) == 1
    (found,) = ids
    assert open_experiment(change(settings, experiment_id=found)) == found


def test_an_experiment_that_is_missing_or_deleted(settings: Settings) -> None:
    from mlflow import MlflowClient

    with pytest.raises(SettingsError, match="experiment_id 4711 does not exist"):
        open_experiment(change(settings, experiment_id="4711"))
    named = change(settings, experiment="tea")
    found = open_experiment(named)
    MlflowClient(settings.mlflow.tracking_uri).delete_experiment(found)
    with pytest.raises(SettingsError, match="experiment tea is deleted; restore it or name"):
        open_experiment(named)
    with pytest.raises(SettingsError, match=f"experiment_id {found} is deleted; restore it"):
        open_experiment(change(settings, experiment_id=found))
