"""Claims and completions per second of the job table alone, by workers that do nothing else, and how
long one claim takes at its 99th percentile: with 1, 8 and 32 workers, on both databases, on an empty
table and beside a million finished jobs. Each worker is a thread with a connection and transactions
of its own, as worker processes have; on SQLite they take turns as processes do. The pairs are the
empty table and the full one.
"""

import contextlib
import tempfile
import threading
import time
from collections.abc import Iterator
from statistics import quantiles

from sqlalchemy import Connection, insert
from sqlalchemy.exc import OperationalError

from holdoverd.catalogue import jobs as jobs_table
from holdoverd.catalogue.dialect import Dialect, dialect_for
from holdoverd.catalogue.schema import jobs
from holdoverd.catalogue.store import Catalogue
from holdoverd.ids import new_id, now_ms
from holdoverd.jobs import rules
from tests.bench.rows import Row
from tests.jobs.yard import new_job
from tests.needs import NO_POSTGRESQL
from tests.postgres import Postgres

SECONDS = 3.0
FINISHED = 1_000_000
WORKERS = (1, 8, 32)
BATCH = 5_000


def measure() -> list[Row]:
    rows = []
    for name in ("SQLite", *(() if NO_POSTGRESQL else ("PostgreSQL",))):
        with _database(name) as url:
            Catalogue.open(url).close()
            empty = {n: _run(url, n) for n in WORKERS}
            _fill(url)
            full = {n: _run(url, n) for n in WORKERS}
        for n in WORKERS:
            (rate, p99), (rate_full, p99_full) = empty[n], full[n]
            what = f"jobs claimed and completed, {name}, {n} worker{'s' * (n > 1)}"
            rows.append(
                Row(f"{what}, beside {FINISHED:,} finished", "a second", [rate_full],
                    "the empty table", [rate], at_least=1 / 1.2)
            )  # fmt: skip
            rows.append(Row(f"{what}: p99 of a claim", "ms", [p99_full], "the empty table", [p99]))
    return rows


@contextlib.contextmanager
def _database(name: str) -> Iterator[str]:
    if name == "SQLite":
        with tempfile.TemporaryDirectory(prefix="hq-") as folder:
            yield f"sqlite:///{folder}/catalogue.db"
        return
    server = Postgres()
    try:
        yield server.url(server.create())
    finally:
        server.remove()


def _fill(url: str) -> None:
    """A million jobs that are over, of a year."""
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
    with contextlib.suppress(Exception), dialect.turn(), engine.connect() as cx, cx.begin():
        cx.exec_driver_sql("ANALYZE jobs")
    engine.dispose()
    dialect.close()


def _run(url: str, workers: int) -> tuple[float, float]:
    """(jobs a second, p99 of a claim in ms)."""
    _refill(url, workers)
    until = time.monotonic() + SECONDS
    counts = [0] * workers
    took: list[float] = []
    threads = [
        threading.Thread(target=_work, args=(url, until, counts, index, took))
        for index in range(workers)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return sum(counts) / SECONDS, quantiles(took, n=100)[98] * 1000


def _refill(url: str, workers: int) -> None:
    dialect = dialect_for(url)
    engine = dialect.writer_engine()
    with dialect.turn(), engine.connect() as cx, cx.begin():
        cx.execute(jobs.delete().where(jobs.c.state != "done"))
        base = new_job("q")
        columns = {name: getattr(base, name) for name in jobs_table.COLUMNS}
        cx.execute(insert(jobs), [{**columns, "id": new_id("j")} for _ in range(10_000)])
    engine.dispose()
    dialect.close()


def _work(url: str, until: float, counts: list[int], index: int, took: list[float]) -> None:
    dialect = dialect_for(url)
    engine = dialect.writer_engine()
    worker = f"w{index}"

    def claim(cx: Connection) -> rules.Job | None:
        return jobs_table.claim(cx, {"q": 0}, worker=worker, host="h", now=now_ms())

    while time.monotonic() < until:
        began = time.monotonic()
        job = _write(dialect, engine, claim)
        took.append(time.monotonic() - began)
        if job is None:
            break

        def done(cx: Connection, job: rules.Job = job) -> rules.Job:
            return jobs_table.change_held(
                cx, job.id, job.attempt, lambda held: rules.done(held, result="{}", now=now_ms())
            )

        _write(dialect, engine, done)
        counts[index] += 1
    engine.dispose()
    dialect.close()


def _write(dialect: Dialect, engine, fn):  # type: ignore[no-untyped-def]
    """A transaction of its own, run again as the catalogue's writer does where it has to be."""
    while True:
        try:
            with dialect.turn(30), engine.connect() as cx, cx.begin():
                return fn(cx)
        except OperationalError as error:
            if getattr(error.orig, "sqlstate", None) not in ("40001", "40P01"):
                raise
