"""Removes what has been kept for as long as ``[retention]`` says: nothing, unless it says so.

Whichever instance comes first does it, once in an hour, in pieces with pauses between them. Sessions
go by the way that people remove them by, their owner's, so that nobody is left with half of one.
"""

import logging
from collections.abc import Callable
from typing import Protocol

import trio
from sqlalchemy import Connection

from holdoverd.callers import Caller
from holdoverd.catalogue import retained
from holdoverd.catalogue.files import take_turn
from holdoverd.catalogue.retained import Counts, Limits
from holdoverd.catalogue.store import Catalogue
from holdoverd.errors import CatalogueError, RequestError
from holdoverd.ids import now_ms
from holdoverd.settings import RetentionSettings

log = logging.getLogger(__name__)

TURN = "retention_at"  # in `meta`
EVERY_S = 3600.0
LOOK_S = 60.0
BATCH = 200
PAUSE_S = 0.05
DAY_MS = 24 * 3600 * 1000


class Ending(Protocol):
    """Of the sessions' service; see http/context.py."""

    async def end(self, caller: Caller, session: str, *, purge: bool) -> None: ...


def limits(settings: RetentionSettings, now: int) -> Limits:
    """The moments before which things go. Zero days: never."""

    def before(days: float) -> int | None:
        return now - round(days * DAY_MS) if days else None

    return Limits(
        before(settings.ended_sessions_days),
        before(settings.finished_jobs_days),
        before(settings.audit_days),
    )


class Retention:
    """Made once in an instance."""

    def __init__(
        self,
        catalogue: Catalogue,
        sessions: Ending,
        settings: RetentionSettings,
        now: Callable[[], int] = now_ms,
    ) -> None:
        self._catalogue = catalogue
        self._sessions = sessions
        self.settings = settings
        self._now = now
        self._one_at_a_time = trio.Lock()

    async def run(self) -> None:
        """Once an hour, where anything is configured to go."""
        if limits(self.settings, 0) == Limits(None, None, None):
            return
        while True:
            await trio.sleep(LOOK_S)
            now = self._now()
            try:
                if await self._catalogue.write(
                    lambda cx: take_turn(cx, TURN, now, int(EVERY_S * 1000))  # noqa: B023
                ):
                    await self.remove()
            except CatalogueError as error:
                log.warning("removing what is old was cut short, trying again later: %s", error)
            except Exception:
                # A defect here must not end the instance, whose sessions have nothing to do with it.
                log.exception("removing what is old failed, trying again later")

    async def due(self) -> Counts:
        """How much would go now."""
        now = limits(self.settings, self._now())
        return await self._catalogue.read(lambda cx: retained.count(cx, now))

    async def remove(self) -> Counts:
        """Remove it; how much went. Raises CatalogueError; what went until then is gone."""
        async with self._one_at_a_time:
            now = limits(self.settings, self._now())
            gone = Counts(
                await self._remove_sessions(now.sessions),
                await self._remove_rows(retained.remove_jobs, now.jobs),
                await self._remove_rows(retained.remove_audit, now.audit),
            )
        if gone != Counts(0, 0, 0):
            log.info(
                "removed as [retention] says: %d sessions, %d jobs, %d rows of the audit",
                gone.sessions,
                gone.jobs,
                gone.audit,
            )
        return gone

    async def _remove_sessions(self, before: int | None) -> int:
        if before is None:
            return 0
        caller = Caller("default", "", frozenset(), None, admin=True)
        gone, refused = 0, set[str]()
        while True:
            found = await self._catalogue.read(
                lambda cx: retained.old_sessions(cx, before, BATCH + len(refused))
            )
            todo = [session for session in found if session not in refused]
            if not todo:
                return gone
            for session in todo:
                try:
                    await self._sessions.end(caller, session, purge=True)
                    gone += 1
                except RequestError as error:
                    # Its owner is just being replaced, say: the next hour's.
                    refused.add(session)
                    log.warning("not removed: %s", error, extra={"session": session})
                await trio.sleep(PAUSE_S)

    async def _remove_rows(
        self, remove: Callable[[Connection, int, int], int], before: int | None
    ) -> int:
        gone = 0
        while before is not None:
            number = await self._catalogue.write(lambda cx: remove(cx, before, BATCH))
            gone += number
            if number < BATCH:
                break
            await trio.sleep(PAUSE_S)
        return gone
