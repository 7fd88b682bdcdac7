"""The end of a worker on this host is noticed at once, and told once."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import trio

from holdoverd.catalogue.store import Catalogue
from holdoverd.jobs import roll
from holdoverd.jobs.upkeep import Upkeep

WORKER = """
import sys, time
from pathlib import Path
from holdoverd.jobs.roll import WorkerLock
lock = WorkerLock.take(Path(sys.argv[1]))
print(lock.worker, flush=True)
time.sleep(600)
"""


async def silent(upkeep: Upkeep) -> bool:
    with trio.move_on_after(0.1) as scope:
        await upkeep.ended()
    return scope.cancelled_caught


async def test_the_end_of_a_worker_is_told_without_a_look(tmp_path: Path) -> None:
    catalogue = Catalogue.open(f"sqlite:///{tmp_path}/catalogue.db")
    folder = tmp_path / "workers"
    folder.mkdir()
    upkeep = Upkeep(catalogue, folder, "h", 15)
    worker = subprocess.Popen(
        [sys.executable, "-c", WORKER, str(folder)],
        stdout=subprocess.PIPE,
        env={"PYTHONPATH": ":".join(sys.path)},
        text=True,
    )
    try:
        assert worker.stdout is not None
        name = worker.stdout.readline().strip()
        await upkeep.look()
        assert upkeep.living == {name}
        assert await silent(upkeep)
        worker.kill()
        with trio.fail_after(20):
            await upkeep.ended()
            await upkeep.look()
        assert upkeep.living == set()
        assert await silent(upkeep)
    finally:
        worker.kill()
        worker.communicate()
        upkeep.close()
        catalogue.close()


def test_who_cannot_be_watched_is_looked_at_only(tmp_path: Path) -> None:
    lock = roll.WorkerLock.take(tmp_path)
    path = tmp_path / f"{lock.worker}{roll.SUFFIX}"
    for text in ("", "no number\n", "4194305\n"):
        path.write_text(text)
        assert roll.watch(tmp_path, lock.worker) is None
    lock.close(tmp_path)
    assert roll.watch(tmp_path, lock.worker) is None
