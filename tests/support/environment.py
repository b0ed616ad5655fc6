"""What tests know of the project and of the machine they run on."""

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
    """The environment of a process of which no coverage is taken, which costs a third of its time.

    For what runs the kit's code without checking what it does, and for what does not run it.
    """
    return {name: value for name, value in os.environ.items() if not name.startswith("COVERAGE_")}


# Below the ports that the kernel gives to whoever asks for any, so that none of these is taken by
# chance between its choice and its use; where they begin differs, for processes side by side.
_ports = itertools.count(10_000 + os.getpid() * 97 % 20_000)


def free_port() -> int:
    """A port of this machine that nobody uses."""
    for port in _ports:
        with suppress(OSError), socket.create_server(("127.0.0.1", port)):
            return port
    raise AssertionError
