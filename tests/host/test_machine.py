"""The test machine itself: what is done in it stays in it, and it never outlives its test run."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import needs
from tests.host.conftest import prove_limits
from tests.host.machine import CONTROLLERS, HIERARCHIES, SOURCE, Machine, MachineError

pytestmark = [pytest.mark.host, pytest.mark.slow, needs.needs_nspawn]

BOOT_AND_WAIT = """
import sys
from tests.host.machine import Machine
machine = Machine.boot()
print(machine.leader, machine._name, machine._folder, flush=True)
sys.stdin.read()
"""


@pytest.fixture(scope="module")
def machine() -> Iterator[Machine]:
    with Machine.boot() as booted:
        yield booted


def test_files_made_inside_stay_inside(machine: Machine) -> None:
    machine.write("/etc/holdover-test/file", "inside")
    assert machine.run(["cat", "/etc/holdover-test/file"]).stdout == "inside"
    assert not Path("/etc/holdover-test").exists()
    machine.reboot()
    assert machine.read("/etc/holdover-test/file") == "inside"


def test_limits_work_again_after_a_reboot(machine: Machine) -> None:
    prove_limits(machine)
    machine.reboot(force=True)
    prove_limits(machine)


def test_a_failing_command_raises_with_its_output(machine: Machine) -> None:
    with pytest.raises(MachineError, match=r"exited 3\nout\nerr"):
        machine.run(["sh", "-c", "echo out; echo err >&2; exit 3"])
    assert machine.run(["false"], check=False).returncode == 1
    assert machine.run(["id", "-un"], user="nobody").stdout == "nobody\n"


def test_it_has_a_network_of_its_own(machine: Machine) -> None:
    listen = "import socket; s = socket.create_server(('127.0.0.1', 8780)); "
    answer = "print('up', flush=True); s.accept()[0].send(b'inside')"
    command = ["/usr/bin/python3", "-I", "-c", listen + answer]
    with machine.popen(command, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        assert server.stdout.readline() == "up\n"
        with machine.connect_tcp(8780) as connection:
            connection.settimeout(60)
            assert connection.recv(100) == b"inside"
    with pytest.raises(ConnectionRefusedError):
        machine.connect_tcp(8780)


def test_it_dies_with_a_test_run_that_is_killed() -> None:
    """By itself a container outlives its killed nspawn."""
    command = [sys.executable, "-c", BOOT_AND_WAIT]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, cwd=SOURCE, stdin=pipe, stdout=pipe, text=True) as run:
        assert run.stdout is not None
        leader, name, folder = run.stdout.readline().split()
        ended = os.pidfd_open(int(leader))
        try:
            run.send_signal(signal.SIGKILL)
            assert select.select([ended], [], [], 60)[0]
        finally:
            os.close(ended)
    # Its files were in memory, which is gone with it; two notes of our own and empty groups stay.
    assert {path.name for path in Path(folder).rglob("*")} <= {
        "console",
        "notify",
        "stage",
        "stage.boot",
    }
    abandoned = Machine(Path("/"), network=False)
    abandoned.close()
    abandoned._name, abandoned._folder = name, Path(folder)
    abandoned.close()
    for hierarchy in HIERARCHIES:
        assert not Path("/sys/fs/cgroup", hierarchy, name).exists()


def test_two_machines_share_no_group_of_processes(machine: Machine) -> None:
    """In a shared one, each systemd would wait for the other's services to end."""
    with Machine.boot() as other:
        groups = [
            {
                line
                for line in Path(f"/proc/{leader}/cgroup").read_text().splitlines()
                if line.split(":")[1] in ("", "name=systemd", *CONTROLLERS)
            }
            for leader in (machine.leader, other.leader)
        ]
        assert groups[0]
        assert not groups[0] & groups[1]
