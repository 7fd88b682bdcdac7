"""One session that this instance owns: its model, its agent and its viewers together.

Everything that changes the session happens under one lock: compute a step, commit it under the
owner's epoch, then show it. Lines of the agent that cannot be stored just now wait (the spool
keeps them); an act of a person that cannot be stored is refused and leaves no trace.

`Following` has the tasks of a living agent, `Starter` those of starting one; stopping is here.
When another instance takes the session, the next write or greeting says so, and all of them end.
"""

import logging
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

import trio
from sqlalchemy import Connection

from holdoverd.agents import host_frames
from holdoverd.catalogue import messages as messages_table
from holdoverd.catalogue import sessions as sessions_table
from holdoverd.catalogue.records import Change, LaunchRow, MessageRow, OutboxRow
from holdoverd.catalogue.store import Catalogue
from holdoverd.catalogue.writer import Write
from holdoverd.errors import (
    Capacity,
    CatalogueError,
    Internal,
    LaunchError,
    NotOwner,
    RequestError,
    SessionMoved,
    Unavailable,
)
from holdoverd.ids import new_id, now_ms
from holdoverd.sessions.following import RETRY_S, Following
from holdoverd.sessions.means import Instance
from holdoverd.sessions.model import MAIN, SessionModel, Step
from holdoverd.sessions.starting import Starter
from holdoverd.sessions.viewer import (
    CLOSE_ENDED,
    CLOSE_GOING_AWAY,
    Hub,
    Log,
    Snapshot,
    Viewer,
    ViewerCursor,
    delta_frame,
    opening,
    status_frame,
)
from holdoverd.sessions.wire import dumps, levels_of, session_view

log = logging.getLogger(__name__)

T = TypeVar("T")

LOCK_S = 10.0
"""How long an act of a person waits for its turn; beyond it the catalogue must be stuck."""

PURGE_RETRY_S = 10.0

_QUIET = frozenset({"last_seq", "updated_at", "live"})
"""Columns of a session in which no level shows."""

STOP_STEP_S = 5.0
"""stream-json.md §11: what an ending agent gets to finish its turn, to leave, and to obey TERM."""


@dataclass(frozen=True, slots=True)
class Sealed:
    """A step that is whole: how it is stored, and what is shown then, wherever the model is by now.

    `purges`: the session goes with it. `view`: the session's wire form after this step, None where
    no level can have changed. `over`: the session has ended, and has no agent any more.
    """

    step: Step
    write: Callable[[Connection], None]
    purges: bool
    view: dict[str, Any] | None
    over: bool


