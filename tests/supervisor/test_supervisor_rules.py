"""The supervisor's rules: when to start again, what silence is, what to run where."""

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from holdoverd.errors import SettingsError
from holdoverd.supervisor import words
from holdoverd.supervisor.health import (
    LOOK_S,
    READY_WITHIN_S,
    WATCHDOG_S,
    Health,
    parse_notify,
)
from holdoverd.supervisor.plan import MAX_RUNTIME_BYTES, Plan, UpOptions, make_plan
from holdoverd.supervisor.restart import (
    FIRST_DELAY_S,
    MAX_DELAY_READY_S,
    MAX_DELAY_S,
    MAX_FALSE_STARTS,
    SERVED_AFTER_S,
    WELL_AFTER_S,
    Restart,
)


def test_daemon_that_is_killed_again_and_again_is_back_within_a_second() -> None:
    restart = Restart()
    delays = [restart.died(1.0, was_ready=True) for _ in range(20)]
    assert delays[0] == FIRST_DELAY_S
    assert delays[-1] == MAX_DELAY_READY_S == 1.0


def test_daemon_that_is_killed_while_it_serves_is_started_again_at_once() -> None:
    restart = Restart()
    delays = [restart.died(SERVED_AFTER_S, was_ready=True) for _ in range(20)]
    assert set(delays) == {FIRST_DELAY_S}


def test_serving_for_a_moment_does_not_excuse_what_comes_after() -> None:
    restart = Restart()
    for _ in range(9):
        restart.died(1.0, was_ready=True)
    restart.died(SERVED_AFTER_S, was_ready=True)
    assert restart.died(1.0, was_ready=True) == MAX_DELAY_READY_S


def test_daemon_that_fails_to_start_after_it_once_did_waits_longer_and_is_not_given_up() -> None:
    restart = Restart()
    restart.died(1.0, was_ready=True)
    delays = [restart.died(0.1, was_ready=False) for _ in range(20)]
    assert delays[-1] == MAX_DELAY_S
    assert None not in delays


def test_daemon_that_was_well_for_long_is_started_again_at_once() -> None:
    restart = Restart()
    for _ in range(9):
        restart.died(1.0, was_ready=True)
    assert restart.died(WELL_AFTER_S, was_ready=True) == FIRST_DELAY_S


def test_daemon_that_never_worked_is_given_up() -> None:
    restart = Restart()
    delays = [restart.died(0.1, was_ready=False) for _ in range(MAX_FALSE_STARTS)]
    assert delays[-1] is None
    assert None not in delays[:-1]


def test_notification_is_read_line_by_line() -> None:
    fields = parse_notify(b"READY=1\nSTATUS=3 sessions = fine\njunk\n=x\nWATCHDOG=1")
    assert fields == {"READY": "1", "STATUS": "3 sessions = fine", "WATCHDOG": "1"}


@given(st.binary())
def test_no_datagram_raises(datagram: bytes) -> None:
    parse_notify(datagram)


def test_ready_is_reported_once() -> None:
    health = Health(started=0.0)
    assert health.heard({"READY": "1", "STATUS": "serving"}, 1.0)
    assert not health.heard({"READY": "1"}, 2.0)
    assert health.status == "serving"


def looks(health: Health, since: float, until: float) -> str | None:
    """What is found by looking as often as it is done, from `since` to `until`; the first reason."""
    now = since
    while now < until:
        now = min(now + LOOK_S, until)
        if (reason := health.overdue(now)) is not None:
            return reason
    return None


def test_daemon_that_does_not_become_ready_is_overdue() -> None:
    health = Health(started=100.0)
    assert health.check_at() == 100.0 + READY_WITHIN_S
    assert looks(health, 100.0, 99.0 + READY_WITHIN_S) is None
    assert health.overdue(100.0 + READY_WITHIN_S) == "was not ready after 30 s"


