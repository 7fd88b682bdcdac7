"""What a SKILL.md says, what is wrong with it, and which skill of a name an agent loads. No I/O.

Front matter goes by https://agentskills.io/specification; which skill wins is not written down
anywhere and was measured of Claude Code (`tests/claude/test_skills.py` measures it again).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

SKILL_FILE = "SKILL.md"
MAX_NAME = 64
MAX_DESCRIPTION = 1024
MAX_COMPATIBILITY = 500
BYTES_PER_TOKEN = 4
"""Of English text and Markdown, roughly; whoever needs to know better has to ask the model."""

_NAME = re.compile(r"[a-z0-9]+(?:-[a-z0-9]+)*")
_KEY = re.compile(r"([A-Za-z0-9_][A-Za-z0-9_.-]*)\s*:(?:\s+(.*)|\s*)$")
_PLAIN_TROUBLE = re.compile(r":\s|^[&*!%@`|>{}\[\],?-](?:\s|$)|^[&*!%@`]")
_ESCAPES = {"n": "\n", "t": "\t", '"': '"', "\\": "\\", "/": "/", "0": "\0", "r": "\r"}


@dataclass(frozen=True)
class Skill:
    """One SKILL.md. `fields`: its front matter; `body`: the Markdown behind it.

    `problems`: sentences for people, empty for a skill by the specification. An agent may load one
    with problems all the same; Holdover installs none.
    """

    fields: dict[str, Any]
    body: str
    problems: tuple[str, ...]

    @property
    def description(self) -> str:
        """What the agent is told of the skill; without one Claude Code takes the first line."""
        said = self.fields.get("description")
        if isinstance(said, str) and said:
            return said
        return next((line.strip("# \t") for line in self.body.splitlines() if line.strip()), "")


def name_problem(name: str) -> str | None:
    """What is wrong with `name` as a skill's name; None: nothing."""
    if not name or len(name) > MAX_NAME:
        return f"the name {name[:80]!r} is not of 1 to {MAX_NAME} characters"
    if not _NAME.fullmatch(name):
        return (
            f"the name {name!r} may hold only a-z, 0-9 and single hyphens between them"
            " (agentskills.io)"
        )
    return None


def read_skill(folder: str, text: str) -> Skill:
    """The SKILL.md `text` of the skill in a folder named `folder`."""
    fields, body, problems = parse_front_matter(text)
    problem = name_problem(folder)
    if problem:
        problems.append(problem)
    name = fields.get("name")
    if "name" not in fields:
        problems.append("front matter has no name")
    elif not isinstance(name, str) or name != folder:
        problems.append(f"front matter calls it {str(name)[:80]!r}, its folder {folder!r}")
    problems += _text_problems(fields, "description", MAX_DESCRIPTION, required=True)
    problems += _text_problems(fields, "compatibility", MAX_COMPATIBILITY, required=False)
    if not isinstance(fields.get("metadata", {}), dict):
        problems.append("metadata is no mapping of names to values")
    return Skill(fields, body, tuple(problems))


def _text_problems(fields: dict[str, Any], key: str, most: int, *, required: bool) -> list[str]:
    if key not in fields:
        return [f"front matter has no {key}"] if required else []
    value = fields[key]
    if not isinstance(value, str) or not value.strip():
        return [f"{key} is empty or no text"]
    return [f"{key} has {len(value)} characters, more than {most}"] if len(value) > most else []


