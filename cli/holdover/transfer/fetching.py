"""Gets one file out of storage: the parts in threads into NAME.part, hash, fsync, rename.

What was fetched before a break stays in NAME.part, and the journal tells which of it is whole. The
object that is gone on with has to be the one it began with (`If-Match`).
"""

import contextlib
import hashlib
import os
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from holdover.client import Client, path_of
from holdover.exits import CommandError, Exit
from holdover.transfer.journal import Journal
from holdover.transfer.lane import Got, Lane, LocalError, Stop, persist
from holdover.transfer.rules import DOWNLOAD_PART_BYTES, Cut, Patience, Verdict
from holdover.transfer.sending import PARALLEL, Progress, blocks, in_lanes

LOOK_S = 0.02
SYNC_EVERY = 8  # parts


class _ChangedError(Exception):
    """The object is not the one that the transfer began with."""


class _Url:
    """A file's signed URL, asked for anew where storage refuses it; for any thread."""

    def __init__(self, client: Client, file_id: str) -> None:
        self._client = client
        self._path = path_of("files", file_id, "download")
        self._lock = threading.Lock()
        self.answer: Mapping[str, Any] = self._ask()

    def _ask(self) -> Mapping[str, Any]:
        answer: Mapping[str, Any] = self._client.get(self._path, redirect="false")
        return answer

    def get(self) -> str:
        return str(self.answer["url"])

    def renew(self, refused: str) -> str:
        """A new one, unless another thread has got it already."""
        with self._lock:
            if self.get() == refused:
                self.answer = self._ask()
            return self.get()


class Fetcher:
    """Gets files through one client."""

    def __init__(self, client: Client, stop: Stop, *, parallel: int = PARALLEL) -> None:
        self._client = client
        self._all = stop
        self._parallel = parallel

    def fetch(self, file: Mapping[str, Any], target: Path, progress: Progress) -> None:
        """Make `target` of `file`; what was there is replaced in one step, once all is right.

        Raises CommandError: 6 when what came is not what was declared, 7 when storage is away.
        """
        for last in (False, True):
            try:
                with self._all.child() as stop:
                    _Fetching(self._client, stop, self._parallel).fetch(file, target, progress)
                return
            except _ChangedError as error:
                # Keys are never used twice, so this is storage's doing: once more, from the start.
                if last:
                    raise CommandError(
                        f"{file['name']} changes in storage while it is fetched.", Exit.INTEGRITY
                    ) from error

    def stream(
        self, file: Mapping[str, Any], write: Callable[[memoryview], object], progress: Progress
    ) -> None:
        """Hand the bytes of `file` to `write`, in order; the digest is known only at the end.

        Raises what `write` raises, and CommandError as `fetch`.
        """
        with self._all.child() as stop:
            _Fetching(self._client, stop, 1).stream(file, write, progress)


