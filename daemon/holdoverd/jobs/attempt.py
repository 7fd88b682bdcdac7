"""One attempt at one job: bytes from storage to the processor, its words to the catalogue.

::

    attempt: files' rows -> runner -> nursery
        feed        storage -> stdin, hashed on the way      (or, for "file", to the runner's folder)
        stdout      a text while it is small, then an object in storage
        stderr      the log, its two ends
        progress    what the processor says of itself
        clock       timeout
        fence       twice a second: is this attempt still the job's?
        heartbeat   every few seconds: this worker lives, and so far it has come
    then: one fenced write publishes the end

Nothing is published before the file's sha256 has been seen to be right, and nothing but by the fenced
write. An attempt that finds itself fenced, or is cancelled, kills its processor and leaves no trace.
"""

import hashlib
import json
import logging
import random
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import trio
from sqlalchemy import Connection

from holdoverd.catalogue import jobs as jobs_table
from holdoverd.catalogue.jobs import LogRow
from holdoverd.catalogue.store import Catalogue
from holdoverd.errors import CatalogueError, StorageRefused, StorageUnavailable
from holdoverd.ids import now_ms
from holdoverd.jobs import rules
from holdoverd.jobs.link import Link, RunnerLost
from holdoverd.jobs.objects import (
    RESULTS_PREFIX,
    FileTable,
    InputFile,
    Objects,
    ResultFile,
)
from holdoverd.jobs.output import (
    MAX_TEXT_BYTES,
    Done,
    Failed,
    Later,
    Log,
    Progress,
    Verdict,
    as_text,
    judge,
)
from holdoverd.jobs.rules import Fenced, Job
from holdoverd.settings import ProcessorSettings

log = logging.getLogger(__name__)

PIECE_BYTES = 256 << 10
FENCE_S = 0.5
TERM_S = 0.7
"""From TERM to KILL. With `FENCE_S` before and the killing after it, a cancelled job's processor is
gone within two seconds."""
STORAGE_PATIENCE_S = 120.0
"""How long an attempt waits for storage that does not answer; then the job waits without it."""
STORAGE_LATER_S = 30.0
WRITE_AGAIN_S = 1.0
FIRST_BEAT_S = 1.0
"""A job that is over sooner needs no heartbeat, nor the commit that it costs."""


@dataclass(frozen=True)
class Means:
    """What attempts are made with; one for the life of a worker.

    door       path of the processor socket of an account; None: processors are our children.
    environment
               what a processor gets beside its job, by its name.
    beat_s     between heartbeats, well below the lease.
    max_scratch_bytes
               the most that files of one job may take in a folder (``input = "file"``).
    """

    catalogue: Catalogue
    files: FileTable
    objects: Objects
    door: Callable[[str], Path | None]
    environment: Callable[[str], Mapping[str, str]]
    beat_s: float
    max_scratch_bytes: int


class _Over(Exception):
    """Ends the attempt's nursery; `verdict` None: fenced, nothing is to be said."""

    def __init__(self, verdict: Verdict | None) -> None:
        super().__init__()
        self.verdict = verdict


