"""Files between storage and a session's workspace, carried by a process of the agent's account.

The daemon signs and says what goes where (`keeper.carry` does it): no byte of a file comes here, and
the account's rights decide what may be read and written.
"""

import json
import logging
import socket
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import trio

from holdoverd.callers import Caller
from holdoverd.catalogue.records import SessionRow
from holdoverd.errors import (
    Conflict,
    Forbidden,
    HoldoverError,
    LaunchError,
    NotFound,
    RequestError,
    Unavailable,
    Unprocessable,
)
from holdoverd.files import rules
from holdoverd.files.rules import Parts
from holdoverd.files.service import Files, check_ready
from holdoverd.files.uploads import NewFile, Uploads
from holdoverd.files.who import AsCaller
from holdoverd.files.wire import Json
from holdoverd.keeper import carry

log = logging.getLogger(__name__)

ATTACHMENTS = "attachments"
"""The folder in the workspace; a folder of its own for each file, since names may be the same."""

FIRST_ANSWER_S = 30.0
# A window of parts, or a whole attachment.
TRANSFER_S = 3600.0
WINDOW = 16
MAX_ANSWER_BYTES = 1024 * 1024

_STATUS: dict[str, type[RequestError]] = {
    "file_missing": NotFound,
    "file_denied": Unprocessable,
    "cwd_missing": Conflict,
    "cwd_outside": Conflict,
    "cwd_denied": Conflict,
}


class Carrier:
    """Made once by `main`. `agents` is the folder of the accounts' agent sockets."""

    def __init__(
        self,
        files: Files,
        uploads: Uploads,
        agents: Path,
        roots: Sequence[str],
        host: str,
        nursery: trio.Nursery,
        find_session: Callable[[Caller, str], Awaitable[SessionRow]],
    ) -> None:
        """`find_session`: the session, if the caller may write to it; raises RequestErrors."""
        self._files = files
        self._uploads = uploads
        self._agents = agents
        self._roots = list(roots)
        self._host = host
        self._nursery = nursery
        self._find_session = find_session

    async def take_out(self, caller: Caller, session: str, path: str) -> Json:
        """A file of the workspace as a file of the session's owner, which is on its way now."""
        row = await self._session(caller, session)
        path = _checked(path)
        # A name on a disk may be no text at all; what is asked for is, and it is the last of it.
        name = rules.check_name(path.rpartition("/")[2])
        who = AsCaller(replace(caller, owner=row.owner))
        line = await self._ask(row, way="out", path=path)
        try:
            first = await line.receive(FIRST_ANSWER_S)
            made = await self._uploads.create(
                who, NewFile(name, "", int(first["size"]), None, rules.OCTETS)
            )
        except BaseException:
            line.close()
            raise
        self._nursery.start_soon(self._take_out, line, who, made)
        file = made["file"]
        assert isinstance(file, dict)
        return file

    async def _take_out(self, line: "_Line", who: AsCaller, made: Json) -> None:
        file, upload = made["file"], made["upload"]
        assert isinstance(file, dict)
        assert isinstance(upload, dict)
        parts = Parts(file["size"], upload["part_size"])
        etags: dict[int, str] = {}
        try:
            for start in range(1, parts.count + 1, WINDOW):
                numbers = range(start, min(start + WINDOW, parts.count + 1))
                signed = await self._uploads.urls(who, upload["id"], numbers, {}, inside=True)
                await line.send({"parts": _ordered(signed, parts)})
                answer = await line.receive(TRANSFER_S)
                etags |= {int(number): str(etag) for number, etag in answer["etags"].items()}
            await self._uploads.complete(who, upload["id"], etags)
        except Exception as error:
            # The instance goes on; whoever asked sees the file deleted.
            if isinstance(error, HoldoverError):
                log.warning("the file %s did not come out of its workspace: %s", file["id"], error)
            else:
                log.exception("the file %s did not come out of its workspace", file["id"])
            with suppress(RequestError):
                await self._uploads.abort(who, upload["id"])
        finally:
            line.close()

    async def attach(self, caller: Caller, session: str, prompt: Json) -> Json:
        """`prompt` with its attachments in the workspace, named at the end of what it says.

        Asking again says the same and carries nothing twice.
        """
        ids = prompt["attachments"]
        assert isinstance(ids, list)
        if not caller.admin and "read" not in caller.scopes:
            raise Forbidden("Attaching files needs the scope `read` as well; ask for such a token.")
        row = await self._session(caller, session)
        found = [await self._files.find(AsCaller(caller), str(file_id)) for file_id in ids]
        for file in found:
            check_ready(file)
        await self._files.store.check_clock()
        paths = []
        for file in found:
            path = f"{ATTACHMENTS}/{file.id}/{file.name}"
            url, _ = self._files.sign_download(file, int(TRANSFER_S), inside=True)
            line = await self._ask(
                row, way="in", path=path, url=url, size=file.size, sha256=file.sha256
            )
            try:
                await line.receive(TRANSFER_S)
            finally:
                line.close()
            paths.append(path)
        return _naming({k: v for k, v in prompt.items() if k != "attachments"}, paths)

    async def _session(self, caller: Caller, session: str) -> SessionRow:
        row = await self._find_session(caller, session)
        if row.cwd is None:
            raise Conflict(
                f"Session {session} has no workspace yet; try again once it has started."
            )
        if row.host != self._host:
            raise Unavailable(f"The workspace of session {session} is on the host {row.host}.")
        return row

    async def _ask(self, row: SessionRow, **request: object) -> "_Line":
        path = self._agents / f"{row.account}.sock"
        sock = trio.socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        line = _Line(sock)
        try:
            with trio.fail_after(FIRST_ANSWER_S):
                await sock.connect(str(path))
                data = carry.carry_request(cwd=row.cwd, roots=self._roots, **request)
                await line.send_bytes(data)
        except (OSError, trio.TooSlowError) as error:
            line.close()
            raise Unavailable(
                f"The agent socket {path} does not answer; see `systemctl status"
                f" 'holdover-agent-{row.account}.socket'`, or start `holdover up` again."
            ) from error
        except BaseException:
            line.close()
            raise
        return line


