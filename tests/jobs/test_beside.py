"""Claims that meet in PostgreSQL: beside one another where they can, by turns where they must; hints."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path

import pytest
import trio
from sqlalchemy import Connection
from sqlalchemy.exc import OperationalError

from holdoverd.catalogue import jobs as jobs_table
from holdoverd.catalogue.dialect import Dialect, dialect_for
from holdoverd.catalogue.store import Catalogue
from holdoverd.errors import CatalogueError
from holdoverd.jobs import rules
from holdoverd.jobs.rules import Fenced, Job
from tests.jobs.yard import new_job
from tests.postgres import Postgres

pytestmark = pytest.mark.slow


@pytest.fixture
def database() -> str:
    return "postgresql"


@contextmanager
def beside(dialect: Dialect) -> Iterator[Connection]:
    """A transaction as `write_beside` has it, which waits for no lock for long."""
    engine = dialect.beside_engine()
    assert engine is not None
    try:
        with engine.connect() as cx, cx.begin():
            cx.exec_driver_sql("SET LOCAL lock_timeout = '100ms'")
            yield cx
    finally:
        engine.dispose()


def claim(cx: Connection, limit: int = 0) -> Job | None:
    return jobs_table.claim(cx, {"p": limit}, worker="w", host="h", now=new_job("p").ready_at)


def add_one(cx: Connection) -> None:
    jobs_table.create_job(cx, new_job("p"))


def add(dialect: Dialect, count: int) -> None:
    with beside(dialect) as cx:
        for _ in range(count):
            add_one(cx)


def test_claims_take_different_jobs_and_wait_for_nobody(migrated: str) -> None:
    dialect = dialect_for(migrated)
    add(dialect, 3)
    with ExitStack() as open_:
        claims = [claim(open_.enter_context(beside(dialect))) for _ in range(4)]
    assert len({job.id for job in claims if job is not None}) == 3
    assert claims[3] is None


def test_claims_that_go_by_what_runs_take_turns(migrated: str) -> None:
    dialect = dialect_for(migrated)
    add(dialect, 2)
    with beside(dialect) as one:
        assert claim(one, limit=1) is not None
        # The other would count none that runs, since the first is not committed.
        with pytest.raises(OperationalError, match="lock timeout"), beside(dialect) as other:
            claim(other, limit=1)
    with beside(dialect) as later:
        assert claim(later, limit=1) is None


def test_an_end_waits_for_whoever_changes_the_job_and_finds_itself_fenced(migrated: str) -> None:
    dialect = dialect_for(migrated)
    add(dialect, 1)
    with beside(dialect) as cx:
        job = claim(cx)
    assert job is not None

    def ended(cx: Connection) -> None:
        jobs_table.change_held(
            cx, job.id, job.attempt, lambda held: rules.done(held, result="{}", now=1)
        )

    with beside(dialect) as canceller:
        jobs_table.change(canceller, job.id, lambda held: rules.cancel(held, 1))  # type: ignore[arg-type]
        with pytest.raises(OperationalError, match="lock timeout"), beside(dialect) as cx:
            ended(cx)
    with pytest.raises(Fenced), beside(dialect) as cx:
        ended(cx)


async def test_a_claim_goes_alone_until_one_is_next_that_goes_by_what_runs(migrated: str) -> None:
    catalogue = Catalogue.open(migrated)
    now = new_job("p").ready_at

    def claim(cx: Connection, alone: bool = True) -> Job | None:
        limits = {"p": 0, "q": 1}
        return jobs_table.claim(cx, limits, worker="w", host="h", now=now, alone=alone)

    for processor, run_after in (("p", now - 3), ("q", now - 2), ("p", now - 1)):
        job = new_job(processor, run_after=run_after)
        await catalogue.write(partial(jobs_table.create_job, job=job))
    with trio.fail_after(20):
        first = await catalogue.write_alone(claim)
        assert first is not None
        with pytest.raises(jobs_table.NeedsTurn):
            await catalogue.write_alone(claim)
        second = await catalogue.write_beside(partial(claim, alone=False))
        third = await catalogue.write_beside(partial(claim, alone=False))
    assert [job.processor if job else None for job in (first, second, third)] == ["p", "q", "p"]
    await trio.to_thread.run_sync(catalogue.close)


async def test_what_goes_alone_is_stored_at_once_and_outlives_a_broken_connection(
    migrated: str,
) -> None:
    catalogue = Catalogue.open(migrated)

    def add_and_break(cx: Connection) -> None:
        add_one(cx)
        cx.exec_driver_sql("SELECT pg_terminate_backend(pg_backend_pid())")

    with trio.fail_after(20):
        with pytest.raises(CatalogueError, match="cannot be reached"):
            await catalogue.write_alone(add_and_break)
        # So its caller looks whether it came about.
        assert await catalogue.read(lambda cx: jobs_table.count_due(cx, ["p"], 2**60, 9)) == 1
        await catalogue.write_alone(add_one)
    await trio.to_thread.run_sync(catalogue.close)


async def test_writes_beside_pass_a_turn_that_somebody_holds(migrated: str) -> None:
    dialect = dialect_for(migrated)
    engine = dialect.writer_engine()
    catalogue = Catalogue.open(migrated)
    try:
        with engine.connect() as cx, cx.begin():  # as an instance that stands still in its turn
            with trio.fail_after(3):
                await catalogue.write_beside(partial(jobs_table.create_job, job=new_job("p")))
        assert await catalogue.read(lambda cx: jobs_table.count_due(cx, ["p"], 2**60, 9)) == 1
    finally:
        engine.dispose()
        await trio.to_thread.run_sync(catalogue.close)


async def test_a_write_beside_that_raises_undoes_itself_alone(migrated: str) -> None:
    catalogue = Catalogue.open(migrated)

    def fenced(cx: Connection) -> None:
        add_one(cx)
        jobs_table.change_held(cx, "j_none", 1, lambda held: held)

    async def refused() -> None:
        with pytest.raises(Fenced):
            await catalogue.write_beside(fenced)

    async with trio.open_nursery() as nursery:
        for _ in range(5):  # some of them in one transaction
            nursery.start_soon(refused)
            nursery.start_soon(catalogue.write_beside, add_one)
    assert await catalogue.read(lambda cx: jobs_table.count_due(cx, ["p"], 2**60, 99)) == 5
    await trio.to_thread.run_sync(catalogue.close)


async def test_a_job_that_becomes_ready_is_hinted_at_and_after_a_break_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("holdoverd.catalogue.hints.AGAIN_S", 0.05)
    server = Postgres()
    try:
        catalogue = Catalogue.open(server.url(server.create()))
        hints = catalogue.hints(jobs_table.HINT)
        heard = 0

        def wake() -> None:
            nonlocal heard
            heard += 1

        async def hears(count: int) -> None:
            with trio.fail_after(15):
                while heard < count:
                    await trio.sleep(0.01)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(hints.run, wake)
            await hears(1)  # it listens now
            assert hints.listening
            job = new_job("p")
            await catalogue.write(partial(jobs_table.create_job, job=job))
            await hears(2)
            # Nobody has to look because one was claimed.
            assert await catalogue.write_beside(claim) is not None
            await catalogue.write_beside(
                lambda cx: jobs_table.change_held(
                    cx, job.id, 1, lambda held: rules.lost(held, how="x", chance=0, now=1)
                )
            )
            await hears(3)
            await trio.to_thread.run_sync(server.stop)
            with trio.fail_after(15):
                while hints.listening:
                    await trio.sleep(0.01)
            await trio.to_thread.run_sync(server.start)
            await hears(4)
            assert heard == 4
            nursery.cancel_scope.cancel()
        assert not hints.listening
        await trio.to_thread.run_sync(catalogue.close)
    finally:
        server.remove()


async def test_sqlite_hints_at_nothing_and_says_so(tmp_path: Path) -> None:
    catalogue = Catalogue.open(f"sqlite:///{tmp_path}/catalogue.db")
    with trio.fail_after(5):
        await catalogue.hints(jobs_table.HINT).run(lambda: None)
        await catalogue.write_beside(partial(jobs_table.create_job, job=new_job("p")))
        await catalogue.write_alone(partial(jobs_table.create_job, job=new_job("p")))
    catalogue.close()
