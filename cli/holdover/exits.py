"""How a command ends: its exit code, and one sentence for a person."""

from collections.abc import Mapping
from enum import IntEnum
from typing import Any


class Exit(IntEnum):
    """Exit codes, the same for every command."""

    OK = 0
    FAILED = 1
    USAGE = 2
    NOT_FOUND = 3
    NOT_ALLOWED = 4
    CONFLICT = 5
    INTEGRITY = 6
    STORAGE_UNAVAILABLE = 7
    UNREACHABLE = 8
    INTERRUPTED = 130


# The wire's closed list of codes; what is not here is a plain failure.
EXIT_OF_CODE = {
    "unauthorized": Exit.NOT_ALLOWED,
    "forbidden": Exit.NOT_ALLOWED,
    "not_found": Exit.NOT_FOUND,
    "conflict": Exit.CONFLICT,
    # What was asked for is over (an ended session, a withdrawn permission): the state is against it.
    "gone": Exit.CONFLICT,
    "storage_unavailable": Exit.STORAGE_UNAVAILABLE,
    "unavailable": Exit.UNREACHABLE,
}


class CommandError(Exception):
    """Ends the command; the message goes to stderr as it is, so it holds no secret."""

    def __init__(self, message: str, exit_code: Exit = Exit.FAILED) -> None:
        super().__init__(message)
        self.message = message
        self.exit_code = exit_code


class RefusedError(CommandError):
    """The daemon answered with an error of the wire's closed list; `extra` is what else it says."""

    def __init__(
        self, code: str, message: str, status: int = 0, extra: Mapping[str, Any] | None = None
    ) -> None:
        super().__init__(message, EXIT_OF_CODE.get(code, Exit.FAILED))
        self.code = code
        self.status = status
        self.extra = extra or {}


class UnreachableError(CommandError):
    """No daemon answers at the door that was tried."""

    def __init__(self, message: str) -> None:
        super().__init__(message, Exit.UNREACHABLE)
