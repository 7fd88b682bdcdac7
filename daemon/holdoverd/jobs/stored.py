"""Files as jobs see them: rows of the catalogue, bytes of the installation's storage."""

import contextlib
from collections.abc import AsyncGenerator, AsyncIterator

from sqlalchemy import Connection

from holdoverd.catalogue import files as files_table
from holdoverd.catalogue.files import FileRow
from holdoverd.errors import StorageRefused, StorageUnavailable
from holdoverd.ids import new_id
from holdoverd.jobs.objects import InputFile, ResultFile
from holdoverd.storage.client import INERT_TYPE, Store, StoredPart

PIECE_BYTES = 1 << 20
PART_BYTES = 8 << 20
GROW_EVERY = 1000
"""Parts of an upload are at most 10,000 and each of them is in memory once: begin small, and let
them grow as the result does. 10,000 parts come to far more than any storage takes."""


class StoredFiles:
    """The `FileTable` of an installation."""

    def find(self, cx: Connection, file_id: str) -> InputFile | None:
        row = files_table.file_row(cx, file_id)
        if row is None or row.state == "deleted":
            return None
        return InputFile(
            id=row.id,
            owner=row.owner,
            name=row.name,
            key=row.key,
            size=row.size,
            sha256=row.sha256,
            content_type=row.content_type,
            ready=row.state == "ready",
        )

    def add(self, cx: Connection, result: ResultFile, now: int) -> str:
        row = FileRow(
            id=new_id("f"),
            owner=result.owner,
            name=result.name,
            path="results",
            size=result.size,
            sha256=result.sha256,
            verified="sha256",
            content_type=INERT_TYPE,
            state="ready",
            key=result.key,
            created_at=now,
        )
        files_table.add_ready(cx, row)
        return row.id


class StoredObjects:
    """The `Objects` of an installation; without storage every call says so."""

    def __init__(self, store: Store | None) -> None:
        self._opened = store

    @property
    def _store(self) -> Store:
        if self._opened is None:
            raise StorageUnavailable("There is no storage here; configure [storage].")
        return self._opened

    async def read(self, key: str, offset: int) -> AsyncGenerator[bytes, None]:
        async with await self._store.get_stream(key, offset) as stream:
            while piece := await stream.receive_some(PIECE_BYTES):
                yield piece

    async def write(self, key: str, pieces: AsyncIterator[bytes]) -> None:
        upload = await self._store.create_multipart(key)
        parts: list[StoredPart] = []
        try:
            part = bytearray()
            async for piece in pieces:
                part += piece
                if len(part) >= PART_BYTES << (len(parts) // GROW_EVERY):
                    parts.append(await self._put(key, upload, len(parts) + 1, part))
                    part = bytearray()
            if part or not parts:
                parts.append(await self._put(key, upload, len(parts) + 1, part))
            if await self._store.complete(key, upload, parts) is None:
                raise StorageUnavailable(f"Storage has forgotten the upload of {key}.")
        except BaseException:
            # What cannot be given up now is swept later, as any upload that nobody finishes.
            with contextlib.suppress(StorageUnavailable, StorageRefused):
                await self._store.abort(key, upload)
            raise

    async def _put(self, key: str, upload: str, number: int, part: bytearray) -> StoredPart:
        return await self._store.upload_part(key, upload, number, bytes(part))

    async def remove(self, key: str) -> None:
        await self._store.delete(key)
