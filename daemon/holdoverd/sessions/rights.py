"""Who may see a session, and what those hear who may not."""

from holdoverd.callers import Caller
from holdoverd.catalogue.records import SessionRow
from holdoverd.errors import NotFound


def may_see(caller: Caller, row: SessionRow) -> bool:
    return bool(caller.admin or row.owner == caller.owner or row.share)


def may_write(caller: Caller, row: SessionRow) -> bool:
    return bool(caller.admin or row.owner == caller.owner or row.share == "write")


def no_session(session: str) -> NotFound:
    """As for one that is not there: what somebody may not see is not told to be there."""
    return NotFound(f"No session {session[:64]!r}; `holdover session ls` lists yours.")


def seen(caller: Caller, session: str, row: SessionRow | None) -> SessionRow:
    """The session's row, if there is one that `caller` may see. Raises NotFound."""
    if row is None or not may_see(caller, row):
        raise no_session(session)
    return row
