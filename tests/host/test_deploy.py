"""Deploys on a booted systemd: sound releases take over, broken ones are taken back with a reason.

A broken release is a copy of the installed one with a line of its code replaced: what a mistake in a
release is, without building one each time.
"""

from __future__ import annotations

import http.client
import json
import re
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass

import pytest

from tests.host.machine import Machine
from tests.live.up import wait_until

pytestmark = pytest.mark.host

RELEASES = "/opt/holdover/releases"
BAKE_S = 2
TAKEN_BACK_S = 60
"""Three times the figure of 20 s, from the start of the deploy to the old one serving alone."""


def holdover(machine: Machine, *arguments: str, check: bool = True) -> str:
    done = machine.run(["holdover", *arguments], check=check, timeout_s=300)
    return done.stdout + done.stderr


def healthz(machine: Machine) -> dict[str, object]:
    with closing(http.client.HTTPConnection("127.0.0.1", 8780)) as connection:
        connection.sock = machine.connect_tcp(8780)
        connection.sock.settimeout(60)
        connection.request("GET", "/healthz")
        answer: dict[str, object] = json.loads(connection.getresponse().read())
    return answer


def instances(machine: Machine) -> list[dict[str, object]]:
    status = json.loads(machine.run(["holdover", "status", "--json"]).stdout)
    found: list[dict[str, object]] = status["instances"]
    return found


def settled(machine: Machine) -> int:
    """The generation that serves alone, once the others are gone."""

    def alone() -> int | None:
        with suppress(Exception):
            found = instances(machine)
            if len(found) == 1 and found[0]["state"] == "serving":
                return int(str(found[0]["generation"]))
        return None

    return int(wait_until(alone, "one instance serves alone", 60))


@pytest.fixture(scope="module")
def machine(deploy_host: Machine) -> Iterator[Machine]:
    """With a short bake; left with one instance of the first release."""
    host = deploy_host
    host.write("/etc/holdover/holdover.d/test.toml", f"[deploy]\nbake_s = {BAKE_S}\n")
    yield host
    holdover(host, "deploy", "0.2.0")
    settled(host)
    host.run(["rm", "-r", "/etc/holdover/holdover.d"])


def copy_release(machine: Machine, name: str, *patches: tuple[str, str, str]) -> None:
    """A release of its own that differs in `patches`: (module file, text, its replacement)."""
    target = f"{RELEASES}/{name}"
    # Hard links where nothing changes; the environment's own scripts name the folder they are in.
    machine.run(["cp", "-a", f"{RELEASES}/0.2.0", target])
    site = f"{target}/lib/python3.11/site-packages/holdoverd"
    machine.run(["sh", "-c", f"sed -i 's#{RELEASES}/0.2.0/#{target}/#g' {target}/bin/holdover"])
    record = json.loads(machine.read(f"{target}/release.json"))
    record |= {"name": name, "digest": name}
    machine.write(f"{target}/release.json", json.dumps(record))
    for file, before, after in patches:
        text = machine.read(f"{site}/{file}")
        assert before in text, f"{file} has no {before!r}"
        machine.write(f"{site}/{file}", text.replace(before, after, 1))


@contextmanager
def visiting(machine: Machine) -> Iterator[list[str]]:
    """Somebody comes by a new connection some ten times a second; what became of those not served."""
    lost: list[str] = []
    over = threading.Event()

    def visit() -> None:
        while not over.wait(0.1):
            try:
                if (answer := healthz(machine))["status"] != "ok":
                    lost.append(f"answered {answer}")
            except (OSError, ValueError, http.client.HTTPException) as error:
                lost.append(repr(error))

    visitor = threading.Thread(target=visit)
    visitor.start()
    try:
        yield lost
    finally:
        over.set()
        visitor.join()


@dataclass(frozen=True)
class Broken:
    """A mistake in a release, and the words (a pattern) that the deploy has for it."""

    name: str
    reason: str
    patches: tuple[tuple[str, str, str], ...]


