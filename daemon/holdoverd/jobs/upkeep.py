"""Takes jobs from workers that are gone. Daemons and workers all do it: whoever notices first.

What two of them decide at once, the attempt's number settles: the second finds it over.
"""

import contextlib
import logging
import os
import random
import select
from collections.abc import Collection
from pathlib import Path

import trio
from sqlalchemy import Connection

from holdoverd.catalogue import jobs as jobs_table
from holdoverd.catalogue.store import Catalogue
from holdoverd.errors import CatalogueError
from holdoverd.ids import now_ms
from holdoverd.jobs import roll
from holdoverd.jobs.rules import Fenced, Leases, Running, lost

log = logging.getLogger(__name__)

LOOK_S = 0.5
"""Between two looks at the locks of this host, a listing of a small folder, where no process's end
calls for one (`Upkeep.ended`)."""
JUDGE_S = 3.0
"""Between two looks at all running jobs, for the leases of other hosts and after a reboot."""


class Upkeep:
    """One observer of all workers. `close` it."""

    def __init__(self, catalogue: Catalogue, workers: Path, host: str, lease_s: float) -> None:
        self._catalogue = catalogue
        self._workers = workers
        self._host = host
        self._leases = Leases(lease_s)
        self._judged = float("-inf")
        self.living: set[str] = set()
        self.taken = 0
        """Jobs taken from workers that were gone, by this observer."""
        self._ends = select.epoll()
        self._watched: dict[str, int] = {}  # {worker: its pidfd, in `_ends`}

    async def ended(self) -> None:
        """Return once a worker of this host has ended since the last look, as far as can be seen."""
        await trio.lowlevel.wait_readable(self._ends.fileno())

    def close(self) -> None:
        self._watch(set())
        self._ends.close()

    def _watch(self, workers: Collection[str]) -> None:
        """Have `ended` tell of these workers, and no more of those that have ended."""
        over = {fd for fd, _ in self._ends.poll(0)}
        for worker, fd in [*self._watched.items()]:
            if worker not in workers or fd in over:
                self._ends.unregister(fd)
                os.close(fd)
                del self._watched[worker]
        for worker in workers:
            if worker not in self._watched:
                ended = roll.watch(self._workers, worker)
                if ended is not None:
                    self._ends.register(ended, select.EPOLLIN)
                    self._watched[worker] = ended

    async def look(self) -> int:
        """One look; the number of jobs that were taken from their workers.

        A catalogue that cannot be read or written just now is tried again at the next look.
        """
        self.living, dead = roll.look(self._workers)
        self._watch(self.living)
        now = trio.current_time()
        if not dead and now - self._judged < JUDGE_S:
            return 0
        try:
            running = await self._catalogue.read(jobs_table.running_jobs)
            # Looked at after the rows were read: a worker locks before it claims, so one that is
            # in the rows and not here is dead.
            self.living, more = roll.look(self._workers)
            over = self._leases.judge(running, host=self._host, living=self.living, now=now)
            self._judged = now
            for job, how in over:
                await self._take(job, how)
        except CatalogueError as error:
            log.warning("jobs of dead workers cannot be taken over, trying again: %s", error)
            return 0
        for worker in dead & more:
            roll.forget(self._workers, worker)
        return len(over)

    def longest_silence_s(self) -> float:
        return self._leases.longest_silence_s(trio.current_time())

    async def _take(self, job: Running, how: str) -> None:
        def take(cx: Connection) -> None:
            jobs_table.change_held(
                cx,
                job.id,
                job.attempt,
                lambda held: lost(held, how=how, chance=random.random(), now=now_ms()),  # noqa: S311
            )

        with contextlib.suppress(Fenced):
            await self._catalogue.write_beside(take)
            self.taken += 1
            log.warning("job %s, attempt %d: %s", job.id, job.attempt, how)
