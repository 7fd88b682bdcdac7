"""Sessions in the catalogue: plain functions on a Connection, for `Catalogue.write` and `.read`.

Every write on behalf of a session carries the `owner_epoch` its owner holds it by and raises
`NotOwner` when that is no longer the session's; then nothing of it is stored.
"""

import base64
import binascii
import json
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, TypeVar

from sqlalchemy import (
    ColumnElement,
    Connection,
    Integer,
    Select,
    Table,
    and_,
    bindparam,
    false,
    func,
    literal,
    literal_column,
    or_,
    select,
    tuple_,
)

from holdoverd.catalogue import schema
from holdoverd.catalogue.changes import (
    Applied,
    apply_change,
    create_session,
    purge_session,
    purge_slice,
    purges_unfinished,
    take_ownership,
)
from holdoverd.catalogue.records import (
    LaunchRow,
    OutboxRow,
    PermissionRow,
    PromptRow,
    SessionRow,
    ThreadRow,
)
from holdoverd.catalogue.rows import (
    LAUNCH_COLUMNS,
    OUTBOX_COLUMNS,
    PERMISSION_COLUMNS,
    PROMPT_COLUMNS,
    THREAD_COLUMNS,
    not_purged,
    select_sessions,
    session_row,
)
from holdoverd.catalogue.statements import Statement, each_of
from holdoverd.errors import BadRequest

__all__ = [
    "MAX_LIST",
    "Applied",
    "LoadedSession",
    "SessionView",
    "apply_change",
    "create_session",
    "launch",
    "launched_in",
    "list_sessions",
    "load_session",
    "permission",
    "prompt",
    "purge_session",
    "purge_slice",
    "purges_unfinished",
    "session_row",
    "session_view_rows",
    "sessions_to_adopt",
    "states",
    "take_ownership",
    "with_conversation",
]

T = TypeVar("T")

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


def load_session(cx: Connection, session_id: str) -> LoadedSession | None:
    """The session with all its owner needs; None when there is none (or no longer)."""
    row = session_row(cx, session_id)
    if row is None:
        return None
    prompts, launches, outbox = schema.prompts, schema.launches, schema.outbox
    live = [
        LaunchRow(*found)
        for found in cx.execute(
            select(*(launches.c[name] for name in LAUNCH_COLUMNS))
            .where(launches.c.session == session_id, launches.c.state != "ended")
            .order_by(launches.c.created_at, launches.c.id)
        )
    ]
    return LoadedSession(
        row=row,
        threads=_of_each(cx, _THREADS, [session_id], ThreadRow)[session_id],
        permissions=_of_each(cx, _OPEN_PERMISSIONS, [session_id], PermissionRow)[session_id],
        prompts=[
            PromptRow(*found)
            for found in cx.execute(
                select(*(prompts.c[name] for name in PROMPT_COLUMNS))
                .where(prompts.c.session == session_id)
                .where(prompts.c.state.in_(["queued", "uncertain"]))
                .order_by(prompts.c.seq)
            )
        ],
        launches=live,
        outbox=[
            OutboxRow(*found)
            for found in cx.execute(
                select(*(outbox.c[name] for name in OUTBOX_COLUMNS))
                .where(outbox.c.launch.in_([launch.id for launch in live]))
                .order_by(outbox.c.launch, outbox.c.n)
            )
        ],
    )


