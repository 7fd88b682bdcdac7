"""Jobs in the catalogue: the claim against its rule, order, limits, lists, logs."""

from __future__ import annotations

from dataclasses import replace

import pytest
from sqlalchemy import Connection

from holdoverd.catalogue import jobs as jobs_table
from holdoverd.catalogue.jobs import LogRow
from holdoverd.errors import BadRequest
from holdoverd.jobs import rules
from holdoverd.jobs.rules import Fenced, Job
from tests.jobs.yard import new_job

NOW = 5_000_000


def add(cx: Connection, processor: str = "p", **fields: object) -> Job:
    job = new_job(processor, **{"ready_at": NOW, "run_after": NOW, "created_at": NOW, **fields})
    jobs_table.create_job(cx, job)
    return job


def claim(cx: Connection, now: int = NOW, **limits: int) -> Job | None:
    return jobs_table.claim(cx, limits or {"p": 0}, worker="w", host="h", now=now)


def test_the_statement_does_what_the_rule_says(cx: Connection) -> None:
    job = add(cx, attempt=4, spared=1, beat=9, progress_bytes=1, progress_total=2, error="x")
    expected = rules.claim(job, worker="w", host="h", now=NOW)
    assert claim(cx) == expected
    assert jobs_table.get_job(cx, job.id) == expected
    assert claim(cx) is None


@pytest.mark.parametrize("progress", [(0, None), (7, 9)])
def test_a_heartbeat_and_a_good_end_do_what_their_rules_say(
    cx: Connection, progress: tuple[int, int | None]
) -> None:
    held = add(cx, state="running", attempt=2, beat=9, progress_bytes=5, error="x")
    jobs_table.beat(cx, held.id, 2, progress)
    beaten = rules.beat(held, progress=progress)
    assert jobs_table.get_job(cx, held.id) == beaten
    assert not jobs_table.is_done(cx, held.id, 2)
    jobs_table.done(cx, held.id, 2, result="{}", now=NOW + 1)
    ended = rules.done(beaten, result="{}", now=NOW + 1)
    assert jobs_table.get_job(cx, held.id) == ended
    assert jobs_table.is_done(cx, held.id, 2)
    # Whoever was not told that it had come about says it again.
    jobs_table.done(cx, held.id, 2, result="{}", now=NOW + 2)
    assert jobs_table.get_job(cx, held.id) == ended


@pytest.mark.parametrize("state", rules.STATES)
@pytest.mark.parametrize("attempt", [1, 2, 3])
def test_whoever_does_not_hold_a_job_neither_beats_nor_ends_it(
    cx: Connection, state: str, attempt: int
) -> None:
    job = add(cx, state=state, attempt=2)
    held = (state, attempt) == ("running", 2)
    if not held:
        with pytest.raises(Fenced, match=f"attempt {attempt} is over"):
            jobs_table.beat(cx, job.id, attempt, (1, 1))
    if not held and (state, attempt) != ("done", 2):
        with pytest.raises(Fenced, match=f"attempt {attempt} is over"):
            jobs_table.done(cx, job.id, attempt, result="{}", now=NOW)
    assert jobs_table.get_job(cx, job.id) == job
    with pytest.raises(Fenced, match="gone"):
        jobs_table.done(cx, "j_none", attempt, result="{}", now=NOW)


def test_a_worker_finds_what_it_has_claimed(cx: Connection) -> None:
    add(cx, state="done", worker="w")
    add(cx, state="running", worker="other")
    assert jobs_table.claimed_by(cx, "w") is None
    add(cx)
    claimed = claim(cx)
    assert claimed is not None
    assert jobs_table.claimed_by(cx, "w") == claimed


@pytest.mark.parametrize("state", rules.STATES)
@pytest.mark.parametrize("delay", [-1, 0, 1, rules.CLOCK_STEP_MS])
@pytest.mark.parametrize("ahead", [0, rules.CLOCK_STEP_MS, rules.CLOCK_STEP_MS + 1])
def test_exactly_what_is_due_is_claimed(cx: Connection, state: str, delay: int, ahead: int) -> None:
    job = add(cx, state=state, run_after=NOW + delay, ready_at=NOW + ahead)
    assert jobs_table.count_due(cx, ["p"], NOW, 5) == int(rules.due(job, NOW))
    assert (claim(cx) is not None) == rules.due(job, NOW)


def test_the_oldest_goes_first_over_all_processors(cx: Connection) -> None:
    late, early, other = (
        add(cx, "p", run_after=NOW - 1),
        add(cx, "q", run_after=NOW - 3),
        add(cx, "p", run_after=NOW - 2),
    )
    add(cx, "r", run_after=NOW - 9)  # of a processor that this worker does not know
    order = [claim(cx, p=0, q=0) for _ in range(4)]
    assert [job.id if job else None for job in order] == [early.id, other.id, late.id, None]


def test_a_full_processor_is_passed_by(cx: Connection) -> None:
    for _ in range(3):
        add(cx, "p", run_after=NOW - 5)
    free = add(cx, "q")
    claims = [claim(cx, p=2, q=1) for _ in range(4)]
    assert [job.processor if job else None for job in claims] == ["p", "p", "q", None]
    assert claims[2] is not None
    assert claims[2].id == free.id


