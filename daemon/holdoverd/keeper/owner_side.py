"""The daemon's half of protocol version 1: what an owner sends, and what it hears. No I/O.

PROTOCOL.md shows the bytes; `keeper_side` is the other half.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from holdoverd.errors import KeeperError
from holdoverd.keeper.keeper_side import MAX_LINE_BYTES, MAX_REPLY_BYTES, SIGNALS, VERSION


def hello(epoch: int) -> bytes:
    """The greeting; `epoch` is the session's owner_epoch."""
    return b"HELLO %d %d\n" % (VERSION, epoch)


def line(n: int, payload: bytes) -> bytes:
    """One stdin line for the agent, without its newline.

    Raises `ValueError` if it holds a newline or is over 16 MiB: the keeper would hang up.
    """
    if len(payload) > MAX_LINE_BYTES:
        raise ValueError(f"a line of {len(payload)} bytes; the most is {MAX_LINE_BYTES}")
    if b"\n" in payload:
        raise ValueError("a line for the agent holds a newline")
    return b"LINE %d %d\n%b" % (n, len(payload), payload)


def end(n: int) -> bytes:
    """Close the agent's stdin once everything before is written."""
    return b"END %d\n" % n


def signal(n: int, name: str) -> bytes:
    """Signal the agent: INT, TERM or KILL; `ValueError` for any other name."""
    if name not in SIGNALS:
        raise ValueError(f"signal {name!r}; the keeper sends {', '.join(SIGNALS)}")
    return b"SIGNAL %d %s\n" % (n, name.encode("ascii"))


def ping() -> bytes:
    """Ask for a PONG."""
    return b"PING\n"


@dataclass(frozen=True, slots=True)
class Welcome:
    """We are the owner; the next command is number `last + 1`."""

    last: int
    state: str  # "running" or "exited"


@dataclass(frozen=True, slots=True)
class Stale:
    """A newer owner, of this epoch, has been heard; the keeper hangs up. Let the session go."""

    epoch: int


@dataclass(frozen=True, slots=True)
class Replaced:
    """Another connection is the owner now; the keeper hangs up."""


@dataclass(frozen=True, slots=True)
class Ack:
    """Command n is whole and the keeper's duty (or was accepted before)."""

    n: int


@dataclass(frozen=True, slots=True)
class Pong:
    """The answer to a PING."""


@dataclass(frozen=True, slots=True)
class Full:
    """The spool's disk is full: the agent is held up until there is room."""


@dataclass(frozen=True, slots=True)
class Room:
    """The spool's disk has room again; everything held back is written."""


@dataclass(frozen=True, slots=True)
class Exited:
    """The agent is gone; the end record follows in the spool, then the keeper hangs up."""


@dataclass(frozen=True, slots=True)
class Error:
    """We spoke against the protocol, or too late; the keeper hangs up."""

    text: str


Event = Welcome | Stale | Replaced | Ack | Pong | Full | Room | Exited | Error

_BARE: dict[bytes, Event] = {
    b"REPLACED": Replaced(),
    b"PONG": Pong(),
    b"FULL": Full(),
    b"ROOM": Room(),
    b"EXITED": Exited(),
}
_NUMBER = rb"(?:0|[1-9][0-9]{0,18})"
_NUMBERED = re.compile(
    rb"WELCOME 1 (?P<last>%b) (?P<state>running|exited)|STALE (?P<stale>%b)|ACK (?P<ack>%b)"
    % ((_NUMBER,) * 3)
)


class OwnerSide:
    """Understands what a keeper says. Holds at most one unfinished line of 4 KiB."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    def receive(self, data: bytes) -> list[Event]:
        """The events of these bytes, cut anywhere.

        Raises `KeeperError` on anything that version 1 does not know; hang up then.
        """
        self._buffer += data
        *lines, rest = self._buffer.split(b"\n")
        for line_ in (*lines, rest):
            if len(line_) >= MAX_REPLY_BYTES:
                raise KeeperError(
                    f"the keeper sent a line of {len(line_)} bytes or more; "
                    f"the most is {MAX_REPLY_BYTES}. Hang up and greet it anew"
                )
        self._buffer = rest
        return [self._event(bytes(line_)) for line_ in lines]

    def _event(self, line_: bytes) -> Event:
        event = _BARE.get(line_)
        if event is not None:
            return event
        if line_.startswith(b"ERROR "):
            return Error(line_[6:].decode("utf-8", "replace"))
        match = _NUMBERED.fullmatch(line_)
        if match is None:
            raise KeeperError(
                f"the keeper said {line_[:80]!r}, which version {VERSION} does not know. "
                "Hang up and greet it anew"
            )
        if match["ack"] is not None:
            return Ack(int(match["ack"]))
        if match["stale"] is not None:
            return Stale(int(match["stale"]))
        return Welcome(int(match["last"]), match["state"].decode("ascii"))
