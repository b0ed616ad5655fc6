"""Each test alone: its own folder, no developer's settings, no network, nothing left behind."""

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
    """Before the coverage is added up, drop what cannot be."""
    ended = yield
    if not hasattr(session.config, "workerinput"):
        drop_broken_coverage(session.config.rootpath)
    return ended


@pytest.fixture(scope="module", autouse=True)
def module_folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Let what the tests of a module share leave its files in a folder of their own."""
    with contextlib.chdir(tmp_path_factory.mktemp("module")):
        yield


@pytest.fixture(autouse=True)
def isolated(module_folder: None, tmp_path: Path) -> Iterator[None]:
    """Run the test in a folder of its own, and forget what it set and imported there."""
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
    """Let what fails at once fail before its stream opens, however busy the machine is."""
    for module in ("endpoint", "websocket"):
        monkeypatch.setattr(f"agent_kit.server.{module}.OPEN_AFTER_SECONDS", 60)


@pytest.fixture(autouse=True)
def leaves_nothing_behind(isolated: None) -> Iterator[None]:
    """Fail a test that leaks threads, tasks or processes, or that tries the network."""
    _network.refused.clear()
    with no_leaks():
        yield
    assert not _network.refused, f"tried the network: {', '.join(_network.refused)}"
