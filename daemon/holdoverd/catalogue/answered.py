"""Requests that carried an ``Idempotency-Key``, and how they were answered (contract.md, Errors).

Only digests of the key and of what was asked are stored; `http/once.py` says what may be kept of an
answer.
"""

from dataclasses import dataclass

from sqlalchemy import Connection, delete, func, insert, select, update

from holdoverd.catalogue.schema import answered
from holdoverd.errors import RateLimited

KEPT_MS = 24 * 60 * 60 * 1000
# Of one token at a time: a client that makes a key for each of its requests, one every nine seconds.
MAX_KEPT = 10_000
# Removed with each key that comes: more than come in, so what is over goes without a task of its own.
_SWEPT_AT_ONCE = 20


@dataclass(frozen=True, slots=True)
class Asked:
    """A request with a key. `key`: digest of token, method, path and the key itself; `request`: of
    what it asks for. `host` and `generation`: the instance that answers it.
    """

    key: str
    request: str
    token: str
    host: str
    generation: int


@dataclass(frozen=True, slots=True)
class Answered:
    """What is on record for a key. `status` None: no answer yet. `body` None: it is not kept."""

    request: str
    host: str
    generation: int
    status: int | None
    body: bytes | None


def begin(cx: Connection, asked: Asked, now: int) -> Answered | None:
    """Put a request on record as being answered; what is there already, where its key is known.

    Raises RateLimited for a token with too many keys.
    """
    table = answered
    over = select(table.c.key).where(table.c.started_at <= now - KEPT_MS).limit(_SWEPT_AT_ONCE)
    cx.execute(delete(table).where(table.c.key.in_(list(cx.execute(over).scalars()))))
    found = cx.execute(
        select(
            table.c.request,
            table.c.host,
            table.c.generation,
            table.c.status,
            table.c.body,
            table.c.started_at,
        ).where(table.c.key == asked.key)
    ).first()
    if found is not None and found.started_at > now - KEPT_MS:
        body = None if found.body is None else found.body.encode()
        return Answered(found.request, found.host, found.generation, found.status, body)
    cx.execute(delete(table).where(table.c.key == asked.key))
    kept = cx.execute(
        select(func.count()).select_from(table).where(table.c.token == asked.token)
    ).scalar_one()
    if kept >= MAX_KEPT:
        raise RateLimited(
            f"{MAX_KEPT} idempotency keys of this token are kept already, each for 24 hours; send "
            "keys only where a request may have to be repeated."
        )
    cx.execute(
        insert(table).values(
            key=asked.key,
            request=asked.request,
            token=asked.token,
            host=asked.host,
            generation=asked.generation,
            started_at=now,
        )
    )
    return None


def finish(cx: Connection, key: str, status: int, body: bytes | None) -> None:
    """Keep the answer; `body` None where only the fact may be kept."""
    cx.execute(
        update(answered)
        .where(answered.c.key == key)
        .values(status=status, body=None if body is None else body.decode())
    )


def forget(cx: Connection, key: str) -> None:
    """Nothing came of the request, and the same one may be tried again."""
    cx.execute(delete(answered).where(answered.c.key == key))
