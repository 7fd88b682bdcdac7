"""Files and their uploads in the catalogue: plain functions on a Connection.

Whatever changes a state is a compare-and-set and says whether it was this call that did it: of any
number at the same time, in any number of instances, one does.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from sqlalchemy import (
    ColumnElement,
    Connection,
    Select,
    and_,
    delete,
    exists,
    func,
    insert,
    or_,
    select,
    tuple_,
    update,
)

from holdoverd.catalogue import cursors, schema
from holdoverd.catalogue.schema import (
    file_words,
    files,
    upload_digests,
    upload_links,
    uploads,
    usage,
)
from holdoverd.files.rules import (
    FILE_MOVES,
    UPLOAD_MOVES,
    FileState,
    UploadState,
    Verified,
    check_quota,
    leading,
    needed,
    words,
)


@dataclass(frozen=True, slots=True)
class FileRow:
    """A file. `key` is storage's; `verified` None until it is ready."""

    id: str
    owner: str
    name: str
    path: str
    size: int
    sha256: str | None
    verified: Verified | None
    content_type: str
    state: FileState
    key: str
    created_at: int
    erased_at: int | None = None


@dataclass(frozen=True, slots=True)
class UploadRow:
    """The upload of a file. `storage_upload` None: storage has not said yet that it opened one."""

    id: str
    file: str
    owner: str
    upload_link: str | None
    storage_upload: str | None
    part_size: int
    digests: bool
    state: UploadState
    created_at: int
    expires_at: int


@dataclass(frozen=True, slots=True)
class UsageRow:
    """What an owner has in storage; `quota_bytes` None: as configured for all."""

    owner: str
    bytes: int
    files: int
    quota_bytes: int | None


_FILE = tuple(files.c[name] for name in FileRow.__dataclass_fields__)
_UPLOAD = tuple(uploads.c[name] for name in UploadRow.__dataclass_fields__)
_USAGE = tuple(usage.c[name] for name in UsageRow.__dataclass_fields__)


# --- one file ---------------------------------------------------------------------------------


def create(
    cx: Connection, file: FileRow, upload: UploadRow, digests: Mapping[int, str], quota: int
) -> None:
    """Store a new file with its upload. TooLarge over the owner's quota; `quota` is that of all."""
    found = cx.execute(select(*_USAGE).where(usage.c.owner == file.owner)).first()
    if found is None:
        cx.execute(insert(usage).values(owner=file.owner, bytes=0, files=0))
    row = UsageRow(*found) if found is not None else UsageRow(file.owner, 0, 0, None)
    own = quota if row.quota_bytes is None else row.quota_bytes
    check_quota(file.owner, row.bytes, file.size, own)
    cx.execute(insert(files).values(**asdict(file)))
    cx.execute(insert(uploads).values(**asdict(upload)))
    put_digests(cx, upload.id, digests)
    _use(cx, file.owner, file.size, 1)
    _index(cx, file)


def add_ready(cx: Connection, file: FileRow) -> None:
    """Store a file whose bytes are in storage already, as a job's result is. No quota refuses it:
    the work is done.
    """
    if cx.execute(select(usage.c.owner).where(usage.c.owner == file.owner)).first() is None:
        cx.execute(insert(usage).values(owner=file.owner, bytes=0, files=0))
    cx.execute(insert(files).values(**asdict(file)))
    _use(cx, file.owner, file.size, 1)
    _index(cx, file)


def file_row(cx: Connection, file_id: str) -> FileRow | None:
    found = cx.execute(select(*_FILE).where(files.c.id == file_id)).first()
    return None if found is None else FileRow(*found)


def rename(cx: Connection, file: FileRow, name: str, path: str) -> FileRow | None:
    """The file under its new name; None when it has been deleted meanwhile."""
    query = update(files).where(files.c.id == file.id, files.c.state != "deleted")
    if cx.execute(query.values(name=name, path=path)).rowcount == 0:
        return None
    renamed = file_row(cx, file.id)
    assert renamed is not None, "it was updated in this transaction"
    cx.execute(delete(file_words).where(file_words.c.file == file.id))
    _index(cx, renamed)
    return renamed


def delete_file(cx: Connection, file: FileRow) -> bool:
    """Mark a file deleted, giving up its upload; False when it is so already.

    Its bytes are to be erased from storage next, and `erased` told.
    """
    if not _move_file(cx, file.id, "deleted"):
        return False
    cx.execute(delete(file_words).where(file_words.c.file == file.id))
    _use(cx, file.owner, -file.size, -1)
    for upload in _uploads(cx, uploads.c.file == file.id):
        if _move_upload(cx, upload.id, "aborted"):
            _forget_digests(cx, upload.id)
            if upload.upload_link is not None:
                cx.execute(
                    update(upload_links)
                    .where(upload_links.c.id == upload.upload_link)
                    .values(used_bytes=upload_links.c.used_bytes - file.size)
                )
    return True


