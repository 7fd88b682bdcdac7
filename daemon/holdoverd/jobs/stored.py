"""Files as jobs see them: rows of the catalogue, bytes of the installation's storage."""

import contextlib
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from functools import partial
from http.client import HTTPConnection, HTTPException, HTTPResponse, HTTPSConnection
from pathlib import Path
from typing import TypeVar
from urllib.parse import urlsplit

import trio
from sqlalchemy import Connection

from holdoverd.catalogue import files as files_table
from holdoverd.catalogue.files import FileRow
from holdoverd.errors import StorageRefused, StorageUnavailable
from holdoverd.ids import new_id
from holdoverd.jobs.objects import InputFile, ResultFile
from holdoverd.settings import StorageSettings
from holdoverd.storage.client import INERT_TYPE, Store, StoredPart
from holdoverd.storage.credentials import Credentials
from holdoverd.storage.signing import Signer

T = TypeVar("T")

PIECE_BYTES = 1 << 20
READ_TIMEOUT_S = 60
# It is used at once; a clock that is a little behind must not make it void.
URL_S = 900
PART_BYTES = 8 << 20
GROW_EVERY = 1000
"""Parts of an upload are at most 10,000 and each of them is in memory once: begin small, and let
them grow as the result does. 10,000 parts come to far more than any storage takes."""


async def _in_thread(endpoint: str, fn: Callable[[], T]) -> T:
    """`fn` in a thread that a cancelled attempt does not wait for; its errors are storage's."""
    try:
        return await trio.to_thread.run_sync(fn, abandon_on_cancel=True)
    except (OSError, HTTPException) as error:
        raise StorageUnavailable(
            f"Storage ({endpoint}) cannot be read: {type(error).__name__}. See that it runs "
            "(`holdover storage status`)."
        ) from error


def _refusal(endpoint: str, status: int) -> StorageUnavailable | StorageRefused:
    if status >= 500:
        return StorageUnavailable(f"Storage ({endpoint}) answered with status {status}.")
    reason = "NoSuchKey" if status == 404 else str(status)
    return StorageRefused(f"Storage ({endpoint}) answered with status {status}.", reason)


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
    """The `Objects` of an installation; without storage every call says so.

    Reading is a plain HTTP request by a URL signed here, since it is what every job does: boto3
    would take 25 MiB of each worker. It is there for results, which few jobs store.
    """

    def __init__(
        self,
        settings: StorageSettings,
        credentials: Credentials | None,
        state_dir: Path | None = None,
    ) -> None:
        self._opened = Store.open(settings, credentials, state_dir)
        self._signer: Signer | None = None
        if self._opened is not None and credentials is not None:
            self._signer = Signer(
                settings.endpoint,
                settings.region,
                settings.bucket,
                settings.addressing,
                credentials,
            )

    @property
    def _store(self) -> Store:
        if self._opened is None:
            raise StorageUnavailable("There is no storage here; configure [storage].")
        return self._opened

    async def read(self, key: str, offset: int) -> AsyncGenerator[bytes, None]:
        endpoint = self._store.endpoint
        assert self._signer is not None, "there is a store"
        url = self._signer.url("GET", key, now_s=time.time(), expires_s=URL_S)
        parts = urlsplit(url)
        kind = HTTPSConnection if parts.scheme == "https" else HTTPConnection
        connection = kind(str(parts.hostname), parts.port, timeout=READ_TIMEOUT_S)

        def ask() -> HTTPResponse:
            ranged = {"Range": f"bytes={offset}-"} if offset else {}
            connection.request("GET", f"{parts.path}?{parts.query}", headers=ranged)
            return connection.getresponse()

        try:
            answer = await _in_thread(endpoint, ask)
            if answer.status not in (200, 206) or (offset and answer.status != 206):
                raise _refusal(endpoint, answer.status)
            left = int(answer.headers["Content-Length"])
            while left:
                piece = await _in_thread(endpoint, partial(answer.read, PIECE_BYTES))
                if not piece:
                    raise StorageUnavailable(f"Storage ({endpoint}) broke off in mid-file.")
                left -= len(piece)
                yield piece
        finally:
            connection.close()

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
            await self._store.settle()
        except BaseException:
            # What cannot be given up now is swept later, as any upload that nobody finishes.
            with contextlib.suppress(StorageUnavailable, StorageRefused):
                await self._store.abort(key, upload)
            raise

    async def _put(self, key: str, upload: str, number: int, part: bytearray) -> StoredPart:
        return await self._store.upload_part(key, upload, number, bytes(part))

    async def remove(self, key: str) -> None:
        await self._store.delete(key)
