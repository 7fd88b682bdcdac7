"""A connection that has left HTTP: its bytes counted both ways, so that it can be handed over.

Bytes read too early come again, silence is noticed, and at any moment the connection can be frozen:
then what was received and what was sent are known to the byte.
"""

import errno
import math
import os
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import Protocol

import trio

from holdoverd.http.scanner import FrameScanner

_SEND_CHUNK = 64 * 1024
# A send that had to wait this long and then went on proves that somebody reads at the other end.
_PROOF_S = 1.0
_LAST_WORDS_S = 1.0
_CLOSE = b"\x88"  # a close frame is always a whole message
_NOTHING = memoryview(b"")


class HalfCloseable(Protocol):
    """What a connection's stream has to be able to do; sockets and memory streams are."""

    async def send_all(self, data: bytes | bytearray | memoryview) -> None: ...
    async def wait_send_all_might_not_block(self) -> None: ...
    async def receive_some(self, max_bytes: int | None = None) -> bytes | bytearray: ...
    async def send_eof(self) -> None: ...
    async def aclose(self) -> None: ...


def _as_stream_error(error: OSError) -> trio.BrokenResourceError | trio.ClosedResourceError:
    """A socket's error as trio's streams tell it."""
    if error.errno in (errno.EBADF, errno.ENOTSOCK):
        return trio.ClosedResourceError("this socket was closed")
    return trio.BrokenResourceError(f"the connection broke: {error}")


def _cut(data: memoryview, max_bytes: int | None) -> tuple[bytes, memoryview]:
    """(at most `max_bytes` of it, the rest); of nothing left, nothing is kept."""
    size = max_bytes or len(data)
    return bytes(data[:size]), data[size:] if len(data) > size else _NOTHING


