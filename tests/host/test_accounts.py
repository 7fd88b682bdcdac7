"""Alice and Bob on one host: what each one's agents can do to the other's, and to one another.

The attempts are made where an attacker would be: by an agent's own program, in its unit.
"""

from __future__ import annotations

import http.client
import json
import os
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

from holdoverd.keeper.init import SOONER
from holdoverd.keeper.processors import beyond
from tests.host.machine import Machine
from tests.live.up import Api, wait_until

pytestmark = pytest.mark.host

UNIT = "holdoverd@1.service"
CONFIG = "/etc/holdover/holdover.d/test-accounts.toml"
PROGRAM = "/usr/local/lib/shell_agent.py"
PEOPLE = ("alice", "bob")
CONTAINED_S = 15.0
"""Three times the figure of 5 s."""


class Person:
    """Somebody with a token, behind the public door."""

    def __init__(self, machine: Machine, name: str) -> None:
        self._machine = machine
        self.name = name
        token = ["token", "new", "--json", "--name", name, "--owner", name, "--account", name]
        made = json.loads(machine.run(["holdover", *token]).stdout)
        self.token, self.token_id = made["token"], made["id"]

    def request(self, method: str, path: str, body: Any = None) -> tuple[int, Any]:
        with closing(http.client.HTTPConnection("127.0.0.1", 8780, timeout=60)) as connection:
            connection.sock = self._machine.connect_tcp(8780)
            connection.sock.settimeout(60)
            headers = {"Authorization": f"Bearer {self.token}"}
            connection.request(method, path, body and json.dumps(body), headers)
            response = connection.getresponse()
            text = response.read()
            return response.status, json.loads(text) if text else None

    def new(self) -> str:
        status, made = self.request("POST", "/v1/sessions", {"agent": "shell"})
        assert status == 201, made
        assert (made["owner"], made["account"]) == (self.name, self.name)
        session: str = made["id"]
        return session

    def prompt(self, session: str, command: str) -> None:
        body = {"id": str(uuid4()), "text": command}
        status, answer = self.request("POST", f"/v1/sessions/{session}/prompts", body)
        assert status == 202, answer

    def log(self, session: str) -> list[Any]:
        _, answer = self.request("GET", f"/v1/sessions/{session}/messages?after=0&limit=500")
        messages: list[Any] = answer["messages"]
        return messages

    def kinds(self, session: str, kind: str) -> list[Any]:
        return [message for message in self.log(session) if message["kind"] == kind]

    def run(self, session: str, command: str) -> str:
        """What `command` printed, run by the session's agent; its last line is the status."""
        before = len(self.kinds(session, "assistant"))
        self.prompt(session, command)
        wait_until(lambda: len(self.kinds(session, "assistant")) > before, f"{command!r} is done")
        text: str = self.kinds(session, "assistant")[-1]["body"]["message"]["content"][0]["text"]
        return text


@pytest.fixture(scope="module")
def machine(host: Machine) -> Iterator[Machine]:
    """With Alice and Bob, added while the daemon runs, and an agent that does as it is told."""
    host.write(PROGRAM, (Path(__file__).parent / "shell_agent.py").read_text())
    command = json.dumps(["/usr/bin/python3", "-I", PROGRAM])
    host.write(CONFIG, f"[agents.shell]\ncommand = {command}\n")
    host.systemctl("restart", UNIT)
    daemon = host.show(UNIT, "MainPID")
    for name in PEOPLE:
        done = host.run(["holdover", "account", "add", name])
        assert f"Agents may run as {name} now" in done.stderr
        assert "Warning" not in done.stderr
    assert host.show(UNIT, "MainPID") == daemon, "no daemon is restarted for an account"
    yield host
    for name in PEOPLE:
        host.run(["holdover", "account", "rm", "--end-agents", name])
        assert (
            host.run(["sh", "-c", f"ls /etc/systemd/system | grep -- -{name}"], check=False).stdout
            == ""
        )
        host.run(["userdel", "--remove", name])
    host.run(["rm", CONFIG, PROGRAM])
    host.systemctl("restart", UNIT)


@pytest.fixture(scope="module")
def people(machine: Machine) -> Iterator[tuple[Person, Person]]:
    alice, bob = (Person(machine, name) for name in PEOPLE)
    yield alice, bob
    api = Api(machine.path("/run/holdover/admin.sock"))
    for person in (alice, bob):
        for item in person.request("GET", "/v1/sessions")[1]["items"]:
            api.request("DELETE", f"/v1/sessions/{item['id']}?purge=true")
        api.call("DELETE", f"/v1/tokens/{person.token_id}")


