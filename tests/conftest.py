"""Each test alone: its own folder, no developer's settings, no network, nothing left behind."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from guards import NetworkGuard, clean_environment, no_leaks

clean_environment()
_network = NetworkGuard()


@pytest.fixture(autouse=True)
def isolated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Run the test in a folder of its own and put the environment back afterwards."""
    from agent_kit.settings import get_settings

    environment = dict(os.environ)
    get_settings.cache_clear()
    with monkeypatch.context() as here:
        here.chdir(tmp_path)
        yield
    os.environ.clear()
    os.environ.update(environment)
    get_settings.cache_clear()


@pytest.fixture(autouse=True)
def leaves_nothing_behind(isolated: None) -> Iterator[None]:
    """Fail a test that leaks threads, tasks or processes, or that tries the network."""
    _network.refused.clear()
    with no_leaks():
        yield
    assert not _network.refused, f"tried the network: {', '.join(_network.refused)}"
