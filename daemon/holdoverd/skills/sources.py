"""Reading a source of skills into memory: a folder, a zip, a git repository. Executes none of it.

A source is hostile until it has been looked at: every entry is checked before it is read, nothing is
unpacked to a disk, and git neither checks out nor runs hooks, filters or submodules. Run by the helper,
with the account's rights.
"""

from __future__ import annotations

import os
import re
import shutil
import stat
import tempfile
import time
import zipfile
import zlib
from collections.abc import Sequence
from typing import NamedTuple

from holdoverd.errors import SkillError
from holdoverd.keeper import git
from holdoverd.skills import rules
from holdoverd.skills.tree import (
    MAX_ENTRIES,
    MAX_FILE_BYTES,
    MAX_SOURCE_BYTES,
    Entry,
    Gathering,
    check_path,
    refused,
)

GIT_S = 60.0
MAX_REPOSITORY_BYTES = 512 * 1024**2
"""A pack that git may write while it fetches; the newest commit alone is asked for."""
_CHUNK = 1024 * 1024
_SKIPPED = frozenset({".git", ".hg", ".svn", "__pycache__", ".DS_Store"})


class Source(NamedTuple):
    """Where skills come from. `kind`: folder, zip or git; `ref` and `folder` are a git source's.

    `place`: an absolute path, or a URL.
    """

    kind: str
    place: str
    ref: str | None = None
    folder: str = ""


def parse_source(text: str, ref: str | None, folder: str, home: str) -> Source:
    """What `text` names. ``URL#folder`` and GitHub's ``…/tree/REF/FOLDER`` say where in it.

    Raises SkillError for what is no source, or one of a kind that is never read.
    """
    if not text or "\0" in text or text.startswith("-"):
        raise SkillError(f"{text[:80]!r} is no source of skills", code="refused")
    if (scheme := git.scheme_of(text)) is not None:
        url, _, inside = text.partition("#")
        if scheme not in git.SCHEMES:
            raise refused(
                f"the source {text[:100]!r}",
                f"{scheme}:// is not read; git sources are {', '.join(git.SCHEMES)}, a folder of this"
                " machine is named by its path",
            )
        github = re.fullmatch(r"(https://github\.com/[^/]+/[^/]+)/tree/([^/]+)/?(.*)", url)
        if github:
            url, ref, inside = github[1], ref or github[2], inside or github[3]
        if ref is not None and not git.is_ref(ref):
            raise SkillError(f"{ref[:80]!r} is no name of a branch, tag or commit", code="refused")
        inside = folder or inside
        return Source("git", url, ref, check_path(inside, f"the folder of {url}") if inside else "")
    path = home + text[1:] if text == "~" or text.startswith("~/") else text
    if not path.startswith("/"):
        raise SkillError(
            f"{text[:100]!r} is neither an absolute path nor a URL of {', '.join(git.SCHEMES)}",
            code="refused",
        )
    path = os.path.normpath(path)
    if folder:
        path = f"{path}/{check_path(folder, 'the sub-folder')}"
    return Source("zip" if path.lower().endswith(".zip") else "folder", path)


def own_name(source: Source) -> str:
    """What a skill at the source's top is called: by the folder, archive or repository."""
    name = (source.folder or source.place).rstrip("/").rpartition("/")[2]
    return name.removesuffix(".git") if source.kind == "git" else re.sub(r"(?i)\.zip$", "", name)


def read(source: Source, deadline: float) -> dict[str, Entry]:
    """All entries of a source; `deadline` by `time.monotonic`. Raises SkillError, naming it."""
    try:
        if source.kind == "git":
            return _read_git(source, deadline)
        if source.kind == "zip":
            return _read_zip(source.place)
        return read_folder(source.place, f"the folder {source.place}")
    except OSError as error:
        raise SkillError(
            f"the source {source.place} cannot be read by this account: {error.strerror}. Put it"
            " where the account may read it (units have a /tmp of their own)",
            code="not_found" if isinstance(error, FileNotFoundError) else "refused",
        ) from error


