"""The processors that come with Holdover: programs, each a module, standard library alone.

They know only what any processor is told: stdin or HOLDOVER_FILE, HOLDOVER_PARAMS, the progress
descriptor. Exit status 0: stdout is the result; 65 and its like (`output.FINAL_STATUSES`): it will
never work; 75: later; any other: it may work another time. The last line on stderr says why.
"""

import json
import os
import sys
from typing import Any, NoReturn

DATA_ERROR = 65
NO_INPUT = 66
UNAVAILABLE = 69
TEMPORARY = 75


def params() -> dict[str, Any]:
    """The job's params."""
    given: dict[str, Any] = json.loads(os.environ.get("HOLDOVER_PARAMS") or "{}")
    return given


def report(**progress: object) -> None:
    """A line of progress: bytes, total, or retry_after_s."""
    fd = int(os.environ.get("HOLDOVER_PROGRESS_FD") or -1)
    if fd >= 0:
        os.write(fd, json.dumps(progress).encode() + b"\n")


def fail(status: int, message: str) -> NoReturn:
    """End with `status`; `message` becomes the job's error."""
    print(message, file=sys.stderr)
    sys.exit(status)
