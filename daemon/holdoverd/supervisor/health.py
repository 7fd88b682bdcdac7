"""What the daemon reports over NOTIFY_SOCKET, and when its silence is too long. No I/O, no clock.

The format is that of sd_notify(3): ``KEY=VALUE`` lines in one datagram.

Silence is counted in our own time: after Ctrl-Z and `fg`, or on a machine that stood still, what the
daemon has said meanwhile is still to be read.
"""

from dataclasses import dataclass, field

MAX_DATAGRAM_BYTES = 4096
READY_WITHIN_S = 30.0
WATCHDOG_S = 10.0
LOOK_S = WATCHDOG_S / 4
"""How often `overdue` is asked, at least; what passes beyond it counts for nothing."""


def parse_notify(datagram: bytes) -> dict[str, str]:
    """The datagram's fields; what is not ``KEY=VALUE`` is left out, as systemd does."""
    fields: dict[str, str] = {}
    for line in datagram.decode(errors="replace").split("\n"):
        key, equals, value = line.partition("=")
        if equals and key:
            fields[key] = value
    return fields


@dataclass
class Health:
    """One daemon process, from its start at `started` (any clock's seconds)."""

    started: float
    ready: bool = False
    status: str = ""
    _heard: float = 0.0
    _watched: bool = False
    _looked: float = field(init=False)

    def __post_init__(self) -> None:
        self._looked = self.started

    def heard(self, fields: dict[str, str], now: float) -> bool:
        """Take in a report; True when it is the one that says READY for the first time."""
        self.status = fields.get("STATUS", self.status)
        if fields.get("WATCHDOG") == "1":
            self._heard, self._watched = now, True
        first = fields.get("READY") == "1" and not self.ready
        if first:
            self.ready, self._heard = True, now
        return first

    def check_at(self) -> float:
        """When to look at `overdue` again, if not before."""
        return self._heard + WATCHDOG_S if self.ready else self.started + READY_WITHIN_S

    def overdue(self, now: float) -> str | None:
        """Why the daemon has to be killed, or None.

        A daemon that has never sent WATCHDOG=1 is not held to it.
        """
        late_s = max(0.0, now - self._looked - LOOK_S)
        self._looked = now
        self.started = min(now, self.started + late_s)
        self._heard = min(now, self._heard + late_s)
        if not self.ready and now - self.started >= READY_WITHIN_S:
            return f"was not ready after {READY_WITHIN_S:.0f} s"
        if self.ready and self._watched and now - self._heard >= WATCHDOG_S:
            return f"has been silent for {now - self._heard:.0f} s"
        return None
