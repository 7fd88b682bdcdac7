"""Lets S3 out: ``python -I -S door.py PARENT FD SOCKET``, what systemd-socket-proxyd does for a unit.

FD is a listening TCP socket that the supervisor holds, so that nobody is refused while storage is
started again: a connection waits here until the Unix socket SOCKET answers. Bytes go from one
socket to the other inside the kernel (splice(2)); nothing here reads them.
"""

import contextlib
import fcntl
import os
import socket
import sys
import threading
import time

MAX_CONNECTIONS = 512
# Longer than a restart of storage; what has waited for so long is closed, and tried again.
WAIT_S = 30.0
RETRY_S = 0.1
PIPE_BYTES = 256 << 10


def main(arguments: list[str]) -> None:
    parent, fd, path = arguments
    # Beside this file; `-S` leaves no package to import it from.
    sys.path.insert(0, os.path.dirname(__file__))
    from enclose import stay_with  # type: ignore[import-not-found]  # found by the line above

    stay_with(int(parent))
    serve(socket.socket(fileno=int(fd)), path)


def serve(listener: socket.socket, path: str) -> None:
    """Accept for ever. Whoever exceeds `MAX_CONNECTIONS` waits in the listener's queue."""
    listener.setblocking(True)
    free = threading.BoundedSemaphore(MAX_CONNECTIONS)
    while True:
        free.acquire()
        try:
            outside, _ = listener.accept()
        except OSError:  # out of descriptors, or the peer has gone: neither is the end
            free.release()
            time.sleep(RETRY_S)
            continue
        threading.Thread(target=_carry, args=(outside, path, free), daemon=True).start()


def _carry(outside: socket.socket, path: str, free: threading.BoundedSemaphore) -> None:
    try:
        outside.setblocking(True)
        outside.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        outside.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        with outside, _connected(path) as inside:
            back = threading.Thread(target=_pour, args=(inside, outside), daemon=True)
            back.start()
            _pour(outside, inside)
            back.join()
    except OSError:
        return  # closed: the client tries again, as after any broken connection
    finally:
        free.release()


def _connected(path: str) -> socket.socket:
    until = time.monotonic() + WAIT_S
    while True:
        one = socket.socket(socket.AF_UNIX)
        try:
            one.connect(path)
        except (FileNotFoundError, ConnectionRefusedError):
            one.close()
            if time.monotonic() > until:
                raise
            time.sleep(RETRY_S)
        else:
            return one


def _pour(source: socket.socket, target: socket.socket) -> None:
    """Until `source` ends; then `target` hears of it. A broken one breaks both."""
    reading, writing = os.pipe()
    try:
        with contextlib.suppress(OSError):  # beyond the user's share of pipe memory: the usual size
            fcntl.fcntl(writing, fcntl.F_SETPIPE_SZ, PIPE_BYTES)
        while count := os.splice(source.fileno(), writing, PIPE_BYTES):
            while count:
                count -= os.splice(reading, target.fileno(), count)
        target.shutdown(socket.SHUT_WR)
    except OSError:
        for one in (source, target):
            with contextlib.suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)
    finally:
        os.close(reading)
        os.close(writing)


if __name__ == "__main__":
    main(sys.argv[1:])
