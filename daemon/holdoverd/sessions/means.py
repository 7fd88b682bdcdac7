"""What every owned session of an instance shares."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import trio

from holdoverd.catalogue.store import Catalogue
from holdoverd.metrics.counts import Counts
from holdoverd.sessions.launcher import Observer, Paths
from holdoverd.sessions.spool import SpoolWatch
from holdoverd.settings import AgentSettings


@dataclass(frozen=True, slots=True)
class Instance:
    """This instance's identity and the means it works with.

    `nursery` holds the sessions' tasks; `observe` is called with the name of each step of a launch
    or an adoption before it is taken. `levels_changed` hears of every change that viewers are told:
    the state before, the permissions that were open before, and the session as it is now.
    """

    catalogue: Catalogue
    paths: Paths
    watch: SpoolWatch
    nursery: trio.Nursery
    host: str
    generation: int
    release: str
    boot_id: str
    roots: Sequence[str]
    agents: Callable[[str], AgentSettings | None]
    observe: Observer = lambda _step: None
    resume_on_boot: bool = False
    counts: Counts = field(default_factory=Counts)
    levels_changed: Callable[[str, frozenset[str], dict[str, Any]], None] = lambda *_: None
