"""Having an account make a new session ready: a clone for its workspace, its messages from before.

Both before anything is stored: what fails here leaves no session behind.
"""

import json
import socket
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import trio

from holdoverd.agents.stream_json import Frame, classify
from holdoverd.errors import LaunchError, Unavailable, Unprocessable
from holdoverd.keeper import clone as clone_rules
from holdoverd.keeper import prepare

CONNECT_S = 30.0
ANSWER_S = 60.0
"""Between two lines of an answer."""
MAX_LINE_BYTES = 64 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class Before:
    """What was said in a conversation before it was adopted: (when, frame), oldest first."""

    said: Sequence[tuple[int, Frame]]
    left_out: int = 0


async def clone(agents: Path, account: str, workspace: str, url: str, ref: str | None) -> None:
    """Make the account's workspace of a repository. Raises Unprocessable, Unavailable."""
    try:
        clone_rules.check(url, ref)  # before anybody is asked
    except LaunchError as error:
        raise _refused(error.code, str(error)) from error
    request = {"op": "clone", "workspace": workspace, "url": url, "ref": ref}
    await _ask(agents, account, request, lambda _answer: None, prepare.CLONE_S + ANSWER_S)


async def recall(agents: Path, account: str, transcripts: Sequence[str]) -> Before:
    """What the transcripts hold of a conversation. Raises Unprocessable, Unavailable."""
    said: list[tuple[int, Frame]] = []

    def take(answer: Mapping[str, Any]) -> None:
        frame = classify(json.dumps(answer["line"], separators=(",", ":")).encode())
        if isinstance(frame, Frame):
            said.append((int(answer["at"]), frame))

    request = {"op": "recall", "transcripts": list(transcripts)}
    last = await _ask(agents, account, request, take, ANSWER_S)
    return Before(said, int(last.get("left_out") or 0))


async def _ask(
    agents: Path,
    account: str,
    request: Mapping[str, object],
    take: Callable[[Mapping[str, Any]], None],
    within_s: float,
) -> Mapping[str, Any]:
    """The last line of the answer; `take` gets those before. Cancelled it hangs up: all is given up.

    `within_s`: between two lines. Raises what a refusal means.
    """
    path = agents / f"{account}.sock"
    with trio.socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
        try:
            with trio.fail_after(CONNECT_S):
                await sock.connect(str(path))
                data = memoryview(prepare.encode_request(request))
                while data:
                    data = data[await sock.send(data) :]
        except (OSError, trio.TooSlowError) as error:
            raise Unprocessable(
                f"The agent socket {path} does not answer; see `systemctl status"
                f" 'holdover-agent-{account}.socket'`, or start `holdover up` again.",
                extra={"reason": "agent_socket"},
            ) from error
        buffer = bytearray()
        while True:
            stop = buffer.find(b"\n") + 1
            if not stop:
                buffer += await _receive(sock, within_s, len(buffer))
                continue
            answer = json.loads(bytes(buffer[:stop]))
            del buffer[:stop]
            if "ok" not in answer:
                take(answer)
            elif answer["ok"] is True:
                return dict(answer)
            else:
                said = answer.get("error") or {}
                raise _refused(str(said.get("code")), str(said.get("message") or "no reason"))


async def _receive(sock: trio.socket.SocketType, within_s: float, held: int) -> bytes:
    try:
        with trio.fail_after(within_s):
            data = await sock.recv(256 * 1024)
    except (OSError, trio.TooSlowError):
        data = b""
    if not data or held > MAX_LINE_BYTES:
        raise Unavailable(
            "Whoever was to make the session ready was killed, or is of another release; the "
            "account's journal may say why. Try again."
        )
    return data


def _refused(code: str, message: str) -> Unprocessable:
    if code == "bad_request":
        message = f"the account's unit is of a release that cannot do this yet ({message})"
    return Unprocessable(f"{message[:1].upper()}{message[1:]}.", extra={"reason": code})
