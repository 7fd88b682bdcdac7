"""Writing sessions: each change fenced by the epoch its owner holds the session by.

For `Catalogue.write`; import these from `sessions`, where they stand beside the reading.
"""

from collections.abc import Iterable
from dataclasses import replace
from functools import lru_cache

from sqlalchemy import (
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
from holdoverd.catalogue.records import Change, SessionRow
from holdoverd.catalogue.rows import (
    LAUNCH_COLUMNS,
    OUTBOX_COLUMNS,
    PERMISSION_COLUMNS,
    PROMPT_COLUMNS,
    SESSION_COLUMNS,
    THREAD_COLUMNS,
    session_row,
)
from holdoverd.catalogue.statements import Statement, inserting, upserting
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
    if change.threads:
        _UPSERT_THREAD.change_many(
            cx,
            [
                (session_id, row.thread, row.parent_thread, row.title, row.n, row.state, session_id)
                for row in change.threads
            ],
        )
    if change.messages:
        insert_messages(cx, session_id, change.messages)
        searched.add(cx, session_id, change.messages)
        _advance_threads(cx, session_id, change)
    if change.permissions:
        _UPSERT_PERMISSION.change_many(
            cx, _with_session(session_id, change.permissions, PERMISSION_COLUMNS)
        )
    if change.prompts:
        _UPSERT_PROMPT.change_many(cx, _with_session(session_id, change.prompts, PROMPT_COLUMNS))
    if change.launch is not None:
        if change.launch.session != session_id:
            raise Internal(
                f"A change of session {session_id} carries launch {change.launch.id} of session "
                f"{change.launch.session}; nothing of it was stored."
            )
        _UPSERT_LAUNCH.change(cx, [getattr(change.launch, name) for name in LAUNCH_COLUMNS])
    if change.outbox:
        _INSERT_OUTBOX.change_many(cx, _with_session(session_id, change.outbox, OUTBOX_COLUMNS))
    if change.outbox_acked is not None:
        launch, n = change.outbox_acked
        _DELETE_OUTBOX.change(cx, (session_id, launch, n))
    if change.job_told is not None and not mark_told(cx, change.job_told):
        raise Conflict(f"Session {session_id} has heard of the end of job {change.job_told}.")


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

_INSERT_SESSION = inserting(schema.sessions, SESSION_COLUMNS)
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
_ADVANCE_THREAD = Statement(
    ("to_n", "of_session", "of_thread"),
    lambda _dialect: (
        update(schema.threads)
        .where(schema.threads.c.session == bindparam("of_session"))
        .where(schema.threads.c.thread == bindparam("of_thread"))
        .values(n=bindparam("to_n"))
    ),
)
_UPSERT_PERMISSION = upserting(schema.permissions, ("session", *PERMISSION_COLUMNS))
_UPSERT_PROMPT = upserting(schema.prompts, ("session", *PROMPT_COLUMNS))
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
        .where(schema.sessions.c.state != literal_column(f"'{schema.PURGED}'"))
        .values(
            owner_epoch=bindparam("to_epoch"),
            host=bindparam("to_host"),
            generation=bindparam("to_generation"),
            release=bindparam("to_release"),
        )
    ),
)
_CHECK_EPOCH = Statement(
    ("of_session", "of_epoch"),
    # The row lock is for databases that let others write meanwhile; SQLite has only one writer.
    lambda _dialect: (
        select(schema.sessions.c.id)
        .where(schema.sessions.c.id == bindparam("of_session"))
        .where(schema.sessions.c.owner_epoch == bindparam("of_epoch"))
        .with_for_update()
    ),
)


@lru_cache(maxsize=256)
def _fenced_update(keys: tuple[str, ...], with_messages: bool) -> Statement:
    """UPDATE of a session's columns where its epoch, and its last_seq if need be, still hold."""

    def build(_dialect: str) -> Update:
        table = schema.sessions
        fenced = (
            update(table)
            .where(table.c.id == bindparam("of_session"))
            .where(table.c.owner_epoch == bindparam("of_epoch"))
        )
        if with_messages:
            fenced = fenced.where(table.c.last_seq == bindparam("of_last_seq"))
        return fenced.values({key: bindparam(f"to_{key}") for key in keys})

    where = ("of_session", "of_epoch", *(("of_last_seq",) if with_messages else ()))
    return Statement((*(f"to_{key}" for key in keys), *where), build)


def _fence(cx: Connection, session_id: str, owner_epoch: int, change: Change) -> None:
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
        before = (first - 1,)
    elif "last_seq" in setting:
        raise _gap(session_id, "last_seq moves without any")
    if setting:
        statement = _fenced_update(tuple(setting), bool(before))
        held = statement.change(cx, (*setting.values(), session_id, owner_epoch, *before))
        if held:
            return
    elif _CHECK_EPOCH.finds(cx, (session_id, owner_epoch)):
        return
    row = session_row(cx, session_id)
    if row is not None and row.owner_epoch == owner_epoch:
        raise _gap(session_id, f"the next is {row.last_seq + 1}, not {change.messages[0].seq}")
    raise _not_owner(cx, session_id, owner_epoch)


def _advance_threads(cx: Connection, session_id: str, change: Change) -> None:
    given = {row.thread for row in change.threads}
    reached = {row.thread: row.n for row in change.messages if row.thread not in given}
    if not reached:
        return
    moved = _ADVANCE_THREAD.change_many(
        cx, [(n, session_id, thread) for thread, n in reached.items()]
    )
    if moved != len(reached):
        raise Internal(
            f"Messages of session {session_id} belong to a thread that was never opened, one of "
            f"{', '.join(sorted(reached))}; nothing of the change was stored."
        )


def _with_session(
    session_id: str, rows: Iterable[object], names: tuple[str, ...]
) -> list[tuple[object, ...]]:
    return [(session_id, *(getattr(row, name) for name in names)) for row in rows]


def _gap(session_id: str, what: str) -> Internal:
    return Internal(
        f"The messages of a change of session {session_id} would leave a gap or repeat ({what}); "
        "nothing of it was stored. Load the session again before the next change."
    )


def _not_owner(cx: Connection, session_id: str, owner_epoch: int) -> NotOwner:
    row = session_row(cx, session_id)
    if row is None:
        return NotOwner(f"Session {session_id} does not exist any more; let go of it.")
    return NotOwner(
        f"Session {session_id} is owned by generation {row.generation} on {row.host} with epoch "
        f"{row.owner_epoch}; a write with epoch {owner_epoch} came too late. Let go of the session."
    )
