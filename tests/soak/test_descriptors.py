"""Ten thousand handoffs between two real instances leave no descriptor behind, on either side.

An instance drains and keeps its session, which is in the middle of a turn; a newer one accepts. So each
viewer that comes is accepted by the one and passed on to the other, with a memfd of what was read.
The figures go to descriptors.md beside this file. HOLDOVER_SOAK_HANDOFFS (10,000) makes it another
run.
"""

from __future__ import annotations

import os
import re
import socket
import tempfile
from functools import partial
from pathlib import Path

import pytest
import trio

from tests.live import forked, generations
from tests.live.generations import Host, Instance
from tests.live.test_handover_doors import drains

pytestmark = pytest.mark.soak

HANDOFFS = int(os.environ.get("HOLDOVER_SOAK_HANDOFFS", "10000"))
AT_ONCE = 8
WARM = 100
RESULTS = Path(__file__).with_name("descriptors.md")


def open_fds(instance: Instance) -> int:
    return len(os.listdir(f"/proc/{instance.pid}/fd"))


async def watch_once(host: Host, session: str) -> None:
    """Be handed over: an upgrade, its 101, the first words, and away."""
    request = (
        f"GET /v1/sessions/{session}/stream HTTP/1.1\r\nHost: localhost\r\n"
        "Upgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\n"
        "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"
        "Sec-WebSocket-Protocol: holdover.v1\r\n\r\n"
    ).encode()
    with trio.fail_after(60), trio.socket.socket(socket.AF_UNIX) as sock:
        await sock.connect(str(host.admin_socket))
        await sock.send(request)
        said = b""
        while b'"type":"hello"' not in said:
            chunk = await sock.recv(65536)
            assert chunk, f"it was closed: {said!r}"
            said += chunk
        assert said.startswith(b"HTTP/1.1 101 ")


async def watch(host: Host, session: str, times: int) -> None:
    left = times

    async def some() -> None:
        nonlocal left
        while left > 0:
            left -= 1
            await watch_once(host, session)

    async with trio.open_nursery() as nursery:
        for _ in range(AT_ONCE):
            nursery.start_soon(some)


async def counted(host: Host, instances: tuple[Instance, Instance]) -> tuple[int, int]:
    """Open descriptors, once nobody is connected but whoever asks."""
    with trio.fail_after(120):
        while True:
            found = await trio.to_thread.run_sync(partial(host.call, "GET", "/v1/admin/instances"))
            if sum(one["connections"] for one in found["items"]) <= 1:
                return open_fds(instances[0]), open_fds(instances[1])
            await trio.sleep(0.1)


async def test_ten_thousand_handoffs_leave_no_descriptor_behind() -> None:
    with tempfile.TemporaryDirectory(prefix="hn-") as folder, forked.nursery() as nursery:
        async with generations.host(
            Path(folder), nursery=nursery, HOLDOVER_DRAIN_MODE="finish"
        ) as host:
            owner = await host.start(1)
            say = "lines 100000 rate 1 size 100"
            view = await trio.to_thread.run_sync(partial(host.new_session, say))
            newer = await host.start(2)
            await drains(host, owner)
            await watch(host, view["id"], WARM)
            before = await counted(host, (owner, newer))
            await watch(host, view["id"], HANDOFFS)
            after = await counted(host, (owner, newer))
            handed = await trio.to_thread.run_sync(handed_on, host)
    # Threads and pools come and go; what leaks, leaks ten thousand times.
    assert all(b <= a + 20 for a, b in zip(before, after, strict=True)), (before, after)
    text = (
        "# Descriptors\n\nWritten by `make soak` (tests/soak/test_descriptors.py).\n\n"
        f"{HANDOFFS:,} WebSockets accepted by one instance and passed on to the owner of their "
        f"session ({handed:,} handed on, by the instance's own count). Open descriptors, once "
        "all had gone:\n\n"
        f"| instance | after {WARM} handoffs | at the end |\n|---|---:|---:|\n"
        f"| gives | {before[1]} | {after[1]} |\n| takes | {before[0]} | {after[0]} |\n"
    )
    print(text)
    RESULTS.write_text(text)


def handed_on(host: Host) -> int:
    """As the newer one counts, which answers at the door."""
    with socket.socket(socket.AF_UNIX) as sock:
        sock.settimeout(60)
        sock.connect(str(host.admin_socket))
        sock.sendall(b"GET /metrics HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
        said = b"".join(iter(lambda: sock.recv(65536), b"")).decode()
    found = re.search(
        r'^holdover_connections_handed_total\{.*outcome="given".*\} (\S+)', said, re.M
    )
    assert found is not None, said
    return int(float(found[1]))
