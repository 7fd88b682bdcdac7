"""Who serves, drains and may go: in small worlds, some by name and all by exhaustion."""

from itertools import product
from typing import Any

import pytest

from holdoverd.handover.roles import (
    Orders,
    Role,
    Sibling,
    Trial,
    candidate_is_orphaned,
    decide,
    may_exit,
)


def role(
    me: int,
    *siblings: Sibling,
    trial: Trial | None = None,
    mode: Any = "finish",
    max_generations: int = 3,
    **orders: bool,
) -> Role:
    return decide(me, siblings, trial, Orders(**orders), mode=mode, max_generations=max_generations)


def test_alone_it_serves_whatever_it_was_told() -> None:
    for orders in ({}, {"drain": True}, {"retire": True}, {"stopping": True}):
        assert role(1, **orders) == Role("serving", None, False)


def test_a_newer_one_that_serves_makes_it_drain() -> None:
    assert role(1, Sibling(2, "serving")) == Role("draining", 2, False)
    assert role(1, Sibling(2, "serving"), mode="migrate") == Role("draining", 2, True)


@pytest.mark.parametrize("state", ["candidate", "draining"])
def test_a_newer_one_that_does_not_serve_changes_nothing(state: Any) -> None:
    assert role(1, Sibling(2, state)) == Role("serving", None, False)


def test_one_that_cannot_be_reached_is_nobody_to_hand_over_to() -> None:
    assert role(1, Sibling(2, "serving", reachable=False)).state == "serving"


def test_the_newest_of_those_who_serve_inherits() -> None:
    assert role(1, Sibling(2, "serving"), Sibling(3, "serving")).heir == 3


def test_with_more_than_max_generations_the_oldest_alone_migrates() -> None:
    older = Sibling(1, "draining"), Sibling(2, "draining"), Sibling(3, "draining")
    newest = Sibling(4, "serving")
    assert role(1, *older[1:], newest).migrate
    assert not role(2, older[0], older[2], newest).migrate
    assert not role(2, older[2], newest).migrate


def test_a_candidate_waits_until_it_is_accepted() -> None:
    trial = Trial(2)
    assert role(2, Sibling(1, "serving"), trial=trial) == Role("candidate", None, False)
    assert role(2, Sibling(1, "serving"), trial=trial, accepted=True).state == "serving"
    assert role(1, Sibling(2, "candidate"), trial=trial).state == "serving"


def test_one_that_is_taken_back_hands_over_to_its_predecessor() -> None:
    """The predecessor drains as long as it hears of us serving: we have to say so first."""
    mine = role(2, Sibling(1, "draining"), trial=Trial(2), accepted=True, retire=True)
    assert mine == Role("draining", 1, True)
    assert role(1, Sibling(2, "draining"), trial=Trial(2)).state == "serving"
    assert role(2, Sibling(1, "serving"), trial=Trial(2), accepted=True, retire=True) == Role(
        "draining", 1, True
    )


def test_a_stop_request_hands_over_to_anyone_who_serves() -> None:
    assert role(2, Sibling(1, "serving"), stopping=True) == Role("draining", 1, True)


def test_nobody_leaves_during_a_trial_but_who_was_told_to() -> None:
    drained = Role("draining", 2, False)
    assert may_exit(drained, None, owns=0, orders=Orders())
    assert not may_exit(drained, Trial(2), owns=0, orders=Orders())
    assert may_exit(drained, Trial(2), owns=0, orders=Orders(retire=True))
    assert not may_exit(drained, None, owns=1, orders=Orders())
    assert not may_exit(Role("serving", None, False), None, owns=0, orders=Orders(drain=True))


def test_a_candidate_whose_trial_was_called_off_is_nobodys() -> None:
    assert candidate_is_orphaned(2, None, Orders())
    assert candidate_is_orphaned(2, Trial(3), Orders())
    assert not candidate_is_orphaned(2, Trial(2), Orders())
    assert not candidate_is_orphaned(2, None, Orders(accepted=True))


def test_whatever_each_hears_last_somebody_accepts_in_the_end() -> None:
    """Three instances tell one another what they are, in every order, until nothing changes."""
    generations = (1, 2, 3)
    for trial, retired, states in product(
        (None, Trial(3)),
        (None, 1, 2, 3),
        product(("serving", "draining"), repeat=3),
    ):
        said: dict[int, Any] = dict(zip(generations, states, strict=True))
        for _round in range(10):
            before = dict(said)
            for me in generations:
                others = [Sibling(g, said[g]) for g in generations if g != me]
                orders = {"accepted": True, "retire": me == retired}
                said[me] = role(me, *others, trial=trial, **orders).state
            if said == before:
                break
        else:
            raise AssertionError(f"they never agree: {trial} {retired} {states}")
        serving = [g for g in generations if said[g] == "serving"]
        assert len(serving) == 1, (trial, retired, states, said)
        assert serving[0] == max(g for g in generations if g != retired)
