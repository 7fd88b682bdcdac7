"""Taking turns to write one SQLite file, between the processes of a host.

SQLite's own lock would be enough for correctness of a transaction, and is still taken; turns add
what it lacks, and both matter in a handover, when two instances write without pause:

* Fairness. A waiting SQLite connection polls up to 100 ms apart, so a busy neighbour that commits
  back to back keeps it out for seconds. Here a process that waits says so, the one that has just
  written rings for it, and stands back until it has its turn before it writes again.
* Checkpoints. They follow a commit outside SQLite's write lock, and two at once can lose committed
  pages in every SQLite up to 3.51.2 (https://sqlite.org/wal.html#walresetbug; Debian 12 has
  3.40). A turn lasts until the checkpoint is over. The turn can go when no supported system
  carries such an SQLite and fairness has another keeper.

Both are advisory `flock`s on files beside the database, never on the database itself: closing any
descriptor of it would drop the POSIX locks that SQLite holds in the same process. The kernel
releases them however the holder dies. The bell is a FIFO and only saves time: whoever waits looks
now and again by itself, for a holder can die before it rings, or be of a release that does not.
"""

import contextlib
import errno
import fcntl
import os
import select
import stat
import time
from collections.abc import Generator
from pathlib import Path

from holdoverd.errors import CatalogueError

_POLL_S = 0.002
_LOOK_S = 0.0005
# Several polls long, so that whoever waits gets in, on a machine where it has to wait for a
# processor too. It is over at once when that one has its turn.
_STAND_BACK_S = 0.01


class FileTurn:
    """The right to write the database at `path`. Not reentrant; threads of a process also queue."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._files: tuple[int, int, int | None] | None = None  # (turn, waiting, bell)
        self._ended_at = -_STAND_BACK_S  # when our last turn ended, by the monotonic clock

    @contextlib.contextmanager
    def held(self, timeout_s: float) -> Generator[None, None, None]:
        """Hold the turn for the block.

        Blocks the thread for up to `timeout_s`, then raises CatalogueError. Each `FileTurn` is
        for one thread at a time; two of them exclude each other, in one process or in several.
        """
        turn, waiting, bell = self._open()
        self._stand_back(waiting)
        if not _try_lock(turn) and not self._wait(turn, waiting, bell, timeout_s):
            raise CatalogueError(
                f"The catalogue {self._path} is being written by another instance that did not "
                f"finish within {timeout_s:g} s, perhaps because it is stopped. Find it with "
                f"`fuser {self._path}-turn`, let it continue or end it, then try again."
            )
        try:
            yield
        finally:
            fcntl.flock(turn, fcntl.LOCK_UN)
            self._ended_at = time.monotonic()
            # After the lock is free: whoever says only now that it waits, looks once more.
            if bell is not None and _somebody_waits(waiting):
                _ring(bell)

    def close(self) -> None:
        """Close the lock files; they stay on disk, because removing one would split the queue."""
        if self._files is not None:
            for descriptor in self._files:
                if descriptor is not None:
                    os.close(descriptor)
            self._files = None

    def _stand_back(self, waiting: int) -> None:
        """Leave somebody who waits a pause since our last turn, in which it can take its own.

        Not at the end of that turn: whoever waits for its outcome need not wait for this as well.
        """
        while (left_s := self._ended_at + _STAND_BACK_S - time.monotonic()) > 0:
            if not _somebody_waits(waiting):
                return
            time.sleep(min(left_s, _LOOK_S))

    def _wait(self, turn: int, waiting: int, bell: int | None, timeout_s: float) -> bool:
        deadline = time.monotonic() + timeout_s
        said = False
        try:
            while not (got := _try_lock(turn)) and (now := time.monotonic()) < deadline:
                if not said:
                    # Never a blocking lock: somebody stopped in the middle of a probe would hold
                    # us. Said, it looks once more, and only then waits to be rung for.
                    said = _try_lock(waiting, fcntl.LOCK_SH)
                    if not said:
                        time.sleep(_LOOK_S)
                    continue
                _wait_rung(bell, min(_POLL_S, deadline - now))
            return got
        finally:
            fcntl.flock(waiting, fcntl.LOCK_UN)

    def _open(self) -> tuple[int, int, int | None]:
        if self._files is None:
            turn = self._open_one("turn")
            try:
                waiting = self._open_one("wait")
            except CatalogueError:
                os.close(turn)
                raise
            self._files = (turn, waiting, _open_bell(bell_of(self._path)))
        return self._files

    def _open_one(self, suffix: str) -> int:
        path = f"{self._path}-{suffix}"
        try:
            return os.open(path, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise CatalogueError(
                f"The catalogue's lock file {path} cannot be opened: {error.strerror}. Check that "
                "its folder exists, has room, and that the daemon's user may write there."
            ) from error


def _try_lock(descriptor: int, kind: int = fcntl.LOCK_EX) -> bool:
    try:
        fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno == errno.EWOULDBLOCK:
            return False
        raise
    return True


def _somebody_waits(waiting: int) -> bool:
    """Those who wait share a lock on that file: failing to get it alone = somebody waits."""
    if _try_lock(waiting):
        fcntl.flock(waiting, fcntl.LOCK_UN)
        return False
    return True


def bell_of(database: Path) -> Path:
    """Not named as SQLite's own files are: whoever copies ``catalogue.db*`` would read it, for ever."""
    return database.with_name(f".{database.name}-bell")


def _open_bell(path: Path) -> int | None:
    """None where there can be none: those who wait poll then."""
    with contextlib.suppress(OSError):
        with contextlib.suppress(FileExistsError):
            os.mkfifo(path, 0o600)
        # For both: one end alone would be told that the other is missing.
        bell = os.open(path, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOFOLLOW)
        if stat.S_ISFIFO(os.fstat(bell).st_mode):
            return bell
        os.close(bell)
    return None


def _ring(bell: int) -> None:
    with contextlib.suppress(BlockingIOError):  # rung often enough to be heard
        os.write(bell, b"!")


def _wait_rung(bell: int | None, timeout_s: float) -> None:
    """Wait until somebody rings, for `timeout_s` at most; rings that nobody waited for count too."""
    if bell is None:
        time.sleep(timeout_s)
        return
    poll = select.poll()
    poll.register(bell, select.POLLIN)
    if poll.poll(max(1, timeout_s * 1000)):
        with contextlib.suppress(BlockingIOError):  # another who waits has heard it
            os.read(bell, 4096)
