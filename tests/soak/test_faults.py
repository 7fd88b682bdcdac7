"""Faults one at a time under load on a booted host: nothing is lost, and all recovers by itself.

HOLDOVER_SOAK_SCALE (1) shortens the faults' times, HOLDOVER_SOAK_FAULT (all) takes those whose names
match. The figures go to faults.md beside this file: what the doctor and the metrics said meanwhile or
right afterwards that they had not said before, and how long it took until every viewer heard of new
lines again. The clock, which containers share with the kernel, is that of a `holdover up` with
libfaketime; PostgreSQL is restarted beneath another.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import re
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import trio

from tests import needs
from tests.host.machine import SOURCE, Machine
from tests.live import up as live
from tests.live.up import Api, Up, running, wait_until
from tests.live.watcher import Watcher
from tests.postgres import Postgres

pytestmark = pytest.mark.soak

SCALE = float(os.environ.get("HOLDOVER_SOAK_SCALE", "1"))
ONLY = os.environ.get("HOLDOVER_SOAK_FAULT", "")
SESSIONS = 8
RATE = 10
RECOVERED_S = 180.0
UNIT = "holdoverd@1.service"
RESULTS = Path(__file__).with_name("faults.md")
STATE_BYTES = 256 << 20

HOLD_LOCK = """
import sqlite3, sys, time
cx = sqlite3.connect("/var/lib/holdover/catalogue.db", timeout=20, isolation_level=None)
cx.execute("BEGIN IMMEDIATE")
time.sleep(float(sys.argv[1]))
cx.execute("ROLLBACK")
"""


Fault = Callable[[], contextlib.AbstractContextManager[None]]
Samples = dict[str, float]
# The daemon, its sessions and systemd are as they were, so there is nothing to be named: what is
# shown is that nobody is disturbed.
NOTHING_WRONG = ("daemon-reload x 100", "daemon-reexec x 100")

# Whether a metric tells of a fault, by what it was before and what it is now.
TELLS: Mapping[str, Callable[[float, float], bool]] = {
    "holdover_sessions_stuck": lambda _, now: now > 0,
    "holdover_catalogue_up": lambda _, now: now == 0,
    "holdover_catalogue_failed_writes_total": lambda before, now: now > before,
    "holdover_state_free_bytes": lambda _, now: now < 1 << 20,
    "holdover_storage_up": lambda _, now: now == 0,
    "holdover_agents_silent_seconds": lambda before, now: now > before + 2,
    "holdover_jobs_silent_seconds": lambda before, now: now > before + 5,
    "holdover_jobs_taken_total": lambda before, now: now > before,
    "holdover_clock_steps_total": lambda before, now: now > before,
    "holdover_process_start_time_seconds": lambda before, now: now > before + 1,
    'holdover_agent_exits_total{how="oom"}': lambda before, now: now > before,
}

GLUTTON = "import sys; sys.stdin.readline(); x = b'x' * (600 << 20)"
SLOW = "import time; time.sleep(25); print('done')"
CONFIG = f"""
[agents.glutton]
command = ["/usr/bin/python3", "-I", "-c", {json.dumps(GLUTTON)}]
[processors.slow]
command = ["/usr/bin/python3", "-I", "-c", {json.dumps(SLOW)}]
max_attempts = 5
"""
AGENTS_MEMORY = "/etc/systemd/system/holdover-agent-holdover-agent@.service.d/soak.conf"


@dataclass
class Row:
    fault: str
    doctor: set[str] = field(default_factory=set)
    metrics: set[str] = field(default_factory=set)
    recovered_s: float = 0.0


@dataclass
class Host:
    """Whoever is asked: the admin door, and the doctor, whose output is one JSON object a line."""

    api: Api
    doctor: Callable[[], str]

    def wrong(self) -> dict[str, str]:
        """{what: area} of what the doctor finds."""
        found = [json.loads(line) for line in self.doctor().splitlines()]
        # The disk is small here, which is told all the time; it is a fault where nothing is left.
        wrong = [f for f in found if f["area"] != "disk" or f["what"].startswith("0.0 GiB")]
        return {f["what"]: f["area"] for f in wrong if f["level"] in ("warning", "failed")}

    def metrics(self) -> Samples | None:
        connection = live._UnixConnection(self.api.admin_socket, 10)
        try:
            connection.request("GET", "/metrics")
            text = connection.getresponse().read().decode()
        except (OSError, http.client.HTTPException):
            return None
        finally:
            connection.close()
        pairs = (line.rpartition(" ") for line in text.splitlines() if line[0] != "#")
        return {name: float(value) for name, _, value in pairs}


@pytest.fixture
def machine() -> Iterator[Machine]:
    if needs.NO_NSPAWN:
        pytest.skip(needs.NO_NSPAWN)
    subprocess.run([SOURCE / "packaging/wheelhouse"], check=True, timeout=900)
    with Machine.boot() as machine:
        # A disk of its own, small enough to be filled.
        machine.run(["mkdir", "-p", "/var/lib/holdover"])
        options = f"size={STATE_BYTES},mode=0700"
        machine.run(["mount", "-t", "tmpfs", "-o", options, "state", "/var/lib/holdover"])
        machine.put_source()
        machine.write("/etc/holdover/holdover.d/soak.toml", CONFIG)
        machine.write(AGENTS_MEMORY, "[Service]\nMemoryMax=200M\n")
        machine.install()
        machine.run(["chown", "holdover:holdover", "/var/lib/holdover"])
        yield machine


def pause(seconds: float) -> None:
    time.sleep(seconds * SCALE)


def pid_of(machine: Machine, unit: str = UNIT) -> str:
    return machine.show(unit, "MainPID")


@contextmanager
def full_disk(machine: Machine) -> Iterator[None]:
    fill = "dd if=/dev/zero of=/var/lib/holdover/fill bs=64k 2>/dev/null; sync"
    machine.run(["sh", "-c", fill], check=False)
    yield
    machine.run(["rm", "/var/lib/holdover/fill"])


@contextmanager
def locked_database(machine: Machine) -> Iterator[None]:
    command = ["python3", "-I", "-c", HOLD_LOCK, str(30 * SCALE + 2)]
    holder = machine.popen(command, user="holdover")
    yield
    holder.wait(120)


@contextmanager
def no_storage(machine: Machine) -> Iterator[None]:
    machine.systemctl("stop", "holdover-s3.socket", "holdover-storage.service")
    yield
    machine.systemctl("reset-failed", "holdover*", check=False)
    machine.systemctl("start", "holdover-storage.service", "holdover-s3.socket")


@contextmanager
def stopped(machine: Machine, pids: Callable[[], list[str]]) -> Iterator[None]:
    found = pids()
    machine.run(["kill", "-STOP", *found])
    yield
    machine.run(["kill", "-CONT", *found], check=False)  # the watchdog may have ended it


@contextmanager
def killed(machine: Machine, pids: Callable[[], list[str]]) -> Iterator[None]:
    """As the kernel does it when memory is short."""
    machine.run(["kill", "-KILL", *pids()])
    yield


@contextmanager
def starved(machine: Machine) -> Iterator[None]:
    """The kernel ends the daemon: its unit may have next to nothing more than it has."""
    before = machine.show(UNIT, "NRestarts")
    status = machine.read(f"/proc/{pid_of(machine)}/status")
    (own,) = (line.split()[1] for line in status.splitlines() if line.startswith("RssAnon:"))
    find = ["find", "/sys/fs/cgroup/memory", "-type", "d", "-name", UNIT]
    group = machine.run(find).stdout.strip()
    # A limit that the kernel cannot have kept at once it does not take.
    for more in range(2048, 65536, 2048):
        limit = (int(own) + more) << 10
        machine.systemctl("set-property", "--runtime", UNIT, f"MemoryMax={limit}")
        if int(machine.read(f"{group}/memory.limit_in_bytes")) <= limit:
            break
    body = "head -c 1000000 /dev/zero | tr '\\0' ' '"
    post = "curl -s -m 5 --unix-socket /run/holdover/admin.sock --data-binary @- http://x/v1/tokens"
    flood = f"for i in $(seq 40); do {body} | {post} >/dev/null & done; wait"
    try:
        for _ in range(20):
            machine.run(["sh", "-c", flood], check=False)
            if machine.show(UNIT, "NRestarts") != before:
                break
        else:
            raise AssertionError("the daemon lived on")
    finally:
        machine.systemctl("set-property", "--runtime", UNIT, "MemoryMax=infinity")
    yield


@contextmanager
def greedy_agent(machine: Machine, api: Api) -> Iterator[None]:
    """One that needs more than its unit may have."""
    api.new_session("eat", agent="glutton")
    yield


@contextmanager
def with_a_job(machine: Machine, api: Api, fault: Fault) -> Iterator[None]:
    """A worker of its own for the fault; the job is done in the end all the same."""
    job = api.call("POST", "/v1/jobs", {"processor": "slow"})["id"]

    def reached(state: str) -> bool:
        return bool(api.call("GET", f"/v1/jobs/{job}")["state"] == state)

    wait_until(lambda: reached("running"), "the job runs")
    with fault():
        yield
    wait_until(lambda: reached("done"), "the job is done", RECOVERED_S)


def workers(machine: Machine) -> list[str]:
    return machine.run(["pgrep", "-f", "m holdoverd.jobs.worker"]).stdout.split()


def storages(machine: Machine) -> list[str]:
    return [machine.show("holdover-storage.service", "MainPID")]


@contextmanager
def restless_systemd(machine: Machine, verb: str) -> Iterator[None]:
    for _ in range(max(int(100 * SCALE), 2)):
        machine.systemctl(verb)
    yield


def demo_agents(machine: Machine) -> list[str]:
    return machine.run(["pgrep", "-f", "m holdoverd.demo"]).stdout.split()


def look(host: Host, row: Row, before: tuple[dict[str, str], Samples]) -> None:
    """Put down what is told now, and was not before."""
    known, then = before
    row.doctor |= {area for what, area in host.wrong().items() if what not in known}
    now = host.metrics()
    if now is None:
        row.metrics.add("up")  # Prometheus' own, of a scrape that fails
        return
    start = "holdover_process_start_time_seconds"
    anew = now[start] > then[start] + 1
    for name, tells in TELLS.items():
        was = 0.0 if anew and name != start else then.get(name, 0.0)
        if name in now and tells(was, now[name]):
            row.metrics.add(name.partition("{")[0])


async def suffer(
    host: Host, watchers: list[Watcher], title: str, faults: list[tuple[str, float, Fault]]
) -> list[Row]:
    """One fault after the other; after each, all viewers hear of new lines, none twice."""
    rows = []
    for name, seconds, fault in (one for one in faults if re.search(ONLY, one[0])):
        row = Row(name)
        before = await trio.to_thread.run_sync(lambda: (host.wrong(), host.metrics() or {}))

        def pass_through(
            row: Row = row, seconds: float = seconds, fault: Fault = fault, before: Any = before
        ) -> None:
            with fault():
                pause(seconds / 2)
                if seconds:
                    look(host, row, before)
                pause(seconds / 2)

        await trio.to_thread.run_sync(pass_through)
        over = trio.current_time()
        heard = [len(watcher.seqs) for watcher in watchers]
        with trio.fail_after(RECOVERED_S):
            for watcher, count in zip(watchers, heard, strict=True):
                await watcher.wait(lambda one, count=count: len(one.seqs) > count + RATE)
        row.recovered_s = trio.current_time() - over
        # The daemon's next heartbeat, by which it knows of its clock.
        await trio.sleep(6 if "clock" in name else 0)
        await trio.to_thread.run_sync(look, host, row, before)
        rows.append(row)
        for watcher in watchers:
            assert watcher.seqs == list(range(1, len(watcher.seqs) + 1))
        keep(title, row, watchers)
    return rows


async def heard_all(api: Api, watchers: list[Watcher]) -> None:
    """All that is stored has come, in order, nothing twice."""
    with trio.fail_after(RECOVERED_S):
        for watcher in watchers:
            shown = await trio.to_thread.run_sync(api.session, watcher.session)
            await watcher.wait(lambda one, n=shown["last_seq"]: one.seqs[-1] >= n)
    for watcher in watchers:
        assert watcher.seqs == list(range(1, len(watcher.seqs) + 1))


def keep(title: str, row: Row, watchers: list[Watcher]) -> None:
    """Put a row into its table in faults.md, in place of the one of the same name."""
    lines = sum(len(watcher.seqs) for watcher in watchers)
    nothing = "none: nothing is wrong" if row.fault in NOTHING_WRONG else "-"
    cells = (
        row.fault,
        ", ".join(sorted(row.doctor)) or nothing,
        ", ".join(sorted(row.metrics)).replace("holdover_", "") or nothing,
        f"{row.recovered_s:.1f} s",
    )
    head, *parts = (RESULTS.read_text() if RESULTS.exists() else HEAD).split("\n## ")
    found = {part.partition("\n")[0]: part for part in parts}
    rows = {
        line.split(" | ")[0]: line
        for line in found.get(title, "").splitlines()
        if line.startswith("| ") and not line.startswith("| fault ")
    }
    rows[f"| {row.fault}"] = f"| {' | '.join(cells)} |"
    found[title] = (
        f"{title}\n\n{len(watchers)} sessions of {RATE} lines a second, each watched; the faults' times "
        f"multiplied by {SCALE:g}. In the last run {lines:,} lines were received, none missing or "
        "repeated, and no agent was started anew.\n\n"
        "| fault | doctor | metrics | recovered |\n|---|---|---|---:|\n" + "\n".join(rows.values())
    )
    RESULTS.write_text("\n## ".join(part.rstrip() + "\n" for part in (head, *found.values())))


def all_named(rows: list[Row]) -> None:
    unnamed = [row for row in rows if not (row.doctor and row.metrics)]
    assert [row for row in unnamed if row.fault not in NOTHING_WRONG] == []


HEAD = """# Faults

