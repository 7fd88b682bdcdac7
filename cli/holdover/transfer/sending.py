"""Puts one local file into storage: hash, cut, send the parts in threads, complete.

journal knows an upload of this very file? -> what storage holds of it stays
else: the digests, then POST /v1/files
parts, `PARALLEL` at a time: read, PUT by a signed URL; a URL too old is asked for anew
POST …/complete -> the file, whose digest is compared with ours
"""

import hashlib
import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_EXCEPTION, wait
from dataclasses import dataclass, field
from queue import Empty, SimpleQueue
from typing import Any

from holdover.client import Client, path_of
from holdover.exits import CommandError, Exit, RefusedError
from holdover.transfer.journal import Journal
from holdover.transfer.lane import BLOCK_BYTES, Got, Lane, Stop, persist
from holdover.transfer.rules import (
    Cut,
    Identity,
    Patience,
    Verdict,
    left_to_send,
    usual_part_size,
    window,
)

PARALLEL = 4
HASH_BLOCK_BYTES = 1 << 20
# A URL is not begun with when it ends so soon; one that was signed just now always is.
URL_MARGIN_S = 2.0
FRESH_S = 2.0


@dataclass
class Progress:
    """Told about bytes by any thread: `moved(n)` more of them (less, where n is negative)."""

    moved: Callable[[int], None] = lambda _: None
    doing: Callable[[str], None] = lambda _: None


@dataclass(frozen=True)
class Source:
    """An open file to be sent. `fd` stays the caller's; reading it moves no offset.

    `key` names it in the journal; None for what will not be there again, as a pipe's copy.
    """

    fd: int
    key: str | None
    path: str
    name: str
    content_type: str | None = None
    checksum: bool = True

    def identity(self) -> Identity:
        status = os.fstat(self.fd)
        return Identity(status.st_size, status.st_mtime_ns, status.st_ino)


@dataclass
class _Upload:
    """An upload under way; what the journal keeps of it."""

    id: str
    cut: Cut
    sha256: str | None
    digests: list[str]  # of the parts, hex, in order; empty where none are wanted
    etags: dict[int, str] = field(default_factory=dict)

    @property
    def wants_digests(self) -> bool:
        return self.sha256 is not None and self.cut.count > 1


class Sender:
    """Sends files through one client; each by `send`, from one thread at a time or several."""

    def __init__(self, client: Client, stop: Stop, *, parallel: int = PARALLEL) -> None:
        self._client = client
        self._all = stop
        self._parallel = parallel

    def send(self, source: Source, progress: Progress) -> dict[str, Any]:
        """The file as the daemon shows it, ready.

        Raises CommandError: 6 when what arrived is not what was sent, 7 when storage is away.
        """
        with self._all.child() as stop:
            return _Sending(self._client, stop, self._parallel).send(source, progress)


