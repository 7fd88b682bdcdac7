"""The agent's lines that both arms carry: 1 KiB each, numbered, and told apart from any damage."""

import hashlib
import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from uuid import UUID

LINE_BYTES = 1024
"""One line with its newline."""

DONE = "bench-done"
"""Stands in the last line of all, a `result`; whoever sees it has seen everything."""


def write_lines(path: Path, count: int) -> None:
    """`count` assistant frames as Claude Code sends them, then a result."""
    random_bytes = random.Random(count)
    with path.open("wb") as file:
        for number in range(1, count + 1):
            file.write(_line(number, random_bytes))
        done = {"type": "result", "subtype": "success", "is_error": False, "result": DONE}
        file.write(json.dumps(done, separators=(",", ":")).encode() + b"\n")


def _line(number: int, source: random.Random) -> bytes:
    frame: dict[str, Any] = {
        "type": "assistant",
        "message": {
            "id": f"msg_{source.getrandbits(96):024x}",
            "type": "message",
            "role": "assistant",
            "model": "bench",
            "content": [{"type": "text", "text": ""}],
            "stop_reason": None,
            "stop_sequence": None,
            "usage": {"input_tokens": 10, "output_tokens": 10},
        },
        "parent_tool_use_id": None,
        "session_id": "0b8ffcd4-6fd5-4e21-9d0e-7c5a3bd4a3a1",
        "uuid": str(UUID(int=source.getrandbits(128), version=4)),
    }
    head = f"#{number} "
    room = LINE_BYTES - 1 - len(json.dumps(frame, separators=(",", ":"))) - len(head) - 65
    payload = f"{source.getrandbits(room * 4):0{room}x}"
    digest = hashlib.sha256(payload.encode()).hexdigest()
    frame["message"]["content"][0]["text"] = f"{head}{digest} {payload}"
    line = json.dumps(frame, separators=(",", ":")).encode() + b"\n"
    assert len(line) == LINE_BYTES, "every line has the same size"
    return line


def read_lines(path: Path, chunk_bytes: int = 1024 * 1024) -> Iterator[list[bytes]]:
    """The lines of a file, without newlines, as many at a time as a chunk completes."""
    rest = b""
    with path.open("rb", buffering=0) as file:
        while chunk := file.read(chunk_bytes):
            *lines, rest = (rest + chunk).split(b"\n")
            yield lines


def numbers(messages: list[Any]) -> list[int]:
    """The numbers of the lines in a frame's `messages`; asserts that none was damaged.

    An item is the agent's line, or Holdover's message with the line as its body.
    """
    found: list[int] = []
    for item in messages:
        line = item.get("body", item)
        if line.get("type") != "assistant":
            continue
        number, digest, payload = line["message"]["content"][0]["text"].split(" ")
        assert hashlib.sha256(payload.encode()).hexdigest() == digest, "a damaged line"
        found.append(int(number[1:]))
    return found
