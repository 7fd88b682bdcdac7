"""Tokens: made, listed and revoked by whoever has the scope `admin`."""

from typing import cast

from sqlalchemy import Connection

from holdoverd.catalogue import audit, tokens
from holdoverd.errors import BadRequest, NotFound
from holdoverd.http import shapes
from holdoverd.http.context import DEFAULT_OWNER, Context
from holdoverd.http.wire import Request, Response, json_response, no_content
from holdoverd.ids import now_ms


def _view(row: tokens.TokenRow) -> shapes.Json:
    return {
        "id": row.id,
        "name": row.name,
        "owner": row.owner,
        "scopes": row.scopes,
        "created_at": row.created_at,
        "expires_at": row.expires_at,
    }


async def create(context: Context, request: Request) -> Response:
    """A new token, shown this once. A new owner is bound to `account`, or to the default one."""
    spec = shapes.new_token(request.json())
    owner = cast(str, spec.get("owner", DEFAULT_OWNER))
    lifetime_s = cast("int | None", spec.get("expires_in_s"))
    now = now_ms()
    token = tokens.new_token()

    def store(cx: Connection) -> tokens.TokenRow:
        tokens.ensure_owner(
            cx,
            owner,
            account=cast("str | None", spec.get("account")),
            default_account=context.default_account,
            now=now,
        )
        row = tokens.create_token(
            cx,
            token,
            name=cast(str, spec["name"]),
            owner=owner,
            scopes=cast("list[str]", spec["scopes"]),
            now=now,
            expires_at=None if lifetime_s is None else now + lifetime_s * 1000,
        )
        audit.record(
            cx,
            at=now,
            owner=owner,
            actor=request.caller.token_id or "admin",
            action="token.made",
            subject=row.id,
            details={"name": row.name, "scopes": row.scopes},
        )
        return row

    row = await context.catalogue.write(store)
    return json_response({**_view(row), "token": token}, 201)


async def list_all(context: Context, request: Request) -> Response:
    """Newest first. The cursor is the id of the last token shown."""
    limit = shapes.query_limit(request.query)
    cursor = shapes.query_text(request.query, "cursor")
    owner = shapes.owner(request.query)
    rows = await context.catalogue.read(lambda cx: tokens.list_tokens(cx, owner))
    start = 0
    if cursor is not None:
        ids = [row.id for row in rows]
        if cursor not in ids:
            raise BadRequest("The cursor's token is gone; list from the beginning again.")
        start = ids.index(cursor) + 1
    shown = rows[start : start + limit]
    more = len(rows) > start + limit
    return json_response(
        {"items": [_view(row) for row in shown], "next": shown[-1].id if more else None}
    )


async def revoke(context: Context, request: Request) -> Response:
    """The token is worth nothing from here on; its open streams close 4001 at once."""
    token_id = request.params["id"]
    now = now_ms()

    def remove(cx: Connection) -> bool:
        owner = tokens.revoke_token(cx, token_id)
        if owner is not None:
            audit.record(
                cx,
                at=now,
                owner=owner,
                actor=request.caller.token_id or "admin",
                action="token.revoked",
                subject=token_id,
            )
        return owner is not None

    if not await context.catalogue.write(remove):
        raise NotFound(f"There is no token {token_id[:50]!r}; `GET /v1/tokens` lists them.")
    context.token_gone(token_id)
    return no_content()
