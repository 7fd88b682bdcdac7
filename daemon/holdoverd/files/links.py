"""Links and upload links: made, followed, counted, revoked; an audit row for each of these.

A link's use is counted in the transaction that decides whether there is one left, and only then is
a URL signed. That URL lives for `LINK_URL_S`, whatever becomes of the link meanwhile.
"""

from dataclasses import dataclass, replace

import trio
from sqlalchemy import Connection

from holdoverd.catalogue import audit
from holdoverd.catalogue import files as files_table
from holdoverd.catalogue import links as table
from holdoverd.catalogue.links import LinkRow, UploadLinkRow
from holdoverd.catalogue.schema import links as links_table
from holdoverd.catalogue.schema import upload_links as upload_links_table
from holdoverd.errors import Forbidden, Gone, NotFound, RateLimited
from holdoverd.files import passwords
from holdoverd.files.service import Files, check_ready
from holdoverd.files.who import Who
from holdoverd.files.wire import Json, link_view, upload_link_view
from holdoverd.http.login import LoginFailures
from holdoverd.ids import new_id

LINK_URL_S = 60

# Hashing takes 16 MiB and 50 ms each; whoever guesses may wait.
HASHERS = 2


@dataclass(frozen=True)
class Followed:
    """What came of following a link: a URL, or None where a password is to be asked for."""

    url: str | None
    name: str


