"""`holdover agent install` with the real npm and the real package."""

import subprocess
from pathlib import Path

import pytest

from holdoverd.agents import installing
from tests.claude.install import FOLDER, locked_version

pytestmark = [pytest.mark.claude, pytest.mark.slow]


def test_the_package_is_installed_and_its_program_runs(tmp_path: Path) -> None:
    version = locked_version(FOLDER)
    try:
        done = installing.install(tmp_path / "agents", f"claude@{version}")
    except installing.AgentInstallError as error:
        pytest.skip(f"no Claude Code: {error}")
    assert done.version == version
    said = subprocess.run(
        [tmp_path / "agents/bin/claude", "--version"],
        env={"HOME": str(tmp_path), "PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    ).stdout
    assert said.startswith(version)
    # Named exactly, it is used again without a word to anybody.
    assert installing.install(tmp_path / "agents", f"claude@{version}") == done
