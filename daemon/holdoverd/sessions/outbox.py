"""Numbered commands of one launch that its keeper does not hold yet."""

from collections import deque
from collections.abc import Iterable

from holdoverd.catalogue.records import OutboxRow
from holdoverd.sessions.spool import Wake


class Outbox:
    """Rows that are stored, in order of n. `bell` rings when there are new ones.

    `acked`: the keeper holds every command up to it; `acked_stored`: the catalogue knows that.
    """

    def __init__(self, rows: Iterable[OutboxRow] = ()) -> None:
        self._rows: deque[OutboxRow] = deque(sorted(rows, key=lambda row: row.n))
        self.bell = Wake()
        self.acked = 0
        self.acked_stored = 0

    def __len__(self) -> int:
        return len(self._rows)

    def add(self, rows: Iterable[OutboxRow]) -> None:
        """Rows that have just been stored."""
        self._rows.extend(rows)
        self.bell.ring()

    def heard(self, last: int) -> None:
        """The keeper holds everything up to `last`: it need not be sent again."""
        self.acked = max(self.acked, last)
        while self._rows and self._rows[0].n <= last:
            self._rows.popleft()

    def next_after(self, n: int) -> OutboxRow | None:
        """The first row above `n`, None while there is none."""
        return next((row for row in self._rows if row.n > n), None)

    def clear(self) -> None:
        """Nobody will take what is left."""
        self._rows.clear()
