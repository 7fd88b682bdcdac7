"""Which sessions this instance has in its hands: adopting, giving away, letting go.

A session that nobody on this host owns is adopted at the first touch; those with work to do are
looked for. What is held is an `OwnedSession`; whose it is, the catalogue decides
(`sessions_table.take_ownership`).
"""

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeAlias

import outcome
import trio
from sqlalchemy import Connection

from holdoverd.catalogue import messages as messages_table
from holdoverd.catalogue import sessions as sessions_table
from holdoverd.catalogue.records import SessionRow
from holdoverd.errors import (
    CatalogueError,
    NotOwner,
    OwnedElsewhere,
    RequestError,
    SessionMoved,
    Unavailable,
)
from holdoverd.ids import now_ms
from holdoverd.sessions.means import Instance
from holdoverd.sessions.model import SessionModel
from holdoverd.sessions.owner import OwnedSession, purge_rows
from holdoverd.sessions.rights import no_session
from holdoverd.sessions.viewer import CLOSE_GOING_AWAY

log = logging.getLogger(__name__)

ADOPT_S = 2.0
"""How often sessions of instances that have died are looked for."""

ADOPT_AT_ONCE = 8
"""Side by side, so that one commit serves several of them."""

RECALLED_UUIDS = 512
"""How far back a line that an agent sends again is known for one after an adoption. Such a line
follows its original closely; and each one recalled is a row to read before anybody is served."""

REST_S = 60.0
"""A session that has rested for so long is kept by the catalogue alone."""

_Loaded: TypeAlias = tuple[sessions_table.LoadedSession, list[str]]


