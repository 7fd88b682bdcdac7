"""Deploys under a real `holdover up`: a terminal in another window, a viewer that stays."""

import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import trio

from holdoverd.deploy.uphost import ask
from tests.live.kills import LineWatcher, agent_pids
from tests.live.up import Up, holdover, running, wait_until

pytestmark = pytest.mark.slow

SECONDS = 60


@pytest.fixture
def up() -> Iterator[Up]:
    with tempfile.TemporaryDirectory(prefix="hu-") as folder:
        env = {"HOLDOVER_DEPLOY_BAKE_S": "1", "HOLDOVER_DRAIN_MODE": "migrate"}
        with running(Path(folder), **env) as one:
            yield one


def catches_term(pid: int) -> bool:
    """Whether a process has a handler for SIGTERM; proc(5), SigCgt."""
    status = Path(f"/proc/{pid}/status").read_text()
    (mask,) = (line.split()[1] for line in status.splitlines() if line.startswith("SigCgt:"))
    return bool(int(mask, 16) & 1 << (signal.SIGTERM - 1))


def broken_release(folder: Path) -> Path:
    """An environment of its own whose daemon answers `/healthz` wrongly."""
    site = folder / "site"
    site.mkdir(parents=True)
    (folder / "bin").mkdir()
    (site / "sitecustomize.py").write_text(
        "import sys\n"
        "if '-m' in sys.orig_argv and 'holdoverd' in sys.orig_argv:\n"
        "    from holdoverd import main\n"
        "    main.__version__ = '9.9.9'\n"
    )
    python = folder / "bin" / "python"
    python.write_text(f'#!/bin/sh\nPYTHONPATH="{site}" exec "{sys.executable}" "$@"\n')
    python.chmod(0o755)
    return folder


async def test_a_stream_goes_on_over_a_deploy_and_a_rollback(up: Up) -> None:
    session = up.new_session(f"lines {20 * SECONDS} rate 20 size 200")["id"]
    agent = await trio.to_thread.run_sync(
        wait_until, lambda: agent_pids(up, session), "the agent runs"
    )
    watcher = LineWatcher(up.admin_socket, session)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(watcher.run)
        await watcher.wait(lambda w: w.lines > 5, SECONDS)
        done = await trio.to_thread.run_sync(holdover, up, "deploy")
        assert done.returncode == 0, done.stderr
        assert "is permanent" in done.stderr
        had = watcher.lines
        await watcher.wait(lambda w: w.lines > had + 5, SECONDS)
        view = up.session(session)
        assert view["generation"] == 2
        assert (agent_pids(up, session), watcher.closes) == (agent, [])
        refused = await trio.to_thread.run_sync(holdover, up, "rollback")
        assert refused.returncode == 1
        assert "No earlier release" in refused.stderr
        nursery.cancel_scope.cancel()
    # The first generation has left; what is kept running is the second.
    wait_until(lambda: ask(up.runtime, "living") == [2], "the first generation has left")
    old = up.kill_daemon()
    up.wait_new_daemon(old)
    assert up.call("GET", "/healthz")["generation"] == 2


def test_a_changed_configuration_is_taken_up_without_closing_anything(
    up: Up, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = up.folder / "config"
    monkeypatch.setenv("HOLDOVER_CONFIG_DIR", str(config))
    config.mkdir()
    written = config / "holdover.toml"
    written.write_text("[sessions]\nmax_lives = 3\n")
    refused = holdover(up, "config", "apply")
    assert refused.returncode == 1
    assert f"{written}:2" in refused.stderr
    assert up.call("GET", "/healthz")["generation"] == 1

    assert up.request("POST", "/v1/sessions", {"agent": "other"})[0] == 422
    written.write_text('[agents.other]\npreset = "demo"\n')
    done = holdover(up, "config", "apply")
    assert done.returncode == 0, done.stderr
    assert up.call("GET", "/healthz")["generation"] == 2
    assert up.call("POST", "/v1/sessions", {"agent": "other"})["agent"] == "other"


def test_a_broken_release_is_taken_back_and_status_says_why(up: Up, tmp_path: Path) -> None:
    folder = broken_release(tmp_path / "broken")
    done = holdover(up, "deploy", str(folder))
    assert done.returncode == 1
    assert "was taken back: /healthz says generation 2, release 9.9.9" in done.stderr
    assert up.call("GET", "/healthz")["generation"] == 1
    assert "rolled back" in holdover(up, "status").stdout
    assert [i["generation"] for i in up.call("GET", "/v1/admin/instances")["items"]] == [1]
    assert "no environment" in holdover(up, "deploy", str(tmp_path)).stderr


def test_a_deploy_that_is_killed_goes_on_and_one_told_to_stop_takes_itself_back(up: Up) -> None:
    deploying = subprocess.Popen(
        [sys.executable, "-m", "holdover", "deploy"],
        env={**os.environ, "HOLDOVER_RUNTIME_DIR": str(up.runtime)},
        stderr=subprocess.PIPE,
        text=True,
    )

    def deploy_pid() -> int | None:
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit():
                try:
                    words = (entry / "cmdline").read_bytes().split(b"\0")
                    parent = (entry / "stat").read_text().rsplit(")", 1)[1].split()[1]
                except OSError:
                    continue
                if b"holdoverd.deploy" in words and int(parent) == up.process.pid:
                    return int(entry.name)
        return None

    first = wait_until(deploy_pid, "the deploy runs")
    os.kill(first, signal.SIGKILL)
    second = wait_until(
        lambda: pid if (pid := deploy_pid()) not in (None, first) else None, "it runs again"
    )
    wait_until(lambda: catches_term(second), "it can be told to stop")
    os.kill(second, signal.SIGTERM)
    _, said = deploying.communicate(timeout=120)
    assert deploying.returncode == 1
    assert "taken back: the deploy was told to stop" in said
    assert up.call("GET", "/healthz")["generation"] == 1


def test_a_rehearsal_loses_nothing_and_leaves_nothing_behind(up: Up) -> None:
    done = holdover(up, "rehearse", "--sessions", "3")
    assert done.returncode == 0, done.stderr
    assert "is permanent" in done.stderr
    told = dict(line.split(": ", 1) for line in done.stdout.splitlines() if ": lost" in line)
    assert set(told) == {"left alone", "deploy", "kill -9"}
    for phase in ("left alone", "deploy"):
        assert told[phase].startswith("lost 0, repeated 0, closed 0, "), done.stdout
    assert told["kill -9"].startswith("lost 0, repeated 0, closed 3, "), done.stdout
    wait_until(lambda: not up.call("GET", "/v1/sessions")["items"], "the sessions are removed")


def test_the_doctor_knows_what_up_has_decided(up: Up) -> None:
    """The default agent is the demo here, and storage is not run: neither is a mistake."""
    done = holdover(up, "doctor", "--json", "--quick")
    found = {(item["area"], item["level"]) for item in map(json.loads, done.stdout.splitlines())}
    assert not [area for area, level in found if level == "failed"], done.stdout
    assert ("storage", "skipped") in found
