"""The links between this instance and its siblings, and their pulse.

    listener     siblings that are newer, and operators
    dialer       siblings that are older, as long as their locks are held
    each link    one reader, one beat; a silent peer is killed by whoever notices

A link's end says that something happened, a pidfd says what: only a process that is gone for
certain counts as dead (a lock could be its next life's already).
"""

import errno
import logging
import os
import signal
import socket
import struct
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any, Protocol

import trio

from holdoverd.errors import HandoverError
from holdoverd.handover import roles, wire
from holdoverd.handover.wire import Packet, PacketSocket

log = logging.getLogger(__name__)

BEAT_S = 0.5
SILENT_S = 3.0
HELLO_S = SILENT_S
DIAL_S = 0.1
DEAD_S = 1.0
"""From the end of a link to the end of its process: the kernel closes one file after the other."""

MAX_WAITING_CONVERSATIONS = 10_000
MAX_OPERATORS = 8
_BACKLOG = 64
_UCRED = struct.Struct("3i")


@dataclass(frozen=True, slots=True)
class Status:
    """What an instance tells of itself. `since_at`: when it came to `state`, in ms."""

    state: roles.State
    sessions: int
    connections: int
    since_at: int


class Means(Protocol):
    """What an instance does for its siblings and its operators."""

    def status(self) -> Status: ...
    def siblings_changed(self) -> None:
        """A sibling came, went or changed its state."""

    async def offered(self, link: "Link", packet: Packet, coming: "Conversation") -> None:
        """Take what `packet` offers; `coming` brings its connections and its end."""

    async def called(self, link: "Link", packet: Packet) -> None:
        """Do what `packet` asks and send the answer."""

    def told(self, packet: Packet) -> None:
        """`drain` and `revoked`: what a sibling passes on of what it was asked."""

    async def operate(self, packet: Packet) -> tuple[dict[str, Any], Sequence[int]]:
        """An operator's order; what ``ok`` says beside, and its descriptors, which stay ours.

        Raises HandoverError: said to him.
        """


class Conversation:
    """What a link brings for one id, in order; ends with the link."""

    def __init__(self) -> None:
        self._send, self._receive = trio.open_memory_channel[Packet](MAX_WAITING_CONVERSATIONS)

    def put(self, packet: Packet) -> None:
        try:
            self._send.send_nowait(packet)
        except (trio.WouldBlock, trio.BrokenResourceError, trio.ClosedResourceError):
            packet.close()

    def close(self) -> None:
        self._send.close()

    async def next(self) -> Packet | None:
        """The next packet, the caller's to close; None once the link has ended."""
        try:
            return await self._receive.receive()
        except trio.EndOfChannel:
            return None

    def drop_rest(self) -> None:
        """Close what nobody will look at."""
        with suppress(trio.WouldBlock, trio.EndOfChannel, trio.ClosedResourceError):
            while True:
                self._receive.receive_nowait().close()


