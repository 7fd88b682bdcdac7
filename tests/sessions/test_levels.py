"""A session's state is a function of what is true now; nothing else is remembered."""

from dataclasses import replace
from itertools import product

import pytest

from holdoverd.sessions.levels import MAX_TASKS, Facts, TurnTracker, state_of

IDLE = Facts(
    ended=False,
    failed=False,
    launch=True,
    wanted=False,
    ready=True,
    open_permissions=0,
    queued_prompts=0,
    turn_open=False,
)


@pytest.mark.parametrize(
    ("facts", "state"),
    [
        (IDLE, "idle"),
        (replace(IDLE, turn_open=True), "working"),
        (replace(IDLE, queued_prompts=1), "working"),
        (replace(IDLE, open_permissions=1, turn_open=True), "waiting"),
        (replace(IDLE, ready=False), "starting"),
        (replace(IDLE, ready=False, queued_prompts=2), "starting"),
        (replace(IDLE, launch=False), "dormant"),
        (replace(IDLE, launch=False, queued_prompts=1), "dormant"),
        (replace(IDLE, launch=False, wanted=True), "starting"),
        (replace(IDLE, launch=False, failed=True), "failed"),
        (replace(IDLE, launch=False, failed=True, wanted=True), "starting"),
        (replace(IDLE, failed=True), "idle"),
        (replace(IDLE, ended=True, open_permissions=1, turn_open=True), "ended"),
    ],
)
def test_state_follows_from_the_facts(facts: Facts, state: str) -> None:
    assert state_of(facts) == state


def test_waiting_means_at_least_one_open_permission_and_an_agent_to_hear_the_answer() -> None:
    for ended, failed, launch, wanted, ready, asked, queued, turn in product(
        (False, True), (False, True), (False, True), (False, True), (False, True),
        (0, 1, 3), (0, 1), (False, True),
    ):  # fmt: skip
        facts = Facts(ended, failed, launch, wanted, ready, asked, queued, turn)
        assert (state_of(facts) == "waiting") == (not ended and launch and asked > 0)


def test_an_agent_that_tells_its_state_is_believed_over_its_frames() -> None:
    turn = TurnTracker()
    turn.said("running")
    turn.result(0)
    assert turn.open, "a result can come before the turn is over"
    turn.said("requires_action")
    assert turn.open
    turn.said("idle")
    turn.opened()
    assert not turn.open


def test_an_agent_that_tells_nothing_is_judged_by_its_frames() -> None:
    turn = TurnTracker()
    assert not turn.open
    turn.opened()
    assert turn.open
    turn.result(1)
    assert turn.open, "another turn was announced"
    turn.result(0)
    assert not turn.open
    turn.task("t1", running=True)
    assert turn.open, "a background task keeps the turn open"
    turn.task("t1", running=False)
    assert not turn.open


def test_a_new_owner_judges_as_the_old_one_did() -> None:
    turn = TurnTracker()
    turn.opened()
    turn.task("t1", running=True)
    again = TurnTracker(turn.save())
    again.result(0)
    assert again.open
    again.tasks([])
    assert not again.open


def test_background_tasks_told_apart_are_bounded() -> None:
    turn = TurnTracker()
    for i in range(MAX_TASKS + 10):
        turn.task(f"t{i}", running=True)
    assert len(turn.save()["tasks"]) == MAX_TASKS  # type: ignore[arg-type]
    turn.tasks(f"u{i}" for i in range(MAX_TASKS + 10))
    assert len(turn.save()["tasks"]) == MAX_TASKS  # type: ignore[arg-type]
