"""Sources that mean harm: refused by name, and nothing is written anywhere."""

from __future__ import annotations

import contextlib
import http.server
import os
import shutil
import socket
import subprocess
import threading
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from holdoverd.skills import helper, sources, tree
from tests.skills.make import TEXT, archive, image, skill

pytestmark = pytest.mark.slow

ENV = {"PATH": os.environ["PATH"]}


@pytest.fixture
def home(tmp_path: Path) -> Path:
    made = tmp_path / "inner" / "home"
    skill(made / ".claude/skills", "mine", "Written by hand")
    return made


def refusal(home: Path, source: object, **request: Any) -> str:
    """Why it is refused; nothing in the home or beside it has changed."""
    before = image(home.parent)
    asked = {"op": "add", "source": str(source), "trust": True, **request}
    answer = helper.answer(asked, str(home), {**ENV, "HOME": str(home)})
    assert answer["ok"] is False, answer
    assert image(home.parent) == before
    message: str = answer["error"]["message"]
    assert answer["error"]["code"] in ("refused", "timed_out", "not_found"), message
    return message


@pytest.mark.parametrize(
    ("entries", "links", "named"),
    [
        ({"ok/SKILL.md": TEXT, "../out": b"x"}, {}, "leads out by '..'"),
        ({"ok/SKILL.md": TEXT, "ok/a/../../../out": b"x"}, {}, "leads out by '..'"),
        ({"ok/SKILL.md": TEXT, "/etc/cron.d/x": b"x"}, {}, "absolute path '/etc/cron.d/x'"),
        ({"ok/SKILL.md": TEXT, "C:/x": b"x"}, {}, "absolute path"),
        ({"ok/SKILL.md": TEXT, "ok\\..\\x": b"x"}, {}, "backslash"),
        ({"ok/SKILL.md": TEXT}, {"ok/link": "/etc/passwd"}, "link 'link' leads out"),
        ({"ok/SKILL.md": TEXT}, {"ok/link": "../../x"}, "link 'link' leads out"),
        ({"ok/SKILL.md": TEXT}, {"ok/link": "nowhere"}, "leads to no file"),
        ({"ok/SKILL.md": TEXT}, {"ok/a": "b", "ok/b": "a"}, "leads to no file"),
        ({"ok/SKILL.md": TEXT, "ok/d": b"", "ok/d/e": b""}, {}, "a file and a folder"),
        ({"ok/SKILL.md": TEXT, "ok/" + "d/" * 30 + "e": b""}, {}, "too deep"),
        ({"README.md": b"none here"}, {}, "holds no skill"),
        ({"ok/SKILL.md": b"no front matter"}, {}, "'ok' is refused: there is no front matter"),
    ],
)
def test_an_archive_that_leads_out_is_refused(
    home: Path, entries: dict[str, bytes], links: dict[str, str], named: str
) -> None:
    source = archive(home.parent.parent / "hostile.zip", entries, links=links)
    assert named in refusal(home, source)


def test_a_zip_bomb_is_refused_by_what_it_says_of_itself(home: Path) -> None:
    source = archive(
        home.parent.parent / "bomb.zip", {"ok/SKILL.md": TEXT, "ok/x": bytes(40 << 20)}
    )
    assert source.stat().st_size < 100_000
    assert "'ok/x' has 41943040 bytes" in refusal(home, source)
    many = {f"ok/{n}": bytes(15 << 20) for n in range(6)}
    source = archive(home.parent.parent / "many.zip", {"ok/SKILL.md": TEXT, **many})
    assert "more than 67108864 bytes" in refusal(home, source)


def test_a_zip_bomb_that_lies_is_refused_while_it_is_read(home: Path) -> None:
    source = archive(
        home.parent.parent / "liar.zip", {"ok/SKILL.md": TEXT, "ok/x": bytes(40 << 20)}
    )
    data = source.read_bytes()
    size = (40 << 20).to_bytes(4, "little")
    assert data.count(size) == 2  # in the entry's header, and in the directory at the end
    source.write_bytes(data.replace(size, (1000).to_bytes(4, "little")))
    assert "no zip that can be read" in refusal(home, source)


