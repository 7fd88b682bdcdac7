"""The schema, its migrations, and opening a catalogue in every state it may be found in."""

from __future__ import annotations

import stat
import subprocess
import sys
from pathlib import Path

import pytest
import trio
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, create_engine
from sqlalchemy.dialects import postgresql
from sqlalchemy.schema import CreateIndex, CreateTable

from holdoverd.catalogue import rows, schema, searched, sessions
from holdoverd.catalogue.instances import InstanceRow
from holdoverd.catalogue.migrate import MIGRATIONS, schema_version
from holdoverd.catalogue.store import Catalogue
from holdoverd.errors import CatalogueError
from tests.catalogue.examples import SESSION, a_session, full_change, on_sqlite


def compared(cx: Connection) -> MigrationContext:
    """Without the index of search, whose tables are its engine's own, and what serves it."""

    def counts(name: str | None, kind: str, _parents: object) -> bool:
        made_of = kind == "table" and str(name).startswith("searched")
        return not made_of and name != "ix_sessions_behind"

    return MigrationContext.configure(cx, opts={"compare_type": True, "include_name": counts})


def test_migrations_arrive_at_exactly_the_schema(cx: Connection) -> None:
    assert compare_metadata(compared(cx), schema.metadata) == []


def test_the_comparison_sees_what_is_missing(cx: Connection) -> None:
    cx.exec_driver_sql("ALTER TABLE sessions DROP COLUMN live")
    assert [change[0] for change in compare_metadata(compared(cx), schema.metadata)] == [
        "add_column"
    ]


def test_version_is_the_last_migration() -> None:
    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS))
    head = ScriptDirectory.from_config(config).get_current_head()
    assert head is not None
    assert int(head) == schema.VERSION


def test_postgresql_understands_every_table() -> None:
    dialect = postgresql.dialect()
    for table in schema.metadata.sorted_tables:
        assert str(CreateTable(table).compile(dialect=dialect))
        for index in table.indexes:
            assert str(CreateIndex(index).compile(dialect=dialect))


@pytest.mark.parametrize(
    ("columns", "table", "added"),
    [
        (rows.SESSION_COLUMNS, schema.sessions, {"searched_seq"}),
        (rows.THREAD_COLUMNS, schema.threads, {"session", "position"}),
        (rows.PERMISSION_COLUMNS, schema.permissions, {"session"}),
        (rows.PROMPT_COLUMNS, schema.prompts, {"session"}),
        (rows.OUTBOX_COLUMNS, schema.outbox, {"session"}),
        (rows.LAUNCH_COLUMNS, schema.launches, set()),
        (rows.column_names(InstanceRow), schema.instances, set()),
    ],
)
def test_a_record_is_its_table(columns: tuple[str, ...], table: object, added: set[str]) -> None:
    assert {*columns, *added} == {column.name for column in table.columns}  # type: ignore[attr-defined]


@on_sqlite
def test_the_file_is_for_its_owner_alone(tmp_path: Path, url: str) -> None:
    catalogue = Catalogue.open(url)
    try:
        modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in tmp_path.iterdir()}
    finally:
        catalogue.close()
    assert modes["catalogue.db"] == 0o600
    assert set(modes.values()) == {0o600}  # the log, its index and the turns as well


@on_sqlite
def test_a_commit_is_on_the_disk_when_it_returns(catalogue: Catalogue) -> None:
    """The pragmas that promise it, as the writer's own connection has them."""

    async def pragmas() -> list[object]:
        return await catalogue.write(
            lambda cx: [
                cx.exec_driver_sql(f"PRAGMA {name}").scalar()
                for name in ("journal_mode", "synchronous", "foreign_keys")
            ]
        )

    assert trio.run(pragmas) == ["wal", 2, 1]  # 2 = FULL


def test_opening_again_changes_nothing(url: str) -> None:
    for _ in range(2):
        Catalogue.open(url).close()


