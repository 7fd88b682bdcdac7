"""The catalogue as the daemon uses it: groups, their failures, bounds, cancellation, closing.

Where order matters, a first write occupies the writer's thread until the test lets it go; what is
queued meanwhile is the next group.
"""

from __future__ import annotations

import contextlib
import re
import threading
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
import trio
import trio.testing
from sqlalchemy import Connection, insert, select
from sqlalchemy.exc import OperationalError

from holdoverd.catalogue import readers, schema, sessions, writer
from holdoverd.catalogue.records import Change
from holdoverd.catalogue.store import Catalogue
from holdoverd.errors import CatalogueError, Conflict, Internal, NotFound, NotOwner
from tests.catalogue.examples import (
    SESSION,
    a_session,
    full_change,
    main_thread,
    message,
    on_sqlite,
    session_id,
)

LONG_S = 60


def put(key: str, value: str = "") -> Callable[[Connection], str]:
    def fn(cx: Connection) -> str:
        cx.execute(insert(schema.meta).values(key=key, value=value))
        return key

    return fn


def fail(error: Exception) -> Callable[[Connection], None]:
    """Writes, then raises: what it wrote must not stay."""

    def fn(cx: Connection) -> None:
        put("half")(cx)
        raise error

    return fn


def keys(cx: Connection) -> list[str]:
    found = cx.execute(select(schema.meta.c.key).order_by(schema.meta.c.key)).scalars()
    return [key for key in found if key != "oldest_usable_schema"]


@contextlib.asynccontextmanager
async def occupied(catalogue: Catalogue) -> AsyncIterator[None]:
    """The writer is busy inside the block, so that writes queue; they run when it ends."""
    entered, leave = threading.Event(), threading.Event()

    def wait(_cx: Connection) -> None:
        entered.set()
        assert leave.wait(LONG_S)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(catalogue.write, wait)
        await trio.to_thread.run_sync(entered.wait)
        try:
            yield
        finally:
            leave.set()


class Commits:
    """Which functions ran in one transaction together."""

    def __init__(self) -> None:
        self.groups: list[list[str]] = []
        self._transaction: object = None

    def note(self, name: str) -> Callable[[Connection], str]:
        def fn(cx: Connection) -> str:
            if cx.get_transaction() is not self._transaction:
                self._transaction = cx.get_transaction()
                self.groups.append([])
            self.groups[-1].append(name)
            return name

        return fn


# --- writing and reading ---


async def test_what_was_written_can_be_read(catalogue: Catalogue) -> None:
    assert await catalogue.write(put("a")) == "a"
    assert await catalogue.read(keys) == ["a"]


async def test_a_session_lives_through_writes_and_reads(catalogue: Catalogue) -> None:
    await catalogue.write(lambda cx: sessions.create_session(cx, a_session(), full_change()))
    loaded = await catalogue.read(lambda cx: sessions.load_session(cx, SESSION))
    assert loaded is not None
    assert loaded.row.last_seq == 3


async def test_a_read_cannot_write(catalogue: Catalogue) -> None:
    with pytest.raises(CatalogueError, match="read-only"):
        await catalogue.read(put("a"))
    assert await catalogue.read(keys) == []


async def test_a_read_sees_one_moment(catalogue: Catalogue) -> None:
    began, go_on = threading.Event(), threading.Event()

    def twice(cx: Connection) -> tuple[list[str], list[str]]:
        before = keys(cx)
        began.set()
        assert go_on.wait(LONG_S)
        return before, keys(cx)

    found: list[tuple[list[str], list[str]]] = []

    async def read() -> None:
        found.append(await catalogue.read(twice))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(read)
        await trio.to_thread.run_sync(began.wait)
        await catalogue.write(put("a"))  # is not kept waiting by the reader either
        go_on.set()
    assert found == [([], [])]
    assert await catalogue.read(keys) == ["a"]


