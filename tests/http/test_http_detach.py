"""Connections that move between two servers, again and again, whatever they are in the middle of.

Both are in this process; the sockets are real, since only those can move, and every state goes
through its packed form. A client of raw bytes sees to it that nothing is missing, comes twice, or
comes in another order. Moments are random, the same in every run but for trio's order of tasks.
"""

import json
import os
import random
import socket
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from typing import Any

import pytest
import trio
from wsproto.connection import Connection, ConnectionType
from wsproto.events import CloseConnection, Ping, Pong, TextMessage
from wsproto.frame_protocol import FrameProtocol, Opcode

from holdoverd.catalogue.store import Catalogue
from holdoverd.errors import NotFound, OwnedElsewhere, Unavailable
from holdoverd.handover.packed import Detached, HttpState, pack, unpack
from holdoverd.http import stream as stream_module
from holdoverd.http.context import Json
from tests.http.kit import KEY, PROMPT_ID, Client, Doors, FakeSessions, FakeViewer, open_doors

PATH = "/v1/sessions/s_0/stream"
UPGRADE = (
    f"GET {PATH} HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    f"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: {KEY}\r\n"
    "Sec-WebSocket-Protocol: holdover.v1\r\n\r\n"
).encode()
WAIT_S = 60


def open_sockets() -> int:
    """Descriptors of this process that are sockets; the catalogue opens files as it likes.

    An earlier test's may be closed by the garbage collector at any time: fewer are no leak.
    """
    found = 0
    for fd in os.listdir("/proc/self/fd"):
        with suppress(FileNotFoundError):  # of the listing itself
            found += os.readlink(f"/proc/self/fd/{fd}").startswith("socket:")
    return found


def repacked(detached: Detached) -> Detached:
    """As it arrives in another process."""
    fields, blob = pack(detached.state)
    return Detached(unpack(json.loads(json.dumps(fields)), blob), detached.socket)


class Pair:
    """Two instances with the same sessions, and where the connection is."""

    def __init__(self, one: Doors, two: Doors) -> None:
        self.doors = [one, two]
        self.sessions = one.sessions
        self.here = 0
        self.moves = 0
        self.refused = 0

    @property
    def at(self) -> Doors:
        return self.doors[self.here]

    async def move(self) -> bool:
        """Move what can be moved; False where nothing could."""
        server = self.at.server
        detached = await server.detach_session("s_0")
        if detached is None:
            self.refused += 1
            return False
        detached += await server.detach_idle_http()
        self.here = 1 - self.here
        for one in detached:
            self.moves += 1
            self.at.server.attach(repacked(one))
        return bool(detached)

    def connect(self, *, buffer: int | None = None, tcp: bool = False) -> trio.SocketStream:
        """A client's end; the other one is served where we are."""
        if tcp:
            with socket.create_server(("127.0.0.1", 0)) as listener:
                ours = socket.create_connection(listener.getsockname())
                theirs, _ = listener.accept()
        else:
            ours, theirs = socket.socketpair()
        if buffer is not None:
            theirs.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, buffer)
            ours.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer)
        self.at.server.attach(Detached(HttpState("admin"), theirs))
        ours.setblocking(False)
        return trio.SocketStream(trio.socket.from_stdlib_socket(ours))


@asynccontextmanager
async def two_servers(catalogue: Catalogue) -> AsyncIterator[Pair]:
    sessions = FakeSessions()
    sessions.sessions["s_0"] = {"id": "s_0", "owner": "alice"}
    async with (
        open_doors(catalogue, sessions=sessions) as one,
        open_doors(catalogue, sessions=sessions) as two,
    ):
        with trio.fail_after(WAIT_S * 3):
            yield Pair(one, two)


@pytest.fixture
async def pair(catalogue: Catalogue) -> AsyncIterator[Pair]:
    before = open_sockets()
    async with two_servers(catalogue) as pair:
        yield pair
    assert open_sockets() <= before, "a descriptor was left behind"


