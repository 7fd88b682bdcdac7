"""When a daemon that died is started again. No I/O, no clock."""

from dataclasses import dataclass

FIRST_DELAY_S = 0.2
# One that was ready is wanted back within three seconds, its start included, however often it is
# killed; one that was not waits longer and longer, since it will hardly do better.
MAX_DELAY_READY_S = 1.0
MAX_DELAY_S = 5.0
# One that was ready and lived for so long has served: whoever waits for it should not wait for us as
# well, and starting it every so often leaves the machine to the agents.
SERVED_AFTER_S = 3.0
# One that lived for so long was well: its death is a new story, not the next chapter.
WELL_AFTER_S = 30.0
# A daemon that was never ready has a mistake to report, and restarting does not mend it.
MAX_FALSE_STARTS = 3


@dataclass
class Restart:
    """Remembers how the daemon has been doing."""

    _delay_s: float = FIRST_DELAY_S
    _false_starts: int = 0
    _was_ever_ready: bool = False

    def died(self, alive_s: float, was_ready: bool) -> float | None:
        """Seconds to wait before the next start; None: give up, it has never worked."""
        self._was_ever_ready |= was_ready
        self._false_starts = 0 if self._was_ever_ready else self._false_starts + 1
        if self._false_starts >= MAX_FALSE_STARTS:
            return None
        if alive_s >= WELL_AFTER_S:
            self._delay_s = FIRST_DELAY_S
        if was_ready and alive_s >= SERVED_AFTER_S:
            return FIRST_DELAY_S
        delay_s = min(self._delay_s, MAX_DELAY_READY_S if was_ready else MAX_DELAY_S)
        self._delay_s = min(MAX_DELAY_S, delay_s * 2)
        return delay_s
