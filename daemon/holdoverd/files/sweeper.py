"""The sweeper: makes storage and catalogue agree, in both directions.

Rows first: uploads that have expired are given up, what was deleted is erased. Then storage: uploads
and objects that no row wants are removed. Then rows again: ready files whose bytes are missing are
told of, and never touched; neither is any object whose file is ready.

Sound because a row is there before what it is for (see `service`), and because a key is never used
again: an object or an upload in storage whose row is missing, or says deleted, will never be wanted.
What has no row at all is left for `older_than_s` all the same: a catalogue that was restored from a
backup knows nothing of what came after, and somebody should have a day to notice.
"""

import logging
from dataclasses import dataclass, field

import trio

from holdoverd.catalogue import files as table
from holdoverd.catalogue.files import FileRow
from holdoverd.catalogue.store import Catalogue
from holdoverd.errors import CatalogueError, StorageUnavailable
from holdoverd.files.rules import FileState, UploadState
from holdoverd.files.service import Files
from holdoverd.files.uploads import KEY_PREFIX
from holdoverd.files.wire import Json
from holdoverd.jobs.objects import RESULTS_PREFIX

log = logging.getLogger(__name__)

# What is stored beneath these is of files: those that were uploaded, and the results of jobs.
PREFIXES = (KEY_PREFIX, RESULTS_PREFIX)

OLDER_THAN_S = 86_400
# An upload that storage has not opened after this long never will be: calls have timeouts.
OPENING_S = 600
BATCH = 500
# What is told of by name; all are counted.
TOLD = 100

TURN = "files_swept_at"  # in `meta`
LOOK_S = 60.0


@dataclass
class Findings:
    """What a sweep found, and unless it was a dry run did. Lists hold ids or keys, `TOLD` at most.

    given_up    uploads that expired, or never were opened: their files
    erased      deleted files whose bytes were still there
    uploads     uploads open in storage that nobody wants: their keys
    objects     objects in storage that nobody wants: their keys
    missing     ready files whose bytes storage does not have
    """

    dry_run: bool
    counts: dict[str, int] = field(
        default_factory=lambda: dict.fromkeys(
            ("given_up", "erased", "uploads", "objects", "missing"), 0
        )
    )
    told: dict[str, list[str]] = field(default_factory=dict)

    def add(self, kind: str, name: str) -> None:
        self.counts[kind] += 1
        told = self.told.setdefault(kind, [])
        if len(told) < TOLD:
            told.append(name)

    def view(self) -> Json:
        return {"dry_run": self.dry_run, **self.counts, "found": self.told}


def wants_object(state: FileState | None) -> bool:
    """Whether an object of a file in `state` (None: there is no row) is to stay.

    That of an uploading file does: storage may just have completed it.
    """
    return state in ("uploading", "ready")


def wants_upload(upload: UploadState | None, *, same: bool) -> bool:
    """Whether an upload open in storage is to stay.

    `upload` is the state of its key's upload (None: no row), `same` whether storage's id is its.
    """
    return upload == "opening" or (upload == "open" and same)


