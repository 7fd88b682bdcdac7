"""PID 1 of the agent's namespace: starts the agent, forwards signals, reaps, reports.

The keeper runs this file by its path, so it stands alone: standard library, no package. fd 0 is
its control socket to the keeper; unshare, its parent, holds a copy of that and of nothing else,
so neither the agent's pipes nor the session's lock hang on a process that only waits.

Why it exists: an agent that were PID 1 itself would ignore TERM and INT (the kernel drops signals
for a PID 1 without a handler), and would leave every orphan a zombie. When this process ends, the
kernel kills whatever is left in the namespace.

Without a namespace (``--subreaper``) it asks for its orphans (PR_SET_CHILD_SUBREAPER) and kills
them itself before it ends; the agent dies with it (PR_SET_PDEATHSIG).

Wire, over a stream socket; one line each, sent at once::

    init -> keeper   READY                      PID 1 runs; send START
    keeper -> init   START <length>\\n<JSON>     with the descriptors [stdin, stdout, lock]
    agent -> keeper  FORKED                     by the agent's process before its exec: the
                                                kernel stamps its pid on it (SCM_CREDENTIALS)
    init -> keeper   STARTED | FAILED <errno>
    keeper -> init   SIGNAL <number>            for the agent
    init -> keeper   EXITED <code|-> <signal|->

The keeper's end closing means that the keeper died: the agent is killed, and init ends.
"""

from __future__ import annotations

import array
import json
import os
import select
import signal
import socket
import sys
import time
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import ctypes

MAX_START_BYTES = 4 * 1024 * 1024
KILL_WITHIN_S = 5.0
"""How long init kills stragglers without a namespace; one may hang in the kernel for ever."""

SOONER = 300
"""How much sooner an agent's processes go than others when memory is out, in thousandths of it."""

_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36


def start_message(program: str, argv: list[str], env: dict[str, str]) -> bytes:
    """The START message; its descriptors travel with the first byte."""
    body = json.dumps({"program": program, "argv": argv, "env": env}).encode("ascii")
    return b"START %d\n%b" % (len(body), body)


def signal_message(number: int) -> bytes:
    """The SIGNAL message."""
    return b"SIGNAL %d\n" % number


def exited_message(wait_status: int) -> bytes:
    """The EXITED message for a status of waitpid(2)."""
    if os.WIFSIGNALED(wait_status):
        return b"EXITED - %d\n" % os.WTERMSIG(wait_status)
    return b"EXITED %d -\n" % os.WEXITSTATUS(wait_status)


class _Init:
    def __init__(self, control: socket.socket, *, subreaper: bool) -> None:
        self.control = control
        self.libc = _subreaper() if subreaper else None
        self.agent: int | None = None  # its pid, while it lives

    def run(self) -> None:
        wake_r, wake_w = os.pipe()
        os.set_blocking(wake_r, False)
        os.set_blocking(wake_w, False)
        signal.set_wakeup_fd(wake_w, warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.signal(signal.SIGTERM, lambda *_: self.send_signal(signal.SIGTERM))
        signal.signal(signal.SIGINT, lambda *_: self.send_signal(signal.SIGINT))
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        self.report(b"READY\n")
        if not self.start():
            return
        poll = select.poll()
        poll.register(self.control, select.POLLIN)
        poll.register(wake_r, select.POLLIN)
        buffer = b""
        while self.agent is not None:
            for fd, _ in poll.poll():
                if fd == wake_r:
                    os.read(wake_r, 4096)
                    self.reap()
                    continue
                try:
                    data = self.control.recv(4096)
                except OSError:
                    data = b""
                if not data:  # the keeper is dead, and nobody must run without one
                    self.send_signal(signal.SIGKILL)
                    poll.unregister(self.control)
                    continue
                *lines, buffer = (buffer + data).split(b"\n")
                for line in lines:
                    verb, _, number = line.partition(b" ")
                    if verb == b"SIGNAL" and number.isdigit():
                        self.send_signal(int(number))
        if self.libc is not None:
            _kill_descendants()

    def start(self) -> bool:
        """Receive START, start the agent, tell how that went."""
        received = _receive_start(self.control)
        if received is None:
            return False
        message, (stdin, stdout, lock) = received
        program = message["program"].encode()
        argv = [argument.encode() for argument in message["argv"]]
        env = {name.encode(): value.encode() for name, value in message["env"].items()}
        error_r, error_w = os.pipe()  # close-on-exec: its EOF is the successful exec
        pid = os.fork()
        if pid == 0:
            self.become_agent(program, argv, env, (stdin, stdout, lock), error_w)
        self.agent = pid
        for fd in (stdin, stdout, error_w):
            os.close(fd)
        # The lock stays open here until this process ends: after the agent, and after whatever
        # of its children has closed its own copy.
        failure = b""
        while chunk := os.read(error_r, 64):
            failure += chunk
        os.close(error_r)
        if failure:
            os.waitpid(pid, 0)
            self.agent = None
            self.report(b"FAILED %b\n" % failure)
            return False
        self.report(b"STARTED\n")
        return True

    def become_agent(
        self,
        program: bytes,
        argv: list[bytes],
        env: dict[bytes, bytes],
        fds: tuple[int, int, int],
        error_w: int,
    ) -> None:
        """In the forked child: never returns."""
        try:
            parent = os.getppid()
            os.setsid()
            if self.libc is not None:
                self.libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
                if os.getppid() != parent:
                    os._exit(127)
            self.report(b"FORKED\n")
            signal.set_wakeup_fd(-1)
            _go_sooner()
            # A handler is reset by exec, "ignored" is inherited: Python ignores SIGPIPE and
            # SIGXFSZ, a shell SIGINT and SIGQUIT of what it starts in the background (then no
            # interrupt would reach the agent's own children either).
            for number in signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP}:
                signal.signal(number, signal.SIG_DFL)
            # Descriptors 0 to 2 are taken, so these are all above; dup2 makes them inheritable.
            stdin, stdout, lock = fds
            os.dup2(stdin, 0)
            os.dup2(stdout, 1)
            os.set_inheritable(lock, True)
            os.execve(program, argv, env)  # noqa: S606
        except OSError as error:
            os.write(error_w, b"%d" % (error.errno or 0))
        finally:
            os._exit(127)

    def send_signal(self, number: int) -> None:
        if self.agent is not None:
            try:
                os.kill(self.agent, number)
            except OSError:  # it has just exited, or the number is none
                return

    def reap(self) -> None:
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            if pid == self.agent:
                self.agent = None
                self.report(exited_message(status))

    def report(self, message: bytes) -> None:
        try:
            # Never waits: a few short lines in all, far below what the socket holds.
            self.control.send(message, socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)
        except OSError:
            return  # the keeper is dead; the loop sees that