async def test_a_failed_read_leaves_the_reader_usable(catalogue: Catalogue) -> None:
    def fails(cx: Connection) -> None:
        keys(cx)
        raise NotFound("nothing here")

    for _ in range(readers.READERS * 3):
        with pytest.raises(NotFound):
            await catalogue.read(fails)
    assert await catalogue.read(keys) == []


# --- groups ---


async def test_writes_that_queue_up_share_one_commit_in_the_order_they_came(
    catalogue: Catalogue,
) -> None:
    commits = Commits()
    results: list[str] = []

    async def write(name: str) -> None:
        results.append(await catalogue.write(commits.note(name)))

    names = [f"{number:03d}" for number in range(100)]
    async with trio.open_nursery() as nursery, occupied(catalogue):
        for name in names:
            nursery.start_soon(write, name)
            await trio.testing.wait_all_tasks_blocked()
    assert commits.groups == [names]
    assert sorted(results) == names


async def fill(
    catalogue: Catalogue, jobs: list[tuple[Callable[[Connection], Any], int]]
) -> list[Any]:
    """Queue all of them for one group; their results, or exceptions, in order."""
    results: list[Any] = [None] * len(jobs)

    async def run(index: int) -> None:
        fn, size_hint = jobs[index]
        try:
            results[index] = await catalogue.write(fn, size_hint=size_hint)
        except Exception as error:
            results[index] = error

    async with trio.open_nursery() as nursery, occupied(catalogue):
        for index in range(len(jobs)):
            nursery.start_soon(run, index)
            await trio.testing.wait_all_tasks_blocked()
    return results


async def test_a_group_is_bounded_in_number(catalogue: Catalogue) -> None:
    commits = Commits()
    jobs = [(commits.note(str(number)), 0) for number in range(writer.MAX_GROUP + 1)]
    await fill(catalogue, jobs)
    # `fill` starts its tasks one by one, so the order of the two groups is the order queued.
    assert [len(group) for group in commits.groups] == [writer.MAX_GROUP, 1]


@pytest.mark.parametrize(
    ("sizes", "groups"),
    [
        ([8, 8], [2]),  # exactly full
        ([8, 8, 1], [2, 1]),
        ([100, 1], [1, 1]),  # a larger one goes alone, and goes
        ([1, 100, 1], [1, 1, 1]),
    ],
)
async def test_a_group_is_bounded_in_bytes(
    catalogue: Catalogue, sizes: list[int], groups: list[int]
) -> None:
    commits = Commits()
    await fill(catalogue, [(commits.note(str(size)), size * 2**20) for size in sizes])
    assert [len(group) for group in commits.groups] == groups


@pytest.mark.parametrize("position", [0, 1, 2])
async def test_one_that_raises_is_undone_alone(catalogue: Catalogue, position: int) -> None:
    jobs: list[tuple[Callable[[Connection], Any], int]] = [(put("a"), 0), (put("b"), 0)]
    jobs.insert(position, (fail(Conflict("mine")), 0))
    results = await fill(catalogue, jobs)
    assert isinstance(results.pop(position), Conflict)
    assert results == ["a", "b"]
    assert await catalogue.read(keys) == ["a", "b"]


async def test_each_of_many_failures_goes_to_its_own_caller(catalogue: Catalogue) -> None:
    jobs: list[tuple[Callable[[Connection], Any], int]] = []
    for number in range(20):
        jobs.append((fail(KeyError(number)), 0))
        jobs.append((put(f"{number:02d}"), 0))
    results = await fill(catalogue, jobs)
    assert [error.args for error in results[::2]] == [(number,) for number in range(20)]
    assert await catalogue.read(keys) == results[1::2]


async def with_sessions(catalogue: Catalogue, count: int) -> list[str]:
    ids = [session_id(number) for number in range(count)]
    for name in ids:
        opened = Change(threads=[main_thread()])
        await catalogue.write(
            lambda cx, name=name, opened=opened: sessions.create_session(  # type: ignore[misc]
                cx, a_session(id=name), opened
            )
        )
    return ids


