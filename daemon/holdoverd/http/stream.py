"""One viewer's WebSocket: frames of a session out, prompts and answers in.

Five things go on, and `ended` that any of them may set; the first reason counts. Each is a task,
but the pulse, which is what the stream's own task does:

    frames    viewer.next_frame -> WebSocket, until the viewer says which code to close with
    reader    WebSocket -> a bounded queue, so that pings are answered while a prompt is stored
    worker    the queue, one frame after the other -> the session service -> ok, page, error
    pulse     a ping every 20 s; a peer silent for 40 s is dropped; is the token still valid?
    flush     what another instance had begun to send, where the stream comes from one
    (trio-websocket's own reader of bytes)

A stream can be detached: the worker finishes the frame that it is at, then the transport is frozen
and everything that has been received drains into the queue, everything said into the transport.
All of that is a matter of a few turns of the loop. What is left is a record (`StreamState`), from
which another instance, or this one, goes on.
"""

import logging
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from typing import Literal, cast

import trio
from trio_websocket import ConnectionClosed, WebSocketConnection, wrap_server_stream

from holdoverd.callers import Caller
from holdoverd.errors import (
    NotFound,
    OwnedElsewhere,
    RequestError,
    Unavailable,
)
from holdoverd.handover.packed import Door, StreamState
from holdoverd.http import shapes
from holdoverd.http.answering import answer_frame, logged
from holdoverd.http.context import Context, Viewer
from holdoverd.http.frame_queue import FrameQueue
from holdoverd.http.frames import (
    MAX_FRAME_BYTES,
    SUBPROTOCOL,
    close_frame,
    close_reason,
    is_too_large,
    text_frame,
)
from holdoverd.http.transport import HalfCloseable, Transport, linger
from holdoverd.http.upgrade import upgrade_head, websocket_key
from holdoverd.http.wire import Request, Upgrade
from holdoverd.sessions.spool import Wake
from holdoverd.sessions.viewer import (
    CLOSE_GOING_AWAY,
    ViewerClosed,
    ViewerCursor,
    ViewerDetached,
)

log = logging.getLogger(__name__)

PING_EVERY_S = 20.0
SILENT_S = 40.0
HANDSHAKE_S = 10.0
CLOSE_S = 5.0
FINISH_S = 30.0
DETACH_S = 2.0
"""How long a stream that is to be detached may take for the frame it is answering."""

DRAIN_S = 5.0
"""A few turns of the loop; longer is a defect, or a machine that stands still."""

ATTACH_S = 5.0
"""How long a stream that has come waits for its session, which comes as well."""

ATTACH_AGAIN_S = 0.05
MAX_HOPS = 20
"""Instances that may come and go while a stream is on its way; then its client reconnects."""

# Pings not yet answered; a peer that never answers is kept alive by its own frames alone.
_MAX_PINGS = 8
_LINGER_BYTES = 64 * 1024 * 1024

PEERS_FAULTS = (1002, 1007)
"""What wsproto says of bytes that are no WebSocket, and of text that is not UTF-8."""

NO_SESSION = (4004, "There is no such session, or it is not shared with you.")


async def open_stream(context: Context, request: Request) -> Upgrade:
    """Check everything that can be checked while the answer can still be plain HTTP."""
    head = request.head
    key = websocket_key(head)
    after, epoch = shapes.query_cursor(request.query)
    threads = shapes.query_choice(request.query, "threads", ("all", "main")) or "all"
    viewer: Viewer | None = None
    with suppress(NotFound):
        viewer = await context.sessions.open_viewer(
            request.caller,
            request.params["id"],
            after=after,
            epoch=epoch,
            threads=cast(Literal["all", "main"], threads),
        )
    stream = Stream(
        context,
        door=head.door,
        session=request.params["id"],
        key=key,
        caller=request.caller,
        token=request.token,
        viewer=viewer,
    )
    return Upgrade(stream)


def _last_words(ws: WebSocketConnection) -> bytes:
    """The close frame for a peer that broke the protocol: trio-websocket (0.12.2) knows the code by
    then, and hangs up without it (RFC 6455, section 7.1.7: it should be sent)."""
    closed = ws.closed
    if closed is None or closed.code not in PEERS_FAULTS:
        return b""
    return close_frame(closed.code, closed.reason or "")


