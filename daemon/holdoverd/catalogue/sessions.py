"""Sessions in the catalogue: plain functions on a Connection, for `Catalogue.write` and `.read`.

Every write on behalf of a session carries the `owner_epoch` its owner holds it by and raises
`NotOwner` when that is no longer the session's; then nothing of it is stored.
"""

import base64
import binascii
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from functools import lru_cache
from typing import Any

from sqlalchemy import (
    Connection,
    Integer,
    Select,
    Update,
    bindparam,
    delete,
    func,
    literal_column,
    or_,
    select,
    tuple_,
    update,
)

from holdoverd.catalogue import schema
from holdoverd.catalogue.messages import insert_messages
from holdoverd.catalogue.records import (
    Change,
    LaunchRow,
    OutboxRow,
    PermissionRow,
    PromptRow,
    SessionRow,
    ThreadRow,
)
from holdoverd.catalogue.statements import Statement, inserting, upserting
from holdoverd.errors import BadRequest, Conflict, Internal, NotOwner

MAX_LIST = 500  # contract.md: Lists


@dataclass(frozen=True, slots=True)
class LoadedSession:
    """All that an owner needs to go on with a session, of one moment.

    `permissions` are the open ones; `prompts` those ``queued`` or ``uncertain``, by seq;
    `launches` those not ``ended``, oldest first; `outbox` the rows of those launches by (launch,
    n). `threads` in the order they were opened.
    """

    row: SessionRow
    threads: list[ThreadRow]
    permissions: list[PermissionRow]
    prompts: list[PromptRow]
    launches: list[LaunchRow]
    outbox: list[OutboxRow]


@dataclass(frozen=True, slots=True)
class SessionView:
    """A session as the wire shows it; `queued` holds ids of prompts, in the order given."""

    row: SessionRow
    threads: list[ThreadRow]
    pending: list[PermissionRow]
    queued: list[str]


def _names(record: type) -> tuple[str, ...]:
    return tuple(field.name for field in fields(record))


_SESSION = _names(SessionRow)
_THREAD = _names(ThreadRow)
_PERMISSION = _names(PermissionRow)
_PROMPT = _names(PromptRow)
_OUTBOX = _names(OutboxRow)
_LAUNCH = _names(LaunchRow)

