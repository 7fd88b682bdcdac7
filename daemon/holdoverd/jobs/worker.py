"""A worker: claims jobs and runs them, one at a time, until there are none.

``python -m holdoverd.jobs.worker``: started by a connection to the workers' socket (systemd, or
`holdover up`), asked for by a daemon and then on its own: it needs the catalogue and storage, no
daemon. It goes when there has been nothing to do for a while, when workers of another release are
wanted, or on TERM, giving back what it has in hand.

    lock -> settings -> catalogue
        upkeep     takes jobs from dead workers, so that nobody has to wait for a daemon
        work       claim, attempt, again
"""

import argparse
import logging
import os
import random
import signal
import sys
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from functools import partial
from pathlib import Path

import trio
from sqlalchemy import Connection

from holdoverd import __version__, systemd
from holdoverd.catalogue import jobs as jobs_table
from holdoverd.catalogue.store import Catalogue
from holdoverd.errors import CatalogueError, HoldoverError
from holdoverd.ids import now_ms
from holdoverd.jobs import builtin, roll, rules
from holdoverd.jobs.attempt import Attempt, Means
from holdoverd.jobs.objects import FileTable, Objects
from holdoverd.jobs.roll import WorkerLock
from holdoverd.jobs.rules import Job
from holdoverd.jobs.upkeep import LOOK_S, Upkeep
from holdoverd.settings import Settings, load_default

log = logging.getLogger("holdoverd.jobs")

POLL_S = 0.25
POLL_LISTENING_S = 2.0
"""The same while hints are heard: then looking is for what was missed, and for what is delayed."""
BEATS_IN_A_LEASE = 4


