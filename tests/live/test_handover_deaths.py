"""One side of a handover dies, or stands still, at every step; whoever watches sees every line."""

import os
import sys
from functools import partial
from pathlib import Path

import pytest
import trio

from tests.live import generations
from tests.live.generations import Host
from tests.live.kills import LineWatcher, agent_pids
from tests.live.mortal import GIVER, TAKER

pytestmark = pytest.mark.slow

SESSIONS = 3
RATE = 10
BACK_S = 15.0
"""Three times the figure of 5 s after a stop; one of 1 s after a kill is within it."""

TREE = Path(__file__).parents[2]


def mortal(step: str, signal: str, nth: int) -> tuple[str, ...]:
    return (sys.executable, "-m", "tests.live.mortal", step, signal, str(nth))


async def serves(host: Host) -> bool:
    return await trio.to_thread.run_sync(host.healthy)


async def everybody_goes_on(host: Host, watchers: list[LineWatcher]) -> None:
    """Every viewer gets another line within `BACK_S`, and the door answers."""
    before = [watcher.lines for watcher in watchers]
    with trio.fail_after(BACK_S):
        while not await serves(host):
            await trio.sleep(0.05)
        for watcher, had in zip(watchers, before, strict=True):
            await watcher.wait(lambda w, had=had: w.lines > had + 2, BACK_S)


@pytest.mark.parametrize("signal", ["SIGKILL", "SIGSTOP"])
@pytest.mark.parametrize("side", ["giver", "taker"])
async def test_a_death_or_a_stop_at_every_step_costs_no_line(
    tmp_path: Path, side: str, signal: str
) -> None:
    """At the first session's step and at the third's, mid-way through the others."""
    steps = GIVER if side == "giver" else TAKER
    environment = {"PYTHONPATH": os.pathsep.join(map(str, (TREE, TREE / "daemon", TREE / "cli")))}
    async with generations.host(tmp_path, HOLDOVER_DRAIN_MODE="migrate") as host:
        await host.start(1)
        say = f"lines {RATE * 600} rate {RATE} size 200"
        ids = [
            (await trio.to_thread.run_sync(partial(host.new_session, say)))["id"]
            for _ in range(SESSIONS)
        ]
        pids = await trio.to_thread.run_sync(partial(agent_pids, host, *ids))
        watchers = [LineWatcher(host.admin_socket, session) for session in ids]
        generation = 1
        async with trio.open_nursery() as nursery:
            for watcher in watchers:
                nursery.start_soon(watcher.run)
            for nth in (1, 3) if signal == "SIGKILL" else (2,):
                for step in steps:
                    doomed = await host.start(
                        generation + 1, command=mortal(step, signal, nth), env=environment
                    )
                    if side == "giver":
                        # It has taken everything first; then it has to give.
                        await everybody_goes_on(host, watchers)
                        await host.start(generation + 2)
                    with trio.move_on_after(BACK_S):
                        await doomed.wait_exit(60)
                    assert doomed.process.poll() == -9, f"{step}: it never came to that"
                    if not host.living():
                        # Without a deploy's trial the predecessor leaves a second after it has given
                        # all; then Restart=on-failure brings the dead one back.
                        await host.start(doomed.generation)
                    try:
                        await everybody_goes_on(host, watchers)
                    except trio.TooSlowError:
                        pytest.fail(f"after a {signal} {step} ({nth}):\n{host.story()}")
                    generation += 2
            assert await trio.to_thread.run_sync(partial(agent_pids, host, *ids)) == pids
            nursery.cancel_scope.cancel()
        assert all(code in (1001, 1006, 4008) for w in watchers for code in w.closes)
