"""The skills page in a browser: what is there, many at once, versions, and marketplaces."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.live.up import Up, wait_until
from tests.needs import needs_browser
from tests.skills.make import image, skill
from tests.skills.test_plugins import BROKEN, index_of
from tests.web.conftest import picture
from tests.web.looks import faults

if TYPE_CHECKING:
    from playwright.sync_api import Page

pytestmark = [needs_browser, pytest.mark.slow]

NewPage = Callable[..., "Page"]


def know_market(up: Up, folder: Path) -> None:
    """A marketplace as Claude Code keeps it, of 500 entries."""
    (folder / ".claude-plugin").mkdir(parents=True)
    listed = {"name": "large", "owner": {"name": "x"}, "plugins": index_of(500)}
    (folder / ".claude-plugin/marketplace.json").write_text(json.dumps(listed))
    source = {"source": "directory", "path": str(folder)}
    known = {"large": {"source": source, "installLocation": str(folder)}}
    place = up.home / ".claude/plugins"
    place.mkdir(parents=True)
    (place / "known_marketplaces.json").write_text(json.dumps(known))


def test_twenty_are_installed_compared_updated_and_rolled_back(
    up: Up, new_page: NewPage, tmp_path: Path
) -> None:
    source = tmp_path / "source"
    for n in range(20):
        skill(source, f"s-{n:02}", f"Number {n}")
    know_market(up, tmp_path / "large")
    page = new_page()
    page.get_by_role("link", name="Skills").click()
    page.get_by_text("There are no skills yet.").wait_for()
    page.get_by_label("A folder, a .zip, a git URL or plugin@marketplace").fill(str(source))
    page.get_by_role("button", name="Install", exact=True).first.click()
    page.get_by_text("20 skills were changed.").wait_for()
    before = image(up.home / ".claude/skills")
    assert len({name.partition("/")[0] for name in before}) == 20

    for n in range(20):
        skill(source, f"s-{n:02}", f"Number {n}, better")
    row = page.get_by_role("listitem", name="s-07")
    row.get_by_role("button", name="Compare with source").click()
    page.get_by_label("Difference").get_by_text("+description: Number 7, better").wait_for()
    picture(page, "skills-light")

    # What runs programs is shown before it is trusted.
    (source / "s-19/run.sh").write_text("#!/bin/sh\n")
    page.get_by_label("All", exact=True).check()
    page.get_by_role("button", name="Update").click()
    asked = page.get_by_role("group", name="This can run programs on the server")
    asked.get_by_text("s-19/run.sh").wait_for()
    assert image(up.home / ".claude/skills") == before
    asked.get_by_role("button", name="I trust it").click()
    page.get_by_text("20 skills were changed.").wait_for()
    row.get_by_text("Number 7, better", exact=True).wait_for()
    assert "better" in (up.home / ".claude/skills/s-19/SKILL.md").read_text()

    page.get_by_label("All", exact=True).check()
    page.get_by_role("button", name="Roll back").click()
    row.get_by_text("Number 7", exact=True).wait_for()
    wait_until(lambda: image(up.home / ".claude/skills") == before, "all are as they were")

    page.get_by_label("Choose s-03").check()
    page.get_by_role("button", name="Disable").click()
    page.get_by_role("listitem", name="s-03").get_by_text("disabled").wait_for()

    markets = page.get_by_role("region", name="Marketplaces")
    markets.get_by_text(
        f"100 of {500 - len(BROKEN)}; {len(BROKEN)} broken entries left out"
    ).wait_for()
    markets.get_by_label("Search plugins").fill("number 481")
    markets.get_by_text("1 of 1;").wait_for()
    assert markets.get_by_role("listitem", name="p-481@large").is_visible()

    assert faults(page, "skills") == []


def test_a_projects_skills_are_shown_and_changed_where_its_session_leads(
    up: Up, new_page: NewPage, tmp_path: Path
) -> None:
    session = up.new_session("say hello")["id"]
    cwd = Path(up.session(session)["cwd"])
    skill(cwd / ".claude/skills", "of-project", "Knows this project")
    skill(tmp_path / "more", "another", "Comes later")
    page = new_page(session)
    page.get_by_role("button", name="Details").click()
    page.get_by_role("link", name="Skills here").click()
    page.get_by_role("listitem", name="of-project").get_by_text("Knows this project").wait_for()
    page.get_by_label("A folder, a .zip, a git URL or plugin@marketplace").fill(
        str(tmp_path / "more")
    )
    page.get_by_role("button", name="Install", exact=True).first.click()
    page.get_by_role("listitem", name="another").wait_for()
    assert (cwd / ".claude/skills/another/SKILL.md").exists()
    page.get_by_label("Choose another").check()
    page.get_by_role("button", name="Remove").click()
    wait_until(lambda: page.get_by_role("listitem", name="another").count() == 0, "it is gone")
    assert not (cwd / ".claude/skills/another").exists()
    assert (cwd / ".claude/skills/of-project/SKILL.md").exists()
    page.get_by_label("Folder of a project").fill("")
    page.get_by_role("button", name="Show").click()
    wait_until(lambda: page.get_by_role("listitem", name="of-project").count() == 0, "not here")
