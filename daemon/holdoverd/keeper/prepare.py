"""What an account has to do before the first agent of a session starts: PROTOCOL.md, "Preparing".

Another word on the account's agent socket, answered by a process with an agent's rights that lives
as long as it takes: it clones a repository into the new workspace, or reads what was said in a
conversation that was begun outside of Holdover. Standard library only.
"""

from __future__ import annotations

import contextlib
import glob
import json
import os
import re
import select
import socket
import time
from collections.abc import Callable, Mapping
from typing import NamedTuple

from holdoverd.errors import LaunchError
from holdoverd.keeper import account, clone, history
from holdoverd.keeper.launch import MAX_TRANSCRIPTS

VERSION = 1
MAX_REQUEST_BYTES = 64 * 1024
MAX_HEADER_BYTES = 64
WITHIN_S = 10.0
SEND_S = 60.0
CLONE_S = clone.CLONE_S

_HEADER = re.compile(rb"PREPARE ([0-9]{1,9}) ([0-9]{1,9})")
_WORKSPACE = re.compile(r"[A-Za-z0-9_-]{1,64}")


class Clone(NamedTuple):
    workspace: str
    url: str
    ref: str | None


class Recall(NamedTuple):
    transcripts: tuple[str, ...]  # globs, absolute or "~/…"


def encode_request(request: Mapping[str, object]) -> bytes:
    body = json.dumps(request, separators=(",", ":")).encode()
    return b"PREPARE %d %d\n%b" % (VERSION, len(body), body)


def parse_request(body: bytes) -> Clone | Recall:
    """Raises `LaunchError` ``bad_request``."""
    try:
        request = json.loads(body)
    except (ValueError, RecursionError):
        raise _bad("it is not JSON") from None
    if not isinstance(request, dict):
        raise _bad("it is not a JSON object")
    if request.get("op") == "clone":
        workspace, url, ref = (request.get(name) for name in ("workspace", "url", "ref"))
        if not isinstance(workspace, str) or not _WORKSPACE.fullmatch(workspace):
            raise _bad("workspace is no name of a folder")
        if not isinstance(url, str) or not isinstance(ref, str | None):
            raise _bad("url or ref is not a string")
        return Clone(workspace, url, ref)
    if request.get("op") == "recall":
        globs = request.get("transcripts")
        if (
            not isinstance(globs, list)
            or len(globs) > MAX_TRANSCRIPTS
            or not all(isinstance(g, str) and g.startswith(("/", "~/")) for g in globs)
        ):
            raise _bad("transcripts is not a short list of absolute globs")
        return Recall(tuple(globs))
    raise _bad("its op is neither clone nor recall")


def _bad(why: str) -> LaunchError:
    return LaunchError(f"this is no request to prepare a session: {why}", code="bad_request")


def receive(connection: socket.socket) -> Clone | Recall:
    """The whole request. Raises `LaunchError` ``bad_request``."""
    deadline = time.monotonic() + WITHIN_S
    buffer = b""
    try:
        while True:
            connection.settimeout(max(0.001, deadline - time.monotonic()))
            data = connection.recv(65536)
            buffer += data
            header, newline, body = buffer.partition(b"\n")
            match = _HEADER.fullmatch(header) if newline else None
            if match is not None and int(match[1]) == VERSION and len(body) >= int(match[2]):
                return parse_request(body[: int(match[2])])
            if newline and (match is None or int(match[1]) != VERSION):
                raise _bad(
                    f"this keeper takes requests that begin with 'PREPARE {VERSION} <length>'"
                )
            if not data or len(buffer) > MAX_REQUEST_BYTES:
                raise _bad("it was cut off, or is too long")
    except OSError as error:
        raise _bad(f"it did not arrive whole ({error})") from error


def serve(connection: socket.socket, log: Callable[[str], None]) -> None:
    """Take the request and do it; what fails is told to the daemon."""
    home = os.environ.get("HOME") or account.passwd_entry().pw_dir
    try:
        request = receive(connection)
        if isinstance(request, Clone):
            path = clone.clone(
                request.workspace, request.url, request.ref, home, lambda: _hung_up(connection)
            )
            _send(connection, {"ok": True, "cwd": path})
        else:
            _recall(connection, request, home)
    except LaunchError as error:
        log(f"a session was not prepared: {error}")
        with contextlib.suppress(OSError):
            refused = {"code": error.code, "message": str(error)[:2000]}
            _send(connection, {"ok": False, "error": refused})
    except OSError as error:
        log(f"the daemon left while a session was prepared ({error}), ignoring")


def _recall(connection: socket.socket, request: Recall, home: str) -> None:
    paths = [
        path
        for pattern in request.transcripts
        for path in sorted(glob.glob(account.expand_home(pattern, home)))
    ]
    left_out = 0
    # One conversation has one file; a copy of it in another project's folder says the same.
    for path in paths[:1]:
        try:
            found = history.read(path)
        except OSError as error:
            raise LaunchError(
                f"the transcript {path} cannot be read ({error.strerror}); make it readable for "
                "the agent's account",
                code="agent_failed",
            ) from error
        left_out = found.left_out
        connection.settimeout(SEND_S)
        for said in found.said:
            connection.sendall(b'{"at":%d,"line":%b}\n' % (said.at, said.line.encode("ascii")))
    _send(connection, {"ok": True, "left_out": left_out})


def _send(connection: socket.socket, answer: Mapping[str, object]) -> None:
    connection.settimeout(SEND_S)
    connection.sendall(json.dumps(answer).encode("ascii") + b"\n")


def _hung_up(connection: socket.socket) -> bool:
    """The daemon says nothing after its request: what can be read is its end."""
    return bool(select.select([connection], [], [], 0)[0])
