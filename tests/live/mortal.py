"""A daemon that ends or stops itself at a named step of a handoff.

``python -m tests.live.mortal HANDOFF STEP SIGNAL NTH ARGUMENTS…``: the real daemon with ARGUMENTS,
which sends itself SIGNAL when it comes to STEP of a HANDOFF for the NTH time. The steps are the places
where one side does something that the other, or the world, can see. HANDOFF:

    session    a session with the connections that watch it
    idle       connections without a request, and with half a one
    passed     a connection whose session is owned by the other side
"""

import os
import signal
import sys
from collections.abc import Awaitable, Callable, Sequence
from contextvars import ContextVar
from typing import Any

from holdoverd import main as daemon
from holdoverd.catalogue import sessions as sessions_table
from holdoverd.catalogue.writer import Writer
from holdoverd.handover import transfers
from holdoverd.handover.duty import Duty
from holdoverd.handover.siblings import Conversation, Link
from holdoverd.http.server import Server
from holdoverd.sessions.owner import OwnedSession
from holdoverd.sessions.service import Sessions

_OFFER = tuple(
    f"{when} {packet}" for packet in ("offer", "connection") for when in ("before", "after")
)
_GO = ("on taken", "before go", "after go")
_TAKEN = ("on offer", "on connection")
_BEGUN = ("before taken", "after taken", "on go", "before attach", "after attach")

# {handoff: {side: steps, in their order}}
STEPS: dict[str, dict[str, tuple[str, ...]]] = {
    "session": {
        "giver": (
            "before detach", "after detach", "before let_go", "in commit", "after let_go",
            *_OFFER, *_GO,
        ),
        "taker": (*_TAKEN, "before take", "in take", "owned", "after take", *_BEGUN),
    },
    "idle": {
        "giver": ("before detach", "after detach", *_OFFER, *_GO),
        "taker": (*_TAKEN, *_BEGUN),
    },
    "passed": {
        "giver": ("before pass", *_OFFER, *_GO, "after pass"),
        "taker": (*_TAKEN, *_BEGUN),
    },
}  # fmt: skip

_handoff: ContextVar[str] = ContextVar("handoff", default="")


class Fate:
    """Counts the steps, and strikes at the one that was named."""

    def __init__(self, handoff: str, step: str, number: signal.Signals, nth: int) -> None:
        self._handoff = handoff
        self._step = step
        self._number = number
        self._left = nth
        self.next_commit = False

    def at(self, step: str, handoff: str | None = None) -> None:
        if self.comes(step, handoff):
            self.strike()

    def comes(self, step: str, handoff: str | None = None) -> bool:
        """Whether this is the moment."""
        if (handoff or _handoff.get(), step) != (self._handoff, self._step):
            return False
        self._left -= 1
        return self._left == 0

    def strike(self) -> None:
        os.kill(os.getpid(), self._number)


def arm(fate: Fate) -> None:
    _arm_giver(fate)
    _arm_taker(fate)


def _around(
    fate: Fate, handoff: str, name: str, real: Callable[..., Awaitable[Any]]
) -> Callable[..., Awaitable[Any]]:
    async def wrapped(*arguments: Any, **options: Any) -> Any:
        fate.at(f"before {name}", handoff)
        result = await real(*arguments, **options)
        fate.at(f"after {name}", handoff)
        return result

    return wrapped


def _arm_giver(fate: Fate) -> None:
    give, send, answered = transfers.give, Link.send, Conversation.next
    let_go, write = Sessions.let_go_of, Writer._write_bare

    async def giving(link: Link, detached: Any, **options: Any) -> bool:
        passed = bool(detached) and detached[0].state.hops > 0
        _handoff.set(
            "session" if options.get("session") is not None else "passed" if passed else "idle"
        )
        try:
            return await give(link, detached, **options)
        finally:
            _handoff.set("")

    async def sending(self: Link, fields: dict[str, Any], fds: Any = ()) -> None:
        fate.at(f"before {fields['t']}")
        await send(self, fields, fds)
        fate.at(f"after {fields['t']}")

    async def hearing(self: Conversation) -> Any:
        packet = await answered(self)
        if packet is not None:
            fate.at(f"on {packet.type}")
        return packet

    async def letting_go(self: Sessions, session: str) -> int | None:
        fate.at("before let_go", "session")
        if fate.comes("in commit", "session"):
            fate.next_commit = True
            await self._in.catalogue.write(lambda _cx: None)
        epoch = await let_go(self, session)
        fate.at("after let_go", "session")
        return epoch

    def writing(self: Writer, cx: Any, group: Any) -> None:
        if fate.next_commit:
            # In the writer's thread, with its turn and an open transaction.
            with self._transaction(cx):
                fate.strike()
        write(self, cx, group)

    transfers.give = giving
    Link.send = sending  # type: ignore[method-assign]
    Conversation.next = hearing  # type: ignore[method-assign]
    Sessions.let_go_of = letting_go  # type: ignore[method-assign]
    Writer._write_bare = writing  # type: ignore[method-assign]
    Server.detach_session = _around(  # type: ignore[method-assign]
        fate, "session", "detach", Server.detach_session
    )
    Server._detach = _around(fate, "idle", "detach", Server._detach)  # type: ignore[method-assign]
    Duty.pass_on = _around(fate, "passed", "pass", Duty.pass_on)  # type: ignore[method-assign]


def _arm_taker(fate: Fate) -> None:
    offered, attach = Duty.offered, Server.attach
    take_ownership, begin = sessions_table.take_ownership, OwnedSession.begin
    taking = 0

    async def hearing_of(self: Duty, link: Link, packet: Any, coming: Conversation) -> None:
        # What comes without a session is passed on to one that drains, and idle for one that serves.
        alone = "passed" if self.role.state == "draining" else "idle"
        handoff = "session" if "session" in packet.fields else alone
        _handoff.set(handoff)
        fate.at("on offer")
        await offered(self, link, packet, coming)

    def attaching(self: Server, detached: Any) -> None:
        fate.at("before attach")
        attach(self, detached)
        fate.at("after attach")

    def owning(cx: Any, *arguments: Any) -> int:
        epoch = take_ownership(cx, *arguments)
        if taking:
            fate.at("in take", "session")
        return epoch

    def beginning(self: OwnedSession, **how: Any) -> None:
        if taking:
            fate.at("owned", "session")
        begin(self, **how)

    take = Sessions.take

    async def taken(self: Sessions, *arguments: Any) -> None:
        nonlocal taking
        fate.at("before take", "session")
        taking += 1
        try:
            await take(self, *arguments)
        finally:
            taking -= 1
        fate.at("after take", "session")

    Duty.offered = hearing_of  # type: ignore[method-assign]
    Server.attach = attaching  # type: ignore[method-assign]
    sessions_table.take_ownership = owning
    OwnedSession.begin = beginning  # type: ignore[method-assign]
    Sessions.take = taken  # type: ignore[method-assign]


def main(arguments: Sequence[str]) -> int:
    handoff, step, name, nth, *rest = arguments
    arm(Fate(handoff, step, signal.Signals[name], int(nth)))
    return daemon.main(rest)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
