"""HTTP/1.1 as such, on connections in memory: framing, limits, deadlines, hostile peers."""

import json

import pytest
import trio
from trio.testing import MockClock

from holdoverd.catalogue.store import Catalogue
from holdoverd.http.connection import Limits
from tests.http.kit import Doors, open_doors

GET = b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n"


async def test_health_tells_generation_and_release(doors: Doors) -> None:
    answer = await doors.ask("GET", "/healthz")
    assert answer.status == 200
    assert answer.json() == {"status": "ok", "generation": 3, "release": "1.2.3"}
    assert answer.headers["content-type"] == "application/json"
    assert "date" in answer.headers
    doors.context.unhealthy = "the catalogue is gone"
    assert (await doors.ask("GET", "/healthz")).status == 503


async def test_a_connection_serves_one_request_after_the_other(doors: Doors) -> None:
    client = doors.client()
    for _ in range(3):
        answer = await client.ask("GET", "/healthz")
        assert answer.status == 200
        assert "connection" not in answer.headers


async def test_pipelined_requests_are_answered_in_order(doors: Doors) -> None:
    client = doors.client()
    await client.send(GET + GET.replace(b"/healthz", b"/") + GET)
    kinds = [(await client.answer()).headers["content-type"] for _ in range(3)]
    assert kinds == ["application/json", "text/html; charset=utf-8", "application/json"]


async def test_empty_lines_before_a_request_are_passed_over(doors: Doors) -> None:
    client = doors.client()
    health = b"GET /healthz HTTP/1.1\r\nHost: localhost:8780\r\n\r\n"
    await client.send(b"\r\n" + health + b"\r\n" + health)
    assert [(await client.answer()).status for _ in range(2)] == [200, 200]
    for piece in (b"\r", b"\n\r\n", health[:9], health[9:]):
        await client.send(piece)
        await trio.testing.wait_all_tasks_blocked()
    assert (await client.answer()).status == 200


async def test_a_request_in_single_bytes_is_a_request(doors: Doors) -> None:
    client = doors.client()
    for byte in GET:
        await client.send(bytes([byte]))
    assert (await client.answer()).status == 200


async def test_head_has_the_headers_of_get_and_no_body(doors: Doors) -> None:
    client = doors.client()
    get = await client.ask("GET", "/")
    head = await client.ask("HEAD", "/")
    assert head.status == 200
    assert head.body == b""
    assert head.headers["content-length"] == str(len(get.body))
    assert (await client.ask("GET", "/healthz")).status == 200, "the connection goes on"


async def test_a_client_that_half_closes_still_gets_its_answer(doors: Doors) -> None:
    client = doors.client()
    await client.send(GET)
    await client.stream.send_eof()
    assert (await client.answer()).status == 200
    assert await client.closed()


async def test_http_1_0_and_connection_close_end_after_the_answer(doors: Doors) -> None:
    for request in (
        GET.replace(b"HTTP/1.1", b"HTTP/1.0"),
        GET.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n"),
    ):
        client = doors.client()
        await client.send(request)
        answer = await client.answer()
        assert answer.status == 200
        assert answer.headers["connection"] == "close"
        assert await client.closed()


async def test_a_body_is_asked_for_once_the_head_is_accepted(doors: Doors) -> None:
    client = doors.client("admin")
    body = json.dumps({"name": "x", "scopes": ["read"]}).encode()
    await client.send(
        b"POST /v1/tokens HTTP/1.1\r\nHost: localhost\r\nExpect: 100-continue\r\n"
        b"Content-Length: %d\r\n\r\n" % len(body)
    )
    with trio.fail_after(60):
        assert await client.stream.receive_some() == b"HTTP/1.1 100 \r\n\r\n"
    await client.send(body)
    assert (await client.answer(b"POST")).status == 201


async def test_a_refused_head_never_asks_for_its_body(doors: Doors) -> None:
    for door, path, length, status in (
        ("public", "/v1/tokens", 10, 401),
        ("admin", "/v1/tokens", 1024 * 1024 + 1, 413),
        ("admin", "/v1/nothing", 10, 404),
    ):
        client = doors.client(door)
        answer = await client.ask("POST", path, Expect="100-continue", Content_Length=str(length))
        assert answer.status == status
        assert answer.headers["connection"] == "close"
        assert not client.continued


