"""What dies where in a handoff, and what it costs those who are connected.

A `Point` is a step of one side of a handoff, a signal, and the how-manieth time. Lanes go through
their points one after the other, each on a host of its own, with clients who keep account; while one
lane waits for a stopped instance to be found out, the others go on.
"""

from __future__ import annotations

import re
import signal
import tempfile
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import count, pairwise
from pathlib import Path
from typing import Any

import trio

from tests.live import generations
from tests.live.forked import MORTAL, Nursery
from tests.live.generations import Host, Instance
from tests.live.kills import LineWatcher
from tests.live.mortal import STEPS
from tests.live.test_handover import Visitors

SESSIONS = 3
RATE = 10
IDLE = 3
VISITS = 10  # a second, on each host
KILLED, STOPPED = signal.SIGKILL, signal.SIGSTOP
SERVED_S = {KILLED: 1.0, STOPPED: 5.0}
"""The figures, from the blow to a line, an answer or a close. A test waits three times the longer: what
a kill costs is measured, and a busy machine is no reason to fail."""

LANES = {"session": 3, "idle": 2, "passed": 2}
STRUCK_S = 60.0
ADOPTED = re.compile(r"adopted the session at epoch (\d+) \[.*?SESSION_ID=(\w+)")
RETRIABLE = re.compile(r"answered b''|BrokenResourceError")
GET = b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n"


@dataclass(frozen=True)
class Point:
    handoff: str
    side: str
    step: str
    signal: signal.Signals
    nth: int

    def __str__(self) -> str:
        which = f" ({self.nth})" if self.nth > 1 else ""
        return f"{self.handoff}, {self.side}: {self.signal.name} {self.step}{which}"


def all_points() -> list[Point]:
    return [
        Point(handoff, side, step, number, nth)
        for handoff, sides in STEPS.items()
        for side, steps in sides.items()
        for step in steps
        for number in (KILLED, STOPPED)
        for nth in ((1, SESSIONS) if handoff == "session" else (1,))
    ]


def sample() -> list[Point]:
    """Each step of each side once: killed or stopped, at the first session or the last, by turns."""
    steps = [
        (handoff, side, step)
        for handoff, sides in STEPS.items()
        for side, steps in sides.items()
        for step in steps
    ]
    return [
        Point(
            *step,
            (KILLED, STOPPED)[n % 2],
            SESSIONS if step[0] == "session" and n % 4 > 1 else 1,
        )
        for n, step in enumerate(steps)
    ]


@dataclass
class Told(LineWatcher):
    """Also knows when it was told anything: a line, or that its connection is over."""

    told_ats: list[float] = field(default_factory=list)

    async def _once(self, lost_at: float | None) -> bool:
        try:
            return await super()._once(lost_at)
        finally:
            self._tell()

    def _take(self, text: str, lost_at: float | None) -> None:
        super()._take(text, lost_at)
        self._tell()

    def _tell(self) -> None:
        self.told_ats.append(trio.current_time())
        changed, self.changed = self.changed, trio.Event()
        changed.set()

    async def wait_told(self, since: float) -> None:
        while not self.told_ats or self.told_ats[-1] <= since:
            await self.changed.wait()

    def silence_s(self, since: float, *, stopped: bool) -> float:
        """After a kill, until the first line or close. After a stop, the longest time without any:
        what was sent before it comes a little later, and is no sign of life."""
        ats = [since, *(at for at in self.told_ats if at > since)]
        return max(b - a for a, b in pairwise(ats)) if stopped else ats[1] - since


@dataclass
class Cost:
    """Of one point. `told_s`: how long somebody had neither a line, an answer nor a close (see
    `Told.silence_s`); `served_s`: from the blow until all had what they came for."""

    point: Point
    told_s: float
    served_s: float


