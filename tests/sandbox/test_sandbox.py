"""The sandbox refuses attacks, runs Python, enforces its limits and leaves nothing behind."""

import asyncio
import json
import logging
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import uvloop
from support import sandbox_cases
from support.environment import PROJECT, require, require_command

from agent_kit import sandbox
from agent_kit.sandbox import (
    Limits,
    SandboxUnavailable,
    process,
    run_python,
    run_python_async,
    sandbox_engine,
)

LOCKED = ("landlock", "bubblewrap")
ENDLESS = "while True:\n    pass"
# setpriv has root's capabilities until it starts a program; `env` starts the next without them.
AS_USER = ("setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "env")


def usable(engine: str) -> str:
    """Skip the test where this machine lacks the engine."""
    if engine == "bubblewrap":
        require_command("bwrap")
    require(
        not sandbox._fault(engine), f"working sandbox engine {engine}: {sandbox._fault(engine)}"
    )
    return engine


def children(pid: int | None = None) -> set[int]:
    """The children of a process, including those that are dead but not reaped."""
    tasks = Path(f"/proc/{pid or os.getpid()}/task").glob("*/children")
    return {int(child) for task in tasks for child in task.read_text().split()}


def descendants(pid: int) -> set[int]:
    found = children(pid)
    return found.union(*map(descendants, found))


def alive(pids: set[int]) -> set[int]:
    return {pid for pid in pids if (status := _status(pid)) and "State:\tZ" not in status}


def wait_until(condition: Callable[[], object], seconds: float = 60) -> bool:
    """Wait for an event in another process."""
    deadline = time.monotonic() + seconds
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.01)
    return bool(condition())


@pytest.fixture(scope="module")
def world():
    with sandbox_cases.world() as built:
        yield built


@pytest.mark.parametrize("engine", [*LOCKED, "monty"])
@pytest.mark.parametrize("name", sandbox_cases.ATTACKS)
def test_an_attack_achieves_nothing(name, engine, world):
    assert sandbox_cases.attack(name, usable(engine), world)[1] == []


@pytest.mark.parametrize("engine", LOCKED)
@pytest.mark.parametrize("name", sandbox_cases.LANGUAGE)
def test_python_programs_run(name, engine):
    assert sandbox_cases.run_language_case(name, usable(engine)) == []


@pytest.mark.parametrize("engine", LOCKED)
def test_an_ordinary_user_is_as_safe(engine):
    usable(engine)
    if os.getuid():
        pytest.skip("the other tests run as an ordinary user already")
    python = _python_for_everyone()
    # Not in pytest's folder, which another run of pytest closes to other users.
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder)
        (copy / "support").mkdir()
        for path in Path(sandbox_cases.__file__).parent.glob("sandbox_*"):
            shutil.copy(path, copy / "support")
        shutil.copytree(Path(sandbox.__file__).parents[1], copy / "agent_kit")
        for path in [copy, *copy.rglob("*")]:
            path.chmod(path.stat().st_mode | 0o055)
        done = subprocess.run(
            [*AS_USER, python, "-B", str(copy / "support" / "sandbox_cases.py"), engine],
            env={"PYTHONPATH": str(copy), "PATH": os.environ["PATH"]},
            cwd="/",
            capture_output=True,
            text=True,
            timeout=120,
        )
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert report["failed"] == {}
    assert report["user"] == 65534
    assert report["cases"] >= 80


def _python_for_everyone() -> str:
    """A Python of at least 3.11 that an ordinary user can start."""
    require_command("setpriv")
    question = "import sys; sys.exit(sys.version_info < (3, 11))"
    for python in (os.path.realpath(sys.executable), "/usr/bin/python3", "/usr/local/bin/python3"):
        command = [*AS_USER, python, "-c", question]
        if subprocess.run(command, capture_output=True, cwd="/").returncode == 0:
            return python
    require(None, "Python 3.11 that an ordinary user can start")
    raise AssertionError


def test_each_limit_ends_the_program(each_engine):
    engine = each_engine
    short = Limits(cpu_seconds=1, wall_seconds=1.5)
    computing = run_python(ENDLESS, Limits(cpu_seconds=1, wall_seconds=20), engine=engine)
    assert computing.timed_out
    assert "computed for more than 1 s" in computing.text or engine == "monty"
    sleeping = run_python("print('first')\nimport time\ntime.sleep(60)", short, engine=engine)
    assert sleeping.timed_out
    assert sleeping.seconds < 15
    assert "first" in sleeping.text
    flooding = run_python("while True:\n    print('x' * 1000)", engine=engine)
    assert flooding.truncated
    assert len(flooding.stdout) == Limits().output_bytes
    assert "65,536 bytes" in flooding.text
    hungry = run_python("rows = []\nwhile True:\n    rows.append('x' * 10_000_000)", engine=engine)
    assert "MemoryError" in hungry.stderr
    assert hungry.exit_code == 1


