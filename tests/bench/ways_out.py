"""What an agent that takes all it can get costs everybody else: the daemon's answers meanwhile.

``python -m tests.bench.ways_out``; writes ways_out.md beside this file. A host is booted, and
Mallory's agent, in a unit of its own, does one thing without end: forks until it may not any more, and
has all of them compute; takes memory until the kernel ends it, again and again; fills the disk of its
home and empties it. Beside it SESSIONS of other people stream. Somebody asks the daemon RATE times
a second, in turn to read a session and to change one (which is a commit): on one connection, through
the public door. Each attack lasts ARM_S, as does the quiet before it that it is compared with,
ROUNDS times. The asker is scheduled before all else, so that what is measured is not its own waiting.

Kept is a 99th percentile of all rounds' answers within BOUND of the quiet's.
"""

from __future__ import annotations

import http.client
import json
import os
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path

from tests.host.conftest import prove_limits
from tests.host.machine import SOURCE, Machine
from tests.host.test_accounts import PROGRAM, Person, unit_of
from tests.live.up import Api, wait_until

ROUNDS = int(os.environ.get("HOLDOVER_BENCH_ROUNDS", "4"))
ARM_S = float(os.environ.get("HOLDOVER_BENCH_ARM_S", "12"))
SESSIONS = 8
RATE = 100
BOUND = 1.2
RESULTS = Path(__file__).with_name("ways_out.md")
UNIT = "holdoverd@1.service"
LIMITS = "[Service]\nMemoryMax=256M\nTasksMax=200\n"
HOME_BYTES = 64 << 20

ATTACKS = {
    "fork bomb": """python3 -I -c '
import os
while True:
    try:
        os.fork()
    except OSError:
        pass
'""",
    "memory": "while :; do python3 -I -c 'x = [b\"x\" * (1 << 20) for _ in range(1000)]'; done",
    "disk fill": "while :; do dd if=/dev/zero of=$HOME/fill bs=1M; rm -f $HOME/fill; done",
}


@contextmanager
def host() -> Iterator[Machine]:
    subprocess.run([SOURCE / "packaging/wheelhouse"], check=True, timeout=900)
    with Machine.boot() as machine:
        prove_limits(machine)
        machine.put_source()
        here = Path(__file__).parents[1] / "host"
        machine.write(PROGRAM, (here / "shell_agent.py").read_text())
        command = json.dumps(["/usr/bin/python3", "-I", PROGRAM])
        machine.write("/etc/holdover/holdover.d/b.toml", f"[agents.shell]\ncommand = {command}\n")
        machine.install()
        machine.run(["holdover", "account", "add", "mallory"])
        uid, gid, home = machine.account("mallory")
        options = f"size={HOME_BYTES},mode=0700,uid={uid},gid={gid}"
        machine.run(["mount", "-t", "tmpfs", "-o", options, "home", home])
        drop_in = "/run/systemd/system/holdover-agent-mallory@.service.d"
        machine.write(f"{drop_in}/bench.conf", LIMITS)
        machine.systemctl("daemon-reload")
        yield machine


@contextmanager
def attack(machine: Machine, mallory: Person, command: str) -> Iterator[None]:
    session = mallory.new()
    mallory.prompt(session, command)
    threading.Event().wait(1.5)  # until it is at full strength
    yield
    for unit in unit_of(machine, "mallory"):
        machine.systemctl("kill", "--signal=KILL", unit, check=False)
    status, _ = mallory.request("DELETE", f"/v1/sessions/{session}")
    assert status == 204
    wait_until(lambda: unit_of(machine, "mallory") == [], "it is gone")


class Asker:
    """One connection, a request each 1/RATE s: {kind: how long its answers took, in ms}."""

    def __init__(self, machine: Machine, person: Person, session: str) -> None:
        self._connect: Callable[[], object] = lambda: machine.connect_tcp(8780)
        self._headers = {"Authorization": f"Bearer {person.token}"}
        self._path = f"/v1/sessions/{session}"

    def ask(self, seconds: float) -> dict[str, list[float]]:
        took: dict[str, list[float]] = {"read": [], "write": []}
        with closing(http.client.HTTPConnection("127.0.0.1", 8780, timeout=60)) as connection:
            connection.sock = self._connect()  # type: ignore[assignment]
            begun = time.perf_counter()
            for number in range(int(seconds * RATE)):
                due = begun + number / RATE
                if (pause := due - time.perf_counter()) > 0:
                    time.sleep(pause)
                kind = "write" if number % 2 else "read"
                start = time.perf_counter()
                if kind == "read":
                    connection.request("GET", self._path, headers=self._headers)
                else:
                    body = json.dumps({"title": f"title {number}"})
                    connection.request("PATCH", self._path, body, self._headers)
                answer = connection.getresponse()
                answer.read()
                took[kind].append((time.perf_counter() - start) * 1000)
                assert answer.status == 200, answer.status
        return took


def p99(values: list[float]) -> float:
    return statistics.quantiles(values, n=100)[98]


def main() -> int:
    load = os.getloadavg()[0]
    quiet = {name: {"read": [], "write": []} for name in ATTACKS}  # type: ignore[var-annotated]
    under = {name: {"read": [], "write": []} for name in ATTACKS}  # type: ignore[var-annotated]
    with host() as machine:
        api = Api(machine.path("/run/holdover/admin.sock"))
        for _ in range(SESSIONS):
            api.new_session("stream 1000000 rate 20")
        machine.run(["useradd", "--create-home", "victor"])
        machine.run(["holdover", "account", "add", "victor"])
        victor, mallory = Person(machine, "victor"), Person(machine, "mallory")
        asker = Asker(machine, victor, victor.new())
        os.sched_setscheduler(0, os.SCHED_FIFO | os.SCHED_RESET_ON_FORK, os.sched_param(1))
        asker.ask(5)
        for _ in range(ROUNDS):
            for name, command in ATTACKS.items():
                for kind, values in asker.ask(ARM_S).items():
                    quiet[name][kind] += values
                with attack(machine, mallory, command):
                    for kind, values in asker.ask(ARM_S).items():
                        under[name][kind] += values
    rows, kept = [], True
    for name in ATTACKS:
        for kind in ("read", "write"):
            before, during = quiet[name][kind], under[name][kind]
            ratio = p99(during) / p99(before)
            kept = kept and ratio < BOUND
            rows.append(
                f"| {name} | {kind} | {statistics.median(before):.1f} ms | "
                f"{statistics.median(during):.1f} ms | {p99(before):.1f} ms | {p99(during):.1f} ms | "
                f"{ratio:.2f} | {'yes' if ratio < BOUND else 'no'} |"
            )
    head = (
        "| attack | answer | median, quiet | median, attacked | 99 of 100, quiet | 99 of 100, "
        "attacked | ratio | < 1.2 |\n|---|---|---:|---:|---:|---:|---:|---|"
    )
    table = "\n".join([head, *rows])
    print(table)
    RESULTS.write_text(
        "# What an agent that takes all it can get costs the others\n\n"
        "Written by `python -m tests.bench.ways_out`.\n\n"
        f"{table}\n\n{ROUNDS} rounds of {ARM_S:g} s, {RATE} requests a second, {SESSIONS} sessions "
        f"that stream, on {os.cpu_count()} cores; load average of the minute before, by others: "
        f"{load:.1f}.\n\n## What is compared\n\n{(__doc__ or '').strip()}\n"
    )
    return 0 if kept else 1


if __name__ == "__main__":
    sys.exit(main())
