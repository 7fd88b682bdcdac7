"""One viewer's WebSocket: frames of a session out, prompts and answers in.

Five tasks, and `ended` that any of them may set; the first reason counts:

    frames    viewer.next_frame -> WebSocket, until the viewer says which code to close with
    reader    WebSocket -> a bounded queue, so that pings are answered while a prompt is stored
    worker    the queue, one frame after the other -> the session service -> ok, page, error
    pulse     a ping every 20 s; a peer silent for 40 s is dropped; is the token still valid?
    (trio-websocket's own reader of bytes)

A stream can be detached in the middle: its bytes stand still, the tasks end between two frames, and
`StreamState` says how another instance, or this one, goes on with the socket.
"""

import base64
import binascii
import logging
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from typing import Literal, TypeVar, cast

import msgspec
import trio
from trio_websocket import ConnectionClosed, WebSocketConnection, wrap_server_stream

from holdoverd.errors import (
    BadRequest,
    Internal,
    NotFound,
    OwnedElsewhere,
    RequestError,
    TooLarge,
    Unavailable,
    Unprocessable,
)
from holdoverd.handover.packed import StreamState
from holdoverd.http import shapes
from holdoverd.http.context import Context, Viewer
from holdoverd.http.frames import (
    FRAME_SCOPES,
    MAX_FRAME_BYTES,
    SUBPROTOCOL,
    ClientFrame,
    FrameError,
    close_reason,
    error_reply,
    parse_frame,
    reply,
)
from holdoverd.http.replay import HalfCloseable, ReplayStream, linger
from holdoverd.http.wire import Head, Request, Upgrade, check_scope, internal_error
from holdoverd.ids import new_id
from holdoverd.sessions.viewer import ViewerClosed

log = logging.getLogger(__name__)

T = TypeVar("T")

PING_EVERY_S = 20.0
SILENT_S = 40.0
HANDSHAKE_S = 10.0
CLOSE_S = 5.0
FINISH_S = 30.0
MAX_HOPS = 20
"""Instances that may come and go while a stream is on its way; then its client reconnects."""

DETACH_S = 2.0
"""How long a stream may take to come to rest; one that works on a frame for longer stays."""

MAX_QUEUED_FRAMES = 64
MAX_QUEUED_CHARS = MAX_FRAME_BYTES
# Pings not yet answered; a peer that never answers is kept alive by its own frames alone.
_MAX_PINGS = 8
_LINGER_BYTES = 64 * 1024 * 1024

GOING_AWAY = (1001, "going away, reconnect now")
NO_SESSION = (4004, "There is no such session, or it is not shared with you.")


async def open_stream(context: Context, request: Request) -> Upgrade:
    """Check everything that can be checked while the answer can still be plain HTTP."""
    head = request.head
    key = _websocket_key(head)
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
        StreamState(
            door=head.door,
            session=request.params["id"],
            key=key,
            caller=request.caller,
            cursor={},
            token=request.token,
        ),
        viewer,
    )
    return Upgrade(_upgrade_head(key), stream.run, stream)


async def attach_stream(context: Context, state: StreamState) -> "Stream":
    """Take up a stream that was detached. Where its session cannot be watched it says so and closes.

    Raises OwnedElsewhere where the connection has to go on to another instance.
    """
    viewer: Viewer | None = None
    refusal = NO_SESSION
    try:
        viewer = await context.sessions.attach_viewer(state.caller, state.session, state.cursor)
    except OwnedElsewhere:
        if state.hops < MAX_HOPS:
            raise
        refusal = GOING_AWAY
    except NotFound:
        pass
    except RequestError as error:
        log.info("a stream comes to an end: %s", error, extra={"session": state.session})
        refusal = GOING_AWAY
    return Stream(context, state, viewer, resumed=True, refusal=refusal)


