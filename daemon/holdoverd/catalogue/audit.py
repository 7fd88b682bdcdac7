"""The audit: who did what to which thing. Written in the transaction that does it, or not at all."""

import json
from collections.abc import Mapping
from dataclasses import dataclass

from sqlalchemy import Connection, insert, select, tuple_

from holdoverd.catalogue import cursors, schema
from holdoverd.ids import new_id


@dataclass(frozen=True, slots=True)
class AuditRow:
    """One act. `details` is JSON text; neither it nor anything else holds a secret."""

    id: str
    at: int
    owner: str
    actor: str
    action: str
    subject: str
    details: str


_COLUMNS = tuple(schema.audit.c[name] for name in AuditRow.__dataclass_fields__)


def record(
    cx: Connection,
    *,
    at: int,
    owner: str,
    actor: str,
    action: str,
    subject: str,
    details: Mapping[str, object] | None = None,
) -> None:
    """Add one row. `action` is ``thing.done``: ``link.made``, ``link.used``, ``file.deleted``."""
    cx.execute(
        insert(schema.audit).values(
            id=new_id("a"),
            at=at,
            owner=owner,
            actor=actor,
            action=action,
            subject=subject,
            details=json.dumps(details or {}, ensure_ascii=False),
        )
    )


def list_rows(
    cx: Connection,
    *,
    owner: str | None = None,
    subject: str | None = None,
    action: str | None = None,
    limit: int,
    cursor: str | None = None,
) -> tuple[list[AuditRow], str | None]:
    """Newest first, with the cursor of the next page. Raises BadRequest for a cursor not ours."""
    table = schema.audit
    query = select(*_COLUMNS).order_by(table.c.at.desc(), table.c.id.desc()).limit(limit + 1)
    for column, value in ((table.c.owner, owner), (table.c.subject, subject)):
        if value is not None:
            query = query.where(column == value)
    if action is not None:
        query = query.where(table.c.action == action)
    if cursor is not None:
        at, row_id = cursors.decode(cursor, "audit", (int, str))
        query = query.where(tuple_(table.c.at, table.c.id) < tuple_(at, row_id))
    rows = [AuditRow(*found) for found in cx.execute(query)]
    if len(rows) <= limit:
        return rows, None
    last = rows[limit - 1]
    return rows[:limit], cursors.encode("audit", (last.at, last.id))
