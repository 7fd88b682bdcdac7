"""The table of routes, and the order in which a request is judged.

Host, Origin, token (401), scope (403), and only then whether the thing exists (404): what somebody
may not ask about is not told to be there.
"""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from functools import cached_property, partial

from sqlalchemy import Connection

from holdoverd.callers import Caller
from holdoverd.errors import MethodNotAllowed, NotFound, Unauthorized
from holdoverd.http import stream
from holdoverd.http.api import (
    admin,
    files,
    general,
    jobs,
    links,
    push,
    search,
    sessions,
    skills,
    storage,
    tokens,
    web,
)
from holdoverd.http.context import Context
from holdoverd.http.once import Once, Renew
from holdoverd.http.wire import (
    ADMIN,
    ANY,
    FILES,
    JOBS,
    OPEN,
    READ,
    SESSIONS,
    SKILLS,
    Credential,
    Head,
    Request,
    Response,
    Upgrade,
    check_place,
    check_scope,
    credential,
)

Handler = Callable[[Context, Request], Awaitable[Response | Upgrade]]


@dataclass(frozen=True)
class Reading:
    """A handler that answers from the catalogue alone, run in a thread of the catalogue's.

    Who asks is looked up there as well: to a list that people wait for, the way to the thread and
    back costs as much as what is read, and on a busy machine more.
    """

    answer: Callable[[Context, Request, Connection], Response]


@dataclass(frozen=True)
class Route:
    """One row. `scope`: who may; see `wire`. HEAD is answered wherever GET is.

    `secrets`: the fields of a POST's answer that nothing may keep (tokens, signed URLs), by name,
    ``"upload.parts"`` for one inside another; `renew` makes fresh ones, see `once`. `once`: an
    ``Idempotency-Key`` is heeded (of POSTs).
    """

    method: str
    pattern: str
    scope: str | None
    handler: Handler | Reading
    secrets: tuple[str, ...] = ()
    renew: Renew | None = None
    once: bool = True

    @cached_property
    def segments(self) -> tuple[str, ...]:
        return tuple(self.pattern[1:].split("/")) if self.pattern != "/" else ()