@dataclass
class Lane:
    """One host and those who go through `points` on it."""

    host: Host
    points: Sequence[Point]
    costs: list[Cost] = field(default_factory=list)
    visitors: Visitors | None = None
    numbers: Any = field(default_factory=lambda: count(1))
    watchers: list[Told] = field(default_factory=list)
    sessions: int = 0

    async def start(self, point: Point | None = None, *, ready: bool = True) -> Instance:
        command = None
        if point is not None:
            fate = (point.handoff, point.step, point.signal.name, str(point.nth))
            command = (MORTAL, *fate)
        return await self.host.start(next(self.numbers), command=command, ready=ready)

    async def struck(self, doomed: Instance) -> float:
        """When it has died or stopped."""
        with trio.move_on_after(STRUCK_S):
            while doomed.process.poll() is None and state_of(doomed.pid) not in "TZ":
                await trio.sleep(0.005)
            if doomed.process.poll() in (None, -KILLED):
                return trio.current_time()
        raise AssertionError(f"it never came to that: {doomed.output()}")

    async def gone(self, doomed: Instance) -> None:
        """Who stands still is killed by a sibling; who died was to die."""
        with trio.move_on_after(STRUCK_S):
            await doomed.wait_exit(STRUCK_S)
        assert doomed.process.poll() == -9, "nobody has killed what stood still"
        if not self.host.living():
            # Without a deploy's trial the predecessor leaves a second after it has given all; then
            # Restart=on-failure brings the dead one back.
            await self.host.start(doomed.generation)

    async def door_answers(self) -> None:
        while not await trio.to_thread.run_sync(self.host.healthy):
            await trio.sleep(0.02)

    async def settled(self) -> None:
        """One instance serves, and the sessions have one owner each."""
        await self._until(
            lambda found: (
                [one["state"] for one in found].count("serving") == 1
                and sum(one["sessions"] for one in found) == self.sessions
            )
        )

    async def serves_alone(self, instance: Instance, *, owning: int = 0) -> None:
        """All that comes gets to it, and it owns that many sessions.

        An older one that has not heard of it yet serves for a moment longer, and again where the one
        between them drains before that: all who live have to be known to whoever answers.
        """

        def alone(found: list[Any]) -> bool:
            known = {one["generation"] for one in found}
            owned = {
                one["generation"]: one["sessions"] for one in found if one["state"] == "serving"
            }
            return (
                known >= {other.generation for other in self.host.living()}
                and set(owned) == {instance.generation}
                and owned[instance.generation] >= owning
            )

        await self._until(alone)

    async def _until(self, reached: Callable[[list[Any]], bool]) -> None:
        found: list[Any] = []
        with trio.move_on_after(STRUCK_S):
            while True:
                answer = await trio.to_thread.run_sync(
                    partial(self.host.request, "GET", "/v1/admin/instances")
                )
                found = answer[1]["items"] if answer[0] == 200 else []
                if reached(found):
                    return
                await trio.sleep(0.02)
        raise AssertionError(f"{self.sessions} sessions, and this is who serves: {found}")

    def never_two_owners(self) -> None:
        """Each epoch of each session is one instance's: whoever adopts says so."""
        adopted = Counter(
            found.groups()
            for instance in self.host.instances
            for found in ADOPTED.finditer(instance.output())
        )
        assert adopted or not self.watchers
        assert not [key for key, times in adopted.items() if times > 1], adopted

    # -- scenes -----------------------------------------------------------------------------------

    async def session(self, point: Point) -> None:
        """A session moves, with those who watch it, to the newer one of two."""
        # The one that comes second may get ready only once the other is struck, or never.
        giver = point.side == "giver"
        doomed = await self.start(point, ready=giver)
        if giver:
            # It has taken everything first; then it has to give.
            await self.serves_alone(doomed, owning=self.sessions)
            await self.lines_go_on(2)
            await self.start(ready=False)
        at = await self.struck(doomed)
        with trio.fail_after(3 * SERVED_S[STOPPED]):
            for watcher in self.watchers:
                await watcher.wait_told(at)
        await self.gone(doomed)
        await self.lines_go_on(2)
        stopped = point.signal == STOPPED
        told = max(w.silence_s(at, stopped=stopped) for w in self.watchers)
        self.costs.append(Cost(point, told, trio.current_time() - at))

    async def lines_go_on(self, more: int) -> None:
        before = [watcher.lines for watcher in self.watchers]
        with trio.fail_after(3 * SERVED_S[STOPPED]):
            await self.door_answers()
            for watcher, had in zip(self.watchers, before, strict=True):
                await watcher.wait(lambda w, had=had: w.lines >= had + more, STRUCK_S)

    async def idle(self, point: Point) -> None:
        """Connections between two requests, and one in the middle of a head, change hands."""
        doomed = await self.start(point) if point.side == "giver" else None
        if doomed is not None:
            await self.serves_alone(doomed)
        clients = [Client(self.host.port, whole=n < IDLE) for n in range(IDLE + 1)]
        for client in clients:
            await client.arrive()
        other = await self.start(None if point.side == "giver" else point, ready=False)
        doomed = doomed or other
        at = await self.struck(doomed)
        told: list[float] = []
        with trio.fail_after(3 * SERVED_S[STOPPED]):
            async with trio.open_nursery() as nursery:
                for client in clients:
                    nursery.start_soon(client.go_on, told)
        await self.gone(doomed)
        with trio.fail_after(3 * SERVED_S[STOPPED]):
            await self.door_answers()
        self.costs.append(Cost(point, max(told) - at, trio.current_time() - at))

    async def passed(self, point: Point) -> None:
        """Whoever comes to the newer instance is passed on to the owner of the session."""
        owner = await self.start(point if point.side == "taker" else None)
        await self.serves_alone(owner)
        say = f"lines {RATE * 600} rate {RATE} size 200"
        view = await trio.to_thread.run_sync(partial(self.host.new_session, say))
        newer = await self.start(point if point.side == "giver" else None)
        await self.serves_alone(newer)
        watcher = Told(self.host.admin_socket, view["id"])
        doomed = owner if point.side == "taker" else newer
        async with trio.open_nursery() as nursery:
            nursery.start_soon(watcher.run)
            at = await self.struck(doomed)
            with trio.fail_after(3 * SERVED_S[STOPPED]):
                await watcher.wait_told(at)
            await self.gone(doomed)
            with trio.fail_after(3 * SERVED_S[STOPPED]):
                await self.door_answers()
                await watcher.wait(lambda w: w.live.is_set() and w.lines > 2, STRUCK_S)
            told = watcher.silence_s(at, stopped=point.signal == STOPPED)
            self.costs.append(Cost(point, told, trio.current_time() - at))
            await trio.to_thread.run_sync(
                partial(self.host.call, "DELETE", f"/v1/sessions/{view['id']}")
            )
            nursery.cancel_scope.cancel()
        assert set(watcher.closes) <= {1001, 1006, 4008, 1000}


