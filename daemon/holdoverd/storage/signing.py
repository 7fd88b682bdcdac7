"""Pre-signed URLs (AWS Signature Version 4 in the query string), as a pure function of the clock.

https://docs.aws.amazon.com/AmazonS3/latest/API/sigv4-query-string-auth.html

Written out here because signing is what the daemon does most for a transfer: this takes some 20 µs
on the event loop, where boto3 takes a millisecond and a thread. The tests hold it against botocore,
byte for byte.
"""

import hashlib
import hmac
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import lru_cache
from typing import Literal
from urllib.parse import quote, urlsplit

from holdoverd.storage.credentials import Credentials

MAX_EXPIRES_S = 604_800  # AWS refuses a URL that lives longer than seven days
_DEFAULT_PORTS = {"http": 80, "https": 443}


@dataclass(frozen=True)
class Signer:
    """Signs for one bucket on one server, by the name that clients know it by.

    `endpoint` is an origin: ``https://files.example.org``. `addressing`: the bucket in the path, or
    before the host's name.
    """

    endpoint: str
    region: str
    bucket: str
    addressing: Literal["path", "virtual"]
    credentials: Credentials = field(repr=False)

    def url(
        self,
        method: str,
        key: str,
        *,
        now_s: float,
        expires_s: int,
        query: Mapping[str, str] | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> str:
        """A URL with which `method` on `key` may be done until `expires_s` after `now_s`.

        `headers` (names in lower case) have to be sent exactly so; `host` is added. `key` "" is
        the bucket itself.
        """
        scheme, host = self._server()
        path = "/" + quote(key, safe="/~")
        if self.addressing == "path":
            path = f"/{self.bucket}{path}"
        signed = {**(headers or {}), "host": host}
        names = ";".join(sorted(signed))
        at = datetime.fromtimestamp(now_s, UTC).strftime("%Y%m%dT%H%M%SZ")
        scope = f"{at[:8]}/{self.region}/s3/aws4_request"
        canonical_query = _encoded(
            {
                **(query or {}),
                "X-Amz-Algorithm": "AWS4-HMAC-SHA256",
                "X-Amz-Credential": f"{self.credentials.access_key}/{scope}",
                "X-Amz-Date": at,
                "X-Amz-Expires": str(max(1, min(expires_s, MAX_EXPIRES_S))),
                "X-Amz-SignedHeaders": names,
            }
        )
        canonical_headers = "".join(f"{name}:{signed[name].strip()}\n" for name in sorted(signed))
        canonical = "\n".join(
            (method, path, canonical_query, canonical_headers, names, "UNSIGNED-PAYLOAD")
        )
        digest = hashlib.sha256(canonical.encode()).hexdigest()
        key_of_day = _signing_key(self.credentials.secret_key, at[:8], self.region)
        to_sign = f"AWS4-HMAC-SHA256\n{at}\n{scope}\n{digest}"
        signature = hmac.new(key_of_day, to_sign.encode(), hashlib.sha256).hexdigest()
        return f"{scheme}://{host}{path}?{canonical_query}&X-Amz-Signature={signature}"

    @property
    def origin(self) -> str:
        """What every URL begins with: where a page has to be let send to."""
        return "://".join(self._server())

    def _server(self) -> tuple[str, str]:
        """(scheme, host with its port)."""
        parts = urlsplit(self.endpoint)
        host = parts.netloc.lower()
        if parts.port == _DEFAULT_PORTS[parts.scheme]:
            host = host.rpartition(":")[0]  # browsers leave it out of Host, and so must we
        if self.addressing == "virtual":
            host = f"{self.bucket}.{host}"
        return parts.scheme, host


def _encoded(query: Mapping[str, str]) -> str:
    pairs = sorted((quote(name, safe="~"), quote(value, safe="~")) for name, value in query.items())
    return "&".join(f"{name}={value}" for name, value in pairs)


@lru_cache(maxsize=8)
def _signing_key(secret: str, day: str, region: str) -> bytes:
    key = f"AWS4{secret}".encode()
    for word in (day, region, "s3", "aws4_request"):
        key = hmac.new(key, word.encode(), hashlib.sha256).digest()
    return key
