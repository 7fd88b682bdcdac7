"""Runs one processor for a worker, as the account that the job is for; stays as its parent.

The worker has the catalogue and storage; the processor has neither: it gets pipes and a folder. On a
systemd host this is the first process of a unit of its own, started by the worker's connection to the
account's processor socket; under `holdover up` a child of the worker. Either way the connection, on
standard input, is the lifeline: at its end the processor and all that came of it are killed.

Worker to runner: one message ``RUN <length>\\n<JSON>`` with four descriptors (the processor's stdin,
stdout, stderr, and the write end of its progress pipe, which becomes descriptor 3), later perhaps
lines:

    GO      (input = "file") what came through the first descriptor is the file, whole and true
    STOP    end it: TERM, and KILL a moment later

Runner to worker, one line each: ``SAVED``, ``STARTED <pid>``, then ``EXITED <status> -`` or
``EXITED - <signal>``; or ``FAILED <words>``, and nothing was started; ``HINDERED <words>``, where that
may be otherwise another time (a full disk).

The JSON: {"argv", "env", "files": [{"name", "size"}], "input": "stream"|"file", "term_s"}. With
``file``, the files come one after the other through the first descriptor and are saved in a folder
that goes with this process; ``HOLDOVER_FILE`` is the path of the first, ``HOLDOVER_FILES`` a JSON
list of all. The folder is the processor's working folder in either case.

Standard library alone: it starts in a few hundredths of a second and runs as another user.
"""

from __future__ import annotations

import array
import contextlib
import ctypes
import fcntl
import json
import os
import pwd
import select
import shutil
import signal
import socket
import struct
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, NoReturn

MAX_REQUEST_BYTES = 1 << 20
CHUNK_BYTES = 1 << 20
PROGRESS_FD = 3
SCRATCH_PREFIX = "holdover-job-"
_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36


def main() -> int:
    """The runner's entry; the connection is standard input."""
    control = socket.socket(fileno=os.dup(0))
    if sys.argv[1:2] == ["--worker-user"]:
        _, uid, _ = struct.unpack(
            "3i", control.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)
        )
        if uid != pwd.getpwnam(sys.argv[2]).pw_uid:
            sys.exit(f"user {uid} may not run processors as this account")
    os.dup2(os.open(os.devnull, os.O_RDWR), 0)
    sweep_scratch()
    scratch = Path(tempfile.mkdtemp(prefix=SCRATCH_PREFIX))
    lock = os.open(scratch, os.O_RDONLY | os.O_DIRECTORY)
    fcntl.flock(lock, fcntl.LOCK_EX)
    try:
        Runner(control, scratch).run()
    finally:
        # Someone else's mess may be in it: folders without the right to write, for one.
        shutil.rmtree(scratch, onerror=_open_and_retry)
    return 0


class Refused(Exception):
    """The processor was not started; the words are for the job's error."""


class Hindered(Refused):
    """As `Refused`, for what may pass."""


