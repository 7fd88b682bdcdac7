"""Cutting the power under a running workload, as often as wanted, and looking at what is left.

The workload writes into a folder on an ext4 file system of its own, on a loop device over an image
file. What has not been synced is in the page cache of that file system alone; the image holds what
the disk would. So a power cut is a copy of the image: stop the workload's processes (its calls
into the kernel end first), note what it has acknowledged so far, copy, let it go on. The copy is
mounted elsewhere, which replays the journal as after a reboot, and handed to the workload's check.

What it does not show: blocks that the kernel wrote out and a disk's own cache lost or reordered,
and a cut in the middle of a single fsync. ``commit=600`` keeps ext4 from syncing by itself, so
nothing is there that was not asked for.

`Workload` is the part to replace: anything that writes into a folder and says on its stdout, one
line each, what it has promised to keep.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import random
import selectors
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

ROOT = Path(__file__).resolve().parents[2]
# A stop takes as long as the slowest call into the kernel, an fsync on a loaded machine.
STOP_TIMEOUT_S = 60.0
ACK_TIMEOUT_S = 60.0
UNMOUNT_TIMEOUT_S = 30.0
IMAGE_MIB = 128
# Where to keep the image of the last point, as it was before it was mounted; for a post-mortem.
KEEP = os.environ.get("HOLDOVER_SOAK_KEEP")


class Workload(Protocol):
    """What is under test. One object serves every round; each round has an empty folder."""

    def command(self, folder: Path) -> Sequence[str]:
        """The argument vector that works in `folder` until it is killed.

        It may have children; all are stopped together. Each line on its stdout acknowledges
        something; it must be written in one piece after that has become durable.
        """

    def check(self, folder: Path, acknowledged: Sequence[str]) -> Counter[str]:
        """Look at `folder` after the reboot; raise AssertionError for anything lost or torn.

        `acknowledged` are the lines since the beginning of the round. Returns figures to add up.
        May write into the folder, and should, to show that work goes on; must close what it opens.
        """


@dataclass
class Report:
    """What came of it. `figures` are the workload's own, summed over all points."""

    points: int = 0
    rounds: int = 0
    acknowledged: int = 0
    seconds: float = 0.0
    figures: Counter[str] = field(default_factory=Counter)


def cut_power(
    workload: Workload, *, points: int, points_per_round: int = 25, seed: int = 1
) -> Report:
    """Cut the power `points` times and check what is left each time; the sum of it all.

    A round begins with an empty folder, and its first cut falls early, so that creation is cut
    too. Needs root. Leaves nothing mounted, attached or running, whatever happens.
    """
    moments = random.Random(seed)
    report = Report()
    began = time.monotonic()
    # In memory where there is room: then an fsync is quick, and far more commits fit in between.
    parent = "/dev/shm" if shutil.disk_usage("/dev/shm").free > 8 * IMAGE_MIB * 2**20 else None
    with tempfile.TemporaryDirectory(prefix="power-cut-", dir=parent) as scratch:
        while report.points < points:
            todo = min(points_per_round, points - report.points)
            _round(workload, Path(scratch), todo, moments, report)
            report.rounds += 1
    report.seconds = time.monotonic() - began
    return report


def _round(
    workload: Workload, scratch: Path, points: int, moments: random.Random, report: Report
) -> None:
    image, copy = scratch / "image", scratch / "copy"
    _make_image(image)
    with _mounted(image, scratch / "live") as live, _running(workload.command(live)) as running:
        for point in range(points):
            if point == 0:
                # Somewhere between the start of its interpreter and the first acknowledgements.
                running.read_until(0, for_s=moments.uniform(0.1, 1.0))
            else:
                running.drain()  # what it did while the last point was looked at
                running.read_until(len(running.lines) + moments.randint(1, 25))
                # Not always right behind an acknowledgement: also in between two.
                running.read_until(0, for_s=moments.choice([0, 0, moments.uniform(0, 0.004)]))
            with running.stopped():
                promised = list(running.lines)
                _copy(image, copy)
            if KEEP is not None:
                _run("cp", "--sparse=always", str(copy), str(KEEP))
            try:
                with _mounted(copy, scratch / "left") as left:
                    report.figures += workload.check(left, promised)
            except AssertionError as error:
                error.add_note(f"at point {report.points + 1}, {len(promised)} acknowledgements")
                raise
            report.points += 1
        report.acknowledged += len(running.lines)
    image.unlink()
    copy.unlink()


# --- the disk ---


def _run(*command: str) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


def _make_image(image: Path) -> None:
    with image.open("wb") as file:
        file.truncate(IMAGE_MIB * 2**20)
    # Nothing left for the kernel to initialise later, behind the back of a copy.
    lazy = "lazy_itable_init=0,lazy_journal_init=0"
    _run("mkfs.ext4", "-q", "-F", "-J", "size=8", "-E", lazy, str(image))


@contextlib.contextmanager
def _mounted(image: Path, at: Path) -> Iterator[Path]:
    at.mkdir(exist_ok=True)
    device = _run("losetup", "--find", "--show", str(image))
    try:
        _run("mount", "-t", "ext4", "-o", "commit=600", device, str(at))
        try:
            yield at
        finally:
            _unmount(at)
    finally:
        _run("losetup", "--detach", device)