@pytest.fixture(params=[*LOCKED, "monty"])
def each_engine(request) -> str:
    return usable(request.param)


BOMBS = {
    "one gigabyte of output": ("import sys\nsys.stdout.buffer.write(b'x' * 10**8)", "truncated"),
    "errors flood": ("import sys\nwhile True:\n    print('x' * 999, file=sys.stderr)", "truncated"),
    "stubborn": ("import signal as s\ns.signal(s.SIGXCPU, s.SIG_IGN)\nwhile True: pass", ""),
    "closed output": ("import os, time\nos.close(1)\nos.close(2)\ntime.sleep(60)", "timed_out"),
    "slow expression": ("import re\nre.match(r'(a+)+$', 'a' * 40 + 'b')", "timed_out"),
    "huge number": ("print(len(str(9 ** 9 ** 7)))", ""),
    "deep recursion": ("def f(): f()\nf()", ""),
    "deep nesting": ("eval('(' * 100_000)", ""),
    "broken memory": ("import ctypes\nctypes.string_at(0)", ""),
    "huge allocation": ("bytearray(10 ** 12)", ""),
    "many files": ("import os\nwhile True: os.pipe()", ""),
    "fork bomb": ("import os\nwhile True: os.fork()", ""),
    "abort": ("import os\nos.abort()", ""),
}  # fmt: skip


@pytest.mark.parametrize("name", BOMBS)
def test_a_bomb_affects_only_itself(name):
    program, flag = BOMBS[name]
    before = children()
    limits = Limits(cpu_seconds=1, wall_seconds=4)
    execution = run_python(program, limits, engine=usable("landlock"))
    assert execution.exit_code != 0
    assert execution.seconds < 40
    assert not flag or getattr(execution, flag)
    assert len(execution.text) < 70_000
    assert children() <= before


LOOK_AROUND = """
import os
for path in ("/etc/passwd", "/etc/hostname", "/proc/1", "/proc/self", "/home", "/var", {found!r}):
    try:
        print("sees", path, os.stat(path).st_size)
    except OSError:
        pass
for number in range(1, 60_000):
    try:
        os.sched_getaffinity(number)
        print("sees process", number)
    except OSError:
        pass
print(os.uname().nodename)
"""


@pytest.mark.parametrize("engine", LOCKED)
def test_a_program_sees_no_files_and_no_processes(engine, tmp_path):
    usable(engine)
    require(not sandbox._namespace_fault(), f"user namespaces: {sandbox._namespace_fault()}")
    (tmp_path / "found").write_text("x")
    program = LOOK_AROUND.format(found=str(tmp_path / "found"))
    lines = run_python(program, engine=engine).stdout.splitlines()
    assert lines.pop() == "sandbox"
    assert set(lines) <= {"sees process 1", "sees process 2"}


@pytest.mark.parametrize("engine", LOCKED)
@pytest.mark.parametrize("code", [0, 3, 200, 255])
def test_the_exit_code_of_a_program_is_exact(engine, code):
    assert run_python(f"import sys; sys.exit({code})", engine=usable(engine)).exit_code == code


def test_without_namespaces_a_program_still_runs_and_the_status_tells(
    fresh_engines, monkeypatch, caplog
):
    usable("landlock")
    for cache in (sandbox._fault, sandbox.sandbox_engine, sandbox._namespace_fault):
        cache.cache_clear()
    monkeypatch.setattr(shutil, "which", lambda name: None)
    monkeypatch.setattr(process, "_view", lambda interpreter: (["/"], ["/no such folder"], []))
    status = sandbox.sandbox_status()
    assert (status["engine"], status["isolated"]) == ("landlock", False)
    assert "No such file" in status["note"]
    assert "max_user_namespaces" in status["note"]
    assert status["note"] in caplog.text
    assert run_python("print(1)").text == "1"


def test_the_status_of_a_sandbox_that_hides_everything():
    require(not sandbox._namespace_fault(), f"user namespaces: {sandbox._namespace_fault()}")
    status = sandbox.sandbox_status()
    assert status == {"engine": sandbox_engine(), "isolated": True, "note": ""}


