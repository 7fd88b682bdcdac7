"""Operations: which instances live, and having one hand over what it owns."""

from dataclasses import asdict

from holdoverd.errors import NotFound, Unavailable
from holdoverd.http.context import Context, Router
from holdoverd.http.shapes import Fields
from holdoverd.http.wire import Request, Response, json_response, no_content


async def instances(context: Context, _request: Request) -> Response:
    return json_response({"items": _router(context).instances(), "next": None})


async def metrics(context: Context, _request: Request) -> Response:
    """Prometheus' text; what each name means stands in it."""
    if context.metrics is None:
        raise Unavailable("This instance does not count yet; try again.")
    text, media_type = await context.metrics.text()
    return Response(200, text, (("Content-Type", media_type), ("Cache-Control", "no-store")))


async def drain(context: Context, request: Request) -> Response:
    """Without `generation`, the instance that is asked."""
    fields = Fields(request.json_or_empty())
    generation = fields.integer("generation", low=1)
    migrate = bool(fields.flag("migrate"))
    if not await _router(context).ask_drain(generation, migrate=migrate):
        raise NotFound(
            f"No instance of generation {generation} can be reached; `holdover status` lists them."
        )
    return no_content([])


async def retention(context: Context, request: Request) -> Response:
    """How much is older than ``[retention]`` says. With ``"dry_run": false`` it is removed."""
    service = context.retention
    if service is None:
        raise Unavailable("This instance removes nothing yet; try again.")
    dry_run = Fields(request.json_or_empty()).flag("dry_run") is not False
    found = await (service.due() if dry_run else service.remove())
    return json_response(
        {"dry_run": dry_run, "days": asdict(service.settings), "removed": asdict(found)}
    )


def _router(context: Context) -> Router:
    if context.router is None:
        raise Unavailable("This instance knows of no others yet; try again.")
    return context.router