def erased(cx: Connection, file_id: str, now: int) -> None:
    """The bytes of a deleted file are gone from storage."""
    query = update(files).where(files.c.id == file_id, files.c.state == "deleted")
    cx.execute(query.values(erased_at=now))


# --- uploads ----------------------------------------------------------------------------------


def upload_row(cx: Connection, upload_id: str) -> tuple[UploadRow, FileRow] | None:
    found = cx.execute(
        select(*_UPLOAD, *_FILE)
        .join(files, files.c.id == uploads.c.file)
        .where(uploads.c.id == upload_id)
    ).first()
    return None if found is None else _upload_and_file(found)


def uploads_of(cx: Connection, file_id: str) -> list[UploadRow]:
    return _uploads(cx, uploads.c.file == file_id)


def opened(cx: Connection, upload_id: str, storage_upload: str) -> bool:
    """Storage has opened the upload; False when it has been given up meanwhile."""
    return _move_upload(cx, upload_id, "open", storage_upload=storage_upload)


def completed(cx: Connection, upload: UploadRow, verified: Verified) -> bool:
    """Storage holds the file; False when this upload was completed or given up before."""
    if not _move_upload(cx, upload.id, "completed"):
        return False
    done = _move_file(cx, upload.file, "ready", verified=verified)
    assert done, "a file leaves `uploading` together with its upload"
    _forget_digests(cx, upload.id)
    return True


def digests_of(cx: Connection, upload_id: str) -> dict[int, str]:
    table = upload_digests
    query = select(table.c.number, table.c.sha256).where(table.c.upload == upload_id)
    return {row.number: row.sha256 for row in cx.execute(query)}


def put_digests(cx: Connection, upload_id: str, digests: Mapping[int, str]) -> None:
    """Remember the digests that URLs are signed with; a newer one of a part replaces the old."""
    if not digests:
        return
    table = upload_digests
    cx.execute(
        delete(table).where(table.c.upload == upload_id, table.c.number.in_(sorted(digests)))
    )
    cx.execute(
        insert(table),
        [{"upload": upload_id, "number": n, "sha256": sha} for n, sha in digests.items()],
    )


# --- lists ------------------------------------------------------------------------------------


def list_files(
    cx: Connection,
    *,
    owner: str | None,
    path: str | None = None,
    below: bool = False,
    name: str | None = None,
    q: str | None = None,
    state: str | None = None,
    limit: int,
    cursor: str | None = None,
) -> tuple[list[FileRow], str | None]:
    """Files not deleted, a page of them and the cursor of the next.

    `owner` None: everybody's. With `path`, that folder's by name (`below`: and of the folders in
    it); with `q`, those with a word that begins so, by that word; else the newest first. Several
    words in `q` have to be found all. Raises BadRequest for a cursor that is not of this list.

    Of several words that are all common few files may have each: a page of them may be short, or
    empty, and still have a next (`SEEN`).
    """
    query = select(*_FILE).where(_listed())
    if owner is not None:
        query = query.where(files.c.owner == owner)
    if state is not None:
        query = query.where(files.c.state == state)
    if name is not None:
        query = query.where(files.c.name == name)
    if path is not None:
        query = query.where(_in_folder(path, below))
    # A q without letters and digits finds nothing; it filters all the same.
    wanted = None if q is None else (words(q) or [""])
    if wanted is not None:
        return _found(cx, query, wanted, owner, limit, cursor)
    kind: str
    columns: tuple[ColumnElement[Any], ...]
    if path is not None:
        kind, columns = "path", (files.c.path, files.c.name, files.c.id)
        types: Sequence[type] = (str, str, str)
    else:
        kind, columns, types = "new", (files.c.created_at, files.c.id), (int, str)
    newest = path is None
    query = query.order_by(*(column.desc() if newest else column for column in columns))
    if cursor is not None:
        after = tuple_(*cursors.decode(cursor, kind, types))
        query = query.where(tuple_(*columns) < after if newest else tuple_(*columns) > after)
    rows = [FileRow(*found) for found in cx.execute(query.limit(limit + 1))]
    if len(rows) <= limit:
        return rows, None
    last = rows[limit - 1]
    key = (last.path, last.name, last.id) if path is not None else (last.created_at, last.id)
    return rows[:limit], cursors.encode(kind, key)


