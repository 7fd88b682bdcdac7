"""A catalogue, a folder of files and real worker processes, without a daemon."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, TypeVar

from sqlalchemy import Connection
from sqlalchemy.exc import OperationalError

from holdoverd.catalogue import jobs as jobs_table
from holdoverd.catalogue.dialect import dialect_for
from holdoverd.catalogue.store import Catalogue
from holdoverd.ids import new_id, now_ms
from holdoverd.jobs.rules import Job
from tests.jobs.store import Folder

ROOT = Path(__file__).resolve().parents[2]
T = TypeVar("T")


def new_job(processor: str, files: tuple[str, ...] = (), **fields: object) -> Job:
    """A job as a submission makes it."""
    now = now_ms()
    values: dict[str, object] = {
        "id": new_id("j"),
        "owner": "default",
        "account": "holdover-agent",
        "processor": processor,
        "files": json.dumps(list(files)),
        "params": "{}",
        "session": None,
        "state": "ready",
        "attempt": 0,
        "spared": 0,
        "max_attempts": 3,
        "ready_at": now,
        "run_after": now,
        "worker": None,
        "host": None,
        "beat": 0,
        "progress_bytes": None,
        "progress_total": None,
        "result": None,
        "error": None,
        "told": 1,
        "created_at": now,
        "started_at": None,
        "finished_at": None,
    }
    return Job(**{**values, **fields})  # type: ignore[arg-type]


@dataclass
class Yard:
    """Everything below one folder. `env` is every worker's."""

    folder: Path
    url: str
    env: dict[str, str] = field(default_factory=dict)
    workers: list[subprocess.Popen[bytes]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.state = self.folder / "state"
        self.runtime = self.folder / "run"
        self.store = Folder(self.folder / "store")
        for path in (self.state, self.runtime / "workers", self.store.folder):
            path.mkdir(parents=True)
        self._dialect = dialect_for(self.url)
        self._readers = self._dialect.reader_engine(1)

    def write(self, fn: Callable[[Connection], T]) -> T:
        while True:
            engine = self._dialect.writer_engine()
            try:
                with self._dialect.turn(30), engine.connect() as cx, cx.begin():
                    return fn(cx)
            except OperationalError as error:
                # PostgreSQL asks for another run where two met, as the catalogue's writer does.
                if getattr(error.orig, "sqlstate", None) not in ("40001", "40P01"):
                    raise
            finally:
                engine.dispose()

    def read(self, fn: Callable[[Connection], T]) -> T:
        """Looked at often, and so without a turn to write: that is the workers'."""
        with self._readers.connect() as cx:
            self._dialect.begin_snapshot(cx)
            return fn(cx)  # and what is given back to the pool is rolled back

    def submit(self, processor: str, *files: str, **fields: object) -> str:
        job = new_job(processor, files, **fields)
        self.write(lambda cx: jobs_table.create_job(cx, job))
        return job.id

    def job(self, job_id: str) -> Job:
        job = self.read(lambda cx: jobs_table.get_job(cx, job_id))
        assert job is not None
        return job

    def processor(self, name: str, script: str, **settings: object) -> None:
        """A processor that is a Python script."""
        path = self.folder / f"{name}.py"
        path.write_text(script)
        prefix = f"HOLDOVER_PROCESSORS_{name.upper()}_"
        self.env[prefix + "COMMAND"] = f"{sys.executable} -I {path}"
        self.env |= {prefix + key.upper(): str(value) for key, value in settings.items()}

    def start(self, *, host: str | None = None, **env: str) -> subprocess.Popen[bytes]:
        """One more worker; on another `host` as far as it can tell, which takes root."""
        with (self.folder / "workers.log").open("ab") as log:
            worker = self._start(log, env, host)
        self.workers.append(worker)
        return worker

    def observe(self, lease_s: float) -> None:
        """Have somebody look after the workers of this host, as a daemon does."""
        with (self.folder / "observer.log").open("ab") as log:
            program = ["-m", "tests.jobs.observer"]
            self.workers.append(self._start(log, {"LEASE_S": str(lease_s)}, None, program))

    def _start(
        self,
        log: IO[bytes],
        env: dict[str, str],
        host: str | None,
        program: Sequence[str] = ("-m", "tests.jobs.store", "--direct"),
    ) -> subprocess.Popen[bytes]:
        command = [sys.executable, *program]
        runtime = self.runtime
        if host is not None:
            command = ["unshare", "--uts", "sh", "-c", f'hostname {host}; exec "$@"', "-", *command]
            runtime = self.folder / f"run-{host}"
            (runtime / "workers").mkdir(parents=True, exist_ok=True)
        return subprocess.Popen(
            command,
            cwd=ROOT,
            env={
                "PATH": os.environ["PATH"],
                "PYTHONPATH": f"{ROOT}:{ROOT}/daemon:{ROOT}/cli",
                "TMPDIR": str(self.folder),
                "STATE_DIRECTORY": str(self.state),
                "HOLDOVER_CATALOGUE_URL": self.url,
                "HOLDOVER_RUNTIME_DIR": str(runtime),
                "HOLDOVER_CONFIG_DIR": str(self.folder / "none"),
                "HOLDOVER_JOBS_IDLE_S": "60",
                "TEST_STORE": str(self.store.folder),
                **self.env,
                **env,
            },
            stderr=log,
        )

    def wait(self, job_id: str, *states: str, within_s: float = 20) -> Job:
        return self.until(
            lambda: job if (job := self.job(job_id)).state in states else None,
            f"job {job_id} {'/'.join(states)}",
            within_s,
        )

    def lines(self, name: str) -> list[str]:
        """What processors appended to a file in the yard's folder."""
        path = self.folder / name
        return path.read_text().splitlines() if path.exists() else []

    def until(self, look: Callable[[], T | None], what: str, within_s: float = 20) -> T:
        deadline = time.monotonic() + within_s
        while True:
            if found := look():
                return found
            if time.monotonic() > deadline:
                log = (self.folder / "workers.log").read_text()
                raise AssertionError(f"not within {within_s} s: {what}\n{log}")
            time.sleep(0.02)

    def close(self) -> None:
        for worker in self.workers:
            worker.send_signal(signal.SIGCONT)
            worker.kill()
            worker.wait()
        self._readers.dispose()
        self._dialect.close()


@contextmanager
def open_yard(folder: Path, url: str | None = None) -> Iterator[Yard]:
    """`url`: a catalogue that is there; None: a new one in the folder."""
    if url is None:
        url = f"sqlite:///{folder}/catalogue.db"
        Catalogue.open(url).close()
    yard = Yard(folder, url)
    try:
        yield yard
    finally:
        yard.close()
