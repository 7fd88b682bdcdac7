"""Identifiers and time, the way the wire wants them: opaque strings, integer milliseconds."""

import secrets
import time

_ALPHABET = "abcdefghijklmnopqrstuvwxyz0123456789"


def new_id(prefix: str) -> str:
    """A fresh opaque id such as ``s_k3v0…``: 16 random characters, 82 bits, safe as a file name."""
    return f"{prefix}_" + "".join(secrets.choice(_ALPHABET) for _ in range(16))


def now_ms() -> int:
    """Wall clock in milliseconds since the epoch, as every ``…_at`` on the wire."""
    return time.time_ns() // 1_000_000


def since_boot_s() -> float:
    """Seconds that go on while the machine sleeps, and whoever sets the wall clock."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)
