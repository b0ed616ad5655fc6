"""Fixtures of the tests that store traces in MLflow: a project with a prepared store."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from agent_kit.settings import Settings, load_settings
from agent_kit.tracing import close_tracing
from agent_kit.tracing.drain import DrainSupervisor
from agent_kit.tracing.mlflow_setup import open_experiment


@pytest.fixture(scope="session")
def mlflow_database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An empty MLflow store with all its tables, whose creation takes seconds."""
    project = tmp_path_factory.mktemp("mlflow")
    open_experiment(load_settings(project, environ={}))
    return project / "mlflow.db"


@pytest.fixture
def project(tmp_path: Path, mlflow_database: Path) -> Iterator[Settings]:
    """A new project, whose drain must have ended at the end."""
    shutil.copy(mlflow_database, tmp_path)
    (tmp_path / "settings.ini").touch()
    yield load_settings(tmp_path, environ={})
    assert close_tracing(timeout=60)


@pytest.fixture
def settings(project: Settings, monkeypatch: pytest.MonkeyPatch) -> Settings:
    """A new project without a drain; `stored_trace` stores its spool in this process."""
    monkeypatch.setattr(DrainSupervisor, "check", lambda self: None)
    return project
