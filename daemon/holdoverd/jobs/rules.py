"""The queue's rules: what may become of a job, decided from its row. No I/O, no clock, no chance.

Each function takes the row as it is and returns the row as it shall be, or raises: `Fenced` where
another attempt (or a person) has decided meanwhile, `Conflict` where a person asks what cannot be.
`catalogue/jobs.py` runs them inside one write transaction; the claim alone is a statement of its own,
which the tests hold to `claim` here.
"""

from collections.abc import Collection, Iterable
from dataclasses import dataclass, field, replace
from typing import Literal

from holdoverd.errors import Conflict, HoldoverError

State = Literal["ready", "running", "done", "dead", "cancelled"]
STATES: tuple[State, ...] = ("ready", "running", "done", "dead", "cancelled")

# {state: what it may become}; tests/jobs/test_rules.py finds these moves and no others.
MOVES: dict[State, frozenset[State]] = {
    "ready": frozenset({"running", "cancelled"}),
    "running": frozenset({"ready", "done", "dead", "cancelled"}),
    "done": frozenset(),
    "dead": frozenset({"ready"}),
    "cancelled": frozenset({"ready"}),
}

FIRST_DELAY_S = 1.0
MAX_DELAY_S = 300.0
MAX_RETRY_AFTER_S = 3600.0
# A person who has just begun is not done sooner.
GIVE_WAY_S = 30.0
# A service that says "later" for ever has to be noticed by somebody.
MAX_SPARED = 50
# A step of the wall clock that is no skew between hosts.
CLOCK_STEP_MS = 60_000
MAX_ERROR_CHARS = 2000


class Fenced(HoldoverError):
    """The attempt is no longer the job's: it was cancelled, or taken over. Stop, publish nothing."""


@dataclass(frozen=True, slots=True)
class Job:
    """A job as stored. Times in ms; JSON fields are text.

    attempt     how often it was claimed, ever: the fence. 0: never.
    spared      how many of those do not count against `max_attempts`.
    ready_at    when it last became ready; `run_after` >= `ready_at`: not before that.
    worker      who runs it, on `host`; kept after the end, for people.
    beat        grows with every heartbeat of the attempt.
    result      {"text"?, "files": [id]}, or None until ``done``.
    error       why the last attempt failed, in a sentence for people; None when none has.
    session     the session that asked, and is told of the end; `told` is 1 once it was, or where
                there is none.
    """

    id: str
    owner: str
    account: str
    processor: str
    files: str
    params: str
    session: str | None
    state: State
    attempt: int
    spared: int
    max_attempts: int
    ready_at: int
    run_after: int
    worker: str | None
    host: str | None
    beat: int
    progress_bytes: int | None
    progress_total: int | None
    result: str | None
    error: str | None
    told: int
    created_at: int
    started_at: int | None
    finished_at: int | None

    @property
    def counted(self) -> int:
        """The attempts that count, as the wire shows them."""
        return self.attempt - self.spared


def due(job: Job, now: int) -> bool:
    """Whether it may be claimed at `now`.

    A job that became ready in the future is due: the clock was set back, and what it was to wait
    for cannot be told any more.
    """
    return job.state == "ready" and (job.run_after <= now or job.ready_at > now + CLOCK_STEP_MS)


def claim(job: Job, *, worker: str, host: str, now: int) -> Job:
    """The next attempt begins. It is counted here and not at its end, since it may have none."""
    assert due(job, now), "only what is due is claimed"
    return replace(
        job,
        state="running",
        attempt=job.attempt + 1,
        worker=worker,
        host=host,
        beat=0,
        progress_bytes=None,
        progress_total=None,
        started_at=now,
        finished_at=None,
    )


def check_held(job: Job | None, job_id: str, attempt: int) -> Job:
    """The job, while `attempt` runs it; raises Fenced otherwise."""
    if job is None:
        raise Fenced(f"Job {job_id} is gone; attempt {attempt} of it is over.")
    if job.state != "running" or job.attempt != attempt:
        raise Fenced(
            f"Job {job_id} is {job.state} with attempt {job.attempt}; attempt {attempt} is over."
        )
    return job


def beat(job: Job, *, progress: tuple[int, int | None] | None) -> Job:
    """Its worker lives; `progress` is (bytes, total), None: as it was."""
    job = replace(job, beat=job.beat + 1)
    if progress is None:
        return job
    return replace(job, progress_bytes=progress[0], progress_total=progress[1])


def done(job: Job, *, result: str, now: int) -> Job:
    """The attempt succeeded; this publishes its result."""
    return replace(job, state="done", result=result, error=None, finished_at=now)


def failed(job: Job, *, error: str, final: bool, chance: float, now: int) -> Job:
    """The attempt failed. Tried again after a delay, until `max_attempts`; `final`: never again.

    `chance` is a random number in [0, 1): full jitter, so that what failed together does not come
    back together (https://aws.amazon.com/blogs/architecture/exponential-backoff-and-jitter/).
    """
    if final or job.counted >= job.max_attempts:
        return replace(job, state="dead", error=_short(error), finished_at=now)
    return _again(job, error, backoff_s(job.counted) * chance, now)


