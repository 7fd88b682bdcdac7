"""A file is ready once the disk below this host's storage has it, and not before."""

import errno
import threading
from pathlib import Path

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from holdoverd.errors import StorageUnavailable
from holdoverd.storage.disk import Disk


async def test_those_who_ask_during_a_wait_share_the_next_one() -> None:
    begun: list[int] = []
    go_on = threading.Semaphore(0)

    def sync() -> None:
        begun.append(len(begun))
        go_on.acquire()

    disk = Disk(sync)
    done: list[str] = []

    async def ask(name: str) -> None:
        await disk.settle()
        done.append(name)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(ask, "first")
        while not begun:
            await trio.sleep(0.001)
        for name in ("a", "b", "c"):
            nursery.start_soon(ask, name)
        await wait_all_tasks_blocked()
        go_on.release()
        while len(begun) < 2:
            await trio.sleep(0.001)
        # What the first waited for may not hold what the others have written since.
        assert done == ["first"]
        go_on.release()
    assert sorted(done) == ["a", "b", "c", "first"]
    assert len(begun) == 2
    go_on.release()
    await disk.settle()
    assert len(begun) == 3


async def test_disk_that_fails_is_told_and_asked_again() -> None:
    failing = [True, False]

    def sync() -> None:
        if failing.pop(0):
            raise OSError(errno.EIO, "Input/output error")

    disk = Disk(sync)
    with pytest.raises(StorageUnavailable, match="Input/output error"):
        await disk.settle()
    await disk.settle()
    assert failing == []


async def test_disk_begins_ahead_once_at_a_time_and_its_failure_is_still_told() -> None:
    begun = 0
    go_on = threading.Semaphore(0)

    def ahead() -> None:
        nonlocal begun
        begun += 1
        go_on.acquire()
        raise OSError(errno.EIO, "Input/output error")

    def sync() -> None:
        raise OSError(errno.EIO, "Input/output error")

    disk = Disk(sync, ahead)
    with trio.fail_after(20):
        disk.begin()
        disk.begin()
        while not begun:
            await trio.sleep(0.001)
        disk.begin()
        await wait_all_tasks_blocked()
        assert begun == 1
        go_on.release()
        while begun < 2:
            disk.begin()
            await trio.sleep(0.001)
        go_on.release()
    with pytest.raises(StorageUnavailable, match="Input/output error"):
        await disk.settle()
    Disk(sync).begin()  # has nothing to begin with


async def test_disk_is_that_of_the_storage_which_runs_here(tmp_path: Path) -> None:
    state, other = tmp_path / "state", tmp_path / "other"
    state.mkdir()
    assert Disk.below("http://127.0.0.1:8781", state, other) is None, "another's, on this machine"
    other.mkdir()
    on_host = Disk.below("http://127.0.0.1:8781", state, other)
    assert on_host is not None
    await on_host.settle()
    assert Disk.below("https://s3.example.org", state, other) is None
    other.rmdir()
    (state / "storage").mkdir()
    under_up = Disk.below("http://[::1]:8781", state, other)
    assert under_up is not None
    under_up.begin()
    await under_up.settle()
