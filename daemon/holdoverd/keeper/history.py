"""What was said in a conversation before Holdover had it, read out of the agent's own transcript.

The account's file, so the account's process reads it. Records of the file become lines as the agent
prints them (stream-json.md §2.8: the file says ``toolUseResult`` where stdout says
``tool_use_result``), in the order in which they were written: that of a tree of rewinds and forks is
known to be damaged in old files, and what was said was said. A sub-agent's own file is read where its
tool use is answered.
"""

from __future__ import annotations

import json
import os
import re
from collections import deque
from collections.abc import Iterator
from datetime import datetime
from typing import Any, NamedTuple

MAX_MESSAGES = 50_000
MAX_BYTES = 32 * 1024**2
"""Together; of a longer conversation the latest are kept."""
MAX_LINE_BYTES = 16 * 1024**2
MAX_DEPTH = 8

_SYSTEM = frozenset({"compact_boundary", "local_command_output", "informational"})
_AGENT_ID = re.compile(r"[A-Za-z0-9_-]{1,64}")


class Said(NamedTuple):
    """A line as on the agent's stdout, and when it was said, in ms (0: the record does not say)."""

    at: int
    line: str


class History(NamedTuple):
    """`left_out`: how many earlier messages there are of which nothing is told."""

    said: list[Said]
    left_out: int


def read(path: str) -> History:
    """The conversation in the file `path`. Raises OSError."""
    kept: deque[Said] = deque()
    size = left_out = 0
    for said in _read(path, os.path.splitext(path)[0], None, set(), MAX_DEPTH):
        kept.append(said)
        size += len(said.line)
        while len(kept) > MAX_MESSAGES or size > MAX_BYTES:
            size -= len(kept.popleft().line)
            left_out += 1
    return History(list(kept), left_out)


def _read(path: str, folder: str, parent: str | None, seen: set[str], depth: int) -> Iterator[Said]:
    with open(path, "rb") as file:
        while line := file.readline(MAX_LINE_BYTES):
            record = _record(line)
            if record is None or (parent is None and record.get("isSidechain")):
                continue
            uuid = record["uuid"]
            if uuid in seen:
                continue
            for tool_use_id, agent in _answered_agents(record):
                own = f"{folder}/subagents/agent-{agent}.jsonl"
                if depth and own not in seen and os.path.isfile(own):
                    seen.add(own)
                    yield from _read(own, folder, tool_use_id, seen, depth - 1)
            told = as_printed(record, parent)
            if told is not None:
                seen.add(uuid)
                yield Said(_at(record.get("timestamp")), told)


def _record(line: bytes) -> dict[str, Any] | None:
    """A record of something said; None for others, and for one that was cut off."""
    try:
        record = json.loads(line)
    except (ValueError, RecursionError):
        return None
    if not isinstance(record, dict) or not isinstance(record.get("uuid"), str):
        return None
    return None if record.get("isMeta") or record.get("teamName") else record


def as_printed(record: dict[str, Any], parent: str | None) -> str | None:
    """A record as the agent's stdout had it; None for what is no part of the conversation."""
    kind = record.get("type")
    line: dict[str, Any] = {"type": kind}
    if kind in ("user", "assistant"):
        message = record.get("message")
        if not isinstance(message, dict) or not isinstance(message.get("content"), list | str):
            return None
        line["message"] = message
        line["parent_tool_use_id"] = parent
        if "toolUseResult" in record:
            line["tool_use_result"] = record["toolUseResult"]
    elif kind == "system" and record.get("subtype") in _SYSTEM:
        for ours, theirs in (
            ("subtype", "subtype"),
            ("content", "content"),
            ("level", "level"),
            ("compact_metadata", "compactMetadata"),
        ):
            if theirs in record:
                line[ours] = record[theirs]
    else:
        return None
    line["uuid"] = record["uuid"]
    for ours, theirs in (("session_id", "sessionId"), ("timestamp", "timestamp")):
        if isinstance(record.get(theirs), str):
            line[ours] = record[theirs]
    return json.dumps(line, separators=(",", ":"))


def _answered_agents(record: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """(tool use, agent) where a tool's result is a sub-agent's."""
    told, message = record.get("toolUseResult"), record.get("message")
    agent = told.get("agentId") if isinstance(told, dict) else None
    content = message.get("content") if isinstance(message, dict) else None
    if not isinstance(agent, str) or not _AGENT_ID.fullmatch(agent):
        return
    for block in content if isinstance(content, list) else []:
        if isinstance(block, dict) and isinstance(block.get("tool_use_id"), str):
            yield block["tool_use_id"], agent


def _at(timestamp: object) -> int:
    try:
        return int(datetime.fromisoformat(str(timestamp)).timestamp() * 1000)
    except (ValueError, OverflowError):
        return 0