def test_processes_that_open_a_new_catalogue_together_converge(url: str) -> None:
    program = (
        "import sys; from holdoverd.catalogue.store import Catalogue; sys.stdin.read(); "
        "Catalogue.open(sys.argv[1]).close()"
    )
    paths = [path for path in sys.path if path]
    children = [
        subprocess.Popen(
            [sys.executable, "-c", f"import sys; sys.path[:0] = {paths!r}; {program}", url],
            stdin=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for _ in range(4)
    ]
    for child in children:
        assert child.stdin is not None
        child.stdin.close()  # all have started; now they open
        child.stdin = None
    errors = [child.communicate(timeout=120)[1] for child in children]
    assert [child.returncode for child in children] == [0, 0, 0, 0], errors


def _alter(url: str, *statements: str) -> None:
    engine = create_engine(url)
    with engine.begin() as cx:
        for statement in statements:
            cx.exec_driver_sql(statement)
    engine.dispose()


def test_a_newer_schema_is_refused_unless_it_says_it_is_usable(url: str) -> None:
    Catalogue.open(url).close()
    _alter(url, "UPDATE alembic_version SET version_num = '0099'", "DELETE FROM meta")
    with pytest.raises(
        CatalogueError, match=f"schema 99 and this release knows {schema.VERSION}: .* backup"
    ):
        Catalogue.open(url)
    _alter(url, f"INSERT INTO meta VALUES ('oldest_usable_schema', '{schema.VERSION + 1}')")
    with pytest.raises(CatalogueError, match="Start that release"):
        Catalogue.open(url)


def test_an_older_release_opens_what_a_newer_one_only_added_to(url: str) -> None:
    """A predecessor that crashes in mid-deploy has to come back on the migrated catalogue."""
    Catalogue.open(url).close()
    _alter(url, "UPDATE alembic_version SET version_num = '0099'")
    Catalogue.open(url).close()
    engine = create_engine(url)
    with engine.connect() as cx:
        assert cx.exec_driver_sql("SELECT version_num FROM alembic_version").scalar() == "0099"
    engine.dispose()


def test_an_old_catalogue_is_brought_up_with_all_that_is_in_it(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From the very first schema, as somebody who skipped every release between would."""
    monkeypatch.setattr(searched, "add", lambda *_: None)  # which knew of no search
    engine = create_engine(url)
    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS))
    with engine.begin() as cx:
        config.attributes["connection"] = cx
        command.upgrade(config, "0001")
        # Today's code writes it; the columns that it did not know then are taken away again.
        cx.exec_driver_sql("ALTER TABLE sessions ADD COLUMN turn_cut text")
        cx.exec_driver_sql("ALTER TABLE sessions ADD COLUMN searched_seq bigint DEFAULT 0")
        sessions.create_session(cx, a_session(), full_change())
        cx.exec_driver_sql("ALTER TABLE sessions DROP COLUMN turn_cut")
        cx.exec_driver_sql("ALTER TABLE sessions DROP COLUMN searched_seq")
    engine.dispose()
    catalogue = Catalogue.open(url)
    version = trio.run(catalogue.read, lambda cx: schema_version(cx, url))
    loaded = trio.run(catalogue.read, lambda cx: sessions.load_session(cx, SESSION))
    catalogue.close()
    assert version == schema.VERSION
    assert loaded is not None
    assert loaded.row.last_seq == 3


def test_a_database_of_something_else_is_left_alone(url: str) -> None:
    _alter(url, "CREATE TABLE other (x integer)")
    with pytest.raises(CatalogueError, match="in use, but not by a Holdover catalogue"):
        Catalogue.open(url)


@on_sqlite
def test_a_file_that_is_no_database_is_named(tmp_path: Path, url: str) -> None:
    (tmp_path / "catalogue.db").write_text("Dear diary, " * 500)
    with pytest.raises(CatalogueError, match=r"catalogue\.db is not an SQLite database"):
        Catalogue.open(url)


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(
        CatalogueError, match=r"nowhere/catalogue\.db.*Check that its folder exists"
    ):
        Catalogue.open(f"sqlite:///{tmp_path}/nowhere/catalogue.db")


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("catalogue.db", "is no database URL"),
        ("sqlite://", "names no file"),
        ("sqlite:///:memory:", "names no file"),
        ("sqlite:////tmp/x.db?cache=shared", "names no file"),
        ("postgresql://host/db", "cannot be kept in postgresql;"),
        ("mysql://host/db", "cannot be kept in mysql;"),
        ("postgresql+psycopg://host", "names no database"),
        ("postgresql+psycopg://host/db?password=geheim", "password among the parameters"),
    ],
)
def test_an_address_that_cannot_be_used_says_what_would(url: str, reason: str) -> None:
    with pytest.raises(CatalogueError, match=reason) as raised:
        Catalogue.open(url)
    assert "sqlite:////absolute/path" in str(raised.value)
    assert "geheim" not in str(raised.value)
