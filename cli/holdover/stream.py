"""One WebSocket to a session's stream, read by a thread into a bounded inbox.

The thread only carries frames: what they mean and whether to connect again is decided by whoever
empties the inbox (`follow`), so that a new connection always asks for what comes after the last
frame that was really handled.
"""

import queue
import struct
import threading
from dataclasses import dataclass
from socket import SO_SNDTIMEO, SOL_SOCKET
from typing import TYPE_CHECKING, Any
from urllib.parse import urlencode, urlsplit

from holdover.client import Client, path_of, refusal
from holdover.exits import CommandError
from holdover.keys import Key
from holdover.redial import http_verdict, verdict

if TYPE_CHECKING:
    from websockets.sync.client import ClientConnection

SUBPROTOCOL = "holdover.v1"
MAX_FRAME_BYTES = 32 << 20  # the server's own bound is 16 MiB
MAX_INBOX = 64
OPEN_TIMEOUT_S = 15.0
SEND_TIMEOUT_S = 30.0  # without a single byte getting out


@dataclass(frozen=True)
class Frame:
    """One text frame of connection number `connection`."""

    connection: int
    text: str


@dataclass(frozen=True)
class Lost:
    """The connection ended, or never came about. `final`: another try would end the same way."""

    connection: int
    reason: str
    final: CommandError | None


@dataclass(frozen=True)
class Line:
    """A line that was typed; None at the end of input."""

    text: str | None


@dataclass(frozen=True)
class Keyed:
    """A key that was pressed, where keys are read one by one."""

    key: Key


@dataclass(frozen=True)
class Interrupt:
    """Ctrl-C."""


Item = Frame | Lost | Line | Keyed | Interrupt


class Inbox:
    """What happened, in order. Putting blocks while `MAX_INBOX` items wait.

    A `queue.Queue` would not do: a signal handler must be able to put while the main thread is
    inside `get`, and only `SimpleQueue` allows that.
    """

    def __init__(self) -> None:
        self._items: queue.SimpleQueue[Item] = queue.SimpleQueue()
        self._room = threading.Semaphore(MAX_INBOX)

    def put(self, item: Item) -> None:
        self._room.acquire()
        self._items.put(item)

    def put_interrupt(self) -> None:
        """From a signal handler: neither blocks nor takes room."""
        self._items.put(Interrupt())

    def get(self, timeout_s: float | None = None) -> Item | None:
        """The next item; None when none came in `timeout_s`."""
        try:
            item = self._items.get(timeout=timeout_s)
        except queue.Empty:
            return None
        if not isinstance(item, Interrupt):
            self._room.release()
        return item


class Stream:
    """The current connection; `connect` replaces it."""

    def __init__(self, client: Client, session: str, inbox: Inbox) -> None:
        self._client = client
        self._session = session
        self._inbox = inbox
        self._socket: ClientConnection | None = None
        self.connection = 0

    def connect(self, query: dict[str, str]) -> None:
        """Begin a connection in the background; its frames and its end come to the inbox."""
        self.drop()
        threading.Thread(
            target=self._read, args=(self.connection, query), name="stream", daemon=True
        ).start()

    def drop(self) -> None:
        """Give up the connection; what it still brings carries an old number."""
        self.close()
        self.connection += 1

    def send(self, text: str) -> None:
        """Send on the connection that there is; without one, nothing: it is said again later."""
        from websockets.exceptions import ConnectionClosed

        socket = self._socket
        if socket is not None:
            try:
                socket.send(text)
            except (ConnectionClosed, OSError):
                return  # the reader reports it

    def close(self) -> None:
        socket, self._socket = self._socket, None
        if socket is not None:
            # Closing waits for the other side; that may take its time, and nobody needs it.
            threading.Thread(target=socket.close, daemon=True).start()

    def _read(self, connection: int, query: dict[str, str]) -> None:
        from websockets.exceptions import ConnectionClosed, InvalidStatus, WebSocketException

        final: CommandError | None = None
        try:
            with self._dial(query) as socket:
                if connection != self.connection:
                    return  # replaced while it was being made
                # websockets' send has no time limit, and it holds up receiving; a daemon that has
                # stopped reading would hold us up for ever.
                limit = struct.pack("ll", int(SEND_TIMEOUT_S), 0)
                socket.socket.setsockopt(SOL_SOCKET, SO_SNDTIMEO, limit)
                self._socket = socket
                while True:
                    text = socket.recv()
                    if isinstance(text, str):
                        self._inbox.put(Frame(connection, text))
        except ConnectionClosed as error:
            code = error.rcvd.code if error.rcvd else 1006
            reason = error.rcvd.reason if error.rcvd else "the connection broke"
            final = verdict(code, reason, self._session)
            reason = reason or f"closed with code {code}"
        except InvalidStatus as error:
            status = error.response.status_code
            reason = f"the daemon answered with status {status}"
            if not http_verdict(status):
                final = refusal(_json(error.response.body), status, str(self._client.door))
        except (OSError, WebSocketException) as error:
            # OSError covers TimeoutError and a certificate that does not hold.
            reason = str(error) or type(error).__name__
        self._inbox.put(Lost(connection, reason, final))

    def _dial(self, query: dict[str, str]) -> "ClientConnection":
        from websockets.sync.client import connect, unix_connect
        from websockets.typing import Subprotocol

        door = self._client.door
        path = f"{path_of('sessions', self._session, 'stream')}?{urlencode(query)}"
        options: dict[str, Any] = {
            "subprotocols": [Subprotocol(SUBPROTOCOL)],
            "additional_headers": door.headers(),
            "compression": None,
            "open_timeout": OPEN_TIMEOUT_S,
            "close_timeout": 2,
            "max_size": MAX_FRAME_BYTES,
            # Like the HTTP side: a proxy for the web is none for an agent host.
            "proxy": None,
        }
        if door.socket is not None:
            over_unix: ClientConnection = unix_connect(
                str(door.socket), uri=f"ws://localhost{path}", **options
            )
            return over_unix
        parts = urlsplit(door.url or "")
        scheme = "wss" if parts.scheme == "https" else "ws"
        over_tcp: ClientConnection = connect(f"{scheme}://{parts.netloc}{path}", **options)
        return over_tcp


def _json(body: bytes | bytearray | None) -> object:
    import json

    try:
        return json.loads(body or b"null")
    except ValueError:
        return None
