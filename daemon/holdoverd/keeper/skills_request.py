"""The request about skills on an account's agent socket: its bytes, both ways. PROTOCOL.md, Skills.

Beside the launch, and as small: what is asked is `skills.helper`'s to understand.
"""

from __future__ import annotations

import json
import re
import socket
import time
from collections.abc import Mapping
from typing import Any

from holdoverd.errors import LaunchError

VERSION = 1
WORD = b"SKILLS "
JOURNAL = ".local/share/holdover/skills/journal.json"
"""Beneath the account's home: a change of skills was cut off (`skills.changes`)."""
MAX_REQUEST_BYTES = 1024 * 1024
MAX_HEADER_BYTES = 64
MAX_ANSWER_BYTES = 16 * 1024 * 1024

_HEADER = re.compile(rb"SKILLS ([0-9]{1,9}) ([0-9]{1,9})")


def encode_request(request: Mapping[str, object]) -> bytes:
    """Raises `LaunchError` (``bad_request``) if it is too long to be read."""
    body = json.dumps(request, separators=(",", ":")).encode()
    if len(body) > MAX_REQUEST_BYTES:
        raise _bad(f"the request has {len(body)} bytes; the most is {MAX_REQUEST_BYTES}")
    return b"SKILLS %d %d\n%b" % (VERSION, len(body), body)


def encode_answer(answer: Mapping[str, object]) -> bytes:
    line = json.dumps(answer, separators=(",", ":")).encode("ascii") + b"\n"
    if len(line) <= MAX_ANSWER_BYTES:
        return line
    error = {"code": "failed", "message": "the answer is too long to be told; ask for less"}
    return json.dumps({"ok": False, "error": error}).encode("ascii") + b"\n"


def receive(connection: socket.socket, within_s: float) -> dict[str, Any]:
    """The whole request, as it was sent. Raises `LaunchError` (``bad_request``)."""
    deadline = time.monotonic() + within_s
    buffer = bytearray()
    length: int | None = None
    try:
        while length is None or len(buffer) < length:
            connection.settimeout(max(0.001, deadline - time.monotonic()))
            data = connection.recv(65536)
            if not data:
                raise _bad("the request about skills was cut off")
            buffer += data
            stop = buffer.find(b"\n", 0, MAX_HEADER_BYTES) if length is None else -1
            if length is None and stop >= 0:
                length = _length(bytes(buffer[:stop]))
                del buffer[: stop + 1]
            elif length is None and len(buffer) >= MAX_HEADER_BYTES:
                raise _bad("this is no request about skills: no header line")
    except OSError as error:
        raise _bad(f"the request about skills did not arrive whole ({error})") from error
    try:
        request = json.loads(bytes(buffer[:length]))
    except (ValueError, RecursionError):
        raise _bad("the request about skills is not JSON") from None
    if not isinstance(request, dict):
        raise _bad("the request about skills is not a JSON object")
    return request


def _length(header: bytes) -> int:
    match = _HEADER.fullmatch(header)
    if match is None or int(match[1]) != VERSION:
        raise _bad(f"this keeper takes requests that begin with 'SKILLS {VERSION} <length>'")
    if int(match[2]) > MAX_REQUEST_BYTES:
        raise _bad(f"the request has {int(match[2])} bytes; the most is {MAX_REQUEST_BYTES}")
    return int(match[2])


def _bad(message: str) -> LaunchError:
    return LaunchError(message, code="bad_request")