class _Sending:
    """One file on its way."""

    def __init__(self, client: Client, stop: Stop, parallel: int) -> None:
        self._client = client
        self._stop = stop
        self._parallel = parallel

    def send(self, source: Source, progress: Progress) -> dict[str, Any]:
        identity = source.identity()
        journal = None
        if source.key is not None:
            journal = Journal("put", str(self._client.door), source.key, source.path, source.name)
        resumed = self._resume(journal, identity, source)
        if isinstance(resumed, dict):
            progress.moved(identity.size)
            return resumed
        upload, urls = resumed or self._begin(source, identity, progress)
        if journal is not None:
            journal.write(_record(upload, identity))
        held = upload.cut.bytes_of(upload.etags)
        progress.moved(held)
        progress.doing("sending")
        file = self._put_and_complete(source, upload, urls, progress)
        if journal is not None:
            journal.forget()
        if source.identity() != identity:
            raise CommandError(
                f"{source.name} was changed while it was sent; put it again.", Exit.INTEGRITY
            )
        if upload.sha256 is not None and file["sha256"] != upload.sha256:
            raise CommandError(
                f"{source.name} did not arrive as it was sent: its SHA-256 is {upload.sha256} here "
                f"and {file['sha256']} there. Remove {file['id']} and put it again.",
                Exit.INTEGRITY,
            )
        return file

    # -- beginning -------------------------------------------------------------------------------

    def _resume(
        self, journal: Journal | None, identity: Identity, source: Source
    ) -> "tuple[_Upload, dict[int, Any]] | dict[str, Any] | None":
        """The upload to go on with, or the file if it was completed before; None: begin anew."""
        record = journal.read() if journal is not None else None
        if record is None:
            return None
        try:
            same = record["identity"] == [identity.size, identity.mtime_ns, identity.inode]
            if not same or (record["sha256"] is None) == source.checksum:
                return None
            found = self._client.get(path_of("uploads", record["id"]))
            upload = _Upload(
                id=record["id"],
                cut=Cut(identity.size, record["part_size"]),
                sha256=record["sha256"],
                digests=record["digests"],
            )
        except (KeyError, TypeError):
            return None
        except RefusedError as error:
            if error.exit_code in {Exit.NOT_FOUND, Exit.CONFLICT}:
                return None
            raise
        if found["state"] == "completed":
            file = found.get("file")
            return file if isinstance(file, dict) and file["state"] == "ready" else None
        if found["state"] != "open":
            return None
        held = {part["number"]: part for part in found["parts"]}
        left = {*left_to_send(upload.cut, {n: part["size"] for n, part in held.items()})}
        upload.etags = {n: part["etag"] for n, part in held.items() if n not in left}
        return upload, {}

    def _begin(
        self, source: Source, identity: Identity, progress: Progress
    ) -> "tuple[_Upload, dict[int, Any]]":
        sha256: str | None = None
        digests: list[str] = []
        part_size = usual_part_size(identity.size)
        if source.checksum:
            progress.doing("hashing")
            sha256, digests = digests_of(
                source.fd, Cut(identity.size, part_size), self._stop, whole=True
            )
        body: dict[str, object] = {
            "name": source.name,
            "path": source.path,
            "size": identity.size,
        }
        if sha256 is not None:
            body["sha256"] = sha256
        if source.content_type is not None:
            body["content_type"] = source.content_type
        made = self._client.post("/v1/files", body)["upload"]
        cut = Cut(identity.size, made["part_size"])
        if source.checksum and cut.count > 1 and cut.part_size != part_size:
            _, digests = digests_of(source.fd, cut, self._stop, whole=False)
        return _Upload(made["id"], cut, sha256, digests), _by_number(made["parts"])

    # -- the parts -------------------------------------------------------------------------------

    def _put_and_complete(
        self, source: Source, upload: _Upload, urls: dict[int, Any], progress: Progress
    ) -> dict[str, Any]:
        signed = _Urls(self._client, upload, urls)
        for last in (False, True):
            self._put_parts(source, upload, signed, progress)
            parts = [{"number": n, "etag": upload.etags[n]} for n in upload.cut.numbers]
            try:
                answer = self._client.post(
                    path_of("uploads", upload.id, "complete"), {"parts": parts}, again=True
                )
                file: dict[str, Any] = answer["file"]
                return file
            except RefusedError as error:
                # Storage lost some, or holds others: send those once more.
                missing = [n for n in error.extra.get("missing", ()) if n in upload.etags]
                if last or not missing:
                    raise
                for number in missing:
                    del upload.etags[number]
                    progress.moved(-upload.cut.span(number)[1])
        raise AssertionError("the second round returns or raises")

    def _put_parts(
        self, source: Source, upload: _Upload, signed: "_Urls", progress: Progress
    ) -> None:
        numbers = [n for n in upload.cut.numbers if n not in upload.etags]

        def put(lane: Lane, number: int) -> None:
            upload.etags[number] = self._put_part(lane, source, upload, signed, number, progress)

        in_lanes(numbers, self._parallel, put, self._stop)

    def _put_part(
        self,
        lane: Lane,
        source: Source,
        upload: _Upload,
        signed: "_Urls",
        number: int,
        progress: Progress,
    ) -> str:
        """Send part `number`; its ETag."""
        offset, length = upload.cut.span(number)
        what = f"part {number} of {source.name}"
        patience = Patience()
        url = signed.get(number)
        while True:
            sent = 0

            def blocks() -> Iterator[bytes]:
                nonlocal sent
                while sent < length:
                    self._stop.check()
                    block = _read(source.fd, min(BLOCK_BYTES, length - sent), offset + sent)
                    if not block:
                        raise CommandError(
                            f"{source.name} became shorter while it was sent; put it again.",
                            Exit.INTEGRITY,
                        )
                    yield block
                    sent += len(block)
                    progress.moved(len(block))

            def attempt(url: Mapping[str, Any] = url) -> Got:
                nonlocal sent
                progress.moved(-sent)
                sent = 0
                return lane.put(url["url"], url["headers"], length, blocks())

            got = persist(self._stop, lane, patience, what, attempt)
            if got.verdict is Verdict.OK:
                return got.headers.get("etag", "").strip('"')
            progress.moved(-sent)
            if got.verdict is Verdict.RENEW and patience.may_renew():
                url = signed.renew(number)
                continue
            raise _refused(got, what)


