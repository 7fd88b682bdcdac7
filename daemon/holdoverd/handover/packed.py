"""A detached connection as a record, and the record as bytes (PROTOCOL.md). No I/O.

Nothing in it refers to the instance it comes from: whoever holds the record and the socket goes on
with the connection, be it a sibling or the very instance that detached it.
"""

import socket
from dataclasses import dataclass, field
from itertools import accumulate, pairwise
from typing import Any, Literal, cast, get_args

import msgspec

from holdoverd.callers import Caller
from holdoverd.errors import HandoverError
from holdoverd.sessions.viewer import ViewerCursor

Door = Literal["public", "admin"]


@dataclass(frozen=True, slots=True)
class HttpState:
    """Between two requests, or within the head of one.

    `received`: the bytes since the last answer, as they came. `hops`: how many instances have
    passed on the request that they begin with.
    """

    door: Door
    received: bytes = b""
    hops: int = 0


@dataclass(frozen=True, slots=True)
class StreamState:
    """A WebSocket in the middle.

    `key`: its ``Sec-WebSocket-Key``. `token`: the secret that opened it, None behind the admin
    door. `received`: bytes since the last whole message; `unsent`: bytes of ours that the peer has
    yet to get, before all others; `messages`: whole ones that were received and not begun. `hops`:
    how many instances have had it since the last that could go on with it.
    """

    door: Door
    session: str
    key: str
    caller: Caller
    token: str | None = field(repr=False)
    cursor: ViewerCursor
    received: bytes = field(default=b"", repr=False)
    unsent: bytes = field(default=b"", repr=False)
    messages: tuple[str | bytes, ...] = field(default=(), repr=False)
    hops: int = 0


@dataclass
class Detached:
    """A connection that nobody serves at the moment. The socket is the holder's, to close too."""

    state: HttpState | StreamState
    socket: socket.socket

    def close(self) -> None:
        """Close this copy; the connection lives on while there is another. Idempotent."""
        self.socket.close()


class _Details(msgspec.Struct):
    """What a stream's blob begins with: it may be larger than a packet, or secret."""

    key: str
    token: str | None
    caller: Caller
    cursor: ViewerCursor
    messages: list[tuple[Literal["text", "bytes"], int]]


def pack(state: HttpState | StreamState) -> tuple[dict[str, Any], bytes]:
    """The fields of a ``connection`` packet, and its blob."""
    if isinstance(state, HttpState):
        return {"kind": "http", "door": state.door, "hops": state.hops}, state.received
    bodies = [m if isinstance(m, bytes) else m.encode() for m in state.messages]
    details = _Details(
        key=state.key,
        token=state.token,
        caller=state.caller,
        cursor=state.cursor,
        messages=[
            ("bytes" if isinstance(message, bytes) else "text", len(body))
            for message, body in zip(state.messages, bodies, strict=True)
        ],
    )
    head = msgspec.json.encode(details)
    fields = {
        "kind": "stream",
        "door": state.door,
        "hops": state.hops,
        "session": state.session,
        "details": len(head),
        "received": len(state.received),
        "unsent": len(state.unsent),
    }
    return fields, b"".join((head, state.received, state.unsent, *bodies))


def unpack(fields: dict[str, Any], blob: bytes) -> HttpState | StreamState:
    """`pack` undone. Raises HandoverError for what `pack` does not make."""
    door = fields.get("door")
    if door not in get_args(Door):
        raise HandoverError(f"A connection came by no door that is known: {door!r}.")
    match fields.get("kind"):
        case "http":
            return HttpState(cast(Door, door), blob, _size(fields, "hops"))
        case "stream":
            return _stream(fields, cast(Door, door), blob)
        case other:
            raise HandoverError(f"A connection of a kind that is not known came: {other!r}.")


def _stream(fields: dict[str, Any], door: Door, blob: bytes) -> StreamState:
    session = fields.get("session")
    if not isinstance(session, str):
        raise HandoverError("A stream came without its session.")
    head = _size(fields, "details")
    try:
        details = msgspec.json.decode(blob[:head], type=_Details)
    except ValueError as error:  # msgspec.DecodeError and UnicodeDecodeError
        raise HandoverError(f"A stream's details cannot be read: {error}.") from error
    bodies = [size for _, size in details.messages]
    sizes = [head, _size(fields, "received"), _size(fields, "unsent"), *bodies]
    if min(sizes) < 0 or sum(sizes) != len(blob):
        raise HandoverError(f"A stream came with {len(blob)} bytes; its parts have {sum(sizes)}.")
    view = memoryview(blob)
    _, received, unsent, *parts = (
        bytes(view[start:end]) for start, end in pairwise(accumulate(sizes, initial=0))
    )
    try:
        messages = tuple(
            body if kind == "bytes" else body.decode()
            for (kind, _), body in zip(details.messages, parts, strict=True)
        )
    except UnicodeDecodeError as error:
        raise HandoverError("A stream came with a text that is not UTF-8.") from error
    return StreamState(
        door=door,
        session=session,
        key=details.key,
        caller=details.caller,
        token=details.token,
        cursor=details.cursor,
        received=received,
        unsent=unsent,
        messages=messages,
        hops=_size(fields, "hops"),
    )


def _size(fields: dict[str, Any], name: str) -> int:
    value = fields.get(name)
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise HandoverError(f"A connection came with {name}={value!r}, which is no number.")
    return value
