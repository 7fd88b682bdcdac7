"""What an instance counts as it goes.

Plain attributes: an addition takes some 30 ns, a labelled counter of prometheus-client twenty times
that and a lock. Whoever adds is the only one to add to that number, the event loop or the
catalogue's writer thread; readers may see one number a moment before another.
"""

from bisect import bisect_left
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

WRITE_BOUNDS_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
"""From a commit on a good NVMe to one that a person notices, and to the turn's time limit."""


class Histogram:
    """Observations by upper bound; the last bucket is for what exceeds all bounds."""

    __slots__ = ("bounds", "buckets", "total")

    def __init__(self, bounds: Sequence[float]) -> None:
        self.bounds = tuple(bounds)
        self.buckets = [0] * (len(self.bounds) + 1)
        self.total = 0.0

    def observe(self, value: float) -> None:
        """A value equal to a bound counts below it, as Prometheus' ``le`` says."""
        self.buckets[bisect_left(self.bounds, value)] += 1
        self.total += value

    def cumulated(self) -> list[int]:
        """For each bound, and then for all: how many were not above it."""
        sums, total = [], 0
        for count in list(self.buckets):
            total += count
            sums.append(total)
        return sums


@dataclass(slots=True)
class WriterCounts:
    """The catalogue's writer. `wait_s`: from queueing a group's oldest write to its outcome."""

    writes: int = 0
    groups: int = 0
    failed: int = 0
    wait_s: Histogram = field(default_factory=lambda: Histogram(WRITE_BOUNDS_S))
    commit_s: Histogram = field(default_factory=lambda: Histogram(WRITE_BOUNDS_S))


@dataclass(slots=True)
class Counts:
    """Everything else. Counters are by their label's value, {"given": 3, "kept": 1}."""

    lines: int = 0
    line_bytes: int = 0
    commits: int = 0
    adopted: int = 0
    defects: int = 0
    loop_late_s: float = 0.0
    """How late the last heartbeat came: what a task waits for its turn just now."""
    clock_steps: int = 0
    clock_step_s: float = 0.0
    """How often the clock was set, and by how much the last time; what NTP does bit by bit is none."""
    launches: Counter[str] = field(default_factory=Counter)
    agent_exits: Counter[str] = field(default_factory=Counter)
    sessions_handed: Counter[str] = field(default_factory=Counter)
    connections_handed: Counter[str] = field(default_factory=Counter)
    viewers_behind: int = 0
    deltas_dropped: int = 0
    answers: Counter[int] = field(default_factory=Counter)
    """By HTTP status."""
    connections: Counter[str] = field(default_factory=Counter)
    """Accepted, by door."""
    refused: int = 0
