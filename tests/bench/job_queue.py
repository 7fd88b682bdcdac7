"""Claims and completions per second of the job table alone, by workers that do nothing else, and how
long one claim takes at its 99th percentile: with 1, 8 and 32 workers, on both databases, on an empty
table and beside a million finished jobs, and next to procrastinate on the same PostgreSQL. Each worker
is a process with a connection and transactions of its own, which writes as `Catalogue.write_alone`
does. Of what is compared, all workers do each in turn for a quarter of a second, so that a disk that
is slow for a while is slow for all of it.
"""

import asyncio
import multiprocessing
import os
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from statistics import quantiles
from typing import Any, TypeVar

from sqlalchemy import Connection, insert

from holdoverd.catalogue import jobs as jobs_table
from holdoverd.catalogue.dialect import dialect_for
from holdoverd.catalogue.schema import jobs
from holdoverd.catalogue.store import Catalogue
from holdoverd.ids import new_id, now_ms
from holdoverd.jobs import rules
from tests.bench.rows import Row
from tests.jobs.yard import new_job
from tests.needs import NO_POSTGRESQL
from tests.postgres import Postgres

SECONDS = 3.0
"""Of each of what is compared, in a run."""

SLICE_S = 0.25
RUNS = 5
FINISHED = int(os.environ.get("HOLDOVER_BENCH_FINISHED_JOBS") or 1_000_000)
WORKERS = (1, 8, 32)
BATCH = 5_000
WAITING = 10_000
# The tests' server does without what a real one has.
SERVER = {"fsync": "on", "full_page_writes": "on", "autovacuum": "on", "max_wal_size": "2GB"}

T = TypeVar("T")
Work = Callable[[], Iterator[None]]
"""A worker's life: each step claims a job (up to its first `next`), then completes it."""


@dataclass
class Runs:
    """(jobs a second, p99 of a claim in ms) of each run."""

    rates: list[float]
    p99s: list[float]

    def add(self, result: tuple[float, float]) -> None:
        self.rates.append(result[0])
        self.p99s.append(result[1])


def measure() -> list[Row]:
    rows = _measure("SQLite", *_files())
    if not NO_POSTGRESQL:
        server = Postgres(SERVER)
        try:
            empty, full, other = (server.url(server.create()) for _ in range(3))
            rows += _measure("PostgreSQL", empty, full, Procrastinate(other))
        finally:
            server.remove()
    return rows


def _files() -> tuple[str, str]:
    folder = tempfile.TemporaryDirectory(prefix="hq-")
    _FOLDERS.append(folder)  # removed with the process
    return f"sqlite:///{folder.name}/empty.db", f"sqlite:///{folder.name}/full.db"


_FOLDERS: list[tempfile.TemporaryDirectory[str]] = []


def _measure(name: str, empty: str, full: str, rival: "Procrastinate | None" = None) -> list[Row]:
    for url in (empty, full):
        Catalogue.open(url).close()
    _fill(full)
    _tidy(full, to_disk=True)
    rows = []
    for n in WORKERS:
        ours, beside, theirs = Runs([], []), Runs([], []), Runs([], [])
        for _ in range(RUNS):
            works: list[Work] = []
            for url in (empty, full):
                _refill(url)
                works.append(partial(_work, url))
            if rival is not None:
                rival.refill()
                works.append(rival.work)
            # The last, where there is no rival, gets nothing.
            for runs, result in zip((ours, beside, theirs), _run(works, n), strict=False):
                runs.add(result)
        what = f"jobs claimed and completed, {name}, {n} worker{'s' * (n > 1)}"
        rows += [
            Row(f"{what}, beside {FINISHED:,} finished", "a second", beside.rates,
                "the empty table", ours.rates, at_least=1 / 1.2),
            Row(f"{what}: p99 of a claim", "ms", beside.p99s, "the empty table", ours.p99s),
        ]  # fmt: skip
        if rival is not None:
            rows += [
                Row(what, "a second", ours.rates, "procrastinate", theirs.rates, at_least=1.0),
                Row(f"{what}: p99 of a claim", "ms", ours.p99s, "procrastinate", theirs.p99s),
            ]
    return rows


def _run(works: Sequence[Work], workers: int) -> list[tuple[float, float]]:
    """(jobs a second, p99 of a claim in ms) of each, done by turns by so many processes."""
    forking = multiprocessing.get_context("fork")
    together = forking.Barrier(workers, timeout=60)
    said = forking.Queue()
    crew = [forking.Process(target=_one, args=(works, together, said)) for _ in range(workers)]
    for worker in crew:
        worker.start()
    each = [said.get(timeout=120) for _ in crew]
    for worker in crew:
        worker.join()
    results = []
    for of_workers in zip(*each, strict=True):
        took = [one for claims in of_workers for one in claims]
        assert len(took) < WAITING, "there was work to the end"
        results.append((len(took) / SECONDS, quantiles(took, n=100)[98] * 1000))
    return results