def tokens(data: bytes) -> int:
    """About how many tokens the text `data` takes of a context window."""
    return -(-len(data) // BYTES_PER_TOKEN)


# --- front matter -------------------------------------------------------------------------------


def parse_front_matter(text: str) -> tuple[dict[str, Any], str, list[str]]:
    """(fields, body, problems): the part of YAML that front matter is written in.

    Scalars (plain, quoted, ``|`` and ``>`` blocks), lists, and mappings by indentation. Anchors, tags
    and flow mappings are reported as problems, not guessed at. Never raises.
    """
    lines = text.removeprefix("\ufeff").replace("\r\n", "\n").split("\n")
    if lines[0].rstrip() != "---":
        return {}, text, ["there is no front matter: the first line is not ---"]
    ends = [number for number, line in enumerate(lines[1:], 1) if line.rstrip() == "---"]
    if not ends:
        return {}, text, ["the front matter is not ended by a line ---"]
    problems: list[str] = []
    fields = _mapping(lines[1 : ends[0]], problems)
    return fields, "\n".join(lines[ends[0] + 1 :]), problems


def _mapping(lines: Sequence[str], problems: list[str]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    at = 0
    while at < len(lines):
        line = lines[at]
        at += 1
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        match = _KEY.match(line)
        if match is None:
            problems.append(f"front matter has a line that is no `key: value`: {line[:60]!r}")
            continue
        under = at
        if any(line.startswith("\t") for line in lines[at : at + 1]):
            problems.append("front matter is indented by a tab")
        while under < len(lines) and (
            not lines[under].strip()
            or lines[under].startswith((" ", "\t"))
            or lines[under].startswith("- ")
        ):
            under += 1
        key = match[1]
        if key in found:
            problems.append(f"front matter has {key} twice")
        found[key] = _value(key, (match[2] or "").strip(), lines[at:under], problems)
        at = under
    return found


def _value(key: str, inline: str, under: Sequence[str], problems: list[str]) -> Any:
    if inline[:1] in ("|", ">") and re.fullmatch(
        r"[|>][+-]?[0-9]?[+-]?", inline.split(" #", maxsplit=1)[0]
    ):
        return _block(inline, _dedent(under))
    if inline[:1] in ('"', "'"):
        return _quoted(key, " ".join([inline, *(line.strip() for line in under)]), problems)
    if inline.startswith("["):
        whole = " ".join([inline, *(line.strip() for line in under)]).strip()
        if not whole.endswith("]"):
            problems.append(f"{key}: the list is not closed")
            return whole
        return [_scalar(key, part.strip(), problems) for part in _split(whole[1:-1])]
    below = [line for line in under if line.strip()]
    if inline and not inline.startswith("#"):
        whole = " ".join([inline, *(line.strip() for line in below)])
        if _PLAIN_TROUBLE.search(re.split(r"\s#", whole)[0]):
            problems.append(f"{key} has to be put in quotes: it is not plain YAML")
        return _scalar(key, whole, problems)
    if not below:
        return None
    inner = _dedent(below)
    if inner[0].startswith("-"):
        return _list(key, inner, problems)
    return _mapping(inner, problems)


def _list(key: str, lines: Sequence[str], problems: list[str]) -> list[Any]:
    items: list[list[str]] = []
    for line in lines:
        if line.startswith("-"):
            items.append([line[1:].strip()])
        elif items:
            items[-1].append(line)
    # A mapping as an item (hooks have them) is kept as text: nobody here looks into it.
    return ["\n".join(item) if len(item) > 1 else _scalar(key, item[0], problems) for item in items]


def _scalar(key: str, text: str, problems: list[str]) -> Any:
    if text[:1] in ('"', "'"):
        return _quoted(key, text, problems)
    if text.startswith("{"):
        problems.append(f"{key}: a mapping in braces; write it on lines of its own")
    text = re.split(r"\s#", text)[0].strip()
    return {"true": True, "false": False, "null": None, "~": None}.get(text, text)


def _quoted(key: str, text: str, problems: list[str]) -> str:
    quote, at = text[0], 1
    out: list[str] = []
    while at < len(text):
        char = text[at]
        if char == quote:
            if quote == "'" and text[at + 1 : at + 2] == "'":
                at += 1
            else:
                rest = text[at + 1 :].strip()
                if rest and not rest.startswith("#"):
                    problems.append(f"{key} goes on behind its closing quote")
                return "".join(out)
        elif char == "\\" and quote == '"':
            at += 1
            char = _ESCAPES.get(text[at : at + 1], "\\" + text[at : at + 1])
        out.append(char)
        at += 1
    problems.append(f"{key}: the quote is not closed")
    return "".join(out)


def _block(style: str, lines: Sequence[str]) -> str:
    if style.startswith("|"):
        text = "\n".join(lines)
    else:
        paragraphs = "\n".join(line.strip() for line in lines).strip("\n").split("\n\n")
        text = "\n".join(part.replace("\n", " ") for part in paragraphs)
    return text.strip("\n")


def _dedent(lines: Sequence[str]) -> list[str]:
    depth = min((len(line) - len(line.lstrip()) for line in lines if line.strip()), default=0)
    return [line[depth:] for line in lines]


def _split(text: str) -> list[str]:
    """The items of a flow list; commas in quotes do not count."""
    return [
        part for part in re.findall(r'(?:"(?:\\.|[^"])*"|\'[^\']*\'|[^,])+', text) if part.strip()
    ]


# --- which one wins -----------------------------------------------------------------------------


@dataclass(frozen=True)
class Found:
    """A skill that lies where a session may see it.

    `kind`: ``personal``; ``project`` (at `distance` folders above the session's, 0 being its own);
    ``nested`` (in the folder `below`, relative to the session's; loaded once the agent reads a file
    there); ``plugin`` (of the plugin `plugin`, the `distance`-th that Claude Code has on its list).
    `called`: the name an agent uses; set by `decide`, like `effective`.
    """

    name: str
    kind: str
    path: str
    distance: int = 0
    below: str = ""
    plugin: str = ""
    enabled: bool = True
    called: str = ""
    effective: bool = False


def decide(found: Iterable[Found]) -> list[Found]:
    """`found`, each with what it is called and whether an agent in this folder loads it.

    As Claude Code has it: the folder's name is the skill's, whatever front matter says. Personal ones
    win over the project's; of these the nearest to the session's folder wins. A plugin's are called
    ``plugin:name`` and collide with their likes only, and a nested one whose name is taken, be it by a
    plugin's, is called ``folder:name``.
    """
    order = {"personal": 0, "project": 1, "plugin": 2, "nested": 3}
    ordered = sorted(found, key=lambda one: (order[one.kind], one.distance, one.below))
    by_plugins = {one.name for one in ordered if one.kind == "plugin" and one.enabled}
    taken: set[str] = set()
    decided = []
    for one in ordered:
        called = f"{one.plugin}:{one.name}" if one.kind == "plugin" else one.name
        if one.kind == "nested" and (called in taken or called in by_plugins):
            called = f"{one.below}:{one.name}"
        wins = one.enabled and called not in taken
        if wins:
            taken.add(called)
        decided.append(replace(one, called=called, effective=wins))
    return decided


def project_folders(cwd: str, home: str, git_roots: Iterable[str]) -> list[str]:
    """The folders whose ``.claude/skills`` a session in `cwd` sees, the nearest first.

    From `cwd` up to the root of its git repository; without one up to, but without, the home; and
    outside the home up to ``/``. `git_roots`: those of `cwd` and the folders above it that hold a
    ``.git``. The home's own are the personal ones.
    """
    roots = set(git_roots)
    folders = []
    folder = cwd
    while True:
        if folder == home:
            break
        folders.append(folder)
        if folder in roots or folder == "/":
            break
        folder = folder.rpartition("/")[0] or "/"
    return folders
