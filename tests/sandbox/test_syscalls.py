"""The allowed system calls: the kernel's numbers, and the verdicts of the filter."""

import os
import platform
import re
import struct
from pathlib import Path

import pytest
from support import sandbox_cases
from support.environment import require

from agent_kit.sandbox import syscalls

HEADERS = {
    "x86_64": Path("/usr/include/x86_64-linux-gnu/asm/unistd_64.h"),
    "aarch64": Path("/usr/include/asm-generic/unistd.h"),
}


@pytest.mark.parametrize("machine", HEADERS)
def test_the_numbers_are_those_of_the_kernel(machine):
    require(HEADERS[machine].exists(), "kernel headers (linux-libc-dev)")
    pattern = r"#define __NR(?:3264)?_(\w+)\s+(\d+)"
    known = dict(re.findall(pattern, HEADERS[machine].read_text()))
    known["newfstatat"] = known.get("newfstatat", known.get("fstatat"))
    column = sandbox_cases.COLUMNS[machine]
    for name, numbers in {**syscalls._NUMBERS, **sandbox_cases._NUMBERS}.items():
        number = numbers[column]
        if name in known or number is None:
            assert known.get(name) == (None if number is None else str(number)), name


def test_no_forbidden_call_is_allowed():
    assert not set(syscalls._NUMBERS) & set(sandbox_cases._NUMBERS)


def test_the_filter_tests_the_right_words():
    """Run the filter for a few calls, as the kernel would."""
    column = sandbox_cases.COLUMN
    numbers = {name: both[column] for name, both in syscalls._NUMBERS.items()}
    machine = platform.machine()
    here = syscalls._MACHINES[machine][1]
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
        assert _verdict(number, architecture, arguments) == verdict, (number, arguments)


def _verdict(number: int, architecture: int, arguments: tuple[int, ...]) -> int:
    words = (*arguments, *[0] * (6 - len(arguments)))
    data = struct.pack("=IIQ6Q", number, architecture, 0, *words)
    program = list(struct.iter_unpack("=HBBI", syscalls.system_call_filter()))
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


def test_an_unknown_processor_is_an_error():
    with pytest.raises(NotImplementedError, match="'vax'"):
        syscalls.system_call_filter("vax")
