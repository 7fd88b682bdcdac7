"""Taking turns to write one SQLite file, between the processes of a host.

SQLite's own lock would be enough for correctness of a transaction, and is still taken; turns add
what it lacks, and both matter in a handover, when two instances write without pause:

* Fairness. A waiting SQLite connection polls up to 100 ms apart, so a busy neighbour that commits
  back to back keeps it out for seconds. Here a process that waits says so, and the one that has
  just written stands back for it before it writes again.
* Checkpoints. They follow a commit outside SQLite's write lock, and two at once can lose committed
  pages in every SQLite up to 3.51.2 (https://sqlite.org/wal.html#walresetbug; Debian 12 has
  3.40). A turn lasts until the checkpoint is over. The turn can go when no supported system
  carries such an SQLite and fairness has another keeper.

Both are advisory `flock`s on files beside the database, never on the database itself: closing any
descriptor of it would drop the POSIX locks that SQLite holds in the same process. The kernel
releases them however the holder dies.
"""

import contextlib
import errno
import fcntl
import os
import time
from collections.abc import Generator
from pathlib import Path

from holdoverd.errors import CatalogueError

_POLL_S = 0.001
# Several polls long, so that whoever waits gets in; about the time of one commit.
_STAND_BACK_S = 0.005


class FileTurn:
    """The right to write the database at `path`. Not reentrant; threads of a process also queue."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._files: tuple[int, int] | None = None  # (turn, waiting)
        self._ended_at = -_STAND_BACK_S  # when our last turn ended, by the monotonic clock

    @contextlib.contextmanager
    def held(self, timeout_s: float) -> Generator[None, None, None]:
        """Hold the turn for the block.

        Blocks the thread for up to `timeout_s`, then raises CatalogueError. Each `FileTurn` is
        for one thread at a time; two of them exclude each other, in one process or in several.
        """
        turn, waiting = self._open()
        self._stand_back(waiting)
        if not _try_lock(turn) and not self._wait(turn, waiting, timeout_s):
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

    def close(self) -> None:
        """Close the lock files; they stay on disk, because removing one would split the queue."""
        if self._files is not None:
            for descriptor in self._files:
                os.close(descriptor)
            self._files = None

    def _stand_back(self, waiting: int) -> None:
        """Leave somebody who waits a pause since our last turn, in which polls of theirs fall.

        Not at the end of that turn: whoever waits for its outcome need not wait for this as well.
        """
        left_s = self._ended_at + _STAND_BACK_S - time.monotonic()
        if left_s <= 0:
            return
        # Those who wait share a lock on the second file: failing to get it alone = somebody waits.
        if _try_lock(waiting):
            fcntl.flock(waiting, fcntl.LOCK_UN)
        else:
            time.sleep(left_s)

    def _wait(self, turn: int, waiting: int, timeout_s: float) -> bool:
        deadline = time.monotonic() + timeout_s
        said = False
        try:
            while not (got := _try_lock(turn)) and time.monotonic() < deadline:
                # Never a blocking lock: somebody stopped in the middle of a probe would hold us.
                said = said or _try_lock(waiting, fcntl.LOCK_SH)
                time.sleep(_POLL_S)
            return got
        finally:
            fcntl.flock(waiting, fcntl.LOCK_UN)

    def _open(self) -> tuple[int, int]:
        if self._files is None:
            turn = self._open_one("turn")
            try:
                self._files = (turn, self._open_one("wait"))
            except CatalogueError:
                os.close(turn)
                raise
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