class Peer:
    """A WebSocket client made of bytes: what it says can be cut anywhere."""

    def __init__(self, stream: trio.SocketStream) -> None:
        self.stream = stream
        self._ws = Connection(ConnectionType.CLIENT)
        self._frames = FrameProtocol(True, [])
        self._head: bytes | None = b""
        self._parts: list[str] = []
        self.texts: list[str] = []
        self.pongs: list[bytes] = []
        self.pings: list[bytes] = []
        self.close: tuple[int, str | None] | None = None
        self.eof = False
        self.changed = trio.Event()

    def message(self, text: str, cuts: Sequence[int] = (), ping: bytes | None = None) -> bytes:
        """A text in fragments, with a ping behind each but the last."""
        data = text.encode()
        ends = [*sorted(cuts), len(data)]
        said, start = b"", 0
        for index, end in enumerate(ends):
            opcode = Opcode.CONTINUATION if index else Opcode.TEXT
            last = index == len(ends) - 1
            said += bytes(self._frames._serialize_frame(opcode, data[start:end], last))
            start = end
            if ping is not None and not last:
                said += bytes(self._frames.ping(ping))
        return said

    def ping(self, payload: bytes) -> bytes:
        return bytes(self._frames.ping(payload))

    @property
    def upgraded(self) -> bool:
        return self._head is None

    async def read_some(self, most: int = 64 * 1024) -> None:
        data = await self.stream.receive_some(most)
        if not data:
            self.eof = True
        elif self._head is not None:
            self._head += data
            head, found, data = self._head.partition(b"\r\n\r\n")
            if found:
                assert head.startswith(b"HTTP/1.1 101 "), head
                self._head = None
                self._heard(data)
        else:
            self._heard(data)
        self.changed.set()
        self.changed = trio.Event()

    def _heard(self, data: bytes) -> None:
        self._ws.receive_data(data)
        for event in self._ws.events():
            match event:
                case TextMessage():
                    self._parts.append(event.data)
                    if event.message_finished:
                        self.texts.append("".join(self._parts))
                        self._parts.clear()
                case Pong():
                    self.pongs.append(bytes(event.payload))
                case Ping():
                    self.pings.append(bytes(event.payload))
                case CloseConnection():
                    self.close = (int(event.code), event.reason)
                case other:
                    raise AssertionError(f"unexpected: {other!r}")

    async def read(self) -> None:
        while not self.eof:
            await self.read_some()
            if self.close is not None and not self.eof:
                with suppress(trio.BrokenResourceError):
                    await self.stream.send_all(bytes(self._frames.close(self.close[0])))

    async def wait(self, condition: Callable[[], object]) -> None:
        while not condition():
            await self.changed.wait()


def frame_number(number: int, size: int) -> str:
    return json.dumps({"type": "messages", "number": number, "pad": "x" * size})


