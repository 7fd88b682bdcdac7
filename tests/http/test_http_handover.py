"""Connections that change servers in the middle: whatever the byte, nothing is lost or said twice.

Two servers of one process stand for two instances, over real sockets: what is detached from one is
attached to the other, again and again, at random moments of a fixed seed.
"""

import json
import os
import random
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
import trio
import trio.testing
from wsproto.connection import Connection, ConnectionType
from wsproto.events import CloseConnection, Ping, Pong, TextMessage
from wsproto.frame_protocol import FrameProtocol, Opcode

from holdoverd.callers import Caller
from holdoverd.errors import OwnedElsewhere
from holdoverd.handover.packed import Detached, HttpState, StreamState, pack, unpack
from holdoverd.http.server import Server
from holdoverd.sessions.viewer import ViewerCursor, ViewerDetached
from tests.http.kit import KEY, PROMPT_ID, Doors

UPGRADE = (
    "GET /v1/sessions/s_0/stream HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\n"
    "Connection: Upgrade\r\nSec-WebSocket-Version: 13\r\n"
    f"Sec-WebSocket-Key: {KEY}\r\nSec-WebSocket-Protocol: holdover.v1\r\n\r\n"
).encode()
GET = b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n"


class CountingViewer:
    """Gives the frames `from_n`, `from_n` + 1 …, as fast as they are taken; `size` bytes each."""

    def __init__(self, from_n: int, size: int, upto: int) -> None:
        self.n = from_n
        self._filler = "x" * size
        self._upto = upto
        self._over: trio.CancelScope = trio.CancelScope()
        self.closed = False

    async def next_frame(self) -> str:
        if self._over.cancel_called:
            raise ViewerDetached("detached")
        await trio.lowlevel.checkpoint()
        if self.n >= self._upto and not self._over.cancel_called:
            with self._over:
                await trio.sleep_forever()
        if self._over.cancel_called:
            raise ViewerDetached("detached")
        self.n += 1
        return json.dumps({"type": "messages", "n": self.n - 1, "filler": self._filler})

    def subscribe(self, thread: str, after_n: int | None) -> None:
        raise AssertionError("nobody subscribes here")

    def detach(self) -> ViewerCursor:
        self._over.cancel()
        return ViewerCursor("live", self.n, None)

    def close(self) -> None:
        self.closed = True


class Pair:
    """Two servers, and connections that are passed to and fro between them."""

    def __init__(self, doors: Doors, other: Server) -> None:
        self.servers = [doors.server, other]
        self.sessions = doors.sessions
        self.moves = 0
        self.refused = 0

    async def move_stream(self) -> None:
        """From whoever has it to the other one, through the form it is sent in."""
        for giver, taker in (self.servers, self.servers[::-1]):
            detached = await giver.detach_session("s_0")
            if detached is None:
                self.refused += 1
            for one in detached or ():
                taker.attach(sent(one))
                self.moves += 1

    async def move_http(self) -> int:
        moved = 0
        for giver, taker in (self.servers, self.servers[::-1]):
            for one in await giver.detach_idle_http():
                taker.attach(sent(one))
                moved += 1
            if moved:
                break
        return moved


def sent(detached: Detached) -> Detached:
    return Detached(unpack(*pack(detached.state)), detached.socket)


@asynccontextmanager
async def pair(
    doors: Doors, *, size: int = 100, upto: int = 10**9
) -> AsyncIterator[tuple[Pair, trio.SocketStream]]:
    """A pair, and a client's connection to the first of it, by the admin door."""
    doors.sessions.sessions["s_0"] = {"id": "s_0", "owner": "default"}

    async def open_viewer(caller: Caller, session: str, **_: object) -> CountingViewer:
        await trio.lowlevel.checkpoint()
        return CountingViewer(0, size, upto)

    async def attach_viewer(caller: Caller, session: str, cursor: ViewerCursor) -> CountingViewer:
        await trio.lowlevel.checkpoint()
        return CountingViewer(cursor.seq, size, upto)

    doors.sessions.open_viewer = open_viewer  # type: ignore[method-assign,assignment]
    doors.sessions.attach_viewer = attach_viewer  # type: ignore[method-assign,assignment]
    async with trio.open_nursery() as nursery:
        other = Server(doors.server._app)
        await nursery.start(other.serve, {})
        ours, theirs = socket.socketpair()
        doors.server.serve_connection("admin", theirs)
        ours.setblocking(False)
        async with trio.SocketStream(trio.socket.from_stdlib_socket(ours)) as client:
            yield Pair(doors, other), client
        nursery.cancel_scope.cancel()


