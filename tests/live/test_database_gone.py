"""PostgreSQL goes away in the middle of a turn and comes back: agents never notice.

A real `holdover up` on a real server, which crashes, stays away while its clients try, and returns.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from uuid import uuid4

import pytest
import trio

from tests.live.kills import agent_pids, lines_of
from tests.live.test_full_disk import BEFORE, Turn, in_thread
from tests.live.up import Up, running, wait_until
from tests.postgres import Postgres

pytestmark = [pytest.mark.slow]


@pytest.fixture
def server(postgres: Postgres) -> Iterator[Postgres]:
    """A server of this test's own; `postgres` is there to skip where there can be none."""
    server = Postgres()
    yield server
    server.remove()


@pytest.fixture
def up(tmp_path: Path, server: Postgres) -> Iterator[Up]:
    url = server.url(server.create()).replace("holdover@", "holdover:geheim@")
    with running(tmp_path, HOLDOVER_CATALOGUE_URL=url) as instance:
        yield instance


@pytest.mark.parametrize("killed", [False, True], ids=["daemon_lives", "daemon_killed"])
async def test_a_database_gone_in_mid_turn_costs_no_line_and_no_agent(
    up: Up, server: Postgres, killed: bool
) -> None:
    turn = await in_thread(Turn, up)
    agents = await in_thread(wait_until, lambda: agent_pids(up, turn.session), "the agent runs")
    daemon = up.daemon_pid()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(turn.viewer.run)
        await turn.viewer.wait(lambda v: len(lines_of(v.messages)) >= BEFORE)
        await in_thread(server.stop)
        try:
            prompt = {"id": str(uuid4()), "text": "sha\nsaid while it was away"}
            asked = (
                ("POST", f"/v1/sessions/{turn.session}/prompts", prompt),
                ("GET", "/v1/sessions", None),
                ("GET", f"/v1/sessions/{turn.session}/messages?after=0", None),
            )
            for method, path, body in asked:
                status, answer = await in_thread(up.request, method, path, body)
                assert (status, answer["error"]["code"]) == (503, "unavailable"), answer
                assert "cannot be reached" in answer["error"]["message"], answer
            if killed:
                up.kill_daemon()
                await in_thread(
                    wait_until, lambda: "CRITICAL The catalogue" in up.output(), "it says why"
                )
        finally:
            await in_thread(server.start)
        await in_thread(wait_until, up.healthy, "the daemon serves")
        await in_thread(wait_until, lambda: turn.prompt(prompt)[0] == 202, "it is accepted")
        await turn.viewer.wait(
            lambda v: sum(m["kind"] == "result" for m in v.messages) == 1 + len(turn.accepted), 180
        )
        await in_thread(up.wait_state, turn.session, "idle")
        nursery.cancel_scope.cancel()
    turn.check()
    assert agent_pids(up, turn.session) == agents
    assert (up.daemon_pid() == daemon) is not killed
    output = up.output()
    assert "Traceback" not in output
    assert "geheim" not in output
    commands = [path.read_bytes() for path in Path("/proc").glob("[0-9]*/cmdline") if path.exists()]
    assert not any(b"geheim" in command for command in commands)
