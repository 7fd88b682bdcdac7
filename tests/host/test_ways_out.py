"""A hundred ways out of an agent's unit, or sideways from it, each tried by an agent's own program.

All are tried in one go by `ways_out.py`, in the unit of an agent of Mallory's, who has an account of
her own. What is refused by ways that root has is known to be there: root tries those, too.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from tests.host import ways_out
from tests.host.machine import Machine
from tests.host.test_accounts import PROGRAM, Person, family, unit_of
from tests.live.up import Api, wait_until

pytestmark = pytest.mark.host

GENERATION = 1
UNIT = f"holdoverd@{GENERATION}.service"
CONFIG = "/etc/holdover/holdover.d/test-ways-out.toml"
SCRIPT = "/usr/local/lib/ways_out.py"
KNOWN = "/usr/local/lib/ways_out.json"
MARKER = "wo-5d1c"
SYSV_KEY = 0x5D1C
ATTACKER, VICTIM = "mallory", "victor"
LIMITS = "[Service]\nMemoryMax=256M\nTasksMax=200\n"

LEAVE_TRACES = f"""
umask 0
echo hers >~/secret
for folder in /tmp /var/tmp /dev/shm; do echo hers >$folder/{MARKER}; done
exec python3 -I -c '
import ctypes, os
libc = ctypes.CDLL(None, use_errno=True)
print(libc.shmget({SYSV_KEY}, 4096, 0o1666))
queue = ctypes.CDLL("librt.so.1", use_errno=True)
print(queue.mq_open(b"/{MARKER}", os.O_RDWR | os.O_CREAT, 0o666, None))
'
"""


@dataclass
class Seen:
    """What was tried, and how the host looked before and afterwards."""

    became: dict[str, str] = field(default_factory=dict)
    by_root: dict[str, str] = field(default_factory=dict)
    before: dict[str, Any] = field(default_factory=dict)
    after: dict[str, Any] = field(default_factory=dict)
    status: str = ""
    strays: str = ""
    left: str = ""
    victim_said: str = ""
    second_said: str = ""
    journal: str = ""


def state(machine: Machine, attacker: str, neighbours: list[str]) -> dict[str, Any]:
    """What must be the same before and after."""
    keep = ("ActiveState", "MainPID", "NRestarts", "MemoryMax", "TasksMax")
    listing = machine.systemctl("list-units", "--plain", "--no-legend", "--all").stdout
    names = sorted(line.split()[0] for line in listing.splitlines())
    show = ["show", "--property", ",".join(keep), UNIT, attacker, *neighbours]
    return {
        "units": machine.systemctl(*show).stdout,
        "neighbours": {unit: family(machine, machine.show(unit, "MainPID")) for unit in neighbours},
        "holdover's units": [name for name in names if "holdover" in name],
        "hostname": machine.run(["hostname"]).stdout,
    }


def facts(machine: Machine, unit: str, beside: str, victim: str) -> dict[str, Any]:
    """What the attacker in `unit` might have learnt, of another unit of hers and of the victim's too."""
    daemon = machine.show(UNIT, "MainPID")
    numbers = {
        name: family(machine, machine.show(name, "MainPID")) for name in (unit, victim, beside)
    }
    code = machine.run(
        ["sh", "-c", "ls /opt/holdover/releases/*/lib/python3*/site-packages/holdoverd/main.py"]
    )
    return {
        "attacker": ATTACKER,
        "attacker_unit": unit,
        "victim": VICTIM,
        "victim_home": f"/home/{VICTIM}",
        "victim_secret": f"/home/{VICTIM}/secret",
        "victim_unit": victim,
        "daemon_unit": UNIT,
        "daemon_code": code.stdout.split()[0],
        "daemon_pids": [int(daemon)],
        "daemon_uid": machine.account("holdover")[0],
        "admin_gid": int(machine.run(["getent", "group", "holdover-admin"]).stdout.split(":")[2]),
        "keeper_pids": [int(pid) for pid in numbers[unit][:2]],
        "others_pids": [int(pid) for name in (victim, beside) for pid in numbers[name]],
        "keepers": machine.run(["sh", "-c", "ls -d /run/holdover/sessions/*"]).stdout.split(),
        "generation": GENERATION,
        "marker": MARKER,
        "sysv_key": SYSV_KEY,
    }


