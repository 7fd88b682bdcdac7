"""Links and upload links in the catalogue: plain functions on a Connection.

Of a token only its sha256 is stored; as with `tokens`, it is random enough for a plain digest.
"""

import hashlib
import secrets
from dataclasses import asdict, dataclass
from typing import Any

from sqlalchemy import Connection, Select, Table, insert, or_, select, tuple_, update

from holdoverd.catalogue import cursors
from holdoverd.catalogue.schema import links, upload_links
from holdoverd.errors import TooLarge
from holdoverd.files.rules import LinkTerms


@dataclass(frozen=True, slots=True)
class LinkRow:
    """A link to a file; `password` is its hash. Times in ms."""

    id: str
    digest: str
    file: str
    owner: str
    password: str | None
    max_downloads: int | None
    downloads: int
    created_at: int
    expires_at: int | None
    revoked_at: int | None

    @property
    def terms(self) -> LinkTerms:
        revoked = self.revoked_at is not None
        return LinkTerms(revoked, self.expires_at, self.downloads, self.max_downloads)


@dataclass(frozen=True, slots=True)
class UploadLinkRow:
    """A link by which anybody may send files into a folder of its owner's."""

    id: str
    digest: str
    owner: str
    path: str
    max_bytes: int
    used_bytes: int
    created_at: int
    expires_at: int
    revoked_at: int | None

    @property
    def terms(self) -> LinkTerms:
        return LinkTerms(self.revoked_at is not None, self.expires_at, 0, None)


_LINK = tuple(links.c[name] for name in LinkRow.__dataclass_fields__)
_UPLOAD_LINK = tuple(upload_links.c[name] for name in UploadLinkRow.__dataclass_fields__)


def new_token() -> str:
    """A fresh token of a link: 32 characters, 192 random bits."""
    return secrets.token_urlsafe(24)


def digest_of(token: str) -> str:
    return hashlib.sha256(token.encode("utf-8", "surrogatepass")).hexdigest()


def create_link(cx: Connection, row: LinkRow) -> None:
    cx.execute(insert(links).values(**asdict(row)))


def link_by_token(cx: Connection, token: str) -> LinkRow | None:
    found = cx.execute(select(*_LINK).where(links.c.digest == digest_of(token))).first()
    return None if found is None else LinkRow(*found)


def link_row(cx: Connection, link_id: str) -> LinkRow | None:
    found = cx.execute(select(*_LINK).where(links.c.id == link_id)).first()
    return None if found is None else LinkRow(*found)


def count_download(cx: Connection, link_id: str, now: int) -> bool:
    """Use the link once more; False when it has been spent, revoked or has expired meanwhile."""
    query = update(links).where(
        links.c.id == link_id,
        links.c.revoked_at.is_(None),
        or_(links.c.expires_at.is_(None), links.c.expires_at > now),
        or_(links.c.max_downloads.is_(None), links.c.downloads < links.c.max_downloads),
    )
    return cx.execute(query.values(downloads=links.c.downloads + 1)).rowcount > 0


def create_upload_link(cx: Connection, row: UploadLinkRow) -> None:
    cx.execute(insert(upload_links).values(**asdict(row)))


def upload_link_by_token(cx: Connection, token: str) -> UploadLinkRow | None:
    digest = digest_of(token)
    found = cx.execute(select(*_UPLOAD_LINK).where(upload_links.c.digest == digest)).first()
    return None if found is None else UploadLinkRow(*found)


def upload_link_row(cx: Connection, link_id: str) -> UploadLinkRow | None:
    found = cx.execute(select(*_UPLOAD_LINK).where(upload_links.c.id == link_id)).first()
    return None if found is None else UploadLinkRow(*found)


def reserve(cx: Connection, link_id: str, size: int) -> None:
    """Count `size` bytes against the upload link; TooLarge when they are more than are left."""
    query = update(upload_links).where(
        upload_links.c.id == link_id, upload_links.c.used_bytes + size <= upload_links.c.max_bytes
    )
    if cx.execute(query.values(used_bytes=upload_links.c.used_bytes + size)).rowcount == 0:
        raise TooLarge(
            f"These {size} bytes are more than this link still takes; send a smaller file, or ask"
            " for another link."
        )


def revoke(cx: Connection, table: Table, link_id: str, now: int) -> bool:
    """Revoke a link or an upload link; False when it is revoked already."""
    query = update(table).where(table.c.id == link_id, table.c.revoked_at.is_(None))
    return cx.execute(query.values(revoked_at=now)).rowcount > 0


def list_links(
    cx: Connection, *, owner: str | None, file: str | None, limit: int, cursor: str | None
) -> tuple[list[LinkRow], str | None]:
    """Newest first, spent and revoked ones too, and the cursor of the next page."""
    query = select(*_LINK)
    if file is not None:
        query = query.where(links.c.file == file)
    rows, following = _page(cx, query, links, owner, limit, cursor)
    return [LinkRow(*row) for row in rows], following


def list_upload_links(
    cx: Connection, *, owner: str | None, limit: int, cursor: str | None
) -> tuple[list[UploadLinkRow], str | None]:
    """As `list_links`."""
    rows, following = _page(cx, select(*_UPLOAD_LINK), upload_links, owner, limit, cursor)
    return [UploadLinkRow(*row) for row in rows], following


def _page(
    cx: Connection,
    query: Select[Any],
    table: Table,
    owner: str | None,
    limit: int,
    cursor: str | None,
) -> tuple[list[Any], str | None]:
    if owner is not None:
        query = query.where(table.c.owner == owner)
    if cursor is not None:
        created_at, link_id = cursors.decode(cursor, table.name, (int, str))
        query = query.where(tuple_(table.c.created_at, table.c.id) < tuple_(created_at, link_id))
    query = query.order_by(table.c.created_at.desc(), table.c.id.desc()).limit(limit + 1)
    rows = list(cx.execute(query).all())
    if len(rows) <= limit:
        return rows, None
    last = rows[limit - 1]
    return rows[:limit], cursors.encode(table.name, (last.created_at, last.id))