class Links:
    """Made once beside `Files`."""

    def __init__(self, files: Files) -> None:
        self._files = files
        self._catalogue = files.catalogue
        self._hashing = trio.CapacityLimiter(HASHERS)
        # By link and address, and by link alone for those who have many addresses.
        self._failures = LoginFailures()
        self._failures_of_link = LoginFailures(limit=60)

    # -- links ----------------------------------------------------------------------------------

    async def create(
        self,
        who: Who,
        file_id: str,
        *,
        expires_in_s: int | None,
        max_downloads: int | None,
        password: str | None,
    ) -> tuple[Json, str]:
        """(the link, its token), which is told this once."""
        file = await self._files.find(who, file_id)
        check_ready(file)
        hashed = None
        if password is not None:
            hashed = await trio.to_thread.run_sync(
                passwords.hash_password, password, limiter=self._hashing
            )
        now = self._files.now()
        token = table.new_token()
        row = LinkRow(
            id=new_id("l"),
            digest=table.digest_of(token),
            file=file.id,
            owner=file.owner,
            password=hashed,
            max_downloads=max_downloads,
            downloads=0,
            created_at=now,
            expires_at=None if expires_in_s is None else now + expires_in_s * 1000,
            revoked_at=None,
        )

        def commit(cx: Connection) -> None:
            table.create_link(cx, row)
            audit.record(
                cx,
                at=now,
                owner=row.owner,
                actor=who.actor,
                action="link.made",
                subject=row.id,
                details={"file": file.id, "expires_at": row.expires_at},
            )

        await self._catalogue.write(commit)
        return link_view(row), token

    async def list_links(
        self, owner: str | None, *, file: str | None, limit: int, cursor: str | None
    ) -> Json:
        """`owner` None: everybody's."""
        rows, following = await self._catalogue.read(
            lambda cx: table.list_links(cx, owner=owner, file=file, limit=limit, cursor=cursor)
        )
        return {"items": [link_view(row) for row in rows], "next": following}

    async def revoke(self, owner: str | None, link_id: str, actor: str) -> None:
        """From here on it is Gone. NotFound for none, or not of `owner` (None: anybody's)."""
        row = await self._catalogue.read(lambda cx: table.link_row(cx, link_id))
        if row is None or owner not in (None, row.owner):
            raise NotFound(f"There is no link {link_id[:50]!r}; `GET /v1/links` lists yours.")
        now = self._files.now()

        def commit(cx: Connection) -> None:
            if table.revoke(cx, links_table, link_id, now):
                audit.record(
                    cx, at=now, owner=row.owner, actor=actor, action="link.revoked", subject=row.id
                )

        await self._catalogue.write(commit)

    async def peek(self, token: str) -> Followed:
        """Whether there is something to be had by this link, without having it. NotFound, Gone."""
        row, file = await self._link(token)
        row.terms.check(self._files.now())
        return Followed(None, file.name)

    async def follow(self, token: str, password: str | None, address: str) -> Followed:
        """Use the link once, if it may be and the password is right.

        Raises NotFound, Gone, Forbidden for a wrong password, RateLimited after too many of those.
        Without a password where one is needed: nothing is used, and `url` is None.
        """
        row, file = await self._link(token)
        row.terms.check(self._files.now())
        if row.password is not None:
            if password is None:
                return Followed(None, file.name)
            await self._check_password(row, password, address)
        await self._files.store.check_clock()
        now = self._files.now()

        def commit(cx: Connection) -> bool:
            if not table.count_download(cx, row.id, now):
                return False
            audit.record(
                cx,
                at=now,
                owner=row.owner,
                actor=row.id,
                action="link.used",
                subject=row.id,
                details={"file": file.id, "address": address},
            )
            return True

        if not await self._catalogue.write(commit):
            row, _ = await self._link(token)
            row.terms.check(now)
            raise Gone("This link has been used as often as it may be; ask for another.")
        url, _ = self._files.sign_download(file, LINK_URL_S)
        return Followed(url, file.name)

    async def _link(self, token: str) -> tuple[LinkRow, files_table.FileRow]:
        def read(cx: Connection) -> tuple[LinkRow, files_table.FileRow] | None:
            row = table.link_by_token(cx, token)
            file = None if row is None else files_table.file_row(cx, row.file)
            return None if row is None or file is None else (row, file)

        found = await self._catalogue.read(read)
        if found is None:
            raise NotFound("There is no such link; check the address for a mistake.")
        if found[1].state != "ready":
            raise Gone("The file behind this link has been deleted; ask for another.")
        return found

    async def _check_password(self, row: LinkRow, password: str, address: str) -> None:
        now = trio.current_time()
        here, there = f"{row.id} {address}", row.id
        waits = [
            wait
            for failures, key in ((self._failures, here), (self._failures_of_link, there))
            if (wait := failures.retry_after_s(key, now)) is not None
        ]
        if waits:
            raise RateLimited(
                f"Too many wrong passwords for this link; try again in {max(waits)} s.",
                headers={"Retry-After": str(max(waits))},
            )
        self._failures.attempt(here, now)
        self._failures_of_link.attempt(there, now)
        assert row.password is not None
        if not await trio.to_thread.run_sync(
            passwords.matches, password, row.password, limiter=self._hashing
        ):
            raise Forbidden("The password is not right; ask whoever sent the link.")
        self._failures.succeeded(here, now)
        self._failures_of_link.succeeded(there, now)

    # -- upload links ---------------------------------------------------------------------------

    async def create_upload_link(
        self, who: Who, *, path: str, expires_in_s: int, max_bytes: int
    ) -> tuple[Json, str]:
        """(the upload link, its token), which is told this once."""
        now = self._files.now()
        token = table.new_token()
        row = UploadLinkRow(
            id=new_id("ul"),
            digest=table.digest_of(token),
            owner=who.owner,
            path=path,
            max_bytes=max_bytes,
            used_bytes=0,
            created_at=now,
            expires_at=now + expires_in_s * 1000,
            revoked_at=None,
        )

        def commit(cx: Connection) -> None:
            table.create_upload_link(cx, row)
            audit.record(
                cx,
                at=now,
                owner=row.owner,
                actor=who.actor,
                action="upload_link.made",
                subject=row.id,
                details={"path": path, "max_bytes": max_bytes, "expires_at": row.expires_at},
            )

        await self._catalogue.write(commit)
        return upload_link_view(row), token

    async def list_upload_links(self, owner: str | None, *, limit: int, cursor: str | None) -> Json:
        rows, following = await self._catalogue.read(
            lambda cx: table.list_upload_links(cx, owner=owner, limit=limit, cursor=cursor)
        )
        return {"items": [upload_link_view(row) for row in rows], "next": following}

    async def revoke_upload_link(self, owner: str | None, link_id: str, actor: str) -> None:
        """As `revoke`. Uploads that came by it and are not complete cannot go on."""
        row = await self._catalogue.read(lambda cx: table.upload_link_row(cx, link_id))
        if row is None or owner not in (None, row.owner):
            raise NotFound(
                f"There is no upload link {link_id[:50]!r}; `GET /v1/upload-links` lists yours."
            )
        now = self._files.now()

        def commit(cx: Connection) -> None:
            if table.revoke(cx, upload_links_table, link_id, now):
                audit.record(
                    cx,
                    at=now,
                    owner=row.owner,
                    actor=actor,
                    action="upload_link.revoked",
                    subject=row.id,
                )

        await self._catalogue.write(commit)

    async def upload_link(self, token: str, *, begun: bool = False) -> UploadLinkRow:
        """The upload link, if it may still be used; NotFound, Gone.

        `begun`: to go on with an upload, which may take longer than the link lasts; only revoking
        it ends that.
        """
        row = await self._catalogue.read(lambda cx: table.upload_link_by_token(cx, token))
        if row is None:
            raise NotFound("There is no such link; check the address for a mistake.")
        terms = replace(row.terms, expires_at=None) if begun else row.terms
        terms.check(self._files.now())
        return row

    async def used_upload_link(self, row: UploadLinkRow, file_id: str, address: str) -> None:
        """Put on record that a file came by this link."""
        now = self._files.now()
        await self._catalogue.write(
            lambda cx: audit.record(
                cx,
                at=now,
                owner=row.owner,
                actor=row.id,
                action="upload_link.used",
                subject=row.id,
                details={"file": file_id, "address": address},
            )
        )