def try_all(machine: Machine) -> Seen:
    seen = Seen()
    api = Api(machine.path("/run/holdover/admin.sock"))
    mallory, victor = Person(machine, ATTACKER), Person(machine, VICTIM)
    hers = mallory.new()
    (unit,) = unit_of(machine, ATTACKER)
    second, his = mallory.new(), victor.new()
    (beside,) = (one for one in unit_of(machine, ATTACKER) if one != unit)
    (victim,) = unit_of(machine, VICTIM)
    said = victor.run(his, LEAVE_TRACES)
    assert said.endswith("status 0"), said
    assert "-1" not in said, said
    machine.write(KNOWN, json.dumps(facts(machine, unit, beside, victim)))
    seen.before = state(machine, unit, [UNIT, victim, beside])
    said = mallory.run(hers, f"exec python3 -I {SCRIPT} {KNOWN}")
    text, _, status = said.rpartition("status ")
    assert status == "0", said[-2000:]
    seen.became = json.loads(text)
    seen.after = state(machine, unit, [UNIT, victim, beside])
    uid = str(machine.account(ATTACKER)[0])
    cgroups = machine.run(["sh", "-c", f"for p in $(pgrep -u {uid}); do cat /proc/$p/cgroup; done"])
    seen.strays = cgroups.stdout
    seen.status = machine.show(UNIT, "StatusText")
    seen.victim_said = victor.run(his, "cat ~/secret")
    seen.second_said = mallory.run(second, "echo still here")
    seen.journal = machine.journal(UNIT)
    root = machine.run(["python3", "-I", SCRIPT, KNOWN, "--control"]).stdout
    seen.by_root = json.loads(root)
    for person in (mallory, victor):
        for item in person.request("GET", "/v1/sessions")[1]["items"]:
            api.request("DELETE", f"/v1/sessions/{item['id']}?purge=true")
        api.call("DELETE", f"/v1/tokens/{person.token_id}")
    wait_until(lambda: unit_of(machine, ATTACKER) == [], "all of hers has ended")
    seen.left = machine.run(["pgrep", "-a", "-u", uid], check=False).stdout
    return seen


@pytest.fixture(scope="module")
def seen(host: Machine) -> Iterator[Seen]:
    here = Path(__file__).parent
    host.write(PROGRAM, (here / "shell_agent.py").read_text())
    host.write(SCRIPT, (here / "ways_out.py").read_text())
    command = json.dumps(["/usr/bin/python3", "-I", PROGRAM])
    host.write(CONFIG, f"[agents.shell]\ncommand = {command}\n")
    host.systemctl("restart", UNIT)
    for name in (ATTACKER, VICTIM):
        host.run(["holdover", "account", "add", name])
    host.run(["holdover", "agent", "login", "--account", VICTIM], input="sk-ant-oat01-hers\n")
    # What an account may fill is a matter of filesystems, or of quotas.
    home = f"/home/{ATTACKER}"
    uid, gid, _ = host.account(ATTACKER)
    options = f"size=32m,mode=0700,uid={uid},gid={gid}"
    host.run(["mount", "-t", "tmpfs", "-o", options, "home", home])
    # Small enough to be reached without harm to the machine that the tests run on.
    drop_in = f"/run/systemd/system/holdover-agent-{ATTACKER}@.service.d"
    host.write(f"{drop_in}/test.conf", LIMITS)
    host.systemctl("daemon-reload")
    yield try_all(host)
    host.run(["umount", home])
    host.run(["holdover", "agent", "login", "--account", VICTIM, "--remove"])
    for name in (ATTACKER, VICTIM):
        host.run(["holdover", "account", "rm", "--end-agents", name])
        host.run(["userdel", "--remove", name])
    host.run(["rm", "-r", CONFIG, PROGRAM, SCRIPT, KNOWN, drop_in])
    host.systemctl("daemon-reload")
    host.systemctl("restart", UNIT)


@pytest.mark.parametrize("way", list(ways_out.WAYS))
def test_no_way_leads_out_of_an_agents_unit(seen: Seen, way: str) -> None:
    assert seen.became[way].startswith("refused: "), seen.became[way]


def test_what_was_refused_is_there_for_root(seen: Seen) -> None:
    assert set(seen.by_root) == ways_out.CONTROLS
    assert len(ways_out.CONTROLS) > 40
    assert {way for way, said in seen.by_root.items() if not said.startswith("open: ")} == set()


def test_nobody_else_noticed(seen: Seen) -> None:
    """No unit, process, limit or name is another; the neighbours of both accounts answer."""
    assert seen.after == seen.before
    assert seen.victim_said == "hers\nstatus 0"
    assert seen.second_said == "still here\nstatus 0"
    assert "ways-out" not in seen.status
    assert "ways-out" not in seen.journal


def test_what_it_started_stays_in_its_unit_and_goes_with_it(seen: Seen) -> None:
    mine = [line for line in seen.strays.splitlines() if re.match(r"(\d+:name=systemd|0:):", line)]
    assert len(mine) >= 5
    assert {line for line in mine if f"/holdover-agent-{ATTACKER}@" not in line} == set()
    assert seen.left == ""