def lost(job: Job, *, how: str, chance: float, now: int) -> Job:
    """Its worker is gone, or silent beyond its lease. The first time, another goes on at once."""
    return failed(job, error=how, final=False, chance=0.0 if job.counted <= 1 else chance, now=now)


def spared(job: Job, *, why: str, after_s: float, now: int) -> Job:
    """The attempt did not count: somebody said "later", or the worker has to go. Bounded."""
    if job.spared >= MAX_SPARED:
        return failed(job, error=why, final=False, chance=1.0, now=now)
    delayed = _again(job, why, min(max(after_s, 0.0), MAX_RETRY_AFTER_S), now)
    return replace(delayed, spared=job.spared + 1)


def cancel(job: Job, now: int) -> Job:
    """A person wants it no more. A worker that runs it finds itself fenced. Again: nothing."""
    if job.state == "cancelled":
        return job
    if "cancelled" not in MOVES[job.state]:
        raise Conflict(f"Job {job.id} is {job.state} already; there is nothing to cancel.")
    return replace(job, state="cancelled", finished_at=now)


def retry(job: Job, now: int) -> Job:
    """A person wants it after all: all its attempts again, the fence still counting on."""
    if job.state not in ("dead", "cancelled"):
        raise Conflict(
            f"Job {job.id} is {job.state}; only a dead or cancelled one is tried again. "
            + ("Submit a new one." if job.state == "done" else "Wait for it, or cancel it first.")
        )
    return replace(
        job,
        state="ready",
        spared=job.attempt,
        ready_at=now,
        run_after=now,
        progress_bytes=None,
        progress_total=None,
        error=None,
        told=int(job.session is None),
        finished_at=None,
    )


def backoff_s(attempts: int) -> float:
    """The longest wait after so many counted attempts."""
    return min(MAX_DELAY_S, FIRST_DELAY_S * 2.0 ** min(max(attempts - 1, 0), 30))


def _again(job: Job, error: str, delay_s: float, now: int) -> Job:
    return replace(
        job,
        state="ready",
        error=_short(error),
        ready_at=now,
        run_after=now + round(delay_s * 1000),
    )


def _short(error: str) -> str:
    return error if len(error) <= MAX_ERROR_CHARS else error[: MAX_ERROR_CHARS - 1] + "…"


# --- who lives -------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Running:
    """What of a running job is needed to judge its worker."""

    id: str
    attempt: int
    worker: str
    host: str
    beat: int


@dataclass
class Leases:
    """Remembers when each running job was last seen to beat, by the observer's own clock.

    No time of day is compared between hosts or over time, so a clock that is set does neither take
    a job from a worker that lives nor leave one with a worker that is gone.
    """

    lease_s: float
    _seen: dict[tuple[str, int], tuple[int, float]] = field(default_factory=dict)

    def judge(
        self, running: Iterable[Running], *, host: str, living: Collection[str], now: float
    ) -> list[tuple[Running, str]]:
        """The jobs to take from their workers, each with the reason.

        `living` are this host's workers whose lock is held; `now` is a monotonic clock in seconds.
        """
        seen: dict[tuple[str, int], tuple[int, float]] = {}
        over = []
        for job in running:
            key = (job.id, job.attempt)
            beat, since = self._seen.get(key, (-1, now))
            seen[key] = (job.beat, since if beat == job.beat else now)
            if job.host == host and job.worker not in living:
                over.append((job, f"Its worker {job.worker} ended without a word."))
            elif now - seen[key][1] > self.lease_s:
                over.append(
                    (
                        job,
                        f"Its worker {job.worker} on {job.host} was silent for {self.lease_s:g} s.",
                    )
                )
        self._seen = seen
        return over

    def longest_silence_s(self, now: float) -> float:
        """Since the beat of the running job that was heard of longest ago; 0 where none runs."""
        return max((now - since for _, since in self._seen.values()), default=0.0)


def wanted_workers(*, ready: int, running: int, living: int, limit: int) -> int:
    """How many workers to ask for: one for every job that could run, within the limit."""
    return max(0, min(limit, ready + running) - living)


def may_admit(*, agents: int, limit: int) -> bool:
    """Whether a job may start an agent beside `agents` (sessions' and jobs' together).

    Jobs leave a tenth of the limit, one at least where there are two, to people.
    """
    return agents < limit - min(limit - 1, max(1, limit // 10))


def to_give_way(*, sessions: int, jobs: int, limit: int) -> int:
    """How many of the `jobs` with an agent have to stop, so that `sessions` can have theirs."""
    return max(0, min(jobs, sessions + jobs - limit))


def gives_way(job: Job, now: int) -> Job:
    """Its agent makes room for a person's; it is tried again later, at no cost."""
    return spared(
        job,
        why="It made room for a session: [sessions] max_live agents ran on its host.",
        after_s=GIVE_WAY_S,
        now=now,
    )
