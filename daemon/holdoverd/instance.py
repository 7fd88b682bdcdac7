"""Which instances of this host live: each holds a lock for as long as its process does.

An instance's row in the catalogue says what it was; only its lock says that it is. The kernel
lets go of it however the process ends, so nobody has to guess from silence.
"""

import contextlib
import errno
import fcntl
import os
import re
from pathlib import Path
from uuid import UUID

import trio

from holdoverd.errors import HoldoverError

_NAME = re.compile(r"([1-9][0-9]*)\.lock\Z")

KEPT = 10
"""Generations whose files stay, for whoever looks into what became of them."""

TAKE_S = 5.0
"""A killed predecessor's lock is free once the kernel has finished with it."""


class GenerationTakenError(HoldoverError):
    """Another process runs as this generation."""


class InstanceLock:
    """This process's claim to its generation; held until the process ends."""

    def __init__(self, folder: Path, generation: int, fd: int) -> None:
        self._folder = folder
        self._generation = generation
        self._fd = fd

    @classmethod
    async def take(cls, folder: Path, generation: int) -> "InstanceLock":
        """Raises GenerationTakenError when another process keeps it for longer than `TAKE_S`."""
        path = folder / f"{generation}.lock"
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        deadline = trio.current_time() + TAKE_S
        while True:
            if _try_lock(fd, fcntl.LOCK_EX):
                if os.fstat(fd).st_nlink:
                    break
                # Between the two calls it looked like a dead one's, and was cleared away.
                os.close(fd)
                fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
                continue
            if trio.current_time() > deadline:
                os.close(fd)
                raise GenerationTakenError(
                    f"Generation {generation} is running already (lock {folder}/{generation}.lock);"
                    " a second daemon needs a generation of its own."
                )
            await trio.sleep(0.05)
        return cls(folder, generation, fd)

    def live_generations(self) -> set[int]:
        """The generations whose processes live, this one included."""
        live = {self._generation}
        for path in self._folder.iterdir():
            found = _NAME.match(path.name)
            if found is None or (generation := int(found.group(1))) in live:
                continue
            with contextlib.suppress(FileNotFoundError):
                fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
                # Shared, so that two who look do not take each other for the owner.
                if not _try_lock(fd, fcntl.LOCK_SH):
                    live.add(generation)
                os.close(fd)
        return live

    def clear_away(self) -> None:
        """Remove what generations left that are over by more than `KEPT`: they would add up for ever."""
        for path in self._folder.iterdir():
            found = _NAME.match(path.name)
            if found is None or int(found.group(1)) > self._generation - KEPT:
                continue
            with contextlib.suppress(FileNotFoundError):
                fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
                # Unlinked while it is held: whoever wants it for itself waits, and then sees that it is gone.
                if _try_lock(fd, fcntl.LOCK_SH):
                    path.unlink(missing_ok=True)
                os.close(fd)

    def close(self) -> None:
        os.close(self._fd)


def _try_lock(fd: int, kind: int) -> bool:
    try:
        fcntl.flock(fd, kind | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno == errno.EWOULDBLOCK:
            return False
        raise
    return True


def boot_id() -> str:
    """The name of this boot: processes recorded under another one are gone.

    As the unit tells it: the daemon's own /proc (ProtectProc=) shows the kernel's, which outlives
    the restart of a container.
    """
    told = os.environ.get("HOLDOVER_BOOT_ID")
    if told:
        return str(UUID(told))
    return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()


def memory_bytes(pid: int) -> int:
    """What a process of ours has in memory; 0 where it is gone. See proc(5), VmRSS."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return 0
    for line in status.splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) * 1024
    return 0
