"""Carrying a file between storage and a workspace, in a unit of the agent's account.

The daemon may neither read nor write there, and no byte of a file goes through it; so it asks for
a process like an agent's, with the account's rights and behind the same walls, which does the
transfer by URLs that the daemon signs. PROTOCOL.md, "Carrying a file", has the words.

Standard library only, as all of the keeper.
"""

from __future__ import annotations

import contextlib
import hashlib
import http.client
import json
import os
import secrets
import socket
import stat
from collections.abc import Callable, Mapping
from pathlib import PurePosixPath
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from holdoverd.errors import LaunchError
from holdoverd.keeper import folders
from holdoverd.keeper.kernel import open_beneath, open_folder_beneath
from holdoverd.keeper.launch import CARRY_HEADER

VERSION = 1
MAX_LINE_BYTES = 1024 * 1024
CHUNK_BYTES = 1024 * 1024
STORAGE_TIMEOUT_S = 60.0
ORDERS_WITHIN_S = 120.0
ATTEMPTS = 3


class CarryRequest(NamedTuple):
    """A request, its fields checked. `way`: "in" to the workspace, "out" of it."""

    way: str
    cwd: str
    roots: tuple[str, ...]
    path: str  # relative to cwd
    url: str  # of the way in, with size and sha256
    size: int
    sha256: str | None


def carry_request(**fields: object) -> bytes:
    """The bytes of a request, for the daemon to send."""
    body = json.dumps(fields, separators=(",", ":"), ensure_ascii=False).encode()
    return CARRY_HEADER + b"%d %d\n%b" % (VERSION, len(body), body)


def parse_request(data: bytes) -> CarryRequest | None:
    """The request once `data` holds it whole, else None. Raises LaunchError ``bad_request``."""
    header, newline, body = data.partition(b"\n")
    if not newline:
        if len(data) > 64:
            raise _bad("no header line")
        return None
    words = header.split(b" ")
    if len(words) != 3 or not (words[1].isdigit() and words[2].isdigit() and len(words[2]) < 8):
        raise _bad("its header is not 'CARRY 1 <length>'")
    if int(words[1]) != VERSION:
        raise _bad(f"version {int(words[1])}; this keeper takes {VERSION}")
    length = int(words[2])
    if length > MAX_LINE_BYTES or len(body) > length:
        raise _bad("it is longer than it may be, or than it says")
    if len(body) < length:
        return None
    try:
        fields = json.loads(body)
    except (ValueError, RecursionError):
        raise _bad("it is not JSON") from None
    return _checked(fields)


def _checked(fields: Any) -> CarryRequest:
    if not isinstance(fields, dict):
        raise _bad("it is not a JSON object")
    way, cwd, path = (fields.get(name) for name in ("way", "cwd", "path"))
    roots, size, sha256 = fields.get("roots", []), fields.get("size", 0), fields.get("sha256")
    url = fields.get("url", "")
    texts = [cwd, path, url, *(roots if isinstance(roots, list) else [None])]
    if way not in ("in", "out") or not all(isinstance(t, str) and "\0" not in t for t in texts):
        raise _bad("a field is missing or of the wrong kind")
    if not isinstance(size, int) or size < 0 or not isinstance(sha256, str | None):
        raise _bad("a field is missing or of the wrong kind")
    assert isinstance(cwd, str)
    assert isinstance(path, str)
    return CarryRequest(way, cwd, tuple(roots), check_path(path), url, size, sha256)


def check_path(path: str) -> str:
    """A path beneath the workspace; LaunchError for one that is absolute, empty or goes up."""
    pure = PurePosixPath(path)
    if pure.is_absolute() or ".." in pure.parts or not pure.name:
        raise LaunchError(
            f"{path[:200]!r} is no path of a file beneath the workspace", code="bad_request"
        )
    return str(pure)


def _bad(why: str) -> LaunchError:
    return LaunchError(f"this is no request to carry a file: {why}", code="bad_request")


