"""The locks by which instances of a host know of each other: taken, seen, and cleared away."""

import fcntl
import os
from pathlib import Path

import pytest

from holdoverd import instance
from holdoverd.instance import KEPT, GenerationTakenError, InstanceLock


async def test_a_generation_is_one_process_and_seen_while_it_lives(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(instance, "TAKE_S", 0.1)
    first = await InstanceLock.take(tmp_path, 1)
    with pytest.raises(GenerationTakenError, match="Generation 1 is running"):
        await InstanceLock.take(tmp_path, 1)
    second = await InstanceLock.take(tmp_path, 2)
    assert second.live_generations() == {1, 2}
    first.close()
    assert second.live_generations() == {2}
    (await InstanceLock.take(tmp_path, 1)).close()
    second.close()


async def test_what_generations_leave_behind_does_not_add_up(tmp_path: Path) -> None:
    """The dead go after a while, the living stay however old they are."""
    old = await InstanceLock.take(tmp_path, 3)
    for generation in range(1, 100):
        if generation == 3:
            continue
        lock = await InstanceLock.take(tmp_path, generation)
        lock.clear_away()
        assert 3 in lock.live_generations() or generation < 3
        lock.close()
    left = {int(path.name.removesuffix(".lock")) for path in tmp_path.iterdir()}
    assert left == {3, *range(99 - KEPT + 1, 100)}
    old.close()


async def test_a_lock_that_is_cleared_away_while_it_is_waited_for_is_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Or its holder would live and be taken for dead."""
    (tmp_path / "1.lock").touch()
    held = os.open(tmp_path / "1.lock", os.O_RDONLY)
    fcntl.flock(held, fcntl.LOCK_SH)
    real = instance._try_lock

    def cleared_away_meanwhile(fd: int, kind: int) -> bool:
        monkeypatch.setattr(instance, "_try_lock", real)
        (tmp_path / "1.lock").unlink()
        os.close(held)
        return False

    monkeypatch.setattr(instance, "_try_lock", cleared_away_meanwhile)
    first = await InstanceLock.take(tmp_path, 1)
    other = await InstanceLock.take(tmp_path, 2)
    assert other.live_generations() == {1, 2}
    first.close()
    other.close()
