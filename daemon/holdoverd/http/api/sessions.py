"""Sessions over HTTP: check the request's shape, ask the session service, send what it says."""

from dataclasses import replace

from sqlalchemy import Connection

from holdoverd.errors import BadRequest, Forbidden
from holdoverd.http import shapes
from holdoverd.http.context import Context
from holdoverd.http.wire import (
    Request,
    Response,
    entity_tags,
    json_response,
    no_content,
    raw_json,
)

# How long nothing has to be asked again about a page that never changes (contract.md, Messages).
_FOREVER = "private, max-age=31536000, immutable"


async def create(context: Context, request: Request) -> Response:
    data = request.json()
    spec = shapes.new_session(data)
    owner = shapes.owner(data) or shapes.owner(request.query)
    caller = await context.acting_for(request.caller, owner)
    return raw_json(await context.sessions.create(caller, spec), 201)


async def adopt(context: Context, request: Request) -> Response:
    """Go on with a conversation that was begun outside of Holdover, in the account's own home."""
    data = request.json()
    spec = shapes.adoption(data)
    owner = shapes.owner(data) or shapes.owner(request.query)
    caller = await context.acting_for(request.caller, owner)
    account = shapes.account(data)
    if account not in (None, caller.account):
        if not caller.admin:
            raise Forbidden(
                f"{caller.owner!r} is bound to the account {caller.account!r}; conversations of "
                f"{account!r} are not its to go on with."
            )
        caller = replace(caller, account=str(account))
    return raw_json(await context.sessions.create(caller, spec), 201)


def list_all(context: Context, request: Request, cx: Connection) -> Response:
    query = request.query
    caller = request.caller
    if (owner := shapes.owner(query)) is not None:
        # An admin who names an owner sees what that owner sees.
        caller = replace(context.acting_for_in(cx, caller, owner), admin=False)
    text = context.sessions.list_sessions(
        cx,
        caller,
        state=shapes.query_choice(query, "state", shapes.STATES),
        q=shapes.query_text(query, "q"),
        agent=shapes.query_text(query, "agent"),
        limit=shapes.query_limit(query),
        cursor=shapes.query_text(query, "cursor"),
    )
    return raw_json(text)


def show(context: Context, request: Request, cx: Connection) -> Response:
    return raw_json(context.sessions.get(cx, request.caller, request.params["id"]))


async def patch(context: Context, request: Request) -> Response:
    changes = shapes.session_changes(request.json())
    text = await context.sessions.patch(request.caller, request.params["id"], changes)
    return raw_json(text)


async def end(context: Context, request: Request) -> Response:
    purge = shapes.query_flag(request.query, "purge")
    await context.sessions.end(request.caller, request.params["id"], purge=purge)
    return no_content()


async def prompt(context: Context, request: Request) -> Response:
    spec = shapes.prompt(request.json(), shapes.MAX_HTTP_PROMPT_BYTES)
    status, body = await context.sessions.prompt(request.caller, request.params["id"], spec)
    return json_response(body, status)


async def cancel_prompt(context: Context, request: Request) -> Response:
    prompt_id = request.params["prompt"].lower()
    await context.sessions.cancel_prompt(request.caller, request.params["id"], prompt_id)
    return no_content()


async def answer(context: Context, request: Request) -> Response:
    data = request.json()
    spec = shapes.answer(data)
    caller = request.caller
    owner = shapes.owner(data) or shapes.owner(request.query)
    if owner is not None:
        # Only whose answer it is; what may be answered is still the caller's right.
        caller = replace(caller, owner=(await context.acting_for(caller, owner)).owner)
    return json_response(await context.sessions.answer(caller, request.params["id"], spec))


async def interrupt(context: Context, request: Request) -> Response:
    all_of_it = shapes.cancel_queued(request.json_or_empty())
    body = await context.sessions.interrupt(
        request.caller, request.params["id"], cancel_queued=all_of_it
    )
    return json_response(body, 202)


async def resume(context: Context, request: Request) -> Response:
    request.json_or_empty()
    body = await context.sessions.resume(request.caller, request.params["id"])
    return json_response(body, 202)


async def messages(context: Context, request: Request) -> Response:
    """A page of a thread, or the whole log after a cursor."""
    query = request.query
    page = shapes.query_integer(query, "page")
    after = shapes.query_integer(query, "after")
    if (page is None) == (after is None):
        raise BadRequest(
            "Say which messages: `?page=N` (with `thread`) for a page, or `?after=SEQ` for the log."
        )
    session = request.params["id"]
    if after is not None:
        limit = shapes.query_limit(query)
        return raw_json(await context.sessions.log(request.caller, session, after, limit))
    assert page is not None
    epoch = shapes.query_text(query, "epoch")
    thread = shapes.query_text(query, "thread") or "main"
    found = await context.sessions.page(request.caller, session, thread, page, epoch)
    etag = found.etag
    # Without an epoch the same address means another page once a backup has been restored.
    cache = _FOREVER if found.sealed and epoch is not None else "private, no-cache"
    if etag in entity_tags(request.head):
        return Response(304, b"", (("ETag", etag), ("Cache-Control", cache)))
    return raw_json(found.json_text, headers=[("ETag", etag)], cache=cache)


async def body(context: Context, request: Request) -> Response:
    seq = shapes.query_integer(request.params, "seq")
    assert seq is not None
    return raw_json(await context.sessions.body(request.caller, request.params["id"], seq))