def test_too_many_files_are_refused(home: Path) -> None:
    source = home.parent.parent / "many.zip"
    with zipfile.ZipFile(source, "w") as packed:
        packed.writestr("ok/SKILL.md", TEXT)
        for n in range(tree.MAX_ENTRIES + 1):
            packed.writestr(f"ok/{n}", b"")
    assert "more than 8192 files" in refusal(home, source)


def test_a_file_of_two_gigabytes_is_refused_unread(home: Path) -> None:
    place = skill(home.parent.parent / "source", "ok")
    with (place / "large").open("wb") as file:
        file.truncate(2 << 30)
    begun = time.monotonic()
    assert "'ok/large' has 2147483648 bytes" in refusal(home, place.parent)
    assert time.monotonic() - begun < 5


@pytest.mark.parametrize("kind", ["link", "folder", "fifo"])
def test_a_folder_with_a_way_out_is_refused(home: Path, kind: str) -> None:
    place = skill(home.parent.parent / "source", "ok")
    if kind == "link":
        (place / "way").symlink_to("/etc/passwd")
    elif kind == "folder":
        (place / "way").symlink_to(home)
    else:
        os.mkfifo(place / "way")
    assert "way'" in refusal(home, place.parent)


@pytest.mark.parametrize(
    ("source", "named"),
    [
        ("file:///etc", "file:// is not read"),
        ("ext::sh -c id", "neither an absolute path nor a URL"),
        ("-oProxyCommand=id", "is no source"),
        ("relative/path", "neither an absolute path nor a URL"),
        ("/no/such/folder", "cannot be read by this account"),
        ("/no/such.zip", "cannot be read by this account"),
        ("ftp://example.org/x", "ftp:// is not read"),
    ],
)
def test_what_is_no_source_is_refused(home: Path, source: str, named: str) -> None:
    assert named in refusal(home, source)


def test_a_reference_that_is_a_flag_is_refused(home: Path) -> None:
    answer = refusal(home, "https://127.0.0.1:1/x", ref="--upload-pack=id")
    assert "no name of a branch" in answer


# --- git ----------------------------------------------------------------------------------------

needs_git = pytest.mark.skipif(shutil.which("git") is None, reason="needs git, not found here")


def git(folder: Path, *arguments: str, given: bytes = b"") -> str:
    done = subprocess.run(
        ["git", "-C", str(folder), "-c", "user.name=t", "-c", "user.email=t@t", *arguments],
        input=given,
        capture_output=True,
        check=True,
    )
    return done.stdout.decode().strip()


