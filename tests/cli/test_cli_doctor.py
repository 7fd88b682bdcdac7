"""What `holdover doctor` makes of facts, each with a remedy where something is wrong."""

from pathlib import Path
from typing import Any

import pytest

from holdover import health
from holdover.commands import doctor
from holdover.health import Finding

GIB = 1 << 30
STATUS = {"path": "/c.db", "schema": 4, "release_schema": 4, "wal_bytes": 0, "damage": []}


def levels(*found: Finding) -> list[str]:
    for one in found:
        assert bool(one.remedy) == (one.level in ("warning", "failed")), one
    return [one.level for one in found]


def test_a_sound_machine_has_nothing_to_say() -> None:
    found = [
        health.configuration(None, ["/etc/holdover/holdover.toml"]),
        health.daemon({"generation": 3, "release": "1.0"}, "", host=True),
        *health.instances([{"state": "serving", "generation": 3, "since_at": 0}], 10**12),
        *health.sockets({"holdover.socket": "active"}, serves=True),
        *health.failed_units([]),
        health.deploys({"state": "committed", "generation": 3, "release": "1.0"}),
        health.descriptors(65_536, connections=10_000, live=200),
        health.namespaces({"user.max_user_namespaces": 9, "kernel.unprivileged_userns_clone": 1}),
        *health.clock(True, 0.5),
        health.disk("/var", 90 * GIB, 100 * GIB, 50),
        health.database(STATUS, ""),
        health.storage("http://s", True, ""),
        *health.agents([{"agent": "demo", "default": True, "problem": None, "login": None}], ""),
    ]
    assert set(levels(*found)) == {"ok"}
    assert health.worst(found) == "ok"


@pytest.mark.parametrize(
    ("finding", "level", "word"),
    [
        (health.configuration("x.toml:3: unknown key", []), "failed", "config check"),
        (health.daemon(None, "cannot be reached", host=True), "failed", "holdover.target"),
        (health.daemon(None, "cannot be reached", host=False), "failed", "holdover up"),
        (health.sockets({"holdover.socket": "failed"}, serves=False)[0], "failed", "reset-failed"),
        (
            health.sockets({"holdover.socket": "inactive"}, serves=True)[0],
            "failed",
            "systemctl stop 'holdoverd@*.service'",
        ),
        (
            # No daemon holds this one: it is opened again while all of them go on.
            health.sockets({"holdover-s3.socket": "inactive"}, serves=True)[0],
            "failed",
            "`systemctl reset-failed holdover-s3.socket; systemctl start holdover-s3.socket`",
        ),
        (
            health.sockets(
                {"holdover.socket": "inactive", "holdover-admin.socket": "inactive"}, serves=False
            )[0],
            "failed",
            "`systemctl start holdover.target`",
        ),
        (health.failed_units(["holdover-storage.service"])[0], "failed", "journalctl"),
        (health.descriptors(1024, connections=10_000, live=200), "failed", "LimitNOFILE="),
        (health.namespaces({"user.max_user_namespaces": 0}), "warning", "=15000"),
        (health.namespaces({"kernel.unprivileged_userns_clone": 0}), "warning", "=1"),
        (health.clock(True, -900.0)[0], "failed", "NTP"),
        (health.clock(False, None)[0], "warning", "set-ntp"),
        (health.disk("/var", 3 * GIB, 100 * GIB, 50), "warning", "purge"),
        (health.disk("/var", 100 << 20, 100 * GIB, 50), "failed", "purge"),
        (health.disk("/var", 90 * GIB, 100 * GIB, 1), "warning", "purge"),
        (health.database(None, "disk I/O error"), "failed", "db restore"),
        (health.database(STATUS | {"damage": ["row 3"]}, ""), "failed", "db restore"),
        (health.database(STATUS | {"schema": 3}, ""), "warning", "db upgrade"),
        (health.database(STATUS | {"wal_bytes": GIB}, ""), "warning", "fuser"),
        (health.storage("http://s", False, "refused"), "failed", "holdover-s3.socket"),
        (
            health.deploys(
                {"state": "rolled back", "generation": 9, "release": "2", "reason": "r"}
            ),
            "warning",
            "holdover-deploy@9",
        ),
        (health.instances([], 0)[0], "failed", "holdover-boot"),
        (
            health.instances(
                [
                    {"state": "draining", "generation": 1, "since_at": 0, "sessions": 2},
                    {"state": "serving", "generation": 2, "since_at": 0, "sessions": 2},
                ],
                2 * health.DRAINS_FOR_MS,
            )[0],
            "warning",
            "drain --migrate",
        ),
        (health.restarts({"holdoverd@1.service": 1, "x": 0})[0], "warning", "reset-failed"),
        (health.stopped([(7, "python", "holdoverd@1.service")])[0], "failed", "-CONT 7"),
        (health.numbers({"holdover_catalogue_up": 0.0})[0], "failed", "PostgreSQL"),
        (health.numbers({"holdover_sessions_stuck": 2.0})[0], "failed", "fuser"),
        (health.numbers({"holdover_catalogue_failed_writes_total": 2.0})[0], "warning", "-p warn"),
        (health.numbers({"holdover_clock_steps_total": 1.0})[0], "warning", "set-ntp"),
        (
            health.numbers({'holdover_agent_exits_total{how="oom"}': 3.0})[0],
            "warning",
            "MemoryMax=",
        ),
        (health.numbers({"holdover_jobs_taken_total": 1.0})[0], "warning", "tried again"),
    ],
    ids=lambda value: value.what[:40] if isinstance(value, Finding) else "",
)
def test_what_is_wrong_comes_with_its_remedy(finding: Finding, level: str, word: str) -> None:
    assert levels(finding) == [level]
    assert word in finding.remedy