def unit_of(machine: Machine, account: str) -> list[str]:
    pattern = f"holdover-agent-{account}@*.service"
    listing = machine.systemctl("list-units", "--plain", "--no-legend", pattern)
    return [line.split()[0] for line in listing.stdout.splitlines()]


def family(machine: Machine, pid: str) -> list[str]:
    """A process and all that it has started, oldest first."""
    children = machine.run(["sh", "-c", f"cat /proc/{pid}/task/*/children"]).stdout.split()
    return [pid, *(member for child in children for member in family(machine, child))]


@pytest.mark.parametrize("name", ["root", "holdover", "../x", "-p", "$(id)", "a b"])
def test_who_no_agent_may_run_as_is_refused(machine: Machine, name: str) -> None:
    refused = machine.run(["holdover", "account", "add", "--", name], check=False)
    assert refused.returncode == 1
    assert "Traceback" not in refused.stderr
    assert name not in machine.run(["holdover", "account", "ls"]).stdout.split()


def test_adding_twice_and_installing_again_change_nothing(machine: Machine) -> None:
    before = machine.show("holdover-agent-alice.socket", "InvocationID")
    again = machine.run(["holdover", "account", "add", "alice"])
    assert "an existing user" in again.stderr
    machine.install()
    assert machine.show("holdover-agent-alice.socket", "InvocationID") == before
    listed = [
        json.loads(line)
        for line in machine.run(["holdover", "account", "ls", "--json"]).stdout.splitlines()
    ]
    assert [one["account"] for one in listed] == ["alice", "bob", "holdover-agent"]
    assert all(one["open"] for one in listed)


def test_neither_sees_nor_changes_the_others_sessions(people: tuple[Person, Person]) -> None:
    alice, bob = people
    hers = alice.new()
    assert alice.run(hers, "id -un") == "alice\nstatus 0"
    at = f"/v1/sessions/{hers}"
    attempts: list[tuple[str, str, Any]] = [
        ("GET", at, None),
        ("GET", f"{at}/messages?after=0", None),
        ("GET", f"{at}/messages?page=0", None),
        ("GET", f"{at}/messages/1/body", None),
        ("PATCH", at, {"title": "mine"}),
        ("PATCH", at, {"share": "write"}),
        ("POST", f"{at}/prompts", {"id": str(uuid4()), "text": "id"}),
        ("POST", f"{at}/answers", {"request_id": "r_1", "behavior": "allow"}),
        ("POST", f"{at}/interrupt", {}),
        ("POST", f"{at}/resume", {}),
        ("DELETE", at, None),
        ("DELETE", f"{at}?purge=true", None),
    ]
    for method, path, body in attempts:
        status, answer = bob.request(method, path, body)
        assert (status, answer["error"]["code"]) == (404, "not_found"), (method, path)
    assert hers not in [item["id"] for item in bob.request("GET", "/v1/sessions")[1]["items"]]
    refused, _ = bob.request("POST", "/v1/sessions", {"agent": "shell", "owner": "alice"})
    assert refused == 403
    # By choice, and only as far as that goes.
    assert alice.request("PATCH", at, {"share": "read"})[0] == 200
    assert bob.request("GET", at)[0] == 200
    assert bob.request("POST", f"{at}/prompts", {"id": str(uuid4()), "text": "id"})[0] == 403
    assert alice.request("PATCH", at, {"share": None})[0] == 200
    assert bob.request("GET", at)[0] == 404


