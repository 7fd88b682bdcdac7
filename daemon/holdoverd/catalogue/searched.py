"""The index of search, in the transaction that stores what it is of.

``searched`` has a row for each message with words. In SQLite it is an FTS5 table, in PostgreSQL a
table with a tsvector. Neither is in `schema`: what they are made of is their engine's own, and
nothing refers to them. `id` goes up as messages come, so the latest stands first.

Beside the words a row has two made-up ones, for its session and its owner. Without them the index
could only say which of all messages have a word, and somebody who may see a few of a million would
wait for the rest to be sorted out.

``sessions.searched_seq`` tells how far a session is indexed, without a gap. A change of a few
messages is indexed as it is stored, if all before it was. What is not (a burst, or what an older
release has stored) is for `fill_slice`, in order and within seconds: a word costs more to index than
to store, and those who watch a burst should not wait for it.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from sqlalchemy import (
    Column,
    ColumnElement,
    Connection,
    MetaData,
    Table,
    Text,
    case,
    func,
    literal_column,
    select,
    text,
    update,
)
from sqlalchemy.exc import OperationalError

from holdoverd.catalogue import schema
from holdoverd.catalogue.messages import PAGE_SIZE, log_after
from holdoverd.catalogue.records import MessageRow
from holdoverd.catalogue.rows import session_row
from holdoverd.catalogue.statements import Many, Statement, inserting_many
from holdoverd.errors import BadRequest, NotFound
from holdoverd.search.words import Term, folded, snippet, text_of

MAX_LIST = 500  # contract.md: Lists
# Others' sessions that are looked through beside one's own: the latest.
MAX_SHARED = 500
SEARCH_TIMEOUT_S = 10
# Removing a row costs about as much as indexing it did.
PURGED_AT_ONCE = 250
# Messages in one change that are indexed as they are stored.
AT_ONCE = 16
# What is indexed in one write later: a hundredth of a second.
FILL_MESSAGES = 128
FILL_BYTES = 256 * 1024


@dataclass(frozen=True, slots=True)
class Hit:
    """A message that was found. `page`: the page of its thread that it stands on."""

    session: str
    seq: int
    thread: str
    page: int
    snippet: str
    at: int


# --- writing ---------------------------------------------------------------------------------


def mark(rows: Sequence[MessageRow]) -> int:
    """The mark of a session whose next messages these are, if it is to move with them; see `moved`.

    Else a mark that no session has: of a burst, which `fill_slice` will index.
    """
    return rows[0].seq - 1 if len(rows) <= AT_ONCE else -1


def moved(mark: ColumnElement[Any], last: ColumnElement[Any]) -> ColumnElement[int]:
    """``sessions.searched_seq`` as messages up to `last` are stored: moved on from `mark` alone.

    In the statement that moves ``last_seq`` as well; `add` then indexes them.
    """
    at = schema.sessions.c.searched_seq
    return case((at == mark, last), else_=at)


def add(cx: Connection, stored: Sequence[tuple[str, Sequence[MessageRow]]]) -> None:
    """Index what was just stored of each session, where its mark has moved; else `fill_slice` will.

    Last of all in a transaction, as far as that is known: FTS5 writes out what it has collected
    before any statement that may have to be undone alone.
    """
    few = {session: rows for session, rows in stored if len(rows) <= AT_ONCE}
    if not few:
        return
    # As one row: see `messages.recent_uuids`.
    pairs = [
        pair.split(" ")
        for found in _LEVEL.values(cx, [(session,) for session in few])
        for pair in (found or "").splitlines()
    ]
    owners = {pair[0]: pair[1] for pair in pairs}
    _insert(cx, [(session, owner, few[session]) for session, owner in owners.items()])


def fill_slice(cx: Connection, session: str, size: int = FILL_MESSAGES) -> bool:
    """Index the next messages of a session that is behind; True when it no longer is."""
    table = schema.sessions
    found = cx.execute(
        select(table.c.searched_seq, table.c.last_seq, table.c.owner)
        .where(table.c.id == session, table.c.state != schema.PURGED)
        .with_for_update()
    ).first()
    if found is None or found.searched_seq >= found.last_seq:
        return True
    rows = log_after(cx, session, found.searched_seq, size, FILL_BYTES)
    _insert(cx, [(session, found.owner, rows)])
    last = rows[-1].seq
    cx.execute(update(table).where(table.c.id == session).values(searched_seq=last))
    return bool(last >= found.last_seq)


def session_behind(cx: Connection) -> str | None:
    """A session that is not indexed to its end, the latest first."""
    table = schema.sessions
    found: str | None = cx.execute(
        select(table.c.id)
        .where(table.c.searched_seq < table.c.last_seq, table.c.state != schema.PURGED)
        .order_by(table.c.updated_at.desc())
        .limit(1)
    ).scalar()
    return found


def remove_slice(cx: Connection, session: str, size: int = PURGED_AT_ONCE) -> bool:
    """Remove up to `size` of a session's rows; True when none is left."""
    if _is_sqlite(cx):
        found = cx.execute(
            text("SELECT rowid FROM searched WHERE searched MATCH :query LIMIT :size"),
            {"query": f"scope : {_session_word(session)}", "size": size},
        ).scalars()
        ids = list(found)
        for rowid in ids:
            cx.execute(text("DELETE FROM searched WHERE rowid = :id"), {"id": rowid})
        return len(ids) < size
    removed = cx.execute(
        text(
            "DELETE FROM searched WHERE id IN "
            "(SELECT id FROM searched WHERE session = :session LIMIT :size)"
        ),
        {"session": session, "size": size},
    ).rowcount
    return removed < size