class Story:
    """One client and what is said on both sides while it moves."""

    def __init__(self, pair: Pair, seed: int) -> None:
        self.random = random.Random(seed)
        self.pair = pair
        # So that frames are sent in part. TCP waits for 40 ms whenever a window is very small.
        tcp = self.random.random() < 0.3
        tiny = 64 * 1024 if tcp else 4096
        stream = pair.connect(buffer=tiny if self.random.random() < 0.6 else None, tcp=tcp)
        self.peer = Peer(stream)
        self.refs = 0
        self.prompts: list[str] = []
        self.pings: list[bytes] = []
        self.pushed = 0

    def say(self) -> bytes:
        """Something that a client says: what is to be answered is noted."""
        what = self.random.random()
        size = self.random.choice([0, 0, 50, 150, 5000, 70_000])
        if what < 0.15:
            self.pings.append(b"%d" % len(self.pings))
            return self.peer.ping(self.pings[-1])
        self.refs += 1
        frame: Json = {"type": "ping", "ref": self.refs, "pad": "é" * size}
        if what < 0.4:
            text = f"prompt {len(self.prompts)}"
            self.prompts.append(text)
            frame = {"type": "prompt", "ref": self.refs, "id": PROMPT_ID, "text": text}
        text = json.dumps(frame, ensure_ascii=False)
        cuts = sorted(
            self.random.randrange(len(text)) for _ in range(self.random.choice([0, 0, 3]))
        )
        ping = None
        if cuts and self.random.random() < 0.7:
            ping = b"between"
            self.pings += [ping] * len(cuts)
        return self.peer.message(text, cuts, ping)

    def push(self) -> None:
        if self.pair.sessions.viewers:
            size = self.random.choice([0, 10, 200, 20_000, 300_000])
            self.pair.sessions.viewers[-1].push(frame_number(self.pushed, size))
            self.pushed += 1

    async def run(self) -> None:
        said = UPGRADE + b"".join(self.say() for _ in range(self.random.choice([0, 1, 10])))
        for _ in range(self.random.randrange(12)):
            said += self.say()
        cuts = sorted(self.random.randrange(len(said)) for _ in range(self.random.randrange(1, 7)))
        # Where what is cut is small, near the beginning.
        cuts = sorted({*cuts, self.random.randrange(len(UPGRADE) + 40)})
        async with trio.open_nursery() as nursery:
            reads_late = self.random.random() < 0.4
            if not reads_late:
                nursery.start_soon(self.peer.read)
            start = 0
            for end in [*cuts, len(said)]:
                async with trio.open_nursery() as sending:
                    sending.start_soon(self.peer.stream.send_all, said[start:end])
                    start = end
                    for _ in range(self.random.randrange(3)):
                        self.push()
                    for _ in range(self.random.randrange(6)):
                        await trio.lowlevel.checkpoint()
                    for _ in range(self.random.randrange(1, 4)):
                        await self.pair.move()
                        for _ in range(self.random.randrange(4)):
                            await trio.lowlevel.checkpoint()
                    if reads_late:
                        # Else neither side would get any further.
                        reads_late = False
                        nursery.start_soon(self.peer.read)
            with trio.fail_after(WAIT_S):
                await self.peer.wait(lambda: self.answered() and self.peer.upgraded)
                while self.random.random() < 0.7:
                    self.push()
                    await self.pair.move()
                await self.peer.wait(lambda: len(self.numbers()) >= self.pushed)
                await self.peer.wait(lambda: len(self.peer.pongs) >= len(self.pings))
            nursery.cancel_scope.cancel()
        await self.peer.stream.aclose()
        self.check()

    def answered(self) -> bool:
        return len(self.peer.texts) - len(self.numbers()) >= self.refs

    def numbers(self) -> list[int]:
        return [json.loads(t)["number"] for t in self.peer.texts if '"number"' in t[:60]]

    def check(self) -> None:
        frames = [json.loads(text) for text in self.peer.texts]
        assert self.numbers() == list(range(self.pushed))
        assert [f["ref"] for f in frames if "ref" in f] == list(range(1, self.refs + 1))
        assert {f["type"] for f in frames if "ref" in f} <= {"pong", "ok"}
        assert self.peer.pongs == self.pings
        assert (self.peer.close, self.peer.eof) == (None, False)
        calls = [call[3]["text"] for call in self.pair.sessions.calls if call[0] == "prompt"]  # type: ignore[index]
        assert calls == self.prompts


@pytest.mark.slow
@pytest.mark.parametrize("block", range(10))
async def test_whatever_it_is_in_the_middle_of_every_byte_arrives(
    catalogue: Catalogue, block: int
) -> None:
    """50 stories each: pipelined frames, fragments, pings between them, slow readers, half heads."""
    moves = 0
    before = open_sockets()
    for seed in range(block * 50, block * 50 + 50):
        async with two_servers(catalogue) as pair:
            try:
                await Story(pair, seed).run()
            except BaseException as error:
                error.add_note(f"seed {seed} after {pair.moves} moves")
                raise
            moves += pair.moves
            await gone(pair)
        assert open_sockets() <= before
    assert moves > 200


async def gone(pair: Pair) -> None:
    """Until no connection is left on either side."""
    with trio.fail_after(WAIT_S):
        while any(doors.server.connections for doors in pair.doors):
            await trio.sleep(0.001)


async def upgraded(pair: Pair, *, buffer: int | None = None) -> Peer:
    """A client whose WebSocket is served."""
    peer = Peer(pair.connect(buffer=buffer))
    await peer.stream.send_all(UPGRADE)
    while not peer.upgraded:
        await peer.read_some()
    return peer


async def test_a_message_of_16_mib_that_is_cut_in_the_middle_arrives(pair: Pair) -> None:
    peer = await upgraded(pair)
    head, tail = '{"type":"ping","ref":1,"pad":"', '"}'
    text = head + "x" * (16 * 1024 * 1024 - len(head) - len(tail)) + tail
    said = peer.message(text, [1000, 5_000_000], b"between")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(peer.read)
        start = 0
        for end in (1, 1010, 4_000_000, 9_000_000, 16_000_000, len(said) - 1, len(said)):
            await peer.stream.send_all(said[start:end])
            start = end
            for _ in range(3):
                await trio.testing.wait_all_tasks_blocked()
            assert await pair.move()
        await peer.wait(lambda: peer.texts)
        nursery.cancel_scope.cancel()
    assert peer.texts == ['{"type":"pong","ref":1}']
    assert peer.pongs == [b"between"] * 2
    await peer.stream.aclose()
    await gone(pair)


