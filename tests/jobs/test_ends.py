"""A good end that nobody confirmed is said again, and has happened once."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import trio
from sqlalchemy import Connection

from holdoverd.catalogue import files as files_table
from holdoverd.catalogue import jobs as jobs_table
from holdoverd.catalogue.store import Catalogue
from holdoverd.errors import CatalogueError
from holdoverd.jobs import attempt as attempts
from holdoverd.jobs.attempt import Attempt, Means
from holdoverd.jobs.objects import ResultFile
from holdoverd.jobs.stored import StoredFiles
from holdoverd.settings import ProcessorSettings
from tests.jobs.yard import new_job


class Unsure:
    """A catalogue whose first write of each kind is stored, and lost on its way back."""

    def __init__(self, catalogue: Catalogue) -> None:
        self._catalogue = catalogue
        self.lost: list[str] = []

    def __getattr__(self, name: str) -> Any:
        async def write(fn: Callable[[Connection], None]) -> None:
            await getattr(self._catalogue, name)(fn)
            if name not in self.lost:
                self.lost.append(name)
                raise CatalogueError("The catalogue cannot be reached.")

        return write


@pytest.mark.parametrize(
    ("stored", "said", "by"),
    [(False, b"", "write_alone"), (False, b"words", "write_beside"), (True, b"", "write")],
)
async def test_an_end_that_nobody_confirmed_publishes_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stored: bool, said: bytes, by: str
) -> None:
    monkeypatch.setattr(attempts, "WRITE_AGAIN_S", 0.01)
    catalogue = Catalogue.open(f"sqlite:///{tmp_path}/catalogue.db")
    job = new_job("p", state="running", attempt=1)
    await catalogue.write(partial(jobs_table.create_job, job=job))
    unsure: Any = Unsure(catalogue)
    nothing: Any = None
    means = Means(unsure, StoredFiles(), nothing, lambda _: None, lambda _: {}, 1.0, 1)
    attempt = Attempt(means, job, ProcessorSettings("p", ("true",)))
    attempt.log.add(said)
    if stored:
        attempt.stored = ResultFile(job.id, job.owner, "r", "results/1", 5, "ab" * 32)
    with trio.fail_after(20):
        await attempt._end_well()
    assert unsure.lost == [by]
    ended = await catalogue.read(lambda cx: jobs_table.get_job(cx, job.id))
    assert ended is not None
    assert ended.state == "done"
    files, _ = await catalogue.read(lambda cx: files_table.list_files(cx, owner=None, limit=9))
    assert json.loads(ended.result or "")["files"] == [file.id for file in files]
    assert len(files) == stored
    await trio.to_thread.run_sync(catalogue.close)
