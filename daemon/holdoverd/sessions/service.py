"""Sessions as the doors call them: who may do what to which, and what the answer looks like.

Methods raise `RequestError`s and return JSON text or plain values of contract.md, Sessions. A
session that nobody on this host owns is adopted at the first touch.
"""

import hashlib
import logging
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from typing import Any, Literal
from uuid import UUID, uuid4

import trio
from sqlalchemy import Connection

from holdoverd.agents import host_frames
from holdoverd.agents.presets import build_launch, check_model
from holdoverd.callers import Caller
from holdoverd.catalogue import messages as messages_table
from holdoverd.catalogue import sessions as sessions_table
from holdoverd.catalogue.records import LaunchRow, PromptRow, SessionRow
from holdoverd.errors import (
    BadRequest,
    Capacity,
    CatalogueError,
    Conflict,
    Forbidden,
    Gone,
    LaunchError,
    NotFound,
    NotOwner,
    OwnedElsewhere,
    RequestError,
    SessionMoved,
    TooLarge,
    Unavailable,
    Unprocessable,
)
from holdoverd.ids import new_id, now_ms
from holdoverd.sessions import launcher, preparing
from holdoverd.sessions.means import Instance
from holdoverd.sessions.model import MAX_LINE_BYTES, SessionModel, Step
from holdoverd.sessions.owner import OwnedSession, purge_rows
from holdoverd.sessions.viewer import CLOSE_GOING_AWAY, CLOSE_UNSHARED, Viewer, ViewerCursor
from holdoverd.sessions.wire import dumps, message_json, session_view
from holdoverd.settings import AgentSettings

log = logging.getLogger(__name__)

PAGE_SIZE = messages_table.PAGE_SIZE

MAX_COMMANDS_WAITING = 1000
"""Numbered commands that a keeper has not taken yet: an agent that does not read its stdin."""

WITHDRAW_S = 5.0
"""How long a prompt's withdrawal waits for the agent's word. It may come later; the log tells."""

LOG_LIMIT = 500
LOG_BYTES = 4 * 1024 * 1024

ADOPT_S = 2.0
"""How often sessions of instances that have died are looked for."""

ADOPT_AT_ONCE = 8
"""Side by side, so that one commit serves several of them."""

RECALLED_UUIDS = 512
"""How far back a line that an agent sends again is known for one after an adoption. Such a line
follows its original closely; and each one recalled is a row to read before anybody is served."""

REST_S = 60.0
"""A session that has rested for so long is kept by the catalogue alone."""


@dataclass(frozen=True, slots=True)
class Page:
    """One page of a thread as JSON text. A sealed page is full and never changes."""

    json_text: str
    sealed: bool
    etag: str


@dataclass(frozen=True, slots=True)
class Limits:
    """What `[sessions]` of the configuration says about all of them."""

    max_live: int
    default_agent: str


MakeRoom = Callable[[int], Awaitable[None]]
"""Called with the sessions of this instance that have an agent, the one that is to start included."""


async def _nobody_to_ask(_sessions: int) -> None:
    """Without jobs there is nobody else that starts agents."""


