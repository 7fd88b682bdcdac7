"""A hundred sessions, two viewers each, a hundred kills of the daemon: nothing lost or repeated.

The figures go to results.md beside this file. HOLDOVER_SOAK_SESSIONS (100), HOLDOVER_SOAK_KILLS
(100) and HOLDOVER_SOAK_RATE (lines a second and session, 5) make it another run. All viewers are
in one Python process, which shares the machine's cores with the daemon and every agent; what it
costs is in the figures.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.live.kills import Killed, kills_cost_nobody_anything
from tests.live.up import Up

pytestmark = pytest.mark.soak

SESSIONS = int(os.environ.get("HOLDOVER_SOAK_SESSIONS", "100"))
KILLS = int(os.environ.get("HOLDOVER_SOAK_KILLS", "100"))
RATE = int(os.environ.get("HOLDOVER_SOAK_RATE", "5"))
VIEWERS = 2
RESULTS = Path(__file__).with_name("results.md")


def percentile(values: list[float], share: float) -> float:
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, round(share * (len(ordered) - 1)))]


def report(killed: Killed) -> str:
    gaps = killed.gaps_s
    return (
        "# Long runs\n\nWritten by `make soak` (tests/soak/test_kills.py).\n\n"
        f"{SESSIONS} sessions of {RATE} lines of 1 KiB a second, {VIEWERS} viewers each, "
        f"{KILLS} × `kill -9` of the daemon in {killed.seconds:.0f} s, on {os.cpu_count()} cores "
        "that also carry every agent and every viewer:\n\n"
        "| what | figure |\n|---|---:|\n"
        f"| lines said | {killed.lines:,} |\n"
        f"| messages received | {killed.messages:,} |\n"
        "| missing, repeated, out of order, damaged | 0 |\n"
        "| agents started anew | 0 |\n"
        f"| reconnects | {len(gaps):,} |\n"
        f"| reconnect, median | {percentile(gaps, 0.5):.2f} s |\n"
        f"| reconnect, 99 of 100 | {percentile(gaps, 0.99):.2f} s |\n"
        f"| reconnect, slowest | {max(gaps):.2f} s |\n\n"
        "A reconnect is timed by the viewer, from the loss of its connection to `live`.\n"
    )


async def test_a_hundred_kills_under_a_hundred_sessions_lose_and_repeat_nothing(up: Up) -> None:
    killed = await kills_cost_nobody_anything(
        up, sessions=SESSIONS, viewers=VIEWERS, kills=KILLS, rate=RATE, seconds=None
    )
    assert len(killed.gaps_s) >= SESSIONS * VIEWERS * KILLS
    text = report(killed)
    print(text)
    RESULTS.write_text(text)