SERVE = "    async def _serve_one(self, first: bool) -> bool:\n"
READY = "                systemd.notify(READY=1)\n"
BROKEN = (
    Broken(
        "import-error",
        "no_such_module",
        (("main.py", "import argparse\n", "import argparse\nimport no_such_module\n"),),
    ),
    Broken("never-ready", "not ready within", (("main.py", READY, "                pass\n"),)),
    Broken(
        "ready-then-exit",
        "exited with status 9",
        (("main.py", READY, READY + "                import os as o; o._exit(9)\n"),),
    ),
    Broken(
        "wrong-answers",
        "/healthz",
        (("http/api/general.py", '"status": "ok"', '"status": "fine"'),),
    ),
    Broken(
        "never-replies",
        "no answer within",
        (("http/connection.py", SERVE, SERVE + "        await trio.sleep_forever()\n"),),
    ),
    Broken(
        "busy-loop",
        "given no sign of life for",
        (
            (
                "http/api/general.py",
                "async def healthz(context: Context, _request: Request) -> Response:\n",
                "async def healthz(context: Context, _request: Request) -> Response:\n"
                "    while True: pass\n",
            ),
        ),
    ),
    Broken(
        "stands-still",
        # On a machine so slow that a sibling has killed it before the deploy says hello: only that.
        "given no sign of life for|was killed by signal 9",
        (
            (
                "main.py",
                READY,
                READY
                + "                import os as o, signal as s; o.kill(o.getpid(), s.SIGSTOP)\n",
            ),
        ),
    ),
    Broken(
        "leaks-descriptors",
        "descriptors",
        (
            (
                "http/connection.py",
                SERVE,
                SERVE + "        import os as o; o.dup(self._stream.socket.fileno())\n",
            ),
        ),
    ),
    Broken(
        "drops-every-tenth-websocket",
        "WebSocket",
        (
            (
                "http/stream.py",
                "        resumed = self._resumed\n",
                "        Stream.n = getattr(Stream, 'n', 0) + 1\n"
                "        if Stream.n % 10 == 0: return\n"
                "        resumed = self._resumed\n",
            ),
        ),
    ),
)


@pytest.mark.parametrize("broken", BROKEN, ids=[one.name for one in BROKEN])
def test_a_broken_release_is_taken_back(machine: Machine, broken: Broken) -> None:
    name = f"0.2.0+{broken.name}"
    before = settled(machine)
    copy_release(machine, name, *broken.patches)
    session = holdover(machine, "session", "new", "--agent", "demo", "stream 600 rate 5").split()[0]
    started = time.monotonic()
    with visiting(machine) as lost:
        said = holdover(machine, "deploy", name, check=False)
        took = time.monotonic() - started
        assert healthz(machine)["generation"] == before
    why = said.partition("was taken back: ")[2].partition("\n")[0]
    print(f"{broken.name}: taken back in {took:.1f} s: {why}")
    assert took < TAKEN_BACK_S, said
    assert lost == []
    assert re.search(broken.reason, why), said
    assert machine.run(["readlink", "/var/lib/holdover/current"]).stdout == f"{before}\n"
    assert settled(machine) == before
    shown = json.loads(holdover(machine, "session", "show", "--json", session))
    assert (shown["state"], shown["generation"]) == ("working", before)
    holdover(machine, "session", "end", session)
    assert re.search(broken.reason, holdover(machine, "status"))
    machine.run(["rm", "-r", f"{RELEASES}/{name}"])


def test_sessions_that_had_moved_come_back_from_a_release_that_fails_after_it_accepted(
    machine: Machine,
) -> None:
    name = "0.2.0+fails-later"
    healthy = '"status": "ok"'
    copy_release(
        machine,
        name,
        (
            "http/api/general.py",
            healthy,
            '"status": "ok" if context.__dict__.setdefault("n", []).append(1) '
            'or len(context.n) < 40 else "ill"',
        ),
    )
    before = settled(machine)
    machine.write(
        "/etc/holdover/holdover.d/zz.toml",
        '[deploy]\nbake_s = 30\n[drain]\nmode = "migrate"\n',
    )
    # What drains reads its own settings: the one that serves now has to know the mode, too.
    machine.systemctl("restart", f"holdoverd@{before}.service")
    session = holdover(machine, "session", "new", "--agent", "demo", "stream 600 rate 5").split()[0]
    try:
        said = holdover(machine, "deploy", name, check=False)
    finally:
        machine.run(["rm", "/etc/holdover/holdover.d/zz.toml"])
    assert "was taken back: /healthz answered 200" in said
    assert "its sessions and connections go back" in said
    assert settled(machine) == before
    shown = json.loads(holdover(machine, "session", "show", "--json", session))
    assert (shown["state"], shown["generation"]) == ("working", before)
    journal = machine.journal(f"holdoverd@{before}.service")
    # It went in mid-turn, and came back: from epoch 1 over 2 to 3.
    assert "adopted the session at epoch 3" in journal
    holdover(machine, "session", "end", session)
    machine.systemctl("restart", f"holdoverd@{before}.service")
    machine.run(["rm", "-r", f"{RELEASES}/{name}"])


def test_a_predecessor_that_stands_still_in_a_deploy_is_killed_and_the_deploy_goes_on(
    machine: Machine,
) -> None:
    """Alone on its host, it is missed by the deploy only: all that the release does at first is sleep,
    its migration too."""
    before = settled(machine)
    copy_release(
        machine,
        "0.2.0+late",
        ("main.py", "import argparse\n", "import argparse\nimport time as t; t.sleep(4)\n"),
    )
    standing = machine.show(f"holdoverd@{before}.service", "MainPID")
    machine.systemctl("kill", "--signal=STOP", f"holdoverd@{before}.service")
    said = holdover(machine, "deploy", "0.2.0+late", check=False)
    assert (
        f"generation {before} has given no sign of life for 3 s; process {standing} is killed"
        in said
    )
    assert "is permanent" in said
    assert settled(machine) > before
    assert "is permanent" in holdover(machine, "rollback")
    settled(machine)
    machine.run(["rm", "-r", f"{RELEASES}/0.2.0+late"])


