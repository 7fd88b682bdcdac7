"""Lines per second from a spool to a viewer, Holdover beside a bare relay of the same lines: a
trio-websocket server that reads them from a file and sends them, as many in each frame as Holdover
has just sent, without understanding, numbering or storing them. Each arm is two processes, the
server and the measuring client; both run the same client, over TCP on loopback, by turns.

Holdover's arm is the real thing: `holdover up`, its daemon, a keeper, an agent that says 40,000
lines of 1 KiB. A viewer with `after=0` is live; then the daemon is stopped (SIGSTOP) while the
agent says everything into the spool, and goes on (SIGCONT): so what is timed is spool to viewer
alone, with neither agent nor keeper beside it on the same cores, and frames are as full as they
get, which suits the relay best. Time runs from the moment when the first frame of lines is whole at
the viewer to the last; the lines of the first do not count. Afterwards the client checks every
line's number and hash.

The row with the bound has a trio-websocket client, as a Python program would: what a viewer gets.
There the relay waits for its client. So a second row has a client of a bare socket, which only
finds where frames end and keeps nobody waiting: the two servers without that mercy. A run whose
viewer was closed 4008 (on a busy machine it fell 8 MiB behind) is no stream any more and is
repeated; results.json counts these.
"""

import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

from tests.bench.lines import LINE_BYTES, write_lines
from tests.bench.rows import Row
from tests.bench.viewer import FELL_BEHIND
from tests.live.up import Up, running, wait_until

ROOT = Path(__file__).resolve().parents[2]
AGENT = Path(__file__).with_name("agent.py")
LINES = 40_000
RUNS = 7
AT_LEAST = 0.5
_TICK_S = 1 / os.sysconf("SC_CLK_TCK")


class FellBehindError(Exception):
    """The viewer was closed 4008."""


@dataclass(frozen=True)
class Flow:
    """One measurement. `cpu_us_per_line` is the server's own, all its threads."""

    lines: int
    frames: int
    lines_per_frame: float
    seconds: float
    lines_per_s: float
    cpu_us_per_line: float


