"""This host's storage under a real systemd: reached through its door, and by no other way."""

from __future__ import annotations

import json
from collections.abc import Iterator
from uuid import uuid4

import pytest

from tests.host.machine import Machine
from tests.live.up import Api, wait_until

pytestmark = pytest.mark.host

STORAGE, DOOR = "holdover-storage.service", "holdover-s3.service"
ACCOUNT = "holdover-agent"

# Tries, as whoever runs it, every port that listens and every socket and file of Holdover's and
# storage's; prints what it could open.
LOOK = r"""
import os, socket, sys
opened = []
def attempt(name, action):
    try:
        action()
    except OSError:
        return
    opened.append(name)
def listening():
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        for line in open(table).read().splitlines()[1:]:
            fields = line.split()
            if fields[3] == "0A":
                yield int(fields[1].rpartition(":")[2], 16)
# Below 1024 are the machine's own, a web server maybe.
ports = sorted({*filter(lambda port: port > 1023, listening()),
                9333, 19333, 8080, 18080, 8888, 18888, 8333, 18333})
for port in ports:
    attempt(port, lambda: socket.create_connection(("127.0.0.1", port), timeout=5).close())
for top in ("/run", "/tmp", "/var/tmp"):
    for folder, folders, names in os.walk(top):
        if folder == "/run":
            # The machine's own: what its units are, for everybody to read.
            folders[:] = [name for name in folders if name != "systemd"]
        for name in names:
            path = os.path.join(folder, name)
            if ("holdover" in path or "seaweed" in path) and not os.path.islink(path):
                attempt(path, lambda: socket.socket(socket.AF_UNIX).connect(path))
                attempt(path, lambda: open(path, "rb"))
for path in ("/run/holdover-storage/s3.sock", "/run/holdover-storage/filer.sock"):
    attempt(path, lambda: socket.socket(socket.AF_UNIX).connect(path))
for line in open("/proc/net/unix"):
    name = line.split()[-1]
    if name.startswith("@") and ("seaweed" in name or "holdover" in name):
        attempt(name, lambda: socket.socket(socket.AF_UNIX).connect("\0" + name[1:]))
for path in ("/var/lib/holdover-storage", "/run/holdover-storage", "/var/lib/holdover"):
    attempt(path, lambda: os.listdir(path))
for path in ("/etc/holdover/storage-keys.json", "/run/credentials/holdover-storage.service/storage"):
    attempt(path, lambda: open(path, "rb"))
print(opened)
"""


def status(machine: Machine) -> str:
    """What a visitor of S3 gets; waits as long as storage is being started."""
    command = ["curl", "-sS", "-m", "90", "-o", "/dev/null", "-w", "%{http_code}"]
    return machine.run([*command, "http://127.0.0.1:8781/status"]).stdout


def test_storage_runs_with_the_target_and_answers_through_its_door(host: Machine) -> None:
    host.systemctl("start", STORAGE)
    assert host.show(STORAGE, "ActiveState") == "active"
    assert host.systemctl("is-enabled", "holdover-s3.socket").stdout.strip() == "enabled"
    assert status(host) == "200"
    assert host.show(DOOR, "ActiveState") == "active"


def test_killed_it_comes_back_and_visitors_wait(host: Machine) -> None:
    assert status(host) == "200"
    before = host.show(STORAGE, "MainPID")
    host.systemctl("kill", "--signal=KILL", "--kill-who=main", STORAGE)
    # The visit may meet the dying door; the one after it waits in the socket.
    host.run(["sh", "-c", "until [ \"$(systemctl show -P MainPID $0)\" != $1 ]; do :; done",
              STORAGE, before])  # fmt: skip
    assert status(host) == "200"
    assert host.show(STORAGE, "MainPID") not in {before, "0"}


@pytest.mark.parametrize("user", ["nobody", "holdover-agent"])
def test_others_open_the_public_door_and_s3_and_nothing_else(host: Machine, user: str) -> None:
    assert status(host) == "200"
    seen = host.run(["/usr/bin/python3", "-I", "-c", LOOK], user=user)
    assert seen.stdout == "[8780, 8781]\n", seen.stderr


