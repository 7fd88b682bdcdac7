"""Starting an agent: the lock, the files, and the request to its account's agent socket.

The order is the safety (ARCHITECTURE.md, "Never two agents"): take the session's lock; record the
launch in the catalogue under the owner's epoch; make the spool and the listener; hand all three
to the keeper; close our copies. An owner that stops anywhere in between still holds the lock, or
has passed it on; one that has lost the session fails at the record.
"""

import array
import errno
import fcntl
import os
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import trio

from holdoverd.errors import KeeperError, LaunchError, LockHeld
from holdoverd.keeper import protocol

ANSWER_S = 30.0
"""A keeper answers as soon as the agent runs. Past this nobody knows; the session is probed."""

LOCK_RETRY_S = 0.05
LOCK_WAIT_S = 15.0
"""A lock still held that long after its agent's end belongs to something that will not go."""

Observer = Callable[[str], None]
"""Called with the name of each step before it is taken. The tests stop the process there."""


@dataclass(frozen=True, slots=True)
class Paths:
    """Where an instance keeps things; all on local filesystems.

    `sessions` is 0700 of the daemon's user: locks and the listeners of keepers. `agents` holds
    the accounts' agent sockets, ``ACCOUNT.sock``.
    """

    spools: Path
    sessions: Path
    agents: Path

    def lock(self, session: str) -> Path:
        return self.sessions / f"{session}.lock"

    def listener(self, launch: str) -> Path:
        return self.sessions / f"{launch}.sock"

    def spool(self, launch: str) -> Path:
        return self.spools / f"{launch}.spool"


@dataclass(frozen=True, slots=True)
class Started:
    """A keeper's yes.

    `found`: which of the looked-up prompts the agent's transcript shows; `fresh`: the agent began
    a new conversation, because there was no transcript to go on with.
    """

    keeper_pid: int
    agent_pid: int
    cwd: str
    found: frozenset[str]
    fresh: bool
    isolation: str


class Lock:
    """The right to launch for one session, held by an open file; see flock(2).

    Never unlocked, only closed: the keeper and the agent hold the same open file, and an unlock
    by one would be an unlock for all.
    """

    def __init__(self, fd: int) -> None:
        self._fd: int | None = fd

    @classmethod
    def take_nowait(cls, path: Path) -> "Lock":
        """Raises LockHeld."""
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            os.close(fd)
            if error.errno not in (errno.EWOULDBLOCK, errno.EAGAIN):
                raise
            raise LockHeld(
                f"The lock {path.name} is held: the session's agent, its keeper or a rival launch "
                "is still alive. It frees itself when they are gone, and the agent is started then."
            ) from error
        return cls(fd)

    @classmethod
    async def wait_taken(cls, path: Path, timeout_s: float = LOCK_WAIT_S) -> "Lock":
        """Take the lock, waiting for a dying agent to let go. Raises LockHeld after `timeout_s`."""
        deadline = trio.current_time() + timeout_s
        while True:
            try:
                return cls.take_nowait(path)
            except LockHeld:
                # flock has no wait that trio can cancel, and the wait is for a process on its
                # way out: a few polls.
                if trio.current_time() > deadline:
                    raise
                await trio.sleep(LOCK_RETRY_S)

    def fileno(self) -> int:
        assert self._fd is not None, "this lock was passed on or given up"
        return self._fd

    def close(self) -> None:
        """Give up this copy. The lock is free once no copy is left."""
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None


def bind_listener(path: Path) -> socket.socket:
    """The way to a keeper: a listening socket that only the daemon's user can reach by path.

    Raises LaunchError.
    """
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    try:
        path.unlink(missing_ok=True)
        listener.bind(str(path))
        listener.listen(16)
    except OSError as error:
        listener.close()
        raise LaunchError(
            f"The keeper's socket {path} cannot be made: {error.strerror}. See to it that its "
            "folder exists, has room, and that the daemon's user may write there.",
            code="listener",
        ) from error
    return listener


