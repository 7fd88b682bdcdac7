"""Starts keeper -> unshare -> init -> agent, and holds the keeper's ends of it.

Every process of the chain dies with its parent: unshare and a direct init by PR_SET_PDEATHSIG,
init under unshare by ``--kill-child``, the rest because the kernel empties a pid namespace whose
PID 1 is gone. So a killed keeper leaves nothing, and the lock, held by init and the agent, is
free exactly when they are.
"""

from __future__ import annotations

import array
import errno
import os
import socket
import struct
import subprocess
import sys
import time
from typing import NamedTuple

from holdoverd.errors import LaunchError
from holdoverd.keeper import init
from holdoverd.keeper.kernel import die_with_parent

START_WITHIN_S = 10.0
"""From starting unshare to the agent's exec; two Pythons start in between."""
MAX_REPORT_BYTES = 4096

UNSHARE = (
    "unshare",
    "--user",
    "--map-current-user",
    "--pid",
    "--mount",
    "--mount-proc",
    "--fork",
    "--kill-child",
)
_CREDENTIALS = struct.Struct("3i")  # pid, uid, gid: unix(7), SCM_CREDENTIALS

NAMESPACES = "namespaces"
NONE = "none"


class Chain(NamedTuple):
    """A running agent, seen from its keeper. The keeper owns and closes every descriptor."""

    process: subprocess.Popen[bytes]  # unshare; without namespaces, init
    control: socket.socket  # to init, non-blocking; its EOF: init and unshare are gone
    stdin: int  # write end, non-blocking
    stdout: int  # read end, non-blocking
    agent_pid: int  # in the keeper's own pid namespace
    isolation: str  # NAMESPACES or NONE
    reports: bytes  # of init, received but not yet looked at


def start_chain(
    *,
    program: str,
    argv: list[str],
    env: dict[str, str],
    cwd_fd: int,
    lock_fd: int,
    isolation: str = "auto",
) -> Chain:
    """Start the agent; returns once its exec has succeeded.

    `isolation`: ``auto`` (namespaces, or none where the kernel or a container forbids them),
    ``namespaces`` or ``none``. Descriptors are borrowed. Raises `LaunchError` ``agent_missing``
    or ``agent_failed``; then nothing is left running.
    """
    modes = [NAMESPACES, NONE] if isolation == "auto" else [isolation]
    for mode in modes:
        chain = _start(mode, program, argv, env, cwd_fd, lock_fd)
        if chain is not None:
            return chain
    raise LaunchError(
        "the agent's init did not start"
        + (": unshare(1) with user and pid namespaces fails here" if modes == [NAMESPACES] else "")
        + "; the account's journal has its own words",
        code="agent_failed",
    )


def _start(
    mode: str, program: str, argv: list[str], env: dict[str, str], cwd_fd: int, lock_fd: int
) -> Chain | None:
    """None: init never ran (namespaces are not possible); nothing is left of the attempt."""
    deadline = time.monotonic() + START_WITHIN_S
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    # Before anything is sent: the kernel stamps messages as they are sent.
    ours.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
    try:
        process = _spawn(mode, theirs, cwd_fd)
    except FileNotFoundError:  # no unshare(1)
        ours.close()
        return None
    finally:
        theirs.close()
    stdin_r, stdin_w = os.pipe()
    stdout_r, stdout_w = os.pipe()
    reader = _Reports(ours, deadline)
    try:
        try:
            if reader.next() != b"READY":
                _abandon(process, ours, stdin_w, stdout_r)
                return None
            message = init.start_message(program, argv, env)
            fds = array.array("i", [stdin_r, stdout_w, lock_fd])
            sent = ours.sendmsg([message], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, fds)])
            ours.sendall(message[sent:])
            agent_pid = 0
            while (report := reader.next()) is not None:
                if report == b"FORKED":
                    agent_pid = reader.pid
                elif report == b"STARTED":
                    break
                else:
                    raise _failure(program, report)
            else:
                raise LaunchError(
                    f"init ended before {program} was started; the account's journal may say why",
                    code="agent_failed",
                )
        finally:
            os.close(stdin_r)
            os.close(stdout_w)
    except (LaunchError, OSError) as error:
        _abandon(process, ours, stdin_w, stdout_r)
        if isinstance(error, LaunchError):
            raise
        raise LaunchError(
            f"{program} could not be started within {START_WITHIN_S:.0f} s ({error}); "
            "try again when the machine is less busy",
            code="agent_failed",
        ) from error
    ours.setblocking(False)
    os.set_blocking(stdin_w, False)
    os.set_blocking(stdout_r, False)
    return Chain(process, ours, stdin_w, stdout_r, agent_pid, mode, reader.rest)


