"""Every metric, by name: the one place where it is named and explained.

Names carry their unit; what only ever grows ends in ``_total``. All numbers are those of the
instance that answers, unless the help says "host": after a deploy counters begin at zero again,
which `rate()` and `increase()` know how to read.
"""

from dataclasses import dataclass
from typing import Literal

from holdoverd.metrics.counts import Histogram

Value = float | Histogram
Samples = dict[str, dict[tuple[str, ...], Value]]
"""{metric: {values of its labels, in order: value}}; without labels the key is ``()``."""

PREFIX = "holdover_"


@dataclass(frozen=True, slots=True)
class Metric:
    """One row. `name` is without the prefix and, as Prometheus has it, without ``_total``."""

    name: str
    kind: Literal["counter", "gauge", "histogram"]
    help: str
    labels: tuple[str, ...] = ()

    @property
    def exposed(self) -> str:
        """The name that is asked for: ``holdover_ingest_lines_total``."""
        return f"{PREFIX}{self.name}{'_total' if self.kind == 'counter' else ''}"


# fmt: off
METRICS: tuple[Metric, ...] = (
    Metric("build_info", "gauge", "Always 1; which instance answers, and of which release.",
           ("host", "generation", "release", "python")),
    Metric("up_since_timestamp_seconds", "gauge", "When this process began to serve, draining included."),
    Metric("instances", "gauge", "Living instances of this host by state; one serves, others drain or are tried.",
           ("state",)),
    Metric("sessions", "gauge", "Sessions in the catalogue, of every host and owner, by state.", ("state",)),
    Metric("sessions_owned", "gauge", "Sessions that this instance serves; those at rest belong to nobody."),
    Metric("agents_live", "gauge", "Sessions of this instance that have an agent, or are getting one."),
    Metric("agents_limit", "gauge", "[sessions] max_live: beyond it a new agent is refused."),
    Metric("viewers", "gauge", "Who watches a session in this instance; each is a stream."),
    Metric("streams", "gauge", "WebSockets open in this instance."),
    Metric("connections", "gauge", "Connections open in this instance, WebSockets included."),
    Metric("connections_limit", "gauge", "[server] max_connections: beyond it a connection is answered 503."),
    Metric("connections_accepted", "counter", "Connections accepted.", ("door",)),
    Metric("connections_refused", "counter", "Connections answered 503 because there were too many."),
    Metric("http_answers", "counter", "HTTP answers by status; an opened WebSocket is none of them.", ("code",)),
    Metric("ingest_lines", "counter", "Lines read of what agents said."),
    Metric("ingest_bytes", "counter", "Bytes of these lines."),
    Metric("ingest_commits", "counter", "Transactions that stored what agents said."),
    Metric("spool_lag_bytes", "gauge", "What agents have said and this instance has not read, in all."),
    Metric("spool_lag_max_bytes", "gauge", "The same of the session that is furthest behind."),
    Metric("sessions_stuck", "gauge", "Sessions whose agent's words cannot be stored now; they wait in the spool."),
    Metric("agents_silent_seconds", "gauge",
           "The longest that an agent in a turn has said nothing; one that waits for a long tool does so, too."),
    Metric("catalogue_up", "gauge", "1 when the catalogue could be read for this answer, else 0."),
    Metric("catalogue_writes", "counter", "Writes that were stored or refused."),
    Metric("catalogue_groups", "counter", "Transactions that they went in together."),
    Metric("catalogue_failed_writes", "counter", "Writes that the database refused: full, locked, read-only, damaged."),
    Metric("catalogue_queue", "gauge", "Writes that wait for the writer."),
    Metric("catalogue_write_seconds", "histogram", "From queueing the oldest write of a transaction to its outcome."),
    Metric("catalogue_commit_seconds", "histogram", "The transaction alone, with its turn."),
    Metric("jobs", "gauge", "Jobs in the catalogue, of every host and owner: ready, running, or dead.",
           ("state", "processor")),
    Metric("jobs_oldest_wait_seconds", "gauge", "How long the job has waited that has been due longest; 0 when none waits."),
    Metric("workers", "gauge", "Workers of jobs that live on this host."),
    Metric("workers_limit", "gauge", "[jobs] max_workers: how many may."),
    Metric("jobs_taken", "counter", "Jobs taken from workers that ended without a word, and tried again or failed."),
    Metric("jobs_silent_seconds", "gauge", "The longest that the worker of a running job has said nothing."),
    Metric("storage_up", "gauge", "1 when storage answered within three seconds just now, else 0; none where there is none."),
    Metric("launches", "counter", "Agents started, or not.", ("outcome",)),
    Metric("agent_exits", "counter", "How agents ended: status 0, another status, a signal, out of memory, unknown.",
           ("how",)),
    Metric("adoptions", "counter", "Sessions adopted: after a crash, from a predecessor, or when first asked for."),
    Metric("session_defects", "counter", "Sessions lost by a defect in one of their tasks, and adopted anew."),
    Metric("sessions_handed", "counter", "Handovers of sessions: given, taken, or kept since it could not be then.",
           ("outcome",)),
    Metric("connections_handed", "counter", "Handovers of connections, those of sessions included.", ("outcome",)),
    Metric("viewers_behind", "counter", "Viewers closed 4008 because they could not keep up."),
    Metric("viewer_delta_drops", "counter", "How often a slow viewer was spared the deltas of a sentence."),
    Metric("loop_late_seconds", "gauge", "How late the last heartbeat came: what each task waits for its turn."),
    Metric("clock_steps", "counter", "How often the clock was set, by two seconds or more at once."),
    Metric("clock_step_seconds", "gauge", "By how much the last time, forwards or backwards."),
    Metric("state_free_bytes", "gauge", "Room on the disk of catalogue and spools, for the daemon's user."),
    Metric("state_size_bytes", "gauge", "The size of that disk."),
    Metric("process_cpu_seconds", "counter", "Processor time of this process, user and system."),
    Metric("process_resident_memory_bytes", "gauge", "What this process has in memory."),
    Metric("process_open_fds", "gauge", "Descriptors that it has open."),
    Metric("process_max_fds", "gauge", "How many it may."),
    Metric("process_start_time_seconds", "gauge", "When it was started: changes more often than deploys mean crashes."),
)
# fmt: on

BY_NAME = {metric.name: metric for metric in METRICS}


def check(samples: Samples) -> None:
    """A defect of ours where a sample has no row, or other labels than its row."""
    for name, values in samples.items():
        metric = BY_NAME.get(name)
        assert metric is not None, f"{name} has no row in METRICS"
        for labels in values:
            assert len(labels) == len(metric.labels), f"{name} has the labels {metric.labels}"
