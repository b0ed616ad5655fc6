"""A real PostgreSQL server for the tests: Debian's package, in a temporary folder.

    with PostgresServer() as server:
        url = server.new_database()

It listens only on a socket in its folder, and does not protect its data from a power cut.
"""

import itertools
import os
import pwd
import shutil
import subprocess
import tempfile
from pathlib import Path
from types import TracebackType
from typing import Any

from support.environment import require

USER = "agent_kit"
HASTY = ("fsync=off", "full_page_writes=off", "listen_addresses=''", "max_connections=200")


def _commands() -> Path:
    """The folder of PostgreSQL's commands, which Debian does not add to the path."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
    on_path = shutil.which("initdb")
    require(found or on_path, "PostgreSQL")
    return found[-1].parent if found else Path(str(on_path)).parent


class PostgresServer:
    """A server of its own, as an ordinary user: PostgreSQL refuses to run as root."""

    def __init__(self) -> None:
        self._commands = _commands()
        self._folder = Path(tempfile.mkdtemp(prefix="agent-kit-postgres-"))
        self._numbers = itertools.count(1)
        self._log = self._folder / "commands.log"
        self._user: dict[str, Any] = {}

    def __enter__(self) -> "PostgresServer":
        if os.geteuid() == 0:
            nobody = pwd.getpwnam("nobody")
            os.chown(self._folder, nobody.pw_uid, nobody.pw_gid)
            self._user = {"user": nobody.pw_uid, "group": nobody.pw_gid, "extra_groups": []}
        self._run("initdb", "-U", USER, "-A", "trust", "-N", "-E", "UTF8")
        options = " ".join(f"-c {setting}" for setting in HASTY)
        self._run(
            "pg_ctl",
            "start",
            "-w",
            "-o",
            f"-k {self._folder} {options}",
            "-l",
            self._folder / "server.log",
        )
        return self

    def _run(self, command: str, *arguments: str | Path) -> None:
        # The output goes to a file: the server inherits it and would hold a pipe open.
        with self._log.open("ab") as log:
            subprocess.run(
                [self._commands / command, "-D", self._folder / "data", *arguments],
                cwd=self._folder,
                check=True,
                stdout=log,
                stderr=log,
                **self._user,
            )

    def new_database(self) -> str:
        """Make an empty database; return its URL."""
        import psycopg

        name = f"test_{next(self._numbers)}"
        place = f"host={self._folder} user={USER} dbname=postgres connect_timeout=30"
        with psycopg.connect(place, autocommit=True) as connection:
            connection.execute(f"CREATE DATABASE {name}")
        return f"postgresql://{USER}@/{name}?host={self._folder}"

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._run("pg_ctl", "stop", "-m", "immediate")
        shutil.rmtree(self._folder, ignore_errors=True)
