"""HTTP's rules without HTTP's I/O: request heads, Host and Origin, credentials, scopes, answers.

Everything here is a pure function of bytes; contract.md, "Doors", is the source of each rule.
"""

import ipaddress
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol
from urllib.parse import parse_qsl, unquote_to_bytes, urlsplit

import msgspec

from holdoverd.callers import Caller
from holdoverd.errors import BadRequest, Forbidden, Internal, RequestError, Unauthorized
from holdoverd.handover.packed import Door, StreamState
from holdoverd.http.transport import HalfCloseable

Headers = Sequence[tuple[bytes, bytes]]  # names in lower case, as h11 gives them

MAX_PARAMETERS = 50
_DEFAULT_PORTS = {"http": 80, "https": 443}
_AUTHORITY = re.compile(r"(\[[0-9a-fA-F:.]+\]|[A-Za-z0-9._-]+)(?::([0-9]{1,5}))?")
# RFC 6750 section 2.1 allows a few more characters; ours are url-safe base64.
_TOKEN = re.compile(r"[A-Za-z0-9_.~+/=-]{1,512}")

COOKIE = "holdover"

# Scopes (contract.md, Doors). ANY: a caller with whatever scopes; OPEN: nobody is asked.
OPEN = None
ANY = ""
READ = "read"
SESSIONS = "sessions"
FILES = "files"
JOBS = "jobs"
SKILLS = "skills"
ADMIN = "admin"
SCOPES = frozenset({READ, SESSIONS, FILES, JOBS, SKILLS, ADMIN})

# --- requests --------------------------------------------------------------------------------


@dataclass(frozen=True)
class Head:
    """A request's head, parsed and not yet believed.

    `authority` is the absolute target's when there is one (RFC 9112 section 3.2.2), else the Host
    header's, None without either. `segments` are decoded, so that ``%2F`` is data; "/" is ``()``.
    """

    method: str
    authority: str | None
    segments: tuple[str, ...]
    query: Mapping[str, str]
    headers: Headers
    door: Door
    peer: str

    def header(self, name: bytes) -> str | None:
        """The one value of a header, None if absent; BadRequest when it was sent twice."""
        values = [value for key, value in self.headers if key == name]
        if not values:
            return None
        if len(values) > 1:
            raise BadRequest(f"The header {name.decode()} was sent {len(values)} times; send one.")
        return values[0].decode("latin-1")

    def tokens(self, name: bytes) -> list[str]:
        """The comma-separated items of a header, over all its lines, in lower case."""
        joined = ",".join(v.decode("latin-1") for key, v in self.headers if key == name)
        return [item.strip().lower() for item in joined.split(",") if item.strip()]


@dataclass(frozen=True)
class Request:
    """An admitted request: its caller may ask this. `params` are the pattern's ``{names}``."""

    head: Head
    params: Mapping[str, str]
    caller: Caller
    token: str | None = field(default=None, repr=False)
    body: bytes = b""

    @property
    def query(self) -> Mapping[str, str]:
        return self.head.query

    def json(self) -> dict[str, object]:
        """The body as a JSON object; BadRequest otherwise."""
        return parse_object(self.body, "The request body")

    def json_or_empty(self) -> dict[str, object]:
        """As `json`, for requests whose fields are all optional: no body is ``{}``."""
        return self.json() if self.body else {}


def parse_object(data: bytes | str, what: str) -> dict[str, object]:
    """Strict JSON, an object: no NaN, no unpaired surrogate, no bytes that are not UTF-8."""
    if not data:
        raise BadRequest(
            f"{what} is empty; send a JSON object, {{}} where there is nothing to say."
        )
    try:
        value = msgspec.json.decode(data)
    except RecursionError as exc:
        raise BadRequest(f"{what} is nested too deep; flatten it.") from exc
    except ValueError as exc:  # msgspec.DecodeError and UnicodeDecodeError
        raise BadRequest(f"{what} is not valid JSON in UTF-8: {exc}.") from exc
    if not isinstance(value, dict):
        raise BadRequest(f"{what} has to be a JSON object, like {{}}.")
    return value


