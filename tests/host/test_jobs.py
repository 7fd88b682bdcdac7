"""Jobs on a booted systemd: workers and processors in units of their own, asked for by a socket."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Iterator
from typing import Any

import pytest

from tests.host.machine import Machine
from tests.host.test_deploy import copy_release, holdover, settled
from tests.live.up import wait_until

pytestmark = pytest.mark.host

UNIT = "holdoverd@1.service"
CONFIG = "/etc/holdover/holdover.d/test-jobs.toml"
LIMIT = "/etc/systemd/system/holdover-processor-holdover-agent@.service.d/test.conf"
FOLDER = "/usr/local/lib/test-jobs"
PROCESSORS = {
    # Where it runs, and what it can reach.
    "look": """
import os, pwd, socket
print(pwd.getpwuid(os.getuid()).pw_name)
print(open("/proc/self/cgroup").read())
for path in ("/var/lib/holdover", "/run/holdover/workers", "/run/holdover/instances"):
    try:
        print("read", path, os.listdir(path))
    except OSError as error:
        print("refused", path)
for name in ("workers.sock", "agents/holdover-agent.sock", "processors/holdover-agent.sock"):
    try:
        socket.socket(socket.AF_UNIX).connect(f"/run/holdover/{name}")
        print("reached", name)
    except OSError:
        print("refused", name)
print(os.environ.get("CREDENTIALS_DIRECTORY"), os.getcwd())
""",
    "eat": "x = b'x' * (300 << 20)\n",
    "wait": """
import os, sys, time
if os.fork() == 0:
    os.setsid()
    time.sleep(600)
until = sys.argv[0] + ".go"
while not os.path.exists(until):
    time.sleep(0.05)