def orphans(cx: Connection, after: int, size: int = 5000) -> tuple[list[str], int | None]:
    """Sessions among the next `size` rows that exist no more, and where to go on (None: at the end).

    A release that knows nothing of this index purges a session without it.
    """
    key = _key(cx)
    # Counted by the database: to fetch every row would keep the interpreter from everybody else.
    found = cx.execute(
        text(
            "SELECT session, count(*) AS of_it, max(id) AS last FROM "  # noqa: S608
            f"(SELECT {key} AS id, session FROM searched WHERE {key} > :after "
            f"ORDER BY {key} LIMIT :size) AS slice GROUP BY session"
        ),
        {"after": after, "size": size},
    ).all()
    named = {row.session for row in found}
    table = schema.sessions
    known = set(cx.execute(select(table.c.id).where(table.c.id.in_(named))).scalars())
    whole = sum(row.of_it for row in found) == size
    return sorted(named - known), (max(row.last for row in found) if whole else None)


_LINE: Any = literal_column("'\n'", Text)  # declared as str, but it takes this as well
# "ID OWNER" of each that is indexed to its end. No name of an owner holds a space.
_LEVEL = Many(
    {"session": schema.sessions.c.id},
    lambda given: (
        select(
            func.aggregate_strings(
                schema.sessions.c.id + literal_column("' '", Text) + schema.sessions.c.owner,
                _LINE,
            )
        )
        .where(schema.sessions.c.id == given["session"])
        .where(schema.sessions.c.searched_seq == schema.sessions.c.last_seq)
    ),
)
# Not `schema`'s: its columns have no types, and Alembic knows nothing of such tables.
_FTS = Table(
    "searched", MetaData(), *(Column(name) for name in ("scope", "words", "session", "seq"))
)
_INSERT_SQLITE = inserting_many(_FTS, ("session", "scope", "seq", "words"))
_INSERT_POSTGRESQL = Statement(
    ("session_word", "owner_word", "session", "seq", "words", "folded"),
    lambda _dialect: text(
        "INSERT INTO searched (session, seq, words, found) VALUES (:session, :seq, :words, "
        "array_to_tsvector(CAST(ARRAY[:session_word, :owner_word] AS text[])) || "
        "to_tsvector('simple', :folded))"
    ),
)


def _insert(cx: Connection, added: Sequence[tuple[str, str, Sequence[MessageRow]]]) -> None:
    """Index messages: (session, its owner, some of its messages) of each."""
    sqlite = _is_sqlite(cx)
    found: list[tuple[object, ...]] = []
    for session, owner, rows in added:
        scope = (_session_word(session), _owner_word(owner))
        own = (session, " ".join(scope)) if sqlite else (*scope, session)
        for row in rows:
            if not (words := text_of(row.kind, row.body)):
                continue
            found.append((*own, row.seq, words) + (() if sqlite else (folded(words),)))
    if not found:
        return
    if sqlite:
        _INSERT_SQLITE.change(cx, found)
    else:
        _INSERT_POSTGRESQL.change_many(cx, found)


# --- searching -------------------------------------------------------------------------------


