"""What is open to everyone: health, and logging in."""

from dataclasses import replace

import trio

from holdoverd.catalogue import tokens
from holdoverd.errors import BadRequest, RateLimited, Unauthorized, Unavailable
from holdoverd.http import login, shapes
from holdoverd.http.context import Context
from holdoverd.http.shapes import Fields
from holdoverd.http.wire import (
    ADMIN,
    COOKIE,
    SCOPES,
    Request,
    Response,
    client_address,
    is_trusted,
    json_response,
    no_content,
)
from holdoverd.ids import now_ms


async def healthz(context: Context, _request: Request) -> Response:
    if context.unhealthy is not None:
        raise Unavailable(f"This instance cannot serve: {context.unhealthy}")
    return json_response(
        {"status": "ok", "generation": context.generation, "release": context.release}
    )


async def log_in(context: Context, request: Request) -> Response:
    """A token or a code for a cookie. Slowed down by address, since it is open to everyone."""
    fields = Fields(request.json())
    token = fields.text("token", max_chars=512)
    code = fields.text("code", max_chars=100)
    if (token is None) == (code is None):
        raise BadRequest("Logging in takes either `token` or `code`.")
    address = client_address(
        request.head.peer, request.head.tokens(b"x-forwarded-for"), context.trusted_proxies
    )
    now = trio.current_time()
    wait_s = context.login_failures.retry_after_s(address, now)
    if wait_s is not None:
        raise RateLimited(
            f"Too many failed logins from {address}; try again in {wait_s} s.",
            headers={"Retry-After": str(wait_s)},
        )
    context.login_failures.attempt(address, now)
    if token is None:
        assert code is not None
        token = await _redeem(context, code)
    elif await context.authenticate(token) is None:
        raise Unauthorized("The token is not valid: mistyped, revoked or expired. Ask for another.")
    context.login_failures.succeeded(address, now)
    return no_content([("Set-Cookie", _cookie(context, request, token, login.LOGIN_LIFETIME_MS))])


async def _redeem(context: Context, code: str) -> str:
    token = tokens.new_token()
    now = now_ms()
    if not await context.catalogue.write(lambda cx: login.redeem_code(cx, code, token, now)):
        raise Unauthorized(
            "The code is not valid: used already, or older than five minutes. Make another."
        )
    return token


async def log_out(context: Context, request: Request) -> Response:
    """Forget the cookie, and the token if it was made for this browser by a code.

    A token that was typed in stays valid elsewhere; `DELETE /v1/tokens/{id}` ends it.
    """
    token_id = request.caller.token_id
    if token_id is not None and await context.catalogue.write(
        lambda cx: login.end_login(cx, token_id)
    ):
        context.token_gone(token_id)
    return no_content([("Set-Cookie", _cookie(context, request, "", 0))])


def _cookie(context: Context, request: Request, value: str, lifetime_ms: int) -> str:
    """`Secure` behind TLS, which is known by public_url or by what a trusted proxy reports."""
    cookie = f"{COOKIE}={value}; Path=/; Max-Age={lifetime_ms // 1000}; HttpOnly; SameSite=Lax"
    proxied = is_trusted(request.head.peer, context.trusted_proxies)
    if context.public_url.startswith("https://") or (
        proxied and request.head.tokens(b"x-forwarded-proto")[-1:] == ["https"]
    ):
        cookie += "; Secure"
    return cookie


async def new_login_code(context: Context, request: Request) -> Response:
    """A code that logs another browser in as this caller, for a QR code."""
    caller, owner = request.caller, shapes.owner(request.json_or_empty())
    if owner is not None:
        caller = await context.acting_for(caller, owner)
        if caller.admin:
            # What an admin hands to somebody else is that owner's door and not the admin's.
            caller = replace(caller, scopes=frozenset(SCOPES - {ADMIN}), admin=False)
    code = login.new_code()
    now = now_ms()
    expires_at = await context.catalogue.write(lambda cx: login.store_code(cx, code, caller, now))
    base = context.base_url(request.head)
    return json_response(
        {"code": code, "url": f"{base}/#login={code}", "expires_at": expires_at}, 201
    )
