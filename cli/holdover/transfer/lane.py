"""One connection to storage, kept open between requests. Plain `http.client`, blocking."""

import contextlib
import http.client
import socket
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from holdover.exits import CommandError, Exit
from holdover.transfer.rules import Patience, Verdict, judge

TIMEOUT_S = 60.0
BLOCK_BYTES = 256 << 10
MAX_ERROR_BYTES = 64 << 10


class StoppedError(Exception):
    """The transfer was stopped from outside: Ctrl-C, or another part failed."""


class LocalError(Exception):
    """Trouble at this end of a transfer, which no other try mends: `error` says what."""

    def __init__(self, error: OSError) -> None:
        super().__init__(str(error))
        self.error = error


class Stop:
    """Tells all threads of a transfer to end, and wakes those that wait for the network."""

    def __init__(self) -> None:
        self._event = threading.Event()
        self._lock = threading.Lock()
        self._lanes: set[Lane] = set()
        self._children: set[Stop] = set()

    def set(self) -> None:
        self._event.set()
        with self._lock:
            for lane in self._lanes:
                lane.cut()
            for child in self._children:
                child.set()

    @contextlib.contextmanager
    def child(self) -> Iterator["Stop"]:
        """One for a part of what this one stops; setting it stops no more than that."""
        child = Stop()
        with self._lock:
            self._children.add(child)
        try:
            self.check()
            yield child
        finally:
            with self._lock:
                self._children.discard(child)

    def check(self) -> None:
        if self._event.is_set():
            raise StoppedError

    def sleep(self, seconds: float) -> None:
        """Wait, or raise `StoppedError` as soon as it is set."""
        if self._event.wait(seconds):
            raise StoppedError

    @contextlib.contextmanager
    def threads(self, count: int) -> Iterator[ThreadPoolExecutor]:
        """So many threads, waited for at the block's end; an exception, or Ctrl-C, stops them."""
        with ThreadPoolExecutor(count) as pool:
            try:
                yield pool
            except BaseException:
                self.set()
                raise

    @contextlib.contextmanager
    def lane(self) -> Iterator["Lane"]:
        """A lane that `set` can cut."""
        lane = Lane()
        with self._lock:
            self._lanes.add(lane)
        try:
            yield lane
        finally:
            with self._lock:
                self._lanes.discard(lane)
            lane.close()


@dataclass(frozen=True)
class Got:
    """The end of an exchange: status, headers in lower case, and the text of an error."""

    status: int
    headers: Mapping[str, str]
    error: str = ""

    @property
    def verdict(self) -> Verdict:
        return judge(self.status, self.error)


class Lane:
    """Not for several threads at a time, but for `cut`."""

    def __init__(self) -> None:
        self._connection: http.client.HTTPConnection | None = None
        self._place: tuple[str, str] | None = None
        self._buffer = memoryview(bytearray(BLOCK_BYTES))

    def put(
        self, url: str, headers: Mapping[str, str], length: int, blocks: Iterable[bytes]
    ) -> Got:
        """Send `length` bytes. Raises OSError and HTTPException for a broken connection."""
        connection, target = self._to(url)
        # Lengths are signed: exactly one, and no chunks.
        sent = {**headers, "content-length": str(length)}
        try:
            connection.request("PUT", target, body=iter(blocks), headers=sent)
        except (BrokenPipeError, ConnectionResetError):
            # Storage may have answered before it had heard everything: why, is worth knowing.
            return self._finish(connection.getresponse())
        return self._finish(connection.getresponse())

    def get(
        self, url: str, headers: Mapping[str, str], take: Callable[[memoryview], object]
    ) -> Got:
        """Fetch; `take` gets the blocks of a 2xx answer's body, and may raise to end it.

        A block is overwritten by the next: all of a body go through one buffer.
        """
        connection, target = self._to(url)
        connection.request("GET", target, headers=dict(headers))
        response = connection.getresponse()
        if not 200 <= response.status < 300:
            return self._finish(response)
        try:
            while count := response.readinto(self._buffer):
                take(self._buffer[:count])
        except BaseException:
            self.close()
            raise
        return self._finish(response)

    def _to(self, url: str) -> tuple[http.client.HTTPConnection, str]:
        parts = urlsplit(url)
        place = (parts.scheme, parts.netloc)
        if self._connection is None or self._place != place:
            self.close()
            kind: Any = (
                http.client.HTTPSConnection
                if parts.scheme == "https"
                else http.client.HTTPConnection
            )
            self._connection = kind(parts.hostname, parts.port, timeout=TIMEOUT_S)
            self._connection.blocksize = BLOCK_BYTES
            self._place = place
        return self._connection, f"{parts.path}?{parts.query}"

    def _finish(self, response: http.client.HTTPResponse) -> Got:
        headers = {name.lower(): value for name, value in response.getheaders()}
        error = ""
        if response.status >= 300:
            error = response.read(MAX_ERROR_BYTES).decode(errors="replace")
        # What is left unread would be taken for the next answer.
        if response.read(1):
            self.close()
        return Got(response.status, headers, error)

    def cut(self) -> None:
        """End what waits for the network, from another thread."""
        connection = self._connection
        sock = connection.sock if connection is not None else None
        if sock is not None:
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None


def persist(
    stop: Stop, lane: Lane, patience: Patience, what: str, attempt: Callable[[], Got]
) -> Got:
    """Call `attempt` until storage gives an answer that waiting does not mend.

    Raises CommandError (storage unavailable) when patience ends, StoppedError when told to.
    """
    while True:
        stop.check()
        try:
            got = attempt()
            if got.verdict is not Verdict.AGAIN:
                return got
            reason = f"it answered {got.status}"
        except (OSError, http.client.HTTPException) as error:
            lane.close()
            stop.check()
            # A certificate does not mend itself.
            if "CERTIFICATE_VERIFY" in str(error):
                raise CommandError(
                    f"Storage's certificate is not trusted here: {error}.", Exit.STORAGE_UNAVAILABLE
                ) from error
            reason = "no answer in time" if isinstance(error, TimeoutError) else str(error)
        delay = patience.delay_s()
        if delay is None:
            raise CommandError(
                f"Storage cannot be reached for {what}: {reason}. What is there already stays; the "
                "same command goes on from it.",
                Exit.STORAGE_UNAVAILABLE,
            )
        stop.sleep(delay)
