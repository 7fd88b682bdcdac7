"""What is said, to whom it may be sent, and how it is sealed. No I/O, no clock."""

import base64
import ipaddress
import json
import struct
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from holdoverd.errors import Unprocessable

RECORD_BYTES = 4096
"""The one record of a message (RFC 8188); push services take 4,096 bytes of body at least."""

MAX_TEXT_CHARS = 200

CURVE = ec.SECP256R1()


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
    """A subscription as a browser tells it. Raises Unprocessable for what cannot be sent to."""
    try:
        parts = urlsplit(endpoint)
        fits = parts.scheme == "https" and bool(parts.hostname) and parts.port != 0
        fits = fits and all("!" <= character <= "~" for character in endpoint)
    except ValueError:
        fits = False
    if not fits or parts.username is not None or parts.fragment:
        raise Unprocessable("`endpoint` is no https address of a push service.")
    found = Target(endpoint, _bytes("p256dh", p256dh), _bytes("auth", auth))
    try:
        ec.EllipticCurvePublicKey.from_encoded_point(CURVE, found.p256dh)
    except ValueError as error:
        raise Unprocessable("`keys.p256dh` is no point of the curve P-256.") from error
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
        "title": (view["title"] or "")[:MAX_TEXT_CHARS],
        "text": str(text)[:MAX_TEXT_CHARS],
    }


def seal(
    to: Target, message: dict[str, str], secret: ec.EllipticCurvePrivateKey, salt: bytes
) -> bytes:
    """The body of one push message (RFC 8291 section 3, RFC 8188 section 2).

    `secret` and `salt` (16 bytes) are used for this message and no other.
    """
    return seal_text(to, json.dumps(message, ensure_ascii=False).encode(), secret, salt)


def seal_text(to: Target, text: bytes, secret: ec.EllipticCurvePrivateKey, salt: bytes) -> bytes:
    """`seal`, of any text that fits into one record."""
    theirs = ec.EllipticCurvePublicKey.from_encoded_point(CURVE, to.p256dh)
    ours = secret.public_key().public_bytes(Encoding.X962, PublicFormat.UncompressedPoint)
    shared = secret.exchange(ec.ECDH(), theirs)
    mixed = _hkdf(to.auth, shared, b"WebPush: info\0" + to.p256dh + ours, 32)
    key = _hkdf(salt, mixed, b"Content-Encoding: aes128gcm\0", 16)
    nonce = _hkdf(salt, mixed, b"Content-Encoding: nonce\0", 12)
    # 2: the last record, and no padding; its length tells a kind of message at most.
    sealed = AESGCM(key).encrypt(nonce, text + b"\2", None)
    return salt + struct.pack("!IB", RECORD_BYTES, len(ours)) + ours + sealed


def authorization(to: Target, key: ec.EllipticCurvePrivateKey, subject: str, expires_s: int) -> str:
    """Who sends, as the push service wants it (VAPID, RFC 8292 section 2 and 3)."""
    origin = f"https://{urlsplit(to.endpoint).netloc}"
    head = _base64(json.dumps({"typ": "JWT", "alg": "ES256"}).encode())
    claims = _base64(json.dumps({"aud": origin, "exp": expires_s, "sub": subject}).encode())
    signed = f"{head}.{claims}"
    r, s = decode_dss_signature(key.sign(signed.encode(), ec.ECDSA(hashes.SHA256())))
    signature = _base64(r.to_bytes(32, "big") + s.to_bytes(32, "big"))
    return f"vapid t={signed}.{signature}, k={public_text(key)}"


def public_text(key: ec.EllipticCurvePrivateKey) -> str:
    """The public half, as browsers take it for `applicationServerKey`."""
    return _base64(key.public_key().public_bytes(Encoding.X962, PublicFormat.UncompressedPoint))


def _hkdf(salt: bytes, secret: bytes, info: bytes, length: int) -> bytes:
    return HKDF(hashes.SHA256(), length, salt, info).derive(secret)


def _base64(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def _bytes(name: str, text: str) -> bytes:
    try:
        return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))
    except ValueError as error:
        raise Unprocessable(f"`keys.{name}` is not base64url.") from error
