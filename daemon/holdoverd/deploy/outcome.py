"""How the last deploy of a host ended; a file that everybody may read."""

import json
import time
from dataclasses import asdict, dataclass
from pathlib import Path

from holdoverd.whole import write_whole


@dataclass(frozen=True, slots=True)
class Outcome:
    """How the last deploy ended; kept for `holdover status`. `at` in ms."""

    generation: int
    release: str
    state: str  # running, committed, rolled back
    reason: str
    at: int

    def write(self, path: Path) -> None:
        write_whole(path, json.dumps(asdict(self)) + "\n", mode=0o644)

    @classmethod
    def read(cls, path: Path) -> "Outcome | None":
        try:
            return cls(**json.loads(path.read_text()))
        except (OSError, ValueError, TypeError):
            return None


def now_ms() -> int:
    return time.time_ns() // 1_000_000
