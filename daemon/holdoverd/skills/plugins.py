"""Claude Code's plugins and marketplaces, by its own commands.

Hooks, MCP servers, versions and where a plugin comes from are Claude Code's affair: what is installed
here works as if a person had typed `/plugin`, and the other way round. Lists are read from what it keeps
on disk, because starting it takes a second.
"""

from __future__ import annotations

import calendar
import contextlib
import json
import os
import re
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from holdoverd.errors import SkillError
from holdoverd.skills import brings

Json = dict[str, Any]

COMMAND_S = 120.0
MAX_INDEX_BYTES = 32 * 1024**2
MAX_OUTPUT_BYTES = 8 * 1024**2
PLUGIN = re.compile(r"([A-Za-z0-9][A-Za-z0-9._-]{0,127})@([A-Za-z0-9][A-Za-z0-9._-]{0,127})")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
SCOPES = {"personal": "user", "project": "project"}


class Plugin(NamedTuple):
    """One that is installed. `skills`: their folders."""

    id: str  # plugin@marketplace
    name: str
    version: str | None
    enabled: bool
    folder: Path
    skills: tuple[Path, ...]


class Claude:
    """Claude Code's program in the account's environment. `argv`: how it is started, at least one."""

    def __init__(self, argv: Sequence[str], env: Mapping[str, str], cwd: str) -> None:
        self._argv = list(argv)
        self._env = dict(env)
        self._cwd = cwd
        home = self._env.get("HOME", "/")
        config = self._env.get("CLAUDE_CONFIG_DIR") or f"{home}/.claude"
        self.folder = Path(home + config[1:] if config.startswith("~/") else config)

    # -- changing --------------------------------------------------------------------------------

    def plugin(self, action: str, plugin: str, scope: str) -> str:
        """`action`: install, uninstall, update, enable, disable. Returns what it said."""
        if not PLUGIN.fullmatch(plugin):
            raise SkillError(f"{plugin[:80]!r} is not plugin@marketplace", code="refused")
        return self._run("plugin", action, plugin, "--scope", SCOPES[scope])

    def add_marketplace(self, source: str) -> str:
        """Returns its name. `source`: owner/repo, a git or https URL, or an absolute path."""
        if not source or source.startswith("-") or re.match(r"(?i)file:", source):
            raise SkillError(f"{source[:80]!r} is no source of a marketplace", code="refused")
        before = set(self.marketplaces())
        self._run("plugin", "marketplace", "add", source)
        after = self.marketplaces()
        new = [name for name in after if name not in before]
        return new[0] if new else next((n for n, m in after.items() if m["source"] == source), "")

    def remove_marketplace(self, name: str) -> None:
        self._known(name)
        self._run("plugin", "marketplace", "remove", name)

    def update_marketplace(self, name: str) -> None:
        self._known(name)
        self._run("plugin", "marketplace", "update", name)

    def _run(self, *arguments: str) -> str:
        try:
            process = subprocess.Popen(
                [*self._argv, *arguments],
                env={**self._env, "DISABLE_AUTOUPDATER": "1", "GIT_TERMINAL_PROMPT": "0",
                     "GIT_ALLOW_PROTOCOL": "https:http:ssh:git"},
                cwd=self._cwd,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )  # fmt: skip
        except OSError as error:
            raise SkillError(
                f"Claude Code cannot be started ({error.strerror}): {self._argv[0]}; plugins are its"
                " own, and go without it as little as sessions do",
                code="failed",
            ) from error
        try:
            out, _ = process.communicate(timeout=COMMAND_S)
        except subprocess.TimeoutExpired:
            raise SkillError(
                f"`claude {' '.join(arguments[:3])}` has not ended after {COMMAND_S:.0f} s and was"
                " killed; its source may not answer",
                code="timed_out",
            ) from None
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.communicate()
        said = out[:MAX_OUTPUT_BYTES].decode("utf-8", "replace").strip()
        if process.returncode != 0:
            why = re.sub(r"(://)[^/@\s]+@", r"\1", said.splitlines()[-1] if said else "no reason")
            raise SkillError(f"Claude Code would not: {why[:500]}", code="refused")
        return said

    # -- looking ---------------------------------------------------------------------------------

    def marketplaces(self) -> dict[str, Json]:
        """{name: {"name", "source", "location", "updated_at"}}, as Claude Code keeps them."""
        known = _read_json(self.folder / "plugins/known_marketplaces.json")
        found = {}
        for name, entry in (known if isinstance(known, dict) else {}).items():
            if not isinstance(entry, dict):
                continue
            source = entry.get("source")
            source = source if isinstance(source, dict) else {}
            where = (
                source.get("path")
                or source.get("url")
                or source.get("repo")
                or source.get("source")
            )
            found[str(name)] = {
                "name": str(name),
                "source": str(where or ""),
                "location": str(entry.get("installLocation") or ""),
                "updated_at": _moment(entry.get("lastUpdated")),
            }
        return found

    def browse(self, name: str, q: str | None) -> tuple[list[Json], list[str]]:
        """(plugins of a marketplace, by name; what is broken in its index). `q`: words, all of which
        a plugin's name, description, keywords or category hold. Raises SkillError."""
        location = Path(self._known(name)["location"])
        index = location if location.is_file() else location / ".claude-plugin/marketplace.json"
        listed = _read_json(index)
        plugins = listed.get("plugins") if isinstance(listed, dict) else None
        if not isinstance(plugins, list):
            raise SkillError(
                f"the marketplace {name} has no index that can be read ({index}); `holdover"
                f" marketplace ls --refresh {name}` fetches it anew",
                code="refused",
            )
        installed = {plugin.id for plugin in self.installed(None)}
        items, problems = read_index(name, plugins, installed)
        words = (q or "").lower().split()
        return [item for item in items if _matches(item, words)], problems

    def brings(self, plugin: str) -> list[str]:
        """What a plugin runs by itself, each as a line for people; see `brings`. Raises SkillError."""
        name, _, market = plugin.partition("@")
        location = Path(self._known(market)["location"])
        index = location if location.is_file() else location / ".claude-plugin/marketplace.json"
        listed = _read_json(index)
        listed = listed if isinstance(listed, dict) else {}
        plugins = listed.get("plugins")
        for entry in plugins if isinstance(plugins, list) else []:
            if not isinstance(entry, dict) or entry.get("name") != name:
                continue
            source, metadata = entry.get("source"), listed.get("metadata")
            root = metadata.get("pluginRoot") if isinstance(metadata, dict) else None
            folder = brings.folder_of(location, root, source)
            if folder is None:
                where = source if isinstance(source, str) else json.dumps(source)[:300]
                return [
                    f"it comes from {where}, where Claude Code fetches it: whatever hooks, MCP servers"
                    " and programs it has then, run"
                ]
            return brings.programs(folder, entry, _read_json)
        raise SkillError(
            f"the marketplace {market} has no plugin {name!r}; `holdover skill browse {market}` lists"
            " what it has",
            code="not_found",
        )

    def _known(self, name: str) -> Json:
        found = self.marketplaces().get(name)
        if found is None or not _NAME.fullmatch(name):
            raise SkillError(
                f"there is no marketplace {name[:80]!r}; `holdover marketplace ls` lists them",
                code="not_found",
            )
        return found

    def installed(self, cwd: str | None) -> list[Plugin]:
        """Those of the account and, given `cwd`, of that project; as Claude Code keeps them."""
        listed = _read_json(self.folder / "plugins/installed_plugins.json")
        plugins = listed.get("plugins") if isinstance(listed, dict) else None
        settings = [self.folder / "settings.json"]
        if cwd is not None:
            settings += [
                Path(cwd, ".claude/settings.json"),
                Path(cwd, ".claude/settings.local.json"),
            ]
        enabled: dict[str, Any] = {}
        for path in settings:
            said = _read_json(path)
            chosen = said.get("enabledPlugins") if isinstance(said, dict) else None
            enabled |= chosen if isinstance(chosen, dict) else {}
        found = []
        for plugin_id, installs in (plugins if isinstance(plugins, dict) else {}).items():
            for install in installs if isinstance(installs, list) else [installs]:
                if not isinstance(install, dict) or not isinstance(install.get("installPath"), str):
                    continue
                if install.get("scope", "user") != "user" and install.get("projectPath") != cwd:
                    continue
                folder = self._folder_of(str(plugin_id), Path(install["installPath"]))
                found.append(
                    Plugin(
                        str(plugin_id),
                        str(plugin_id).partition("@")[0],
                        str(install["version"]) if "version" in install else None,
                        enabled.get(plugin_id) is True,
                        folder,
                        plugin_skills(folder),
                    )
                )
                break
        order = {name: number for number, name in enumerate(enabled)}
        return sorted(found, key=lambda one: order.get(one.id, len(order)))

    def _folder_of(self, plugin_id: str, kept: Path) -> Path:
        """Where it is read from: of a marketplace that is a folder, from there."""
        name, _, market = plugin_id.partition("@")
        entry = self.marketplaces().get(market)
        if entry is None:
            return kept
        location = Path(entry["location"])
        if location == Path(entry["source"]):
            listed = _read_json(location / ".claude-plugin/marketplace.json")
            plugins = listed.get("plugins") if isinstance(listed, dict) else None
            for plugin in plugins if isinstance(plugins, list) else []:
                if isinstance(plugin, dict) and plugin.get("name") == name:
                    source = plugin.get("source")
                    if isinstance(source, str) and (location / source).is_dir():
                        return location / source
        return kept