def _one(works: Sequence[Work], together: Any, said: Any) -> None:
    lives = [work() for work in works]
    for steps in lives:
        next(steps)  # connected
    took: list[list[float]] = [[] for _ in works]
    together.wait()
    started = time.monotonic()
    until = started + SECONDS * len(works)
    while (began := time.monotonic()) < until:
        turn = int((began - started) / SLICE_S) % len(works)
        next(lives[turn])
        took[turn].append(time.monotonic() - began)
        next(lives[turn])
    said.put(took)


# --- ours ------------------------------------------------------------------------------------


def _fill(url: str) -> None:
    """Jobs that are over, of a year."""
    dialect = dialect_for(url)
    engine = dialect.writer_engine()
    base = new_job("p", state="done", attempt=1, finished_at=now_ms(), result='{"text":"x"}')
    columns = {name: getattr(base, name) for name in jobs_table.COLUMNS}
    for start in range(0, FINISHED, BATCH):
        with dialect.turn(), engine.connect() as cx, cx.begin():
            cx.execute(
                insert(jobs),
                [
                    {**columns, "id": f"j_{n:016d}", "created_at": n * 30_000, "run_after": n}
                    for n in range(start, start + BATCH)
                ],
            )
    engine.dispose()
    dialect.close()


def _tidy(url: str, *, to_disk: bool) -> None:
    """Have the database do at once what else falls into the runs, only because of what we stored or
    removed for them: rows that came within a year have long been vacuumed, and are on the disk."""
    dialect = dialect_for(url)
    statements = ["ANALYZE jobs"]
    if url.startswith("postgresql"):
        # Once, not before each run: the first change of a page after it costs the whole page.
        statements = ["VACUUM ANALYZE jobs"] + ["CHECKPOINT"] * to_disk
    engine = dialect.alone_engine() or dialect.writer_engine()
    with engine.connect() as cx:
        for statement in statements:
            cx.exec_driver_sql(statement)
        cx.commit()
    engine.dispose()
    dialect.close()


def _refill(url: str) -> None:
    dialect = dialect_for(url)
    engine = dialect.writer_engine()
    with dialect.turn(), engine.connect() as cx, cx.begin():
        cx.execute(jobs.delete().where((jobs.c.state != "done") | (jobs.c.processor == "q")))
        base = new_job("q")
        columns = {name: getattr(base, name) for name in jobs_table.COLUMNS}
        cx.execute(insert(jobs), [{**columns, "id": new_id("j")} for _ in range(WAITING)])
    engine.dispose()
    dialect.close()
    _tidy(url, to_disk=False)


def _work(url: str) -> Iterator[None]:
    dialect = dialect_for(url)
    alone = dialect.alone_engine()
    worker = f"w{os.getpid()}"

    def claim(cx: Connection) -> rules.Job | None:
        return jobs_table.claim(
            cx, {"q": 0}, worker=worker, host="h", now=now_ms(), alone=alone is not None
        )

    def done(cx: Connection, job: rules.Job) -> None:
        jobs_table.done(cx, job.id, job.attempt, result="{}", now=now_ms())

    def write(fn: Callable[[Connection], T]) -> T:
        if alone is not None:
            with alone.connect() as cx:
                return fn(cx)
        with dialect.turn(30), engine.connect() as cx, cx.begin():
            return fn(cx)

    engine = dialect.writer_engine()
    write(lambda cx: jobs_table.get_job(cx, "none"))
    yield
    while True:
        job = write(claim)
        assert job is not None, "there is work"
        yield
        write(partial(done, job=job))
        yield


# --- procrastinate's -------------------------------------------------------------------------


class Procrastinate:
    """Its job manager and its psycopg connector, a pool of one, as its own worker calls them."""

    def __init__(self, url: str) -> None:
        self._conninfo = url.replace("postgresql+psycopg", "postgresql")
        self._sync(lambda app: app.schema_manager.apply_schema_async())

    def refill(self) -> None:
        async def fill(app: Any) -> None:
            from procrastinate.jobs import Job

            await app.connector.execute_query_async(
                "TRUNCATE procrastinate_jobs, procrastinate_events CASCADE"
            )
            job = Job(id=None, queue="q", lock=None, queueing_lock=None, task_name="t")
            for _ in range(0, WAITING, 1000):
                await app.job_manager.batch_defer_jobs_async(jobs=[job] * 1000)
            await app.connector.execute_query_async("ANALYZE procrastinate_jobs")

        self._sync(fill)

    def work(self) -> Iterator[None]:
        from procrastinate.jobs import Status

        with asyncio.Runner() as runner:
            app = self._app()
            runner.run(app.connector.open_async())
            worker = runner.run(app.job_manager.register_worker())
            yield
            while True:
                job = runner.run(app.job_manager.fetch_job(["q"], worker))
                assert job is not None, "there is work"
                yield
                runner.run(app.job_manager.finish_job(job, Status.SUCCEEDED, delete_job=False))
                yield

    def _app(self) -> Any:
        from procrastinate import App, PsycopgConnector

        return App(connector=PsycopgConnector(conninfo=self._conninfo, min_size=1, max_size=1))

    def _sync(self, fn: Callable[[Any], Any]) -> None:
        async def run() -> None:
            app = self._app()
            async with app.open_async():
                await fn(app)

        asyncio.run(run())