def test_output_up_to_the_limit_is_complete():
    limits = Limits(output_bytes=1000)
    exact = run_python("print('x' * 999)", limits)
    assert (len(exact.stdout), exact.truncated) == (1000, False)
    above = run_python("print('é' * 500)", limits)
    assert above.truncated
    assert above.stdout.startswith("ééé")


def test_the_traceback_of_a_failure_shows_its_line():
    execution = run_python("def f(x):\n    return x / 0\n\nprint('before')\nf(1)")
    assert execution.stdout == "before\n"
    assert 'File "main.py", line 5, in <module>\n    f(1)' in execution.stderr
    assert "line 2, in f\n    return x / 0" in execution.stderr
    assert execution.text.endswith("ZeroDivisionError: division by zero")
    assert "lock_and_run" not in execution.stderr
    syntax = run_python("x = 1\nprint(x")
    assert 'File "main.py", line 2' in syntax.stderr
    assert "SyntaxError" in syntax.stderr


def test_the_text_is_never_empty():
    assert "print()" in run_python("1 + 1").text
    assert run_python("import sys\nsys.exit('gone')").text == "gone"
    both = run_python("import sys\nprint('one')\nprint('two', file=sys.stderr)")
    assert both.text == "one\ntwo"


def test_a_lone_surrogate_is_escaped():
    assert run_python("print(ascii('\ud800'))").stdout == "'\\ud800'\n"
    assert run_python("print(chr(0xd800))").stdout == "\\ud800\n"


def test_many_threads_at_once():
    usable("landlock")
    before, results = children(), list[str]()
    work = [
        threading.Thread(target=lambda n=n: results.append(run_python(f"print({n})").stdout))
        for n in range(12)
    ]
    for thread in work:
        thread.start()
    for thread in work:
        thread.join()
    assert sorted(map(int, results)) == list(range(12))
    assert children() <= before


@pytest.mark.parametrize("loop_factory", [asyncio.new_event_loop, uvloop.new_event_loop])
@pytest.mark.parametrize("engine", ["landlock", "monty"])
def test_the_event_loop_stays_responsive(loop_factory, engine):
    usable(engine)

    async def main() -> tuple[list, int]:
        ticks = 0

        async def tick() -> None:
            nonlocal ticks
            while True:
                await asyncio.sleep(0.01)
                ticks += 1

        ticking = asyncio.create_task(tick())
        programs = [f"import time\ntime.sleep(0.3)\nprint({n})" for n in range(3)]
        runs = [run_python_async(program, engine=engine) for program in programs]
        executions = await asyncio.gather(*runs)
        ticking.cancel()
        return [execution.stdout for execution in executions], ticks

    with asyncio.Runner(loop_factory=loop_factory) as runner:
        printed, ticks = runner.run(main())
    assert printed == ["0\n", "1\n", "2\n"]
    assert ticks >= 10


@pytest.mark.parametrize("engine", [*LOCKED, "monty"])
def test_cancelling_kills_the_child_at_once(engine):
    usable(engine)

    async def main() -> float:
        before = children()
        task = asyncio.create_task(run_python_async(ENDLESS, engine=engine))
        await asyncio.to_thread(wait_until, lambda: children() != before)
        started = time.monotonic()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert wait_until(lambda: not alive(children() - before))
        assert engine == "monty" or children() <= before  # Monty reaps a little later
        return time.monotonic() - started

    assert asyncio.run(main()) < 5


def test_the_wall_clock_also_ends_an_asynchronous_run():
    limits = Limits(wall_seconds=0.5)
    execution = asyncio.run(run_python_async("import time\ntime.sleep(60)", limits))
    assert execution.timed_out
    assert execution.seconds < 5


def test_runs_wait_in_a_queue(monkeypatch):
    usable("landlock")
    run_python("print(0)")  # the first use tests the engine in another child
    monkeypatch.setattr(sandbox, "_queue", sandbox._Queue(1))

    async def main() -> None:
        first = asyncio.create_task(run_python_async("import time\ntime.sleep(30)"))
        await asyncio.to_thread(wait_until, children)
        waiting = [asyncio.create_task(run_python_async("print(1)")) for _ in range(3)]
        _, pending = await asyncio.wait(waiting, timeout=0.3)
        assert len(pending) == 3
        waiting[0].cancel()
        first.cancel()
        await asyncio.wait([first, *waiting])
        assert waiting[0].cancelled()
        assert [task.result().stdout for task in waiting[1:]] == ["1\n", "1\n"]

    asyncio.run(main())
    assert run_python("print(2)").stdout == "2\n"  # its place was released


