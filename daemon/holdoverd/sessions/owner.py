"""One session that this instance owns: its model, its spool, its keeper and its viewers together.

Everything that changes the session happens under one lock: compute a step, commit it under the
owner's epoch, then show it. Lines of the agent that cannot be stored just now wait (the spool
keeps them); an act of a person that cannot be stored is refused and leaves no trace.

Tasks while an agent lives: `_ingest` reads its spool, `_converse` speaks to its keeper; now and
then `_start` (an agent is wanted) and `_stop` (the session has ended). When another instance
takes the session, the next write or greeting says so, and all of them end.
"""

import logging
import os
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from secrets import token_hex
from typing import Any, Literal, TypeVar

import trio
from sqlalchemy import Connection

from holdoverd.agents import host_frames
from holdoverd.agents.presets import AgentSettings, build_launch
from holdoverd.agents.stream_json import LineSplitter, classify
from holdoverd.catalogue import messages as messages_table
from holdoverd.catalogue import sessions as sessions_table
from holdoverd.catalogue.records import Change, LaunchRow, MessageRow, OutboxRow
from holdoverd.catalogue.store import Catalogue
from holdoverd.errors import (
    Capacity,
    CatalogueError,
    Internal,
    KeeperError,
    LaunchError,
    LockHeld,
    NotOwner,
    RequestError,
    StaleEpoch,
    Unavailable,
)
from holdoverd.ids import new_id, now_ms
from holdoverd.keeper import protocol
from holdoverd.sessions import launcher
from holdoverd.sessions.link import AgentDeafError, KeeperLink
from holdoverd.sessions.model import MAIN, SessionModel, Step
from holdoverd.sessions.spool import Spool, SpoolWatch, Wake
from holdoverd.sessions.viewer import (
    CLOSE_ENDED,
    CLOSE_GOING_AWAY,
    Hub,
    Log,
    Snapshot,
    Viewer,
    delta_frame,
    opening,
    status_frame,
)
from holdoverd.sessions.wire import dumps, levels_of, session_view

log = logging.getLogger(__name__)

T = TypeVar("T")

LOCK_S = 10.0
"""How long an act of a person waits for its turn; beyond it the catalogue must be stuck."""

RETRY_S = 1.0
PURGE_RETRY_S = 10.0
GREET_AGAIN_S = 0.2
COMMIT_BYTES = 1024 * 1024
"""Live-only lines are committed past, without a message, only once there are this many bytes."""

MAX_REPLAY_BYTES = 64 * 1024 * 1024
"""How far back a new owner reads at most to show a sentence from its beginning."""

FRUITLESS_LAUNCHES = 3
"""Agents started one after another that took no prompt; then the session is ``failed``."""

STOP_STEP_S = 5.0
"""stream-json.md §11: what an ending agent gets to finish its turn, to leave, and to obey TERM."""


@dataclass(frozen=True, slots=True)
class Instance:
    """What every owned session shares: this instance's identity and the means it works with."""

    catalogue: Catalogue
    paths: launcher.Paths
    watch: SpoolWatch
    nursery: trio.Nursery
    host: str
    generation: int
    release: str
    boot_id: str
    roots: Sequence[str]
    agents: Callable[[str], AgentSettings | None]
    observe: launcher.Observer = lambda _step: None