class Transport(trio.abc.HalfCloseableStream):
    """`stream`, but `head` is received first, and nothing behind it until it was `answered`.

    wsproto (1.3) forgets on the server's side what it receives between a request and its answer,
    so frames that a client sends at once behind its upgrade must be kept from it until then.
    `rest` are the bytes behind the head that were read already.

    `unsent`: for a connection that was upgraded elsewhere. What is sent first, the answer to the
    replayed head, is swallowed then, and `flush` has to be run: it sends `unsent`, and everything
    else waits for that.

    Also keeps what is needed to tell a silent peer from one that we do not listen to. trio's
    clock; closing this closes `stream`.
    """

    def __init__(
        self, stream: HalfCloseable, head: bytes, rest: bytes, *, unsent: bytes | None = None
    ) -> None:
        self._stream = stream
        # SocketStream.send_all, when cancelled, cannot tell how much it has sent.
        self._socket = stream.socket if isinstance(stream, trio.SocketStream) else None
        self._head = memoryview(head)
        self._rest = memoryview(rest) if rest else _NOTHING
        self._swallow = unsent is not None
        self._unsent: list[bytes | memoryview] = [unsent] if unsent else []
        self._flushed = trio.Event() if unsent else None
        self._answered: trio.Event | None = trio.Event()  # None: it has been
        self._receiving_since: float | None = None
        self._sending_since: float | None = None
        self._proof_at = -math.inf
        self.scanner = FrameScanner()
        self._frozen = False
        # While something is being sent that the kernel had no room for at once: others wait here.
        self._congested: trio.Lock | None = None
        # Of what waits in the kernel; all others return by themselves once we are frozen.
        self._receiving: trio.CancelScope | None = None
        self._sending: trio.CancelScope | None = None
        self.parked = False
        """Frozen, and whoever reads has asked for more: it has dealt with all that it got."""
        self._on_parked: Callable[[], None] = lambda: None
        self._close_said = False
        self.last_words: Callable[[], bytes] = lambda: b""
        """Asked when this is closed before a close frame was sent: what to say then."""

    # -- freezing -------------------------------------------------------------------------------

    def freeze(self, on_parked: Callable[[], None]) -> None:
        """Touch the connection no more, for good. Not async, and nothing is lost by it.

        Receiving blocks from now on, which `on_parked` tells; sending returns at once, into `unsent`.
        """
        self._frozen = True
        self._on_parked = on_parked
        for scope in (self._receiving, self._sending):
            if scope is not None:
                scope.cancel()
        if self._flushed is not None:
            self._flushed.set()

    @property
    def received(self) -> bytes:
        """Of a frozen connection: what has to be received again, see `FrameScanner.partial`."""
        return self.scanner.partial + bytes(self._rest)

    @property
    def unsent(self) -> bytes:
        """Of a frozen connection: what was to be sent and was not."""
        return b"".join(self._unsent)

    # -- silence --------------------------------------------------------------------------------

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

    # -- the stream -----------------------------------------------------------------------------

    async def receive_some(self, max_bytes: int | None = None) -> bytes | bytearray:
        if self._head:
            await trio.lowlevel.checkpoint()
            head, self._head = _cut(self._head, max_bytes)
            return head
        if self._answered is not None:
            await self._answered.wait()
        if self._frozen:
            await self._park()
        if self._rest:
            await trio.lowlevel.checkpoint()
            data, self._rest = _cut(self._rest, max_bytes)
        else:
            data = await self._receive(max_bytes)
        self.scanner.feed(data)
        return data

    async def _receive(self, max_bytes: int | None) -> bytes:
        received: bytes | bytearray | None = None
        self._receiving_since = trio.current_time()
        try:
            with trio.CancelScope() as self._receiving:
                received = await self._stream.receive_some(max_bytes)
        finally:
            self._receiving = self._receiving_since = None
        if received is None:
            await self._park()
        return bytes(received or b"")

    async def _park(self) -> None:
        self.parked = True
        self._on_parked()
        await trio.sleep_forever()

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        """What is not sent because the connection was frozen before or meanwhile, is `unsent`."""
        if self._swallow:
            self._swallow = False
            await trio.lowlevel.checkpoint()
            return
        if self._flushed is not None:
            await self._flushed.wait()
        # trio-websocket sends whole frames, one at a time.
        self._close_said = self._close_said or data[:1] == _CLOSE
        if not self._frozen:
            await trio.lowlevel.checkpoint_if_cancelled()
        await self._send(memoryview(data), self._unsent.append)
        if not self._frozen:
            await trio.lowlevel.cancel_shielded_checkpoint()

    async def flush(self) -> None:
        """Send what came as `unsent`. Broken connections are for others to notice."""
        if self._flushed is None:
            return
        try:
            while self._unsent and not self._frozen:
                # Others may have put theirs behind it by the time that it comes back.
                first = memoryview(self._unsent.pop(0))
                await self._send(first, partial(self._unsent.insert, 0))
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            self._unsent.clear()
        finally:
            flushed, self._flushed = self._flushed, None
            flushed.set()

    async def send_frame(self, frame: bytes) -> None:
        """As `send_all`, of a whole frame, but no checkpoint where the kernel has room for it."""
        if self._flushed is None and not self._swallow:
            await self._send(memoryview(frame), self._unsent.append)
        else:
            await self.send_all(frame)

    async def _send(self, view: memoryview, keep: Callable[[memoryview], None]) -> None:
        """Send `view`, or as much of it as goes until this is frozen; the rest is for `keep`.

        In the order of the calls: what is sent is whole frames, and none may begin within another.
        """
        queue = self._congested
        if queue is not None:
            await queue.acquire()
        else:
            if not self._frozen and self._socket is not None:
                # Nearly every frame has room in the kernel, and needs nothing to be cancelled.
                view = view[self._send_nowait(view) :]
                if not view:
                    return
            queue = self._congested = trio.Lock()
            queue.acquire_nowait()
        try:
            with trio.CancelScope() as self._sending:
                while view and not self._frozen:
                    started = self._sending_since = trio.current_time()
                    sent = await self._send_some(view[:_SEND_CHUNK])
                    if (now := trio.current_time()) - started > _PROOF_S:
                        self._proof_at = now
                    view = view[sent:]
        finally:
            # Here, because whoever sends may be cancelled along with us: every byte counts then too.
            self._sending = self._sending_since = None
            if self._frozen and view:
                keep(view)
            if not queue.statistics().tasks_waiting:
                self._congested = None
            queue.release()

    def _send_nowait(self, view: memoryview) -> int:
        """Send what the kernel has room for at once: how much that was."""
        assert self._socket is not None, "in memory, sending waits"
        try:
            return os.write(self._socket.fileno(), view)
        except BlockingIOError:
            return 0
        except OSError as error:
            raise _as_stream_error(error) from error

    async def _send_some(self, view: memoryview) -> int:
        """Send some of it; cancelled, none of it was sent (in memory, where nobody counts, some)."""
        if self._socket is None:
            await self._stream.send_all(view)
            return len(view)
        try:
            return await self._socket.send(view)
        except OSError as error:
            raise _as_stream_error(error) from error

    async def wait_send_all_might_not_block(self) -> None:
        await self._stream.wait_send_all_might_not_block()

    async def send_eof(self) -> None:
        await self._stream.send_eof()

    async def aclose(self) -> None:
        self.answered()
        # In the middle of a frame nothing can be said, and frozen it is another's to close.
        speechless = self._close_said or self._frozen or self._congested or self._flushed
        if self._flushed is not None:
            self._flushed.set()
        if not speechless and (words := self.last_words()):
            with (
                trio.move_on_after(_LAST_WORDS_S),
                suppress(trio.BrokenResourceError, trio.ClosedResourceError),
            ):
                await self._stream.send_all(words)
        await self._stream.aclose()

    def answered(self) -> None:
        """What follows the head may be received now; harmless when said again."""
        if self._answered is not None:
            self._answered.set()
            self._answered = None


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
