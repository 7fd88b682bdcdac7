"""Looking at the instance when somebody asks for its metrics."""

import os
import resource
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from platform import python_version
from typing import TYPE_CHECKING

import trio

from holdoverd.catalogue import jobs as jobs_table
from holdoverd.catalogue import sessions as sessions_table
from holdoverd.catalogue.store import Catalogue
from holdoverd.errors import CatalogueError
from holdoverd.ids import now_ms, since_boot_s
from holdoverd.metrics.counts import Counts
from holdoverd.metrics.table import Samples, Value

if TYPE_CHECKING:
    from holdoverd.handover.duty import Duty
    from holdoverd.http.live import LiveStreams
    from holdoverd.http.server import Server
    from holdoverd.jobs.service import Jobs
    from holdoverd.sessions.service import Sessions
    from holdoverd.storage.client import Store

Source = Callable[[], Awaitable[Samples]]
"""Asked at each scrape, on the event loop; must not block it, and raises nothing."""

STORAGE_ANSWERS_S = 3.0
"""Prometheus gives a scrape ten seconds."""

_SERVED_SINCE = time.time()


class Metrics:
    """What is told at each scrape, out of every source."""

    def __init__(self, sources: Sequence[Source]) -> None:
        self._sources = sources

    async def text(self) -> tuple[bytes, str]:
        """The text and its media type."""
        samples: Samples = {}
        for source in self._sources:
            samples |= await source()
        return await trio.to_thread.run_sync(_render, samples)


def _render(samples: Samples) -> tuple[bytes, str]:
    from holdoverd.metrics import exposition

    return exposition.render(samples), exposition.CONTENT_TYPE_LATEST


def by_label(counter: Counter[str] | Counter[int]) -> dict[tuple[str, ...], Value]:
    return {(str(label),): count for label, count in sorted(counter.items())}


def from_counts(counts: Counts) -> Samples:
    """A counter with labels has no sample before it has counted something."""
    return {
        "ingest_lines": {(): counts.lines},
        "ingest_bytes": {(): counts.line_bytes},
        "ingest_commits": {(): counts.commits},
        "adoptions": {(): counts.adopted},
        "session_defects": {(): counts.defects},
        "loop_late_seconds": {(): counts.loop_late_s},
        "clock_steps": {(): counts.clock_steps},
        "clock_step_seconds": {(): counts.clock_step_s},
        "launches": by_label(counts.launches),
        "agent_exits": by_label(counts.agent_exits),
        "sessions_handed": by_label(counts.sessions_handed),
        "connections_handed": by_label(counts.connections_handed),
        "viewers_behind": {(): counts.viewers_behind},
        "viewer_delta_drops": {(): counts.deltas_dropped},
        "http_answers": by_label(counts.answers),
        "connections_accepted": by_label(counts.connections),
        "connections_refused": {(): counts.refused},
    }


async def from_catalogue(catalogue: Catalogue) -> Samples:
    """Sessions are left out while the catalogue cannot be read: what is missing can be alerted on."""
    counts = catalogue.counts
    samples: Samples = {
        "catalogue_writes": {(): counts.writes},
        "catalogue_groups": {(): counts.groups},
        "catalogue_failed_writes": {(): counts.failed},
        "catalogue_queue": {(): catalogue.queued},
        "catalogue_write_seconds": {(): counts.wait_s},
        "catalogue_commit_seconds": {(): counts.commit_s},
    }
    try:
        states = await catalogue.read(sessions_table.count_by_state)
    except CatalogueError:
        samples["catalogue_up"] = {(): 0}
        return samples
    samples["catalogue_up"] = {(): 1}
    samples["sessions"] = by_label(Counter(states))
    return samples


async def from_storage(store: "Store") -> Samples:
    """One small question; who does not answer it soon is away."""
    up = False
    with trio.move_on_after(STORAGE_ANSWERS_S):
        up = await store.answers()
    return {"storage_up": {(): int(up)}}


async def from_jobs(catalogue: Catalogue, jobs: "Jobs", limit: int) -> Samples:
    """The queue. Of what has ended only the failed are counted: of the others there may be millions."""
    samples: Samples = {
        "workers": {(): jobs.workers},
        "workers_limit": {(): limit},
        "jobs_taken": {(): jobs.taken},
        "jobs_silent_seconds": {(): jobs.longest_silence_s()},
    }
    now = now_ms()
    try:
        depths, oldest = await catalogue.read(lambda cx: jobs_table.depths(cx, now))
    except CatalogueError:
        return samples
    samples["jobs"] = {(state, name): n for (state, name), n in sorted(depths.items())}
    samples["jobs_oldest_wait_seconds"] = {(): 0 if oldest is None else (now - oldest) / 1000}
    return samples


def from_process(host: str, generation: int, release: str, state_dir: Path) -> Samples:
    """This process and its disk. Two small files of /proc, one statvfs."""
    samples: Samples = {
        "build_info": {(host, str(generation), release, python_version()): 1},
        "up_since_timestamp_seconds": {(): _SERVED_SINCE},
        "process_cpu_seconds": {(): time.process_time()},
        "process_max_fds": {(): resource.getrlimit(resource.RLIMIT_NOFILE)[0]},
    }
    try:
        # proc(5): fields after the parenthesis begin with the third; 22 is the start in ticks
        # since boot, 24 the resident pages.
        stat = Path("/proc/self/stat").read_text().rpartition(")")[2].split()
        started = since_boot_s() - int(stat[19]) / os.sysconf("SC_CLK_TCK")
        samples["process_start_time_seconds"] = {(): round(time.time() - started, 1)}
        samples["process_resident_memory_bytes"] = {(): int(stat[21]) * os.sysconf("SC_PAGE_SIZE")}
        samples["process_open_fds"] = {(): len(os.listdir("/proc/self/fd")) - 1}
        disk = os.statvfs(state_dir)
        samples["state_free_bytes"] = {(): disk.f_bavail * disk.f_frsize}
        samples["state_size_bytes"] = {(): disk.f_blocks * disk.f_frsize}
    except OSError:
        pass  # no /proc, or the disk is gone: what cannot be told is left out
    return samples


def from_service(
    sessions: "Sessions", doors: "Server", duty: "Duty", streams: "LiveStreams"
) -> Samples:
    """What is there at this moment. One stat for each agent, a millisecond for some hundreds."""
    live, viewers = sessions.counts()
    lags = sessions.spool_lags()
    return {
        "instances": by_label(Counter(str(one["state"]) for one in duty.instances())),
        "sessions_owned": {(): len(sessions.owned_ids())},
        "agents_live": {(): live},
        "agents_limit": {(): sessions.max_live},
        "viewers": {(): viewers},
        "streams": {(): len(streams)},
        "connections": {(): doors.connections},
        "connections_limit": {(): doors.limit},
        "spool_lag_bytes": {(): sum(lags)},
        "spool_lag_max_bytes": {(): max(lags, default=0)},
        "sessions_stuck": {(): sessions.stuck()},
        "agents_silent_seconds": {(): sessions.longest_silence_s()},
    }
