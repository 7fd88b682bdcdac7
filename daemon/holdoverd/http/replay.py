"""A connection that has left HTTP: bytes read too early come again, silence is noticed, and it can
be made to stand still between two bytes, to be handed to another instance.
"""

import math
from typing import Protocol

import trio

from holdoverd.http.scanner import MessageScanner

_SEND_CHUNK = 64 * 1024
# A send that had to wait this long and then went on proves that somebody reads at the other end.
_PROOF_S = 1.0
_MAX_MESSAGE_BYTES = 16 * 1024 * 1024  # contract.md, The stream


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

    With `resumed` the client had its answer elsewhere: the first thing sent (the 101) is left out,
    and `unsent`, what was said and not sent there, goes before everything else.

    Also keeps what is needed to tell a silent peer from one that we do not listen to. trio's
    clock; closing this closes `stream`, unless it was `leave`d.
    """

    def __init__(
        self,
        stream: HalfCloseable,
        head: bytes,
        rest: bytes,
        *,
        unsent: bytes = b"",
        resumed: bool = False,
    ) -> None:
        self._stream = stream
        self._head = memoryview(head)
        self._rest = memoryview(rest)
        self._swallow = resumed
        self._unsent = bytearray(unsent)
        self.scanner = MessageScanner(_MAX_MESSAGE_BYTES)
        self._answered = trio.Event()
        self._receiving_since: float | None = None
        self._sending_since: float | None = None
        self._proof_at = -math.inf
        self._sending = trio.Lock()
        # Waits for the peer; cancelled when the connection is to stand still.
        self._waits: set[trio.CancelScope] = set()
        self._thawed: trio.Event | None = None
        self._left = False
        self.at_rest = trio.Event()
        """Frozen, and whoever reads has taken all that had come."""

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

    # -- standing still ---------------------------------------------------------------------------

    def freeze(self) -> None:
        """From now on nothing is read from the socket, and what is sent is kept as unsent."""
        assert self._thawed is None, "frozen already"
        self._thawed = trio.Event()
        for scope in self._waits:
            scope.cancel()

    async def thaw(self) -> None:
        """Go on as before; first with what was said meanwhile."""
        assert self._thawed is not None, "not frozen"
        self._thawed.set()
        self._thawed = None
        self.at_rest = trio.Event()
        await self.flush()

    def leave(self) -> tuple[bytes, bytes]:
        """(received since the last message boundary, unsent): the socket is somebody else's now."""
        assert self._thawed is not None, "it has to stand still first"
        self._left = True
        return bytes(self.scanner.kept) + bytes(self._rest), bytes(self._unsent)

    # -- receiving --------------------------------------------------------------------------------

    async def receive_some(self, max_bytes: int | None = None) -> bytes | bytearray:
        if self._head:
            await trio.lowlevel.checkpoint()
            data = bytes(self._head[: max_bytes or len(self._head)])
            self._head = self._head[len(data) :]
            return data
        await self._answered.wait()
        while True:
            if self._thawed is not None:
                self.at_rest.set()
                await self._thawed.wait()
            elif self._rest:
                data = bytes(self._rest[: max_bytes or len(self._rest)])
                self._rest = self._rest[len(data) :]
                self.scanner.feed(data)
                return data
            else:
                self._receiving_since = trio.current_time()
                with trio.CancelScope() as scope:
                    self._waits.add(scope)
                    try:
                        received = await self._stream.receive_some(max_bytes)
                    finally:
                        self._receiving_since = None
                        self._waits.discard(scope)
                    self.scanner.feed(received)
                    return received

    # -- sending ----------------------------------------------------------------------------------

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        self._answered.set()  # the answer has been made, whenever it arrives
        if self._swallow:
            self._swallow = False
            await trio.lowlevel.checkpoint()
        elif self._thawed is None and not self._unsent and not self._sending.locked():
            async with self._sending:
                await self._send(memoryview(data))
        else:
            self._unsent += data
            await self.flush()

    async def flush(self) -> None:
        """Send what is unsent; nothing while frozen."""
        async with self._sending:
            while self._unsent and self._thawed is None:
                data, self._unsent = self._unsent, bytearray()
                await self._send(memoryview(data))

    async def _send(self, view: memoryview) -> None:
        """Send all of `view`; what a freeze leaves of it becomes unsent."""
        while view:
            if self._thawed is not None:
                self._unsent[:0] = view
                return
            started = self._sending_since = trio.current_time()
            sent = 0
            with trio.CancelScope() as scope:
                self._waits.add(scope)
                try:
                    sent = await self._send_some(view[:_SEND_CHUNK])
                finally:
                    self._sending_since = None
                    self._waits.discard(scope)
            if sent and (now := trio.current_time()) - started > _PROOF_S:
                self._proof_at = now
            view = view[sent:]

    async def _send_some(self, view: memoryview) -> int:
        """How many bytes were sent: none when cancelled, unlike in `SocketStream.send_all`."""
        if not isinstance(self._stream, trio.SocketStream):
            await self._stream.send_all(view)
            return len(view)
        try:
            return await self._stream.socket.send(view)
        except OSError as error:
            raise trio.BrokenResourceError("the connection is gone") from error

    async def wait_send_all_might_not_block(self) -> None:
        await self._stream.wait_send_all_might_not_block()

    async def send_eof(self) -> None:
        await self._stream.send_eof()

    async def aclose(self) -> None:
        if self._left:
            return
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
