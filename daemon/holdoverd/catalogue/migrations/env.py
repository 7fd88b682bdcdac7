"""Alembic's entry: migrates over the connection, and inside the transaction, of the caller.

See `holdoverd.catalogue.migrate`, which holds the turn and commits.
"""

from alembic import context

from holdoverd.catalogue.schema import metadata

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=metadata,
    # SQLite can roll back a CREATE TABLE; Alembic assumes that drivers spoil it, and ours does not.
    transactional_ddl=True,
)
with context.begin_transaction():
    context.run_migrations()
