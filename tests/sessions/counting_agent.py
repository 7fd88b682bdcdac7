"""The demo agent, which notes whatever must not happen twice: its own life and what it hears.

Into ``$HOME/heard/SESSION``, one line each: ``born PID``, ``twin PID`` when another agent of the
session is alive at that moment, and ``prompt UUID`` for every prompt that reaches its stdin (the
demo by itself would hide a prompt that comes twice).
"""

import fcntl
import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

from holdoverd.demo.__main__ import main


def act() -> int:
    session = os.environ["HOLDOVER_SESSION_ID"]
    folder = Path(os.environ["HOME"]) / "heard"
    notes = os.open(folder / session, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)

    def note(text: str) -> None:
        os.write(notes, f"{text}\n".encode())

    stdin = os.fdopen(os.dup(0), "rb")
    # A dying process closes its descriptors in order. As number 0 this lock is free before the
    # session's own, so that whoever was rightly started next never meets it.
    alive = os.open(folder / f"{session}.alive", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    os.dup2(alive, 0, inheritable=False)
    os.close(alive)
    try:
        fcntl.flock(0, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        note(f"twin {os.getpid()}")
    note(f"born {os.getpid()}")

    def heard() -> Iterator[bytes]:
        for line in stdin:
            frame = json.loads(line)
            if frame.get("type") == "user":
                note(f"prompt {frame['uuid']}")
            yield line

    sys.stdin = SimpleNamespace(buffer=heard())
    return main(sys.argv[1:])


if __name__ == "__main__":
    sys.exit(act())
