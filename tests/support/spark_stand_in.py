"""A stand-in for databricks-connect, whose sessions run programs in the sandbox of this machine.

It implements what the kit calls, as pyspark 4 does: tags belong to the thread that added them, a
session that the server has closed refuses every statement, and interrupting a tag ends its
operations with an error.
"""

import importlib.machinery
import sys
import threading
from types import ModuleType

import pytest

from agent_kit.sandbox import run_python


class SparkConnectGrpcException(Exception):
    """An error of the server, as pyspark names it."""


class Spark:
    """The server: the state that tests read and prepare."""

    def __init__(self) -> None:
        self.sessions: list[Session] = []
        self.programs: list[str] = []  # of the statements that were not refused
        self.refusal: str | None = None  # of every statement
        self.unreachable: str | None = None
        self.closed_message = ""
        self.closes_new_sessions = False
        self.hangs = False  # programs run until they are interrupted
        self.running = threading.Event()
        self.interrupted: dict[str, threading.Event] = {}

    def get_session(self) -> "Session":
        """Return the session of this process, a new one if it is stopped."""
        if self.unreachable:
            raise SparkConnectGrpcException(self.unreachable)
        if not self.sessions or self.sessions[-1].is_stopped:
            self.sessions.append(Session(self, closed=self.closes_new_sessions))
        return self.sessions[-1]


class Session:
    """A session of the client."""

    def __init__(self, spark: Spark, *, closed: bool) -> None:
        self.spark, self.closed = spark, closed
        self.is_stopped = False
        self._thread = threading.local()

    def addTag(self, tag: str) -> None:
        self._thread.tag = tag
        self.spark.interrupted[tag] = threading.Event()

    def interruptTag(self, tag: str) -> list[str]:
        self.spark.interrupted[tag].set()
        return [tag]

    def stop(self) -> None:
        self.is_stopped = True

    def sql(self, statement: str, args: dict[str, str]) -> "Result":
        assert statement == "SELECT system.ai.python_exec(:code)"
        if refusal := self.spark.closed_message if self.closed else self.spark.refusal:
            raise SparkConnectGrpcException(refusal)
        return Result(self.spark, args["code"], self._thread.tag)


class Result:
    """A statement that is run when its rows are read."""

    def __init__(self, spark: Spark, code: str, tag: str) -> None:
        self.spark, self.code, self.tag = spark, code, tag

    def first(self) -> list[str]:
        self.spark.programs.append(self.code)
        self.spark.running.set()
        if self.spark.hangs and self.spark.interrupted[self.tag].wait(60):
            raise SparkConnectGrpcException("[OPERATION_CANCELED] Operation has been canceled.")
        done = run_python(self.code)
        if done.exit_code:
            raise SparkConnectGrpcException(f"[UDF_USER_CODE_ERROR.GENERIC] failed: {done.stderr}")
        return [done.stdout]


def install_spark(monkeypatch: pytest.MonkeyPatch) -> Spark:
    """Let `databricks.connect` be the stand-in, and return its server."""
    spark = Spark()

    class Builder:
        def serverless(self) -> "Builder":
            return self

        def getOrCreate(self) -> Session:
            return spark.get_session()

    module = ModuleType("databricks.connect")
    module.__spec__ = importlib.machinery.ModuleSpec("databricks.connect", None)
    module.DatabricksSession = type("DatabricksSession", (), {"builder": Builder()})  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "databricks.connect", module)
    return spark
