"""One launch, from its first stored line to its end: reading its spool, speaking to its keeper.

Two tasks. `_ingest` turns what the agent said into steps of the session, up to the keeper's end
record. `_converse` keeps a greeted connection to the keeper and sends it what is numbered for it;
when nobody answers there and the session's lock can be taken, nothing of the launch lives any
more, and it is finished from what the spool holds.
"""

import json
import logging
import os
from collections.abc import Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import trio

from holdoverd.agents.stream_json import Frame, OversizeLine
from holdoverd.catalogue import messages as messages_table
from holdoverd.catalogue.records import LaunchRow, OutboxRow
from holdoverd.catalogue.writer import Write
from holdoverd.errors import CatalogueError, KeeperError, LockHeld, NotOwner, StaleEpoch
from holdoverd.ids import now_ms
from holdoverd.keeper import protocol
from holdoverd.sessions import launcher
from holdoverd.sessions.agent_lines import take_line
from holdoverd.sessions.launches import launch_over, spool_cut
from holdoverd.sessions.link import AgentDeafError, KeeperLink
from holdoverd.sessions.model import Step
from holdoverd.sessions.outbox import Outbox
from holdoverd.sessions.spool import Spool, SpoolReader

if TYPE_CHECKING:
    from holdoverd.sessions.owner import OwnedSession

log = logging.getLogger(__name__)

RETRY_S = 1.0
GREET_AGAIN_S = 0.2
COMMIT_BYTES = 1024 * 1024
"""Live-only lines are committed past, without a message, only once there are this many bytes."""

MAX_REPLAY_BYTES = 64 * 1024 * 1024
"""How far back a new owner reads at most to show a sentence from its beginning."""


