"""Web push: a browser asks to be told when an agent of its owner's waits or has finished."""

from holdoverd.errors import Unavailable
from holdoverd.http.context import Context, PushService
from holdoverd.http.shapes import Fields
from holdoverd.http.wire import Request, Response, json_response, no_content


async def show(context: Context, _request: Request) -> Response:
    """The key that a browser subscribes for."""
    return json_response({"public_key": await _push(context).public_key()})


async def subscribe(context: Context, request: Request) -> Response:
    """As ``PushSubscription.toJSON()`` has it; ``shared``: of what others share to write, too."""
    fields = Fields(request.json())
    endpoint = fields.text("endpoint", required=True, max_chars=2048)
    keys = Fields(fields.mapping("keys") or {}, "keys.")
    p256dh = keys.text("p256dh", required=True, max_chars=200)
    auth = keys.text("auth", required=True, max_chars=200)
    assert endpoint is not None
    assert p256dh is not None
    assert auth is not None
    shared = fields.flag("shared") or False
    made = await _push(context).subscribe(request.caller, endpoint, p256dh, auth, shared=shared)
    return json_response({"id": made}, 201)


async def unsubscribe(context: Context, request: Request) -> Response:
    await _push(context).unsubscribe(request.caller, request.params["id"])
    return no_content()


def _push(context: Context) -> PushService:
    if context.push is None:
        raise Unavailable("This instance pushes nothing yet; try again.")
    return context.push
