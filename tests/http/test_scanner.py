"""Where messages end: compared, at every byte, with what wsproto makes of the same bytes."""

import random
from collections.abc import Iterator

import pytest
from wsproto.connection import Connection, ConnectionType
from wsproto.events import BytesMessage, CloseConnection, Ping, TextMessage
from wsproto.frame_protocol import FrameProtocol, Opcode

from holdoverd.http import scanner as scanner_module
from holdoverd.http.scanner import FrameScanner


def frames(payload: bytes, *, text: bool, pieces: int) -> Iterator[bytes]:
    """A message as a client would send it, in so many frames."""
    client = FrameProtocol(True, [])
    cuts = sorted(random.sample(range(len(payload) + 1), min(pieces - 1, len(payload))))
    parts = [payload[a:b] for a, b in zip([0, *cuts], [*cuts, len(payload)], strict=True)]
    for index, part in enumerate(parts):
        opcode = Opcode.CONTINUATION if index else (Opcode.TEXT if text else Opcode.BINARY)
        yield bytes(client._serialize_frame(opcode, part, index == len(parts) - 1))


def conversation() -> bytes:
    """Messages of all lengths of header, in pieces, with control frames between the pieces."""
    client = FrameProtocol(True, [])
    said = b""
    for size in random.sample([0, 1, 2, 125, 126, 127, 300, 65535, 65536], 4):
        for frame in frames(b"x" * size, text=size % 2 == 0, pieces=random.choice([1, 1, 2, 5])):
            if random.random() < 0.4:
                said += bytes(client.ping(b"p" * random.randrange(5)))
            if random.random() < 0.2:
                said += bytes(client.pong(b""))
            said += frame
    return said


def heard(server: Connection, data: bytes) -> list[str | bytes]:
    """Whole messages and pings, in order; parts of messages are kept in `server`."""
    told: list[str | bytes] = []
    server.receive_data(data)
    for event in server.events():
        match event:
            case Ping():
                told.append(b"ping " + bytes(event.payload))
            case TextMessage() | BytesMessage():
                parts: list[str | bytes] = server.__dict__.setdefault("parts", [])
                parts.append(event.data)
                if event.message_finished:
                    empty: str | bytes = "" if isinstance(event.data, str) else b""
                    told.append(empty.join(parts))  # type: ignore[arg-type]
                    parts.clear()
            case CloseConnection():
                raise AssertionError(f"wsproto refused: {event!r}")
    return told


def is_message(told: str | bytes) -> bool:
    return not (isinstance(told, bytes) and told.startswith(b"ping "))


@pytest.mark.parametrize("seed", range(25))
def test_what_is_kept_and_what_follows_is_heard_as_if_nothing_had_been(seed: int) -> None:
    random.seed(seed)
    said = conversation()
    near = [n for n in range(len(said)) if n % 997 == 0]
    for cut in sorted({*random.sample(range(len(said)), min(len(said), 60)), *near}):
        scanner, before, after = (
            FrameScanner(),
            *(Connection(ConnectionType.SERVER) for _ in range(2)),
        )
        at = 0
        while at < cut:
            step = random.choice([1, 7, 4096, 100_000])
            scanner.feed(said[at : min(at + step, cut)])
            at += step
        first = heard(before, said[:cut])
        assert scanner.messages == sum(map(is_message, first))
        assert first + heard(after, scanner.partial + said[cut:]) == heard(
            Connection(ConnectionType.SERVER), said
        )


def test_every_byte_of_a_short_conversation() -> None:
    random.seed(1)
    client = FrameProtocol(True, [])
    first, second = frames(b"hello", text=True, pieces=2)
    said = first + bytes(client.ping(b"a")) + bytes(client.ping(b"")) + second
    said += b"".join(frames(b"x" * 200, text=False, pieces=3)) + bytes(client.ping(b"b"))
    whole = heard(Connection(ConnectionType.SERVER), said)
    for cut in range(len(said) + 1):
        scanner = FrameScanner()
        for at in range(cut):
            scanner.feed(said[at : at + 1])
        told = heard(Connection(ConnectionType.SERVER), said[:cut])
        told += heard(Connection(ConnectionType.SERVER), scanner.partial + said[cut:])
        assert told == whole
        assert not scanner.over


def test_nothing_is_kept_behind_a_close_or_what_is_no_websocket() -> None:
    for bad in (
        bytes(FrameProtocol(True, []).close(1000)),
        b"\x81\x05hello",  # not masked
        b"\xf1\x80\0\0\0\0",  # reserved bits
        b"\x83\x80\0\0\0\0",  # reserved opcode
        b"\x09\x80\0\0\0\0",  # a control frame in pieces
        b"\x89\xfe\x00\x7e\0\0\0\0",  # a ping over 125 bytes
        b"\x80\x80\0\0\0\0",  # a continuation of nothing
        b"\x01\x80\0\0\0\0\x81\x80\0\0\0\0",  # a message within a message
    ):
        scanner = FrameScanner()
        scanner.feed(b"".join(frames(b"hi", text=True, pieces=1)) + bad + b"x" * 100)
        scanner.feed(b"x" * 100)
        assert (scanner.messages, scanner.over, scanner.partial) == (1, True, b"")


def test_a_message_is_too_large_as_soon_as_that_is_known(monkeypatch: pytest.MonkeyPatch) -> None:
    limit = scanner_module.MAX_MESSAGE_BYTES
    for size, too_large in ((limit, False), (limit + 1, True), (1 << 64, True)):
        scanner = FrameScanner()
        length = min(size, (1 << 64) - 1).to_bytes(8, "big")
        scanner.feed(b"\x81\xff" + length + b"\0\0\0\0")
        assert scanner.too_large is too_large
    scanner = FrameScanner()
    scanner.feed(b"\x01\x80\0\0\0\0")
    monkeypatch.setattr(scanner_module, "MAX_RECORD_BYTES", 1000)
    for _ in range(200):
        scanner.feed(b"\x00\x80\0\0\0\0")  # a message of nothing, in pieces without end
    assert scanner.too_large
    assert scanner.partial == b""
