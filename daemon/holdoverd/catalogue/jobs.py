"""Jobs in the catalogue: plain functions on a Connection, for `Catalogue.write` and `.read`.

What may become of a job is decided by `holdoverd.jobs.rules`; here a row is read, given to a rule and
written back, inside the transaction of the write. What happens to every job, its claim, its heartbeats
and its good end, is one statement each, which carries its own fence and is held to its rule by a test:
so on a database with many writers two claimers never wait for each other, let alone take the same job,
and each of these may go alone (`Catalogue.write_alone`).
"""

from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import asdict, dataclass, fields
from functools import cache
from types import MappingProxyType
from typing import NoReturn

from sqlalchemy import (
    ColumnElement,
    CompoundSelect,
    Connection,
    Integer,
    Text,
    Update,
    and_,
    bindparam,
    func,
    insert,
    literal_column,
    null,
    or_,
    select,
    tuple_,
    union_all,
    update,
)

from holdoverd.catalogue import cursors
from holdoverd.catalogue.hints import hint
from holdoverd.catalogue.schema import job_logs, jobs, sessions
from holdoverd.catalogue.statements import Statement, upserting
from holdoverd.jobs.rules import CLOCK_STEP_MS, Job, Running, check_held

HINT = "holdover_jobs"
"""What is hinted at when a job becomes ready; see `catalogue/hints.py`."""

COLUMNS = tuple(field.name for field in fields(Job))

_READY_STATE, _RUNNING_STATE, _DONE_STATE = (
    literal_column(f"'{state}'", Text) for state in ("ready", "running", "done")
)
_RUNNING = jobs.c.state == _RUNNING_STATE
_ZERO, _ONE = literal_column("0", Integer), literal_column("1", Integer)
_UNTOLD = and_(jobs.c.told == 0, jobs.c.finished_at.is_not(None))

# The states of a session whose agent runs, as `[sessions] max_live` counts them.
_LIVE_SESSIONS = ("starting", "idle", "working", "waiting")


@dataclass(frozen=True, slots=True)
class LogRow:
    """What an attempt said on stderr. `size` in bytes, of all; `text` is its beginning and end."""

    job: str
    attempt: int
    size: int
    at: int
    text: str


_UPSERT_LOG = upserting(job_logs, tuple(field.name for field in fields(LogRow)))
_SELECT_RUNNING = select(jobs.c.id, jobs.c.attempt, jobs.c.worker, jobs.c.host, jobs.c.beat).where(
    _RUNNING
)
_SELECT = select(*(jobs.c[name] for name in COLUMNS))


def create_job(cx: Connection, job: Job) -> None:
    """Store a new job."""
    cx.execute(insert(jobs).values(**asdict(job)))
    hint(cx, HINT)


def get_job(cx: Connection, job_id: str) -> Job | None:
    """The job; None where there is none."""
    row = cx.execute(_SELECT.where(jobs.c.id == job_id)).first()
    return None if row is None else Job(*row)


def change(cx: Connection, job_id: str, rule: Callable[[Job | None], Job]) -> Job:
    """Give the job to `rule` and store what it returns; whatever `rule` raises changes nothing."""
    # The row lock is for databases that let others write meanwhile; SQLite has only one writer.
    row = cx.execute(_SELECT.where(jobs.c.id == job_id).with_for_update()).first()
    before = None if row is None else Job(*row)
    after = rule(before)
    assert before is not None, "a rule raises where there is no job"
    old, new = asdict(before), asdict(after)
    changed = {name: value for name, value in new.items() if value != old[name]}
    if changed:
        cx.execute(update(jobs).where(jobs.c.id == job_id).values(changed))
        if changed.get("state") == "ready":
            hint(cx, HINT)
    return after


def change_held(cx: Connection, job_id: str, attempt: int, rule: Callable[[Job], Job]) -> Job:
    """As `change`, on behalf of an attempt; raises `rules.Fenced` when it is over."""
    return change(cx, job_id, lambda job: rule(check_held(job, job_id, attempt)))