def search(
    cx: Connection,
    terms: Sequence[Term],
    *,
    owner: str | None,
    session: str | None = None,
    limit: int = 50,
    cursor: int | None = None,
) -> tuple[list[Hit], int | None]:
    """Messages that hold every term, the latest stored first, and a cursor where there are more.

    In the sessions `owner` may see, its own and shared ones (None: all), or in one of them. Raises
    NotFound where that one is not to be seen, BadRequest for a search that takes too long.
    """
    table = schema.sessions
    if session is not None:
        row = session_row(cx, session)
        if row is None or (owner not in (None, row.owner) and row.share is None):
            raise NotFound(f"There is no session {session[:50]}; `GET /v1/sessions` lists them.")
        scope = [_session_word(session)]
    elif owner is not None:
        shared = cx.execute(
            select(table.c.id)
            .where(table.c.share.is_not(None), table.c.owner != owner)
            .where(table.c.state != schema.PURGED)
            .order_by(table.c.updated_at.desc())
            .limit(MAX_SHARED)
        ).scalars()
        scope = [_owner_word(owner), *(_session_word(each) for each in shared)]
    else:
        scope = []
    conditions = ["s.state <> :purged"]
    values: dict[str, object] = {"purged": schema.PURGED, "limit": limit + 1}
    if owner is not None:
        conditions.append("(s.owner = :owner OR s.share IS NOT NULL)")
        values["owner"] = owner
    if session is not None:
        conditions.append("s.id = :session")
        values["session"] = session
    if cursor is not None:
        conditions.append(f"searched.{_key(cx)} < :cursor")
        values["cursor"] = cursor
    if _is_sqlite(cx):
        statement, values["query"] = _SEARCH_SQLITE, _fts_query(terms, scope)
    else:
        statement, values["query"] = _SEARCH_POSTGRESQL, _tsquery(terms, scope)
        cx.execute(text(f"SET LOCAL statement_timeout = '{SEARCH_TIMEOUT_S}s'"))
    try:
        rows = cx.execute(text(statement.format(" AND ".join(conditions))), values).all()
    except OperationalError as error:
        if getattr(error.orig, "sqlstate", None) != _CANCELED:
            raise
        raise BadRequest(
            f"The search took longer than {SEARCH_TIMEOUT_S} s; add a rarer word, or `session`."
        ) from error
    hits = [
        Hit(of, seq, thread, (n - 1) // PAGE_SIZE, snippet(words, terms), at)
        for _, of, seq, words, thread, n, at in rows[:limit]
    ]
    return hits, (rows[limit - 1][0] if len(rows) > limit else None)


# From the index outwards, and only as far as is asked for: CROSS JOIN keeps SQLite from beginning
# with the sessions.
_SEARCH = """
SELECT searched.{key}, searched.session, searched.seq, searched.words, m.thread, m.n, m.at
FROM searched CROSS JOIN sessions AS s CROSS JOIN messages AS m
WHERE {match} AND s.id = searched.session AND m.session = searched.session
AND m.seq = searched.seq AND {{}}
ORDER BY searched.{key} DESC LIMIT :limit
"""
_SEARCH_SQLITE = _SEARCH.format(key="rowid", match="searched MATCH :query")
_SEARCH_POSTGRESQL = _SEARCH.format(key="id", match="searched.found @@ CAST(:query AS tsquery)")
_CANCELED = "57014"  # https://www.postgresql.org/docs/current/errcodes-appendix.html


def _fts_query(terms: Sequence[Term], scope: Sequence[str]) -> str:
    """https://sqlite.org/fts5.html#full_text_query_syntax; every term is a string of its syntax."""
    strings = ['"' + term.text.replace('"', '""') + '"' + " *" * term.prefix for term in terms]
    query = f"words : ({' AND '.join(strings)})"
    return f"scope : ({' OR '.join(scope)}) AND {query}" if scope else query


def _tsquery(terms: Sequence[Term], scope: Sequence[str]) -> str:
    """https://www.postgresql.org/docs/current/datatype-textsearch.html; words hold letters and digits."""
    parts = [
        "(" + " <-> ".join(f"'{word}'" for word in term.words) + ":*" * term.prefix + ")"
        for term in terms
    ]
    if scope:
        parts.append("(" + " | ".join(f"'{word}'" for word in scope) + ")")
    return " & ".join(parts)


def _is_sqlite(cx: Connection) -> bool:
    return cx.dialect.name == "sqlite"


def _key(cx: Connection) -> str:
    return "rowid" if _is_sqlite(cx) else "id"


def _session_word(session: str) -> str:
    return "s" + _word(session)


def _owner_word(owner: str) -> str:
    return "o" + _word(owner)


@lru_cache(maxsize=4096)
def _word(name: str) -> str:
    """One word for every engine, whatever the name is made of."""
    return hashlib.blake2b(name.encode("utf-8", "surrogatepass"), digest_size=8).hexdigest()