# fmt: off
ROUTES: tuple[Route, ...] = (
    Route("GET",    "/",                                   OPEN,     web.front_page),
    Route("GET",    "/assets/{name}",                      OPEN,     web.asset),
    Route("GET",    "/sw.js",                              OPEN,     web.worker),
    Route("GET",    "/healthz",                            OPEN,     general.healthz),
    Route("POST",   "/login",                              OPEN,     general.log_in, once=False),
    Route("DELETE", "/login",                              ANY,      general.log_out),
    Route("POST",   "/v1/login-codes",                     ANY,      general.new_login_code, ("code", "url")),
    Route("GET",    "/v1/tokens",                          ADMIN,    tokens.list_all),
    Route("POST",   "/v1/tokens",                          ADMIN,    tokens.create, ("token",)),
    Route("DELETE", "/v1/tokens/{id}",                     ADMIN,    tokens.revoke),
    Route("GET",    "/v1/push",                            READ,     push.show),
    Route("POST",   "/v1/push",                            ANY,      push.subscribe),
    Route("DELETE", "/v1/push/{id}",                       ANY,      push.unsubscribe),
    Route("GET",    "/v1/admin/instances",                 ADMIN,    admin.instances),
    Route("POST",   "/v1/admin/drain",                     ADMIN,    admin.drain),
    Route("GET",    "/metrics",                            ADMIN,    admin.metrics),
    Route("GET",    "/v1/sessions",                        READ,     Reading(sessions.list_all)),
    Route("POST",   "/v1/sessions",                        SESSIONS, sessions.create),
    Route("POST",   "/v1/sessions/adopt",                  SESSIONS, sessions.adopt),
    Route("GET",    "/v1/sessions/{id}",                   READ,     Reading(sessions.show)),
    Route("PATCH",  "/v1/sessions/{id}",                   SESSIONS, sessions.patch),
    Route("DELETE", "/v1/sessions/{id}",                   SESSIONS, sessions.end),
    Route("POST",   "/v1/sessions/{id}/prompts",           SESSIONS, sessions.prompt),
    Route("DELETE", "/v1/sessions/{id}/prompts/{prompt}",  SESSIONS, sessions.cancel_prompt),
    Route("POST",   "/v1/sessions/{id}/answers",           SESSIONS, sessions.answer),
    Route("POST",   "/v1/sessions/{id}/interrupt",         SESSIONS, sessions.interrupt),
    Route("POST",   "/v1/sessions/{id}/resume",            SESSIONS, sessions.resume),
    Route("POST",   "/v1/sessions/{id}/files",             SESSIONS, files.take_out),
    Route("GET",    "/v1/sessions/{id}/messages",          READ,     sessions.messages),
    Route("GET",    "/v1/sessions/{id}/messages/{seq}/body", READ,   sessions.body),
    Route("GET",    "/v1/sessions/{id}/stream",            READ,     stream.open_stream),
    Route("GET",    "/v1/search",                          READ,     search.search),
    Route("GET",    "/v1/files",                           READ,     files.list_all),
    Route("POST",   "/v1/files",                           FILES,    files.create, ("upload.parts",), files.renew_created),
    Route("GET",    "/v1/files/{id}",                      READ,     files.show),
    Route("PATCH",  "/v1/files/{id}",                      FILES,    files.patch),
    Route("DELETE", "/v1/files/{id}",                      FILES,    files.delete),
    Route("GET",    "/v1/files/{id}/download",             READ,     files.download),
    Route("POST",   "/v1/files/{id}/links",                FILES,    links.create, ("url",)),
    Route("GET",    "/v1/uploads/{id}",                    READ,     files.upload),
    Route("DELETE", "/v1/uploads/{id}",                    FILES,    files.abort),
    Route("POST",   "/v1/uploads/{id}/parts",              FILES,    files.parts, ("parts",), files.renew_parts),
    Route("POST",   "/v1/uploads/{id}/complete",           FILES,    files.complete),
    Route("GET",    "/v1/links",                           READ,     links.list_all),
    Route("DELETE", "/v1/links/{id}",                      FILES,    links.revoke),
    Route("GET",    "/v1/upload-links",                    READ,     links.list_upload_links),
    Route("POST",   "/v1/upload-links",                    FILES,    links.create_upload_link, ("url",)),
    Route("DELETE", "/v1/upload-links/{id}",               FILES,    links.revoke_upload_link),
    Route("GET",    "/l/{token}",                          OPEN,     links.follow),
    Route("POST",   "/l/{token}",                          OPEN,     links.follow_with_password, once=False),
    Route("GET",    "/u/{token}",                          OPEN,     links.upload_page),
    Route("POST",   "/u/{token}",                          OPEN,     links.send_file, ("upload.parts",), links.renew_sent),
    Route("GET",    "/u/{token}/uploads/{id}",             OPEN,     links.sent),
    Route("DELETE", "/u/{token}/uploads/{id}",             OPEN,     links.send_abort),
    Route("POST",   "/u/{token}/uploads/{id}/parts",       OPEN,     links.send_parts, ("parts",), links.renew_sent_parts),
    Route("POST",   "/u/{token}/uploads/{id}/complete",    OPEN,     links.send_complete),
    Route("GET",    "/v1/admin/storage",                   ADMIN,    storage.status),
    Route("POST",   "/v1/admin/storage/quota",             ADMIN,    storage.quota),
    Route("POST",   "/v1/admin/storage/sweep",             ADMIN,    storage.sweep),
    Route("POST",   "/v1/admin/retention",                 ADMIN,    admin.retention),
    Route("GET",    "/v1/audit",                           ADMIN,    storage.audit),
    Route("GET",    "/v1/jobs",                            READ,     jobs.list_all),
    Route("POST",   "/v1/jobs",                            JOBS,     jobs.submit),
    Route("GET",    "/v1/jobs/{id}",                       READ,     jobs.show),
    Route("GET",    "/v1/jobs/{id}/log",                   READ,     jobs.log),
    Route("POST",   "/v1/jobs/{id}/retry",                 JOBS,     jobs.retry),
    Route("DELETE", "/v1/jobs/{id}",                       JOBS,     jobs.cancel),
    Route("GET",    "/v1/skills",                          READ,     skills.list_all),
    Route("POST",   "/v1/skills",                          SKILLS,   skills.add),
    Route("POST",   "/v1/skills/batch",                    SKILLS,   skills.batch),
    Route("DELETE", "/v1/skills/{name}",                   SKILLS,   skills.remove),
    Route("GET",    "/v1/skills/{name}/diff",              READ,     skills.diff),
    Route("POST",   "/v1/skills/{name}/{op}",              SKILLS,   skills.change),
    Route("GET",    "/v1/marketplaces",                    READ,     skills.marketplaces),
    Route("POST",   "/v1/marketplaces",                    SKILLS,   skills.add_marketplace),
    Route("GET",    "/v1/marketplaces/{name}",             READ,     skills.browse),
    Route("DELETE", "/v1/marketplaces/{name}",             SKILLS,   skills.remove_marketplace),
)
# fmt: on


