"""Trying an instance: real requests and real WebSockets, and what a sound one answers.

Every probe is a connection of its own. What is asked is fixed and cheap, and changes nothing.
"""

import base64
import contextlib
import hashlib
import json
import os
import socket
import struct
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

PROBE_S = 4.0
"""For one answer. A slow but healthy release takes half a second; a hanging one takes for ever."""

WEBSOCKETS = 24
"""At least 20: one that loses every tenth has to be seen."""

REQUESTS = 8
AT_ONCE = 6
SETTLE_S = 3.0
SPARE_FDS = 4
"""Descriptors that an instance may hold more after the probes than before: a link to a sibling."""

MAX_ANSWER_BYTES = 1024 * 1024
_GUID = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"  # RFC 6455, section 1.3


class ProbeError(Exception):
    """An answer that no sound instance gives; the message says which, in words."""


@dataclass(frozen=True, slots=True)
class Answer:
    status: int
    headers: dict[str, str]
    body: bytes

    def json(self) -> Any:
        try:
            return json.loads(self.body)
        except ValueError:
            raise ProbeError(f"it answered {self.status} with what is no JSON") from None


Dial = Callable[[], socket.socket]


class Connection:
    """One probe's connection: requests, one after the other, or an upgrade."""

    def __init__(self, dial: Dial, what: str) -> None:
        self._what = what
        self._sock = dial()
        self._sock.settimeout(PROBE_S)
        self._received = b""

    def __enter__(self) -> "Connection":
        return self

    def __exit__(self, *exception: object) -> None:
        self._sock.close()

    def _fill(self) -> None:
        try:
            data = self._sock.recv(65536)
        except TimeoutError:
            raise ProbeError(f"{self._what} got no answer within {PROBE_S:.0f} s") from None
        except OSError as error:
            raise ProbeError(f"{self._what}: the connection broke ({error})") from None
        if not data:
            raise ProbeError(f"{self._what}: the connection was closed without an answer")
        self._received += data
        if len(self._received) > MAX_ANSWER_BYTES:
            raise ProbeError(f"{self._what} got an answer without an end")

    def _take(self, size: int) -> bytes:
        while len(self._received) < size:
            self._fill()
        data, self._received = self._received[:size], self._received[size:]
        return data

    def send(self, data: bytes) -> None:
        try:
            self._sock.sendall(data)
        except OSError as error:
            raise ProbeError(f"{self._what}: the connection broke ({error})") from None

    def head(self) -> tuple[int, dict[str, str]]:
        while b"\r\n\r\n" not in self._received:
            self._fill()
        raw, _, self._received = self._received.partition(b"\r\n\r\n")
        first, *lines = raw.decode("latin-1").split("\r\n")
        words = first.split(" ", 2)
        if not words[0].startswith("HTTP/1.1") or len(words) < 2 or not words[1].isdecimal():
            raise ProbeError(f"{self._what} was answered by {first[:60]!r}, which is not HTTP")
        fields = (line.partition(":") for line in lines)
        return int(words[1]), {name.strip().lower(): value.strip() for name, _, value in fields}

    def ask(self, method: str, path: str, *, lines: Iterable[str] = ()) -> Answer:
        text = "".join(f"{line}\r\n" for line in ("Host: localhost", *lines))
        self.send(f"{method} {path} HTTP/1.1\r\n{text}\r\n".encode())
        status, headers = self.head()
        size = headers.get("content-length", "0")
        return Answer(status, headers, self._take(int(size)) if size.isdecimal() else b"")

    def upgrade(self, path: str) -> None:
        """Raises ProbeError where the WebSocket is not opened as RFC 6455, section 4.2.2 says."""
        key = base64.b64encode(os.urandom(16))
        self.send(
            f"GET {path} HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\n"
            "Connection: Upgrade\r\nSec-WebSocket-Version: 13\r\n"
            f"Sec-WebSocket-Key: {key.decode()}\r\nSec-WebSocket-Protocol: holdover.v1\r\n\r\n".encode()
        )
        status, headers = self.head()
        expected = base64.b64encode(hashlib.sha1(key + _GUID).digest()).decode()  # noqa: S324
        if status != 101 or headers.get("sec-websocket-accept") != expected:
            raise ProbeError(f"{self._what} was answered {status} instead of a WebSocket")

    def frame(self) -> tuple[int, bytes]:
        """(opcode, payload) of the next frame from the server: unmasked, not fragmented."""
        first, second = self._take(2)
        size = second & 0x7F
        if size == 126:
            (size,) = struct.unpack("!H", self._take(2))
        elif size == 127:
            (size,) = struct.unpack("!Q", self._take(8))
        return first & 0x0F, self._take(min(size, MAX_ANSWER_BYTES))


@dataclass(frozen=True, slots=True)
class Expected:
    """Who has to answer."""

    generation: int
    release: str


def try_candidate(
    dial: Callable[[str], socket.socket], expected: Expected, pid: int, *, watch: bool
) -> None:
    """The gate: raises ProbeError, with the first thing that is wrong.

    ``dial(door)`` gives a connection that the candidate serves. `watch`: sessions too, whose owners
    it has to pass the connection to; not where those know of no handover.
    """
    before = open_fds(pid)
    probes: list[Callable[[], None]] = []
    for _ in range(REQUESTS):
        probes.append(lambda: health(lambda: dial("public"), expected))
        probes.append(lambda: refusals(lambda: dial("public")))
    probes += [lambda: no_such_session(lambda: dial("admin"))] * WEBSOCKETS
    if watch:
        probes += [lambda: streams(lambda: dial("admin"))]
    run_all(probes)
    settled(pid, before)


