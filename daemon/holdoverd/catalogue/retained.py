"""What has been kept for long enough: ended sessions, finished jobs, rows of the audit.

Times are moments in ms; None: kept for good. All of it in bounded pieces, since what piled up in a
year would hold up everybody else's writes for seconds.
"""

from dataclasses import dataclass

from sqlalchemy import ColumnElement, Connection, Table, and_, delete, func, select

from holdoverd.catalogue import schema


@dataclass(frozen=True, slots=True)
class Limits:
    """What is older goes: `sessions` by their end, `jobs` by their finish, `audit` by its moment."""

    sessions: int | None
    jobs: int | None
    audit: int | None


@dataclass(frozen=True, slots=True)
class Counts:
    sessions: int
    jobs: int
    audit: int


def _old_sessions(before: int) -> ColumnElement[bool]:
    table = schema.sessions
    return and_(table.c.state == "ended", table.c.ended_at < before)


def _old_jobs(before: int) -> ColumnElement[bool]:
    # One whose session has not been told yet is not over for everybody.
    table = schema.jobs
    over = table.c.state.in_(("done", "dead", "cancelled"))
    return and_(over, table.c.told == 1, table.c.finished_at < before)


def count(cx: Connection, limits: Limits) -> Counts:
    """How much there is of each."""

    def rows(table: Table, old: ColumnElement[bool]) -> int:
        return int(cx.execute(select(func.count()).select_from(table).where(old)).scalar_one())

    return Counts(
        sessions=0
        if limits.sessions is None
        else rows(schema.sessions, _old_sessions(limits.sessions)),
        jobs=0 if limits.jobs is None else rows(schema.jobs, _old_jobs(limits.jobs)),
        audit=0 if limits.audit is None else rows(schema.audit, schema.audit.c.at < limits.audit),
    )


def old_sessions(cx: Connection, before: int, limit: int) -> list[str]:
    """Ids, those that ended first first. They are their owners' to remove."""
    table = schema.sessions
    query = select(table.c.id).where(_old_sessions(before)).order_by(table.c.ended_at, table.c.id)
    return list(cx.execute(query.limit(limit)).scalars())


def remove_jobs(cx: Connection, before: int, limit: int) -> int:
    """Remove up to `limit` jobs with their logs; files that they made are files, and stay."""
    table = schema.jobs
    ids = list(cx.execute(select(table.c.id).where(_old_jobs(before)).limit(limit)).scalars())
    if ids:
        cx.execute(delete(schema.job_logs).where(schema.job_logs.c.job.in_(ids)))
        cx.execute(delete(table).where(table.c.id.in_(ids)))
    return len(ids)


def remove_audit(cx: Connection, before: int, limit: int) -> int:
    """Remove up to `limit` rows, the oldest."""
    table = schema.audit
    oldest = select(table.c.id).where(table.c.at < before).order_by(table.c.at, table.c.id)
    ids = list(cx.execute(oldest.limit(limit)).scalars())
    if ids:
        cx.execute(delete(table).where(table.c.id.in_(ids)))
    return len(ids)
