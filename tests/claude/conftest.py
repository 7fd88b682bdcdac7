"""The real Claude Code, the scripted API that it speaks to, and a home of its own for each test.

Everything is on loopback; the key is a dummy.
"""

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from holdoverd.agents.presets import AgentSettings, build_launch
from tests.agents.driver import DEADLINE_S, AgentProcess
from tests.claude.install import LOCKS, InstallError, install

API = Path(__file__).with_name("api.py")
#: With these, nothing leaves the machine.
LOOPBACK_ENV = {
    "ANTHROPIC_API_KEY": "dummy",
    "DISABLE_TELEMETRY": "1",
    "DISABLE_ERROR_REPORTING": "1",
    "CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC": "1",
}


@pytest.fixture(scope="session", params=LOCKS, ids=["newest", "older"])
def claude_binary(request: pytest.FixtureRequest) -> Path:
    """The native program, of two versions; installed on first use, with npm and the network."""
    try:
        return install(request.param)
    except InstallError as error:
        pytest.skip(f"no Claude Code: {error}")


@pytest.fixture(scope="session")
def scripted_api() -> Iterator[str]:
    """The base URL of a scripted Messages API (tests/claude/api.py)."""
    server = subprocess.Popen(
        [sys.executable, str(API), "--port", "0"], stdout=subprocess.PIPE, text=True
    )
    assert server.stdout is not None
    line = server.stdout.readline()
    try:
        yield line.split()[-1]
    finally:
        server.terminate()
        server.wait(DEADLINE_S)
        server.stdout.close()


Start = Callable[..., AgentProcess]


@pytest.fixture
def claude_env(tmp_path: Path, scripted_api: str) -> dict[str, str]:
    """The environment for an agent with an empty home beneath `tmp_path`."""
    home = tmp_path / "home"
    home.mkdir()
    return {
        **LOOPBACK_ENV,
        "ANTHROPIC_BASE_URL": scripted_api,
        "HOME": str(home),
        "PATH": os.environ["PATH"],
    }


@pytest.fixture
def start(tmp_path: Path, claude_binary: Path, claude_env: dict[str, str]) -> Start:
    """Start Claude Code as the daemon does: ``start(session, resume=False, …)``."""
    agent = AgentSettings(name="claude", command=(str(claude_binary),), preset="claude")
    folder = tmp_path / "work"
    folder.mkdir()

    def run(session: str, *, resume: bool = False, **options: str) -> AgentProcess:
        launch = build_launch(agent, agent_session=session, resume=resume, **options)
        return AgentProcess(launch.argv, {**claude_env, **launch.env}, folder)

    return run