class Link:
    """One greeted connection to a sibling."""

    def __init__(self, packets: PacketSocket, hello: Packet, pid: int, pidfd: int) -> None:
        self._packets = packets
        self.generation = hello.integer("generation")
        self.release = hello.text("release")
        self.pid = pid
        self._pidfd = pidfd
        versions = hello.fields.get("v")
        self.usable = isinstance(versions, list) and wire.VERSION in versions
        self.status = Status("candidate", 0, 0, 0)
        self.heard_at = trio.current_time()
        self.ended = trio.Event()
        self.dead = trio.Event()
        """Its process is gone for certain. Not set where that cannot be told in time."""
        self.killed = False
        self._ids = count(1)
        self._mine: dict[int, Conversation] = {}
        self._theirs: dict[int, Conversation] = {}
        self.take_state(hello)

    def take_state(self, packet: Packet) -> bool:
        """Take in a hello or a beat; True where the state is another than before."""
        state = packet.fields.get("state")
        if state not in ("candidate", "serving", "draining"):
            raise HandoverError(f"Generation {self.generation} says it is {state!r}.")
        before = self.status
        self.status = Status(
            state,
            packet.integer("sessions"),
            packet.integer("connections"),
            int(packet.fields.get("since_at") or before.since_at),
        )
        return bool(before.state != state)

    @property
    def state(self) -> roles.State:
        return self.status.state

    async def send(self, fields: dict[str, Any], fds: Sequence[int] = ()) -> None:
        """Raises HandoverError when the sibling is gone."""
        await self._packets.send(fields, fds)

    @contextmanager
    def conversation(self) -> Iterator[tuple[int, Conversation]]:
        """An id of ours, and what the sibling sends for it."""
        if len(self._mine) >= MAX_WAITING_CONVERSATIONS:
            raise HandoverError(f"Too much is under way to generation {self.generation} already.")
        number = next(self._ids)
        conversation = self._mine[number] = Conversation()
        if self.ended.is_set():
            conversation.close()
        try:
            yield number, conversation
        finally:
            del self._mine[number]
            conversation.close()
            conversation.drop_rest()

    def close(self) -> None:
        """End the link; both sides settle what was under way by the rules of `transfer`."""
        self._packets.close()

    async def wait_dead(self) -> bool:
        """After its end: whether the sibling's process is gone. Waits up to `DEAD_S` for that."""
        with trio.move_on_after(DEAD_S):
            await self.dead.wait()
        return bool(self.dead.is_set())

    async def watch_death(self) -> None:
        await trio.lowlevel.wait_readable(self._pidfd)
        self.dead.set()

    def kill(self) -> None:
        self.killed = True
        with suppress(ProcessLookupError):
            signal.pidfd_send_signal(self._pidfd, signal.SIGKILL)

    async def run(self, means: Means, nursery: trio.Nursery) -> None:
        """Read until the link ends. Its conversations end with it."""
        try:
            while (packet := await self._packets.receive()) is not None:
                self.heard_at = trio.current_time()
                try:
                    self._dispatch(packet, means, nursery)
                except BaseException:
                    packet.close()
                    raise
        except HandoverError as error:
            log.warning("generation %d: %s Ending the link.", self.generation, error)
        finally:
            self.ended.set()
            self._packets.close()
            for conversation in (*self._mine.values(), *self._theirs.values()):
                conversation.close()

    def _dispatch(self, packet: Packet, means: Means, nursery: trio.Nursery) -> None:
        match packet.type:
            case "beat":
                packet.close()
                if self.take_state(packet):
                    means.siblings_changed()
            case "taken" | "refused" | "answer":
                mine = self._mine.get(packet.integer("id"))
                if mine is None:
                    packet.close()  # given up meanwhile
                else:
                    mine.put(packet)
            case "offer":
                number = packet.integer("id")
                if number in self._theirs:
                    raise HandoverError(f"Two transfers have the id {number}.")
                coming = self._theirs[number] = Conversation()
                nursery.start_soon(self._offered, means, packet, number, coming)
            case "connection" | "go":
                theirs = self._theirs.get(packet.integer("id"))
                if theirs is None:
                    packet.close()
                else:
                    theirs.put(packet)
            case "drain" | "revoked":
                packet.close()
                means.told(packet)
            case "call":
                nursery.start_soon(means.called, self, packet)
            case _:
                packet.close()

    async def _offered(
        self, means: Means, packet: Packet, number: int, coming: Conversation
    ) -> None:
        try:
            await means.offered(self, packet, coming)
        finally:
            self._theirs.pop(number, None)
            coming.close()
            coming.drop_rest()