def beat(cx: Connection, job_id: str, attempt: int, progress: tuple[int, int | None]) -> None:
    """`rules.beat` of what an attempt holds; raises `rules.Fenced`. May be run twice."""
    if not _BEAT.change(cx, (*progress, job_id, attempt)):
        _fenced(cx, job_id, attempt)


def done(cx: Connection, job_id: str, attempt: int, *, result: str, now: int) -> None:
    """`rules.done` of what an attempt holds; raises `rules.Fenced`.

    Again after one that nobody confirmed: nothing, since only the attempt itself ends itself well.
    """
    if not _DONE.change(cx, (result, now, job_id, attempt)) and not is_done(cx, job_id, attempt):
        _fenced(cx, job_id, attempt)


def _fenced(cx: Connection, job_id: str, attempt: int) -> NoReturn:
    """Raise what tells an attempt why its fence found nothing."""
    check_held(get_job(cx, job_id), job_id, attempt)
    raise AssertionError("a job that is held is found by its fence")


def is_done(cx: Connection, job_id: str, attempt: int) -> bool:
    """Whether an attempt has ended its job well."""
    job = get_job(cx, job_id)
    return job is not None and (job.state, job.attempt) == ("done", attempt)


_HELD = and_(
    jobs.c.id == bindparam("of_job"),
    jobs.c.attempt == bindparam("of_attempt"),
    _RUNNING,
)
_BEAT = Statement(
    ("to_bytes", "to_total", "of_job", "of_attempt"),
    lambda _dialect: (
        update(jobs)
        .where(_HELD)
        .values(
            beat=jobs.c.beat + _ONE,
            progress_bytes=bindparam("to_bytes"),
            progress_total=bindparam("to_total"),
        )
    ),
)
_DONE = Statement(
    ("to_result", "at", "of_job", "of_attempt"),
    lambda _dialect: (
        update(jobs)
        .where(_HELD)
        .values(
            state=_DONE_STATE,
            result=bindparam("to_result"),
            error=null(),
            finished_at=bindparam("at"),
        )
    ),
)


# --- claiming --------------------------------------------------------------------------------


def claim(
    cx: Connection,
    limits: Mapping[str, int],
    *,
    worker: str,
    host: str,
    now: int,
    asking: Mapping[str, Callable[[Connection], bool]] = MappingProxyType({}),
    alone: bool = False,
) -> Job | None:
    """Begin the next attempt of the oldest due job that a processor has room for; None: none.

    `limits`: {processor: how many of its jobs may run at once, 0 for any number}; jobs of others
    are left alone. `asking`: {processor: what has to say yes besides}. May run beside other claims
    (`Catalogue.write_beside`): those that go by what runs take turns, all others meet nowhere.
    `alone`: by statements that are each a transaction of their own (`Catalogue.write_alone`), in which
    no turn can be taken. Raises `NeedsTurn` where the next job in line needs one.
    """
    in_turn = False
    for name in _oldest_first(cx, tuple(limits), now):
        if limits[name] or name in asking:
            if not in_turn:
                _take_turn(cx, alone=alone)
                in_turn = True
            if limits[name] and _running_by_processor(cx).get(name, 0) >= limits[name]:
                continue
            if name in asking and not asking[name](cx):
                continue
        for row in _CLAIM.rows(cx, (worker, host, name, now, now + CLOCK_STEP_MS)):
            return Job(*row)
    return None


class NeedsTurn(Exception):
    """The next job in line goes by what runs already: claim by turns (`Catalogue.write_beside`)."""


def claimed_by(cx: Connection, worker: str) -> Job | None:
    """A job that a worker has in hand; after a claim of which it does not know what became."""
    row = cx.execute(_SELECT.where(_RUNNING, jobs.c.worker == worker)).first()
    return None if row is None else Job(*row)