def _go_sooner() -> None:
    """When memory is out, have the kernel end something of the agent's, not its keeper.

    It takes the largest process (proc_pid_oom_score_adj(5)), and beside two hundred small ones that
    is the keeper; with it all would go, and nobody would have written down why. More of it needs no right.
    """
    try:
        with open("/proc/self/oom_score_adj", "r+b", buffering=0) as file:
            if int(file.read()) < SOONER:
                file.write(b"%d" % SOONER)
    except OSError:
        return  # a kernel, or a sandbox around us, without it


def _subreaper() -> ctypes.CDLL:
    import ctypes  # two megabytes that init has no use for inside a namespace

    libc = ctypes.CDLL(None, use_errno=True)
    libc.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    return libc


def _receive_start(control: socket.socket) -> tuple[dict[str, Any], tuple[int, int, int]] | None:
    space = socket.CMSG_SPACE(3 * array.array("i").itemsize)
    buffer = b""
    fds = array.array("i")
    length: int | None = None
    while length is None or len(buffer) < length:
        data, ancillary, _, _ = control.recvmsg(65536, space, socket.MSG_CMSG_CLOEXEC)
        for level, kind, payload in ancillary:
            if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
                fds.frombytes(payload[: len(payload) - len(payload) % fds.itemsize])
        if not data:
            return None
        buffer += data
        if length is None and b"\n" in buffer:
            header, _, buffer = buffer.partition(b"\n")
            verb, _, number = header.partition(b" ")
            if verb != b"START" or not number.isdigit() or int(number) > MAX_START_BYTES:
                return None
            length = int(number)
    if len(fds) != 3:
        return None
    return json.loads(buffer), (fds[0], fds[1], fds[2])


def _kill_descendants() -> None:
    """Kill and reap every process that has become a child of this subreaper, until none is left.

    A killed one's children come here in turn.
    """
    deadline = time.monotonic() + KILL_WITHIN_S
    while time.monotonic() < deadline:
        for pid in _children(os.getpid()):
            try:
                os.kill(pid, signal.SIGKILL)
            except OSError:
                continue
        try:
            pid, _ = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return
        if pid == 0:
            time.sleep(0.005)


def _children(parent: int) -> list[int]:
    """Pids whose parent is `parent`, from /proc (the `children` file is not in every kernel)."""
    pids = []
    for name in os.listdir("/proc"):
        if name.isdigit():
            try:
                with open(f"/proc/{name}/stat", "rb") as file:
                    stat = file.read()
            except OSError:
                continue  # it has ended meanwhile
            # "pid (name) state ppid …"; the name may hold blanks and brackets.
            if int(stat.rpartition(b") ")[2].split()[1]) == parent:
                pids.append(int(name))
    return pids


def main() -> None:
    # Away from fd 0, which the agent's stdin takes; dup() makes it close-on-exec.
    control = socket.socket(fileno=os.dup(0))
    null = os.open("/dev/null", os.O_RDWR)
    os.dup2(null, 0)
    if null > 2:
        os.close(null)
    _Init(control, subreaper="--subreaper" in sys.argv[1:]).run()


if __name__ == "__main__":
    main()