class Following:
    """The tasks of one launch of a session. `gone` is set once the launch is over and stored."""

    def __init__(
        self, owner: "OwnedSession", launch: LaunchRow, outbox: Sequence[OutboxRow] = ()
    ) -> None:
        self._owner = owner
        self.launch = launch
        self.outbox = Outbox(row for row in outbox if row.launch == launch.id)
        self.gone = trio.Event()
        self._scope: trio.CancelScope | None = None
        self._talk_scope: trio.CancelScope | None = None
        # TERM or KILL for an agent that takes no numbered command any more
        self._signal: str | None = None
        self._heard = trio.current_time()
        # What the agent said on, the model being ahead by it, while the step before is stored.
        self._next: Step | None = None
        owner.hub.replaying(launch.replay_from < launch.offset)

    async def run(self) -> None:
        """Until the launch is over or the session lost."""
        try:
            async with trio.open_nursery() as nursery:
                self._scope = nursery.cancel_scope
                nursery.start_soon(self._converse)
                await self._ingest()
                nursery.cancel_scope.cancel()
        except* (NotOwner, StaleEpoch) as group:
            log.info(
                "another instance owns the session now (%s), letting go",
                first_of(group),
                extra={"session": self._owner.id},
            )
            self._owner.lose()
        finally:
            self._scope = None
            self._owner.hub.replaying(False)
            if self.gone.is_set():
                self._owner.hub.settled()

    def lag_bytes(self) -> int:
        """What the agent has said and nobody has read; 0 once the spool is gone."""
        try:
            size = os.stat(self._owner.instance.paths.spool(self.launch.id)).st_size
        except OSError:
            return 0
        return max(0, size - self.launch.offset)

    def silent_s(self) -> float:
        """How long the agent has said nothing, or nothing that could be stored."""
        return trio.current_time() - self._heard

    def cancel(self) -> None:
        """The session is another owner's now."""
        if self._scope is not None:
            self._scope.cancel()

    def signal(self, name: str) -> None:
        """TERM or KILL the agent, ahead of every command that it does not take."""
        self._signal = name
        if self._talk_scope is not None:
            self._talk_scope.cancel()  # greet anew, with the signal first

    def _over(self) -> None:
        self.outbox.clear()
        self.gone.set()
        self._owner.instance.counts.agent_exits[exit_kind(self.launch.outcome)] += 1
        self._owner.instance.watch.ring(self._owner.instance.paths.spool(self.launch.id).name)
        self._owner.launch_over(self)

    # -- what the agent says ----------------------------------------------------------------------

    async def _ingest(self) -> None:
        """Read the launch's spool to its end record. Raises NotOwner."""
        launch = self.launch
        spool = Spool(self._owner.instance.paths.spool(launch.id))
        try:
            with self._owner.instance.watch.bell(spool.path.name) as bell:
                reader = SpoolReader(launch, spool)
                if spool.size() < launch.offset:
                    await self._spool_cut(reader)
                while True:
                    await bell.wait_rung()
                    while await self._ingest_some(reader):
                        pass
                    if self.gone.is_set():
                        break
        finally:
            spool.close()
        # The launch is over in the catalogue: its files have nothing more to say.
        self._owner.remove_files(launch)

    async def _spool_cut(self, reader: SpoolReader) -> None:
        """The host lost power: what was read and stored of the spool did not all reach the disk.

        Its agent died with the host; the rest is read from the file's new end. Raises NotOwner.
        """
        async with self._owner.lock:
            step = Step()
            size = reader.spool.size()
            spool_cut(self._owner.model, step, offset=reader.launch.offset, size=size, at=now_ms())
            reader.restart(size)
            self._owner.hub.replaying(False)
            await self._owner.finish_step(step)

    async def _ingest_some(self, reader: SpoolReader) -> bool:
        """Step by step, commit by commit. False when nothing is left to read until the bell rings.

        Where there is more already, the next step is made while this one is being stored: then
        neither waits for the other, and the slower the disk, the more goes into one commit. It is
        stored and shown only after this one, and lost with it.
        """
        if self.gone.is_set():
            return False
        if not self._owner.goes_on.is_set():
            await self._owner.goes_on.wait()
        frames = reader.read_frames()
        if frames is None:
            return False
        if not frames:
            # A line longer than one read: others get their turn in between. What is too long to
            # be kept is not kept on the disk either, or it would stop the keeper at its bound.
            if reader.overflowing:
                reader.spool.give_back(reader.position)
            await trio.lowlevel.checkpoint()
            return True
        lock = self._owner.lock
        # A session that was let go of a moment ago gets no further step.
        await trio.lowlevel.checkpoint_if_cancelled()
        try:
            # Nearly always free: then there is no need for all the others' turns in between.
            lock.acquire_nowait()
        except trio.WouldBlock:
            await lock.acquire()
        try:
            step = Step()
            self._take(reader, step, frames, now_ms())
            while (following := await self._store(reader, step)) is not None:
                # Nor does one that was let go of meanwhile.
                await trio.lowlevel.checkpoint_if_cancelled()
                step = following
            launch_ended = step.launch_ended
        finally:
            self._next = None
            lock.release()
        if launch_ended:
            self._over()
        return reader.unread  # what has come since has rung the bell

    def _take(
        self,
        reader: SpoolReader,
        step: Step,
        frames: Sequence[tuple[int, Frame | OversizeLine]],
        at: int,
    ) -> None:
        """Put `frames` into `step`, the lock being held: the model goes ahead by them."""
        counts = self._owner.instance.counts
        self._owner.hub.ahead = True
        launch = reader.launch
        committed = launch.offset
        model = self._owner.model
        start = reader.line_start
        for size, frame in frames:
            take_line(model, step, frame, start=start, at=at, stored=start < committed)
            start += size + 1
            if step.launch_ended:
                break
        counts.lines += len(frames)
        counts.line_bytes += start - reader.line_start
        reader.line_start = start
        if reader.line_start > committed:
            launch.offset = reader.line_start
            opened = model.blocks.replay_from()
            # A sentence that never ends must not keep the spool from being given back.
            launch.replay_from = max(
                launch.offset if opened is None else opened, launch.offset - MAX_REPLAY_BYTES
            )
            step.change.launch = launch
        if step.initialized or any(p.state == "echoed" for p in step.change.prompts):
            self._owner.starter.fruitful()
        if reader.line_start >= committed:
            self._owner.hub.replaying(False)

    async def _store(self, reader: SpoolReader, step: Step) -> Step | None:
        """Store and show `step`, the lock being held. The next one, where it was begun meanwhile."""
        owner, launch = self._owner, reader.launch
        sealed = owner.seal(step, now_ms())
        reader.hand_over()
        offset, replay_from = launch.offset, launch.replay_from
        self._next = None
        if step.must_commit or offset - reader.committed > COMMIT_BYTES:
            begun: Write[None] | None = None
            if reader.more and not step.launch_ended:
                with suppress(CatalogueError):  # said again by the next try
                    begun = owner.begin_storing(sealed)
                    await self._meanwhile(reader, step, begun)
            await owner.store_at_last(sealed, begun)
            owner.instance.counts.commits += 1
            reader.committed = offset
            reader.spool.give_back(replay_from)
        elif reader.more:
            await trio.lowlevel.checkpoint()  # others get their turn between two reads
        owner.publish(sealed, ahead=self._next is not None)
        self._heard = trio.current_time()
        return self._next

    async def _meanwhile(self, reader: SpoolReader, step: Step, storing: Write[None]) -> None:
        """What can be done while `step` is being stored, of which nobody hears before it is.

        In this task: to tell another to stop would take several turns of a loop that is busy, in
        which nothing is stored. Not cancelled, and no longer than `AHEAD_BYTES` take.
        """
        self._owner.hub.prepare(step.events)
        at = now_ms()  # of all that comes meanwhile: what differs less is stored faster
        while not storing.over and reader.read_ahead():
            if self._may_go_on and (frames := reader.take_ahead()):
                self._next = self._next or Step()
                self._take(reader, self._next, frames, at)
                if self._next.launch_ended:
                    return
            await trio.lowlevel.cancel_shielded_checkpoint()

    @property
    def _may_go_on(self) -> bool:
        """Nobody waits for the session to be what has been shown of it."""
        owner = self._owner
        return (
            owner.goes_on.is_set()
            and not owner.lock.statistics().tasks_waiting
            and not owner.hub.level_wanted
        )

    # -- what the agent is told -------------------------------------------------------------------

    async def _converse(self) -> None:
        """Keep a greeted connection to the keeper and send it what is numbered for it.

        Returns when the launch is over. Raises StaleEpoch.
        """
        path = self._owner.instance.paths.listener(self.launch.id)
        while not self.gone.is_set():
            self._owner.instance.observe("greet_keeper")
            try:
                link = await KeeperLink.greet(path, self._owner.owner_epoch)
            except KeeperError as error:
                if isinstance(error, StaleEpoch):
                    raise
                if not await self._settle_if_dead():
                    await trio.sleep(GREET_AGAIN_S)
                continue
            self.outbox.heard(link.last)
            try:
                async with trio.open_nursery() as nursery:
                    self._talk_scope = nursery.cancel_scope
                    if self._signal is None:
                        nursery.start_soon(self._send_outbox, link)
                    else:
                        # Ahead of every command that the agent does not take (PROTOCOL.md, "A
                        # slow agent"); after it, none of them matters.
                        self.outbox.clear()
                        await link.send(protocol.signal(link.last + 1, self._signal))
                    await link.receive_loop(acked=self.outbox.heard, disk=self._owner.tell_disk)
                    nursery.cancel_scope.cancel()
            except* StaleEpoch as group:
                raise StaleEpoch(str(first_of(group))) from None
            except* AgentDeafError as group:
                if self._signal is None and not link.exited:
                    log.warning(
                        "%s Ending the agent; its prompts go to the next one.",
                        first_of(group),
                        extra={"session": self._owner.id},
                    )
                    self._signal = "TERM"
            except* KeeperError as group:
                log.warning(
                    "the keeper's connection broke (%s), greeting again",
                    first_of(group),
                    extra={"session": self._owner.id},
                )
            finally:
                told = self._talk_scope is not None and self._talk_scope.cancel_called
                self._talk_scope = None
                with trio.CancelScope(shield=True):
                    await link.aclose()
            if link.exited or not told:
                with trio.move_on_after(GREET_AGAIN_S):
                    await self.gone.wait()

    async def _send_outbox(self, link: KeeperLink) -> None:
        sent = link.last
        while True:
            row = self.outbox.next_after(sent)
            if row is None:
                await self.outbox.bell.wait_rung()
                continue
            self._owner.instance.observe("send_command")
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
                body = await self._owner.instance.catalogue.read(
                    lambda cx: messages_table.body(cx, self._owner.id, seq)
                )
            except CatalogueError:
                await trio.sleep(RETRY_S)
                continue
            assert body is not None, "the outbox points at messages of the same session"
            return body

    async def _settle_if_dead(self) -> bool:
        """No keeper answers. If the lock can be taken, nothing of the launch lives: finish it.

        False while something still holds the lock.
        """
        launch = self.launch
        try:
            lock = launcher.Lock.take_nowait(self._owner.instance.paths.lock(self._owner.id))
        except LockHeld:
            return False
        try:
            self._owner.instance.observe("settle_launch")
            # Nobody writes the spool any more. What it still holds counts, an end record included.
            while not self.gone.is_set():
                async with self._owner.lock:
                    if self._owner.model.launch is not launch:
                        return True
                    at_end = self._at_end(launch)
                    if at_end:
                        step = Step()
                        rebooted = launch.boot_id != self._owner.instance.boot_id
                        launch_over(self._owner.model, step, None, now_ms(), rebooted=rebooted)
                        await self._owner.finish_step(step)
                if at_end:
                    self._over()
                    return True
                self._owner.instance.watch.ring(self._owner.instance.paths.spool(launch.id).name)
                await trio.sleep(0.01)
        finally:
            lock.close()
        return True

    def _at_end(self, launch: LaunchRow) -> bool:
        """Whether the spool holds no whole line that has not been read.

        Not so one that is shorter than what was read of it: that has to be told first.
        """
        path = self._owner.instance.paths.spool(launch.id)
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


def exit_kind(outcome: str | None) -> str:
    """How an agent ended, in a word, from the keeper's end record; see `SessionModel.launch_over`."""
    try:
        told = json.loads(outcome or "{}")
    except ValueError:
        return "unknown"
    if told.get("oom"):
        return "oom"
    if told.get("signal") is not None:
        return "signal"
    if told.get("status") is not None:
        return "status_0" if told["status"] == 0 else "status"
    return "unknown"


def first_of(group: BaseExceptionGroup[Any]) -> BaseException:
    """The first error of a group that is not itself a group."""
    error: BaseException = group
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error
