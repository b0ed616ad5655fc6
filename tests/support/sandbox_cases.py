"""Programs that the sandbox must run, attacks that it must refuse, and the host that they attack.

Standard library only, because the Python of an ordinary user also runs this file, without pytest:
`python sandbox_cases.py ENGINE` prints the failures as JSON.
"""

import json
import os
import platform
import re
import socket
import sys
import sysconfig
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from agent_kit.sandbox import Execution, Limits, run_python
from agent_kit.sandbox.syscalls import _NUMBERS as ALLOWED

HERE = Path(__file__).resolve().parent
SECRET = "a-secret-that-no-program-may-read"
COLUMNS = {"x86_64": 0, "aarch64": 1}
COLUMN = COLUMNS.get(platform.machine(), 0)


def _cases(name: str) -> dict[str, str]:
    """Read a file of cases: their names and their programs."""
    _, *parts = re.split(r"^### (.*)\n", (HERE / name).read_text(), flags=re.MULTILINE)
    return {title: body.rstrip("\n") for title, body in zip(parts[::2], parts[1::2], strict=True)}


LANGUAGE = {
    name: tuple(body.rsplit("\n---\n", 1)) for name, body in _cases("sandbox_language.txt").items()
}
ATTACKS = _cases("sandbox_attacks.txt")

# The start of each attack.
_PRELUDE = """
import ctypes, errno, os, sys
libc = ctypes.CDLL(None, use_errno=True)
NUMBERS = {numbers}
def system(name, *arguments):
    words = [ctypes.c_long(a) if isinstance(a, int) else a for a in arguments]
    ctypes.set_errno(0)
    return libc.syscall(ctypes.c_long(NUMBERS[name]), *words)
def attempt(what, function, *arguments):
    "A forbidden operation that succeeds is an escape."
    try:
        result = function(*arguments)
    except (OSError, RuntimeError, ImportError, AttributeError, ValueError) as error:
        return print("refused:", what, type(error).__name__)
    if isinstance(result, int) and result == -1:
        return print("refused:", what, errno.errorcode.get(ctypes.get_errno()))
    print("ESCAPED:", what, repr(result)[:200])
def attempt_system(name, *arguments):
    attempt(name, system, name, *arguments)
"""
_NUMBERS = {  # (x86-64, 64-bit ARM) of calls that must be refused
    "socket": (41, 198), "connect": (42, 203), "bind": (49, 200), "sendmsg": (46, 211),
    "clone": (56, 220), "clone3": (435, 435), "execve": (59, 221), "execveat": (322, 281),
    "kill": (62, 129), "tkill": (200, 130), "tgkill": (234, 131), "rt_sigqueueinfo": (129, 138),
    "pidfd_open": (434, 434), "pidfd_send_signal": (424, 424), "pidfd_getfd": (438, 438),
    "ptrace": (101, 117), "process_vm_readv": (310, 270), "process_vm_writev": (311, 271),
    "openat2": (437, 437), "creat": (85, None), "truncate": (76, 45), "fallocate": (285, 47),
    "name_to_handle_at": (303, 264), "open_by_handle_at": (304, 265), "open_tree": (428, 428),
    "chroot": (161, 51), "mount": (165, 40), "umount2": (166, 39), "pivot_root": (155, 41),
    "unshare": (272, 97), "setns": (308, 268), "fsopen": (430, 430), "move_mount": (429, 429),
    "io_uring_setup": (425, 425), "io_uring_enter": (426, 426), "io_setup": (206, 0),
    "bpf": (321, 280), "perf_event_open": (298, 241), "userfaultfd": (323, 282),
    "keyctl": (250, 219), "add_key": (248, 217), "request_key": (249, 218),
    "memfd_create": (319, 279), "memfd_secret": (447, 447), "shmget": (29, 194),
    "shmat": (30, 196), "msgget": (68, 186), "semget": (64, 190), "mq_open": (240, 180),
    "personality": (135, 92), "prctl": (157, 167), "seccomp": (317, 277), "capset": (126, 91),
    "setuid": (105, 146), "setgid": (106, 144), "setresuid": (117, 147), "setsid": (112, 157),
    "setpgid": (109, 154), "setrlimit": (160, 164), "setpriority": (141, 140),
    "sched_setaffinity": (203, 122), "sched_setscheduler": (144, 119), "ioprio_set": (251, 30),
    "landlock_restrict_self": (446, 446), "mlockall": (151, 230), "reboot": (169, 142),
    "init_module": (175, 105), "finit_module": (313, 273), "kexec_load": (246, 104),
    "swapon": (167, 224), "settimeofday": (164, 170), "clock_settime": (227, 112),
    "sethostname": (170, 161), "acct": (163, 89), "quotactl": (179, 60), "syslog": (103, 116),
    "timer_create": (222, 107), "signalfd4": (289, 74), "inotify_init1": (294, 26),
    "fanotify_init": (300, 262), "timerfd_create": (283, 85), "splice": (275, 76),
    "vmsplice": (278, 75), "tee": (276, 77), "sendfile": (40, 71), "copy_file_range": (326, 285),
    "modify_ldt": (154, None), "iopl": (172, None), "ioperm": (173, None), "vfork": (58, None),
    "fork": (57, None), "setsockopt": (54, 208), "accept4": (288, 242), "listen": (50, 201),
    "umask": (95, 166), "chdir": (80, 49), "fchmodat2": (452, 452), "futex_waitv": (449, 449),
}  # fmt: skip


