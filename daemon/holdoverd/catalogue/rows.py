"""The columns of each record, in the record's own order, and a session's row alone."""

from dataclasses import fields
from typing import Any

from sqlalchemy import Connection, Select, select

from holdoverd.catalogue import schema
from holdoverd.catalogue.records import (
    LaunchRow,
    OutboxRow,
    PermissionRow,
    PromptRow,
    SessionRow,
    ThreadRow,
)


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


def session_row(cx: Connection, session_id: str) -> SessionRow | None:
    """The session's own row alone."""
    table = schema.sessions
    found = cx.execute(
        select_sessions().where(table.c.id == session_id, table.c.state != schema.PURGED)
    ).first()
    return None if found is None else SessionRow(*found)
