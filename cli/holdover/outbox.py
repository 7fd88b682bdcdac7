"""What this viewer has said and the daemon has not yet answered. No I/O.

A prompt carries an id of ours and an answer names its permission, so both may be said again on the
next connection: the daemon takes each once. An interrupt is meant for this moment and is not kept.
"""

import json
from typing import Any

from holdover.exits import CommandError

MAX_UNANSWERED = 64


class Outbox:
    """Numbers outgoing frames and remembers those worth saying again."""

    def __init__(self) -> None:
        self._next = 1
        self._waiting: dict[str, dict[str, Any]] = {}  # {ref: frame}

    def add(self, frame: dict[str, Any]) -> str:
        """The text to send for `frame`; raises `CommandError` when too much is unanswered."""
        ref = str(self._next)
        self._next += 1
        frame = {**frame, "ref": ref}
        if frame["type"] in {"prompt", "answer"}:
            if len(self._waiting) >= MAX_UNANSWERED:
                raise CommandError(
                    f"{MAX_UNANSWERED} prompts and answers wait for the daemon; wait for it too."
                )
            self._waiting[ref] = frame
        return json.dumps(frame)

    def answered(self, ref: object) -> dict[str, Any] | None:
        """The frame that `ref` answers, or None; it will not be said again."""
        return self._waiting.pop(ref, None) if isinstance(ref, str) else None

    def again(self) -> list[str]:
        """The texts to send on a new connection, in the order in which they were said first."""
        return [json.dumps(frame) for frame in self._waiting.values()]

    def __len__(self) -> int:
        return len(self._waiting)