@dataclass(frozen=True)
class World:
    """The files and listeners on the host that an attack may reach."""

    folder: Path
    victim: Path
    listeners: tuple[socket.socket, ...]
    before: tuple

    def look(self) -> tuple:
        """Return the state of all files that an attack could change."""
        facts = [
            (path.name, path.read_bytes() if path.is_file() else b"", os.lstat(path)[:7],
             os.lstat(path).st_mtime_ns, os.listxattr(path, follow_symlinks=False))
            for path in sorted(self.folder.rglob("*"))
            if not path.is_socket()
        ]  # fmt: skip
        return tuple(facts)

    def program(self, attack: str) -> str:
        """Return the program of an attack on this world."""
        column = {name: numbers[COLUMN] for name, numbers in _NUMBERS.items()}
        values = {
            "victim": self.victim,
            "folder": self.folder,
            "parent": os.getpid(),
            "port": self.listeners[0].getsockname()[1],
            "unix": self.listeners[1].getsockname(),
            "project": HERE.parents[1],
            "packages": sysconfig.get_paths()["purelib"],
            "numbers": column,
            "allowed": {numbers[COLUMN] for numbers in ALLOWED.values()},
        }
        program = f"{_PRELUDE}\n{attack}\nprint('THE END')"
        for name, value in values.items():
            program = program.replace("{" + name + "}", str(value))
        return program

    def damage(self) -> list[str]:
        """Return what an attack has changed."""
        found = [] if self.look() == self.before else [f"files changed: {self.look()}"]
        for listener in self.listeners:
            with suppress(BlockingIOError):
                found.append(f"connected: {listener.accept()}")
        strays = ("/tmp", "/dev/shm", "/var/tmp", "/run", ".", os.path.dirname(os.__file__))
        return found + [
            stray for folder in strays for stray in map(str, Path(folder).glob("agent-kit-escape*"))
        ]


@contextmanager
def world() -> Iterator[World]:
    """Create files and listeners to attack, and remove them afterwards."""
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        victim = folder / "victim.txt"
        victim.write_text(SECRET)
        (folder / "empty").mkdir()
        (folder / "existing-link").symlink_to(victim)
        tcp = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
        unix = stack.enter_context(socket.socket(socket.AF_UNIX))
        unix.bind(str(folder / "socket"))
        unix.listen()
        for listener in (tcp, unix):
            listener.setblocking(False)
        built = World(folder, victim, (tcp, unix), ())
        yield World(folder, victim, (tcp, unix), built.look())


def attack(name: str, engine: str, world: World) -> tuple[Execution, list[str]]:
    """Run one attack; return its result and its effects."""
    execution = run_python(world.program(ATTACKS[name]), Limits(wall_seconds=30), engine=engine)
    text = execution.text
    found = [line for line in text.splitlines() if "ESCAPED" in line or SECRET in line]
    if engine != "monty" and not _ran_to_its_end(name, execution):
        found.append(f"the attack itself failed: {text[-2000:]}")
    return execution, found + world.damage()


def _ran_to_its_end(name: str, execution: Execution) -> bool:
    if name == "another processor's numbers" and platform.machine() == "x86_64":
        return execution.exit_code == -31 and "refused: so far" in execution.stdout  # SIGSYS
    return "THE END" in execution.stdout


def run_language_case(name: str, engine: str) -> list[str]:
    """Run one language case; return its output if that is wrong."""
    program, expected = LANGUAGE[name]
    execution = run_python(program, engine=engine)
    correct = execution.stdout.rstrip("\n") == expected and not execution.stderr
    return [] if correct and execution.exit_code == 0 else [execution.text]


def main(engine: str) -> None:
    """Run all cases and print the failures."""
    failures = {}
    with world() as target:
        failures |= {name: attack(name, engine, target)[1] for name in ATTACKS}
    failures |= {name: run_language_case(name, engine) for name in LANGUAGE}
    failed = {name: found for name, found in failures.items() if found}
    print(json.dumps({"user": os.getuid(), "cases": len(failures), "failed": failed}))


if __name__ == "__main__":
    main(sys.argv[1])
