"""Becomes the daemon: puts its sockets in their place, then replaces itself.

``python -I -S shim.py PARENT FD[,FD…] PROGRAM ARG…``. LISTEN_PID has to be the daemon's own pid,
which its parent cannot know beforehand, and descriptors have to be numbered from 3: both are done
here, between fork and exec, in a process of its own rather than in a `preexec_fn`, which is unsafe
beside threads. Run by path with ``-S`` and few imports, since every restart waits for it.
"""

import ctypes
import fcntl
import os
import signal
import sys

_PR_SET_PDEATHSIG = 1


def main(arguments: list[str]) -> None:
    parent, numbers, *command = arguments
    # A daemon must not outlive its supervisor: it would keep the port, and nobody would know.
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)
    if os.getppid() != int(parent):
        sys.exit("The supervisor is gone already.")
    # Out of the way first: a socket may sit on a number that another one has to get.
    high = [fcntl.fcntl(int(fd), fcntl.F_DUPFD, 64) for fd in numbers.split(",")]
    for target, fd in enumerate(high, start=3):
        os.dup2(fd, target, inheritable=True)
    os.closerange(3 + len(high), 256)
    os.environ["LISTEN_PID"] = str(os.getpid())
    os.execvp(command[0], command)  # noqa: S606  an argument vector of our own


if __name__ == "__main__":
    main(sys.argv[1:])
