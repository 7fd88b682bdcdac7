"""Every interleaving of a giver and a taker, with a death, a stop or a torn link at every step.

The world is a small value: what each side knows, what is on its way, who is alive. From it every
possible next step is taken, and so on, until nothing new turns up. A stopped process is one that
takes no step; since nothing here depends on time, that is every interleaving in which it happens
not to be chosen, and its end is the death that its siblings deal it.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import pytest

from holdoverd.handover.transfer import (
    FINAL,
    GIVER,
    TAKER,
    Command,
    Event,
    Side,
    State,
    TransferError,
)


@dataclass(frozen=True)
class Process:
    state: State
    alive: bool = True
    copies: bool = False  # holds the connections' descriptors
    touches: bool = False  # reads and writes them
    closed_link: bool = False  # its end of the link
    heard_end: bool = False


@dataclass(frozen=True)
class World:
    giver: Process
    taker: Process
    parts: int  # connections still to be sent
    to_taker: tuple[str, ...] = ()
    to_giver: tuple[str, ...] = ()
    owner: str = "nobody"  # as the catalogue has it: the giver has let go, its row stands
    rival: bool = False  # somebody else may take the session meanwhile

    @property
    def link_up(self) -> bool:
        both = (self.giver, self.taker)
        return all(one.alive and not one.closed_link for one in both)


def _run(world: World, who: str, event: Event) -> World:
    """Let one side hear `event`, and do what it says, in order and without a pause."""
    mine: Process = getattr(world, who)
    side = Side(GIVER if who == "giver" else TAKER, mine.state)
    commands = side.on(event)
    mine = replace(mine, state=side.state)
    world = replace(world, **{who: mine})
    for command in commands:
        mine = getattr(world, who)
        match command:
            case Command.CLOSE_COPIES:
                world = replace(world, **{who: replace(mine, copies=False)})
            case Command.ATTACH:
                world = replace(world, **{who: replace(mine, touches=mine.copies)})
            case Command.CLOSE_LINK:
                world = replace(world, **{who: replace(mine, closed_link=True)})
            case Command.SEND_GO | Command.SEND_TAKEN | Command.SEND_REFUSED:
                name = command.name.removeprefix("SEND_").lower()
                queue = "to_taker" if who == "giver" else "to_giver"
                if world.link_up:
                    world = replace(world, **{queue: (*getattr(world, queue), name)})
            case Command.TAKE_OWNERSHIP:
                pass  # a step of its own: others may come in between
    return world


def _deaths(world: World) -> Iterator[World]:
    for who in ("giver", "taker"):
        one: Process = getattr(world, who)
        if one.alive:
            dead = replace(one, alive=False, copies=False, touches=False)
            yield replace(world, **{who: dead})
            yield replace(world, **{who: replace(one, closed_link=True)})  # a torn link


def _ends(world: World, who: str, other: str, inbox: tuple[str, ...]) -> Iterator[World]:
    """The link has ended and everything that came before is read: what became of the peer?"""
    mine, theirs = getattr(world, who), getattr(world, other)
    if world.link_up or not mine.alive or mine.heard_end or (inbox and not mine.closed_link):
        return
    heard = replace(world, **{who: replace(mine, heard_end=True)})
    # A death that the pidfd has not told within its time is taken for a torn link; never the
    # other way round.
    if mine.state not in FINAL:
        yield _run(heard, who, Event.LINK_LOST)
        if not theirs.alive:
            yield _run(heard, who, Event.PEER_DEAD)


def steps(world: World) -> Iterator[World]:
    """Every world that can be next."""
    yield from _deaths(world)
    giver, taker = world.giver, world.taker
    if giver.alive and giver.state is State.OFFERED:
        if world.parts and world.link_up:
            yield replace(world, parts=world.parts - 1, to_taker=(*world.to_taker, "connection"))
        if world.link_up:
            yield _run(world, "giver", Event.TIMEOUT)
    if giver.alive and not giver.closed_link and world.to_giver:
        event = Event.TAKEN if world.to_giver[0] == "taken" else Event.REFUSED
        yield _run(replace(world, to_giver=world.to_giver[1:]), "giver", event)
    if taker.alive and not taker.closed_link and world.to_taker:
        name, rest = world.to_taker[0], world.to_taker[1:]
        heard = replace(world, to_taker=rest)
        if name == "go":
            yield _run(heard, "taker", Event.GO)
        else:
            heard = replace(heard, taker=replace(taker, copies=True))
            # the last one makes the offer whole
            more = heard.parts or "connection" in rest
            yield heard if more else _run(heard, "taker", Event.COMPLETE)
    if taker.alive and taker.state is State.OWNING and not world.rival:
        owned = replace(world, owner="taker")
        yield _run(owned, "taker", Event.OWNED)
        yield _run(replace(world, rival=True, owner="rival"), "taker", Event.NOT_OWNED)
    yield from _ends(world, "giver", "taker", world.to_giver)
    yield from _ends(world, "taker", "giver", world.to_taker)


def explore() -> tuple[set[World], list[World]]:
    """(every world that can come about, those in which nothing can happen but deaths)."""
    first = World(giver=Process(State.OFFERED, copies=True), taker=Process(State.HOLDING), parts=2)
    seen, todo, ends = {first}, [first], []
    while todo:
        world = todo.pop()
        following = set(steps(world))
        if following == set(_deaths(world)):
            ends.append(world)
        for one in following - seen:
            seen.add(one)
            todo.append(one)
    return seen, ends


@pytest.fixture(scope="module")
def explored() -> tuple[set[World], list[World]]:
    return explore()


def test_the_exploration_reaches_every_state(explored: tuple[set[World], list[World]]) -> None:
    worlds, ends = explored
    assert {w.giver.state for w in worlds} == {State.OFFERED, State.GIVEN, State.KEPT}
    assert {w.taker.state for w in worlds} == set(State) - {
        State.OFFERED,
        State.GIVEN,
        State.KEPT,
    }
    assert len(worlds) > 300
    assert ends


def test_never_do_both_touch_the_connections(explored: tuple[set[World], list[World]]) -> None:
    for world in explored[0]:
        assert not (world.giver.touches and world.taker.touches), world


def test_the_taker_touches_nothing_that_the_giver_may_still_take_back(
    explored: tuple[set[World], list[World]],
) -> None:
    for world in explored[0]:
        if world.taker.touches:
            assert not world.giver.alive or world.giver.state is State.GIVEN, world


def test_every_transfer_comes_to_an_end_for_whoever_lives(
    explored: tuple[set[World], list[World]],
) -> None:
    for world in explored[1]:
        for one in (world.giver, world.taker):
            assert not one.alive or one.state in FINAL, world


def test_without_a_death_or_a_torn_link_exactly_one_serves(
    explored: tuple[set[World], list[World]],
) -> None:
    quiet = [w for w in explored[1] if w.link_up]
    assert quiet
    for world in quiet:
        assert world.giver.touches != world.taker.touches, world
        if world.taker.touches:
            assert world.owner == "taker"


def test_nobody_is_left_holding_connections_that_nobody_serves(
    explored: tuple[set[World], list[World]],
) -> None:
    """Held, untouched and over: a client would wait there for ever, without a close."""
    for world in explored[1]:
        for one in (world.giver, world.taker):
            assert not (one.alive and one.copies and not one.touches), world


def test_a_giver_that_lives_loses_connections_only_to_a_taker_that_had_them(
    explored: tuple[set[World], list[World]],
) -> None:
    for world in explored[1]:
        served = world.giver.touches or world.taker.touches
        if world.giver.alive and world.taker.alive and not served:
            # only a link torn between `go` and its arrival: closed for the client, who comes back
            assert world.giver.state is State.GIVEN, world
            assert not world.link_up, world


def test_what_comes_too_late_changes_nothing() -> None:
    side = Side.giver()
    side.on(Event.TIMEOUT)
    assert side.on(Event.TAKEN) == ()
    assert side.state is State.KEPT


def test_an_impossible_event_names_itself_and_the_state() -> None:
    with pytest.raises(TransferError, match="GO came to a transfer that is OFFERED"):
        Side.giver().on(Event.GO)
