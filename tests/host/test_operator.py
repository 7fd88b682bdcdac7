"""The operator's table of the design, line by line, on a booted systemd."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator

import pytest
import trio

from tests.host.machine import Machine
from tests.host.test_deploy import copy_release, healthz, holdover, instances, machine, settled
from tests.live.kills import LineWatcher
from tests.live.up import wait_until

__all__ = ["machine"]  # the fixture

pytestmark = pytest.mark.host


DOORS = ("holdover.socket", "holdover-admin.socket")


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


def frozen(machine: Machine, serving: str) -> None:
    """Until its watchdog, on a shorter leash than the unit's thirty seconds, ends it."""
    machine.systemctl("restart", serving)
    machine.systemctl("kill", "--signal=STOP", serving)


def out_of_memory(machine: Machine, serving: str) -> None:
    """It is killed by the kernel, for it may have less than it needs to start."""
    machine.systemctl("set-property", "--runtime", serving, "MemoryMax=40M")
    try:
        machine.systemctl("kill", "--signal=KILL", serving)
        deaths = int(machine.show(serving, "NRestarts")) + 2
        wait_until(lambda: int(machine.show(serving, "NRestarts")) >= deaths, "it dies of it")
    finally:
        machine.systemctl("set-property", "--runtime", serving, "MemoryMax=infinity")


ENDS = {
    "restart": lambda machine, serving: machine.systemctl("restart", serving),
    "kill -9": lambda machine, serving: machine.systemctl("kill", "--signal=KILL", serving),
    "watchdog": frozen,
    "out of memory": out_of_memory,
}


async def test_however_the_daemon_ends_agents_go_on_and_clients_come_back_with_their_cursor(
    machine: Machine,
) -> None:
    """Visitors wait in the socket meanwhile."""
    thread = trio.to_thread.run_sync
    serving = settled(machine)
    made = holdover(machine, "session", "new", "--agent", "demo", "lines 9000 rate 10 size 100")
    session = made.split()[0]
    before = agents(machine)
    drop_in = f"/run/systemd/system/{unit(serving)}.d"
    machine.write(f"{drop_in}/test.conf", "[Service]\nWatchdogSec=3\nTimeoutAbortSec=1\n")
    machine.systemctl("daemon-reload")
    watcher = LineWatcher(machine.path("/run/holdover/admin.sock"), session)
    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(watcher.run)
            for how, end in ENDS.items():
                await watcher.wait(lambda one, had=watcher.lines: one.lines > had)
                connects = watcher.connects
                daemon = machine.show(unit(serving), "MainPID")
                await thread(end, machine, unit(serving))
                visited = await thread(healthz, machine)
                assert visited["generation"] == serving, how
                # That no line is missing or repeated it asserts, line by line.
                with trio.fail_after(60):
                    while watcher.connects == connects or not watcher.live.is_set():
                        await watcher.changed.wait()
                    had = watcher.lines
                    while watcher.lines == had:
                        await watcher.changed.wait()
                assert machine.show(unit(serving), "MainPID") not in ("0", daemon), how
                assert agents(machine) == before, how
            nursery.cancel_scope.cancel()
    finally:
        machine.run(["rm", "-r", drop_in])
        machine.systemctl("daemon-reload")
    assert shown(machine, session)["state"] == "working"
    holdover(machine, "session", "end", session)


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
        named = holdover(machine, "doctor", check=False)
        assert "holdover.socket is inactive; the instances that live serve on" in named
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


def test_after_thirty_deaths_a_good_release_serves_and_no_socket_has_failed(
    machine: Machine, talking: str
) -> None:
    serving = settled(machine)
    before = agents(machine)
    doors = {name: machine.show(name, "InvocationID") for name in DOORS}
    died = "0"
    for _ in range(30):
        # Not until it is READY: as soon as there is a process, as a release that crashes would.
        died = wait_until(
            lambda than=died: another(machine.show(unit(serving), "MainPID"), than), "it runs"
        )
        machine.run(["kill", "-9", died], check=False)
    # Open all the time: one that had failed would have been started anew.
    assert {name: machine.show(name, "ActiveState") for name in DOORS} == dict.fromkeys(
        DOORS, "active"
    )
    assert {name: machine.show(name, "InvocationID") for name in DOORS} == doors
    copy_release(machine, "0.2.0+good")
    wait_until(lambda: healthz(machine)["generation"] == serving, "it is back")
    assert "is permanent" in holdover(machine, "deploy", "0.2.0+good")
    holdover(machine, "drain", "--migrate")
    later = settled(machine)
    assert later > serving
    assert (shown(machine, talking)["state"], shown(machine, talking)["generation"]) == (
        "working",
        later,
    )
    assert agents(machine) == before


def another(pid: str, than: str) -> str | None:
    """The pid of a process, where it is not the one that was killed before."""
    return None if pid in ("0", "", than) else pid
