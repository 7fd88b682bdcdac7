"""Who serves, who drains, to whom, and who may go. Levels, computed anew from what is known now.

Nothing is remembered but two orders (`accept`, `retire`) and the trial on disk: an instance that
was wrong about its siblings a moment ago is right as soon as it looks again.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

State = Literal["candidate", "serving", "draining"]


@dataclass(frozen=True, slots=True)
class Sibling:
    """Another living instance of this host, as it last said itself.

    `reachable`: a link with a common protocol version stands, so that it can be handed something.
    """

    generation: int
    state: State
    reachable: bool = True


@dataclass(frozen=True, slots=True)
class Trial:
    """A deploy that is not permanent yet; see PROTOCOL.md, `trial.json`."""

    generation: int


@dataclass(frozen=True, slots=True)
class Orders:
    """What this instance was told. `migrate`: now, instead of as sessions finish."""

    accepted: bool = False
    drain: bool = False
    retire: bool = False
    migrate: bool = False
    stopping: bool = False


@dataclass(frozen=True, slots=True)
class Role:
    """What this instance is to do. `heir`: the generation that gets what it gives, if any."""

    state: State
    heir: int | None
    migrate: bool


def decide(
    me: int,
    siblings: Iterable[Sibling],
    trial: Trial | None,
    orders: Orders,
    *,
    mode: Literal["finish", "migrate"],
    max_generations: int,
) -> Role:
    """The role of generation `me`.

    It drains only while somebody else serves: a newer one, or, when it was told to, any. With
    nobody to drain to it serves, whatever it was told: somebody has to accept.
    """
    known = list(siblings)
    if trial is not None and trial.generation == me and not orders.accepted:
        return Role("candidate", None, False)
    # One that was told to go counts as older than all: who inherits from it is anyone who serves.
    leaving = orders.retire or orders.drain or orders.stopping
    serving = [
        s.generation
        for s in known
        if s.reachable and s.state == "serving" and (leaving or s.generation > me)
    ]
    if not serving and orders.retire:
        # The predecessor takes over as soon as it hears that we drain: say so first.
        older = [s.generation for s in known if s.reachable and s.state == "draining"]
        if older:
            return Role("draining", max(older), True)
    if not serving:
        return Role("serving", None, False)
    alive = 1 + len(known)
    oldest = all(me < s.generation for s in known)
    migrate = (
        orders.retire
        or orders.stopping
        or orders.migrate
        or mode == "migrate"
        or (oldest and alive > max_generations)
    )
    return Role("draining", max(serving), migrate)


def may_exit(role: Role, trial: Trial | None, *, owns: int, orders: Orders) -> bool:
    """Whether an instance that owns `owns` things (sessions, connections) may end by itself.

    Not while a deploy is on trial: until it is permanent, a predecessor may have to serve again.
    One that was told to go goes all the same.
    """
    if role.state != "draining" or owns:
        return False
    return trial is None or orders.retire or orders.stopping


def candidate_is_orphaned(me: int, trial: Trial | None, orders: Orders) -> bool:
    """A candidate whose trial was called off before it was accepted: nobody will ask for it."""
    return not orders.accepted and (trial is None or trial.generation != me)
