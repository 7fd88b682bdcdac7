"""Changes are whole or not at all: for twenty at once, and whenever the helper is killed."""

from __future__ import annotations

import json
import os
import shutil
import signal
import time
from pathlib import Path
from typing import Any

import pytest

from holdoverd.skills import changes, helper
from tests.skills.make import image, skill

pytestmark = pytest.mark.slow

ENV = {"PATH": os.environ["PATH"]}


def ask(home: Path, op: str, *names: str, **request: Any) -> Any:
    """The answer, which is a success."""
    body = {"op": op, **({"names": list(names)} if names else {}), **request}
    answer = helper.answer(body, str(home), ENV)
    assert answer["ok"], answer
    return answer


def refused(home: Path, op: str, *names: str, **request: Any) -> Any:
    body = {"op": op, **({"names": list(names)} if names else {}), **request}
    answer = helper.answer(body, str(home), ENV)
    assert not answer["ok"], answer
    return answer["error"]


@pytest.fixture
def source(tmp_path: Path) -> Path:
    for n in range(20):
        skill(tmp_path / "source", f"s-{n:02}", f"Number {n}")
    return tmp_path / "source"


@pytest.fixture
def home(tmp_path: Path) -> Path:
    made = tmp_path / "home"
    made.mkdir()
    return made


def skills_of(home: Path) -> dict[str, str]:
    return image(home / ".claude")


def state_of(home: Path) -> Any:
    """The record, without the times in it."""
    state = json.loads((home / changes.PLACE / "state.json").read_text())
    for records in state["skills"].values():
        for record in records.values():
            record["installed_at"] = None
            record.pop("removed_at", None)
    return state


@pytest.mark.parametrize("breaking", ["front matter", "link", "name"])
def test_of_twenty_with_one_broken_none_is_installed(
    home: Path, source: Path, breaking: str
) -> None:
    skill(home / ".claude/skills", "by-hand", "Mine")
    if breaking == "front matter":
        (source / "s-13/SKILL.md").write_text("---\nname: s-13\n---\n")
    elif breaking == "link":
        (source / "s-13/out").symlink_to("/etc/passwd")
    else:
        (source / "s-13").rename(source / "S 13")
    before = image(home)
    error = refused(home, "add", source=str(source), trust=True)
    assert error["code"] == "refused"
    assert "13" in error["message"]
    assert image(home) == before


def test_of_twenty_updates_with_one_broken_none_is_done(home: Path, source: Path) -> None:
    ask(home, "add", source=str(source))
    before, state = skills_of(home), state_of(home)
    for n in range(20):
        skill(source, f"s-{n:02}", f"Number {n}, better")
    (source / "s-07/SKILL.md").write_text("broken")
    assert "s-07" in refused(home, "update", "*")["message"]
    assert (skills_of(home), state_of(home)) == (before, state)
    skill(source, "s-07", "Mended")
    changed = ask(home, "update", "*")["changed"]
    assert [one["changed"] for one in changed] == [True] * 20
    begun = time.monotonic()
    ask(home, "rollback", "*")
    assert time.monotonic() - begun < 6, "three times the two seconds it may take"
    assert skills_of(home) == before


def test_a_skill_made_by_hand_is_not_replaced_unasked_and_can_be_had_back(
    home: Path, source: Path
) -> None:
    skill(home / ".claude/skills", "s-03", "By hand")
    before = skills_of(home)
    error = refused(home, "add", source=str(source))
    assert error["code"] == "conflict"
    assert "'s-03'" in error["message"]
    assert skills_of(home) == before
    ask(home, "add", source=str(source), replace=True)
    assert "Number 3" in (home / ".claude/skills/s-03/SKILL.md").read_text()
    ask(home, "rollback", "s-03")
    assert "By hand" in (home / ".claude/skills/s-03/SKILL.md").read_text()


def test_what_an_agent_edited_is_kept_before_it_is_updated(home: Path, source: Path) -> None:
    ask(home, "add", "s-00", source=str(source))
    edited = home / ".claude/skills/s-00/SKILL.md"
    edited.write_text(edited.read_text() + "An agent learnt this.\n")
    (item,) = ask(home, "list")["items"]
    assert item["modified"]
    skill(source, "s-00", "Better")
    ask(home, "update", "s-00")
    assert "learnt" not in edited.read_text()
    ask(home, "rollback", "s-00")
    assert "learnt" in edited.read_text()
    ask(home, "rollback", "s-00")
    assert edited.read_text() == "---\nname: s-00\ndescription: Number 0\n---\nDo it.\n"
    assert refused(home, "rollback", "s-00")["code"] == "conflict"
    (item,) = ask(home, "list")["items"]
    ask(home, "rollback", "s-00", to=item["versions"][-1][:10])
    assert "Better" in edited.read_text()


def test_pinned_ones_stay_whatever_is_updated(home: Path, source: Path) -> None:
    ask(home, "add", source=str(source))
    ask(home, "pin", "s-0*")
    for n in range(20):
        skill(source, f"s-{n:02}", "Better")
    changed = ask(home, "update", "*")["changed"]
    assert [one["name"] for one in changed if one["changed"]] == [f"s-{n}" for n in range(10, 20)]
    assert "pinned" in refused(home, "update", "s-00")["message"]
    ask(home, "unpin", "s-00")
    assert ask(home, "update", "s-00")["changed"][0]["changed"]


