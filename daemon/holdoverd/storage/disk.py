"""Has the disk below this host's storage hold what storage has taken, before a file is called ready.

SeaweedFS answers once its writes are in the page cache. Its own ``fsync`` (a rule of its filer for a
path) covers the volumes alone: what lies where stands in the filer's index, which nothing syncs, so
that a power cut left files of which storage knew nothing. syncfs(2) of the file system it keeps its
data on covers both, and takes the data of all uploads that end at the same time together.

It is the price of `ready` meaning the same for a file as for a row of the catalogue. A store
elsewhere is asked nothing: what it has answered is its own promise.
"""

import ctypes
import os
from collections.abc import Callable
from pathlib import Path
from urllib.parse import urlsplit

import trio

from holdoverd.errors import StorageUnavailable

HOST_DATA = Path("/var/lib/holdover-storage")
"""Where the unit keeps its data; its user's alone, but anybody may see which disk it is on."""

_libc = ctypes.CDLL(None, use_errno=True)


class Disk:
    """What `settle` waits for. One for a process; for any task of trio's.

    `sync` blocks until all that was written before is on the disk, or raises OSError; `ahead` does
    the same, and keeps from `sync` no failure that it has met.
    """

    def __init__(self, sync: Callable[[], None], ahead: Callable[[], None] | None = None) -> None:
        self._sync = sync
        self._ahead = ahead
        self._is_ahead = False
        self._turn = trio.Lock()
        self._begun = 0
        self._ended = 0

    @classmethod
    def below(cls, endpoint: str, state_dir: Path, host_data: Path = HOST_DATA) -> "Disk | None":
        """The disk of the storage at `endpoint`; None where it is not one that Holdover runs here.

        `state_dir` is the daemon's own: `holdover up` keeps storage's data in it.
        """
        if urlsplit(endpoint).hostname not in {"127.0.0.1", "::1", "localhost"}:
            return None
        data = next((d for d in (state_dir / "storage", host_data) if d.is_dir()), None)
        if data is None:
            return None
        # Any file of the file system stands for it, and storage's own may not be opened here.
        if data.stat().st_dev != state_dir.stat().st_dev:
            return cls(os.sync)
        # Each has its own: the kernel tells of a failed write once to each descriptor.
        one, other = (
            os.open(state_dir, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC) for _ in range(2)
        )
        return cls(_syncing(one), _syncing(other))

    def begin(self) -> None:
        """Have the disk begin with what storage has taken so far, and wait for nothing.

        The kernel leaves a file of some gigabytes in its cache until somebody asks, and whoever
        completes it would wait for all of it.
        """
        if self._ahead is not None and not self._is_ahead:
            self._is_ahead = True
            trio.lowlevel.spawn_system_task(self._begin, self._ahead)

    async def _begin(self, ahead: Callable[[], None]) -> None:
        try:
            # A disk that does not answer keeps no daemon from ending.
            await trio.to_thread.run_sync(ahead, abandon_on_cancel=True)
        except OSError:
            pass  # `settle` meets it as well, and tells
        finally:
            self._is_ahead = False

    async def settle(self) -> None:
        """Return once all that storage had taken when this was called is on the disk.

        Those who ask while the disk is being waited for share the next wait. Raises
        StorageUnavailable where the disk fails.
        """
        wanted = self._begun + 1
        async with self._turn:
            if self._ended >= wanted:
                return
            self._begun += 1
            try:
                await trio.to_thread.run_sync(self._sync)
            except OSError as error:
                raise StorageUnavailable(
                    f"The disk that storage keeps its data on failed: {error.strerror}. Nothing was"
                    " made ready; see the kernel's log, then complete again."
                ) from error
            self._ended = self._begun


def _syncing(fd: int) -> Callable[[], None]:
    # Kept open: only a descriptor that was open when a write failed is told of it.
    def sync() -> None:
        if _libc.syncfs(fd) != 0:
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number))

    return sync
