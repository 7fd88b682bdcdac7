"""`holdover agent` for one's own `holdover up`: what is there, and a login that nobody else reads."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from tests.cli.conftest import Holdover

SECRET = "sk-ant-oat01-abcdef"


@pytest.fixture(autouse=True)
def own(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not the host's agents, should the tests run as root on a host."""
    monkeypatch.setattr("holdover.commands.agent.os.geteuid", lambda: 1000)


def listed(holdover: Holdover) -> dict[str, dict[str, object]]:
    lines = holdover("agent", "ls", "--json").out.splitlines()
    return {item["agent"]: item for item in map(json.loads, lines)}


def test_the_default_agent_is_named_and_one_that_cannot_start_has_a_remedy(
    holdover: Holdover, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(home))
    found = listed(holdover)
    assert [name for name, item in found.items() if item["default"]] == ["claude"]
    assert found["claude"]["program"] is None
    assert "`holdover agent install`" in str(found["claude"]["problem"])
    assert found["demo"]["problem"] is None
    text = holdover("agent", "ls")
    assert "cannot be started" in text.out
    assert "`holdover agent install`" in text.err


def test_an_installed_program_is_found_with_its_version(
    holdover: Holdover, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("XDG_DATA_HOME", raising=False)
    folder = home / ".local/share/holdover/agents"
    for version in ("2.1.9", "2.1.10"):
        program = folder / "claude" / version / "claude"
        program.parent.mkdir(parents=True)
        program.write_text("#!/bin/sh\n")
        program.chmod(0o755)
    (folder / "bin").mkdir()
    (folder / "bin/claude").symlink_to("../claude/2.1.9/claude")
    claude = listed(holdover)["claude"]
    assert claude["version"] == "2.1.9"
    assert claude["installed"] == ["2.1.9", "2.1.10"]
    assert claude["program"] == str(folder / "claude/2.1.9/claude")


def test_a_login_is_kept_for_the_user_alone_and_never_printed(
    holdover: Holdover, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("HOLDOVER_STATE_DIR", raising=False)
    done = holdover("agent", "login", stdin=SECRET + "\n")
    assert done.code == 0
    assert SECRET not in done.out + done.err
    file = home / ".local/state/holdover/credentials/login"
    assert file.read_text() == f"CLAUDE_CODE_OAUTH_TOKEN={SECRET}\n"
    assert file.stat().st_mode & 0o777 == 0o600
    assert file.parent.stat().st_mode & 0o777 == 0o700
    assert listed(holdover)["claude"]["login"] is True
    assert os.listdir(file.parent) == ["login"]
    assert holdover("agent", "login", "--remove").code == 0
    assert listed(holdover)["claude"]["login"] is False


@pytest.mark.parametrize(
    ("arguments", "given", "words"),
    [
        ((), "something\n", "--kind"),
        ((), "\n", "--kind"),
        (("--kind", "api-key"), "two words\n", "no token and no key"),
        (("--account", "alice"), SECRET, "Accounts are the host's"),
    ],
)
def test_what_is_no_login_is_misuse(
    holdover: Holdover, home: Path, arguments: tuple[str, ...], given: str, words: str
) -> None:
    done = holdover("agent", "login", *arguments, stdin=given)
    assert done.code == 2
    assert words in done.err
    assert not (home / ".local/state/holdover/credentials").exists()


def test_an_agent_that_nobody_knows_is_refused_by_name(holdover: Holdover) -> None:
    done = holdover("agent", "install", "cursor")
    assert done.code == 1
    assert "no agent 'cursor'" in done.err
