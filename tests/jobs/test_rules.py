"""The queue's rules in every interleaving of a few workers, observers and a person.

`explore` is a small model checker: from each state it takes every step that anybody could, and looks
at what must always hold. The state space is finite, since attempts are.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, replace

import pytest

from holdoverd.errors import Conflict
from holdoverd.jobs import rules
from holdoverd.jobs.rules import Fenced, Job, Leases, Running
from tests.jobs.yard import new_job

NOW = 1_000_000


@dataclass(frozen=True)
class World:
    """One job and what workers believe: (worker, attempt) that think they run it. A worker that
    was stopped keeps believing; nothing tells it."""

    job: Job
    believing: frozenset[tuple[str, int]] = frozenset()
    published: tuple[str, ...] = ()
    retried: int = 0


def steps(world: World) -> Iterator[tuple[str, World]]:
    job = world.job
    # Everybody's writes are judged by the row as it is now: the catalogue serialises them.
    if rules.due(job, NOW):
        for worker in ("a", "b"):
            taken = rules.claim(job, worker=worker, host="h", now=NOW)
            yield (
                "claim",
                replace(world, job=taken, believing=world.believing | {(worker, taken.attempt)}),
            )
    elif job.state == "ready":
        yield "time", replace(world, job=replace(job, run_after=NOW))
    for worker, attempt in world.believing:
        without = world.believing - {(worker, attempt)}
        try:
            held = rules.check_held(job, job.id, attempt)
        except Fenced:
            yield "fenced", replace(world, believing=without)
            continue
        assert job.worker == worker, "an attempt is one worker's"
        result = f"{worker}{attempt}"
        yield "beat", replace(world, job=replace(rules.beat(held, progress=(1, 2)), beat=0))
        yield (
            "done",
            replace(
                world,
                job=rules.done(held, result=result, now=NOW),
                believing=without,
                published=(*world.published, result),
            ),
        )
        for final in (False, True):
            failed = rules.failed(held, error="no", final=final, chance=0.5, now=NOW)
            yield "failed", replace(world, job=failed, believing=without)
        if job.spared < 2:
            later = rules.spared(held, why="later", after_s=5, now=NOW)
            yield "spared", replace(world, job=later, believing=without)
    if job.state == "running":  # an observer; the worker goes on believing
        yield "lost", replace(world, job=rules.lost(job, how="gone", chance=0.5, now=NOW))
    if job.state in ("ready", "running"):
        yield "cancel", replace(world, job=rules.cancel(job, NOW))
    if job.state in ("dead", "cancelled") and world.retried < 1:
        yield "retry", replace(world, job=rules.retry(job, NOW), retried=world.retried + 1)


def explore() -> Iterator[tuple[World, str, World]]:
    job = new_job("p", id="j", max_attempts=2, created_at=NOW, ready_at=NOW, run_after=NOW)
    first = World(job)
    seen = {first}
    todo = deque([first])
    while todo:
        before = todo.popleft()
        for name, after in steps(before):
            yield before, name, after
            if after not in seen:
                seen.add(after)
                todo.append(after)


def test_whatever_happens_the_fence_holds() -> None:
    moves: set[tuple[str, str]] = set()
    ends = set()
    for before, name, after in explore():
        job, was = after.job, before.job
        moves |= {(was.state, job.state)} if was.state != job.state else set()
        ends.add(job.state)
        assert len(after.published) <= 1, "one result at most"
        assert (job.state == "done") == bool(after.published)
        assert job.result == (after.published[0] if after.published else None)
        assert job.attempt >= was.attempt, "the fence only grows"
        assert job.attempt == was.attempt + (name == "claim")
        assert (job.finished_at is not None) == (job.state in ("done", "dead", "cancelled"))
        if job.state == "running":
            # Whoever runs it, and nobody else, may write.
            assert sum(attempt == job.attempt for _, attempt in after.believing) <= 1
        if job.state == "dead" and was.state == "running" and name == "lost":
            assert job.counted == job.max_attempts, "not before its last attempt"
    assert moves == {(a, b) for a, targets in rules.MOVES.items() for b in targets}
    assert ends == set(rules.STATES)


def test_no_attempt_beyond_the_last() -> None:
    for _before, name, after in explore():
        if name == "claim":
            assert after.job.counted <= after.job.max_attempts


def test_later_is_bounded() -> None:
    job = new_job("p", max_attempts=1)
    for _ in range(rules.MAX_SPARED):
        job = rules.claim(replace(job, run_after=0), worker="w", host="h", now=job.ready_at)
        job = rules.spared(job, why="busy", after_s=1e9, now=NOW)
        assert job.run_after - job.ready_at == rules.MAX_RETRY_AFTER_S * 1000
        assert job.counted == 0
    job = rules.claim(replace(job, run_after=0), worker="w", host="h", now=job.ready_at)
    assert rules.spared(job, why="busy", after_s=1, now=NOW).state == "dead"


def test_a_clock_set_back_an_hour_leaves_nothing_waiting() -> None:
    job = rules.claim(new_job("p"), worker="w", host="h", now=10**13)
    job = rules.failed(job, error="no", final=False, chance=0.9, now=10**13)
    assert not rules.due(job, 10**13)
    assert rules.due(job, 10**13 - 3_600_000)
    assert rules.due(job, 10**13 + 3_600_000)


def test_backoff_has_full_jitter_and_a_bound() -> None:
    assert [rules.backoff_s(n) for n in (1, 2, 3, 9, 10, 1000)] == [1, 2, 4, 256, 300, 300]
    job = rules.claim(new_job("p"), worker="w", host="h", now=10**13)
    for chance, delay in ((0.0, 0), (0.5, 500)):
        again = rules.failed(job, error="no", final=False, chance=chance, now=NOW)
        assert again.run_after == NOW + delay


def test_a_person_is_told_what_cannot_be() -> None:
    done = new_job("p", state="done")
    with pytest.raises(Conflict, match="done already"):
        rules.cancel(done, NOW)
    with pytest.raises(Conflict, match="Submit a new one"):
        rules.retry(done, NOW)
    with pytest.raises(Conflict, match="cancel it first"):
        rules.retry(new_job("p"), NOW)
    cancelled = rules.cancel(new_job("p"), NOW)
    assert rules.cancel(cancelled, NOW + 5) == cancelled


# --- who lives ---

ONE = Running("j1", 1, "w1", "here", 0)


def test_a_worker_of_this_host_without_its_lock_is_gone_at_once() -> None:
    leases = Leases(15)
    ((job, how),) = leases.judge([ONE], host="here", living=set(), now=0)
    assert job == ONE
    assert "ended without a word" in how
    assert leases.judge([ONE], host="here", living={"w1"}, now=1) == []


@pytest.mark.parametrize("host", ["here", "there"])
def test_a_worker_is_silent_by_the_observers_clock_alone(host: str) -> None:
    leases = Leases(15)

    def over(beat: int, now: float) -> bool:
        running = [replace(ONE, beat=beat)]
        return bool(leases.judge(running, host=host, living={"w1"}, now=now))

    assert not over(0, 100)  # first seen now, whenever it began
    assert not over(0, 115)
    assert not over(1, 116)  # a beat
    assert not over(1, 131)
    assert over(1, 131.1)
    leases.judge([replace(ONE, attempt=2)], host=host, living={"w1"}, now=132)
    assert not leases.judge([replace(ONE, attempt=2)], host=host, living={"w1"}, now=140)


def test_what_ended_is_forgotten() -> None:
    leases = Leases(15)
    leases.judge([ONE], host="there", living=set(), now=0)
    leases.judge([], host="there", living=set(), now=1)
    assert leases.judge([ONE], host="there", living=set(), now=100) == []


def test_workers_are_wanted_for_what_could_run_within_the_limit() -> None:
    wanted = rules.wanted_workers
    assert wanted(ready=0, running=0, living=0, limit=4) == 0
    assert wanted(ready=1, running=0, living=0, limit=4) == 1
    assert wanted(ready=9, running=2, living=2, limit=4) == 2
    assert wanted(ready=1, running=2, living=3, limit=4) == 0
    assert wanted(ready=9, running=0, living=9, limit=4) == 0


def test_jobs_leave_room_for_people() -> None:
    assert rules.may_admit(agents=179, limit=200)
    assert not rules.may_admit(agents=180, limit=200)
    assert rules.may_admit(agents=0, limit=1)
    assert not rules.may_admit(agents=1, limit=2)


@pytest.mark.parametrize("limit", range(1, 6))
@pytest.mark.parametrize("jobs", range(6))
@pytest.mark.parametrize("sessions", range(1, 8))
def test_jobs_give_way_to_people_and_no_more_than_they_must(
    sessions: int, jobs: int, limit: int
) -> None:
    left = jobs - rules.to_give_way(sessions=sessions, jobs=jobs, limit=limit)
    assert 0 <= left <= jobs
    assert sessions + left <= limit or left == 0
    assert left == jobs or sessions + left + 1 > limit


def test_what_gives_way_comes_again_later_at_no_cost() -> None:
    job = new_job("p", state="running", attempt=1)
    after = rules.gives_way(job, NOW)
    assert (after.state, after.counted) == ("ready", 0)
    assert after.run_after == NOW + rules.GIVE_WAY_S * 1000
    assert "made room for a session" in (after.error or "")