# --- the process ------------------------------------------------------------------------------


class Line:
    """The connection, line by line."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._buffer = b""

    def receive(self) -> bytes:
        """The next line, b"" when the daemon has hung up. Raises OSError."""
        self._connection.settimeout(ORDERS_WITHIN_S)
        while b"\n" not in self._buffer:
            data = self._connection.recv(65536)
            self._buffer += data
            if not data or len(self._buffer) > MAX_LINE_BYTES:
                return b""
        line, _, self._buffer = self._buffer.partition(b"\n")
        return line

    def send(self, answer: Mapping[str, object]) -> None:
        self._connection.settimeout(ORDERS_WITHIN_S)
        self._connection.sendall(json.dumps(answer).encode("ascii") + b"\n")


def serve(connection: socket.socket, log: Callable[[str], None]) -> None:
    """Take the request and do it; every failure is told to the daemon, and logged without URLs."""
    line = Line(connection)
    try:
        request = _receive(connection)
        home = os.environ.get("HOME") or os.path.expanduser("~")
        cwd_fd, _ = folders.open_cwd(request.cwd, request.roots, home)
        if request.way == "in":
            line.send({"ok": True, **_bring_in(cwd_fd, request)})
        else:
            _take_out(cwd_fd, request, line)
    except LaunchError as error:
        log(f"a file was not carried: {error}")
        with contextlib.suppress(OSError):
            line.send({"ok": False, "error": {"code": error.code, "message": str(error)[:2000]}})
    except OSError as error:
        log(f"the daemon left while a file was carried ({error}), ignoring")


def _receive(connection: socket.socket) -> CarryRequest:
    connection.settimeout(10)
    data = b""
    while True:
        chunk = connection.recv(65536)
        data += chunk
        request = parse_request(data)
        if request is not None:
            return request
        if not chunk:
            raise _bad("it was cut off")


# --- into the workspace -----------------------------------------------------------------------


def _bring_in(cwd_fd: int, request: CarryRequest) -> dict[str, object]:
    """Read `url` into the file: under another name first, made durable, then renamed.

    One that is there already and is the same is left alone, so that asking again is harmless.
    """
    path = PurePosixPath(request.path)
    folder = _make_folders(cwd_fd, path.parent)
    try:
        if _is_same(folder, path.name, request):
            return {"size": request.size, "kept": True}
        part = f".holdover-{secrets.token_hex(8)}.part"
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        with open(os.open(part, flags, 0o600, dir_fd=folder), "wb", buffering=0) as file:
            try:
                digest = _download(request, file)
                os.fsync(file.fileno())
                os.rename(part, path.name, src_dir_fd=folder, dst_dir_fd=folder)
            except BaseException:
                with contextlib.suppress(OSError):
                    os.unlink(part, dir_fd=folder)
                raise
        return {"size": request.size, "sha256": digest}
    except OSError as error:
        raise _denied(request.path, error) from error
    finally:
        os.close(folder)


def _make_folders(cwd_fd: int, parent: PurePosixPath) -> int:
    """`parent` beneath the workspace, made where it is missing; no symbolic link leads out."""
    try:
        made = PurePosixPath()
        for name in parent.parts:
            above = open_folder_beneath(cwd_fd, os.fsencode(str(made)))
            try:
                with contextlib.suppress(FileExistsError):
                    os.mkdir(name, 0o700, dir_fd=above)
            finally:
                os.close(above)
            made /= name
        return open_folder_beneath(cwd_fd, os.fsencode(str(made)))
    except OSError as error:
        raise _denied(str(parent), error) from error


def _is_same(folder: int, name: str, request: CarryRequest) -> bool:
    try:
        fd = os.open(
            name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=folder
        )
    except OSError:
        return False
    with open(fd, "rb") as file:
        found = os.fstat(fd)
        if not stat.S_ISREG(found.st_mode) or found.st_size != request.size:
            return False
        return request.sha256 is None or (
            hashlib.file_digest(file, "sha256").hexdigest() == request.sha256
        )


def _download(request: CarryRequest, file: Any) -> str:
    digest = hashlib.sha256()
    size = 0
    try:
        connection, target = _connect(request.url)
        with contextlib.closing(connection):
            connection.request("GET", target)
            response = connection.getresponse()
            if response.status != 200:
                raise _failed(f"storage answered {response.status}")
            while chunk := response.read(CHUNK_BYTES):
                view = memoryview(chunk)
                while view:
                    view = view[file.write(view) :]
                digest.update(chunk)
                size += len(chunk)
    except http.client.HTTPException as error:
        raise _failed(f"storage broke off ({type(error).__name__})") from error
    if size != request.size or request.sha256 not in (None, digest.hexdigest()):
        raise _failed(f"storage gave {size} bytes that are not the file")
    return digest.hexdigest()


# --- out of the workspace ---------------------------------------------------------------------


def _take_out(cwd_fd: int, request: CarryRequest, line: Line) -> None:
    """Tell the file's size, then put parts as they are ordered until the daemon hangs up."""
    try:
        # Not blocking: a FIFO would wait for a writer for ever.
        fd = open_beneath(cwd_fd, os.fsencode(request.path), os.O_RDONLY | os.O_NONBLOCK)
    except OSError as error:
        raise _denied(request.path, error) from error
    with open(fd, "rb", buffering=0) as file:
        found = os.fstat(fd)
        if not stat.S_ISREG(found.st_mode):
            raise LaunchError(f"{request.path} is no regular file", code="file_denied")
        line.send({"ok": True, "size": found.st_size})
        while order := line.receive():
            etags = {}
            for part in json.loads(order)["parts"]:
                etags[str(part["number"])] = _put(file.fileno(), part)
            line.send({"ok": True, "etags": etags})


