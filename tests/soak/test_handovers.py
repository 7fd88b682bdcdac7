"""Fifty handovers under streams and new connections: how much of it anybody could notice.

The figures go to handovers.md beside this file. HOLDOVER_SOAK_STREAMS (200), HOLDOVER_SOAK_HANDOVERS
(50), HOLDOVER_SOAK_LINES (lines a second and stream, 5) and HOLDOVER_SOAK_VISITORS (connections a
second, 200) make it another run. After each handover the same load is left alone for as long: what
counts is the difference. Agents, viewers, visitors and
daemons share the machine; who takes how much of it is among the figures.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pytest
import trio

from tests.live import generations
from tests.live.kills import LineWatcher, agent_pids
from tests.live.test_handover import Visitors
from tests.soak.test_kills import percentile

pytestmark = pytest.mark.soak

STREAMS = int(os.environ.get("HOLDOVER_SOAK_STREAMS", "200"))
HANDOVERS = int(os.environ.get("HOLDOVER_SOAK_HANDOVERS", "50"))
LINES = int(os.environ.get("HOLDOVER_SOAK_LINES", "5"))
VISITORS = int(os.environ.get("HOLDOVER_SOAK_VISITORS", "200"))
SILENCE_S = 0.15
"""How much longer a stream may be silent in a handover than when it is left alone."""

MAKERS = 4
RESULTS = Path(__file__).with_name("handovers.md")


@dataclass
class SilenceWatcher(LineWatcher):
    """Remembers the longest silence between two frames with messages; `reset` begins anew."""

    silence_s: float = 0.0
    heard_at: float | None = None

    def reset(self) -> None:
        self.silence_s = 0.0

    def _take(self, text: str, lost_at: float | None) -> None:
        had = len(self.seqs)
        super()._take(text, lost_at)
        if len(self.seqs) > had:
            now = trio.current_time()
            if self.heard_at is not None:
                self.silence_s = max(self.silence_s, now - self.heard_at)
            self.heard_at = now


@pytest.fixture
def folder() -> Iterator[Path]:
    """With a short path, unlike pytest's own: sockets live in it."""
    made = Path(tempfile.mkdtemp(prefix="hh-"))
    yield made
    shutil.rmtree(made, ignore_errors=True)


async def make_sessions(host: generations.Host, count: int, say: str) -> list[str]:
    """Their ids; each agent begins to talk once all are there."""
    ids: list[str] = []

    async def make(mine: range) -> None:
        for _ in mine:
            ids.append((await trio.to_thread.run_sync(host.new_session))["id"])

    async with trio.open_nursery() as nursery:
        for maker in range(MAKERS):
            nursery.start_soon(make, range(maker, count, MAKERS))
    for session in ids:
        await trio.to_thread.run_sync(host.prompt, session, say)
    return ids


