"""What an agent that takes all it can get costs everybody else: the daemon's answers meanwhile.

``python -m tests.bench.ways_out``; writes ways_out.md beside this file. A host is booted, and
Mallory's agent, in a unit of its own, does one thing without end: tries every way out that
tests/host/ways_out.py knows, one after the other; forks until it may not any more, and has all of them
compute; takes memory until the kernel ends it, again and again; fills the disk of its home and empties
it. Beside it SESSIONS of other people stream. Somebody asks the daemon RATE times a second, in turn to
read a session and to change one (which is a commit), on CONNECTIONS connections through the public
door, some of them for what is read and others for what is changed: behind each other, a look would
count the commit before it. An answer counts from when it was due to be asked for, so that one that is
late delays those behind it as it would in life. The asker goes first, so that what is measured is not its
own waiting; and the host, with attacker and daemon alike, goes before what else this computer does.

An agent that its own attack has ended (memory that is out ends the largest of its processes, which may be the
agent) is told to do the same again at once. Two hundred Pythons that fork did that to theirs after a second:
hence Perl.

In each of ROUNDS rounds every attack lasts ARM_S, and before each it is quiet for QUIET_S. A round's
ratio is the 99th percentile of the answers under an attack by that of all the round's quiet ones. Kept
is a median of the rounds' ratios below BOUND.
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
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from pathlib import Path

from tests import needs
from tests.host.conftest import prove_limits
from tests.host.machine import SOURCE, Machine
from tests.host.test_accounts import PROGRAM, Person, unit_of
from tests.host.test_ways_out import KNOWN, LEAVE_TRACES, LIMITS, SCRIPT, facts
from tests.live.up import Api, wait_until

ROUNDS = int(os.environ.get("HOLDOVER_BENCH_ROUNDS", "5"))
ARM_S = float(os.environ.get("HOLDOVER_BENCH_ARM_S", "6"))
QUIET_S = ARM_S / 2
SESSIONS = 8
RATE = 100
CONNECTIONS = {"read": 2, "write": 2}
"""Enough of each that an answer in time holds nothing up."""

BOUND = 1.2
RESULTS = Path(__file__).with_name("ways_out.md")
HOME_BYTES = 64 << 20
SPARE = os.environ.get("HOLDOVER_BENCH_SPARE")
"""How many processors agents keep off, if not as many as the unit says."""

ATTACKS = {
    "every way out": f"while :; do python3 -I {SCRIPT} {KNOWN} >/dev/null; done",
    "fork bomb": "perl -e 'fork while 1'",
    "memory": "while :; do python3 -I -c 'x = [b\"x\" * (1 << 20) for _ in range(1000)]'; done",
    "disk fill": "while :; do dd if=/dev/zero of=$HOME/fill bs=1M; rm -f $HOME/fill; done",
}


@contextmanager
def host() -> Iterator[Machine]:
    subprocess.run([SOURCE / "packaging/wheelhouse"], check=True, timeout=900)
    with Machine.boot() as machine:
        prove_limits(machine)
        machine.go_first()
        machine.put_source()
        here = Path(__file__).parents[1] / "host"
        machine.write(PROGRAM, (here / "shell_agent.py").read_text())
        machine.write(SCRIPT, (here / "ways_out.py").read_text())
        command = json.dumps(["/usr/bin/python3", "-I", PROGRAM])
        machine.write("/etc/holdover/holdover.d/b.toml", f"[agents.shell]\ncommand = {command}\n")
        machine.install()
        machine.run(["holdover", "account", "add", "mallory"])
        uid, gid, home = machine.account("mallory")
        options = f"size={HOME_BYTES},mode=0700,uid={uid},gid={gid}"
        machine.run(["mount", "-t", "tmpfs", "-o", options, "home", home])
        drop_in = "/run/systemd/system/holdover-agent-mallory@.service.d"
        machine.write(f"{drop_in}/bench.conf", LIMITS)
        if SPARE is not None:
            agents = "/run/systemd/system/holdover-agent-.service.d"
            setting = f"Environment=HOLDOVER_SPARE_PROCESSORS={SPARE}"
            machine.write(f"{agents}/bench.conf", f"[Service]\n{setting}\n")
        machine.systemctl("daemon-reload")
        yield machine


@contextmanager
def attack(machine: Machine, mallory: Person, victim: str, command: str) -> Iterator[None]:
    """`victim`: the unit of somebody else's agent. Of Mallory's two, one looks on."""
    session, beside = mallory.new(), mallory.new()
    mine, other = unit_of(machine, "mallory")
    machine.write(KNOWN, json.dumps(facts(machine, mine, other, victim)))
    over = threading.Event()

    def attack_until_over() -> None:
        mallory.prompt(session, command)
        keeper = machine.path(f"/proc/{machine.show(mine, 'MainPID')}")
        while not over.wait(0.1):
            if not keeper.exists():
                mallory.prompt(session, command)
                wait_until(lambda: len(unit_of(machine, "mallory")) == 2, "it goes on")
                (unit,) = (one for one in unit_of(machine, "mallory") if one != other)
                keeper = machine.path(f"/proc/{machine.show(unit, 'MainPID')}")

    with ThreadPoolExecutor(1) as attacking:
        under_way = attacking.submit(attack_until_over)
        over.wait(1.5)  # until it is at full strength
        try:
            yield
        finally:
            over.set()
        under_way.result()
    for unit in unit_of(machine, "mallory"):
        machine.systemctl("kill", "--signal=KILL", unit, check=False)
    for one in (session, beside):
        status, _ = mallory.request("DELETE", f"/v1/sessions/{one}")
        assert status == 204
    wait_until(lambda: unit_of(machine, "mallory") == [], "it is gone")


Answers = dict[str, list[float]]
"""{kind: how long each answer took, in ms}"""


class Asker:
    """A request each 1/RATE s, in turn a read and a write, each on its connections in turn."""

    def __init__(self, machine: Machine, person: Person, session: str) -> None:
        self._connect: Callable[[], object] = lambda: machine.connect_tcp(8780)
        self._headers = {"Authorization": f"Bearer {person.token}"}
        self._path = f"/v1/sessions/{session}"

    def ask(self, seconds: float) -> Answers:
        begun = time.perf_counter() + 0.2
        with ThreadPoolExecutor(sum(CONNECTIONS.values()), initializer=go_first) as asking:
            under_way = {
                kind: [
                    asking.submit(self._ask, kind, begun, seconds, turn)
                    for turn in range(CONNECTIONS[kind])
                ]
                for kind in CONNECTIONS
            }
            return {
                kind: [took for one in asked for took in one.result()]
                for kind, asked in under_way.items()
            }

    def _ask(self, kind: str, begun: float, seconds: float, turn: int) -> list[float]:
        """Every so many-th request of a kind."""
        took = []
        with closing(http.client.HTTPConnection("127.0.0.1", 8780, timeout=60)) as connection:
            connection.sock = self._connect()  # type: ignore[assignment]
            for number in range(turn, int(seconds * RATE / 2), CONNECTIONS[kind]):
                due = begun + (2 * number + (kind == "write")) / RATE
                if (pause := due - time.perf_counter()) > 0:
                    time.sleep(pause)
                if kind == "read":
                    connection.request("GET", self._path, headers=self._headers)
                else:
                    body = json.dumps({"title": f"title {number}"})
                    connection.request("PATCH", self._path, body, self._headers)
                answer = connection.getresponse()
                answer.read()
                took.append((time.perf_counter() - due) * 1000)
                assert answer.status == 200, answer.status
        return took


def go_first() -> str:
    """Have this thread scheduled before all else, or as nearly so as the machine lets us; in words."""
    try:
        os.sched_setscheduler(0, os.SCHED_FIFO | os.SCHED_RESET_ON_FORK, os.sched_param(1))
    except PermissionError:  # control groups of version 1 give real time to the top group alone
        os.sched_setscheduler(0, os.SCHED_OTHER | os.SCHED_RESET_ON_FORK, os.sched_param(0))
        os.setpriority(os.PRIO_PROCESS, 0, -20)
        return "at the highest ordinary priority"
    return "scheduled before all else"


def p99(values: list[float]) -> float:
    return statistics.quantiles(values, n=100)[98]


def main() -> int:
    if needs.NO_NSPAWN:
        print(
            f"What an agent costs the others is not measured: {needs.NO_NSPAWN}.", file=sys.stderr
        )
        return 0
    load = os.getloadavg()[0]
    rounds: list[tuple[Answers, dict[str, Answers]]] = []
    with host() as machine:
        api = Api(machine.path("/run/holdover/admin.sock"))
        for _ in range(SESSIONS):
            api.new_session("stream 1000000 rate 20")
        machine.run(["useradd", "--create-home", "victor"])
        machine.run(["holdover", "account", "add", "victor"])
        victor, mallory = Person(machine, "victor"), Person(machine, "mallory")
        his = victor.new()
        victor.run(his, LEAVE_TRACES)
        (victim,) = unit_of(machine, "victor")
        asker = Asker(machine, victor, his)
        with ThreadPoolExecutor(1) as apart:
            asker_is = apart.submit(go_first).result()
        asker.ask(5)
        for _ in range(ROUNDS):
            quiet: Answers = {"read": [], "write": []}
            under: dict[str, Answers] = {}
            for name, command in ATTACKS.items():
                for kind, values in asker.ask(QUIET_S).items():
                    quiet[kind] += values
                with attack(machine, mallory, victim, command):
                    under[name] = asker.ask(ARM_S)
            rounds.append((quiet, under))
    rows, kept = [], True
    for name in ATTACKS:
        for kind in ("read", "write"):
            before = [(statistics.median(quiet[kind]), p99(quiet[kind])) for quiet, _ in rounds]
            during = [
                (statistics.median(under[name][kind]), p99(under[name][kind]))
                for _, under in rounds
            ]
            ratios = sorted(at[1] / by[1] for at, by in zip(during, before, strict=True))
            ratio = statistics.median(ratios)
            kept = kept and ratio < BOUND
            shown = (
                statistics.median(figures)
                for figures in (*zip(*before, strict=True), *zip(*during, strict=True))
            )
            cells = " | ".join(f"{figure:.1f} ms" for figure in shown)
            rows.append(
                f"| {name} | {kind} | {cells} | {ratios[0]:.2f} / {ratio:.2f} / {ratios[-1]:.2f} | "
                f"{'yes' if ratio < BOUND else '**no**'} |"
            )
    head = (
        "| attack | answer | median, quiet | 99 of 100, quiet | median, attacked | 99 of 100, "
        f"attacked | ratio | < {BOUND} |\n|---|---|---:|---:|---:|---:|---:|---|"
    )
    table = "\n".join([head, *rows])
    print(table)
    RESULTS.write_text(
        "# What an agent that takes all it can get costs the others\n\n"
        "Written by `python -m tests.bench.ways_out`.\n\n"
        f"{table}\n\nMedians of {ROUNDS} rounds with {ARM_S:g} s for each attack, and the ratio as "
        f"lowest / median / highest; {RATE} requests a second, half of them reads on {CONNECTIONS['read']} connections and half writes on {CONNECTIONS['write']}, {SESSIONS} sessions that stream; the "
        f"asker {asker_is}; on {os.cpu_count()} cores; load average of the minute before, by others: "
        f"{load:.1f}.\n\n## What is compared\n\n{(__doc__ or '').strip()}\n"
    )
    return 0 if kept else 1


if __name__ == "__main__":
    sys.exit(main())
