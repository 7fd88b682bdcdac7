"""A skill's files as data: what a source may hold, what they come to, what of them runs. No I/O."""

from __future__ import annotations

import difflib
import fnmatch
import hashlib
import posixpath
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Literal, NamedTuple

from holdoverd.errors import SkillError
from holdoverd.skills import rules

MAX_FILE_BYTES = 16 * 1024**2
MAX_SOURCE_BYTES = 64 * 1024**2
"""Of all files of a source together, unpacked. Skills are text; the largest known have 2 MiB."""
MAX_ENTRIES = 8192
MAX_PATH_BYTES = 1024
MAX_DEPTH = 24
MAX_DIFF_CHARS = 200_000
DIGEST_FORM = re.compile(r"[0-9a-f]{64}")

_PROGRAMS = (
    *(".sh", ".bash", ".zsh", ".fish", ".py", ".pl", ".rb", ".js", ".mjs", ".cjs", ".ts", ".php"),
    *(".lua", ".ps1", ".bat", ".cmd", ".exe", ".so", ".dylib", ".dll", ".jar", ".wasm", ".awk"),
)
_INLINE = re.compile(r"!`[^`]+`")

Kind = Literal["file", "program", "link"]


class Entry(NamedTuple):
    """A file (``program``: with the execute bit), or a symbolic link, whose target is `data`."""

    kind: Kind
    data: bytes


Tree = Mapping[str, Entry]
"""{path with slashes, relative: Entry}; folders are where files are."""


def refused(what: str, why: str) -> SkillError:
    return SkillError(f"{what} is refused: {why}. Nothing was changed.", code="refused")


def check_path(path: str, what: str) -> str:
    """`path` in its plain form. Raises SkillError for one that leads out, or that no disk takes."""
    if "\0" in path or "\\" in path:
        raise refused(what, f"it holds a name with a NUL or a backslash ({path[:100]!r})")
    if path.startswith("/") or re.match(r"[A-Za-z]:", path):
        raise refused(what, f"it holds the absolute path {path[:100]!r}")
    parts = [part for part in path.split("/") if part not in ("", ".")]
    if ".." in parts:
        raise refused(what, f"it holds the path {path[:100]!r}, which leads out by '..'")
    if not parts:
        raise refused(what, "it holds an entry without a name")
    plain = "/".join(parts)
    try:
        size = len(plain.encode())
    except UnicodeEncodeError:
        raise refused(what, f"it holds a name that is no UTF-8 ({plain[:100]!r})") from None
    if size > MAX_PATH_BYTES or len(parts) > MAX_DEPTH or max(len(p) for p in parts) > 200:
        raise refused(what, f"it holds a path that is too long or too deep ({plain[:80]!r} …)")
    return plain


class Gathering:
    """Collects a source's entries and stops at the first that may not be."""

    def __init__(self, what: str) -> None:
        self.what = what
        self.entries: dict[str, Entry] = {}
        self._left = MAX_SOURCE_BYTES

    def room(self, path: str, size: int) -> None:
        """Raises SkillError if a file of `size` bytes is too much; to be asked before reading it."""
        if size > MAX_FILE_BYTES:
            raise refused(
                self.what, f"{path[:100]!r} has {size} bytes, the most is {MAX_FILE_BYTES}"
            )
        if size > self._left:
            raise refused(self.what, f"its files have more than {MAX_SOURCE_BYTES} bytes together")
        if len(self.entries) >= MAX_ENTRIES:
            raise refused(self.what, f"it holds more than {MAX_ENTRIES} files")

    def add(self, path: str, entry: Entry) -> None:
        """Raises SkillError."""
        plain = check_path(path, self.what)
        self.room(plain, len(entry.data))
        if plain in self.entries:
            raise refused(self.what, f"it holds {plain[:100]!r} twice")
        self._left -= len(entry.data)
        self.entries[plain] = entry

    def finish(self) -> dict[str, Entry]:
        """All entries. Raises SkillError for a file that is a folder too."""
        for path in self.entries:
            folder = posixpath.dirname(path)
            while folder:
                if folder in self.entries:
                    raise refused(self.what, f"{folder[:100]!r} is a file and a folder in it")
                folder = posixpath.dirname(folder)
        return self.entries


def check_links(name: str, tree: Tree) -> None:
    """Every symbolic link of a skill leads to something within it. Raises SkillError."""
    for path, entry in tree.items():
        if entry.kind != "link":
            continue
        target = entry.data.decode("utf-8", "surrogateescape")
        there = posixpath.normpath(posixpath.join(posixpath.dirname(path), target))
        if target.startswith("/") or there == ".." or there.startswith("../"):
            raise refused(
                f"the skill {name!r}", f"its link {path[:100]!r} leads out, to {target[:100]!r}"
            )
        # A link by way of another one could lead anywhere; nobody needs it.
        if there not in tree or tree[there].kind == "link":
            raise refused(
                f"the skill {name!r}", f"its link {path[:100]!r} leads to no file of the skill"
            )


