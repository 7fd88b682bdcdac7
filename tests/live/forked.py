"""Daemons for the price of a fork: for tests that start hundreds of them.

``python -m tests.live.forked FD`` is a nursery of processes: it imports the daemon once and then
forks one for each request that comes over the socket FD, with the descriptors, the environment and
the output that the request names, as supervisor/shim.py would place them. What is forked is the real
daemon from its `main` on; it is killed, stopped and awaited like any other process.

    request   {"argv": [module, argument…], "env": {…}} and descriptors: output, then the listeners
              {"reap": pid}, once that has ended
    answer    {"pid": …}, {"status": …} as `subprocess` tells it
"""

import contextlib
import ctypes
import fcntl
import gc
import importlib
import json
import os
import select
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

_PR_SET_PDEATHSIG = 1
_MAX_BYTES = 128 * 1024
TREE = Path(__file__).parents[2]
END_S = 60.0
DAEMON = "holdoverd.main"
MORTAL = "tests.live.mortal"


class Forked:
    """A daemon's process, with what tests use of `subprocess.Popen`."""

    def __init__(self, nursery: "Nursery", pid: int) -> None:
        self._nursery = nursery
        self.pid = pid
        self.returncode: int | None = None
        # It is there until it is reaped, which nobody but `poll` has done.
        self._pidfd = os.pidfd_open(pid)

    def poll(self) -> int | None:
        if self.returncode is None and select.select([self._pidfd], [], [], 0)[0]:
            self.returncode = int(self._nursery.ask({"reap": self.pid})["status"])
            os.close(self._pidfd)
        return self.returncode

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            signal.pidfd_send_signal(self._pidfd, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    def wait(self, timeout_s: float = END_S) -> int:
        if self.returncode is None:
            select.select([self._pidfd], [], [], timeout_s)
        status = self.poll()
        if status is None:
            raise subprocess.TimeoutExpired(str(self.pid), timeout_s)
        return status


class Nursery:
    """This side of a `python -m tests.live.forked`."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock

    def start(
        self, argv: Sequence[str], env: Mapping[str, str], output: int, listeners: Sequence[int]
    ) -> Forked:
        answer = self.ask({"argv": list(argv), "env": dict(env)}, [output, *listeners])
        return Forked(self, answer["pid"])

    def ask(self, request: dict[str, Any], fds: Sequence[int] = ()) -> dict[str, Any]:
        socket.send_fds(self._sock, [json.dumps(request).encode()], fds)
        answer: dict[str, Any] = json.loads(self._sock.recv(_MAX_BYTES) or "{}")
        assert answer, "the nursery of daemons is gone"
        return answer


@contextlib.contextmanager
def nursery() -> Iterator[Nursery]:
    """One that has imported everything; what it started ends with it."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    path = os.pathsep.join(map(str, (TREE, TREE / "daemon", TREE / "cli")))
    with ours:
        with theirs:
            process = subprocess.Popen(
                [sys.executable, "-m", "tests.live.forked", str(theirs.fileno())],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                env={**os.environ, "PYTHONPATH": path},
            )
        try:
            ours.settimeout(END_S)
            here = Nursery(ours)
            assert here.ask({"reap": 0}) == {"status": 0}
            yield here
        finally:
            ours.shutdown(socket.SHUT_RDWR)
            process.wait(END_S)


# -- the other side -------------------------------------------------------------------------------


def _serve(sock: socket.socket) -> None:
    for module in (DAEMON, MORTAL):
        importlib.import_module(module)
    gc.collect()
    gc.freeze()  # what is shared stays so: collections of the forked do not write to it
    while True:
        data, fds, _, _ = socket.recv_fds(sock, _MAX_BYTES, 16)
        if not data:
            return
        request = json.loads(data)
        if "reap" in request:
            status = os.waitpid(request["reap"], 0)[1] if request["reap"] else 0
            sock.send(json.dumps({"status": os.waitstatus_to_exitcode(status)}).encode())
            continue
        pid = os.fork()
        if pid == 0:
            _become(request, sock, fds)
        for fd in fds:
            os.close(fd)
        sock.send(json.dumps({"pid": pid}).encode())


def _become(request: dict[str, Any], sock: socket.socket, fds: Sequence[int]) -> NoReturn:
    status = 1
    try:
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        os.setsid()
        os.close(sock.detach())
        output, *listeners = (fcntl.fcntl(fd, fcntl.F_DUPFD, 64) for fd in fds)
        for target, fd in ((1, output), (2, output), *enumerate(listeners, start=3)):
            os.dup2(fd, target, inheritable=True)
        os.closerange(3 + len(listeners), 256)
        os.environ.clear()
        os.environ.update(request["env"], LISTEN_PID=str(os.getpid()))
        module, *arguments = request["argv"]
        status = sys.modules[module].main(arguments)
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else 1
    except BaseException:
        sys.excepthook(*sys.exc_info())
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


if __name__ == "__main__":
    with socket.socket(fileno=int(sys.argv[1])) as control:
        _serve(control)