def test_disabled_and_removed_ones_come_back_as_they_were(home: Path, source: Path) -> None:
    skill(home / ".claude/skills", "by-hand", "Mine")
    ask(home, "add", source=str(source))
    before = skills_of(home)
    ask(home, "disable", "s-1*", "by-hand")
    assert len(list((home / ".claude/skills").iterdir())) == 10
    listed = {item["name"]: item for item in ask(home, "list")["items"]}
    assert not listed["s-10"]["enabled"]
    assert listed["by-hand"]["description"] == "Mine"
    ask(home, "enable", "*")
    assert skills_of(home) == before
    ask(home, "remove", "by-hand", "s-00")
    assert {"by-hand", "s-00"}.isdisjoint(item["name"] for item in ask(home, "list")["items"])
    assert "was removed" in refused(home, "enable", "s-00")["message"]
    ask(home, "rollback", "by-hand", "s-00")
    assert skills_of(home) == before


def test_what_runs_is_named_before_it_is_trusted(home: Path, source: Path) -> None:
    (source / "s-00/go.sh").write_text("#!/bin/sh\n")
    (source / "s-01/tool").write_bytes(b"\x7fELF")
    (source / "s-02/plain").write_text("x")
    (source / "s-02/plain").chmod(0o755)
    skill(source, "s-03", body="Look: !`id`\n")
    (source / "s-04/SKILL.md").write_text(
        "---\nname: s-04\ndescription: x\nallowed-tools: Bash\nhooks:\n  Stop:\n    - x\n---\n"
    )
    error = refused(home, "add", source=str(source))
    assert error["code"] == "untrusted"
    said = error["details"]["executables"]
    assert len(said) == 6
    for wanted in (
        "s-00/go.sh",
        "s-01/tool",
        "s-02/plain",
        "!`…`",
        "hooks",
        "without asking: Bash",
    ):
        assert any(wanted in line for line in said), wanted
    ask(home, "add", source=str(source), trust=True)
    assert os.access(home / ".claude/skills/s-02/plain", os.X_OK)
    # An update is looked at again, where it changes anything.
    ask(home, "update", "*")
    (source / "s-00/go.sh").write_text("#!/bin/sh\nid\n")
    assert refused(home, "update", "*")["code"] == "untrusted"


def test_a_diff_says_what_an_update_would_change(home: Path, source: Path) -> None:
    ask(home, "add", "s-00", source=str(source))
    skill(source, "s-00", "Better")
    (source / "s-00/more.md").write_text("more\n")
    answer = ask(home, "diff", "s-00")
    assert [(file["path"], file["change"]) for file in answer["files"]] == [
        ("SKILL.md", "changed"),
        ("more.md", "added"),
    ]
    assert "-description: Number 0\n+description: Better" in answer["files"][0]["diff"]
    (item,) = ask(home, "list")["items"]
    assert item["update"] == answer["to"]
    assert answer["from"] == item["version"]


def test_a_project_has_skills_of_its_own(home: Path, source: Path) -> None:
    project = home / "workspaces/p"
    project.mkdir(parents=True)
    ask(home, "add", "s-00", source=str(source), scope="project", cwd=str(project), roots=[])
    assert (project / ".claude/skills/s-00/SKILL.md").exists()
    assert not (home / ".claude/skills").exists()
    assert ask(home, "list")["items"] == []
    (item,) = ask(home, "list", cwd=str(project), roots=[])["items"]
    assert (item["scope"], item["effective"]) == ("project", True)
    error = refused(home, "add", source=str(source), scope="project", cwd="/etc", roots=[])
    assert error["code"] == "cwd_outside"


# --- killed at every step -----------------------------------------------------------------------


def victim(home: Path, request: dict[str, Any], at: int) -> int:
    """Have a process of its own do it and be killed at the step `at`; -1: never.

    Returns how many steps it took, if it came to an end.
    """
    steps = 0

    def observe(step: str) -> None:
        nonlocal steps
        if steps == at:
            os.kill(os.getpid(), signal.SIGKILL)
        steps += 1

    child = os.fork()
    if child == 0:
        answer = helper.answer(request, str(home), ENV, observe)
        os._exit(steps if answer["ok"] and steps < 200 else 255)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if at < 0:
        assert 6 < status < 200
    else:
        assert status == -signal.SIGKILL
    return status


@pytest.mark.parametrize("op", ["add", "update", "rollback", "remove"])
def test_a_kill_at_every_step_leaves_the_old_state_or_the_new(
    tmp_path: Path, home: Path, source: Path, op: str
) -> None:
    """Two that are there, one by hand, one new: each way of changing a folder is among them."""
    for n in range(3, 20):
        shutil.rmtree(source / f"s-{n:02}")
    request: dict[str, Any] = {"op": op, "names": ["s-*"]}
    if op == "add":
        skill(home / ".claude/skills", "s-01", "By hand")
        request = {"op": op, "source": str(source), "replace": True}
    else:
        ask(home, "add", source=str(source))
    for n in range(3):
        skill(source, f"s-{n:02}", "Better")
    if op == "rollback":
        ask(home, "update", "*")
    elif op == "add":
        ask(home, "list")
    before = (skills_of(home), state_of(home) if op != "add" else None)
    pristine = tmp_path / "pristine"
    shutil.copytree(home, pristine, symlinks=True)
    steps = victim(home, request, -1)
    after = (skills_of(home), state_of(home))
    seen = set()
    for at in range(steps):
        shutil.rmtree(home)
        shutil.copytree(pristine, home, symlinks=True)
        victim(home, request, at)
        changes.recover(str(home))
        has_state = (home / changes.PLACE / "state.json").exists()
        found = (skills_of(home), state_of(home) if has_state else None)
        assert found in (before, after), f"step {at}"
        seen.add(found == after)
        assert not (home / changes.PLACE / "journal.json").exists()
        # And it can be done all the same.
        if found == before:
            ask(home, **request)
            assert skills_of(home) == after[0]
    assert seen == {True, False}
