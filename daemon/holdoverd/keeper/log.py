"""The keeper's own few words on stderr, without ever waiting for whoever reads it.

stderr is shared with the agent (one open file description), so it cannot be made non-blocking
itself, and an agent can fill a pipe that nobody empties. A line that would wait is dropped.
"""

from __future__ import annotations

import os
import socket
import stat
from collections.abc import Callable


def open_log(name: str, fd: int = 2) -> Callable[[str], None]:
    """A function that logs one line, prefixed with `name`."""
    write = _writer(fd)

    def log(text: str) -> None:
        try:
            write(f"{name}: {text}\n".encode(errors="replace")[:4000])
        except OSError:
            return

    return log


def _writer(fd: int) -> Callable[[bytes], object]:
    try:
        if stat.S_ISSOCK(os.fstat(fd).st_mode):  # the journal
            journal = socket.socket(fileno=os.dup(fd))
            return lambda line: journal.send(line, socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)
        # Opening it again makes a description of our own, whose O_NONBLOCK is ours alone.
        own = os.open(
            f"/proc/self/fd/{fd}", os.O_WRONLY | os.O_APPEND | os.O_NONBLOCK | os.O_CLOEXEC
        )
        return lambda line: os.write(own, line)
    except OSError:
        return lambda _line: None  # another user's pipe, or none: better silent than stuck