def _found(
    cx: Connection,
    query: Select[Any],
    wanted: Sequence[str],
    owner: str | None,
    limit: int,
    cursor: str | None,
) -> tuple[list[FileRow], str | None]:
    after: tuple[str, str] | None = None
    if cursor is not None:
        at, file = cursors.decode(cursor, "words", (str, str))
        after = str(at), str(file)
    wanted = needed(wanted)
    # The rarest word leads; the others only have to be there.
    lead, until = wanted[0], None
    if len(wanted) > 1:
        lead = _rarest(cx, wanted, owner) if after is None else leading(wanted, after[0])
        until = _seen(cx, lead, owner, after)
    others = [text for text in wanted if text != lead]
    word, other = file_words.c, file_words.alias().c
    query = (
        query.add_columns(word.word)
        .join(file_words, word.file == files.c.id)
        .where(_stretch(lead, after, until))
        .order_by(word.word, word.file)
    )
    if owner is not None:
        query = query.where(word.owner == owner)
    for text in others:
        query = query.where(exists().where(other.file == word.file, _begins(other.word, text)))
    # A file with two such words comes with the first. Asked last, of what has all the others.
    query = query.where(
        ~exists().where(other.file == word.file, _begins(other.word, lead), other.word < word.word)
    )
    found = cx.execute(query.limit(limit + 1)).all()
    rows = [FileRow(*row[:-1]) for row in found]
    if len(rows) <= limit:
        return rows, None if until is None else cursors.encode("words", until)
    return rows[:limit], cursors.encode("words", (found[limit - 1][-1], rows[limit - 1].id))


SEEN = 150
"""How many entries of its rarest word a page of a search looks at, at most: of words that are all
common, files that have each may lie anywhere, and the question must end. To look at one costs some 35 µs
where there are a million, whose rows lie anywhere."""


def _rarest(cx: Connection, wanted: Sequence[str], owner: str | None) -> str:
    """Of the words that with the fewest entries, as far as one needs to count."""
    rarest, fewest = wanted[0], SEEN
    for text in wanted:
        some = _entries(text, owner).limit(fewest).subquery()
        count = cx.execute(select(func.count()).select_from(some)).scalar_one()
        if count < fewest:
            rarest, fewest = text, count
    return rarest


def _seen(
    cx: Connection, lead: str, owner: str | None, after: tuple[str, str] | None
) -> tuple[str, str] | None:
    """The last entry that a page looks at; None: there are no more than that."""
    word = file_words.c
    query = select(word.word, word.file).where(_stretch(lead, after, None))
    if owner is not None:
        query = query.where(word.owner == owner)
    query = query.order_by(word.word, word.file).offset(SEEN - 1).limit(1)
    found = cx.execute(query).first()
    return None if found is None else (found.word, found.file)


def _stretch(
    lead: str, after: tuple[str, str] | None, until: tuple[str, str] | None
) -> ColumnElement[bool]:
    """The entries of a word from behind `after` up to `until`, with one bound at either end.

    SQLite enters an index by one and leaves it by one; a second would be tried on each entry of the
    word, of which there may be as many as files.
    """
    if not lead:
        return _begins(file_words.c.word, lead)
    at = tuple_(file_words.c.word, file_words.c.file)
    # A cursor from elsewhere may lie before the word's first entry.
    first = at > tuple_(*max(after or ("", ""), (lead, "")))
    if until is None:
        return and_(first, file_words.c.word < lead + "\U0010ffff")
    return and_(first, at <= tuple_(*until))


def _entries(text: str, owner: str | None) -> Select[tuple[str, str]]:
    word = file_words.c
    query = select(word.word, word.file).where(_begins(word.word, text))
    return query if owner is None else query.where(word.owner == owner)


def _begins(column: ColumnElement[str], prefix: str) -> ColumnElement[bool]:
    """A range and not LIKE, which would not use the index in either database."""
    if not prefix:
        return column == ""  # no word is empty
    return and_(column >= prefix, column < prefix + "\U0010ffff")


def _in_folder(path: str, below: bool) -> ColumnElement[bool]:
    if not below:
        return files.c.path == path
    if not path:
        return files.c.path >= ""
    # "0" is the character after "/". Between them lies little that is in no such folder ("a-b"
    # after "a"); without the one range for both an index would be walked from its beginning.
    return and_(
        files.c.path >= path,
        files.c.path < f"{path}0",
        or_(files.c.path == path, files.c.path > f"{path}/"),
    )


def _listed() -> ColumnElement[bool]:
    # Literally as the partial indexes have it, or the planner would not see that they fit.
    return schema.NOT_DELETED  # type: ignore[return-value]


