"""The deploy, or an instance that it deals with, dies or stands still at every step.

Under a real `holdover up`, with somebody who watches a session, and visitors. A deploy that died is
run again and converges; one whose instance died becomes permanent or is taken back. No line is lost,
and the deploy's own death closes nobody's WebSocket. A sample; all points are
tests/soak/test_deaths.py.
"""

import pytest

from tests.live import deploy_deaths

pytestmark = pytest.mark.slow


def test_the_sample_has_every_step() -> None:
    every, chosen = deploy_deaths.all_points(), deploy_deaths.sample()
    assert {point.step for point in chosen} == {point.step for point in every}
    assert {point.who for point in chosen} == set(deploy_deaths.WHO)
    assert set(chosen) <= set(every)


async def test_a_death_or_a_stop_at_every_step_of_a_deploy_costs_no_line() -> None:
    costs = await deploy_deaths.in_lanes(deploy_deaths.sample())
    assert len(costs) == len(deploy_deaths.sample())