def _websocket_key(head: Head) -> str:
    """Sec-WebSocket-Key of a valid upgrade (RFC 6455, section 4.2.1); BadRequest otherwise.

    As strict as wsproto, which has no way to tell us that it refused.
    """
    # the key is base64 and keeps its case; the others are tokens
    if head.method != "GET" or "websocket" not in head.tokens(b"upgrade"):
        raise BadRequest("This address speaks WebSocket; connect with the protocol holdover.v1.")
    if "upgrade" not in head.tokens(b"connection"):
        raise BadRequest("The upgrade lacks `Connection: Upgrade`; a proxy may have removed it.")
    if head.header(b"sec-websocket-version") != "13":
        raise BadRequest(
            "WebSocket version 13 is spoken here.", headers={"Sec-WebSocket-Version": "13"}
        )
    key = head.header(b"sec-websocket-key") or ""
    try:
        if len(base64.b64decode(key, validate=True)) != 16:
            raise BadRequest("Sec-WebSocket-Key has to be 16 bytes in base64.")
    except (binascii.Error, ValueError) as exc:
        raise BadRequest("Sec-WebSocket-Key has to be 16 bytes in base64.") from exc
    if SUBPROTOCOL not in head.tokens(b"sec-websocket-protocol"):
        raise BadRequest(f"Offer the subprotocol {SUBPROTOCOL} (Sec-WebSocket-Protocol).")
    if head.header(b"content-length") not in (None, "0") or head.tokens(b"transfer-encoding"):
        raise BadRequest("An upgrade has no body; send frames after the answer 101.")
    return key


def _upgrade_head(key: str) -> bytes:
    """The request as it is told to wsproto: what it needs, and nothing a client could make it trip
    over. Extensions are left out, since compressing every viewer's stream anew costs too much.
    """
    return (
        "GET / HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        f"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: {key}\r\n"
        f"Sec-WebSocket-Protocol: {SUBPROTOCOL}\r\n\r\n"
    ).encode("ascii")


class FrameQueue:
    """Received and not yet done: 64 frames, and 16 MiB beside a first one. For one putter."""

    def __init__(self, frames: Sequence[str | bytes] = ()) -> None:
        self._frames: deque[str | bytes] = deque(frames)
        self._chars = sum(map(len, frames))
        self._bounded = True
        self._closed = False
        self._changed = trio.Event()

    def _signal(self) -> None:
        self._changed.set()
        self._changed = trio.Event()

    def close(self) -> None:
        """Nothing more comes; `get` gives what is left, then raises EndOfChannel."""
        self._closed = True
        self._signal()

    def bound(self, bounded: bool) -> None:
        """Without the bound for a moment: nothing is read meanwhile, so what was read is all."""
        self._bounded = bounded
        self._signal()

    @property
    def closed(self) -> bool:
        return self._closed

    def waiting(self) -> tuple[str | bytes, ...]:
        return tuple(self._frames)

    async def put(self, frame: str | bytes) -> None:
        """Waits for room."""
        while (
            self._bounded
            and self._frames
            and (
                len(self._frames) >= MAX_QUEUED_FRAMES
                or self._chars + len(frame) > MAX_QUEUED_CHARS
            )
        ):
            await self._changed.wait()
        self._frames.append(frame)
        self._chars += len(frame)
        self._signal()

    async def get(self) -> str | bytes:
        while not self._frames:
            if self._closed:
                raise trio.EndOfChannel
            await self._changed.wait()
        frame = self._frames.popleft()
        self._chars -= len(frame)
        self._signal()
        return frame


def _is_too_large(frame: str) -> bool:
    """Over 16 MiB in UTF-8, where a character has at most four bytes."""
    return len(frame) > MAX_FRAME_BYTES // 4 and len(frame.encode()) > MAX_FRAME_BYTES


@dataclass(frozen=True)
class _Ending:
    """Why a stream ends. `code` None: the connection is gone, or as good as."""

    code: int | None
    reason: str = ""


