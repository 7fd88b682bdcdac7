"""What a connection sends: whole frames, one after the other, however little the kernel takes."""

import socket

import pytest
import trio
import trio.testing
from wsproto.connection import Connection, ConnectionType
from wsproto.events import TextMessage

from holdoverd.http.frames import text_frame
from holdoverd.http.transport import Transport


@pytest.mark.parametrize("size", [0, 1, 125, 126, 65_535, 65_536, 200_000])
def test_a_text_frame_is_what_a_websocket_library_makes_of_it(size: int) -> None:
    for text in ("x" * size, "ü" * (size // 2)):
        made = Connection(ConnectionType.SERVER).send(TextMessage(data=text))
        assert text_frame(text) == made


async def test_frames_come_whole_and_in_order_from_whoever_sends_them() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
        ours.setblocking(False)
        theirs.setblocking(False)
        transport = Transport(trio.SocketStream(trio.socket.from_stdlib_socket(ours)), b"", b"")
        peer = trio.SocketStream(trio.socket.from_stdlib_socket(theirs))
        frames = [text_frame(str(number) * 100_000) for number in range(6)]
        received = bytearray()
        async with trio.open_nursery() as nursery:
            for number, frame in enumerate(frames):
                send = transport.send_frame if number % 2 else transport.send_all
                nursery.start_soon(send, frame)
                await trio.testing.wait_all_tasks_blocked()
            while len(received) < sum(map(len, frames)):
                received += await peer.receive_some()
        assert received == b"".join(frames)


async def test_what_is_not_sent_when_the_connection_is_frozen_is_kept_in_order() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.setblocking(False)
        theirs.setblocking(False)
        transport = Transport(trio.SocketStream(trio.socket.from_stdlib_socket(ours)), b"", b"")
        frames = [text_frame(str(number) * 1_000_000) for number in range(4)]
        async with trio.open_nursery() as nursery:
            for frame in frames[:3]:
                nursery.start_soon(transport.send_frame, frame)
                await trio.testing.wait_all_tasks_blocked()
            transport.freeze(lambda: None)
            await trio.testing.wait_all_tasks_blocked()
            await transport.send_frame(frames[3])
        sent = theirs.recv(8_000_000)
        while True:
            try:
                sent += theirs.recv(8_000_000)
            except BlockingIOError:
                break
        assert sent + transport.unsent == b"".join(frames)
