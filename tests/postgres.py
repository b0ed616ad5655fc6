"""A PostgreSQL server of the tests' own, on a socket in a temporary folder."""

import contextlib
import os
import pwd
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from support import require

PATIENCE = 60


def _program(name: str) -> Path:
    found = shutil.which(name)
    places = sorted(Path("/usr/lib/postgresql").glob(f"*/bin/{name}"))
    path = Path(found) if found else places[-1] if places else None
    require(path, "PostgreSQL server")
    assert path
    return path


def _ordinary_user() -> str | None:
    """The user as whom the server runs: PostgreSQL refuses to run as root."""
    if os.getuid():
        return None
    names = {entry.pw_name for entry in pwd.getpwall()}
    return "postgres" if "postgres" in names else "nobody"


@contextlib.contextmanager
def postgres() -> Iterator[str]:
    """The URL of an empty database."""
    initdb, server = _program("initdb"), _program("postgres")
    user = _ordinary_user()
    with tempfile.TemporaryDirectory(prefix="pg-") as name:
        folder = Path(name)
        if user:
            shutil.chown(folder, user)
        data = folder / "data"
        options = ["-A", "trust", "-U", "tests", "--no-sync", "-E", "UTF8", "--locale=C"]
        made = subprocess.run(
            [initdb, "-D", data, *options], user=user, capture_output=True, text=True, cwd=folder
        )
        assert made.returncode == 0, made.stderr
        settings = {"listen_addresses": "", "unix_socket_directories": name, "fsync": "off"}
        flags = [f"--{key}={value}" for key, value in settings.items()]
        log = (folder / "log").open("w")
        process = subprocess.Popen(
            [server, "-D", data, *flags], user=user, cwd=folder, stdout=log, stderr=log
        )
        try:
            deadline = time.monotonic() + PATIENCE
            while "ready to accept connections" not in (folder / "log").read_text():
                assert process.poll() is None, (folder / "log").read_text()
                assert time.monotonic() < deadline, "PostgreSQL did not start"
                time.sleep(0.05)
            yield f"postgresql://tests@/postgres?host={name}"
        finally:
            process.terminate()
            process.wait(PATIENCE)
            log.close()
