"""Tokens and their owners. Of a token only its sha256 is stored: whoever reads it cannot use it.

A plain digest is enough, because a token is 256 random bits and not a person's password; looking
it up by its digest leaves nothing to be timed.
"""

import hashlib
import secrets
from collections.abc import Iterable
from dataclasses import dataclass

from sqlalchemy import Connection, bindparam, delete, insert, select

from holdoverd.callers import Caller
from holdoverd.catalogue.schema import owners, tokens
from holdoverd.catalogue.statements import Statement
from holdoverd.errors import Conflict
from holdoverd.ids import new_id

PREFIX = "hold_"

# Asked at every request.
_OF_DIGEST = Statement(
    ("digest",),
    lambda _dialect: (
        select(tokens.c.id, tokens.c.owner, owners.c.account, tokens.c.scopes, tokens.c.expires_at)
        .join(owners, owners.c.name == tokens.c.owner)
        .where(tokens.c.digest == bindparam("digest"))
    ),
)


@dataclass(frozen=True, slots=True)
class TokenRow:
    """A token as it may be shown. Times in ms; `expires_at` None: never."""

    id: str
    name: str
    owner: str
    scopes: tuple[str, ...]
    created_at: int
    expires_at: int | None


def ensure_owner(
    cx: Connection, owner: str, *, account: str | None, default_account: str, now: int
) -> str:
    """The account of an owner, who is created where new, bound to `account` or the default one.

    Raises Conflict when the owner exists and is bound to another account than the one asked for.
    """
    bound: str | None = cx.execute(select(owners.c.account).where(owners.c.name == owner)).scalar()
    if bound is None:
        bound = account or default_account
        cx.execute(insert(owners).values(name=owner, account=bound, created_at=now))
    elif account not in (None, bound):
        raise Conflict(
            f"Owner {owner!r} is bound to the account {bound!r} and cannot move to {account!r}; "
            "use another owner's name."
        )
    return bound


def owner_account(cx: Connection, owner: str) -> str | None:
    """The account an owner is bound to; None when there is no such owner."""
    found: str | None = cx.execute(select(owners.c.account).where(owners.c.name == owner)).scalar()
    return found


def new_token() -> str:
    """A fresh token, ``hold_`` and 43 characters. Make it outside of the write that stores it.

    A write may run twice, and the one shown must be the one stored.
    """
    return PREFIX + secrets.token_urlsafe(32)


def create_token(
    cx: Connection,
    token: str,
    *,
    name: str,
    owner: str,
    scopes: Iterable[str],
    now: int,
    expires_at: int | None = None,
) -> TokenRow:
    """Store `token`, made by `new_token`, for an owner that exists (see `ensure_owner`)."""
    row = TokenRow(new_id("t"), name, owner, tuple(sorted(set(scopes))), now, expires_at)
    cx.execute(
        insert(tokens).values(
            id=row.id,
            name=name,
            owner=owner,
            scopes=" ".join(row.scopes),
            digest=_digest(token),
            created_at=now,
            expires_at=expires_at,
        )
    )
    return row


def authenticate(cx: Connection, token: str, now: int) -> Caller | None:
    """Whose token this is; None when it is unknown, revoked or expired at `now`."""
    found = _OF_DIGEST.rows(cx, (_digest(token),))
    if not found:
        return None
    token_id, owner, account, scope_text, expires_at = found[0]
    if expires_at is not None and expires_at <= now:
        return None
    scopes = frozenset(scope_text.split())
    return Caller(owner, account, scopes, token_id, admin="admin" in scopes)


def list_tokens(cx: Connection, owner: str | None = None) -> list[TokenRow]:
    """Tokens not revoked, expired ones too, newest first; those of one owner, or all."""
    query = select(
        tokens.c.id,
        tokens.c.name,
        tokens.c.owner,
        tokens.c.scopes,
        tokens.c.created_at,
        tokens.c.expires_at,
    ).order_by(tokens.c.created_at.desc(), tokens.c.id)
    if owner is not None:
        query = query.where(tokens.c.owner == owner)
    return [
        TokenRow(token_id, name, whose, tuple(scopes.split()), created_at, expires_at)
        for token_id, name, whose, scopes, created_at, expires_at in cx.execute(query)
    ]


def revoke_token(cx: Connection, token_id: str, owner: str | None = None) -> str | None:
    """Remove a token; whose it was. None when there is none, or not of that `owner`."""
    query = delete(tokens).where(tokens.c.id == token_id).returning(tokens.c.owner)
    if owner is not None:
        query = query.where(tokens.c.owner == owner)
    removed: str | None = cx.execute(query).scalar()
    return removed


def _digest(token: str) -> str:
    # A token from a header may hold anything; what cannot be encoded matches nothing.
    return hashlib.sha256(token.encode("utf-8", "surrogatepass")).hexdigest()
