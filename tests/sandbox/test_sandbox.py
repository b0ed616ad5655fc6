"""The sandbox holds, speaks Python, keeps its limits and leaves nothing behind."""

import asyncio
import json
import logging
import os
import platform
import re
import shutil
import subprocess
import sys
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
    run_python,
    run_python_async,
    sandbox_engine,
)
from agent_kit.sandbox import process as jail
from agent_kit.sandbox import syscalls as seccomp
from agent_kit.sandbox.child import decode, run

LOCKED = ("landlock", "bubblewrap")
ENDLESS = "while True:\n    pass"
# setpriv still has root's powers when it starts a program; `env` starts the next without them
AS_NOBODY = ("setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "env")


def usable(engine: str) -> str:
    """Skip the test where this machine lacks the engine."""
    if engine == "bubblewrap":
        require_command("bwrap")
    require(
        not sandbox._fault(engine), f"working sandbox engine {engine}: {sandbox._fault(engine)}"
    )
    return engine


def children(pid: int | None = None) -> set[int]:
    """The children of a process, those that are dead and not yet reaped included."""
    tasks = Path(f"/proc/{pid or os.getpid()}/task").glob("*/children")
    return {int(child) for task in tasks for child in task.read_text().split()}


def alive(pids: set[int]) -> set[int]:
    return {pid for pid in pids if (status := _status(pid)) and "State:\tZ" not in status}


def until(condition: Callable[[], object], seconds: float = 60) -> bool:
    """Wait for something that happens in another process."""
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
def test_python_is_spoken(name, engine):
    assert sandbox_cases.speak(name, usable(engine)) == []


@pytest.mark.parametrize("engine", LOCKED)
def test_an_ordinary_user_is_as_safe(engine, tmp_path):
    usable(engine)
    if os.getuid():
        pytest.skip("the other tests run as an ordinary user already")
    python = _python_for_everyone()
    project = Path(sandbox_cases.__file__).parent
    copy = tmp_path / "copy"
    shutil.copytree(project, copy / "support", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copytree(Path(sandbox.__file__).parents[1], copy / "agent_kit")
    for folder in [*tmp_path.parents[:-2], tmp_path, *copy.rglob("*")]:
        folder.chmod(folder.stat().st_mode | 0o055)
    done = subprocess.run(
        [*AS_NOBODY, python, "-B", str(copy / "support" / "sandbox_cases.py"), engine],
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
        command = [*AS_NOBODY, python, "-c", question]
        if subprocess.run(command, capture_output=True, cwd="/").returncode == 0:
            return python
    require(None, "Python 3.11 that an ordinary user can start")
    raise AssertionError


def test_each_limit_ends_the_program(subtests_engine):
    engine = subtests_engine
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
    hungry = run_python("kept = []\nwhile True:\n    kept.append('x' * 10_000_000)", engine=engine)
    assert "MemoryError" in hungry.stderr
    assert hungry.exit_code == 1


@pytest.fixture(params=[*LOCKED, "monty"])
def subtests_engine(request) -> str:
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
def test_a_bomb_harms_only_itself(name):
    program, flag = BOMBS[name]
    before = children()
    limits = Limits(cpu_seconds=1, wall_seconds=4)
    execution = run_python(program, limits, engine=usable("landlock"))
    assert execution.exit_code != 0
    assert execution.seconds < 40
    assert not flag or getattr(execution, flag)
    assert len(execution.text) < 70_000
    assert children() <= before


def test_output_up_to_the_limit_is_whole():
    limits = Limits(output_bytes=1000)
    exact = run_python("print('x' * 999)", limits)
    assert (len(exact.stdout), exact.truncated) == (1000, False)
    above = run_python("print('é' * 500)", limits)
    assert above.truncated
    assert above.stdout.startswith("ééé")


def test_a_failure_is_told_with_its_line():
    execution = run_python("def f(x):\n    return x / 0\n\nprint('before')\nf(1)")
    assert execution.stdout == "before\n"
    assert 'File "main.py", line 5, in <module>\n    f(1)' in execution.stderr
    assert "line 2, in f\n    return x / 0" in execution.stderr
    assert execution.text.endswith("ZeroDivisionError: division by zero")
    assert "lockdown" not in execution.stderr
    syntax = run_python("x = 1\nprint(x")
    assert 'File "main.py", line 2' in syntax.stderr
    assert "SyntaxError" in syntax.stderr


def test_the_text_is_never_empty():
    assert "print()" in run_python("1 + 1").text
    assert run_python("import sys\nsys.exit('gone')").text == "gone"
    both = run_python("import sys\nprint('one')\nprint('two', file=sys.stderr)")
    assert both.text == "one\ntwo"


def test_half_a_character_does_not_break_it():
    assert run_python("print(ascii('\ud800'))").stdout == "'\\ud800'\n"
    assert run_python("print(chr(0xd800))").stdout == "\\ud800\n"


@pytest.mark.parametrize(
    ("source", "decoded"),
    [
        (r"print(1)\nprint(2)", "print(1)\nprint(2)"),
        (r"s = 'ü世'\nprint(s)", "s = 'ü世'\nprint(s)"),
        (r"print('a\nb')", r"print('a\nb')"),
        ("def broken(:", "def broken(:"),
        ("\\N{", "\\N{"),
    ],
)
def test_only_a_program_escaped_too_often_is_decoded(source, decoded):
    assert decode(source) == decoded


def test_the_program_runs_as_main(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "__main__", sys.modules["__main__"])
    monkeypatch.setattr(sys, "argv", [])
    assert run("import sys\nprint(__name__, sys.argv)") == 0
    assert run("raise RuntimeError('no')") == 1
    with pytest.raises(SystemExit):
        run("raise SystemExit(3)")
    captured = capsys.readouterr()
    assert captured.out == "__main__ ['main.py']\n"
    assert 'File "main.py", line 1, in <module>\n    raise RuntimeError' in captured.err


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
def test_the_event_loop_goes_on_turning(loop_factory, engine):
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
        await asyncio.to_thread(until, lambda: children() != before)
        started = time.monotonic()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert until(lambda: not alive(children() - before))
        assert engine == "monty" or children() <= before  # Monty reaps a little later
        return time.monotonic() - started

    assert asyncio.run(main()) < 5


def test_the_wall_clock_also_ends_an_asynchronous_run():
    limits = Limits(wall_seconds=0.5)
    execution = asyncio.run(run_python_async("import time\ntime.sleep(60)", limits))
    assert execution.timed_out
    assert execution.seconds < 5


def test_runs_wait_for_their_turn(monkeypatch):
    usable("landlock")
    run_python("print(0)")  # an engine is tried in a child of its own, before its first use
    monkeypatch.setattr(sandbox, "_gate", sandbox._Gate(1))

    async def main() -> None:
        first = asyncio.create_task(run_python_async("import time\ntime.sleep(30)"))
        await asyncio.to_thread(until, children)
        waiting = [asyncio.create_task(run_python_async("print(1)")) for _ in range(3)]
        _, pending = await asyncio.wait(waiting, timeout=0.3)
        assert len(pending) == 3
        waiting[0].cancel()
        first.cancel()
        await asyncio.wait([first, *waiting])
        assert waiting[0].cancelled()
        assert [task.result().stdout for task in waiting[1:]] == ["1\n", "1\n"]

    asyncio.run(main())
    assert run_python("print(2)").stdout == "2\n"  # its place was given back


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
        child: set[int] = set()

        def program_runs() -> bool:
            child.update(children(parent.pid))
            return any(_is_locked(pid) for pid in child)

        assert until(program_runs)
        (pid,) = [pid for pid in child if _is_locked(pid)]
    finally:
        parent.kill()
        parent.wait()
    assert until(lambda: not _is_locked(pid))


def _status(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/status").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return ""


def _is_locked(pid: int) -> bool:
    return "Seccomp:\t2" in _status(pid)


@pytest.fixture
def fresh_engines():
    """Let the engines be tried anew, and again afterwards."""
    caches = (sandbox._fault, sandbox.sandbox_engine)
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
def test_a_lock_that_does_not_hold_is_not_used(broken, fresh_engines, monkeypatch, caplog):
    usable("landlock")
    sandbox._fault.cache_clear()
    monkeypatch.setattr(jail, "system_call_filter", lambda: broken)
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
    monkeypatch.setattr(jail, "_lockdown", lambda: harmless)
    with pytest.raises(SandboxUnavailable, match="OSError: no lock"):
        sandbox._run("landlock", "print('ran')", Limits())


def test_with_no_engine_nothing_is_run(monkeypatch, fresh_engines):
    monkeypatch.setattr(sandbox, "_fault", lambda engine: f"no {engine} today")
    with pytest.raises(SandboxUnavailable, match=r"not run\. .*no landlock today.*no monty today"):
        run_python("print(1)")
    with pytest.raises(SandboxUnavailable):
        asyncio.run(run_python_async("print(1)"))


def test_off_linux_the_fallback_answers(monkeypatch, fresh_engines):
    monkeypatch.setattr(sys, "platform", "darwin")
    assert sandbox._fault("landlock") == "it needs Linux"


@pytest.mark.parametrize(
    "program",
    ["import statistics", "class A(list):\n    pass", "import sys\nsys.exit()", "import enum"],
)
def test_the_fallback_says_what_it_cannot_do(program):
    execution = run_python(program, engine="monty")
    assert execution.exit_code == 1
    assert "unsupported in the fallback interpreter" in execution.text


def test_the_fallback_tells_mistakes_as_they_are():
    execution = run_python("print('one')\n1 / 0", engine="monty")
    assert execution.text.endswith("ZeroDivisionError: division by zero")
    assert 'File "main.py", line 2' in execution.stderr
    missing = run_python("import numpy", engine="monty")
    assert "unsupported" not in missing.text


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: run_python(b"print(1)"), TypeError, "code must be a text, not bytes"),
        (lambda: run_python("1", engine="docker"), ValueError, "there are bubblewrap, landlock"),
        (lambda: Limits(cpu_seconds=0), ValueError, "cpu_seconds must be more than 0"),
        (lambda: seccomp.system_call_filter("vax"), NotImplementedError, "'vax'"),
    ],
)
def test_wrong_use_is_told(call, error, message):
    with pytest.raises(error, match=message):
        call()


HEADERS = {
    "x86_64": Path("/usr/include/x86_64-linux-gnu/asm/unistd_64.h"),
    "aarch64": Path("/usr/include/asm-generic/unistd.h"),
}


@pytest.mark.parametrize("machine", HEADERS)
def test_the_numbers_are_the_kernels(machine):
    require(HEADERS[machine].exists(), "kernel headers (linux-libc-dev)")
    pattern = r"#define __NR(?:3264)?_(\w+)\s+(\d+)"
    known = dict(re.findall(pattern, HEADERS[machine].read_text()))
    known["newfstatat"] = known.get("newfstatat", known.get("fstatat"))
    column = sandbox_cases.COLUMNS[machine]
    for name, numbers in {**seccomp._NUMBERS, **sandbox_cases._NUMBERS}.items():
        number = numbers[column]
        if name in known or number is None:
            assert known.get(name) == (None if number is None else str(number)), name


def test_no_forbidden_call_is_on_the_list():
    assert not set(seccomp._NUMBERS) & set(sandbox_cases._NUMBERS)


def test_the_filter_reads_the_right_words():
    """Follow the filter by hand for a few calls, as the kernel would."""
    column = sandbox_cases.COLUMN
    numbers = {name: both[column] for name, both in seccomp._NUMBERS.items()}
    machine = platform.machine()
    here = seccomp._MACHINES[machine][1]
    allow, refuse, kill = 0x7FFF0000, 0x00050001, 0x80000000
    cases = [
        (numbers["read"], here, (), allow),
        (numbers["read"], 0x40000003, (), kill),
        (numbers["read"] + 0x40000000, here, (), refuse),
        (numbers["openat"], here, (0, 0, os.O_RDONLY | os.O_CLOEXEC), allow),
        (numbers["openat"], here, (0, 0, os.O_WRONLY), refuse),
        (numbers["openat"], here, (0, 0, os.O_PATH), refuse),
        (numbers["sendto"], here, (0, 0, 0, 0, 0), allow),
        (numbers["sendto"], here, (0, 0, 0, 0, 1 << 32), refuse),
        (numbers["prlimit64"], here, (0, 7, 0), allow),
        (numbers["prlimit64"], here, (0, 7, 1 << 40), refuse),
        (numbers["socketpair"], here, (1, 1 | 0o2000000), allow),
        (numbers["socketpair"], here, (1, 2), refuse),
        (numbers["fcntl"], here, (1, 8), refuse),
    ]
    for number, architecture, arguments, verdict in cases:
        assert _follow(number, architecture, arguments) == verdict, (number, arguments)


def _follow(number: int, architecture: int, arguments: tuple[int, ...]) -> int:
    import struct

    words = (*arguments, *[0] * (6 - len(arguments)))
    data = struct.pack("=IIQ6Q", number, architecture, 0, *words)
    program = list(struct.iter_unpack("=HBBI", seccomp.system_call_filter()))
    position = accumulator = 0
    while True:
        code, if_true, if_false, value = program[position]
        position += 1
        if code == 0x20:
            (accumulator,) = struct.unpack_from("=I", data, value)
        elif code == 0x54:
            accumulator &= value
        elif code == 0x15:
            position += if_true if accumulator == value else if_false
        else:
            return value
