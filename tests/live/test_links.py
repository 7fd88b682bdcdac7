"""Links that break every two seconds, and cursors that lie: right or `resync`, never a wrong suffix."""

from __future__ import annotations

import json
import socket
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import trio
from trio_websocket import ConnectionRejected, wrap_client_stream

from tests.live.up import Up, running
from tests.live.watcher import Watcher

pytestmark = pytest.mark.slow

DROP_S = 2.0
DOWN_S = 0.5
"""How long a link that was torn stays down: what is missed is more than a greeting then."""
MEASURED_BYTES = 20_000
"""Of a drop that cost less (the agent stood still) nothing can be said: a greeting has some 2 KB."""
LINES = 600
SENT_AGAIN = 1.2


@pytest.fixture(scope="module")
def up() -> Iterator[Up]:
    with tempfile.TemporaryDirectory(prefix="hl") as folder, running(Path(folder)) as up:
        yield up


class Link:
    """A proxy before the public port; with `drop_s`, it tears every connection after so long.

    `down`: bytes that came from the daemon and went on to the client.
    """

    def __init__(self, port: int, drop_s: float | None) -> None:
        self._port = port
        self._drop_s = drop_s
        self.down = 0
        self.drops = 0
        self._up_at = 0.0
        self.port = 0

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
        self.port = listeners[0].socket.getsockname()[1]
        task_status.started()
        await trio.serve_listeners(self._serve, listeners)

    async def _serve(self, client: trio.SocketStream) -> None:
        async with client, await trio.open_tcp_stream("127.0.0.1", self._port) as daemon:
            with trio.move_on_after(self._drop_s if self._drop_s is not None else 1e6) as scope:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(self._pump, client, daemon, False)
                    await self._pump(daemon, client, True)
                    nursery.cancel_scope.cancel()
            self.drops += scope.cancelled_caught
            if scope.cancelled_caught:
                self._up_at = time.monotonic() + DOWN_S

    async def _pump(self, source: trio.SocketStream, sink: trio.SocketStream, down: bool) -> None:
        try:
            async for data in source:
                await sink.send_all(data)
                self.down += len(data) * down
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            return

    def dial(self) -> socket.socket:
        time.sleep(max(0.0, self._up_at - time.monotonic()))
        return socket.create_connection(("127.0.0.1", self.port))


@dataclass
class Accountant(Watcher):
    """Keeps (bytes sent, bytes missed) of every time that it came back: all frames up to ``live``,
    and the messages among them."""

    drops: list[tuple[int, int]] = field(default_factory=list)
    _sent: int = 0
    _missed: int = 0

    def _take(self, text: str, lost_at: float | None) -> None:
        frame = json.loads(text)
        if frame["type"] == "hello":
            self._sent = self._missed = 0
        self._sent += len(text.encode())
        for message in frame.get("messages", ()):
            shown = json.dumps(message, separators=(",", ":"), ensure_ascii=False)
            self._missed += len(shown.encode())
        if frame["type"] == "live" and lost_at is not None:
            self.drops.append((self._sent, self._missed))
        super()._take(text, lost_at)


async def test_a_link_that_breaks_every_two_seconds_costs_little_more_than_a_steady_one(
    up: Up,
) -> None:
    token = up.call("POST", "/v1/tokens", {"name": "n", "scopes": ["read"]})["token"]
    session = up.new_session()["id"]
    up.wait_state(session, "idle")
    steady, flaky = Link(up.port, None), Link(up.port, DROP_S)
    async with trio.open_nursery() as nursery:
        watchers = []
        for link in (steady, flaky):
            await nursery.start(link.run)
            watcher = Accountant(up.admin_socket, session, dial=link.dial, token=token)
            nursery.start_soon(watcher.run)
            await watcher.wait(lambda w: w.live.is_set())
            watchers.append(watcher)
        up.prompt(session, f"lines {LINES} rate 50 size 2000")
        for watcher in watchers:
            await watcher.wait(
                lambda w: any(m["kind"] == "result" for m in w.messages), timeout_s=120
            )
        nursery.cancel_scope.cancel()
    log = up.log(session)
    for watcher in watchers:
        assert watcher.messages == log
        assert watcher.repeated == 0
    assert flaky.drops >= 4, "the link was not flaky"
    assert flaky.down <= SENT_AGAIN * steady.down, f"{flaky.down} bytes for {steady.down}"
    measured = [drop for drop in watchers[1].drops if drop[1] >= MEASURED_BYTES]
    assert len(measured) >= 2, watchers[1].drops
    for sent, missed in measured:
        assert sent <= SENT_AGAIN * missed, f"{sent} bytes to make up for {missed}"


async def open_with(up: Up, session: str, query: str) -> list[Any] | int:
    """The frames up to ``live`` of a stream with this query; the status where it is refused."""
    sock = trio.socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    await sock.connect(str(up.admin_socket))
    frames: list[Any] = []
    refused: list[int] = []
    async with trio.SocketStream(sock) as stream:
        try:
            async with trio.open_nursery() as nursery:
                connection = await wrap_client_stream(
                    nursery,
                    stream,
                    "localhost",
                    f"/v1/sessions/{session}/stream?{query}",
                    subprotocols=["holdover.v1"],
                )
                while not frames or frames[-1]["type"] != "live":
                    frames.append(json.loads(await connection.get_message()))
                nursery.cancel_scope.cancel()
        except* ConnectionRejected as group:
            refused += [one.status_code for one in group.exceptions]  # type: ignore[union-attr]
    return refused[0] if refused else frames


async def test_a_cursor_that_lies_is_refused_or_resynced(up: Up) -> None:
    session = up.new_session("history 450")["id"]
    up.wait_state(session, "idle")
    view = up.session(session)
    last, epoch = view["last_seq"], view["epoch"]
    log = up.log(session)
    assert last > 400

    for refused in (
        f"after=-1&epoch={epoch}",
        f"after=ten&epoch={epoch}",
        f"after=1.5&epoch={epoch}",
        f"after=%00&epoch={epoch}",
        f"after={10**40}&epoch={epoch}",
        "after=5",
    ):
        assert await open_with(up, session, refused) == 400, refused

    def messages(frames: Any) -> list[Any]:
        return [m for frame in frames if frame["type"] == "messages" for m in frame["messages"]]

    for lie in (
        f"after={last + 1}&epoch={epoch}",
        f"after={2**53 - 1}&epoch={epoch}",
        "after=5&epoch=e_other",
        f"after={last}&epoch={epoch}x",
    ):
        frames = await open_with(up, session, lie)
        assert isinstance(frames, list)
        assert frames[0]["type"] == "hello"
        assert frames[0]["resync"] is True, lie
        # The last two pages, whole, to the very end.
        found = messages(frames)
        assert found == log[-len(found) :]
        assert 100 < len(found) <= 201

    for truth in (0, 1, last - 1, last):
        frames = await open_with(up, session, f"after={truth}&epoch={epoch}")
        assert isinstance(frames, list)
        assert frames[0]["resync"] is False
        assert messages(frames) == log[truth:]
