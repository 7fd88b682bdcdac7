"""The worker's end of a runner: starting it, and the processor's pipes. See `runner` for the words."""

import array
import contextlib
import fcntl
import json
import os
import socket
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import trio

from holdoverd.errors import HoldoverError
from holdoverd.jobs import runner

CONNECT_S = 10.0
STDIN_BYTES = 1 << 20


class RunnerLost(HoldoverError):
    """The runner is gone, or could not be reached; whatever it started has ended with it."""


@dataclass
class Link:
    """A runner that was told what to run. `close` ends all that still runs of it."""

    control: trio.SocketStream
    stdin: trio.lowlevel.FdStream
    stdout: trio.lowlevel.FdStream
    stderr: trio.lowlevel.FdStream
    progress: trio.lowlevel.FdStream
    child: subprocess.Popen[bytes] | None
    _buffer: bytearray = field(default_factory=bytearray)

    @classmethod
    async def start(cls, request: dict[str, Any], door: Path | None) -> "Link":
        """Have the runner behind `door` (None: a child of ours) run `request`.

        Raises RunnerLost when it cannot be reached.
        """
        child: subprocess.Popen[bytes] | None = None
        if door is None:
            ours, theirs = socket.socketpair()
            with theirs:
                child = subprocess.Popen(
                    [sys.executable, "-I", "-S", runner.__file__],
                    stdin=theirs.fileno(),
                    start_new_session=True,  # Ctrl-C on the terminal is not for processors
                )
        else:
            ours = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            try:
                ours.settimeout(CONNECT_S)
                ours.connect(str(door))
            except OSError as error:
                ours.close()
                raise RunnerLost(
                    f"Processors cannot be started: {door} does not answer ({error.strerror}). "
                    "Is its socket unit started? See `systemctl status 'holdover-processor-*'`."
                ) from error
        pipes = [os.pipe() for _ in range(4)]  # stdin, stdout, stderr, progress
        # A whole piece goes in at once, and the processor has something to do while the next is
        # fetched. Refused where its user has many such pipes already; then as it was.
        with contextlib.suppress(OSError):
            fcntl.fcntl(pipes[0][1], fcntl.F_SETPIPE_SZ, STDIN_BYTES)
        theirs_fds = [pipes[0][0], *(write for _, write in pipes[1:])]
        ours_fds = [pipes[0][1], *(read for read, _ in pipes[1:])]
        body = json.dumps(request).encode()
        message = b"RUN %d\n%b" % (len(body), body)
        try:
            ours.settimeout(CONNECT_S)
            fds = array.array("i", theirs_fds)
            sent = ours.sendmsg([message], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, fds)])
            ours.sendall(message[sent:])
        except OSError as error:
            ours.close()
            for fd in ours_fds:
                os.close(fd)
            raise RunnerLost(f"The processor's runner ended before it began: {error}.") from error
        finally:
            for fd in theirs_fds:
                os.close(fd)
        ours.setblocking(False)
        stdin, stdout, stderr, progress = map(trio.lowlevel.FdStream, ours_fds)
        stream = trio.SocketStream(trio.socket.from_stdlib_socket(ours))
        return cls(stream, stdin, stdout, stderr, progress, child)

    async def line(self) -> str:
        """What the runner says next; raises RunnerLost."""
        while (end := self._buffer.find(b"\n")) < 0:
            try:
                data = await self.control.receive_some(4096)
            except trio.BrokenResourceError as error:
                raise RunnerLost("The processor's runner was killed.") from error
            if not data:
                raise RunnerLost("The processor's runner was killed.")
            self._buffer += data
        line = bytes(self._buffer[:end]).decode(errors="replace")
        del self._buffer[: end + 1]
        return line

    async def say(self, line: str) -> None:
        with contextlib.suppress(trio.BrokenResourceError):  # its end is seen by `line`
            await self.control.send_all(line.encode() + b"\n")

    async def close(self) -> None:
        """Let go of everything; what still runs is killed by the runner, which then ends."""
        with trio.CancelScope(shield=True):
            for one in (self.control, self.stdin, self.stdout, self.stderr, self.progress):
                await one.aclose()
            if self.child is not None:
                await trio.to_thread.run_sync(self.child.wait)