# --- what the sweeper looks for -----------------------------------------------------------------


def by_keys(cx: Connection, keys: Sequence[str]) -> dict[str, FileRow]:
    """{storage key: its file}, for those of `keys` that have one."""
    query = select(*_FILE).where(files.c.key.in_(keys))
    return {row.key: row for row in (FileRow(*found) for found in cx.execute(query))}


def to_give_up(cx: Connection, *, now: int, opened_before: int, limit: int) -> list[FileRow]:
    """Files whose upload has expired, or was never opened although it began before `opened_before`."""
    query = (
        select(*_FILE)
        .join(uploads, uploads.c.file == files.c.id)
        .where(
            or_(
                and_(uploads.c.state == "open", uploads.c.expires_at <= now),
                and_(uploads.c.state == "opening", uploads.c.created_at <= opened_before),
            )
        )
        .limit(limit)
    )
    return [FileRow(*found) for found in cx.execute(query)]


def to_erase(cx: Connection, *, limit: int) -> list[FileRow]:
    """Deleted files whose bytes may still be in storage."""
    query = select(*_FILE).where(files.c.state == "deleted", files.c.erased_at.is_(None))
    return [FileRow(*found) for found in cx.execute(query.limit(limit))]


def ready_after(cx: Connection, key: str, *, limit: int) -> list[FileRow]:
    """Ready files in order of their storage keys, from the one after `key`."""
    query = select(*_FILE).where(files.c.key > key, files.c.state == "ready")
    return [FileRow(*row) for row in cx.execute(query.order_by(files.c.key).limit(limit))]


def take_turn(cx: Connection, key: str, now: int, every_ms: int) -> bool:
    """Whether it is time again for what `meta` keeps the time of, and this call that is to do it."""
    meta = schema.meta
    last = cx.execute(select(meta.c.value).where(meta.c.key == key)).scalar()
    if last is None:
        cx.execute(insert(meta).values(key=key, value=str(now)))
        return True
    # One far in the future is that of a clock that was wrong.
    if abs(now - int(last)) < every_ms:
        return False
    cx.execute(update(meta).where(meta.c.key == key).values(value=str(now)))
    return True


# --- usage ------------------------------------------------------------------------------------


def usages(cx: Connection) -> list[UsageRow]:
    return [UsageRow(*found) for found in cx.execute(select(*_USAGE).order_by(usage.c.owner))]


def set_quota(cx: Connection, owner: str, quota_bytes: int | None) -> None:
    """None: as configured for all."""
    if cx.execute(
        update(usage).where(usage.c.owner == owner).values(quota_bytes=quota_bytes)
    ).rowcount:
        return
    cx.execute(insert(usage).values(owner=owner, bytes=0, files=0, quota_bytes=quota_bytes))


# --- inside -----------------------------------------------------------------------------------


def _move_file(cx: Connection, file_id: str, to: FileState, **values: object) -> bool:
    sources = [state for state, targets in FILE_MOVES.items() if to in targets]
    query = update(files).where(files.c.id == file_id, files.c.state.in_(sources))
    return cx.execute(query.values(state=to, **values)).rowcount > 0


def _move_upload(cx: Connection, upload_id: str, to: UploadState, **values: object) -> bool:
    sources = [state for state, targets in UPLOAD_MOVES.items() if to in targets]
    query = update(uploads).where(uploads.c.id == upload_id, uploads.c.state.in_(sources))
    return cx.execute(query.values(state=to, **values)).rowcount > 0


def _uploads(cx: Connection, *conditions: ColumnElement[bool]) -> list[UploadRow]:
    return [UploadRow(*found) for found in cx.execute(select(*_UPLOAD).where(*conditions))]


def _upload_and_file(found: Sequence[Any]) -> tuple[UploadRow, FileRow]:
    return UploadRow(*found[: len(_UPLOAD)]), FileRow(*found[len(_UPLOAD) :])


def _forget_digests(cx: Connection, upload_id: str) -> None:
    cx.execute(delete(upload_digests).where(upload_digests.c.upload == upload_id))


def _use(cx: Connection, owner: str, size: int, count: int) -> None:
    cx.execute(
        update(usage)
        .where(usage.c.owner == owner)
        .values(bytes=usage.c.bytes + size, files=usage.c.files + count)
    )


def _index(cx: Connection, file: FileRow) -> None:
    found: Iterable[str] = words(file.name)
    rows = [{"word": word, "file": file.id, "owner": file.owner} for word in found]
    if rows:
        cx.execute(insert(file_words), rows)
