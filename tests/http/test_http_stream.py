"""The stream: WebSockets in memory, with a viewer whose frames the test pushes."""

import json
from contextlib import suppress
from typing import Any

import pytest
import trio
from trio.testing import MockClock
from trio_websocket import ConnectionClosed, WebSocketConnection

from holdoverd.errors import Unavailable
from holdoverd.http import stream
from holdoverd.http.frame_queue import MAX_QUEUED_CHARS, FrameQueue
from tests.http.kit import KEY, PROMPT_ID, Client, Doors

UPGRADE = {
    "Upgrade": "websocket",
    "Connection": "keep-alive, Upgrade",
    "Sec_WebSocket_Version": "13",
    "Sec_WebSocket_Key": KEY,
    "Sec_WebSocket_Protocol": "other, holdover.v1",
}
PATH = "/v1/sessions/s_0/stream"


@pytest.fixture
def session(doors: Doors) -> str:
    doors.sessions.sessions["s_0"] = {"id": "s_0", "owner": "alice"}
    return "s_0"


async def say(ws: WebSocketConnection, **frame: object) -> Any:
    """Send a frame and wait for the next one."""
    await ws.send_message(json.dumps(frame))
    return json.loads(await ws.get_message())


async def code_of_close(ws: WebSocketConnection) -> int:
    """Read to the end; the code it was closed with."""
    reason = None
    while reason is None:
        try:
            await ws.get_message()
        except ConnectionClosed as closed:
            reason = closed.reason
    return int(reason.code)


async def test_frames_arrive_in_order_and_the_viewers_end_is_the_close(
    doors: Doors, session: str
) -> None:
    async with doors.websocket(f"{PATH}?after=5&epoch=e1&threads=main") as ws:
        assert ws.subprotocol == "holdover.v1"
        (viewer,) = doors.sessions.viewers
        assert viewer.opened_with == {"after": 5, "epoch": "e1", "threads": "main"}
        for number in range(100):
            viewer.push(f'{{"n":{number}}}')
        viewer.end(4008, "too far behind")
        got = [json.loads(await ws.get_message())["n"] for _ in range(100)]
        assert got == list(range(100))
        assert await code_of_close(ws) == 4008
    await trio.testing.wait_all_tasks_blocked()
    assert viewer.closed


@pytest.mark.parametrize(
    ("query", "change", "said"),
    [
        ("?after=1", {}, "epoch"),
        ("?after=-1&epoch=e", {}, "after"),
        ("?after=1.5&epoch=e", {}, "after"),
        ("?after=99999999999999999999&epoch=e", {}, "after"),
        ("?after=", {}, "after"),
        ("?after=1&after=2&epoch=e", {}, "twice"),
        ("?threads=some", {}, "threads"),
        ("", {"Sec_WebSocket_Protocol": "other"}, "holdover.v1"),
        ("", {"Sec_WebSocket_Protocol": None}, "holdover.v1"),
        ("", {"Sec_WebSocket_Version": "12"}, "13"),
        ("", {"Sec_WebSocket_Key": "short"}, "Sec-WebSocket-Key"),
        ("", {"Sec_WebSocket_Key": None}, "Sec-WebSocket-Key"),
        ("", {"Upgrade": None}, "WebSocket"),
        ("", {"Upgrade": "h2c"}, "WebSocket"),
        ("", {"Connection": "close"}, "Connection: Upgrade"),
        ("", {"Content_Length": "3"}, "no body"),
    ],
)
async def test_what_is_wrong_before_the_upgrade_is_a_400(
    doors: Doors, session: str, query: str, change: dict[str, str | None], said: str
) -> None:
    headers = {k: v for k, v in {**UPGRADE, **change}.items() if v is not None}
    client = doors.client("admin")
    body = b"abc" if "Content_Length" in change else None
    answer = await client.ask("GET", PATH + query, raw=body, **headers)
    assert (answer.status, answer.code) == (400, "bad_request")
    assert said in answer.json()["error"]["message"]
    assert doors.sessions.viewers == []


async def test_a_refused_upgrade_leaves_the_connection_to_http(doors: Doors, session: str) -> None:
    client = doors.client("admin")
    assert (await client.ask("GET", PATH + "?after=x", **UPGRADE)).status == 400
    assert (await client.ask("GET", "/healthz")).status == 200


async def test_after_zero_needs_no_epoch(doors: Doors, session: str) -> None:
    async with doors.websocket(PATH + "?after=0"):
        assert doors.sessions.viewers[0].opened_with["after"] == 0