async def start_keeper(
    paths: Paths,
    account: str,
    lock: Lock,
    launch: str,
    request: dict[str, Any],
    observe: Observer,
) -> Started:
    """Ask the account's agent socket for an agent; its keeper answers once the agent runs.

    Takes over `lock` and closes this process's copy whatever happens. Raises LaunchError when
    there is no agent, and KeeperError when nobody can tell (no answer): probe the keeper then.
    """
    agent_socket = paths.agents / f"{account}.sock"
    try:
        observe("make_spool")
        with _spool(paths.spool(launch)) as spool:
            observe("bind_listener")
            with bind_listener(paths.listener(launch)) as listener:
                fds = [listener.fileno(), lock.fileno(), spool]
                with trio.socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
                    observe("connect_agent_socket")
                    await _connect(sock, agent_socket, account)
                    observe("send_request")
                    try:
                        with trio.fail_after(ANSWER_S):
                            await _send_with_fds(sock, protocol.launch_request(request), fds)
                            listener.close()
                            lock.close()
                            observe("await_answer")
                            answer = await _receive_line(sock)
                    except trio.TooSlowError as error:
                        raise KeeperError(
                            f"The keeper of launch {launch} has not answered within "
                            f"{ANSWER_S:.0f} s."
                        ) from error
                    except OSError as error:
                        raise KeeperError(
                            f"The launch connection broke: {error.strerror}."
                        ) from error
    finally:
        lock.close()
    said = protocol.parse_launch_answer(answer)
    if not said.get("ok"):
        refused = said.get("error") or {}
        raise LaunchError(
            str(refused.get("message") or "The keeper refused without saying why."),
            code=str(refused.get("code") or "launch_failed"),
        )
    return Started(
        keeper_pid=int(said["keeper_pid"]),
        agent_pid=int(said["agent_pid"]),
        cwd=str(said["cwd"]),
        found=frozenset(str(u) for u in said.get("found") or ()),
        fresh=bool(said.get("fresh")),
        isolation=str(said.get("isolation") or "none"),
    )


@contextmanager
def _spool(path: Path) -> Iterator[int]:
    """The launch's spool, made and open for appending. Raises LaunchError."""
    try:
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise LaunchError(
            f"The spool {path} cannot be made: {error.strerror}. Make room, or see to it that the "
            "daemon's user may write there.",
            code="spool",
        ) from error
    try:
        yield fd
    finally:
        os.close(fd)


async def _connect(sock: trio.socket.SocketType, path: Path, account: str) -> None:
    """Raises LaunchError: nothing listens for launches of this account."""
    try:
        with trio.fail_after(ANSWER_S):
            await sock.connect(str(path))
    except (OSError, trio.TooSlowError) as error:
        why = error.strerror if isinstance(error, OSError) else f"silent for {ANSWER_S:.0f} s"
        raise LaunchError(
            f"The agent socket {path} does not answer ({why}); see "
            f"`systemctl status 'holdover-agent-{account}.socket'`, make the account by `holdover "
            f"account add {account}`, or start `holdover up` again.",
            code="agent_socket",
        ) from error


async def _send_with_fds(sock: trio.socket.SocketType, data: bytes, fds: list[int]) -> None:
    """The descriptors travel with the first byte; see unix(7), SCM_RIGHTS."""
    ancillary = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))]
    sent = await sock.sendmsg([data], ancillary)
    view = memoryview(data)[sent:]
    while view:
        view = view[await sock.send(view) :]


async def _receive_line(sock: trio.socket.SocketType) -> bytes:
    received = bytearray()
    while not received.endswith(b"\n"):
        chunk = await sock.recv(65536)
        if not chunk:
            raise KeeperError("The keeper closed the launch connection without an answer.")
        received += chunk
        if len(received) > 1024 * 1024:
            raise KeeperError("The keeper's answer is longer than 1 MiB.")
    return bytes(received)
