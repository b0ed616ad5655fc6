"""The database behind the store: its tables, its limits and its failures."""

import asyncio
import contextlib
import sqlite3
import threading
import time

import httpx2
import pytest
from sqlalchemy import text
from support.state_support import make_server

from agent_kit.runs import event_log
from agent_kit.runs.durable_run import RunHub
from agent_kit.runs.supervisor import Supervisor
from agent_kit.settings import StoreSettings
from agent_kit.store import database as store_database
from agent_kit.store.database import Database, StoreError, make_engine, migrate, prepare_database
from agent_kit.store.schema import SCHEMA_VERSION, store_tables


def file_url(tmp_path, name="store.db") -> str:
    return f"sqlite:///{tmp_path}/{name}"


def test_the_migrations_make_the_tables_that_are_declared(tmp_path):
    from alembic.autogenerate import compare_metadata
    from alembic.runtime.migration import MigrationContext

    engine = make_engine(file_url(tmp_path))
    with engine.connect() as connection, connection.begin():
        migrate(connection)
        context = MigrationContext.configure(connection)
        assert context.get_current_revision() == SCHEMA_VERSION
        assert compare_metadata(context, store_tables().metadata) == []
    prepare_database(engine)
    engine.dispose()


def test_an_older_database_is_migrated_and_a_newer_one_is_refused(tmp_path):
    engine = make_engine(file_url(tmp_path))
    with engine.begin() as connection:
        connection.execute(text("CREATE TABLE alembic_version (version_num VARCHAR(32))"))
    prepare_database(engine)
    with engine.begin() as connection:
        assert connection.execute(text("SELECT count(*) FROM responses")).scalar() == 0
        connection.execute(text("UPDATE alembic_version SET version_num = '9999'"))
    with pytest.raises(StoreError, match="newer version"):
        prepare_database(engine)
    engine.dispose()


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("mysql://host/database", "neither sqlite"),
        ("nonsense", "neither sqlite"),
        ("sqlite:///:memory:", "names no file"),
        ("sqlite:////proc/store/store.db", "cannot be used"),
        ("postgresql://user:hunter2@127.0.0.1:1/none", "cannot be used"),
    ],
)
def test_a_database_that_cannot_be_used_is_reported_without_secrets(url, message):
    database = Database(url)
    with pytest.raises(StoreError, match=message) as caught:
        database.read_now(lambda connection: None)
    assert caught.value.status == 503
    assert "hunter2" not in caught.value.message
    database.close()


def test_the_drivers_message_is_only_in_the_log(caplog):
    server = make_server(AGENT_KIT_STORE_URL="postgresql://ada@127.0.0.1:1/none")
    with server.serve() as url:
        for path in ("responses", "conversations"):
            refused = httpx2.post(f"{url}/v1/{path}", json={"input": "Hi"})
            assert (refused.status_code, "127.0.0.1" in refused.text) == (503, False)
    messages = [record.getMessage() for record in caplog.records if "failed" in record.getMessage()]
    assert any("127.0.0.1" in line and "/v1/conversations" in line for line in messages)
    assert any("127.0.0.1" in line and "Request req_" in line for line in messages)


async def use_while_it_closes(database):
    reading, resume = threading.Event(), threading.Event()

    def read_slowly(connection):
        reading.set()
        return resume.wait(50)

    slow = asyncio.create_task(database.read(read_slowly))
    await asyncio.to_thread(reading.wait, 50)
    await database.write(lambda connection, items: None, 1)
    (writer,) = (each for each in threading.enumerate() if each.name.startswith("store-writer"))
    closing = asyncio.create_task(asyncio.to_thread(database.close))
    await asyncio.to_thread(writer.join, 50)  # the database is half closed now
    try:
        assert await database.write(lambda connection, items: [2], 1) == 2
        assert await database.read(lambda connection: 3) == 3
    finally:
        resume.set()
        assert await slow
        await closing
        await asyncio.to_thread(database.close)


def test_a_database_that_is_used_while_it_closes_opens_again(tmp_path):
    asyncio.run(use_while_it_closes(Database(file_url(tmp_path))))


@pytest.fixture
def impatient(monkeypatch):
    monkeypatch.setattr(store_database, "_BUSY_SECONDS", 0.2)
    monkeypatch.setattr(event_log, "_PATIENCE_SECONDS", 0.2)