class Reader:
    """The client's side: what came, checked as it comes."""

    def __init__(self, rest: bytes) -> None:
        self._ws = Connection(ConnectionType.CLIENT)
        self._ws.receive_data(rest)
        self._parts: list[str] = []
        self.frames = 0
        self.answers: list[str] = []
        self.pongs: list[bytes] = []
        self.pings: list[bytes] = []
        self.closed: int | None = None

    def take(self, data: bytes) -> None:
        if data:
            self._ws.receive_data(data)
        for event in self._ws.events():
            match event:
                case TextMessage(data=text, message_finished=finished):
                    self._parts.append(text)
                    if finished:
                        self._message("".join(self._parts))
                        self._parts.clear()
                case Pong(payload=payload):
                    self.pongs.append(bytes(payload))
                case Ping(payload=payload):
                    self.pings.append(bytes(payload))
                case CloseConnection(code=code):
                    self.closed = int(code)

    def _message(self, text: str) -> None:
        frame = json.loads(text)
        if frame["type"] == "messages":
            assert frame["n"] == self.frames, "a frame is missing or came twice"
            self.frames += 1
        else:
            assert frame["type"] in ("ok", "pong"), frame
            self.answers.append(frame["ref"])


async def upgraded(client: trio.SocketStream, *behind: bytes) -> Reader:
    """Upgrade, with frames sent at once behind the request; past the one 101."""
    await client.send_all(UPGRADE + b"".join(behind))
    said = b""
    while b"\r\n\r\n" not in said:
        said += await client.receive_some(4096)
    head, _, rest = said.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 101 ")
    return Reader(rest)


def in_pieces(rng: random.Random, text: str, most: int = 4) -> bytes:
    """A text message in random fragments, pings between them, masked as a client's are."""
    client = FrameProtocol(True, [])
    data = text.encode()
    cuts = sorted(rng.sample(range(len(data)), min(rng.randrange(most), len(data))))
    parts = [data[a:b] for a, b in zip([0, *cuts], [*cuts, len(data)], strict=True)]
    said = b""
    for index, part in enumerate(parts):
        if rng.random() < 0.3:
            said += bytes(client.ping(b"%d" % rng.randrange(1000)))
        opcode = Opcode.CONTINUATION if index else Opcode.TEXT
        said += bytes(client._serialize_frame(opcode, part, index == len(parts) - 1))
    return said


def prompt(number: int, filler: int = 0) -> str:
    return json.dumps(
        {"type": "prompt", "id": PROMPT_ID, "text": "y" * (filler + 1), "ref": str(number)}
    )


@pytest.mark.slow
async def test_five_hundred_handovers_at_random_bytes_lose_and_repeat_nothing(
    doors: Doors,
) -> None:
    rng = random.Random(20261127)
    async with pair(doors, size=3000) as (both, client):
        reader = await upgraded(client)
        asked = 0
        over = False

        async def write() -> None:
            nonlocal asked
            while not over:
                said = b""
                for _ in range(rng.randrange(1, 6)):
                    said += in_pieces(rng, prompt(asked, rng.choice([0, 10, 200, 70_000])))
                    asked += 1
                while said:
                    size = rng.choice([1, 2, 3, 7, 50, 1000, 40_000])
                    await client.send_all(said[:size])
                    said = said[size:]
                    if rng.random() < 0.3:
                        await trio.lowlevel.checkpoint()

        async def read() -> None:
            while True:
                reader.take(await client.receive_some(rng.choice([1, 100, 5000, 65536])))
                if rng.random() < 0.2:
                    await trio.sleep(0.001)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(read)
            nursery.start_soon(write)
            with trio.fail_after(240):
                while both.moves < 500:
                    await both.move_stream()
                    for _ in range(rng.randrange(20)):
                        await trio.lowlevel.checkpoint()
                over = True
                while len(reader.answers) < asked:
                    await trio.sleep(0.01)
            nursery.cancel_scope.cancel()
        assert reader.answers == [str(n) for n in range(asked)]
        prompts = [call for call in both.sessions.calls if call[0] == "prompt"]
        assert len(prompts) == asked, "a prompt was lost, or handled twice"
        assert reader.frames > 500
        assert reader.pongs
        assert reader.closed is None


@pytest.mark.slow
async def test_a_message_of_sixteen_mebibytes_is_cut_in_the_middle(doors: Doors) -> None:
    rng = random.Random(3)
    async with pair(doors, upto=3) as (both, client):
        reader = await upgraded(client)
        message = prompt(1, 10 * 1024 * 1024 - 200)
        message += " " * (16 * 1024 * 1024 - len(message))
        said = in_pieces(rng, message, most=3)
        for start in range(0, len(said), 1 << 20):
            await client.send_all(said[start : start + (1 << 20)])
            await both.move_stream()
        with trio.fail_after(60):
            while not reader.answers:
                reader.take(await client.receive_some(65536))
        assert both.moves >= 15
        assert (reader.answers, reader.frames) == (["1"], 3)


