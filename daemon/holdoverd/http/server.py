"""Accepting connections, for every listener of both doors, and knowing how many there are."""

import errno
import logging
import os
import socket
import struct
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NoReturn, cast

import trio

from holdoverd.errors import Capacity
from holdoverd.handover.packed import Detached, Door, HttpState, StreamState
from holdoverd.http.app import App
from holdoverd.http.connection import HttpConnection, Limits
from holdoverd.http.transport import HalfCloseable, linger
from holdoverd.http.wire import error_response

log = logging.getLogger(__name__)

DOORS: tuple[Door, ...] = ("public", "admin")

# accept(2) says these while the machine, or this process, is out of something; it passes.
_OVERLOAD = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOBUFS})
_OVERLOAD_PAUSE_S = 0.1
# Refusals take a descriptor each as well; beyond these, a connection is closed without a word.
_MAX_REFUSALS = 64
_PASS_AGAIN_S = 0.05
# Connections accepted in one turn of the loop. With much to do a turn takes ten milliseconds: with one in each,
# two hundred a second already wait for each other, the longer the more of them have come.
_AT_ONCE = 16

Listener = trio.abc.Listener[Any]


class Server:
    """The connections of this instance."""

    def __init__(
        self, app: App, *, max_connections: int = 10_000, limits: Limits | None = None
    ) -> None:
        self._app = app
        self._counts = app.context.counts
        self._max_connections = max_connections
        self._limits = limits or Limits()
        self._connections: dict[HttpConnection, HalfCloseable] = {}
        self._detached: dict[HttpConnection, Detached] = {}
        self._refusals = 0
        self._accepting = trio.Event()
        self._accepting.set()
        self._closing = False
        self._nursery: trio.Nursery | None = None
        self._accept_scopes: set[trio.CancelScope] = set()

    @property
    def connections(self) -> int:
        """Open connections, WebSockets included."""
        return len(self._connections)

    @property
    def limit(self) -> int:
        """How many there may be."""
        return self._max_connections

    @property
    def accepting(self) -> bool:
        return self._accepting.is_set()

    def stop_accepting(self) -> None:
        """Poll the listeners no more; connections stay.

        The listeners stay open and are never shut down: other instances hold the same sockets,
        and what queues in them is theirs to take.
        """
        if self.accepting:
            self._accepting = trio.Event()
            for scope in self._accept_scopes:
                scope.cancel()

    def resume_accepting(self) -> None:
        """Take `stop_accepting` back; harmless when accepting already."""
        self._accepting.set()

    def close_idle(self) -> None:
        """Close the keep-alive connections that have no request; answers say ``close`` from now on."""
        self._closing = True
        for connection in self._connections:
            connection.leave_if_idle()

    # -- handing over -----------------------------------------------------------------------------

    async def detach_session(self, session: str) -> list[Detached] | None:
        """Detach every WebSocket that watches a session, within seconds; what is ending stays.

        None: one of them is in the middle of something. Those that could be detached go on here,
        as if nothing had been.
        """
        watching = [c for c in self._connections if c.watching == session]
        detached: list[Detached] = []
        async with trio.open_nursery() as nursery:
            for connection in watching:
                nursery.start_soon(self._detach, connection, detached)
        # Whoever is ending needs the session no more: what it still has to say has been read.
        if any(c.watching == session and not c.ending for c in self._connections):
            for one in detached:
                self.attach(one)
            return None
        return detached

    async def detach_idle_http(self) -> list[Detached]:
        """Detach every connection without a request, and those with half a head."""
        detached: list[Detached] = []
        for connection in list(self._connections):
            if connection.between_requests:
                await self._detach(connection, detached)
        return detached

    async def _detach(self, connection: HttpConnection, detached: list[Detached]) -> None:
        if not isinstance(self._connections.get(connection), trio.SocketStream):
            return  # a memory stream, in tests
        with trio.CancelScope(shield=True):  # else nobody would have it
            if await connection.detach() is not None:
                detached.append(self._detached.pop(connection))

    def attach(self, detached: Detached) -> None:
        """Serve a connection that was detached, here or in another instance, from now on."""
        assert self._nursery is not None, "it is attached to a server that serves"
        stream = _stream_of(detached.socket)
        self._nursery.start_soon(self._handle, detached.state.door, stream, detached.state)

    def serve_connection(self, door: Door, sock: socket.socket) -> None:
        """Serve a connection that somebody else has accepted, or a socketpair's end."""
        self.attach(Detached(HttpState(door), sock))

    async def serve(
        self,
        listeners: Mapping[str, Sequence[Listener]],
        *,
        task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
    ) -> NoReturn:
        """Serve until cancelled; "started" means that it accepts.

        `listeners` are by door, ``public`` and ``admin``. They stay the caller's, and open,
        whatever happens here. Connections are cancelled with this task.

        An error of accept(2) other than overload is raised: the listener is broken then.
        """
        unknown = set(listeners) - set(DOORS)
        assert not unknown, f"there is no door called {sorted(unknown)}"
        async with trio.open_nursery() as connections, trio.open_nursery() as acceptors:
            self._nursery = connections
            for door in DOORS:
                for listener in listeners.get(door, ()):
                    acceptors.start_soon(self._accept_forever, door, listener, connections)
            task_status.started()
            await trio.sleep_forever()
        raise AssertionError("unreachable: the acceptors end by cancellation alone")

    async def _accept_forever(
        self, door: Door, listener: Listener, nursery: trio.Nursery
    ) -> NoReturn:
        overloaded = False
        while True:
            # It may have been told to stop again before it comes to run. From here to the scope there
            # is no checkpoint: whoever stops it next finds that.
            while not self.accepting:
                await self._accepting.wait()
            with trio.CancelScope() as scope:
                self._accept_scopes.add(scope)
                try:
                    while True:
                        try:
                            stream = await listener.accept()
                        except OSError as exc:
                            if exc.errno not in _OVERLOAD:
                                raise
                            if not overloaded:
                                log.error(
                                    "cannot accept connections (%s), retrying until it passes;"
                                    " raise LimitNOFILE= if it is descriptors",
                                    os.strerror(exc.errno),
                                )
                            overloaded = True
                            await trio.sleep(_OVERLOAD_PAUSE_S)
                            continue
                        if overloaded:
                            overloaded = False
                            log.warning("accepting connections again")
                        # It may have been told to stop in the turn that trio gave away.
                        beside = _waiting_beside(listener) if self.accepting else ()
                        for one in (stream, *beside):
                            self._counts.connections[door] += 1
                            nursery.start_soon(self._handle, door, one)
                finally:
                    self._accept_scopes.discard(scope)

    async def _handle(
        self,
        door: Door,
        stream: HalfCloseable,
        state: HttpState | StreamState | None = None,
    ) -> None:
        try:
            if len(self._connections) >= self._max_connections and state is None:
                await self._refuse(stream)
                return
            connection = HttpConnection(
                stream,
                self._app,
                door=door,
                peer=peer_of(stream),
                limits=self._limits,
                closing=lambda: self._closing,
                begun=state,
            )
            self._connections[connection] = stream
            try:
                await connection.run()
                if connection.left is not None:
                    assert isinstance(stream, trio.SocketStream)
                    left = _taken_from(stream, connection.left)
                    if connection.pass_to is not None:
                        # It counts until somebody else has it.
                        await self._pass_on(left, connection.pass_to)
                    else:
                        # Before whoever waits for it in `_detach` runs on.
                        self._detached[connection] = left
            finally:
                del self._connections[connection]
        except Exception:
            # One connection's defect is not the others'.
            log.exception("a connection failed, closing it")
        finally:
            # Of one that was detached there is nothing left in here.
            await trio.aclose_forcefully(cast(trio.abc.AsyncResource, stream))

    async def _pass_on(self, detached: Detached, generation: int) -> None:
        """Have another instance answer; where that fails, ask again here who has to."""
        router = self._app.context.router
        try:
            if router is not None and await router.pass_on(detached, generation):
                return
            await trio.sleep(_PASS_AGAIN_S)
        except BaseException:
            detached.close()
            raise
        self.attach(detached)

    async def _refuse(self, stream: HalfCloseable) -> None:
        """503 without reading the request: it would cost what there is too little of."""
        self._counts.refused += 1
        if self._refusals >= _MAX_REFUSALS:
            return
        self._refusals += 1
        try:
            error = Capacity(
                f"This instance serves {self._max_connections} connections already; try again"
                " shortly, or raise [server] max_connections."
            )
            body = error_response(error).body
            with trio.move_on_after(self._limits.linger_s):
                await stream.send_all(
                    b"HTTP/1.1 503 Service Unavailable\r\nContent-Type: application/json\r\n"
                    b"Connection: close\r\nRetry-After: 1\r\nContent-Length: %d\r\n\r\n%s"
                    % (len(body), body)
                )
                await linger(stream, self._limits.linger_s, self._limits.linger_bytes)
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            return
        finally:
            self._refusals -= 1


