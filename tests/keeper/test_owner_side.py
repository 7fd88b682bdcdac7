"""The daemon's half of the keeper protocol."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from holdoverd.errors import KeeperError
from holdoverd.keeper import protocol

SAID = (
    b"WELCOME 1 0 running\nWELCOME 1 9223372036854775807 exited\nSTALE 8\nREPLACED\nACK 12\n"
    b"PONG\nFULL\nROOM\nEXITED\nERROR gap: 6 came after 4; send 5 next\n"
)
EVENTS = [
    protocol.Welcome(0, "running"),
    protocol.Welcome(9223372036854775807, "exited"),
    protocol.Stale(8),
    protocol.Replaced(),
    protocol.Ack(12),
    protocol.Pong(),
    protocol.Full(),
    protocol.Room(),
    protocol.Exited(),
    protocol.Error("gap: 6 came after 4; send 5 next"),
]


@given(st.lists(st.integers(0, len(SAID))))
def test_every_event_is_understood_however_the_bytes_are_cut(cuts: list[int]) -> None:
    side = protocol.OwnerSide()
    heard = []
    for start, stop in itertools.pairwise([0, *sorted(cuts), len(SAID)]):
        heard += side.receive(SAID[start:stop])
    assert heard == EVENTS


@pytest.mark.parametrize(
    "said",
    [
        b"WELCOME 2 0 running\n",
        b"WELCOME 1 00 running\n",
        b"WELCOME 1 0 walking\n",
        b"ACK -1\n",
        b"ACK\n",
        b"ACK 1 \n",
        b"\n",
        b"error x\n",
        b"\xff\n",
    ],
)
def test_what_version_1_does_not_know_is_an_error(said: bytes) -> None:
    with pytest.raises(KeeperError, match="does not know"):
        protocol.OwnerSide().receive(said)


def test_a_line_of_4096_bytes_is_heard_and_a_longer_one_is_an_error() -> None:
    text = "x" * (protocol.MAX_REPLY_BYTES - len("ERROR \n"))
    line = f"ERROR {text}\n".encode()
    assert len(line) == protocol.MAX_REPLY_BYTES
    assert protocol.OwnerSide().receive(line) == [protocol.Error(text)]
    side = protocol.OwnerSide()
    assert side.receive(line[:-1]) == []
    with pytest.raises(KeeperError, match="the most is 4096"):
        side.receive(b"x")
    with pytest.raises(KeeperError, match="the most is 4096"):
        protocol.OwnerSide().receive(b"ERROR x" + line[6:])


def test_builders_refuse_what_the_keeper_would_hang_up_on() -> None:
    assert protocol.line(3, b"abc") == b"LINE 3 3\nabc"
    assert protocol.hello(7) == b"HELLO 1 7\n"
    with pytest.raises(ValueError, match="newline"):
        protocol.line(1, b"a\nb")
    with pytest.raises(ValueError, match="the most is"):
        protocol.line(1, bytes(protocol.MAX_LINE_BYTES + 1))
    with pytest.raises(ValueError, match="HUP"):
        protocol.signal(1, "HUP")