async def test_a_session_that_is_not_to_be_seen_is_4004_after_the_upgrade(doors: Doors) -> None:
    async with doors.websocket() as ws:
        assert await code_of_close(ws) == 4004


async def test_a_session_that_cannot_be_opened_just_now_is_an_http_error(
    doors: Doors, session: str
) -> None:
    doors.sessions.fail = Unavailable("Owned elsewhere.")
    answer = await doors.admin("GET", PATH, **UPGRADE)
    assert (answer.status, answer.code) == (503, "unavailable")


async def test_frames_pipelined_behind_the_upgrade_are_not_lost(doors: Doors, session: str) -> None:
    client = doors.client("admin")
    lines = [f"GET {PATH} HTTP/1.1", "Host: x"]
    lines += [f"{name.replace('_', '-')}: {value}" for name, value in UPGRADE.items()]
    text = b'{"type":"ping","ref":1}'
    frame = bytes([0x81, 0x80 | len(text), 0, 0, 0, 0]) + text  # masked with zeros
    await client.send("\r\n".join([*lines, "", ""]).encode() + frame * 3)
    received = b""
    with trio.fail_after(60):
        while received.count(b'{"type":"pong","ref":1}') < 3:
            received += await client.stream.receive_some()
    assert received.startswith(b"HTTP/1.1 101 ")


async def test_every_frame_is_answered_as_over_http(doors: Doors, session: str) -> None:
    async with doors.websocket() as ws:
        assert await say(ws, type="ping", ref="a") == {"type": "pong", "ref": "a"}
        assert await say(ws, type="ping") == {"type": "pong"}
        assert await say(ws, type="prompt", ref=1, id=PROMPT_ID, text="hi") == {
            "type": "ok", "ref": 1, "id": PROMPT_ID, "seq": 7,
        }  # fmt: skip
        assert await say(ws, type="interrupt", ref={"any": ["json"]}) == {
            "type": "ok",
            "ref": {"any": ["json"]},
        }
        page = await say(ws, type="page", ref=None, thread="main", page=0)
        assert page == {
            "type": "page", "ref": None, "thread": "main", "page": 0, "sealed": True,
            "epoch": "e1", "messages": [],
        }  # fmt: skip
        changed = await say(ws, type="set", model="m", ref=2)
        assert (changed["type"], changed["ref"], changed["model"]) == ("ok", 2, "m")
        error = await say(ws, type="answer", ref=3, request_id="p_1", behavior="allow")
        assert (error["type"], error["ref"]) == ("error", 3)
        assert error["error"]["code"] == "conflict"
        assert error["error"]["answered_by"] == "bob"
        names = [call[0] for call in doors.sessions.calls]
        assert names == ["open_viewer", "prompt", "interrupt", "page", "patch", "answer"]


async def test_subscribe_says_ok_before_the_threads_frames(doors: Doors, session: str) -> None:
    async with doors.websocket() as ws:
        for number in range(50):
            assert await say(ws, type="subscribe", thread=f"t{number}", after_n=3, ref=number) == {
                "type": "ok",
                "ref": number,
            }
            assert json.loads(await ws.get_message())["of"] == f"t{number}"
        assert doors.sessions.viewers[0].subscribed[:1] == [("t0", 3)]


@pytest.mark.parametrize(
    ("message", "code", "ref"),
    [
        (b'{"type":"ping"}', "bad_request", None),
        ("{", "bad_request", None),
        ("[]", "bad_request", None),
        ('{"type":"ping","ref":"\\ud800"}', "bad_request", None),
        ('{"type":"ping","ref":NaN}', "bad_request", None),
        ("[" * 100_000, "bad_request", None),
        ('{"type":"dance","ref":5}', "bad_request", 5),
        ('{"type":7,"ref":5}', "bad_request", 5),
        ('{"ref":5}', "bad_request", 5),
        ('{"type":"page","page":-1,"ref":5}', "unprocessable", 5),
        ('{"type":"page","page":true,"ref":5}', "bad_request", 5),
        ('{"type":"page","ref":5}', "bad_request", 5),
        ('{"type":"subscribe","ref":5}', "bad_request", 5),
        ('{"type":"set","ref":5}', "unprocessable", 5),
        ('{"type":"set","title":"x","ref":5}', "unprocessable", 5),
        ('{"type":"prompt","id":"x","text":"y","ref":5}', "unprocessable", 5),
        (json.dumps({"type": "ping", "ref": "x" * 2000}), "bad_request", None),
    ],
)
async def test_a_frame_that_cannot_be_served_is_answered_and_the_stream_goes_on(
    doors: Doors, session: str, message: str | bytes, code: str, ref: object
) -> None:
    async with doors.websocket() as ws:
        await ws.send_message(message)
        answer = json.loads(await ws.get_message())
        assert answer["type"] == "error"
        assert answer["error"]["code"] == code
        assert answer.get("ref") == ref
        assert (await say(ws, type="ping"))["type"] == "pong"