def test_nothing_is_left_behind():
    usable("landlock")
    run_python("print(1)")
    before, files = children(), len(os.listdir("/proc/self/fd"))

    async def cancelled() -> None:
        for delay in (0, 0.005, 0.02):
            task = asyncio.create_task(run_python_async(ENDLESS))
            await asyncio.sleep(delay)
            task.cancel()
            await asyncio.wait([task])

    for _ in range(5):
        run_python("print(1)")
        run_python("raise ValueError", Limits(wall_seconds=5))
    asyncio.run(cancelled())
    assert children() <= before
    assert len(os.listdir("/proc/self/fd")) <= files


def test_the_child_dies_with_its_parent():
    usable("landlock")
    program = (
        "from agent_kit.sandbox import Limits, run_python\n"
        "long = Limits(wall_seconds=200)\n"
        "run_python('import time; time.sleep(200)', long, engine='landlock')"
    )
    parent = subprocess.Popen([sys.executable, "-c", program], cwd=PROJECT)
    try:
        family: set[int] = set()

        def program_runs() -> bool:
            family.update(descendants(parent.pid))
            return any(_is_locked(pid) for pid in family)

        assert wait_until(program_runs)
    finally:
        parent.kill()
        parent.wait()
    assert wait_until(lambda: not alive(family))


def _status(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/status").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return ""


def _is_locked(pid: int) -> bool:
    return "Seccomp:\t2" in _status(pid)


@pytest.fixture
def fresh_engines():
    """Test the engines again, now and after the test."""
    caches = (sandbox._fault, sandbox.sandbox_engine, sandbox._namespace_fault)
    for cache in caches:
        cache.cache_clear()
    yield
    for cache in caches:
        cache.cache_clear()


@pytest.mark.parametrize(
    "broken",
    [b"", b"\x06\x00\x00\x00\x00\x00\xff\x7f" * 2],
    ids=["no filter", "a filter that allows everything"],
)
def test_an_engine_that_restricts_nothing_is_not_used(broken, fresh_engines, monkeypatch, caplog):
    usable("landlock")
    sandbox._fault.cache_clear()
    monkeypatch.setattr(process, "system_call_filter", lambda: broken)
    with caplog.at_level(logging.WARNING):
        assert sandbox_engine() == "monty"
    assert "fallback interpreter" in caplog.text
    with pytest.raises(SandboxUnavailable, match="landlock cannot be used"):
        run_python("print(1)", engine="landlock")
    assert run_python("print(sum(range(5)))").text == "10"


def test_without_landlock_the_program_is_not_run(fresh_engines, monkeypatch):
    usable("landlock")
    harmless = compile(
        "def lock_and_run(policy, source):\n    raise OSError('no lock')", "x", "exec"
    )
    monkeypatch.setattr(process, "_child_code", lambda: harmless)
    with pytest.raises(SandboxUnavailable, match="OSError: no lock"):
        sandbox._run("landlock", "print('ran')", Limits())


def test_with_no_engine_nothing_is_run(monkeypatch, fresh_engines):
    monkeypatch.setattr(sandbox, "_fault", lambda engine: f"no {engine} today")
    with pytest.raises(SandboxUnavailable, match=r"not run\. .*no landlock today.*no monty today"):
        run_python("print(1)")
    with pytest.raises(SandboxUnavailable):
        asyncio.run(run_python_async("print(1)"))


def test_off_linux_the_fallback_is_used(monkeypatch, fresh_engines):
    monkeypatch.setattr(sys, "platform", "darwin")
    assert sandbox._fault("landlock") == "it needs Linux"


@pytest.mark.parametrize(
    "program",
    ["import statistics", "class A(list):\n    pass", "import sys\nsys.exit()", "import enum"],
)
def test_the_fallback_reports_what_it_does_not_support(program):
    execution = run_python(program, engine="monty")
    assert execution.exit_code == 1
    assert "unsupported in the fallback interpreter" in execution.text


def test_the_fallback_reports_errors_of_the_program():
    execution = run_python("print('one')\n1 / 0", engine="monty")
    assert execution.text.endswith("ZeroDivisionError: division by zero")
    assert 'File "main.py", line 2' in execution.stderr
    missing = run_python("import numpy", engine="monty")
    assert "unsupported" not in missing.text


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: run_python(b"print(1)"), TypeError, "code must be a str, not bytes"),
        (lambda: run_python("1", engine="docker"), ValueError, "use one of bubblewrap, landlock"),
        (lambda: Limits(cpu_seconds=0), ValueError, "cpu_seconds must be more than 0"),
    ],
)
def test_wrong_arguments_raise(call, error, message):
    with pytest.raises(error, match=message):
        call()
