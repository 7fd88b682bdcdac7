"""The keeper's real clocks: every wait for a peer ends by itself.

The waits are 5 to 10 seconds each, so all of them are started at once and then looked at.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
from collections.abc import Iterator
from typing import NamedTuple

import pytest

from holdoverd.keeper import protocol
from tests.keeper.bench import ECHO, Bench, Owner, bench, needs_namespaces, python, status_of

pytestmark = [pytest.mark.slow, needs_namespaces]

STUBBORN = """
import signal
signal.signal(signal.SIGTERM, signal.SIG_IGN)
print("ready", flush=True)
while True: signal.pause()
"""


class Waits(NamedTuple):
    silent: tuple[Bench, Owner]  # a connection that does not greet
    hung: tuple[Bench, socket.socket]  # a launch request that does not end
    stopped: dict[str, Bench]  # {isolation: a stopped unit whose agent ignores TERM}
    stuck: Bench  # a stopped unit whose init is stopped, too


def stubborn(made: Bench, option: str) -> int:
    """The pid of init."""
    answer = made.launched(python(STUBBORN), option)
    made.wait_spool(lambda data: b"ready\n" in data)
    return int(status_of(answer["agent_pid"])["PPid"])


@pytest.fixture(scope="module")
def waits() -> Iterator[Waits]:
    with contextlib.ExitStack() as stack:
        silent, hung, first, second, stuck = (stack.enter_context(bench()) for _ in range(5))
        sender = stack.enter_context(hung.start())
        sender.sendall(b"LAUNCH 1 50\n{")
        silent.launched(ECHO)
        connection = stack.enter_context(silent.owner(None))
        connection.send(b"HELLO 1 ")
        stopped = {"namespaces": first, "none": second}
        for isolation, made in stopped.items():
            stubborn(made, f"--isolation={isolation}")
        os.kill(stubborn(stuck, "--isolation=namespaces"), signal.SIGSTOP)
        for made in (first, second, stuck):
            assert made.keeper is not None
            made.keeper.send_signal(signal.SIGTERM)
            made.keeper.send_signal(signal.SIGTERM)  # the second one changes nothing
        yield Waits((silent, connection), (hung, sender), stopped, stuck)


def test_a_connection_that_does_not_greet_is_dropped(waits: Waits) -> None:
    made, silent = waits.silent
    with made.owner() as owner:
        events = silent.wait_closed()
        assert isinstance(events[-1], protocol.Error)
        assert "no HELLO" in events[-1].text
        owner.send(protocol.ping())  # and one that did stays
        owner.wait(protocol.Pong)


@pytest.mark.parametrize("isolation", ["namespaces", "none"])
def test_a_stopped_unit_kills_an_agent_that_ignores_it_and_records_that(
    waits: Waits, isolation: str
) -> None:
    data, end = waits.stopped[isolation].wait_end()
    assert (data, end.status, end.signal) == (b"ready\n", None, signal.SIGKILL)


def test_a_stopped_unit_ends_though_init_is_stuck(waits: Waits) -> None:
    assert waits.stuck.wait_end()[1].signal == signal.SIGKILL


def test_a_sender_that_hangs_is_refused(waits: Waits) -> None:
    made, sender = waits.hung
    answer = made.answer(sender)
    sender.close()
    assert answer["error"]["code"] == "bad_request"
    assert "within 10 s" in answer["error"]["message"]
    assert made.keeper is not None
    assert made.keeper.wait(60) == 0
