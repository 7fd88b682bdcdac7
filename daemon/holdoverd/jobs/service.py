"""Jobs as the doors call them, and the daemon's part in having them run.

The daemon runs no job. It stores what is asked, asks for workers by connecting to their socket (it
may start nothing itself), takes jobs from workers that are gone, and tells sessions of the end of
what they asked for.
"""

import contextlib
import json
import logging
import socket
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import trio
from sqlalchemy import Connection

from holdoverd.callers import Caller
from holdoverd.catalogue import jobs as jobs_table
from holdoverd.catalogue.sessions import session_row
from holdoverd.catalogue.store import Catalogue
from holdoverd.errors import (
    CatalogueError,
    Conflict,
    NotFound,
    RequestError,
    Unprocessable,
)
from holdoverd.http.shapes import Json
from holdoverd.ids import new_id, now_ms
from holdoverd.jobs import rules
from holdoverd.jobs.builtin import check_params
from holdoverd.jobs.objects import FileTable
from holdoverd.jobs.rules import Job
from holdoverd.jobs.upkeep import LOOK_S, Upkeep
from holdoverd.sessions.service import Sessions
from holdoverd.settings import Settings

log = logging.getLogger(__name__)

MAX_FILES = 16
ASK_EVERY_S = 1.0
APPEARS_WITHIN_S = 5.0
"""From asking for a worker to its lock; one that has not come by then is asked for again."""
TOLD_AT_ONCE = 20