def test_daemon_that_falls_silent_is_overdue_and_each_beat_helps() -> None:
    health = Health(started=0.0)
    health.heard({"READY": "1"}, 1.0)
    assert looks(health, 0.0, 5.0) is None
    health.heard({"WATCHDOG": "1"}, 5.0)
    assert looks(health, 5.0, 4.9 + WATCHDOG_S) is None
    assert health.overdue(5.0 + WATCHDOG_S) == "has been silent for 10 s"
    health.heard({"WATCHDOG": "1"}, 15.5)
    assert health.overdue(15.9) is None
    assert health.check_at() == 15.5 + WATCHDOG_S


def test_daemon_that_never_beat_is_not_held_to_it() -> None:
    health = Health(started=0.0)
    health.heard({"READY": "1"}, 1.0)
    assert looks(health, 1.0, 1000.0) is None


@pytest.mark.parametrize("ready", [False, True])
@pytest.mark.parametrize("stood_s", [11.0, 60.0, 86400.0])
@pytest.mark.parametrize("before_s", [0.0, 2.5, 5.0])
def test_daemon_is_not_killed_for_time_in_which_nobody_looked(
    before_s: float, stood_s: float, ready: bool
) -> None:
    """Stopped by Ctrl-Z; the daemon's reports wait in the socket, and may be read after the look."""
    health = Health(started=0.0)
    if ready:
        health.heard({"READY": "1", "WATCHDOG": "1"}, 0.0)
    assert looks(health, 0.0, before_s) is None
    resumed = before_s + stood_s
    assert health.overdue(resumed) is None
    # From then on its time goes on where it was.
    left_s = (WATCHDOG_S if ready else READY_WITHIN_S) - before_s - LOOK_S
    assert looks(health, resumed, resumed + left_s - 0.1) is None
    assert looks(health, resumed + left_s - 0.1, resumed + left_s + 0.1) is not None


def test_a_report_read_before_the_late_look_counts_from_then() -> None:
    health = Health(started=0.0)
    health.heard({"READY": "1", "WATCHDOG": "1"}, 0.0)
    health.heard({"WATCHDOG": "1"}, 3600.0)
    assert health.overdue(3600.0) is None
    assert looks(health, 3600.0, 3599.9 + WATCHDOG_S) is None
    assert health.overdue(3600.0 + WATCHDOG_S) == "has been silent for 10 s"


@pytest.fixture
def env(tmp_path: Path) -> dict[str, str]:
    """A home of its own; the runtime folder elsewhere, since sockets' names must be short."""
    (tmp_path / "bin").mkdir()
    return {
        "HOME": str(tmp_path),
        "PATH": str(tmp_path / "bin"),
        "HOLDOVER_CONFIG_DIR": str(tmp_path / "etc"),
        "XDG_RUNTIME_DIR": "/run/user/0",
    }


def claude(folder: Path) -> str:
    program = folder / "claude"
    program.touch(mode=0o755)
    return str(program)


def test_demo_is_the_agent_where_there_is_no_claude(env: dict[str, str]) -> None:
    plan = make_plan(UpOptions(), env)
    assert (plan.agent, plan.agent_is_demo) == ("demo", True)
    assert plan.environment["HOLDOVER_SESSIONS_DEFAULT_AGENT"] == "demo"
    assert "no real agent" in welcome(plan)


def test_claude_is_the_agent_where_it_can_be_started(env: dict[str, str], tmp_path: Path) -> None:
    claude(tmp_path / "bin")
    plan = make_plan(UpOptions(), env)
    assert (plan.agent, plan.agent_is_demo) == ("claude", False)
    assert "demo" not in welcome(plan)


def test_agent_command_of_the_command_line_is_passed_on(
    env: dict[str, str], tmp_path: Path
) -> None:
    program = claude(tmp_path)
    plan = make_plan(UpOptions(agent_command=f"{program} --debug"), env)
    assert plan.agent == "claude"
    assert plan.settings.agents["claude"].command == (program, "--debug")
    with pytest.raises(SettingsError, match="--agent-command is empty"):
        make_plan(UpOptions(agent_command=" "), env)


