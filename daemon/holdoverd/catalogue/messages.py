"""Messages in the catalogue: pages of a thread, the log of a session, one body whole.

Bodies are the agent's own lines, byte for byte. One larger than `WHOLE_BODY_BYTES` is stored with
its beginning beside it, and every list gives only that: nobody should wait for 40 MiB to scroll
past a line. `body` gives it whole.
"""

from collections.abc import Iterator, Sequence
from itertools import chain, groupby
from operator import itemgetter
from typing import Any

from sqlalchemy import Connection, Select, case, func, select

from holdoverd.catalogue import schema
from holdoverd.catalogue.records import MessageRow
from holdoverd.catalogue.statements import inserting_many

# contract.md, Messages
WHOLE_BODY_BYTES = 256 * 1024
PREVIEW_CHARACTERS = 4096
PAGE_SIZE = 100

# Rows fetched at a time where a budget of bytes ends the list: overshoots by at most 8 MiB.
_BATCH = 32

# Between uuids that are read together: in none that anybody makes.
_UNIT = "\x1f"

MAIN = "main"


class StoredMessage(MessageRow, gc=False):
    """A message as read back; `size` is that of its whole body in UTF-8.

    `truncated`: `body` is only the beginning, because the whole is over `WHOLE_BODY_BYTES`.
    """

    size: int
    truncated: bool


_COLUMNS = ("session", "seq", "n", "thread", "at", "kind", "uuid", "client_id", "request_id")
# A read of a spool makes rows that differ in few columns, those of several sessions in two more.
_INSERT = inserting_many(
    schema.messages,
    ("seq", "n", "thread", "kind", "uuid", "size", "body"),
    shared=("client_id", "request_id", "preview", "session", "at"),
)
_INSERT_OF_SEVERAL = inserting_many(
    schema.messages,
    ("seq", "n", "thread", "kind", "uuid", "size", "body", "session", "at"),
    shared=("client_id", "request_id", "preview"),
)


def body_size(body: str) -> int:
    """Bytes of a body in UTF-8; free for ASCII, as most lines are."""
    return len(body) if body.isascii() else len(body.encode())


def insert_messages(cx: Connection, stored: Sequence[tuple[str, Sequence[MessageRow]]]) -> None:
    """Store messages, of each session some; for `sessions.apply_change`, which has checked the
    fence and their order.
    """
    if len(stored) == 1:
        insertion, rows = _INSERT, [_of_one(*stored[0])]
    else:
        insertion, rows = _INSERT_OF_SEVERAL, [_of_several(*each) for each in stored]
    for shared, alike in groupby(chain.from_iterable(rows), itemgetter(0)):
        insertion.change(cx, [row for _, row in alike], shared)


_Sharing = Iterator[tuple[tuple[object, ...], tuple[object, ...]]]
"""(what a row shares with its neighbours, what is its own) of each"""


def _of_one(session: str, messages: Sequence[MessageRow]) -> _Sharing:
    for row in messages:
        size, preview = _size_and_preview(row.body)
        shared = (row.client_id, row.request_id, preview, session, row.at)
        yield shared, (row.seq, row.n, row.thread, row.kind, row.uuid, size, row.body)


def _of_several(session: str, messages: Sequence[MessageRow]) -> _Sharing:
    for shared, own in _of_one(session, messages):
        yield shared[:3], own + shared[3:]


def _size_and_preview(body: str) -> tuple[int, str | None]:
    size = body_size(body)
    return size, body[:PREVIEW_CHARACTERS] if size > WHOLE_BODY_BYTES else None


def page(cx: Connection, session: str, thread: str, page: int) -> list[StoredMessage]:
    """Page `page` (from 0) of a thread: n = 100 page + 1 … 100 page + 100, as far as they exist."""
    first = PAGE_SIZE * page + 1
    table = schema.messages
    query = (
        _select()
        .where(table.c.session == session, table.c.thread == thread)
        .where(table.c.n.between(first, first + PAGE_SIZE - 1))
        .order_by(table.c.n)
    )
    return [StoredMessage(*row) for row in cx.execute(query)]


