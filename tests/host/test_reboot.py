"""A reboot in mid-turn: everything is listed, what was cut is marked, and goes on as configured."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.host.machine import Machine
from tests.host.test_deploy import holdover, machine, settled
from tests.live.up import Api, wait_until

__all__ = ["machine"]  # the fixture

pytestmark = pytest.mark.host

CONFIG = "/etc/holdover/holdover.d/zz-reboot.toml"
ADMIN = "/run/holdover/admin.sock"


def api_of(machine: Machine) -> Api:
    return Api(machine.path(ADMIN))  # PID 1's number changes with each boot


def notices(machine: Machine, session: str) -> list[Any]:
    return [m["body"] for m in api_of(machine).log(session) if m["kind"] == "notice"]


@pytest.mark.parametrize("how", ["in order", "power lost"])
def test_a_reboot_in_mid_turn(machine: Machine, how: str) -> None:
    settled(machine)
    api = api_of(machine)
    cut = [api.new_session("stream 9000 rate 5")["id"] for _ in range(2)]
    idle = api.new_session("hello")["id"]
    for session in cut:
        api.wait_state(session, "working")
    api.wait_state(idle, "idle")
    before = {session: api.session(session)["last_seq"] for session in (*cut, idle)}

    machine.reboot(force=how == "power lost")
    wait_until(lambda: api_of(machine).healthy(), "the host serves again")
    listed = {
        one["id"]: one for one in api_of(machine).call("GET", "/v1/sessions?limit=500")["items"]
    }
    assert {*cut, idle} <= set(listed)
    for session in cut:
        api_of(machine).wait_state(session, "dormant")
        assert api_of(machine).session(session)["turn_cut"] == "reboot"
        (exited,) = notices(machine, session)
        assert exited["data"]["turn_cut"] is True
    view = api_of(machine).wait_state(idle, "dormant")
    assert view["turn_cut"] is None
    for session, seq in before.items():
        log = api_of(machine).log(session)
        assert [m["seq"] for m in log] == list(range(1, len(log) + 1))
        assert len(log) >= seq
    assert all(
        ", cut" in line
        for line in holdover(machine, "session", "ls").splitlines()
        if line.split()[0] in cut
    )

    # Nothing goes on by itself, since that is not configured; a person has it go on.
    resumed = holdover(machine, "session", "resume", "--all").split()
    assert set(cut) <= set(resumed)
    for session in cut:
        wait_until(
            lambda one=session: "I was cut off, and go on." in json.dumps(api_of(machine).log(one)),
            "its turn goes on",
        )
    for session in (*cut, idle):
        api_of(machine).call("DELETE", f"/v1/sessions/{session}")


def test_turns_go_on_by_themselves_after_a_reboot_where_that_is_configured(
    machine: Machine,
) -> None:
    settled(machine)
    machine.write(CONFIG, "[sessions]\nresume_on_boot = true\n")
    try:
        api = api_of(machine)
        cut, idle = api.new_session("stream 9000 rate 5")["id"], api.new_session("hello")["id"]
        api.wait_state(cut, "working")
        api.wait_state(idle, "idle")
        machine.reboot(force=True)
        wait_until(lambda: api_of(machine).healthy(), "the host serves again")
        wait_until(
            lambda: "I was cut off, and go on." in json.dumps(api_of(machine).log(cut)),
            "the cut turn goes on, and nobody has asked for it",
        )
        assert [n["code"] for n in notices(machine, cut)] == ["agent_exited", "resumed"]
        # What had nothing to go on with waits for somebody.
        assert api_of(machine).session(idle)["state"] == "dormant"
        for session in (cut, idle):
            api_of(machine).call("DELETE", f"/v1/sessions/{session}")
    finally:
        machine.run(["rm", CONFIG])
