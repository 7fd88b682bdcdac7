"""New sessions: what they are made of, room for their agents, and the first launch."""

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from typing import Any
from uuid import uuid4

import trio
from sqlalchemy import Connection

from holdoverd.agents.presets import build_launch
from holdoverd.callers import Caller
from holdoverd.catalogue import sessions as sessions_table
from holdoverd.catalogue.records import LaunchRow, SessionRow
from holdoverd.errors import (
    Capacity,
    Conflict,
    LaunchError,
    NotOwner,
    Unavailable,
    Unprocessable,
)
from holdoverd.ids import new_id, now_ms
from holdoverd.sessions import launcher, preparing
from holdoverd.sessions.agent_lines import take_history
from holdoverd.sessions.holding import Holding
from holdoverd.sessions.launches import launch_begun
from holdoverd.sessions.means import Instance
from holdoverd.sessions.model import SessionModel, Step
from holdoverd.sessions.owner import OwnedSession
from holdoverd.sessions.prompts import accept_prompt, check_prompt
from holdoverd.sessions.wire import dumps
from holdoverd.settings import AgentSettings


@dataclass(frozen=True, slots=True)
class Limits:
    """What `[sessions]` of the configuration says about all of them."""

    max_live: int
    default_agent: str


MakeRoom = Callable[[int], Awaitable[None]]
"""Called with the sessions of this instance that have an agent, the one that is to start included."""


async def _nobody_to_ask(_sessions: int) -> None:
    """Without jobs there is nobody else that starts agents."""


class Making(Holding):
    """Makes sessions, beside holding them. Nothing is stored of one that cannot be started."""

    def __init__(
        self, instance: Instance, limits: Limits, live_generations: Callable[[], set[int]]
    ) -> None:
        super().__init__(instance, live_generations)
        self._limits = limits
        self._admitted = 0
        self._make_room: MakeRoom = _nobody_to_ask

    @property
    def max_live(self) -> int:
        """How many may have an agent."""
        return self._limits.max_live

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
        take_history(model, step, before.said, before.left_out, now_ms())
        launch_begun(model, step, launch)
        if (prompt := spec.get("prompt")) is not None:
            accept_prompt(step, session, check_prompt(session, prompt))
        sealed = session.seal(step, now_ms())
        self._in.observe("record_launch")

        def store(cx: Connection) -> None:
            if "agent_session" in spec:
                # Once more: another request may have been as quick.
                taken = sessions_table.with_conversation(cx, first.agent_session)
                if taken is not None:
                    raise _taken(taken)
            sessions_table.create_session(cx, first, step.change)

        await self._in.catalogue.write(store)
        session.shown(sealed)
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


def _resumes(agent: AgentSettings) -> bool:
    """Whether it can be told to go on with a conversation of which only the id is known."""
    return agent.preset is not None or bool(agent.resume_args)


def _taken(session: str) -> Conflict:
    return Conflict(f"Session {session} goes on with that conversation already; end it first.")
