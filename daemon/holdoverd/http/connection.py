"""One HTTP/1.1 connection: requests in, answers out, one after the other. h11 does the parsing."""

import logging
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from email.utils import formatdate

import h11
import trio

from holdoverd.errors import BadRequest, OwnedElsewhere, RequestError, TooLarge
from holdoverd.handover.packed import Door, HttpState, StreamState
from holdoverd.http.app import App
from holdoverd.http.stream import Stream
from holdoverd.http.transport import HalfCloseable, linger
from holdoverd.http.wire import (
    Response,
    Upgrade,
    Upgraded,
    error_response,
    internal_error,
    parse_head,
)
from holdoverd.ids import new_id

log = logging.getLogger(__name__)

_CHUNK = 16 * 1024  # read at once; together with the head's bound it bounds what h11 buffers
_SEND_CHUNK = 64 * 1024
_MAX_BODY_EVENTS = 10_000

MAX_HOPS = 3
"""One is enough while a session stays where it is; it can move while its connection is on its way."""


@dataclass(frozen=True)
class Limits:
    """What one connection may cost. Times in seconds.

    `send_s` is for each 64 KiB of an answer, not for the whole of it. `linger_*`: how long, and
    how much, is read on after a refusal so that the refusal arrives.
    """

    head_bytes: int = 16 * 1024
    head_lines: int = 100
    body_bytes: int = 1024 * 1024
    head_s: float = 60.0
    idle_s: float = 75.0
    body_s: float = 30.0
    send_s: float = 30.0
    linger_s: float = 2.0
    linger_bytes: int = 16 * 1024 * 1024


class HeadTooLarge(BadRequest):
    """RFC 6585, section 5; the wire's code stays `bad_request`."""

    status = 431


class _PassOn(Exception):
    """The request is another instance's to answer."""

    def __init__(self, generation: int) -> None:
        self.generation = generation


class _PeerGoneError(Exception):
    """The peer closed, or does not read; there is nobody to answer."""


