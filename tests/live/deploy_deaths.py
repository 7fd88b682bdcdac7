"""What dies where in a deploy: the deploy itself, the instance it starts, the one before it.

A `Point` is a moment of a deploy, one of the three, and a signal. Each lane has a `holdover up` of its
own with somebody who watches a session and with visitors at its public door.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import trio

from holdoverd.deploy.uphost import ask
from tests.live.deaths import RETRIABLE, Told, state_of
from tests.live.kills import agent_pids
from tests.live.test_handover import Visitors
from tests.live.up import Up, running, wait_until

FORWARD = ("MIGRATE", "BEGIN_TRIAL", "START", "GATE", "ACCEPT", "BAKE", "COMMIT", "END_TRIAL")
BACK = ("RETIRE", "KILL", "END_FAILED_TRIAL")
WHO = ("deploy", "successor", "predecessor")
END_S = 60.0
TOLD_S = 15.0
"""Three times the figure of 5 s after a stop; that of 1 s after a kill is within it."""

VISITS = 10
SIGNALS = ("SIGKILL", "SIGSTOP")


@dataclass(frozen=True)
class Point:
    when: str
    step: str
    signal: str
    who: str

    def __str__(self) -> str:
        return f"deploy: {self.signal} of the {self.who} {self.when} {self.step}"

    @property
    def fates(self) -> list[str]:
        fate = f"{self.when}:{self.step}:{self.signal}"
        if self.who != "deploy":
            fate += f":{self.who}"
        # To be taken back, it is told to stop once its candidate has accepted.
        return ["after:ACCEPT:SIGTERM", fate] if self.step in BACK else [fate]


def _lives(who: str, step: str) -> bool:
    """Whether that instance is there before that step."""
    return who != "successor" or step not in ("MIGRATE", "BEGIN_TRIAL", "START", "END_FAILED_TRIAL")


def all_points() -> list[Point]:
    steps = FORWARD + BACK
    return [
        *(Point("after", step, s, "deploy") for step in steps for s in SIGNALS),
        *(
            Point("before", step, s, who)
            for step in steps
            for who in WHO
            if _lives(who, step)
            for s in SIGNALS
        ),
    ]


def sample() -> list[Point]:
    """Each step once or twice; before and after, who and how by turns. The last is alone on its host:
    only the deploy would miss it."""
    chosen = [
        Point(("before", "after")[n % 2], step, SIGNALS[n // 2 % 2], "deploy")
        for n, step in enumerate(FORWARD + BACK)
    ]
    for n, step in enumerate(("START", "GATE", "ACCEPT", "BAKE", "COMMIT", "END_TRIAL", "RETIRE")):
        who = WHO[1 + n % 2] if _lives(WHO[1 + n % 2], step) else "predecessor"
        chosen.append(Point("before", step, SIGNALS[n // 2 % 2], who))
    return [*chosen, Point("before", "MIGRATE", "SIGSTOP", "predecessor")]


async def _thread(function: Any, *arguments: Any, **options: Any) -> Any:
    return await trio.to_thread.run_sync(partial(function, *arguments, **options))


def _now() -> float:
    """As `trio.current_time` has it, in a thread."""
    return float(trio.from_thread.run_sync(trio.current_time))


@dataclass
class Cost:
    """Of one point: `told_s` as in `deaths.Cost`, for who watches; `ended`: how."""

    point: Point
    told_s: float
    ended: str


class Lane:
    def __init__(self, up: Up) -> None:
        self.up = up
        self.session = up.new_session("lines 100000 rate 10 size 100")["id"]
        self.watcher = Told(up.admin_socket, self.session)
        self.costs: list[Cost] = []

    def start_deploy(self, *module: str, generation: int) -> subprocess.Popen[bytes]:
        environment = dict(
            pair.split("=", 1)
            for pair in Path(f"/proc/{self.up.daemon_pid()}/environ").read_text().split("\0")
            if "=" in pair
        )
        with self.output(generation).open("ab") as output:
            return subprocess.Popen(
                [sys.executable, "-m", *module, "--up", "--generation", str(generation)],
                env={**os.environ, **environment},
                stdout=output,
                stderr=output,
            )

    def output(self, generation: int) -> Path:
        return self.up.folder / f"deploy-{generation}"

    async def point(self, point: Point) -> None:
        before = ask(self.up.runtime, "current")
        generation = await _thread(ask, self.up.runtime, "prepare")
        self.watcher.told_ats.clear()
        status, at = await _thread(self._struck, point, generation)
        with trio.fail_after(TOLD_S):
            await self.watcher.wait_told(at)
        if status is None:
            again = self.start_deploy("holdoverd.deploy", generation=generation)
            status = await _thread(again.wait, END_S)
        assert status in (0, 3), f"it ended with {status}"
        now = ask(self.up.runtime, "current")
        assert now == (generation if status == 0 else before)
        with trio.fail_after(TOLD_S):
            had = self.watcher.lines
            await self.watcher.wait(lambda w: w.lines > had + 2, END_S)
        await _thread(
            wait_until,
            lambda: ask(self.up.runtime, "living") == [now] and self.up.healthy(),
            "one is left, which serves",
        )
        told = self.watcher.silence_s(at, stopped=point.signal == "SIGSTOP")
        self.costs.append(Cost(point, told, "permanent" if status == 0 else "taken back"))

    def _struck(self, point: Point, generation: int) -> tuple[int | None, float]:
        """(the deploy's status, None where it has to be run again; when the blow fell)."""
        process = self.start_deploy(
            "tests.live.mortal_deploy", *point.fates, "--", generation=generation
        )
        try:
            if point.who == "deploy":
                wait_until(lambda: state_of(process.pid) in "TZ", f"it comes to {point}", END_S)
                at = self._when(point, generation)
                if point.signal == "SIGSTOP":
                    # Whoever comes meanwhile is told that somebody is at it.
                    second = self.start_deploy("holdoverd.deploy", generation=generation)
                    assert second.wait(END_S) == 4
                process.kill()
                assert process.wait(END_S) == -9, "it never came to that"
                return None, at
            status = process.wait(END_S)
            return status, self._when(point, generation)
        finally:
            if process.poll() is None:
                process.kill()
                process.wait()

    def _when(self, point: Point, generation: int) -> float:
        """When the blow fell, by trio's clock."""
        said = self.output(generation).read_text()
        found = re.search(rf"struck {point.fates[-1]} at (\S+)", said)
        assert found is not None, f"it never came to that:\n{said}"
        return _now() - (time.monotonic() - float(found[1]))


async def go_through(points: Sequence[Point]) -> list[Cost]:
    with tempfile.TemporaryDirectory(prefix="hd-", ignore_cleanup_errors=True) as folder:
        env = {"HOLDOVER_DEPLOY_BAKE_S": "0", "HOLDOVER_DRAIN_MODE": "migrate"}
        manager = running(Path(folder), **env)
        up = await _thread(manager.__enter__)
        try:
            lane = await _thread(Lane, up)
            agent = await _thread(wait_until, lambda: agent_pids(up, lane.session), "it runs")
            visitors = Visitors(up.port)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(lane.watcher.run)
                await lane.watcher.wait(lambda w: w.lines > 2, END_S)
                nursery.start_soon(visitors.run, VISITS)
                for point in points:
                    closes = len(lane.watcher.closes), lane.watcher.connects
                    try:
                        await lane.point(point)
                        if point.who == "deploy":
                            # Its own death is nobody else's business.
                            assert (len(lane.watcher.closes), lane.watcher.connects) == closes
                    except Exception as error:
                        raise AssertionError(
                            f"{point}: {error!r}\n{up.output()[-4000:]}"
                        ) from error
                assert agent_pids(up, lane.session) == agent
                nursery.cancel_scope.cancel()
            assert [one for one in visitors.lost if not RETRIABLE.match(one)] == []
            return lane.costs
        finally:
            with trio.CancelScope(shield=True):
                await _thread(manager.__exit__, None, None, None)


async def in_lanes(points: Sequence[Point], lanes: int = 2) -> list[Cost]:
    costs: list[Cost] = []

    async def lane(mine: Sequence[Point]) -> None:
        costs.extend(await go_through(mine))

    async with trio.open_nursery() as nursery:
        for n in range(lanes):
            nursery.start_soon(lane, points[n::lanes])
    return costs
