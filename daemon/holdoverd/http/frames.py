"""The stream's frames from clients and our answers to them (contract.md, The stream). No I/O."""

from dataclasses import dataclass
from struct import pack

import msgspec

from holdoverd.errors import BadRequest, RequestError
from holdoverd.http.shapes import Json
from holdoverd.http.wire import READ, SESSIONS, parse_object

SUBPROTOCOL = "holdover.v1"
MAX_FRAME_BYTES = 16 * 1024 * 1024
MAX_REF_BYTES = 1024

# {type: the scope it needs}; every type a client may send
FRAME_SCOPES = {
    "page": READ,
    "subscribe": READ,
    "ping": READ,
    "prompt": SESSIONS,
    "answer": SESSIONS,
    "interrupt": SESSIONS,
    "set": SESSIONS,
}

_encode = msgspec.json.Encoder().encode


@dataclass(frozen=True)
class ClientFrame:
    """A frame of a known type. `ref` is JSON text to give back, None when none was sent."""

    type: str
    ref: str | None
    data: Json


class FrameError(Exception):
    """A frame that cannot be understood; `ref` as far as it could be read."""

    def __init__(self, error: RequestError, ref: str | None) -> None:
        super().__init__(error.message)
        self.error = error
        self.ref = ref


def parse_frame(message: str | bytes) -> ClientFrame:
    """Read one WebSocket message; FrameError when it is not a frame of this protocol."""
    if isinstance(message, bytes):
        binary = "A binary frame came; this protocol is text frames, a JSON object each."
        raise FrameError(BadRequest(binary), None)
    try:
        data = parse_object(message, "The frame")
    except BadRequest as error:
        raise FrameError(error, None) from error
    ref = None
    if "ref" in data:
        ref = _encode(data["ref"]).decode()
        if len(ref) > MAX_REF_BYTES:
            long = f"`ref` is over {MAX_REF_BYTES} bytes; send a short one."
            raise FrameError(BadRequest(long), None)
    kind = data.get("type")
    if not isinstance(kind, str) or kind not in FRAME_SCOPES:
        said = repr(kind[:50]) if isinstance(kind, str) else "no string"
        unknown = f"The frame's `type` is {said}; known are {', '.join(FRAME_SCOPES)}."
        raise FrameError(BadRequest(unknown), ref)
    return ClientFrame(kind, ref, data)


def is_too_large(frame: str) -> bool:
    """Over 16 MiB in UTF-8, where a character has at most four bytes."""
    return len(frame) > MAX_FRAME_BYTES // 4 and len(frame.encode()) > MAX_FRAME_BYTES


def _head(kind: str, ref: str | None) -> str:
    return f'{{"type":"{kind}"' + (f',"ref":{ref}' if ref is not None else "")


def reply(kind: str, ref: str | None, answer: str = "{}") -> str:
    """``ok``, ``page`` or ``pong`` with the fields of `answer`, the JSON text of an object."""
    fields = answer.strip()[1:]
    return _head(kind, ref) + ("," if fields.lstrip() != "}" else "") + fields


def error_reply(error: RequestError, ref: str | None) -> str:
    """``error`` with what HTTP would have said."""
    return _head("error", ref) + "," + _encode(error.body()).decode()[1:]


def text_frame(text: str) -> bytes:
    """A text message of the server's as its bytes on the wire: one frame, unmasked (RFC 6455, 5.2).

    For the frames of the stream, which trio-websocket and wsproto would take ten times as long for.
    """
    payload = text.encode()
    size = len(payload)
    if size < 126:
        return bytes((0x81, size)) + payload
    if size < 65536:
        return pack("!BBH", 0x81, 126, size) + payload
    return pack("!BBQ", 0x81, 127, size) + payload


def close_frame(code: int, reason: str) -> bytes:
    """A close frame of the server's as its bytes on the wire (RFC 6455, 5.5.1)."""
    payload = pack("!H", code) + close_reason(reason).encode()
    return bytes((0x88, len(payload))) + payload


def close_reason(text: str) -> str:
    """A reason that fits a close frame: at most 123 bytes (RFC 6455, section 5.5)."""
    return text.encode()[:123].decode("utf-8", "ignore")