async def serve(
    listeners: Mapping[str, Sequence[Listener]],
    app: App,
    *,
    max_connections: int = 10_000,
    limits: Limits | None = None,
    task_status: trio.TaskStatus[Server] = trio.TASK_STATUS_IGNORED,
) -> NoReturn:
    """Make a `Server` and serve until cancelled; ``nursery.start`` gives it once it accepts.

    See `Server.serve`, whose promises about `listeners` are these too.
    """
    server = Server(app, max_connections=max_connections, limits=limits)
    async with trio.open_nursery() as nursery:
        await nursery.start(server.serve, listeners)
        task_status.started(server)
    raise AssertionError("unreachable: serving ends by cancellation alone")


def _waiting_beside(listener: Listener) -> Iterator[trio.SocketStream]:
    """Accept what else waits, up to `_AT_ONCE` with the one before; an error is left to the next accept."""
    if not isinstance(listener, trio.SocketListener):
        return  # a memory listener, in tests
    # trio gives its turn away with each connection that it accepts. The descriptor stays its own.
    shared = socket.socket(fileno=listener.socket.fileno())
    try:
        for _ in range(_AT_ONCE - 1):
            try:
                accepted, _ = shared.accept()
            except OSError:
                return
            yield _stream_of(accepted)
    finally:
        shared.detach()


def _taken_from(stream: trio.SocketStream, state: HttpState | StreamState) -> Detached:
    return Detached(state, socket.socket(fileno=stream.socket.detach()))


def _stream_of(sock: socket.socket) -> trio.SocketStream:
    sock.setblocking(False)
    return trio.SocketStream(trio.socket.from_stdlib_socket(sock))


def peer_of(stream: object) -> str:
    """The peer's address: an IP address, ``uid:1000`` on a Unix socket, "" when it is gone."""
    sock = getattr(stream, "socket", None)
    if sock is None:
        return "memory"  # trio's memory streams, in tests
    try:
        if sock.family == socket.AF_UNIX:
            size = struct.calcsize("3i")
            raw = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, size)
            return f"uid:{struct.unpack('3i', raw)[1]}"
        return str(sock.getpeername()[0])
    except OSError:
        return ""