@dataclass(frozen=True)
class _Ending:
    """Why a stream ends. `code` None: the connection is gone, or as good as."""

    code: int | None
    reason: str = ""


class Stream:
    """A viewer's connection from the upgrade to its end. Without a viewer: 4004 at once.

    `resumed`: it was upgraded before, and detached; its viewer is asked for when it is run.
    """

    def __init__(
        self,
        context: Context,
        *,
        door: Door,
        session: str,
        key: str,
        caller: Caller,
        token: str | None,
        viewer: Viewer | None = None,
        resumed: StreamState | None = None,
    ) -> None:
        self._context = context
        self.session = session
        self.left: StreamState | None = None
        self.passed_to: int | None = None
        self._door: Door = door
        self._key = key
        self._caller = caller
        self._token = token
        self._viewer = viewer
        self._resumed = resumed
        self._queue = FrameQueue(resumed.messages if resumed is not None else ())
        self._ended = trio.Event()
        self._ending = _Ending(None)
        self._dropped = False  # given up: nobody is there to read a farewell
        # -- for detaching
        self._transport: Transport | None = None  # once it serves frames
        self._serving = False
        self._finished = False
        self._detaching = False
        self._frozen = False
        self._leaving: tuple[ViewerCursor, tuple[str | bytes, ...]] | None = None
        self._farewell = False  # the viewer has said its last, and the rest is being sent
        self._handling = False  # the worker, in the middle of a frame
        self._gone = False  # nothing more can be received
        self._taken = 0  # whole messages from the WebSocket
        self._no_more_frames = False
        self._moved = Wake()  # whenever one of these has changed

    @classmethod
    def resume(cls, context: Context, state: StreamState) -> "Stream":
        """Go on with a stream that was detached, here or elsewhere."""
        return cls(
            context,
            door=state.door,
            session=state.session,
            key=state.key,
            caller=state.caller,
            token=state.token,
            resumed=state,
        )

    def end(self, code: int | None, reason: str = "") -> None:
        """Close with `code`; the first one to say so is heard.

        Not any more once the stream is on its way: whoever gets it looks for reasons himself.
        """
        if not self._ended.is_set() and not self._frozen:
            self._ending = _Ending(code, reason)
            self._ended.set()

    async def run(self, stream: HalfCloseable, rest: bytes) -> None:
        """Serve the connection to its end, or until it is detached. Does not close it.

        `rest` are bytes that were read too early.
        """
        resumed = self._resumed
        try:
            if resumed is not None:
                await self._attach_viewer(resumed)
                if self.left is not None:
                    return
                rest = resumed.received + rest
            transport = Transport(
                stream,
                upgrade_head(self._key),
                rest,
                unsent=resumed.unsent if resumed is not None else None,
            )
            await self._run(transport)
            if self._leaving is not None:
                self.left = self._state(transport, *self._leaving)
        except* ConnectionClosed:
            pass  # the peer went in the middle of the handshake or of a close
        finally:
            if self._viewer is not None:
                self._viewer.close()
            self._gone = True
            self._finished = True
            self._serving = True
            self._moved.ring()

    async def _run(self, transport: Transport) -> None:
        async with trio.open_nursery() as nursery:
            ws = None
            with trio.move_on_after(HANDSHAKE_S):
                proposal = await wrap_server_stream(
                    nursery, transport, message_queue_size=1, max_message_size=MAX_FRAME_BYTES
                )
                ws = await proposal.accept(subprotocol=SUBPROTOCOL)
            if ws is not None:
                transport.last_words = partial(_last_words, ws)
                transport.answered()
                nursery.start_soon(transport.flush)
                await self._serve(ws, transport)
            # Nobody reads beside `linger` below.
            nursery.cancel_scope.cancel()
        if not self._dropped and not self._frozen:
            await linger(transport, CLOSE_S, _LINGER_BYTES)

    async def _attach_viewer(self, resumed: StreamState) -> None:
        """Find the session, which may be on its way here as well, or gone again."""
        deadline = trio.current_time() + ATTACH_S
        while True:
            try:
                self._viewer = await self._context.sessions.attach_viewer(
                    self._caller, self.session, resumed.cursor
                )
                return
            except NotFound:
                return
            except OwnedElsewhere as elsewhere:
                if self._context.router is not None and resumed.hops < MAX_HOPS:
                    self.passed_to = elsewhere.generation
                    self.left = replace(resumed, hops=resumed.hops + 1)
                    return
                error: RequestError = elsewhere
            except Unavailable as unavailable:
                error = unavailable
            except Exception:
                self.end(1011, logged(self.session, "a stream cannot go on, closing it").message)
                return
            if trio.current_time() > deadline:
                log.warning("closing a stream: %s", error, extra={"session": self.session})
                self.end(*CLOSE_GOING_AWAY)
                return
            await trio.sleep(ATTACH_AGAIN_S)

    async def _serve(self, ws: WebSocketConnection, transport: Transport) -> None:
        """Run the tasks until one of them ends the stream, then close with its code."""
        viewer = self._viewer
        if viewer is None:
            self.end(*NO_SESSION)
            await self._close(ws)
            return
        self._transport = transport
        with self._context.streams.registered(self._caller.token_id, self.end):
            async with trio.open_nursery() as tasks:
                tasks.start_soon(self._guarded, self._frames, ws, transport, viewer)
                tasks.start_soon(self._guarded, self._reader, ws)
                tasks.start_soon(self._guarded, self._worker, ws, transport, viewer)
                self._serving = True
                self._moved.ring()
                await self._pulse(ws, transport, tasks)
                # Before the others are cancelled: one may be in the middle of sending a frame.
                await self._close(ws)
                tasks.cancel_scope.cancel()

    async def _close(self, ws: WebSocketConnection) -> None:
        """Tell the peer why, if it is still there; give up after a deadline."""
        if self._ending.code is not None:
            with trio.move_on_after(CLOSE_S):
                await ws.aclose(self._ending.code, close_reason(self._ending.reason))

    # -- detaching ------------------------------------------------------------------------------

    @property
    def watches(self) -> bool:
        """A session is being watched through it, or is about to be."""
        return self._viewer is not None or self._resumed is not None

    @property
    def ending(self) -> bool:
        """It will be over in seconds, and cannot be detached any more."""
        return (
            self._ended.is_set()
            or self._gone
            or self._farewell
            or (self._transport is not None and self._transport.scanner.over)
        )

    async def detach(self) -> bool:
        """Let go of the connection: see `wire.Upgraded`."""
        left = False
        if self._detaching:
            return False
        self._detaching = True
        try:
            with trio.move_on_after(DETACH_S):
                while not self._serving:
                    await self._moved.wait_rung()
                # What is being done cannot be undone, nor done twice: it is waited for. Nothing has
                # been touched until then, so nothing has to be taken back.
                self._queue.hold()
                while self._handling and not self._gone:
                    await self._moved.wait_rung()
                left = await self._let_go()
        finally:
            self._queue.release()
            self._detaching = False
        return left

    async def _let_go(self) -> bool:
        transport, viewer = self._transport, self._viewer
        if self.ending or transport is None or viewer is None:
            return False
        if transport.scanner.too_large:
            self.end(1009, f"A frame has at most {MAX_FRAME_BYTES} bytes.")
            return False
        # No checkpoint from here to the freezing.
        cursor = viewer.detach()
        if cursor is None:
            self._farewell = True
            return False
        with trio.CancelScope(shield=True):
            self._frozen = True
            transport.freeze(self._moved.ring)
            self._queue.take_all()
            with trio.move_on_after(DRAIN_S) as draining:
                while not self._gone and not (
                    transport.parked
                    and self._taken == transport.scanner.messages
                    and self._no_more_frames
                ):
                    await self._moved.wait_rung()
                if not self._gone:
                    await self._queue.wait_getting()
            if self._gone:
                # The peer went at that very moment, or spoke nonsense: what came before is done,
                # as ever, and nobody is there to be told.
                self._frozen = False
                self._dropped = True
            else:
                if draining.cancelled_caught:
                    log.error(
                        "cannot detach a stream, dropping it", extra={"session": self.session}
                    )
                    self._dropped = True
                else:
                    self._leaving = (cursor, self._queue.frames())
                self._ended.set()
                while not self._finished:
                    await self._moved.wait_rung()
        return self.left is not None

    def _state(
        self, transport: Transport, cursor: ViewerCursor, messages: tuple[str | bytes, ...]
    ) -> StreamState:
        return StreamState(
            door=self._door,
            session=self.session,
            key=self._key,
            caller=self._caller,
            token=self._token,
            cursor=cursor,
            received=transport.received,
            unsent=transport.unsent,
            messages=messages,
        )

    async def _guarded(self, task: Callable[..., Awaitable[None]], *args: object) -> None:
        """A task of one connection ends that connection when it fails, and nothing else."""
        try:
            await task(*args)
        except ConnectionClosed:
            self.end(None)
        except Exception:
            self.end(1011, logged(self.session, "the stream failed, closing it").message)

    # -- tasks ----------------------------------------------------------------------------------

    async def _frames(self, ws: WebSocketConnection, transport: Transport, viewer: Viewer) -> None:
        next_frame = viewer.next_frame
        try:
            while True:
                await self._say(ws, transport, await next_frame())
        except ViewerClosed as closed:
            self.end(closed.code, closed.reason)
        except ViewerDetached:
            self._no_more_frames = True
            self._moved.ring()
        except ConnectionClosed:
            return  # the reader sees it too, and lets what was received be done first

    async def _say(self, ws: WebSocketConnection, transport: Transport, text: str) -> None:
        """Send a frame; no checkpoint where the kernel has room. Raises ConnectionClosed."""
        if not self._ended.is_set() and not transport.scanner.over:
            try:
                await transport.send_frame(text_frame(text))
                return
            except (trio.BrokenResourceError, trio.ClosedResourceError):
                pass  # trio-websocket has to find out as well
        await ws.send_message(text)

    async def _reader(self, ws: WebSocketConnection) -> None:
        try:
            while True:
                message = await ws.get_message()
                # trio-websocket's bound counts characters; the wire's counts bytes.
                if isinstance(message, str) and is_too_large(message):
                    self.end(1009, f"A frame has at most {MAX_FRAME_BYTES} bytes.")
                    return
                await self._queue.put(message)
                self._taken += 1
                self._moved.ring()
        except ConnectionClosed:
            self._gone = True
            self._moved.ring()
            # The worker ends the stream once it has done what came before: a prompt sent in
            # passing counts. A worker that hangs does not keep the connection for ever.
            self._queue.close()
            await trio.sleep(FINISH_S)
            self.end(None)

    async def _worker(self, ws: WebSocketConnection, transport: Transport, viewer: Viewer) -> None:
        while True:
            try:
                message = await self._queue.get()
            except trio.EndOfChannel:
                self.end(None)
                return
            self._handling = True
            answer = await answer_frame(self._context, self._caller, self.session, viewer, message)
            self._handling = False
            self._moved.ring()
            with suppress(ConnectionClosed):
                await self._say(ws, transport, answer)

    async def _pulse(
        self, ws: WebSocketConnection, transport: Transport, tasks: trio.Nursery
    ) -> None:
        """Until the stream ends, for which this is a reason: a peer that says nothing."""
        if self._resumed is not None:
            # Revoked while it was nobody's, the token closed nothing.
            tasks.start_soon(self._guarded, self._check_token)
        count = 0
        next_ping = trio.current_time() + PING_EVERY_S
        while not self._ended.is_set():
            with trio.move_on_at(min(next_ping, transport.silent_at(SILENT_S))):
                await self._ended.wait()
                return
            now = trio.current_time()
            if now >= transport.silent_at(SILENT_S):
                self._dropped = True
                self.end(None)
            elif now >= next_ping:
                next_ping = now + PING_EVERY_S
                # Not cancelled by a deadline: half a frame on the wire would spoil the rest.
                tasks.start_soon(self._ping, ws, b"%d" % (count % _MAX_PINGS))
                count += 1
                tasks.start_soon(self._guarded, self._check_token)

    async def _ping(self, ws: WebSocketConnection, payload: bytes) -> None:
        # ValueError: the ping before with this payload was never answered; enough are out.
        with suppress(ConnectionClosed, ValueError):
            await ws.ping(payload)

    async def _check_token(self) -> None:
        """Another instance may have revoked it, or it has expired."""
        token = self._token
        if token is None:
            return
        with suppress(Unavailable):  # a catalogue that hiccups is no reason to throw anyone out
            if await self._context.authenticate(token) is None:
                self.end(4001, "The token is no longer valid; log in again.")
