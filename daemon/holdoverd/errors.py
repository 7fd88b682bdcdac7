"""Every error that Holdover raises on purpose.

::

    HoldoverError
    ├── RequestError             the caller can mend it; goes out over the wire with its code
    │   ├── BadRequest           400 bad_request
    │   ├── Unauthorized         401 unauthorized
    │   ├── Forbidden            403 forbidden
    │   ├── NotFound             404 not_found
    │   ├── MethodNotAllowed     405 method_not_allowed
    │   ├── Conflict             409 conflict
    │   ├── Gone                 410 gone
    │   ├── TooLarge             413 too_large
    │   ├── Unprocessable        422 unprocessable
    │   ├── RateLimited          429 rate_limited
    │   ├── Internal             500 internal
    │   ├── StorageUnavailable   502 storage_unavailable: not configured, not there, or it failed
    │   │   └── StorageRefused   storage answered, and will not do it; `reason` is its own code
    │   ├── Capacity             503 capacity
    │   └── Unavailable          503 unavailable
    │       ├── CatalogueError   the catalogue cannot be read or written just now
    │       ├── OwnedElsewhere   a living instance of this host owns the session: ask it
    │       └── SessionMoved     the session left this instance while it was being asked
    ├── NotOwner                 another instance owns the session now; this one must let go
    ├── LaunchError              an agent could not be started
    │   └── LockHeld             somebody holds the session's lock: an agent, keeper or rival lives
    ├── KeeperError              the keeper spoke against its protocol, or is not there
    │   └── StaleEpoch           the keeper has heard a newer owner
    ├── SkillError               a skill, source or plugin cannot be had; `code` is the helper's own
    ├── HandoverError            another instance spoke against the protocol, or is gone
    └── SettingsError            the configuration has a mistake; names file, line and key

A message says what happened, to what, and what to do next: it is shown to people as it is, so
it never holds a secret, and foreign exceptions are translated where they enter (`__cause__` kept).
"""

from collections.abc import Mapping
from typing import Any


class HoldoverError(Exception):
    """Root of every error that Holdover raises on purpose."""


class RequestError(HoldoverError):
    """A request that cannot be served as asked; `code` and `status` go over the wire.

    `extra` is added inside the wire's ``error`` object (``answered_by``, for one); `headers`
    are added to the HTTP answer (``Allow``, ``Retry-After``).
    """

    code = "internal"
    status = 500

    def __init__(
        self,
        message: str,
        *,
        extra: Mapping[str, object] | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.extra = dict(extra or {})
        self.headers = dict(headers or {})

    def body(self) -> dict[str, object]:
        """The wire form: ``{"error": {"code", "message", ...extra}}``."""
        return {"error": {"code": self.code, "message": self.message, **self.extra}}


class BadRequest(RequestError):
    code, status = "bad_request", 400


class Unauthorized(RequestError):
    code, status = "unauthorized", 401


class Forbidden(RequestError):
    code, status = "forbidden", 403


class NotFound(RequestError):
    code, status = "not_found", 404


class MethodNotAllowed(RequestError):
    code, status = "method_not_allowed", 405


class Conflict(RequestError):
    code, status = "conflict", 409


class Gone(RequestError):
    code, status = "gone", 410


class TooLarge(RequestError):
    code, status = "too_large", 413


class Unprocessable(RequestError):
    code, status = "unprocessable", 422


class RateLimited(RequestError):
    code, status = "rate_limited", 429


class Internal(RequestError):
    code, status = "internal", 500


class StorageUnavailable(RequestError):
    """Storage is not configured, cannot be reached, or failed; nothing was changed there for sure."""

    code, status = "storage_unavailable", 502


class StorageRefused(StorageUnavailable):
    """Storage understood and refused. `reason` is its code, such as ``NoSuchUpload``."""

    def __init__(self, message: str, reason: str = "", **details: Any) -> None:
        super().__init__(message, **details)
        self.reason = reason


class Capacity(RequestError):
    code, status = "capacity", 503


class Unavailable(RequestError):
    code, status = "unavailable", 503


class CatalogueError(Unavailable):
    """The catalogue refused or failed (disk full, locked, read-only, gone); nothing was stored."""


class OwnedElsewhere(Unavailable):
    """A living instance of this host, `generation`, owns the session: what is asked goes there."""

    def __init__(self, message: str, generation: int = 0, **details: Any) -> None:
        super().__init__(message, **details)
        self.generation = generation


class SessionMoved(Unavailable):
    """The session left this instance while it was being asked; asking anew finds its owner."""


class NotOwner(HoldoverError):
    """A write carried an owner epoch that is no longer the session's: another instance owns it."""


class LaunchError(HoldoverError):
    """An agent could not be started; the message is fit for the session's ``error``."""

    def __init__(self, message: str, *, code: str = "launch_failed") -> None:
        super().__init__(message)
        self.code = code


class LockHeld(LaunchError):
    """The session's lock is held: its agent, its keeper or a rival launch is still alive."""

    def __init__(self, message: str) -> None:
        super().__init__(message, code="lock_held")


class KeeperError(HoldoverError):
    """The keeper is not there, or spoke against its protocol."""


class StaleEpoch(KeeperError):
    """The keeper has heard a newer owner; whoever sent this greeting no longer owns the session."""


class SkillError(HoldoverError):
    """What was asked of skills cannot be done; nothing was changed.

    `code` is one of keeper/PROTOCOL.md, Skills; `details` go with it over the wire.
    """

    def __init__(
        self, message: str, *, code: str = "failed", details: Mapping[str, object] | None = None
    ) -> None:
        super().__init__(message)
        self.code = code
        self.details = dict(details or {})


class HandoverError(HoldoverError):
    """Another instance spoke against handover/PROTOCOL.md, or is not there any more."""


class SettingsError(HoldoverError):
    """The configuration has a mistake; the message names file, line and key."""