def digest(tree: Tree) -> str:
    """The SHA-256 of names, kinds and contents, in hex: the same for the same skill anywhere."""
    whole = hashlib.sha256()
    for path in sorted(tree):
        kind, data = tree[path]
        head = f"{kind} {len(data)} ".encode() + path.encode("utf-8", "surrogateescape")
        whole.update(head + b"\0" + data)
    return whole.hexdigest()


def find_skills(entries: Tree, own_name: str) -> dict[str, dict[str, Entry]]:
    """{name: its files}: every folder of a source that holds a SKILL.md, in itself or further down.

    One at the source's top is a skill called `own_name`, and all there is. Folders beneath a skill
    belong to it. Raises SkillError where two have the same name, or there is none.
    """
    homes = sorted(
        posixpath.dirname(path)
        for path in entries
        if posixpath.basename(path) == rules.SKILL_FILE and entries[path].kind != "link"
    )
    tops = [
        home
        for home in homes
        if not any(home != other and _beneath(home, other) for other in homes)
    ]
    found: dict[str, dict[str, Entry]] = {}
    for top in tops:
        name = posixpath.basename(top) or own_name
        if name in found:
            raise SkillError(
                f"the source holds two skills called {name[:80]!r}; name a sub-folder of it",
                code="refused",
            )
        prefix = f"{top}/" if top else ""
        found[name] = {
            path[len(prefix) :]: entry for path, entry in entries.items() if path.startswith(prefix)
        }
    if not found:
        raise SkillError(
            "the source holds no skill: no folder in it has a SKILL.md. Name the folder that has",
            code="refused",
        )
    return found


def _beneath(path: str, folder: str) -> bool:
    return not folder or path.startswith(folder + "/")


def select(found: Iterable[str], wanted: Sequence[str] | None) -> list[str]:
    """The names of `found` that `wanted` asks for, by name or pattern (``pdf-*``). None: all.

    Raises SkillError for a name or a pattern that finds nothing.
    """
    known = sorted(found)
    if wanted is None:
        return known
    chosen: set[str] = set()
    for pattern in wanted:
        hits = fnmatch.filter(known, pattern)
        if not hits:
            raise SkillError(
                f"there is no skill {pattern[:80]!r}; there are {', '.join(known[:30]) or 'none'}",
                code="not_found",
            )
        chosen.update(hits)
    return sorted(chosen)


def skill_of(name: str, tree: Tree) -> rules.Skill:
    entry = tree.get(rules.SKILL_FILE)
    text = entry.data.decode("utf-8", "replace") if entry is not None else ""
    return rules.read_skill(name, text)


def check(name: str, tree: Tree) -> rules.Skill:
    """The skill, if Holdover would install it. Raises SkillError that names what is wrong with it."""
    check_links(name, tree)
    skill = skill_of(name, tree)
    if skill.problems:
        raise refused(f"the skill {name[:80]!r}", "; ".join(skill.problems[:5]))
    return skill


def runs(name: str, tree: Tree) -> list[str]:
    """What of a skill is or starts a program, each as a line for people. [] : it is but text."""
    said = []
    for path in sorted(tree):
        entry = tree[path]
        shown = f"{name}/{path}"
        if entry.kind == "program":
            said.append(f"{shown} (executable)")
        elif entry.data.startswith((b"#!", b"\x7fELF", b"MZ")):
            said.append(f"{shown} (a program)")
        elif path.lower().endswith(_PROGRAMS):
            said.append(f"{shown} (a script)")
        elif path.lower().endswith(".md") and _INLINE.search(entry.data.decode("utf-8", "replace")):
            said.append(f"{shown} (runs commands when it is loaded: !`…`)")
    fields = skill_of(name, tree).fields
    if "hooks" in fields:
        said.append(f"{name}/{rules.SKILL_FILE} (hooks, which run commands by themselves)")
    if fields.get("allowed-tools"):
        said.append(
            f"{name}/{rules.SKILL_FILE} (tools used without asking: {fields['allowed-tools']})"[
                :300
            ]
        )
    return said


def compare(old: Tree, new: Tree) -> list[dict[str, object]]:
    """What `new` changes of `old`, file by file: ``{"path", "change", "diff"}``; None: not text."""
    found: list[dict[str, object]] = []
    left = MAX_DIFF_CHARS
    for path in sorted({*old, *new}):
        before, after = old.get(path), new.get(path)
        if before == after:
            continue
        change = "added" if before is None else "removed" if after is None else "changed"
        text = _diff(path, before, after)
        if text is not None:
            text, left = text[:left], left - min(left, len(text))
        found.append({"path": path, "change": change, "diff": text})
    return found


def _diff(path: str, before: Entry | None, after: Entry | None) -> str | None:
    sides: list[list[str]] = []
    for entry in (before, after):
        data = entry.data if entry is not None else b""
        if b"\0" in data:
            return None
        sides.append(data.decode("utf-8", "replace").splitlines())
    modes = [entry.kind for entry in (before, after) if entry is not None]
    head = f"{modes[0]} -> {modes[1]}\n" if len(set(modes)) == 2 else ""
    return head + "\n".join(
        difflib.unified_diff(sides[0], sides[1], f"old/{path}", f"new/{path}", lineterm="")
    )
