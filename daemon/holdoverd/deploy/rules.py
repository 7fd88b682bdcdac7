"""The next step of a deploy, from what is found. No I/O, and nothing remembered between steps.

A deploy that was killed anywhere and is run again looks at the same facts and goes on from there;
that it converges is tested from every state (tests/deploy/test_rules.py).
"""

from dataclasses import dataclass
from enum import Enum, auto
from typing import Literal

InstanceState = Literal["candidate", "serving", "draining"]


class Step(Enum):
    """What to do next. Each may be done twice."""

    MIGRATE = auto()  # the catalogue, to the new release's schema; only additions
    BEGIN_TRIAL = auto()  # write trial.json: the new generation starts as a candidate
    START = auto()
    WAIT_READY = auto()
    GATE = auto()  # probes, before it accepts anything
    ACCEPT = auto()  # it accepts; predecessors drain
    BAKE = auto()  # probes on the public port, for bake_s
    COMMIT = auto()  # `current` names it
    END_TRIAL = auto()  # remove trial.json: predecessors may leave
    DONE = auto()
    # taking it back
    RETIRE = auto()  # it hands back what it has
    KILL = auto()
    END_FAILED_TRIAL = auto()
    FAILED = auto()


@dataclass(frozen=True, slots=True)
class Facts:
    """What a deploy of one generation finds.

    `trial`: the generation that trial.json names. `current`: the committed one. `running`: the
    process lives or is being started. `ready`: it has said READY and its control socket answers.
    `failed`: why it has to be taken back, in words. `retired`: it was asked to hand back, and has
    or has had its time. The rest is this run's own progress, and is simply done again by the next.
    """

    generation: int
    current: int | None
    trial: int | None
    running: bool
    ready: bool
    state: InstanceState | None = None
    migrated: bool = False
    gated: bool = False
    baked: bool = False
    failed: str = ""
    retired: bool = False


def next_step(facts: Facts) -> Step:
    """The first line that applies."""
    mine = facts.generation
    if facts.current == mine:
        # Permanent, whatever else: what is left is to say so.
        return Step.END_TRIAL if facts.trial is not None else Step.DONE
    if facts.failed:
        if facts.running and facts.ready and facts.state != "candidate" and not facts.retired:
            return Step.RETIRE
        if facts.running:
            return Step.KILL
        return Step.END_FAILED_TRIAL if facts.trial is not None else Step.FAILED
    if facts.trial != mine:
        return Step.BEGIN_TRIAL if facts.migrated else Step.MIGRATE
    if not facts.running:
        return Step.START
    if not facts.ready:
        return Step.WAIT_READY
    if facts.state == "candidate":
        return Step.ACCEPT if facts.gated else Step.GATE
    return Step.COMMIT if facts.baked else Step.BAKE