def run_all(probes: Iterable[Callable[[], None]]) -> None:
    """Side by side; the first failure counts."""
    with ThreadPoolExecutor(AT_ONCE) as pool:
        running = [pool.submit(probe) for probe in probes]
        try:
            for one in running:
                one.result()
        except BaseException:
            for one in running:
                one.cancel()
            raise


def health(dial: Dial, expected: Expected) -> None:
    """Two requests on one connection: who answers, and does it keep the connection?"""
    with Connection(dial, "GET /healthz") as connection:
        for _ in range(2):
            answer = connection.ask("GET", "/healthz")
            said = answer.json()
            if answer.status != 200 or not isinstance(said, dict) or said.get("status") != "ok":
                raise ProbeError(f"/healthz answered {answer.status} {answer.body[:120]!r}")
            found = (said.get("generation"), said.get("release"))
            if found != (expected.generation, expected.release):
                raise ProbeError(
                    f"/healthz says generation {found[0]}, release {found[1]}; "
                    f"{expected.generation}, {expected.release} was started"
                )


def refusals(dial: Dial) -> None:
    """What has to be refused is, in the contract's form."""
    for lines, path, status, code in (
        ((), "/v1/sessions", 401, "unauthorized"),
        (("Authorization: Bearer no-such-token",), "/v1/sessions", 401, "unauthorized"),
        (("Origin: https://elsewhere.invalid",), "/v1/sessions", 403, "forbidden"),
    ):
        with Connection(dial, f"GET {path}") as connection:
            answer = connection.ask("GET", path, lines=lines)
            said = answer.json()
            error = said.get("error") if isinstance(said, dict) else None
            if answer.status != status or not error or error.get("code") != code:
                raise ProbeError(
                    f"GET {path} with {list(lines) or 'no token'} answered {answer.status} "
                    f"{answer.body[:120]!r} instead of {status} {code}"
                )


def no_such_session(dial: Dial) -> None:
    """contract.md, The stream: the upgrade succeeds, then close 4004."""
    with Connection(dial, "a WebSocket") as connection:
        connection.upgrade("/v1/sessions/s_none/stream")
        opcode, payload = connection.frame()
        code = int.from_bytes(payload[:2], "big")
        if opcode != 8 or code != 4004:
            raise ProbeError(
                f"a WebSocket for no session got opcode {opcode}, code {code} instead of close 4004"
            )


def streams(dial: Dial) -> None:
    """The newest sessions, if there are any, can be watched through it: ``hello`` to ``live``."""
    with Connection(dial, "GET /v1/sessions") as connection:
        answer = connection.ask("GET", "/v1/sessions?limit=2")
        if answer.status != 200 or not isinstance(answer.json().get("items"), list):
            raise ProbeError(f"GET /v1/sessions answered {answer.status}")
    for session in answer.json()["items"]:
        with Connection(dial, f"a WebSocket of {session['id']}") as connection:
            connection.upgrade(f"/v1/sessions/{session['id']}/stream?threads=main")
            kinds: list[str] = []
            deadline = time.monotonic() + 2 * PROBE_S
            while "live" not in kinds:
                opcode, payload = connection.frame()
                if opcode != 1 or time.monotonic() > deadline:
                    raise ProbeError(
                        f"the stream of {session['id']} ended after {kinds or 'nothing'}, opcode "
                        f"{opcode}, instead of becoming live"
                    )
                kinds.append(str(json.loads(payload).get("type")))
            if kinds[0] != "hello":
                raise ProbeError(f"the stream of {session['id']} began with {kinds[0]!r}")


def open_fds(pid: int) -> int:
    """How many sockets, pipes and the like a process holds; 0 where that cannot be read.

    Files do not count: the first requests open readers of the catalogue, which are kept.
    """
    count = 0
    folder = f"/proc/{pid}/fd"
    try:
        names = os.listdir(folder)
    except OSError:
        return 0
    for name in names:
        with contextlib.suppress(OSError):  # closed meanwhile
            count += not os.readlink(f"{folder}/{name}").startswith("/")
    return count


def settled(pid: int, before: int) -> None:
    """The probes' connections are closed: what stays open is a leak."""
    deadline = time.monotonic() + SETTLE_S
    while (now := open_fds(pid)) > before + SPARE_FDS:
        if time.monotonic() > deadline:
            raise ProbeError(
                f"it held {before} descriptors before the probes and holds {now} after them: it "
                "does not close what it served"
            )
        time.sleep(0.05)


def dial_tcp(address: tuple[str, int]) -> Dial:
    def dial() -> socket.socket:
        try:
            return socket.create_connection(address, PROBE_S)
        except OSError as error:
            raise ProbeError(f"connecting to {address[0]}:{address[1]} failed: {error}") from None

    return dial


def dial_unix(path: Path) -> Dial:
    def dial() -> socket.socket:
        sock = socket.socket(socket.AF_UNIX)
        sock.settimeout(PROBE_S)
        try:
            sock.connect(str(path))
        except OSError as error:
            sock.close()
            raise ProbeError(f"connecting to {path} failed: {error}") from None
        return sock

    return dial