def test_a_locked_database_is_a_clear_error_and_loses_nothing(tmp_path, impatient, caplog):
    server = make_server()
    with server.serve() as url:
        stored = httpx2.post(f"{url}/v1/responses", json={"input": "Hi"}).json()
        endless = {"input": "count for ever", "background": True}
        running = httpx2.post(f"{url}/v1/responses", json=endless).json()["id"]
        follow = f"{url}/v1/responses/{running}?stream=true"
        with contextlib.closing(sqlite3.connect(tmp_path / ".agent_kit/store.db")) as other:
            with httpx2.stream("GET", follow, timeout=50) as answer:
                lines = answer.iter_lines()
                assert any("output_text.delta" in line for line in lines)
                other.execute("BEGIN IMMEDIATE")
                assert any('"store_busy"' in line for line in lines)
            refused = httpx2.post(f"{url}/v1/responses", json={"input": "Hi"}, timeout=30)
            assert refused.status_code == 503
            assert refused.json()["error"]["code"] == "store_busy"
            background = {"input": "slowly", "background": True}
            refused = httpx2.post(f"{url}/v1/responses", json=background, timeout=30)
            assert refused.status_code == 503
            streamed = {"input": "slowly", "stream": True}
            answer = httpx2.post(f"{url}/v1/responses", json=streamed, timeout=30)
            assert '"store_busy"' in answer.text
            assert "output_text.delta" not in answer.text, "sent, though it was not stored"
            other.rollback()
        assert httpx2.get(f"{url}/v1/responses/{stored['id']}").json() == stored
        follow = {"input": "Hi", "previous_response_id": stored["id"]}
        assert httpx2.post(f"{url}/v1/responses", json=follow).status_code == 200


def test_writes_that_wait_for_a_locked_database_do_not_wait_for_each_other(tmp_path, monkeypatch):
    busy, count = 0.5, 40
    monkeypatch.setattr(store_database, "_BUSY_SECONDS", busy)
    database = Database(file_url(tmp_path))
    database.open()

    async def write_all():
        writes = [database.write(lambda connection, items: None, n) for n in range(count)]
        return await asyncio.gather(*writes, return_exceptions=True)

    with contextlib.closing(sqlite3.connect(tmp_path / "store.db")) as other:
        other.execute("BEGIN IMMEDIATE")
        begun = time.monotonic()
        refused = asyncio.run(write_all())
        assert time.monotonic() - begun < count * busy / 2
        other.rollback()
    assert {getattr(error, "code", error) for error in refused} == {"store_busy"}
    assert asyncio.run(write_all()) == [None] * count
    database.close()


def test_old_chains_expire_as_a_whole_and_the_oldest_first_when_the_store_is_too_large(tmp_path):
    server = make_server()
    with server.serve() as url:
        path = f"{url}/v1/responses"
        old = httpx2.post(path, json={"input": "Hi"}).json()["id"]
        chain = httpx2.post(path, json={"input": "Hi"}).json()["id"]
        follow = {"input": "Hi", "previous_response_id": chain}
        newest = httpx2.post(path, json=follow).json()["id"]
        with contextlib.closing(sqlite3.connect(tmp_path / ".agent_kit/store.db")) as other:
            past = time.time() - 100_000
            change = "UPDATE responses SET created_at = ? WHERE id IN (?, ?)"
            other.execute(change, (past, old, chain))
            other.commit()
        Supervisor(server.state.hub, StoreSettings(days=1), lambda run: None).expire()
        found = [httpx2.get(f"{path}/{one}").status_code for one in (old, chain, newest)]
        assert found == [404, 200, 200]
        with contextlib.closing(sqlite3.connect(tmp_path / ".agent_kit/store.db")) as other:
            other.execute("UPDATE responses SET created_at = ?", (time.time() - 1000,))
            other.commit()
        Supervisor(server.state.hub, StoreSettings(max_bytes=1), lambda run: None).expire()
        assert httpx2.get(f"{path}/{newest}").status_code == 404


def test_a_store_that_cannot_be_reached_is_logged_once(tmp_path, caplog):
    tried = threading.Semaphore(0)

    class Unreachable(Database):
        def write_now(self, function, *arguments):
            tried.release()
            raise StoreError("no server answers")

    database = Unreachable(f"sqlite:///{tmp_path}/store.db")
    # With this lease, the supervisor has nothing to do every other time.
    supervisor = Supervisor(RunHub(database), StoreSettings(lease_seconds=6), lambda run: None)
    supervisor.start()
    for _ in range(4):
        assert tried.acquire(timeout=20)
    supervisor.stop()
    database.close()
    assert [record.getMessage() for record in caplog.records] == [
        "The store cannot be maintained: no server answers"
    ]


