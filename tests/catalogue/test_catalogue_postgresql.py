"""PostgreSQL's own trouble: rivals, a server that goes and comes back, logins, what it cannot hold.

Where a connection has to break at one moment, the driver is made to break it there; the rest is
the server's own doing.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator

import psycopg
import pytest
import trio
from sqlalchemy import Connection, insert, select, update

from holdoverd.catalogue import postgresql, schema, sessions
from holdoverd.catalogue.readers import READERS
from holdoverd.catalogue.records import Change
from holdoverd.catalogue.store import Catalogue
from holdoverd.errors import CatalogueError
from tests.catalogue.examples import (
    SESSION,
    a_session,
    main_thread,
    message,
)
from tests.postgres import Postgres

pytestmark = pytest.mark.slow


@pytest.fixture
def database() -> str:
    return "postgresql"


@pytest.fixture(scope="module")
def fragile(postgres: Postgres) -> Iterator[Postgres]:
    """A server that is taken away; not `postgres`, which the other tests use."""
    server = Postgres()
    yield server
    server.remove()


@pytest.fixture
def away(fragile: Postgres) -> Iterator[tuple[Postgres, Catalogue]]:
    """A catalogue in `fragile`, with a password in its address that nothing may show."""
    name = fragile.create()
    url = fragile.url(name).replace("holdover@", "holdover:geheim@")
    catalogue = Catalogue.open(url)
    yield fragile, catalogue
    catalogue.close()


def put(key: str) -> Callable[[Connection], str]:
    def fn(cx: Connection) -> str:
        cx.execute(insert(schema.meta).values(key=key, value="0"))
        return key

    return fn


def keys(cx: Connection) -> list[str]:
    found = cx.execute(select(schema.meta.c.key).order_by(schema.meta.c.key)).scalars()
    return [key for key in found if key != "oldest_usable_schema"]


async def test_a_read_before_a_write_is_still_true_when_that_commits(
    catalogue: Catalogue, migrated: str
) -> None:
    """Two instances count the same number up: none of a hundred is lost."""
    await catalogue.write(put("n"))
    table = schema.meta

    def count(cx: Connection) -> None:
        value = cx.execute(select(table.c.value).where(table.c.key == "n")).scalar_one()
        cx.execute(update(table).where(table.c.key == "n").values(value=str(int(value) + 1)))

    other = Catalogue.open(migrated)
    try:

        async def fifty(of: Catalogue) -> None:
            for _ in range(50):
                await of.write(count)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(fifty, catalogue)
            nursery.start_soon(fifty, other)
    finally:
        other.close()
    assert (
        await catalogue.read(lambda cx: cx.execute(select(table.c.value).where(table.c.key == "n")).scalar())
        == "100"
    )  # fmt: skip


async def test_a_server_that_was_restarted_costs_nobody_anything(
    away: tuple[Postgres, Catalogue],
) -> None:
    server, catalogue = away

    async def read() -> None:
        assert await catalogue.read(keys) == ["a"]

    async with trio.open_nursery() as nursery:  # every reader has a connection
        await catalogue.write(put("a"))
        for _ in range(READERS * 2):
            nursery.start_soon(read)
    await trio.to_thread.run_sync(server.stop)
    await trio.to_thread.run_sync(server.start)
    async with trio.open_nursery() as nursery:
        for _ in range(READERS * 2):
            nursery.start_soon(read)
    assert await catalogue.write(put("b")) == "b"
    assert await catalogue.read(keys) == ["a", "b"]


async def test_while_the_server_is_away_everything_is_refused_by_name(
    away: tuple[Postgres, Catalogue], caplog: pytest.LogCaptureFixture
) -> None:
    server, catalogue = away
    await catalogue.write(put("a"))
    assert await catalogue.read(keys) == ["a"]
    await trio.to_thread.run_sync(server.stop)
    try:
        for _ in range(3):
            with pytest.raises(
                CatalogueError, match=r"cannot be reached.*Look at the database"
            ) as w:
                await catalogue.write(put("b"))
            with pytest.raises(CatalogueError, match=r"cannot be reached.*Agents run on") as r:
                await catalogue.read(keys)
            assert (w.value.code, w.value.status) == ("unavailable", 503)
            assert "geheim" not in f"{w.value}{r.value}"
    finally:
        await trio.to_thread.run_sync(server.start)
    assert await catalogue.write(put("c")) == "c"
    assert await catalogue.read(keys) == ["a", "c"]
    assert "geheim" not in caplog.text
    assert "Traceback" not in caplog.text


async def test_a_connection_that_breaks_in_mid_transaction_is_replaced(
    catalogue: Catalogue, caplog: pytest.LogCaptureFixture
) -> None:
    runs: list[int] = []

    def broken(cx: Connection) -> None:
        put("a")(cx)
        runs.append(1)
        if len(runs) == 1:
            cx.exec_driver_sql("SELECT pg_terminate_backend(pg_backend_pid())")

    await catalogue.write(broken)
    assert await catalogue.read(keys) == ["a"]
    runs.clear()

    def reading(cx: Connection) -> list[str]:
        runs.append(1)
        if len(runs) == 1:
            cx.exec_driver_sql("SELECT pg_terminate_backend(pg_backend_pid())")
        return keys(cx)

    assert await catalogue.read(reading) == ["a"]
    assert "Traceback" not in caplog.text


@pytest.mark.parametrize("reached", [True, False], ids=["stored", "not-stored"])
async def test_a_commit_that_nobody_confirmed_counts_once(
    catalogue: Catalogue, monkeypatch: pytest.MonkeyPatch, reached: bool
) -> None:
    """The session is written on from what the caller was told: a repeat would be a gap."""
    opened = Change(threads=[main_thread()])
    await catalogue.write(lambda cx: sessions.create_session(cx, a_session(), opened))
    really = psycopg.Connection.commit
    broken: list[psycopg.Connection] = []

    def commit(connection: psycopg.Connection) -> None:
        if not broken and not connection.autocommit:
            broken.append(connection)
            if reached:
                really(connection)
            connection.close()
            raise psycopg.OperationalError("server closed the connection unexpectedly")
        really(connection)

    monkeypatch.setattr(psycopg.Connection, "commit", commit)
    for seq in (1, 2):
        change = Change(messages=[message(seq)])
        await catalogue.write(lambda cx, c=change: sessions.apply_change(cx, SESSION, 1, c))
    assert broken
    row = await catalogue.read(lambda cx: sessions.session_row(cx, SESSION))
    assert row is not None
    assert row.last_seq == 2


async def test_a_commit_whose_outcome_stays_unknown_is_an_error(
    catalogue: Catalogue, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(postgresql, "OUTCOME_TIMEOUT_S", 0.0)

    def commit(connection: psycopg.Connection) -> None:
        connection.close()
        raise psycopg.OperationalError("server closed the connection unexpectedly")

    def nowhere(*_arguments: object, **_options: object) -> None:
        raise psycopg.OperationalError("connection refused")

    await catalogue.write(put("a"))
    with monkeypatch.context() as patch:
        patch.setattr(psycopg.Connection, "commit", commit)
        patch.setattr(psycopg.Connection, "connect", nowhere)
        with pytest.raises(CatalogueError, match=r"cannot be reached"):
            await catalogue.write(put("b"))
    await catalogue.write(put("c"))
    assert await catalogue.read(keys) == ["a", "c"]


async def test_a_stranger_that_holds_a_row_is_reported_and_waited_out(
    migrated: str, postgres: Postgres, postgresql_template: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(postgresql, "TURN_TIMEOUT_S", 0.05)
    catalogue = Catalogue.open(migrated)
    await catalogue.write(put("a"))
    change = update(schema.meta).where(schema.meta.c.key == "a").values(value="1")
    try:
        with psycopg.connect(
            host=str(postgres.folder), dbname=postgresql_template, user="holdover"
        ) as stranger:
            stranger.execute("SELECT * FROM meta WHERE key = 'a' FOR UPDATE")
            with pytest.raises(CatalogueError, match=r"is locked by another program.*pg_stat"):
                await catalogue.write(lambda cx: cx.execute(change))
        await catalogue.write(lambda cx: cx.execute(change))
    finally:
        catalogue.close()


async def test_a_server_that_only_reads_says_so(url: str) -> None:
    Catalogue.open(url).close()
    catalogue = Catalogue.open(f"{url}&options=-c%20default_transaction_read_only%3Don")
    try:
        with pytest.raises(CatalogueError, match=r"is read-only.*primary"):
            await catalogue.write(put("a"))
        assert await catalogue.read(keys) == []
    finally:
        catalogue.close()


def test_a_login_that_is_refused_is_named(postgres: Postgres) -> None:
    for url in (postgres.url("test_none"), postgres.url("postgres", "nobody:geheim")):
        with pytest.raises(CatalogueError, match="does not exist") as raised:
            Catalogue.open(url)
        assert "geheim" not in str(raised.value)


def test_a_database_that_cannot_hold_every_text_is_refused(postgres: Postgres) -> None:
    postgres.sql(
        "postgres",
        "CREATE DATABASE latin TEMPLATE template0 ENCODING 'LATIN1' LC_COLLATE 'C' LC_CTYPE 'C'",
    )
    with pytest.raises(CatalogueError, match=r"has the encoding LATIN1.*--encoding=UTF8"):
        Catalogue.open(postgres.url("latin"))


async def test_a_nul_in_a_name_is_replaced(catalogue: Catalogue) -> None:
    """SQLite stores it; PostgreSQL cannot, and an agent's odd tool id must not stop its session."""
    row = a_session(title="a\0b")
    await catalogue.write(lambda cx: sessions.create_session(cx, row, Change()))
    found = await catalogue.read(lambda cx: sessions.session_row(cx, SESSION))
    assert found is not None
    assert found.title == "a\N{REPLACEMENT CHARACTER}b"


async def test_a_repeated_key_does_not_show_its_values(catalogue: Catalogue) -> None:
    await catalogue.write(put("geheim"))
    with pytest.raises(Exception, match="unique constraint") as raised:
        await catalogue.write(put("geheim"))
    assert "geheim" not in str(raised.value)


async def test_an_instance_that_stands_still_loses_its_transaction(
    migrated: str, catalogue: Catalogue, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is stopped in its turn; the others wait for seconds, not for ever."""
    monkeypatch.setattr(postgresql, "IDLE_TIMEOUT_S", 1)
    stopped = Catalogue.open(migrated)
    await catalogue.write(put("a"))
    held, go_on = threading.Event(), threading.Event()
    change = update(schema.meta).where(schema.meta.c.key == "a")
    runs: list[int] = []

    def stands(cx: Connection) -> None:
        cx.execute(change.values(value="stopped"))
        runs.append(1)
        held.set()
        go_on.wait(30)
        cx.execute(change.values(value="stopped"))

    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(stopped.write, stands)
            await trio.to_thread.run_sync(held.wait)
            await catalogue.write(lambda cx: cx.execute(change.values(value="other")))
            go_on.set()
    finally:
        stopped.close()
    assert len(runs) == 2  # run again on a new connection once it went on
