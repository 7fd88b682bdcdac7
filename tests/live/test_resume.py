"""Resuming: many at once, and all that were cut off."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.live.up import Up, running, wait_until

pytestmark = pytest.mark.slow

AT_ONCE = 50


@pytest.fixture(scope="module")
def up() -> Iterator[Up]:
    with tempfile.TemporaryDirectory(prefix="hr") as folder, running(Path(folder)) as up:
        yield up


def agents(session: str) -> list[int]:
    """Processes that run the demo for this session."""
    found = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdecimal():
            continue
        try:
            arguments = (entry / "cmdline").read_bytes().split(b"\0")
            environ = (entry / "environ").read_bytes().split(b"\0")
        except OSError:
            continue
        if b"holdoverd.demo" in arguments and f"HOLDOVER_SESSION_ID={session}".encode() in environ:
            found.append(int(entry.name))
    return found


def cut(up: Up) -> str:
    """A session whose agent was killed in mid-turn."""
    session: str = up.new_session("stream 3000 rate 5")["id"]
    up.wait_state(session, "working")
    wait_until(lambda: agents(session), "the agent runs")
    for pid in agents(session):
        os.kill(pid, signal.SIGKILL)
    up.wait_state(session, "dormant")
    return session


def test_fifty_resumes_at_once_start_one_agent(up: Up) -> None:
    session = cut(up)
    with ThreadPoolExecutor(AT_ONCE) as pool:
        answers = list(
            pool.map(
                lambda _: up.request("POST", f"/v1/sessions/{session}/resume", {}), range(AT_ONCE)
            )
        )
    assert {status for status, _ in answers} == {202}
    up.wait_state(session, "idle")
    assert len(agents(session)) == 1
    codes = [m["body"]["code"] for m in up.log(session) if m["kind"] == "notice"]
    assert codes == ["agent_exited", "resumed"]


def test_all_that_were_cut_off_are_listed_and_go_on_where_they_were(up: Up) -> None:
    first, second = cut(up), cut(up)
    whole: str = up.new_session("hello")["id"]
    up.wait_state(whole, "idle")
    for session in (first, second):
        assert up.session(session)["turn_cut"] == "agent"
    assert up.session(whole)["turn_cut"] is None

    def holdover(*arguments: str) -> str:
        return subprocess.run(
            [sys.executable, "-m", "holdover", *arguments],
            env={
                **os.environ,
                "HOLDOVER_RUNTIME_DIR": str(up.runtime),
                "PYTHONPATH": os.pathsep.join(sys.path),
            },
            capture_output=True,
            text=True,
            check=True,
        ).stdout

    listed = [line for line in holdover("session", "ls").splitlines() if ", cut" in line]
    assert {line.split()[0] for line in listed} == {first, second}
    done = holdover("session", "resume", "--all", "--json").splitlines()
    assert {json.loads(line)["id"] for line in done} == {first, second}
    for session in (first, second):
        up.wait_state(session, "idle")
        wait_until(
            lambda one=session: "I was cut off, and go on." in json.dumps(up.log(one)),
            "the turn goes on by itself",
        )
        assert up.session(session)["turn_cut"] is None
    # A prompt is something newer to say: then the old turn is left alone.
    third = cut(up)
    up.prompt(third, "say something else")
    up.wait_state(third, "idle")
    assert "something else" in json.dumps(up.log(third))
    assert "I was cut off" not in json.dumps(up.log(third))
