"""A release that is slow and sound, deployed twenty times: it is never taken back.

READY after 8 s (the bound is 12), each answer half a second later. The figures go to slow-release.md
beside this file; HOLDOVER_SOAK_DEPLOYS (20) makes it another run.
"""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from tests.host.machine import Machine
from tests.host.test_deploy import SLOW, copy_release, holdover, settled
from tests.soak.test_kills import percentile

pytestmark = pytest.mark.soak

DEPLOYS = int(os.environ.get("HOLDOVER_SOAK_DEPLOYS", "20"))
BAKE_S = 2
RESULTS = Path(__file__).with_name("slow-release.md")


def test_a_slow_but_healthy_release_is_never_taken_back(machine: Machine) -> None:
    machine.write("/etc/holdover/holdover.d/test.toml", f"[deploy]\nbake_s = {BAKE_S}\n")
    copy_release(machine, "0.2.0+slow", *SLOW)
    took: list[float] = []
    serving = settled(machine)
    for _ in range(DEPLOYS):
        started = time.monotonic()
        said = holdover(machine, "deploy", "0.2.0+slow", check=False)
        took.append(time.monotonic() - started)
        assert "is permanent" in said, said
        later = settled(machine)
        assert later > serving
        serving = later
    text = (
        "# A slow release\n\nWritten by `make soak` (tests/soak/test_slow_release.py).\n\n"
        f"A release that says READY after 8 s and answers each request half a second later was "
        f"deployed {DEPLOYS} times on a booted host, the first time over a sound one, then over "
        f"itself: {len(took)} of {DEPLOYS} became permanent, 0 were taken back. A deploy, with its "
        f"{BAKE_S} s of probes on the public port, took {percentile(took, 0.5):.1f} s in the middle "
        f"and {max(took):.1f} s at most.\n"
    )
    print(text)
    RESULTS.write_text(text)