def test_neither_reaches_the_others_processes_homes_and_spools(
    machine: Machine, people: tuple[Person, Person]
) -> None:
    alice, bob = people
    hers, his = alice.new(), bob.new()
    alice.run(hers, "echo hers >~/secret; chmod 644 ~/secret")
    mine = unit_of(machine, "bob")
    second = bob.new()
    others = [u for n in PEOPLE for u in unit_of(machine, n) if u not in mine]
    pids = {unit: family(machine, machine.show(unit, "MainPID")) for unit in others}
    everybody = " ".join(pid for found in pids.values() for pid in found)

    for closed in (
        "ls /home/alice",
        "cat /home/alice/secret",
        "ls /var/lib/holdover",
        "ls /var/lib/holdover/spool",
        "ls /run/holdover/sessions",
        "ls /run/holdover/instances",
    ):
        said = bob.run(his, closed)
        assert "Permission denied" in said, closed
        assert not said.endswith("status 0"), closed
    door = "import socket, sys; socket.socket(socket.AF_UNIX).connect(sys.argv[1])"
    for path in ("admin.sock", "agents/alice.sock", "agents/bob.sock"):
        said = bob.run(his, f'python3 -I -c "{door}" /run/holdover/{path}')
        assert "PermissionError" in said, path

    # What it can see of processes is its own. A number of theirs, wherever it had it from, is
    # nobody's there; one that happens to be its own is no way to theirs either.
    assert "alice" not in bob.run(his, "ls -ln /proc; ps -eo user= 2>/dev/null")
    seen = bob.run(his, "ls /proc | grep -c '^[0-9]'").split()[0]
    assert int(seen) < 10
    trace = (
        "import ctypes, os; libc = ctypes.CDLL(None, use_errno=True); "
        f"print([libc.ptrace(16, p, 0, 0) for p in map(int, '{everybody}'.split()) "
        "if not os.path.exists(f'/proc/{p}')])"
    )
    attached = bob.run(his, f'python3 -I -c "{trace}"')
    assert attached.endswith("status 0")
    assert "0" not in attached.splitlines()[0].replace("-1", "")
    # All at once: what it may signal, it kills. Its own agent goes with that, and nobody else.
    bob.prompt(his, f"kill -9 1 {everybody}; kill -9 -1")
    wait_until(lambda: bob.kinds(his, "notice"), "its own agent is killed")
    assert bob.run(second, "echo still here") == "still here\nstatus 0"
    assert alice.run(hers, "echo still here") == "still here\nstatus 0"
    for unit, found in pids.items():
        assert family(machine, machine.show(unit, "MainPID")) == found, unit
    assert not alice.kinds(hers, "notice")
    assert not bob.kinds(second, "notice")


@pytest.fixture
def served(machine: Machine) -> Iterator[str]:
    """The URL of a repository that the machine itself serves."""
    made = (
        "mkdir -p /srv/git/r && cd /srv/git/r && git init -q && echo one >a.txt && git add . && "
        "git -c user.name=t -c user.email=t@t commit -qm 1"
    )
    machine.run(["sh", "-c", made])
    unit = ["--unit=test-git", "--setenv=HOME=/root"]
    serve = ["git", "daemon", "--export-all", "--base-path=/srv/git", "--listen=127.0.0.1"]
    machine.run(["systemd-run", *unit, *serve, "--port=9418", "/srv/git"])
    wait_until(
        lambda: machine.run(["git", "ls-remote", "git://127.0.0.1/r"], check=False).returncode == 0,
        "the repository is served",
    )
    yield "git://127.0.0.1/r"
    machine.systemctl("stop", "test-git.service")
    machine.run(["rm", "-r", "/srv/git"])


def test_an_agent_keeps_off_the_first_processor_and_is_ended_before_its_keeper(
    people: tuple[Person, Person],
) -> None:
    alice, _ = people
    look = (
        "import os; print(sorted(os.sched_getaffinity(0)), open('/proc/self/oom_score_adj').read())"
    )
    said = alice.run(alice.new(), f'python3 -I -c "{look}"')
    assert said == f"{sorted(beyond(1, os.sched_getaffinity(0)))} {SOONER}\n\nstatus 0"


def test_a_repository_is_cloned_as_its_account(people: tuple[Person, Person], served: str) -> None:
    alice, _ = people
    spec = {"agent": "shell", "repo": {"url": served}}
    status, made = alice.request("POST", "/v1/sessions", spec)
    assert status == 201, made
    assert made["cwd"] == f"/home/alice/workspaces/{made['id']}"
    assert alice.run(made["id"], "cat a.txt; stat -c %U a.txt; git status -sb | head -1") == (
        "one\nalice\n## master...origin/master\nstatus 0"
    )
    for url in ("file:///srv/git/r", "/srv/git/r", "git://127.0.0.1/none"):
        refused, answer = alice.request("POST", "/v1/sessions", {**spec, "repo": {"url": url}})
        assert (refused, answer["error"]["reason"]) == (422, "repo_refused"), url