async def test_a_defect_behind_one_frame_is_answered_with_a_logged_id(
    doors: Doors, session: str, caplog: pytest.LogCaptureFixture
) -> None:
    async with doors.websocket() as ws:
        doors.sessions.fail = RuntimeError("secret")
        answer = await say(ws, type="interrupt", ref=1)
        assert answer["error"]["code"] == "internal"
        (record,) = caplog.records
        assert record.__dict__["error_id"] in answer["error"]["message"]
        assert record.__dict__["session"] == "s_0"
        doors.sessions.fail = None
        assert (await say(ws, type="ping"))["type"] == "pong"


async def test_a_defect_of_the_viewer_closes_that_stream_alone(
    doors: Doors, session: str, caplog: pytest.LogCaptureFixture
) -> None:
    async with doors.websocket() as ws, doors.websocket() as other:
        doors.sessions.viewers[0].fail(RuntimeError("secret"))
        assert await code_of_close(ws) == 1011
        assert (await say(other, type="ping"))["type"] == "pong"
    assert caplog.records[0].__dict__["session"] == "s_0"


async def test_scopes_are_checked_frame_by_frame(doors: Doors, session: str) -> None:
    reader, _ = await doors.token("alice", ("read",))
    async with doors.websocket(door="public", token=reader) as ws:
        for kind in ("prompt", "answer", "interrupt", "set"):
            answer = await say(ws, type=kind, ref=kind)
            assert (answer["ref"], answer["error"]["code"]) == (kind, "forbidden")
        assert (await say(ws, type="page", page=0))["type"] == "page"
        assert (await say(ws, type="subscribe", thread="t"))["type"] == "ok"
    assert not any(call[0] == "prompt" for call in doors.sessions.calls)
    writer, _ = await doors.token("alice", ("sessions",))
    answer = await doors.ask("GET", PATH, Authorization=f"Bearer {writer}", **UPGRADE)
    assert answer.status == 403, "nothing implies `read`"


async def test_a_revoked_token_closes_its_streams_at_once_and_no_others(
    doors: Doors, session: str
) -> None:
    token, token_id = await doors.token()
    kept, kept_id = await doors.token()
    async with (
        doors.websocket(door="public", token=token) as one,
        doors.websocket(door="public", token=token) as two,
        doors.websocket(door="public", token=kept) as other,
        doors.websocket() as admin,
    ):
        assert len(doors.context.streams) == 4
        assert (await doors.admin("DELETE", f"/v1/tokens/{token_id}")).status == 204
        assert await code_of_close(one) == 4001
        assert await code_of_close(two) == 4001
        assert (await say(other, type="ping"))["type"] == "pong"
        assert (await say(admin, type="ping"))["type"] == "pong"
        await trio.testing.wait_all_tasks_blocked()
        assert len(doors.context.streams) == 2
        assert (await doors.admin("DELETE", f"/v1/tokens/{kept_id}")).status == 204
        assert await code_of_close(other) == 4001
        assert (await say(admin, type="ping"))["type"] == "pong"
        await trio.testing.wait_all_tasks_blocked()
        assert len(doors.context.streams) == 1


async def test_frames_are_served_in_order_while_pings_are_answered(
    doors: Doors, session: str
) -> None:
    doors.sessions.gate = trio.Event()
    async with doors.websocket() as ws:
        await ws.send_message(json.dumps({"type": "prompt", "id": PROMPT_ID, "text": "x"}))
        for number in range(40):
            await ws.send_message(json.dumps({"type": "ping", "ref": number}))
        with trio.fail_after(60):
            await ws.ping()  # the WebSocket's own; answered although the prompt still waits
        doors.sessions.gate.set()
        kinds = [json.loads(await ws.get_message()) for _ in range(41)]
        assert kinds[0]["type"] == "ok"
        assert [frame["ref"] for frame in kinds[1:]] == list(range(40))