class HttpConnection:
    """Serves one connection until either side has had enough. The caller closes the stream.

    `closing()` tells whether this instance wants connections gone: then every answer says
    ``Connection: close``.
    """

    def __init__(
        self,
        stream: HalfCloseable,
        app: App,
        *,
        door: Door,
        peer: str,
        limits: Limits,
        closing: Callable[[], bool],
        begun: HttpState | StreamState | None = None,
    ) -> None:
        self._stream = stream
        self._app = app
        self._door: Door = door
        self._peer = peer
        self._limits = limits
        self._closing = closing
        self._hops = begun.hops if isinstance(begun, HttpState) else 0
        # What was received and belongs to no answered request; the h11 below has seen all of it.
        self._received = b""
        self._begun = begun.received if isinstance(begun, HttpState) else b""
        self._h11 = h11.Connection(h11.SERVER, max_incomplete_event_size=limits.head_bytes)
        self._method = b""  # of the request being served
        self._trusted = True
        self._idle: trio.CancelScope | None = None
        self._between: trio.CancelScope | None = None  # around what may be left at any moment
        self._settled: trio.Event | None = None  # whether `detach` came in time
        self._upgraded: Upgraded | None = None
        if isinstance(begun, StreamState):
            self._upgraded = Stream.resume(app.context, begun)
        self.left: HttpState | StreamState | None = None
        """What it was detached with; None where it came to its end here."""
        self.pass_to: int | None = None
        """The generation that has to answer what it was detached with."""
        self.over = trio.Event()

    @property
    def watching(self) -> str | None:
        """The session that is watched through this connection."""
        stream = self._upgraded
        return stream.session if stream is not None and stream.watches else None

    @property
    def ending(self) -> bool:
        """It will be gone in seconds, and cannot be detached any more."""
        return self.over.is_set() or (self._upgraded is not None and self._upgraded.ending)

    @property
    def between_requests(self) -> bool:
        """It can be detached: no request is being answered."""
        return self._between is not None

    def leave_if_idle(self) -> None:
        """Close the connection now if it waits for a next request, else leave it alone."""
        if self._idle is not None:
            self._idle.cancel()

    async def detach(self) -> HttpState | StreamState | None:
        """Stop, and tell from where another can go on; the socket stays open.

        None: it is in the middle of an answer, or about to end. Ask again later.
        """
        if self._upgraded is not None:
            if not await self._upgraded.detach():
                return None
        elif self._between is not None:
            self._settled = trio.Event()
            self._between.cancel()
            await self._settled.wait()
            if self.left is None:
                return None  # a request was whole already
        else:
            return None
        await self.over.wait()
        return self.left

    async def run(self) -> None:
        """Serve until the end, or until it is detached. Never raises for what the peer does."""
        try:
            with suppress(_PeerGoneError):
                if self._upgraded is not None:
                    await self._serve_upgraded(self._upgraded, b"")
                    return
                first = True
                while await self._serve_one(first):
                    first = False
                if self._upgraded is not None:
                    rest, self._received = self._received, b""
                    # Somebody may watch for days: what HTTP needed is not kept beside it.
                    del self._h11
                    await self._serve_upgraded(self._upgraded, rest)
        except _PassOn as elsewhere:
            self.pass_to = elsewhere.generation
        finally:
            self.over.set()

    async def _serve_upgraded(self, upgraded: Upgraded, rest: bytes) -> None:
        await upgraded.run(self._stream, rest)
        self.left, self.pass_to = upgraded.left, upgraded.passed_to

    async def _serve_one(self, first: bool) -> bool:
        """Serve one request; True when another may follow."""
        try:
            request = await self._next_request(first)
            if request is None:
                return False
            answer = await self._answer(request)
        except RequestError as error:
            answer = error_response(error)
        except h11.RemoteProtocolError as error:
            answer = error_response(_translated(error))
        if isinstance(answer, Upgrade):
            self._received = bytes(self._h11.trailing_data[0])
            self._upgraded = answer.stream
            return False
        await self._send(answer)
        if self._h11.our_state is h11.DONE and self._h11.their_state is h11.DONE:
            self._begin_next()
            return True
        await linger(self._stream, self._limits.linger_s, self._limits.linger_bytes)
        return False

    def _begin_next(self) -> None:
        """Be ready for another request, with what of it came already."""
        self._hops = 0
        self._received = b""
        begun = bytes(self._h11.trailing_data[0])
        if begun[:1] in (b"\r", b"\n"):
            # h11 does not pass over empty lines, and cannot be made to forget them.
            self._h11 = h11.Connection(
                h11.SERVER, max_incomplete_event_size=self._limits.head_bytes
            )
            self._take(begun)
        else:
            self._h11.start_next_cycle()
            self._received = begun

    # -- in -------------------------------------------------------------------------------------

    async def _receive(self) -> None:
        try:
            data = await self._stream.receive_some(_CHUNK)
        except (trio.BrokenResourceError, trio.ClosedResourceError) as exc:
            raise _PeerGoneError from exc
        self._take(bytes(data))

    def _take(self, data: bytes) -> None:
        # Of a body, nothing is kept: a request that has begun to be answered stays here.
        if self._h11.their_state is h11.IDLE:
            if data and not self._received:
                # RFC 9112, section 2.2: some clients end a body with an empty line too many.
                data = data.lstrip(b"\r\n")
                if not data:
                    return  # and not the end, which h11 would take it for
            self._received += data
        self._h11.receive_data(data)

    async def _next_request(self, first: bool) -> h11.Request | None:
        """The next head; None when the peer closed, stayed idle for too long, or we are detached."""
        if self._begun:
            begun, self._begun = self._begun, b""
            self._take(begun)
        try:
            with trio.CancelScope() as between:
                self._between = between
                try:
                    return await self._wait_request(first)
                finally:
                    self._between = None
            # Cancelled by `detach`, before anything of the request was done.
            self.left = HttpState(self._door, self._received, self._hops)
            return None
        finally:
            if self._settled is not None:
                self._settled.set()

    async def _wait_request(self, first: bool) -> h11.Request | None:
        if not first and not self._h11.trailing_data[0]:
            if self._closing():
                return None
            # A connection without a request is owed nothing: closed without a word.
            with trio.move_on_after(self._limits.idle_s) as self._idle:
                await self._receive()
            idle, self._idle = self._idle, None
            if idle.cancelled_caught:
                return None
        with trio.move_on_after(self._limits.head_s):
            while (event := self._h11.next_event()) is h11.NEED_DATA:
                await self._receive()
            if isinstance(event, h11.ConnectionClosed):
                return None
            assert isinstance(event, h11.Request), f"h11 gave {event!r} between requests"
            self._method = event.method
            return event
        if not self._h11.trailing_data[0]:
            return None
        raise BadRequest(
            f"The request's head did not come within {self._limits.head_s:g} s; send it at once."
        )

    def _check_framing(self, request: h11.Request) -> int:
        """The body's declared length, 0 when there is none or it comes in chunks."""
        lines = len(request.headers)
        size = len(request.method) + len(request.target) + 12
        size += sum(len(name) + len(value) + 4 for name, value in request.headers)
        if size > self._limits.head_bytes or lines > self._limits.head_lines:
            raise HeadTooLarge(
                f"The request's head has {size} bytes in {lines} lines; at most"
                f" {self._limits.head_bytes} in {self._limits.head_lines} are read."
            )
        if request.http_version not in (b"1.0", b"1.1"):
            raise BadRequest("This is not HTTP/1.1; speak HTTP/1.1.")
        names = [name for name, _ in request.headers]
        if b"transfer-encoding" in names and b"content-length" in names:
            # RFC 9112, section 6.3: two lengths are what request smuggling is made of.
            raise BadRequest("The request has both Content-Length and Transfer-Encoding; send one.")
        length = next((v for name, v in request.headers if name == b"content-length"), b"0")
        return int(length)

    async def _answer(self, request: h11.Request) -> Response | Upgrade:
        """Judge, read the body, have it answered. A defect of ours becomes a 500 with an id."""
        self._trusted = False  # that its body ends where we think, until the framing is sound
        length = self._check_framing(request)
        self._trusted = True
        head = parse_head(
            request.method,
            request.target,
            [(name, value) for name, value in request.headers],
            door=self._door,
            peer=self._peer,
        )
        try:
            admitted = await self._app.admit(head)
            if length > self._limits.body_bytes:
                raise self._too_large()
            body = await self._read_body()
            return await self._app.answer(admitted, body)
        except OwnedElsewhere as elsewhere:
            if not self._app.context.router or self._hops >= MAX_HOPS:
                raise
            # Only an upgrade gets here, and that has no body: all of it can be said again.
            self.left = HttpState(
                self._door, _said_again(request) + self._h11.trailing_data[0], self._hops + 1
            )
            raise _PassOn(elsewhere.generation) from None
        except (RequestError, h11.RemoteProtocolError, _PeerGoneError):
            raise
        except Exception:
            error_id = new_id("e")
            log.exception(
                "%s %s failed", head.method, "/".join(head.segments), extra={"error_id": error_id}
            )
            return error_response(internal_error(error_id))

    def _too_large(self) -> TooLarge:
        return TooLarge(
            f"The request's body is over {self._limits.body_bytes} bytes; long prompts go through"
            " the stream, and files to storage."
        )

    async def _read_body(self) -> bytes:
        parts: list[bytes] = []
        size = 0
        with trio.move_on_after(self._limits.body_s):
            while True:
                event = self._h11.next_event()
                if event is h11.NEED_DATA:
                    if self._h11.they_are_waiting_for_100_continue:
                        go_on = h11.InformationalResponse(status_code=100, headers=[])
                        await self._send_bytes(self._h11.send(go_on) or b"")
                    await self._receive()
                elif isinstance(event, h11.Data):
                    size += len(event.data)
                    if size > self._limits.body_bytes:
                        raise self._too_large()
                    parts.append(bytes(event.data))
                    # A chunk of one byte costs as much as one of a megabyte.
                    if len(parts) > _MAX_BODY_EVENTS:
                        raise BadRequest("The body comes in too many chunks; send larger ones.")
                elif isinstance(event, h11.EndOfMessage):
                    return b"".join(parts)
                else:
                    raise _PeerGoneError
        raise BadRequest(
            f"The request's body did not come within {self._limits.body_s:g} s; send it again."
        )

    # -- out ------------------------------------------------------------------------------------

    def _skip_received(self) -> None:
        """Forget a body that nobody wants, as far as it is here already."""
        with suppress(h11.RemoteProtocolError):
            while self._h11.their_state is h11.SEND_BODY:
                if self._h11.next_event() is h11.NEED_DATA:
                    return

    async def _send(self, response: Response) -> None:
        self._skip_received()
        self._app.context.counts.answers[response.status] += 1
        headers = [("Date", formatdate(usegmt=True)), *response.headers]
        if response.status not in (204, 304):
            headers.append(("Content-Length", str(len(response.body))))
        # A body that did not come whole ends the connection, and so does a broken request; an
        # upgrade that was refused does not.
        unread = self._h11.their_state in (h11.SEND_BODY, h11.ERROR, h11.IDLE)
        if unread or not self._trusted or self._closing():
            headers.append(("Connection", "close"))
        head = self._h11.send(h11.Response(status_code=response.status, headers=headers)) or b""
        body = b"" if self._method == b"HEAD" else response.body
        if body:
            self._h11.send(h11.Data(data=body))  # checks the length; the bytes stay as they are
        self._h11.send(h11.EndOfMessage())
        await self._send_bytes(head + body)

    async def _send_bytes(self, data: bytes) -> None:
        view = memoryview(data)
        try:
            for start in range(0, len(view), _SEND_CHUNK):
                with trio.fail_after(self._limits.send_s):
                    await self._stream.send_all(view[start : start + _SEND_CHUNK])
        except (trio.TooSlowError, trio.BrokenResourceError, trio.ClosedResourceError) as exc:
            raise _PeerGoneError from exc


def _said_again(request: h11.Request) -> bytes:
    lines = [b"%s %s HTTP/%s" % (request.method, request.target, request.http_version)]
    lines += [name + b": " + value for name, value in request.headers.raw_items()]
    return b"\r\n".join(lines) + b"\r\n\r\n"


def _translated(error: h11.RemoteProtocolError) -> RequestError:
    if error.error_status_hint == HeadTooLarge.status:
        return HeadTooLarge("The request's head is too large; send fewer or shorter headers.")
    return BadRequest(f"This is not a valid HTTP/1.1 request: {str(error)[:200]}.")