@dataclass
class Attempt:
    """One run of a job's processor. `run` once."""

    means: Means
    job: Job
    processor: ProcessorSettings
    log: Log = field(default_factory=Log)
    progress: Progress = field(default_factory=Progress)
    fed: int = 0
    total: int = 0
    result: dict[str, Any] = field(default_factory=dict)
    stored: ResultFile | None = None
    _logged: int = 0

    async def run(self) -> None:
        """Run it to its end, and record that. Cancelled: the processor is killed, nothing written.

        Raises nothing of the job's; what goes wrong with it is written into it.
        """
        try:
            try:
                verdict = await self._verdict()
            except CatalogueError as error:
                verdict = Later(f"The catalogue could not be read: {error}", STORAGE_LATER_S)
            await self._publish(verdict)
        except Fenced as over:
            log.info("%s", over)
            await self._discard()

    async def give_back(self, why: str) -> None:
        """After a cancelled `run`: let another worker have it, at no cost."""
        await self._end(lambda job: rules.spared(job, why=why, after_s=0, now=now_ms()))

    # --- the run ---

    async def _verdict(self) -> Verdict:
        """Run the processor; raises Fenced when the attempt is over without a verdict."""
        ids = json.loads(self.job.files)
        files = await self.means.catalogue.read(
            lambda cx: [self.means.files.find(cx, file_id) for file_id in ids]
        )
        inputs = [file for file in files if file is not None and file.ready]
        if len(inputs) < len(files):
            gone = next(
                name for name, f in zip(ids, files, strict=True) if f is None or not f.ready
            )
            return Failed(f"The file {gone} is deleted; submit a job for one that is there.", True)
        self.total = sum(file.size for file in inputs)
        if self.processor.input == "file" and self.total > self.means.max_scratch_bytes:
            return Failed(
                f"The files have {self.total} bytes and {self.means.max_scratch_bytes} fit into "
                "the folder of a job ([jobs] max_scratch_bytes). A processor with input = "
                '"stream" takes any size.',
                True,
            )
        try:
            link = await Link.start(self._request(inputs), self.means.door(self.job.account))
        except RunnerLost as error:
            return Failed(str(error))
        try:
            return await self._converse(link, inputs)
        finally:
            await link.close()

    def _request(self, inputs: Sequence[InputFile]) -> dict[str, Any]:
        env = {
            **self.means.environment(self.processor.name),
            "HOLDOVER_JOB": self.job.id,
            "HOLDOVER_ATTEMPT": str(self.job.attempt),
            "HOLDOVER_PROCESSOR": self.job.processor,
            "HOLDOVER_OWNER": self.job.owner,
            "HOLDOVER_PARAMS": self.job.params,
            "HOLDOVER_PROGRESS_FD": "3",
        }
        if inputs:
            first = inputs[0]
            env |= {
                "HOLDOVER_FILE_ID": first.id,
                "HOLDOVER_FILE_NAME": first.name,
                "HOLDOVER_FILE_SIZE": str(first.size),
                "HOLDOVER_FILE_TYPE": first.content_type,
                "HOLDOVER_FILE_SHA256": first.sha256 or "",
            }
        return {
            "argv": list(self.processor.command),
            "env": env,
            "files": [{"name": file.name, "size": file.size} for file in inputs],
            "input": self.processor.input,
            "term_s": TERM_S,
        }

    async def _converse(self, link: Link, inputs: Sequence[InputFile]) -> Verdict:
        verdict: Verdict | None = None
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._fence)
                nursery.start_soon(self._heartbeat)
                nursery.start_soon(self._clock)
                ending = await self._run(link, inputs)
                nursery.cancel_scope.cancel()
            return ending
        except* _Over as group:
            over = group
            while isinstance(over, BaseExceptionGroup):
                over = over.exceptions[0]  # type: ignore[assignment]
            verdict = over.verdict if isinstance(over, _Over) else None
            await self._stop(link)
        if verdict is None:
            raise Fenced(f"Job {self.job.id}, attempt {self.job.attempt}: over, processor killed.")
        return verdict

    async def _run(self, link: Link, inputs: Sequence[InputFile]) -> Verdict:
        """Feed, listen and wait; the verdict of an end that was the processor's own."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._listen, link.stderr, self.log.add)
            nursery.start_soon(self._listen, link.progress, self.progress.feed)
            nursery.start_soon(self._collect, link.stdout)
            try:
                if self.processor.input == "file":
                    await self._feed(link, inputs)
                    if (said := await link.line()) == "SAVED":
                        await link.say("GO")
                        said = await link.line()
                else:
                    said = await link.line()
                verb, _, words = said.partition(" ")
                if verb in ("FAILED", "HINDERED"):
                    final = verb == "FAILED"
                    raise _Over(Failed(f"The processor was not started: {words}.", final))
                feeding = trio.CancelScope()
                if self.processor.input == "stream":
                    nursery.start_soon(self._feed_within, feeding, link, inputs)
                verb, _, rest = (await link.line()).partition(" ")
                assert verb == "EXITED", "runner and worker are of one release"
            except RunnerLost as error:
                raise _Over(Failed(str(error))) from error
            # Its descendants are gone: every pipe ends, and with them the tasks here; only the
            # feed of a file that was not read to its end goes on, to see whether the rest is right.
            code, killed = (None if word == "-" else int(word) for word in rest.split(" "))
            if code != 0:
                feeding.cancel()
        return judge(code, killed, self.log.last_line(), self.progress.retry_after_s)

    async def _feed_within(
        self, scope: trio.CancelScope, link: Link, inputs: Sequence[InputFile]
    ) -> None:
        with scope:
            await self._feed(link, inputs)

    async def _stop(self, link: Link) -> None:
        """End the processor, gently first; returns when all of it is gone. Never cancelled."""
        with trio.move_on_after(TERM_S + 6) as scope:
            scope.shield = True
            await link.say("STOP")
            try:
                while not (await link.line()).startswith(("EXITED", "FAILED", "HINDERED")):
                    pass
            except RunnerLost:
                return

    # --- bytes in ---

    async def _feed(self, link: Link, inputs: Sequence[InputFile]) -> None:
        """Send every file, then close stdin; `_Over` when storage has not got what it should."""
        reading = True
        for file in inputs:
            digest = hashlib.sha256()
            got = 0
            async with aclosing(self._pieces(file)) as pieces:
                async for piece in pieces:
                    digest.update(piece)
                    got += len(piece)
                    if reading:
                        try:
                            await link.stdin.send_all(piece)
                        except trio.BrokenResourceError:
                            reading = False  # it has read enough
                            if file.sha256 is None:
                                return  # nothing to hold the rest against
                    self.fed += len(piece)
            if got != file.size:
                raise _Over(
                    Failed(f"Storage gave {got} bytes of {file.name!r}, not {file.size}.", True)
                )
            if file.sha256 is not None and digest.hexdigest() != file.sha256:
                raise _Over(
                    Failed(
                        f"The bytes of {file.name!r} are not those that were uploaded: their "
                        f"sha256 is {digest.hexdigest()}, not {file.sha256}. Upload it again.",
                        True,
                    )
                )
        # Only now: a processor that acts at the end of its input acts on what is right.
        await link.stdin.aclose()

    async def _pieces(self, file: InputFile) -> AsyncGenerator[bytes, None]:
        """The file's bytes; goes on where it was when storage went away for a while."""
        offset = 0
        patience = trio.current_time() + STORAGE_PATIENCE_S
        delay_s = 0.2
        while True:
            try:
                async with aclosing(self.means.objects.read(file.key, offset)) as pieces:
                    async for piece in pieces:
                        offset += len(piece)
                        patience = trio.current_time() + STORAGE_PATIENCE_S
                        delay_s = 0.2
                        yield piece
                return
            except StorageRefused as error:
                raise _Over(
                    Failed(f"Storage does not give the file {file.name!r}: {error}", True)
                ) from error
            except StorageUnavailable as error:
                if trio.current_time() > patience:
                    raise _Over(
                        Later(f"The file cannot be read: {error}", STORAGE_LATER_S)
                    ) from error
                await trio.sleep(delay_s * random.uniform(0.5, 1))  # noqa: S311
                delay_s = min(delay_s * 2, 5.0)

    # --- words out ---

    async def _listen(self, stream: trio.lowlevel.FdStream, take: Callable[[bytes], None]) -> None:
        while data := await stream.receive_some(PIECE_BYTES):
            take(bytes(data))

    async def _collect(self, stdout: trio.lowlevel.FdStream) -> None:
        """Keep stdout as text, or from its first large or strange piece on in storage."""
        begun = bytearray()
        while len(begun) <= MAX_TEXT_BYTES:
            data = await stdout.receive_some(PIECE_BYTES)
            if not data:
                if (text := as_text(bytes(begun))) is not None:
                    self.result["text"] = text
                    return
                break
            begun += data
        await self._store(bytes(begun), stdout)

    async def _store(self, begun: bytes, stdout: trio.lowlevel.FdStream) -> None:
        key = f"{RESULTS_PREFIX}{self.job.id}/{self.job.attempt}"
        digest = hashlib.sha256()
        size = 0
        send, receive = trio.open_memory_channel[bytes](2)

        async with trio.open_nursery() as nursery:

            async def read() -> None:
                nonlocal size
                async with send:
                    data = begun
                    while data:
                        digest.update(data)
                        size += len(data)
                        await send.send(data)
                        data = bytes(await stdout.receive_some(PIECE_BYTES))

            nursery.start_soon(read)
            try:
                await self.means.objects.write(key, receive)
            except StorageUnavailable as error:
                raise _Over(
                    Later(f"The result cannot be stored: {error}", STORAGE_LATER_S)
                ) from error
            except StorageRefused as error:
                raise _Over(Failed(f"The result cannot be stored: {error}")) from error
        self.stored = ResultFile(
            job=self.job.id,
            owner=self.job.owner,
            name=f"{self.job.processor}-{self.job.id}",
            key=key,
            size=size,
            sha256=digest.hexdigest(),
        )

    # --- beside it ---

    async def _clock(self) -> None:
        await trio.sleep(self.processor.timeout_s)
        raise _Over(
            Failed(
                f"The processor took longer than {self.processor.timeout_s:g} s ([processors."
                f"{self.job.processor}] timeout_s) and was killed."
            )
        )

    async def _fence(self) -> None:
        """End the attempt once it is no longer the job's. A catalogue that is away fences nobody."""
        while True:
            await trio.sleep(FENCE_S)
            try:
                await self.means.catalogue.read(
                    lambda cx: rules.check_held(
                        jobs_table.get_job(cx, self.job.id), self.job.id, self.job.attempt
                    )
                )
            except CatalogueError:
                continue
            except Fenced as over:
                raise _Over(None) from over

    async def _heartbeat(self) -> None:
        await trio.sleep(min(FIRST_BEAT_S, self.means.beat_s))
        while True:
            try:
                catalogue = self.means.catalogue
                if self.log.size == self._logged:
                    await catalogue.write_alone(self._beat)
                else:
                    await catalogue.write_beside(self._beat_and_log)
            except Fenced as over:
                raise _Over(None) from over
            except CatalogueError as error:
                log.warning("no heartbeat of job %s, trying again: %s", self.job.id, error)
            await trio.sleep(self.means.beat_s)

    def _beat(self, cx: Connection) -> None:
        done, total = self.progress.done, self.progress.total
        if done is None:
            done, total = self.fed, self.total
        jobs_table.beat(cx, self.job.id, self.job.attempt, (done, total))

    def _beat_and_log(self, cx: Connection) -> None:
        self._beat(cx)
        self._put_log(cx)

    def _put_log(self, cx: Connection) -> None:
        size = self.log.size
        row = LogRow(self.job.id, self.job.attempt, size, now_ms(), self.log.text())
        jobs_table.put_log(cx, row)
        self._logged = size

    # --- the end ---

    async def _publish(self, verdict: Verdict) -> None:
        match verdict:
            case Done():
                await self._end_well()
            case Later(why, after_s):
                await self._discard()
                await self._end(
                    lambda job: rules.spared(job, why=why, after_s=after_s, now=now_ms())
                )
            case Failed(error, final):
                await self._discard()
                chance = random.random()  # noqa: S311  spreads load, no secret
                await self._end(
                    lambda job: rules.failed(
                        job, error=error, final=final, chance=chance, now=now_ms()
                    )
                )
        log.info("job %s, attempt %d: %s", self.job.id, self.job.attempt, verdict)

    async def _end_well(self) -> None:
        """Publish the result. Raises Fenced, having published nothing."""
        catalogue, job, stored = self.means.catalogue, self.job, self.stored

        def done(cx: Connection, files: Sequence[str] = ()) -> None:
            result = json.dumps({**self.result, "files": [*files]})
            jobs_table.done(cx, job.id, job.attempt, result=result, now=now_ms())

        def done_and_log(cx: Connection) -> None:
            if stored is None:
                done(cx)
            elif not jobs_table.is_done(cx, job.id, job.attempt):
                # Undone where the fence refuses what comes next.
                done(cx, [self.means.files.add(cx, stored, now_ms())])
            if self.log.size:
                self._put_log(cx)

        if stored is not None:
            # Files have rules of their own, which go by what nobody else writes meanwhile.
            await self._write(catalogue.write, done_and_log)
        elif self.log.size:
            await self._write(catalogue.write_beside, done_and_log)
        else:
            await self._write(catalogue.write_alone, done)

    async def _end(self, rule: Callable[[Job], Job]) -> None:
        """An end that publishes nothing. Raises Fenced."""

        def end(cx: Connection) -> None:
            jobs_table.change_held(cx, self.job.id, self.job.attempt, rule)
            if self.log.size:
                self._put_log(cx)

        await self._write(self.means.catalogue.write_beside, end)

    async def _write(
        self,
        write: Callable[[Callable[[Connection], None]], Awaitable[None]],
        end: Callable[[Connection], None],
    ) -> None:
        """The attempt's last write; waits for a catalogue that cannot take it. Raises Fenced."""
        with trio.CancelScope(shield=True):
            while True:
                try:
                    await write(end)
                    return
                except CatalogueError as error:
                    # Full disk, most likely. Nobody else could write it either.
                    log.warning("the end of job %s waits: %s", self.job.id, error)
                    await trio.sleep(WRITE_AGAIN_S)

    async def _discard(self) -> None:
        """Remove a result that will not be published; left to the sweep of storage if that fails."""
        if self.stored is None:
            return
        stored, self.stored = self.stored, None
        try:
            await self.means.objects.remove(stored.key)
        except (StorageUnavailable, StorageRefused) as error:
            log.warning("%s is left in storage: %s", stored.key, error)
