"""``Idempotency-Key`` on any POST (contract.md, Errors): a request sent again is done once.

A layer around the handlers. The request is put on record first, then handled, then its answer is
kept beside it for a day; whoever sends the same again gets that answer, and the handler is not
asked. An answer that says "not now" (503 and the like) is not kept: nothing was done, and trying
again is what the client should do.

A request that was cut off, because its instance died while answering, stays on record without an
answer. It may have been carried out or not, and doing it again could do it twice; so it is refused,
and says so.

Secrets are not kept. A route names the fields of its answer that hold some (`Route.secrets`); they
are left out, and `Route.renew` makes fresh ones when the answer is given again. Should a route
forget to, an answer that looks like it held one is not kept at all.
"""

import hashlib
import logging
import re
from collections.abc import Awaitable, Callable, Sequence

import msgspec

from holdoverd.catalogue import answered
from holdoverd.catalogue.answered import Answered, Asked
from holdoverd.catalogue.tokens import PREFIX
from holdoverd.errors import BadRequest, CatalogueError, Conflict, RequestError, Unprocessable
from holdoverd.http.context import Context
from holdoverd.http.shapes import Json
from holdoverd.http.wire import Request, Response, Upgrade, error_response, no_content, raw_json
from holdoverd.ids import now_ms

log = logging.getLogger(__name__)

HEADER = b"idempotency-key"
MAX_KEPT_BYTES = 256 * 1024

_KEY = re.compile(r"[!-~]{1,200}")
# A token of ours, and what every pre-signed URL holds (SigV4 query parameters).
_SECRET = re.compile(
    rb'"' + PREFIX.encode() + rb'[A-Za-z0-9_-]{43}"|X-Amz-Signature=', re.IGNORECASE
)
# Answers that say nothing was done and it may be tried again.
_NOT_NOW = frozenset({429, 502, 503})

Renew = Callable[[Context, Request, Json], Awaitable[Json]]
"""Puts fresh secrets into the fields that were kept of an answer; raises RequestErrors."""


def key_of(request: Request) -> str | None:
    """The digest that the request is on record by; None when it has no key. BadRequest."""
    text = request.head.header(HEADER)
    if text is None:
        return None
    if not _KEY.fullmatch(text):
        raise BadRequest(
            "Idempotency-Key has to be 1 to 200 visible ASCII characters; a UUID is the usual one."
        )
    head = request.head
    return _digest([request.caller.token_id or "", head.method, "/".join(head.segments), text])


def request_digest(request: Request) -> str:
    """What is asked for: the query and the body, byte for byte."""
    query = [text for pair in sorted(request.query.items()) for text in pair]
    return _digest([*query, hashlib.sha256(request.body).hexdigest()])


def without(fields: Json, secrets: Sequence[str]) -> Json:
    """`fields` less the named ones; ``"upload.parts"`` names one inside another."""
    kept = dict(fields)
    for name in secrets:
        first, _, rest = name.partition(".")
        inner = kept.get(first)
        if not rest:
            kept.pop(first, None)
        elif isinstance(inner, dict):
            kept[first] = without(inner, [rest])
    return kept


def kept_body(response: Response, secrets: Sequence[str]) -> bytes | None:
    """The body to keep, without secrets; None where it may not be kept."""
    body = response.body
    if secrets and response.status < 300:
        fields = msgspec.json.decode(body)
        assert isinstance(fields, dict), "an answer with secrets is an object"
        body = msgspec.json.encode(without(fields, secrets))
    if _SECRET.search(body):
        log.error("an answer holds a secret that its route does not name; not keeping it")
        return None
    return body if len(body) <= MAX_KEPT_BYTES else None


class Once:
    """Answers each request that has a key once. Made once, by `App`."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._running: set[str] = set()

    async def answer(
        self,
        request: Request,
        handle: Callable[[], Awaitable[Response | Upgrade]],
        *,
        secrets: Sequence[str],
        renew: Renew | None,
    ) -> Response | Upgrade:
        """What `handle` answers, or what it has answered before. Raises RequestErrors."""
        key = key_of(request)
        if key is None:
            return await handle()
        if key in self._running:
            raise _still_running()
        self._running.add(key)
        try:
            return await self._answer(key, request, handle, secrets, renew)
        finally:
            self._running.discard(key)

    async def _answer(
        self,
        key: str,
        request: Request,
        handle: Callable[[], Awaitable[Response | Upgrade]],
        secrets: Sequence[str],
        renew: Renew | None,
    ) -> Response | Upgrade:
        context = self._context
        asked = Asked(
            key,
            request_digest(request),
            request.caller.token_id or "",
            context.host,
            context.generation,
        )
        now = now_ms()
        known = await context.catalogue.write(lambda cx: answered.begin(cx, asked, now))
        if known is not None:
            return await self._again(asked, known, request, renew)
        try:
            response = await handle()
        except RequestError as error:
            response = error_response(error)
            await self._keep(key, response, ())
            raise
        assert isinstance(response, Response), "a POST does not upgrade"
        await self._keep(key, response, secrets)
        return response

    async def _keep(self, key: str, response: Response, secrets: Sequence[str]) -> None:
        status = response.status
        body = kept_body(response, secrets)
        catalogue = self._context.catalogue
        try:
            if status in _NOT_NOW:
                await catalogue.write(lambda cx: answered.forget(cx, key))
            else:
                await catalogue.write(lambda cx: answered.finish(cx, key, status, body))
        except CatalogueError as error:
            # What was asked for is done, or refused, and whoever asked should hear of it.
            log.warning("an answer to be kept for its idempotency key was not: %s", error)

    async def _again(
        self, asked: Asked, known: Answered, request: Request, renew: Renew | None
    ) -> Response:
        if known.request != asked.request:
            raise Unprocessable(
                "This Idempotency-Key came with another request already; use a new key for each "
                "request, and the same only to repeat one."
            )
        if known.status is None:
            if self._lives(known):
                raise _still_running()
            raise Conflict(
                "The first request with this Idempotency-Key was cut off before it was answered; "
                "it may have been carried out or not. Look, then ask again with another key."
            )
        if known.body is None:
            raise Conflict(
                f"The request with this Idempotency-Key was answered with status {known.status}; "
                "that answer is too large to be kept, or held a secret. Look what came of it."
            )
        if not known.body:
            return no_content()
        if renew is not None and known.status < 300:
            fields = await renew(self._context, request, msgspec.json.decode(known.body))
            return raw_json(msgspec.json.encode(fields), known.status)
        return raw_json(known.body, known.status)

    def _lives(self, known: Answered) -> bool:
        """Whether the instance that began to answer may still be at it."""
        context = self._context
        if known.host != context.host:
            return True  # who lives there is not known here
        if known.generation == context.generation:
            return False  # it would be among those that run; an earlier process of ours was
        living = context.router.instances() if context.router is not None else []
        return any(instance["generation"] == known.generation for instance in living)


def _still_running() -> Conflict:
    return Conflict(
        "A request with this Idempotency-Key is being answered; ask again shortly with the same key."
    )


def _digest(parts: Sequence[str]) -> str:
    text = msgspec.json.encode([part.encode("utf-8", "surrogatepass").hex() for part in parts])
    return hashlib.sha256(text).hexdigest()
