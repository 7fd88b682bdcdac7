"""The installed daemon under a real systemd: who it is, how it stops, what it leaves alone."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator

import pytest

from tests.host.machine import Machine

pytestmark = pytest.mark.host

UNIT = "holdoverd@1.service"


def holdover(machine: Machine, *arguments: str) -> str:
    return machine.run(["holdover", *arguments]).stdout


def agent_units(machine: Machine) -> list[str]:
    listing = machine.systemctl("list-units", "--plain", "--no-legend", "holdover-agent-*.service")
    return [line.split()[0] for line in listing.stdout.splitlines()]


@pytest.fixture
def session(host: Machine) -> Iterator[str]:
    """A session of the demo agent that has answered once; ended afterwards."""
    name = holdover(host, "session", "new", "--agent", "demo").strip()
    holdover(host, "session", "send", name, "hello", "--wait")
    yield name
    holdover(host, "session", "end", name)


def test_it_is_ready_and_says_what_it_does(host: Machine) -> None:
    assert host.show(UNIT, "ActiveState") == "active"
    assert host.show(UNIT, "StatusText").startswith("serving")
    assert host.show(UNIT, "WatchdogUSec") == "30s"
    status = holdover(host, "status")
    assert "generation 1" in status


def test_journal_lines_carry_generation_and_release(host: Machine) -> None:
    lines = host.journal(UNIT, "--output=json").splitlines()
    own = [entry for line in lines if "GENERATION" in (entry := json.loads(line))]
    assert own
    assert {entry["GENERATION"] for entry in own} == {"1"}
    assert {entry["RELEASE"] for entry in own} == {"0.2.0"}


def test_the_admin_door_opens_for_its_group_only(host: Machine) -> None:
    group = host.run(["getent", "group", "holdover-admin"]).stdout.split(":")[2]
    door = (
        "import os, socket, sys\n"
        "os.setgroups([int(sys.argv[1])] if sys.argv[1:] else [])\n"
        "os.setgid(65534); os.setuid(65534)\n"
        "socket.socket(socket.AF_UNIX).connect('/run/holdover/admin.sock')\n"
    )
    python = ["/usr/bin/python3", "-I", "-c", door]
    assert "PermissionError" in host.run(python, check=False).stderr
    host.run([*python, group])


def test_an_agent_runs_as_its_account_in_a_unit_of_its_own(host: Machine, session: str) -> None:
    (unit,) = agent_units(host)
    uid, _, home = host.account("holdover-agent")
    keeper = host.show(unit, "MainPID")
    status = host.run(["cat", f"/proc/{keeper}/status"]).stdout
    assert f"Uid:\t{uid}\t{uid}\t{uid}\t{uid}" in status
    shown = json.loads(holdover(host, "session", "show", "--json", session))
    assert shown["cwd"] == f"{home}/workspaces/{session}"
    assert host.show(unit, "Slice") == "holdover-agents.slice"


@pytest.mark.parametrize("end", ["restart", "kill", "stop"])
def test_the_daemon_may_end_in_any_way_and_the_agent_goes_on(
    host: Machine, session: str, end: str
) -> None:
    (unit,) = agent_units(host)
    keeper, daemon = host.show(unit, "MainPID"), host.show(UNIT, "MainPID")
    if end == "kill":
        host.systemctl("kill", "--signal=KILL", UNIT)
    else:
        host.systemctl(end, UNIT)
    if end == "stop":
        assert host.show(UNIT, "Result") == "success"
    # Stopped or dead, it is a knock that brings it back, and the knock is answered.
    again = json.loads(holdover(host, "session", "show", "--json", session))
    assert again["state"] == "idle"
    assert host.show(UNIT, "MainPID") not in ("0", daemon)
    assert host.show(unit, "MainPID") == keeper
    holdover(host, "session", "send", session, "still there?", "--wait")
    assert agent_units(host) == [unit]
    assert host.show(unit, "MainPID") == keeper


def test_a_frozen_daemon_is_replaced_by_its_watchdog(host: Machine, session: str) -> None:
    """The real watchdog, with a shorter leash than the unit's thirty seconds."""
    (unit,) = agent_units(host)
    keeper = host.show(unit, "MainPID")
    drop_in = f"/run/systemd/system/{UNIT}.d"
    host.write(f"{drop_in}/test.conf", "[Service]\nWatchdogSec=3\nTimeoutAbortSec=1\n")
    host.systemctl("daemon-reload")
    try:
        host.systemctl("restart", UNIT)
        frozen = host.show(UNIT, "MainPID")
        host.systemctl("kill", "--signal=STOP", UNIT)
        with host.connect_tcp(8780) as visitor:
            visitor.settimeout(60)
            visitor.sendall(
                b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
            )
            # The frozen one holds no connection that it has not accepted: its successor answers.
            assert visitor.recv(12) == b"HTTP/1.1 200"
        assert host.show(UNIT, "MainPID") not in ("0", frozen)
        assert host.show(unit, "MainPID") == keeper
    finally:
        host.run(["rm", "-r", drop_in])
        host.systemctl("daemon-reload")


def test_ending_a_session_ends_its_unit(host: Machine, session: str) -> None:
    (unit,) = agent_units(host)
    pid = host.show(unit, "MainPID")
    holdover(host, "session", "end", session)
    host.run(["sh", "-c", f"tail --pid={pid} -f /dev/null"], timeout_s=60)


def test_the_public_door_wants_a_token(host: Machine) -> None:
    with host.connect_tcp(8780) as visitor:
        visitor.settimeout(60)
        visitor.sendall(
            b"GET /v1/sessions HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
        )
        assert visitor.recv(12) == b"HTTP/1.1 401"
    with socket.socket(socket.AF_UNIX) as admin:
        admin.settimeout(60)
        admin.connect(str(host.path("/run/holdover/admin.sock")))
        admin.sendall(b"GET /v1/sessions HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        assert admin.recv(12) == b"HTTP/1.1 200"


def test_the_web_client_is_served(host: Machine) -> None:
    ask = (
        "import re, urllib.request as u; base = 'http://127.0.0.1:8780'; "
        "page = u.urlopen(base + '/').read().decode(); "
        "names = re.findall(r'/assets/[^\"]+', page); "
        "print(len(names), {u.urlopen(base + name).status for name in names})"
    )
    assert host.run(["/usr/bin/python3", "-I", "-c", ask]).stdout == "4 {200}\n"
