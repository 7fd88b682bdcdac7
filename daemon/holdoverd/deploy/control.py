"""An operator's end of an instance's control socket; handover/PROTOCOL.md has the packets."""

import array
import contextlib
import json
import logging
import os
import socket
import time
from pathlib import Path
from typing import Any

from holdoverd.errors import HandoverError

log = logging.getLogger(__name__)

CONNECT_S = 3.0
ORDER_S = 5.0
SHARE_S = 2.0
"""For an instance that starts: each step of asking one that may stand still."""

HELLO = b'{"t":"hello","v":[1],"operator":true}'
MAX_PACKET_BYTES = 64 * 1024
MAX_FDS = 16
MAX_SIBLINGS = 16


class Control:
    """A greeted connection. Not for several threads at once.

    `generation`, `release`, `pid`: as the instance says; `state`, `sessions`, `connections`: as of
    its last beat, which was heard at `heard_at` (time.monotonic).
    """

    def __init__(self, path: Path, connect_s: float = CONNECT_S) -> None:
        """Raises HandoverError when nobody answers there within `connect_s`."""
        self._sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        try:
            self._sock.settimeout(connect_s)
            self._sock.connect(str(path))
            self._send(HELLO)
            hello = self._receive()
        except OSError as error:
            self._sock.close()
            raise HandoverError(f"Nobody answers at {path}: {error}.") from error
        except BaseException:
            self._sock.close()
            raise
        self.generation = int(hello.get("generation", 0))
        self.release = str(hello.get("release", ""))
        self.pid = int(hello.get("pid", 0))
        self.state = ""
        self.sessions = 0
        self.connections = 0
        self.heard_at = time.monotonic()
        self._beat(hello)

    def close(self) -> None:
        self._sock.close()

    def __enter__(self) -> "Control":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _send(self, data: bytes, fds: tuple[int, ...] = ()) -> None:
        ancillary = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
        try:
            self._sock.sendmsg([data], ancillary)
        except OSError as error:
            raise HandoverError(f"The instance is gone: {error}.") from error

    def _receive(self, take: list[int] | None = None) -> dict[str, Any]:
        """The next packet; its descriptors go into `take`, or are closed."""
        try:
            # It takes flags and does not pass them on, so MSG_CMSG_CLOEXEC is no use here.
            data, fds, _, _ = socket.recv_fds(self._sock, MAX_PACKET_BYTES, MAX_FDS)
        except TimeoutError as error:
            raise HandoverError("The instance is silent.") from error
        except OSError as error:
            raise HandoverError(f"The instance is gone: {error}.") from error
        for fd in fds:
            os.set_inheritable(fd, False)
            if take is None:
                os.close(fd)
            else:
                take.append(fd)
        if not data:
            raise HandoverError("The instance has closed its control socket.")
        try:
            fields = json.loads(data)
        except ValueError as error:
            raise HandoverError("The instance sends what is no packet.") from error
        if not isinstance(fields, dict):
            raise HandoverError("The instance sends what is no packet.")
        return fields

    def _beat(self, fields: dict[str, Any]) -> None:
        self.heard_at = time.monotonic()
        self.state = str(fields.get("state", self.state))
        self.sessions = int(fields.get("sessions", self.sessions))
        self.connections = int(fields.get("connections", self.connections))

    def listen(self, seconds: float) -> None:
        """Hear beats for so long. Raises HandoverError when the instance is gone."""
        deadline = time.monotonic() + seconds
        while (left := deadline - time.monotonic()) > 0:
            self._sock.settimeout(max(left, 0.001))
            with contextlib.suppress(_Quiet):
                self._beat(self._next())

    def silent_s(self) -> float:
        """For how long nothing was heard; call `listen` before, which hears."""
        return time.monotonic() - self.heard_at

    def _next(self) -> dict[str, Any]:
        try:
            return self._receive()
        except HandoverError as error:
            if isinstance(error.__cause__, TimeoutError):
                raise _Quiet from None
            raise

    def order(
        self,
        kind: str,
        *fds: int,
        timeout_s: float = ORDER_S,
        take: list[int] | None = None,
        **fields: Any,
    ) -> dict[str, Any]:
        """Give an order and wait until it is done; the answer, its descriptors in `take`.

        Raises HandoverError: refused, silent or gone.
        """
        self._sock.settimeout(timeout_s)
        self._send(json.dumps({"t": kind, **fields}).encode(), fds)
        deadline = time.monotonic() + timeout_s
        while True:
            self._sock.settimeout(max(deadline - time.monotonic(), 0.001))
            answer = self._receive(take)
            match answer.get("t"):
                case "ok":
                    return answer
                case "error":
                    raise HandoverError(str(answer.get("message")))
                case _:
                    self._beat(answer)

    def probe(self, door: str) -> socket.socket:
        """A connection that the instance serves as if it had accepted it at `door`."""
        ours, theirs = socket.socketpair()
        try:
            with theirs:
                self.order("probe", theirs.fileno(), door=door)
        except BaseException:
            ours.close()
            raise
        return ours

    def listeners(self) -> dict[str, list[socket.socket]]:
        """Copies of what the instance listens on, by door. Raises HandoverError."""
        fds: list[int] = []
        try:
            doors = self.order("listeners", timeout_s=SHARE_S, take=fds).get("doors")
            if not isinstance(doors, list) or len(doors) != len(fds):
                raise HandoverError("The instance does not say what its sockets are.")
        except BaseException:
            for fd in fds:
                os.close(fd)
            raise
        shared: dict[str, list[socket.socket]] = {}
        for door, fd in zip(doors, fds, strict=True):
            shared.setdefault(str(door), []).append(socket.socket(fileno=fd))
        return shared


def control_sockets(folder: Path) -> list[tuple[int, Path]]:
    """(generation, its control socket ``N.sock``) of each that stands in `folder`, alive or not."""
    return [(int(path.stem), path) for path in folder.glob("*.sock") if path.stem.isdecimal()]


def share_listeners(folder: Path) -> dict[str, list[socket.socket]]:
    """What a living instance listens on, for one that starts and got nothing from systemd.

    Of those with a control socket in `folder` the newest that answers is taken. Empty where none can
    be asked.
    """
    for _, path in sorted(control_sockets(folder), reverse=True)[:MAX_SIBLINGS]:
        try:
            with Control(path, SHARE_S) as control:
                return control.listeners()
        except HandoverError as error:
            log.info("%s gave no listening sockets: %s", path, error)
    return {}


class _Quiet(Exception):
    pass
