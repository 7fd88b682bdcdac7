"""A session's state: a level, computed from what is true now, never from the order of events.

contract.md, Sessions: ``starting|idle|working|waiting|dormant|ended|failed``.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import islice
from typing import Literal

MAX_TASKS = 256

State = Literal["starting", "idle", "working", "waiting", "dormant", "ended", "failed"]


@dataclass(frozen=True, slots=True)
class Facts:
    """All that a session's state depends on.

    `launch`: there is a launch that has not ended; `wanted`: the owner is about to make one.
    `ready`: its agent has answered the handshake or said something. `turn_open`: a turn runs, by
    the agent's own word or by what it said.
    """

    ended: bool
    failed: bool
    launch: bool
    wanted: bool
    ready: bool
    open_permissions: int
    queued_prompts: int
    turn_open: bool


def state_of(facts: Facts) -> State:
    """The one state that the facts allow; the first line that applies wins."""
    if facts.ended:
        return "ended"
    if not facts.launch:
        if facts.wanted:
            return "starting"
        return "failed" if facts.failed else "dormant"
    if facts.open_permissions:
        return "waiting"
    if not facts.ready:
        return "starting"
    if facts.turn_open or facts.queued_prompts:
        return "working"
    return "idle"


class TurnTracker:
    """Is a turn running? stream-json.md §10.

    An agent that sends ``session_state_changed`` is believed from then on, for the life of its
    process. Any other agent is judged by its frames: a turn opens with an accepted prompt or a
    reply, and closes with a ``result`` that announces no further turn while no background task of
    the agent's runs.
    """

    def __init__(self, saved: dict[str, object] | None = None) -> None:
        saved = saved or {}
        said = saved.get("said")
        self._said: str | None = said if isinstance(said, str) else None
        self._open = bool(saved.get("open"))
        tasks = saved.get("tasks")
        self._tasks: set[str] = {str(t) for t in tasks} if isinstance(tasks, list) else set()

    def save(self) -> dict[str, object]:
        """What a new owner needs to go on judging; goes into the catalogue."""
        return {"said": self._said, "open": self._open, "tasks": sorted(self._tasks)}

    @property
    def open(self) -> bool:
        if self._said is not None:
            return self._said != "idle"
        return self._open or bool(self._tasks)

    @property
    def has_tasks(self) -> bool:
        """A background task runs, whether or not it keeps the turn open."""
        return bool(self._tasks)

    def said(self, state: str) -> None:
        """The agent sent ``session_state_changed``."""
        self._said = state

    def opened(self) -> None:
        """A prompt was echoed, or the agent replied."""
        self._open = True

    def result(self, queued_turn_count: int) -> None:
        self._open = queued_turn_count > 0

    def tasks(self, running: Iterable[str]) -> None:
        """The agent listed all background tasks that run: replaces what was known."""
        self._tasks = set(islice(running, MAX_TASKS))

    def task(self, task_id: str, *, running: bool) -> None:
        """A background task started or ended; beyond `MAX_TASKS` further ones are left out."""
        if not running:
            self._tasks.discard(task_id)
        elif len(self._tasks) < MAX_TASKS:
            self._tasks.add(task_id)
