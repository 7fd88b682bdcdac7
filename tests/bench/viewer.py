"""The measuring client, the same for both arms: a process that receives, and keeps account.

``python -m tests.bench.viewer CLIENT PORT PATH TOKEN`` (TOKEN may be empty). Prints ``live`` once the stream is live,
and at the end one line of JSON: how many lines each frame carried, and when each frame was whole.
Nothing is looked into before the last frame is there, so that the client's own work does not hide
the server's.

CLIENT is ``plain`` (a socket, and just enough of RFC 6455 to find where frames end: the server is
what is measured) or ``trio`` (trio-websocket, as a Python program would use it). Exit status
`FELL_BEHIND` when the server closed 4008.
"""

import base64
import json
import os
import socket
import sys
import time
from collections.abc import Iterator

import trio
from trio_websocket import ConnectionClosed, connect_websocket

from tests.bench.lines import DONE, numbers

RECEIVE_BYTES = 256 * 1024
MAX_FRAME_BYTES = 16 * 1024 * 1024
TIMEOUT_S = 120.0
FELL_BEHIND = 8
_TOO_FAR_BEHIND = 4008  # contract.md, close codes
_LIVE = b'{"type":"live"}'


class Account:
    """Every frame as it came."""

    def __init__(self) -> None:
        self._frames: list[tuple[float, bytes | str]] = []

    def took(self, text: bytes | str) -> bool:
        """Keep one frame; True when it was the last."""
        now = time.perf_counter()
        tail = text[-512:]
        if len(text) < 100 and (text.encode() if isinstance(text, str) else text) == _LIVE:
            print("live", flush=True)
            return False
        self._frames.append((now, text))
        return (DONE.encode() if isinstance(tail, bytes) else DONE) in tail  # type: ignore[operator]

    def report(self) -> dict[str, object]:
        """Asserts that every line came once, in order and whole."""
        counts: list[int] = []
        times: list[float] = []
        seen = 0
        for when, text in self._frames:
            frame = json.loads(text)
            if frame["type"] != "messages":
                continue
            found = numbers(frame["messages"])
            if not found:
                continue
            assert found == list(range(seen + 1, seen + 1 + len(found))), "lost or out of order"
            seen += len(found)
            counts.append(len(found))
            times.append(when)
        return {"counts": counts, "times": times}


def plain(port: int, path: str, token: str, account: Account) -> int | None:
    """The code if the server closed before the last line."""
    with socket.create_connection(("127.0.0.1", port), TIMEOUT_S) as sock:
        key = base64.b64encode(os.urandom(16)).decode()
        login = f"Authorization: Bearer {token}\r\n" if token else ""
        sock.sendall(
            f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nUpgrade: websocket\r\n"
            f"Connection: Upgrade\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: {key}\r\n"
            f"Sec-WebSocket-Protocol: holdover.v1\r\n{login}\r\n".encode()
        )
        received = bytearray()
        while b"\r\n\r\n" not in received:
            received += _receive(sock)
        head, _, received = received.partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 101"), head.decode()
        for opcode, payload in _frames(sock, received):
            if opcode == 8:
                return int.from_bytes(payload[:2], "big")
            if opcode == 1 and account.took(payload):
                break
    return None


def _receive(sock: socket.socket) -> bytes:
    data = sock.recv(RECEIVE_BYTES)
    assert data, "the server hung up"
    return data


def _frames(sock: socket.socket, received: bytearray) -> Iterator[tuple[int, bytes]]:
    """(opcode, payload) of each frame; a server sends them unmasked, and ours unfragmented."""
    while True:
        while len(received) < 10 and len(received) < 2 + _length_bytes(received):
            received += _receive(sock)
        extra = _length_bytes(received)
        assert received[0] & 0x80, "a fragmented message"
        size = int.from_bytes(received[2 : 2 + extra], "big") if extra else received[1]
        start = 2 + extra
        while len(received) < start + size:
            received += _receive(sock)
        yield received[0] & 0x0F, bytes(memoryview(received)[start : start + size])
        del received[: start + size]


def _length_bytes(received: bytearray) -> int:
    return {126: 2, 127: 8}.get(received[1], 0) if len(received) > 1 else 8


async def with_trio(port: int, path: str, token: str, account: Account) -> int | None:
    """As `plain`."""
    code: int | None = None
    headers = [(b"Authorization", f"Bearer {token}".encode())] if token else []
    async with trio.open_nursery() as nursery:
        connection = await connect_websocket(
            nursery,
            "127.0.0.1",
            port,
            path,
            use_ssl=False,
            subprotocols=["holdover.v1"],
            extra_headers=headers,
            message_queue_size=4,
            max_message_size=MAX_FRAME_BYTES,
        )
        try:
            while not account.took(await connection.get_message()):
                pass
        except ConnectionClosed as closed:
            code = closed.reason.code if closed.reason is not None else 1006
        nursery.cancel_scope.cancel()
    return code


def main(client: str, port: int, path: str, token: str) -> None:
    account = Account()
    if client == "plain":
        code = plain(port, path, token, account)
    else:
        code = trio.run(with_trio, port, path, token, account)
    if code is not None:
        if code == _TOO_FAR_BEHIND:
            sys.exit(FELL_BEHIND)
        sys.exit(f"The server closed {code} before the last line.")
    print(json.dumps(account.report()), flush=True)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), sys.argv[3], sys.argv[4])
