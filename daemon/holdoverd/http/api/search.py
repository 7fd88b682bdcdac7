"""Search over everything that was said. Any instance answers: reading needs no owner."""

from dataclasses import asdict

from holdoverd.catalogue import searched
from holdoverd.errors import BadRequest
from holdoverd.http import shapes
from holdoverd.http.context import Context
from holdoverd.http.wire import Request, Response, json_response
from holdoverd.search.words import terms_of


async def search(context: Context, request: Request) -> Response:
    """The latest first; the cursor says before which hit the next page begins."""
    query = request.query
    terms = terms_of(shapes.query_text(query, "q") or "")
    session = shapes.query_text(query, "session", 200)
    limit = shapes.query_limit(query)
    cursor = _cursor(query.get("cursor"))
    caller = request.caller
    named = shapes.owner(query)
    if named is not None:
        named = (await context.acting_for(caller, named)).owner
    # An admin who names an owner finds what that owner finds.
    owner = named if caller.admin else caller.owner
    hits, following = await context.catalogue.read(
        lambda cx: searched.search(
            cx, terms, owner=owner, session=session, limit=limit, cursor=cursor
        )
    )
    return json_response(
        {
            "items": [asdict(hit) for hit in hits],
            "next": None if following is None else str(following),
        }
    )


def _cursor(text: str | None) -> int | None:
    if not text:
        return None
    # At most 18 digits: what fits 64 bits.
    if not (text.isascii() and text.isdecimal() and len(text) <= 18):
        raise BadRequest("This cursor is not one of a search; start again without a cursor.")
    return int(text)