class OwnedSession:
    """A session in this instance's hands; `lost` is set when it no longer is."""

    def __init__(
        self, instance: Instance, model: SessionModel, outbox: Sequence[OutboxRow] = ()
    ) -> None:
        self._in = instance
        self.model = model
        self.lost = trio.Event()
        self._lock = trio.Lock()
        self._outbox: deque[OutboxRow] = deque(sorted(outbox, key=lambda row: row.n))
        self._outbox_bell = Wake()
        self._acked = 0
        self._acked_stored = 0
        self._gone = trio.Event()
        self._starting = False
        self._stopping = False
        # TERM or KILL for an agent that takes no numbered command any more
        self._signal: str | None = None
        self._talk_scope: trio.CancelScope | None = None
        self._fruitless = 0
        self._stuck: CatalogueError | None = None
        """Why what the agent said cannot be stored just now."""
        self._launch_scope: trio.CancelScope | None = None
        self.hub = Hub(model.row.last_seq, {t.thread: t.n for t in model.threads.values()})
        self.hub.ended = model.row.ended_at is not None and model.launch is None
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
            and not self._starting
            and not len(self.hub)
            and not self._lock.locked()
        )

    @property
    def live(self) -> bool:
        """It has an agent, or is about to."""
        return self.model.launch is not None or self._starting

    @property
    def takes_commands(self) -> bool:
        """An agent runs and is not being ended."""
        launch, row = self.model.launch, self.model.row
        return launch is not None and launch.state == "live" and row.ended_at is None

    def retire(self) -> None:
        """Forget a session that rests; whoever still holds it finds it moved."""
        self._lose()

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
            await self._lock.acquire()
        if waiting.cancelled_caught:
            raise self._cannot_store()
        try:
            self._still_ours()
            saved = self.model.save_point()
            step = Step()
            self.hub.ahead = True
            try:
                result = change(step)
                if self.model.creating:
                    # Somebody has found it before its creator was told: what is accepted stays.
                    self.model.announce(step)
                self.model.seal(step, now_ms())
                with trio.CancelScope(shield=True):
                    await self._commit(step)
            except BaseException as error:
                saved.restore()
                self.hub.settled()
                if isinstance(error, NotOwner):
                    self._lose()
                    raise self._moved() from error
                if isinstance(error, Internal) or not isinstance(error, RequestError):
                    self._lose()  # nobody can tell what is true: load it anew
                raise
            self._publish(step)
            return result
        finally:
            self._lock.release()

    def _cannot_store(self) -> Unavailable:
        if self._stuck is not None:
            return Unavailable(f"Session {self.id} can store nothing just now. {self._stuck}")
        return Unavailable(
            f"Session {self.id} is busy storing what its agent said (a slow disk?); try again."
        )

    def _still_ours(self) -> None:
        if self.lost.is_set():
            raise self._moved()

    def _moved(self) -> Unavailable:
        return Unavailable(f"Session {self.id} has just moved to another instance; try again.")

    async def _commit(self, step: Step) -> None:
        change = step.change
        launch = self.model.launch
        if change.outbox_acked is None and launch is not None and self._acked > self._acked_stored:
            change.outbox_acked = (launch.id, self._acked)
        epoch = self.owner_epoch
        purge = self.model.purging and launch is None

        def write(cx: Connection) -> None:
            sessions_table.apply_change(cx, self.id, epoch, change)
            if purge:
                sessions_table.purge_session(cx, self.id, epoch)

        await self._in.catalogue.write(write, size_hint=step.size_hint)
        self._stored(change)
        if purge:
            self._discarded()

    def _stored(self, change: Change) -> None:
        """The change is durable: what it numbered may leave now."""
        if change.outbox_acked is not None:
            self._acked_stored = max(self._acked_stored, change.outbox_acked[1])
        if change.outbox:
            self._outbox.extend(change.outbox)
            self._outbox_bell.ring()

    async def _commit_at_last(self, step: Step) -> None:
        """Commit what the agent said, however long the catalogue cannot: the spool holds it.

        Raises NotOwner. Cancelled between two tries it leaves the model ahead of the catalogue;
        then this instance stops, or has lost the session.
        """
        try:
            while True:
                try:
                    with trio.CancelScope(shield=True):
                        await self._commit(step)
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
                self._lose()

        self._in.nursery.start_soon(guarded, name=f"{task.__name__} {self.id}")

    # -- showing ----------------------------------------------------------------------------------

    def _build_view(self) -> dict[str, Any]:
        model = self.model
        return session_view(
            model.row,
            list(model.threads.values()),
            list(model.permissions.values()),
            model.queued_ids(),
        )

    def _publish(self, step: Step) -> None:
        frame: str | None = None
        change = step.change
        quiet = {"last_seq", "updated_at", "live"}
        if (
            step.levels_changed
            or change.permissions
            or change.prompts
            or not quiet.issuperset(change.session)
        ):
            self._view = self._build_view()
            levels = levels_of(self._view)
            if levels != self._levels:
                self._levels = levels
                frame = dumps({"type": "session", "session": self._view})
        self.hub.publish(step.events, frame, self._grown_frame)
        if self.model.row.ended_at is not None and self.model.launch is None:
            self.hub.ended = True
            self.hub.settled()

    def _grown_frame(self) -> str:
        """The ``session`` frame for viewers who do not see every thread that grew."""
        return dumps({"type": "session", "session": self.current_view()})

    def shown(self, step: Step) -> None:
        """A step of this session's was stored by another way than `act`: show it."""
        self._stored(step.change)
        self._publish(step)

    def knows_prompt(self, prompt_id: str) -> bool:
        """Whether a prompt of that id was accepted lately; the catalogue knows for certain."""
        return self.model.seen(prompt_id)

    def check_room(self, most: int) -> None:
        """Raises Capacity when `most` commands wait for an agent that takes none."""
        if len(self._outbox) >= most:
            raise Capacity(
                f"{most} commands wait for the agent of session {self.id}, which does not read "
                "them; end it, or wait."
            )

    async def discard(self, error: LaunchError) -> bool:
        """The first launch came to nothing. False where somebody has found the session meanwhile.

        Then it stays, and says why it could not be started.
        """
        if not self.model.creating:
            await self._fail_start(error.code, str(error))
            return False
        await self.purge()
        return True

    async def purge(self) -> None:
        """Remove a session that never came to life, and all its rows. Raises NotOwner."""
        epoch, catalogue = self.owner_epoch, self._in.catalogue
        await catalogue.write(lambda cx: sessions_table.purge_session(cx, self.id, epoch))
        if self.model.launch is not None:
            self._remove_files(self.model.launch)
        self._discarded()

    def _discarded(self) -> None:
        """The session is gone for every reader; its rows go slice by slice."""
        self.lost.set()
        self.hub.close_all(CLOSE_ENDED)
        catalogue, session = self._in.catalogue, self.id

        async def remove() -> None:
            while True:
                try:
                    await purge_rows(catalogue, session)
                    return
                except CatalogueError as error:
                    log.warning("%s Removing the session's rows later.", error)
                    await trio.sleep(PURGE_RETRY_S)

        self.spawn(remove)

    def _remove_files(self, launch: LaunchRow) -> None:
        self._in.paths.spool(launch.id).unlink(missing_ok=True)
        self._in.paths.listener(launch.id).unlink(missing_ok=True)

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
        catalogue, session = self._in.catalogue, self.id
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

        async def read_log(seq: int, rows: int, size: int) -> Sequence[MessageRow]:
            return await catalogue.read(
                lambda cx: messages_table.log_after(cx, session, seq, rows, size)
            )

        async def read_thread(thread: str, n: int, rows: int, size: int) -> Sequence[MessageRow]:
            return await catalogue.read(
                lambda cx: messages_table.thread_after(cx, session, thread, n, rows, max_bytes=size)
            )

        return Viewer(
            self.hub,
            Log(after=read_log, thread_after=read_thread),
            hello=lambda resynced: {
                "type": "hello",
                "session": self.current_view(),
                "page_size": 100,
                "resync": resynced,
            },
            snapshot=self._snapshot,
            after=start,
            main_n=main_n,
            resync=resync,
            owner=owner,
        )

    # -- a launch and its tasks -------------------------------------------------------------------

    def begin(self) -> None:
        """Take up a session as it stands in the catalogue: follow its agent, or start one."""
        launch = self.model.launch
        if launch is None:
            if self.model.row.error is None:  # else a person decides when to try again
                self.want_agent_for_prompts()
        elif launch.state == "starting":
            self.spawn(self._recover_start, launch)
        else:
            self._follow(launch)
            if self.model.row.ended_at is not None:
                self.stop_agent()

    def _follow(self, launch: LaunchRow) -> None:
        self._gone = trio.Event()
        self._acked = self._acked_stored = 0
        self._outbox = deque(row for row in self._outbox if row.launch == launch.id)
        self.spawn(self._run_launch, launch)

    async def _run_launch(self, launch: LaunchRow) -> None:
        """Until the launch is over or the session lost."""
        try:
            async with trio.open_nursery() as nursery:
                self._launch_scope = nursery.cancel_scope
                nursery.start_soon(self._converse, launch)
                await self._ingest(launch)
                nursery.cancel_scope.cancel()
        except* (NotOwner, StaleEpoch) as group:
            log.info(
                "another instance owns the session now (%s), letting go",
                _first(group),
                extra={"session": self.id},
            )
            self._lose()
        finally:
            self._launch_scope = None

    def _lose(self) -> None:
        """Another instance owns the session. Its viewers come back and find that one."""
        if not self.lost.is_set():
            self.lost.set()
            self.hub.close_all(CLOSE_GOING_AWAY)
            if self._launch_scope is not None:
                self._launch_scope.cancel()

    async def _ingest(self, launch: LaunchRow) -> None:
        """Read the launch's spool to its end record. Raises NotOwner."""
        spool = Spool(self._in.paths.spool(launch.id))
        try:
            with self._in.watch.bell(spool.path.name) as bell:
                reader = _SpoolReader(launch, spool)
                if spool.size() < launch.offset:
                    await self._spool_cut(reader)
                while True:
                    await bell.wait_rung()
                    while await self._ingest_some(reader):
                        pass
                    if self._gone.is_set():
                        break
        finally:
            spool.close()
        # The launch is over in the catalogue: its files have nothing more to say.
        self._remove_files(launch)

    async def _spool_cut(self, reader: "_SpoolReader") -> None:
        """The host lost power: what was read and stored of the spool did not all reach the disk.

        Its agent died with the host; the rest is read from the file's new end. Raises NotOwner.
        """
        async with self._lock:
            step = Step()
            size = reader.spool.size()
            self.model.spool_cut(step, offset=reader.launch.offset, size=size, at=now_ms())
            reader.restart(size)
            await self._finish_step(step)

    async def _ingest_some(self, reader: "_SpoolReader") -> bool:
        """One read, one step, one commit. False when there is nothing more to read for now."""
        if self._gone.is_set():
            return False
        lines = reader.read_lines()
        if lines is None:
            return False
        if not lines:
            # A line longer than one read: others get their turn in between.
            await trio.lowlevel.checkpoint()
            return True
        async with self._lock:
            step = Step()
            self.hub.ahead = True
            at = now_ms()
            launch = reader.launch
            committed = launch.offset
            for line in lines:
                size = line.size if not isinstance(line, bytes) else len(line)
                frame = classify(line) if isinstance(line, bytes) else line
                start = reader.line_start
                reader.line_start += size + 1
                self.model.line(step, frame, start=start, at=at, stored=start < committed)
                if step.launch_ended:
                    break
            if reader.line_start > committed:
                launch.offset = reader.line_start
                opened = self.model.blocks.replay_from()
                # A sentence that never ends must not keep the spool from being given back.
                launch.replay_from = max(
                    launch.offset if opened is None else opened, launch.offset - MAX_REPLAY_BYTES
                )
                step.change.launch = launch
            if step.initialized or any(p.state == "echoed" for p in step.change.prompts):
                self._fruitless = 0
            behind = launch.offset - reader.committed
            self.model.seal(step, at)
            if step.must_commit or behind > COMMIT_BYTES:
                await self._commit_at_last(step)
                reader.committed = launch.offset
                reader.spool.give_back(launch.replay_from)
            self._publish(step)
        if step.launch_ended:
            self._launch_over()
        return True

    async def _finish_step(self, step: Step) -> None:
        """Seal, store and show a step of the owner's own; the lock is held. Raises NotOwner."""
        self.hub.ahead = True
        self.model.seal(step, now_ms())
        await self._commit_at_last(step)
        self._publish(step)

    def _launch_over(self) -> None:
        self._outbox.clear()
        self._gone.set()
        self._in.watch.ring_all()
        if self.model.row.ended_at is None:
            self.want_agent_for_prompts()

    # -- the keeper -------------------------------------------------------------------------------

    async def _converse(self, launch: LaunchRow) -> None:
        """Keep a greeted connection to the keeper and send it what is numbered for it.

        Returns when the launch is over. Raises StaleEpoch.
        """
        path = self._in.paths.listener(launch.id)
        while not self._gone.is_set():
            self._in.observe("greet_keeper")
            try:
                link = await KeeperLink.greet(path, self.owner_epoch)
            except KeeperError as error:
                if isinstance(error, StaleEpoch):
                    raise
                if not await self._settle_if_dead(launch):
                    await trio.sleep(GREET_AGAIN_S)
                continue
            self._heard(launch, link.last)
            try:
                async with trio.open_nursery() as nursery:
                    self._talk_scope = nursery.cancel_scope
                    if self._signal is None:
                        nursery.start_soon(self._send_outbox, link)
                    else:
                        # Ahead of every command that the agent does not take (PROTOCOL.md, "A
                        # slow agent"); after it, none of them matters.
                        self._outbox.clear()
                        await link.send(protocol.signal(link.last + 1, self._signal))
                    await link.receive_loop(
                        acked=lambda n: self._heard(launch, n), disk=self._tell_disk
                    )
                    nursery.cancel_scope.cancel()
            except* StaleEpoch as group:
                raise StaleEpoch(str(_first(group))) from None
            except* AgentDeafError as group:
                if self._signal is None and not link.exited:
                    log.warning(
                        "%s Ending the agent; its prompts go to the next one.",
                        _first(group),
                        extra={"session": self.id},
                    )
                    self._signal = "TERM"
            except* KeeperError as group:
                log.warning(
                    "the keeper's connection broke (%s), greeting again",
                    _first(group),
                    extra={"session": self.id},
                )
            finally:
                told = self._talk_scope is not None and self._talk_scope.cancel_called
                self._talk_scope = None
                with trio.CancelScope(shield=True):
                    await link.aclose()
            if link.exited or not told:
                with trio.move_on_after(GREET_AGAIN_S):
                    await self._gone.wait()

    def _heard(self, launch: LaunchRow, last: int) -> None:
        """The keeper holds everything up to `last`: it need not be sent again."""
        if self.model.launch is not launch:
            return
        self._acked = max(self._acked, last)
        while self._outbox and self._outbox[0].n <= last:
            self._outbox.popleft()

    async def _send_outbox(self, link: KeeperLink) -> None:
        sent = link.last
        while True:
            row = next((row for row in self._outbox if row.n > sent), None)
            if row is None:
                await self._outbox_bell.wait_rung()
                continue
            self._in.observe("send_command")
            await link.send(await self._command_bytes(row))
            sent = row.n

    async def _command_bytes(self, row: OutboxRow) -> bytes:
        match row.kind:
            case "end":
                return protocol.end(row.n)
            case "line":
                text = row.line
                if text is None:
                    text = await self._read_body(row.seq or 0)
                return protocol.line(row.n, text.encode())

    async def _read_body(self, seq: int) -> str:
        """A stored prompt's line. Waits while the catalogue cannot be read."""
        while True:
            try:
                body = await self._in.catalogue.read(
                    lambda cx: messages_table.body(cx, self.id, seq)
                )
            except CatalogueError:
                await trio.sleep(RETRY_S)
                continue
            assert body is not None, "the outbox points at messages of the same session"
            return body

    def _tell_disk(self, full: bool) -> None:
        log.log(
            logging.ERROR if full else logging.INFO,
            "the disk of the spool %s",
            "is full: the agent is paused, nothing is lost" if full else "has room again",
            extra={"session": self.id},
        )

    async def _settle_if_dead(self, launch: LaunchRow) -> bool:
        """No keeper answers. If the lock can be taken, nothing of the launch lives: finish it.

        False while something still holds the lock.
        """
        try:
            lock = launcher.Lock.take_nowait(self._in.paths.lock(self.id))
        except LockHeld:
            return False
        try:
            self._in.observe("settle_launch")
            # Nobody writes the spool any more. What it still holds counts, an end record included.
            while not self._gone.is_set():
                async with self._lock:
                    if self.model.launch is not launch:
                        return True
                    at_end = self._at_end(launch)
                    if at_end:
                        step = Step()
                        rebooted = launch.boot_id != self._in.boot_id
                        self.model.launch_over(step, None, now_ms(), rebooted=rebooted)
                        await self._finish_step(step)
                if at_end:
                    self._launch_over()
                    return True
                self._in.watch.ring(self._in.paths.spool(launch.id).name)
                await trio.sleep(0.01)
        finally:
            lock.close()
        return True

    def _at_end(self, launch: LaunchRow) -> bool:
        """Whether the spool holds no whole line that has not been read.

        Not so one that is shorter than what was read of it: that has to be told first.
        """
        path = self._in.paths.spool(launch.id)
        try:
            with path.open("rb") as file:
                if file.seek(0, os.SEEK_END) < launch.offset:
                    return False
                file.seek(launch.offset)
                while chunk := file.read(COMMIT_BYTES):
                    if b"\n" in chunk:
                        return False
        except FileNotFoundError:
            return True
        return True

    # -- starting an agent --------------------------------------------------------------------------

    def want_agent_for_prompts(self) -> None:
        """Start an agent if a prompt waits for one."""
        if self.model.launch is None and self.model.queued_ids():
            self.want_agent()

    def want_agent(self) -> None:
        """Start an agent unless one lives or is being started."""
        if self._starting or self.model.launch is not None or self.lost.is_set():
            return
        self._starting = True
        self.model.wanted = True
        self.spawn(self._start)

    async def _start(self) -> None:
        told_of_lock = False
        try:
            while (
                self.model.launch is None
                and self.model.row.ended_at is None
                and not self.lost.is_set()
            ):
                if self._fruitless >= FRUITLESS_LAUNCHES:
                    self._fruitless = 0
                    await self._fail_start(
                        "agent_exits",
                        f"The agent was started {FRUITLESS_LAUNCHES} times and exited each time "
                        "before it took the prompt; see the journal of its unit for its last "
                        "words, then resume the session.",
                    )
                    return
                self._fruitless += 1
                try:
                    await self._start_once()
                except LockHeld as error:
                    # An owner taken for dead that stands still, or an agent that will not go:
                    # people are told, and the prompts that wait go on waiting.
                    self._fruitless -= 1
                    if not told_of_lock:
                        told_of_lock = True
                        await self._fail_start(error.code, str(error))
                except (LaunchError, RequestError) as error:
                    await self._fail_start(getattr(error, "code", "launch_failed"), str(error))
                    return
        except (NotOwner, StaleEpoch):
            self._lose()
        finally:
            self._starting = False
            self.model.wanted = False

    async def _start_once(self) -> None:
        """One launch, from the lock to the first numbered lines.

        Raises LaunchError (nothing runs), CatalogueError, NotOwner.
        """
        observe = self._in.observe
        observe("take_lock")
        lock = await launcher.Lock.wait_taken(self._in.paths.lock(self.id))
        try:
            launch = self.new_launch()
            observe("record_launch")
            async with self._lock:
                self._still_ours()
                if self.model.launch is not None or self.model.row.ended_at is not None:
                    lock.close()
                    return
                step = Step()
                self.model.launch_begun(step, launch)
                await self._finish_step(step)
        except BaseException:
            lock.close()
            raise
        await self.run_launch(launch, lock)

    def new_launch(self) -> LaunchRow:
        return LaunchRow(
            id=new_id("l"),
            session=self.id,
            nonce=token_hex(16),
            owner_epoch=self.owner_epoch,
            state="starting",
            offset=0,
            replay_from=0,
            last_n=0,
            created_at=now_ms(),
            boot_id=self._in.boot_id,
        )

    def _launch_request(self, launch: LaunchRow) -> dict[str, Any]:
        """The keeper's orders. Raises LaunchError when the agent is not configured."""
        row = self.model.row
        agent = self._in.agents(row.agent)
        if agent is None:
            raise LaunchError(
                f"No agent {row.agent!r} is configured; add [agents.{row.agent}] to holdover.toml.",
                code="no_such_agent",
            )
        fresh, resumed = (
            build_launch(
                agent,
                agent_session=row.agent_session,
                resume=resume,
                model=row.model,
                permission_mode=row.permission_mode,
            )
            for resume in (False, True)
        )
        # Where there are transcripts the keeper sees whether there is a conversation to go on
        # with; elsewhere we go by what the agent has shown us.
        argv, fresh_argv = resumed.argv, fresh.argv
        if not fresh.transcripts:
            argv, fresh_argv = (resumed if self.model.conversation_begun else fresh).argv, ()
        spec = resumed
        return {
            "session": row.id,
            "launch": launch.id,
            "nonce": launch.nonce,
            "owner_epoch": launch.owner_epoch,
            "argv": list(argv),
            "fresh_argv": list(fresh_argv),
            "env": {**spec.env, "HOLDOVER_SESSION_ID": row.id},
            "cwd": row.cwd,
            "workspace": row.id,
            "roots": list(self._in.roots),
            "lookup": {
                "transcripts": list(spec.transcripts),
                "uuids": [p.id for p in self.model.unsettled_prompts()],
            },
        }

    async def run_launch(self, launch: LaunchRow, lock: launcher.Lock) -> None:
        """Start the agent of a recorded launch and follow it.

        Raises LaunchError when there is none; the launch is then still on record.
        """
        try:
            request = self._launch_request(launch)
        except BaseException:
            lock.close()
            raise
        try:
            started = await launcher.start_keeper(
                self._in.paths, self.model.row.account, lock, launch.id, request, self._in.observe
            )
        except KeeperError as error:
            # Not awaited: whoever asked for the agent need not wait for what nobody can tell.
            log.warning("%s Probing it.", error, extra={"session": self.id})
            if self.model.creating:
                await self._announce(launch)
            self.spawn(self._recover_start, launch)
            return
        if started.isolation == "none":
            log.warning(
                "the agent runs without namespaces of its own: agents of one account can signal "
                "each other here",
                extra={"session": self.id},
            )
        await self._go_live(
            launch,
            keeper_pid=started.keeper_pid,
            agent_pid=started.agent_pid,
            cwd=started.cwd,
            found=started.found,
            fresh=started.fresh,
            searchable=bool(request["lookup"]["transcripts"]),
        )

    async def _announce(self, launch: LaunchRow) -> None:
        """The session's creator is about to be told of it. Raises NotOwner."""
        async with self._lock:
            if self.model.launch is launch:
                step = Step()
                self.model.announce(step)
                await self._finish_step(step)

    async def _go_live(
        self,
        launch: LaunchRow,
        *,
        keeper_pid: int | None,
        agent_pid: int | None,
        cwd: str | None,
        found: frozenset[str],
        fresh: bool,
        searchable: bool,
    ) -> None:
        """Number the handshake and what waits, then follow the launch. Raises NotOwner."""
        self._in.observe("record_live")
        initialize_id = f"holdover-{launch.id}-initialize"
        async with self._lock:
            if self.model.launch is not launch:
                return
            step = Step()
            at = now_ms()
            resumed = self.model.conversation_begun
            self.model.settle_prompts(step, found=found, searchable=searchable, at=at)
            if resumed and fresh:
                self.model.notice(
                    step,
                    "conversation_lost",
                    "The agent's own record of this conversation is gone (it was killed before "
                    "it could write it, or somebody removed it): it starts with an empty memory. "
                    "This log is whole.",
                    at,
                )
            self.model.launch_live(
                step,
                keeper_pid=keeper_pid,
                agent_pid=agent_pid,
                cwd=cwd,
                first_lines=[
                    host_frames.initialize(initialize_id, title=self.model.row.title),
                ],
                initialize_id=initialize_id,
                at=at,
                resumed=resumed,
            )
            # The tasks of the launch take commands only once they are stored, so none is lost
            # between here and their start.
            self._gone = trio.Event()
            self._signal = None
            self._acked = self._acked_stored = 0
            self._outbox.clear()
            await self._finish_step(step)
            self.spawn(self._run_launch, launch)
        if self.model.row.ended_at is not None:
            self.stop_agent()

    async def _recover_start(self, launch: LaunchRow) -> None:
        """A launch is on record and nobody knows whether its keeper ever started.

        A keeper that greets back is followed. One that looked up prompts for an owner that died
        before hearing the result has sent its agent nothing: it is ended and another started.
        """
        try:
            while not self.lost.is_set():
                try:
                    if await self._probe_start(launch):
                        return
                except StaleEpoch:
                    raise
                except KeeperError as error:
                    log.warning("%s Probing again.", error, extra={"session": self.id})
                await trio.sleep(GREET_AGAIN_S)
        except (NotOwner, StaleEpoch):
            self._lose()

    async def _probe_start(self, launch: LaunchRow) -> bool:
        """Settle a recorded launch if that can be done now. Raises NotOwner, KeeperError."""
        self._in.observe("probe_keeper")
        try:
            link = await KeeperLink.greet(self._in.paths.listener(launch.id), self.owner_epoch)
        except StaleEpoch:
            raise
        except KeeperError:
            self._in.observe("probe_lock")
            try:
                lock = launcher.Lock.take_nowait(self._in.paths.lock(self.id))
            except LockHeld:
                return False
            lock.close()
            await self._give_up_start(launch)
            return True
        try:
            if self.model.unsettled_prompts():
                await link.send(protocol.signal(link.last + 1, "KILL"))
                await link.receive_loop(acked=lambda _n: None, disk=self._tell_disk)
                return False
        finally:
            with trio.CancelScope(shield=True):
                await link.aclose()
        await self._go_live(
            launch,
            keeper_pid=None,
            agent_pid=None,
            cwd=None,
            found=frozenset(),
            fresh=False,
            searchable=True,
        )
        return True

    async def _give_up_start(self, launch: LaunchRow) -> None:
        """Nothing of a recorded launch lives. Raises NotOwner."""
        if self.model.creating:
            # Its creator died before anyone was told of it.
            while True:
                try:
                    await self.purge()
                    return
                except CatalogueError:
                    await trio.sleep(RETRY_S)
        async with self._lock:
            if self.model.launch is not launch:
                return
            step = Step()
            self.model.launch_abandoned(step)
            await self._finish_step(step)
        self._remove_files(launch)
        self.want_agent_for_prompts()

    async def _fail_start(self, code: str, message: str) -> None:
        async with self._lock:
            launch = self.model.launch
            step = Step()
            self.model.wanted = False
            self.model.launch_failed(step, code=code, message=message, at=now_ms())
            try:
                await self._finish_step(step)
            except NotOwner:
                self._lose()
        if launch is not None:
            self._remove_files(launch)

    # -- stopping an agent ---------------------------------------------------------------------------

    def stop_agent(self) -> None:
        """End the agent gently, then firmly; returns at once."""
        if self.model.launch is not None and not self._stopping:
            self._stopping = True
            self.spawn(self._stop)

    async def _stop(self) -> None:
        """stream-json.md §11: interrupt, close stdin, TERM, KILL, each with its time."""
        gone = self._gone
        try:
            if self.model.turn_open:
                line = host_frames.interrupt(new_id("holdover"), cancel_queued=True)
                await self._tell_live(lambda step: self.model.control(step, line))
                with trio.move_on_after(STOP_STEP_S):
                    while self.model.turn_open and not gone.is_set():
                        await trio.sleep(0.05)
            await self._tell_live(self.model.close_stdin)
            with trio.move_on_after(STOP_STEP_S):
                await gone.wait()
            for name in ("TERM", "KILL"):
                launch = self.model.launch
                if launch is None or launch.state != "live":
                    return
                self._signal = name
                if self._talk_scope is not None:
                    self._talk_scope.cancel()
                with trio.move_on_after(STOP_STEP_S):
                    await gone.wait()
            if self.model.launch is not None:
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


async def purge_rows(catalogue: Catalogue, session: str) -> None:
    """Remove a purged session's rows, slice by slice: nobody else waits for long."""
    while not await catalogue.write(lambda cx: sessions_table.purge_slice(cx, session)):
        pass


def _first(group: BaseExceptionGroup[Any]) -> BaseException:
    """The first error of a group that is not itself a group."""
    error: BaseException = group
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error


class _SpoolReader:
    """Where reading a launch's spool stands: whole lines out of whatever is there."""

    def __init__(self, launch: LaunchRow, spool: Spool) -> None:
        self.launch = launch
        self.spool = spool
        self.committed = launch.offset
        self.restart(launch.replay_from)

    def restart(self, position: int) -> None:
        self.position = position
        self.line_start = position
        self._splitter = LineSplitter()

    def read_lines(self) -> list[Any] | None:
        """Lines that the next read completes; None at the file's present end."""
        data = self.spool.read(self.position)
        if not data:
            return None
        self.position += len(data)
        return self._splitter.feed(data)