def match(pattern: tuple[str, ...], segments: tuple[str, ...]) -> dict[str, str] | None:
    """The ``{names}`` of `pattern` in `segments`, None when they do not fit. None is empty."""
    if len(pattern) != len(segments):
        return None
    params: dict[str, str] = {}
    for expected, found in zip(pattern, segments, strict=True):
        if expected.startswith("{"):
            if not found or len(found) > 200:
                return None
            params[expected[1:-1]] = found
        elif expected != found:
            return None
    return params


def find(segments: tuple[str, ...]) -> list[tuple[Route, dict[str, str]]]:
    """Every route of a path, whatever its method."""
    found = ((route, match(route.segments, segments)) for route in ROUTES)
    return [(route, params) for route, params in found if params is not None]


@dataclass(frozen=True)
class Admitted:
    """A request that may be asked, or of which `Reading` finds out; its body is still to come."""

    route: Route
    request: Request


_NOBODY = Caller("", "", frozenset(), None, admin=False)


class App:
    """Judges requests by their head, then has them answered."""

    def __init__(self, context: Context) -> None:
        self.context = context
        self._once = Once(context)

    async def admit(self, head: Head) -> Admitted:
        """Raises the RequestError that a request is refused with, before its body is read."""
        public = head.door == "public"
        presented = credential(head) if public else None
        if public:
            check_place(head, self.context.names, presented)
        routes = find(head.segments)
        method = "GET" if head.method == "HEAD" else head.method
        fitting = next(((r, p) for r, p in routes if r.method == method), None)
        if fitting is not None and fitting[0].scope is OPEN:
            return Admitted(fitting[0], Request(head, fitting[1], _NOBODY))
        if fitting is not None and presented is not None and _judged_by_reading(fitting[0], head):
            return Admitted(fitting[0], Request(head, fitting[1], _NOBODY, presented.token))
        if not public:
            caller = self.context.admin()
        elif fitting is None and any(route.scope is OPEN for route, _ in routes):
            caller = _NOBODY  # that the path is there is no secret
        else:
            caller = await self._caller(presented)
        if fitting is not None:
            route, params = fitting
            assert route.scope is not None, "open routes were admitted above"
            check_scope(caller, route.scope)
            token = presented.token if presented is not None else None
            return Admitted(route, Request(head, params, caller, token))
        if not routes:
            raise NotFound("There is nothing at this address; check the path for a mistake.")
        methods = {route.method for route, _ in routes}
        allowed = ", ".join(sorted(methods | ({"HEAD"} if "GET" in methods else set())))
        raise MethodNotAllowed(
            f"{head.method[:20]} cannot be done here; allowed: {allowed}.",
            headers={"Allow": allowed},
        )

    async def _caller(self, presented: Credential | None) -> Caller:
        if presented is None:
            raise Unauthorized(
                "This needs a token: send `Authorization: Bearer …`, or log in with a browser."
            )
        return _known(await self.context.authenticate(presented.token))

    async def answer(self, admitted: Admitted, body: bytes) -> Response | Upgrade:
        """Have the handler answer; raises RequestError."""
        request = replace(admitted.request, body=body)
        route, handler = admitted.route, admitted.route.handler
        if isinstance(handler, Reading):
            answer = partial(self._read, route, handler, request)
            return await self.context.catalogue.read(answer)
        # A login has no token to keep an answer for, and one that came again would be a session
        # handed out twice. A link's token is in its path, which is part of the key.
        if request.head.method != "POST" or not route.once:
            return await handler(self.context, request)
        return await self._once.answer(
            request,
            lambda: handler(self.context, request),
            secrets=route.secrets,
            renew=route.renew,
        )

    def _read(self, route: Route, handler: Reading, request: Request, cx: Connection) -> Response:
        if request.caller is _NOBODY:
            assert request.token is not None, "others were told apart when they were admitted"
            assert route.scope is not None, "open routes have handlers of the loop's"
            caller = _known(self.context.authenticate_in(cx, request.token))
            check_scope(caller, route.scope)
            request = replace(request, caller=caller)
        return handler.answer(self.context, request, cx)


def _judged_by_reading(route: Route, head: Head) -> bool:
    """Whoever has a body to send hears first whether he may."""
    has_body = any(name in (b"content-length", b"transfer-encoding") for name, _ in head.headers)
    return isinstance(route.handler, Reading) and not has_body


def _known(caller: Caller | None) -> Caller:
    if caller is None:
        raise Unauthorized("The token is not valid: mistyped, revoked or expired.")
    return caller
