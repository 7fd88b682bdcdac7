"""HTTP to the daemon, through the admin socket or a server's address; which of them, is decided here.

Plain `http.client`: a request or two a command, no pool, no proxy.
"""

import http.client
import json
import os
import random
import socket
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlencode, urlsplit

from holdover.exits import CommandError, Exit, RefusedError, UnreachableError
from holdover.places import HOST_RUNTIME, admin_sockets, login_file

MAX_ANSWER_BYTES = 64 << 20  # a page is at most 100 messages of 256 KiB
TIMEOUT_S = 90.0  # above what a daemon may take to launch an agent
# A daemon that is replaced is back within three seconds; new connections queue meanwhile, so only
# a request that was cut off needs another try.
RETRY_DELAYS_S = (0.1, 0.3, 0.6, 1.0, 2.0)


@dataclass(frozen=True)
class Door:
    """A way to the daemon: exactly one of `socket` and `url` is set."""

    socket: Path | None = None
    url: str | None = None
    token: str | None = field(default=None, repr=False)

    def __str__(self) -> str:
        return str(self.socket or self.url)

    def headers(self) -> dict[str, str]:
        return {"Authorization": f"Bearer {self.token}"} if self.token else {}


def check_url(url: str) -> str:
    """`url` without a trailing slash; raises `CommandError` when it is no server's address."""
    try:
        parts = urlsplit(url)
        good = parts.scheme in {"http", "https"} and bool(parts.hostname) and parts.port != 0
    except ValueError:
        good = False
    if not good or parts.query or parts.fragment or parts.username or parts.path.strip("/"):
        raise CommandError(
            f"{url!r} is no server's address; write it as https://agents.example.org.", Exit.USAGE
        )
    return url.rstrip("/")


def read_login(env: Mapping[str, str]) -> dict[str, str] | None:
    """The saved login {"url", "token"}, or None."""
    path = login_file(env)
    try:
        saved = json.loads(path.read_text(encoding="utf-8"))
        return {"url": str(saved["url"]), "token": str(saved["token"])}
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CommandError(
            f"The saved login {path} cannot be read ({error}); run `holdover login URL` again."
        ) from error


def find_door(url: str | None, env: Mapping[str, str] = os.environ) -> Door:
    """The door to use: `url` when given, else an admin socket that lets us in, else the login."""
    if url:
        url = check_url(url)
        token = env.get("HOLDOVER_TOKEN")
        if not token and (saved := read_login(env)) and saved["url"] == url:
            token = saved["token"]
        if not token:
            raise CommandError(
                f"There is no token for {url}: run `holdover login {url}` or set HOLDOVER_TOKEN.",
                Exit.NOT_ALLOWED,
            )
        return Door(url=url, token=token)
    tried = {path: _may_connect(path) for path in admin_sockets(env)}
    for path, problem in tried.items():
        if problem is None:
            return Door(socket=path)
    if saved := read_login(env):
        return Door(url=saved["url"], token=env.get("HOLDOVER_TOKEN") or saved["token"])
    closed = [path for path, problem in tried.items() if isinstance(problem, PermissionError)]
    if closed:
        raise CommandError(
            f"You may not use {closed[0]}: join the group holdover-admin, or run "
            "`holdover login URL` with a token.",
            Exit.NOT_ALLOWED,
        )
    host = any(path.parent == HOST_RUNTIME and HOST_RUNTIME.is_dir() for path in tried)
    start = (
        "this host's with `systemctl start holdover.target`" if host else "one with `holdover up`"
    )
    raise UnreachableError(
        f"No daemon found (tried {', '.join(map(str, tried))}): start {start}, or name a server "
        "with `holdover login URL`."
    )


def _may_connect(path: Path) -> OSError | None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(5)
        try:
            probe.connect(str(path))
        except OSError as error:
            return error
    return None


class _UnixConnection(http.client.HTTPConnection):
    def __init__(self, path: Path, timeout: float) -> None:
        super().__init__("localhost", timeout=timeout)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(str(self._path))


