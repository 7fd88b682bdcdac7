"""A kill and a stop of either side, and of the deploy, at every step of every handoff and of a deploy.

`make test` runs a sample of these points. The figures go to deaths.md beside this file: how long
somebody was without a line, an answer or a retriable close.
"""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path

import pytest

from tests.live import deaths, deploy_deaths, forked
from tests.soak.test_kills import percentile

pytestmark = pytest.mark.soak

RESULTS = Path(__file__).with_name("deaths.md")


def test_there_are_at_least_two_hundred_points() -> None:
    assert len(deaths.all_points()) + len(deploy_deaths.all_points()) >= 200


async def test_every_point() -> None:
    with forked.nursery() as nursery:
        handoffs = await deaths.in_lanes(deaths.all_points(), nursery)
    deploys = await deploy_deaths.in_lanes(deploy_deaths.all_points())
    assert len(handoffs) == len(deaths.all_points())
    assert len(deploys) == len(deploy_deaths.all_points())
    rows: dict[tuple[str, str], list[float]] = defaultdict(list)
    for cost in handoffs:
        rows[f"{cost.point.handoff}, {cost.point.side}", cost.point.signal.name].append(cost.told_s)
    for deploy in deploys:
        rows[f"deploy, {deploy.point.who}", deploy.point.signal].append(deploy.told_s)
    text = report(rows, len(handoffs) + len(deploys))
    print(text)
    RESULTS.write_text(text)


def report(rows: dict[tuple[str, str], list[float]], points: int) -> str:
    table = "\n".join(
        f"| {what} | {signal} | {len(told)} | {percentile(told, 0.5) * 1000:.0f} ms "
        f"| {max(told) * 1000:.0f} ms |"
        for (what, signal), told in rows.items()
    )
    return (
        "# Deaths in the middle\n\nWritten by `make soak` (tests/soak/test_deaths.py).\n\n"
        f"{points} points: the steps of tests/live/mortal.py and of a deploy, each with a kill and "
        "a stop. At none was a line lost or repeated, did a session have two owners, or did a "
        "visitor get no answer; each deploy became permanent, or was taken back, and left one "
        "instance. After a kill, until the last client had a line, an answer or a retriable close; "
        "after a stop, the longest that any was without one (the design: 1 s and 5 s). Somebody who "
        "stands still is killed after 3 s:\n\n"
        "| who | how | points | median | slowest |\n|---|---|---:|---:|---:|\n" + table + "\n"
    )
