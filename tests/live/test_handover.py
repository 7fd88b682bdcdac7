"""Two and three real daemons on one host: sessions and connections change hands under load."""

from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import pytest
import trio

from tests.live import generations
from tests.live.kills import LineWatcher, agent_pids
from tests.live.watcher import Watcher

pytestmark = pytest.mark.slow

ANSWER_S = 20.0
"""Unanswered for so long counts as lost."""


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


@dataclass
class Visitors:
    """New connections all the time, each with one request; what became of them.

    `times_s`: how long each answered one took.
    """

    port: int
    answered: int = 0
    lost: list[str] = field(default_factory=list)
    times_s: list[float] = field(default_factory=list)

    @property
    def slowest_s(self) -> float:
        return max(self.times_s, default=0.0)

    async def run(self, per_second: float) -> None:
        async with trio.open_nursery() as nursery:
            while True:
                nursery.start_soon(self._visit)
                await trio.sleep(1 / per_second)

    async def _visit(self) -> None:
        started = trio.current_time()
        try:
            with trio.fail_after(ANSWER_S):
                async with await trio.open_tcp_stream("127.0.0.1", self.port) as stream:
                    await stream.send_all(
                        b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
                    )
                    said = b""
                    while chunk := await stream.receive_some(65536):
                        said += chunk
            if not said.startswith(b"HTTP/1.1 200"):
                self.lost.append(f"answered {said[:80]!r}")
        except (OSError, trio.TooSlowError, trio.BrokenResourceError) as error:
            self.lost.append(f"{type(error).__name__}: {error}")
        else:
            self.answered += 1
            self.times_s.append(trio.current_time() - started)


@pytest.mark.parametrize("mode", ["migrate", "finish"])
async def test_five_handovers_under_forty_streams_and_fifty_connections_a_second(
    tmp_path: Path, mode: str
) -> None:
    sessions, deploys, seconds = 40, 5, 45
    async with generations.host(tmp_path, HOLDOVER_DRAIN_MODE=mode) as host:
        await host.start(1)
        say = f"lines {20 * seconds} rate 20 size 1024"
        ids = [
            (await trio.to_thread.run_sync(partial(host.new_session, say)))["id"]
            for _ in range(sessions)
        ]
        pids = await trio.to_thread.run_sync(partial(agent_pids, host, *ids))
        watchers = [LineWatcher(host.admin_socket, session) for session in ids]
        visitors = Visitors(host.port)
        async with trio.open_nursery() as nursery:
            for watcher in watchers:
                nursery.start_soon(watcher.run)
            for watcher in watchers:
                with trio.fail_after(60):
                    await watcher.live.wait()
            nursery.start_soon(visitors.run, 50)
            for generation in range(2, 2 + deploys):
                await host.start(generation)
                # While the one before has still to hand over: as an impatient operator would.
                await trio.sleep(1)
            for watcher in watchers:
                await watcher.wait(lambda w: w.last_kind == "result", 60 + 4 * seconds)
            assert await trio.to_thread.run_sync(partial(agent_pids, host, *ids)) == pids
            with trio.fail_after(180):
                while len(host.living()) > (1 if mode == "migrate" else 3):
                    await trio.sleep(0.1)
            nursery.cancel_scope.cancel()
        assert visitors.lost == []
        assert visitors.answered > 50 * deploys
        for watcher in watchers:
            assert (watcher.connects, watcher.closes) == (1, [])
            assert watcher.lines == 20 * seconds