def test_an_attempt_that_is_over_writes_nothing(cx: Connection) -> None:
    job = add(cx)
    first = claim(cx)
    assert first is not None
    jobs_table.change(cx, job.id, lambda j: rules.lost(j, how="x", chance=0, now=NOW))  # type: ignore[arg-type]
    second = claim(cx)
    assert second is not None
    with pytest.raises(Fenced, match="attempt 1 is over"):
        jobs_table.change_held(cx, job.id, 1, lambda j: rules.done(j, result="{}", now=NOW))
    assert jobs_table.get_job(cx, job.id) == second
    with pytest.raises(Fenced, match="gone"):
        jobs_table.change_held(cx, "j_none", 1, lambda j: j)


def test_the_index_serves_beside_any_number_that_ended(cx: Connection) -> None:
    """No sort and no scan, or ten thousand finished jobs would slow the next claim."""
    if cx.dialect.name != "sqlite":
        pytest.skip("its planner goes by what is in the table; the bench measures it")
    plans = []
    for statement in (jobs_table._heading(3), jobs_table._claiming()):
        text = str(statement.compile(cx, compile_kwargs={"render_postcompile": True}))
        names = statement.compile(cx).positiontup or []  # type: ignore[attr-defined]
        plan = cx.exec_driver_sql("EXPLAIN QUERY PLAN " + text, tuple("x" for _ in names))
        plans += [row[3] for row in plan]
    assert plans
    for step in plans:
        assert "SCAN jobs" not in step
        assert "TEMP B-TREE" not in step


def test_depths_tell_what_waits_runs_and_failed(cx: Connection) -> None:
    assert jobs_table.depths(cx, NOW) == ({}, None)
    for state, processor in [("ready", "p"), ("ready", "p"), ("running", "q"), ("dead", "p")]:
        add(cx, processor, state=state)
    for state in ("done", "cancelled"):
        add(cx, state=state)
    add(cx, run_after=NOW - 7)
    add(cx, run_after=NOW + 9, ready_at=NOW)
    depths = {("ready", "p"): 4, ("running", "q"): 1, ("dead", "p"): 1}
    assert jobs_table.depths(cx, NOW) == (depths, NOW - 7)
    assert jobs_table.depths(cx, NOW - 99)[1] is None


def test_agents_are_counted_on_their_host_and_the_latest_named_first(cx: Connection) -> None:
    early, late = (
        add(cx, "a", state="running", host="h", worker="w", started_at=NOW + n) for n in range(2)
    )
    add(cx, "a", state="running", host="other", worker="w", started_at=NOW)
    add(cx, "a")
    add(cx, "p", state="running", host="h", worker="w", started_at=NOW)
    assert [job.id for job in jobs_table.agent_jobs(cx, ["a"], "h")] == [late.id, early.id]
    assert jobs_table.agents_running(cx, ["a"], "h") == 2


def test_lists_page_newest_first(cx: Connection) -> None:
    jobs = [add(cx, created_at=NOW + n // 2, owner="ab"[n % 2]) for n in range(7)]
    expected = sorted(jobs, key=lambda j: (-j.created_at, j.id), reverse=False)
    expected = sorted(jobs, key=lambda j: (j.created_at, j.id), reverse=True)
    found, cursor = [], None
    while True:
        page, cursor = jobs_table.list_jobs(
            cx, owner=None, state="ready", processor="p", limit=2, cursor=cursor
        )
        found += page
        if cursor is None:
            break
    assert found == expected
    mine, _ = jobs_table.list_jobs(cx, owner="a", state=None, processor=None, limit=9, cursor=None)
    assert mine == [job for job in expected if job.owner == "a"]
    with pytest.raises(BadRequest, match="not one of ours"):
        jobs_table.list_jobs(cx, owner=None, state=None, processor=None, limit=9, cursor="x!")


def test_a_log_grows_and_is_kept_by_attempt(cx: Connection) -> None:
    job = add(cx)
    for row in (LogRow(job.id, 1, 1, NOW, "a"), LogRow(job.id, 1, 2, NOW, "ab")):
        jobs_table.put_log(cx, row)
    jobs_table.put_log(cx, LogRow(job.id, 2, 1, NOW, "c"))
    assert jobs_table.get_log(cx, job.id, 1) == LogRow(job.id, 1, 2, NOW, "ab")
    assert jobs_table.get_log(cx, job.id, 3) is None


def test_an_end_is_told_once(cx: Connection) -> None:
    job = add(cx, session="s", told=0)
    add(cx, state="done", finished_at=NOW)  # nobody asked to be told
    assert jobs_table.untold_jobs(cx, 5) == []
    ended = jobs_table.change(cx, job.id, lambda j: rules.cancel(j, NOW))  # type: ignore[arg-type]
    assert jobs_table.untold_jobs(cx, 5) == [ended]
    assert jobs_table.mark_told(cx, job.id)
    assert not jobs_table.mark_told(cx, job.id)
    assert jobs_table.untold_jobs(cx, 5) == []
    again = jobs_table.change(cx, job.id, lambda j: rules.retry(j, NOW))  # type: ignore[arg-type]
    assert replace(again, told=1) != again  # its next end is another
