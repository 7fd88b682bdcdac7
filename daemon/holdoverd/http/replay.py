"""A connection that has left HTTP: bytes read too early come again, and silence is noticed."""

import math
from typing import Protocol

import trio

_SEND_CHUNK = 64 * 1024
# A send that had to wait this long and then went on proves that somebody reads at the other end.
_PROOF_S = 1.0


class HalfCloseable(Protocol):
    """What a connection's stream has to be able to do; sockets and memory streams are."""

    async def send_all(self, data: bytes | bytearray | memoryview) -> None: ...
    async def wait_send_all_might_not_block(self) -> None: ...
    async def receive_some(self, max_bytes: int | None = None) -> bytes | bytearray: ...
    async def send_eof(self) -> None: ...
    async def aclose(self) -> None: ...


class ReplayStream(trio.abc.HalfCloseableStream):
    """`stream`, but `head` is received first, and nothing behind it until something was sent.

    wsproto (1.3) forgets on the server's side what it receives between a request and its answer,
    so frames that a client sends at once behind its upgrade must be kept from it until then.
    `rest` are the bytes behind the head that were read already.

    Also keeps what is needed to tell a silent peer from one that we do not listen to. trio's
    clock; closing this closes `stream`.
    """

    def __init__(self, stream: HalfCloseable, head: bytes, rest: bytes) -> None:
        self._stream = stream
        self._head = memoryview(head)
        self._rest = memoryview(rest)
        self._answered = trio.Event()
        self._receiving_since: float | None = None
        self._sending_since: float | None = None
        self._proof_at = -math.inf

    def silent_at(self, limit_s: float) -> float:
        """When the peer will have been silent for `limit_s`, as things stand; inf while unknown.

        Only time spent waiting for it counts: while we do not read (a full queue), it cannot be
        heard. A large frame that a slow link takes in piece by piece is a sign of life, and a send
        that does not move at all for so long is the opposite, whatever we receive.
        """
        silent = stuck = math.inf
        if self._receiving_since is not None:
            silent = max(self._receiving_since, self._proof_at) + limit_s
        if self._sending_since is not None:
            stuck = self._sending_since + limit_s
        return min(silent, stuck)

    async def receive_some(self, max_bytes: int | None = None) -> bytes | bytearray:
        if self._head:
            await trio.lowlevel.checkpoint()
            data = bytes(self._head[: max_bytes or len(self._head)])
            self._head = self._head[len(data) :]
            return data
        await self._answered.wait()
        if self._rest:
            data = bytes(self._rest[: max_bytes or len(self._rest)])
            self._rest = self._rest[len(data) :]
            return data
        self._receiving_since = trio.current_time()
        try:
            return await self._stream.receive_some(max_bytes)
        finally:
            self._receiving_since = None

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        self._answered.set()  # the answer has been made, whenever it arrives
        view = memoryview(data)
        while True:
            started = self._sending_since = trio.current_time()
            try:
                await self._stream.send_all(view[:_SEND_CHUNK])
            finally:
                self._sending_since = None
            if (now := trio.current_time()) - started > _PROOF_S:
                self._proof_at = now
            view = view[_SEND_CHUNK:]
            if not view:
                return

    async def wait_send_all_might_not_block(self) -> None:
        await self._stream.wait_send_all_might_not_block()

    async def send_eof(self) -> None:
        await self._stream.send_eof()

    async def aclose(self) -> None:
        self._answered.set()
        await self._stream.aclose()


async def linger(stream: HalfCloseable, seconds: float, max_bytes: int) -> None:
    """Say that nothing more comes, and let the peer read that before the connection is gone.

    Closing a socket with unread bytes makes the kernel reset the connection, and the reset can
    overtake our last words (RFC 9112, section 9.6). So read on until the peer has closed, for at
    most `seconds` and `max_bytes`. Does not close.
    """
    left = max_bytes
    try:
        with trio.move_on_after(seconds):
            await stream.send_eof()
            while left > 0 and (data := await stream.receive_some(64 * 1024)):
                left -= len(data)
    except (trio.BrokenResourceError, trio.ClosedResourceError, trio.BusyResourceError):
        return  # gone already, which is as good