class _Pause:
    """Lets `tasks` tasks come to rest between two things they wait for, and go on again."""

    def __init__(self, tasks: int) -> None:
        self._tasks = tasks
        self._resting = 0
        self._over: trio.Event | None = None
        self._waits: set[trio.CancelScope] = set()

    @property
    def asked(self) -> bool:
        return self._over is not None

    @property
    def all_rest(self) -> bool:
        return self._resting == self._tasks

    def ask(self) -> None:
        self._over = trio.Event()
        for scope in self._waits:
            scope.cancel()

    def over(self) -> None:
        assert self._over is not None
        self._over.set()
        self._over = None

    async def unless_asked(self, get: Callable[[], Awaitable[T]]) -> T:
        """What `get` gives, which must lose nothing when cancelled; not begun during a pause."""
        while True:
            if self._over is not None:
                self._resting += 1
                try:
                    await self._over.wait()
                finally:
                    self._resting -= 1
                continue
            with trio.CancelScope() as scope:
                self._waits.add(scope)
                try:
                    return await get()
                finally:
                    self._waits.discard(scope)


class Stream:
    """A viewer's connection from its upgrade, or from where it was detached, to its end.

    Without a viewer it closes at once, with `refusal`.
    """

    def __init__(
        self,
        context: Context,
        state: StreamState,
        viewer: Viewer | None,
        *,
        resumed: bool = False,
        refusal: tuple[int, str] = NO_SESSION,
    ) -> None:
        self._context = context
        self._state = state
        self._caller = state.caller
        self.session = state.session
        self._viewer = viewer
        self._resumed = resumed
        self._refusal = refusal
        self._queue = FrameQueue(state.messages)
        self._taken = 0  # whole messages that came through the WebSocket library
        self._pause = _Pause(2)  # the tasks `_frames` and `_worker`
        self._serving: ReplayStream | None = None
        self._detached = False
        self._ended = trio.Event()
        self._ending = _Ending(None)
        self._dropped = False  # given up: nobody is there to read a farewell

    @property
    def watches(self) -> bool:
        """A session is being watched through it, or is about to be."""
        return self._viewer is not None

    def end(self, code: int | None, reason: str = "") -> None:
        """Close with `code`; the first one to say so is heard."""
        if not self._ended.is_set():
            self._ending = _Ending(code, reason)
            self._ended.set()

    async def run(self, stream: HalfCloseable, head: bytes, rest: bytes) -> None:
        """Serve the connection to its end, or until it is detached. The caller closes `stream`."""
        state = self._state
        replay = ReplayStream(
            stream,
            head or _upgrade_head(state.key),
            rest or state.received,
            unsent=state.unsent,
            resumed=self._resumed,
        )
        try:
            async with trio.open_nursery() as nursery:
                ws = None
                with trio.move_on_after(HANDSHAKE_S):
                    proposal = await wrap_server_stream(
                        nursery, replay, message_queue_size=1, max_message_size=MAX_FRAME_BYTES
                    )
                    ws = await proposal.accept(subprotocol=SUBPROTOCOL)
                if ws is not None:
                    await self._serve(ws, replay)
                # Nobody reads beside `linger` below.
                nursery.cancel_scope.cancel()
            if not self._dropped and not self._detached:
                await linger(replay, CLOSE_S, _LINGER_BYTES)
        except* ConnectionClosed:
            pass  # the peer went in the middle of the handshake or of a close
        finally:
            if self._viewer is not None:
                self._viewer.close()

    async def detach(self) -> StreamState | None:
        """Stop between two frames and two bytes; the state to go on from, and no close.

        None: it goes on here, since it is not at a point to stop at, or is ending by itself.
        """
        replay, viewer = self._serving, self._viewer
        if replay is None or viewer is None or self._ended.is_set() or self._pause.asked:
            return None
        if self._queue.closed:
            return None  # the client has gone; what it sent last is being done
        replay.freeze()
        self._pause.ask()
        self._queue.bound(False)
        with trio.move_on_after(DETACH_S):
            while not self._ended.is_set() and not replay.scanner.lost:
                # What the WebSocket library had received, it has given to us.
                drained = replay.at_rest.is_set() and replay.scanner.messages == self._taken
                if drained and self._pause.all_rest:
                    received, unsent = replay.leave()
                    self._detached = True
                    self._ended.set()
                    return replace(
                        self._state,
                        cursor=viewer.cursor(),
                        received=received,
                        unsent=unsent,
                        messages=self._queue.waiting(),
                        hops=0,
                    )
                await trio.sleep(0.001)
        self._queue.bound(True)
        self._pause.over()
        await replay.thaw()
        return None

    async def _serve(self, ws: WebSocketConnection, replay: ReplayStream) -> None:
        """Run the tasks until one of them ends the stream, then close with its code."""
        viewer = self._viewer
        if viewer is None:
            await replay.flush()
            self.end(*self._refusal)
            await self._close(ws)
            return
        with self._context.streams.registered(self._caller.token_id, self.end):
            async with trio.open_nursery() as tasks:
                tasks.start_soon(self._guarded, partial(self._frames, ws, viewer, replay))
                tasks.start_soon(self._guarded, partial(self._reader, ws))
                tasks.start_soon(self._guarded, partial(self._worker, ws, viewer))
                tasks.start_soon(self._guarded, partial(self._pulse, ws, replay, tasks))
                self._serving = replay
                await self._ended.wait()
                self._serving = None
                # Before the others are cancelled: one may be in the middle of sending a frame.
                if not self._detached:
                    await self._close(ws)
                tasks.cancel_scope.cancel()

    async def _close(self, ws: WebSocketConnection) -> None:
        """Tell the peer why, if it is still there; give up after a deadline."""
        if self._ending.code is not None:
            with trio.move_on_after(CLOSE_S):
                await ws.aclose(self._ending.code, close_reason(self._ending.reason))

    async def _guarded(self, task: Callable[[], Awaitable[None]]) -> None:
        """A task of one connection ends that connection when it fails, and nothing else."""
        try:
            await task()
        except ConnectionClosed:
            self.end(None)
        except Exception:
            self.end(1011, self._logged("the stream failed, closing it").message)

    def _logged(self, what: str) -> Internal:
        """Log the exception being handled; what a client may hear of it."""
        error_id = new_id("e")
        log.exception(what, extra={"session": self.session, "error_id": error_id})
        return internal_error(error_id)

    # -- tasks ----------------------------------------------------------------------------------

    async def _frames(self, ws: WebSocketConnection, viewer: Viewer, replay: ReplayStream) -> None:
        send, next_frame = ws.send_message, viewer.next_frame
        try:
            await replay.flush()  # of a stream that goes on: what was said and not sent
            while True:
                await send(await self._pause.unless_asked(next_frame))
        except ViewerClosed as closed:
            self.end(closed.code, closed.reason)
        except ConnectionClosed:
            return  # the reader sees it too, and lets what was received be done first

    async def _reader(self, ws: WebSocketConnection) -> None:
        try:
            while True:
                message = await ws.get_message()
                self._taken += 1
                # trio-websocket's bound counts characters; the wire's counts bytes.
                if isinstance(message, str) and _is_too_large(message):
                    self.end(1009, f"A frame has at most {MAX_FRAME_BYTES} bytes.")
                    return
                await self._queue.put(message)
        except ConnectionClosed:
            # The worker ends the stream once it has done what came before: a prompt sent in
            # passing counts. A worker that hangs does not keep the connection for ever.
            self._queue.close()
            await trio.sleep(FINISH_S)
            self.end(None)

    async def _worker(self, ws: WebSocketConnection, viewer: Viewer) -> None:
        while True:
            try:
                message = await self._pause.unless_asked(self._queue.get)
            except trio.EndOfChannel:
                self.end(None)
                return
            answer = await self._handle(message, viewer)
            with suppress(ConnectionClosed):
                await ws.send_message(answer)

    async def _pulse(
        self, ws: WebSocketConnection, replay: ReplayStream, tasks: trio.Nursery
    ) -> None:
        count = 0
        next_ping = trio.current_time() + PING_EVERY_S
        while True:
            await trio.sleep_until(min(next_ping, replay.silent_at(SILENT_S)))
            now = trio.current_time()
            if now >= replay.silent_at(SILENT_S):
                self._dropped = True
                self.end(None)
                return
            if now >= next_ping:
                next_ping = now + PING_EVERY_S
                # Not cancelled by a deadline: half a frame on the wire would spoil the rest.
                tasks.start_soon(self._ping, ws, b"%d" % (count % _MAX_PINGS))
                count += 1
                await self._check_token()

    async def _ping(self, ws: WebSocketConnection, payload: bytes) -> None:
        # ValueError: the ping before with this payload was never answered; enough are out.
        with suppress(ConnectionClosed, ValueError):
            await ws.ping(payload)

    async def _check_token(self) -> None:
        """Another instance may have revoked it, or it has expired."""
        token = self._state.token
        if token is None:
            return
        with suppress(Unavailable):  # a catalogue that hiccups is no reason to throw anyone out
            if await self._context.authenticate(token) is None:
                self.end(4001, "The token is no longer valid; log in again.")

    # -- frames from the client -----------------------------------------------------------------

    async def _handle(self, message: str | bytes, viewer: Viewer) -> str:
        """The answer to one frame."""
        ref: str | None = None
        try:
            frame = parse_frame(message)
            ref = frame.ref
            check_scope(self._caller, FRAME_SCOPES[frame.type])
            answer = await self._do(frame, viewer)
            if _is_too_large(answer):
                raise TooLarge(
                    "The page is over 16 MiB, which no frame may be; get it by HTTP from"
                    " …/messages?page=N."
                )
            return answer
        except FrameError as unreadable:
            return error_reply(unreadable.error, unreadable.ref)
        except RequestError as error:
            return error_reply(error, ref)
        except Exception:
            return error_reply(self._logged("a frame failed, answering with an error"), ref)

    async def _do(self, frame: ClientFrame, viewer: Viewer) -> str:
        service, caller, session = self._context.sessions, self._caller, self.session
        data, ref = frame.data, frame.ref
        match frame.type:
            case "ping":
                return reply("pong", ref)
            case "page":
                fields = shapes.Fields(data)
                thread = fields.text("thread", max_chars=200) or "main"
                number = fields.integer("page", required=True) or 0
                epoch = fields.text("epoch", max_chars=200)
                page = await service.page(caller, session, thread, number, epoch)
                return reply("page", ref, page.json_text)
            case "subscribe":
                fields = shapes.Fields(data)
                thread = fields.text("thread", required=True, max_chars=200) or "main"
                # No checkpoint between this and the sending of `ok`: it has to go first.
                viewer.subscribe(thread, fields.integer("after_n"))
                return reply("ok", ref)
            case "prompt":
                spec = shapes.prompt(data, shapes.MAX_STREAM_PROMPT_BYTES)
                _, body = await service.prompt(caller, session, spec)
            case "answer":
                body = await service.answer(caller, session, shapes.answer(data))
            case "interrupt":
                body = await service.interrupt(
                    caller, session, cancel_queued=shapes.cancel_queued(data)
                )
            case "set":
                changes = shapes.session_changes(data)
                if not changes or not changes.keys() <= {"model", "permission_mode"}:
                    raise Unprocessable("`set` changes `model` or `permission_mode`; send either.")
                return reply("ok", ref, await service.patch(caller, session, changes))
            case other:
                raise AssertionError(f"frames.FRAME_SCOPES knows {other!r} and this does not")
        return reply("ok", ref, msgspec.json.encode(body).decode())