# What a Change may set. The rest is a session's identity, or moves by take_ownership alone.
_MUTABLE = frozenset(_SESSION) - {
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


# --- writing -----------------------------------------------------------------------------------


def create_session(cx: Connection, row: SessionRow, change: Change) -> None:
    """Store a new session and its first change (which may be empty), whole or not at all.

    `row.last_seq` is the last seq before `change`: 0. Raises Conflict where the id is taken.
    """
    taken = cx.execute(select(schema.sessions.c.id).where(schema.sessions.c.id == row.id))
    if taken.first() is not None:
        raise Conflict(f"A session {row.id} exists already; use another id.")
    _INSERT_SESSION.one(cx, [getattr(row, name) for name in _SESSION])
    apply_change(cx, row.id, row.owner_epoch, change)


def apply_change(cx: Connection, session_id: str, owner_epoch: int, change: Change) -> None:
    """Store everything in `change`, fenced by `owner_epoch`.

    Raises NotOwner when the session is gone or its epoch another, Internal when the messages do
    not follow on `last_seq` without a gap. `sessions.last_seq` follows the messages by itself, and
    so does `n` of a thread that got messages but no ThreadRow.
    """
    _fence(cx, session_id, owner_epoch, change)
    if change.threads:
        _UPSERT_THREAD.many(
            cx,
            [
                (session_id, row.thread, row.parent_thread, row.title, row.n, row.state, session_id)
                for row in change.threads
            ],
        )
    if change.messages:
        insert_messages(cx, session_id, change.messages)
        _advance_threads(cx, session_id, change)
    if change.permissions:
        _UPSERT_PERMISSION.many(cx, _with_session(session_id, change.permissions, _PERMISSION))
    if change.prompts:
        _UPSERT_PROMPT.many(cx, _with_session(session_id, change.prompts, _PROMPT))
    if change.launch is not None:
        if change.launch.session != session_id:
            raise Internal(
                f"A change of session {session_id} carries launch {change.launch.id} of session "
                f"{change.launch.session}; nothing of it was stored."
            )
        _UPSERT_LAUNCH.one(cx, [getattr(change.launch, name) for name in _LAUNCH])
    if change.outbox:
        _INSERT_OUTBOX.many(cx, _with_session(session_id, change.outbox, _OUTBOX))
    if change.outbox_acked is not None:
        launch, n = change.outbox_acked
        _DELETE_OUTBOX.one(cx, (session_id, launch, n))


def take_ownership(
    cx: Connection, session_id: str, expected_epoch: int, host: str, generation: int, release: str
) -> int:
    """Compare-and-set of a session's owner; the new epoch, `expected_epoch` + 1.

    Raises NotOwner when the session is gone or somebody else's turn came first.
    """
    moved = _TAKE.one(
        cx, (expected_epoch + 1, host, generation, release, session_id, expected_epoch)
    ).rowcount
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


# --- reading -----------------------------------------------------------------------------------


def load_session(cx: Connection, session_id: str) -> LoadedSession | None:
    """The session with all its owner needs; None when there is none (or no longer)."""
    row = session_row(cx, session_id)
    if row is None:
        return None
    prompts, launches, outbox = schema.prompts, schema.launches, schema.outbox
    live = [
        LaunchRow(*found)
        for found in cx.execute(
            select(*(launches.c[name] for name in _LAUNCH))
            .where(launches.c.session == session_id, launches.c.state != "ended")
            .order_by(launches.c.created_at, launches.c.id)
        )
    ]
    return LoadedSession(
        row=row,
        threads=_threads(cx, [session_id])[session_id],
        permissions=_open_permissions(cx, [session_id])[session_id],
        prompts=[
            PromptRow(*found)
            for found in cx.execute(
                select(*(prompts.c[name] for name in _PROMPT))
                .where(prompts.c.session == session_id)
                .where(prompts.c.state.in_(["queued", "uncertain"]))
                .order_by(prompts.c.seq)
            )
        ],
        launches=live,
        outbox=[
            OutboxRow(*found)
            for found in cx.execute(
                select(*(outbox.c[name] for name in _OUTBOX))
                .where(outbox.c.launch.in_([launch.id for launch in live]))
                .order_by(outbox.c.launch, outbox.c.n)
            )
        ],
    )


def session_row(cx: Connection, session_id: str) -> SessionRow | None:
    """The session's own row alone."""
    table = schema.sessions
    found = cx.execute(
        _select_sessions().where(table.c.id == session_id, table.c.state != schema.PURGED)
    ).first()
    return None if found is None else SessionRow(*found)


def sessions_to_adopt(
    cx: Connection, host: str, live_generations: Iterable[int], *, own: int | None = None
) -> list[str]:
    """Sessions of this host whose owner is no live generation, or is `own`, and that need an owner.

    Need: a launch not read to its end, or a state other than ``ended`` and ``failed``.
    """
    table, launches = schema.sessions, schema.launches
    living = set(live_generations) - {own}
    unread = (
        select(launches.c.id)
        .where(launches.c.session == table.c.id, launches.c.state != "ended")
        .exists()
    )
    return list(
        cx.execute(
            select(table.c.id)
            .where(table.c.host == host, table.c.generation.not_in(sorted(living)))
            .where(table.c.state != schema.PURGED)
            .where(or_(table.c.state.not_in(["ended", "failed"]), unread))
            .order_by(table.c.updated_at.desc(), table.c.id.desc())
        ).scalars()
    )


def list_sessions(
    cx: Connection,
    *,
    owner: str | None,
    state: str | None = None,
    q: str | None = None,
    agent: str | None = None,
    limit: int = 50,
    cursor: str | None = None,
) -> tuple[list[SessionRow], str | None]:
    """One page of the sessions `owner` may see (its own and shared ones; None: all), and a cursor.

    Latest updated first. Nothing comes twice and nothing that rests is left out; a session that
    changes while somebody pages moves to the top, where the next listing shows it. `q` is looked
    for in title and cwd, and as the beginning of an id. Raises BadRequest for a foreign cursor.
    """
    table = schema.sessions
    query = _select_sessions().where(table.c.state != schema.PURGED)
    if owner is not None:
        query = query.where(or_(table.c.owner == owner, table.c.share.is_not(None)))
    if state is not None:
        query = query.where(table.c.state == state)
    if agent is not None:
        query = query.where(table.c.agent == agent)
    if q:
        query = query.where(
            or_(
                table.c.title.icontains(q, autoescape=True),
                table.c.cwd.icontains(q, autoescape=True),
                table.c.id.startswith(q, autoescape=True),
            )
        )
    if cursor is not None:
        query = query.where(tuple_(table.c.updated_at, table.c.id) < tuple_(*_cursor_key(cursor)))
    limit = max(1, min(limit, MAX_LIST))
    found = [
        SessionRow(*row)
        for row in cx.execute(
            query.order_by(table.c.updated_at.desc(), table.c.id.desc()).limit(limit + 1)
        )
    ]
    if len(found) <= limit:
        return found, None
    return found[:limit], _cursor(found[limit - 1])


def session_view_rows(cx: Connection, rows: Sequence[SessionRow]) -> list[SessionView]:
    """The sessions as the wire shows them, in the order of `rows`; three queries however many."""
    ids = [row.id for row in rows]
    threads, pending, queued = _threads(cx, ids), _open_permissions(cx, ids), _queued(cx, ids)
    return [SessionView(row, threads[row.id], pending[row.id], queued[row.id]) for row in rows]


def prompt(cx: Connection, session_id: str, prompt_id: str) -> PromptRow | None:
    """A prompt by its id, whatever its state."""
    table = schema.prompts
    found = cx.execute(
        select(*(table.c[name] for name in _PROMPT)).where(
            table.c.session == session_id, table.c.id == prompt_id
        )
    ).first()
    return None if found is None else PromptRow(*found)


def permission(cx: Connection, session_id: str, request_id: str) -> PermissionRow | None:
    """A permission by Holdover's request id, whatever its state."""
    table = schema.permissions
    found = cx.execute(
        select(*(table.c[name] for name in _PERMISSION)).where(
            table.c.session == session_id, table.c.request_id == request_id
        )
    ).first()
    return None if found is None else PermissionRow(*found)


def launch(cx: Connection, launch_id: str) -> LaunchRow | None:
    """A launch by its id, whatever its state."""
    table = schema.launches
    found = cx.execute(
        select(*(table.c[name] for name in _LAUNCH)).where(table.c.id == launch_id)
    ).first()
    return None if found is None else LaunchRow(*found)


def states(cx: Connection, host: str, generation: int) -> dict[str, int]:
    """How many sessions this instance owns, by state."""
    table = schema.sessions
    found = cx.execute(
        select(table.c.state, func.count())
        .where(table.c.host == host, table.c.generation == generation)
        .where(table.c.state != schema.PURGED)
        .group_by(table.c.state)
    )
    return dict(found.tuples().all())


# --- the statements of a change, compiled once ---------------------------------------------------

# Constants as text: a number would become one more parameter of the statement.
_ZERO, _ONE = literal_column("0", Integer), literal_column("1", Integer)

_INSERT_SESSION = inserting(schema.sessions, _SESSION)
_UPSERT_THREAD = upserting(
    schema.threads,
    ("session", *_THREAD),
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
_UPSERT_PERMISSION = upserting(schema.permissions, ("session", *_PERMISSION))
_UPSERT_PROMPT = upserting(schema.prompts, ("session", *_PROMPT))
_UPSERT_LAUNCH = upserting(schema.launches, _LAUNCH)
_INSERT_OUTBOX = inserting(schema.outbox, ("session", *_OUTBOX))
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
        for expected, message in enumerate(change.messages, first):
            if message.seq != expected:
                raise _gap(session_id, f"{message.seq} stands where {expected} belongs")
        last = first + len(change.messages) - 1
        if setting.setdefault("last_seq", last) != last:
            raise _gap(session_id, f"they end with {last}, its last_seq with {setting['last_seq']}")
        before = (first - 1,)
    elif "last_seq" in setting:
        raise _gap(session_id, "last_seq moves without any")
    if setting:
        statement = _fenced_update(tuple(setting), bool(before))
        held = statement.one(cx, (*setting.values(), session_id, owner_epoch, *before)).rowcount
        if held:
            return
    elif _CHECK_EPOCH.one(cx, (session_id, owner_epoch)).first() is not None:
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
    moved = _ADVANCE_THREAD.many(cx, [(n, session_id, thread) for thread, n in reached.items()])
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


# --- rows and cursors ----------------------------------------------------------------------------


def _select_sessions() -> Select[Any]:
    return select(*(schema.sessions.c[name] for name in _SESSION))


def _threads(cx: Connection, ids: Sequence[str]) -> dict[str, list[ThreadRow]]:
    table = schema.threads
    found: dict[str, list[ThreadRow]] = {session_id: [] for session_id in ids}
    for session_id, *row in cx.execute(
        select(table.c.session, *(table.c[name] for name in _THREAD))
        .where(table.c.session.in_(ids))
        .order_by(table.c.session, table.c.position)
    ):
        found[session_id].append(ThreadRow(*row))
    return found


def _open_permissions(cx: Connection, ids: Sequence[str]) -> dict[str, list[PermissionRow]]:
    table = schema.permissions
    found: dict[str, list[PermissionRow]] = {session_id: [] for session_id in ids}
    for session_id, *row in cx.execute(
        select(table.c.session, *(table.c[name] for name in _PERMISSION))
        .where(table.c.session.in_(ids), table.c.state == "open")
        .order_by(table.c.session, table.c.seq)
    ):
        found[session_id].append(PermissionRow(*row))
    return found


def _queued(cx: Connection, ids: Sequence[str]) -> dict[str, list[str]]:
    table = schema.prompts
    found: dict[str, list[str]] = {session_id: [] for session_id in ids}
    for session_id, prompt_id in cx.execute(
        select(table.c.session, table.c.id)
        .where(table.c.session.in_(ids), table.c.state == "queued")
        .order_by(table.c.session, table.c.seq)
    ):
        found[session_id].append(prompt_id)
    return found


def _cursor(row: SessionRow) -> str:
    return base64.urlsafe_b64encode(f"{row.updated_at} {row.id}".encode()).decode().rstrip("=")


def _cursor_key(cursor: str) -> tuple[int, str]:
    cause: ValueError | None = None
    try:
        text = base64.b64decode(cursor + "=" * (-len(cursor) % 4), b"-_", validate=True).decode()
        updated_at, _, session_id = text.partition(" ")
        key = (int(updated_at), session_id)
    except (binascii.Error, ValueError) as error:
        key, cause = (-1, ""), error
    # Beyond 64 bits the driver would refuse it, with an error of its own.
    if not key[1] or not 0 <= key[0] < 2**63:
        raise BadRequest(
            "This cursor is not one of a list of sessions; start again without a cursor."
        ) from cause
    return key
