"""The keeper's half of protocol version 1: greetings, rivals, numbering. No I/O, no clock.

Connections and bytes go in, commands for the shell come out; PROTOCOL.md shows the bytes and
`owner_side` is the daemon's half. How a connection moves (drawn from `_MOVES`, which is the
rule)::

    accepted -> GREETING --HELLO--> OWNER --LINE, END, SIGNAL, PING--> OWNER
                   |                  |
                   +-- STALE, ERROR --+-- REPLACED, ERROR --> forgotten

Anything else is an error that names the event and the state, and closes that connection only.

Named tuples and plain classes here and in the keeper's other modules, where the rest of Holdover
has dataclasses: importing `dataclasses` costs 1.5 MB, and every session has a keeper.
"""

from __future__ import annotations

import enum
import re
from typing import NamedTuple

VERSION = 1
MAX_HEADER_BYTES = 64
"""One owner -> keeper header with its newline; the longest legal one has 34 bytes."""
MAX_LINE_BYTES = 16 * 1024 * 1024
"""One line for the agent, without its newline; as large as the largest frame of the stream."""
MAX_REPLY_BYTES = 4096
"""One keeper -> owner line with its newline."""
MAX_GREETING = 8
"""Connections that have not said HELLO yet. A further one costs the oldest its place: those that
hang must not keep the living out."""
SIGNALS = ("INT", "TERM", "KILL")

_NUMBER = re.compile(rb"(?:0|[1-9][0-9]{0,18})")


def _number(field_: bytes) -> int | None:
    return int(field_) if _NUMBER.fullmatch(field_) else None


# ---------------------------------------------------------------- commands for the keeper's shell


class Send(NamedTuple):
    """Queue these bytes for a connection."""

    connection: int
    data: bytes


class Close(NamedTuple):
    """Close a connection once what was sent to it is out; read no more from it."""

    connection: int


class WriteLine(NamedTuple):
    """Write to the agent's stdin, all of it, then call `line_written` (or `stdin_broken`)."""

    n: int
    data: bytearray  # with its newline; the shell's alone from here on


class CloseStdin(NamedTuple):
    """Close the agent's stdin: everything before is written."""


class Signal(NamedTuple):
    """Send the agent this signal."""

    name: str  # one of SIGNALS


Command = Send | Close | WriteLine | CloseStdin | Signal


# ------------------------------------------------------------------------------ the keeper's half


class Phase(enum.Enum):
    """What a connection is, so far."""

    GREETING = "greeting"
    OWNER = "owner"


class Stdin(enum.Enum):
    """The agent's stdin."""

    OPEN = "open"
    ENDING = "ending"  # END is accepted, the line before it not yet written
    CLOSED = "closed"
    BROKEN = "broken"  # the agent closed it, or is gone


class _Peer:
    def __init__(self, connection: int) -> None:
        self.connection = connection
        self.phase = Phase.GREETING
        self.buffer = bytearray()  # not yet understood
        self.receiving = False  # a line's payload is on its way:
        self.n = 0  # its number
        self.missing = 0  # bytes of it still to come
        self.payload: bytearray | None = None  # those that came; None: it is being skipped
        self.parked = False  # the next line waits until the one before is written


class _ProtocolError(Exception):
    """A connection spoke against the protocol; the text goes to it, then it is closed."""