class Runner:
    """One processor, from the request to the last of its descendants."""

    def __init__(self, control: socket.socket, scratch: Path) -> None:
        self._control = control
        self._scratch = scratch
        self._buffer = b""
        self._gone = False

    def run(self) -> None:
        # Whatever the processor leaves behind becomes our child, and can be found.
        libc = ctypes.CDLL(None, use_errno=True)
        libc.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
        signal.signal(signal.SIGPIPE, signal.SIG_IGN)
        request, fds = self._receive()
        try:
            environment = _environment(request["env"])
            if request["input"] == "file":
                paths = self._save(fds[0], request["files"])
                environment["HOLDOVER_FILE"] = paths[0] if paths else ""
                environment["HOLDOVER_FILES"] = json.dumps(paths)
                os.close(fds[0])
                fds[0] = os.open(os.devnull, os.O_RDONLY)
                self._say("SAVED")
                if self._line() != "GO":
                    return
            pid = self._start(request["argv"], environment, fds)
        except Refused as refusal:
            verb = "HINDERED" if isinstance(refusal, Hindered) else "FAILED"
            self._say(f"{verb} {refusal}")
            return
        finally:
            for fd in fds:
                os.close(fd)
        self._say(f"STARTED {pid}")
        status = self._watch(pid, float(request["term_s"]))
        kill_descendants()
        if os.WIFSIGNALED(status):
            self._say(f"EXITED - {os.WTERMSIG(status)}")
        else:
            self._say(f"EXITED {os.WEXITSTATUS(status)} -")

    # --- the processor ---

    def _save(self, source: int, files: list[dict[str, Any]]) -> list[str]:
        """Write what comes through `source` to one file after the other."""
        paths: list[str] = []
        try:
            for index, file in enumerate(files):
                folder = self._scratch / str(index)
                folder.mkdir()
                path = folder / safe_name(file["name"])
                with path.open("wb") as out:
                    _copy(source, out.fileno(), int(file["size"]))
                paths.append(str(path))
        except OSError as error:
            raise Hindered(
                f"the file cannot be kept in {self._scratch} while it is worked on: "
                f'{error.strerror}. Free space there, or give the processor input = "stream"'
            ) from error
        return paths

    def _start(self, argv: list[str], env: dict[str, str], fds: list[int]) -> int:
        program = shutil.which(os.path.expanduser(argv[0]), path=env["PATH"])
        if program is None:
            raise Refused(
                f"its program {argv[0]} is not found on this account's PATH; install it, or give "
                "its whole path in the processor's command"
            )
        error_r, error_w = os.pipe()
        parent = os.getpid()
        pid = os.fork()
        if pid == 0:
            _become(program, argv, env, fds, self._scratch, error_w, parent)
        os.close(error_w)
        with open(error_r, "rb") as report:
            failure = report.read()
        if failure:
            os.waitpid(pid, 0)
            raise Refused(f"its program {program} cannot be started: {os.strerror(int(failure))}")
        return pid

    def _watch(self, pid: int, term_s: float) -> int:
        """Wait for the processor, or end it when asked; its status of waitpid(2)."""
        pidfd = os.pidfd_open(pid)
        poll = select.poll()
        poll.register(pidfd, select.POLLIN)
        poll.register(self._control, select.POLLIN)
        kill_at: float | None = None
        while True:
            wait_s = None if kill_at is None else max(0.0, kill_at - time.monotonic())
            ready = {fd for fd, _ in poll.poll(None if wait_s is None else wait_s * 1000)}
            if pidfd in ready:
                os.close(pidfd)
                return os.waitpid(pid, 0)[1]
            if kill_at is not None and time.monotonic() >= kill_at:
                kill_descendants(but_reap=pid)
                kill_at = None
            if self._control.fileno() in ready and self._line() in (None, "STOP"):
                poll.unregister(self._control)
                if self._gone:  # nobody is there to wait for it
                    kill_at = time.monotonic()
                else:
                    with contextlib.suppress(ProcessLookupError):
                        os.killpg(pid, signal.SIGTERM)
                    kill_at = time.monotonic() + term_s

    # --- the worker ---

    def _receive(self) -> tuple[dict[str, Any], list[int]]:
        fds = array.array("i")
        data = b""
        length: int | None = None
        while length is None or len(data) < length:
            piece, ancillary, _, _ = self._control.recvmsg(
                65536, socket.CMSG_SPACE(4 * fds.itemsize), socket.MSG_CMSG_CLOEXEC
            )
            for level, kind, payload in ancillary:
                if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
                    fds.frombytes(payload[: len(payload) - len(payload) % fds.itemsize])
            if not piece:
                sys.exit(0)
            data += piece
            if length is None and b"\n" in data:
                header, _, data = data.partition(b"\n")
                verb, _, number = header.partition(b" ")
                if verb != b"RUN" or not number.isdigit() or int(number) > MAX_REQUEST_BYTES:
                    sys.exit("this is no worker's request")
                length = int(number)
        if len(fds) != 4:
            sys.exit("a request comes with four descriptors")
        self._buffer = data[length:]
        return json.loads(data[:length]), list(fds)

    def _line(self) -> str | None:
        """The next line; None once the worker is gone."""
        while b"\n" not in self._buffer:
            try:
                data = self._control.recv(4096)
            except OSError:
                data = b""
            if not data:
                self._gone = True
                return None
            self._buffer += data
        line, _, self._buffer = self._buffer.partition(b"\n")
        return line.decode(errors="replace")

    def _say(self, line: str) -> None:
        with contextlib.suppress(OSError):  # the worker is gone; the loop sees that
            self._control.sendall(line.replace("\n", " ").encode() + b"\n")


