"""Who may touch what is passed from one instance to another. Rules only: events in, commands out.

One transfer has a giver and a taker (PROTOCOL.md, "A transfer"). At no moment may both touch its
connections, and as long as one of the two lives, they are served or closed, never left hanging.
Who owns the session is not decided here but by the compare-and-set in the catalogue; a giver that
gets its connections back adopts the session like any other instance would.

The tables are explored with a death, a stop and a torn link at every step by
tests/handover/test_transfer.py.
"""

from dataclasses import dataclass
from enum import Enum, auto


class Event(Enum):
    """What happens to one side of a transfer.

    `LINK_LOST`: the link has ended, and the peer may live. `PEER_DEAD`: it has ended, everything
    that came before has been read, and the peer's lock is free.
    """

    COMPLETE = auto()  # taker: every connection of the offer is here
    OWNED = auto()  # taker: the session is ours now (or the offer names none)
    NOT_OWNED = auto()  # taker: somebody else has the session, or it cannot be loaded
    TAKEN = auto()  # giver: the packet came
    REFUSED = auto()  # giver: the packet came
    GO = auto()  # taker: the packet came
    TIMEOUT = auto()  # giver: the taker lives and does not answer
    LINK_LOST = auto()
    PEER_DEAD = auto()


class Command(Enum):
    """What a side does next. Those of one event are done in order."""

    TAKE_OWNERSHIP = auto()
    SEND_TAKEN = auto()
    SEND_REFUSED = auto()
    CLOSE_COPIES = auto()  # giver: the connections are the taker's; taker: they stay the giver's
    SEND_GO = auto()
    ATTACH = auto()  # serve the connections from now on
    CLOSE_LINK = auto()


class State(Enum):
    """Giver: OFFERED, then GIVEN or KEPT. Taker: HOLDING, OWNING, PARKED, then BEGUN or DROPPED."""

    OFFERED = auto()
    GIVEN = auto()
    KEPT = auto()
    HOLDING = auto()
    OWNING = auto()
    PARKED = auto()
    BEGUN = auto()
    DROPPED = auto()


FINAL = frozenset({State.GIVEN, State.KEPT, State.BEGUN, State.DROPPED})

_Table = dict[tuple[State, Event], tuple[State, tuple[Command, ...]]]

# The copies are closed before `go` leaves: once it has left, the taker may write at any moment.
GIVER: _Table = {
    (State.OFFERED, Event.TAKEN): (State.GIVEN, (Command.CLOSE_COPIES, Command.SEND_GO)),
    (State.OFFERED, Event.REFUSED): (State.KEPT, (Command.ATTACH,)),
    # Without its link the taker learns nothing more from us and drops what it holds.
    (State.OFFERED, Event.TIMEOUT): (State.KEPT, (Command.CLOSE_LINK, Command.ATTACH)),
    (State.OFFERED, Event.LINK_LOST): (State.KEPT, (Command.ATTACH,)),
    (State.OFFERED, Event.PEER_DEAD): (State.KEPT, (Command.ATTACH,)),
}

TAKER: _Table = {
    (State.HOLDING, Event.COMPLETE): (State.OWNING, (Command.TAKE_OWNERSHIP,)),
    (State.HOLDING, Event.LINK_LOST): (State.DROPPED, (Command.CLOSE_COPIES,)),
    # Half an offer of a dead giver: what has come is served, nobody else has it.
    (State.HOLDING, Event.PEER_DEAD): (State.BEGUN, (Command.ATTACH,)),
    (State.OWNING, Event.OWNED): (State.PARKED, (Command.SEND_TAKEN,)),
    (State.OWNING, Event.NOT_OWNED): (
        State.DROPPED,
        (Command.CLOSE_COPIES, Command.SEND_REFUSED),
    ),
    # Whoever owns the session by now, its viewers find out when they are attached.
    (State.OWNING, Event.PEER_DEAD): (State.BEGUN, (Command.ATTACH,)),
    (State.OWNING, Event.LINK_LOST): (State.DROPPED, (Command.CLOSE_COPIES,)),
    (State.PARKED, Event.GO): (State.BEGUN, (Command.ATTACH,)),
    # It lives and will not say `go` any more: so it has its connections back.
    (State.PARKED, Event.LINK_LOST): (State.DROPPED, (Command.CLOSE_COPIES,)),
    (State.PARKED, Event.PEER_DEAD): (State.BEGUN, (Command.ATTACH,)),
}


class TransferError(AssertionError):
    """An event that cannot come in this state: a defect of this instance or of its peer."""


@dataclass
class Side:
    """One side of one transfer. Events after the end change nothing: they crossed it on the way."""

    table: _Table
    state: State

    @classmethod
    def giver(cls) -> "Side":
        return cls(GIVER, State.OFFERED)

    @classmethod
    def taker(cls) -> "Side":
        return cls(TAKER, State.HOLDING)

    @property
    def over(self) -> bool:
        return self.state in FINAL

    def on(self, event: Event) -> tuple[Command, ...]:
        """What to do now. Raises TransferError for an event that this state does not admit."""
        if self.over:
            return ()
        found = self.table.get((self.state, event))
        if found is None:
            raise TransferError(f"{event.name} came to a transfer that is {self.state.name}")
        self.state, commands = found
        return commands
