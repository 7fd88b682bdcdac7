"""What makes a request a WebSocket upgrade, and the request as it is told to wsproto. No I/O."""

import base64
import binascii

from holdoverd.errors import BadRequest
from holdoverd.http.frames import SUBPROTOCOL
from holdoverd.http.wire import Head


def websocket_key(head: Head) -> str:
    """Sec-WebSocket-Key of a valid upgrade (RFC 6455, section 4.2.1); BadRequest otherwise.

    As strict as wsproto, which has no way to tell us that it refused.
    """
    # the key is base64 and keeps its case; the others are tokens
    if head.method != "GET" or "websocket" not in head.tokens(b"upgrade"):
        raise BadRequest("This address speaks WebSocket; connect with the protocol holdover.v1.")
    if "upgrade" not in head.tokens(b"connection"):
        raise BadRequest("The upgrade lacks `Connection: Upgrade`; a proxy may have removed it.")
    if head.header(b"sec-websocket-version") != "13":
        raise BadRequest(
            "WebSocket version 13 is spoken here.", headers={"Sec-WebSocket-Version": "13"}
        )
    key = head.header(b"sec-websocket-key") or ""
    try:
        if len(base64.b64decode(key, validate=True)) != 16:
            raise BadRequest("Sec-WebSocket-Key has to be 16 bytes in base64.")
    except (binascii.Error, ValueError) as exc:
        raise BadRequest("Sec-WebSocket-Key has to be 16 bytes in base64.") from exc
    if SUBPROTOCOL not in head.tokens(b"sec-websocket-protocol"):
        raise BadRequest(f"Offer the subprotocol {SUBPROTOCOL} (Sec-WebSocket-Protocol).")
    if head.header(b"content-length") not in (None, "0") or head.tokens(b"transfer-encoding"):
        raise BadRequest("An upgrade has no body; send frames after the answer 101.")
    return key


def upgrade_head(key: str) -> bytes:
    """The request as it is told to wsproto: what it needs, and nothing a client could make it trip
    over. Extensions are left out, since compressing every viewer's stream anew costs too much.
    """
    return (
        "GET / HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        f"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: {key}\r\n"
        f"Sec-WebSocket-Protocol: {SUBPROTOCOL}\r\n\r\n"
    ).encode("ascii")