class Holding:
    """The sessions of one instance, and what becomes of them as instances come and go."""

    def __init__(self, instance: Instance, live_generations: Callable[[], set[int]]) -> None:
        self._in = instance
        self._live_generations = live_generations
        self._owned: dict[str, OwnedSession] = {}
        self._adopting: dict[str, trio.Event] = {}
        self._touched: dict[str, float] = {}  # {session: when it last did something}
        self._letting_go = False
        # {session: set once it is settled who has it}; see `handing_over`
        self._moving: dict[str, trio.Event] = {}
        self._adopts_orphans = True
        self._look = trio.Event()

    # -- owning -----------------------------------------------------------------------------------

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Adopt what this host's dead instances left, first of all our own earlier process's.

        The doors need not wait for that: a session that somebody asks for is adopted at once.
        """
        cleaned = False
        task_status.started()
        while True:
            try:
                if self._adopts_orphans and not cleaned:
                    await self._clean_up()
                    cleaned = True
                if self._adopts_orphans:
                    await self._adopt_orphans()
            except (RequestError, OSError) as error:
                log.warning("looking for sessions to adopt: %s Retrying.", error)
            with trio.move_on_after(ADOPT_S):
                await self._look.wait()
            self._look = trio.Event()
            self._retire_resting()

    def adopt_orphans(self, willing: bool) -> None:
        """Whether this instance takes up what others left; a look at once if it does."""
        self._adopts_orphans = willing
        self._look.set()

    # -- handing over -----------------------------------------------------------------------------

    def owned_ids(self) -> list[str]:
        """Sessions that this instance serves; those at rest with nobody watching do not count."""
        return [s.id for s in self._owned.values() if not s.lost.is_set() and not s.resting]

    def finished(self, session: str, idle_s: float) -> bool:
        """Whether a draining instance need not wait for it any longer.

        It has no agent any more, or the agent has done nothing for `idle_s` and has nothing to do:
        no turn, no open permission, no background task.
        """
        owned = self._owned.get(session)
        if owned is None or owned.lost.is_set():
            return False
        if not owned.live:
            return True
        return owned.model.has_rested(idle_s * 1000, now_ms())

    def rest(self) -> None:
        """Forget every session at rest: whoever is asked for one adopts it."""
        for session, owned in list(self._owned.items()):
            if owned.resting and session not in self._moving:
                owned.lose()
                del self._owned[session]
                self._touched.pop(session, None)

    async def pause(self, session: str) -> None:
        """Read no more of what its agent says: then it can be let go of at once."""
        owned = self._owned.get(session)
        if owned is not None:
            await owned.pause()

    def go_on(self, session: str) -> None:
        """It stays: take `pause` back. Harmless where nothing was paused, or it is gone."""
        owned = self._owned.get(session)
        if owned is not None:
            owned.go_on()

    @contextmanager
    def handing_over(self, session: str) -> Iterator[bool]:
        """Within the block nobody begins to watch the session here. False: it cannot be now."""
        owned = self._owned.get(session)
        if owned is None or owned.lost.is_set() or session in self._moving:
            yield False
            return
        settled = self._moving[session] = trio.Event()
        try:
            yield True
        finally:
            del self._moving[session]
            settled.set()

    async def let_go_of(self, session: str) -> int | None:
        """Within `handing_over`, its connections detached: end all that runs for it here.

        The owner epoch it was held by; None where it cannot be let go now. Afterwards whoever is
        asked for it adopts it, this instance too.
        """
        owned = self._owned.get(session)
        if owned is None or not await owned.let_go():
            return None
        del self._owned[session]
        self._touched.pop(session, None)
        return owned.owner_epoch

    async def take(self, session: str, owner_epoch: int, generation: int) -> None:
        """Adopt what a living sibling has let go of. Raises RequestError."""
        if self._letting_go:
            raise Unavailable("This instance is going away.")
        await self._adopt_once(session, willing=(generation, owner_epoch))

    def yields(self, session: str) -> bool:
        """Whether a sibling may adopt the session although we own it: it is at rest here."""
        owned = self._owned.get(session)
        if session in self._moving or session in self._adopting:
            return False
        if owned is None or owned.lost.is_set():
            return True
        if owned.resting:
            owned.lose()
            return True
        return False

    def _retire_resting(self) -> None:
        """Forget sessions that have rested for a while: the catalogue knows all about them."""
        now = trio.current_time()
        for session, owned in list(self._owned.items()):
            if owned.lost.is_set():
                del self._owned[session]
                self._touched.pop(session, None)
            elif not owned.resting:
                self._touched[session] = now
            elif now - self._touched.setdefault(session, now) > REST_S:
                owned.lose()

    async def _adopt_orphans(self) -> None:
        """Adopt the sessions with work to do that nobody holds.

        Those of dead instances, of an earlier process of this one, and those that a task of ours
        lost by a defect.
        """
        live = self._live_generations() | {self._in.generation}
        ids = await self._in.catalogue.read(
            lambda cx: sessions_table.sessions_to_adopt(
                cx,
                self._in.host,
                live,
                own=self._in.generation,
                go_on_in=self._in.boot_id if self._in.resume_on_boot else None,
            )
        )
        waiting = iter(ids)

        async def adopt_some() -> None:
            for session in waiting:
                await self._adopt_orphan(session)

        async with trio.open_nursery() as nursery:
            for _ in range(ADOPT_AT_ONCE):
                nursery.start_soon(adopt_some)

    async def _adopt_orphan(self, session: str) -> None:
        known = self._owned.get(session)
        if (
            self._letting_go
            or session in self._moving
            or (known is not None and not known.lost.is_set())
        ):
            return
        try:
            await self.owned(session)
        except RequestError as error:
            log.info("not adopting: %s", error, extra={"session": session})
        except Exception:
            # One session's defect is not the others'.
            log.exception("not adopting, trying again later", extra={"session": session})

    async def _clean_up(self) -> None:
        """Remove what earlier processes were about to when they died."""
        catalogue, paths = self._in.catalogue, self._in.paths
        # Listed first: a launch is on record before its files are made, so what is listed and not
        # on record belongs to one that is over.
        files = [*paths.spools.glob("l_*.spool"), *paths.sessions.glob("l_*.sock")]
        on_record = set(await catalogue.read(sessions_table.launches_not_ended))
        for path in files:
            if path.stem not in on_record:
                path.unlink(missing_ok=True)
        for session in await catalogue.read(sessions_table.purges_unfinished):
            try:
                await purge_rows(catalogue, session)
            except CatalogueError as error:
                # A full disk, most likely: no reason not to serve. Nobody sees them any more.
                log.warning("finishing a purge: %s The next start tries again.", error)
                return

    async def _load(self, session: str) -> _Loaded | None:
        """A session and the uuids of its latest messages, the newest first."""

        def load(cx: Connection) -> _Loaded | None:
            loaded = sessions_table.load_session(cx, session)
            if loaded is None:
                return None
            return loaded, messages_table.recent_uuids(cx, session, RECALLED_UUIDS)

        return await self._in.catalogue.read(load)

    def held(self, session: str) -> OwnedSession | None:
        """The session, where it is in our hands already."""
        found = self._owned.get(session)
        if found is None or found.lost.is_set():
            return None
        self._touched[session] = trio.current_time()
        return found

    async def owned(self, session: str) -> OwnedSession:
        """The session in our hands, adopted if its owner is gone.

        Raises NotFound, and Unavailable when another living instance owns it.
        """
        while True:
            if (found := self.held(session)) is not None:
                return found
            if self._letting_go:
                raise Unavailable("This instance is going away; connect again.")
            if (moving := self._moving.get(session)) is not None:
                await moving.wait()
                continue
            await self._adopt_once(session)

    async def _adopt_once(self, session: str, willing: tuple[int, int] | None = None) -> None:
        """Adopt, unless somebody is at it: then wait for what comes of that."""
        if (other := self._adopting.get(session)) is not None:
            await other.wait()
            if willing is not None:
                raise SessionMoved(f"Session {session} was adopted at the same time.")
            return
        done = self._adopting[session] = trio.Event()
        try:
            with trio.CancelScope(shield=True):
                self._owned[session] = await self._adopt(session, willing)
        finally:
            del self._adopting[session]
            done.set()

    async def _adopt(self, session: str, willing: tuple[int, int] | None = None) -> OwnedSession:
        """Take ownership, then load. `willing`: (generation, owner epoch) of one that gives it."""
        catalogue, me = self._in.catalogue, self._in
        me.observe("adopt")
        # What a sibling of this host has just let go of needs no look: whoever was faster has
        # changed the epoch. Its viewers wait for every step here.
        expected = willing[1] if willing else (await self._row_of_nobody(session)).owner_epoch
        me.observe("take_ownership")
        read: outcome.Outcome[_Loaded | None] | None = None

        async def read_beside() -> None:
            nonlocal read
            read = await outcome.acapture(self._load, session)

        async with trio.open_nursery() as nursery:
            if willing is not None:
                # Its giver writes no more, and whoever took it from him, or from us, would have
                # changed the epoch: what is read meanwhile is what is there once it is ours.
                nursery.start_soon(read_beside)
            taken = await outcome.acapture(
                catalogue.write,
                lambda cx: sessions_table.take_ownership(
                    cx, session, expected, me.host, me.generation, me.release
                ),
            )
        try:
            epoch = taken.unwrap()
        except NotOwner as error:
            raise SessionMoved(
                f"Session {session} was taken by another instance just now; try again."
            ) from error
        # Else only now is what we read ours to go on with: nobody can change it any more.
        me.observe("load_session")
        found = await self._load(session) if read is None else read.unwrap()
        if found is None:
            raise no_session(session)
        loaded, uuids = found
        row = loaded.row
        if row.owner_epoch not in ({epoch} if read is None else {expected, epoch}):
            raise SessionMoved(f"Session {session} was taken by another instance; try again.")
        row.host, row.generation, row.release = me.host, me.generation, me.release
        row.owner_epoch = epoch
        model = SessionModel(
            loaded.row,
            threads=loaded.threads,
            permissions=loaded.permissions,
            prompts=loaded.prompts,
            launch=loaded.launches[-1] if loaded.launches else None,
            recent_uuids=uuids[::-1],  # oldest first: they are forgotten in this order
        )
        adopted = OwnedSession(me, model, loaded.outbox)
        go_on = (
            me.resume_on_boot
            and loaded.row.turn_cut == "reboot"
            and not await catalogue.read(
                lambda cx: sessions_table.launched_in(cx, session, me.boot_id)
            )
        )
        adopted.begin(go_on=go_on)
        me.counts.adopted += 1
        log.info("adopted the session at epoch %d", epoch, extra={"session": session})
        return adopted

    async def _row_of_nobody(self, session: str) -> SessionRow:
        """The row of a session that may be adopted. Raises RequestError where it may not."""
        row = await self._in.catalogue.read(lambda cx: sessions_table.session_row(cx, session))
        if row is None:
            raise no_session(session)
        if row.host != self._in.host:
            raise Unavailable(f"Session {session} belongs to the host {row.host}; ask there.")
        if row.generation != self._in.generation and row.generation in self._live_generations():
            raise OwnedElsewhere(
                f"Session {session} belongs to generation {row.generation}, which lives; ask again.",
                row.generation,
            )
        return row

    def let_go(self) -> None:
        """This instance stops: agents run on, viewers are told to come back at once."""
        self._letting_go = True
        for session in self._owned.values():
            session.hub.close_all(CLOSE_GOING_AWAY)

    def counts(self) -> tuple[int, int]:
        """(sessions with an agent, viewers), for STATUS= and metrics."""
        live = [s for s in self._owned.values() if not s.lost.is_set()]
        return sum(s.live for s in live), sum(len(s.hub) for s in live)

    def spool_lags(self) -> list[int]:
        """For each session with an agent: the bytes that it has said and we have not read."""
        return [
            owned.following.lag_bytes()
            for owned in self._owned.values()
            if owned.following is not None and not owned.following.gone.is_set()
        ]

    def longest_silence_s(self) -> float:
        """How long the agent has said nothing that has been silent longest in a turn."""
        return max(
            (
                owned.following.silent_s()
                for owned in self._owned.values()
                if owned.following is not None and owned.model.row.state == "working"
            ),
            default=0.0,
        )

    def stuck(self) -> int:
        """Sessions whose agent's words cannot be stored just now."""
        return sum(owned.stuck for owned in self._owned.values())
