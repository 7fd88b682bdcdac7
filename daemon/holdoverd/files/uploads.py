"""Uploads, for the doors: decide by the rules, ask storage, commit, answer.

The order of an upload, so that a crash between any two steps leaves nothing behind that the sweeper
does not find::

    create    row (opening) ── storage opens ── row (open, with storage's id) ── URLs
    complete  storage lists, is compared, completes, is looked at ── disk ── row (completed), file (ready)
    give up   row (aborted), file (deleted) ── storage aborts and deletes ── erased

The row comes first in each direction: what storage holds without a row that wants it may go.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from weakref import WeakValueDictionary

import trio
from sqlalchemy import Connection

from holdoverd.catalogue import audit, links
from holdoverd.catalogue import files as table
from holdoverd.catalogue.files import FileRow, UploadRow
from holdoverd.errors import Conflict, Gone, NotFound, StorageRefused, Unprocessable
from holdoverd.files import rules
from holdoverd.files.rules import Held, Parts
from holdoverd.files.service import Files
from holdoverd.files.who import ByUploadLink, Who
from holdoverd.files.wire import Json, file_view, upload_view
from holdoverd.ids import new_id
from holdoverd.storage.client import StoredPart

KEY_PREFIX = "f/"

# What S3 says when a part changed between looking and completing, or is not of its digest.
_NOT_THE_PARTS = frozenset({"InvalidPart", "InvalidPartOrder", "BadDigest", "EntityTooSmall"})


@dataclass(frozen=True)
class NewFile:
    """What a client declares, checked: `path` and `sha256` in the stored form."""

    name: str
    path: str
    size: int
    sha256: str | None
    content_type: str


class Uploads:
    """Made once beside `Files`."""

    def __init__(self, files: Files) -> None:
        self._files = files
        # Completing the same upload twice at a time is harmless, and not worth storage's while.
        self._completing: WeakValueDictionary[str, trio.Lock] = WeakValueDictionary()

    # -- making ---------------------------------------------------------------------------------

    async def create(self, who: Who, new: NewFile) -> Json:
        """``{"file", "upload"}``, with the first URLs."""
        await self._files.store.check_clock()
        parts = rules.cut(new.size)
        self._files.observe("asked")
        now = self._files.now()
        file = FileRow(
            id=new_id("f"),
            owner=who.owner,
            name=new.name,
            path=new.path,
            size=new.size,
            sha256=new.sha256,
            verified=None,
            content_type=new.content_type,
            state="uploading",
            key=KEY_PREFIX + new_id("o"),
            created_at=now,
        )
        link = who.link.id if isinstance(who, ByUploadLink) else None
        upload = UploadRow(
            id=new_id("u"),
            file=file.id,
            owner=who.owner,
            upload_link=link,
            storage_upload=None,
            part_size=parts.part_size,
            digests=new.sha256 is not None,
            state="opening",
            created_at=now,
            expires_at=now + int(self._files.settings.upload_lifetime_s * 1000),
        )
        # Of a file of one part, the part's digest is the file's own.
        digests = {1: new.sha256} if new.sha256 is not None and parts.count == 1 else {}

        def store_rows(cx: Connection) -> None:
            if link is not None:
                links.reserve(cx, link, file.size)
            table.create(cx, file, upload, digests, self._files.settings.quota_bytes)

        await self._files.catalogue.write(store_rows)
        self._files.observe("row")
        try:
            storage_upload = await self._open(file.key, digests=upload.digests)
            self._files.observe("opened in storage")
        except BaseException:
            # Also when whoever asked has gone. Where this cannot be, the sweeper does it.
            with trio.CancelScope(shield=True):
                await self._files.give_up(file)
            raise
        if not await self._files.catalogue.write(
            lambda cx: table.opened(cx, upload.id, storage_upload)
        ):
            await self._files.store.abort(file.key, storage_upload)
            raise Gone("The upload was given up while it was being opened; start it again.")
        upload = replace(upload, state="open", storage_upload=storage_upload)
        self._files.observe("open")
        return {
            "file": file_view(file),
            "upload": {
                **upload_view(upload, parts.count),
                **self._first_urls(file, upload, digests),
            },
        }

    async def _open(self, key: str, *, digests: bool) -> str:
        try:
            return await self._files.store.create_multipart(key, digests=digests)
        except StorageRefused as refused:
            if refused.reason != "NoSuchBucket":
                raise
        await self._files.store.ensure_bucket()
        return await self._files.store.create_multipart(key, digests=digests)

    def _first_urls(self, file: FileRow, upload: UploadRow, digests: Mapping[int, str]) -> Json:
        parts = Parts(file.size, upload.part_size)
        known = len(digests) == parts.count
        numbers = rules.first_window(parts, digests=upload.digests, known=known)
        return {
            "parts": self._sign(file, upload, numbers, digests),
            "more": len(numbers) < parts.count,
        }

    def _sign(
        self,
        file: FileRow,
        upload: UploadRow,
        numbers: Sequence[int],
        digests: Mapping[int, str],
        *,
        inside: bool = False,
    ) -> list[Json]:
        assert upload.storage_upload is not None, "only an open upload has URLs"
        lifetime_s = int(self._files.settings.url_lifetime_s)
        parts = Parts(file.size, upload.part_size)
        expires_at = self._files.now() + lifetime_s * 1000
        signed: list[Json] = []
        for number in numbers:
            url, headers = self._files.store.sign_part(
                file.key,
                upload.storage_upload,
                number,
                parts.size_of(number),
                digests.get(number) if upload.digests else None,
                lifetime_s,
                inside=inside,
            )
            signed.append(
                {
                    "number": number,
                    "method": "PUT",
                    "url": url,
                    "headers": headers,
                    "expires_at": expires_at,
                }
            )
        return signed

    # -- uploads --------------------------------------------------------------------------------

    async def upload(self, who: Who, upload_id: str) -> Json:
        """The upload, its file, and the parts that storage holds already."""
        upload, file = await self._upload(who, upload_id)
        held: list[StoredPart] = []
        if upload.state == "open":
            assert upload.storage_upload is not None
            held = await self._files.store.list_parts(file.key, upload.storage_upload) or []
        count = Parts(file.size, upload.part_size).count
        return {
            **upload_view(upload, count),
            "file": file_view(file),
            "parts": [
                {"number": part.number, "size": part.size, "etag": part.etag} for part in held
            ],
        }

    async def first_urls(self, who: Who, upload_id: str) -> Json:
        """``{"parts", "more"}`` of a new upload, signed anew."""
        upload, file = await self._open_upload(who, upload_id)
        digests = await self._files.catalogue.read(lambda cx: table.digests_of(cx, upload.id))
        count = Parts(file.size, upload.part_size).count
        return self._first_urls(file, upload, digests if count == 1 else {})

    async def urls(
        self,
        who: Who,
        upload_id: str,
        numbers: Sequence[int],
        digests: Mapping[int, str],
        *,
        inside: bool = False,
    ) -> Json:
        """``{"parts"}``: fresh URLs for these parts; `digests` are remembered.

        `inside`: for a process on this host.
        """
        await self._files.store.check_clock()
        upload, file = await self._open_upload(who, upload_id)
        parts = Parts(file.size, upload.part_size)
        wanted = parts.check_numbers(numbers)
        known: Mapping[int, str] = {}
        if upload.digests:
            parts.check_numbers([*wanted, *digests])
            if parts.count == 1 and digests.get(1, file.sha256) != file.sha256:
                raise Unprocessable(
                    "The digest of the only part is not the one that the file was declared with;"
                    " start the upload again."
                )
            if digests:
                await self._files.catalogue.write(
                    lambda cx: table.put_digests(cx, upload.id, digests)
                )
            known = await self._files.catalogue.read(lambda cx: table.digests_of(cx, upload.id))
            missing = [number for number in wanted if number not in known]
            if missing:
                raise Unprocessable(
                    f"The file was declared with its sha256, so each part needs its own: add"
                    f' "sha256": {{"{missing[0]}": …}} for {len(missing)} of these parts.'
                )
        elif digests:
            raise Unprocessable(
                "This upload takes no digests of parts, because the file was declared without its"
                " sha256; leave them out, or start again and declare it."
            )
        if wanted[0] > 1:
            self._files.store.begin_to_settle()  # the parts before are there, most likely
        return {"parts": self._sign(file, upload, wanted, known, inside=inside)}

    async def file_of(self, who: Who, upload_id: str) -> tuple[str, str]:
        """(id, owner) of the file that an upload is of. Raises NotFound."""
        _, file = await self._upload(who, upload_id)
        return file.id, file.owner

    async def complete(
        self,
        who: Who,
        upload_id: str,
        named: Mapping[int, str],
        also: Callable[[Connection], object] | None = None,
    ) -> Json:
        """The file, ready. `named` is {part: etag}; asked again, the same answer.

        `also` is run once, in the transaction that makes the file ready; what it raises undoes it.
        """
        lock = self._completing.setdefault(upload_id, trio.Lock())
        async with lock:
            upload, file = await self._upload(who, upload_id)
            if upload.state == "completed":
                return file_view(file)
            # By the same look: meanwhile another instance may have completed it, which is as good.
            _check_open(upload, file)
            return await self._complete(who, upload, file, named, also)

    async def _complete(
        self,
        who: Who,
        upload: UploadRow,
        file: FileRow,
        named: Mapping[int, str],
        also: Callable[[Connection], object] | None,
    ) -> Json:
        assert upload.storage_upload is not None, "it is open"
        parts = Parts(file.size, upload.part_size)
        known = await self._files.catalogue.read(lambda cx: table.digests_of(cx, upload.id))
        held = await self._files.store.list_parts(file.key, upload.storage_upload)
        self._files.observe("listed")
        if held is not None:
            by_number = {part.number: part for part in held}
            rules.check_parts(
                parts, {n: Held(part.size, part.etag) for n, part in by_number.items()}, named
            )
            numbers = range(1, parts.count + 1)
            try:
                await self._files.store.complete(
                    file.key,
                    upload.storage_upload,
                    [replace(by_number[n], sha256=known.get(n)) for n in numbers],
                )
            except StorageRefused as refused:
                if refused.reason not in _NOT_THE_PARTS:
                    raise
                raise Conflict(
                    f"Storage holds other parts than those that were signed ({refused.reason}); ask"
                    " for fresh URLs, put the parts again, then complete."
                ) from refused
        # Else storage has completed it before, and whoever asked for that did not live to say so.
        self._files.observe("completed in storage")
        head = await self._files.store.head(file.key)
        self._files.observe("looked at")
        if head is None:
            return await self._lost(who, upload.id, file)
        digests = [known[n] for n in sorted(known)] if len(known) == parts.count else []
        verified = rules.how_verified(digests, head.checksum)
        if head.size != file.size or verified is None:
            await self._files.give_up(file)
            raise Conflict(
                f"What storage holds is not what was declared ({head.size} bytes there,"
                f" {file.size} declared); it was removed. Upload the file again."
            )
        # Also of one that was completed before: whoever did may not have come as far as here.
        await self._files.store.settle()
        self._files.observe("on the disk")
        now = self._files.now()

        def commit(cx: Connection) -> bool:
            if not table.completed(cx, upload, verified):
                return False
            audit.record(
                cx,
                at=now,
                owner=file.owner,
                actor=who.actor,
                action="file.made",
                subject=file.id,
                details={"upload": upload.id, "size": file.size, "verified": verified},
            )
            if also is not None:
                also(cx)
            return True

        if await self._files.catalogue.write(commit):
            self._files.observe("ready")
            return file_view(replace(file, state="ready", verified=verified))
        return await self._lost(who, upload.id, file)

    async def _lost(self, who: Who, upload_id: str, file: FileRow) -> Json:
        """Somebody else was faster: completed it, or gave it up."""
        upload, found = await self._upload(who, upload_id)
        if upload.state == "completed":
            return file_view(found)
        if upload.state == "open":
            raise Conflict(
                "Storage knows nothing of this upload any more; abort it and upload the file again."
            )
        await self._files.erase(found)
        raise Gone(f"The upload of {file.name!r} was given up meanwhile; start it again.")

    async def abort(self, who: Who, upload_id: str) -> None:
        """Give an upload up. Conflict when it is completed; harmless when given up already."""
        upload, file = await self._upload(who, upload_id)
        if upload.state in ("opening", "open") and await self._files.give_up(file):
            return
        upload, _ = await self._upload(who, upload_id)
        if upload.state == "completed":
            raise Conflict(
                f"The upload is complete and cannot be aborted; delete the file {file.id} instead."
            )

    async def _upload(self, who: Who, upload_id: str) -> tuple[UploadRow, FileRow]:
        found = await self._files.catalogue.read(lambda cx: table.upload_row(cx, upload_id))
        if found is None or not who.may_send(found[0]):
            raise NotFound(f"There is no upload {upload_id[:50]!r}; start one with a new file.")
        return found

    async def _open_upload(self, who: Who, upload_id: str) -> tuple[UploadRow, FileRow]:
        upload, file = await self._upload(who, upload_id)
        _check_open(upload, file)
        return upload, file


def _check_open(upload: UploadRow, file: FileRow) -> None:
    """Conflict while it is being opened and once it is complete, Gone once it was given up."""
    match upload.state:
        case "opening":
            raise Conflict("The upload is still being opened; ask again shortly.")
        case "completed":
            raise Conflict(f"The upload is complete: the file {file.id} is ready.")
        case "aborted":
            raise Gone(f"The upload of {file.name!r} was given up; start it again.")