def said(name: str, seq: int, epoch: int = 1) -> tuple[sessions.Applied, int]:
    change = Change(messages=[message(seq)], threads=[main_thread(seq)])
    return sessions.Applied(name, epoch, change), 0


def last_seqs(cx: Connection) -> list[int]:
    table = schema.sessions
    return list(cx.execute(select(table.c.last_seq).order_by(table.c.id)).scalars())


async def test_changes_of_a_group_run_together_and_in_their_order(catalogue: Catalogue) -> None:
    ids = await with_sessions(catalogue, 5)
    # Of the first session three, one upon the other, and something else in between.
    jobs = [said(name, 1) for name in ids] + [said(ids[0], 2), (put("a"), 0), said(ids[0], 3)]
    assert await fill(catalogue, jobs) == [None] * 6 + ["a", None]
    assert await catalogue.read(last_seqs) == [3, 1, 1, 1, 1]


async def test_one_of_those_that_run_together_fails_alone(catalogue: Catalogue) -> None:
    ids = await with_sessions(catalogue, 5)
    jobs = [said(name, 1, epoch=2 if name == ids[2] else 1) for name in ids]
    results = await fill(catalogue, jobs)
    assert isinstance(results.pop(2), NotOwner)
    assert results == [None] * 4
    assert await catalogue.read(last_seqs) == [1, 1, 0, 1, 1]


@on_sqlite
async def test_a_line_each_of_many_sessions_is_a_handful_of_statements(
    catalogue: Catalogue,
) -> None:
    ids = await with_sessions(catalogue, 100)
    ran: list[str] = []

    def watch(cx: Connection, *, watching: bool) -> None:
        driver: Any = cx.connection.dbapi_connection
        driver.set_trace_callback(ran.append if watching else None)

    await catalogue.write(lambda cx: watch(cx, watching=True))
    await fill(catalogue, [said(name, 1) for name in ids])
    await catalogue.write(lambda cx: watch(cx, watching=False))
    # FTS5's own statements are traced as comments.
    assert len([text for text in ran if not text.startswith("--")]) < 20
    assert await catalogue.read(last_seqs) == [1] * 100


async def test_later_writes_of_a_group_see_the_earlier_also_after_a_failure(
    catalogue: Catalogue,
) -> None:
    results = await fill(
        catalogue, [(put("a"), 0), (fail(ValueError()), 0), (keys, 0), (put("b"), 0), (keys, 0)]
    )
    assert results[2] == ["a"]
    assert results[4] == ["a", "b"]


async def test_a_contradiction_in_the_tables_is_our_defect_and_stays_alone(
    catalogue: Catalogue,
) -> None:
    first, second, third = await fill(catalogue, [(put("a"), 0), (put("a"), 0), (put("b"), 0)])
    assert (first, third) == ("a", "b")
    assert isinstance(second, Internal)
    assert re.search(
        "UNIQUE constraint failed: meta.key|unique constraint .pk_meta", second.message
    )
    assert second.__cause__ is not None


async def test_a_function_that_ends_the_transaction_fails_its_whole_group(
    catalogue: Catalogue,
) -> None:
    """As a full disk does by itself; nobody may be told that such a write is stored."""

    def swallowing(cx: Connection) -> None:
        with contextlib.suppress(OperationalError):
            cx.exec_driver_sql("ROLLBACK")

    results = await fill(catalogue, [(put("a"), 0), (swallowing, 0), (put("b"), 0)])
    assert all(isinstance(result, CatalogueError) for result in results)
    assert "before its commit" in str(results[0])
    assert await catalogue.read(keys) == []
    await catalogue.write(put("c"))
    assert await catalogue.read(keys) == ["c"]


