"""Many deploys under sessions and short connections on a booted host: nothing may grow.

HOLDOVER_SOAK_DEPLOYS (200), HOLDOVER_SOAK_SESSIONS (100) and HOLDOVER_SOAK_CONNECTIONS (10,000) make it
another run, HOLDOVER_SOAK_MINUTES (no bound) ends it after the deploy that is under way then; the
figures go to flat.md beside this file. After each deploy, when the new instance serves
alone, its descriptors, threads and memory are looked at, and what the host keeps of Holdover: units
that systemd has loaded, unit files, entries of the runtime and state folders, errors in the journal.
Compared are the second quarter of the run and its last; the first is for settling.
"""

from __future__ import annotations

import http.client
import os
import threading
import time
from contextlib import closing
from pathlib import Path
from statistics import mean

import pytest

from tests import needs
from tests.host.machine import Machine
from tests.live.up import Api, wait_until

pytestmark = [
    pytest.mark.soak,
    pytest.mark.skipif(bool(needs.NO_NSPAWN), reason=needs.NO_NSPAWN or ""),
]

DEPLOYS = int(os.environ.get("HOLDOVER_SOAK_DEPLOYS", "200"))
SESSIONS = int(os.environ.get("HOLDOVER_SOAK_SESSIONS", "100"))
CONNECTIONS = int(os.environ.get("HOLDOVER_SOAK_CONNECTIONS", "10000"))
MINUTES = float(os.environ.get("HOLDOVER_SOAK_MINUTES", "inf"))
FLAT = 0.05
ALONE_S = 180.0
RESULTS = Path(__file__).with_name("flat.md")

LOOK = r"""
pid=$(systemctl show --value --property MainPID holdoverd@GENERATION.service)
echo descriptors $(ls /proc/$pid/fd | wc -l)
echo threads $(ls /proc/$pid/task | wc -l)
echo memory_kb $(sed -n 's/^VmRSS:\s*\([0-9]*\).*/\1/p' /proc/$pid/status)
echo units $(systemctl list-units --all --plain --no-legend 'holdover*' | wc -l)
echo unit_files $(ls /etc/systemd/system | grep -c holdover)
echo runtime_entries $(find /run/holdover | wc -l)
echo state_entries $(find /var/lib/holdover | wc -l)
echo journal_errors $(journalctl --quiet --no-pager --output=cat -p err -u 'holdover*' | wc -l)
echo system_descriptors $(cut -f1 /proc/sys/fs/file-nr)
"""
# Of the whole machine, which is not ours alone: told, and not judged.
TOLD = ("system_descriptors",)


def knock(machine: Machine) -> None:
    with closing(http.client.HTTPConnection("127.0.0.1", 8780, timeout=60)) as connection:
        connection.sock = machine.connect_tcp(8780)
        connection.request("GET", "/healthz")
        assert connection.getresponse().status == 200


def wait_alone(api: Api, generation: int) -> None:
    """Asked from out here and ten times a second: a command that is started for each look would cost
    as much as the deploy that it waits for."""
    pause = threading.Event()

    def alone() -> bool:
        pause.wait(0.1)
        listed = api.call("GET", "/v1/admin/instances")["items"]
        return [(one["generation"], one["state"]) for one in listed] == [(generation, "serving")]

    wait_until(alone, f"generation {generation} serves alone", ALONE_S)


def look(machine: Machine, generation: int) -> dict[str, int]:
    said = machine.run(["sh", "-c", LOOK.replace("GENERATION", str(generation))]).stdout
    return {name: int(value) for name, value in (line.split() for line in said.splitlines())}


def is_flat(before: float, after: float) -> bool:
    """Within 5 %, or within one of what is counted in ones."""
    return abs(after - before) <= max(FLAT * before, 1.0)


def test_nothing_grows(machine: Machine) -> None:
    # What is looked for is growth: a slow start on a busy machine is none.
    settings = '[deploy]\nbake_s = 0\nready_s = 60\n[drain]\nmode = "migrate"\n'
    machine.write("/etc/holdover/holdover.d/soak.toml", settings)
    machine.systemctl("restart", "holdoverd@1.service")
    say = f"lines {DEPLOYS * 600} rate 1 size 100"
    api = Api(machine.path("/run/holdover/admin.sock"))
    wait_until(api.healthy, "it serves again")
    for _ in range(SESSIONS):
        api.new_session(say)
    agents = machine.run(["pgrep", "-f", "holdoverd.demo"]).stdout.split()
    samples: list[dict[str, int]] = []
    began = time.monotonic()
    for generation in range(2, DEPLOYS + 2):
        for _ in range(CONNECTIONS // DEPLOYS):
            knock(machine)
        machine.run(["holdover", "deploy"], timeout_s=ALONE_S)
        wait_alone(api, generation)
        samples.append(look(machine, generation))
        if time.monotonic() - began > MINUTES * 60:
            break
    took = time.monotonic() - began
    listed = api.call("GET", f"/v1/sessions?limit={SESSIONS + 1}")["items"]
    assert machine.run(["pgrep", "-f", "holdoverd.demo"]).stdout.split() == agents
    quarter = max(len(samples) // 4, 1)
    second, last = samples[quarter : 2 * quarter], samples[-quarter:]
    rows = [
        (name, mean(s[name] for s in second), mean(s[name] for s in last)) for name in samples[0]
    ]
    table = "".join(
        f"| {name.replace('_', ' ')} | {before:.1f} | {after:.1f} | {after - before:+.1f} |\n"
        for name, before, after in rows
    )
    RESULTS.write_text(
        "# What grows\n\nWritten by `make soak` (tests/soak/test_flat.py).\n\n"
        f"{len(samples)} deploys with {SESSIONS} sessions, whose agents all worked on, and "
        f"{CONNECTIONS // DEPLOYS * len(samples):,} short connections in {took:.0f} s, on {os.cpu_count()} cores. Means of the "
        "second quarter and of the last, of the instance that serves and of the host.\n\n"
        f"| what | second quarter | last quarter | change |\n|---|---:|---:|---:|\n{table}"
    )
    assert [one["state"] for one in listed] == ["working"] * SESSIONS
    grown = [row for row in rows if row[0] not in TOLD and not is_flat(*row[1:])]
    assert grown == []
