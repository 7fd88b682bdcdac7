"""Bringing a catalogue to the schema of this release.

A schema is a number, the revision of its last migration. Migrations only add while an older
instance may still live, so that a predecessor that crashes in the middle of a deploy, or a
rollback, can open what its successor has migrated. Each migration says so in `meta`:
``oldest_usable_schema`` is the oldest schema whose releases can still work with this catalogue.
"""

import logging
from pathlib import Path

from sqlalchemy import Connection, inspect, select, text

from holdoverd.catalogue import schema
from holdoverd.catalogue.dialect import Dialect
from holdoverd.errors import CatalogueError

log = logging.getLogger(__name__)

MIGRATIONS = Path(__file__).with_name("migrations")
# A migration may rewrite a large table; instances that start meanwhile wait for it.
MIGRATION_TIMEOUT_S = 60.0
OLDEST_USABLE = "oldest_usable_schema"  # in `meta`


def migrate(dialect: Dialect) -> None:
    """Create the catalogue if there is none, and bring it to `schema.VERSION`; all or nothing.

    Leaves a newer schema alone where that says it is usable, else raises CatalogueError.
    """
    try:
        with dialect.turn(MIGRATION_TIMEOUT_S):
            dialect.prepare()
            engine = dialect.migration_engine()
            try:
                with engine.connect() as cx, cx.begin():
                    dialect.check(cx)
                    _migrate(cx, dialect.name)
            finally:
                engine.dispose()
    except Exception as error:
        translated = dialect.translate(error)
        if translated is error:
            raise
        raise translated from error


def _migrate(cx: Connection, name: str) -> None:
    found = schema_version(cx, name)
    if found == schema.VERSION:
        return
    if found > schema.VERSION:
        oldest = _oldest_usable(cx)
        if oldest is None or oldest > schema.VERSION:
            raise CatalogueError(
                f"The catalogue {name} has schema {found} and this release knows {schema.VERSION}: "
                "a newer release has changed it. Start that release, or restore a backup from "
                "before the upgrade."
            )
        log.info("the catalogue has the newer schema %d, which this release can use", found)
        return
    # Imported here because a start that has nothing to migrate should not pay for it.
    from alembic import command
    from alembic.config import Config

    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS).replace("%", "%%"))
    config.attributes["connection"] = cx
    log.info("migrating the catalogue from schema %d to %d", found, schema.VERSION)
    command.upgrade(config, "head")


def schema_version(cx: Connection, name: str) -> int:
    """The number of the schema found; 0 for an empty database.

    Raises CatalogueError when the database holds something that is no catalogue.
    """
    tables = set(inspect(cx).get_table_names())
    if not tables:
        return 0
    version = None
    if "alembic_version" in tables and "meta" in tables:
        version = cx.execute(text("SELECT version_num FROM alembic_version")).scalar()
    if version is None or not version.isdecimal():
        raise CatalogueError(
            f"The database {name} is in use, but not by a Holdover catalogue. Set [catalogue] url "
            "to a file or database of its own."
        )
    return int(version)


def _oldest_usable(cx: Connection) -> int | None:
    value = cx.execute(
        select(schema.meta.c.value).where(schema.meta.c.key == OLDEST_USABLE)
    ).scalar()
    return int(value) if value is not None and value.isdecimal() else None
