"""Runs the migrations of the store on the connection that `agent_kit.store.database` passes."""

from alembic import context

from agent_kit.store.schema import store_tables

connection = context.config.attributes["connection"]
context.configure(connection=connection, target_metadata=store_tables().metadata)
with context.begin_transaction():
    context.run_migrations()
