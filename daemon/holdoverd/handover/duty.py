"""What this instance is there for just now: to wait, to serve, or to hand over and go.

One loop computes the role from what is known (`roles.decide`) and acts on a change; a second one
gives away while the role says so. Orders from operators and signals only set what the first reads.
"""

import json
import logging
import math
import os
import socket
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import trio

from holdoverd import __version__
from holdoverd.errors import HandoverError, RequestError
from holdoverd.handover import roles, transfers
from holdoverd.handover.packed import Detached, Door
from holdoverd.handover.roles import Orders, Role, Trial
from holdoverd.handover.routing import RoutedSessions
from holdoverd.handover.siblings import BEAT_S, Conversation, Link, Siblings, Status
from holdoverd.handover.wire import Packet
from holdoverd.http.live import LiveStreams
from holdoverd.http.server import Server
from holdoverd.ids import now_ms
from holdoverd.instance import memory_bytes
from holdoverd.metrics.counts import Counts
from holdoverd.sessions.service import Sessions
from holdoverd.settings import Settings

log = logging.getLogger(__name__)

LOOK_S = 0.25
"""Siblings tell of changes at once; files and locks are looked at this often."""

GIVE_S = 0.1
REST_S = 0.1
"""After a session the next waits as long as that one took, and this long at most. One goes at a time, and each stands
still for its own transfer only; but all of them, and new connections, wait for the processors and the catalogue that
transfers take. With 200 sessions on a busy machine the slowest stream was silent for 1,017 ms (592 left alone) when
one followed the other at once, for 565 (492) with rests, and all together took no longer."""

LINGER_S = 1.0
"""How long an instance stays that has given everything away: its heir may die of it."""

MEET_S = 1.0
"""How long an instance that starts waits to hear from newer ones whose locks are held."""

TRIAL_FILE = "trial.json"


