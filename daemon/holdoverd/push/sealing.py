"""How a message is sealed, and who it is said to be from. No I/O, no clock.

Loading `cryptography` costs a tenth of a second and 11 MiB. So this is imported where somebody
is to be told, and in a thread: most hosts have nobody.
"""

import base64
import json
import os
import struct
from urllib.parse import urlsplit

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from holdoverd.errors import Unprocessable
from holdoverd.push.rules import Target

RECORD_BYTES = 4096
"""The one record of a message (RFC 8188); push services take 4,096 bytes of body at least."""

CURVE = ec.SECP256R1()


class Sealing:
    """What this host seals and signs: `key` is its own, `subject` whom push services may write to."""

    def __init__(self, key: ec.EllipticCurvePrivateKey, subject: str) -> None:
        self._key = key
        self._subject = subject
        self.public_key = public_text(key)

    def check_key(self, to: Target) -> None:
        """Raises Unprocessable where nothing can be sealed for a browser with such a key."""
        try:
            ec.EllipticCurvePublicKey.from_encoded_point(CURVE, to.p256dh)
        except ValueError as error:
            raise Unprocessable("`keys.p256dh` is no point of the curve P-256.") from error

    def seal(self, to: Target, message: dict[str, str]) -> bytes:
        """The body of one push message."""
        return seal(to, message, ec.generate_private_key(CURVE), os.urandom(16))

    def authorization(self, to: Target, expires_s: int) -> str:
        """The header that says who sends, until then."""
        return authorization(to, self._key, self._subject, expires_s)


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
