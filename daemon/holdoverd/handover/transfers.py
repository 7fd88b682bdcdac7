"""Giving and taking: the shell around `transfer`'s rules.

What is given was detached before: a plain record and a socket that nobody touches. Whoever ends up
with it attaches it; so an instance that gets its own back does what any taker does.
"""

import logging
import os
import socket
from collections.abc import Awaitable, Callable, Sequence

import trio

from holdoverd.errors import HandoverError
from holdoverd.handover.packed import Detached, pack, unpack
from holdoverd.handover.siblings import Conversation, Link
from holdoverd.handover.transfer import Command, Event, Side
from holdoverd.handover.wire import Packet, make_blob

log = logging.getLogger(__name__)

TAKEN_S = 10.0
"""A taker that beats but does not answer for so long has some trouble of its own."""

MAX_CONNECTIONS = 10_000
"""Of one transfer; more viewers of one session than that are not handed over together."""


async def give(
    link: Link, detached: Sequence[Detached], *, session: str | None = None, owner_epoch: int = 0
) -> bool:
    """Offer connections, and a session with them. True: all of it is the sibling's now.

    False: the connections are still the caller's, and whose the session is, the catalogue tells.
    Not cancelled in the middle: it takes `TAKEN_S` at most, and nobody could tell what is whose.
    """
    side = Side.giver()
    given = False
    with trio.CancelScope(shield=True):
        try:
            with link.conversation() as (number, answers):
                event = await _offer(link, number, answers, detached, session, owner_epoch)
                for command in side.on(event):
                    match command:
                        case Command.CLOSE_COPIES:
                            given = True
                            for one in detached:
                                one.close()
                        case Command.SEND_GO:
                            try:
                                await link.send({"t": "go", "id": number})
                            except HandoverError as error:
                                # It died with them. Their clients reconnect.
                                log.info("the taker is gone: %s", error)
                        case Command.CLOSE_LINK:
                            link.close()
                        case Command.ATTACH:
                            pass  # the caller does, by our answer
        except HandoverError as error:
            log.info("nothing was handed to generation %d: %s", link.generation, error)
    return given


async def _offer(
    link: Link,
    number: int,
    answers: Conversation,
    detached: Sequence[Detached],
    session: str | None,
    owner_epoch: int,
) -> Event:
    """Send the offer and wait for what becomes of it."""
    with trio.move_on_after(TAKEN_S):
        try:
            offer = {"t": "offer", "id": number, "connections": len(detached)}
            if session is not None:
                offer |= {"session": session, "owner_epoch": owner_epoch}
            await link.send(offer)
            for index, one in enumerate(detached):
                fields, blob = pack(one.state)
                fd, size = make_blob([blob])
                try:
                    await link.send(
                        {"t": "connection", "id": number, "index": index, **fields, "blob": size},
                        [one.socket.fileno(), fd],
                    )
                finally:
                    os.close(fd)
        except HandoverError:
            return Event.PEER_DEAD if await link.wait_dead() else Event.LINK_LOST
        answer = await answers.next()
        if answer is None:
            return Event.PEER_DEAD if await link.wait_dead() else Event.LINK_LOST
        answer.close()
        if answer.type == "refused":
            log.info("generation %d refused: %s", link.generation, answer.fields.get("why"))
        return Event.TAKEN if answer.type == "taken" else Event.REFUSED
    return Event.TIMEOUT


async def take(
    link: Link,
    packet: Packet,
    coming: Conversation,
    *,
    take_session: Callable[[str, int, int], Awaitable[None]],
    attach: Callable[[Detached], None],
) -> None:
    """Take what `packet` offers.

    ``take_session(session, owner_epoch, generation)`` makes the session ours and raises
    HandoverError where it cannot be; `attach` serves a connection from then on.
    """
    number, expected = packet.integer("id"), packet.integer("connections")
    session = packet.text("session") if "session" in packet.fields else None
    side = Side.taker()
    held: list[Detached] = []
    refused = ""
    try:
        try:
            event = await _hold(link, coming, expected, held)
        except HandoverError as error:
            await _answer(link, {"t": "refused", "id": number, "why": str(error)})
            return
        while not side.over:
            following: Event | None = None
            for command in side.on(event):
                match command:
                    case Command.TAKE_OWNERSHIP:
                        following = Event.OWNED
                        if session is not None:
                            try:
                                with trio.CancelScope(shield=True):
                                    await take_session(
                                        session, packet.integer("owner_epoch"), link.generation
                                    )
                            except HandoverError as error:
                                following, refused = Event.NOT_OWNED, str(error)
                    case Command.SEND_TAKEN:
                        following = await _answer(link, {"t": "taken", "id": number})
                    case Command.SEND_REFUSED:
                        await _answer(link, {"t": "refused", "id": number, "why": refused})
                    case Command.CLOSE_COPIES:
                        _close(held)
                    case Command.ATTACH:
                        for one in held:
                            attach(one)
                        held = []
            if side.over:
                break
            event = following if following is not None else await _next(link, coming)
    finally:
        _close(held)  # cancelled: this instance goes


async def _hold(link: Link, coming: Conversation, expected: int, held: list[Detached]) -> Event:
    """Receive the offer's connections into `held`."""
    if not 0 <= expected <= MAX_CONNECTIONS:
        raise HandoverError(f"An offer of {expected} connections is more than is ever taken.")
    while len(held) < expected:
        part = await coming.next()
        if part is None:
            return Event.PEER_DEAD if await link.wait_dead() else Event.LINK_LOST
        try:
            blob = part.take_blob()
            state = unpack(part.fields, blob)
            held.append(Detached(state, socket.socket(fileno=part.take_fd())))
        finally:
            part.close()
    return Event.COMPLETE


async def _answer(link: Link, fields: dict[str, object]) -> Event | None:
    try:
        await link.send(dict(fields))
    except HandoverError:
        return Event.PEER_DEAD if await link.wait_dead() else Event.LINK_LOST
    return None


async def _next(link: Link, coming: Conversation) -> Event:
    """Parked: `go`, or what became of the giver."""
    part = await coming.next()
    if part is None:
        return Event.PEER_DEAD if await link.wait_dead() else Event.LINK_LOST
    part.close()
    return Event.GO


def _close(held: Sequence[Detached]) -> None:
    for one in held:
        one.close()
