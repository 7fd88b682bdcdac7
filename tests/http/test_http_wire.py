"""The rules of the doors, without a connection: heads, names, credentials, scopes."""

from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from holdoverd.callers import Caller
from holdoverd.errors import BadRequest, Forbidden, RequestError, Unauthorized
from holdoverd.http import wire
from holdoverd.http.wire import Head, Names, credential, parse_head


def head(
    target: str = "/", method: str = "GET", host: str | None = "localhost", **headers: str
) -> Head:
    lines = [
        (k.lower().replace("_", "-").encode(), v.encode("latin-1")) for k, v in headers.items()
    ]
    if host is not None:
        lines.append((b"host", host.encode("latin-1")))
    return parse_head(method.encode(), target.encode(), lines, door="public", peer="192.0.2.1")


# --- heads -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("target", "segments", "query"),
    [
        ("/", (), {}),
        ("/v1/sessions", ("v1", "sessions"), {}),
        ("/v1/sessions/", ("v1", "sessions", ""), {}),
        ("//v1", ("", "v1"), {}),
        ("/a%2Fb/%C3%A9", ("a/b", "é"), {}),
        ("/..", ("..",), {}),
        ("/?a=1&b=%20c+d&e=", (), {"a": "1", "b": " c d", "e": ""}),
        ("/a?", ("a",), {}),
        ("/a?q=?&r=/", ("a",), {"q": "?", "r": "/"}),
    ],
)
def test_targets(target: str, segments: tuple[str, ...], query: dict[str, str]) -> None:
    parsed = head(target)
    assert (parsed.segments, dict(parsed.query)) == (segments, query)


@pytest.mark.parametrize(
    "target",
    [
        "*",
        "x",
        "",
        "ftp://x/",
        "http:///a",
        "/%00",
        "/%ff",
        "/%c0%af",
        "/?a",
        "/?a=1&a=2",
        "/?a=%ff",
        "/?" + "&".join(f"a{number}=" for number in range(51)),
    ],
)
def test_targets_that_make_no_sense(target: str) -> None:
    with pytest.raises(BadRequest):
        head(target)


def test_fifty_parameters_are_read() -> None:
    assert len(head("/?" + "&".join(f"a{number}=" for number in range(50))).query) == 50


def test_an_absolute_target_names_the_host_whatever_the_header_says() -> None:
    parsed = head("http://evil.example/v1?a=b", host="localhost")
    assert (parsed.authority, parsed.segments) == ("evil.example", ("v1",))
    assert dict(parsed.query) == {"a": "b"}


@given(st.text(alphabet=st.characters(min_codepoint=33, max_codepoint=126), max_size=60))
def test_any_visible_target_is_parsed_or_refused(target: str) -> None:
    try:
        parsed = head("/" + target)
    except BadRequest:
        return
    assert all("\0" not in segment for segment in parsed.segments)


@given(st.binary(max_size=200))
def test_any_body_is_an_object_or_refused(body: bytes) -> None:
    with suppress(BadRequest):
        assert isinstance(wire.parse_object(body, "It"), dict)


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"null",
        b"[]",
        b'"x"',
        b"{",
        b'{"a":NaN}',
        b'{"a":"\\ud800"}',
        b'{"a":"\xff"}',
        b'{"a":"\\udc00"}',
        b'{"a":"\n"}',
        b"\xef\xbb\xbf{}",
        b'{"a":' * 100000,
        b"{} {}",
    ],
)
def test_bodies_that_are_no_json_object(body: bytes) -> None:
    with pytest.raises(BadRequest):
        wire.parse_object(body, "It")


# --- Host and Origin -------------------------------------------------------------------------

NAMES = Names.of("https://holdover.example", ["box.lan", "other.lan:9000"])