class OwnedSession:
    """A session in this instance's hands; `lost` is set when it no longer is."""

    def __init__(
        self, instance: Instance, model: SessionModel, outbox: Sequence[OutboxRow] = ()
    ) -> None:
        self.instance = instance
        self.model = model
        model.boot_id = instance.boot_id
        settings = instance.agents(model.row.agent)
        model.bare = settings is not None and settings.preset is None
        self.lost = trio.Event()
        self.lock = trio.Lock()
        self.starter = Starter(self)
        # The present launch, or the one before: it says when its agent is gone.
        self.following: Following | None = None
        self._outbox = outbox
        self._stopping = False
        self.goes_on = trio.Event()
        """Set while what the agent says is read."""
        self.goes_on.set()
        self._reloading = False
        # {prompt: set once the agent has said whether it gives it back}
        self._withdrawals: dict[str, trio.Event] = {}
        self._stuck: CatalogueError | None = None
        """Why what the agent said cannot be stored just now."""
        self.hub = Hub(
            model.row.last_seq,
            {t.thread: t.n for t in model.threads.values()},
            instance.counts,
        )
        self.hub.ended = model.row.ended_at is not None and model.launch is None
        self._log = log_of(instance.catalogue, model.row.id)
        self._view = self._build_view()
        self._levels = levels_of(self._view)

    @property
    def id(self) -> str:
        return self.model.row.id

    @property
    def resting(self) -> bool:
        """No agent, nobody who watches, nothing under way: it can be forgotten and adopted anew."""
        return (
            self.model.launch is None
            and not self.starter.busy
            and not len(self.hub)
            and not self.lock.locked()
        )

    @property
    def live(self) -> bool:
        """It has an agent, or is about to."""
        return self.model.launch is not None or self.starter.busy

    @property
    def stuck(self) -> bool:
        """What its agent said cannot be stored just now, and waits."""
        return self._stuck is not None

    @property
    def takes_commands(self) -> bool:
        """An agent runs and is not being ended."""
        launch, row = self.model.launch, self.model.row
        return launch is not None and launch.state == "live" and row.ended_at is None

    @property
    def owner_epoch(self) -> int:
        return self.model.row.owner_epoch

    # -- the one way to change a session ---------------------------------------------------------

    async def act(self, change: Callable[[Step], T]) -> T:
        """Do what a person asked: `change` fills a step, which is stored, then shown.

        Raises what `change` raises, with nothing altered; CatalogueError when it could not be
        stored, likewise; Unavailable when another instance has taken the session. Once the step
        is on its way to the catalogue a cancellation waits for it.
        """
        if self._stuck is not None:
            raise self._cannot_store()
        with trio.move_on_after(LOCK_S) as waiting:
            await self.lock.acquire()
        if waiting.cancelled_caught:
            raise self._cannot_store()
        try:
            self.still_ours()
            saved = self.model.save_point()
            step = Step()
            self.hub.ahead = True
            try:
                result = change(step)
                if self.model.creating:
                    # Somebody has found it before its creator was told: what is accepted stays.
                    self.model.announce(step)
                sealed = self.seal(step, now_ms())
                await self._store(sealed)
            except BaseException as error:
                saved.restore()
                self.hub.settled()
                if isinstance(error, NotOwner):
                    self.lose()
                    raise self._moved() from error
                if isinstance(error, Internal) or not isinstance(error, RequestError):
                    self.lose()  # nobody can tell what is true: load it anew
                raise
            self.publish(sealed)
            return result
        finally:
            self.lock.release()

    def _cannot_store(self) -> Unavailable:
        if self._stuck is not None:
            return Unavailable(f"Session {self.id} can store nothing just now. {self._stuck}")
        return Unavailable(
            f"Session {self.id} is busy storing what its agent said (a slow disk?); try again."
        )

    def still_ours(self) -> None:
        if self.lost.is_set():
            raise self._moved()

    def _moved(self) -> SessionMoved:
        return SessionMoved(f"Session {self.id} has just moved to another instance; try again.")

    def seal(self, step: Step, at: int) -> Sealed:
        """Make a step whole. Nothing else of this session is on its way to the catalogue then.

        From here on it holds its own, and the model may go on before it is stored.
        """
        self.model.seal(step, at)
        change = step.change
        change.detach()
        launch = self.model.launch
        outbox = self.following.outbox if self.following is not None else None
        if (
            change.outbox_acked is None
            and launch is not None
            and outbox is not None
            and outbox.acked > outbox.acked_stored
        ):
            change.outbox_acked = (launch.id, outbox.acked)
        epoch = self.owner_epoch
        purge = self.model.purging and launch is None
        applied = sessions_table.Applied(self.id, epoch, change)

        def apply_and_purge(cx: Connection) -> None:
            applied(cx)
            sessions_table.purge_session(cx, self.id, epoch)

        shows = (
            step.levels_changed
            or change.permissions
            or change.prompts
            or not _QUIET.issuperset(change.session)
        )
        return Sealed(
            step,
            apply_and_purge if purge else applied,
            purge,
            self._build_view() if shows else None,
            self.model.row.ended_at is not None and launch is None,
        )

    def begin_storing(self, sealed: Sealed) -> Write[None]:
        """For `stored`, to be waited for however it is with the caller. Raises CatalogueError."""
        return self.instance.catalogue.begin_write(sealed.write, size_hint=sealed.step.size_hint)

    async def _store(self, sealed: Sealed, begun: Write[None] | None = None) -> None:
        """Not cancelled: the model is ahead by it."""
        await (begun or self.begin_storing(sealed)).wait()
        self._stored(sealed.step.change)
        if sealed.purges:
            self._discarded()

    def _stored(self, change: Change) -> None:
        """The change is durable: what it numbered may leave now."""
        if self.following is None:
            return
        if change.outbox_acked is not None:
            outbox = self.following.outbox
            outbox.acked_stored = max(outbox.acked_stored, change.outbox_acked[1])
        if change.outbox:
            self.following.outbox.add(change.outbox)

    async def store_at_last(self, sealed: Sealed, begun: Write[None] | None = None) -> None:
        """Store what the agent said, however long the catalogue cannot: the spool holds it.

        `begun`: the first try, where it is under way.

        Raises NotOwner. Cancelled between two tries it leaves the model ahead of the catalogue;
        then this instance stops, or has lost the session.
        """
        try:
            while True:
                try:
                    await self._store(sealed, begun)
                    return
                except CatalogueError as error:
                    if self._stuck is None:
                        log.error(
                            "%s The agent's lines wait in the spool, retrying every %.0f s",
                            error,
                            RETRY_S,
                            extra={"session": self.id},
                        )
                    self._stuck = error
                    begun = None
                await trio.sleep(RETRY_S)
        finally:
            self._stuck = None

    def spawn(self, task: Callable[..., Awaitable[None]], *args: Any) -> None:
        """Run a task of this session's. A defect in it costs this session its owner, no other.

        The next touch, or the search for orphans, adopts the session from what is stored.
        """

        async def guarded() -> None:
            try:
                await task(*args)
            except Exception:
                log.exception(
                    "a task of the session failed; adopting it anew",
                    extra={"session": self.id},
                )
                self.instance.counts.defects += 1
                self.lose()

        self.instance.nursery.start_soon(guarded, name=f"{task.__name__} {self.id}")

    # -- showing ----------------------------------------------------------------------------------

    def _build_view(self) -> dict[str, Any]:
        model = self.model
        return session_view(
            model.row,
            list(model.threads.values()),
            list(model.permissions.values()),
            model.queued_ids(),
        )

    def publish(self, sealed: Sealed, *, ahead: bool = False) -> None:
        """Show a step that is stored. `ahead`: the model has gone on since it was sealed."""
        frame: str | None = None
        step = sealed.step
        if sealed.view is not None:
            before = self._view
            self._view = sealed.view
            levels = levels_of(self._view)
            if levels != self._levels:
                self._levels = levels
                asked = frozenset(p["request_id"] for p in before["pending"])
                self.instance.levels_changed(before["state"], asked, self._view)
                frame = dumps({"type": "session", "session": self._view})
        self.hub.publish(step.events, frame, self._grown_frame, ahead=ahead)
        settled = (prompt.id for prompt in step.change.prompts if prompt.state != "queued")
        for prompt_id in (*step.kept_prompts, *settled):
            if (said := self._withdrawals.get(prompt_id)) is not None:
                said.set()
        self._reload_if_due()
        if sealed.over:
            self.hub.ended = True
            self.hub.settled()

    async def reload_skills(self) -> None:
        """Have the agent look at its skills again: at once where it is idle, else after its turn.

        What is owed is stored: whoever owns the session then, tells it. One that does not run looks
        when it is next started.
        """
        line = host_frames.reload_skills(new_id("holdover"))

        def change(step: Step) -> None:
            if self.takes_commands:
                self.model.reload_skills(step, line)

        await self.act(change)

    def _reload_if_due(self) -> None:
        if self.model.reload_due and self.model.row.state == "idle" and not self._reloading:
            self._reloading = True
            self.spawn(self._reload_after_turn)

    async def _reload_after_turn(self) -> None:
        try:
            await self.reload_skills()
        except RequestError as error:
            log.warning("not told of changed skills: %s", error, extra={"session": self.id})
        finally:
            self._reloading = False

    def _grown_frame(self) -> str:
        """The ``session`` frame for viewers who do not see every thread that grew."""
        return dumps({"type": "session", "session": self.current_view()})

    def shown(self, sealed: Sealed) -> None:
        """A step of this session's was stored by another way than `act`: show it."""
        self._stored(sealed.step.change)
        self.publish(sealed)

    def knows_prompt(self, prompt_id: str) -> bool:
        """Whether a prompt of that id was accepted lately; the catalogue knows for certain."""
        return self.model.seen(prompt_id)

    async def wait_withdrawn(self, prompt_id: str, timeout_s: float) -> None:
        """Until the agent has said what becomes of a prompt that it was asked to give back.

        Or until `timeout_s` are over, or the session is lost: the prompt's row tells.
        """
        said = self._withdrawals.setdefault(prompt_id, trio.Event())
        try:
            with trio.move_on_after(timeout_s):
                while not said.is_set() and prompt_id in self.model.prompts:
                    await said.wait()
        finally:
            if self._withdrawals.get(prompt_id) is said:
                del self._withdrawals[prompt_id]

    def check_room(self, most: int) -> None:
        """Raises Capacity when `most` commands wait for an agent that takes none."""
        if self.following is not None and len(self.following.outbox) >= most:
            raise Capacity(
                f"{most} commands wait for the agent of session {self.id}, which does not read "
                "them; end it, or wait."
            )

    async def discard(self, error: LaunchError) -> bool:
        """The first launch came to nothing. False where somebody has found the session meanwhile.

        Then it stays, and says why it could not be started.
        """
        if not self.model.creating:
            await self.starter.fail(error.code, str(error))
            return False
        await self.purge()
        return True

    async def purge(self) -> None:
        """Remove a session that never came to life, and all its rows. Raises NotOwner."""
        epoch, catalogue = self.owner_epoch, self.instance.catalogue
        await catalogue.write(lambda cx: sessions_table.purge_session(cx, self.id, epoch))
        if self.model.launch is not None:
            self.remove_files(self.model.launch)
        self._discarded()

    def _discarded(self) -> None:
        """The session is gone for every reader; its rows go slice by slice."""
        self.lost.set()
        self.hub.close_all(CLOSE_ENDED)
        catalogue, session = self.instance.catalogue, self.id

        async def remove() -> None:
            while True:
                try:
                    await purge_rows(catalogue, session)
                    return
                except CatalogueError as error:
                    log.warning("%s Removing the session's rows later.", error)
                    await trio.sleep(PURGE_RETRY_S)

        self.spawn(remove)

    def remove_files(self, launch: LaunchRow) -> None:
        self.instance.paths.spool(launch.id).unlink(missing_ok=True)
        self.instance.paths.listener(launch.id).unlink(missing_ok=True)

    def current_view(self) -> dict[str, Any]:
        """The session in wire form, as of the last commit."""
        view = dict(self._view)
        view["last_seq"] = self.hub.committed
        view["threads"] = [
            {**t, "n": self.hub.thread_n.get(t["thread"], t["n"])} for t in view["threads"]
        ]
        return view

    def _snapshot(self) -> Snapshot:
        return Snapshot(
            statuses=[status_frame(name, body) for name, body in self.model.statuses.items()],
            deltas=[
                (thread, delta_frame(thread, body)) for thread, body in self.model.blocks.snapshot()
            ],
        )

    async def view(
        self,
        *,
        after: int | None,
        epoch: str | None,
        threads: Literal["all", "main"],
        owner: str | None,
    ) -> Viewer:
        """Open a stream at a cursor that was checked for its form; see `viewer.opening`."""
        catalogue, session = self.instance.catalogue, self.id
        opens = 1
        if after is None or after > self.hub.committed or epoch != self.model.row.epoch:
            opens = await catalogue.read(
                lambda cx: messages_table.seq_opening_last_pages(cx, session)
            )
        start, resync = opening(
            after=after,
            epoch=epoch,
            session_epoch=self.model.row.epoch,
            last_seq=self.hub.committed,
            opens_last_pages=opens,
        )
        main_n: int | None = None
        if threads == "main":
            main_n = await catalogue.read(
                lambda cx: messages_table.thread_n_at(cx, session, MAIN, start)
            )

        return self._viewer(after=start, main_n=main_n, resync=resync, owner=owner)

    def view_from(self, cursor: ViewerCursor, *, owner: str | None) -> Viewer:
        """Go on for a viewer who was given so much elsewhere."""
        viewer = self._viewer(after=0, main_n=None, resync=False, owner=owner, cursor=cursor)
        if cursor.seq > self.hub.committed:
            # The catalogue is an older one by now; the client finds out by its next hello.
            viewer.finish(CLOSE_GOING_AWAY)
        return viewer

    def _viewer(
        self,
        *,
        after: int,
        main_n: int | None,
        resync: bool,
        owner: str | None,
        cursor: ViewerCursor | None = None,
    ) -> Viewer:
        return Viewer(
            self.hub,
            self._log,
            hello=self._hello,
            snapshot=self._snapshot,
            after=after,
            main_n=main_n,
            resync=resync,
            owner=owner,
            cursor=cursor,
        )

    def _hello(self, resynced: bool) -> dict[str, Any]:
        return {
            "type": "hello",
            "session": self.current_view(),
            "page_size": 100,
            "resync": resynced,
        }

    # -- a launch and its tasks -------------------------------------------------------------------

    def begin(self, *, go_on: bool = False) -> None:
        """Take up a session as it stands in the catalogue: follow its agent, or start one.

        `go_on`: start one for the sake of a turn that was cut off.
        """
        launch = self.model.launch
        if launch is None:
            if self.model.row.error is None:  # else a person decides when to try again
                self.starter.want_agent_for_prompts()
                if go_on:
                    self.starter.want_agent()
        elif launch.state == "starting":
            self.spawn(self.starter.recover, launch)
        else:
            self.spawn(self.follow(launch, self._outbox).run)
            self._reload_if_due()
            if self.model.row.ended_at is not None:
                self.stop_agent()

    def follow(self, launch: LaunchRow, outbox: Sequence[OutboxRow] = ()) -> Following:
        """Make ready to follow `launch`: from here on its stored commands wait for its keeper.

        Its tasks are the caller's to start.
        """
        self.following = Following(self, launch, outbox)
        return self.following

    def launch_over(self, following: Following) -> None:
        """`following` has told the end of its launch, and that is stored."""
        if following is self.following and self.model.row.ended_at is None:
            self.starter.want_agent_for_prompts()
            rebooted = following.launch.boot_id != self.instance.boot_id
            if rebooted and self.instance.resume_on_boot and self.model.row.turn_cut == "reboot":
                self.starter.want_agent()

    def tell_disk(self, full: bool) -> None:
        """The keeper cannot write the spool, or can again."""
        log.log(
            logging.ERROR if full else logging.INFO,
            "the disk of the spool %s",
            "is full: the agent is paused, nothing is lost" if full else "has room again",
            extra={"session": self.id},
        )

    def lose(self) -> None:
        """Let go: another instance owns the session, or it rests, or nobody can tell what is true.

        Its viewers come back and find who has it then.
        """
        if not self.lost.is_set():
            self.lost.set()
            for said in self._withdrawals.values():
                said.set()
            self.hub.close_all(CLOSE_GOING_AWAY)
            if self.following is not None:
                self.following.cancel()

    async def pause(self) -> None:
        """Begin no further step with what the agent says, and wait for the one under way.

        For `LOCK_S` at most. `go_on` takes it back; `let_go` makes it good.
        """
        self.goes_on = trio.Event()
        with trio.move_on_after(LOCK_S):
            async with self.lock:
                pass

    def go_on(self) -> None:
        self.goes_on.set()

    async def let_go(self) -> bool:
        """End all that runs here for the session, for another owner to go on; closes no stream.

        Its viewers' connections were detached before. False: not now, since an agent is being
        started or stopped, or what it said cannot be stored.
        """
        if self._unsettled:
            return False
        with trio.move_on_after(LOCK_S) as waiting:
            await self.lock.acquire()
        if waiting.cancelled_caught:
            return False
        try:
            if self.lost.is_set() or self._unsettled:
                return False
            # Nobody is within a step: what the catalogue holds is all there is.
            self.lost.set()
            if self.following is not None:
                self.following.cancel()
            return True
        finally:
            self.lock.release()

    @property
    def _unsettled(self) -> bool:
        return self.starter.busy or self._stopping or self.model.creating

    async def finish_step(self, step: Step) -> None:
        """Seal, store and show a step of the owner's own; the lock is held. Raises NotOwner."""
        self.hub.ahead = True
        sealed = self.seal(step, now_ms())
        await self.store_at_last(sealed)
        self.publish(sealed)

    # -- stopping an agent ---------------------------------------------------------------------------

    def stop_agent(self) -> None:
        """End the agent gently, then firmly; returns at once."""
        launch = self.model.launch
        if launch is not None and launch.state == "live" and not self._stopping:
            self._stopping = True
            self.spawn(self._stop)

    async def _stop(self) -> None:
        """stream-json.md §11: interrupt, close stdin, TERM, KILL, each with its time."""
        following = self.following
        try:
            if following is None:
                return
            if self.model.turn_open:
                line = host_frames.interrupt(new_id("holdover"), cancel_queued=True)
                await self._tell_live(lambda step: self.model.control(step, line))
                with trio.move_on_after(STOP_STEP_S):
                    while self.model.turn_open and not following.gone.is_set():
                        await trio.sleep(0.05)
            await self._tell_live(self.model.close_stdin)
            with trio.move_on_after(STOP_STEP_S):
                await following.gone.wait()
            for name in ("TERM", "KILL"):
                if following.gone.is_set() or self.lost.is_set():
                    return
                following.signal(name)
                with trio.move_on_after(STOP_STEP_S):
                    await following.gone.wait()
            if not following.gone.is_set():
                log.error("the agent does not die of KILL", extra={"session": self.id})
        finally:
            self._stopping = False

    async def _tell_live(self, change: Callable[[Step], None]) -> None:
        """Number a command for the agent if one lives; one that cannot be stored is left out."""

        def act(step: Step) -> None:
            if self.model.launch is not None and self.model.launch.state == "live":
                change(step)

        try:
            await self.act(act)
        except RequestError as error:
            log.warning("stopping the agent: %s Going on.", error, extra={"session": self.id})


def log_of(catalogue: Catalogue, session: str) -> Log:
    """How all viewers of a session read what is stored of it."""

    async def after(seq: int, rows: int, size: int) -> Sequence[MessageRow]:
        return await catalogue.read(
            lambda cx: messages_table.log_after(cx, session, seq, rows, size)
        )

    async def thread_after(thread: str, n: int, rows: int, size: int) -> Sequence[MessageRow]:
        return await catalogue.read(
            lambda cx: messages_table.thread_after(cx, session, thread, n, rows, max_bytes=size)
        )

    return Log(after, thread_after)


async def purge_rows(catalogue: Catalogue, session: str) -> None:
    """Remove a purged session's rows, slice by slice: nobody else waits for long."""
    while not await catalogue.write(lambda cx: sessions_table.purge_slice(cx, session)):
        pass