class _Line:
    """A connection to whoever carries, line by line."""

    def __init__(self, sock: trio.socket.SocketType) -> None:
        self._sock = sock
        self._buffer = bytearray()

    async def send(self, order: Json) -> None:
        await self.send_bytes(json.dumps(order).encode() + b"\n")

    async def send_bytes(self, data: bytes) -> None:
        view = memoryview(data)
        try:
            while view:
                view = view[await self._sock.send(view) :]
        except OSError as error:
            raise _gone() from error

    async def receive(self, timeout_s: float) -> dict[str, Any]:
        """The next answer. Raises the RequestError that a refusal means, or Unavailable."""
        try:
            with trio.fail_after(timeout_s):
                while not (stop := self._buffer.find(b"\n") + 1):
                    data = await self._sock.recv(65536)
                    self._buffer += data
                    if not data or len(self._buffer) > MAX_ANSWER_BYTES:
                        raise _gone()
        except (OSError, trio.TooSlowError) as error:
            raise _gone() from error
        try:
            answer = json.loads(bytes(self._buffer[:stop]))
        except ValueError as error:
            raise _gone() from error
        del self._buffer[:stop]
        if not isinstance(answer, dict):
            raise _gone()
        if answer.get("ok") is True:
            return answer
        refused = answer.get("error") or {}
        message = str(refused.get("message") or "no reason was given")[:500]
        kind = _STATUS.get(str(refused.get("code")), Unavailable)
        raise kind(f"The file was not carried: {message}.")

    def close(self) -> None:
        self._sock.close()


def _gone() -> Unavailable:
    return Unavailable(
        "Whoever was to carry the file between storage and the workspace has gone silent; the"
        " account's journal may say why. Try again."
    )


def _checked(path: str) -> str:
    try:
        return carry.check_path(path)
    except LaunchError as error:
        raise Unprocessable(f"{error}; name it relative to the session's folder.") from error


def _ordered(signed: Json, parts: Parts) -> list[Json]:
    found = signed["parts"]
    assert isinstance(found, list)
    return [
        {
            "number": part["number"],
            "method": part["method"],
            "url": part["url"],
            "headers": part["headers"],
            "offset": (part["number"] - 1) * parts.part_size,
            "size": parts.size_of(part["number"]),
        }
        for part in found
    ]


def _naming(prompt: Json, paths: Sequence[str]) -> Json:
    """The prompt, saying where its attachments are. Names in quotes: they may hold anything."""
    names = "\n".join(json.dumps(path, ensure_ascii=False) for path in paths)
    said = f"Attached files, in the working folder:\n{names}"
    if "text" in prompt:
        return {**prompt, "text": f"{prompt['text']}\n\n{said}"}
    content = prompt["content"]
    assert isinstance(content, list)
    return {**prompt, "content": [*content, {"type": "text", "text": said}]}
