"""What goes by its age, in both databases: only what is over, oldest first, in pieces."""

from __future__ import annotations

from sqlalchemy import Connection, insert, select

from holdoverd.catalogue import audit, jobs, retained, schema, sessions
from holdoverd.catalogue.records import Change
from holdoverd.catalogue.retained import Counts, Limits
from tests.catalogue.examples import a_session, session_id
from tests.jobs.yard import new_job

NOW = 1_000


def test_sessions_go_once_they_have_ended_and_those_that_ended_first_go_first(
    cx: Connection,
) -> None:
    states = [("ended", 30), ("ended", 10), ("ended", NOW), ("dormant", None), ("failed", None)]
    for number, (state, ended_at) in enumerate(states, 1):
        row = a_session(id=session_id(number), state=state, ended_at=ended_at)
        sessions.create_session(cx, row, Change())
    assert retained.old_sessions(cx, NOW, 9) == [session_id(2), session_id(1)]
    assert retained.old_sessions(cx, NOW, 1) == [session_id(2)]
    assert retained.count(cx, Limits(NOW, None, None)) == Counts(2, 0, 0)
    assert retained.count(cx, Limits(None, None, None)) == Counts(0, 0, 0)


def test_jobs_go_with_their_logs_once_they_are_over_for_everybody(cx: Connection) -> None:
    stay = [
        new_job("p", state="ready"),
        new_job("p", state="running", attempt=1, worker="w", host="h"),
        new_job("p", state="done", finished_at=NOW),
        new_job("p", state="done", finished_at=10, told=0),  # its session has yet to hear of it
    ]
    go = [new_job("p", state=state, finished_at=10) for state in ("done", "dead", "cancelled")]
    for job in (*stay, *go):
        jobs.create_job(cx, job)
        log = {"job": job.id, "attempt": 1, "size": 1, "at": 1, "text": "x"}
        cx.execute(insert(schema.job_logs).values(**log))
    assert retained.count(cx, Limits(None, NOW, None)) == Counts(0, 3, 0)
    assert [retained.remove_jobs(cx, NOW, 2) for _ in range(3)] == [2, 1, 0]
    left = set(cx.execute(select(schema.jobs.c.id)).scalars())
    assert left == {job.id for job in stay}
    assert set(cx.execute(select(schema.job_logs.c.job)).scalars()) == left


def test_the_audit_loses_its_oldest_rows_first(cx: Connection) -> None:
    for at in (10, 30, 20, NOW, NOW + 1):
        audit.record(cx, at=at, owner="ann", actor="admin", action="link.made", subject=str(at))
    assert retained.count(cx, Limits(None, None, NOW)) == Counts(0, 0, 3)
    assert retained.remove_audit(cx, NOW, 2) == 2
    rows, _ = audit.list_rows(cx, limit=9)
    assert [row.at for row in rows] == [NOW + 1, NOW, 30]
    assert retained.remove_audit(cx, NOW, 2) == 1
    assert retained.remove_audit(cx, NOW, 2) == 0