def parse_head(method: bytes, target: bytes, headers: Headers, *, door: Door, peer: str) -> Head:
    """Make a `Head` of what h11 parsed; BadRequest for a target that makes no sense."""
    text = target.decode("ascii")  # h11 admits visible ASCII only
    authority = None
    if not text.startswith("/"):
        try:
            parts = urlsplit(text)
        except ValueError as exc:  # brackets that are no IPv6 address
            raise BadRequest(f"The request target {text[:100]!r} is no URL: {exc}.") from exc
        if parts.scheme.lower() not in _DEFAULT_PORTS or not parts.netloc:
            raise BadRequest(f"The request target {text[:100]!r} has to start with a slash.")
        authority = parts.netloc
        text = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    path, _, query = text.partition("?")
    if authority is None:  # h11 has seen to it that there is at most one Host
        authority = next((v.decode("latin-1") for key, v in headers if key == b"host"), None)
    return Head(
        method=method.decode("ascii"),
        authority=authority,
        segments=tuple(_decode(segment) for segment in path[1:].split("/")) if path != "/" else (),
        query=parse_query(query),
        headers=headers,
        door=door,
        peer=peer,
    )


def _decode(segment: str) -> str:
    try:
        text = unquote_to_bytes(segment).decode("utf-8")
    except UnicodeDecodeError as exc:
        raise BadRequest("The path is not UTF-8 after decoding its %XX; encode it anew.") from exc
    if "\0" in text:
        raise BadRequest("The path holds a NUL (%00), which no name here may.")
    return text


def parse_query(query: str) -> dict[str, str]:
    """Each parameter once, each with a ``=``; BadRequest otherwise."""
    if not query:
        return {}
    try:
        pairs = parse_qsl(
            query,
            keep_blank_values=True,
            strict_parsing=True,
            errors="strict",
            max_num_fields=MAX_PARAMETERS,
        )
    except ValueError as exc:  # also UnicodeDecodeError
        raise BadRequest(f"The query string cannot be read: {exc}.") from exc
    parameters = dict(pairs)
    if len(parameters) != len(pairs):
        raise BadRequest("The query string names a parameter twice; send each once.")
    return parameters


# --- Host and Origin -------------------------------------------------------------------------


def split_authority(authority: str) -> tuple[str, int | None] | None:
    """``example.org:8780`` as (name in lower case, port or None); None when it is neither."""
    match = _AUTHORITY.fullmatch(authority)
    if match is None:
        return None
    name, port = match.groups()
    if port is not None and int(port) > 65535:
        return None
    return name.lower().removesuffix("."), int(port) if port else None


def _is_loopback(name: str) -> bool:
    if name == "localhost":
        return True
    try:
        return ipaddress.ip_address(name.strip("[]")).is_loopback
    except ValueError:
        return False


@dataclass(frozen=True)
class Names:
    """The names this server goes by. A page elsewhere that a browser was lured to has others.

    The Host check is what stops DNS rebinding: a foreign page whose name suddenly resolves to
    this machine still sends its own name. `hosts` are (name, port), port None for any.
    """

    hosts: frozenset[tuple[str, int | None]]
    origins: frozenset[tuple[str, str, int]]

    @classmethod
    def of(cls, public_url: str, hosts: Iterable[str]) -> "Names":
        """From ``[server] public_url`` ("" when unset) and ``[server] hosts``."""
        names: set[tuple[str, int | None]] = set()
        origins: set[tuple[str, str, int]] = set()
        if (own := parse_origin(public_url)) is not None:
            # A front proxy may or may not keep the port in Host; the name is what tells.
            names.add((own[1], None))
            origins.add(own)
        for host in hosts:
            if (split := split_authority(host)) is not None:
                names.add(split)
                for scheme, port in _DEFAULT_PORTS.items():
                    origins.add((scheme, split[0], split[1] or port))
        return cls(frozenset(names), frozenset(origins))

    def check_host(self, authority: str | None) -> None:
        """Forbidden unless `authority` (the Host header) is one of ours or loopback."""
        split = split_authority(authority or "")
        if split is not None:
            name, port = split
            if (name, None) in self.hosts or (name, port) in self.hosts or _is_loopback(name):
                return
        raise Forbidden(
            f"This server does not go by the name {(authority or '')[:100]!r} in Host; use its"
            " public_url, or add the name to [server] hosts."
        )

    def check_origin(self, origin: str | None, authority: str | None, *, required: bool) -> None:
        """Forbidden unless `origin` is public_url's, one of `hosts`, or the checked Host's own.

        A cookie is sent to every port of a name, so the port has to agree as well.
        """
        if origin is None:
            if required:
                raise Forbidden(
                    "With the cookie this request needs an Origin header, which browsers send;"
                    " programs use `Authorization: Bearer` instead."
                )
            return
        parsed = parse_origin(origin)
        if parsed is not None:
            if parsed in self.origins:
                return
            scheme, name, port = parsed
            host = split_authority(authority or "")
            if host is not None and (name, port) == (host[0], host[1] or _DEFAULT_PORTS[scheme]):
                return
        raise Forbidden(
            f"Origin {origin[:100]!r} is not this server's own; open it by its public_url, or add"
            " the name to [server] hosts."
        )