def test_what_the_configuration_says_stands(env: dict[str, str], tmp_path: Path) -> None:
    claude(tmp_path / "bin")
    (tmp_path / "etc").mkdir()
    (tmp_path / "etc" / "holdover.toml").write_text(
        '[server]\nlisten = "127.0.0.1:9"\n[sessions]\ndefault_agent = "demo"\nroots = ["/opt"]\n'
    )
    plan = make_plan(UpOptions(), env)
    assert (plan.agent, plan.port) == ("demo", 9)
    assert plan.settings.sessions.roots == ("/opt",)
    assert make_plan(UpOptions(port=0), env).port == 0


def test_own_folders_are_allowed_as_working_folders(
    env: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path / "bin")
    roots = json.loads(make_plan(UpOptions(), env).environment["HOLDOVER_SESSIONS_ROOTS"])
    assert roots == [str(tmp_path), str(tmp_path / "bin")]
    monkeypatch.chdir("/")
    roots = json.loads(make_plan(UpOptions(), env).environment["HOLDOVER_SESSIONS_ROOTS"])
    assert roots == [str(tmp_path)]


def test_variables_meant_for_others_are_not_passed_on(env: dict[str, str]) -> None:
    strange = {"NOTIFY_SOCKET": "/x", "LISTEN_PID": "1", "HOLDOVER_TOKEN": "secret"}
    plan = make_plan(UpOptions(), env | strange)
    for passed in (plan.environment, plan.keeper_environment):
        assert not strange.keys() & passed.keys()


def test_a_daemon_may_keep_what_it_compiled_whatever_else_may(env: dict[str, str]) -> None:
    plan = make_plan(UpOptions(), env | {"PYTHONDONTWRITEBYTECODE": "1"})
    assert "PYTHONDONTWRITEBYTECODE" not in plan.environment
    assert plan.keeper_environment["PYTHONDONTWRITEBYTECODE"] == "1"


def test_folder_too_deep_for_sockets_is_named(env: dict[str, str]) -> None:
    deep = "/" + "x" * MAX_RUNTIME_BYTES
    with pytest.raises(SettingsError, match="too long for sockets"):
        make_plan(UpOptions(), env | {"HOLDOVER_RUNTIME_DIR": deep})
    make_plan(UpOptions(), env | {"HOLDOVER_RUNTIME_DIR": deep[:-1]})


def test_next_line_to_type_finds_this_supervisor(env: dict[str, str]) -> None:
    assert "_DIR=" not in make_plan(UpOptions(), env).command_prefix
    elsewhere = env | {"HOLDOVER_STATE_DIR": "/tmp/a b"}
    prefix = make_plan(UpOptions(), elsewhere).command_prefix
    assert prefix.startswith("HOLDOVER_STATE_DIR='/tmp/a b' ")
    assert "HOLDOVER_RUNTIME_DIR" not in prefix, "that folder brings it"
    prefix = make_plan(UpOptions(), elsewhere | {"HOLDOVER_RUNTIME_DIR": "/tmp/r"}).command_prefix
    assert prefix.startswith("HOLDOVER_STATE_DIR='/tmp/a b' HOLDOVER_RUNTIME_DIR=/tmp/r ")


def welcome(plan: Plan) -> str:
    return words.welcome(plan, address="http://127.0.0.1:1", token="hold_x", daemon_pid=7)


def test_welcome_names_address_login_next_line_and_what_is_not_protected(
    env: dict[str, str],
) -> None:
    text = welcome(make_plan(UpOptions(), env))
    for needed in ("http://127.0.0.1:1", "hold_x", 'session new --attach "hello"',
                   "Not protected here", "make install", "process 7"):  # fmt: skip
        assert needed in text


def test_stopping_tells_how_many_agents_go() -> None:
    assert words.stopping(0) == "Stopping."
    assert "the agent that runs" in words.stopping(1)
    assert "the 3 agents that run" in words.stopping(3)
