"""Which workers of this host live: each holds the lock of a file of its own while its process does.

As with instances, the kernel lets go of a lock however its holder ends, so that nobody has to guess
from silence, and a worker that was killed is known to be dead within moments.
"""

import contextlib
import fcntl
import os
from pathlib import Path

from holdoverd.ids import new_id
from holdoverd.whole import write_whole

SUFFIX = ".lock"
RELEASE = "release"
"""A file beside the locks: the folder of the release whose workers are wanted. A worker of another
goes when it has finished its job. Without the file, all are welcome."""


class WorkerLock:
    """This process's entry; held until the process ends."""

    def __init__(self, worker: str, fd: int) -> None:
        self.worker = worker
        self._fd = fd

    @classmethod
    def take(cls, folder: Path) -> "WorkerLock":
        """A new worker's name, and its lock."""
        while True:
            worker = new_id("w")
            path = folder / f"{worker}{SUFFIX}"
            fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            fcntl.flock(fd, fcntl.LOCK_EX)
            # Between the two calls it looked like a dead worker's, and may have been cleared away.
            if os.fstat(fd).st_nlink:
                os.write(fd, f"{os.getpid()}\n".encode())
                return cls(worker, fd)
            os.close(fd)

    def close(self, folder: Path) -> None:
        """Leave no trace; for an end in order, with no job in hand."""
        with contextlib.suppress(OSError):
            (folder / f"{self.worker}{SUFFIX}").unlink()
        os.close(self._fd)


def look(folder: Path) -> tuple[set[str], set[str]]:
    """(living, dead): the workers whose lock is held, and those that left theirs behind."""
    living: set[str] = set()
    dead: set[str] = set()
    with contextlib.suppress(FileNotFoundError):
        for name in os.listdir(folder):
            if not name.endswith(SUFFIX):
                continue
            with contextlib.suppress(FileNotFoundError):
                fd = os.open(folder / name, os.O_RDONLY | os.O_CLOEXEC)
                try:
                    # Shared, so that two who look do not take each other for the worker.
                    fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
                    dead.add(name.removesuffix(SUFFIX))
                except BlockingIOError:
                    living.add(name.removesuffix(SUFFIX))
                finally:
                    os.close(fd)
    return living, dead


def watch(folder: Path, worker: str) -> int | None:
    """A descriptor that is readable from the end of a worker's process on (pidfd_open(2)).

    None where there is none to be had: the worker is gone or has only just come, or it is a process
    that we cannot see. Then only looking tells.
    """
    with contextlib.suppress(OSError, ValueError, OverflowError):
        ended = os.pidfd_open(int((folder / f"{worker}{SUFFIX}").read_text()))
        # Held still: so the descriptor is its holder's, and not of a process that got the number since.
        if worker in look(folder)[0]:
            return ended
        os.close(ended)
    return None


def forget(folder: Path, worker: str) -> None:
    """Remove a dead worker's entry, once its jobs have been taken from it."""
    with contextlib.suppress(OSError):
        (folder / f"{worker}{SUFFIX}").unlink()


def release_of(python: str) -> Path:
    """The folder of the release, or environment, whose interpreter this is."""
    return Path(python).parent.parent


def want(folder: Path, release: Path) -> None:
    """Have workers of other releases go once they have finished. Whoever starts workers says so."""
    text = f"{release}\n"
    with contextlib.suppress(OSError):
        if (folder / RELEASE).read_text() == text:
            return
    write_whole(folder / RELEASE, text, mode=0o644)  # written by root, read by workers


def is_wanted(folder: Path, release: str) -> bool:
    """Whether workers of `release` are still wanted; see `RELEASE`."""
    try:
        return (folder / RELEASE).read_text().strip() in ("", release)
    except OSError:
        return True
