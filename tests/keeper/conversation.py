"""The keeper's rules with the shell's and the kernel's parts played in memory: for tests."""

from __future__ import annotations

import itertools
from collections.abc import Iterable

from holdoverd.keeper import keeper_side as ks
from holdoverd.keeper import protocol
from holdoverd.keeper.keeper_side import KeeperSide


class Conversation:
    """A keeper in memory: what it was told, and what it did about it.

    The kernel's part is played too: bytes for a connection that is not read wait in `queued`.
    """

    def __init__(self, epoch: int = 7, *, slow_agent: bool = False) -> None:
        self.rules = KeeperSide(epoch)
        self.slow_agent = slow_agent
        self.said: dict[int, bytes] = {}  # {connection: everything the keeper sent it}
        self.closed: set[int] = set()
        self.lines: list[bytes] = []  # whole lines in the agent's pipe
        self.pending: bytes | None = None
        self.signals: list[str] = []
        self.stdin_closed = 0
        self.queued: dict[int, bytearray] = {}
        self.accepted = 0

    def connect(self) -> int:
        self.accepted += 1
        self.said[self.accepted] = b""
        self.queued[self.accepted] = bytearray()
        self.obey(self.rules.connected(self.accepted))
        return self.accepted

    @property
    def held_bytes(self) -> int:
        """Of owners' commands, in the keeper's memory now."""
        peers = self.rules._peers.values()
        return sum(len(peer.buffer) + len(peer.payload or b"") for peer in peers)

    def owner(self, epoch: int = 7) -> int:
        connection = self.connect()
        self.send(connection, protocol.hello(epoch))
        return connection

    def send(self, connection: int, data: bytes, cuts: Iterable[int] = ()) -> None:
        edges = [0, *sorted(cuts), len(data)]
        for start, stop in itertools.pairwise(edges):
            self.queued[connection] += data[start:stop]
            self.pump()

    def pump(self) -> None:
        for connection, queue in self.queued.items():
            if queue and self.rules.reading(connection):
                data, self.queued[connection] = bytes(queue), bytearray()
                self.obey(self.rules.receive(connection, data))

    def hang_up(self, connection: int) -> None:
        self.queued[connection] = bytearray()
        self.obey(self.rules.closed(connection))

    def write_pending(self) -> None:
        assert self.pending is not None
        self.lines.append(self.pending)
        self.pending = None
        self.obey(self.rules.line_written())
        self.pump()

    def obey(self, commands: list[ks.Command]) -> None:
        for command in commands:
            match command:
                case ks.Send(connection, data):
                    assert connection not in self.closed
                    self.said[connection] += data
                case ks.Close(connection):
                    self.closed.add(connection)
                    assert not self.rules.reading(connection)
                case ks.WriteLine(_, data):
                    assert self.pending is None, "one line at a time"
                    self.pending = bytes(data)
                case ks.CloseStdin():
                    assert self.pending is None
                    self.stdin_closed += 1
                case ks.Signal(name):
                    self.signals.append(name)
        if self.pending is not None and not self.slow_agent:
            self.write_pending()  # never in the middle of a batch: nor does the shell

    def events(self, connection: int) -> list[protocol.Event]:
        return protocol.OwnerSide().receive(self.said[connection])
