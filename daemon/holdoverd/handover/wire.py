"""Packets between instances, with their descriptors; PROTOCOL.md has the bytes."""

import array
import fcntl
import json
import os
import socket
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import trio

from holdoverd.errors import HandoverError

VERSION = 1
MAX_PACKET_BYTES = 64 * 1024
MAX_BLOB_BYTES = 192 * 1024 * 1024
"""The largest is a connection with messages of 16 MiB everywhere: one half received, two unsent,
three on their way through the WebSocket library, and a queue of two."""

MAX_FDS = 4
"""A packet has two at most; more would be somebody else's."""

_SEALS = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE | fcntl.F_SEAL_SEAL
_INT = array.array("i").itemsize


@dataclass
class Packet:
    """One packet received. Whoever has it closes `fds`, or takes them out by `take_fd`."""

    fields: dict[str, Any]
    fds: list[int] = field(default_factory=list)

    @property
    def type(self) -> str:
        return str(self.fields.get("t"))

    def text(self, name: str) -> str:
        """Raises HandoverError where the field is missing or no text."""
        value = self.fields.get(name)
        if not isinstance(value, str):
            raise HandoverError(f"A packet {self.type!r} came without its field {name!r}.")
        return value

    def integer(self, name: str) -> int:
        """Raises HandoverError where the field is missing or no integer."""
        value = self.fields.get(name)
        if not isinstance(value, int) or isinstance(value, bool):
            raise HandoverError(f"A packet {self.type!r} came without its field {name!r}.")
        return value

    def take_fd(self) -> int:
        """The first descriptor, now the caller's. Raises HandoverError where there is none."""
        if not self.fds:
            raise HandoverError(f"A packet {self.type!r} came without its descriptor.")
        return self.fds.pop(0)

    def take_blob(self) -> bytes:
        """The blob's bytes. Raises HandoverError where it is missing or not as described."""
        size = self.integer("blob")
        if not self.fds:
            raise HandoverError(f"A packet {self.type!r} came without its blob.")
        fd = self.fds.pop()
        try:
            return read_blob(fd, size)
        finally:
            os.close(fd)

    def close(self) -> None:
        while self.fds:
            os.close(self.fds.pop())


def encode(fields: dict[str, Any]) -> bytes:
    data = json.dumps(fields, ensure_ascii=False, separators=(",", ":")).encode()
    assert len(data) <= MAX_PACKET_BYTES, f"a packet {fields.get('t')!r} belongs into a blob"
    return data


def decode(data: bytes) -> dict[str, Any]:
    """Raises HandoverError."""
    try:
        fields = json.loads(data)
    except ValueError as error:
        raise HandoverError(f"A packet is no JSON: {error}.") from error
    if not isinstance(fields, dict):
        raise HandoverError("A packet is no JSON object.")
    return fields


def make_blob(parts: Iterable[bytes]) -> tuple[int, int]:
    """(descriptor, size) of a sealed memfd that holds `parts` one after the other.

    A sealed one cannot be changed by the giver while the taker reads it, nor cut under a mapping.
    """
    fd = os.memfd_create("holdover-handover", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        size = 0
        for part in parts:
            view = memoryview(part)
            while view:
                written = os.write(fd, view)
                view = view[written:]
                size += written
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, _SEALS)
    except BaseException:
        os.close(fd)
        raise
    return fd, size


def read_blob(fd: int, size: int) -> bytes:
    """Raises HandoverError where it is not sealed or has another size."""
    if not 0 <= size <= MAX_BLOB_BYTES or os.fstat(fd).st_size != size:
        raise HandoverError(f"A blob of {size} bytes was announced, and another came.")
    try:
        seals = fcntl.fcntl(fd, fcntl.F_GET_SEALS)
    except OSError as error:
        raise HandoverError("A blob came that is no memfd.") from error
    if seals & _SEALS != _SEALS:
        raise HandoverError("A blob came that its sender could still change.")
    data = bytearray()
    while len(data) < size:
        chunk = os.pread(fd, size - len(data), len(data))
        if not chunk:
            raise HandoverError("A blob is shorter than it said.")
        data += chunk
    return bytes(data)


class PacketSocket:
    """One end of a link. `send` may be called from several tasks, `receive` from one."""

    def __init__(self, sock: trio.socket.SocketType) -> None:
        self._sock = sock
        self._sending = trio.Lock()

    async def send(self, fields: dict[str, Any], fds: Sequence[int] = ()) -> None:
        """Raises HandoverError when the peer is gone. The descriptors stay the caller's."""
        ancillary = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
        data = encode(fields)
        try:
            async with self._sending:
                await self._sock.sendmsg([data], ancillary)
        except (OSError, trio.ClosedResourceError) as error:
            raise HandoverError("The other instance is gone.") from error

    async def receive(self) -> Packet | None:
        """The next packet; None at the end. Raises HandoverError for what is none."""
        try:
            data, ancillary, flags, _ = await self._sock.recvmsg(
                MAX_PACKET_BYTES + 1,
                socket.CMSG_SPACE(MAX_FDS * _INT),
                getattr(socket, "MSG_CMSG_CLOEXEC", 0x40000000),
            )
        except (OSError, trio.ClosedResourceError):
            return None
        fds = [
            fd
            for level, kind, raw in ancillary
            if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS
            for fd in array.array("i", raw[: len(raw) - len(raw) % _INT])
        ]
        packet = Packet({}, fds)
        if not data and not fds:
            return None
        try:
            if flags & (socket.MSG_TRUNC | socket.MSG_CTRUNC) or len(data) > MAX_PACKET_BYTES:
                raise HandoverError("A packet is longer, or has more descriptors, than any may.")
            packet.fields = decode(data)
        except BaseException:
            packet.close()
            raise
        return packet

    def close(self) -> None:
        self._sock.close()
