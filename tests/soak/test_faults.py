"""Faults one at a time under load on a booted host: nothing is lost, and all recovers by itself.

HOLDOVER_SOAK_SCALE (1) shortens the faults' times. The figures go to faults.md beside this file: what
the doctor and the metrics said meanwhile, and how long it took until every viewer heard of new lines
again. Not here: a clock that is set (containers share the kernel's), and PostgreSQL (the tests of
the catalogue restart it).
"""

from __future__ import annotations

import json
import os
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import pytest
import trio

from tests import needs
from tests.host.machine import SOURCE, Machine
from tests.live.up import Api, wait_until
from tests.live.watcher import Watcher

pytestmark = [
    pytest.mark.soak,
    pytest.mark.skipif(bool(needs.NO_NSPAWN), reason=needs.NO_NSPAWN or ""),
]

SCALE = float(os.environ.get("HOLDOVER_SOAK_SCALE", "1"))
SESSIONS = 8
RATE = 10
RECOVERED_S = 180.0
UNIT = "holdoverd@1.service"
RESULTS = Path(__file__).with_name("faults.md")
STATE_BYTES = 96 << 20

HOLD_LOCK = """
import sqlite3, sys, time
cx = sqlite3.connect("/var/lib/holdover/catalogue.db", timeout=20, isolation_level=None)
cx.execute("BEGIN IMMEDIATE")
time.sleep(float(sys.argv[1]))
cx.execute("ROLLBACK")
"""


@dataclass
class Row:
    fault: str
    doctor: set[str] = field(default_factory=set)
    metrics: set[str] = field(default_factory=set)
    recovered_s: float = 0.0


@pytest.fixture
def machine() -> Iterator[Machine]:
    subprocess.run([SOURCE / "packaging/wheelhouse"], check=True, timeout=900)
    with Machine.boot() as machine:
        # A disk of its own, small enough to be filled.
        machine.run(["mkdir", "-p", "/var/lib/holdover"])
        options = f"size={STATE_BYTES},mode=0700"
        machine.run(["mount", "-t", "tmpfs", "-o", options, "state", "/var/lib/holdover"])
        machine.put_source()
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
def restless_systemd(machine: Machine, verb: str) -> Iterator[None]:
    for _ in range(max(int(100 * SCALE), 2)):
        machine.systemctl(verb)
    yield


def demo_agents(machine: Machine) -> list[str]:
    return machine.run(["pgrep", "-f", "m holdoverd.demo"]).stdout.split()


def say_what_is_wrong(machine: Machine, api: Api, row: Row) -> None:
    done = machine.run(["holdover", "doctor", "--json", "--quick"], check=False, timeout_s=120)
    for line in done.stdout.splitlines():
        finding = json.loads(line)
        if finding["level"] == "failed":
            row.doctor.add(finding["area"])
    for name, wrong in (
        ("holdover_sessions_stuck", lambda value: value > 0),
        ("holdover_catalogue_failed_writes_total", lambda value: value > 0),
        ("holdover_catalogue_queue", lambda value: value > 0),
        ("holdover_state_free_bytes", lambda value: value < 1 << 20),
        ("holdover_agent_exits_total", lambda value: value > 0),
    ):
        for line in metrics(api).splitlines():
            if line.startswith(name) and wrong(float(line.rpartition(" ")[2])):
                row.metrics.add(name)


def metrics(api: Api) -> str:
    done = subprocess.run(
        [
            "curl",
            "--silent",
            "--max-time",
            "5",
            "--unix-socket",
            api.admin_socket,
            "http://x/metrics",
        ],
        capture_output=True,
        text=True,
        check=False,
    )
    return done.stdout


async def test_each_fault_passes_and_nothing_is_lost(machine: Machine) -> None:
    api = Api(machine.path("/run/holdover/admin.sock"))
    token = api.call("POST", "/v1/tokens", {"name": "w", "scopes": ["read"]})["token"]
    say = f"lines 1000000 rate {RATE} size 100"
    sessions = [api.new_session(say, agent="demo")["id"] for _ in range(SESSIONS)]
    watchers = [
        Watcher(
            Path("/nowhere"), session, dial=partial(machine.connect_tcp, 8780), token=token,
            keep_bodies=False,
        )
        for session in sessions
    ]  # fmt: skip
    daemon = lambda: [pid_of(machine)]  # noqa: E731
    faults: list[tuple[str, float, Callable[[], object]]] = [
        ("disk full", 10, lambda: full_disk(machine)),
        ("database locked for 30 s", 30, lambda: locked_database(machine)),
        ("storage gone for 60 s", 60, lambda: no_storage(machine)),
        ("daemon killed", 0, lambda: killed(machine, daemon)),
        ("daemon stopped for 20 s", 20, lambda: stopped(machine, daemon)),
        ("agents stopped for 20 s", 20, lambda: stopped(machine, lambda: demo_agents(machine))),
        ("daemon-reload x 100", 0, lambda: restless_systemd(machine, "daemon-reload")),
        ("daemon-reexec x 100", 0, lambda: restless_systemd(machine, "daemon-reexec")),
    ]
    rows: list[Row] = []
    agents = demo_agents(machine)
    async with trio.open_nursery() as nursery:
        for watcher in watchers:
            nursery.start_soon(watcher.run)
        for name, seconds, fault in faults:
            row = Row(name)

            def suffer(row: Row = row, seconds: float = seconds, fault: object = fault) -> None:
                with fault():  # type: ignore[operator]
                    pause(seconds / 2)
                    say_what_is_wrong(machine, api, row)
                    pause(seconds / 2)

            await trio.to_thread.run_sync(suffer)
            over = trio.current_time()
            heard = [len(watcher.seqs) for watcher in watchers]
            with trio.fail_after(RECOVERED_S):
                for watcher, before in zip(watchers, heard, strict=True):
                    await watcher.wait(lambda one, before=before: len(one.seqs) > before + RATE)
            row.recovered_s = trio.current_time() - over
            rows.append(row)
        with trio.fail_after(RECOVERED_S):
            for session, watcher in zip(sessions, watchers, strict=True):
                shown = await trio.to_thread.run_sync(api.call, "GET", f"/v1/sessions/{session}")
                await watcher.wait(lambda one, n=shown["last_seq"]: one.seqs[-1] >= n)
        nursery.cancel_scope.cancel()
    table = "".join(
        f"| {row.fault} | {', '.join(sorted(row.doctor)) or '-'} | "
        f"{', '.join(sorted(row.metrics)) or '-'} | {row.recovered_s:.1f} s |\n"
        for row in rows
    )
    lines = sum(len(watcher.seqs) for watcher in watchers)
    RESULTS.write_text(
        "# Faults\n\nWritten by `make soak` (tests/soak/test_faults.py).\n\n"
        f"{SESSIONS} sessions of {RATE} lines a second, each watched; faults one after the other, their "
        f"times multiplied by {SCALE:g}. {lines:,} lines received, none missing or repeated, no "
        "agent started anew. The last column: from the end of the fault until every viewer had a "
        f"second's lines more.\n\n| fault | doctor | metrics | recovered |\n|---|---|---|---:|\n{table}"
    )
    for watcher in watchers:
        assert watcher.seqs == list(range(1, len(watcher.seqs) + 1))
    assert demo_agents(machine) == agents
    wait_until(lambda: machine.systemctl("is-active", UNIT, check=False).stdout == "active\n", UNIT)