def _oldest_first(cx: Connection, names: tuple[str, ...], now: int) -> Iterable[str]:
    """The processors that have a job due, that with the oldest first; of a single one, itself."""
    if len(names) < 2:
        return names
    found = _heads(len(names)).rows(cx, (*names, now, now + CLOCK_STEP_MS))
    return [processor for _, _, processor in sorted(map(tuple, found))]


def _take_turn(cx: Connection, *, alone: bool) -> None:
    """Until this transaction ends nobody else claims by what runs. SQLite has one writer anyway."""
    if cx.dialect.name == "postgresql":
        if alone:
            raise NeedsTurn
        cx.exec_driver_sql(f"SELECT pg_advisory_xact_lock({_CLAIM_LOCK})")


# As `postgresql._WRITE_LOCK`, and different from it.
_CLAIM_LOCK = 0x686F6C64 + 2


def _due(processor: str) -> ColumnElement[bool]:
    """Whether a job is due; `processor` is the name of a parameter."""
    return and_(
        jobs.c.state == _READY_STATE,
        jobs.c.processor == bindparam(processor),
        or_(jobs.c.run_after <= bindparam("now"), jobs.c.ready_at > bindparam("step")),
    )


@cache
def _heads(n: int) -> Statement:
    """(run_after, id, processor) of the oldest due job of each of `n` processors, in one question."""
    return Statement((*(f"of_{i}" for i in range(n)), "now", "step"), lambda _dialect: _heading(n))


def _heading(n: int) -> CompoundSelect[tuple[int, str, str]]:
    columns = (jobs.c.run_after, jobs.c.id, jobs.c.processor)
    each = (
        select(*columns)
        .where(_due(f"of_{i}"))
        .order_by(jobs.c.run_after, jobs.c.id)
        .limit(_ONE)
        .offset(_ZERO)
        for i in range(n)
    )
    # SQLite takes an order and a limit only in a question of its own.
    return union_all(*(select(one.subquery()) for one in each))


_DUE = _due("of_processor")


def _claiming() -> Update:
    """As `rules.claim` has it. SKIP LOCKED where the database knows it: what another claimer is
    taking is not waited for.
    """
    return (
        update(jobs)
        .where(
            jobs.c.id
            == select(jobs.c.id)
            .where(_DUE)
            .order_by(jobs.c.run_after, jobs.c.id)
            .limit(_ONE)
            .offset(_ZERO)
            .with_for_update(skip_locked=True)
            .scalar_subquery()
        )
        .values(
            state=_RUNNING_STATE,
            attempt=jobs.c.attempt + _ONE,
            worker=bindparam("by"),
            host=bindparam("on_host"),
            beat=_ZERO,
            progress_bytes=null(),
            progress_total=null(),
            started_at=bindparam("now"),
            finished_at=null(),
        )
        .returning(*(jobs.c[name] for name in COLUMNS))
    )


_CLAIM = Statement(("by", "on_host", "of_processor", "now", "step"), lambda _dialect: _claiming())


def count_due(cx: Connection, processors: Collection[str], now: int, most: int) -> int:
    """How many jobs of these processors could run at `now`; counted up to `most`."""
    count = 0
    for name in processors:
        at = {"of_processor": name, "now": now, "step": now + CLOCK_STEP_MS}
        some = select(jobs.c.id).where(_DUE).limit(most - count).subquery()
        count += cx.execute(select(func.count()).select_from(some), at).scalar_one()
        if count >= most:
            break
    return count


def running_jobs(cx: Connection) -> list[Running]:
    """Every running job, of all hosts."""
    return [Running(*row) for row in cx.execute(_SELECT_RUNNING)]


