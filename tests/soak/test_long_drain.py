"""An instance that drains for an hour under a real systemd: alive all the time, gone right after.

Its unit has a stop timeout and a watchdog, and systemd would use either on an instance that said it
was stopping, or nothing. HOLDOVER_SOAK_DRAIN_S (3600) makes it another run; figures in
long-drain.md beside this file.
"""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

import pytest

from tests import needs
from tests.host.machine import Machine
from tests.live.up import wait_until

pytestmark = [
    pytest.mark.soak,
    pytest.mark.skipif(bool(needs.NO_NSPAWN), reason=needs.NO_NSPAWN or ""),
]

DRAIN_S = int(os.environ.get("HOLDOVER_SOAK_DRAIN_S", "3600"))
LOOK_S = 10.0
GONE_S = 15.0
"""Three times the figure of 5 s."""

RESULTS = Path(__file__).with_name("long-drain.md")
DROP_IN = "[Service]\nTimeoutStopSec=90s\nWatchdogSec=30s\n"


def test_an_hour_of_draining(machine: Machine) -> None:
    machine.write("/etc/holdover/holdover.d/soak.toml", "[deploy]\nbake_s = 1\n")
    first = json.loads(machine.run(["holdover", "status", "--json"]).stdout)["health"]["generation"]
    unit = f"holdoverd@{first}.service"
    machine.write(f"/etc/systemd/system/{unit}.d/soak.conf", DROP_IN)
    machine.systemctl("daemon-reload")
    machine.systemctl("restart", unit)
    say = f"lines {DRAIN_S * 4} rate 1 size 100"
    session = machine.run(["holdover", "session", "new", "--agent", "demo", say]).stdout.split()[0]
    machine.run(["holdover", "deploy"], timeout_s=120)
    pid = machine.show(unit, "MainPID")
    started, looks, lines = time.monotonic(), 0, 0
    while time.monotonic() - started < DRAIN_S:
        time.sleep(LOOK_S)
        shown = json.loads(machine.run(["holdover", "session", "show", "--json", session]).stdout)
        assert (shown["state"], shown["generation"]) == ("working", first)
        assert shown["last_seq"] > lines, "the agent's lines do not arrive any more"
        lines = shown["last_seq"]
        states = [machine.show(unit, name) for name in ("ActiveState", "SubState", "MainPID")]
        assert states == ["active", "running", pid]
        looks += 1
    drained_s = time.monotonic() - started
    machine.run(["holdover", "session", "end", session])
    ended = time.monotonic()
    wait_until(
        lambda: (
            json.loads(machine.run(["holdover", "session", "show", "--json", session]).stdout)[
                "state"
            ]
            == "ended"
        ),
        "the session has ended",
    )
    over = time.monotonic()
    wait_until(lambda: machine.show(unit, "ActiveState") == "inactive", "it is gone", GONE_S)
    gone_s = time.monotonic() - over
    assert machine.show(unit, "Result") == "success"
    assert machine.show(unit, "NRestarts") == "0"
    RESULTS.write_text(
        "# A long drain\n\nWritten by `make soak` (tests/soak/test_long_drain.py).\n\n"
        f"An instance with `TimeoutStopSec=90s` and `WatchdogSec=30s` drained for {drained_s:.0f} "
        f"s: `active (running)` with the same process at each of {looks} looks, {lines:,} lines of "
        f"its one session stored meanwhile. The session took {over - ended:.1f} s to end; "
        f"{gone_s:.1f} s after its end the instance was gone, result `success`.\n"
    )
