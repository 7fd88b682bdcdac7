"""What a measurement says."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Row:
    """One line of the table.

    `ratio` is `value` over `baseline`; the row is good while it lies between `at_least` and
    `at_most`. Without a baseline, `value` itself does.
    """

    name: str
    value: float
    unit: str
    baseline: float | None = None
    against: str = ""
    at_least: float = 0.0
    at_most: float = float("inf")

    @property
    def ratio(self) -> float | None:
        return None if self.baseline is None else self.value / self.baseline

    @property
    def good(self) -> bool:
        judged = self.value if self.ratio is None else self.ratio
        return self.at_least <= judged <= self.at_most