def test_a_deploy_that_is_stopped_takes_itself_back(machine: Machine) -> None:
    before = settled(machine)
    machine.write("/etc/holdover/holdover.d/zz.toml", "[deploy]\nbake_s = 60\n")
    deploying = machine.popen(["holdover", "deploy", "0.2.0"], stderr=subprocess.PIPE, text=True)
    try:
        wait_until(lambda: len(instances(machine)) == 2, "the candidate accepts", 60)
        machine.systemctl("stop", "holdover-deploy@*.service")
        _, said = deploying.communicate(timeout=60)
    finally:
        machine.run(["rm", "/etc/holdover/holdover.d/zz.toml"])
        deploying.kill()
    assert deploying.returncode == 1
    assert "taken back: the deploy was told to stop" in said
    assert settled(machine) == before
    assert "told to stop" in holdover(machine, "status")


SLOW = (
    ("main.py", READY, "                await trio.sleep(8)\n" + READY),
    (
        "http/connection.py",
        "            answer = await self._answer(request)\n",
        "            await trio.sleep(0.5)\n            answer = await self._answer(request)\n",
    ),
)
"""READY after 8 s, each answer half a second later; nothing is wrong with it."""


def test_a_slow_but_healthy_release_is_not_taken_back(machine: Machine) -> None:
    """Once; tests/soak/test_slow_release.py does it twenty times."""
    copy_release(machine, "0.2.0+slow", *SLOW)
    before = settled(machine)
    assert "is permanent" in holdover(machine, "deploy", "0.2.0+slow")
    assert settled(machine) > before
    assert "is permanent" in holdover(machine, "rollback")
    settled(machine)


def test_a_session_goes_on_over_a_deploy_and_a_rollback(machine: Machine) -> None:
    copy_release(machine, "0.2.0+next")
    holdover(machine, "account", "add", "carol")
    carols = "/etc/systemd/system/holdover-agent-carol@.service"
    session = holdover(machine, "session", "new", "--agent", "demo", "stream 600 rate 5").split()[0]
    (unit,) = [
        line.split()[0]
        for line in machine.systemctl(
            "list-units", "--plain", "--no-legend", "holdover-agent-*@*.service"
        ).stdout.splitlines()
    ]
    keeper = machine.show(unit, "MainPID")
    assert "is permanent" in holdover(machine, "deploy", "0.2.0+next")
    assert f"ExecStart={RELEASES}/0.2.0+next/bin/python " in machine.read(carols)
    # In mid-turn: it is finished where it began, unless somebody asks for it at once.
    assert len(instances(machine)) == 2
    holdover(machine, "drain", "--migrate")
    after = settled(machine)
    shown = json.loads(holdover(machine, "session", "show", "--json", session))
    assert (shown["state"], shown["generation"]) == ("working", after)
    assert "is permanent" in holdover(machine, "rollback")
    holdover(machine, "drain", "--migrate")
    assert settled(machine) > after
    assert machine.show(unit, "MainPID") == keeper
    holdover(machine, "session", "end", session)
    assert f"ExecStart={RELEASES}/0.2.0/bin/python " in machine.read(carols)
    holdover(machine, "account", "rm", "carol")
    machine.run(["userdel", "--remove", "carol"])
    listed = machine.run(["holdover", "release", "ls"]).stdout
    assert "which boots" in listed
    refused = machine.run(["holdover", "release", "rm", "0.2.0"], check=False)
    assert refused.returncode == 5
    holdover(machine, "release", "rm", "0.2.0+next")


def test_a_rehearsal_on_a_systemd_host_loses_nothing(machine: Machine) -> None:
    said = holdover(machine, "rehearse", "--sessions", "3")
    assert "deploy: lost 0, repeated 0, closed 0, " in said
    assert "kill -9: lost 0, repeated 0, closed 3, " in said
    settled(machine)


def test_the_second_of_two_deploys_is_told_who_is_at_it(machine: Machine) -> None:
    hold = (
        "exec 9>>/run/holdover/deploy.lock; flock 9; "
        """echo '{"pid": 77, "generation": 8, "since_at": 0}' >/run/holdover/deploy.lock; """
        "exec holdover deploy 0.2.0"
    )
    refused = machine.run(["sh", "-c", hold], check=False)
    assert refused.returncode == 1
    assert "generation 8, process 77" in refused.stderr