@pytest.mark.parametrize(
    "host",
    [
        "holdover.example",
        "HOLDOVER.example.",
        "holdover.example:443",
        "holdover.example:8780",
        "box.lan",
        "box.lan:1",
        "other.lan:9000",
        "localhost",
        "localhost:8780",
        "127.0.0.1:80",
        "127.9.9.9",
        "[::1]",
        "[::1]:8780",
    ],
)
def test_our_names(host: str) -> None:
    NAMES.check_host(host)


@pytest.mark.parametrize(
    "host",
    [
        None,
        "",
        "evil.example",
        "holdover.example.evil",
        "xholdover.example",
        "other.lan",
        "other.lan:9001",
        "localhost.evil",
        "evil@localhost",
        "localhost:99999",
        "localhost:x",
        "127.0.0.1.evil",
        "0.0.0.0",
        "[::ffff:127.0.0.1]",
        "[::1",
        "192.0.2.1",
        "localhost,evil",
        " localhost",
        "localhost/",
        "2130706433",
        "127.1",
        "lócalhost",
    ],
)
def test_names_that_are_not_ours(host: str | None) -> None:
    with pytest.raises(Forbidden, match=r"\[server\] hosts"):
        NAMES.check_host(host)


@pytest.mark.parametrize(
    ("origin", "host"),
    [
        ("https://holdover.example", "localhost:8780"),  # a proxy rewrote Host
        ("https://holdover.example:443", "holdover.example"),
        ("http://localhost:8780", "localhost:8780"),
        ("http://[::1]:8780", "[::1]:8780"),
        ("https://box.lan", "box.lan"),
        ("http://box.lan:81", "box.lan:81"),
        ("https://other.lan:9000", "127.0.0.1"),
        ("http://localhost", "localhost"),
        ("http://localhost", "localhost:80"),
    ],
)
def test_our_origins(origin: str, host: str) -> None:
    NAMES.check_origin(origin, host, required=True)


@pytest.mark.parametrize(
    ("origin", "host"),
    [
        ("null", "localhost"),
        ("", "localhost"),
        ("https://evil.example", "holdover.example"),
        ("http://holdover.example", "localhost"),  # another scheme is another origin
        ("https://holdover.example:444", "holdover.example"),
        ("http://localhost:3000", "localhost:8780"),  # another program on this machine
        ("http://localhost:8780", "127.0.0.1:8780"),
        ("http://localhost", "localhost:443"),
        ("ftp://localhost", "localhost"),
        ("https://holdover.example.evil", "holdover.example"),
        ("https://holdover.example/path", "holdover.example"),
        ("https://u@holdover.example", "holdover.example"),
    ],
)
def test_origins_that_are_not_ours(origin: str, host: str) -> None:
    with pytest.raises(Forbidden):
        NAMES.check_origin(origin, host, required=False)


@pytest.mark.parametrize(
    ("method", "upgrade", "cookie", "required"),
    [
        ("GET", False, True, False),
        ("HEAD", False, True, False),
        ("POST", False, True, True),
        ("PATCH", False, True, True),
        ("DELETE", False, True, True),
        ("GET", True, True, True),
        ("POST", False, False, False),
        ("GET", True, False, False),
    ],
)
def test_with_the_cookie_an_origin_is_required_where_something_may_change(
    method: str, upgrade: bool, cookie: bool, required: bool
) -> None:
    headers = {"Upgrade": "websocket"} if upgrade else {}
    headers |= {"Cookie": "holdover=hold_x"} if cookie else {"Authorization": "Bearer hold_x"}
    request = head(method=method, **headers)
    if required:
        with pytest.raises(Forbidden, match="Origin"):
            wire.check_place(request, NAMES, credential(request))
    else:
        wire.check_place(request, NAMES, credential(request))


