"""Fifty handovers under streams and new connections: how much of it anybody could notice.

The figures go to handovers.md beside this file. HOLDOVER_SOAK_STREAMS (40), HOLDOVER_SOAK_HANDOVERS
(50), HOLDOVER_SOAK_LINES (lines a second and stream, 20) and HOLDOVER_SOAK_VISITORS (connections a
second, 50) make it another run. First comes a while without any handover, then the handovers, in one
run with the same sessions and viewers: what counts is the difference. Agents, viewers, visitors and
daemons share the machine.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
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

STREAMS = int(os.environ.get("HOLDOVER_SOAK_STREAMS", "40"))
HANDOVERS = int(os.environ.get("HOLDOVER_SOAK_HANDOVERS", "50"))
LINES = int(os.environ.get("HOLDOVER_SOAK_LINES", "20"))
VISITORS = int(os.environ.get("HOLDOVER_SOAK_VISITORS", "50"))
STEADY_S = 60
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


async def test_fifty_handovers_under_streams_and_connections(folder: Path) -> None:
    async with generations.host(folder, HOLDOVER_DRAIN_MODE="migrate") as host:
        await host.start(1)
        say = f"lines {LINES * 3600} rate {LINES} size 1024"
        ids = [
            (await trio.to_thread.run_sync(partial(host.new_session, say)))["id"]
            for _ in range(STREAMS)
        ]
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
            for watcher in watchers:
                watcher.reset()
            await trio.sleep(STEADY_S)  # the control: the same load, left alone
            steady = [watcher.silence_s for watcher in watchers], visitors.times_s
            visitors.times_s = []
            for watcher in watchers:
                watcher.reset()
            started = trio.current_time()
            for generation in range(2, 2 + HANDOVERS):
                before = host.living()
                await host.start(generation)
                for one in before:
                    assert await one.wait_exit() == 0
            took = trio.current_time() - started
            moved = [watcher.silence_s for watcher in watchers], visitors.times_s
            assert await trio.to_thread.run_sync(partial(agent_pids, host, *ids)) == pids
            nursery.cancel_scope.cancel()
        assert visitors.lost == []
        assert all((w.connects, w.closes) == (1, []) for w in watchers)
        lines = sum(watcher.lines for watcher in watchers)
    text = report(steady, moved, took, lines)
    print(text)
    RESULTS.write_text(text)


def report(
    steady: tuple[list[float], list[float]],
    moved: tuple[list[float], list[float]],
    took: float,
    lines: int,
) -> str:
    def ms(value: float) -> str:
        return f"{value * 1000:.0f} ms"

    rows = [
        ("longest silence of a stream, slowest", max(steady[0]), max(moved[0])),
        (
            "longest silence of a stream, median",
            percentile(steady[0], 0.5),
            percentile(moved[0], 0.5),
        ),
        ("connect to answer, median", percentile(steady[1], 0.5), percentile(moved[1], 0.5)),
        ("connect to answer, 99 of 100", percentile(steady[1], 0.99), percentile(moved[1], 0.99)),
        ("connect to answer, slowest", max(steady[1]), max(moved[1])),
    ]
    table = "\n".join(f"| {what} | {ms(a)} | {ms(b)} |" for what, a, b in rows)
    return (
        "# Handovers\n\nWritten by `make soak` (tests/soak/test_handovers.py).\n\n"
        f"{STREAMS} streams of {LINES} lines of 1 KiB a second and {VISITORS} new connections a "
        f"second; {STEADY_S} s without a handover, then {HANDOVERS} handovers of all sessions in "
        f"{took:.0f} s, on {os.cpu_count()} cores that also carry agents, viewers and visitors. "
        f"{lines:,} lines received; 0 missing or repeated, 0 WebSockets closed, 0 of "
        f"{len(steady[1]) + len(moved[1]):,} connections refused, reset or unanswered for 20 s, no "
        "agent started anew.\n\n"
        "| what | left alone | during handovers |\n|---|---:|---:|\n" + table + "\n"
    )
