"""The benchmark driver runs; its numbers are read by people, not by this test."""

import re
import subprocess
import sys

from support.environment import PROJECT, unmeasured


def run_driver(name: str, *options: str) -> list[str]:
    """Run a driver and return the lines that it prints."""
    run = subprocess.run(
        [sys.executable, PROJECT / "benchmarks" / name, *options],
        env=unmeasured(),
        capture_output=True,
        text=True,
        timeout=270,
    )
    assert run.returncode == 0, run.stderr
    return run.stdout.splitlines()


def test_what_it_costs_to_remember_is_printed_as_ratios() -> None:
    lines = run_driver("state.py", "--rounds", "1", "--seconds", "0.2", "--turns", "100")
    number = r"[\d.]+"
    assert re.fullmatch(rf"\| plain \| .* \| .* \| {number} \|", lines[2]), lines[2]
    assert re.fullmatch(rf"\| streamed \| .* \| .* \| {number} \|", lines[3]), lines[3]
    chain = [line.split("|")[1].strip() for line in lines[7:]]
    assert chain == ["1", "1", "10", "100"]


def test_a_short_comparison_prints_a_table_of_ratios() -> None:
    options = ["--quick", "--rounds", "1", "--seconds", "0.2"]
    # The drain of the traced server still writes into its folder when the server has ended.
    options += ["--servers", "bare-asgi", "agent-kit-traced"]
    header, _, *rows = run_driver("compare.py", *options)
    assert header == "| | bare-asgi | agent-kit-traced |"
    for row in rows:
        assert re.fullmatch(r"\| [^|]+ \| 1\.00 \([^)]+\) \| [\d.]+ \([^)]+\) \|", row), row
    assert {"cold start, s", "CPU µs/request"} <= {row.split("|")[1].strip() for row in rows}
