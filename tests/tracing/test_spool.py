"""The spool: appended records are read, whatever process is killed, and its size is limited."""

import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent_kit.tracing.spool import Spool, SpoolReader, is_locked, list_segments, spool_bytes


@pytest.fixture
def spool(tmp_path: Path) -> Iterator[Spool]:
    with closing(Spool(tmp_path / "spool", max_bytes=1_000_000)) as spool:
        yield spool


def run_python(code: str, directory: Path) -> subprocess.CompletedProcess[str]:
    head = (
        "import os, resource, signal\nfrom pathlib import Path\n"
        "from agent_kit.tracing.spool import Spool\n"
    )
    command = [
        sys.executable,
        "-c",
        f"{head}spool = Spool(Path({str(directory)!r}), 1_000_000)\n{code}",
    ]
    return subprocess.run(command, capture_output=True, text=True)


def read_all(reader: SpoolReader) -> list[bytes]:
    records = []
    while (batch := reader.read(max_records=7)).records:
        records += batch.records
        reader.commit(batch)
    return records


# --- reading


def test_records_are_read_in_the_order_they_were_appended(spool: Spool) -> None:
    written = [b"record %d" % number for number in range(20)]
    assert all(spool.append(record) for record in written)
    assert read_all(SpoolReader(spool.directory)) == written


@given(records=st.lists(st.binary(max_size=200).filter(lambda data: b"\n" not in data)))
def test_any_bytes_without_line_breaks_are_supported(
    tmp_path_factory: pytest.TempPathFactory, records: list[bytes]
) -> None:
    with closing(Spool(tmp_path_factory.mktemp("spool"), max_bytes=4_000)) as spool:
        accepted = [record for record in records if spool.append(record)]
        assert read_all(SpoolReader(spool.directory)) == accepted


def test_a_batch_is_read_again_until_it_is_committed(spool: Spool) -> None:
    spool.append(b"one")
    spool.append(b"two")
    reader = SpoolReader(spool.directory)
    batch = reader.read(max_records=1)
    assert batch.records == reader.read(max_records=1).records == [b"one"]
    reader.commit(batch)
    assert reader.read().records == [b"two"]


def test_a_new_reader_continues_at_the_offsets_of_the_last_one(spool: Spool) -> None:
    spool.append(b"one")
    first = SpoolReader(spool.directory)
    first.commit(first.read())
    spool.append(b"two")
    assert SpoolReader(spool.directory, first.offsets).read().records == [b"two"]


def test_batches_are_limited_in_bytes_too(spool: Spool) -> None:
    for _ in range(3):
        spool.append(b"x" * 1000)
    assert len(SpoolReader(spool.directory).read(max_bytes=1500).records) == 2


