"""Browsers that are told when an agent waits or has finished; see `holdoverd.push`."""

from dataclasses import asdict, dataclass

from sqlalchemy import Connection, and_, delete, insert, literal, or_, select

from holdoverd.catalogue.schema import subscriptions, tokens
from holdoverd.errors import Capacity

MAX_OF_OWNER = 50


@dataclass(frozen=True, slots=True)
class Subscription:
    """`p256dh` and `auth` are the browser's keys, base64url; `key` is ours that it was made for.

    `shared`: told, too, of what others share with everyone to write.
    """

    id: str
    owner: str
    token: str
    endpoint: str
    p256dh: str
    auth: str
    key: str
    shared: bool = False


def put(cx: Connection, row: Subscription, now: int) -> None:
    """Store it in the place of any other of the same endpoint. Raises Capacity for too many."""
    table = subscriptions
    cx.execute(delete(table).where(table.c.endpoint == row.endpoint))
    # Those whose token was revoked or removed say nothing any more.
    cx.execute(delete(table).where(table.c.token.not_in(select(tokens.c.id))))
    of_owner = list(cx.execute(select(table.c.id).where(table.c.owner == row.owner)))
    if len(of_owner) >= MAX_OF_OWNER:
        raise Capacity(
            f"{row.owner!r} has {MAX_OF_OWNER} browsers that are told already; end one there."
        )
    cx.execute(insert(table).values(**asdict(row), created_at=now))


def remove(cx: Connection, subscription: str, owner: str | None) -> bool:
    """False when there is none of that id, or it is not `owner`'s; None is anybody."""
    query = delete(subscriptions).where(subscriptions.c.id == subscription)
    if owner is not None:
        query = query.where(subscriptions.c.owner == owner)
    return cx.execute(query).rowcount > 0


def exist(cx: Connection) -> bool:
    """Whether anybody is to be told of anything."""
    return cx.execute(select(subscriptions.c.id).limit(1)).first() is not None


def of(
    cx: Connection, owner: str, key: str, now: int, *, shared: bool = False
) -> list[Subscription]:
    """Whom to tell of a session of `owner`'s: made for our `key`, by a token that is still good.

    `shared`: everyone may write in it; then also those of others who asked for that and whose token
    may answer.
    """
    table = subscriptions
    told = table.c.owner == owner
    if shared:
        scopes = literal(" ") + tokens.c.scopes + literal(" ")
        may_answer = or_(scopes.like("% sessions %"), scopes.like("% admin %"))
        told = or_(told, and_(table.c.shared, may_answer))
    columns = [table.c[name] for name in Subscription.__slots__]
    rows = cx.execute(
        select(*columns)
        .join(tokens, tokens.c.id == table.c.token)
        .where(
            told,
            table.c.key == key,
            or_(tokens.c.expires_at.is_(None), tokens.c.expires_at > now),
        )
    )
    return [Subscription(**row._asdict()) for row in rows]
