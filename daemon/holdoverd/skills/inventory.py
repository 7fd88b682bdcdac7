"""What skills a session in a folder would see: a look at the folders, with the account's rights."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from holdoverd.errors import SkillError
from holdoverd.skills import rules, sources
from holdoverd.skills.changes import Store
from holdoverd.skills.plugins import Plugin
from holdoverd.skills.rules import Found
from holdoverd.skills.tree import digest

Json = dict[str, Any]

MAX_SKILL_FILE_BYTES = 1024 * 1024
MAX_NESTED_DEPTH = 6
MAX_NESTED_FOLDERS = 20_000
_NOT_WALKED = frozenset({"node_modules", "__pycache__", "venv", "target", "dist", "build"})


def look(
    store: Store, personal: Path, cwd: str | None, home: str, plugins: Sequence[Plugin]
) -> list[Json]:
    """Every skill, as contract.md lists them (Skills). `cwd`: None for those that go everywhere."""
    found: list[Found] = list(_in_folder(personal, "personal"))
    managed: list[tuple[Path, str]] = [(personal, "personal")]
    if cwd is not None:
        above = [folder for folder in _up(cwd) if os.path.lexists(os.path.join(folder, ".git"))]
        for distance, folder in enumerate(rules.project_folders(cwd, home, above)):
            place = Path(folder, ".claude/skills")
            managed.append((place, "project"))
            found += _in_folder(place, "project", distance=distance)
        for below in _nested(cwd):
            place = Path(cwd, below, ".claude/skills")
            found += _in_folder(place, "nested", below=below)
    for number, plugin in enumerate(plugins):
        for place in plugin.skills:
            found.append(
                Found(
                    place.name,
                    "plugin",
                    str(place),
                    distance=number,
                    plugin=plugin.name,
                    enabled=plugin.enabled,
                )
            )
    by_id = {plugin.name: plugin for plugin in reversed(plugins)}
    items = [_item(store, one, by_id) for one in rules.decide(found)]
    # A disabled one lies in no folder: Holdover's record is all there is.
    there = {item["path"] for item in items}
    for place, scope in managed:
        for name, record in store.records(place).items():
            path = str(place / name)
            if path not in there and not record.get("removed_at"):
                items.append(_absent(store, name, scope, path, record))
    return sorted(items, key=lambda item: (not item["effective"], item["called"], item["path"]))


def _up(cwd: str) -> Iterator[str]:
    yield cwd
    yield from map(str, Path(cwd).parents)


def _in_folder(place: Path, kind: str, *, distance: int = 0, below: str = "") -> Iterator[Found]:
    """A folder with a SKILL.md, or a link to one, is a skill; nothing deeper is."""
    with contextlib.suppress(OSError):
        for folder in sorted(place.iterdir()):
            if os.path.lexists(folder / rules.SKILL_FILE):
                yield Found(folder.name, kind, str(folder), distance=distance, below=below)


def _nested(cwd: str) -> Iterator[str]:
    """The folders below `cwd`, relative to it, that have skills of their own."""
    left = MAX_NESTED_FOLDERS
    for folder, names, _ in os.walk(cwd):
        relative = os.path.relpath(folder, cwd)
        depth = 0 if relative == "." else relative.count("/") + 1
        left -= 1
        if left < 0:
            return
        if depth and os.path.isdir(os.path.join(folder, ".claude/skills")):
            yield relative
        names[:] = (
            sorted(name for name in names if not name.startswith(".") and name not in _NOT_WALKED)
            if depth < MAX_NESTED_DEPTH
            else []
        )


def _item(store: Store, one: Found, plugins: dict[str, Plugin]) -> Json:
    path = Path(one.path)
    data, problems = _read(path / rules.SKILL_FILE)
    skill = rules.read_skill(one.name, data.decode("utf-8", "replace"))
    record = store.records(path.parent).get(one.name, {}) if one.kind != "plugin" else {}
    plugin = plugins.get(one.plugin)
    item: Json = {
        "name": one.name,
        "called": one.called,
        "description": skill.description,
        "scope": one.kind,
        "path": one.path,
        "source": _source_text(record),
        "version": record.get("version"),
        "installed_at": record.get("installed_at"),
        "update": record.get("update"),
        "effective": one.effective,
        "enabled": one.enabled,
        "pinned": bool(record.get("pinned")),
        "modified": False,
        "versions": record.get("history", []),
        "tokens": rules.tokens(data),
        "problems": problems + list(skill.problems),
    }
    if plugin is not None:
        item |= {"source": plugin.id, "version": plugin.version, "installed_at": None}
    elif record and record.get("version"):
        with contextlib.suppress(SkillError, OSError):
            now = digest(sources.read_folder(str(path), "the skill"))
            item["modified"] = now != record["version"]
    return item


def _absent(store: Store, name: str, scope: str, path: str, record: Json) -> Json:
    description, count = "", 0
    with contextlib.suppress(SkillError):
        entry = store.read(record["version"])[rules.SKILL_FILE]
        skill = rules.read_skill(name, entry.data.decode("utf-8", "replace"))
        description, count = skill.description, rules.tokens(entry.data)
    gone = record.get("enabled", True)
    return {
        "name": name,
        "called": name,
        "description": description,
        "scope": scope,
        "path": path,
        "source": _source_text(record),
        "version": record.get("version"),
        "installed_at": record.get("installed_at"),
        "update": record.get("update"),
        "effective": False,
        "enabled": False,
        "pinned": bool(record.get("pinned")),
        "modified": gone,
        "versions": record.get("history", []),
        "tokens": count,
        "problems": ["its folder is gone; `rollback` or `enable` brings it back"] if gone else [],
    }


def _read(path: Path) -> tuple[bytes, list[str]]:
    try:
        with path.open("rb") as file:
            data = file.read(MAX_SKILL_FILE_BYTES + 1)
    except OSError as error:
        return b"", [f"{rules.SKILL_FILE} cannot be read: {error.strerror}"]
    if len(data) > MAX_SKILL_FILE_BYTES:
        return data, [f"{rules.SKILL_FILE} has more than {MAX_SKILL_FILE_BYTES} bytes"]
    return data, []


def _source_text(record: Json) -> str | None:
    source = record.get("source")
    if not source or source["kind"] == "local":
        return None
    where = f"#{source['folder']}" if source.get("folder") else ""
    at = f"@{source['ref']}" if source.get("ref") else ""
    return f"{sources.shown(source['place'])}{at}{where}"
