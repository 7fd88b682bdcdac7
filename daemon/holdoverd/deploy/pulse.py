"""Whether somebody who is listened to stands still. No I/O, no clock.

Silence is counted in the listener's own time: where the whole machine stands still, or the listener
is given the processor but rarely, nobody else has had a chance to speak either.
"""

from dataclasses import dataclass

LOOK_S = 0.1
"""How often to look."""

AT_MOST_S = 2 * LOOK_S
"""What one look counts for, however long ago the one before was."""

SILENT_S = 3.0
"""Six beats; siblings wait for each other as long (handover/PROTOCOL.md)."""


@dataclass
class Pulse:
    """Somebody who has just been asked for a word, at `looked_at` (any clock's seconds)."""

    looked_at: float
    silent_s: float = 0.0

    def look(self, now: float, *, heard: bool) -> bool:
        """Take in a look, `heard`: anything was said since the last. True: silent for too long."""
        if heard:
            self.silent_s = 0.0
        else:
            self.silent_s += min(now - self.looked_at, AT_MOST_S)
        self.looked_at = now
        return self.silent_s > SILENT_S
