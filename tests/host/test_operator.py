"""The operator's table of the design, line by line, on a booted systemd."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator

import pytest

from tests.host.machine import Machine
from tests.host.test_deploy import copy_release, healthz, holdover, instances, machine, settled
from tests.live.up import wait_until

__all__ = ["machine"]  # the fixture

pytestmark = pytest.mark.host


def unit(generation: int) -> str:
    return f"holdoverd@{generation}.service"


def agents(machine: Machine) -> dict[str, str]:
    """{agent unit: its keeper's pid}."""
    listing = machine.systemctl(
        "list-units", "--plain", "--no-legend", "holdover-agent-*@*.service"
    ).stdout
    units = [line.split()[0] for line in listing.splitlines()]
    return {name: machine.show(name, "MainPID") for name in units}


def shown(machine: Machine, session: str) -> dict[str, object]:
    found: dict[str, object] = json.loads(holdover(machine, "session", "show", "--json", session))
    return found


@pytest.fixture
def talking(machine: Machine) -> Iterator[str]:
    """A session in the middle of a turn."""
    made = holdover(machine, "session", "new", "--agent", "demo", "stream 3000 rate 5")
    session = made.split()[0]
    yield session
    holdover(machine, "session", "end", session)


def test_restart_and_kill_of_the_daemon_leave_agents_alone(machine: Machine, talking: str) -> None:
    serving = settled(machine)
    before = agents(machine)
    for how in (["restart"], ["kill", "--signal=KILL"]):
        machine.systemctl(*how, unit(serving))
        wait_until(lambda: shown(machine, talking)["state"] == "working", "it works on")
        assert agents(machine) == before
        assert healthz(machine)["generation"] == serving


def test_stop_with_a_newer_instance_migrates_to_it(machine: Machine, talking: str) -> None:
    old = settled(machine)
    copy_release(machine, "0.2.0+operator")
    assert "is permanent" in holdover(machine, "deploy", "0.2.0+operator")
    assert machine.show(unit(old), "ActiveState") == "active", "it serves its session to the end"
    before = agents(machine)
    machine.systemctl("stop", unit(old))
    assert machine.show(unit(old), "Result") == "success"
    new = settled(machine)
    view = shown(machine, talking)
    assert (view["state"], view["generation"]) == ("working", new)
    assert agents(machine) == before


def test_stop_with_no_other_lets_go_and_the_next_knock_starts_it(
    machine: Machine, talking: str
) -> None:
    serving = settled(machine)
    before = agents(machine)
    started = time.monotonic()
    machine.systemctl("stop", unit(serving))
    assert time.monotonic() - started < 6, "three times the two seconds it may take"
    assert machine.show(unit(serving), "Result") == "success"
    assert agents(machine) == before
    assert healthz(machine)["generation"] == serving
    assert shown(machine, talking)["state"] == "working"


def test_stop_of_the_target_stops_doors_and_daemons_and_no_agent(
    machine: Machine, talking: str
) -> None:
    before = agents(machine)
    holdover(machine, "stop")
    assert machine.show("holdover.socket", "ActiveState") == "inactive"
    assert agents(machine) == before
    machine.systemctl("start", "holdover.target")
    assert shown(machine, talking)["state"] == "working"
    assert agents(machine) == before
    holdover(machine, "stop", "--agents")
    assert agents(machine) == {}
    machine.systemctl("start", "holdover.target", "holdover-agent-holdover-agent.socket")
    wait_until(lambda: shown(machine, talking)["state"] in ("dormant", "working"), "it is known")


def test_stop_of_the_public_socket_alone_costs_nobody_anything(
    machine: Machine, talking: str
) -> None:
    """The instance serves on, and one that is deployed meanwhile shares its listener."""
    serving = settled(machine)
    machine.systemctl("stop", "holdover.socket")
    try:
        assert shown(machine, talking)["state"] == "working"
        assert [one["generation"] for one in instances(machine)] == [serving]
        assert healthz(machine)["generation"] == serving
        assert "is permanent" in holdover(machine, "deploy", "0.2.0")
        holdover(machine, "drain", "--migrate")
        later = settled(machine)
        assert later > serving
        assert healthz(machine)["generation"] == later
        assert shown(machine, talking)["state"] == "working"
        assert "sharing that of an instance" in machine.journal(unit(later))
        assert machine.show("holdover.socket", "ActiveState") != "active"
    finally:
        machine.systemctl("stop", "holdoverd@*.service")
        machine.systemctl("reset-failed", "holdover.socket", check=False)
        machine.systemctl("start", "holdover.target", "holdover.socket")
    assert healthz(machine)["generation"] == later


def test_a_reboot_in_a_trial_boots_the_last_committed_release(machine: Machine) -> None:
    """The trial is in /run, and `current` is what boots: a deploy cut off never was."""
    before = settled(machine)
    copy_release(machine, "0.2.0+cut-off")
    machine.write("/etc/holdover/holdover.d/zz.toml", "[deploy]\nbake_s = 600\n")
    deploying = machine.popen(["holdover", "deploy", "0.2.0+cut-off"])
    try:
        wait_until(lambda: healthz(machine)["generation"] != before, "the new one serves")
        machine.reboot(force=True)
    finally:
        deploying.kill()
        deploying.wait()
        machine.run(["rm", "/etc/holdover/holdover.d/zz.toml"])
    wait_until(lambda: healthz(machine)["generation"] == before, "the committed one serves")
    assert settled(machine) == before
    assert machine.run(["ls", "/run/holdover/instances/trial.json"], check=False).returncode != 0


def test_thirty_deaths_never_fail_the_socket(machine: Machine) -> None:
    serving = settled(machine)
    for _ in range(30):
        machine.systemctl("kill", "--signal=KILL", unit(serving))
        wait_until(lambda: machine.show(unit(serving), "ActiveState") == "active", "it is back", 30)
    for name in ("holdover.socket", "holdover-admin.socket"):
        assert machine.show(name, "ActiveState") == "active"
    assert healthz(machine)["generation"] == serving