class _Urls:
    """Signed URLs of the parts of an upload, asked for in windows; for any thread."""

    def __init__(self, client: Client, upload: _Upload, given: dict[int, Any]) -> None:
        self._client = client
        self._upload = upload
        self._lock = threading.Lock()
        self._given = given
        self._given_at = time.monotonic()

    def get(self, number: int) -> Mapping[str, Any]:
        with self._lock:
            found = self._given.pop(number, None)
            if found is not None:
                fresh = time.monotonic() - self._given_at < FRESH_S
                if fresh or found["expires_at"] / 1000 - time.time() > URL_MARGIN_S:
                    signed: Mapping[str, Any] = found
                    return signed
            left = [n for n in self._upload.cut.numbers if n not in self._upload.etags]
            return self._ask(window(number, left))

    def renew(self, number: int) -> Mapping[str, Any]:
        """A new one for a part whose URL was refused."""
        with self._lock:
            return self._ask([number])

    def _ask(self, numbers: list[int]) -> Mapping[str, Any]:
        body: dict[str, object] = {"numbers": numbers}
        if self._upload.wants_digests:
            body["sha256"] = {str(n): self._upload.digests[n - 1] for n in numbers}
        answer = self._client.post(path_of("uploads", self._upload.id, "parts"), body, again=True)
        given = _by_number(answer["parts"])
        first: Mapping[str, Any] = given.pop(numbers[0])
        if len(numbers) > 1:
            self._given = given
            self._given_at = time.monotonic()
        return first


def _by_number(parts: list[dict[str, Any]]) -> dict[int, Any]:
    return {part["number"]: part for part in parts}


def _record(upload: _Upload, identity: Identity) -> dict[str, Any]:
    return {
        "id": upload.id,
        "identity": [identity.size, identity.mtime_ns, identity.inode],
        "part_size": upload.cut.part_size,
        "sha256": upload.sha256,
        "digests": upload.digests if upload.wants_digests else [],
    }


def _refused(got: Got, what: str) -> CommandError:
    code = got.error.partition("<Code>")[2].partition("</Code>")[0]
    reason = f"{got.status} {code}".strip()
    match got.verdict:
        case Verdict.DAMAGED:
            return CommandError(
                f"Storage refused {what}, which is not what was announced ({reason}): it changed "
                "here while it was sent, or on its way. Put it again.",
                Exit.INTEGRITY,
            )
        case Verdict.GONE:
            return CommandError(
                f"The upload is not there any more ({what}: {reason}); put the file again.",
                Exit.CONFLICT,
            )
        case Verdict.RENEW:
            return CommandError(
                f"Storage refuses {what} although its URL is fresh ({reason}): the clocks of the "
                "daemon and of storage may differ, or a proxy changes the name that was signed. "
                "`holdover storage doctor` finds out.",
                Exit.STORAGE_UNAVAILABLE,
            )
    return CommandError(f"Storage refused {what} ({reason}).")


def digests_of(fd: int, cut: Cut, stop: Stop, *, whole: bool) -> tuple[str | None, list[str]]:
    """(SHA-256 of all, if `whole`; those of the parts), hex. A file of one part has the same twice.

    The two run side by side: hashing leaves Python's lock alone.
    """
    parts: list[str] = []

    def hash_parts() -> None:
        for number in cut.numbers:
            digest = hashlib.sha256()
            for block in blocks(fd, *cut.span(number), stop):
                digest.update(block)
            parts.append(digest.hexdigest())

    if cut.count == 1:
        hash_parts()
        return parts[0], parts
    if not whole:
        hash_parts()
        return None, parts
    digest = hashlib.sha256()
    with stop.threads(1) as beside:
        other = beside.submit(hash_parts)
        for block in blocks(fd, 0, cut.size, stop):
            digest.update(block)
    other.result()
    return digest.hexdigest(), parts


def _read(fd: int, length: int, offset: int) -> bytes:
    try:
        return os.pread(fd, length, offset)
    except OSError as error:
        raise CommandError(
            f"The file cannot be read at byte {offset}: {error.strerror or error}."
        ) from error


def blocks(fd: int, offset: int, length: int, stop: Stop) -> Iterator[bytes]:
    """So many bytes of a file, or what there is of them. Raises CommandError, StoppedError."""
    end = offset + length
    while offset < end:
        stop.check()
        block = _read(fd, min(HASH_BLOCK_BYTES, end - offset), offset)
        if not block:
            return
        yield block
        offset += len(block)


def in_lanes(
    numbers: Sequence[int], parallel: int, carry: Callable[[Lane, int], None], stop: Stop
) -> None:
    """`carry` each part once, in so many lanes side by side; see `in_threads`."""
    left: SimpleQueue[int] = SimpleQueue()
    for number in numbers:
        left.put(number)

    def work() -> None:
        with stop.lane() as lane:
            while True:
                stop.check()
                try:
                    number = left.get_nowait()
                except Empty:
                    return
                carry(lane, number)

    in_threads(min(parallel, len(numbers)), work, stop)


def in_threads(count: int, work: Callable[[], None], stop: Stop) -> None:
    """Run `work` in so many threads; the first to fail, or Ctrl-C here, ends all of them."""
    if count <= 0:
        return
    with stop.threads(count) as pool:
        running = [pool.submit(work) for _ in range(count)]
        done, _ = wait(running, return_when=FIRST_EXCEPTION)
        for one in done:
            one.result()