class Sessions:
    """Every session this instance knows; made once, in `main`."""

    def __init__(
        self, instance: Instance, limits: Limits, live_generations: Callable[[], set[int]]
    ) -> None:
        self._in = instance
        self._limits = limits
        self._live_generations = live_generations
        self._owned: dict[str, OwnedSession] = {}
        self._adopting: dict[str, trio.Event] = {}
        self._touched: dict[str, float] = {}  # {session: when it last did something}
        self._admitted = 0
        self._make_room: MakeRoom = _nobody_to_ask
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
        row = owned.model.row
        return (
            row.state == "idle"
            and not owned.model.has_tasks
            and now_ms() - row.updated_at >= idle_s * 1000
        )

    def rest(self) -> None:
        """Forget every session at rest: whoever is asked for one adopts it."""
        for session, owned in list(self._owned.items()):
            if owned.resting and session not in self._moving:
                owned.lose()
                del self._owned[session]
                self._touched.pop(session, None)

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

    async def _load(self, session: str) -> tuple[sessions_table.LoadedSession, list[str]] | None:
        """A session and the uuids of its latest messages, the newest first."""

        def load(cx: Connection) -> tuple[sessions_table.LoadedSession, list[str]] | None:
            loaded = sessions_table.load_session(cx, session)
            if loaded is None:
                return None
            return loaded, messages_table.recent_uuids(cx, session, RECALLED_UUIDS)

        return await self._in.catalogue.read(load)

    async def owned(self, session: str) -> OwnedSession:
        """The session in our hands, adopted if its owner is gone.

        Raises NotFound, and Unavailable when another living instance owns it.
        """
        while True:
            found = self._owned.get(session)
            if found is not None and not found.lost.is_set():
                self._touched[session] = trio.current_time()
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
        try:
            epoch = await catalogue.write(
                lambda cx: sessions_table.take_ownership(
                    cx, session, expected, me.host, me.generation, me.release
                )
            )
        except NotOwner as error:
            raise SessionMoved(
                f"Session {session} was taken by another instance just now; try again."
            ) from error
        # Only now is what we read ours to go on with: nobody else can change it any more.
        me.observe("load_session")
        found = await self._load(session)
        if found is None:
            raise _no_session(session)
        loaded, uuids = found
        if loaded.row.owner_epoch != epoch:
            raise SessionMoved(f"Session {session} was taken by another instance; try again.")
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
            raise _no_session(session)
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

    @property
    def max_live(self) -> int:
        """How many may have an agent."""
        return self._limits.max_live

    def stuck(self) -> int:
        """Sessions whose agent's words cannot be stored just now."""
        return sum(owned.stuck for owned in self._owned.values())

    # -- rights -----------------------------------------------------------------------------------

    async def _row(self, caller: Caller, session: str, *, write: bool) -> SessionRow:
        """The session if `caller` may do that. Raises NotFound or Forbidden."""
        row = await self._in.catalogue.read(lambda cx: sessions_table.session_row(cx, session))
        if row is None or not _may_see(caller, row):
            raise _no_session(session)
        if write and not (caller.admin or row.owner == caller.owner or row.share == "write"):
            raise Forbidden(f"Session {session} is shared with you for reading only.")
        return row

    async def writable(self, caller: Caller, session: str) -> SessionRow:
        """The session, if `caller` may write to it. Raises NotFound or Forbidden."""
        return await self._row(caller, session, write=True)

    async def _own(self, caller: Caller, session: str, *, write: bool) -> OwnedSession:
        await self._row(caller, session, write=write)
        return await self.owned(session)

    # -- making and changing ----------------------------------------------------------------------

    async def create(self, caller: Caller, spec: dict[str, Any]) -> str:
        """Start an agent in a new session. Nothing is stored when it cannot be started."""
        async with self._admit() as counted:
            session = await self._create(caller, spec, counted)
        return dumps(session.current_view())

    async def _create(
        self, caller: Caller, spec: dict[str, Any], counted: Callable[[], None]
    ) -> OwnedSession:
        me = self._in
        adopted = spec.get("agent_session")
        name = spec.get("agent") or self._default_agent(adopting=adopted is not None)
        agent = me.agents(name)
        if agent is None:
            raise Unprocessable(
                f"No agent {name!r} is configured; `holdover config show` lists them."
            )
        if adopted is not None and not _resumes(agent):
            raise Unprocessable(
                f"The agent {name!r} cannot go on with a conversation: it has no resume_args. Name "
                'one that has, or one with preset = "claude".'
            )
        at = now_ms()
        row = SessionRow(
            id=new_id("s"),
            epoch=new_id("e"),
            owner=caller.owner,
            account=caller.account,
            agent=name,
            agent_session=adopted or str(uuid4()),
            cwd=spec.get("cwd"),
            title=spec.get("title"),
            model=spec.get("model"),
            permission_mode=spec.get("permission_mode") or "default",
            share=spec.get("share"),
            state="starting",
            last_seq=0,
            cost_usd=0.0,
            context=None,
            host=me.host,
            generation=me.generation,
            release=me.release,
            owner_epoch=1,
            error=None,
            live="",
            created_at=at,
            updated_at=at,
            ended_at=None,
        )
        # Refuses a model or mode that no agent may be given, before anything is made.
        launch_plan = build_launch(
            agent,
            agent_session=row.agent_session,
            resume=False,
            model=row.model,
            permission_mode=row.permission_mode,
        )
        if (repo := spec.get("repo")) is not None:
            await preparing.clone(
                me.paths.agents, row.account, row.id, repo["url"], repo.get("ref")
            )
        before = preparing.Before(())
        if adopted is not None and launch_plan.transcripts:
            await self._not_taken(adopted)
            before = await preparing.recall(me.paths.agents, row.account, launch_plan.transcripts)
        first = replace(row)
        model = SessionModel(row)
        model.creating = True
        model.conversation_begun = adopted is not None
        session = OwnedSession(me, model)
        me.observe("take_lock")
        lock = launcher.Lock.take_nowait(me.paths.lock(row.id))
        # Ours before it is stored, or the search for orphans would take it from us.
        self._owned[row.id] = session
        counted()
        try:
            with trio.CancelScope(shield=True):
                launch = await self._store_new(session, first, spec, before)
        except BaseException:
            del self._owned[row.id]
            lock.close()
            raise
        # In a task of its own: a client that hangs up does not leave half an agent behind.
        refused: list[LaunchError] = []
        settled = trio.Event()

        async def start() -> None:
            try:
                await session.starter.run_launch(launch, lock)
            except LaunchError as error:
                if await session.discard(error):
                    refused.append(error)
            except NotOwner:
                session.lose()  # another instance took us for dead, and has it now
            finally:
                settled.set()

        session.spawn(start)
        await settled.wait()
        if refused:
            raise Unprocessable(str(refused[0]), extra={"reason": refused[0].code})
        if session.lost.is_set():
            raise Unavailable(
                f"Session {row.id} was taken over while its agent was started; see "
                f"`holdover session show {row.id}` for what became of it."
            )
        return session

    def _default_agent(self, *, adopting: bool) -> str:
        """The stated one; who adopts without naming an agent means Claude Code, where both exist."""
        name = self._limits.default_agent
        settings = self._in.agents(name)
        if adopting and settings is not None and settings.preset == "demo":
            claude = self._in.agents("claude")
            return "claude" if claude is not None else name
        return name

    async def _not_taken(self, conversation: str) -> None:
        """Raises Conflict where a session goes on with it: two agents would overwrite its memory."""
        taken = await self._in.catalogue.read(
            lambda cx: sessions_table.with_conversation(cx, conversation)
        )
        if taken is not None:
            raise _taken(taken)

    async def _store_new(
        self,
        session: OwnedSession,
        first: SessionRow,
        spec: dict[str, Any],
        before: preparing.Before,
    ) -> LaunchRow:
        model = session.model
        launch = session.starter.new_launch()
        step = Step()
        model.history(step, before.said, before.left_out, now_ms())
        model.launch_begun(step, launch)
        if (prompt := spec.get("prompt")) is not None:
            self._accept_prompt(step, session, self._check_prompt(session, prompt))
        model.seal(step, now_ms())
        self._in.observe("record_launch")

        def store(cx: Connection) -> None:
            if "agent_session" in spec:
                # Once more: another request may have been as quick.
                taken = sessions_table.with_conversation(cx, first.agent_session)
                if taken is not None:
                    raise _taken(taken)
            sessions_table.create_session(cx, first, step.change)

        await self._in.catalogue.write(store)
        session.shown(step)
        return launch

    def before_agents(self, make_room: MakeRoom) -> None:
        """Have `make_room` called before each start of an agent."""
        self._make_room = make_room

    @asynccontextmanager
    async def _admit(self) -> AsyncIterator[Callable[[], None]]:
        """Leave to start an agent within the block. Raises Capacity when too many run.

        What it gives is called once the session counts by itself (`OwnedSession.live`).
        """
        if self.counts()[0] + self._admitted >= self._limits.max_live:
            raise Capacity(
                f"{self._limits.max_live} sessions have a running agent, as many as this host "
                "carries ([sessions] max_live); end one, or try again later."
            )
        self._admitted += 1
        places = [1]

        def counted() -> None:
            self._admitted -= places.pop() if places else 0

        try:
            # Jobs' agents count as well, and go before a person is refused.
            await self._make_room(self.counts()[0] + self._admitted)
            yield counted
        finally:
            counted()

    async def list_sessions(
        self,
        caller: Caller,
        *,
        state: str | None = None,
        q: str | None = None,
        agent: str | None = None,
        limit: int = 50,
        cursor: str | None = None,
    ) -> str:
        owner = None if caller.admin else caller.owner

        def read(cx: Any) -> str:
            rows, following = sessions_table.list_sessions(
                cx, owner=owner, state=state, q=q, agent=agent, limit=limit, cursor=cursor
            )
            items = [
                session_view(v.row, v.threads, v.pending, v.queued)
                for v in sessions_table.session_view_rows(cx, rows)
            ]
            return dumps({"items": items, "next": following})

        return await self._in.catalogue.read(read)

    async def get(self, caller: Caller, session: str) -> str:
        row = await self._row(caller, session, write=False)

        def read(cx: Any) -> str:
            (view,) = sessions_table.session_view_rows(cx, [row])
            return dumps(session_view(view.row, view.threads, view.pending, view.queued))

        return await self._in.catalogue.read(read)

    async def patch(self, caller: Caller, session: str, changes: dict[str, Any]) -> str:
        """Set title, model, permission_mode or share; the agent is told of what concerns it."""
        owned = await self._own(caller, session, write=True)
        model = owned.model
        if "share" in changes and not (caller.admin or model.row.owner == caller.owner):
            raise Forbidden(f"Only the owner of session {session} may share it.")
        lines: list[str] = []
        if (mode := changes.get("permission_mode")) is not None:
            lines.append(host_frames.set_permission_mode(new_id("holdover"), mode))
        if "model" in changes:
            name = changes["model"]
            lines.append(
                host_frames.set_model(
                    new_id("holdover"), check_model(name) if name is not None else None
                )
            )

        def change(step: Step) -> None:
            owned.check_room(MAX_COMMANDS_WAITING)
            model.set_columns(step, **changes)
            if owned.takes_commands:
                for line in lines:
                    model.control(step, line)

        await owned.act(change)
        if "share" in changes and changes["share"] is None:
            owned.hub.close_others(model.row.owner, CLOSE_UNSHARED)
        return dumps(owned.current_view())

    async def end(self, caller: Caller, session: str, purge: bool) -> None:
        """No further prompt; the agent is stopped, gently. `purge`: as if it had never been."""
        owned = await self._own(caller, session, write=True)
        at = now_ms()
        await owned.act(lambda step: owned.model.end(step, at, purge=purge))
        owned.stop_agent()

    # -- prompts, answers ---------------------------------------------------------------------------

    async def prompt(
        self, caller: Caller, session: str, prompt: dict[str, Any]
    ) -> tuple[int, dict[str, Any]]:
        """Accept a prompt: (202, answer), or (200, the same answer) for one that is known."""
        owned = await self._own(caller, session, write=True)
        accepted = self._check_prompt(owned, prompt)

        def change(step: Step) -> tuple[int, dict[str, Any]]:
            seq = self._accept_prompt(step, owned, accepted)
            return 202, {"id": accepted.id, "seq": seq}

        for _attempt in range(2):
            # Asked before and inside the turn: two requests with one id can be on their way.
            known = await self._in.catalogue.read(
                lambda cx: sessions_table.prompt(cx, session, accepted.id)
            )
            if known is not None:
                if known.digest != accepted.digest:
                    raise Conflict(
                        f"Prompt {accepted.id} of session {session} has another content; give a "
                        "new prompt a new id."
                    )
                return 200, {"id": known.id, "seq": known.seq}
            needs_agent = not owned.live and owned.model.row.ended_at is None
            async with self._admit() if needs_agent else nullcontext():
                try:
                    answer = await owned.act(change)
                except _PromptKnown:
                    continue
                owned.starter.want_agent_for_prompts()
            return answer
        raise Unavailable(f"Prompt {accepted.id} is being accepted by another request; try again.")

    def _check_prompt(self, owned: OwnedSession, prompt: dict[str, Any]) -> "_Prompt":
        text, content = prompt.get("text"), prompt.get("content")
        if prompt.get("attachments"):
            # Those of a prompt to a session that is there were carried and named before; see
            # files/carrier.py.
            raise Unprocessable(
                "`attachments` need a workspace to go to: make the session first, then send the "
                "prompt with its attachments."
            )
        prompt_id = prompt.get("id") or str(uuid4())
        try:
            if str(UUID(prompt_id)) != prompt_id.lower():
                raise ValueError
        except ValueError:
            raise BadRequest(f"The prompt's id {prompt_id[:64]!r} is not a UUID.") from None
        body = host_frames.user_prompt(
            prompt_id,
            text if text is not None else content or [],
            agent_session=owned.model.row.agent_session,
        )
        if len(body) > MAX_LINE_BYTES // 4 and len(body.encode()) > MAX_LINE_BYTES:
            raise TooLarge(
                f"Prompt {prompt_id} is larger than {MAX_LINE_BYTES:,} bytes; put its text "
                "into a file and name that."
            )
        digest = hashlib.sha256(dumps({"text": text, "content": content}).encode()).hexdigest()
        return _Prompt(prompt_id, body, digest)

    def _accept_prompt(self, step: Step, owned: OwnedSession, accepted: "_Prompt") -> int:
        if owned.knows_prompt(accepted.id):
            raise _PromptKnown(accepted.id)
        owned.check_room(MAX_COMMANDS_WAITING)
        return owned.model.prompt(step, accepted.id, accepted.body, accepted.digest, now_ms()).seq

    async def cancel_prompt(self, caller: Caller, session: str, prompt_id: str) -> None:
        """Withdraw a queued prompt; it stays in the log, with a notice.

        Raises NotFound where none of that id waits, Conflict where its agent keeps it.
        """
        owned = await self._own(caller, session, write=True)
        at = now_ms()

        def change(step: Step) -> PromptRow:
            owned.check_room(MAX_COMMANDS_WAITING)
            return owned.model.cancel_prompt(step, prompt_id, at)

        prompt = await owned.act(change)
        if prompt.state == "queued":
            await owned.wait_withdrawn(prompt_id, WITHDRAW_S)
        if prompt.state != "cancelled":
            raise Conflict(
                f"Prompt {prompt_id} is with the agent, which has not given it back; interrupt "
                "the turn instead."
            )

    async def job_ended(self, session: str, job: str, text: str, data: dict[str, Any]) -> None:
        """Tell a session, once, of the end of a job that it asked for.

        Raises NotFound for one that is gone, Conflict for one that has ended or has heard;
        OwnedElsewhere, and Unavailable, as any change does.
        """
        owned = await self.owned(session)

        def change(step: Step) -> None:
            if owned.model.row.ended_at is not None:
                raise Conflict(f"Session {session} has ended.")
            owned.model.notice(step, "job_ended", text, now_ms(), data)
            step.change.job_told = job

        await owned.act(change)

    async def answer(self, caller: Caller, session: str, answer: dict[str, Any]) -> dict[str, Any]:
        """Answer a permission; the first answer stands, later ones hear whose it was."""
        owned = await self._own(caller, session, write=True)
        request_id = answer["request_id"]

        def change(step: Step) -> dict[str, Any]:
            owned.check_room(MAX_COMMANDS_WAITING)
            permission = owned.model.answer(
                step,
                request_id,
                behavior=answer["behavior"],
                answered_by=caller.owner,
                updated_input=answer.get("updated_input"),
                message=answer.get("message"),
                remember=answer.get("remember"),
                at=now_ms(),
            )
            return {
                "request_id": request_id,
                "behavior": permission.state,
                "answered_by": caller.owner,
                "seq": step.change.messages[-1].seq,
            }

        try:
            return await owned.act(change)
        except NotFound:
            known = await self._in.catalogue.read(
                lambda cx: sessions_table.permission(cx, session, request_id)
            )
        if known is None:
            raise NotFound(f"Session {session} never asked {request_id}.")
        if known.state == "withdrawn":
            raise Gone(
                f"The agent has withdrawn {request_id}, or it is gone; nothing waits for it."
            )
        raise Conflict(
            f"{request_id} was answered ({known.state}) by {known.answered_by}.",
            extra={"answered_by": known.answered_by},
        )

    async def interrupt(self, caller: Caller, session: str, cancel_queued: bool) -> dict[str, Any]:
        """Stop the turn that runs. Without an agent there is nothing to stop: accepted as well."""
        owned = await self._own(caller, session, write=True)
        line = host_frames.interrupt(new_id("holdover"), cancel_queued=cancel_queued)

        def change(step: Step) -> None:
            model = owned.model
            if model.row.ended_at is not None:
                raise Gone(f"Session {session} has ended.")
            owned.check_room(MAX_COMMANDS_WAITING)
            if owned.takes_commands:
                model.control(step, line)

        await owned.act(change)
        return {}

    async def reload_skills(self, caller: Caller, session: str) -> None:
        """Have its agent look at its skills again; one that knows no such request is left alone."""
        owned = await self._own(caller, session, write=False)
        settings = self._in.agents(owned.model.row.agent)
        if settings is not None and settings.preset == "claude":
            await owned.reload_skills()

    async def resume(self, caller: Caller, session: str) -> dict[str, Any]:
        """See to it that an agent runs."""
        owned = await self._own(caller, session, write=True)
        if owned.model.row.ended_at is not None:
            raise Conflict(f"Session {session} has ended; start a new one.")
        if not owned.live:
            async with self._admit():
                owned.starter.want_agent()
        return {}

    # -- reading ------------------------------------------------------------------------------------

    async def page(
        self, caller: Caller, session: str, thread: str, page: int, epoch: str | None
    ) -> Page:
        """One page of a thread (contract.md); raises Conflict for another epoch."""
        row = await self._row(caller, session, write=False)
        if epoch is not None and epoch != row.epoch:
            raise Conflict(
                f"Session {session} is at epoch {row.epoch}, not {epoch}: the catalogue was "
                "restored; load its pages anew.",
                extra={"epoch": row.epoch},
            )
        rows = await self._in.catalogue.read(
            lambda cx: messages_table.page(cx, session, thread, page)
        )
        sealed = len(rows) == PAGE_SIZE
        last = rows[-1].seq if rows else 0
        text = (
            f'{{"thread":{dumps(thread)},"page":{page},"sealed":{"true" if sealed else "false"},'
            f'"epoch":{dumps(row.epoch)},"messages":[{",".join(map(message_json, rows))}]}}'
        )
        return Page(text, sealed, f'"{row.epoch}-{page}-{last}"')

    async def log(self, caller: Caller, session: str, after: int, limit: int) -> str:
        """The whole log after a seq, all threads."""
        row = await self._row(caller, session, write=False)
        rows = await self._in.catalogue.read(
            lambda cx: messages_table.log_after(
                cx, session, after, min(limit, LOG_LIMIT), LOG_BYTES
            )
        )
        return f'{{"epoch":{dumps(row.epoch)},"messages":[{",".join(map(message_json, rows))}]}}'

    async def body(self, caller: Caller, session: str, seq: int) -> str:
        """One message's body, whole."""
        await self._row(caller, session, write=False)
        body = await self._in.catalogue.read(lambda cx: messages_table.body(cx, session, seq))
        if body is None:
            raise NotFound(f"Session {session} has no message {seq}.")
        return body

    async def open_viewer(
        self,
        caller: Caller,
        session: str,
        *,
        after: int | None,
        epoch: str | None,
        threads: Literal["all", "main"],
    ) -> Viewer:
        """Watch a session; see `viewer`. Raises NotFound where it is not to be seen."""
        while True:
            if (moving := self._moving.get(session)) is not None:
                await moving.wait()
            owned = await self._own(caller, session, write=False)
            viewer = await owned.view(
                after=after,
                epoch=epoch,
                threads=threads,
                owner=None if caller.admin else caller.owner,
            )
            if session not in self._moving and not owned.lost.is_set():
                break
            viewer.close()  # it is about to move, or has: look again who has it
            await trio.lowlevel.checkpoint()
        return self._let_watch(caller, owned, viewer)

    async def attach_viewer(self, caller: Caller, session: str, cursor: ViewerCursor) -> Viewer:
        """Go on watching where another viewer was detached; raises as `open_viewer` does."""
        while True:
            owned = await self._own(caller, session, write=False)
            if (moving := self._moving.get(session)) is None:
                break
            await moving.wait()  # its viewers were detached already: nobody would feed this one
        viewer = owned.view_from(cursor, owner=None if caller.admin else caller.owner)
        return self._let_watch(caller, owned, viewer)

    def _let_watch(self, caller: Caller, owned: OwnedSession, viewer: Viewer) -> Viewer:
        """Whoever loses the right to watch from here on is found among the hub's viewers."""
        if not _may_see(caller, owned.model.row):
            viewer.close()
            raise _no_session(owned.id)
        return viewer


@dataclass(frozen=True, slots=True)
class _Prompt:
    id: str
    body: str
    digest: str


class _PromptKnown(Conflict):
    """A prompt with this id was accepted between the look-up and the turn."""


def _resumes(agent: AgentSettings) -> bool:
    """Whether it can be told to go on with a conversation of which only the id is known."""
    return agent.preset is not None or bool(agent.resume_args)


def _taken(session: str) -> Conflict:
    return Conflict(f"Session {session} goes on with that conversation already; end it first.")


def _may_see(caller: Caller, row: SessionRow) -> bool:
    return bool(caller.admin or row.owner == caller.owner or row.share)


def _no_session(session: str) -> NotFound:
    return NotFound(f"No session {session[:64]!r}; `holdover session ls` lists yours.")


def host_name() -> str:
    """This host's name, half of every owner's identity."""
    return socket.gethostname()