def test_a_login_reaches_its_accounts_agents_and_nobody_else(
    machine: Machine, people: tuple[Person, Person]
) -> None:
    alice, bob = people
    secret = "sk-ant-oat01-" + "s3cret" * 8
    show = 'echo "$CLAUDE_CODE_OAUTH_TOKEN"'
    before = alice.new()
    login = ["holdover", "agent", "login", "--account", "alice"]
    done = machine.run(login, input=secret + "\n")
    assert secret not in done.stdout + done.stderr
    assert machine.run(["stat", "-c", "%a %U", "/etc/holdover/credentials"]).stdout == "700 root\n"
    hers, his = alice.new(), bob.new()
    assert alice.run(hers, show) == f"{secret}\nstatus 0"
    # Whoever ran already goes on as it was; another account has nothing of it.
    assert alice.run(before, show) == "\nstatus 0"
    assert bob.run(his, show) == "\nstatus 0"
    said = bob.run(his, "cat /etc/holdover/credentials/alice /run/credentials/*/login")
    assert secret not in said
    # Not in any command line, unit file or journal.
    assert secret not in machine.run(["ps", "-efww"]).stdout
    assert secret not in machine.run(["journalctl", "--no-pager"]).stdout
    grep = ["grep", "-r", "--files-with-matches", secret, "/etc/systemd", "/run/systemd"]
    assert machine.run(grep, check=False).stdout == ""
    unknown = machine.run([*login[:-1], "mallory"], input=secret + "\n", check=False)
    assert unknown.returncode == 3
    machine.run([*login, "--remove"])
    assert alice.run(alice.new(), show) == "\nstatus 0"


@pytest.fixture
def tight(machine: Machine) -> Iterator[None]:
    """Alice's limits, small enough to be reached without harm to the machine the tests run on."""
    folder = "/run/systemd/system/holdover-agent-alice@.service.d"
    machine.write(f"{folder}/test.conf", "[Service]\nMemoryMax=256M\nTasksMax=200\n")
    machine.systemctl("daemon-reload")
    yield
    machine.run(["rm", "-r", folder])
    machine.systemctl("daemon-reload")


def test_a_runaway_is_contained_says_why_and_resumes(
    machine: Machine, people: tuple[Person, Person], tight: None
) -> None:
    alice, bob = people
    hers, his = alice.new(), bob.new()
    # 20 GB by a tool: the tool dies, the agent reads of it.
    began = time.monotonic()
    said = alice.run(hers, "python3 -I -c \"b'x' * (20 << 30)\"; echo eater $?")
    took = time.monotonic() - began
    assert "eater 137" in said or "MemoryError" in said
    assert took < CONTAINED_S, f"contained after {took:.1f} s"
    # 20 GB by the agent itself: it is ended, its session says why, and the next prompt resumes.
    began = time.monotonic()
    alice.prompt(hers, "eat")
    wait_until(lambda: alice.kinds(hers, "notice"), "its session says why")
    took = time.monotonic() - began
    (notice,) = alice.kinds(hers, "notice")
    assert notice["body"]["code"] == "agent_exited"
    assert notice["body"]["data"]["oom"] is True
    assert "more memory" in notice["body"]["text"]
    assert took < CONTAINED_S, f"contained after {took:.1f} s"
    assert alice.run(hers, "echo again") == "again\nstatus 0"

    # 5,000 processes that stay: refused at the unit's limit.
    forks = (
        "import os, signal, sys\n"
        "for n in range(5000):\n"
        "    try:\n"
        "        if os.fork() == 0:\n"
        "            signal.pause()\n"
        "    except OSError as error:\n"
        "        sys.exit(f'{n} forks: {error}')\n"
    )
    began = time.monotonic()
    alice.run(hers, f'python3 -I -c "{forks}" >forks 2>&1')
    took = time.monotonic() - began
    assert took < CONTAINED_S, f"contained after {took:.1f} s"
    assert "Resource temporarily unavailable" in alice.run(hers, 'read line <forks; echo "$line"')
    alice.prompt(hers, "leave")
    wait_until(lambda: len(alice.kinds(hers, "notice")) >= 3, "its session says why")
    last = alice.kinds(hers, "notice")[-1]["body"]
    assert last["data"]["forks_refused"] is True
    assert "more processes" in last["text"]
    assert alice.run(hers, "cat forks; echo again").endswith("again\nstatus 0")
    # Nobody else noticed.
    assert bob.run(his, "echo still here") == "still here\nstatus 0"
    assert not bob.kinds(his, "notice")