def sessions_to_adopt(
    cx: Connection,
    host: str,
    live_generations: Iterable[int],
    *,
    own: int | None = None,
    go_on_in: str | None = None,
) -> list[str]:
    """Sessions of this host whose owner is no live generation, or is `own`, and that need an owner.

    Need: a launch not read to its end, or a prompt that waits, unless its agent could not be
    started (then a person decides when to try again); with `go_on_in`, the id of this boot, also a
    turn that a reboot cut off and no agent of this boot has gone on with. One that rests needs no owner until
    somebody asks for it.
    """
    table, launches, prompts = schema.sessions, schema.launches, schema.prompts
    living = set(live_generations) - {own}
    unread = (
        select(launches.c.id)
        .where(launches.c.session == table.c.id, launches.c.state != "ended")
        .exists()
    )
    waiting = (
        select(prompts.c.id)
        .where(prompts.c.session == table.c.id, prompts.c.state == "queued")
        .exists()
    )
    cut = (
        and_(
            table.c.turn_cut == "reboot",
            table.c.ended_at.is_(None),
            ~_launched_in(go_on_in, table.c.id),
        )
        if go_on_in
        else false()
    )
    return list(
        cx.execute(
            select(table.c.id)
            .where(table.c.host == host, table.c.generation.not_in(sorted(living)))
            .where(table.c.state != schema.PURGED)
            .where(or_(unread, and_(or_(waiting, cut), table.c.error.is_(None))))
            .order_by(table.c.updated_at.desc(), table.c.id.desc())
        ).scalars()
    )


def launched_in(cx: Connection, session_id: str, boot_id: str) -> bool:
    """Whether an agent of the session was started since this boot."""
    return bool(cx.execute(select(_launched_in(boot_id, literal(session_id)))).scalar())


def _launched_in(boot_id: str, session_id: ColumnElement[str]) -> ColumnElement[bool]:
    table = schema.launches
    return (
        select(table.c.id).where(table.c.session == session_id, table.c.boot_id == boot_id).exists()
    )


def with_conversation(cx: Connection, agent_session: str) -> str | None:
    """The session, not ended, whose agent has this conversation; None when there is none."""
    table = schema.sessions
    found: str | None = cx.execute(
        select(table.c.id).where(
            table.c.agent_session == agent_session,
            table.c.ended_at.is_(None),
            table.c.state != schema.PURGED,
        )
    ).scalar()
    return found


def live_of_account(cx: Connection, account: str) -> list[str]:
    """The sessions that an agent of `account` runs for."""
    table, launches = schema.sessions, schema.launches
    running = (
        select(launches.c.id)
        .where(launches.c.session == table.c.id, launches.c.state == "live")
        .exists()
    )
    query = select(table.c.id).where(
        table.c.account == account, table.c.ended_at.is_(None), running
    )
    return list(cx.execute(query.order_by(table.c.id)).scalars())


def launches_not_ended(cx: Connection) -> list[str]:
    """Launches that are not read to their end, of every session; their files are still wanted."""
    table = schema.launches
    return list(cx.execute(select(table.c.id).where(table.c.state != "ended")).scalars())


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
    limit = max(1, min(limit, MAX_LIST))
    values: dict[str, object] = {}
    if owner is not None:
        values["owner"] = owner
    if state is not None:
        values["state"] = state
    if agent is not None:
        values["agent"] = agent
    if q:
        escaped = _LIKE_SPECIAL.sub(r"/\g<0>", q)
        values |= {"contains": f"%{escaped}%", "begins": f"{escaped}%"}
    if cursor is not None:
        values["before_at"], values["before_id"] = _cursor_key(cursor)
    listing = _listing((*values, "count"))
    found = [SessionRow(*row) for row in listing.rows(cx, (*values.values(), limit + 1))]
    if len(found) <= limit:
        return found, None
    return found[:limit], _cursor(found[limit - 1])


# What LIKE does not take as it stands; "/" is the escape character.
_LIKE_SPECIAL = re.compile("[%_/]")


@cache
def _listing(keys: tuple[str, ...]) -> Statement:
    """A page of sessions by the conditions that `keys` name, of which there are a few dozen at most."""
    table = schema.sessions

    def build(_dialect: str) -> Select[Any]:
        query = select_sessions().where(not_purged())
        if "owner" in keys:
            query = query.where(
                or_(table.c.owner == bindparam("owner"), table.c.share.is_not(None))
            )
        if "state" in keys:
            query = query.where(table.c.state == bindparam("state"))
        if "agent" in keys:
            query = query.where(table.c.agent == bindparam("agent"))
        if "contains" in keys:
            query = query.where(
                or_(
                    table.c.title.ilike(bindparam("contains"), escape="/"),
                    table.c.cwd.ilike(bindparam("contains"), escape="/"),
                    table.c.id.like(bindparam("begins"), escape="/"),
                )
            )
        if "before_at" in keys:
            last = tuple_(bindparam("before_at"), bindparam("before_id"))
            query = query.where(tuple_(table.c.updated_at, table.c.id) < last)
        newest_first = query.order_by(table.c.updated_at.desc(), table.c.id.desc())
        # Core would have SQLite's OFFSET, which goes with every LIMIT, be one more parameter.
        return newest_first.limit(bindparam("count")).offset(literal_column("0", Integer))

    return Statement(keys, build)


