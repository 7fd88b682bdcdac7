"""The next step of a deploy: from every state there is one, and doing steps comes to an end.

A deploy that is killed forgets its own progress and nothing else, so `forget` is what a kill does.
"""

from dataclasses import replace
from itertools import product

import pytest

from holdoverd.deploy.rules import Facts, Step, next_step

NEW, OLD = 8, 7
FRESH = Facts(NEW, current=OLD, trial=None, running=False, ready=False)


def done(facts: Facts, step: Step, *, sound: bool = True) -> Facts:
    """The facts after a step, on a machine that obeys; a candidate that is not `sound` fails it."""
    match step:
        case Step.MIGRATE:
            return replace(facts, migrated=True)
        case Step.BEGIN_TRIAL:
            return replace(facts, trial=facts.generation)
        case Step.START:
            return replace(facts, running=True)
        case Step.WAIT_READY if sound:
            return replace(facts, ready=True, state="candidate")
        case Step.GATE if sound:
            return replace(facts, gated=True)
        case Step.ACCEPT:
            return replace(facts, state="serving")
        case Step.BAKE if sound:
            return replace(facts, baked=True)
        case Step.WAIT_READY | Step.GATE | Step.BAKE:
            return replace(facts, failed="it is broken")
        case Step.COMMIT:
            return replace(facts, current=facts.generation)
        case Step.END_TRIAL | Step.END_FAILED_TRIAL:
            return replace(facts, trial=None)
        case Step.RETIRE:
            return replace(facts, retired=True)
        case Step.KILL:
            return replace(facts, running=False, ready=False, state=None)
    raise AssertionError(f"{step} is an end")


def forget(facts: Facts) -> Facts:
    return replace(facts, migrated=False, gated=False, baked=False, failed="", retired=False)


def steps(facts: Facts, *, sound: bool = True, kill_before: int | None = None) -> list[Step]:
    """All steps to the end; the deploy is killed once, before its step number `kill_before`."""
    taken: list[Step] = []
    while (step := next_step(facts)) not in (Step.DONE, Step.FAILED):
        assert len(taken) < 40, f"it comes to no end: {taken}"
        if len(taken) == kill_before:
            facts, kill_before = forget(facts), None
            continue
        taken.append(step)
        facts = done(facts, step, sound=sound)
    return [*taken, step]


def test_a_sound_release_goes_from_step_to_step() -> None:
    assert steps(FRESH) == [
        Step.MIGRATE,
        Step.BEGIN_TRIAL,
        Step.START,
        Step.WAIT_READY,
        Step.GATE,
        Step.ACCEPT,
        Step.BAKE,
        Step.COMMIT,
        Step.END_TRIAL,
        Step.DONE,
    ]


@pytest.mark.parametrize("kill_before", range(10))
def test_a_deploy_that_is_killed_anywhere_and_run_again_commits(kill_before: int) -> None:
    assert steps(FRESH, kill_before=kill_before)[-1] is Step.DONE


@pytest.mark.parametrize("kill_before", range(8))
def test_a_broken_release_is_taken_back_however_often_the_deploy_is_killed(
    kill_before: int,
) -> None:
    assert steps(FRESH, sound=False, kill_before=kill_before)[-1] is Step.FAILED


def rebooted(facts: Facts) -> Facts:
    """After a power cut: no process lives, and trial.json was in /run. `current` is on the disk."""
    return replace(forget(facts), trial=None, running=False, ready=False, state=None)


@pytest.mark.parametrize("sound", [True, False])
@pytest.mark.parametrize("kill_before", [None, *range(10)])
def test_a_reboot_at_every_step_boots_the_old_release_until_the_commit_and_then_the_new(
    sound: bool, kill_before: int | None
) -> None:
    """holdover-boot.service starts what `current` names, and nothing else is started at boot."""
    facts, taken, committed = FRESH, 0, False
    while True:
        booted = rebooted(facts)
        assert booted.current == (NEW if committed else OLD)
        # Typed again, the deploy finds nothing that it could trip over.
        again = done_all(booted, sound=True)
        assert (again.current, again.trial) == (NEW, None)
        step = next_step(facts)
        if step in (Step.DONE, Step.FAILED):
            break
        if taken == kill_before:
            facts, kill_before = forget(facts), None
            continue
        taken += 1
        committed |= step is Step.COMMIT
        facts = done(facts, step, sound=sound)
    assert committed is sound


def done_all(facts: Facts, *, sound: bool) -> Facts:
    while (step := next_step(facts)) not in (Step.DONE, Step.FAILED):
        facts = done(facts, step, sound=sound)
    return facts


def test_one_that_had_accepted_hands_back_before_it_is_killed() -> None:
    baking = replace(
        FRESH, trial=NEW, running=True, ready=True, state="serving", failed="it went silent"
    )
    assert steps(baking) == [Step.RETIRE, Step.KILL, Step.END_FAILED_TRIAL, Step.FAILED]


def test_one_that_does_not_answer_is_killed_at_once() -> None:
    dumb = replace(FRESH, trial=NEW, running=True, ready=False, failed="it never was ready")
    assert next_step(dumb) is Step.KILL


def test_what_is_committed_is_never_taken_back() -> None:
    late = replace(FRESH, current=NEW, trial=NEW, running=True, ready=True, failed="too late")
    assert steps(late) == [Step.END_TRIAL, Step.DONE]


def test_the_trial_of_another_generation_is_replaced() -> None:
    """Of a deploy that was killed and never run again: its candidate finds itself called off."""
    assert next_step(replace(FRESH, trial=5, migrated=True)) is Step.BEGIN_TRIAL


def test_from_every_state_there_is_a_way_to_an_end() -> None:
    for current, trial, running, ready, state, gated, baked, failed, retired in product(
        (OLD, NEW, None),
        (None, NEW, 5),
        (False, True),
        (False, True),
        (None, "candidate", "serving", "draining"),
        (False, True),
        (False, True),
        ("", "broken"),
        (False, True),
    ):
        if ready and not (running and state):
            continue
        facts = Facts(
            NEW, current, trial, running, ready, state, False, gated, baked, failed, retired
        )
        assert steps(facts)[-1] in (Step.DONE, Step.FAILED)
        assert steps(facts, sound=False)[-1] in (Step.DONE, Step.FAILED)
