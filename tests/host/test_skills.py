"""Skills on a booted systemd: changed as the account, within its walls, and still there afterwards."""

from __future__ import annotations

from typing import Any

import pytest

from tests.host.machine import Machine
from tests.host.test_deploy import copy_release, holdover, machine, settled
from tests.live.up import Api, wait_until

__all__ = ["machine"]  # the fixture

pytestmark = pytest.mark.host

ADMIN = "/run/holdover/admin.sock"
OTHER = "0.2.1"


def serves(host: Machine) -> bool:
    return Api(host.path(ADMIN)).healthy()  # PID 1's number changes with each boot


def listed(host: Machine) -> Any:
    return Api(host.path(ADMIN)).call("GET", "/v1/skills")


def on_disk(host: Machine) -> str:
    """Names, owners, modes and contents."""
    home = host.run(["sh", "-c", "getent passwd holdover-agent | cut -d: -f6"]).stdout.strip()
    look = "find .claude/skills -printf '%p %u %m\\n' | sort; find .claude -name SKILL.md | sort | xargs sha256sum"
    return host.run(["sh", "-c", f"cd {home} && {look}"]).stdout


def test_skills_survive_deploy_kill_reinstall_and_reboot(machine: Machine) -> None:
    settled(machine)
    for n in range(20):
        front = f"---\nname: s-{n:02}\ndescription: Number {n}\n---\nx\n"
        machine.write(f"/srv/skills/s-{n:02}/SKILL.md", front)
    holdover(machine, "skill", "add", "/srv/skills", "--all")
    # The daemon's user may not read the home that was written to, nor may the helper what it may not.
    assert "s-13 holdover-agent 755" in on_disk(machine)
    machine.write("/srv/secret/SKILL.md", "---\nname: secret\ndescription: x\n---\n")
    machine.run(["chmod", "700", "/srv/secret"])
    said = holdover(machine, "skill", "add", "/srv/secret", check=False)
    assert "cannot be read by this account" in said
    before, files = listed(machine), on_disk(machine)
    assert len(before["items"]) == 20

    version = ('__version__ = "0.2.0"', f'__version__ = "{OTHER}"')
    copy_release(machine, OTHER, ("__init__.py", *version))
    holdover(machine, "deploy", OTHER)
    settled(machine)
    assert (listed(machine), on_disk(machine)) == (before, files)
    holdover(machine, "skill", "disable", "s-0*")
    machine.run(["systemctl", "kill", "--signal=KILL", "holdoverd@*.service"])
    wait_until(lambda: serves(machine), "the host serves again")
    settled(machine)
    holdover(machine, "skill", "enable", "--all")
    assert (listed(machine), on_disk(machine)) == (before, files)
    machine.install()
    wait_until(lambda: serves(machine), "the host serves again")
    settled(machine)
    assert (listed(machine), on_disk(machine)) == (before, files)
    machine.reboot(force=True)
    wait_until(lambda: serves(machine), "the host serves again")
    assert (listed(machine), on_disk(machine)) == (before, files)
    rows = Api(machine.path(ADMIN)).call("GET", "/v1/audit?limit=200")["items"]
    assert sum(row["action"] == "skill.installed" for row in rows) == 20
    holdover(machine, "skill", "rm", "s-*")
    assert "s-13" not in on_disk(machine)