def _put(fd: int, part: Mapping[str, Any]) -> str:
    """The ETag of a part that is in storage now; tried thrice."""
    problem = ""
    for _ in range(ATTEMPTS):
        try:
            connection, target = _connect(part["url"])
            with contextlib.closing(connection):
                headers = {**part["headers"], "Content-Length": str(part["size"])}
                body = _Slice(fd, part["offset"], part["size"])
                connection.request(part["method"], target, body=body, headers=headers)
                response = connection.getresponse()
                response.read()
                etag = response.getheader("ETag")
                if response.status == 200 and etag:
                    return etag
                problem = f"storage answered {response.status}"
        except (OSError, http.client.HTTPException) as error:
            problem = f"the connection to storage broke ({type(error).__name__})"
    raise _failed(problem)


class _Slice:
    """`size` bytes of a file from `offset`, as http.client reads bodies. Its place is its own."""

    def __init__(self, fd: int, offset: int, size: int) -> None:
        self._fd, self._at, self._end = fd, offset, offset + size

    def read(self, count: int = CHUNK_BYTES, /) -> bytes:
        wanted = min(count, self._end - self._at)
        data = os.pread(self._fd, wanted, self._at)
        if wanted and not data:
            # Storage would wait for the rest until it loses patience.
            raise _failed("the file became shorter while it was read")
        self._at += len(data)
        return data


# --- how --------------------------------------------------------------------------------------


def _connect(url: str) -> tuple[http.client.HTTPConnection, str]:
    parts = urlsplit(url)
    kind = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
    connection = kind(parts.netloc, timeout=STORAGE_TIMEOUT_S, blocksize=CHUNK_BYTES)
    return connection, f"{parts.path}?{parts.query}"


def _failed(why: str) -> LaunchError:
    return LaunchError(f"the transfer failed: {why}; try again", code="transfer_failed")


def _denied(path: str, error: OSError) -> LaunchError:
    if isinstance(error, FileNotFoundError):
        return LaunchError(f"there is no {path} in the workspace", code="file_missing")
    return LaunchError(
        f"{path} cannot be opened beneath the workspace: {error.strerror}", code="file_denied"
    )
