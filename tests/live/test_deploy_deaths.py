"""The deploy itself dies, or stands still, before and after every step; run again, it converges.

Under a real `holdover up`, with somebody who watches a session: no line is lost and no WebSocket is
closed, whatever becomes of the deploy.
"""

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import trio

from holdoverd.deploy.uphost import ask
from tests.live.kills import LineWatcher, agent_pids
from tests.live.up import Up, running, wait_until

pytestmark = pytest.mark.slow

FORWARD = ("MIGRATE", "BEGIN_TRIAL", "START", "GATE", "ACCEPT", "BAKE", "COMMIT", "END_TRIAL")
BACK = ("RETIRE", "KILL", "END_FAILED_TRIAL")
END_S = 60.0


@pytest.fixture
def up() -> Iterator[Up]:
    with tempfile.TemporaryDirectory(prefix="hd-") as folder:
        env = {"HOLDOVER_DEPLOY_BAKE_S": "0", "HOLDOVER_DRAIN_MODE": "migrate"}
        with running(Path(folder), **env) as one:
            yield one


def deploy(up: Up, *module: str, generation: int) -> "subprocess.Popen[bytes]":
    environment = dict(
        pair.split("=", 1)
        for pair in Path(f"/proc/{up.daemon_pid()}/environ").read_text().split("\0")
        if "=" in pair
    )
    return subprocess.Popen(
        [sys.executable, "-m", *module, "--up", "--generation", str(generation)],
        env={**os.environ, **environment},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )


def doomed(up: Up, generation: int, *fates: str) -> None:
    """Run a deploy until it kills itself, or (SIGSTOP) until it is stopped and then killed."""
    process = deploy(up, "tests.live.mortal_deploy", *fates, "--", generation=generation)

    def struck() -> bool:
        stat = Path(f"/proc/{process.pid}/stat").read_text().rsplit(")", 1)[1].split()
        return stat[0] in "TZ"

    wait_until(struck, f"it comes to {fates}", END_S)
    if fates[-1].endswith("SIGSTOP"):
        # Whoever comes meanwhile is told that somebody is at it.
        second = deploy(up, "holdoverd.deploy", generation=generation)
        assert second.wait(END_S) == 4
    process.kill()
    assert process.wait(END_S) == -9, f"{fates}: it never came to that"


async def test_a_deploy_that_dies_at_any_step_converges_when_run_again(up: Up) -> None:
    session = up.new_session("lines 100000 rate 10 size 100")["id"]
    agent = await trio.to_thread.run_sync(
        wait_until, lambda: agent_pids(up, session), "the agent runs"
    )
    watcher = LineWatcher(up.admin_socket, session)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(watcher.run)
        await watcher.wait(lambda w: w.lines > 2, END_S)
        points = [f"{when}:{step}:SIGKILL" for step in FORWARD for when in ("before", "after")]
        points += [f"before:{step}:SIGSTOP" for step in FORWARD]
        for point in points:
            generation = await trio.to_thread.run_sync(ask, up.runtime, "prepare")
            await trio.to_thread.run_sync(doomed, up, generation, point)
            again = deploy(up, "holdoverd.deploy", generation=generation)
            assert await trio.to_thread.run_sync(again.wait, END_S) == 0, point
            assert ask(up.runtime, "current") == generation
            had = watcher.lines
            await watcher.wait(lambda w, had=had: w.lines > had, END_S)
            await trio.to_thread.run_sync(
                wait_until,
                lambda generation=generation: ask(up.runtime, "living") == [generation],
                "the others have left",
            )
        assert (agent_pids(up, session), watcher.closes, watcher.connects) == (agent, [], 1)
        nursery.cancel_scope.cancel()


async def test_one_that_dies_while_it_takes_a_release_back_converges_as_well(up: Up) -> None:
    """The candidate has accepted, and taken the session, when the deploy is told to stop.

    Run again it finds a candidate that goes well, or one that has begun to hand back; both ends are
    sound, and nothing between them is.
    """
    session = up.new_session("lines 100000 rate 10 size 100")["id"]
    watcher = LineWatcher(up.admin_socket, session)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(watcher.run)
        await watcher.wait(lambda w: w.lines > 2, END_S)
        for point in [f"{when}:{step}:SIGKILL" for step in BACK for when in ("before", "after")]:
            before = ask(up.runtime, "current")
            generation = await trio.to_thread.run_sync(ask, up.runtime, "prepare")
            await trio.to_thread.run_sync(doomed, up, generation, "after:ACCEPT:SIGTERM", point)
            again = deploy(up, "holdoverd.deploy", generation=generation)
            status = await trio.to_thread.run_sync(again.wait, END_S)
            assert status in (0, 3), point
            now = ask(up.runtime, "current")
            assert now == (generation if status == 0 else before), point
            had = watcher.lines
            await watcher.wait(lambda w, had=had: w.lines > had, END_S)
            await trio.to_thread.run_sync(
                wait_until, lambda now=now: ask(up.runtime, "living") == [now], "one is left"
            )
            assert (watcher.closes, watcher.connects) == ([], 1), f"{point}\n{up.output()[-4000:]}"
        nursery.cancel_scope.cancel()
