"""A power cut at every step of a deploy, on a booted host: exactly one release boots, the right one.

Before the commit that is the one from before the deploy, from the commit on the new one, and the
deploy itself is no more. The figures go to reboots.md beside this file. tests/deploy has the rule
itself, in every state; tests/host/test_operator.py one of these points in each run of the tests.
"""

from __future__ import annotations

import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.host.machine import SOURCE_INSIDE, Machine
from tests.host.test_deploy import RELEASES, copy_release, healthz, holdover, instances, settled
from tests.live.up import wait_until

pytestmark = pytest.mark.soak

RESULTS = Path(__file__).with_name("reboots.md")
NEW = "0.2.0+new"
DROP_IN = "/etc/systemd/system/holdover-deploy@.service.d/cut.conf"
FORWARD = ("MIGRATE", "BEGIN_TRIAL", "START", "GATE", "ACCEPT", "BAKE", "COMMIT", "END_TRIAL")
BACK = ("RETIRE", "KILL", "END_FAILED_TRIAL")
COMMITTED = ("COMMIT", "END_TRIAL")
SERVES_S = 90.0


@dataclass(frozen=True)
class Moment:
    when: str
    step: str

    @property
    def fates(self) -> str:
        stop = f"{self.when}:{self.step}:SIGSTOP"
        # To be taken back, the deploy is told to stop once its candidate has accepted.
        return f"after:ACCEPT:SIGTERM {stop}" if self.step in BACK else stop

    @property
    def committed(self) -> bool:
        return self.when == "after" and self.step in COMMITTED


MOMENTS = (
    Moment("before", "MIGRATE"),
    *(Moment("after", step) for step in FORWARD),
    *(Moment("after", step) for step in BACK),
)


def stopped_deploy(machine: Machine) -> str | None:
    """The unit of a deploy that has come to its moment and stands still."""
    units = machine.systemctl(
        "list-units", "--plain", "--no-legend", "holdover-deploy@*.service"
    ).stdout
    for line in units.splitlines():
        name = line.split()[0]
        pid = machine.show(name, "MainPID")
        if pid != "0":
            status = machine.run(["cat", f"/proc/{pid}/stat"], check=False).stdout
            if status.rpartition(")")[2].split()[:1] == ["T"]:
                return name
    return None


def cut_at(machine: Machine, moment: Moment) -> tuple[int, float]:
    """(the generation that boots, seconds until it serves) after the power went at `moment`."""
    before = settled(machine)
    machine.write(
        DROP_IN,
        "[Service]\nExecStart=\n"
        f"ExecStart={RELEASES}/{NEW}/bin/python -m tests.live.mortal_deploy {moment.fates} "
        f"-- --generation %i\nWorkingDirectory={SOURCE_INSIDE}\n",
    )
    machine.systemctl("daemon-reload")
    deploying = machine.popen(["holdover", "deploy", NEW], stdout=subprocess.DEVNULL)
    try:
        unit = wait_until(lambda: stopped_deploy(machine), f"it comes to {moment}", SERVES_S)
        generation = int(unit.partition("@")[2].partition(".")[0])
        assert generation > before
        started = time.monotonic()
        machine.reboot(force=True)
    finally:
        deploying.kill()
        deploying.wait()
        machine.run(["rm", DROP_IN])
    expected = generation if moment.committed else before
    wait_until(lambda: healthz(machine)["generation"] == expected, f"{moment}: it serves", SERVES_S)
    took = time.monotonic() - started
    assert [one["generation"] for one in instances(machine)] == [expected], moment
    assert stopped_deploy(machine) is None
    trial = machine.run(["ls", "/run/holdover/instances/trial.json"], check=False)
    assert trial.returncode != 0, "a trial outlived the boot"
    assert machine.run(["readlink", "/var/lib/holdover/current"]).stdout == f"{expected}\n"
    return expected, took


def test_a_power_cut_at_every_step_boots_exactly_one_release(machine: Machine) -> None:
    machine.write("/etc/holdover/holdover.d/test.toml", "[deploy]\nbake_s = 1\n")
    copy_release(machine, NEW)
    session = holdover(machine, "session", "new", "--agent", "demo", "hello").split()[0]
    rows = []
    for moment in MOMENTS:
        _, took = cut_at(machine, moment)
        rows.append((moment, took))
        assert session in holdover(machine, "session", "ls")
    # And what was cut off again and again is no worse for it.
    machine.systemctl("daemon-reload")
    assert "is permanent" in holdover(machine, "deploy", NEW)
    settled(machine)
    text = report(rows)
    print(text)
    RESULTS.write_text(text)


def report(rows: list[tuple[Moment, float]]) -> str:
    table = "\n".join(
        f"| {moment.when} {moment.step} | {'the new one' if moment.committed else 'the old one'} "
        f"| {took:.1f} s |"
        for moment, took in rows
    )
    return (
        "# Reboots in a deploy\n\nWritten by `make soak` (tests/soak/test_reboots.py).\n\n"
        f"{len(rows)} power cuts (`systemctl reboot --force --force` of a booted host), one at each "
        "step of a deploy and of taking one back. Each time exactly one release booted, no trial "
        "and no deploy outlived the boot, the session was known, and in the end the same release "
        "was deployed and became permanent.\n\n"
        "| power cut | what booted | until it served |\n|---|---|---:|\n" + table + "\n"
    )