def test_a_host_that_somebody_stopped_is_one_finding_beside_what_failed() -> None:
    closed = {"holdover.socket": "inactive", "holdover-admin.socket": "inactive"}
    assert len(health.sockets({**closed, "holdover-s3.socket": "inactive"}, serves=False)) == 1
    found = health.sockets({**closed, "holdover-s3.socket": "failed"}, serves=False)
    assert [one.what.split()[0] for one in found] == ["Holdover", "holdover-s3.socket"]


def test_nothing_is_said_to_be_wrong_that_one_may_not_see() -> None:
    assert levels(health.daemon(None, "You may not", host=True, refused=True)) == ["skipped"]


def test_pages_that_nobody_read_are_not_called_sound() -> None:
    unread = {name: value for name, value in STATUS.items() if name != "damage"}
    assert "sound" not in health.database(unread, "").what
    assert "sound" in health.database(STATUS, "").what


def test_the_default_agent_matters_more_than_others() -> None:
    broken: dict[str, Any] = {"agent": "own", "problem": "not found; and advice", "login": None}
    (found,) = health.agents([broken | {"default": True}], "")
    assert levels(found) == ["failed"]
    assert found.what == "own cannot be started: not found"
    assert "[agents.own] command" in found.remedy
    (found,) = health.agents([broken | {"default": True, "login": False}], "")
    assert "holdover agent install claude" in found.remedy
    assert levels(*health.agents([broken | {"default": False}], "")) == ["warning"]
    loginless = {"agent": "claude", "default": True, "problem": None, "login": False}
    assert levels(*health.agents([loginless], "")) == ["warning"]


def test_what_cannot_be_found_out_is_no_failure() -> None:
    found = [
        *health.instances(None, 0),
        health.descriptors(None, connections=1, live=1),
        *health.clock(None, None),
        health.database(None, "run this as root", skipped=True),
        health.storage("", None, ""),
        *health.agents(None, "no daemon part"),
    ]
    assert set(levels(*found)) == {"skipped"}
    assert health.worst(found) == "skipped"


def test_a_deploy_that_was_taken_back_is_not_told_twice() -> None:
    assert levels(*health.failed_units(["holdover-deploy@9.service"])) == ["ok"]


def test_a_daemon_without_trouble_has_no_numbers_to_tell() -> None:
    text = (
        "# HELP holdover_catalogue_up 1 when it could be read.\n"
        "# TYPE holdover_catalogue_up gauge\n"
        "holdover_catalogue_up 1.0\n"
        "holdover_sessions_stuck 0.0\n"
        'holdover_agent_exits_total{how="status 0"} 4.0\n'
    )
    found = doctor.numbers_of(text)
    assert found['holdover_agent_exits_total{how="status 0"}'] == 4.0
    assert health.numbers(found) == []
    assert health.numbers({}) == []
    assert {one.area for one in health.numbers(found | {"holdover_catalogue_up": 0.0})} == {
        "database"
    }


def test_a_stopped_process_of_holdover_is_found_and_others_are_left_alone(tmp_path: Path) -> None:
    unit = "0::/holdover-agents.slice/holdover-agent-alice@1-2.service\n"
    for pid, name, state, cgroup in (
        (7, "odd) T (name", "T", unit),
        (8, "python", "S", unit),
        (9, "vim", "T", "0::/user.slice\n"),
    ):
        (tmp_path / str(pid)).mkdir()
        (tmp_path / str(pid) / "stat").write_text(f"{pid} ({name}) {state} 1 1 1\n")
        (tmp_path / str(pid) / "cgroup").write_text(cgroup)
    (tmp_path / "10").mkdir()  # ended between two looks
    found = list(doctor.stopped_in(tmp_path))
    assert found == [(7, "odd) T (name", "holdover-agent-alice@1-2.service")]