def plugin_skills(folder: Path) -> tuple[Path, ...]:
    """The skills that a plugin's folder brings: in ``skills/``, and where its manifest says."""
    manifest = _read_json(folder / ".claude-plugin/plugin.json")
    said = manifest.get("skills") if isinstance(manifest, dict) else None
    places = [folder / "skills"]
    for extra in [said] if isinstance(said, str) else said if isinstance(said, list) else []:
        if isinstance(extra, str) and ".." not in extra.split("/"):
            places.append(folder / extra.removeprefix("./"))
    found: dict[str, Path] = {}
    for place in places:
        with contextlib.suppress(OSError):
            if (place / "SKILL.md").is_file():
                found.setdefault(place.name, place)
            for inner in sorted(place.iterdir()):
                if (inner / "SKILL.md").is_file():
                    found.setdefault(inner.name, inner)
    return tuple(found.values())


def read_index(
    market: str, plugins: Sequence[object], installed: set[str]
) -> tuple[list[Json], list[str]]:
    """(items, problems) of a marketplace's list, whatever is in it. Rules; no I/O."""
    items: dict[str, Json] = {}
    problems = []
    for number, entry in enumerate(plugins, 1):
        if not isinstance(entry, dict):
            problems.append(f"entry {number} is no object")
            continue
        name = entry.get("name")
        if not isinstance(name, str) or not _NAME.fullmatch(name):
            problems.append(f"entry {number} has no name that can be used ({str(name)[:40]!r})")
        elif not isinstance(entry.get("source"), str | dict) or not entry["source"]:
            problems.append(f"entry {number} ({name}) does not say where it comes from")
        elif name in items:
            problems.append(f"entry {number} ({name}) is there twice; the first counts")
        else:
            author = entry.get("author")
            source = entry["source"]
            items[name] = {
                "name": name,
                "plugin": f"{name}@{market}",
                "description": _text(entry.get("description"), 1000),
                "version": _text(entry.get("version"), 60) or None,
                "author": _text(author.get("name") if isinstance(author, dict) else author, 200),
                "category": _text(entry.get("category"), 80),
                "keywords": _words(entry.get("keywords")),
                "homepage": _text(entry.get("homepage"), 500),
                "source": source
                if isinstance(source, str)
                else _text(source.get("url") or source.get("repo") or source.get("package"), 500),
                "installed": f"{name}@{market}" in installed,
            }
    return [items[name] for name in sorted(items)], problems


def _matches(item: Json, words: Sequence[str]) -> bool:
    text = " ".join(
        [item["name"], item["description"], item["category"], *item["keywords"]]
    ).lower()
    return all(word in text for word in words)


def _words(value: object) -> list[str]:
    words = value if isinstance(value, list) else []
    return [word[:60] for word in words if isinstance(word, str)][:20]


def _text(value: object, most: int) -> str:
    return value[:most] if isinstance(value, str) else ""


def _read_json(path: Path) -> Any:
    """What a file of somebody else's holds; None where it cannot be told."""
    try:
        with path.open("rb") as file:
            data = file.read(MAX_INDEX_BYTES + 1)
        return json.loads(data) if len(data) <= MAX_INDEX_BYTES else None
    except (OSError, ValueError, RecursionError):
        return None


def _moment(text: object) -> int | None:
    """Milliseconds of ``2026-11-28T04:41:37.633Z``."""
    with contextlib.suppress(ValueError, TypeError):
        parsed = time.strptime(str(text)[:19], "%Y-%m-%dT%H:%M:%S")
        return calendar.timegm(parsed) * 1000
    return None
