"""Who asks: the result of authentication, handed to everything that decides by it."""

import re
from dataclasses import dataclass
from typing import Final

ACCOUNT_NAME: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_.-]{0,31}")
"""A Unix user's name, matched whole. It becomes part of a path and of units' names: no slash, no
``@`` and no leading dash or dot."""


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
