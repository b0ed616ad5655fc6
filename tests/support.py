"""What several test modules share."""

import os
import shutil
from pathlib import Path

import pytest

PROJECT = Path(__file__).resolve().parent.parent
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
