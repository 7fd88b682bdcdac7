"""Writing sessions: each change fenced by the epoch its owner holds the session by.

For `Catalogue.write`; import these from `sessions`, where they stand beside the reading.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from operator import attrgetter
from typing import Any, Self

from sqlalchemy import (
    ColumnElement,
    Connection,
    Integer,
    Update,
    bindparam,
    delete,
    func,
    literal_column,
    select,
    update,
)

from holdoverd.catalogue import schema, searched
from holdoverd.catalogue.jobs import mark_told
from holdoverd.catalogue.messages import insert_messages
from holdoverd.catalogue.records import Change, MessageRow, SessionRow
from holdoverd.catalogue.rows import (
    LAUNCH_COLUMNS,
    OUTBOX_COLUMNS,
    PERMISSION_COLUMNS,
    PROMPT_COLUMNS,
    SESSION_COLUMNS,
    THREAD_COLUMNS,
    not_purged,
    session_row,
)
from holdoverd.catalogue.statements import (
    Given,
    Many,
    Statement,
    inserting,
    updating_many,
    upserting,
)
from holdoverd.catalogue.writer import Together
from holdoverd.errors import Conflict, Internal, NotOwner

# What a Change may set. The rest is a session's identity, or moves by take_ownership alone.
_MUTABLE = frozenset(SESSION_COLUMNS) - {
    "id",
    "epoch",
    "owner",
    "account",
    "agent",
    "host",
    "generation",
    "release",
    "owner_epoch",
    "created_at",
}


def create_session(cx: Connection, row: SessionRow, change: Change) -> None:
    """Store a new session and its first change (which may be empty), whole or not at all.

    `row` may be as it is before `change` or after it. Raises Conflict where the id is taken.
    """
    taken = cx.execute(select(schema.sessions.c.id).where(schema.sessions.c.id == row.id))
    if taken.first() is not None:
        raise Conflict(f"A session {row.id} exists already; use another id.")
    # The change moves it on from here, whether or not the caller's row has moved already.
    before = replace(row, last_seq=change.messages[0].seq - 1 if change.messages else row.last_seq)
    _INSERT_SESSION.change(cx, [getattr(before, name) for name in SESSION_COLUMNS])
    apply_change(cx, row.id, row.owner_epoch, change)


def apply_change(cx: Connection, session_id: str, owner_epoch: int, change: Change) -> None:
    """Store everything in `change`, fenced by `owner_epoch`.

    Raises NotOwner when the session is gone or its epoch another, Internal when the messages do
    not follow on `last_seq` without a gap. `sessions.last_seq` follows the messages by itself, and
    so does `n` of a thread that got messages but no ThreadRow.
    """
    _fence(cx, session_id, owner_epoch, change)
    _store(cx, [(session_id, change)])


@dataclass(frozen=True, slots=True)
class Applied(Together):
    """`apply_change`, as a function for `Catalogue.write` that runs together with others of its kind.

    A session that says one line has seven rows to change, and of two hundred sessions the lines of a
    dozen wait for one commit: table by table that is a handful of statements, each of which costs
    the thread the interpreter's lock, instead of eighty.
    """

    session_id: str
    owner_epoch: int
    change: Change

    def __call__(self, cx: Connection) -> None:
        apply_change(cx, self.session_id, self.owner_epoch, self.change)

    @property
    def apart_by(self) -> object:
        return self.session_id

    @classmethod
    def run(cls, cx: Connection, them: Sequence[Self]) -> None:
        """Store all of these changes. Raises where any cannot be, and does not say which."""
        fenced: dict[tuple[tuple[str, ...], bool], list[tuple[object, ...]]] = {}
        for each in them:
            kind, row = _fencing(each.session_id, each.owner_epoch, each.change)
            fenced.setdefault(kind, []).append(row)
        for kind, rows in fenced.items():
            if _fences(*kind).change(cx, rows) != len(rows):
                raise _not_together("of one the epoch or last_seq is another")
        _store(cx, [(each.session_id, each.change) for each in them])


def _store(cx: Connection, stored: Sequence[tuple[str, Change]]) -> None:
    """Everything in changes of one session each, whose fences have held.

    Rows that are nearly always there already are updated, and inserted where they were not.
    """
    threads = {
        (session, row.thread): (session, *_THREAD_VALUES(row))
        for session, change in stored
        for row in change.threads
    }
    if threads and _MOVE_THREADS.change(cx, [*threads.values()]) < len(threads):
        _UPSERT_THREAD.change_many(cx, [(*row, row[0]) for row in threads.values()])
    if messages := [(session, change.messages) for session, change in stored if change.messages]:
        insert_messages(cx, messages)
        _advance_threads(cx, messages, threads.keys())
    if permissions := _rows_of(stored, "permissions", PERMISSION_COLUMNS):
        _UPSERT_PERMISSION.change_many(cx, permissions)
    if prompts := _rows_of(stored, "prompts", PROMPT_COLUMNS):
        _UPSERT_PROMPT.change_many(cx, prompts)
    _store_launches(cx, stored)
    if outbox := _rows_of(stored, "outbox", OUTBOX_COLUMNS):
        _INSERT_OUTBOX.change_many(cx, outbox)
    if acked := [
        (session, *change.outbox_acked) for session, change in stored if change.outbox_acked
    ]:
        _DELETE_OUTBOX.change_many(cx, acked)
    for session, change in stored:
        if change.job_told is not None and not mark_told(cx, change.job_told):
            raise Conflict(f"Session {session} has heard of the end of job {change.job_told}.")
    searched.add(cx, messages)


def _store_launches(cx: Connection, stored: Sequence[tuple[str, Change]]) -> None:
    launches: list[tuple[object, ...]] = []
    for session, change in stored:
        if change.launch is None:
            continue
        if change.launch.session != session:
            raise Internal(
                f"A change of session {session} carries launch {change.launch.id} of session "
                f"{change.launch.session}; nothing of it was stored."
            )
        launches.append(_LAUNCH_VALUES(change.launch))
    if launches and _MOVE_LAUNCHES.change(cx, launches) < len(launches):
        _UPSERT_LAUNCH.change_many(cx, launches)


def take_ownership(
    cx: Connection, session_id: str, expected_epoch: int, host: str, generation: int, release: str
) -> int:
    """Compare-and-set of a session's owner; the new epoch, `expected_epoch` + 1.

    Raises NotOwner when the session is gone or somebody else's turn came first.
    """
    moved = _TAKE.change(
        cx, (expected_epoch + 1, host, generation, release, session_id, expected_epoch)
    )
    if moved == 0:
        raise _not_owner(cx, session_id, expected_epoch)
    return expected_epoch + 1


def purge_session(cx: Connection, session_id: str, owner_epoch: int) -> None:
    """Make a session disappear for every reader and owner; its rows go with `purge_slice`.

    Raises NotOwner like `apply_change`; afterwards every epoch known so far is stale.
    """
    table = schema.sessions
    marked = cx.execute(
        update(table)
        .where(table.c.id == session_id, table.c.owner_epoch == owner_epoch)
        .where(table.c.state != schema.PURGED)
        .values(state=schema.PURGED, owner_epoch=owner_epoch + 1)
    ).rowcount
    if marked == 0:
        raise _not_owner(cx, session_id, owner_epoch)


def purge_slice(cx: Connection, session_id: str, size: int = 2000) -> bool:
    """Remove up to `size` messages of a purged session, at last the session; True when it is gone.

    In slices because a million messages in one transaction would keep every other session waiting
    for seconds. Call it in one write after another until it says True; `purges_unfinished` finds
    those a crash cut short. Does nothing to a session that was not purged.
    """
    sessions, messages = schema.sessions, schema.messages
    state = cx.execute(select(sessions.c.state).where(sessions.c.id == session_id)).scalar()
    if state != schema.PURGED:
        return True
    if not searched.remove_slice(cx, session_id):
        return False
    # Outbox rows may point at messages, so they go first.
    cx.execute(delete(schema.outbox).where(schema.outbox.c.session == session_id))
    last = cx.execute(
        select(func.max(messages.c.seq)).where(messages.c.session == session_id)
    ).scalar()
    if last is not None:
        cx.execute(
            delete(messages).where(messages.c.session == session_id, messages.c.seq > last - size)
        )
        if last > size:
            return False
    for table in (schema.launches, schema.permissions, schema.prompts, schema.threads):
        cx.execute(delete(table).where(table.c.session == session_id))
    cx.execute(delete(sessions).where(sessions.c.id == session_id))
    return True


def purges_unfinished(cx: Connection) -> list[str]:
    """Sessions that were purged and still have rows; for `purge_slice` after a start."""
    table = schema.sessions
    return list(cx.execute(select(table.c.id).where(table.c.state == schema.PURGED)).scalars())


# --- the statements of a change, compiled once ---------------------------------------------------

_ZERO, _ONE = literal_column("0", Integer), literal_column("1", Integer)

_THREAD_VALUES = attrgetter(*THREAD_COLUMNS)
_LAUNCH_VALUES = attrgetter(*LAUNCH_COLUMNS)

_INSERT_SESSION = inserting(schema.sessions, SESSION_COLUMNS)
_MOVE_THREADS = updating_many(schema.threads, ("session", *THREAD_COLUMNS), ("session", "thread"))
_UPSERT_THREAD = upserting(
    schema.threads,
    ("session", *THREAD_COLUMNS),
    at_first={
        "position": select(func.coalesce(func.max(schema.threads.c.position), _ZERO) + _ONE)
        .where(schema.threads.c.session == bindparam("of_session"))
        .scalar_subquery()
    },
    extra_keys=("of_session",),
)
_ADVANCE_THREADS = updating_many(schema.threads, ("session", "thread", "n"), ("session", "thread"))
_UPSERT_PERMISSION = upserting(schema.permissions, ("session", *PERMISSION_COLUMNS))
_UPSERT_PROMPT = upserting(schema.prompts, ("session", *PROMPT_COLUMNS))
_MOVE_LAUNCHES = updating_many(schema.launches, LAUNCH_COLUMNS, ("id", "session"))
_UPSERT_LAUNCH = upserting(schema.launches, LAUNCH_COLUMNS)
_INSERT_OUTBOX = inserting(schema.outbox, ("session", *OUTBOX_COLUMNS))
_DELETE_OUTBOX = Statement(
    ("of_session", "of_launch", "up_to"),
    lambda _dialect: (
        delete(schema.outbox)
        .where(schema.outbox.c.session == bindparam("of_session"))
        .where(schema.outbox.c.launch == bindparam("of_launch"))
        .where(schema.outbox.c.n <= bindparam("up_to"))
    ),
)
_TAKE = Statement(
    ("to_epoch", "to_host", "to_generation", "to_release", "of_session", "of_epoch"),
    lambda _dialect: (
        update(schema.sessions)
        .where(schema.sessions.c.id == bindparam("of_session"))
        .where(schema.sessions.c.owner_epoch == bindparam("of_epoch"))
        .where(not_purged())
        .values(
            owner_epoch=bindparam("to_epoch"),
            host=bindparam("to_host"),
            generation=bindparam("to_generation"),
            release=bindparam("to_release"),
        )
    ),
)


@lru_cache(maxsize=256)
def _fences(keys: tuple[str, ...], with_messages: bool) -> Many:
    """UPDATE of sessions' columns where the epoch, and last_seq if need be, still hold.

    Rows are (session, its epoch[, last_seq before, `searched.mark`], values of `keys`); without
    `keys` it changes nothing, and counts. With messages, ``last_seq`` is one of `keys`.
    """
    table = schema.sessions
    columns = {"of_session": table.c.id, "of_epoch": table.c.owner_epoch}
    if with_messages:
        columns |= {"of_last_seq": table.c.last_seq, "of_mark": table.c.searched_seq}
    columns |= {f"to_{key}": table.c[key] for key in keys}

    def build(given: Given) -> Update:
        fenced = (
            update(table)
            .where(table.c.id == given["of_session"])
            .where(table.c.owner_epoch == given["of_epoch"])
        )
        new: dict[str, ColumnElement[Any]] = {key: given[f"to_{key}"] for key in keys}
        if with_messages:
            fenced = fenced.where(table.c.last_seq == given["of_last_seq"])
            new["searched_seq"] = searched.moved(given["of_mark"], given["to_last_seq"])
        # Never without a change: what is counted is locked as well.
        return fenced.values(new or {"owner_epoch": table.c.owner_epoch})

    return Many(columns, build)


def _fencing(
    session_id: str, owner_epoch: int, change: Change
) -> tuple[tuple[tuple[str, ...], bool], tuple[object, ...]]:
    """(what `_fences` is asked for, a row for it). Raises Internal for what no change may be."""
    setting = dict(change.session)
    if foreign := setting.keys() - _MUTABLE:
        raise Internal(
            f"A change of session {session_id} sets {', '.join(sorted(foreign))}, which a change "
            "may not; nothing of it was stored."
        )
    before: tuple[int, ...] = ()
    if change.messages:
        first = change.messages[0].seq
        last = first + len(change.messages) - 1
        found = [message.seq for message in change.messages]
        if found != list(range(first, last + 1)):
            seq, expected = next(
                pair
                for pair in zip(found, range(first, last + 1), strict=True)
                if pair[0] != pair[1]
            )
            raise _gap(session_id, f"{seq} stands where {expected} belongs")
        if setting.setdefault("last_seq", last) != last:
            raise _gap(session_id, f"they end with {last}, its last_seq with {setting['last_seq']}")
        before = (first - 1, searched.mark(change.messages))
    elif "last_seq" in setting:
        raise _gap(session_id, "last_seq moves without any")
    keys = tuple(sorted(setting))
    values = (setting[key] for key in keys)
    return (keys, bool(before)), (session_id, owner_epoch, *before, *values)


def _fence(cx: Connection, session_id: str, owner_epoch: int, change: Change) -> None:
    kind, fencing = _fencing(session_id, owner_epoch, change)
    if _fences(*kind).change(cx, [fencing]):
        return
    row = session_row(cx, session_id)
    if row is not None and row.owner_epoch == owner_epoch:
        raise _gap(session_id, f"the next is {row.last_seq + 1}, not {change.messages[0].seq}")
    raise _not_owner(cx, session_id, owner_epoch)


def _advance_threads(
    cx: Connection,
    stored: Sequence[tuple[str, Sequence[MessageRow]]],
    given: Collection[tuple[str, str]],
) -> None:
    """Of threads that have got messages, and are not `given` with all else: their n."""
    reached = {
        (session, row.thread): row.n
        for session, rows in stored
        for row in rows
        if (session, row.thread) not in given
    }
    if not reached:
        return
    moved = _ADVANCE_THREADS.change(cx, [(*key, n) for key, n in reached.items()])
    if moved != len(reached):
        sessions = ", ".join(sorted({session for session, _ in reached}))
        raise Internal(
            f"Messages of session {sessions} belong to a thread that was never opened, one of "
            f"{', '.join(sorted(thread for _, thread in reached))}; nothing of the change was stored."
        )


def _rows_of(
    stored: Sequence[tuple[str, Change]], name: str, columns: tuple[str, ...]
) -> list[tuple[object, ...]]:
    """Rows of one kind that the changes carry, each behind its session."""
    return [
        (session, *(getattr(row, column) for column in columns))
        for session, change in stored
        for row in getattr(change, name)
    ]


def _gap(session_id: str, what: str) -> Internal:
    return Internal(
        f"The messages of a change of session {session_id} would leave a gap or repeat ({what}); "
        "nothing of it was stored. Load the session again before the next change."
    )


def _not_together(why: str) -> Internal:
    return Internal(f"These changes cannot be stored together: {why}. Store each by itself.")


def _not_owner(cx: Connection, session_id: str, owner_epoch: int) -> NotOwner:
    row = session_row(cx, session_id)
    if row is None:
        return NotOwner(f"Session {session_id} does not exist any more; let go of it.")
    return NotOwner(
        f"Session {session_id} is owned by generation {row.generation} on {row.host} with epoch "
        f"{row.owner_epoch}; a write with epoch {owner_epoch} came too late. Let go of the session."
    )