async def test_a_body_at_the_limit_is_read_and_one_byte_more_is_not(doors: Doors) -> None:
    limit = 1024 * 1024
    for size, status in ((limit, 400), (limit + 1, 413)):
        answer = await doors.client("admin").ask("POST", "/v1/tokens", raw=b" " * size)
        assert answer.status == status, "at the limit it is read, and found to be no JSON"


def _chunked(*chunks: bytes) -> bytes:
    return b"".join(b"%x\r\n%s\r\n" % (len(chunk), chunk) for chunk in chunks) + b"0\r\n\r\n"


async def test_a_chunked_body_is_bounded_as_well(doors: Doors) -> None:
    head = b"POST /v1/tokens HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
    for body, status, code in (
        (_chunked(b'{"name":"x",', b'"scopes":["read"]}'), 201, None),
        (_chunked(*[b" " * 65536] * 17), 413, "too_large"),
        (_chunked(*[b" "] * 10_001), 400, "bad_request"),
    ):
        client = doors.client("admin")
        await client.send(head + body)
        answer = await client.answer(b"POST")
        assert answer.status == status
        assert code is None or answer.code == code


async def test_a_head_over_its_limit_is_431_even_when_it_comes_at_once(doors: Doors) -> None:
    overhead = len("GET") + len("/healthz") + 12 + len("HostX") + len("localhost") + 3
    for size, status in ((16 * 1024, 200), (16 * 1024 + 1, 431)):
        padding = "x" * (size - overhead - len("A") - 4)
        answer = await doors.ask("GET", "/healthz", A=padding, Host="localhost")
        assert answer.status == status
    assert (await doors.ask("GET", "/healthz", A="x" * 100_000)).status == 431
    assert (await doors.ask("GET", "/" + "x" * 100_000)).status == 431
    many = {f"H{number}": "x" for number in range(99)}
    assert (await doors.ask("GET", "/healthz", **many)).status == 200
    assert (await doors.ask("GET", "/healthz", More="x", **many)).status == 431


@pytest.mark.parametrize(
    "request_bytes",
    [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",  # somebody speaks TLS
        b"GET\r\n\r\n",
        b"GET  / HTTP/1.1\r\nHost: x\r\n\r\n",
        b"GET /\x00 HTTP/1.1\r\nHost: x\r\n\r\n",
        b"GET / HTTP/1.1\r\n\r\n",  # no Host
        b"GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost : x\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: x\r\nX: a\x00b\r\n\r\n",
        b"GET / HTTP/2.0\r\nHost: x\r\n\r\n",
        b"GET healthz HTTP/1.1\r\nHost: x\r\n\r\n",
        b"GET http://[ HTTP/1.1\r\nHost: x\r\n\r\n",
        b"CONNECT x:80 HTTP/1.1\r\nHost: x\r\n\r\n",
        b"GET /%ff HTTP/1.1\r\nHost: x\r\n\r\n",
        b"GET /%00 HTTP/1.1\r\nHost: x\r\n\r\n",
        b"GET /?a=%ff HTTP/1.1\r\nHost: x\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nx",
        b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: -1\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 1e3\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: gzip, chunked\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n"
        b"0\r\n\r\nGET /v1/tokens HTTP/1.1\r\nHost: x\r\n\r\n",
        b"POST /v1/tokens HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
        b"POST /v1/tokens HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabcd\r\n",
    ],
)
async def test_what_is_not_http_gets_400_once_and_the_connection_ends(
    doors: Doors, request_bytes: bytes
) -> None:
    client = doors.client("admin")
    await client.send(request_bytes)
    await client.stream.send_eof()
    answer = await client.answer(
        (request_bytes.split(b" ")[0][:4] == b"POST" and b"POST") or b"GET"
    )
    assert (answer.status, answer.code) == (400, "bad_request")
    assert "Traceback" not in answer.body.decode()
    assert await client.closed(), "nothing behind it was taken for a request"


async def test_a_peer_that_goes_in_the_middle_is_no_error(
    doors: Doors, caplog: pytest.LogCaptureFixture
) -> None:
    for start in (
        b"",
        GET[:10],
        b"POST /v1/tokens HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\n{",
    ):
        client = doors.client("admin")
        await client.send(start)
        await trio.testing.wait_all_tasks_blocked()
        await client.stream.aclose()
    await trio.testing.wait_all_tasks_blocked()
    assert doors.server.connections == 0
    assert caplog.records == []