Written by `make soak` (tests/soak/test_faults.py). What `holdover doctor` and `/metrics` told meanwhile
or right after that they had not told before; `up` is Prometheus' own, of a scrape without an answer.
The last column: from the end of the fault until every viewer had a second's lines more.

"""


async def test_each_fault_passes_and_nothing_is_lost(machine: Machine) -> None:
    api = Api(machine.path("/run/holdover/admin.sock"))
    command = ["holdover", "doctor", "--json", "--quick"]
    host = Host(api, lambda: machine.run(command, check=False, timeout_s=120).stdout)
    token = api.call("POST", "/v1/tokens", {"name": "w", "scopes": ["read"]})["token"]
    say = f"lines 1000000 rate {RATE} size 100"
    watchers = [
        Watcher(
            Path("/nowhere"),
            api.new_session(say, agent="demo")["id"],
            dial=partial(machine.connect_tcp, 8780),
            token=token,
            keep_bodies=False,
        )
        for _ in range(SESSIONS)
    ]
    daemon = lambda: [pid_of(machine)]  # noqa: E731
    worker: Callable[[Fault], Fault] = lambda fault: partial(with_a_job, machine, api, fault)  # noqa: E731
    faults: list[tuple[str, float, Fault]] = [
        ("disk full", 10, lambda: full_disk(machine)),
        ("database locked for 30 s", 30, lambda: locked_database(machine)),
        ("storage gone for 60 s", 60, lambda: no_storage(machine)),
        ("storage stopped for 20 s", 20, lambda: stopped(machine, lambda: storages(machine))),
        ("daemon out of memory", 0, lambda: starved(machine)),
        ("daemon killed", 0, lambda: killed(machine, daemon)),
        ("daemon stopped for 20 s", 20, lambda: stopped(machine, daemon)),
        ("agent out of memory", 4, lambda: greedy_agent(machine, api)),
        ("agents stopped for 20 s", 20, lambda: stopped(machine, lambda: demo_agents(machine))),
        ("worker killed", 4, worker(lambda: killed(machine, lambda: workers(machine)))),
        ("worker stopped for 20 s", 20, worker(lambda: stopped(machine, lambda: workers(machine)))),
        ("daemon-reload x 100", 0, lambda: restless_systemd(machine, "daemon-reload")),
        ("daemon-reexec x 100", 0, lambda: restless_systemd(machine, "daemon-reexec")),
    ]
    agents = demo_agents(machine)
    async with trio.open_nursery() as nursery:
        for watcher in watchers:
            nursery.start_soon(watcher.run)
        rows = await suffer(host, watchers, "A booted host", faults)
        await heard_all(api, watchers)
        nursery.cancel_scope.cancel()
    assert demo_agents(machine) == agents
    wait_until(lambda: machine.systemctl("is-active", UNIT, check=False).stdout == "active\n", UNIT)
    all_named(rows)


@contextmanager
def an_up(**env: str) -> Iterator[Up]:
    folder = Path(tempfile.mkdtemp(prefix="hs-"))
    try:
        with running(folder, **env) as up:  # type: ignore[arg-type]
            yield up
    finally:
        shutil.rmtree(folder, ignore_errors=True)


async def under(up: Up, title: str, faults: list[tuple[str, float, Fault]]) -> None:
    host = Host(up, lambda: live.holdover(up, "doctor", "--json", "--quick").stdout)
    say = f"lines 1000000 rate {RATE} size 100"
    watchers = [
        Watcher(up.admin_socket, up.new_session(say)["id"], keep_bodies=False)
        for _ in range(SESSIONS)
    ]
    async with trio.open_nursery() as nursery:
        for watcher in watchers:
            nursery.start_soon(watcher.run)
        rows = await suffer(host, watchers, title, faults)
        await heard_all(up, watchers)
        nursery.cancel_scope.cancel()
    assert {up.session(watcher.session)["state"] for watcher in watchers} == {"working"}
    all_named(rows)


FAKETIME = Path("/usr/lib/x86_64-linux-gnu/faketime/libfaketime.so.1")


@pytest.mark.skipif(not FAKETIME.exists(), reason="needs libfaketime (Debian: faketime)")
@needs.needs_weed
async def test_a_clock_that_is_set_by_an_hour_loses_nothing() -> None:
    """That of the daemon, its keepers and agents; storage's stays, so that the two differ as well."""
    with tempfile.TemporaryDirectory() as folder:
        clock = Path(folder) / "clock"
        clock.write_text("+0")

        @contextmanager
        def set_by(seconds: int) -> Iterator[None]:
            clock.write_text(f"{seconds:+d}")
            yield
            sent = live.holdover(up, "file", "put", "/etc/hostname")
            # Storage's clock is not ours while it lasts, and it takes no such signature.
            assert sent.returncode == (7 if seconds else 0), sent.stderr
            assert not seconds or "timedatectl" in sent.stderr

        env = {
            "LD_PRELOAD": str(FAKETIME),
            "FAKETIME_TIMESTAMP_FILE": str(clock),
            "FAKETIME_DONT_FAKE_MONOTONIC": "1",
            "FAKETIME_NO_CACHE": "1",
        }
        with an_up(storage=True, **env) as up:  # type: ignore[arg-type]
            faults: list[tuple[str, float, Fault]] = [
                ("clock one hour on", 0, lambda: set_by(3600)),
                ("clock two hours back", 0, lambda: set_by(-3600)),
                ("clock right again", 0, lambda: set_by(0)),
            ]
            await under(up, "A clock that is set (`holdover up`, libfaketime)", faults)


@pytest.mark.skipif(bool(needs.NO_POSTGRESQL), reason=needs.NO_POSTGRESQL or "")
async def test_postgresql_goes_and_comes_and_nothing_is_lost() -> None:
    server = Postgres({"fsync": "on"})

    @contextmanager
    def gone(mode: str) -> Iterator[None]:
        server.stop(mode)
        yield
        server.start()

    try:
        with an_up(HOLDOVER_CATALOGUE_URL=server.url(server.create())) as up:
            faults: list[tuple[str, float, Fault]] = [
                ("PostgreSQL restarted at once", 0, lambda: gone("fast")),
                ("PostgreSQL away for 20 s", 20, lambda: gone("fast")),
                ("PostgreSQL crashed, away for 20 s", 20, lambda: gone("immediate")),
            ]
            await under(up, "PostgreSQL (`holdover up`)", faults)
    finally:
        server.remove()
