"""The project's folder, and the programs and ports of the machine that runs the tests."""

import itertools
import os
import shutil
import socket
from contextlib import suppress
from pathlib import Path

import pytest

PROJECT = Path(__file__).resolve().parents[2]
REQUIRE_ALL = os.environ.get("AGENT_KIT_REQUIRE_ALL") == "1"


def require(present: object, what: str) -> None:
    """Skip the test where the machine lacks `what`; fail instead where everything is required."""
    if present:
        return
    message = f"this machine has no {what}; `.ci/run` installs it"
    if REQUIRE_ALL:
        pytest.fail(message)
    pytest.skip(message)


def require_command(*names: str) -> str:
    """Return the path of the first installed command of `names`."""
    found = next((path for name in names if (path := shutil.which(name))), None)
    require(found, " or ".join(names))
    assert found
    return found


def unmeasured() -> dict[str, str]:
    """Return an environment without coverage, which costs a third of a process's time.

    For processes that run the kit's code without checking it, or that do not run it.
    """
    return {name: value for name, value in os.environ.items() if not name.startswith("COVERAGE_")}


# Below the ephemeral ports of the kernel, so that no other process takes one of these between its
# choice and its use; the first port differs between concurrent processes.
_ports = itertools.count(10_000 + os.getpid() * 97 % 20_000)


def free_port() -> int:
    """Return an unused port of this machine."""
    for port in _ports:
        with suppress(OSError), socket.create_server(("127.0.0.1", port)):
            return port
    raise AssertionError
