"""Files, for the doors: what there is, what it is called, where its bytes may be had, and its end.

A file that goes is deleted in its row first and in storage after; what does not come as far is
found by the sweeper. How a file comes about is `uploads`.
"""

import logging
from collections.abc import Callable
from typing import Any

from sqlalchemy import Connection

from holdoverd.catalogue import audit
from holdoverd.catalogue import files as table
from holdoverd.catalogue.files import FileRow
from holdoverd.catalogue.store import Catalogue
from holdoverd.errors import CatalogueError, Conflict, Gone, NotFound, StorageUnavailable
from holdoverd.files import rules
from holdoverd.files.who import Who
from holdoverd.files.wire import Json, file_view
from holdoverd.ids import now_ms
from holdoverd.settings import StorageSettings
from holdoverd.storage.client import Store

log = logging.getLogger(__name__)


class Files:
    """What an instance can do with files. `store` None: there is no storage, lists work.

    `observe` is told of each step as it has been done; the tests stop the process there.
    """

    def __init__(
        self,
        catalogue: Catalogue,
        store: Store | None,
        settings: StorageSettings,
        now: Callable[[], int] = now_ms,
        observe: Callable[[str], None] = lambda _step: None,
    ) -> None:
        self.catalogue = catalogue
        self.observe = observe
        self.settings = settings
        self.now = now
        self._store = store

    @property
    def store(self) -> Store:
        """Raises StorageUnavailable where none is configured."""
        if self._store is None:
            raise StorageUnavailable(
                "There is no storage: [storage] endpoint and its keys are not configured."
                " `holdover up` and an installed host bring one; `holdover storage status` tells"
                " more."
            )
        return self._store

    @property
    def has_store(self) -> bool:
        return self._store is not None

    # -- at the doors ---------------------------------------------------------------------------

    async def file(self, who: Who, file_id: str) -> Json:
        return file_view(await self.find(who, file_id))

    async def list_files(self, owner: str | None, **filters: Any) -> Json:
        """`owner` None: everybody's. Filters are those of `catalogue.files.list_files`."""
        rows, following = await self.catalogue.read(
            lambda cx: table.list_files(cx, owner=owner, **filters)
        )
        return {"items": [file_view(row) for row in rows], "next": following}

    async def rename(self, who: Who, file_id: str, name: str | None, path: str | None) -> Json:
        file = await self.find(who, file_id)
        new_name = file.name if name is None else name
        new_path = file.path if path is None else path
        renamed = await self.catalogue.write(lambda cx: table.rename(cx, file, new_name, new_path))
        if renamed is None:
            raise _deleted(file)
        return file_view(renamed)

    async def delete(self, who: Who, file_id: str) -> None:
        """Delete a file. Its bytes go at once where storage is there, else by the sweeper."""
        file = await self.find(who, file_id)
        now = self.now()

        def commit(cx: Connection) -> bool:
            if not table.delete_file(cx, file):
                return False
            audit.record(
                cx,
                at=now,
                owner=file.owner,
                actor=who.actor,
                action="file.deleted",
                subject=file.id,
                details={"size": file.size},
            )
            return True

        if await self.catalogue.write(commit):
            self.observe("deleted")
            await self._try_erase(file)

    async def download(self, who: Who, file_id: str, *, inline: bool) -> Json:
        """``{"url", "expires_at", "sha256", "size"}``."""
        file = await self.find(who, file_id)
        check_ready(file)
        await self.store.check_clock()
        now = self.now()
        await self.catalogue.write(
            lambda cx: audit.record(
                cx,
                at=now,
                owner=file.owner,
                actor=who.actor,
                action="file.downloaded",
                subject=file.id,
            )
        )
        url, expires_at = self.sign_download(file, int(self.settings.url_lifetime_s), inline=inline)
        return {"url": url, "expires_at": expires_at, "sha256": file.sha256, "size": file.size}

    def sign_download(
        self, file: FileRow, lifetime_s: int, *, inline: bool = False, inside: bool = False
    ) -> tuple[str, int]:
        """(URL, when it expires). Whether it may be made is the caller's to have decided."""
        kind, content_type = rules.served_as(file.content_type, inline=inline)
        disposition = rules.content_disposition(kind, file.name)
        expires_at = self.now() + lifetime_s * 1000
        url = self.store.sign_get(file.key, disposition, content_type, lifetime_s, inside=inside)
        return url, expires_at

    # -- giving up ------------------------------------------------------------------------------

    async def give_up(self, file: FileRow) -> bool:
        """Mark a file that never became ready as deleted, and erase it; False where it has become."""

        def commit(cx: Connection) -> bool:
            found = table.file_row(cx, file.id)
            return found is not None and found.state == "uploading" and table.delete_file(cx, file)

        try:
            done = await self.catalogue.write(commit)
        except CatalogueError as error:
            log.warning("an upload was not given up, leaving it to the sweeper: %s", error)
            return False
        self.observe("given up")
        if done:
            await self._try_erase(file)
        return done

    async def _try_erase(self, file: FileRow) -> None:
        try:
            await self.erase(file)
        except (StorageUnavailable, CatalogueError) as error:
            log.warning("the bytes of %s stay until the next sweep: %s", file.id, error)

    async def erase(self, file: FileRow) -> None:
        """Take the bytes of a deleted file out of storage. Raises StorageUnavailable."""
        for upload in await self.catalogue.read(lambda cx: table.uploads_of(cx, file.id)):
            if upload.storage_upload is not None:
                await self.store.abort(file.key, upload.storage_upload)
                self.observe("aborted in storage")
        await self.store.delete(file.key)
        self.observe("deleted in storage")
        now = self.now()
        await self.catalogue.write(lambda cx: table.erased(cx, file.id, now))
        self.observe("erased")

    # -- looking --------------------------------------------------------------------------------

    async def find(self, who: Who, file_id: str) -> FileRow:
        file = await self.catalogue.read(lambda cx: table.file_row(cx, file_id))
        if file is None or not who.may_see(file):
            raise NotFound(f"There is no file {file_id[:50]!r}; `GET /v1/files` lists yours.")
        return file


def check_ready(file: FileRow) -> None:
    """Conflict while it is being uploaded, Gone once it is deleted."""
    if file.state == "uploading":
        raise Conflict(f"{file.name!r} is still being uploaded; try again when it is complete.")
    if file.state == "deleted":
        raise _deleted(file)


def _deleted(file: FileRow) -> Gone:
    return Gone(f"{file.name!r} has been deleted; ask whoever had it to upload it again.")
