"""What a plugin runs by itself: hooks, servers, programs; read before Claude Code installs it.

From the folder that its marketplace holds of it. One that comes from elsewhere is fetched by Claude
Code only when it installs it, so of that nothing can be said beforehand but where it comes from.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

MAX_FILES = 2000
MAX_LINES = 200
MAX_TEXT = 200
_PROGRAMS = (".sh", ".bash", ".py", ".js", ".mjs", ".cjs", ".ts", ".rb", ".pl", ".exe", ".bin")


def folder_of(location: Path, root: object, source: object) -> Path | None:
    """Where a marketplace keeps a plugin; None where it comes from elsewhere, or would lead out."""
    if not isinstance(source, str):
        return None
    base = location / root if isinstance(root, str) else location
    folder = Path(os.path.realpath(base / source))
    inside = folder.is_relative_to(os.path.realpath(location))
    return folder if inside and folder.is_dir() else None


def programs(folder: Path, entry: Mapping[str, Any], read_json: Any) -> list[str]:
    """A line for each thing that runs by itself or can be run. `entry`: the marketplace's own words,
    which may bring hooks and servers as well; `read_json(path)`: a file's JSON, None for none."""
    manifest = read_json(folder / ".claude-plugin/plugin.json")
    manifest = manifest if isinstance(manifest, dict) else {}
    lines: list[str] = []
    for said in (entry, manifest):
        for hooks in _said(said.get("hooks"), folder, read_json):
            lines += _hooks(hooks)
        for servers in _said(said.get("mcpServers"), folder, read_json):
            lines += _servers(servers)
    lines += _hooks(read_json(folder / "hooks/hooks.json"))
    lines += _servers(read_json(folder / ".mcp.json"))
    lines += _files(folder)
    return list(dict.fromkeys(line[:MAX_TEXT] for line in lines))[:MAX_LINES]


def _said(value: object, folder: Path, read_json: Any) -> Iterator[object]:
    """A manifest says what it brings itself, or in which files it stands."""
    for one in value if isinstance(value, list) else [value]:
        if isinstance(one, str):
            if ".." not in one.split("/"):
                yield read_json(folder / one.removeprefix("./"))
        elif one is not None:
            yield one


def _hooks(found: object) -> Iterator[str]:
    hooks = found.get("hooks", found) if isinstance(found, dict) else None
    for event, matchers in hooks.items() if isinstance(hooks, dict) else ():
        for matcher in matchers if isinstance(matchers, list) else [matchers]:
            inner = matcher.get("hooks") if isinstance(matcher, dict) else None
            for hook in inner if isinstance(inner, list) else []:
                command = hook.get("command", hook.get("type")) if isinstance(hook, dict) else hook
                yield f"hook at {event}: {command}"


def _servers(found: object) -> Iterator[str]:
    servers = found.get("mcpServers", found) if isinstance(found, dict) else None
    for name, server in servers.items() if isinstance(servers, dict) else ():
        if isinstance(server, dict):
            arguments = server.get("args")
            words = [str(server.get("command") or server.get("url") or "?")]
            words += [str(word) for word in arguments] if isinstance(arguments, list) else []
            yield f"MCP server {name}: {' '.join(words)}"


def _files(folder: Path) -> Iterator[str]:
    seen = 0
    for parent, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if name != ".git")
        for name in sorted(names):
            seen += 1
            if seen > MAX_FILES:
                yield f"more than {MAX_FILES} files, of which these are the first"
                return
            path = Path(parent, name)
            shown = path.relative_to(folder)
            try:
                mode = path.lstat().st_mode
            except OSError:
                continue
            if path.is_symlink():
                yield f"{shown} (a link)"
            elif mode & 0o111:
                yield f"{shown} (executable)"
            elif name.lower().endswith(_PROGRAMS):
                yield f"{shown} (a script)"