@dataclass
class Client:
    """A keep-alive connection: after a whole request, or in the middle of its first."""

    port: int
    whole: bool
    stream: Any = None

    async def arrive(self) -> None:
        self.stream = await trio.open_tcp_stream("127.0.0.1", self.port)
        if self.whole:
            await self.stream.send_all(GET)
            assert await self._answer()
        else:
            await self.stream.send_all(GET[:25])

    async def go_on(self, told: list[float]) -> None:
        """An answer, or the end and an answer to whoever connects again: never silence."""
        async with self.stream:
            try:
                await self.stream.send_all(GET if self.whole else GET[25:])
                answered = await self._answer()
            except trio.BrokenResourceError:
                answered = False
        told.append(trio.current_time())
        if not answered:
            async with await trio.open_tcp_stream("127.0.0.1", self.port) as self.stream:
                await self.stream.send_all(GET)
                assert await self._answer(), "who comes back is answered"

    async def _answer(self) -> bool:
        said = b""
        while not said.endswith(b"}"):
            chunk = await self.stream.receive_some(65536)
            if not chunk:
                return False
            said += chunk
        assert said.startswith(b"HTTP/1.1 200 "), said
        return True


def state_of(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except FileNotFoundError:
        return "Z"


async def go_through(points: Sequence[Point], nursery: Nursery, folder: Path) -> list[Cost]:
    """One lane: all `points` are of one handoff."""
    (handoff,) = {point.handoff for point in points}
    mode = "finish" if handoff == "passed" else "migrate"
    async with generations.host(folder, nursery=nursery, HOLDOVER_DRAIN_MODE=mode) as host:
        lane = Lane(host, points)
        await lane.start()
        lane.visitors = Visitors(host.port)
        scene: Callable[[Point], Awaitable[None]] = getattr(lane, handoff)
        async with trio.open_nursery() as tasks:
            tasks.start_soon(lane.visitors.run, VISITS)
            if handoff == "session":
                await _begin_sessions(lane, tasks)
            for point in points:
                try:
                    await scene(point)
                    await lane.settled()
                except Exception as error:
                    raise AssertionError(f"{point}: {error!r}\n{host.story()}") from error
            tasks.cancel_scope.cancel()
        # Whoever was being answered by one that is killed is closed, and may ask again.
        assert [one for one in lane.visitors.lost if not RETRIABLE.match(one)] == []
        assert all(code in (1001, 1006, 4008) for w in lane.watchers for code in w.closes)
        lane.never_two_owners()
        return lane.costs


async def _begin_sessions(lane: Lane, tasks: trio.Nursery) -> None:
    say = f"lines {RATE * 3600} rate {RATE} size 200"
    for _ in range(SESSIONS):
        view = await trio.to_thread.run_sync(partial(lane.host.new_session, say))
        lane.watchers.append(Told(lane.host.admin_socket, view["id"]))
        tasks.start_soon(lane.watchers[-1].run)
    lane.sessions = SESSIONS


async def in_lanes(points: Sequence[Point], nursery: Nursery) -> list[Cost]:
    """Some lanes for each handoff, side by side."""
    costs: list[Cost] = []

    async def lane(mine: Sequence[Point]) -> None:
        with tempfile.TemporaryDirectory(prefix="hd-", ignore_cleanup_errors=True) as folder:
            costs.extend(await go_through(mine, nursery, Path(folder)))

    async with trio.open_nursery() as tasks:
        for handoff in STEPS:
            of_it = [point for point in points if point.handoff == handoff]
            lanes = LANES[handoff]
            for n in range(min(lanes, len(of_it))):
                tasks.start_soon(lane, of_it[n::lanes])
    return costs
