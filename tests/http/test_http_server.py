"""Accepting: bounds, overload, stopping and resuming, on memory and on real sockets."""

import contextlib
import errno
import os
import socket
from pathlib import Path

import pytest
import trio
from trio.testing import MockClock

from holdoverd.catalogue.store import Catalogue
from holdoverd.http.server import peer_of
from tests.http.kit import Client, Doors, open_doors

GET = b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n"


async def test_one_connection_too_many_is_refused_and_the_next_after_a_close_is_not(
    catalogue: Catalogue, autojump_clock: MockClock
) -> None:
    async with open_doors(catalogue, max_connections=2) as doors:
        clients = [doors.client(), doors.client("admin")]
        for client in clients:
            assert (await client.ask("GET", "/healthz")).status == 200
        assert doors.server.connections == 2
        refused = await doors.ask("GET", "/healthz")
        assert (refused.status, refused.code) == (503, "capacity")
        assert refused.headers["connection"] == "close"
        assert refused.headers["retry-after"] == "1"
        await clients[0].stream.aclose()
        await trio.testing.wait_all_tasks_blocked()
        assert (await doors.ask("GET", "/healthz")).status == 200


async def test_refusals_are_bounded_as_well(
    catalogue: Catalogue, autojump_clock: MockClock
) -> None:
    """64 are told; the next one is closed without a word, and none of them stays for long."""
    async with open_doors(catalogue, max_connections=0) as doors:
        told = [doors.client() for _ in range(64)]
        await trio.testing.wait_all_tasks_blocked()
        assert await doors.client().closed()
        for client in told:
            assert (await client.answer()).status == 503