@dataclass(frozen=True)
class Client:
    """Requests through one door. Every method raises `CommandError` for what goes wrong."""

    door: Door
    timeout_s: float = TIMEOUT_S

    def get(self, path: str, /, **query: object) -> Any:
        """The answer's JSON. Tried again when the connection breaks: a GET changes nothing."""
        return self.request("GET", path, query=query, again=True)

    def post(self, path: str, body: Mapping[str, object], *, again: bool = False) -> Any:
        """The answer's JSON; `again` only where the daemon recognises a repetition."""
        return self.request("POST", path, body=body, again=again)

    def patch(self, path: str, body: Mapping[str, object]) -> Any:
        return self.request("PATCH", path, body=body)

    def delete(self, path: str, /, **query: object) -> Any:
        return self.request("DELETE", path, query=query)

    def items(self, path: str, /, *, limit: int, **query: object) -> Iterator[dict[str, Any]]:
        """The items of a list, over all its pages, at most `limit`."""
        cursor: object = None
        while limit > 0:
            page = self.get(path, limit=min(limit, 500), cursor=cursor, **query)
            yield from page["items"][:limit]
            limit -= len(page["items"])
            cursor = page["next"]
            if cursor is None:
                return  # not where a page is empty: a search may have looked for long in vain

    def text(self, path: str) -> str:
        """An answer that is no JSON."""
        try:
            status, data = self._exchange("GET", path, None)
        except (OSError, http.client.HTTPException) as error:
            raise self._unreachable("GET", error) from error
        if status >= 400:
            self._answer(status, data)
        return data.decode(errors="replace")

    def request(
        self,
        method: str,
        path: str,
        *,
        query: Mapping[str, object] | None = None,
        body: Mapping[str, object] | None = None,
        again: bool = False,
    ) -> Any:
        """One request; the JSON of its answer, None when it has no body."""
        target = path + _query(query or {})
        payload = None if body is None else json.dumps(body).encode()
        for delay in (*(RETRY_DELAYS_S if again else ()), None):
            try:
                status, data = self._exchange(method, target, payload)
                break
            except (OSError, http.client.HTTPException) as error:
                # A certificate does not mend itself.
                if delay is None or "CERTIFICATE_VERIFY" in str(error):
                    raise self._unreachable(method, error) from error
                time.sleep(delay * random.uniform(0.5, 1.0))  # noqa: S311  spreads load, no secret
        return self._answer(status, data)

    def _exchange(self, method: str, target: str, payload: bytes | None) -> tuple[int, bytes]:
        connection = self._connection()
        headers = {"Accept": "application/json", **self.door.headers()}
        if payload is not None:
            headers["Content-Type"] = "application/json"
        try:
            connection.request(method, target, payload, headers)
            response = connection.getresponse()
            data = response.read(MAX_ANSWER_BYTES + 1)
            return response.status, data
        finally:
            connection.close()

    def _connection(self) -> http.client.HTTPConnection:
        if self.door.socket is not None:
            return _UnixConnection(self.door.socket, self.timeout_s)
        parts = urlsplit(self.door.url or "")
        kind = (
            http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
        )
        return kind(str(parts.hostname), parts.port, timeout=self.timeout_s)

    def _unreachable(self, method: str, error: Exception) -> CommandError:
        reason = "no answer in time" if isinstance(error, TimeoutError) else str(error)
        doubt = "" if method == "GET" else " It may have been done; look before you repeat it."
        return UnreachableError(f"The daemon at {self.door} cannot be reached: {reason}.{doubt}")

    def _answer(self, status: int, data: bytes) -> Any:
        if len(data) > MAX_ANSWER_BYTES:
            raise CommandError(f"{self.door} sent an answer of more than {MAX_ANSWER_BYTES} bytes.")
        try:
            answer = json.loads(data) if data.strip() else None
        except ValueError:
            answer = None
            if status < 400:
                raise CommandError(
                    f"{self.door} sent something that is not JSON; is it Holdover?"
                ) from None
        if status < 400:
            return answer
        raise refusal(answer, status, str(self.door))


def refusal(answer: object, status: int, door: str) -> RefusedError:
    """The error of an answer, or one made from its status where a proxy answered instead."""
    error = answer.get("error") if isinstance(answer, dict) else None
    if isinstance(error, dict) and isinstance(error.get("code"), str):
        code, message = error["code"], str(error.get("message") or error["code"])
    else:
        known = {401: "unauthorized", 403: "forbidden", 404: "not_found", 503: "unavailable"}
        code, message = known.get(status, "internal"), f"{door} answered with status {status}."
    if code == "unauthorized":
        message += " Run `holdover login URL` with a valid token."
    return RefusedError(code, message, status, error if isinstance(error, dict) else None)


def _query(query: Mapping[str, object]) -> str:
    given = {name: value for name, value in query.items() if value is not None}
    pairs = [
        (name, str(value).lower() if value is True else value) for name, value in given.items()
    ]
    return f"?{urlencode(pairs)}" if pairs else ""


def path_of(*parts: str) -> str:
    """``/v1/sessions/…`` from raw parts; what a person typed cannot leave its place."""
    return "/v1/" + "/".join(quote(part, safe="") for part in parts)


def one_by_prefix(given: str, ids: list[str], what: str, prefix: str) -> str:
    """The one id that is `given` or begins with it (its type's prefix may be left out)."""
    if given in ids:
        return given
    found = [name for name in ids if given and name.startswith((given, prefix + given))]
    if len(found) == 1:
        return found[0]
    if not found:
        raise CommandError(f"There is no {what} {given!r}.", Exit.NOT_FOUND)
    shown = ", ".join(found[:5]) + (", …" if len(found) > 5 else "")
    raise CommandError(
        f"{given!r} is the beginning of {len(found)} {what}s: {shown}. Type more of it.",
        Exit.USAGE,
    )


def resolve_session(client: Client, given: str) -> str:
    """The full id of the session `given` names; a whole id is not looked up."""
    if given.startswith("s_") and len(given) == 18:
        return given
    listed = client.items("/v1/sessions", limit=10_000)
    return one_by_prefix(given, [item["id"] for item in listed], "session", "s_")