async def test_the_queue_of_a_stream_is_bounded(doors: Doors, session: str) -> None:
    """64 frames wait behind the one being served, 2 more in trio-websocket; then we do not read."""
    queue = FrameQueue()
    async with trio.open_nursery() as nursery:

        async def put_many() -> None:
            for number in range(100):
                await queue.put(str(number))

        nursery.start_soon(put_many)
        await trio.testing.wait_all_tasks_blocked()
        assert len(queue._frames) == 64
        assert [await queue.get() for _ in range(100)] == [str(number) for number in range(100)]
    big = "x" * MAX_QUEUED_CHARS
    await queue.put(big)
    with trio.move_on_after(0) as waited:
        await queue.put("y")
    assert waited.cancelled_caught, "beside 16 MiB nothing has room"
    queue.close()
    assert await queue.get() == big
    with pytest.raises(trio.EndOfChannel):
        await queue.get()


async def test_a_prompt_sent_in_passing_is_still_served(doors: Doors, session: str) -> None:
    doors.sessions.gate = trio.Event()
    async with doors.websocket() as ws:
        for _ in range(2):
            await ws.send_message(json.dumps({"type": "prompt", "id": PROMPT_ID, "text": "x"}))
        await trio.testing.wait_all_tasks_blocked()
        doors.sessions.gate.set()
        await ws.aclose()
    await trio.testing.wait_all_tasks_blocked()
    assert [call[0] for call in doors.sessions.calls] == ["open_viewer", "prompt", "prompt"]
    assert doors.sessions.viewers[0].closed