def parse_origin(origin: str) -> tuple[str, str, int] | None:
    """``https://example.org`` as (scheme, name, port); None for ``null`` and anything else."""
    scheme, separator, authority = origin.partition("://")
    split = split_authority(authority.removesuffix("/"))
    if not separator or scheme.lower() not in _DEFAULT_PORTS or split is None:
        return None
    return scheme.lower(), split[0], split[1] or _DEFAULT_PORTS[scheme.lower()]


# --- who asks --------------------------------------------------------------------------------


@dataclass(frozen=True)
class Credential:
    """A token as presented. `from_cookie` decides whether Origin is required."""

    token: str = field(repr=False)
    from_cookie: bool


def credential(head: Head) -> Credential | None:
    """The token of the Authorization header, else of the cookie; None when neither is there.

    Unauthorized for an Authorization header that is not a bearer token: falling back to the
    cookie would answer as somebody else than the client meant.
    """
    authorization = head.header(b"authorization")
    if authorization is not None:
        scheme, _, token = authorization.partition(" ")
        if scheme.lower() != "bearer" or not _TOKEN.fullmatch(token.strip()):
            raise Unauthorized("The Authorization header has to be `Bearer` and a token.")
        return Credential(token.strip(), from_cookie=False)
    for key, value in head.headers:
        if key != b"cookie":
            continue
        for pair in value.decode("latin-1").split(";"):
            name, _, token = pair.strip().partition("=")
            if name == COOKIE and _TOKEN.fullmatch(token):
                return Credential(token, from_cookie=True)
    return None


def check_place(head: Head, names: Names, presented: Credential | None) -> None:
    """Host and Origin, for the public door; Forbidden when either is somebody else's."""
    names.check_host(head.authority)
    mutating = head.method not in ("GET", "HEAD")
    with_cookie = presented is not None and presented.from_cookie
    names.check_origin(
        head.header(b"origin"),
        head.authority,
        required=with_cookie and (mutating or bool(head.tokens(b"upgrade"))),
    )


def check_scope(caller: Caller, scope: str) -> None:
    """Forbidden unless the caller has `scope`; `admin` implies all, nothing else implies any."""
    if scope != ANY and not caller.admin and scope not in caller.scopes:
        raise Forbidden(
            f"This needs the scope `{scope}`, and the token has"
            f" {', '.join(sorted(caller.scopes)) or 'none'}; ask for a token with it."
        )


def is_trusted(address: str, trusted: Sequence[str]) -> bool:
    """Is `address` one of `[server] trusted_proxies`, which are addresses and networks?"""
    try:
        parsed = ipaddress.ip_address(address.strip())
        return any(parsed in ipaddress.ip_network(text, strict=False) for text in trusted)
    except ValueError:
        return False