@pytest.mark.parametrize("how", ["deleted", "replaced"])
def test_a_store_that_is_deleted_or_replaced_is_noticed(tmp_path, caplog, how):
    server, store = make_server(), tmp_path / ".agent_kit/store.db"
    with server.serve() as url:
        first = httpx2.post(f"{url}/v1/responses", json={"input": "Hi"}).json()["id"]
        if how == "replaced":
            other = make_engine(file_url(tmp_path))
            prepare_database(other)
            other.dispose()
            (tmp_path / "store.db").replace(store)
        else:
            for file in store.parent.glob("store.db*"):
                file.unlink()
        refused = httpx2.post(f"{url}/v1/responses", json={"input": "Hi"})
        assert (refused.status_code, refused.json()["error"]["code"]) == (503, "store_unavailable")
        assert "restart the server" in refused.json()["error"]["message"]
        assert httpx2.get(f"{url}/v1/responses/{first}").status_code == 503
        assert httpx2.get(f"{url}/ready").status_code == 503
    assert str(store) in caplog.text
    with server.serve() as url:
        stored = httpx2.post(f"{url}/v1/responses", json={"input": "Hi"}).json()["id"]
        assert httpx2.get(f"{url}/v1/responses/{stored}").status_code == 200


def test_ready_asks_the_store():
    with make_server(AGENT_KIT_STORE_URL="postgresql://ada@127.0.0.1:1/none").serve() as url:
        refused = httpx2.get(f"{url}/ready")
        assert (refused.status_code, "127.0.0.1" in refused.text) == (503, False)
        assert httpx2.get(f"{url}/health").status_code == 200
    with make_server().serve() as url:
        assert httpx2.get(f"{url}/ready").json() == {"status": "ready"}
        assert httpx2.get(f"{url}/ready?verbose").json()["store"] == "ready"
    with make_server(AGENT_KIT_STORE_URL="none").serve() as url:
        assert httpx2.get(f"{url}/ready?verbose").json()["store"] == "off"


def test_cancel_is_refused_while_the_store_is_away(tmp_path, monkeypatch):
    monkeypatch.setattr(store_database, "_BUSY_SECONDS", 0.2)
    with make_server().serve() as url:
        endless = {"input": "count for ever", "background": True}
        running = httpx2.post(f"{url}/v1/responses", json=endless).json()["id"]
        with contextlib.closing(sqlite3.connect(tmp_path / ".agent_kit/store.db")) as other:
            other.execute("BEGIN IMMEDIATE")
            refused = httpx2.post(f"{url}/v1/responses/{running}/cancel", timeout=50)
            other.rollback()
    assert (refused.status_code, refused.json()["error"]["code"]) == (503, "store_busy")


def test_a_clock_that_is_ahead_at_the_start_deletes_nothing(tmp_path, monkeypatch):
    server, now = make_server(), time.time()
    with server.serve() as url:
        path = f"{url}/v1/responses"
        kept = httpx2.post(path, json={"input": "Hi"}).json()["id"]
        talk = httpx2.post(f"{url}/v1/conversations", json={}).json()["id"]
        with monkeypatch.context() as patched:
            patched.setattr(time, "time", lambda: now + 1e8)
            Supervisor(server.state.hub, StoreSettings(days=1), lambda run: None).expire()
        assert httpx2.get(f"{path}/{kept}").status_code == 200
        assert httpx2.get(f"{url}/v1/conversations/{talk}").status_code == 200


def test_only_the_owner_can_read_the_store(tmp_path):
    old = tmp_path / ".agent_kit"
    old.mkdir(mode=0o755)
    (old / "store.db").touch(mode=0o644)
    with make_server().serve() as url:
        httpx2.post(f"{url}/v1/responses", json={"input": "Hi"})
        modes = {path.name: path.stat().st_mode & 0o777 for path in (old, *old.glob("store.db*"))}
    assert modes == {
        **{".agent_kit": 0o700, "store.db": 0o600},
        **{"store.db-wal": 0o600, "store.db-shm": 0o600},
    }