class Sweeper:
    """Made once beside `Files`."""

    def __init__(self, files: Files) -> None:
        self._files = files
        self._catalogue: Catalogue = files.catalogue
        self._one_at_a_time = trio.Lock()

    async def run(self) -> None:
        """Sweep every `[storage] sweep_every_s`, in whichever instance comes first."""
        every_s = self._files.settings.sweep_every_s
        if not every_s or not self._files.has_store:
            return
        while True:
            await trio.sleep(min(every_s, LOOK_S))
            now = self._files.now()
            try:
                mine = await self._catalogue.write(
                    lambda cx: table.take_turn(cx, TURN, now, int(every_s * 1000))  # noqa: B023
                )
                if mine:
                    found = await self.sweep(dry_run=False)
                    if any(found.counts.values()):
                        log.info("swept storage: %s", found.counts)
                    if found.counts["missing"]:
                        log.error(
                            "the bytes of %d files are missing in storage, %s among them; see"
                            " `holdover storage doctor`",
                            found.counts["missing"],
                            ", ".join(found.told["missing"][:5]),
                        )
            except (StorageUnavailable, CatalogueError) as error:
                log.warning("the sweep of storage was cut short, trying again later: %s", error)
            except Exception:
                # A defect here must not end the instance, whose sessions have nothing to do with it.
                log.exception("the sweep of storage failed, trying again later")

    async def sweep(self, *, dry_run: bool, older_than_s: int = OLDER_THAN_S) -> Findings:
        """Look everywhere, once; remove unless `dry_run`. Raises StorageUnavailable."""
        found = Findings(dry_run)
        async with self._one_at_a_time:
            await self._files.store.ensure_bucket()
            before = self._files.now() - older_than_s * 1000
            await self._give_up(found, older_than_s)
            await self._erase(found)
            await self._sweep_uploads(found, before)
            await self._sweep_objects(found, before)
            await self._look_for_missing(found)
        return found

    async def _give_up(self, found: Findings, older_than_s: int) -> None:
        now = self._files.now()
        before = now - min(OPENING_S, older_than_s) * 1000
        while True:
            rows = await self._catalogue.read(
                lambda cx: table.to_give_up(cx, now=now, opened_before=before, limit=BATCH)
            )
            for row in rows:
                if found.dry_run or await self._files.give_up(row):
                    found.add("given_up", row.id)
            if found.dry_run or len(rows) < BATCH:
                return

    async def _erase(self, found: Findings) -> None:
        while True:
            rows = await self._catalogue.read(lambda cx: table.to_erase(cx, limit=BATCH))
            for row in rows:
                if not found.dry_run:
                    await self._files.erase(row)
                found.add("erased", row.id)
            if found.dry_run or len(rows) < BATCH:
                return

    async def _sweep_uploads(self, found: Findings, before: int) -> None:
        store = self._files.store
        page: str | None = None
        while True:
            uploads, page = await store.list_multipart(page)
            ours = [item for item in uploads if item.key.startswith(PREFIXES)]
            rows = await self._rows([item.key for item in ours])
            for item in ours:
                row = rows.get(item.key)
                if row is None:
                    wanted = item.initiated_at > before
                else:
                    wanted = await self._is_wanted(row, item.upload_id)
                if not wanted:
                    if not found.dry_run:
                        await store.abort(item.key, item.upload_id)
                    found.add("uploads", item.key)
            if page is None:
                return

    async def _is_wanted(self, file: FileRow, storage_upload: str) -> bool:
        uploads = await self._catalogue.read(lambda cx: table.uploads_of(cx, file.id))
        return any(
            wants_upload(upload.state, same=upload.storage_upload == storage_upload)
            for upload in uploads
        )

    async def _sweep_objects(self, found: Findings, before: int) -> None:
        for prefix in PREFIXES:
            await self._sweep_below(prefix, found, before)

    async def _sweep_below(self, prefix: str, found: Findings, before: int) -> None:
        store = self._files.store
        page: str | None = None
        while True:
            keys, page = await store.list_keys(prefix, page)
            # After the list: what it shows had its row before.
            rows = await self._rows([item.key for item in keys])
            for item in keys:
                row = rows.get(item.key)
                wanted = item.modified_at > before if row is None else wants_object(row.state)
                if not wanted:
                    if not found.dry_run:
                        await store.delete(item.key)
                    found.add("objects", item.key)
            if page is None:
                return

    async def _look_for_missing(self, found: Findings) -> None:
        """Compare two ordered lists, keys in storage and keys of ready files."""
        store = self._files.store
        last = ""
        keys, page = await store.list_keys(KEY_PREFIX)
        held = {item.key for item in keys}
        while rows := await self._catalogue.read(
            lambda cx: table.ready_after(cx, last, limit=BATCH)  # noqa: B023
        ):
            for row in rows:
                while page is not None and page < row.key:
                    keys, page = await store.list_keys(KEY_PREFIX, page)
                    held = {item.key for item in keys}
                # It may have become ready after the list was made.
                if row.key not in held and await store.head(row.key) is None:
                    now = await self._catalogue.read(lambda cx: table.file_row(cx, row.id))  # noqa: B023
                    if now is not None and now.state == "ready":
                        found.add("missing", row.id)
            last = rows[-1].key

    async def _rows(self, keys: list[str]) -> dict[str, FileRow]:
        return await self._catalogue.read(lambda cx: table.by_keys(cx, keys)) if keys else {}
