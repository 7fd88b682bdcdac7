"""What a session that is idle, with its agent alive, and what a viewer of one costs the daemon in
memory: its resident size with many of them less that with fewer, divided. The first ones are not
counted: they bring the code and the buffers that all share. Agents and keepers are processes of
their own, and are not in the figure.

A viewer has been live for a moment and has said nothing; its session is one of 1,000 messages that
it was shown the last pages of.
"""

import base64
import os
import re
import socket
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from tests.bench.rows import Row
from tests.live.up import Up, running

SESSIONS_BEFORE, SESSIONS = 30, 60
VIEWERS_BEFORE, VIEWERS = 100, 300
RUNS = 3
SESSION_KIB = 60.0
VIEWER_KIB = 40.0
SETTLE_S = 2.0


def _resident_kib(up: Up) -> int:
    time.sleep(SETTLE_S)
    status = Path(f"/proc/{up.daemon_pid()}/status").read_text()
    found = re.search(r"^VmRSS:\s+(\d+) kB", status, re.MULTILINE)
    assert found is not None
    return int(found[1])


def _sessions(up: Up, count: int) -> None:
    ids = [up.new_session()["id"] for _ in range(count)]
    for session in ids:
        up.wait_state(session, "idle")


def _viewer(up: Up, session: str, token: str) -> socket.socket:
    """A stream that is live, with nothing left to be read."""
    sock = socket.create_connection(("127.0.0.1", up.port), 60)
    key = base64.b64encode(os.urandom(16)).decode()
    sock.sendall(
        f"GET /v1/sessions/{session}/stream HTTP/1.1\r\nHost: 127.0.0.1:{up.port}\r\n"
        "Upgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\n"
        f"Sec-WebSocket-Key: {key}\r\nSec-WebSocket-Protocol: holdover.v1\r\n"
        f"Authorization: Bearer {token}\r\n\r\n".encode()
    )
    received = b""
    while not received.endswith(b'{"type":"live"}'):
        data = sock.recv(256 * 1024)
        assert data, "the server hung up"
        received = (received + data)[-100:]
    return sock


def _grown(folder: Path) -> tuple[float, float]:
    """KiB of a session, of a viewer."""
    (folder / "config").mkdir(parents=True)
    (folder / "config" / "holdover.toml").write_text("[sessions]\nmax_live = 200\n")
    with running(folder) as up:
        token = up.call("POST", "/v1/tokens", {"name": "bench", "scopes": ["read"]})["token"]
        watched = up.new_session("history 1000")["id"]
        up.wait_state(watched, "idle")
        _sessions(up, SESSIONS_BEFORE)
        before = _resident_kib(up)
        _sessions(up, SESSIONS)
        session = (_resident_kib(up) - before) / SESSIONS
        viewers = [_viewer(up, watched, token) for _ in range(VIEWERS_BEFORE)]
        before = _resident_kib(up)
        viewers += [_viewer(up, watched, token) for _ in range(VIEWERS)]
        viewer = (_resident_kib(up) - before) / VIEWERS
        for sock in viewers:
            sock.close()
    return session, viewer


def measure() -> Iterator[Row]:
    found: list[tuple[float, float]] = []
    for run in range(RUNS):
        with tempfile.TemporaryDirectory(prefix="hb-") as folder:
            found.append(_grown(Path(folder)))
        print(f"run {run + 1}: {found[-1]}", file=sys.stderr)
    for at, name, bound in ((0, "an idle session", SESSION_KIB), (1, "a viewer", VIEWER_KIB)):
        yield Row(
            f"memory of {name}", "KiB", [each[at] for each in found], "its bound", [bound] * RUNS,
            at_most=1.0,
        )  # fmt: skip
