"""The store on PostgreSQL: a server behaves as with SQLite, and two servers share one database."""

import asyncio
import threading
import time
from collections.abc import Iterator

import httpx2
import pytest
from openai import NotFoundError, OpenAI
from sqlalchemy import inspect
from support.postgres_server import PostgresServer

from agent_kit.runs.supervisor import Supervisor
from agent_kit.server import AgentServer, create_server
from agent_kit.settings import StoreSettings, load_settings
from agent_kit.store.database import make_engine, migrate, prepare_database
from agent_kit.store.schema import store_tables

PATIENCE = 60
CANCEL_SECONDS = 1


@pytest.fixture(scope="module")
def database() -> Iterator[str]:
    with PostgresServer() as server:
        yield server.new_database()


def make_server(database: str) -> AgentServer:
    environ = {"AGENT_KIT_MLFLOW_TRACING": "false", "AGENT_KIT_STORE_URL": database}
    server = create_server(settings=load_settings(environ=environ))
    server.closed = threading.Event()

    @server.stream()
    async def answer(request):
        yield f"{len(request.input)} items"
        if request.input[-1]["content"] == "wait":
            try:
                await asyncio.sleep(60)
            finally:
                server.closed.set()
        yield "."

    return server


def ask(client: OpenAI, text="Hello", **fields):
    return client.responses.create(model="any", input=text, **fields)


def test_two_servers_on_one_database_behave_as_one(database):
    one, two = make_server(database), make_server(database)
    with (
        one.serve() as first,
        two.serve() as second,
        OpenAI(base_url=f"{first}/v1", api_key="any") as here,
        OpenAI(base_url=f"{second}/v1", api_key="any") as there,
    ):
        created = ask(here)
        assert there.responses.retrieve(created.id).to_dict() == created.to_dict()
        assert ask(there, previous_response_id=created.id).output_text == "3 items."

        conversation = here.conversations.create(metadata={"topic": "numbers"})
        for client, count in ((here, 1), (there, 3), (here, 5)):
            assert ask(client, conversation=conversation.id).output_text == f"{count} items."
        listed = httpx2.get(f"{second}/agent/conversations").json()["data"]
        assert [entry["id"] for entry in listed] == [conversation.id]
        items = there.conversations.items.list(conversation.id, limit=4)
        assert len(list(items)) == 6

        running = ask(here, "wait", background=True)
        began = time.monotonic()
        assert there.responses.cancel(running.id).status == "cancelled"
        assert time.monotonic() - began < 10 * CANCEL_SECONDS
        assert one.closed.wait(PATIENCE)
        events = list(there.responses.retrieve(running.id, stream=True, starting_after=1))
        assert events[-1].response.status == "cancelled"

        here.responses.delete(created.id)
        with pytest.raises(NotFoundError):
            there.responses.retrieve(created.id)
        expire_everything(one)
        with pytest.raises(NotFoundError):
            there.responses.retrieve(running.id)


def expire_everything(server: AgentServer) -> None:
    Supervisor(server.state.hub, StoreSettings(days=1e-9), lambda run: None).expire()


def test_servers_that_start_together_prepare_the_database_once(database):
    from sqlalchemy import text

    engine = make_engine(database)
    with engine.begin() as connection:
        connection.execute(text("DROP SCHEMA public CASCADE"))
        connection.execute(text("CREATE SCHEMA public"))
    engines = [make_engine(database) for _ in range(4)]
    threads = [threading.Thread(target=prepare_database, args=[each]) for each in engines]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE)
    assert {"responses", "alembic_version"} <= set(inspect(engine).get_table_names())
    for each in (engine, *engines):
        each.dispose()


def test_the_migrations_make_the_same_tables(database):
    from alembic.autogenerate import compare_metadata
    from alembic.runtime.migration import MigrationContext
    from sqlalchemy import text

    engine = make_engine(database)
    with engine.connect() as connection:
        connection.execute(text("DROP SCHEMA public CASCADE"))
        connection.execute(text("CREATE SCHEMA public"))
        migrate(connection)
        context = MigrationContext.configure(connection)
        assert compare_metadata(context, store_tables().metadata) == []
    engine.dispose()
