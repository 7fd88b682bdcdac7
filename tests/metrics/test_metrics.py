"""What `/metrics` says: the table, the counting and the text; then a real daemon's."""

import math
import re
import shutil
import subprocess
import tempfile
from contextlib import ExitStack, closing
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import trio
import trio.testing
from prometheus_client.parser import text_string_to_metric_families

from holdoverd import main
from holdoverd.metrics import gather
from holdoverd.metrics.counts import Counts, Histogram
from holdoverd.metrics.exposition import CONTENT_TYPE_LATEST, render
from holdoverd.metrics.table import BY_NAME, METRICS, Samples
from holdoverd.sessions.following import exit_kind
from tests.live.up import _UnixConnection, running

RULES = Path(__file__).parents[2] / "packaging/prometheus/holdover.rules.yml"
_SUFFIXES = re.compile(r"_(bucket|sum|count)\Z")


def values_of(text: str) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    """{(sample, its labels): value}, read as Prometheus would."""
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


# --- rules ------------------------------------------------------------------------------------


def test_names_are_unique_and_carry_their_unit() -> None:
    names = [row.name for row in METRICS]
    assert len(set(names)) == len(names)
    for row in METRICS:
        assert re.fullmatch(r"[a-z][a-z_]*[a-z]", row.name)
        assert not row.name.endswith("_total"), f"{row.name}: the text adds it"
        assert row.help.endswith("."), row.name
        assert row.exposed.startswith("holdover_")


def test_a_histogram_counts_a_bound_as_below_it() -> None:
    histogram = Histogram((1.0, 2.0))
    for value in (0.5, 1.0, 1.5, 2.0, 9.0):
        histogram.observe(value)
    assert histogram.buckets == [2, 2, 1]
    assert histogram.cumulated() == [2, 4, 5]
    assert math.isclose(histogram.total, 14.0)


@pytest.mark.parametrize(
    ("outcome", "how"),
    [
        (None, "unknown"),
        ("nonsense", "unknown"),
        ('{"status":0,"signal":null,"oom":false}', "status_0"),
        ('{"status":3}', "status"),
        ('{"status":null,"signal":9}', "signal"),
        ('{"status":null,"signal":9,"oom":true}', "oom"),
    ],
)
def test_an_agents_end_in_a_word(outcome: str | None, how: str) -> None:
    assert exit_kind(outcome) == how


def test_the_text_is_what_prometheus_reads() -> None:
    histogram = Histogram((0.5,))
    histogram.observe(0.1)
    histogram.observe(4.0)
    samples: Samples = {
        "sessions": {("idle",): 3, ("working",): 1},
        "ingest_lines": {(): 12},
        "catalogue_commit_seconds": {(): histogram},
        "launches": {},
    }
    text = render(samples).decode()
    assert values_of(text) == {
        ("holdover_sessions", (("state", "idle"),)): 3,
        ("holdover_sessions", (("state", "working"),)): 1,
        ("holdover_ingest_lines_total", ()): 12,
        ("holdover_catalogue_commit_seconds_bucket", (("le", "0.5"),)): 1,
        ("holdover_catalogue_commit_seconds_bucket", (("le", "+Inf"),)): 2,
        ("holdover_catalogue_commit_seconds_count", ()): 2,
        ("holdover_catalogue_commit_seconds_sum", ()): 4.1,
    }
    assert f"# HELP holdover_sessions {BY_NAME['sessions'].help}" in text


@pytest.mark.parametrize("samples", [{"no_such": {(): 1}}, {"sessions": {(): 1}}])
def test_a_sample_without_a_row_is_a_defect(samples: Samples) -> None:
    with pytest.raises(AssertionError):
        render(samples)


def test_everything_counted_has_its_row() -> None:
    counts = Counts()
    counts.launches["started"] += 1
    counts.answers[200] += 1
    assert (
        values_of(render(gather.from_counts(counts)).decode())[
            "holdover_http_answers_total", (("code", "200"),)
        ]
        == 1
    )


def test_of_the_process_and_its_disk(tmp_path: Path) -> None:
    found = values_of(render(gather.from_process("h", 7, "1.2.3", tmp_path)).decode())
    (info,) = [dict(labels) for name, labels in found if name == "holdover_build_info"]
    assert (info["host"], info["generation"], info["release"]) == ("h", "7", "1.2.3")
    assert found["holdover_process_open_fds", ()] >= 3
    assert found["holdover_process_start_time_seconds", ()] > 1.6e9
    assert 0 < found["holdover_state_free_bytes", ()] <= found["holdover_state_size_bytes", ()]


