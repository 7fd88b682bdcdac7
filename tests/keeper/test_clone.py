"""A repository in a new workspace: whole at the version asked for, or not at all."""

import os
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from holdoverd.errors import LaunchError
from holdoverd.keeper import clone
from tests.skills.test_hostile import git, git_server

pytestmark = pytest.mark.slow


@pytest.fixture
def served(tmp_path: Path) -> Iterator[tuple[str, str]]:
    """(base URL, first commit) of ``r.git`` and of ``empty.git``."""
    work, base = tmp_path / "work", tmp_path / "served"
    work.mkdir()
    base.mkdir()
    git(work, "init", "-q", "-b", "trunk")
    (work / "a.txt").write_text("one")
    (work / "below").mkdir()
    (work / "below" / "b").symlink_to("/etc/passwd")
    git(work, "add", ".")
    git(work, "commit", "-qm", "1")
    git(work, "tag", "v1")
    git(work, "branch", "side/x")
    first = git(work, "rev-parse", "HEAD")
    (work / "a.txt").write_text("two")
    git(work, "commit", "-qam", "2")
    subprocess.run(["git", "clone", "-q", "--bare", work, base / "r.git"], check=True)
    subprocess.run(["git", "init", "-q", "--bare", base / "empty.git"], check=True)
    with git_server(base) as url:
        yield url, first


def made(home: Path) -> list[str]:
    return sorted(os.listdir(home / "workspaces"))


def test_a_repository_is_cloned_at_what_was_asked_for(
    tmp_path: Path, served: tuple[str, str]
) -> None:
    base, first = served
    wanted: list[tuple[str | None, str, str]] = [
        (None, "two", "## trunk...origin/trunk"),
        ("trunk", "two", "## trunk...origin/trunk"),
        ("side/x", "one", "## side/x...origin/side/x"),
        ("v1", "one", "## HEAD (no branch)"),
        (first, "one", "## HEAD (no branch)"),
    ]
    for number, (ref, text, status) in enumerate(wanted):
        path = Path(clone.clone(f"s{number}", f"{base}/r.git", ref, str(tmp_path), lambda: False))
        assert path == tmp_path / "workspaces" / f"s{number}"
        assert (path / "a.txt").read_text() == text
        assert git(path, "status", "-sb") == status
        assert git(path, "remote", "get-url", "origin") == f"{base}/r.git"
        assert path.stat().st_mode & 0o777 == 0o700
    empty = clone.clone("empty", f"{base}/empty.git", None, str(tmp_path), lambda: False)
    assert os.listdir(empty) == [".git"]


def test_what_fails_leaves_nothing_behind(
    tmp_path: Path, served: tuple[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    base, _ = served

    def refused(path: str, ref: str | None = None, *, unwanted: bool = False) -> str:
        with pytest.raises(LaunchError) as error:
            clone.clone("s", base + path, ref, str(tmp_path), lambda: unwanted)
        assert error.value.code == "repo_refused"
        assert made(tmp_path) == []
        return str(error.value)

    assert "none.git" in refused("/none.git")
    assert "git says" in refused("/r.git", "no-such-branch")
    assert "git says" in refused("/r.git", "0" * 40)
    assert "name its folder as cwd" in refused("/r.git", unwanted=True)
    monkeypatch.setattr(clone, "MAX_TREE_BYTES", 2)
    assert "more than 2" in refused("/r.git")
    monkeypatch.setattr(clone, "MAX_LISTING_BYTES", 30)
    assert "git said more" in refused("/r.git")
    monkeypatch.setattr(clone, "CLONE_S", 0.0)
    begun = time.monotonic()
    assert "in time" in refused("/r.git")
    assert time.monotonic() - begun < 30


@pytest.mark.parametrize(
    "url",
    ["", "/etc", "./x", "file:///etc", "FILE:///etc", "ext::sh -c id", "-uhttps://h/x",
     "https://h/x\0y", "fd::3", "rsync://h/x", "ftp://h/x"],
)  # fmt: skip
def test_a_url_that_is_no_other_machines_repository_is_refused(url: str) -> None:
    with pytest.raises(LaunchError, match="is not cloned"):
        clone.check(url, None)


@pytest.mark.parametrize("ref", ["-x", "--upload-pack=id", "a b", "a..b", "", "x" * 201, "a\0b"])
def test_a_reference_that_is_none_is_refused(ref: str) -> None:
    with pytest.raises(LaunchError, match="no name of a branch"):
        clone.check("https://h/x", ref)


def test_a_password_in_a_url_is_neither_shown_nor_kept() -> None:
    assert clone.without_password("https://u:p%40q@h:8/x.git") == ("https://h:8/x.git", "u", "p@q")
    for url in ("https://u@h/x", "https://h/x", "u@h:x", "ssh://u@h/x"):
        assert clone.without_password(url) == (url, None, None)
    with pytest.raises(LaunchError) as error:
        clone.check("ftp://u:secret@h/x", None)
    assert "secret" not in str(error.value)
