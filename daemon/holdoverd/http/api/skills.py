"""Skills and marketplaces over HTTP: check the request's shape, ask the service, send what it says."""

from collections.abc import Mapping

from holdoverd.callers import Caller
from holdoverd.errors import BadRequest, Unavailable, Unprocessable
from holdoverd.http import shapes
from holdoverd.http.context import Context, SkillService
from holdoverd.http.shapes import Fields, Json
from holdoverd.http.wire import Request, Response, json_response, no_content

SCOPES = ("personal", "project")
# What may be done to a skill by its path, and to many by `batch`.
OPS = ("update", "rollback", "pin", "unpin", "enable", "disable")
BATCH_OPS = (*OPS, "remove")
MAX_NAMES = 1000
MAX_PATH = 4096


def skill_service(context: Context) -> SkillService:
    if context.skills is None:
        raise Unavailable("This instance has no skills yet; try again.")
    return context.skills


async def _acting(context: Context, request: Request, data: Mapping[str, object]) -> Caller:
    """For whose account: an admin may name another owner."""
    owner = shapes.owner(data) or shapes.owner(request.query)
    return await context.acting_for(request.caller, owner)


def _place(data: Mapping[str, object], *, default: str | None = "personal") -> Json:
    """``{"scope", "cwd"}``: which folder is meant. A `cwd` alone means the project's."""
    fields = Fields(data)
    scope = fields.choice("scope", SCOPES)
    cwd = fields.text("cwd", max_chars=MAX_PATH, one_line=False)
    if cwd is not None and (not cwd.startswith("/") or "\0" in cwd):
        raise Unprocessable("The field `cwd` has to be an absolute path.")
    if scope == "project" and cwd is None:
        raise BadRequest("The field `cwd` is missing: which project's skills are meant?")
    if scope is None and default is not None:
        scope = "project" if cwd is not None else default
    return {"scope": scope, "cwd": cwd}


def _names(data: Mapping[str, object], *, required: bool) -> list[str] | None:
    names = Fields(data).texts("names", max_items=MAX_NAMES, required=required)
    if names is not None and (not names or any(not 0 < len(name) <= 300 for name in names)):
        raise Unprocessable("`names` are 1 to 1000 names of skills or patterns like 'pdf-*'.")
    return names


async def list_all(context: Context, request: Request) -> Response:
    caller = await _acting(context, request, {})
    shapes.query_choice(request.query, "scope", SCOPES)  # a parameter's fault is a 400
    place = _place(request.query, default=None)
    return json_response(await skill_service(context).list_skills(caller, place))


async def add(context: Context, request: Request) -> Response:
    data = request.json()
    fields = Fields(data)
    spec: Json = {
        "source": fields.text("source", required=True, max_chars=MAX_PATH),
        "names": _names(data, required=False),
        "ref": fields.text("ref", nullable=True, max_chars=200),
        "folder": fields.text("folder", nullable=True, max_chars=1000),
        "all": fields.flag("all"),
        "trust": fields.flag("trust"),
        "replace": fields.flag("replace"),
        **_place(data),
    }
    caller = await _acting(context, request, data)
    return json_response(await skill_service(context).change(caller, "add", spec), 201)


async def change(context: Context, request: Request) -> Response:
    """``POST /v1/skills/{name}/{op}``; `to` names a kept version, `pinned: false` unpins."""
    op = request.params["op"]
    if op not in OPS:
        raise BadRequest(f"{op[:40]!r} cannot be done to a skill; choose one of {', '.join(OPS)}.")
    data = request.json_or_empty()
    fields = Fields(data)
    if op == "pin" and fields.flag("pinned") is False:
        op = "unpin"
    spec: Json = {
        "names": [request.params["name"]],
        "to": fields.text("to", nullable=True, max_chars=64),
        "trust": fields.flag("trust"),
        **_place(data),
    }
    caller = await _acting(context, request, data)
    return json_response(await skill_service(context).change(caller, op, spec))


async def batch(context: Context, request: Request) -> Response:
    data = request.json()
    fields = Fields(data)
    op = fields.choice("op", BATCH_OPS, required=True)
    assert op is not None
    spec = {"names": _names(data, required=True), "trust": fields.flag("trust"), **_place(data)}
    caller = await _acting(context, request, data)
    return json_response(await skill_service(context).change(caller, op, spec))


async def diff(context: Context, request: Request) -> Response:
    """``?to=`` a kept version; without it, to what the source holds now."""
    caller = await _acting(context, request, {})
    to = shapes.query_text(request.query, "to", 64)
    place = _place(request.query)
    return json_response(
        await skill_service(context).diff(caller, request.params["name"], to, place)
    )


async def remove(context: Context, request: Request) -> Response:
    caller = await _acting(context, request, {})
    spec: Json = {"names": [request.params["name"]], **_place(request.query)}
    await skill_service(context).change(caller, "remove", spec)
    return no_content()


async def marketplaces(context: Context, request: Request) -> Response:
    caller = await _acting(context, request, {})
    return json_response(await skill_service(context).marketplaces(caller))


async def add_marketplace(context: Context, request: Request) -> Response:
    data = request.json()
    source = Fields(data).text("source", required=True, max_chars=MAX_PATH)
    assert source is not None
    caller = await _acting(context, request, data)
    return json_response(await skill_service(context).add_marketplace(caller, source), 201)


async def remove_marketplace(context: Context, request: Request) -> Response:
    caller = await _acting(context, request, {})
    await skill_service(context).remove_marketplace(caller, request.params["name"])
    return no_content()


async def browse(context: Context, request: Request) -> Response:
    """``?q=`` words to look for, ``?refresh=true`` fetches the index anew."""
    query = request.query
    caller = await _acting(context, request, {})
    cursor = shapes.query_integer(query, "cursor")
    found = await skill_service(context).browse(
        caller,
        request.params["name"],
        shapes.query_text(query, "q"),
        refresh=shapes.query_flag(query, "refresh"),
        limit=shapes.query_limit(query),
        start=cursor or 0,
    )
    return json_response(found)