class _Viewer:
    """The client process; `wait_live` before anything is sent, `flow` after."""

    def __init__(self, client: str, port: int, path: str, token: str | None) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.bench.viewer", client, str(port), path, token or ""],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            text=True,
        )

    def wait_live(self) -> None:
        assert self._process.stdout is not None
        assert self._process.stdout.readline() == "live\n", "the viewer did not become live"

    def report(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        with self._process.stdout as stdout:
            line = stdout.readline()
        status = self._process.wait()
        if status == FELL_BEHIND:
            raise FellBehindError
        assert status == 0, "the viewer failed; see above"
        report: dict[str, Any] = json.loads(line)
        return report

    def kill(self) -> None:
        if self._process.poll() is None:
            self._process.kill()
            self._process.wait()


def _cpu_s(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) * _TICK_S


def _flow(report: dict[str, Any], cpu_s: float) -> Flow:
    counts, times = report["counts"], report["times"]
    seconds = times[-1] - times[0]
    return Flow(
        lines=sum(counts),
        frames=len(counts),
        lines_per_frame=round(sum(counts) / len(counts), 1),
        seconds=round(seconds, 4),
        lines_per_s=round(sum(counts[1:]) / seconds, 1),
        cpu_us_per_line=round(cpu_s / sum(counts) * 1e6, 2),
    )


def _holdover(up: Up, token: str, client: str, lines: Path) -> tuple[Flow, list[int]]:
    gate = up.folder / "gate"
    os.mkfifo(gate)
    session = up.call("POST", "/v1/sessions", {"agent": "bench"})["id"]
    viewer = _Viewer(client, up.port, f"/v1/sessions/{session}/stream?after=0", token)
    try:
        viewer.wait_live()
        up.prompt(session, f"{lines}\n{gate}")
        wait_until(lambda: not up.session(session)["queued"], "the agent has the prompt")
        spool = max((up.state / "spool").iterdir(), key=lambda path: path.stat().st_mtime)
        daemon = up.daemon_pid()
        size = spool.stat().st_size + lines.stat().st_size
        os.kill(daemon, signal.SIGSTOP)
        try:
            with gate.open("wb"):
                wait_until(lambda: spool.stat().st_size >= size, "the spool holds all lines")
            before = _cpu_s(daemon)
        finally:
            os.kill(daemon, signal.SIGCONT)
        report = viewer.report()
        cpu_s = _cpu_s(daemon) - before
    finally:
        viewer.kill()
        gate.unlink()
    up.call("DELETE", f"/v1/sessions/{session}")
    up.wait_state(session, "ended")
    wait_until(lambda: not spool.exists(), "the launch is over")
    return _flow(report, cpu_s), report["counts"]


def _relay(folder: Path, client: str, lines: Path, counts: list[int]) -> Flow:
    frames = folder / "counts.json"
    frames.write_text(json.dumps(counts))
    relay = subprocess.Popen(
        [sys.executable, "-m", "tests.bench.relay", str(lines), str(frames)],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert relay.stdin is not None
    assert relay.stdout is not None
    viewer: _Viewer | None = None
    try:
        viewer = _Viewer(client, int(relay.stdout.readline()), "/", None)
        viewer.wait_live()
        before = _cpu_s(relay.pid)
        relay.stdin.write("go\n")
        relay.stdin.flush()
        report = viewer.report()
        cpu_s = _cpu_s(relay.pid) - before
    finally:
        if viewer is not None:
            viewer.kill()
        relay.kill()
        relay.wait()
        relay.stdin.close()
        relay.stdout.close()
    assert report["counts"] == counts, "the relay has to send Holdover's frames"
    return _flow(report, cpu_s)


def _measure(folder: Path, client: str) -> tuple[list[Flow], list[Flow], int]:
    """(Holdover's runs, the relay's, how many were repeated)."""
    lines = folder / "lines"
    write_lines(lines, LINES)
    (folder / "config").mkdir()
    command = json.dumps([sys.executable, "-I", "-S", str(AGENT)])
    (folder / "config" / "holdover.toml").write_text(f"[agents.bench]\ncommand = {command}\n")
    ours: list[Flow] = []
    theirs: list[Flow] = []
    repeated = 0
    with running(folder) as up:
        token = up.call("POST", "/v1/tokens", {"name": "bench", "scopes": ["read"]})["token"]
        while len(ours) <= RUNS:
            try:
                flow, counts = _holdover(up, token, client, lines)
            except FellBehindError:
                repeated += 1
                if repeated > RUNS:
                    raise
                continue
            ours.append(flow)
            theirs.append(_relay(folder, client, lines, counts))
    # The first of each warms caches.
    return ours[1:], theirs[1:], repeated


def measure() -> Iterator[Row]:
    for client, against, bound in (
        ("trio", "bare relay, trio-websocket client", AT_LEAST),
        ("plain", "bare relay, bare socket as client", None),
    ):
        with tempfile.TemporaryDirectory(prefix="hb-") as folder:
            ours, theirs, repeated = _measure(Path(folder), client)
        frames = median(flow.lines_per_frame for flow in ours)
        yield Row(
            f"spool to viewer, {frames:.0f} lines a frame",
            "lines/s",
            [flow.lines_per_s for flow in ours],
            against,
            [flow.lines_per_s for flow in theirs],
            at_least=bound,
            details={
                "line_bytes": LINE_BYTES,
                "repeated_runs": repeated,
                "flows": [asdict(flow) for flow in ours],
                "flows_against": [asdict(flow) for flow in theirs],
            },
        )
        yield Row(
            "the same, CPU of the server a line",
            "µs",
            [flow.cpu_us_per_line for flow in ours],
            against,
            [flow.cpu_us_per_line for flow in theirs],
        )
