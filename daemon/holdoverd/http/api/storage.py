"""Operations on storage: what is in it, who may have how much, the sweeper, and the audit."""

from sqlalchemy import Connection

from holdoverd.catalogue import audit as audit_table
from holdoverd.catalogue import files as table
from holdoverd.files.sweeper import OLDER_THAN_S
from holdoverd.files.wire import audit_view, usage_view
from holdoverd.http import shapes
from holdoverd.http.api.files import services
from holdoverd.http.context import Context
from holdoverd.http.shapes import Fields
from holdoverd.http.wire import Request, Response, json_response, no_content
from holdoverd.ids import now_ms


async def status(context: Context, _request: Request) -> Response:
    """Where storage is, whether it answers, and what each owner has there."""
    files = services(context).files
    owners = await context.catalogue.read(table.usages)
    settings = files.settings
    reachable: bool | None = None
    if files.has_store:
        reachable = await files.store.answers()
    return json_response(
        {
            "configured": files.has_store,
            "reachable": reachable,
            "endpoint": settings.endpoint,
            "public_endpoint": settings.public_endpoint or settings.endpoint,
            "bucket": settings.bucket,
            "quota_bytes": settings.quota_bytes,
            "owners": [usage_view(row) for row in owners],
        }
    )


async def quota(context: Context, request: Request) -> Response:
    """What an owner may have; null: as ``[storage] quota_bytes`` says, 0: without limit."""
    data = request.json()
    fields = Fields(data)
    owner = shapes.owner(data)
    if owner is None:
        fields.text("owner", required=True)
    assert owner is not None
    given = None
    if data.get("quota_bytes") is not None or "quota_bytes" not in data:
        given = fields.integer("quota_bytes", required=True)
    actor = request.caller.token_id or "admin"

    def change(cx: Connection) -> None:
        table.set_quota(cx, owner, given)
        audit_table.record(
            cx,
            at=now_ms(),
            owner=owner,
            actor=actor,
            action="quota.set",
            subject=owner,
            details={"quota_bytes": given},
        )

    await context.catalogue.write(change)
    return no_content()


async def sweep(context: Context, request: Request) -> Response:
    """Make storage and catalogue agree. Without ``"dry_run": false`` it only tells."""
    fields = Fields(request.json_or_empty())
    dry_run = fields.flag("dry_run")
    older_than_s = fields.integer("older_than_s")
    found = await services(context).sweeper.sweep(
        dry_run=dry_run is not False,
        older_than_s=OLDER_THAN_S if older_than_s is None else older_than_s,
    )
    return json_response(found.view())


async def audit(context: Context, request: Request) -> Response:
    query = request.query
    rows, following = await context.catalogue.read(
        lambda cx: audit_table.list_rows(
            cx,
            owner=shapes.owner(query),
            subject=shapes.query_text(query, "subject"),
            action=shapes.query_text(query, "action"),
            limit=shapes.query_limit(query),
            cursor=shapes.query_text(query, "cursor"),
        )
    )
    return json_response({"items": [audit_view(row) for row in rows], "next": following})
