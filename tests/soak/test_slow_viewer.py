"""A viewer at 1 KB/s beside a fast one, while an agent says 1,000 lines a second.

Twice the same, first without the slow one as the control. How long ingestion paused is read off the
messages: each says when it was taken from the spool. The figures go to slow-viewer.md beside this
file. HOLDOVER_SOAK_SLOW_S (60) makes it a shorter run.
"""

from __future__ import annotations

import json
import os
import re
import socket
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import trio

from tests.live.kills import UNHURRIED_S, LineWatcher
from tests.live.up import Up

pytestmark = pytest.mark.soak

SECONDS = int(os.environ.get("HOLDOVER_SOAK_SLOW_S", "60"))
RATE = 1000
BYTES_PER_S = 1024
MAX_PAUSE_MS = 50
MAX_GROWTH_MIB = 32.0
RESULTS = Path(__file__).with_name("slow-viewer.md")


class SlowViewer:
    """Takes `BYTES_PER_S` from its socket until told to hurry, then all that there is."""

    def __init__(self, up: Up, session: str, token: str) -> None:
        self.hurry = threading.Event()
        self.received = bytearray()
        self._socket = socket.socket()
        # What the kernel holds for us is read as well, in its eyes.
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        self._socket.settimeout(UNHURRIED_S)
        self._socket.connect(("127.0.0.1", up.port))
        self._socket.sendall(
            f"GET /v1/sessions/{session}/stream?after=0 HTTP/1.1\r\nHost: 127.0.0.1:{up.port}\r\n"
            "Upgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\n"
            "Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n"
            f"Sec-WebSocket-Protocol: holdover.v1\r\nAuthorization: Bearer {token}\r\n\r\n".encode()
        )

    def run(self) -> None:
        with self._socket as sock:
            while True:
                hurried = self.hurry.is_set()
                data = sock.recv(1024 * 1024 if hurried else BYTES_PER_S // 4)
                if not data:
                    return
                self.received += data
                if not hurried:
                    self.hurry.wait(0.25)

    def frames(self) -> tuple[list[Any], int | None]:
        """(what came, the code of the close)."""
        _, _, rest = bytes(self.received).partition(b"\r\n\r\n")
        found: list[Any] = []
        while len(rest) >= 2:
            extra = {126: 2, 127: 8}.get(rest[1], 0)
            size = int.from_bytes(rest[2 : 2 + extra], "big") if extra else rest[1]
            payload = rest[2 + extra : 2 + extra + size]
            if rest[0] == 0x88:
                return found, int.from_bytes(payload[:2], "big")
            if rest[0] == 0x81 and len(payload) == size:
                found.append(json.loads(payload))
            rest = rest[2 + extra + size :]
        return found, None


class Fast(LineWatcher):
    """Beside the account of lines, the longest time between two that were taken one after another."""

    taken_at = 0
    pause_ms = 0

    def _take(self, text: str, lost_at: float | None) -> None:
        for at in map(int, re.findall(r'"at":(\d{13}),"kind":"assistant"', text)):
            if self.taken_at:
                self.pause_ms = max(self.pause_ms, at - self.taken_at)
            self.taken_at = at
        super()._take(text, lost_at)


@dataclass(frozen=True)
class Run:
    """`growth_mib`: of the daemon's resident memory, at its highest."""

    pause_ms: int
    growth_mib: float


def resident_mib(pid: int) -> float:
    found = re.search(r"^VmRSS:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text(), re.MULTILINE)
    assert found is not None
    return int(found[1]) / 1024


async def talk(up: Up, session: str, slow: SlowViewer | None) -> Run:
    """One turn of `SECONDS`, watched by a fast viewer and perhaps a slow one."""
    daemon = up.daemon_pid()
    fast = Fast(up.admin_socket, session)
    before = highest = resident_mib(daemon)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(fast.run)
        if slow is not None:
            nursery.start_soon(trio.to_thread.run_sync, slow.run)
        await fast.wait(lambda w: w.live.is_set())
        say = f"lines {RATE * SECONDS} rate {RATE} size 1024"
        await trio.to_thread.run_sync(up.prompt, session, say)
        with trio.fail_after(UNHURRIED_S + 3 * SECONDS):
            while fast.last_kind != "result":
                await trio.sleep(0.25)
                highest = max(highest, resident_mib(daemon))
        if slow is not None:
            slow.hurry.set()
        await fast.wait(lambda w: w.lines == RATE * SECONDS, UNHURRIED_S)
        nursery.cancel_scope.deadline = trio.current_time() + UNHURRIED_S
        if slow is None:
            nursery.cancel_scope.cancel()
        else:
            while not (slow.frames()[1] or nursery.cancel_scope.cancelled_caught):
                await trio.sleep(0.1)
            nursery.cancel_scope.cancel()
    return Run(fast.pause_ms, highest - before)


def report(control: Run, run: Run, read: int) -> str:
    def verdict(kept: bool) -> str:
        return "yes" if kept else "**no**"

    longer = run.pause_ms - control.pause_ms
    load = os.getloadavg()[0]
    return (
        "# A slow viewer\n\nWritten by `make soak` (tests/soak/test_slow_viewer.py).\n\n"
        f"One session, {RATE:,} lines of 1 KiB a second for {SECONDS} s, a fast viewer, and in the "
        f"second run one that reads {BYTES_PER_S:,} bytes a second; on {os.cpu_count()} cores that "
        f"also carry agent and viewers, load average {load:.1f}:\n\n"
        "| what | control | with the slow one | bound | kept |\n|---|---:|---:|---:|---|\n"
        f"| longest pause of ingestion | {control.pause_ms} ms | {run.pause_ms} ms "
        f"| {MAX_PAUSE_MS} ms longer | {verdict(longer <= MAX_PAUSE_MS)} |\n"
        f"| the daemon's memory grew by | {control.growth_mib:.1f} MiB | {run.growth_mib:.1f} MiB "
        f"| {MAX_GROWTH_MIB:.0f} MiB | {verdict(run.growth_mib <= MAX_GROWTH_MIB)} |\n"
        "| the fast one's lines missing, repeated, damaged | 0 | 0 | 0 | yes |\n\n"
        f"The slow one had taken {read:,} messages when it was closed 4008, came back with its cursor "
        "and got every other one once.\n"
    )


async def test_a_slow_viewer_costs_ingestion_nothing_and_recovers_from_4008(up: Up) -> None:
    token = up.call("POST", "/v1/tokens", {"name": "slow", "scopes": ["read"]})["token"]
    first, second = ((up.new_session())["id"] for _ in range(2))
    control = await talk(up, first, None)
    slow = SlowViewer(up, second, token)
    run = await talk(up, second, slow)

    frames, code = slow.frames()
    assert code == 4008
    seqs = [m["seq"] for frame in frames if frame["type"] == "messages" for m in frame["messages"]]
    assert seqs == list(range(1, len(seqs) + 1))
    last = up.session(second)["last_seq"]
    assert len(seqs) < last, "it was to fall behind"
    again = LineWatcher(up.admin_socket, second, after=len(seqs), epoch=up.session(second)["epoch"])
    again.seqs, again.lines = list(seqs), len([s for s in seqs if s > 1])
    async with trio.open_nursery() as nursery:
        nursery.start_soon(again.run)
        await again.wait(lambda w: w.seqs[-1:] == [last], UNHURRIED_S)
        nursery.cancel_scope.cancel()
    text = report(control, run, len(seqs))
    print(text)
    RESULTS.write_text(text)