# --- who asks --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("headers", "token", "from_cookie"),
    [
        ({}, None, False),
        ({"Authorization": "Bearer hold_a-b_C"}, "hold_a-b_C", False),
        ({"Authorization": "bearer  hold_x "}, "hold_x", False),
        ({"Cookie": "a=b; holdover=hold_x; c=d"}, "hold_x", True),
        ({"Cookie": "holdover=; x=holdover=y"}, None, False),
        ({"Cookie": "xholdover=hold_x; Holdover=hold_x"}, None, False),
        ({"Authorization": "Bearer one", "Cookie": "holdover=two"}, "one", False),
        ({"Cookie": "holdover=" + "x" * 513}, None, False),
    ],
)
def test_credentials(headers: dict[str, str], token: str | None, from_cookie: bool) -> None:
    found = credential(head(**headers))
    assert (None if found is None else (found.token, found.from_cookie)) == (
        None if token is None else (token, from_cookie)
    )
    assert token is None or token not in repr(found), "a token is not for logs"


@pytest.mark.parametrize(
    "authorization", ["Basic dTpw", "Bearer", "Bearer ", "hold_x", "Bearer a b", "Bearer é"]
)
def test_an_authorization_we_do_not_know_is_not_replaced_by_the_cookie(authorization: str) -> None:
    with pytest.raises(Unauthorized):
        credential(head(Authorization=authorization, Cookie="holdover=hold_x"))


def test_an_authorization_sent_twice_is_refused() -> None:
    request = parse_head(
        b"GET", b"/", [(b"authorization", b"Bearer a")] * 2, door="public", peer=""
    )
    with pytest.raises(BadRequest, match="2 times"):
        credential(request)


def _caller(*scopes: str) -> Caller:
    return Caller("alice", "a", frozenset(scopes), "t_1", admin="admin" in scopes)


@pytest.mark.parametrize("scope", sorted(wire.SCOPES))
def test_admin_implies_all_and_nothing_else_implies_anything(scope: str) -> None:
    wire.check_scope(_caller("admin"), scope)
    wire.check_scope(_caller(scope), scope)
    wire.check_scope(_caller(), wire.ANY)
    with pytest.raises(Forbidden, match=scope):
        wire.check_scope(_caller(*(wire.SCOPES - {"admin", scope})), scope)


@pytest.mark.parametrize(
    ("peer", "forwarded", "counted"),
    [
        ("192.0.2.1", [], "192.0.2.1"),
        ("192.0.2.1", ["198.51.100.1"], "192.0.2.1"),  # not a proxy of ours: anybody may say so
        ("10.0.0.1", ["198.51.100.1"], "198.51.100.1"),
        ("10.0.0.1", ["203.0.113.9", "198.51.100.1"], "198.51.100.1"),
        ("10.0.0.1", ["203.0.113.9", "10.0.0.2"], "203.0.113.9"),
        ("10.0.0.1", ["10.0.0.2"], "10.0.0.2"),
        ("10.0.0.1", [], "10.0.0.1"),
        ("10.0.0.1", ["garbage"], "garbage"),
        ("2001:db8::1", [], "2001:db8::/64"),
        ("2001:db8::ffff", [], "2001:db8::/64"),
        ("uid:0", [], "uid:0"),
        ("", [], ""),
    ],
)
def test_the_address_that_failures_count_by(peer: str, forwarded: list[str], counted: str) -> None:
    assert wire.client_address(peer, forwarded, ["10.0.0.0/8"]) == counted


# --- answers ---------------------------------------------------------------------------------


def _all_errors(base: type[RequestError] = RequestError) -> set[type[RequestError]]:
    return {base}.union(*(_all_errors(sub) for sub in base.__subclasses__()))


@pytest.mark.parametrize("kind", sorted(_all_errors(), key=lambda kind: kind.__name__))
def test_every_error_has_the_contracts_form(kind: type[RequestError]) -> None:
    error = kind("What happened.", extra={"answered_by": "bob"}, headers={"Retry-After": "3"})
    response = wire.error_response(error)
    assert response.status == error.status
    assert wire.parse_object(response.body, "It") == {
        "error": {"code": error.code, "message": "What happened.", "answered_by": "bob"}
    }
    headers = dict(response.headers)
    assert headers["Retry-After"] == "3"
    assert headers["Cache-Control"] == "no-store"
    assert ("WWW-Authenticate" in headers) == (response.status == 401)
