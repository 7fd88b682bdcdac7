"""A daemon's eye on the workers of its host, without the daemon: `python -m tests.jobs.observer`."""

import os
from pathlib import Path

import trio

from holdoverd.catalogue.store import Catalogue
from holdoverd.jobs.upkeep import LOOK_S, Upkeep


async def observe(url: str, workers: Path) -> None:
    catalogue = await trio.to_thread.run_sync(Catalogue.open, url)
    upkeep = Upkeep(catalogue, workers, os.uname().nodename, float(os.environ["LEASE_S"]))
    while True:
        await upkeep.look()
        with trio.move_on_after(LOOK_S):
            await upkeep.ended()


if __name__ == "__main__":
    trio.run(
        observe,
        os.environ["HOLDOVER_CATALOGUE_URL"],
        Path(os.environ["HOLDOVER_RUNTIME_DIR"]) / "workers",
    )