@pytest.mark.slow
async def test_a_slow_viewer_gets_the_rest_of_a_half_sent_frame(doors: Doors) -> None:
    async with pair(doors, size=3_000_000, upto=4) as (both, client):
        reader = await upgraded(client)
        with trio.fail_after(60):
            while reader.frames < 4:
                await both.move_stream()
                reader.take(await client.receive_some(100_000))
        assert both.moves >= 10


async def test_ten_frames_behind_the_upgrade_arrive_whoever_gets_the_connection(
    doors: Doors,
) -> None:
    rng = random.Random(5)
    async with pair(doors, upto=0) as (both, client):
        reader = await upgraded(client, *(in_pieces(rng, prompt(n), most=1) for n in range(10)))
        with trio.fail_after(60):
            while len(reader.answers) < 10:
                await both.move_stream()
                with trio.move_on_after(0.01):
                    reader.take(await client.receive_some(65536))
        assert reader.answers == [str(n) for n in range(10)]


async def test_half_a_request_is_answered_by_whoever_has_the_connection_then(
    doors: Doors,
) -> None:
    async with pair(doors) as (both, client):
        for cut in range(0, len(GET), 3):
            await client.send_all(GET[:cut])
            await trio.testing.wait_all_tasks_blocked()
            assert await both.move_http() == 1
            await client.send_all(GET[cut:])
            said = b""
            with trio.fail_after(60):
                while not said.endswith(b"}"):
                    said += await client.receive_some(4096)
            assert said.startswith(b"HTTP/1.1 200"), said
        await client.send_all(UPGRADE[:70])
        await trio.testing.wait_all_tasks_blocked()
        assert await both.move_http() == 1
        await client.send_all(UPGRADE[70:])
        with trio.fail_after(60):
            assert (await client.receive_some(12)) == b"HTTP/1.1 101"


async def test_an_upgrade_for_a_session_owned_elsewhere_goes_there_in_one_hop(
    doors: Doors,
) -> None:
    async with pair(doors, upto=2) as (both, client):
        here = doors.sessions.open_viewer
        asked = 0
        passed: list[tuple[int, HttpState | StreamState]] = []

        async def open_viewer(caller: Caller, session: str, **options: Any) -> Any:
            nonlocal asked
            asked += 1
            if asked == 1:
                raise OwnedElsewhere("It is generation 9's.", 9)
            return await here(caller, session, **options)

        class Router:
            async def pass_on(self, detached: Detached, generation: int) -> bool:
                passed.append((generation, detached.state))
                both.servers[1].attach(sent(detached))
                return True

        doors.sessions.open_viewer = open_viewer  # type: ignore[method-assign,assignment]
        doors.context.router = Router()  # type: ignore[assignment]
        rng = random.Random(7)
        reader = await upgraded(client, *(in_pieces(rng, prompt(n)) for n in range(10)))
        with trio.fail_after(60):
            while len(reader.answers) < 10 or reader.frames < 2:
                reader.take(await client.receive_some(65536))
        ((generation, state),) = passed
        assert generation == 9
        assert isinstance(state, HttpState)
        assert state.hops == 1
        assert [server.connections for server in both.servers] == [0, 1]


@pytest.mark.slow
@pytest.mark.parametrize("moves", [1000, pytest.param(10_000, marks=pytest.mark.soak)])
async def test_thousands_of_handovers_leave_no_descriptor_behind(doors: Doors, moves: int) -> None:
    async with pair(doors, upto=10**9) as (both, client):
        reader = await upgraded(client)

        async def read() -> None:
            while True:
                reader.take(await client.receive_some(65536))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(read)
            await both.move_stream()
            before = len(os.listdir("/proc/self/fd"))
            with trio.fail_after(600):
                while both.moves < moves:
                    await both.move_stream()
            assert len(os.listdir("/proc/self/fd")) <= before + 1
            nursery.cancel_scope.cancel()


async def test_a_stream_whose_token_is_revoked_after_a_handover_is_closed(doors: Doors) -> None:
    token, token_id = await doors.token("default")
    async with pair(doors, upto=1) as (both, _client):
        ours, theirs = socket.socketpair()
        both.servers[0].serve_connection("public", theirs)
        ours.setblocking(False)
        async with trio.SocketStream(trio.socket.from_stdlib_socket(ours)) as stranger:
            head = UPGRADE.replace(
                b"Host: localhost",
                b"Host: localhost\r\nAuthorization: Bearer " + token.encode(),
            )
            await stranger.send_all(head)
            said = b""
            while b"\r\n\r\n" not in said:
                said += await stranger.receive_some(4096)
            reader = Reader(said.partition(b"\r\n\r\n")[2])
            await both.move_stream()
            assert both.moves >= 1
            assert (await doors.admin("DELETE", f"/v1/tokens/{token_id}")).status == 204
            with trio.fail_after(60):
                while reader.closed is None:
                    reader.take(await stranger.receive_some(65536))
            assert reader.closed == 4001
