"""What is kept for how long: nothing goes unless somebody has said so, and one that is refused waits."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import trio
import trio.testing
from sqlalchemy import Connection

from holdoverd import retention
from holdoverd.callers import Caller
from holdoverd.catalogue import audit, changes, sessions
from holdoverd.catalogue.records import Change
from holdoverd.catalogue.retained import Counts, Limits
from holdoverd.catalogue.store import Catalogue
from holdoverd.errors import NotFound, Unavailable
from holdoverd.retention import DAY_MS, LOOK_S, Retention
from holdoverd.settings import RetentionSettings, load
from tests.catalogue.examples import a_session, session_id
from tests.http.kit import open_catalogue, open_doors

KEEP_ALL = RetentionSettings(0, 0, 0)
NOW = 400 * DAY_MS


def test_by_default_everything_is_kept() -> None:
    assert load([], {}).retention == KEEP_ALL
    assert retention.limits(KEEP_ALL, NOW) == Limits(None, None, None)


def test_days_are_counted_back_from_now() -> None:
    found = retention.limits(RetentionSettings(30, 0.5, 400), NOW)
    assert found == Limits(370 * DAY_MS, NOW - DAY_MS // 2, 0)


class Ending:
    """Removes a session as its owner would; refuses those in `elsewhere`."""

    def __init__(self, catalogue: Catalogue) -> None:
        self.catalogue = catalogue
        self.elsewhere: set[str] = set()
        self.asked: list[str] = []

    async def end(self, caller: Caller, session: str, *, purge: bool) -> None:
        assert caller.admin
        assert purge
        self.asked.append(session)
        if session in self.elsewhere:
            raise Unavailable(f"Session {session} is just being handed over; try again.")
        await self.catalogue.write(lambda cx: changes.purge_session(cx, session, 1))


@pytest.fixture
def catalogue(tmp_path: Path) -> Iterator[Catalogue]:
    opened = open_catalogue(tmp_path)
    yield opened
    opened.close()


def three_sessions_and_a_row_of_the_audit(cx: Connection) -> None:
    for number, days in ((1, 10), (2, 20), (3, 399)):
        row = a_session(id=session_id(number), state="ended", ended_at=days * DAY_MS)
        sessions.create_session(cx, row, Change())
    audit.record(cx, at=1, owner="ann", actor="admin", action="link.made", subject="x")


@pytest.fixture
async def ending(catalogue: Catalogue) -> Ending:
    await catalogue.write(three_sessions_and_a_row_of_the_audit)
    return Ending(catalogue)


async def test_what_is_old_is_counted_then_removed(catalogue: Catalogue, ending: Ending) -> None:
    keeper = Retention(catalogue, ending, RetentionSettings(30, 30, 30), lambda: NOW)
    assert await keeper.due() == Counts(2, 0, 1)
    assert ending.asked == []
    assert await keeper.remove() == Counts(2, 0, 1)
    assert await keeper.due() == Counts(0, 0, 0)
    assert await keeper.remove() == Counts(0, 0, 0)


async def test_one_that_is_refused_is_asked_once_and_holds_up_nobody(
    catalogue: Catalogue, ending: Ending
) -> None:
    keeper = Retention(catalogue, ending, RetentionSettings(30, 0, 0), lambda: NOW)
    ending.elsewhere = {session_id(1)}
    assert await keeper.remove() == Counts(1, 0, 0)
    assert ending.asked == [session_id(1), session_id(2)]
    ending.elsewhere = set()
    assert await keeper.remove() == Counts(1, 0, 0)


async def test_of_two_instances_one_does_it_and_a_defect_ends_neither(
    catalogue: Catalogue, ending: Ending, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(retention, "LOOK_S", 0.02)
    removed: list[str] = []

    class Counting(Retention):
        async def remove(self) -> Counts:
            removed.append("once")
            raise NotFound("a defect")

    looks = 0

    def looked() -> int:
        nonlocal looks
        looks += 1
        return NOW

    settings = RetentionSettings(30, 30, 30)
    async with trio.open_nursery() as nursery:
        for _ in range(2):
            nursery.start_soon(Counting(catalogue, ending, settings, looked).run)
        with trio.fail_after(60):
            while looks < 8:  # each several times
                await trio.sleep(0.01)
        nursery.cancel_scope.cancel()
    assert removed == ["once"]


async def test_nothing_runs_where_nothing_is_to_go(
    catalogue: Catalogue, autojump_clock: trio.testing.MockClock
) -> None:
    with trio.fail_after(LOOK_S / 2):
        await Retention(catalogue, Ending(catalogue), KEEP_ALL).run()


async def test_the_door_tells_and_removes_only_when_told_to(
    catalogue: Catalogue, ending: Ending
) -> None:
    async with open_doors(catalogue) as doors:
        refused = await doors.admin("POST", "/v1/admin/retention", {})
        assert refused.status == 503
        doors.context.retention = Retention(
            catalogue, ending, RetentionSettings(30, 0, 7), lambda: NOW
        )
        told = await doors.admin("POST", "/v1/admin/retention", {})
        days = {"ended_sessions_days": 30, "finished_jobs_days": 0, "audit_days": 7}
        removed = {"sessions": 2, "jobs": 0, "audit": 1}
        assert told.json() == {"dry_run": True, "days": days, "removed": removed}
        assert ending.asked == []
        done = await doors.admin("POST", "/v1/admin/retention", {"dry_run": False})
        assert done.json() == {"dry_run": False, "days": days, "removed": removed}
        assert len(ending.asked) == 2