class _Fetching:
    """One file on its way."""

    def __init__(self, client: Client, stop: Stop, parallel: int) -> None:
        self._client = client
        self._stop = stop
        self._parallel = parallel

    def fetch(self, file: Mapping[str, Any], target: Path, progress: Progress) -> None:
        url = _Url(self._client, file["id"])
        cut = Cut(url.answer["size"], DOWNLOAD_PART_BYTES)
        part = target.with_name(target.name + ".part")
        journal = Journal("get", str(self._client.door), file["id"], str(target.absolute()))
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            fd = os.open(part, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o666)
        except OSError as error:
            raise _local(error, part) from error
        try:
            record = journal.read() if os.fstat(fd).st_size == cut.size else None
            state = _State(cut, record)
            try:
                self._fill(file, url, state, fd, journal, progress)
            except _ChangedError:
                progress.moved(-cut.bytes_of(state.done))
                journal.forget()
                raise
            declared = url.answer["sha256"]
            if declared is not None and state.sha256 != declared:
                journal.forget()
                raise _damaged(file, declared, str(state.sha256))
            os.fsync(fd)
            part.replace(target)
            _sync_folder(target.parent)
        except LocalError as error:
            raise _local(error.error, part) from error
        except OSError as error:
            raise _local(error, part) from error
        finally:
            os.close(fd)
        journal.forget()

    def _fill(
        self,
        file: Mapping[str, Any],
        url: _Url,
        state: "_State",
        fd: int,
        journal: Journal,
        progress: Progress,
    ) -> None:
        cut = state.cut
        os.ftruncate(fd, cut.size)
        progress.moved(cut.bytes_of(state.done))
        numbers = [n for n in cut.numbers if n not in state.done] if cut.size else []
        keeping = threading.Lock()

        def fetch(lane: Lane, number: int) -> None:
            self._fetch_part(lane, file, url, state, fd, number, progress)
            with keeping:
                state.done.add(number)
                journal.write(state.record())

        if numbers and state.etag is None:
            # The first alone: it tells which object this is.
            first = numbers.pop(0)
            with self._stop.lane() as lane:
                self._fetch_part(lane, file, url, state, fd, first, progress)
                state.done.add(first)
        # Hash and disk keep up with the parts: both are done soon after the last one then, where
        # they would take as long again. Neither waits for the other.
        with self._stop.threads(2) as beside:
            following = [beside.submit(one, state, fd) for one in (self._hash, self._sync)]
            in_lanes(numbers, self._parallel, fetch, self._stop)
            for one in following:
                one.result()

    def _hash(self, state: "_State", fd: int) -> None:
        digest = hashlib.sha256()
        for number in state.cut.numbers:
            while number not in state.done and state.cut.size:
                self._stop.sleep(LOOK_S)
            offset, length = state.cut.span(number)
            for block in blocks(fd, offset, length, self._stop):
                digest.update(block)
        state.sha256 = digest.hexdigest()

    def _sync(self, state: "_State", fd: int) -> None:
        synced = 0
        while synced + SYNC_EVERY < state.cut.count:
            if len(state.done) < synced + SYNC_EVERY:
                self._stop.sleep(LOOK_S)
                continue
            synced = len(state.done)
            os.fdatasync(fd)

    def _fetch_part(
        self,
        lane: Lane,
        file: Mapping[str, Any],
        url: _Url,
        state: "_State",
        fd: int,
        number: int,
        progress: Progress,
    ) -> None:
        offset, length = state.cut.span(number)
        got_bytes = 0

        def take(block: memoryview) -> None:
            nonlocal got_bytes
            self._stop.check()
            if got_bytes + len(block) > length:
                raise OSError("more bytes came than were asked for")
            _write_all(fd, block, offset + got_bytes)
            got_bytes += len(block)
            progress.moved(len(block))

        def restart() -> None:
            nonlocal got_bytes
            progress.moved(-got_bytes)
            got_bytes = 0

        self._exchange(
            lane, file, url, state, lambda: (offset + got_bytes, offset + length), take, restart
        )

    def _exchange(
        self,
        lane: Lane,
        file: Mapping[str, Any],
        url: _Url,
        state: "_State",
        rest: Callable[[], tuple[int, int]],
        take: Callable[[memoryview], None],
        restart: Callable[[], None],
    ) -> None:
        """Fetch bytes until `rest()`, (from, to), is empty, through breaks and renewals."""
        patience = Patience()
        what = str(file["name"])

        def keep(block: memoryview) -> None:
            take(block)
            patience.moved()

        while rest()[0] < rest()[1]:
            signed = url.get()

            def attempt(signed: str = signed) -> Got:
                start, end = rest()
                headers = {"Range": f"bytes={start}-{end - 1}"}
                if state.etag is not None:
                    headers["If-Match"] = state.etag
                got = lane.get(signed, headers, keep)
                if got.verdict is Verdict.OK and rest()[0] < end:
                    raise OSError("the answer ended early")
                return got

            got = persist(self._stop, lane, patience, what, attempt)
            if got.verdict is Verdict.OK:
                state.etag = state.etag or got.headers.get("etag")
            elif got.verdict is Verdict.CHANGED:
                restart()
                raise _ChangedError
            elif got.verdict is Verdict.RENEW and patience.may_renew():
                url.renew(signed)
            elif got.verdict is Verdict.GONE:
                raise CommandError(f"{what} is not in storage any more.", Exit.NOT_FOUND)
            else:
                raise CommandError(
                    f"Storage refuses {what} ({got.status}); `holdover storage doctor` finds out "
                    "why.",
                    Exit.STORAGE_UNAVAILABLE,
                )

    def stream(
        self, file: Mapping[str, Any], write: Callable[[memoryview], object], progress: Progress
    ) -> None:
        url = _Url(self._client, file["id"])
        size: int = url.answer["size"]
        state = _State(Cut(size, max(1, size)), None)
        digest = hashlib.sha256()
        at = 0

        def take(block: memoryview) -> None:
            nonlocal at
            self._stop.check()
            try:
                write(block)
            except OSError as error:
                raise LocalError(error) from error
            digest.update(block)
            at += len(block)
            progress.moved(len(block))

        try:
            with self._stop.lane() as lane:
                self._exchange(lane, file, url, state, lambda: (at, size), take, lambda: None)
        except LocalError as error:
            raise error.error from error
        declared = url.answer["sha256"]
        if declared is not None and digest.hexdigest() != declared:
            raise _damaged(file, declared, digest.hexdigest())


class _State:
    """How far a download has come."""

    def __init__(self, cut: Cut, record: Mapping[str, Any] | None) -> None:
        self.cut = cut
        self.etag: str | None = None
        self.done: set[int] = set()
        self.sha256: str | None = None  # once all is there
        if record is not None and record.get("part_size") == cut.part_size and record.get("etag"):
            self.etag = str(record["etag"])
            self.done = {n for n in record.get("done", ()) if n in cut.numbers}

    def record(self) -> dict[str, Any]:
        return {"part_size": self.cut.part_size, "etag": self.etag, "done": sorted(self.done)}


def _write_all(fd: int, block: memoryview, offset: int) -> None:
    try:
        while block:
            count = os.pwrite(fd, block, offset)
            block, offset = block[count:], offset + count
    except OSError as error:
        raise LocalError(error) from error


def _sync_folder(folder: Path) -> None:
    with contextlib.suppress(OSError):  # not every filesystem can; the file itself is safe
        fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)


def _local(error: OSError, part: Path) -> CommandError:
    return CommandError(
        f"{part} cannot be written: {error.strerror or error}. What is there already stays; the same "
        "command goes on from it."
    )


def _damaged(file: Mapping[str, Any], declared: str, found: str) -> CommandError:
    return CommandError(
        f"{file['name']} is damaged: its SHA-256 was declared as {declared} and is {found}. Nothing "
        "was put under its name; get it again.",
        Exit.INTEGRITY,
    )