async def test_a_transaction_lost_in_the_second_run_fails_its_whole_group(
    catalogue: Catalogue,
) -> None:
    def losing(cx: Connection) -> None:
        cx.exec_driver_sql("ROLLBACK")
        raise CatalogueError("the disk went away")

    results = await fill(catalogue, [(put("a"), 0), (losing, 0), (put("b"), 0)])
    assert [str(result) for result in results] == ["the disk went away"] * 3
    assert await catalogue.read(keys) == []
    assert len({id(result) for result in results}) == 3  # an exception of its own for each


# --- bounds ---


async def test_writes_beyond_the_queue_are_refused_and_the_others_stored(
    catalogue: Catalogue,
) -> None:
    stored = 0

    async def count() -> None:
        nonlocal stored
        await catalogue.write(lambda _cx: None)
        stored += 1

    async with trio.open_nursery() as nursery, occupied(catalogue):
        for _ in range(writer.MAX_QUEUE):
            nursery.start_soon(count)
        await trio.testing.wait_all_tasks_blocked()
        with pytest.raises(CatalogueError, match=f"busy: {writer.MAX_QUEUE} writes"):
            await catalogue.write(lambda _cx: None)
    assert stored == writer.MAX_QUEUE


async def test_reads_beyond_the_bound_are_refused(
    catalogue: Catalogue, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(readers, "MAX_WAITING_READS", 3)
    go_on = threading.Event()
    async with trio.open_nursery() as nursery:
        for _ in range(readers.READERS + 3):
            nursery.start_soon(catalogue.read, lambda _cx: go_on.wait(LONG_S))
        await trio.testing.wait_all_tasks_blocked()
        with pytest.raises(CatalogueError, match="busy: 3 reads are waiting"):
            await catalogue.read(keys)
        go_on.set()
    assert await catalogue.read(keys) == []


async def test_reads_in_turn_are_one_threads(catalogue: Catalogue) -> None:
    names = {await catalogue.read(lambda _cx: threading.current_thread().name) for _ in range(20)}
    assert len(names) == 1


# --- cancellation ---


async def test_a_read_that_waits_is_forgotten_with_its_caller(catalogue: Catalogue) -> None:
    ran: list[str] = []
    go_on = threading.Event()
    async with trio.open_nursery() as nursery:
        for _ in range(readers.READERS):
            nursery.start_soon(catalogue.read, lambda _cx: go_on.wait(LONG_S))
        await trio.testing.wait_all_tasks_blocked()
        with trio.move_on_after(0):
            await catalogue.read(lambda _cx: ran.append("cancelled before"))
        with trio.CancelScope() as scope:
            async with trio.open_nursery() as waiting:
                waiting.start_soon(catalogue.read, lambda _cx: ran.append("cancelled waiting"))
                await trio.testing.wait_all_tasks_blocked()
                scope.cancel()
        nursery.start_soon(catalogue.read, lambda _cx: ran.append("not cancelled"))
        await trio.testing.wait_all_tasks_blocked()
        go_on.set()
    assert ran == ["not cancelled"]


async def test_a_read_under_way_is_waited_for_though_its_caller_is_cancelled(
    catalogue: Catalogue,
) -> None:
    began, go_on = threading.Event(), threading.Event()
    results: list[str] = []

    def slow(_cx: Connection) -> str:
        began.set()
        assert go_on.wait(LONG_S)
        return "read"

    async def cancelled() -> None:
        with trio.CancelScope() as own:
            nursery.start_soon(cancel_once_begun, own)
            results.append(await catalogue.read(slow))

    async def cancel_once_begun(scope: trio.CancelScope) -> None:
        await trio.to_thread.run_sync(began.wait)
        scope.cancel()
        go_on.set()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(cancelled)
    assert results == ["read"]


async def test_a_write_once_queued_completes_though_its_caller_is_cancelled(
    catalogue: Catalogue,
) -> None:
    result: list[str] = []
    with trio.CancelScope() as scope:
        async with trio.open_nursery() as nursery:

            async def cancelled() -> None:
                with trio.CancelScope() as own:
                    result.append(await catalogue.write(put("a")))
                    own.cancel()
                    await trio.lowlevel.checkpoint()
                    raise AssertionError("the cancellation comes at the next checkpoint")

            async with occupied(catalogue):
                nursery.start_soon(cancelled)
                await trio.testing.wait_all_tasks_blocked()
                nursery.cancel_scope.cancel()
                await trio.lowlevel.cancel_shielded_checkpoint()
                assert result == []  # still waiting for its write
    assert not scope.cancelled_caught
    assert result == ["a"]
    assert await catalogue.read(keys) == ["a"]


async def test_a_caller_cancelled_before_its_write_queues_nothing(catalogue: Catalogue) -> None:
    with trio.CancelScope() as scope:
        scope.cancel()
        await catalogue.write(put("a"))
    assert scope.cancelled_caught
    assert await catalogue.read(keys) == []


# --- closing ---


async def test_closing_stores_what_is_queued(url: str) -> None:
    catalogue = Catalogue.open(url)
    async with trio.open_nursery() as nursery:
        async with occupied(catalogue):
            for name in ("a", "b"):
                nursery.start_soon(catalogue.write, put(name))
            await trio.testing.wait_all_tasks_blocked()
        await trio.to_thread.run_sync(catalogue.close)
    again = Catalogue.open(url)
    assert await again.read(keys) == ["a", "b"]
    again.close()


async def test_closing_waits_for_the_reads_under_way(url: str) -> None:
    catalogue = Catalogue.open(url)
    began, go_on = threading.Event(), threading.Event()
    found: list[list[str]] = []

    def slow(cx: Connection) -> list[str]:
        began.set()
        assert go_on.wait(LONG_S)
        return keys(cx)

    async def read() -> None:
        found.append(await catalogue.read(slow))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(read)
        await trio.to_thread.run_sync(began.wait)
        nursery.start_soon(trio.to_thread.run_sync, catalogue.close)
        await trio.testing.wait_all_tasks_blocked()
        go_on.set()
    assert found == [[]]


async def test_a_closed_catalogue_says_so(url: str) -> None:
    catalogue = Catalogue.open(url)
    catalogue.close()
    catalogue.close()
    with pytest.raises(CatalogueError, match="is closed"):
        await catalogue.write(put("a"))
    with pytest.raises(CatalogueError, match="is closed"):
        await catalogue.read(keys)


def test_a_catalogue_outlives_the_event_loop_it_was_used_in(catalogue: Catalogue) -> None:
    for name in ("a", "b"):
        trio.run(catalogue.write, put(name))
    assert trio.run(catalogue.read, keys) == ["a", "b"]


@on_sqlite
async def test_closing_leaves_no_log_behind(url: str) -> None:
    """The last to close folds the log into the file, which is then whole by itself."""
    catalogue = Catalogue.open(url)
    await catalogue.write(put("a"))
    catalogue.close()
    assert not await trio.Path(f"{url.removeprefix('sqlite:///')}-wal").exists()


# --- sessions under fire ---


async def test_many_sessions_at_once_lose_nothing_to_each_other(catalogue: Catalogue) -> None:
    async def one(number: int) -> None:
        name = f"s_{number}"
        opened = Change(threads=[main_thread()])
        await catalogue.write(lambda cx: sessions.create_session(cx, a_session(id=name), opened))
        for seq in range(1, 21):
            change = Change(messages=[message(seq)])
            await catalogue.write(lambda cx, c=change: sessions.apply_change(cx, name, 1, c))
            if seq % 7 == 0:
                with pytest.raises(Internal):  # repeats; undone alone, whatever its group
                    await catalogue.write(
                        lambda cx, c=change: sessions.apply_change(cx, name, 1, c)
                    )

    async with trio.open_nursery() as nursery:
        for number in range(30):
            nursery.start_soon(one, number)
    found, _ = await catalogue.read(lambda cx: sessions.list_sessions(cx, owner=None))
    assert {row.last_seq for row in found} == {20}
    assert len(found) == 30
