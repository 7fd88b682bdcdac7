"""Which processors an agent, and all that it starts, keeps off: the first few are left to others.

Whoever wakes where an agent computes is let in at once, by the units' weights; not so while the kernel
itself works for the agent there: forks, clears pages, gives back hundreds of megabytes. That takes
milliseconds at a time, many times the daemon's whole answer. So one processor stays free of it.
"""

from __future__ import annotations

import os
from collections.abc import Mapping

VARIABLE = "HOLDOVER_SPARE_PROCESSORS"
"""How many, in the environment of an account's unit. Without it agents run on all."""


def keep_off(environment: Mapping[str, str]) -> None:
    """Keep this process, and what it starts from here on, to the processors left to it.

    A wish (sched_setaffinity(2)): a program may ask for all of them again, as AllowedCPUs= of its slice
    would forbid. Where it cannot be had, or makes no sense, nothing happens.
    """
    try:
        spare = int(environment.get(VARIABLE, "0"))
        if spare > 0:
            os.sched_setaffinity(0, beyond(spare, os.sched_getaffinity(0)))
    except (OSError, ValueError):
        return


def beyond(spare: int, processors: set[int]) -> set[int]:
    """All but the first `spare`, and never none."""
    return set(sorted(processors)[min(spare, len(processors) - 1) :])