class Jobs:
    """The queue's door, and its upkeep (`run`)."""

    def __init__(
        self,
        *,
        catalogue: Catalogue,
        settings: Settings,
        files: FileTable,
        sessions: Sessions,
        runtime: Path,
        host: str,
        serving: Callable[[], bool],
    ) -> None:
        self._catalogue = catalogue
        self._settings = settings
        self._files = files
        self._sessions = sessions
        self._socket = runtime / "workers.sock"
        self._host = host
        self._serving = serving
        self._upkeep = Upkeep(catalogue, runtime / "workers", host, settings.jobs.lease_s)
        self._wake = trio.Event()
        self._seen: set[str] = set()
        self._asked: list[float] = []
        self._refused = False

    # --- what the doors ask ---

    def prepare(
        self, caller: Caller, spec: Mapping[str, Any], job_id: str | None = None
    ) -> Callable[[Connection], Job]:
        """Check what can be checked now; the rest is done, and the job stored, by what is returned.

        That is for a write of the catalogue, which may be one that does more (completing an upload,
        for one); call `wake` when it is committed. `spec`: processor, files, params, session.
        `job_id`: another than a random one. Raises Unprocessable, now or then.
        """
        params = spec.get("params") or {}
        files: list[str] = spec.get("files") or []
        processor = check_params(self._settings, spec["processor"], params)
        most = 1 if processor.input == "stream" else MAX_FILES
        least = 1 if processor.builtin else 0
        if not least <= len(files) <= most:
            takes = "one file" if most == least else f"{least} to {most} files"
            raise Unprocessable(f"{processor.name} takes {takes}, not {len(files)}.")
        session: str | None = spec.get("session")
        now = now_ms()
        job = Job(
            id=job_id or new_id("j"),
            owner=caller.owner,
            account=caller.account,
            processor=processor.name,
            files=json.dumps(files),
            params=json.dumps(params),
            session=session,
            state="ready",
            attempt=0,
            spared=0,
            max_attempts=processor.max_attempts,
            ready_at=now,
            run_after=now,
            worker=None,
            host=None,
            beat=0,
            progress_bytes=None,
            progress_total=None,
            result=None,
            error=None,
            told=int(session is None),
            created_at=now,
            started_at=None,
            finished_at=None,
        )

        def store(cx: Connection) -> Job:
            for file_id in files:
                file = self._files.find(cx, file_id)
                if file is None or not file.ready or file.owner != caller.owner:
                    raise Unprocessable(
                        f"There is no file {file_id[:50]!r} of {caller.owner!r} that is ready; "
                        "`GET /v1/files` lists them."
                    )
            if session is not None:
                row = session_row(cx, session)
                if row is None or (row.owner != caller.owner and row.share != "write"):
                    raise Unprocessable(f"There is no session {session[:50]!r} of yours to tell.")
            jobs_table.create_job(cx, job)
            return job

        return store

    def wake(self) -> None:
        """A job was stored: see to it that somebody runs it."""
        self._wake.set()

    async def submit(self, caller: Caller, spec: Mapping[str, Any]) -> Json:
        job = await self._catalogue.write(self.prepare(caller, spec))
        self.wake()
        return view(job)

    async def get(self, caller: Caller, job_id: str) -> Json:
        return view(await self._catalogue.read(lambda cx: self._of(cx, caller, job_id)))

    async def list_jobs(
        self,
        caller: Caller,
        *,
        state: str | None,
        processor: str | None,
        limit: int,
        cursor: str | None,
    ) -> Json:
        owner = None if caller.admin else caller.owner
        found, following = await self._catalogue.read(
            lambda cx: jobs_table.list_jobs(
                cx, owner=owner, state=state, processor=processor, limit=limit, cursor=cursor
            )
        )
        return {"items": [view(job) for job in found], "next": following}

    async def log(self, caller: Caller, job_id: str, attempt: int | None) -> Json:
        """What an attempt (None: the last) has said on stderr so far."""

        def read(cx: Connection) -> Json:
            job = self._of(cx, caller, job_id)
            wanted = job.attempt if attempt is None else attempt
            row = jobs_table.get_log(cx, job_id, wanted)
            if row is None:
                if not 0 <= wanted <= job.attempt:
                    raise NotFound(f"Job {job_id} has had {job.attempt} attempts, not {wanted}.")
                return {"attempt": wanted, "text": "", "size": 0}
            return {"attempt": wanted, "text": row.text, "size": row.size}

        return await self._catalogue.read(read)

    async def cancel(self, caller: Caller, job_id: str) -> None:
        """It ends as cancelled; what runs of it is killed within two seconds."""
        await self._change(caller, job_id, lambda job: rules.cancel(job, now_ms()))

    async def retry(self, caller: Caller, job_id: str) -> Json:
        job = await self._change(caller, job_id, lambda job: rules.retry(job, now_ms()))
        self.wake()
        return view(job)

    async def _change(self, caller: Caller, job_id: str, rule: Callable[[Job], Job]) -> Job:
        def change(cx: Connection) -> Job:
            self._of(cx, caller, job_id)
            return jobs_table.change(cx, job_id, lambda job: rule(_there(job, job_id)))

        return await self._catalogue.write(change)

    def _of(self, cx: Connection, caller: Caller, job_id: str) -> Job:
        job = _there(jobs_table.get_job(cx, job_id), job_id)
        if not caller.admin and job.owner != caller.owner:
            raise _no_job(job_id)
        return job

    async def make_room(self, sessions: int) -> None:
        """Have jobs' agents stop where so many sessions of this host would be too many with them.

        Those that began last, since they lose least. Their processors are gone within two seconds;
        nobody waits for that.
        """
        agents = [name for name, one in self._settings.processors.items() if one.starts_agent]
        running = await self._catalogue.read(
            lambda cx: jobs_table.agent_jobs(cx, agents, self._host)
        )
        limit = self._settings.sessions.max_live
        for job in running[: rules.to_give_way(sessions=sessions, jobs=len(running), limit=limit)]:
            with contextlib.suppress(rules.Fenced):
                await self._catalogue.write(
                    partial(
                        jobs_table.change_held,
                        job_id=job.id,
                        attempt=job.attempt,
                        rule=lambda held: rules.gives_way(held, now_ms()),
                    )
                )
                log.info("job %s, attempt %d makes room for a session", job.id, job.attempt)

    @property
    def workers(self) -> int:
        """Workers that live on this host."""
        return len(self._upkeep.living)

    @property
    def taken(self) -> int:
        """Jobs that this instance has taken from workers that were gone."""
        return self._upkeep.taken

    def longest_silence_s(self) -> float:
        """How long the worker of a running job has said nothing that has been silent longest."""
        return self._upkeep.longest_silence_s()

    # --- having them run ---

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """See to it that jobs have workers, and sessions their notices, until cancelled."""
        task_status.started()
        with contextlib.closing(self._upkeep):
            await self._run()

    async def _run(self) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._catalogue.hints(jobs_table.HINT).run, self.wake)
            nursery.start_soon(self._see_ends)
            asked = 0.0
            while True:
                taken = await self._upkeep.look()
                now = trio.current_time()
                if taken or self._wake.is_set() or now - asked >= ASK_EVERY_S:
                    asked = now
                    self._wake = trio.Event()
                    try:
                        for _ in range(await self._wanted()):
                            nursery.start_soon(self._ask)
                        if self._serving():
                            await self._tell_sessions()
                    except CatalogueError as error:
                        log.warning("jobs wait for the catalogue: %s", error)
                with trio.move_on_after(LOOK_S):
                    await self._wake.wait()

    async def _see_ends(self) -> None:
        """Look at once when a worker of this host has ended."""
        while True:
            await self._upkeep.ended()
            self.wake()
            await trio.sleep(LOOK_S)

    async def _wanted(self) -> int:
        """How many more workers to ask for now."""
        names, limit = list(self._settings.processors), self._settings.jobs.max_workers
        now = now_ms()

        def read(cx: Connection) -> tuple[int, int]:
            running = sum(one.host == self._host for one in jobs_table.running_jobs(cx))
            return jobs_table.count_due(cx, names, now, limit), running

        ready, running = await self._catalogue.read(read)
        living = self._upkeep.living
        for _ in living - self._seen:
            self._asked = self._asked[1:]
        self._seen = set(living)
        since = trio.current_time() - APPEARS_WITHIN_S
        self._asked = [at for at in self._asked if at > since]
        coming = len(living) + len(self._asked)
        wanted = rules.wanted_workers(ready=ready, running=running, living=coming, limit=limit)
        self._asked += [trio.current_time()] * wanted
        return wanted

    async def _ask(self) -> None:
        """Ask for a worker: a connection, and no word. Whoever holds the socket starts one."""
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as knock:
            knock.setblocking(False)
            try:
                knock.connect(str(self._socket))
            except OSError as error:
                if not self._refused:
                    log.error(
                        "No worker can be asked for: %s does not answer (%s); jobs wait. Start "
                        "holdover-worker.socket.",
                        self._socket,
                        error.strerror,
                    )
                self._refused = True
                return
            self._refused = False
            await trio.sleep(ASK_EVERY_S)  # until it is accepted, whatever else goes on

    async def _tell_sessions(self) -> None:
        for job in await self._catalogue.read(lambda cx: jobs_table.untold_jobs(cx, TOLD_AT_ONCE)):
            assert job.session is not None, "what is told to nobody counts as told"
            try:
                await self._sessions.job_ended(job.session, job.id, _said(job), view(job))
            except (NotFound, Conflict):  # the session is gone or over, or has heard
                await self._catalogue.write(partial(jobs_table.mark_told, job_id=job.id))
            except RequestError as error:
                # Owned elsewhere, and told from there; or busy, and told at the next look.
                log.debug("session %s is not told of job %s: %s", job.session, job.id, error)


def view(job: Job) -> Json:
    """A job as contract.md has it."""
    progress = None
    if job.progress_bytes is not None:
        progress = {"bytes": job.progress_bytes, "total": job.progress_total}
    worker = None if job.worker is None else f"{job.host}/{job.worker}"
    return {
        "id": job.id,
        "owner": job.owner,
        "processor": job.processor,
        "files": json.loads(job.files),
        "params": json.loads(job.params),
        "state": job.state,
        "attempt": job.counted,
        "max_attempts": job.max_attempts,
        "progress": progress,
        "result": None if job.result is None else json.loads(job.result),
        "error": job.error,
        "session": job.session,
        "created_at": job.created_at,
        "started_at": job.started_at,
        "finished_at": job.finished_at,
        "worker": worker,
    }


def _said(job: Job) -> str:
    """The end of a job, in a sentence for its session."""
    why = f": {job.error}" if job.state == "dead" and job.error else ""
    return f"The job {job.id} ({job.processor}) is {job.state}{why}."


def _there(job: Job | None, job_id: str) -> Job:
    if job is None:
        raise _no_job(job_id)
    return job


def _no_job(job_id: str) -> NotFound:
    return NotFound(f"There is no job {job_id[:50]!r}; `GET /v1/jobs` lists them.")
