"""Taking a session over: what is read of it while it is being made ours, and who comes between.

The order of the steps is the tests'. A session at rest, on either database, without agents.
"""

from __future__ import annotations

import threading
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest
import trio
from sqlalchemy import Connection

from holdoverd.catalogue import sessions as sessions_table
from holdoverd.catalogue.records import Change
from holdoverd.catalogue.store import Catalogue
from holdoverd.errors import SessionMoved
from holdoverd.sessions.holding import Holding
from holdoverd.sessions.launcher import Paths
from holdoverd.sessions.means import Instance
from holdoverd.sessions.spool import SpoolWatch
from tests.catalogue.examples import SESSION, a_session

GIVER, OURS, THIRD = 1, 2, 3
EPOCH = 7
"""By which the giver held it."""


def third_takes(expected: int) -> Callable[[Connection], int]:
    return lambda cx: sessions_table.take_ownership(cx, SESSION, expected, "h", THIRD, "r")


def owner(cx: Connection) -> tuple[int, int]:
    row = sessions_table.session_row(cx, SESSION)
    assert row is not None
    return row.generation, row.owner_epoch


class Taker(Holding):
    """Generation 2. `before_read` and `after_read` are awaited around each reading of the session."""

    def __init__(self, instance: Instance) -> None:
        super().__init__(instance, lambda: {GIVER, OURS, THIRD})
        self.before_read: Callable[[], Awaitable[None]] = trio.lowlevel.checkpoint
        self.after_read: Callable[[], None] = lambda: None
        self.read_epochs: list[int] = []

    async def _load(self, session: str) -> tuple[sessions_table.LoadedSession, list[str]] | None:
        await self.before_read()
        found = await super()._load(session)
        assert found is not None
        self.read_epochs.append(found[0].row.owner_epoch)
        self.after_read()
        return found

    async def take_from_giver(self) -> None:
        with trio.fail_after(60):
            await self.take(SESSION, EPOCH, GIVER)

    async def until_owned_by(self, generation: int) -> None:
        with trio.fail_after(60):
            while (await self._in.catalogue.read(owner))[0] != generation:
                await trio.sleep(0.001)


@pytest.fixture
async def taker(migrated: str, tmp_path: Path) -> AsyncIterator[Taker]:
    catalogue = Catalogue.open(migrated)
    row = a_session(host="h", generation=GIVER, owner_epoch=EPOCH)
    try:
        await catalogue.write(lambda cx: sessions_table.create_session(cx, row, Change()))
        async with trio.open_nursery() as nursery:
            yield Taker(
                Instance(
                    catalogue=catalogue,
                    paths=Paths(tmp_path, tmp_path, tmp_path),
                    watch=SpoolWatch(tmp_path),
                    nursery=nursery,
                    host="h",
                    generation=OURS,
                    release="r",
                    boot_id="boot",
                    roots=[],
                    agents=lambda _name: None,
                )
            )
            nursery.cancel_scope.cancel()
    finally:
        catalogue.close()


def writer_busy_with(
    nursery: trio.Nursery,
    catalogue: Catalogue,
    go_on: threading.Event,
    fn: Callable[[Connection], object],
) -> None:
    """Queue a write that waits for `go_on` and does `fn`; what is queued behind it waits as well."""

    def held_up(cx: Connection) -> None:
        assert go_on.wait(60)
        fn(cx)

    nursery.start_soon(catalogue.write, held_up)


async def test_what_was_read_before_it_was_ours_is_gone_on_with(taker: Taker) -> None:
    go_on = threading.Event()
    taker.after_read = go_on.set
    async with trio.open_nursery() as nursery:
        writer_busy_with(nursery, taker._in.catalogue, go_on, lambda cx: None)
        await trio.testing.wait_all_tasks_blocked()
        await taker.take_from_giver()
    assert taker.read_epochs == [EPOCH]
    held = taker.held(SESSION)
    assert held is not None
    assert held.owner_epoch == EPOCH + 1
    assert held.model.row.generation == OURS
    await held.act(lambda step: None)  # by an epoch that the catalogue takes


async def test_what_was_read_after_it_was_ours_is_gone_on_with(taker: Taker) -> None:
    async def until_ours() -> None:
        await taker.until_owned_by(OURS)

    taker.before_read = until_ours
    await taker.take_from_giver()
    assert taker.read_epochs == [EPOCH + 1]
    held = taker.held(SESSION)
    assert held is not None
    assert held.owner_epoch == EPOCH + 1


async def test_what_was_read_is_dropped_where_a_third_was_faster(taker: Taker) -> None:
    go_on = threading.Event()
    taker.after_read = go_on.set
    async with trio.open_nursery() as nursery:
        writer_busy_with(nursery, taker._in.catalogue, go_on, third_takes(EPOCH))
        await trio.testing.wait_all_tasks_blocked()
        with pytest.raises(SessionMoved):
            await taker.take_from_giver()
    assert taker.read_epochs == [EPOCH], "it was read, and nothing about it was wrong then"
    assert taker.held(SESSION) is None
    assert await taker._in.catalogue.read(owner) == (THIRD, EPOCH + 1)


async def test_what_is_read_is_dropped_where_a_third_has_taken_it_from_us_meanwhile(
    taker: Taker,
) -> None:
    async def until_theirs() -> None:
        await taker.until_owned_by(OURS)
        await taker._in.catalogue.write(third_takes(EPOCH + 1))

    taker.before_read = until_theirs
    with pytest.raises(SessionMoved):
        await taker.take_from_giver()
    assert taker.read_epochs == [EPOCH + 2]
    assert taker.held(SESSION) is None
    assert await taker._in.catalogue.read(owner) == (THIRD, EPOCH + 2)
