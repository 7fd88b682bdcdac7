"""The listening sockets of a living instance, for one that starts and got none from systemd.

Asked before anything runs, so blocking; as an operator (PROTOCOL.md).
"""

import json
import logging
import socket
from contextlib import closing
from pathlib import Path

log = logging.getLogger(__name__)

ANSWER_S = 2.0
MAX_SIBLINGS = 16
MAX_PACKET_BYTES = 64 * 1024
MAX_FDS = 16


def share_listeners(folder: Path) -> dict[str, list[socket.socket]]:
    """Copies of what a living instance listens on, by door; empty where none can be asked.

    `folder` has the instances' control sockets, ``N.sock``; the newest that answers is taken.
    """
    paths = [path for path in folder.glob("*.sock") if path.stem.isdecimal()]
    for path in sorted(paths, key=lambda path: -int(path.stem))[:MAX_SIBLINGS]:
        try:
            return _ask(path)
        except (OSError, ValueError, KeyError, TypeError) as error:
            log.info("%s gave no listening sockets: %s", path, error)
    return {}


def _ask(path: Path) -> dict[str, list[socket.socket]]:
    with closing(socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)) as sock:
        sock.settimeout(ANSWER_S)
        sock.connect(str(path))
        sock.send(json.dumps({"t": "hello", "v": [1], "operator": True}).encode())
        sock.send(json.dumps({"t": "listeners"}).encode())
        while True:
            data, fds, _, _ = socket.recv_fds(sock, MAX_PACKET_BYTES, MAX_FDS)
            found = [socket.socket(fileno=fd) for fd in fds]
            for one in found:
                one.set_inheritable(False)
            if not data:
                raise ValueError("it hung up")
            answer = json.loads(data)
            if answer["t"] == "error":
                raise ValueError(answer["message"])
            if answer["t"] == "ok":
                doors: dict[str, list[socket.socket]] = {}
                for door, one in zip(answer["doors"], found, strict=True):
                    doors.setdefault(str(door), []).append(one)
                return doors