async def test_running_out_of_descriptors_passes(
    doors: Doors, autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    for _ in range(20):
        doors.listeners["public"].fail(OSError(errno.EMFILE, os.strerror(errno.EMFILE)))
    started = trio.current_time()
    assert (await doors.ask("GET", "/healthz")).status == 200
    assert trio.current_time() - started == pytest.approx(2.0)  # 20 pauses of 0.1 s
    assert [record.levelname for record in caplog.records] == ["ERROR", "WARNING"]
    assert "LimitNOFILE=" in caplog.text


async def test_a_broken_listener_is_not_hidden(catalogue: Catalogue) -> None:
    with pytest.RaisesGroup(pytest.RaisesExc(OSError, match="Bad file"), flatten_subgroups=True):
        async with open_doors(catalogue) as doors:
            doors.listeners["public"].fail(OSError(errno.EBADF, os.strerror(errno.EBADF)))
            await trio.sleep_forever()


async def test_stopping_to_accept_keeps_connections_and_listeners(doors: Doors) -> None:
    old = doors.client()
    assert (await old.ask("GET", "/healthz")).status == 200
    doors.server.stop_accepting()
    doors.server.stop_accepting()
    late = doors.client()
    await late.send(GET)
    await trio.testing.wait_all_tasks_blocked()
    assert doors.server.connections == 1, "what comes now is another instance's to take"
    answer = await old.ask("GET", "/healthz")
    assert (answer.status, answer.headers.get("connection")) == (200, None)
    doors.server.close_idle()
    assert await old.closed()
    assert not doors.listeners["public"].closed
    doors.server.resume_accepting()
    assert (await late.answer()).status == 200


async def test_told_to_accept_and_at_once_to_stop_again_it_accepts_nothing(doors: Doors) -> None:
    """The second word comes before the task that was woken by the first has run."""
    doors.server.stop_accepting()
    await trio.testing.wait_all_tasks_blocked()
    doors.server.resume_accepting()
    doors.server.stop_accepting()
    late = doors.client()
    await late.send(GET)
    await trio.testing.wait_all_tasks_blocked()
    assert doors.server.connections == 0
    doors.server.resume_accepting()
    assert (await late.answer()).status == 200


async def test_connections_that_wait_are_accepted_in_one_turn(doors: Doors) -> None:
    (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
    waiting = 10
    with contextlib.ExitStack() as stack, trio.fail_after(60):
        for _ in range(waiting):
            client = stack.enter_context(socket.create_connection(listener.socket.getsockname()))
            client.sendall(GET)
        before = doors.context.counts.connections["public"]
        await doors.serve_also({"public": [listener]})
        while doors.context.counts.connections["public"] == before:
            await trio.lowlevel.checkpoint()
        assert doors.context.counts.connections["public"] == before + waiting
        while doors.context.counts.answers[200] < waiting:
            await trio.sleep(0.01)


async def test_idle_connections_can_be_closed_and_busy_ones_stay(doors: Doors) -> None:
    idle, busy = doors.client(), doors.client("admin")
    await idle.ask("GET", "/healthz")
    await busy.ask("GET", "/healthz")
    await busy.send(GET[:10])
    await trio.testing.wait_all_tasks_blocked()
    doors.server.close_idle()
    assert await idle.closed()
    await busy.send(GET[10:])
    assert (await busy.answer()).status == 200


async def test_two_servers_share_a_listening_socket_and_one_may_stop(
    catalogue: Catalogue, tmp_path: Path
) -> None:
    """As two instances do: neither closing nor stopping in one may be felt by the other."""
    path = str(tmp_path / "public.sock")
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(path)
        listening.listen()
        with trio.fail_after(60):
            async with open_doors(catalogue) as one, open_doors(catalogue) as two:
                for doors in (one, two):
                    copy = trio.SocketListener(trio.socket.from_stdlib_socket(listening.dup()))
                    await doors.serve_also({"public": [copy]})
                one.server.stop_accepting()
                for _ in range(5):
                    stream = await trio.open_unix_socket(path)
                    assert (await Client(stream).ask("GET", "/healthz")).status == 200
                    await stream.aclose()
                assert one.server.connections == 0
                two.server.stop_accepting()
                waiting = await trio.open_unix_socket(path)
                await waiting.send_all(GET)
                one.server.resume_accepting()
                assert (await Client(waiting).answer()).status == 200
                await waiting.aclose()


async def test_peers_are_named_by_address_or_user(tmp_path: Path) -> None:
    (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
    async with listener:
        client = await trio.testing.open_stream_to_socket_listener(listener)
        server = await listener.accept()
        assert peer_of(server) == "127.0.0.1"
        await client.aclose()
        await server.aclose()
        assert peer_of(server) == "", "a peer that is gone has no name"
    left, right = trio.socket.socketpair()
    with left, right:
        assert peer_of(trio.SocketStream(left)) == f"uid:{os.getuid()}"
    assert peer_of(trio.testing.memory_stream_pair()[0]) == "memory"


async def test_a_reset_in_the_middle_of_an_answer_harms_nobody(
    doors: Doors, caplog: pytest.LogCaptureFixture
) -> None:
    (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
    doors.sessions.page_text = '"' + "x" * 32 * 1024 * 1024 + '"'
    with trio.fail_after(60):
        await doors.serve_also({"admin": [listener]})
        client = await trio.testing.open_stream_to_socket_listener(listener)
        await client.send_all(b"GET /v1/sessions/s/messages?page=0 HTTP/1.1\r\nHost: x\r\n\r\n")
        await client.receive_some(100)
        # SO_LINGER of 0: close() sends a reset
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        await client.aclose()
        client = await trio.testing.open_stream_to_socket_listener(listener)
        assert (await Client(client).ask("GET", "/healthz")).status == 200
        await client.aclose()
    assert caplog.records == []


async def test_a_refusal_arrives_although_the_body_was_not_read(doors: Doors) -> None:
    """On a real socket: closing with unread bytes would reset the connection under the answer."""
    (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
    with trio.fail_after(60):
        await doors.serve_also({"public": [listener]})
        stream = await trio.testing.open_stream_to_socket_listener(listener)
        await stream.send_all(
            b"POST /login HTTP/1.1\r\nHost: localhost\r\nContent-Length: 2000000\r\n\r\n"
        )
        await stream.send_all(b"x" * 2_000_000)
        assert (await Client(stream).answer(b"POST")).status == 413
        await stream.aclose()