class Duty:
    """The role of this instance, kept up to date; made and run by `main`.

    `leave` is set once the instance has nothing left to do and ends by itself.
    """

    def __init__(
        self,
        *,
        generation: int,
        folder: Path,
        settings: Settings,
        sessions: Sessions,
        host: str,
        streams: LiveStreams,
        listeners: Mapping[str, Sequence[socket.socket]],
        counts: Counts | None = None,
    ) -> None:
        self._generation = generation
        self._trial_file = folder / TRIAL_FILE
        self._settings = settings
        self._sessions = sessions
        self._host = host
        self._streams = streams
        self._listeners = listeners
        self._counts = counts or Counts()
        self._orders = Orders()
        self._changed = trio.Event()
        self._giving: set[str] = set()
        self._giving_http = 0
        self.siblings: Siblings
        self._routed: RoutedSessions
        self._doors: Server
        self.leave = trio.Event()
        self.since_at = now_ms()
        self.role = Role("candidate", None, False)
        self._seen_trial: Trial | None = None
        self._done_at = math.inf  # since when there has been nothing left to do

    def meet(self, siblings: Siblings, routed: RoutedSessions, doors: Server) -> None:
        """Before `run`: those that need this object and that it needs. Nothing is accepted yet."""
        self.siblings, self._routed, self._doors = siblings, routed, doors
        doors.stop_accepting()
        self._sessions.adopt_orphans(False)

    # -- told -------------------------------------------------------------------------------------

    def heir(self) -> int | None:
        """Who gets what this instance gives; None while it gives nothing."""
        return self.role.heir

    def stop(self) -> None:
        """SIGTERM: hand over and go."""
        self._order(stopping=True)
        self._look()

    async def wait_alone(self) -> None:
        """Wait until there is nothing left to hand over, or nobody to hand it to."""
        while self.role.state == "draining" and self._owns():
            await trio.sleep(0.05)

    def drain(self, *, migrate: bool) -> None:
        self._order(drain=True, migrate=migrate)

    def _order(self, **orders: bool) -> None:
        self._orders = replace(self._orders, **orders)
        self._changed.set()

    # -- Means, for the siblings ------------------------------------------------------------------

    def status(self) -> Status:
        """What is on its way to a sibling is ours until it has arrived: a deploy that took us for
        empty would kill us in the middle."""
        return Status(
            self.role.state,
            len(self._giving.union(self._sessions.owned_ids())),
            self._doors.connections + self._giving_http,
            self.since_at,
        )

    def siblings_changed(self) -> None:
        self._changed.set()

    async def offered(self, link: Link, packet: Packet, coming: Conversation) -> None:
        try:
            if self.role.state == "candidate" or self._orders.stopping or self._orders.retire:
                await link.send(
                    {"t": "refused", "id": packet.integer("id"), "why": "it is not here to stay"}
                )
                return
            await transfers.take(
                link, packet, coming, take_session=self._take_session, attach=self._attach_taken
            )
        except HandoverError as error:
            log.info("a transfer from generation %d: %s", link.generation, error)

    def _attach_taken(self, detached: Detached) -> None:
        self._counts.connections_handed["taken"] += 1
        self._doors.attach(detached)

    async def _take_session(self, session: str, owner_epoch: int, generation: int) -> None:
        try:
            await self._sessions.take(session, owner_epoch, generation)
            self._counts.sessions_handed["taken"] += 1
        except RequestError as error:
            raise HandoverError(error.message) from error

    async def called(self, link: Link, packet: Packet) -> None:
        try:
            await self._routed.called(link, packet, draining=self.role.state == "draining")
        except HandoverError as error:
            log.info("a call from generation %d: %s", link.generation, error)

    async def operate(self, packet: Packet) -> tuple[dict[str, Any], Sequence[int]]:
        match packet.type:
            case "listeners":
                named = [(door, sock) for door, socks in self._listeners.items() for sock in socks]
                doors = [door for door, _ in named]
                return {"doors": doors}, [sock.fileno() for _, sock in named]
            case "probe":
                door: Door = "public" if packet.text("door") == "public" else "admin"
                self._doors.serve_connection(door, socket.socket(fileno=packet.take_fd()))
            case "accept":
                self._order(accepted=True)
                await self._wait_role(lambda: self.role.state != "candidate")
            case "drain":
                self.drain(migrate=bool(packet.fields.get("migrate")))
            case "retire":
                self._order(retire=True)
            case other:
                raise HandoverError(f"There is no order {other!r}.")
        return {}, ()

    async def _wait_role(self, reached: Callable[[], bool]) -> None:
        with trio.move_on_after(MEET_S):
            while not reached():
                await trio.sleep(0.01)
            return
        raise HandoverError(f"Generation {self._generation} is still {self.role.state}.")

    def told(self, packet: Packet) -> None:
        if packet.type == "drain":
            self.drain(migrate=bool(packet.fields.get("migrate")))
        elif packet.type == "revoked":
            self._streams.token_gone(packet.text("token_id"))

    # -- Router, for the doors --------------------------------------------------------------------

    def instances(self) -> list[dict[str, Any]]:
        found = [self._shown(self._generation, __version__, os.getpid(), self.status())]
        found += [
            self._shown(link.generation, link.release, link.pid, link.status)
            for link in self.siblings.links()
        ]
        return sorted(found, key=lambda one: one["generation"])

    def _shown(self, generation: int, release: str, pid: int, status: Status) -> dict[str, Any]:
        return {
            "host": self._host,
            "generation": generation,
            "release": release,
            "state": status.state,
            "sessions": status.sessions,
            "connections": status.connections,
            "memory_bytes": memory_bytes(pid),
            "since_at": status.since_at,
        }

    async def ask_drain(self, generation: int | None, *, migrate: bool) -> bool:
        if generation in (None, self._generation):
            self.drain(migrate=migrate)
            return True
        link = self.siblings.link(generation) if generation is not None else None
        if link is None:
            return False
        try:
            await link.send({"t": "drain", "migrate": migrate})
        except HandoverError:
            return False
        return True

    def token_gone(self, token_id: str) -> None:
        self.siblings.pass_word({"t": "revoked", "token_id": token_id})

    async def pass_on(self, detached: Detached, generation: int) -> bool:
        """Give one connection to the owner of its session; False: it is still the caller's."""
        link = self.siblings.link(generation)
        given = link is not None and await transfers.give(link, [detached])
        self._counts.connections_handed["given" if given else "kept"] += 1
        return given

    # -- the role ---------------------------------------------------------------------------------

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Keep the role up to date, and hand over while it says so. Started: the role is known."""
        await self._meet_newer()
        self._look()
        task_status.started()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._hand_over)
            while True:
                with trio.move_on_after(LOOK_S):
                    await self._changed.wait()
                self._changed = trio.Event()
                self._look()

    async def _meet_newer(self) -> None:
        """Wait for a word of those who would make us drain: accepting first would be in vain."""
        with trio.move_on_after(MEET_S):
            while any(
                sibling.generation > self._generation and not sibling.reachable
                for sibling in self.siblings.known()
            ):
                await trio.sleep(0.02)

    def _look(self) -> None:
        trial = self._read_trial()
        if self.role.state == "candidate" and roles.candidate_is_orphaned(
            self._generation, trial, self._orders
        ):
            # It began as no candidate at all, or its deploy was called off.
            if self._seen_trial is not None:
                log.warning("the deploy of this generation was called off, leaving")
                self.leave.set()
                return
            self._orders = replace(self._orders, accepted=True)
        self._seen_trial = trial
        role = roles.decide(
            self._generation,
            self.siblings.known(),
            trial,
            self._orders,
            mode=self._mode(),
            max_generations=self._settings.drain.max_generations,
        )
        if role != self.role:
            self._become(role)
        if not roles.may_exit(role, trial, owns=self._owns(), orders=self._orders):
            self._done_at = math.inf
        elif self._done_at == math.inf:
            self._done_at = trio.current_time()
        elif trio.current_time() - self._done_at >= LINGER_S and self._heir_is_well():
            self.leave.set()

    def _heir_is_well(self) -> bool:
        """It has been heard of just now. One that stands still is killed, and not left alone."""
        link = self.siblings.link(self.role.heir) if self.role.heir is not None else None
        return link is not None and trio.current_time() - link.heard_at < 2 * BEAT_S

    def _mode(self) -> Literal["finish", "migrate"]:
        return "migrate" if self._settings.drain.mode == "migrate" else "finish"

    def _become(self, role: Role) -> None:
        before, self.role = self.role, role
        if before.state == role.state:
            return
        self.since_at = now_ms()
        log.info("%s now, was %s", role.state, before.state)
        self._sessions.adopt_orphans(role.state == "serving")
        if role.state == "serving":
            self._doors.resume_accepting()
        else:
            self._doors.stop_accepting()
        self.siblings.tell()

    def _owns(self) -> int:
        status = self.status()
        return status.sessions + status.connections

    def _read_trial(self) -> Trial | None:
        """The deploy under way. What cannot be read is no deploy."""
        try:
            return Trial(int(json.loads(self._trial_file.read_text())["generation"]))
        except (OSError, ValueError, KeyError, TypeError):
            return None

    # -- handing over -----------------------------------------------------------------------------

    async def _hand_over(self) -> None:
        while True:
            await trio.sleep(GIVE_S)
            role = self.role
            link = self.siblings.link(role.heir) if role.heir is not None else None
            if role.state != "draining" or link is None or link.state == "candidate":
                continue
            self._sessions.rest()
            idle_s = self._settings.drain.idle_handover_s
            ready = [
                session
                for session in self._sessions.owned_ids()
                if role.migrate or self._sessions.finished(session, idle_s)
            ]
            for session in ready:
                began = trio.current_time()
                await self._give_session(session, link)
                if link.ended.is_set() or self.role.heir != link.generation:
                    break
                if not self._orders.stopping:
                    await trio.sleep(min(trio.current_time() - began, REST_S))
            else:
                await self._give_connections(link)
            self._changed.set()

    async def _give_session(self, session: str, link: Link) -> None:
        """Hand one session over with all that watch it; it stays ours where that fails."""
        detached: list[Detached] | None = None
        given = False
        self._giving.add(session)
        try:
            # What is being stored its viewers still hear; once they are detached they would wait
            # for whatever is begun before the session is let go of.
            await self._sessions.pause(session)
            with self._sessions.handing_over(session) as possible:
                if not possible:
                    return
                detached = await self._doors.detach_session(session)
                if detached is None:
                    return
                epoch = await self._sessions.let_go_of(session)
                if epoch is not None:
                    given = await transfers.give(link, detached, session=session, owner_epoch=epoch)
        except Exception:
            log.exception("handing over failed", extra={"session": session})
        finally:
            self._giving.discard(session)
            self._counts.sessions_handed["given" if given else "kept"] += 1
            if given:
                self._counts.connections_handed["given"] += len(detached or ())
            if not given:
                self._sessions.go_on(session)
                for one in detached or ():
                    self._doors.attach(one)
        if not given:
            self._sessions.adopt_orphans(self.role.state == "serving")
            try:
                await self._sessions.owned(session)
            except RequestError as error:
                log.info("taking back: %s", error, extra={"session": session})

    async def _give_connections(self, link: Link) -> None:
        """Connections without a request, and those with half of one."""
        # From before they are detached: an heir that stops in the middle would else be left alone.
        self._giving_http += 1
        try:
            detached = await self._doors.detach_idle_http()
            if not detached:
                return
            given = await transfers.give(link, detached)
            self._counts.connections_handed["given" if given else "kept"] += len(detached)
            if not given:
                for one in detached:
                    self._doors.attach(one)
        finally:
            self._giving_http -= 1
