"""What a measurement says."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import Any


@dataclass(frozen=True)
class Row:
    """One line of the table: what was measured, run by run, beside its rival of the same runs.

    `ours` and `theirs` belong together pair by pair: each pair ran one after the other. The row is
    good while the median of the pairs' ratios (ours over theirs) lies between `at_least` and
    `at_most`.
    """

    name: str
    unit: str
    ours: Sequence[float]
    against: str
    theirs: Sequence[float]
    at_least: float | None = None
    at_most: float | None = None
    details: dict[str, Any] = field(default_factory=dict)
    """Whatever else belongs into results.json."""

    @property
    def ratios(self) -> list[float]:
        """Sorted."""
        return sorted(a / b for a, b in zip(self.ours, self.theirs, strict=True))

    @property
    def good(self) -> bool:
        judged = median(self.ratios)
        return (self.at_least is None or judged >= self.at_least) and (
            self.at_most is None or judged <= self.at_most
        )

    @property
    def bound(self) -> str:
        if self.at_least is not None:
            return f"≥ {self.at_least:g}"
        return f"≤ {self.at_most:g}" if self.at_most is not None else ""

    def as_json(self) -> dict[str, Any]:
        ratios = self.ratios
        return {
            "name": self.name,
            "unit": self.unit,
            "against": self.against,
            "median": median(self.ours),
            "median_against": median(self.theirs),
            "ratio": {"min": ratios[0], "median": median(ratios), "max": ratios[-1]},
            "at_least": self.at_least,
            "at_most": self.at_most,
            "good": self.good,
            "runs": list(self.ours),
            "runs_against": list(self.theirs),
            **self.details,
        }