def _unmount(at: Path) -> None:
    # A killed process of many threads is a zombie before the last of them has closed its files.
    deadline = time.monotonic() + UNMOUNT_TIMEOUT_S
    while True:
        try:
            _run("umount", str(at))
            return
        except subprocess.CalledProcessError:
            if time.monotonic() > deadline:
                _run("umount", "--lazy", str(at))  # something is open still: a defect, but not left
                raise
        time.sleep(0.05)


def _copy(image: Path, copy: Path) -> None:
    """Copy the image as of one moment: the kernel may still write out a page while we read."""
    # A file of its own each time. Whoever copies our mount namespace (a container that starts)
    # keeps the last copy mounted behind our back, and its late unmount writes a superblock.
    copy.unlink(missing_ok=True)
    for _ in range(20):
        _run("cp", "--sparse=always", str(image), str(copy))
        if _same(image, copy):
            return
    raise RuntimeError(f"{image} does not rest although its writers are stopped")


def _same(one: Path, other: Path) -> bool:
    return subprocess.run(["cmp", "-s", str(one), str(other)], check=False).returncode == 0


# --- the processes ---


class _Running:
    """A workload's processes, and every whole line it has written so far."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        assert process.stdout is not None
        self._process = process
        self._out = process.stdout.fileno()
        os.set_blocking(self._out, False)
        # The smallest there is: while nobody reads, the workload soon waits, and does not fill
        # its disk.
        fcntl.fcntl(self._out, fcntl.F_SETPIPE_SZ, 4096)
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._out, selectors.EVENT_READ)
        self._rest = b""
        self.lines: list[str] = []

    def read_until(self, count: int, *, for_s: float | None = None) -> None:
        """Read until there are `count` lines in all, or, with `for_s`, for that time."""
        deadline = time.monotonic() + (ACK_TIMEOUT_S if for_s is None else for_s)
        while for_s is not None or len(self.lines) < count:
            remaining = deadline - time.monotonic()
            if remaining <= 0:
                if for_s is not None:
                    return
                raise RuntimeError(f"the workload has acknowledged nothing for {ACK_TIMEOUT_S} s")
            if self._selector.select(remaining):
                self.drain()
            if self._process.poll() is not None:
                raise RuntimeError(f"the workload ended by itself: {self._process.returncode}")

    def drain(self) -> None:
        """Take all that is in the pipe now."""
        with contextlib.suppress(BlockingIOError):
            while chunk := os.read(self._out, 65536):
                *lines, self._rest = (self._rest + chunk).split(b"\n")
                self.lines += [line.decode() for line in lines]

    @contextlib.contextmanager
    def stopped(self) -> Iterator[None]:
        """No thread of the workload runs inside the block, and `lines` has all it wrote before."""
        stopped: set[int] = set()
        try:
            while new := _tree(self._process.pid) - stopped:  # one may be forked meanwhile
                for pid in new:
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(pid, signal.SIGSTOP)
                stopped |= new
                _wait_stopped(new)
            self.drain()
            yield
        finally:
            for pid in stopped:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGCONT)

    def close(self) -> None:
        # Stopped first: nobody starts another for one that has just been killed.
        with self.stopped():
            pids = _tree(self._process.pid)
            for pid in pids:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
        self._process.wait(STOP_TIMEOUT_S)
        deadline = time.monotonic() + STOP_TIMEOUT_S
        while any(
            (stat := _stat(Path(f"/proc/{pid}/stat"))) and stat[0] not in "ZX" for pid in pids
        ):
            if time.monotonic() > deadline:
                raise RuntimeError(f"of the workload's processes {pids} some do not die")
            time.sleep(0.01)
        self._selector.close()
        assert self._process.stdout is not None
        self._process.stdout.close()


@contextlib.contextmanager
def _running(command: Sequence[str]) -> Iterator[_Running]:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    process = subprocess.Popen(
        command, cwd=ROOT, env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE
    )
    running = _Running(process)
    try:
        yield running
    finally:
        running.close()


def _tree(root: int) -> set[int]:
    """A process and all that descend from it."""
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal() and (stat := _stat(entry / "stat")):
            children.setdefault(int(stat[1]), []).append(int(entry.name))
    found, todo = set(), [root]
    while todo:
        pid = todo.pop()
        found.add(pid)
        todo += children.get(pid, [])
    return found


def _stat(path: Path) -> list[str]:
    """The fields after the name: state, parent, …; empty when the process is gone."""
    try:
        return path.read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return []


def _wait_stopped(pids: set[int]) -> None:
    """Wait until every thread is stopped: each finishes its call into the kernel first."""
    deadline = time.monotonic() + STOP_TIMEOUT_S
    for pid in pids:
        while any((stat := _stat(task / "stat")) and stat[0] not in "TtZX" for task in _tasks(pid)):
            if time.monotonic() > deadline:
                raise RuntimeError(f"process {pid} does not stop")
            time.sleep(0.0005)  # there is nothing to wait on for another's threads


def _tasks(pid: int) -> list[Path]:
    try:
        return list(Path(f"/proc/{pid}/task").iterdir())
    except FileNotFoundError:
        return []