def _become(
    program: str,
    argv: list[str],
    env: dict[str, str],
    fds: list[int],
    folder: Path,
    error_w: int,
    parent: int,
) -> NoReturn:
    """In the forked child."""
    try:
        os.setsid()
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        if os.getppid() != parent:
            os._exit(127)
        for number in signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP}:
            signal.signal(number, signal.SIG_DFL)
        os.chdir(folder)
        # Out of the way first: one of them may sit on a number that another one has to get.
        high = [fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 64) for fd in (*fds, error_w)]
        error_w = high.pop()
        for target, fd in enumerate(high):
            os.dup2(fd, target, inheritable=True)
        os.execve(program, [program, *argv[1:]], env)  # noqa: S606
    except OSError as error:
        os.write(error_w, b"%d" % (error.errno or 0))
    finally:
        os._exit(127)


def _environment(given: dict[str, str]) -> dict[str, str]:
    """The account's own few variables and those of the job; nothing of systemd's."""
    account = pwd.getpwuid(os.getuid())
    kept = {name: os.environ[name] for name in ("PATH", "TMPDIR") if name in os.environ}
    return {
        "PATH": os.defpath,
        "HOME": account.pw_dir,
        "USER": account.pw_name,
        "LOGNAME": account.pw_name,
        "LANG": "C.UTF-8",
        **kept,
        **given,
    }


def _copy(source: int, target: int, size: int) -> None:
    left = size
    while left:
        piece = os.read(source, min(left, CHUNK_BYTES))
        if not piece:
            raise Refused("the file ended early")
        view = memoryview(piece)
        while view:
            view = view[os.write(target, view) :]
        left -= len(piece)


def safe_name(name: str) -> str:
    """A file's own name, which is data, as the last part of a path."""
    safe = name.replace("/", "_").replace("\0", "_")
    while len(os.fsencode(safe)) > 200:  # the ending says what it is: shorten in front of it
        stem, dot, ending = safe.rpartition(".")
        safe = stem[:-1] + dot + ending if stem else safe[:-1]
    return safe if safe not in ("", ".", "..") else "file"


def kill_descendants(but_reap: int | None = None, within_s: float = 5.0) -> None:
    """Kill every process beneath this one, a subreaper, and reap all but `but_reap`.

    A killed one's children come here in turn, so it takes a few rounds.
    """
    deadline = time.monotonic() + within_s
    while time.monotonic() < deadline:
        children = [pid for pid in _children() if pid != but_reap]
        if but_reap is not None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(but_reap, signal.SIGKILL)
        if not children and (but_reap is None or not _alive(but_reap)):
            return
        for pid in children:
            with contextlib.suppress(ProcessLookupError, ChildProcessError):
                os.kill(pid, signal.SIGKILL)
                os.waitpid(pid, os.WNOHANG)
        time.sleep(0.005)


def _children() -> list[int]:
    return [int(pid) for pid in Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()]


def _alive(pid: int) -> bool:
    """Whether it runs: neither gone nor a zombie that waits to be reaped."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def sweep_scratch() -> None:
    """Remove folders of our own user's runners that were killed: nobody holds their lock."""
    for folder in Path(tempfile.gettempdir()).glob(f"{SCRATCH_PREFIX}*"):
        with contextlib.suppress(OSError):
            if folder.stat().st_uid != os.getuid():
                continue
            fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                # One that has just been made is not locked yet.
                if time.time() - os.fstat(fd).st_mtime > 60:
                    shutil.rmtree(folder, onerror=_open_and_retry)
            finally:
                os.close(fd)


def _open_and_retry(function: Any, path: str, _error: object) -> None:
    with contextlib.suppress(OSError):
        os.chmod(os.path.dirname(path), 0o700)
        function(path)


if __name__ == "__main__":
    sys.exit(main())
