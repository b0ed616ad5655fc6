"""The benchmark driver runs; its numbers are read by people, not by this test."""

import re
import subprocess
import sys

from support import PROJECT


def test_a_short_comparison_prints_a_table_of_ratios() -> None:
    options = ["--quick", "--rounds", "1", "--seconds", "0.2"]
    options += ["--servers", "bare-asgi", "agent-kit"]
    run = subprocess.run(
        [sys.executable, PROJECT / "benchmarks/compare.py", *options],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert run.returncode == 0, run.stderr
    header, _, *rows = run.stdout.splitlines()
    assert header == "| | bare-asgi | agent-kit |"
    for row in rows:
        assert re.fullmatch(r"\| [^|]+ \| 1\.00 \([^)]+\) \| [\d.]+ \([^)]+\) \|", row), row
    assert {"cold start, s", "CPU µs/request"} <= {row.split("|")[1].strip() for row in rows}
