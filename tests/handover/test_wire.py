"""Packets and blobs between instances: at their bounds, and what is refused."""

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import trio

from holdoverd.errors import HandoverError
from holdoverd.handover import wire
from holdoverd.handover.wire import Packet, PacketSocket, make_blob, read_blob


@contextmanager
def link() -> Iterator[tuple[PacketSocket, PacketSocket, socket.socket]]:
    """Two ends, and the raw socket of the first."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    for one in (ours, theirs):
        one.setblocking(False)
    left = PacketSocket(trio.socket.from_stdlib_socket(ours))
    right = PacketSocket(trio.socket.from_stdlib_socket(theirs))
    try:
        yield left, right, ours
    finally:
        left.close()
        right.close()


async def test_a_packet_brings_its_fields_and_its_descriptors_close_on_exec() -> None:
    with link() as (left, right, _):
        fd, size = make_blob([b"abc", b"", b"def"])
        await left.send({"t": "connection", "id": 3, "blob": size}, [fd])
        os.close(fd)
        packet = await right.receive()
        assert packet is not None
        assert (packet.type, packet.integer("id")) == ("connection", 3)
        assert not os.get_inheritable(packet.fds[0])
        assert packet.take_blob() == b"abcdef"
        assert packet.fds == []


async def test_the_end_of_a_link_is_none_and_sending_then_is_an_error() -> None:
    with link() as (left, right, _):
        right.close()
        assert await left.receive() is None
        with pytest.raises(HandoverError, match="gone"):
            await left.send({"t": "beat"})


@pytest.mark.parametrize("data", [b"{", b"[]", b"\xff", b"x" * (wire.MAX_PACKET_BYTES + 1)])
async def test_what_is_no_packet_is_refused_and_its_descriptors_are_closed(data: bytes) -> None:
    with link() as (_, right, raw):
        fd, _ = make_blob([b""])
        before = len(os.listdir("/proc/self/fd"))
        socket.send_fds(raw, [data], [fd])
        with pytest.raises(HandoverError):
            await right.receive()
        assert len(os.listdir("/proc/self/fd")) <= before
        os.close(fd)


async def test_more_descriptors_than_any_packet_has_are_refused_and_closed() -> None:
    with link() as (_, right, raw):
        fds = [make_blob([b""])[0] for _ in range(wire.MAX_FDS + 1)]
        before = len(os.listdir("/proc/self/fd"))
        socket.send_fds(raw, [b"{}"], fds)
        with pytest.raises(HandoverError, match="descriptors"):
            await right.receive()
        assert len(os.listdir("/proc/self/fd")) <= before
        for fd in fds:
            os.close(fd)


def test_a_packet_of_the_largest_size_goes_through_and_one_byte_more_is_our_defect() -> None:
    room = wire.MAX_PACKET_BYTES - len(wire.encode({"t": ""}))
    assert len(wire.encode({"t": "x" * room})) == wire.MAX_PACKET_BYTES
    with pytest.raises(AssertionError, match="belongs into a blob"):
        wire.encode({"t": "x" * (room + 1)})


def test_a_blob_that_could_still_be_changed_is_refused() -> None:
    fd = os.memfd_create("open")
    os.write(fd, b"abc")
    with pytest.raises(HandoverError, match="could still change"):
        read_blob(fd, 3)
    os.close(fd)


@pytest.mark.parametrize("size", [2, 4, -1, wire.MAX_BLOB_BYTES + 1])
def test_a_blob_of_another_size_than_announced_is_refused(size: int) -> None:
    fd, _ = make_blob([b"abc"])
    with pytest.raises(HandoverError, match="announced"):
        read_blob(fd, size)
    os.close(fd)


def test_a_pipe_is_no_blob() -> None:
    read, write = os.pipe()
    with pytest.raises(HandoverError, match="no memfd"):
        read_blob(read, 0)
    os.close(read)
    os.close(write)


@pytest.mark.parametrize("fields", [{}, {"id": "3"}, {"id": True}])
def test_a_packet_without_a_field_it_needs_says_which(fields: dict[str, object]) -> None:
    with pytest.raises(HandoverError, match="'offer' came without its field 'id'"):
        Packet({"t": "offer", **fields}).integer("id")