# --- a folder -----------------------------------------------------------------------------------


def read_folder(path: str, what: str) -> dict[str, Entry]:
    """The files beneath `path`, following no link. Raises SkillError, or OSError for `path` itself."""
    gathering = Gathering(what)
    top = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        _walk(top, "", gathering)
    finally:
        os.close(top)
    return gathering.finish()


def _walk(folder: int, prefix: str, gathering: Gathering) -> None:
    for name in sorted(os.listdir(folder)):
        if name in _SKIPPED:
            continue
        path = prefix + name
        check_path(path, gathering.what)
        found = os.stat(name, dir_fd=folder, follow_symlinks=False)
        if stat.S_ISLNK(found.st_mode):
            gathering.add(path, Entry("link", os.fsencode(os.readlink(name, dir_fd=folder))))
        elif stat.S_ISDIR(found.st_mode):
            flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
            inner = os.open(name, flags, dir_fd=folder)
            try:
                _walk(inner, path + "/", gathering)
            finally:
                os.close(inner)
        elif stat.S_ISREG(found.st_mode):
            gathering.room(path, found.st_size)
            flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
            with open(os.open(name, flags, dir_fd=folder), "rb") as file:
                data = file.read(MAX_FILE_BYTES + 1)
            kind = "program" if found.st_mode & stat.S_IXUSR else "file"
            gathering.add(path, Entry("program" if kind == "program" else "file", data))
        else:
            raise refused(gathering.what, f"{path[:100]!r} is neither a file nor a folder")


# --- a zip --------------------------------------------------------------------------------------


def _read_zip(path: str) -> dict[str, Entry]:
    what = f"the archive {path}"
    gathering = Gathering(what)
    try:
        with zipfile.ZipFile(path) as archive:
            listed = archive.infolist()
            if len(listed) > MAX_ENTRIES:
                raise refused(what, f"it holds more than {MAX_ENTRIES} files")
            # What it says of itself first: most bombs admit to what they are.
            for info in listed:
                check_path(info.orig_filename.rstrip("/") or ".", what)
                gathering.room(info.filename, info.file_size)
            if sum(info.file_size for info in listed) > MAX_SOURCE_BYTES:
                raise refused(what, f"its files have more than {MAX_SOURCE_BYTES} bytes, unpacked")
            for info in listed:
                _read_zip_entry(archive, info, gathering)
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError) as error:
        raise refused(what, f"it is no zip that can be read ({str(error)[:100]})") from error
    return _without_top(gathering.finish())


def _read_zip_entry(archive: zipfile.ZipFile, info: zipfile.ZipInfo, gathering: Gathering) -> None:
    mode = info.external_attr >> 16
    if info.is_dir() or set(info.filename.split("/")) & (_SKIPPED | {"__MACOSX"}):
        return
    kind = stat.S_IFMT(mode)
    if kind not in (0, stat.S_IFREG, stat.S_IFLNK):
        raise refused(gathering.what, f"{info.filename[:100]!r} is neither a file nor a folder")
    data = bytearray()
    with archive.open(info) as file:
        while chunk := file.read(_CHUNK):
            data += chunk
            gathering.room(info.filename, len(data))  # what it says of itself may be a lie
    if kind == stat.S_IFLNK:
        gathering.add(info.filename, Entry("link", bytes(data)))
    else:
        gathering.add(
            info.filename, Entry("program" if mode & stat.S_IXUSR else "file", bytes(data))
        )


def _without_top(entries: dict[str, Entry]) -> dict[str, Entry]:
    """A single folder around everything is the packer's; a skill in it keeps its name all the same."""
    tops = {path.partition("/")[0] for path in entries}
    if len(tops) == 1 and rules.SKILL_FILE not in entries:
        top = next(iter(tops)) + "/"
        if top + rules.SKILL_FILE not in entries:
            return {path[len(top) :]: entry for path, entry in entries.items()}
    return entries