@pytest.mark.parametrize("character", ["x", "é"])
async def test_a_frame_of_16_mib_is_taken_and_one_byte_more_is_1009(
    doors: Doors, session: str, character: str
) -> None:
    limit = 16 * 1024 * 1024
    head, tail = '{"type":"ping","ref":1,"pad":"', '"}'
    room = limit - len(head) - len(tail)
    size = len(character.encode())
    padding = character * (room // size) + "x" * (room % size)
    async with doors.websocket() as ws:
        await ws.send_message(head + padding + tail)
        assert json.loads(await ws.get_message()) == {"type": "pong", "ref": 1}
        await ws.send_message(head + padding + "x" + tail)
        assert await code_of_close(ws) == 1009


async def test_a_page_too_large_for_a_frame_is_refused_by_name(doors: Doors, session: str) -> None:
    doors.sessions.page_text = '{"messages":["' + "x" * 16 * 1024 * 1024 + '"]}'
    async with doors.websocket() as ws:
        answer = await say(ws, type="page", page=0, ref=1)
        assert answer["error"]["code"] == "too_large"
        assert "messages?page=" in answer["error"]["message"]


@pytest.mark.parametrize(
    "garbage",
    [
        b"\x81\x05hello",  # not masked
        b"\xf1\x80\0\0\0\0",  # reserved bits
        b"\x83\x80\0\0\0\0",  # reserved opcode
        b"\x81\x82\0\0\0\0\xff\xfe",  # a text that is not UTF-8
        b"\x89\xfe\x00\x7e\0\0\0\0" + b"x" * 126,  # a ping over 125 bytes
        b"\x88\x82\0\0\0\0\x03\xe7",  # close with code 999
        b"\x80\x80\0\0\0\0",  # a continuation of nothing
        b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
        b"\x81\xff\xff\xff\xff\xff\xff\xff\xff\xff\0\0\0\0",  # a frame of 2^64 bytes
    ],
)
async def test_what_is_not_websocket_is_told_so_and_ends_that_connection_quietly(
    doors: Doors, session: str, garbage: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    client = doors.client("admin")
    lines = [f"GET {PATH} HTTP/1.1", "Host: x"]
    lines += [f"{name.replace('_', '-')}: {value}" for name, value in UPGRADE.items()]
    await client.send("\r\n".join([*lines, "", ""]).encode() + garbage)
    received = b""
    with trio.fail_after(60):
        while data := await client.stream.receive_some():
            received += data
        await trio.testing.wait_all_tasks_blocked()
    head, frame = received.split(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 101 ")
    assert frame[0] == 0x88
    assert frame[1] == len(frame) - 2
    assert int.from_bytes(frame[2:4]) == (1007 if garbage[-2:] == b"\xff\xfe" else 1002)
    assert doors.server.connections == 0
    assert doors.sessions.viewers[0].closed
    assert [record for record in caplog.records if record.name.startswith("holdoverd")] == []


# --- time ------------------------------------------------------------------------------------


class Deaf:
    """A peer that upgraded and now does nothing by itself, not even answer pings."""

    def __init__(self, client: Client) -> None:
        self.client = client
        self.received = b""

    @classmethod
    async def connect(cls, doors: Doors) -> "Deaf":
        client = doors.client("admin")
        lines = [f"GET {PATH} HTTP/1.1", "Host: x"]
        lines += [f"{name.replace('_', '-')}: {value}" for name, value in UPGRADE.items()]
        await client.send("\r\n".join([*lines, "", ""]).encode())
        deaf = cls(client)
        await deaf.receive()
        assert deaf.received.startswith(b"HTTP/1.1 101 ")
        deaf.received = b""
        return deaf

    async def receive(self) -> bytes:
        data = bytes(await self.client.stream.receive_some())
        self.received += data
        return data


async def test_a_silent_peer_is_pinged_every_20_seconds_and_dropped_after_40(
    doors: Doors, session: str, autojump_clock: MockClock
) -> None:
    deaf = await Deaf.connect(doors)
    started = trio.current_time()
    assert await deaf.receive() == b"\x89\x010"  # a ping with the payload "0"
    assert trio.current_time() - started == 20
    while await deaf.receive():
        pass
    assert trio.current_time() - started == 40
    assert doors.sessions.viewers[0].closed


async def test_any_frame_of_a_peer_counts_as_life_and_unanswered_pings_are_bounded(
    doors: Doors, session: str, autojump_clock: MockClock
) -> None:
    deaf = await Deaf.connect(doors)
    for _ in range(30):
        await trio.sleep(30)
        await deaf.client.send(b"\x8a\x80\0\0\0\0")  # an unsolicited pong
    await deaf.receive()
    assert deaf.received.count(b"\x89\x01") == 8, "no more than 8 pings wait for their pong"
    assert doors.server.connections == 1


async def test_a_peer_that_answers_pings_stays(
    doors: Doors, session: str, autojump_clock: MockClock
) -> None:
    async with doors.websocket() as ws:
        await trio.sleep(3600)
        assert (await say(ws, type="ping"))["type"] == "pong"


async def test_a_peer_that_does_not_read_is_dropped_though_it_speaks(
    doors: Doors, session: str, autojump_clock: MockClock
) -> None:
    """Its pongs arrive; what we send does not move at all for 40 s."""
    ours = doors.listeners["admin"].connect_lockstep()
    lines = [f"GET {PATH} HTTP/1.1", "Host: x"]
    lines += [f"{name.replace('_', '-')}: {value}" for name, value in UPGRADE.items()]
    await ours.send_all("\r\n".join([*lines, "", ""]).encode())
    await ours.receive_some()
    doors.sessions.viewers[0].push("x" * 100)
    started = trio.current_time()
    with suppress(trio.BrokenResourceError):
        while True:
            await trio.sleep(5)
            await ours.send_all(b"\x8a\x80\0\0\0\0")
    assert trio.current_time() - started == pytest.approx(40, abs=6)
    assert doors.sessions.viewers[0].closed


async def test_a_slow_link_that_takes_a_large_frame_piece_by_piece_is_alive(
    doors: Doors, session: str, autojump_clock: MockClock
) -> None:
    ours = doors.listeners["admin"].connect_lockstep()
    lines = [f"GET {PATH} HTTP/1.1", "Host: x"]
    lines += [f"{name.replace('_', '-')}: {value}" for name, value in UPGRADE.items()]
    await ours.send_all("\r\n".join([*lines, "", ""]).encode())
    await ours.receive_some()
    doors.sessions.viewers[0].push("x" * 1024 * 1024)
    received = 0
    while received < 1024 * 1024:
        await trio.sleep(15)
        received += len(await ours.receive_some(65536))
    assert doors.server.connections == 1


async def test_a_close_that_the_peer_does_not_take_is_given_up(
    doors: Doors, session: str, autojump_clock: MockClock
) -> None:
    """5 s for the close, and then 5 more for the peer to read that nothing comes."""
    deaf = await Deaf.connect(doors)
    started = trio.current_time()
    doors.sessions.viewers[0].end(1000, "é" * 100)
    close = await deaf.receive()
    assert close[:1] == b"\x88"
    assert close[1] <= 125
    close[4:].decode()  # cut between characters
    while doors.server.connections:
        await trio.sleep(0.5)
    assert trio.current_time() - started <= 10.5


async def test_an_expired_token_closes_within_one_ping(
    doors: Doors, session: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Revoked by another instance, or expired: nobody tells us, so it is looked up."""
    monkeypatch.setattr(stream, "PING_EVERY_S", 0.01)
    token, token_id = await doors.token()
    async with doors.websocket(door="public", token=token) as ws:
        assert (await say(ws, type="ping"))["type"] == "pong"
        doors.context.streams.token_gone = lambda token_id: None  # type: ignore[method-assign]
        assert (await doors.admin("DELETE", f"/v1/tokens/{token_id}")).status == 204
        with trio.fail_after(60):
            assert await code_of_close(ws) == 4001