def session_view_rows(cx: Connection, rows: Sequence[SessionRow]) -> list[SessionView]:
    """The sessions as the wire shows them, in the order of `rows`; three queries however many."""
    ids = [row.id for row in rows]
    threads = _of_each(cx, _THREADS, ids, ThreadRow)
    pending = _of_each(cx, _OPEN_PERMISSIONS, ids, PermissionRow)
    queued = _of_each(cx, _QUEUED, ids, str)
    return [SessionView(row, threads[row.id], pending[row.id], queued[row.id]) for row in rows]


def prompt(cx: Connection, session_id: str, prompt_id: str) -> PromptRow | None:
    """A prompt by its id, whatever its state."""
    table = schema.prompts
    found = cx.execute(
        select(*(table.c[name] for name in PROMPT_COLUMNS)).where(
            table.c.session == session_id, table.c.id == prompt_id
        )
    ).first()
    return None if found is None else PromptRow(*found)


def permission(cx: Connection, session_id: str, request_id: str) -> PermissionRow | None:
    """A permission by Holdover's request id, whatever its state."""
    table = schema.permissions
    found = cx.execute(
        select(*(table.c[name] for name in PERMISSION_COLUMNS)).where(
            table.c.session == session_id, table.c.request_id == request_id
        )
    ).first()
    return None if found is None else PermissionRow(*found)


def launch(cx: Connection, launch_id: str) -> LaunchRow | None:
    """A launch by its id, whatever its state."""
    table = schema.launches
    found = cx.execute(
        select(*(table.c[name] for name in LAUNCH_COLUMNS)).where(table.c.id == launch_id)
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
    return {str(state): int(count) for state, count in found}


def _of_sessions(
    table: Table, columns: Sequence[str], *, state: str | None = None, order: str
) -> Statement:
    """The rows of some sessions, whose ids are given as a JSON array: ``(session, *columns)``."""

    def build(dialect: str) -> Select[Any]:
        query = select(table.c.session, *(table.c[name] for name in columns))
        query = query.where(table.c.session.in_(each_of(dialect, "sessions")))
        if state is not None:
            query = query.where(table.c.state == literal_column(f"'{state}'"))
        return query.order_by(table.c.session, table.c[order])

    return Statement(("sessions",), build)


_THREADS = _of_sessions(schema.threads, THREAD_COLUMNS, order="position")
_OPEN_PERMISSIONS = _of_sessions(schema.permissions, PERMISSION_COLUMNS, state="open", order="seq")
_QUEUED = _of_sessions(schema.prompts, ("id",), state="queued", order="seq")


def _of_each(
    cx: Connection, statement: Statement, ids: Sequence[str], made: Callable[..., T]
) -> dict[str, list[T]]:
    """{session: what it has of the rows that `statement` finds, in their order}"""
    found: dict[str, list[T]] = {session_id: [] for session_id in ids}
    for session_id, *row in statement.rows(cx, (json.dumps(ids),)):
        found[session_id].append(made(*row))
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


def count_by_state(cx: Connection) -> dict[str, int]:
    """How many sessions are in which state, whoever's; reads one column of every row."""
    table = schema.sessions
    query = (
        select(table.c.state, func.count())
        .where(table.c.state != schema.PURGED)
        .group_by(table.c.state)
    )
    return {str(state): int(count) for state, count in cx.execute(query)}
