"""What is said, and to whom it may be sent. No I/O, no clock."""

import base64
import ipaddress
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from holdoverd.errors import Unprocessable

MAX_TEXT_CHARS = 200


@dataclass(frozen=True)
class Target:
    """Where messages of one browser go. `p256dh` and `auth` are its keys, as bytes."""

    endpoint: str
    p256dh: bytes
    auth: bytes

    @property
    def host(self) -> str:
        return urlsplit(self.endpoint).hostname or ""

    @property
    def port(self) -> int:
        return urlsplit(self.endpoint).port or 443


def target(endpoint: str, p256dh: str, auth: str) -> Target:
    """A subscription as a browser tells it. Raises Unprocessable for what cannot be sent to.

    Whether its key is one `sealing.check_key` tells.
    """
    try:
        parts = urlsplit(endpoint)
        fits = parts.scheme == "https" and bool(parts.hostname) and parts.port != 0
        fits = fits and all("!" <= character <= "~" for character in endpoint)
    except ValueError:
        fits = False
    if not fits or parts.username is not None or parts.fragment:
        raise Unprocessable("`endpoint` is no https address of a push service.")
    found = Target(endpoint, _bytes("p256dh", p256dh), _bytes("auth", auth))
    if len(found.auth) != 16:
        raise Unprocessable("`keys.auth` is not 16 bytes long.")
    return found


def may_be_sent_to(address: str) -> bool:
    """Is it on the public internet? A subscription must not make this host knock at its own doors."""
    found = ipaddress.ip_address(address.partition("%")[0])
    mapped = getattr(found, "ipv4_mapped", None)
    found = mapped or found
    return found.is_global and not found.is_multicast


def word(before: str, view: dict[str, Any], asked_before: frozenset[str]) -> dict[str, str] | None:
    """What a change of a session's levels is worth saying, None: nothing.

    `before` is the state it had, `asked_before` the permissions that were open then.
    """
    state = view["state"]
    new = [p for p in view["pending"] if p["request_id"] not in asked_before]
    if new:
        about = new[-1]
        kind, text = "waiting", about["title"] or about["tool_name"] or ""
        if about["tool_name"] == "AskUserQuestion":
            kind = "question"
    elif state == "failed" and before != "failed":
        kind, text = "failed", (view["error"] or {}).get("message", "")
    elif state == "idle" and before in ("working", "waiting"):
        kind, text = "finished", ""
    else:
        return None
    return {
        "kind": kind,
        "session": view["id"],
        # Where the question is, so that a tap leads to it.
        "request": new[-1]["request_id"] if new else "",
        "title": (view["title"] or "")[:MAX_TEXT_CHARS],
        "text": str(text)[:MAX_TEXT_CHARS],
    }


def _bytes(name: str, text: str) -> bytes:
    try:
        return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))
    except ValueError as error:
        raise Unprocessable(f"`keys.{name}` is not base64url.") from error