class KeeperSide:
    """Greetings, rivals and numbering for one launch.

    `owner_epoch` is the launch's: a greeting below the highest epoch heard is stale. Connections
    are told apart by ints that the shell hands out in the order of accepting: of two with the
    same epoch the one accepted later is the owner.

    Memory: a line is either being received or being written, never both, because a LINE that
    arrives while another is being written is *parked*: its header stays unread and `reading` is
    false until `line_written`. SIGNAL, END and PING in front of it are not held up by a stuck
    agent; an owner that has parked its own line can always greet anew and signal.
    """

    def __init__(self, owner_epoch: int) -> None:
        self.epoch = owner_epoch  # the highest heard
        self.last = 0  # the highest n accepted, over all owners
        self.owner: int | None = None
        self.running = True
        self.stdin = Stdin.OPEN
        self.writing = False  # a WriteLine is out and not yet answered
        self.full = False
        self._peers: dict[int, _Peer] = {}  # {connection: peer}, in the order of accepting

    # ------------------------------------------------------------------------------ what is asked

    def reading(self, connection: int) -> bool:
        """Whether the shell should read from this connection now."""
        peer = self._peers.get(connection)
        return peer is not None and not peer.parked

    def greeting(self, connection: int) -> bool:
        """Whether this connection has yet to say HELLO."""
        peer = self._peers.get(connection)
        return peer is not None and peer.phase is Phase.GREETING

    # ------------------------------------------------------------------------------ what happened

    def connected(self, connection: int) -> list[Command]:
        """A connection was accepted; `connection` is higher than every one before."""
        greeting = [p for p in self._peers.values() if p.phase is Phase.GREETING]
        commands: list[Command] = []
        if len(greeting) >= MAX_GREETING:
            commands += self._fail(greeting[0], f"{MAX_GREETING} newer connections wait to greet")
        self._peers[connection] = _Peer(connection)
        return commands

    def receive(self, connection: int, data: bytes) -> list[Command]:
        """Bytes arrived, cut anywhere. Call it only while `reading(connection)`."""
        peer = self._peers[connection]
        peer.buffer += data
        return self._advance(peer)

    def closed(self, connection: int) -> list[Command]:
        """The peer hung up: a command cut off is discarded, as if it had never been sent."""
        self._forget(connection)
        return []

    def greeting_expired(self, connection: int) -> list[Command]:
        """The time to say HELLO is over; nothing happens if it was said."""
        if not self.greeting(connection):
            return []
        return self._fail(self._peers[connection], "no HELLO arrived in time; connect again")

    def line_written(self) -> list[Command]:
        """The line of the last WriteLine is in the agent's pipe, whole."""
        assert self.writing, "line_written without a line being written"
        self.writing = False
        commands: list[Command] = []
        if self.stdin is Stdin.ENDING:
            self.stdin = Stdin.CLOSED
            commands.append(CloseStdin())
        return commands + self._unpark()

    def stdin_broken(self) -> list[Command]:
        """The agent closed its stdin: what was being written is lost with its reader."""
        self.writing = False
        commands: list[Command] = [] if self.stdin is Stdin.CLOSED else [CloseStdin()]
        self.stdin = Stdin.BROKEN
        return commands + self._unpark()

    def agent_exited(self) -> list[Command]:
        """The agent is gone, whatever of its output is still to be spooled."""
        if not self.running:
            return []
        self.running = False
        commands = self._tell(b"EXITED\n")
        return commands + self.stdin_broken()

    def spool_full(self, full: bool) -> list[Command]:
        """The spool's disk has no room, or has room again."""
        if full is self.full:
            return []
        self.full = full
        return self._tell(b"FULL\n" if full else b"ROOM\n")

    # --------------------------------------------------------------------------------- the parser

    def _advance(self, peer: _Peer) -> list[Command]:
        """Understand as much of the peer's buffer as may be acted on now."""
        commands: list[Command] = []
        try:
            while peer.connection in self._peers and not peer.parked:
                if peer.receiving:
                    if not self._payload(peer, commands):
                        break
                elif not self._header(peer, commands):
                    break
        except _ProtocolError as broken:
            commands += self._fail(peer, str(broken))
        return commands

    def _header(self, peer: _Peer, commands: list[Command]) -> bool:
        """Take one header from the buffer; False: it is not whole yet."""
        stop = peer.buffer.find(b"\n", 0, MAX_HEADER_BYTES)
        if stop < 0:
            if len(peer.buffer) >= MAX_HEADER_BYTES:
                raise _ProtocolError(f"a header is longer than {MAX_HEADER_BYTES} bytes")
            return False
        verb, *fields = bytes(peer.buffer[:stop]).split(b" ")
        move = _MOVES.get((peer.phase, verb))
        if move is None:
            shown = verb[:16].decode("ascii", "replace").encode("ascii", "replace").decode()
            raise _ProtocolError(
                f"{shown!r} is no command for a connection that is {peer.phase.value}"
            )
        taken = move(self, peer, fields, commands)
        if taken:
            del peer.buffer[: stop + 1]
        else:
            peer.parked = True
        return taken

    def _payload(self, peer: _Peer, commands: list[Command]) -> bool:
        """Move bytes from the buffer into the line being received; False: more are to come."""
        taken = min(peer.missing, len(peer.buffer))
        if peer.payload is not None:
            peer.payload += memoryview(peer.buffer)[:taken]
        del peer.buffer[:taken]
        peer.missing -= taken
        if peer.missing:
            return False
        peer.receiving = False
        payload, peer.payload = peer.payload, None
        if payload is not None:
            if b"\n" in payload:
                raise _ProtocolError(f"line {peer.n} holds a newline; send one line per LINE")
            # The agent may have closed its stdin while the payload was on its way.
            self._check_stdin(peer.n)
            payload += b"\n"
            self.last = peer.n
            self.writing = True
            commands.append(WriteLine(peer.n, payload))
        commands.append(Send(peer.connection, b"ACK %d\n" % peer.n))
        return True

    # ---------------------------------------------------------------------- one method a command

    def _hello(self, peer: _Peer, fields: list[bytes], commands: list[Command]) -> bool:
        version, epoch = _numbers("HELLO", fields, 2)
        if version != VERSION:
            raise _ProtocolError(f"HELLO asks for version {version}; this keeper speaks {VERSION}")
        if epoch < self.epoch:
            commands += self._dismiss(peer, b"STALE %d\n" % self.epoch)
            return True
        if self.owner is not None:
            if epoch == self.epoch and peer.connection < self.owner:
                # The same owner has come back on a newer connection before this one spoke.
                commands += self._dismiss(peer, b"REPLACED\n")
                return True
            commands += self._dismiss(self._peers[self.owner], b"REPLACED\n")
        self.epoch = epoch
        self.owner = peer.connection
        peer.phase = Phase.OWNER
        state = b"running" if self.running else b"exited"
        welcome = b"WELCOME %d %d %s\n" % (VERSION, self.last, state)
        if self.full:
            welcome += b"FULL\n"
        commands.append(Send(peer.connection, welcome))
        return True

    def _line(self, peer: _Peer, fields: list[bytes], _commands: list[Command]) -> bool:
        n, length = _numbers("LINE", fields, 2)
        if length > MAX_LINE_BYTES:
            raise _ProtocolError(f"line {n} has {length} bytes; the most is {MAX_LINE_BYTES}")
        known = self._known(n)
        if not known:
            self._check_stdin(n)
            if self.writing:
                return False
        peer.n, peer.missing, peer.receiving = n, length, True
        peer.payload = None if known else bytearray()
        return True

    def _end(self, peer: _Peer, fields: list[bytes], commands: list[Command]) -> bool:
        (n,) = _numbers("END", fields, 1)
        if not self._known(n):
            self.last = n
            if self.stdin is Stdin.OPEN:
                self.stdin = Stdin.ENDING if self.writing else Stdin.CLOSED
                if self.stdin is Stdin.CLOSED:
                    commands.append(CloseStdin())
        commands.append(Send(peer.connection, b"ACK %d\n" % n))
        return True

    def _signal(self, peer: _Peer, fields: list[bytes], commands: list[Command]) -> bool:
        (n,) = _numbers("SIGNAL", fields[:1], 1)
        name = fields[1].decode("ascii", "replace") if len(fields) == 2 else ""
        if name not in SIGNALS:
            raise _ProtocolError(f"SIGNAL {n} needs one of {', '.join(SIGNALS)}")
        if not self._known(n):
            self.last = n
            if self.running:
                commands.append(Signal(name))
        commands.append(Send(peer.connection, b"ACK %d\n" % n))
        return True

    def _ping(self, peer: _Peer, fields: list[bytes], commands: list[Command]) -> bool:
        _numbers("PING", fields, 0)
        commands.append(Send(peer.connection, b"PONG\n"))
        return True

    # ------------------------------------------------------------------------------------- helpers

    def _known(self, n: int) -> bool:
        """Whether n was accepted before; a gap or 0 is an error."""
        if n == 0:
            raise _ProtocolError("commands are numbered from 1")
        if n > self.last + 1:
            raise _ProtocolError(f"gap: {n} came after {self.last}; send {self.last + 1} next")
        return n <= self.last

    def _check_stdin(self, n: int) -> None:
        if not self.running:
            raise _ProtocolError(f"line {n} was not delivered: the agent has exited")
        if self.stdin is Stdin.BROKEN:
            raise _ProtocolError(f"line {n} was not delivered: the agent has closed its stdin")
        if self.stdin is not Stdin.OPEN:
            raise _ProtocolError(
                f"line {n} was not delivered: the agent's stdin was ended before it"
            )

    def _unpark(self) -> list[Command]:
        commands: list[Command] = []
        for peer in list(self._peers.values()):
            if peer.parked:
                peer.parked = False
                commands += self._advance(peer)
        return commands

    def _tell(self, data: bytes) -> list[Command]:
        return [] if self.owner is None else [Send(self.owner, data)]

    def _fail(self, peer: _Peer, text: str) -> list[Command]:
        return self._dismiss(peer, b"ERROR %s\n" % text.encode("ascii", "replace"))

    def _dismiss(self, peer: _Peer, data: bytes) -> list[Command]:
        self._forget(peer.connection)
        return [Send(peer.connection, data), Close(peer.connection)]

    def _forget(self, connection: int) -> None:
        self._peers.pop(connection, None)
        if self.owner == connection:
            self.owner = None


def _numbers(verb: str, fields: list[bytes], count: int) -> list[int]:
    numbers = [n for n in map(_number, fields) if n is not None]
    if len(numbers) != count or len(fields) != count:
        raise _ProtocolError(f"{verb} has {count} numbers, without sign or leading zero")
    return numbers


# A method returns whether it took the command; False parks the connection in front of it.
_MOVES = {
    (Phase.GREETING, b"HELLO"): KeeperSide._hello,
    (Phase.OWNER, b"LINE"): KeeperSide._line,
    (Phase.OWNER, b"END"): KeeperSide._end,
    (Phase.OWNER, b"SIGNAL"): KeeperSide._signal,
    (Phase.OWNER, b"PING"): KeeperSide._ping,
}