def test_alert_rules_ask_for_metrics_that_exist() -> None:
    exposed = {row.exposed: row.kind for row in METRICS}
    asked = set(re.findall(r"\bholdover_[a-z_]+", RULES.read_text()))
    assert len(asked) > 15
    for name in asked:
        base = _SUFFIXES.sub("", name)
        assert name in exposed or exposed.get(base) == "histogram", name


def test_every_alert_says_what_to_do() -> None:
    alerts = RULES.read_text().split("- alert: ")[1:]
    assert len(alerts) >= 10
    for alert in alerts:
        assert all(part in alert for part in ("summary: ", "runbook: ", "severity: ")), alert


@pytest.mark.skipif(shutil.which("promtool") is None, reason="needs promtool (Debian: prometheus)")
def test_alert_rules_are_prometheus_own() -> None:
    subprocess.run(["promtool", "check", "rules", RULES], check=True)


async def test_a_clock_that_is_set_is_counted_and_one_that_drifts_is_not(
    monkeypatch: pytest.MonkeyPatch, autojump_clock: trio.testing.MockClock
) -> None:
    """A beat each five seconds: an hour forwards, then back, then on by half a second each."""
    offsets = iter([0.0, 0.5, 3600.5, 3600.5, 0.5, *(0.5 * n for n in range(1, 100))])
    monkeypatch.setattr(main, "clock_offset", lambda: next(offsets))
    counts = Counts()
    sessions = SimpleNamespace(counts=lambda: (0, 0))
    parts: list[Any] = [
        sessions, SimpleNamespace(connections=0), SimpleNamespace(role=SimpleNamespace(state="x")),
    ]  # fmt: skip
    seen = []
    async with trio.open_nursery() as nursery:
        nursery.start_soon(main.heartbeat, *parts, counts)
        await trio.sleep(main.HEARTBEAT_S / 2)
        for _ in range(20):
            seen.append((counts.clock_steps, counts.clock_step_s))
            await trio.sleep(main.HEARTBEAT_S)
        nursery.cancel_scope.cancel()
    assert seen[:5] == [(0, 0.0), (0, 0.0), (1, 3600.0), (1, 3600.0), (2, -3600.0)]
    assert seen[-1] == (2, -3600.0)


async def test_storage_that_says_nothing_is_away_before_the_scrape_is_over(
    autojump_clock: trio.testing.MockClock,
) -> None:
    for answers, value in (
        (trio.sleep_forever, 0),
        (lambda: _soon(True), 1),
        (lambda: _soon(False), 0),
    ):
        store: Any = SimpleNamespace(answers=answers)
        assert await gather.from_storage(store) == {"storage_up": {(): value}}


async def _soon(answer: bool) -> bool:
    await trio.sleep(1)
    return answer


# --- a real daemon ----------------------------------------------------------------------------


@pytest.mark.slow
def test_a_daemon_tells_what_it_did() -> None:
    with ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="holdover-"))
        up = stack.enter_context(running(Path(folder)))
        session = up.new_session("hello")["id"]
        up.wait_state(session, "idle")
        connection = stack.enter_context(closing(_UnixConnection(up.admin_socket, 30)))
        connection.request("GET", "/metrics")
        answer = connection.getresponse()
        assert (answer.status, answer.getheader("Content-Type")) == (200, CONTENT_TYPE_LATEST)
        found = values_of(answer.read().decode())
        assert found["holdover_sessions", (("state", "idle"),)] == 1
        assert found["holdover_agents_live", ()] == 1
        assert found["holdover_launches_total", (("outcome", "started"),)] == 1
        assert found["holdover_ingest_lines_total", ()] > 3
        assert found["holdover_ingest_bytes_total", ()] > 300
        assert found["holdover_spool_lag_bytes", ()] == 0
        assert found["holdover_jobs_oldest_wait_seconds", ()] == 0
        assert found["holdover_workers", ()] == 0
        assert found["holdover_catalogue_up", ()] == 1
        assert found["holdover_clock_steps_total", ()] == 0
        assert found["holdover_agents_silent_seconds", ()] == 0
        assert found["holdover_workers_limit", ()] == 4
        assert found["holdover_instances", (("state", "serving"),)] == 1
        assert found["holdover_catalogue_commit_seconds_count", ()] > 3
        assert (
            found["holdover_catalogue_writes_total", ()]
            >= found["holdover_catalogue_groups_total", ()]
        )
        assert found["holdover_connections_accepted_total", (("door", "admin"),)] > 1