# --- git ----------------------------------------------------------------------------------------


def _read_git(source: Source, deadline: float) -> dict[str, Entry]:
    if shutil.which("git") is None:
        raise SkillError(
            "git is not installed on this machine (apt-get install git); a zip does without",
            code="refused",
        )
    what = f"the repository {shown(source.place)}"
    with tempfile.TemporaryDirectory(prefix="holdover-skills-") as folder:
        bare = _Git(folder, what, min(deadline, time.monotonic() + GIT_S))
        bare.run("init", "-q", "--bare", "--template=")
        bare.run("fetch", "-q", "--depth=1", "--no-tags", "--no-recurse-submodules",
                "--no-auto-maintenance", source.place, source.ref or "HEAD")  # fmt: skip
        tree = "FETCH_HEAD^{tree}" if not source.folder else f"FETCH_HEAD:{source.folder}"
        listing = bare.run("ls-tree", "-r", "-l", "-z", "--full-tree", tree)
        gathering = Gathering(what)
        wanted: list[tuple[str, str, str]] = []  # (mode, object, path)
        total = 0
        for line in listing.split(b"\0")[:-1]:
            head, _, name = line.partition(b"\t")
            mode, kind, thing, size = head.decode("ascii").split()
            path = check_path(name.decode("utf-8", "surrogateescape"), what)
            if kind != "blob":
                continue  # a submodule: another repository's
            gathering.room(path, int(size))
            total += int(size)
            wanted.append((mode, thing, path))
            if len(wanted) > MAX_ENTRIES:
                raise refused(what, f"it holds more than {MAX_ENTRIES} files")
            if total > MAX_SOURCE_BYTES:
                raise refused(what, f"its files have more than {MAX_SOURCE_BYTES} bytes together")
        blobs = bare.blobs([thing for _, thing, _ in wanted])
        for mode, thing, path in wanted:
            kind_of = {"120000": "link", "100755": "program"}.get(mode, "file")
            data = blobs[thing]
            if kind_of == "link":
                gathering.add(path, Entry("link", data))
            else:
                gathering.add(path, Entry("program" if kind_of == "program" else "file", data))
        return gathering.finish()


class _Git:
    """git in a bare repository of its own, without the account's configuration or a terminal."""

    def __init__(self, folder: str, what: str, deadline: float) -> None:
        self._folder = folder
        self._what = what
        self._deadline = deadline
        self._env = git.environment(os.environ)

    def run(self, *arguments: str) -> bytes:
        return self._run(arguments, b"")

    def blobs(self, things: Sequence[str]) -> dict[str, bytes]:
        """{object: its bytes}; their sizes were looked at."""
        out = self._run(("cat-file", "--batch"), "".join(f"{t}\n" for t in things).encode())
        found, at = {}, 0
        for thing in things:
            stop = out.index(b"\n", at)
            name, _, size = out[at:stop].decode("ascii").split()
            assert name == thing, "git answers in the order in which it is asked"
            found[thing] = out[stop + 1 : stop + 1 + int(size)]
            at = stop + 2 + int(size)
        return found

    def _run(self, arguments: Sequence[str], given: bytes) -> bytes:
        try:
            return git.run(
                self._folder,
                arguments,
                env=self._env,
                deadline=self._deadline,
                given=given,
                max_output=MAX_REPOSITORY_BYTES,
                max_file_bytes=MAX_REPOSITORY_BYTES,
            )
        except git.GaveUp:
            raise SkillError(
                f"{self._what} did not answer in time and was given up; nothing was changed",
                code="timed_out",
            ) from None
        except git.Refused as error:
            raise refused(self._what, f"git says: {error}") from error


def shown(text: str) -> str:
    """Without the password that a URL may carry."""
    return git.shown(text)
