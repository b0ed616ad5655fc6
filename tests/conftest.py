"""Isolates each test: its own folder, a clean environment, no network and no leaks."""

import contextlib
import os
import sys
from collections.abc import Generator, Iterator
from pathlib import Path

import pytest
from support.guards import NetworkGuard, clean_environment, drop_broken_coverage, no_leaks

clean_environment()
_network = NetworkGuard()


@pytest.hookimpl(wrapper=True, trylast=True)
def pytest_runtestloop(session: pytest.Session) -> Generator[None, object, object]:
    """Delete incomplete coverage files before coverage combines them."""
    ended = yield
    if not hasattr(session.config, "workerinput"):
        drop_broken_coverage(session.config.rootpath)
    return ended


@pytest.fixture(scope="module", autouse=True)
def module_folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Run the shared fixtures of a module in a folder of their own."""
    with contextlib.chdir(tmp_path_factory.mktemp("module")):
        yield


@pytest.fixture(autouse=True)
def isolated(module_folder: None, tmp_path: Path) -> Iterator[None]:
    """Run the test in its own folder; restore its environment and imports afterwards."""
    from agent_kit.settings import get_settings

    environment, import_path = dict(os.environ), list(sys.path)
    get_settings.cache_clear()
    with contextlib.chdir(tmp_path):
        yield
    os.environ.clear()
    os.environ.update(environment)
    sys.path[:] = import_path
    for name, module in list(sys.modules.items()):
        if (getattr(module, "__file__", None) or "").startswith(f"{tmp_path}{os.sep}"):
            del sys.modules[name]
    get_settings.cache_clear()


@pytest.fixture
def streams_open_late(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let an immediate failure precede the opening of its stream, even on a busy machine."""
    for module in ("endpoint", "websocket"):
        monkeypatch.setattr(f"agent_kit.server.{module}.OPEN_AFTER_SECONDS", 60)


@pytest.fixture(autouse=True)
def check_leaks(isolated: None) -> Iterator[None]:
    """Fail a test that leaks threads, tasks or processes, or that accesses the network."""
    _network.refused.clear()
    with no_leaks():
        yield
    assert not _network.refused, f"tried the network: {', '.join(_network.refused)}"