class Siblings:
    """All links of this instance. Made and run by `main`."""

    def __init__(
        self,
        folder: Path,
        generation: int,
        release: str,
        live_generations: Callable[[], set[int]],
        means: Means,
    ) -> None:
        self._folder = folder
        self._generation = generation
        self._release = release
        self._live_generations = live_generations
        self._means = means
        self._links: dict[int, Link] = {}
        self._operators = 0
        self._told = trio.Event()
        self._nursery: trio.Nursery | None = None

    def links(self) -> list[Link]:
        return list(self._links.values())

    def link(self, generation: int) -> Link | None:
        """The link to a sibling that can be handed something; None while there is none."""
        found = self._links.get(generation)
        return found if found is not None and found.usable else None

    def known(self) -> list[roles.Sibling]:
        """Every other instance that lives. One without a link is not reachable."""
        alive = self._live_generations() - {self._generation}
        found = [
            roles.Sibling(link.generation, link.state, link.usable) for link in self._links.values()
        ]
        linked = {sibling.generation for sibling in found}
        return found + [roles.Sibling(g, "serving", False) for g in sorted(alive - linked)]

    def pass_word(self, fields: dict[str, Any]) -> None:
        """Send a packet to every sibling, in the background; one that is gone misses nothing."""
        assert self._nursery is not None, "words are passed on while links are kept"
        for link in self.links():
            self._nursery.start_soon(_send_quietly, link, fields)

    def tell(self) -> None:
        """Our state has changed: beat at once."""
        self._told.set()
        self._told = trio.Event()

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Listen, dial, beat and watch until cancelled."""
        path = self._folder / f"{self._generation}.sock"
        listener = trio.socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with listener:
            path.unlink(missing_ok=True)
            await listener.bind(str(path))
            listener.listen(_BACKLOG)
            try:
                async with trio.open_nursery() as nursery:
                    self._nursery = nursery
                    nursery.start_soon(self._accept, listener, nursery)
                    nursery.start_soon(self._dial_older, nursery)
                    nursery.start_soon(self._watch_silence)
                    task_status.started()
            finally:
                path.unlink(missing_ok=True)

    # -- making links -----------------------------------------------------------------------------

    async def _accept(self, listener: trio.socket.SocketType, nursery: trio.Nursery) -> None:
        while True:
            try:
                sock, _ = await listener.accept()
            except OSError as error:
                if error.errno not in (errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOBUFS):
                    raise
                await trio.sleep(0.1)
                continue
            nursery.start_soon(self._welcome, sock, nursery)

    async def _welcome(self, sock: trio.socket.SocketType, nursery: trio.Nursery) -> None:
        with sock:
            pid, uid = _peer(sock)
            if uid not in (0, os.geteuid()):
                return
            packets = PacketSocket(sock)
            try:
                with trio.fail_after(HELLO_S):
                    hello = await self._hello(packets)
            except (HandoverError, trio.TooSlowError) as error:
                log.info("a process %d knocked and did not introduce itself: %s", pid, error)
                return
            if hello.fields.get("operator"):
                await self._serve_operator(packets)
            else:
                await self._keep(packets, hello, pid, nursery)

    async def _dial_older(self, nursery: trio.Nursery) -> None:
        """Have a link to every older instance that lives."""
        dialing: set[int] = set()

        async def dial(generation: int) -> None:
            try:
                await self._dial(generation, nursery)
            except (OSError, HandoverError, trio.TooSlowError) as error:
                log.debug("generation %d is not to be reached: %s", generation, error)
            finally:
                dialing.discard(generation)

        while True:
            for generation in sorted(self._live_generations()):
                if (
                    generation < self._generation
                    and generation not in self._links
                    and generation not in dialing
                    and (self._folder / f"{generation}.sock").exists()
                ):
                    dialing.add(generation)
                    nursery.start_soon(dial, generation)
            await trio.sleep(DIAL_S)

    async def _dial(self, generation: int, nursery: trio.Nursery) -> None:
        with trio.socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as sock:
            with trio.fail_after(HELLO_S):
                await sock.connect(str(self._folder / f"{generation}.sock"))
            pid, uid = _peer(sock)
            if uid not in (0, os.geteuid()):
                raise HandoverError(f"it belongs to user {uid}")
            packets = PacketSocket(sock)
            try:
                with trio.fail_after(HELLO_S):
                    hello = await self._hello(packets)
            except trio.TooSlowError:
                # It lives, it listened, and its loop does not turn.
                log.error("generation %d is silent; killing process %d", generation, pid)
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
                raise
            if hello.fields.get("generation") != generation:
                raise HandoverError(f"it calls itself {hello.fields.get('generation')!r}")
            await self._keep(packets, hello, pid, nursery)

    async def _hello(self, packets: PacketSocket) -> Packet:
        status = self._means.status()
        await packets.send(
            {
                "t": "hello",
                "v": [wire.VERSION],
                "generation": self._generation,
                "release": self._release,
                "pid": os.getpid(),
                **_fields(status),
            }
        )
        hello = await packets.receive()
        if hello is None:
            raise HandoverError("It closed the link at once.")
        hello.close()
        if hello.type != "hello":
            raise HandoverError(f"It greeted with {hello.type!r}.")
        return hello

    async def _keep(
        self, packets: PacketSocket, hello: Packet, pid: int, nursery: trio.Nursery
    ) -> None:
        """Serve a greeted link to its end."""
        try:
            pidfd = os.pidfd_open(pid)
        except ProcessLookupError:
            return
        try:
            link = Link(packets, hello, pid, pidfd)
            if (old := self._links.get(link.generation)) is not None:
                old.close()  # a process of that generation before this one, or a torn link
            self._links[link.generation] = link
            self._means.siblings_changed()
            async with trio.open_nursery() as beside:
                beside.start_soon(self._beat, link)
                beside.start_soon(link.watch_death)
                try:
                    await link.run(self._means, nursery)
                finally:
                    if self._links.get(link.generation) is link:
                        del self._links[link.generation]
                    self._means.siblings_changed()
                # Transfers under way ask what became of the process.
                await link.wait_dead()
                beside.cancel_scope.cancel()
            self._means.siblings_changed()
        finally:
            os.close(pidfd)

    async def _beat(self, peer: "Link | PacketSocket") -> None:
        """Tell a sibling or an operator what we are, now and again and at each change."""
        with suppress(HandoverError):  # whoever reads from it sees its end, too
            while True:
                status = self._means.status()
                await peer.send({"t": "beat", **_fields(status)})
                with trio.move_on_after(BEAT_S):
                    await self._told.wait()

    async def _watch_silence(self) -> None:
        """Kill a sibling that lives and says nothing for `SILENT_S`.

        Unless it was we who stood still: what it said meanwhile is waiting to be read.
        """
        looked = trio.current_time()
        while True:
            await trio.sleep(BEAT_S / 2)
            now = trio.current_time()
            if now - looked > BEAT_S * 2:
                for link in self.links():
                    link.heard_at = max(link.heard_at, now - SILENT_S / 2)
            looked = now
            for link in self.links():
                if now - link.heard_at > SILENT_S and not link.killed:
                    log.error(
                        "generation %d has been silent for %.0f s; killing process %d",
                        link.generation,
                        SILENT_S,
                        link.pid,
                    )
                    link.kill()

    # -- operators --------------------------------------------------------------------------------

    async def _serve_operator(self, packets: PacketSocket) -> None:
        """One order after the other, each answered; meanwhile beats."""
        if self._operators >= MAX_OPERATORS:
            return
        self._operators += 1
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._beat, packets)
                while (packet := await packets.receive()) is not None:
                    try:
                        fields, fds = await self._means.operate(packet)
                    except HandoverError as error:
                        await packets.send({"t": "error", "message": str(error)})
                    else:
                        await packets.send({"t": "ok", **fields}, fds)
                    finally:
                        packet.close()
                nursery.cancel_scope.cancel()
        except* HandoverError as group:
            log.info("an operator's connection ended: %s", group.exceptions[0])
        finally:
            self._operators -= 1


def _fields(status: Status) -> dict[str, Any]:
    return {
        "state": status.state,
        "since_at": status.since_at,
        "sessions": status.sessions,
        "connections": status.connections,
    }


async def _send_quietly(link: Link, fields: dict[str, Any]) -> None:
    with suppress(HandoverError):
        await link.send(fields)


def _peer(sock: trio.socket.SocketType) -> tuple[int, int]:
    """(pid, uid) at the other end; unix(7), SO_PEERCRED."""
    raw = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size)
    pid, uid, _ = _UCRED.unpack(raw)
    return pid, uid