@contextlib.contextmanager
def git_server(folder: Path) -> Iterator[str]:
    """``git daemon`` on loopback; the base URL."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    server = subprocess.Popen(
        ["git", "daemon", "--export-all", f"--base-path={folder}", "--listen=127.0.0.1",
         f"--port={port}", "--reuseaddr", str(folder)],
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )  # fmt: skip
    try:
        deadline = time.monotonic() + 20
        while True:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
                break
            assert time.monotonic() < deadline
            time.sleep(0.02)
        yield f"git://127.0.0.1:{port}"
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(server.pid, 15)
        server.wait()


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    folder = tmp_path / "served" / "repo"
    folder.mkdir(parents=True)
    git(folder, "init", "-q", "-b", "main")
    skill(folder / "skills", "one", "First")
    skill(folder / "skills", "two", "Second")
    git(folder, "add", ".")
    git(folder, "commit", "-qm", "1")
    return folder


@needs_git
def test_a_repository_is_read_at_a_reference_and_in_a_folder(home: Path, repository: Path) -> None:
    git(repository, "tag", "v1")
    skill(repository / "other", "three", "Third")
    git(repository, "add", ".")
    git(repository, "commit", "-qm", "2")
    with git_server(repository.parent) as base:
        url = f"{base}/repo"
        request = {"op": "add", "source": url, "ref": "v1"}
        answer = helper.answer(request, str(home), ENV)
        assert [one["name"] for one in answer["changed"]] == ["one", "two"]
        answer = helper.answer({"op": "add", "source": f"{url}#other"}, str(home), ENV)
        assert [one["name"] for one in answer["changed"]] == ["three"]
        skill(repository / "skills", "one", "Better")
        git(repository, "commit", "-qam", "3")
        # A tag does not move; what was taken from HEAD does.
        answer = helper.answer({"op": "update", "names": ["*"]}, str(home), ENV)
        assert [one["changed"] for one in answer["changed"]] == [False] * 4, answer
        answer = helper.answer({"op": "add", "source": url, "names": ["one"]}, str(home), ENV)
        assert answer["changed"][0]["changed"]
    assert "Better" in (home / ".claude/skills/one/SKILL.md").read_text()


def commit_tree(repository: Path, entries: bytes) -> None:
    """A commit whose tree no git would make."""
    made = git(
        repository, "hash-object", "-w", "-t", "tree", "--literally", "--stdin", given=entries
    )
    commit = git(repository, "commit-tree", "-m", "x", made)
    git(repository, "update-ref", "refs/heads/main", commit)


@needs_git
@pytest.mark.parametrize("name", ["..", ".", "a/b", "../../out", "/etc"])
def test_a_repository_that_holds_a_way_out_is_refused(
    home: Path, repository: Path, name: str
) -> None:
    blob = git(repository, "hash-object", "-w", "--stdin", given=TEXT)
    commit_tree(repository, b"100644 " + name.encode() + b"\0" + bytes.fromhex(blob))
    with git_server(repository.parent) as base:
        message = refusal(home, f"{base}/repo")
    if name != "a/b":
        assert "repository" in message or "holds no skill" in message


@needs_git
def test_a_repository_with_a_link_out_or_a_large_file_is_refused(
    home: Path, repository: Path
) -> None:
    (repository / "skills/one/link").symlink_to("/etc/passwd")
    git(repository, "add", ".")
    git(repository, "commit", "-qm", "2")
    with git_server(repository.parent) as base:
        assert "its link 'link' leads out" in refusal(home, f"{base}/repo")
        (repository / "skills/one/link").unlink()
        (repository / "skills/one/large").write_bytes(bytes((16 << 20) + 1))
        git(repository, "add", ".")
        git(repository, "commit", "-qm", "3")
        assert "'skills/one/large' has 16777217 bytes" in refusal(home, f"{base}/repo")


@needs_git
def test_a_submodule_is_left_out(home: Path, repository: Path) -> None:
    head = git(repository, "rev-parse", "HEAD")
    git(repository, "update-index", "--add", "--cacheinfo", f"160000,{head},skills/sub")
    git(repository, "commit", "-qm", "2")
    with git_server(repository.parent) as base:
        answer = helper.answer({"op": "add", "source": f"{base}/repo"}, str(home), ENV)
    assert [one["name"] for one in answer["changed"]] == ["one", "two"]


@needs_git
def test_a_source_that_hangs_is_given_up_by_name(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sources, "GIT_S", 1.0)
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen(8)
        port = silent.getsockname()[1]
        begun = time.monotonic()
        for scheme in ("http", "git"):
            message = refusal(home, f"{scheme}://127.0.0.1:{port}/repo")
            assert f"the repository {scheme}://127.0.0.1:{port}/repo did not answer" in message
    assert time.monotonic() - begun < 20


@needs_git
@pytest.mark.parametrize("target", ["file:///etc/hostname", "ext::id", "ftp://127.0.0.1/x"])
def test_a_redirect_to_another_kind_of_address_is_refused(home: Path, target: str) -> None:
    class Redirect(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(302)
            self.send_header("Location", target)
            self.end_headers()

        def log_message(self, *args: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Redirect) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.05,))
        thread.start()
        url = f"http://user:secret@127.0.0.1:{server.server_address[1]}/repo"
        try:
            message = refusal(home, url)
        finally:
            server.shutdown()
            thread.join()
    assert "git says" in message
    assert "secret" not in message