async def test_a_message_over_16_mib_is_1009_wherever_its_rest_would_have_come(pair: Pair) -> None:
    peer = await upgraded(pair)
    said = bytes(FrameProtocol(True, [])._serialize_frame(Opcode.TEXT, b"x" * 16_777_217, True))
    await peer.stream.send_all(said[:1000])
    await trio.testing.wait_all_tasks_blocked()
    assert await pair.at.server.detach_session("s_0") == []
    await peer.read()
    assert peer.close is not None
    assert peer.close[0] == 1009
    await peer.stream.aclose()
    await gone(pair)


async def test_a_slow_viewer_gets_the_rest_of_a_frame_and_what_is_behind_it(pair: Pair) -> None:
    """While it reads nothing at all: each of the instances has sent a part of the frame, or none."""
    peer = await upgraded(pair, buffer=4096)
    for number in range(3):
        pair.sessions.viewers[-1].push(frame_number(number, 2_000_000))
    await peer.stream.send_all(peer.message('{"type":"ping","ref":1}') + peer.ping(b"late"))
    for _ in range(10):
        await trio.testing.wait_all_tasks_blocked()
        assert await pair.move()
        await peer.read_some(100)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(peer.read)
        await peer.wait(lambda: len(peer.texts) == 4 and peer.pongs)
        nursery.cancel_scope.cancel()
    numbers = [json.loads(text).get("number") for text in peer.texts]
    assert [number for number in numbers if number is not None] == [0, 1, 2]
    assert peer.pongs == [b"late"]
    await peer.stream.aclose()
    await gone(pair)