async def test_a_defect_of_ours_is_a_500_with_an_id_that_is_logged(
    doors: Doors, caplog: pytest.LogCaptureFixture
) -> None:
    doors.sessions.fail = RuntimeError("secret path /var/lib")
    client = doors.client("admin")
    answer = await client.ask("GET", "/v1/sessions")
    assert (answer.status, answer.code) == (500, "internal")
    assert "secret" not in answer.body.decode()
    (record,) = caplog.records
    assert record.__dict__["error_id"] in answer.json()["error"]["message"]
    assert record.exc_info is not None
    assert (await client.ask("GET", "/healthz")).status == 200, "the connection goes on"


# --- deadlines: trio's clock jumps to them ---------------------------------------------------


@pytest.mark.parametrize(
    ("sent", "seconds", "status"),
    [
        (b"", 60, None),
        (GET[:-1], 60, 400),
        (b"POST /v1/tokens HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\n{", 30, 400),
    ],
)
async def test_a_peer_that_stops_in_the_middle_is_let_go(
    doors: Doors, autojump_clock: MockClock, sent: bytes, seconds: float, status: int | None
) -> None:
    client = doors.client("admin")
    started = trio.current_time()
    await client.send(sent)
    if status is None:
        assert await client.closed(), "nothing was asked, so nothing is answered"
    else:
        answer = await client.answer()
        assert answer.status == status
        assert f"within {seconds} s" in answer.json()["error"]["message"]
    assert trio.current_time() - started == seconds


async def test_a_trickle_of_bytes_does_not_move_the_deadline(
    doors: Doors, autojump_clock: MockClock
) -> None:
    client = doors.client("admin")
    started = trio.current_time()

    async def trickle() -> None:
        for byte in b"GET / HTTP/1.1\r\nX: " + b"x" * 100:
            await client.send(bytes([byte]))
            await trio.sleep(1)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(trickle)
        assert (await client.answer()).status == 400
        assert trio.current_time() - started == 60
        nursery.cancel_scope.cancel()


async def test_an_idle_connection_is_closed_after_75_seconds(
    doors: Doors, autojump_clock: MockClock
) -> None:
    client = doors.client()
    await client.ask("GET", "/healthz")
    await trio.sleep(74)
    await client.ask("GET", "/healthz")
    started = trio.current_time()
    assert await client.closed()
    assert trio.current_time() - started == 75


async def test_a_peer_that_does_not_read_its_answer_is_dropped(
    doors: Doors, autojump_clock: MockClock
) -> None:
    stream = doors.listeners["admin"].connect_lockstep()
    await stream.send_all(GET)
    started = trio.current_time()
    while doors.server.connections:
        await trio.sleep(0.5)
    assert trio.current_time() - started == pytest.approx(30, abs=1)


async def test_a_slow_reader_of_a_long_answer_gets_all_of_it(
    catalogue: Catalogue, autojump_clock: MockClock
) -> None:
    """The deadline is for each piece, not for the whole: 1 MiB in pieces, 20 s each, is fine."""
    async with open_doors(catalogue, limits=Limits(send_s=30)) as doors:
        doors.sessions.page_text = json.dumps("x" * 1024 * 1024)
        stream = doors.listeners["admin"].connect_lockstep()
        await stream.send_all(
            b"GET /v1/sessions/s/messages?page=0 HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
        )
        received = b""
        while data := await stream.receive_some(64 * 1024):
            received += data
            await trio.sleep(20)
        assert received.endswith(b'x"')
        assert len(received) > 1024 * 1024


async def test_linger_lets_a_refusal_arrive_and_is_bounded(
    doors: Doors, autojump_clock: MockClock
) -> None:
    client = doors.client()
    await client.send(b"POST /login HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9999999\r\n\r\n")
    assert (await client.answer(b"POST")).status == 413
    started = trio.current_time()
    for _ in range(100):
        await client.send(b"x" * 10_000)
    while doors.server.connections:
        await trio.sleep(0.1)
    assert trio.current_time() - started == pytest.approx(2, abs=0.2)