print(os.environ["HOLDOVER_ATTEMPT"])
""",
}


def prepare(machine: Machine) -> None:
    lines = ["[jobs]", "idle_s = 5"]
    for name, script in PROCESSORS.items():
        machine.write(f"{FOLDER}/{name}.py", script)
        lines += [
            f"[processors.{name}]",
            f'command = ["/usr/bin/python3", "-I", "{FOLDER}/{name}.py"]',
            "max_attempts = 2",
        ]
    machine.write(CONFIG, "\n".join(lines) + "\n")


@pytest.fixture(scope="module")
def machine(host: Machine) -> Iterator[Machine]:
    prepare(host)
    host.write(LIMIT, "[Service]\nMemoryMax=100M\n")
    host.systemctl("daemon-reload")
    host.systemctl("restart", UNIT)
    yield host
    host.run(["rm", "-r", CONFIG, LIMIT, FOLDER])
    host.systemctl("daemon-reload")
    host.systemctl("restart", UNIT)


def submit(machine: Machine, *arguments: str) -> str:
    return machine.run(["holdover", "job", "submit", *arguments]).stdout.strip()


def job(machine: Machine, name: str) -> Any:
    return json.loads(machine.run(["holdover", "job", "show", name, "--json"]).stdout)


def ended(machine: Machine, name: str) -> Any:
    def look() -> Any:
        found = job(machine, name)
        return found if found["state"] in ("done", "dead", "cancelled") else None

    return wait_until(look, f"job {name} ended", 60)


def units(machine: Machine, pattern: str) -> list[str]:
    listing = machine.systemctl("list-units", "--plain", "--no-legend", pattern).stdout
    return [line.split()[0] for line in listing.splitlines() if line.strip()]


def test_a_file_goes_from_storage_through_a_worker_to_its_result(machine: Machine) -> None:
    data = "words " * 500_000
    machine.write("/tmp/words.txt", data)
    put = machine.run(["holdover", "file", "put", "--json", "/tmp/words.txt"]).stdout
    file = json.loads(put.splitlines()[-1])["id"]
    ran = machine.run(["holdover", "job", "submit", "checksum", file, "--wait"])
    assert ran.stdout == hashlib.sha256(data.encode()).hexdigest() + "\n"


def test_a_processor_is_its_accounts_and_reaches_nothing_of_holdovers(machine: Machine) -> None:
    done = ended(machine, submit(machine, "look"))
    assert done["state"] == "done", done
    text = done["result"]["text"]
    assert text.startswith("holdover-agent\n")
    assert "holdover-processor-holdover-agent@" in text
    assert "read" not in text
    assert "reached" not in text
    assert "\nNone /var/tmp/holdover-job-" in text
    worker = done["worker"].partition("/")[2]
    assert worker.startswith("w_")


def test_one_that_eats_its_memory_is_dead_after_exactly_its_attempts(machine: Machine) -> None:
    dead = ended(machine, submit(machine, "eat"))
    assert (dead["state"], dead["attempt"]) == ("dead", 2), dead
    assert "killed by signal 9, as the kernel does when memory runs out" in dead["error"]


def test_a_killed_workers_job_is_taken_over_within_two_seconds(machine: Machine) -> None:
    name = submit(machine, "wait")
    wait_until(lambda: job(machine, name)["state"] == "running", "it runs", 30)
    (processor,) = wait_until(lambda: units(machine, "holdover-processor-*@*.service"), "runs", 10)
    workers = units(machine, "holdover-worker@*.service")
    machine.systemctl("kill", "--signal=KILL", *workers)
    began = time.monotonic()
    wait_until(lambda: job(machine, name)["attempt"] == 2, "taken over", 20)
    assert time.monotonic() - began <= 6, "three times the two seconds it may take"
    wait_until(lambda: processor not in units(machine, "holdover-processor-*"), "killed", 5)
    machine.write(f"{FOLDER}/wait.py.go", "")
    done = ended(machine, name)
    assert (done["state"], done["result"]["text"]) == ("done", "2\n")
    machine.run(["rm", f"{FOLDER}/wait.py.go"])


def test_cancelling_leaves_no_process(machine: Machine) -> None:
    name = submit(machine, "wait")
    wait_until(lambda: units(machine, "holdover-processor-*@*.service"), "it runs", 30)
    machine.run(["holdover", "job", "cancel", name])
    wait_until(lambda: not units(machine, "holdover-processor-*@*.service"), "all is gone", 3)
    assert job(machine, name)["state"] == "cancelled"


def test_a_daemons_end_is_nothing_to_a_worker_and_idle_ones_go(machine: Machine) -> None:
    name = submit(machine, "wait")
    wait_until(lambda: units(machine, "holdover-processor-*@*.service"), "it runs", 30)
    machine.systemctl("kill", "--signal=KILL", UNIT)
    machine.write(f"{FOLDER}/wait.py.go", "")
    done = ended(machine, name)
    assert (done["state"], done["attempt"]) == ("done", 1)
    machine.run(["rm", f"{FOLDER}/wait.py.go"])
    wait_until(lambda: not units(machine, "holdover-worker@*.service"), "idle workers go", 30)
    assert machine.show("holdover-worker.socket", "ActiveState") == "active"


def test_a_deploy_replaces_workers_and_drops_no_job(deploy_host: Machine) -> None:
    host = deploy_host
    prepare(host)
    host.write("/etc/holdover/holdover.d/test-bake.toml", "[deploy]\nbake_s = 2\n")
    try:
        copy_release(host, "0.2.0+jobs")
        holdover(host, "deploy", "0.2.0")  # a daemon that knows the processors
        settled(host)
        before = submit(host, "wait")
        wait_until(lambda: job(host, before)["state"] == "running", "it runs", 30)
        (old,) = units(host, "holdover-worker@*.service")
        holdover(host, "deploy", "0.2.0+jobs")
        assert job(host, before)["state"] == "running"
        after = submit(host, "wait")
        wait_until(lambda: job(host, after)["state"] == "running", "the next one runs", 30)
        host.write(f"{FOLDER}/wait.py.go", "")
        for name in (before, after):
            done = ended(host, name)
            assert (done["state"], done["attempt"]) == ("done", 1), done
        wait_until(lambda: old not in units(host, "holdover-worker@*.service"), "it goes", 10)
        new = units(host, "holdover-worker@*.service")
        assert new
        assert all("/0.2.0+jobs/" in host.show(one, "ExecStart") for one in new)
    finally:
        holdover(host, "deploy", "0.2.0")
        settled(host)
        host.run(["rm", "-r", "/etc/holdover/holdover.d", FOLDER])
        holdover(host, "release", "rm", "0.2.0+jobs")