def client_address(peer: str, forwarded_for: Sequence[str], trusted: Sequence[str]) -> str:
    """The address to count failures by: the peer's, or what trusted proxies report.

    `forwarded_for` are the items of X-Forwarded-For, oldest first; only the part written by
    trusted proxies is believed, read from the right. IPv6 addresses count by their /64, which is
    what one subscriber gets.
    """
    chain = [*forwarded_for, peer]
    while len(chain) > 1 and is_trusted(chain[-1], trusted):
        chain.pop()
    try:
        address = ipaddress.ip_address(chain[-1].strip())
    except ValueError:
        return chain[-1][:64]
    if isinstance(address, ipaddress.IPv6Address):
        return str(ipaddress.ip_network((address, 64), strict=False))
    return str(address)


# --- what is wanted of an answer -------------------------------------------------------------


def entity_tags(head: Head) -> list[str]:
    """If-None-Match, compared weakly (RFC 9110, section 13.1.2); ours hold no commas."""
    header = head.header(b"if-none-match") or ""
    return [tag.strip().removeprefix("W/") for tag in header.split(",")]


def accepts_gzip(head: Head) -> bool:
    """Accept-Encoding names gzip, and not with weight 0 (RFC 9110, section 12.5.3)."""
    for item in head.tokens(b"accept-encoding"):
        coding, _, weight = item.partition(";")
        if coding.strip() == "gzip":
            return not re.fullmatch(r"\s*q=0(\.0*)?\s*", weight)
    return False


# --- answers ---------------------------------------------------------------------------------


class Upgraded(Protocol):
    """What serves a connection that has left HTTP; see `stream.Stream`."""

    session: str

    @property
    def watches(self) -> bool:
        """The session is being watched through it, or is about to be."""

    @property
    def ending(self) -> bool:
        """It will be over in seconds, and cannot be detached any more."""

    @property
    def left(self) -> StreamState | None:
        """Where it stood when it was detached: the connection is still open. None if it was not."""

    @property
    def passed_to(self) -> int | None:
        """The generation that `left` is for, where it could not be served here at all."""

    async def run(self, stream: HalfCloseable, rest: bytes) -> None:
        """Serve the connection to its end, or until it is detached; does not close it.

        `rest` are bytes that were read too early.
        """

    async def detach(self) -> bool:
        """Let go of the connection within seconds: `run` returns, and `left` says where it stood.

        False: it is ending by itself, or in the middle of something that takes longer.
        """


@dataclass(frozen=True)
class Upgrade:
    """An answer that leaves HTTP. Not to be offered to a client that did not ask for it."""

    stream: Upgraded


@dataclass(frozen=True)
class Response:
    """An answer. Content-Length, Date and Connection are added where it is sent."""

    status: int
    body: bytes = b""
    headers: tuple[tuple[str, str], ...] = ()


_JSON_HEADERS = (("Content-Type", "application/json"), ("X-Content-Type-Options", "nosniff"))
_NO_STORE = ("Cache-Control", "no-store")


def raw_json(
    text: str | bytes,
    status: int = 200,
    headers: Iterable[tuple[str, str]] = (),
    *,
    cache: str = "no-store",
) -> Response:
    """An answer of JSON text made elsewhere, sent as it is."""
    body = text.encode() if isinstance(text, str) else text
    return Response(status, body, (*_JSON_HEADERS, ("Cache-Control", cache), *headers))


def json_response(
    value: object, status: int = 200, headers: Iterable[tuple[str, str]] = ()
) -> Response:
    """An answer of plain values."""
    return raw_json(msgspec.json.encode(value), status, headers)


def no_content(headers: Iterable[tuple[str, str]] = ()) -> Response:
    return Response(204, b"", (_NO_STORE, *headers))


def error_response(error: RequestError) -> Response:
    """The contract's error form, with what its status wants in headers."""
    headers = list(error.headers.items())
    if error.status == Unauthorized.status:
        headers.append(("WWW-Authenticate", 'Bearer realm="holdover"'))  # RFC 9110, 11.6.1
    return json_response(error.body(), error.status, headers)


def internal_error(error_id: str) -> Internal:
    """What a caller hears of a defect of ours: an id to find it by, and nothing of its inside."""
    return Internal(
        f"Something went wrong inside Holdover (error {error_id}). Try again; if it stays, look"
        f" for the id in the daemon's journal: journalctl ERROR_ID={error_id}."
    )