def test_threads_do_not_mix_their_records(spool: Spool) -> None:
    def append(letter: bytes) -> None:
        for _ in range(200):
            spool.append(letter * 500)

    threads = [threading.Thread(target=append, args=[letter]) for letter in (b"a", b"b", b"c")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    records = read_all(SpoolReader(spool.directory))
    assert sorted(records) == [letter * 500 for letter in (b"a", b"b", b"c") for _ in range(200)]


def test_one_reader_gets_what_several_processes_write(spool: Spool) -> None:
    spool.append(b"mine")
    assert run_python("spool.append(b'theirs')", spool.directory).returncode == 0
    assert sorted(read_all(SpoolReader(spool.directory))) == [b"mine", b"theirs"]


# --- killed writers


def test_a_killed_writer_loses_nothing(tmp_path: Path) -> None:
    code = (
        "for n in range(500): spool.append(b'record %d' % n)\nos.kill(os.getpid(), signal.SIGKILL)"
    )
    assert run_python(code, tmp_path).returncode == -9
    reader = SpoolReader(tmp_path)
    assert read_all(reader) == [b"record %d" % number for number in range(500)]
    assert list_segments(tmp_path) == []


def test_an_incomplete_record_is_skipped_and_counted(tmp_path: Path) -> None:
    run_python("spool.append(b'whole')", tmp_path)
    (segment,) = list_segments(tmp_path)
    with segment.open("ab") as file:
        file.write(b"half a rec")
    reader = SpoolReader(tmp_path)
    assert read_all(reader) == [b"whole"]
    reader.delete_finished()
    assert (list_segments(tmp_path), reader.torn) == ([], 1)


def test_a_segment_is_locked_while_its_writer_is_alive(spool: Spool) -> None:
    spool.append(b"record")
    (segment,) = list_segments(spool.directory)
    reader = SpoolReader(spool.directory)
    reader.commit(reader.read())
    assert segment.exists()
    assert is_locked(segment)
    assert reader.has_writers()
    spool.close()
    reader.delete_finished()
    assert not segment.exists()
    assert not reader.has_writers()


def test_a_closed_spool_can_be_used_again(spool: Spool) -> None:
    spool.append(b"one")
    spool.close()
    spool.append(b"two")
    assert read_all(SpoolReader(spool.directory)) == [b"one", b"two"]


# --- the limit


def test_a_full_spool_refuses_and_counts(tmp_path: Path) -> None:
    with closing(Spool(tmp_path, max_bytes=32_000)) as spool:
        for _ in range(100):
            spool.append(b"x" * 999)
        assert spool_bytes(tmp_path) <= 32_000
        assert (spool.appended, spool.dropped) == (
            spool_bytes(tmp_path) // 1000,
            100 - spool.appended,
        )
        assert len(read_all(SpoolReader(tmp_path))) == spool.appended


def test_a_full_spool_accepts_records_after_it_was_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = 1000.0
    monkeypatch.setattr("agent_kit.tracing.spool.time.monotonic", lambda: clock)
    with closing(Spool(tmp_path, max_bytes=32_000)) as spool:
        while spool.append(b"x" * 999):
            pass
        read_all(SpoolReader(tmp_path))
        assert not spool.append(b"too early: it is checked once a second")
        clock += 2
        assert spool.append(b"now")


def test_full_segments_are_deleted_while_their_writer_is_alive(tmp_path: Path) -> None:
    with closing(Spool(tmp_path, max_bytes=32_000)) as spool:
        reader = SpoolReader(tmp_path)
        for number in range(200):
            assert spool.append(b"%03d" % number * 300)
            reader.commit(reader.read())
        assert len(list_segments(tmp_path)) == 1


def test_a_full_disk_leaves_no_incomplete_records(tmp_path: Path) -> None:
    code = """
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (5_500, 5_500))
for n in range(10): spool.append(b"%d" % n * 999)
print(spool.appended, spool.dropped)
"""
    assert run_python(code, tmp_path).stdout.split() == ["5", "5"]
    assert read_all(SpoolReader(tmp_path)) == [b"%d" % number * 999 for number in range(5)]


def test_an_unusable_folder_drops_records_without_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    spool = Spool(tmp_path / "file" / "spool", max_bytes=1_000_000)
    assert not spool.append(b"record")
    assert spool.dropped == 1


def test_a_folder_that_is_deleted_is_created_again(spool: Spool) -> None:
    spool.append(b"lost")
    for path in spool.directory.iterdir():
        path.unlink()
    spool.directory.rmdir()
    assert spool.append(b"stored")
    assert read_all(SpoolReader(spool.directory)) == [b"stored"]


def test_only_the_owner_can_read_traces(spool: Spool) -> None:
    spool.append(b"record")
    (segment,) = list_segments(spool.directory)
    assert segment.stat().st_mode & 0o777 == 0o600
    assert spool.directory.stat().st_mode & 0o777 == 0o700


def test_a_missing_folder_is_an_empty_spool(tmp_path: Path) -> None:
    reader = SpoolReader(tmp_path / "nothing")
    assert reader.read().records == []
    assert not reader.has_writers()
    assert not is_locked(tmp_path / "nothing" / os.devnull[1:])
