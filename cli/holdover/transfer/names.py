"""What people type for files here and there. No I/O.

There, a file is named by its id (``f_…``), by its folder and name (``reports/may.pdf``), or by a
pattern of those (``reports/*.pdf``, ``logs/**``); a folder by its name with a slash (``reports/``).
Names are data: any Unicode, so ``--`` and quotes are the shell's matter, and a leading slash is left
out.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

from holdover.exits import CommandError, Exit

Json = Mapping[str, Any]

FILE_ID = re.compile(r"f_[0-9a-z]{16}\Z")
_PATTERN = re.compile(r"[*?\[]")


@dataclass(frozen=True)
class There:
    """What was typed for files in storage: exactly one of the four is meant.

    `id`; `path` and `name` of one file; `folder` (its `path`, all beneath); `pattern`, matched
    against path and name together, under the folder `path` which holds no pattern.
    """

    text: str
    path: str = ""
    name: str | None = None
    id: str | None = None
    folder: bool = False
    pattern: re.Pattern[str] | None = None

    def matches(self, item: Json) -> bool:
        if self.id is not None:
            return bool(item["id"] == self.id)
        if self.pattern is not None:
            return self.pattern.fullmatch(full_name(item)) is not None
        if self.folder:
            return is_below(item["path"], self.path)
        return (item["path"], item["name"]) == (self.path, self.name)

    def lists(self, item: Json) -> bool:
        """As `matches`; a list of what is there need not be told a folder by its slash."""
        if self.name is None:
            return self.matches(item)
        folder = f"{self.path}/{self.name}" if self.path else self.name
        return self.matches(item) or is_below(item["path"], folder)


def parse(text: str) -> There:
    """What `text` names there."""
    if FILE_ID.match(text):
        return There(text, id=text)
    bare = text.strip("/")
    if _PATTERN.search(bare):
        fixed = []
        for segment in bare.split("/")[:-1]:
            if _PATTERN.search(segment):
                break
            fixed.append(segment)
        return There(text, path="/".join(fixed), pattern=compile_pattern(bare))
    if text.endswith("/") or not bare:
        return There(text, path=bare, folder=True)
    path, _, name = bare.rpartition("/")
    return There(text, path=path, name=name)


def compile_pattern(pattern: str) -> re.Pattern[str]:
    """``*`` and ``?`` stay within a folder's name, ``**`` goes through folders, ``[a-c]`` is a set."""
    out = []
    at = 0
    while at < len(pattern):
        char = pattern[at]
        if pattern.startswith("**/", at):
            out.append("(?:.*/)?")
            at += 3
        elif pattern.startswith("**", at):
            out.append(".*")
            at += 2
        elif char == "*":
            out.append("[^/]*")
            at += 1
        elif char == "?":
            out.append("[^/]")
            at += 1
        elif char == "[" and (end := pattern.find("]", at + 2)) > 0:
            inside = pattern[at + 1 : end]
            negated = inside[:1] in ("!", "^")
            body = re.sub(r"([\\\[\]^&~|])", r"\\\1", inside[1:] if negated else inside)
            out.append(f"[^/{body}]" if negated else f"[{body}]")
            at = end + 1
        else:
            out.append(re.escape(char))
            at += 1
    try:
        return re.compile("".join(out), re.DOTALL)
    except re.error as error:
        raise CommandError(f"{pattern!r} is no pattern: {error}.", Exit.USAGE) from error


def full_name(item: Json) -> str:
    """``folder/name``."""
    return f"{item['path']}/{item['name']}" if item["path"] else str(item["name"])


def is_below(path: str, folder: str) -> bool:
    return not folder or path == folder or path.startswith(f"{folder}/")


def newest_of_each(items: Iterable[Json]) -> list[Json]:
    """Of files with the same folder and name the newest, in order of name.

    Storage keeps every file that was ever put; a newer one of the same name hides the older from
    commands that go by name, and an id still reaches it.
    """
    newest: dict[str, Json] = {}
    for item in items:
        name = full_name(item)
        if name not in newest or item["created_at"] > newest[name]["created_at"]:
            newest[name] = item
    return [newest[name] for name in sorted(newest)]


@dataclass(frozen=True)
class Target:
    """A file to be put: the local path, and folder and name there."""

    local: str
    path: str
    name: str


def place(local: str, to: str | None, *, several: bool) -> tuple[str, str]:
    """(path, name) there for one local file, with ``--to``.

    ``--to reports/`` is a folder, ``--to reports/may.pdf`` folder and name; for several files it is
    always a folder.
    """
    own = PurePosixPath(local).name
    if to is None or not to.strip("/"):
        return "", own
    bare = to.strip("/")
    if several or to.endswith("/"):
        return bare, own
    path, _, name = bare.rpartition("/")
    return path, name


def place_tree(root: str, relative: Sequence[str], to: str | None) -> Target:
    """Where a file of the local folder `root` goes: the folder's own name is kept, as by `cp -r`.

    `relative` are the names below it; ``.`` and ``./`` as `root` put its content.
    """
    own = PurePosixPath(root).name if root.strip("./") else ""
    folders = [part for part in ((to or "").strip("/"), own, *relative[:-1]) if part]
    return Target(str(PurePosixPath(root, *relative)), "/".join(folders), relative[-1])


def landing(item: Json, asked: There) -> str:
    """The local name, relative to the folder it goes into, of a file that `asked` found.

    A folder or a pattern keeps what lies below the folder it names; one file is its name alone.
    Nothing in it can lead out of the target: folders' names are never ``..`` (they are not taken),
    and should a server send one, this raises.
    """
    if asked.folder or asked.pattern is not None:
        below = str(item["path"])[len(asked.path) :].strip("/")
        kept = asked.path.rpartition("/")[2] if asked.folder else ""
        parts = [*filter(None, (kept, *below.split("/"))), str(item["name"])]
    else:
        parts = [str(item["name"])]
    for part in parts:
        if part in {"", ".", ".."} or "/" in part or "\0" in part:
            raise CommandError(
                f"{full_name(item)!r} cannot be a file here; give its place with --to."
            )
    return "/".join(parts)