def processor_s() -> dict[str, float]:
    """{part of the load: seconds of processor time that its processes have taken so far}"""
    taken = {"daemons": 0.0, "keepers": 0.0, "agents": 0.0, "viewers and visitors": 0.0}
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            command = (entry / "cmdline").read_bytes()
            fields = (entry / "stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if b"--generation" in command:
            part = "daemons"
        elif b"holdoverd.keeper" in command:
            part = "keepers"
        elif b"holdoverd.demo" in command:
            part = "agents"
        elif int(entry.name) == os.getpid():
            part = "viewers and visitors"
        else:
            continue
        taken[part] += (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    return taken


@dataclass(frozen=True)
class Phase:
    """Times in seconds. `cores`: {part of the load: processors it kept busy}; of daemons it says
    nothing in a phase in which some have gone.
    """

    silences_s: list[float]
    connects_s: list[float]
    took_s: float
    cores: dict[str, float]


def together(phases: Sequence[Phase]) -> Phase:
    """One after the other: of each stream its longest silence, of the visitors all that they waited."""
    took = sum(phase.took_s for phase in phases)
    return Phase(
        [max(of_one) for of_one in zip(*(phase.silences_s for phase in phases), strict=True)],
        [waited for phase in phases for waited in phase.connects_s],
        took,
        {
            part: sum(phase.cores[part] * phase.took_s for phase in phases) / took
            for part in phases[0].cores
        },
    )


class Measured:
    """One phase of the load, from its making to `over`."""

    def __init__(self, watchers: list[SilenceWatcher], visitors: Visitors) -> None:
        self._watchers, self._visitors = watchers, visitors
        visitors.times_s = []
        for watcher in watchers:
            watcher.reset()
        self._began, self._taken = trio.current_time(), processor_s()

    def over(self) -> Phase:
        took = trio.current_time() - self._began
        now = processor_s()
        cores = {part: (now[part] - before) / took for part, before in self._taken.items()}
        return Phase([w.silence_s for w in self._watchers], self._visitors.times_s, took, cores)


async def test_fifty_handovers_under_streams_and_connections(folder: Path) -> None:
    async with generations.host(folder, HOLDOVER_DRAIN_MODE="migrate") as host:
        await host.start(1)
        say = f"lines {LINES * 3600} rate {LINES} size 1024"
        ids = await make_sessions(host, STREAMS, say)
        pids = await trio.to_thread.run_sync(partial(agent_pids, host, *ids))
        watchers = [SilenceWatcher(host.admin_socket, session) for session in ids]
        visitors = Visitors(host.port)
        async with trio.open_nursery() as nursery:
            for watcher in watchers:
                nursery.start_soon(watcher.run)
            for watcher in watchers:
                with trio.fail_after(120):
                    await watcher.live.wait()
            nursery.start_soon(visitors.run, VISITORS)
            await trio.sleep(2)
            alone: list[Phase] = []
            during: list[Phase] = []
            for generation in range(2, 2 + HANDOVERS):
                measured = Measured(watchers, visitors)
                before = host.living()
                await host.start(generation)
                for one in before:
                    assert await one.wait_exit() == 0
                during.append(measured.over())
                # The control: the same load for as long, left alone. By turns, since whatever else
                # this machine does falls into both, and the longest of many silences is longer than
                # that of few.
                measured = Measured(watchers, visitors)
                await trio.sleep(during[-1].took_s)
                alone.append(measured.over())
            steady, moved = together(alone), together(during)
            assert await trio.to_thread.run_sync(partial(agent_pids, host, *ids)) == pids
            nursery.cancel_scope.cancel()
        assert visitors.lost == []
        assert all((w.connects, w.closes) == (1, []) for w in watchers)
        lines = sum(watcher.lines for watcher in watchers)
    text = report(steady, moved, lines)
    print(text)
    RESULTS.write_text(text)


def report(steady: Phase, moved: Phase, lines: int) -> str:
    def ms(value: float) -> str:
        return f"{value * 1000:.0f} ms"

    def row(
        what: str, figure: Callable[[Phase], float], bound: Callable[[float], float] | None
    ) -> str:
        alone, during = figure(steady), figure(moved)
        kept = ["", ""]
        if bound is not None:
            kept = [ms(bound(alone)), "yes" if during <= bound(alone) else "**no**"]
        return "| " + " | ".join([what, ms(alone), ms(during), *kept]) + " |"

    def silent(share: float) -> Callable[[Phase], float]:
        return lambda phase: percentile(phase.silences_s, share)

    def connect(share: float) -> Callable[[Phase], float]:
        return lambda phase: percentile(phase.connects_s, share)

    rows = [
        row("longest silence of a stream, slowest", silent(1), lambda s: s + SILENCE_S),
        row("longest silence of a stream, median", silent(0.5), None),
        row("connect to answer, median", connect(0.5), None),
        row("connect to answer, 99 of 100", connect(0.99), lambda s: max(2 * s, s + 0.05)),
        row("connect to answer, slowest", connect(1), None),
    ]
    parts = ", ".join(f"{part} {cores:.2f}" for part, cores in steady.cores.items())
    return (
        "# Handovers\n\nWritten by `make soak` (tests/soak/test_handovers.py).\n\n"
        f"{STREAMS} streams of {LINES} lines of 1 KiB a second and {VISITORS} new connections a "
        f"second; {HANDOVERS} handovers of all sessions in {moved.took_s:.0f} s, after each of them as "
        f"long left alone, on {os.cpu_count()} cores that also carry agents, viewers and "
        f"visitors. {lines:,} lines received; 0 missing or repeated, 0 WebSockets closed, 0 of "
        f"{len(steady.connects_s) + len(moved.connects_s):,} connections refused, reset or "
        "unanswered for 20 s, no agent started anew.\n\n"
        "| what | left alone | during handovers | bound | kept |\n|---|---:|---:|---:|---|\n"
        + "\n".join(rows)
        + f"\n\nProcessors kept busy, left alone: {parts}.\n"
    )
