"""A viewer that comes back by itself, as contract.md wants clients to, and keeps account."""

import json
import socket
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import trio
from trio_websocket import ConnectionClosed, HandshakeError, wrap_client_stream

MAX_FRAME_BYTES = 16 * 1024 * 1024


def shown(frames: list[str]) -> str:
    """The main thread's latest sentence as a screen has it that draws every delta among `frames`."""
    text = ""
    for line in frames:
        if not line.startswith('{"type":"delta"'):
            continue
        frame = json.loads(line)
        event = frame["body"]["event"]
        if frame["thread"] != "main":
            continue
        if event["type"] == "content_block_start" and event["content_block"]["type"] == "text":
            text = event["content_block"]["text"]
        elif event["type"] == "content_block_delta":
            text += event["delta"].get("text", "")
    return text


class _Stream(trio.abc.Stream):
    """Tells of its end: trio-websocket (0.12.2) waits for ever for a 101 that cannot come any more."""

    def __init__(self, sock: trio.socket.SocketType) -> None:
        self._stream = trio.SocketStream(sock)
        self.over = False
        self.hopeful = trio.CancelScope()

    async def receive_some(self, max_bytes: int | None = None) -> bytes | bytearray:
        try:
            data = await self._stream.receive_some(max_bytes)
        except trio.BrokenResourceError:
            data = b""
        if not data:
            self.over = True
            self.hopeful.cancel()
        return data

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        await self._stream.send_all(data)

    async def wait_send_all_might_not_block(self) -> None:
        await self._stream.wait_send_all_might_not_block()

    async def aclose(self) -> None:
        await self._stream.aclose()


@dataclass
class Watcher:
    """Watches one session over the admin door with a cursor; follow it with `run`.

    Through the public door with `dial`, which connects (blocking, in a thread), and a `token`.
    `seqs`: every message's seq, in the order they came. `gaps_s`: how long each reconnect took,
    from the loss of the connection to ``live``. `closes`: (code) of each close that was said.
    """

    admin_socket: Path
    session: str
    threads: str = "all"
    after: int = 0
    epoch: str | None = None
    messages: list[Any] = field(default_factory=list)
    seqs: list[int] = field(default_factory=list)
    frames: list[str] = field(default_factory=list)
    gaps_s: list[float] = field(default_factory=list)
    closes: list[int] = field(default_factory=list)
    connects: int = 0
    unanswered: int = 0  # no word and no end within 20 s of connecting
    live: trio.Event = field(default_factory=trio.Event)
    changed: trio.Event = field(default_factory=trio.Event)
    view: Any = None
    keep_bodies: bool = True
    connection: Any = None
    dial: Callable[[], socket.socket] | None = None
    token: str | None = None

    async def run(self) -> None:
        """Watch until the session has ended (close 1000) or the task is cancelled."""
        lost_at: float | None = None
        while True:
            over = False
            try:
                over = await self._once(lost_at)
            except* (OSError, HandshakeError, trio.BrokenResourceError):
                pass  # no daemon, or one that cannot serve the session just now
            if over:
                return
            if lost_at is None or self.live.is_set():
                lost_at = trio.current_time()
            self.live = trio.Event()
            await trio.sleep(0.05)

    async def _once(self, lost_at: float | None) -> bool:
        sock = await self._connected()
        query = f"after={self.after}&threads={self.threads}"
        if self.epoch is not None:
            query += f"&epoch={self.epoch}"
        elif self.after:
            raise AssertionError("a cursor without its epoch")
        async with _Stream(sock) as stream, trio.open_nursery() as nursery:
            connection: Any = None
            with trio.move_on_after(20) as stream.hopeful:
                connection = await wrap_client_stream(
                    nursery,
                    stream,
                    "localhost",
                    f"/v1/sessions/{self.session}/stream?{query}",
                    subprotocols=["holdover.v1"],
                    extra_headers=[(b"Authorization", f"Bearer {self.token}".encode())]
                    if self.token
                    else [],
                    max_message_size=MAX_FRAME_BYTES,
                    message_queue_size=4,
                )
            if connection is None:
                self.unanswered += not stream.over
                nursery.cancel_scope.cancel()
                return False
            self.connects += 1
            self.connection = connection
            try:
                while True:
                    self._take(await connection.get_message(), lost_at)
            except ConnectionClosed as closed:
                if closed.reason is not None:
                    self.closes.append(closed.reason.code)
            finally:
                self.connection = None
            nursery.cancel_scope.cancel()
        return bool(self.closes) and self.closes[-1] == 1000

    async def _connected(self) -> trio.socket.SocketType:
        if self.dial is not None:
            return trio.socket.from_stdlib_socket(await trio.to_thread.run_sync(self.dial))
        sock = trio.socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            await sock.connect(str(self.admin_socket))
        except OSError:
            sock.close()
            raise
        return sock

    def _take(self, text: str, lost_at: float | None) -> None:
        frame = json.loads(text)
        kind = frame["type"]
        if kind != "messages":
            self.frames.append(text if kind in ("delta", "status") else kind)
            del self.frames[:-5000]
        if kind == "hello":
            self.epoch = frame["session"]["epoch"]
            self.view = frame["session"]
            assert not frame["resync"], "a truthful cursor is not to be resynced"
        elif kind == "session":
            self.view = frame["session"]
        elif kind == "messages":
            for message in frame["messages"]:
                self.seqs.append(message["seq"])
                if self.keep_bodies:
                    self.messages.append(message)
            self.after = self.seqs[-1]
        elif kind == "live":
            if lost_at is not None:
                self.gaps_s.append(trio.current_time() - lost_at)
            self.live.set()
        changed, self.changed = self.changed, trio.Event()
        changed.set()

    async def wait(self, condition: Any, timeout_s: float = 60.0) -> None:
        """Until `condition(self)` is true; looked at after every frame."""
        with trio.fail_after(timeout_s):
            while not condition(self):
                await self.changed.wait()

    def missing(self, upto: int) -> list[int]:
        return sorted(set(range(1, upto + 1)) - set(self.seqs))

    @property
    def repeated(self) -> int:
        return len(self.seqs) - len(set(self.seqs))
