"""Routes, the order of judgement, tokens, logins and sessions over HTTP; the catalogue is real."""

import gzip
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import trio

from holdoverd.catalogue import tokens
from holdoverd.catalogue.store import Catalogue
from holdoverd.errors import CatalogueError
from holdoverd.http import login
from holdoverd.http.app import ROUTES, find
from holdoverd.http.context import Context
from holdoverd.http.login import LoginFailures
from holdoverd.ids import now_ms
from holdoverd.web.assets import Client as WebClient
from tests.http.kit import PROMPT_ID, Answer, Client, Doors, open_doors

ALICE = {"id": "s_0", "owner": "alice"}


def bearer(token: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {token}"}


# --- the order of judgement ------------------------------------------------------------------


async def test_host_then_origin_then_token_then_scope_then_existence(doors: Doors) -> None:
    reader, _ = await doors.token("alice", ("read",))
    headers = {"Host": "evil.example", "Origin": "https://evil.example"}
    path = "/v1/sessions/s_none"

    async def ask() -> tuple[int, str]:
        answer = await doors.ask("DELETE", path, **headers)
        return answer.status, answer.json()["error"]["message"]

    status, message = await ask()
    assert (status, "in Host" in message) == (403, True)
    headers["Host"] = "localhost:8780"
    status, message = await ask()
    assert (status, message.startswith("Origin")) == (403, True)
    headers["Origin"] = "http://localhost:8780"
    assert (await ask())[0] == 401
    headers["Authorization"] = "Bearer hold_wrong"
    assert (await ask())[0] == 401
    headers["Authorization"] = f"Bearer {reader}"
    status, message = await ask()
    assert (status, "`sessions`" in message) == (403, True)
    writer, _ = await doors.token("alice", ("sessions",))
    headers["Authorization"] = f"Bearer {writer}"
    assert (await ask())[0] == 404


async def test_unknown_paths_and_methods(doors: Doors) -> None:
    token, _ = await doors.token()
    assert (await doors.ask("GET", "/v1/nothing")).status == 401
    assert (await doors.ask("PUT", "/v1/sessions")).status == 401
    for path in ("/v1/nothing", "/v1/sessions/", "//healthz", "/v1/sessions//messages"):
        assert (await doors.ask("GET", path, **bearer(token))).status == 404
    answer = await doors.ask("PUT", "/v1/sessions", **bearer(token))
    assert (answer.status, answer.code) == (405, "method_not_allowed")
    assert answer.headers["allow"] == "GET, HEAD, POST"
    answer = await doors.ask("DELETE", "/healthz")
    assert (answer.status, answer.headers["allow"]) == (405, "GET, HEAD")


@pytest.mark.parametrize("route", ROUTES, ids=lambda route: f"{route.method} {route.pattern}")
async def test_every_route_needs_its_scope_and_a_known_host(doors: Doors, route: Any) -> None:
    """Also that the table has no two rows for the same request, and no scope beyond the known."""
    path = "/" + "/".join("1" if part.startswith("{") else part for part in route.segments)
    matching = [found for found, _ in find(tuple(route.segments)) if found.method == route.method]
    assert matching == [route]
    assert (await doors.ask(route.method, path, Host="evil.example")).status == 403
    if route.scope is None:
        assert (await doors.ask(route.method, path)).status not in (401, 403)
        return
    assert (await doors.ask(route.method, path)).status == 401
    if route.scope:
        others = tuple({"read", "sessions", "files", "jobs", "skills"} - {route.scope})
        token, _ = await doors.token("alice", others)
        answer = await doors.ask(route.method, path, **bearer(token))
        assert (answer.status, answer.code) == (403, "forbidden")


async def test_the_admin_door_asks_for_no_token_and_checks_no_names(doors: Doors) -> None:
    answer = await doors.admin(
        "GET", "/v1/tokens", Host="evil.example", Origin="https://evil.example"
    )
    assert answer.status == 200
    answer = await doors.admin("GET", "/v1/tokens", Authorization="Basic x")
    assert answer.status == 200


async def test_with_the_cookie_a_foreign_or_missing_origin_is_refused_where_it_matters(
    doors: Doors,
) -> None:
    token, _ = await doors.token()
    cookie = {"Cookie": f"holdover={token}"}
    assert (await doors.ask("GET", "/v1/sessions", **cookie)).status == 200
    assert (await doors.ask("POST", "/v1/sessions", {}, **cookie)).status == 403
    foreign = {"Origin": "https://evil.example"}
    assert (await doors.ask("POST", "/v1/sessions", {}, **cookie, **foreign)).status == 403
    assert (await doors.ask("GET", "/v1/sessions", **cookie, **foreign)).status == 403
    assert (await doors.ask("POST", "/v1/sessions", {}, **bearer(token), **foreign)).status == 403
    ours = {"Origin": "https://holdover.example"}
    assert (await doors.ask("POST", "/v1/sessions", {}, **cookie, **ours)).status == 201
    upgrade = {"Upgrade": "websocket", "Connection": "Upgrade"}
    assert (await doors.ask("GET", "/v1/sessions/x/stream", **cookie, **upgrade)).status == 403


@pytest.mark.parametrize("path", ["/v1/sessions", "/v1/sessions/x/messages?page=0"])
async def test_a_catalogue_that_fails_is_a_503(
    doors: Doors, monkeypatch: pytest.MonkeyPatch, path: str
) -> None:
    async def read(_fn: object) -> None:
        raise CatalogueError("The disk is full; free some space.")

    monkeypatch.setattr(doors.context.catalogue, "read", read)
    answer = await doors.ask("GET", path, **bearer("hold_x"))
    assert (answer.status, answer.code) == (503, "unavailable")


async def test_who_sends_a_body_hears_first_whether_he_may(doors: Doors) -> None:
    answer = await doors.ask(
        "GET", "/v1/sessions", **bearer("hold_wrong"), **{"Content-Length": "9999999999"}
    )
    assert answer.status == 401


# --- the front page --------------------------------------------------------------------------


async def test_without_the_client_the_front_page_says_what_is_missing(
    catalogue: Catalogue, tmp_path: Path
) -> None:
    async with open_doors(catalogue, client=WebClient(tmp_path)) as doors:
        answer = await doors.ask("GET", "/")
    policy = answer.headers["content-security-policy"]
    assert policy.startswith("default-src 'none'; style-src 'sha256-")
    assert "unsafe" not in policy
    page = answer.body.decode()
    assert '<html lang="en">' in page
    assert "packaging/webclient.py build" in page
    assert "<script" not in page
    assert "//" not in page.replace("<!doctype html>", ""), "nothing is loaded from elsewhere"


@pytest.fixture
def built(tmp_path: Path) -> WebClient:
    """A release with a client, beside another one that has one as well."""
    for release in ("1.0.0", "2.0.0"):
        static = tmp_path / release / "lib/python3.11/site-packages/holdoverd/web/static"
        (static / "assets").mkdir(parents=True)
        (static / "index.html").write_text(f"<!doctype html><p>{release}</p>")
        (static / "assets" / f"index-{release}-abcdefgh.js").write_text(f"// {release}\n" * 100)
        (tmp_path / release / "release.json").write_text("{}")
    return WebClient(tmp_path / "2.0.0/lib/python3.11/site-packages/holdoverd/web/static")


async def test_the_front_page_is_the_client_under_a_strict_policy(
    catalogue: Catalogue, built: WebClient
) -> None:
    async with open_doors(catalogue, client=built) as doors:
        answer = await doors.ask("GET", "/")
        again = await doors.ask("GET", "/", **{"If-None-Match": answer.headers["etag"]})
    assert answer.body == b"<!doctype html><p>2.0.0</p>"
    assert answer.headers["cache-control"] == "no-cache"
    policy = answer.headers["content-security-policy"]
    assert policy.startswith("default-src 'none'; script-src 'self'; style-src 'self';")
    assert "unsafe" not in policy
    assert "//" not in policy, "nothing is loaded from elsewhere"
    assert "require-trusted-types-for 'script'" in policy
    assert (again.status, again.body) == (304, b"")


async def test_assets_are_immutable_and_found_in_every_release(
    catalogue: Catalogue, built: WebClient
) -> None:
    async with open_doors(catalogue, client=built) as doors:
        for release in ("2.0.0", "1.0.0"):
            path = f"/assets/index-{release}-abcdefgh.js"
            plain = await doors.ask("GET", path)
            packed = await doors.ask("GET", path, **{"Accept-Encoding": "br, gzip;q=0.5"})
            refused = await doors.ask("GET", path, **{"Accept-Encoding": "gzip;q=0"})
            head = await doors.ask("HEAD", path)
            assert plain.body == f"// {release}\n".encode() * 100
            assert plain.headers["content-type"] == "text/javascript; charset=utf-8"
            assert plain.headers["cache-control"] == "public, max-age=31536000, immutable"
            assert plain.headers["vary"] == "Accept-Encoding"
            assert packed.headers["content-encoding"] == "gzip"
            assert gzip.decompress(packed.body) == plain.body
            assert "content-encoding" not in refused.headers
            assert (head.status, head.body) == (200, b"")
            assert head.headers["content-length"] == str(len(plain.body))


@pytest.mark.parametrize(
    "name",
    [
        *("index-9.9.9-abcdefgh.js", "..%2Findex.html", "index.html", ".-abcdefgh.js"),
        *("..%2F..%2F..%2Fx-abcdefgh.js", "index-abcdefgh.exe", "x" * 150 + "-abcdefgh.js"),
    ],
)
async def test_no_other_file_is_served(catalogue: Catalogue, built: WebClient, name: str) -> None:
    async with open_doors(catalogue, client=built) as doors:
        assert (await doors.ask("GET", f"/assets/{name}")).status == 404


# --- tokens ----------------------------------------------------------------------------------


async def test_a_token_is_shown_once_listed_without_its_secret_and_revoked(doors: Doors) -> None:
    answer = await doors.admin(
        "POST", "/v1/tokens", {"name": "laptop", "owner": "tess", "scopes": ["read", "sessions"]}
    )
    assert answer.status == 201
    made = answer.json()
    assert made.keys() == {"id", "name", "owner", "scopes", "created_at", "expires_at", "token"}
    assert (made["owner"], made["scopes"], made["expires_at"]) == (
        "tess",
        ["read", "sessions"],
        None,
    )
    assert (await doors.ask("GET", "/v1/sessions", **bearer(made["token"]))).status == 200
    listed = (await doors.admin("GET", "/v1/tokens?owner=tess")).json()
    secret = made.pop("token")
    assert listed == {"items": [made], "next": None}
    assert (await doors.admin("DELETE", f"/v1/tokens/{made['id']}")).status == 204
    assert (await doors.ask("GET", "/v1/sessions", **bearer(secret))).status == 401
    assert (await doors.admin("DELETE", f"/v1/tokens/{made['id']}")).status == 404


async def test_a_token_expires(doors: Doors, catalogue: Catalogue) -> None:
    answer = await doors.admin(
        "POST", "/v1/tokens", {"name": "x", "scopes": ["read"], "expires_in_s": 60}
    )
    made = answer.json()
    assert made["expires_at"] - made["created_at"] == 60_000
    later = made["expires_at"]
    found = await catalogue.read(lambda cx: tokens.authenticate(cx, made["token"], later - 1))
    assert found is not None
    assert await catalogue.read(lambda cx: tokens.authenticate(cx, made["token"], later)) is None


async def test_an_owner_keeps_the_account_of_its_first_token(doors: Doors) -> None:
    spec = {"name": "x", "owner": "bound", "scopes": ["read"]}
    assert (await doors.admin("POST", "/v1/tokens", {**spec, "account": "one"})).status == 201
    assert (await doors.admin("POST", "/v1/tokens", spec)).status == 201
    assert (await doors.admin("POST", "/v1/tokens", {**spec, "account": "two"})).status == 409


async def test_tokens_are_listed_by_pages(doors: Doors) -> None:
    made = [(await doors.token("paged"))[1] for _ in range(5)]
    seen: list[str] = []
    cursor = ""
    while True:
        page = (await doors.admin("GET", f"/v1/tokens?owner=paged&limit=2{cursor}")).json()
        seen += [item["id"] for item in page["items"]]
        if page["next"] is None:
            break
        cursor = f"&cursor={page['next']}"
    assert sorted(seen) == sorted(made)
    assert (await doors.admin("GET", "/v1/tokens?cursor=t_gone")).status == 400


# --- logging in ------------------------------------------------------------------------------


def cookie_of(answer: Answer) -> tuple[str, str]:
    """(the cookie's value, its attributes)."""
    value, _, attributes = answer.headers["set-cookie"].partition(";")
    name, _, token = value.partition("=")
    assert name == "holdover"
    return token, attributes


async def test_a_token_becomes_a_cookie_and_back(doors: Doors) -> None:
    token, _ = await doors.token()
    answer = await doors.ask("POST", "/login", {"token": token})
    assert (answer.status, answer.body) == (204, b"")
    value, attributes = cookie_of(answer)
    assert value == token
    for attribute in ("HttpOnly", "SameSite=Lax", "Secure", "Path=/", "Max-Age="):
        assert attribute in attributes
    cookie = {"Cookie": f"holdover={value}", "Origin": "https://holdover.example"}
    assert (await doors.ask("GET", "/v1/sessions", **cookie)).status == 200
    answer = await doors.ask("DELETE", "/login", **cookie)
    assert answer.status == 204
    assert cookie_of(answer)[0] == ""
    assert "Max-Age=0" in cookie_of(answer)[1]
    answer = await doors.ask("GET", "/v1/sessions", **bearer(token))
    assert answer.status == 200, "a token that was typed in is used elsewhere too"


@pytest.mark.parametrize(
    ("trusted", "proto", "secure"),
    [
        (("127.0.0.0/8",), "https", True),
        (("127.0.0.0/8",), "https, http", False),  # the nearest proxy speaks last
        (("127.0.0.0/8",), None, False),
        ((), "https", False),
    ],
)
async def test_a_cookie_is_secure_where_a_trusted_proxy_reports_tls(
    catalogue: Catalogue, trusted: tuple[str, ...], proto: str | None, secure: bool
) -> None:
    async with open_doors(catalogue, trusted_proxies=trusted) as doors:
        (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
        await doors.serve_also({"public": [listener]})
        token, _ = await doors.token()
        stream = await trio.testing.open_stream_to_socket_listener(listener)
        headers = {} if proto is None else {"X_Forwarded_Proto": proto}
        async with stream:
            answer = await Client(stream).ask("POST", "/login", {"token": token}, **headers)
        assert ("Secure" in cookie_of(answer)[1]) is secure


@pytest.mark.parametrize(
    ("body", "status"),
    [
        ({"token": "hold_wrong"}, 401),
        ({"code": "wrong"}, 401),
        ({}, 400),
        ({"token": "a", "code": "b"}, 400),
        ({"token": 7}, 400),
        ({"token": "x" * 513}, 422),
    ],
)
async def test_what_does_not_log_in(doors: Doors, body: dict[str, Any], status: int) -> None:
    assert (await doors.ask("POST", "/login", body)).status == status


async def test_after_ten_failures_login_alone_waits(doors: Doors) -> None:
    token, _ = await doors.token()
    for _ in range(10):
        assert (await doors.ask("POST", "/login", {"token": "hold_wrong"})).status == 401
    for body in ({"token": token}, {"code": "x"}):
        answer = await doors.ask("POST", "/login", body)
        assert (answer.status, answer.code) == (429, "rate_limited")
        assert 1 <= int(answer.headers["retry-after"]) <= 60
    assert (await doors.ask("GET", "/v1/sessions", **bearer(token))).status == 200
    assert (await doors.ask("GET", "/v1/sessions", **bearer("hold_wrong"))).status == 401


async def test_many_guesses_at_once_count_each(doors: Doors) -> None:
    """They all wait for the catalogue together; eleven would slip through if only results counted."""
    statuses: list[int] = []

    async def guess() -> None:
        statuses.append((await doors.ask("POST", "/login", {"token": "hold_wrong"})).status)

    async with trio.open_nursery() as nursery:
        for _ in range(30):
            nursery.start_soon(guess)
    assert sorted(statuses) == [401] * 10 + [429] * 20


async def test_logging_in_rightly_is_never_counted(doors: Doors) -> None:
    token, _ = await doors.token()
    for _ in range(15):
        assert (await doors.ask("POST", "/login", {"token": token})).status == 204


def test_failures_fade_one_by_one_and_addresses_are_bounded() -> None:
    failures = LoginFailures(limit=3, window_s=60, max_addresses=2)
    for at in (0.0, 10.0, 20.0):
        assert failures.retry_after_s("a", at) is None
        failures.attempt("a", at)
    assert failures.retry_after_s("a", 20.5) == 40
    assert failures.retry_after_s("b", 20.5) is None
    assert failures.retry_after_s("a", 59.9) == 1
    assert failures.retry_after_s("a", 60.0) is None
    failures.attempt("a", 60.0)
    assert failures.retry_after_s("a", 60.0) == 10
    failures.succeeded("a", 60.0)
    assert failures.retry_after_s("a", 60.0) is None
    failures.succeeded("a", 1234.5)
    for address in ("b", "c"):
        failures.attempt(address, 61.0)
    assert len(failures._failures) == 2, "the one that failed longest ago is forgotten"
    assert failures.retry_after_s("a", 61.0) is None


# --- login codes -----------------------------------------------------------------------------


async def test_a_code_logs_another_browser_in_once_with_the_same_owner_and_scopes(
    doors: Doors,
) -> None:
    token, token_id = await doors.token("alice", ("read",))
    answer = await doors.ask("POST", "/v1/login-codes", {}, **bearer(token))
    assert answer.status == 201
    made = answer.json()
    assert made["url"] == f"https://holdover.example/#login={made['code']}"
    assert 0 < made["expires_at"] - now_ms() <= 300_000
    value, _ = cookie_of(await doors.ask("POST", "/login", {"code": made["code"]}))
    assert value != token
    assert (await doors.ask("POST", "/login", {"code": made["code"]})).status == 401
    cookie = {"Cookie": f"holdover={value}", "Origin": "https://holdover.example"}
    doors.sessions.sessions["s_0"] = dict(ALICE)
    assert (await doors.ask("GET", "/v1/sessions/s_0", **cookie)).status == 200
    assert (await doors.ask("POST", "/v1/sessions", {}, **cookie)).status == 403
    assert (await doors.admin("DELETE", f"/v1/tokens/{token_id}")).status == 204
    assert (await doors.ask("GET", "/v1/sessions/s_0", **cookie)).status == 200
    assert (await doors.ask("DELETE", "/login", **cookie)).status == 204
    assert (await doors.ask("GET", "/v1/sessions/s_0", **cookie)).status == 401


async def test_a_code_by_the_admin_door_logs_an_administrator_in(catalogue: Catalogue) -> None:
    async with open_doors(catalogue) as doors:
        answer = await doors.admin("POST", "/v1/login-codes", Host="somewhere:1")
        assert answer.json()["url"].startswith("http://somewhere:1/#login=")
        value, _ = cookie_of(await doors.ask("POST", "/login", {"code": answer.json()["code"]}))
        assert (await doors.ask("GET", "/v1/tokens", Cookie=f"holdover={value}")).status == 200


async def test_a_code_for_another_owner_is_no_administrators(doors: Doors) -> None:
    token, _ = await doors.token("alice", ("read",))
    answer = await doors.admin("POST", "/v1/login-codes", {"owner": "alice"})
    value, _ = cookie_of(await doors.ask("POST", "/login", {"code": answer.json()["code"]}))
    cookie = {"Cookie": f"holdover={value}", "Origin": "https://holdover.example"}
    doors.sessions.sessions["s_0"] = dict(ALICE)
    assert (await doors.ask("GET", "/v1/sessions/s_0", **cookie)).status == 200
    assert (await doors.ask("GET", "/v1/tokens", **cookie)).status == 403
    # Nobody makes one for somebody else without being an administrator.
    refused = await doors.ask("POST", "/v1/login-codes", {"owner": "bob"}, **bearer(token))
    assert refused.status == 403
    assert (await doors.admin("POST", "/v1/login-codes", {"owner": "nobody"})).status == 422


@pytest.fixture
async def empty_codes(catalogue: Catalogue) -> AsyncIterator[None]:
    yield
    late = now_ms() + 10 * login.CODE_LIFETIME_MS
    caller = Context(catalogue, None, 1, "1", "a").admin()  # type: ignore[arg-type]
    await catalogue.write(lambda cx: login.store_code(cx, "last", caller, late))


async def test_codes_expire_and_are_bounded(
    doors: Doors, catalogue: Catalogue, empty_codes: None
) -> None:
    caller = doors.context.admin()
    start = now_ms() + 2 * login.CODE_LIFETIME_MS
    expires_at = await catalogue.write(lambda cx: login.store_code(cx, "c0", caller, start))
    assert not await catalogue.write(
        lambda cx: login.redeem_code(cx, "c0", tokens.new_token(), expires_at)
    )
    assert not await catalogue.write(
        lambda cx: login.redeem_code(cx, "c0", tokens.new_token(), start)
    ), "an expired code that was tried is gone"

    def store_many(cx: Any) -> None:
        for number in range(login.MAX_OPEN_CODES):
            login.store_code(cx, f"many{number}", caller, start)

    await catalogue.write(store_many)
    assert (await doors.admin("POST", "/v1/login-codes", {})).status == 503
    assert await catalogue.write(
        lambda cx: login.redeem_code(cx, "many7", tokens.new_token(), start + 1)
    )
    assert (await doors.admin("POST", "/v1/login-codes", {})).status == 201


# --- whose things ----------------------------------------------------------------------------


async def test_who_owns_what_is_made(doors: Doors) -> None:
    """contract.md: admin names anyone by `owner`, else it is `default`; others make for themselves."""
    await doors.token("bob")
    alice, _ = await doors.token("alice")
    admin, _ = await doors.token("alice", ("admin",))

    async def owner(answer: Answer) -> object:
        return answer.json()["owner"] if answer.status == 201 else answer.status

    path = "/v1/sessions"
    assert await owner(await doors.admin("POST", path, {})) == "default"
    assert await owner(await doors.admin("POST", path, {"owner": "bob"})) == "bob"
    assert await owner(await doors.admin("POST", path + "?owner=bob", {})) == "bob"
    assert await owner(await doors.admin("POST", path, {"owner": "nobody"})) == 422
    assert await owner(await doors.ask("POST", path, {}, **bearer(admin))) == "default"
    assert await owner(await doors.ask("POST", path, {"owner": "bob"}, **bearer(admin))) == "bob"
    assert await owner(await doors.ask("POST", path, {}, **bearer(alice))) == "alice"
    assert (
        await owner(await doors.ask("POST", path, {"owner": "alice"}, **bearer(alice))) == "alice"
    )
    assert await owner(await doors.ask("POST", path, {"owner": "bob"}, **bearer(alice))) == 403
    listed = (await doors.admin("GET", path + "?owner=bob")).json()["items"]
    assert [item["owner"] for item in listed] == ["bob", "bob", "bob"]
    assert len((await doors.admin("GET", path)).json()["items"]) == 7
    assert (await doors.ask("GET", path + "?owner=bob", **bearer(alice))).status == 403


# --- sessions --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "path", "body", "status", "call"),
    [
        ("POST", "/v1/sessions", {"agent": "demo"}, 201, ("create", {"agent": "demo"})),
        ("GET", "/v1/sessions/s_0", None, 200, ("get", "s_0")),
        ("PATCH", "/v1/sessions/s_0", {"title": None}, 200, ("patch", "s_0", {"title": None})),
        ("DELETE", "/v1/sessions/s_0", None, 204, ("end", "s_0", False)),
        ("DELETE", "/v1/sessions/s_0?purge=true", None, 204, ("end", "s_0", True)),
        (
            "POST",
            "/v1/sessions/s_0/prompts",
            {"id": PROMPT_ID, "text": "é"},
            202,
            ("prompt", "s_0", {"id": PROMPT_ID, "text": "é"}),
        ),
        (
            "DELETE",
            f"/v1/sessions/s_0/prompts/{PROMPT_ID.upper()}",
            None,
            204,
            ("cancel_prompt", "s_0", PROMPT_ID),
        ),
        (
            "POST",
            "/v1/sessions/s_0/answers",
            {"request_id": "p", "behavior": "deny"},
            409,
            ("answer", "s_0", {"request_id": "p", "behavior": "deny"}),
        ),
        ("POST", "/v1/sessions/s_0/interrupt", None, 202, ("interrupt", "s_0", False)),
        (
            "POST",
            "/v1/sessions/s_0/interrupt",
            {"cancel_queued": True},
            202,
            ("interrupt", "s_0", True),
        ),
        ("POST", "/v1/sessions/s_0/resume", None, 202, ("resume", "s_0")),
        ("GET", "/v1/sessions/s_0/messages?after=0", None, 200, ("log", "s_0", 0, 50)),
        ("GET", "/v1/sessions/s_0/messages?after=9&limit=500", None, 200, ("log", "s_0", 9, 500)),
        (
            "GET",
            "/v1/sessions/s_0/messages?page=2",
            None,
            200,
            ("page", "s_0", "main", 2, None),
        ),
        (
            "GET",
            "/v1/sessions/s_0/messages?thread=toolu_1&page=0&epoch=e1",
            None,
            200,
            ("page", "s_0", "toolu_1", 0, "e1"),
        ),
        ("GET", "/v1/sessions/s_0/messages/7/body", None, 200, ("body", "s_0", 7)),
    ],
)
async def test_requests_reach_the_service_checked_and_its_answers_go_out(
    doors: Doors,
    method: str,
    path: str,
    body: Any,
    status: int,
    call: tuple[object, ...],
) -> None:
    doors.sessions.sessions["s_0"] = dict(ALICE)
    answer = await doors.admin(method, path, body)
    assert answer.status == status
    name, _, *arguments = doors.sessions.calls[-1]
    assert (name, *arguments) == call
    assert (answer.status == 204) == (answer.body == b"")


async def test_an_admin_may_say_whose_answer_it_is(doors: Doors) -> None:
    await doors.token("alice")
    body = {"request_id": "p", "behavior": "allow"}
    for path, named in (("", {"owner": "alice"}), ("?owner=alice", {})):
        await doors.admin("POST", f"/v1/sessions/s/answers{path}", {**body, **named})
        assert doors.sessions.calls[-1][:2] == ("answer", "alice")
    token, _ = await doors.token("bob")
    answer = await doors.ask(
        "POST", "/v1/sessions/s/answers", {**body, "owner": "alice"}, **bearer(token)
    )
    assert answer.status == 403


async def test_conflicts_say_who_answered(doors: Doors) -> None:
    answer = await doors.admin(
        "POST", "/v1/sessions/s/answers", {"request_id": "p", "behavior": "allow"}
    )
    assert answer.json()["error"]["answered_by"] == "bob"


@pytest.mark.parametrize(
    "path",
    [
        "/v1/sessions?limit=501",
        "/v1/sessions?state=odd",
        "/v1/sessions?limit=x",
        "/v1/sessions/s/messages",
        "/v1/sessions/s/messages?page=0&after=0",
        "/v1/sessions/s/messages?page=-1",
        "/v1/sessions/s/messages/x/body",
    ],
)
async def test_queries_that_make_no_sense(doors: Doors, path: str) -> None:
    answer = await doors.admin("GET", path)
    assert (answer.status, answer.code) == (400, "bad_request")
    assert doors.sessions.calls == []


async def test_lists_pass_their_filters_on(doors: Doors) -> None:
    path = "/v1/sessions?state=idle&q=a%20b&agent=demo&limit=7&cursor=c"
    assert (await doors.admin("GET", path)).status == 200
    assert doors.sessions.calls[-1][2] == {
        "state": "idle", "q": "a b", "agent": "demo", "limit": 7, "cursor": "c",
    }  # fmt: skip


async def test_a_sealed_page_is_kept_for_ever_where_its_epoch_was_named(doors: Doors) -> None:
    path = "/v1/sessions/s/messages?page=0"
    plain = await doors.admin("GET", path)
    named = await doors.admin("GET", path + "&epoch=e1")
    assert plain.headers["cache-control"] == "private, no-cache"
    assert named.headers["cache-control"] == "private, max-age=31536000, immutable"
    for tag in ('"e1-0-100"', 'W/"e1-0-100"', '"x", "e1-0-100"'):
        again = await doors.admin("GET", path, If_None_Match=tag)
        assert (again.status, again.body) == (304, b"")
        assert again.headers["etag"] == named.headers["etag"] == '"e1-0-100"'
    assert (await doors.admin("GET", path, If_None_Match='"x"')).status == 200
    doors.sessions.page_text = doors.sessions.page_text.replace("true", "false")
    open_page = await doors.admin("GET", path + "&epoch=e1")
    assert open_page.headers["cache-control"] == "private, no-cache"


async def test_texts_of_the_service_go_out_byte_for_byte(doors: Doors) -> None:
    answer = await doors.admin("GET", "/v1/sessions/s/messages/1/body")
    assert answer.body == '{"text":"\u2028 whole"}'.encode()
    assert json.loads(answer.body) == {"text": "\u2028 whole"}
    assert answer.headers["cache-control"] == "no-store"
