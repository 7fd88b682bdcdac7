"""A link's password: scrypt, with its parameters beside it, so that they may grow."""

import base64
import hashlib
import hmac
import secrets

# 16 MiB and some 50 ms: two at a time do not matter to a daemon, a billion do to a guesser.
_N, _R, _P = 2**14, 8, 1


def hash_password(password: str) -> str:
    """``scrypt$N$R$P$salt$hash``. Takes some 50 ms: call it in a thread."""
    salt = secrets.token_bytes(16)
    digest = _scrypt(password, salt, _N, _R, _P)
    return "$".join(("scrypt", str(_N), str(_R), str(_P), _text(salt), _text(digest)))


def matches(password: str, stored: str) -> bool:
    """Is `stored` the hash of `password`? As slow, and as long whatever the answer."""
    _, n, r, p, salt, digest = stored.split("$")
    found = _scrypt(password, base64.b64decode(salt), int(n), int(r), int(p))
    return hmac.compare_digest(found, base64.b64decode(digest))


def _scrypt(password: str, salt: bytes, n: int, r: int, p: int) -> bytes:
    data = password.encode("utf-8", "surrogatepass")
    return hashlib.scrypt(data, salt=salt, n=n, r=r, p=p, maxmem=64 * 1024 * 1024)


def _text(data: bytes) -> str:
    return base64.b64encode(data).decode()