def agents_running(cx: Connection, processors: Collection[str], host: str) -> int:
    """On a host: sessions with an agent, and running jobs of the `processors` that start one."""
    live = cx.execute(
        select(func.count())
        .select_from(sessions)
        .where(sessions.c.host == host, sessions.c.state.in_(_LIVE_SESSIONS))
    ).scalar_one()
    return int(live) + len(agent_jobs(cx, processors, host))


def agent_jobs(cx: Connection, processors: Collection[str], host: str) -> list[Running]:
    """The running jobs of the `processors` on a host, the one that started last first."""
    query = _SELECT_RUNNING.where(jobs.c.processor.in_(processors), jobs.c.host == host)
    return [Running(*row) for row in cx.execute(query.order_by(jobs.c.started_at.desc()))]


def depths(cx: Connection, now: int) -> tuple[dict[tuple[str, str], int], int | None]:
    """({(state, processor): how many} of ready, running and dead, since when the oldest is due).

    None where no job waits. Reads what has not ended well, by the index.
    """
    counts = cx.execute(
        select(jobs.c.state, jobs.c.processor, func.count())
        .where(jobs.c.state.in_(("ready", "running", "dead")))
        .group_by(jobs.c.state, jobs.c.processor)
    )
    oldest = cx.execute(
        select(func.min(jobs.c.run_after)).where(jobs.c.state == "ready", jobs.c.run_after <= now)
    ).scalar_one()
    return {(str(state), str(name)): int(n) for state, name, n in counts}, oldest


def _running_by_processor(cx: Connection) -> dict[str, int]:
    counts = cx.execute(
        select(jobs.c.processor, func.count()).where(_RUNNING).group_by(jobs.c.processor)
    )
    return {str(name): int(n) for name, n in counts}


# --- logs and lists --------------------------------------------------------------------------


def put_log(cx: Connection, row: LogRow) -> None:
    """Store what an attempt has said so far. Fence it with a `change_held` beside it."""
    _UPSERT_LOG.change(cx, (row.job, row.attempt, row.size, row.at, row.text))


def get_log(cx: Connection, job_id: str, attempt: int) -> LogRow | None:
    """The log of an attempt; None where nothing was stored."""
    columns = (job_logs.c[field.name] for field in fields(LogRow))
    found = cx.execute(
        select(*columns).where(job_logs.c.job == job_id, job_logs.c.attempt == attempt)
    ).first()
    return None if found is None else LogRow(*found)


def untold_jobs(cx: Connection, limit: int) -> list[Job]:
    """Jobs that have ended and whose session does not know it yet, oldest end first."""
    query = _SELECT.where(_UNTOLD).order_by(jobs.c.finished_at)
    return [Job(*row) for row in cx.execute(query.limit(limit))]


def mark_told(cx: Connection, job_id: str) -> bool:
    """The job's session has its notice; False when it had it before. Part of what tells it."""
    told = update(jobs).where(jobs.c.id == job_id, jobs.c.told == 0).values(told=1)
    return cx.execute(told).rowcount > 0


def list_jobs(
    cx: Connection,
    *,
    owner: str | None,
    state: str | None,
    processor: str | None,
    limit: int,
    cursor: str | None,
) -> tuple[list[Job], str | None]:
    """Newest first, with the cursor of the next page; `owner` None: of all."""
    query = _SELECT
    for column, value in ((jobs.c.owner, owner), (jobs.c.state, state)):
        if value is not None:
            query = query.where(column == value)
    if processor is not None:
        query = query.where(jobs.c.processor == processor)
    if cursor is not None:
        before = cursors.decode(cursor, "jobs", (int, str))
        query = query.where(tuple_(jobs.c.created_at, jobs.c.id) < tuple_(*before))
    query = query.order_by(jobs.c.created_at.desc(), jobs.c.id.desc()).limit(limit + 1)
    found = [Job(*row) for row in cx.execute(query)]
    if len(found) <= limit:
        return found, None
    last = found[limit - 1]
    return found[:limit], cursors.encode("jobs", (last.created_at, last.id))
