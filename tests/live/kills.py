"""Kill the daemon again and again under sessions that talk and viewers that keep account."""

import hashlib
from dataclasses import dataclass
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

import trio

from tests.live.up import Api, Up, wait_until
from tests.live.watcher import Watcher

UNHURRIED_S = 180.0
"""A timeout, not a figure: for a hundred sessions on a busy machine to get somewhere."""

ENDLESS_S = 6 * 3600
"""Lines for that long are given to an agent that is to talk until it is interrupted."""


def lines_of(messages: list[Any]) -> list[int]:
    """The numbers of the demo's ``lines``, each checked against its hash."""
    numbers: list[int] = []
    for message in messages:
        if message["kind"] != "assistant":
            continue
        (block,) = message["body"]["message"]["content"]
        if block.get("type") != "text" or not block["text"].startswith("#"):
            continue
        number, digest, payload = block["text"].split(" ", 2)
        assert hashlib.sha256(payload.encode()).hexdigest() == digest, "a damaged line"
        numbers.append(int(number[1:]))
    return numbers


def agent_pids(up: Api, *sessions: str) -> dict[str, int]:
    """{session: pid of its agent}, found by the environment that the keeper gave it."""
    wanted = {f"HOLDOVER_SESSION_ID={session}".encode(): session for session in sessions}
    found: dict[str, int] = {}
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            command = (entry / "cmdline").read_bytes()
            if b"holdoverd.demo" not in command or b"holdoverd.keeper" in command:
                continue
            environ = (entry / "environ").read_bytes()
        except OSError:
            continue
        for variable in wanted.keys() & set(environ.split(b"\0")):
            found[wanted[variable]] = int(entry.name)
    return found


class LineWatcher(Watcher):
    """Checks every message as it comes and keeps none: for long runs.

    `lines`: how many of the demo's lines came, one after the other from the first.
    """

    lines = 0
    last_kind = ""

    def _take(self, text: str, lost_at: float | None) -> None:
        had = self.seqs[-1] if self.seqs else 0
        kept = len(self.seqs)
        super()._take(text, lost_at)
        came = self.seqs[kept:]
        assert came == list(range(had + 1, had + 1 + len(came))), (
            f"missing, repeated or out of order: after {had} came {came[:5]}"
        )
        numbers = lines_of(self.messages)
        assert numbers == list(range(self.lines + 1, self.lines + 1 + len(numbers))), (
            f"a line is missing or repeated: after {self.lines} came {numbers[:5]}"
        )
        self.lines += len(numbers)
        if self.messages:
            self.last_kind = self.messages[-1]["kind"]
        self.messages.clear()


@dataclass(frozen=True)
class Killed:
    """What it was like. `gaps_s`: every reconnect of every viewer, from loss to ``live``."""

    gaps_s: list[float]
    lines: int  # said by all agents together
    messages: int  # received by all viewers together
    seconds: float


async def kills_cost_nobody_anything(
    up: Up, *, sessions: int, viewers: int, kills: int, rate: int, seconds: int | None
) -> Killed:
    """`kills` times: wait until every viewer is live, kill the daemon, wait until each is live
    again and has got something new. Asserts that nothing was lost, repeated or started anew.

    Every session says `rate` lines of 1 KiB a second, for `seconds`, or (None) until the last kill.
    """
    lines = rate * (seconds or ENDLESS_S)
    say = f"lines {lines} rate {rate} size 1024"
    ids = [(await trio.to_thread.run_sync(up.new_session, say))["id"] for _ in range(sessions)]

    def pids_of_all() -> dict[str, int] | None:
        pids = agent_pids(up, *ids)
        return pids if len(pids) == sessions else None

    pids = await trio.to_thread.run_sync(wait_until, pids_of_all, "all agents run")
    watchers = [LineWatcher(up.admin_socket, i) for i in ids for _ in range(viewers)]
    started = trio.current_time()
    async with trio.open_nursery() as nursery:
        for watcher in watchers:
            nursery.start_soon(watcher.run)
        for _ in range(kills):
            for watcher in watchers:
                with trio.fail_after(UNHURRIED_S):
                    await watcher.live.wait()
            before = [len(w.seqs) for w in watchers]
            old = up.kill_daemon()
            await trio.to_thread.run_sync(up.wait_new_daemon, old)
            for watcher, had in zip(watchers, before, strict=True):
                await watcher.wait(
                    lambda w, had=had: w.live.is_set() and len(w.seqs) > had, UNHURRIED_S
                )
            now = await trio.to_thread.run_sync(partial(agent_pids, up, *ids))
            assert now == pids, "an agent was started anew"
        took = trio.current_time() - started
        if seconds is None:
            for session in ids:
                path = f"/v1/sessions/{session}/interrupt"
                await trio.to_thread.run_sync(up.call, "POST", path, {})
        for watcher in watchers:
            await watcher.wait(lambda w: w.last_kind == "result", UNHURRIED_S + 3 * (seconds or 0))
        nursery.cancel_scope.cancel()
    for watcher in watchers:
        view = await trio.to_thread.run_sync(up.session, watcher.session)
        assert watcher.seqs[-1] == view["last_seq"], "a viewer has not seen everything"
        assert watcher.lines == lines if seconds is not None else watcher.lines > 0
        assert 1001 not in watcher.closes
    stored = await trio.to_thread.run_sync(up.log, ids[0])
    assert all(m["seq"] == seq for m, seq in zip(stored, count(1), strict=False))
    assert lines_of(stored) == list(range(1, watchers[0].lines + 1))
    return Killed(
        gaps_s=[gap for watcher in watchers for gap in watcher.gaps_s],
        lines=sum(w.lines for w in watchers[::viewers]),
        messages=sum(len(w.seqs) for w in watchers),
        seconds=took,
    )
