"""Which prompts did an earlier process of this session take? Its transcript tells.

After an agent died, a prompt without an echo may or may not have been taken. The keeper looks,
because the transcript is the account's file, and it looks before the new agent starts, because
that one writes to the same file.
"""

from __future__ import annotations

import glob
import json
import os
from collections.abc import Iterable, Iterator

from holdoverd.errors import LaunchError
from holdoverd.keeper.account import expand_home

MAX_FILES = 64
MAX_LINE_BYTES = 64 * 1024 * 1024
"""The longest line that is looked into as one record."""
MAX_TOTAL_BYTES = 8 * 1024**3

_SAID = frozenset({"user", "assistant"})
"""The types of the records that make a conversation; others, such as ``queue-operation``, do not."""
_PROMPT_KEYS = frozenset({"uuid", "commandUuid", "source_uuid"})
"""Where records keep the id of a prompt: its own record, or one that was folded into a turn."""
MAX_DEPTH = 16
"""How deep in a record an id is looked for; prompts' ids stand two levels down."""


def exists(globs: Iterable[str], home: str) -> bool:
    """Whether a transcript holds a conversation that the agent can go on with.

    That takes one whole record of it. An agent that was killed early leaves a file without any,
    and a power cut an empty one, or one of NULs; Claude Code finds no conversation in these.
    Raises `LaunchError` when it cannot be told.
    """
    return any(map(_is_said, _lines(_files(globs, home))))


def set_aside(globs: Iterable[str], home: str, at_ms: int) -> list[str]:
    """Rename the files in which `exists` has found nothing; returns their new names.

    With such a file in place the agent neither goes on with its conversation nor begins one
    ("already in use"), so that the session could never be started again. Raises `LaunchError`.
    """
    names = []
    for path in _files(globs, home):
        name = f"{path}.unusable-{at_ms}"
        try:
            os.rename(path, name)
        except OSError as error:
            raise LaunchError(
                f"the transcript {path} holds no conversation and cannot be renamed "
                f"({error.strerror}), so the agent would refuse to begin one; move it away",
                code="agent_failed",
            ) from error
        names.append(name)
    return names


def find_uuids(globs: Iterable[str], uuids: Iterable[str], home: str) -> list[str]:
    """Those of `uuids` that a transcript holds, in the given order.

    A uuid counts as the value of one of `_PROMPT_KEYS` in any record; one that is merely quoted
    in a text does not. A line that is not whole does not count: the agent will not read it either. Raises `LaunchError` when it cannot be told: guessing would
    lose a prompt or send it twice.
    """
    wanted = list(dict.fromkeys(uuids))
    if not wanted:
        return []
    missing = {uuid.encode(): uuid for uuid in wanted}
    for line in _lines(_files(globs, home)):
        hits = [needle for needle in missing if needle in line]
        if hits:
            for needle in _held(line, hits):
                del missing[needle]
            if not missing:
                break
    left = set(missing.values())
    return [uuid for uuid in wanted if uuid not in left]


def _files(globs: Iterable[str], home: str) -> list[str]:
    files = [path for pattern in globs for path in glob.iglob(expand_home(pattern, home))]
    if len(files) > MAX_FILES:
        raise LaunchError(
            f"{len(files)} transcripts match; the most that are searched is {MAX_FILES}",
            code="bad_request",
        )
    return files


def _lines(paths: Iterable[str]) -> Iterator[bytes]:
    left = MAX_TOTAL_BYTES
    for path in paths:
        try:
            with open(path, "rb") as file:
                left -= os.fstat(file.fileno()).st_size
                if left < 0:
                    raise LaunchError(
                        f"the transcripts up to {path} are larger than {MAX_TOTAL_BYTES} bytes, "
                        "too large to search; move old ones away",
                        code="agent_failed",
                    )
                while line := file.readline(MAX_LINE_BYTES):
                    yield line
        except OSError as error:
            raise LaunchError(
                f"the transcript {path} cannot be read ({error.strerror}), so it cannot be told "
                "which prompts were taken; make it readable for the agent's account",
                code="agent_failed",
            ) from error


def _is_said(line: bytes) -> bool:
    try:
        record = json.loads(line)
    except (ValueError, RecursionError):
        return False
    return isinstance(record, dict) and record.get("type") in _SAID


def _held(line: bytes, needles: list[bytes]) -> list[bytes]:
    try:
        record = json.loads(line)
    except (ValueError, RecursionError):
        return []
    ids = set(_ids(record, MAX_DEPTH))
    return [needle for needle in needles if needle.decode() in ids]


def _ids(value: object, depth: int) -> Iterator[str]:
    if depth == 0:
        return
    if isinstance(value, dict):
        for key, entry in value.items():
            if key in _PROMPT_KEYS and isinstance(entry, str):
                yield entry
            else:
                yield from _ids(entry, depth - 1)
    elif isinstance(value, list):
        for entry in value:
            yield from _ids(entry, depth - 1)
