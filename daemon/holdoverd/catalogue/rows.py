"""The columns of each record, in the record's own order, and a session's row alone."""

from dataclasses import fields
from typing import Any

from sqlalchemy import ColumnElement, Connection, Select, bindparam, literal_column, select

from holdoverd.catalogue import schema
from holdoverd.catalogue.records import (
    LaunchRow,
    OutboxRow,
    PermissionRow,
    PromptRow,
    SessionRow,
    ThreadRow,
)
from holdoverd.catalogue.statements import Statement


def column_names(record: type) -> tuple[str, ...]:
    """The names of a record's fields, which are those of its columns."""
    return tuple(field.name for field in fields(record))


SESSION_COLUMNS = column_names(SessionRow)
THREAD_COLUMNS = column_names(ThreadRow)
PERMISSION_COLUMNS = column_names(PermissionRow)
PROMPT_COLUMNS = column_names(PromptRow)
OUTBOX_COLUMNS = column_names(OutboxRow)
LAUNCH_COLUMNS = column_names(LaunchRow)


def select_sessions() -> Select[Any]:
    """Every column of sessions, ready for `SessionRow(*row)`."""
    return select(*(schema.sessions.c[name] for name in SESSION_COLUMNS))


def not_purged() -> ColumnElement[bool]:
    """Sessions that readers may see, for a `Statement`: the state is part of its text."""
    return schema.sessions.c.state != literal_column(f"'{schema.PURGED}'")


_SESSION = Statement(
    ("id",),
    lambda _dialect: select_sessions().where(schema.sessions.c.id == bindparam("id"), not_purged()),
)


def session_row(cx: Connection, session_id: str) -> SessionRow | None:
    """The session's own row alone."""
    found = _SESSION.rows(cx, (session_id,))
    return SessionRow(*found[0]) if found else None
