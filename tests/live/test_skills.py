"""Skills under a real `holdover up`: the CLI, the doors, the helper, and kills in between."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.live.up import Up, holdover, running
from tests.skills.make import image, skill

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def up() -> Iterator[Up]:
    with tempfile.TemporaryDirectory(prefix="hs-") as folder, running(Path(folder)) as one:
        yield one


@pytest.fixture
def source(tmp_path: Path) -> Path:
    for n in range(20):
        skill(tmp_path / "source", f"s-{n:02}", f"Number {n}")
    return tmp_path / "source"


def test_the_command_line_from_installing_to_undoing(up: Up, source: Path) -> None:
    folder = up.home / ".claude/skills"
    ran = holdover(up, "skill", "add", str(source))
    assert ran.returncode == 1
    assert "holds 20 skills" in ran.stderr
    ran = holdover(up, "skill", "add", str(source), "s-0*")
    assert (ran.returncode, len(ran.stdout.splitlines())) == (0, 10), ran.stderr
    before = image(folder)
    listed = holdover(up, "skill", "ls").stdout
    assert "s-03" in listed
    assert "loaded" in listed
    skill(source, "s-03", "Better")
    ran = holdover(up, "skill", "diff", "s-03")
    assert "+description: Better" in ran.stdout
    assert "update" in holdover(up, "skill", "ls").stdout
    assert holdover(up, "skill", "pin", "s-04").returncode == 0
    ran = holdover(up, "skill", "update", "--all")
    assert ran.stdout.count("unchanged") == 8
    assert holdover(up, "skill", "update", "s-04").returncode == 5
    assert image(folder) != before
    assert holdover(up, "skill", "rollback", "s-03").returncode == 0
    assert image(folder) == before
    assert holdover(up, "skill", "disable", "s-0*").returncode == 0
    assert image(folder) == {}
    assert holdover(up, "skill", "enable", "--all").returncode == 0
    assert image(folder) == before
    (source / "s-05/run.sh").write_text("#!/bin/sh\n")
    ran = holdover(up, "skill", "update", "s-05")
    assert ran.returncode == 5
    assert "s-05/run.sh" in ran.stderr
    assert holdover(up, "skill", "update", "s-05", "--yes").returncode == 0
    assert holdover(up, "skill", "rm", "s-*").returncode == 0
    assert image(folder) == {}
    assert holdover(up, "skill", "diff", "nosuch").returncode == 3
    rows = up.call("GET", "/v1/audit?limit=200")["items"]
    acts = {(row["action"], row["subject"]) for row in rows}
    for action in ("installed", "updated", "rolled_back", "pinned", "disabled", "removed"):
        assert (f"skill.{action}", "s-03" if action != "pinned" else "s-04") in acts
    # What was asked stands there before what was done, refused or not.
    order = [row["action"] for row in reversed(rows) if row["action"].startswith("skill.")]
    assert order[:3] == ["skill.asked", "skill.asked", "skill.installed"]
    assert order[-11:] == ["skill.asked", *["skill.removed"] * 10]


def test_a_project_and_its_session_see_the_same_folder(up: Up, source: Path) -> None:
    project = up.home / "workspaces/p"
    project.mkdir(parents=True)
    body = {"source": str(source), "names": ["s-01"], "cwd": str(project)}
    up.call("POST", "/v1/skills", {**body, "scope": "project"})
    (item,) = up.call("GET", f"/v1/skills?scope=project&cwd={project}")["items"]
    assert item["path"] == str(project / ".claude/skills/s-01")
    status, answer = up.request("POST", "/v1/skills", {**body, "cwd": "/etc"})
    assert (status, answer["error"]["code"]) == (422, "unprocessable")
    assert "/etc" in answer["error"]["message"]
    assert up.request("POST", "/v1/skills", {"source": "x", "scope": "project"})[0] == 400
    assert up.request("POST", "/v1/skills/s-01/explode", {})[0] == 400


def test_skills_outlive_the_daemon(up: Up, source: Path) -> None:
    up.call("POST", "/v1/skills", {"source": str(source)})
    before, listed = image(up.home / ".claude"), up.call("GET", "/v1/skills")
    up.wait_new_daemon(up.kill_daemon())
    assert up.call("GET", "/v1/skills") == listed
    up.call("POST", "/v1/skills/batch", {"op": "disable", "names": ["*"]})
    up.wait_new_daemon(up.kill_daemon())
    up.call("POST", "/v1/skills/batch", {"op": "enable", "names": ["*"]})
    assert image(up.home / ".claude") == before
