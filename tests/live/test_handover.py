"""Two and three real daemons on one host: sessions and connections change hands under load."""

from functools import partial
from pathlib import Path

import pytest
import trio

from tests.live import generations
from tests.live.kills import agent_pids
from tests.live.watcher import Watcher

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("mode", ["migrate", "finish"])
async def test_a_second_generation_takes_over_and_nobody_is_closed(
    tmp_path: Path, mode: str
) -> None:
    async with generations.host(tmp_path, HOLDOVER_DRAIN_MODE=mode) as host:
        first = await host.start(1)
        ids = [
            (await trio.to_thread.run_sync(partial(host.new_session, "stream 60 rate 20")))["id"]
            for _ in range(3)
        ]
        watchers = [
            Watcher(host.admin_socket, session, threads=threads)
            for session in ids
            for threads in ("all", "main")
        ]
        async with trio.open_nursery() as nursery:
            for watcher in watchers:
                nursery.start_soon(watcher.run)
            for watcher in watchers:
                with trio.fail_after(60):
                    await watcher.live.wait()
            pids = await trio.to_thread.run_sync(partial(agent_pids, host, *ids))
            second = await host.start(2)
            assert second.process.poll() is None
            if mode == "finish":
                for session in ids:
                    await trio.to_thread.run_sync(host.wait_state, session, "idle")
                for session in ids:
                    await trio.to_thread.run_sync(
                        partial(host.call, "DELETE", f"/v1/sessions/{session}")
                    )
            assert await first.wait_exit() == 0
            if mode == "migrate":
                now = await trio.to_thread.run_sync(partial(agent_pids, host, *ids))
                assert now == pids
                for session in ids:
                    await trio.to_thread.run_sync(host.wait_state, session, "idle")
                for watcher in watchers:
                    view = await trio.to_thread.run_sync(host.session, watcher.session)
                    assert view["generation"] == 2
                    await watcher.wait(lambda w, view=view: w.seqs[-1] == view["last_seq"])
            nursery.cancel_scope.cancel()
        for watcher in watchers:
            assert watcher.connects == 1
            assert watcher.closes in ([], [1000])
            assert not watcher.repeated
            assert watcher.missing(watcher.seqs[-1]) == []