def _spawn(mode: str, control: socket.socket, cwd_fd: int) -> subprocess.Popen[bytes]:
    """unshare and init, or init alone.

    -I and -S: nothing of the account's (its site-packages, its PYTHON… variables) runs in init,
    and it starts in half the time. The working folder has to be entered here, before unshare
    makes a mount namespace: a folder entered through a descriptor from another mount namespace
    has no path (getcwd() says "(unreachable)").
    """
    command = [sys.executable, "-I", "-S", init.__file__]
    command = [*UNSHARE, "--", *command] if mode == NAMESPACES else [*command, "--subreaper"]
    keeper = os.getpid()

    def prepare() -> None:
        die_with_parent(keeper)
        os.fchdir(cwd_fd)

    return subprocess.Popen(
        command,
        stdin=control.fileno(),
        stdout=subprocess.DEVNULL,
        env={"PATH": os.environ.get("PATH") or os.defpath, "LC_ALL": "C.UTF-8"},
        start_new_session=True,  # Ctrl-C on the terminal of `holdover up` is not for agents
        preexec_fn=prepare,  # noqa: PLW1509  # one thread, no lock held
    )


def _abandon(
    process: subprocess.Popen[bytes], control: socket.socket, stdin_w: int, stdout_r: int
) -> None:
    control.close()
    os.close(stdin_w)
    os.close(stdout_r)
    process.kill()
    process.wait()


def _failure(program: str, report: bytes) -> LaunchError:
    verb, _, number = report.partition(b" ")
    if verb != b"FAILED" or not number.isdigit():
        return LaunchError(
            f"init said {report!r} instead of starting {program}", code="agent_failed"
        )
    code = int(number)
    if code == errno.ENOENT:
        return LaunchError(
            f"{program} could not be started: it, or the interpreter its first line names, is "
            "missing; install it for the account",
            code="agent_missing",
        )
    return LaunchError(
        f"{program} could not be started: {os.strerror(code)}; "
        "check that it is a program for this machine that the account may execute",
        code="agent_failed",
    )


class _Reports:
    """Lines from the control socket, until a deadline, with the pid of who sent the last one."""

    def __init__(self, control: socket.socket, deadline: float) -> None:
        self._control = control
        self._deadline = deadline
        self.rest = b""
        self.pid = 0

    def next(self) -> bytes | None:
        """The next line; None at the end. Raises `OSError` (`TimeoutError` at the deadline)."""
        while b"\n" not in self.rest:
            self._control.settimeout(max(0.001, self._deadline - time.monotonic()))
            try:
                data, ancillary, _, _ = self._control.recvmsg(
                    512, socket.CMSG_SPACE(_CREDENTIALS.size)
                )
            except ConnectionResetError:
                return None
            if not data or len(self.rest) > MAX_REPORT_BYTES:
                return None
            # The kernel never joins messages of different senders in one recvmsg(2), and senders
            # send whole lines: these credentials hold for every line of this piece.
            for level, kind, payload in ancillary:
                if level == socket.SOL_SOCKET and kind == socket.SCM_CREDENTIALS:
                    self.pid = _CREDENTIALS.unpack(payload[: _CREDENTIALS.size])[0]
            self.rest += data
        line, _, self.rest = self.rest.partition(b"\n")
        return line
