"""How the last deploy of a host ended; a file that everybody may read."""

import json
import time
from dataclasses import asdict, dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Outcome:
    """How the last deploy ended; kept for `holdover status`. `at` in ms."""

    generation: int
    release: str
    state: str  # running, committed, rolled back
    reason: str
    at: int

    def write(self, path: Path) -> None:
        draft = path.with_name(f".{path.name}.new")
        draft.write_text(json.dumps(asdict(self)) + "\n")
        draft.chmod(0o644)
        draft.replace(path)

    @classmethod
    def read(cls, path: Path) -> "Outcome | None":
        try:
            return cls(**json.loads(path.read_text()))
        except (OSError, ValueError, TypeError):
            return None


def now_ms() -> int:
    return time.time_ns() // 1_000_000