async def test_a_stream_in_the_middle_of_a_prompt_stays_and_goes_on(
    pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With one beside it that could be moved, and one that reads nothing: neither is harmed."""
    monkeypatch.setattr(stream_module, "DETACH_S", 0.1)
    busy, other, slow = [await upgraded(pair) for _ in range(3)]
    pair.sessions.viewers[-1].push(frame_number(0, 2_000_000))
    pair.sessions.gate = trio.Event()
    prompt = json.dumps({"type": "prompt", "ref": 1, "id": PROMPT_ID, "text": "x"})
    said = busy.message(prompt) + busy.message('{"type":"ping","ref":2}')
    await busy.stream.send_all(said)
    await trio.testing.wait_all_tasks_blocked()
    with trio.fail_after(5):
        assert not await pair.move()
    pair.sessions.viewers[0].push(frame_number(1, 0))
    await busy.read_some()
    assert json.loads(busy.texts[0])["number"] == 1, "it is still served"
    pair.sessions.gate.set()
    await other.stream.send_all(other.message('{"type":"ping","ref":3}'))
    while len(busy.texts) < 3:
        await busy.read_some()
    await other.read_some()
    assert [json.loads(text).get("ref") for text in busy.texts[1:] + other.texts] == [1, 2, 3]
    assert await pair.move()
    while not slow.texts:
        await slow.read_some()
    for peer in (busy, other, slow):
        await peer.stream.aclose()
    await gone(pair)


async def by_token(pair: Pair, token: str) -> Peer:
    """A client at the public door whose WebSocket is served."""
    ours, theirs = socket.socketpair()
    pair.at.server.attach(Detached(HttpState("public"), theirs))
    ours.setblocking(False)
    peer = Peer(trio.SocketStream(trio.socket.from_stdlib_socket(ours)))
    bearer = f"\r\nAuthorization: Bearer {token}\r\n\r\n".encode()
    await peer.stream.send_all(UPGRADE[:-4] + bearer)
    while not peer.upgraded:
        await peer.read_some()
    return peer


async def test_a_token_that_is_revoked_while_a_connection_moves_closes_it_4001(
    pair: Pair,
) -> None:
    token, token_id = await pair.at.token()
    peer = await by_token(pair, token)
    detached = await pair.at.server.detach_session("s_0")
    assert detached is not None
    assert (await pair.at.admin("DELETE", f"/v1/tokens/{token_id}")).status == 204
    pair.doors[1].server.attach(repacked(detached[0]))
    await peer.read()
    assert peer.close is not None
    assert peer.close[0] == 4001
    await peer.stream.aclose()
    while pair.doors[1].server.connections:
        await trio.sleep(0.001)


async def test_a_token_that_is_revoked_later_closes_what_came_from_elsewhere_too(
    pair: Pair,
) -> None:
    token, token_id = await pair.at.token()
    peer = await by_token(pair, token)
    detached = await pair.at.server.detach_session("s_0")
    assert detached is not None
    pair.doors[1].server.attach(repacked(detached[0]))
    await trio.testing.wait_all_tasks_blocked()
    assert [len(doors.context.streams) for doors in pair.doors] == [0, 1]
    pair.doors[1].context.streams.token_gone(token_id)
    await peer.read()
    assert peer.close is not None
    assert peer.close[0] == 4001
    await peer.stream.aclose()
    while pair.doors[1].server.connections:
        await trio.sleep(0.001)


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (NotFound("gone"), 4004),
        (Unavailable("not now"), 1001),
        (OwnedElsewhere("there", 7), 1001),
        (RuntimeError("a defect"), 1011),
    ],
)
async def test_a_session_that_cannot_be_watched_on_closes_behind_what_was_half_sent(
    pair: Pair, error: Exception, code: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stream_module, "ATTACH_S", 0.1)
    peer = await upgraded(pair, buffer=4096)
    pair.sessions.viewers[-1].push(frame_number(0, 500_000))
    await trio.testing.wait_all_tasks_blocked()
    pair.sessions.fail = error
    assert await pair.move()
    await peer.read()
    assert json.loads(peer.texts[0])["number"] == 0
    assert peer.close is not None
    assert peer.close[0] == code
    await peer.stream.aclose()
    await gone(pair)


@pytest.mark.parametrize(
    "bad",
    [
        b"\x88\x80\0\0\0\0",  # a close
        b"\x81\x05hello",  # not masked
        b"\x81\x82\0\0\0\0\xff\xfe",  # not UTF-8
        b"\x81\xfe\x00\x05\0\0\0\0hello",  # a length in more bytes than it needs
        b"",  # gone without a word
    ],
)
async def test_a_client_that_goes_or_talks_nonsense_meanwhile_ends_and_keeps_nobody(
    pair: Pair, bad: bytes
) -> None:
    """Whether that has been read by then or not, nothing waits for it and nothing breaks."""
    for checkpoints in range(12):
        peer, good = await upgraded(pair), await upgraded(pair)
        await peer.stream.send_all(peer.message('{"type":"ping","ref":1}') + bad)
        if not bad:
            await peer.stream.aclose()
        for _ in range(checkpoints):
            await trio.lowlevel.checkpoint()
        with trio.fail_after(5):
            detached = await pair.at.server.detach_session("s_0")
        assert detached is not None
        assert 1 <= len(detached) <= 2
        for one in detached:
            pair.at.server.attach(one)
        if bad:
            await peer.read()
            assert peer.texts in ([], ['{"type":"pong","ref":1}'])
            await peer.stream.aclose()
        await good.stream.send_all(good.message('{"type":"ping","ref":2}'))
        await good.read_some()
        assert good.texts == ['{"type":"pong","ref":2}']
        await good.stream.aclose()
        await gone(pair)


async def test_a_connection_on_its_way_to_its_session_is_not_forgotten(
    pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its session cannot be given away in between: nobody would feed its viewer."""
    monkeypatch.setattr(stream_module, "DETACH_S", 0.1)
    peer = await upgraded(pair)
    gate, attach = trio.Event(), pair.sessions.attach_viewer

    async def slowly(*arguments: Any) -> FakeViewer:
        await gate.wait()
        return await attach(*arguments)

    monkeypatch.setattr(pair.sessions, "attach_viewer", slowly)
    assert await pair.move()
    await trio.testing.wait_all_tasks_blocked()
    assert not await pair.move()
    gate.set()
    await trio.testing.wait_all_tasks_blocked()
    assert await pair.move()
    await peer.stream.send_all(peer.message('{"type":"ping","ref":1}'))
    await peer.read_some()
    assert peer.texts == ['{"type":"pong","ref":1}']
    await peer.stream.aclose()
    await gone(pair)


# --- to whoever owns the session -------------------------------------------------------------


class Ways:
    """A router between two servers. `owner`: where the session is; elsewhere it is refused."""

    def __init__(self, pair: Pair, owner: int) -> None:
        self.pair = pair
        self.owner = owner
        self.passed = 0
        self.open = True
        for number, doors in enumerate(pair.doors):
            doors.context.router = self  # type: ignore[assignment]
            doors.context.sessions = Elsewhere(pair.sessions, self, number)  # type: ignore[assignment]

    async def pass_on(self, detached: Detached, generation: int) -> bool:
        self.passed += 1
        if self.open:
            self.pair.doors[generation].server.attach(repacked(detached))
        await trio.lowlevel.checkpoint()
        return self.open


class Elsewhere:
    """The sessions as one of the instances has them."""

    def __init__(self, sessions: FakeSessions, ways: Ways, number: int) -> None:
        self._sessions, self._ways, self._number = sessions, ways, number

    def __getattr__(self, name: str) -> Any:
        call = getattr(self._sessions, name)
        if name in ("open_viewer", "attach_viewer") and self._ways.owner != self._number:

            async def refused(*_: object, **__: object) -> None:
                await trio.lowlevel.checkpoint()
                raise OwnedElsewhere("there", self._ways.owner)

            return refused
        return call


async def test_an_upgrade_for_a_session_elsewhere_takes_one_hop_with_all_that_follows(
    pair: Pair,
) -> None:
    ways = Ways(pair, owner=1)
    peer = Peer(pair.connect())
    pings = [peer.message(f'{{"type":"ping","ref":{number}}}') for number in range(10)]
    await peer.stream.send_all(UPGRADE + b"".join(pings))
    while len(peer.texts) < 10:
        await peer.read_some()
    assert [json.loads(text)["ref"] for text in peer.texts] == list(range(10))
    assert (ways.passed, pair.doors[0].server.connections) == (1, 0)
    await peer.stream.aclose()
    await gone(pair)


async def test_an_upgrade_that_nobody_takes_is_503_after_three_tries(pair: Pair) -> None:
    ways = Ways(pair, owner=1)
    ways.open = False
    client = Client(pair.connect())
    await client.send(UPGRADE)
    answer = await client.answer()
    assert (answer.status, answer.code, ways.passed) == (503, "unavailable", 3)
    assert (await client.ask("GET", "/healthz")).status == 200, "the connection goes on"
    await client.stream.aclose()
    await gone(pair)


async def test_a_stream_follows_its_session_wherever_that_has_gone_meanwhile(pair: Pair) -> None:
    ways = Ways(pair, owner=0)
    peer = await upgraded(pair)
    detached = await pair.at.server.detach_session("s_0")
    assert detached is not None
    pair.doors[1].server.attach(detached[0])  # which has given the session back by then
    await peer.stream.send_all(peer.message('{"type":"ping","ref":1}'))
    await peer.read_some()
    assert peer.texts == ['{"type":"pong","ref":1}']
    assert ways.passed == 1
    await peer.stream.aclose()
    await gone(pair)


# --- HTTP ------------------------------------------------------------------------------------


async def test_a_request_may_be_cut_between_any_two_bytes_of_its_head(pair: Pair) -> None:
    head = b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nX-Long: " + b"x" * 50 + b"\r\n\r\n"
    client = Client(pair.connect())
    for cut in range(len(head)):
        await client.send(head[:cut])
        for _ in range(cut % 5):
            await trio.lowlevel.checkpoint()
        await pair.move()
        await client.send(head[cut:])
        if cut % 3 == 0:
            await pair.move()
        assert (await client.answer()).status == 200
    assert pair.moves > len(head) / 2
    await client.stream.aclose()
    await gone(pair)


async def test_requests_that_came_together_are_answered_in_order_wherever_that_is(
    pair: Pair,
) -> None:
    request = b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n"
    client = Client(pair.connect())
    await client.send(request * 5 + request[:10])
    for number in range(6):
        assert (await client.answer()).status == 200
        await pair.move()
        if number == 4:
            await client.send(request[10:])
    await client.stream.aclose()
    await gone(pair)


async def test_a_request_that_is_being_answered_stays_until_it_is(pair: Pair) -> None:
    pair.sessions.gate = trio.Event()
    client = Client(pair.connect())
    async with trio.open_nursery() as nursery:

        async def ask() -> None:
            body = {"id": PROMPT_ID, "text": "x"}
            answer = await client.ask("POST", "/v1/sessions/s_0/prompts", body)
            assert answer.status == 202
            assert "connection" not in answer.headers

        nursery.start_soon(ask)
        await trio.testing.wait_all_tasks_blocked()
        assert await pair.at.server.detach_idle_http() == []
        pair.sessions.gate.set()
    await trio.testing.wait_all_tasks_blocked()
    assert await pair.move()
    assert (await client.ask("GET", "/healthz")).status == 200
    await client.stream.aclose()
    await gone(pair)
