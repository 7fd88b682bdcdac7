"""The launch request and its answer: bytes to a checked record and back. No I/O.

On the wire: ``LAUNCH 1 <length>\\n`` and that many bytes of JSON, the three descriptors
``[listener, lock, spool]`` with the first byte; the answer is one line of JSON. PROTOCOL.md lists
the fields.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any, NamedTuple

from holdoverd.errors import KeeperError, LaunchError

VERSION = 1
CARRY_HEADER = b"CARRY "
"""How a request begins that wants a file carried instead; see `carry`."""
MAX_REQUEST_BYTES = 1024 * 1024
"""The JSON of one request; more than the kernel takes as arguments and environment anyway."""
MAX_HEADER_BYTES = 64
MAX_ANSWER_BYTES = 256 * 1024
"""One answer: a path, and `MAX_UUIDS` identifiers of 64 characters."""
MAX_UUIDS = 1000
MAX_TRANSCRIPTS = 16
MAX_ROOTS = 64
DESCRIPTORS = 3
"""listener, lock, spool."""

CODES = frozenset(
    {
        "cwd_missing",
        "cwd_outside",
        "cwd_denied",
        "no_conversation",
        "agent_missing",
        "agent_failed",
        "bad_request",
        "not_allowed",
    }
)

_HEADER = re.compile(rb"LAUNCH ([0-9]{1,9}) ([0-9]{1,9})")
_IDENTIFIER = re.compile(r"[A-Za-z0-9_-]{1,64}")
_NONCE = re.compile(r"[0-9a-f]{32}")


class LaunchRequest(NamedTuple):
    """A request whose fields have been checked; see PROTOCOL.md for what each means."""

    session: str
    launch: str
    nonce: str  # 32 hex digits, told to nobody but the spool's end record
    owner_epoch: int  # greetings below it are stale
    argv: tuple[str, ...]  # argv[0]: absolute, "~/…" or a bare name looked up in PATH
    fresh_argv: tuple[str, ...]  # instead of argv where no transcript exists; () = never
    env: dict[str, str]
    cwd: str | None  # None: $HOME/workspaces/<workspace>, made when missing
    workspace: str  # "" when cwd is given
    roots: tuple[str, ...]  # absolute or "~/…"
    transcripts: tuple[str, ...]  # globs, absolute or "~/…"
    required: bool
    uuids: tuple[str, ...]


def launch_request(request: Mapping[str, object]) -> bytes:
    """The bytes of a request; send the descriptors with the first of them.

    Raises `LaunchError` (``bad_request``) if it is too long to be read.
    """
    body = json.dumps(request, separators=(",", ":"), ensure_ascii=False).encode()
    if len(body) > MAX_REQUEST_BYTES:
        raise _bad(f"the launch request has {len(body)} bytes; the most is {MAX_REQUEST_BYTES}")
    return b"LAUNCH %d %d\n%b" % (VERSION, len(body), body)


def parse_launch_answer(data: bytes) -> dict[str, Any]:
    """The answer, a whole line: ``{"ok": true, …}`` or ``{"ok": false, "error": {…}}``.

    Raises `KeeperError` if it is cut off or not an answer at all, as when the keeper was killed:
    whether an agent runs then shows in the session's lock alone.
    """
    try:
        answer = json.loads(data) if data.endswith(b"\n") else None
    except ValueError:
        answer = None
    if isinstance(answer, dict):
        if answer.get("ok") is True and isinstance(answer.get("agent_pid"), int):
            return answer
        error = answer.get("error")
        if answer.get("ok") is False and isinstance(error, dict) and error.get("code") in CODES:
            return answer
    raise KeeperError(
        f"the keeper's answer was cut off or unknown ({data[:80]!r}); the account's journal may "
        "say why. The session can be launched again once its lock is free"
    )


def answer_started(
    *, keeper_pid: int, agent_pid: int, cwd: str, found: list[str], fresh: bool, isolation: str
) -> bytes:
    """The agent runs; `fresh`: by ``fresh_argv``."""
    return _answer(
        {
            "ok": True,
            "keeper_pid": keeper_pid,
            "agent_pid": agent_pid,
            "cwd": cwd,
            "found": found,
            "fresh": fresh,
            "isolation": isolation,
        }
    )


def answer_refused(error: LaunchError) -> bytes:
    """Nothing was started and nothing is left."""
    return _answer({"ok": False, "error": {"code": error.code, "message": str(error)[:2000]}})


def _answer(answer: dict[str, object]) -> bytes:
    return json.dumps(answer, separators=(",", ":")).encode("ascii") + b"\n"


class RequestReader:
    """Collects one request, cut anywhere; holds at most `MAX_REQUEST_BYTES` and a header."""

    def __init__(self) -> None:
        self._buffer = bytearray()
        self._length: int | None = None

    def receive(self, data: bytes) -> LaunchRequest | None:
        """The request once it is whole, else None. `b""` says that the sender hung up.

        Raises `LaunchError` (``bad_request``).
        """
        self._buffer += data
        if self._length is None:
            stop = self._buffer.find(b"\n", 0, MAX_HEADER_BYTES)
            if stop < 0 and len(self._buffer) >= MAX_HEADER_BYTES:
                raise _bad("this is no launch request: no header line")
            if stop >= 0:
                self._length = _parse_header(bytes(self._buffer[:stop]))
                del self._buffer[: stop + 1]
        if self._length is not None and len(self._buffer) >= self._length:
            if len(self._buffer) > self._length:
                raise _bad("bytes follow the launch request; send one request a connection")
            body, self._buffer = self._buffer, bytearray()
            return parse_request(bytes(body))
        if not data:
            raise _bad("the launch request was cut off")
        return None


def _parse_header(header: bytes) -> int:
    match = _HEADER.fullmatch(header)
    if match is None:
        raise _bad("this is no launch request: its header is not 'LAUNCH 1 <length>'")
    version, length = int(match[1]), int(match[2])
    if version != VERSION:
        raise _bad(f"launch request of version {version}; this keeper takes {VERSION}")
    if length > MAX_REQUEST_BYTES:
        raise _bad(f"the launch request has {length} bytes; the most is {MAX_REQUEST_BYTES}")
    return length


def parse_request(body: bytes) -> LaunchRequest:
    """Check every field; unknown fields are ignored, for a newer daemon's sake.

    Raises `LaunchError` (``bad_request``) that names the field.
    """
    try:
        request = json.loads(body)
    except (ValueError, RecursionError):
        raise _bad("the launch request is not JSON") from None
    if not isinstance(request, dict):
        raise _bad("the launch request is not a JSON object")
    lookup = request.get("lookup") or {}
    if not isinstance(lookup, dict):
        raise _bad("lookup is not an object")
    cwd = request.get("cwd")
    if cwd is not None:
        cwd = _text("cwd", cwd)
        if not cwd.startswith("/"):
            raise _bad(f"cwd {cwd!r} is not absolute")
    argv = _texts("argv", request.get("argv"), 4096)
    if not argv or not argv[0]:
        raise _bad("argv is empty")
    fresh_argv = _texts("fresh_argv", request.get("fresh_argv", []), 4096)
    if fresh_argv and not fresh_argv[0]:
        raise _bad("fresh_argv begins with an empty string")
    return LaunchRequest(
        session=_matching("session", request.get("session"), _IDENTIFIER),
        launch=_matching("launch", request.get("launch"), _IDENTIFIER),
        nonce=_matching("nonce", request.get("nonce"), _NONCE),
        owner_epoch=_epoch(request.get("owner_epoch")),
        argv=argv,
        fresh_argv=fresh_argv,
        env=_environment(request.get("env", {})),
        cwd=cwd,
        workspace=""
        if cwd is not None
        else _matching("workspace", request.get("workspace"), _IDENTIFIER),
        roots=_paths("roots", request.get("roots", []), MAX_ROOTS),
        transcripts=_paths("lookup.transcripts", lookup.get("transcripts", []), MAX_TRANSCRIPTS),
        required=lookup.get("required") is True,
        uuids=tuple(
            _matching("lookup.uuids", uuid, _IDENTIFIER)
            for uuid in _texts("lookup.uuids", lookup.get("uuids", []), MAX_UUIDS)
        ),
    )


def _bad(message: str) -> LaunchError:
    return LaunchError(message, code="bad_request")


def _text(name: str, value: object) -> str:
    """A string that the kernel can take: no NUL, no lone surrogate."""
    if not isinstance(value, str):
        raise _bad(f"{name} is not a string")
    if "\0" in value:
        raise _bad(f"{name} holds a NUL character")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise _bad(f"{name} holds half a surrogate pair") from None
    return value


def _texts(name: str, value: object, most: int) -> tuple[str, ...]:
    if not isinstance(value, list):
        raise _bad(f"{name} is not a list")
    if len(value) > most:
        raise _bad(f"{name} has {len(value)} entries; the most is {most}")
    return tuple(_text(name, entry) for entry in value)


def _paths(name: str, value: object, most: int) -> tuple[str, ...]:
    paths = _texts(name, value, most)
    for path in paths:
        if not path.startswith(("/", "~/")) and path != "~":
            raise _bad(f"{name}: {path!r} is neither absolute nor beneath ~")
    return paths


def _matching(name: str, value: object, pattern: re.Pattern[str]) -> str:
    text = _text(name, value)
    if not pattern.fullmatch(text):
        raise _bad(f"{name} {text[:80]!r} does not have the form {pattern.pattern}")
    return text


def _epoch(value: object) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < 2**63:
        raise _bad("owner_epoch is not an integer from 0")
    return value


def _environment(value: object) -> dict[str, str]:
    if not isinstance(value, dict):
        raise _bad("env is not an object")
    for name in value:
        if not name or "=" in _text("env", name):
            raise _bad(f"env: {name[:80]!r} is no name of a variable")
    return {name: _text(f"env.{name}", entry) for name, entry in value.items()}
