"""The guards that stand around the tests: what they let through, and what they stop."""

import sqlite3
from pathlib import Path

import coverage
from support.guards import drop_broken_coverage


def measured(path: Path) -> bytes:
    """Write coverage as a measured process does; return the bytes of the file."""
    data = coverage.CoverageData(str(path))
    data.add_arcs({f"module_{number}.py": {(1, 2), (2, 3)} for number in range(50)})
    data.close()
    return path.read_bytes()


def test_coverage_that_was_written_halfway_is_dropped(tmp_path: Path) -> None:
    whole = tmp_path / ".coverage.whole"
    content = measured(whole)
    for name, size in (("nothing", 0), ("header", 50), ("half", len(content) // 2)):
        (tmp_path / f".coverage.{name}").write_bytes(content[:size])
    (tmp_path / ".coverage.few-tables").write_bytes(content)
    with sqlite3.connect(tmp_path / ".coverage.few-tables") as connection:
        connection.execute("DROP TABLE arc")
    connection.close()
    drop_broken_coverage(tmp_path)
    assert list(tmp_path.iterdir()) == [whole]
    total = coverage.Coverage(data_file=str(tmp_path / ".coverage"))
    total.combine([str(tmp_path)])
    assert len(total.get_data().measured_files()) == 50