def test_s3_gives_nothing_without_a_signature(host: Machine) -> None:
    for path in ("", "holdover", "holdover/f", "?policy"):
        answer = host.run(
            [
                "curl",
                "-sS",
                "-o",
                "/dev/null",
                "-w",
                "%{http_code}",
                f"http://127.0.0.1:8781/{path}",
            ]
        )
        assert answer.stdout == "403", path


def test_no_secret_is_in_a_command_line_or_the_journal(host: Machine) -> None:
    keys = json.loads(host.read("/etc/holdover/storage-keys.json"))
    assert (
        host.run(["stat", "-c", "%a %U", "/etc/holdover/storage-keys.json"]).stdout == "600 root\n"
    )
    told = host.run(["ps", "-eo", "args"]).stdout + host.journal(STORAGE) + host.journal(DOOR)
    assert "-s3.config=/run/holdover-storage/identities.json" in told
    for secret in keys.values():
        assert secret not in told
    for unit in (STORAGE, "holdoverd@1.service"):
        environment = host.run(["cat", f"/proc/{host.show(unit, 'MainPID')}/environ"]).stdout
        assert keys["secret_key"] not in environment


def test_put_share_and_download_by_a_client_that_knows_only_the_link(host: Machine) -> None:
    host.write("/tmp/report.txt", "what happened\n")
    url = host.run(["holdover", "share", "/tmp/report.txt"]).stdout.strip()
    assert url.startswith("http://127.0.0.1:8780/l/")
    assert host.run(["curl", "-sSL", url], user="nobody").stdout == "what happened\n"


def test_the_doctor_finds_nothing_wanting_and_is_for_root_alone(host: Machine) -> None:
    told = host.run(["holdover", "storage", "doctor"]).stdout.splitlines()
    assert told[-1] == "Files are verified here by their SHA-256.", told
    assert [line for line in told[:-1] if not line.startswith("holds ")] == []
    asked = host.run(["holdover", "storage", "doctor"], user="nobody", check=False)
    assert asked.returncode == 1
    assert "run this as root" in asked.stderr


@pytest.fixture
def sessions(host: Machine) -> Iterator[list[str]]:
    """Two sessions of the demo agent, each in a unit of its own; ended afterwards."""
    names = []
    for _ in range(2):
        names.append(host.run(["holdover", "session", "new", "--agent", "demo"]).stdout.strip())
        host.run(["holdover", "session", "send", names[-1], "hello", "--wait"])
    yield names
    for name in names:
        host.run(["holdover", "session", "end", name])


def test_files_go_between_storage_and_workspaces_by_the_agents_units(
    host: Machine, sessions: list[str]
) -> None:
    """Out of one session's workspace, by a prompt into another's: as the account, in its walls."""
    api = Api(host.path("/run/holdover/admin.sock"))
    first, second = (api.session(name)["cwd"] for name in sessions)
    host.run(["sh", "-c", f"head -c 20000000 /dev/urandom >{first}/made.bin"], user=ACCOUNT)
    told = api.call("POST", f"/v1/sessions/{sessions[0]}/files", {"path": "made.bin"})["file"]
    path = f"/v1/files/{told['id']}"
    wait_until(lambda: api.call("GET", path)["state"] != "uploading", "it has come out", 120)
    assert api.call("GET", path)["state"] == "ready"
    # Nothing beyond the workspace comes out, not even what the account may read.
    for beyond in ("../../.bashrc", "/etc/passwd"):
        status, _ = api.request("POST", f"/v1/sessions/{sessions[0]}/files", {"path": beyond})
        assert status == 422, beyond

    prompt = {"id": str(uuid4()), "text": "look at it", "attachments": [told["id"]]}
    api.call("POST", f"/v1/sessions/{sessions[1]}/prompts", prompt)
    attached = f"{second}/attachments/{told['id']}/made.bin"
    sums = host.run(["sha256sum", f"{first}/made.bin", attached]).stdout.split()
    assert sums[0] == sums[2]
    assert host.run(["stat", "-c", "%U", attached]).stdout.strip() == ACCOUNT
    said = next(m for m in api.log(sessions[1]) if m["client_id"] == prompt["id"])
    assert f"attachments/{told['id']}/made.bin" in str(said["body"])
