"""Who asks: the result of authentication, handed to everything that decides by it."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Caller:
    """An authenticated caller.

    `owner` is the name whose things it sees, `account` the Unix user that owner's agents run as.
    `token_id` is None behind the admin door, which needs no token. `admin` implies every scope
    and every owner; `scopes` are the literal ones of the token.
    """

    owner: str
    account: str
    scopes: frozenset[str]
    token_id: str | None
    admin: bool
