"""One side of a handoff dies, or stands still, at every step; whoever is connected goes on.

A sample: each step of `mortal.STEPS` once, killed or stopped by turns. Each of them both ways, and
sessions at the first and at the last of three, are tests/soak/test_deaths.py. Not a line is lost or
repeated, a client is served or closed, a door answers at any time, and no session has two owners.
"""

import pytest

from tests.live import deaths, forked

pytestmark = pytest.mark.slow


def test_the_sample_has_every_step_of_both_sides() -> None:
    every, chosen = deaths.all_points(), deaths.sample()
    steps = {(point.handoff, point.side, point.step) for point in every}
    assert {(point.handoff, point.side, point.step) for point in chosen} == steps
    assert set(chosen) <= set(every)


async def test_a_death_or_a_stop_at_every_step_costs_no_line() -> None:
    with forked.nursery() as nursery:
        costs = await deaths.in_lanes(deaths.sample(), nursery)
    assert len(costs) == len(deaths.sample())