class Worker:
    """One worker process's work. `release` is the folder that it was started from."""

    def __init__(
        self,
        lock: WorkerLock,
        workers: Path,
        host: str,
        settings: Settings,
        means: Means,
        release: str,
    ) -> None:
        self._lock = lock
        self._workers = workers
        self._host = host
        self._settings = settings
        self._means = means
        self._release = release
        self._upkeep = Upkeep(means.catalogue, workers, host, settings.jobs.lease_s)
        self._hints = means.catalogue.hints(jobs_table.HINT)
        self._hinted = trio.Event()
        self._unsure = False
        self.asked_to_stop = False

    async def run(self, signals: AsyncIterator[int]) -> None:
        """Work until there is nothing to do, or a signal comes."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._keep_up)
            nursery.start_soon(self._hints.run, self._hint)
            async with trio.open_nursery() as working:
                working.start_soon(self._until_signal, signals, working.cancel_scope)
                await self._work()
                working.cancel_scope.cancel()
            nursery.cancel_scope.cancel()

    def _hint(self) -> None:
        self._hinted.set()

    async def _until_signal(self, signals: AsyncIterator[int], scope: trio.CancelScope) -> None:
        async for _ in signals:
            break
        self.asked_to_stop = True
        scope.cancel()

    async def _keep_up(self) -> None:
        try:
            while True:
                await self._upkeep.look()
                with trio.move_on_after(LOOK_S):
                    await self._upkeep.ended()
        finally:
            self._upkeep.close()

    async def _work(self) -> None:
        idle_since = trio.current_time()
        busy = False
        while roll.is_wanted(self._workers, self._release):
            with trio.CancelScope(shield=True):
                # What was claimed is in hand: a stop is heeded by the attempt, which gives it back.
                job = await self._claim(look_first=not busy)
            busy = job is not None
            if job is not None:
                await self._attempt(job)
                idle_since = trio.current_time()
            elif trio.current_time() - idle_since > self._settings.jobs.idle_s:
                return
            else:
                poll_s = POLL_LISTENING_S if self._hints.listening else POLL_S
                with trio.move_on_after(poll_s * random.uniform(0.8, 1.2)):  # noqa: S311
                    await self._hinted.wait()

    async def _claim(self, *, look_first: bool) -> Job | None:
        """The next job, claimed; None where there is none. A catalogue that is away has none."""
        names = list(self._settings.processors)
        self._hinted = trio.Event()
        try:
            if self._unsure:
                held = await self._means.catalogue.read(
                    lambda cx: jobs_table.claimed_by(cx, self._lock.worker)
                )
                self._unsure = False
                if held is not None:
                    return held
            # Reading first: looking for work that is not there must not cost a commit. Where there
            # was some a moment ago, there likely is more.
            if look_first and not await self._means.catalogue.read(
                lambda cx: jobs_table.count_due(cx, names, now_ms(), 1)
            ):
                return None
            try:
                return await self._means.catalogue.write_alone(partial(self._claim_in, alone=True))
            except jobs_table.NeedsTurn:
                return await self._means.catalogue.write_beside(self._claim_in)
        except CatalogueError as error:
            # It may have been claimed, and nobody told us.
            self._unsure = True
            log.warning("no job can be claimed, trying again: %s", error)
            return None

    def _claim_in(self, cx: Connection, *, alone: bool = False) -> Job | None:
        processors = self._settings.processors
        limits = {name: one.concurrency for name, one in processors.items()}
        agents = [name for name, one in processors.items() if one.starts_agent]

        def may_start(cx: Connection) -> bool:
            running = jobs_table.agents_running(cx, agents, self._host)
            return rules.may_admit(agents=running, limit=self._settings.sessions.max_live)

        return jobs_table.claim(
            cx,
            limits,
            worker=self._lock.worker,
            host=self._host,
            now=now_ms(),
            asking=dict.fromkeys(agents, may_start),
            alone=alone,
        )

    async def _attempt(self, job: Job) -> None:
        log.info("job %s, attempt %d: %s", job.id, job.attempt, job.processor)
        systemd.notify(STATUS=f"{job.processor}: {job.id}, attempt {job.attempt}")
        attempt = Attempt(self._means, job, self._settings.processors[job.processor])
        try:
            await attempt.run()
        except BaseException:
            # Not `except trio.Cancelled`: out of a nursery it comes in a group.
            if self.asked_to_stop:
                with trio.CancelScope(shield=True):
                    try:
                        await attempt.give_back("The worker was asked to stop.")
                    except rules.Fenced as over:
                        log.info("%s", over)
            raise
        systemd.notify(STATUS="idle")


Open = Callable[[Settings, Mapping[str, str]], tuple[FileTable, Objects]]
"""(settings, environment) -> the files of an installation."""


def open_storage(settings: Settings, env: Mapping[str, str]) -> tuple[FileTable, Objects]:
    """Raises SettingsError for keys that cannot be read."""
    # Not above: whoever brings other files needs none of this.
    from holdoverd.jobs.stored import StoredFiles, StoredObjects
    from holdoverd.storage.credentials import load_credentials

    state = env.get("HOLDOVER_STATE_DIR") or env.get("STATE_DIRECTORY")
    keys = load_credentials(env)
    return StoredFiles(), StoredObjects(settings.storage, keys, Path(state) if state else None)


async def work(
    settings: Settings,
    url: str,
    runtime: Path,
    lock: WorkerLock,
    files: FileTable,
    objects: Objects,
    *,
    direct: bool,
    host: str,
    release: str,
) -> None:
    """Open what a worker needs, work, close it."""
    catalogue = await trio.to_thread.run_sync(Catalogue.open, url)
    try:

        def door(account: str) -> Path | None:
            return None if direct else runtime / "processors" / f"{account}.sock"

        means = Means(
            catalogue=catalogue,
            files=files,
            objects=objects,
            door=door,
            environment=lambda name: builtin.environment(settings, name),
            beat_s=settings.jobs.lease_s / BEATS_IN_A_LEASE,
            max_scratch_bytes=settings.jobs.max_scratch_bytes,
        )
        worker = Worker(lock, runtime / "workers", host, settings, means, release)
        with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
            await worker.run(signals)
    finally:
        catalogue.close()


def main(
    argv: Sequence[str] | None = None,
    env: Mapping[str, str] = os.environ,
    open_: Open = open_storage,
) -> int:
    """The worker's entry. Exit status: 0 nothing left to do, 1 could not work."""
    parser = argparse.ArgumentParser(
        prog="holdover-worker", description="Runs jobs until there are none; started on demand."
    )
    parser.add_argument(
        "--direct",
        action="store_true",
        help="run processors as children of this process, not in units of their accounts",
    )
    options = parser.parse_args(argv)
    logging.basicConfig(
        level=logging.INFO, handlers=[systemd.log_handler(generation=0, release=__version__)]
    )
    logging.getLogger("alembic").setLevel(logging.WARNING)
    state, runtime = env.get("STATE_DIRECTORY"), env.get("HOLDOVER_RUNTIME_DIR")
    if not state or not runtime:
        log.critical("STATE_DIRECTORY and HOLDOVER_RUNTIME_DIR must name the daemon's folders.")
        return 1
    try:
        lock = WorkerLock.take(Path(runtime) / "workers")
        settings = load_default(env)
        url = settings.catalogue.resolve(Path(state))
        files, objects = open_(settings, env)
        host = os.uname().nodename
        trio.run(
            partial(
                work,
                settings,
                url,
                Path(runtime),
                lock,
                files,
                objects,
                direct=options.direct,
                host=host,
                release=env.get("HOLDOVER_RELEASE_DIR") or sys.prefix,
            )
        )
    except (HoldoverError, OSError) as error:
        log.critical("%s", error)
        return 1
    lock.close(Path(runtime) / "workers")
    return 0


if __name__ == "__main__":
    sys.exit(main())
