"""Spool files: what agents said, one file per launch, written by its keeper, read by the owner.

The keeper appends and never looks back; the owner reads from the committed offset, and gives
ranges back to the disk once they are in the catalogue (where the filesystem can punch holes).
"""

import ctypes
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import inotify_simple
import trio

from holdoverd.agents.stream_json import (
    MAX_LINE_BYTES,
    Frame,
    LineSplitter,
    OversizeLine,
    classify,
)
from holdoverd.catalogue.records import LaunchRow

READ_BYTES = 96 * 1024
"""One read. Few enough that what is made of it stays in the processor's cache, and that no buffer
is mapped, faulted in and unmapped (from 128 KiB on); others get their turn in between."""

AHEAD_BYTES = 1024 * 1024
"""How much is read and understood at most while a commit is under way; so one commit, and one burst
to viewers, takes about this much, and the memory of a session twice as much."""

PUNCH_BYTES = 1024 * 1024
"""Holes are punched in steps of this size: a system call per megabyte, not per line."""

_FALLOC_FL_KEEP_SIZE = 0x01
_FALLOC_FL_PUNCH_HOLE = 0x02
_PAGE = 4096

_libc = ctypes.CDLL(None, use_errno=True)
_libc.fallocate.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64]
_libc.fallocate.restype = ctypes.c_int


class Wake:
    """A bell that remembers one ring: whoever waits next hears what rang before. For one who waits.

    Every viewer has some of these, and a trio.Event with somebody in it takes half a kilobyte more.
    """

    __slots__ = ("_rung", "_waiting")

    def __init__(self) -> None:
        self._rung = False
        self._waiting: trio.lowlevel.Task | None = None

    def ring(self) -> None:
        self._rung = True
        if self._waiting is not None:
            trio.lowlevel.reschedule(self._waiting)
            self._waiting = None

    async def wait_rung(self) -> None:
        if self._rung:
            await trio.lowlevel.checkpoint()
        else:
            assert self._waiting is None, "a bell has one who waits for it"
            self._waiting = trio.lowlevel.current_task()
            await trio.lowlevel.wait_task_rescheduled(self._cancelled)
        self._rung = False

    def _cancelled(self, _raise_cancel: object) -> trio.lowlevel.Abort:
        self._waiting = None
        return trio.lowlevel.Abort.SUCCEEDED


class Spool:
    """One open spool file. Blocking calls on a local file: a read is a copy from the page cache."""

    def __init__(self, path: Path) -> None:
        self.path = path
        # Before the keeper's first byte the file may be missing: an owner died between taking
        # the right to launch and making the file. An empty one stands for it.
        self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        self._punched = 0
        self._can_punch = True

    def size(self) -> int:
        return os.fstat(self._fd).st_size

    def read(self, offset: int, limit: int = READ_BYTES) -> bytes:
        return os.pread(self._fd, limit, offset)

    def give_back(self, upto: int) -> None:
        """Free the disk below `upto`: everything there is durably in the catalogue."""
        if not self._can_punch or upto - self._punched < PUNCH_BYTES:
            return
        end = upto // _PAGE * _PAGE
        mode = _FALLOC_FL_PUNCH_HOLE | _FALLOC_FL_KEEP_SIZE
        if _libc.fallocate(self._fd, mode, self._punched, end - self._punched) == 0:
            self._punched = end
        else:
            # EOPNOTSUPP on some filesystems: the file then shrinks only when it is removed.
            self._can_punch = False

    def close(self) -> None:
        os.close(self._fd)


class SpoolReader:
    """Where reading a launch's spool stands: whole lines out of whatever is there.

    `position`: of the next byte to read; `line_start`: where the next line begins that the owner
    will take, which moves it on; `committed`: the offset in the catalogue.
    """

    def __init__(self, launch: LaunchRow, spool: Spool) -> None:
        self.launch = launch
        self.spool = spool
        self.committed = launch.offset
        self.restart(launch.replay_from)

    @property
    def overflowing(self) -> bool:
        """The line that is being read is longer than any that is kept."""
        return self._splitter.pending > MAX_LINE_BYTES

    @property
    def unread(self) -> bool:
        """There is more to take, as far as that is known without another look."""
        return self.more or bool(self._ahead)

    def restart(self, position: int) -> None:
        self.position = position
        self.line_start = position
        self.more = False
        """The latest read found as much as it asked for."""
        self._splitter = LineSplitter()
        self._ahead: list[tuple[int, Frame | OversizeLine]] = []
        self._ahead_from = position

    def read_frames(self) -> list[tuple[int, Frame | OversizeLine]] | None:
        """What was read ahead, else what the next read completes; None at the file's present end.

        (bytes without the newline, what the line is) of each.
        """
        frames = self.take_ahead() or self._read()
        self.hand_over()
        return frames

    def read_ahead(self) -> bool:
        """Read on for the next `read_frames`. False: there is nothing more to be done ahead.

        Nothing of it has happened yet: neither the session nor the disk is touched.
        """
        if not self.more or self.position - self._ahead_from >= AHEAD_BYTES or self.overflowing:
            return False
        self._ahead += self._read() or ()
        return True

    def take_ahead(self) -> list[tuple[int, Frame | OversizeLine]]:
        """What has been read ahead so far."""
        frames, self._ahead = self._ahead, []
        return frames

    def hand_over(self) -> None:
        """What was taken goes to be stored: what is read from now on is ahead of that."""
        self._ahead_from = self.position

    def _read(self) -> list[tuple[int, Frame | OversizeLine]] | None:
        data = self.spool.read(self.position)
        self.more = len(data) == READ_BYTES
        if not data:
            return None
        self.position += len(data)
        return [
            (len(line), classify(line)) if isinstance(line, bytes) else (line.size, line)
            for line in self._splitter.feed(data)
        ]


class SpoolWatch:
    """Rings a spool's bell when its file grows.

    One inotify watch on the folder serves every spool. Its queue can overflow, and a filesystem
    can fail to tell, so every bell rings each second as well: late by a second, never deaf.
    """

    SWEEP_S = 1.0

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._bells: dict[str, Wake] = {}

    @contextmanager
    def bell(self, name: str) -> Iterator[Wake]:
        """The bell of the file `name` in the folder, rung once to begin with."""
        wake = self._bells[name] = Wake()
        wake.ring()
        try:
            yield wake
        finally:
            if self._bells.get(name) is wake:
                del self._bells[name]

    def ring(self, name: str) -> None:
        if (wake := self._bells.get(name)) is not None:
            wake.ring()

    def ring_all(self) -> None:
        for wake in self._bells.values():
            wake.ring()

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        flags = inotify_simple.flags
        with inotify_simple.INotify(nonblocking=True) as inotify:
            inotify.add_watch(str(self._folder), flags.MODIFY | flags.CLOSE_WRITE)
            task_status.started()
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._sweep)
                while True:
                    await trio.lowlevel.wait_readable(inotify.fileno())
                    for event in inotify.read(timeout=0):
                        if event.mask & flags.Q_OVERFLOW:
                            self.ring_all()
                        else:
                            self.ring(event.name)

    async def _sweep(self) -> None:
        while True:
            await trio.sleep(self.SWEEP_S)
            self.ring_all()
