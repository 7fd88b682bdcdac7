"""A kill and a stop of either side, and of the deploy, at every step of every handoff and of a deploy.

`make test` runs a sample of these points. The figures go to deaths.md and deploy-deaths.md beside this
file: how long somebody was without a line, an answer or a retriable close.
"""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path

import pytest

from tests.live import deaths, deploy_deaths, forked
from tests.soak.test_kills import percentile

pytestmark = pytest.mark.soak

HANDOFFS = Path(__file__).with_name("deaths.md")
DEPLOYS = Path(__file__).with_name("deploy-deaths.md")


def test_there_are_at_least_two_hundred_points() -> None:
    assert len(deaths.all_points()) + len(deploy_deaths.all_points()) >= 200


async def test_every_point_of_every_handoff() -> None:
    with forked.nursery() as nursery:
        costs = await deaths.in_lanes(deaths.all_points(), nursery)
    assert len(costs) == len(deaths.all_points())
    rows: dict[tuple[str, str], list[float]] = defaultdict(list)
    for cost in costs:
        rows[f"{cost.point.handoff}, {cost.point.side}", cost.point.signal.name].append(cost.told_s)
    text = (
        "# Deaths in the middle of a handoff\n\nWritten by `make soak` (tests/soak/test_deaths.py)."
        f"\n\n{len(costs)} points: the steps of tests/live/mortal.py, each with a kill and a stop of "
        "either side. At none was a line lost or repeated, did a session have two owners, or did a "
        f"visitor get no answer. {READING}{table(rows)}"
    )
    print(text)
    HANDOFFS.write_text(text)


async def test_every_point_of_a_deploy() -> None:
    costs = await deploy_deaths.in_lanes(deploy_deaths.all_points())
    assert len(costs) == len(deploy_deaths.all_points())
    rows: dict[tuple[str, str], list[float]] = defaultdict(list)
    for cost in costs:
        rows[f"the {cost.point.who}", cost.point.signal].append(cost.told_s)
    permanent = sum(cost.ended == "permanent" for cost in costs)
    over = [cost for cost in costs if cost.told_s > FIGURES_S[cost.point.signal]]
    text = (
        "# Deaths in the middle of a deploy\n\nWritten by `make soak` (tests/soak/test_deaths.py).\n\n"
        f"{len(costs)} points: before and after each step of a deploy and of taking one back, a kill "
        "and a stop of the deploy itself, of the instance that it starts and of the one before. "
        f"{permanent} deploys became permanent and {len(costs) - permanent} were taken back, each "
        "leaving one instance, which served; at none was a line lost or repeated, or did a visitor "
        f"get no answer. {READING}{table(rows)}"
    )
    if over:
        text += "\nOver that:\n\n" + "".join(
            f"* {cost.point}: {cost.told_s:.1f} s\n" for cost in over
        )
    print(text)
    DEPLOYS.write_text(text)


FIGURES_S = {"SIGKILL": 1.0, "SIGSTOP": 5.0}
READING = (
    "After a kill, until the last client had a line, an answer or a retriable close; after a stop, "
    "the longest that any was without one (the design: 1 s and 5 s). Somebody who stands still is "
    "killed after 3 s, by another instance or by the deploy:\n\n"
)


def table(rows: dict[tuple[str, str], list[float]]) -> str:
    return "| who | how | points | median | slowest |\n|---|---|---:|---:|---:|\n" + "".join(
        f"| {what} | {signal} | {len(told)} | {percentile(told, 0.5) * 1000:.0f} ms "
        f"| {max(told) * 1000:.0f} ms |\n"
        for (what, signal), told in rows.items()
    )