def log_after(
    cx: Connection, session: str, after: int, limit: int, max_bytes: int | None = None
) -> list[StoredMessage]:
    """Messages of all threads with seq > `after`, in order of seq.

    At most `limit`, and no more than fit in `max_bytes` of body (one always fits, so that nobody
    gets stuck on a large one).
    """
    table = schema.messages
    query = _select().where(table.c.session == session, table.c.seq > after)
    return _within(cx, query.order_by(table.c.seq).limit(limit), max_bytes)


def thread_after(
    cx: Connection,
    session: str,
    thread: str,
    after_n: int,
    limit: int,
    *,
    max_bytes: int | None = None,
    up_to_seq: int | None = None,
) -> list[StoredMessage]:
    """Messages of one thread with n > `after_n`, in order of n; limits as in `log_after`.

    `up_to_seq` leaves out those with a greater seq, for a reader that gets these another way.
    """
    table = schema.messages
    query = _select().where(
        table.c.session == session, table.c.thread == thread, table.c.n > after_n
    )
    if up_to_seq is not None:
        query = query.where(table.c.seq <= up_to_seq)
    return _within(cx, query.order_by(table.c.n).limit(limit), max_bytes)


def body(cx: Connection, session: str, seq: int) -> str | None:
    """The whole body of one message; None when there is no such message."""
    table = schema.messages
    found: str | None = cx.execute(
        select(table.c.body).where(table.c.session == session, table.c.seq == seq)
    ).scalar()
    return found


def seq_opening_last_pages(cx: Connection, session: str) -> int:
    """The seq of the first message on the last page but one of ``main``.

    That of its first page where it has no two; 1 where it has no message at all.
    """
    table = schema.messages
    of_main = (table.c.session == session, table.c.thread == MAIN)
    last = cx.execute(select(func.max(table.c.n)).where(*of_main)).scalar()
    if last is None:
        return 1
    opening = max((last - 1) // PAGE_SIZE - 1, 0) * PAGE_SIZE + 1
    found = cx.execute(select(table.c.seq).where(*of_main, table.c.n == opening)).scalar_one()
    return int(found)


def thread_n_at(cx: Connection, session: str, thread: str, seq: int) -> int:
    """How far a thread had come at `seq`: the n of its last message not after it; 0 before any."""
    table = schema.messages
    found = cx.execute(
        select(table.c.n)
        .where(table.c.session == session, table.c.seq <= seq, table.c.thread == thread)
        .order_by(table.c.seq.desc())
        .limit(1)
    ).scalar()
    return 0 if found is None else int(found)


def recent_uuids(cx: Connection, session: str, limit: int) -> list[str]:
    """Uuids among the last `limit` messages, latest first; to know a line that came before."""
    table = schema.messages
    latest = (
        select(table.c.uuid)
        .where(table.c.session == session)
        .order_by(table.c.seq.desc())
        .limit(limit)
        .subquery()
    )
    # As one row: for each row that the driver steps to, the thread has to win the interpreter back
    # from an event loop that is busy, and viewers wait for this read in a handover. Both databases
    # go through the subquery in its order.
    joined = cx.execute(select(func.aggregate_strings(latest.c.uuid, _UNIT))).scalar()
    return joined.split(_UNIT) if joined else []


def _select() -> Select[Any]:
    table = schema.messages
    return select(
        *(table.c[name] for name in _COLUMNS[1:]),
        case((table.c.preview.is_(None), table.c.body), else_=table.c.preview),
        table.c.size,
        table.c.preview.is_not(None),
    )


def _within(cx: Connection, query: Select[Any], max_bytes: int | None) -> list[StoredMessage]:
    if max_bytes is None:
        return [StoredMessage(*row) for row in cx.execute(query)]
    messages: list[StoredMessage] = []
    room = max_bytes
    # Where the driver would fetch every row at once, it is told to fetch as many as are asked for.
    query = query.execution_options(stream_results=True, max_row_buffer=_BATCH)
    with cx.execute(query) as result:
        while batch := result.fetchmany(_BATCH):
            for row in batch:
                message = StoredMessage(*row)
                room -= len(message.body) if message.truncated else message.size
                if room < 0 and messages:
                    return messages
                messages.append(message)
    return messages
