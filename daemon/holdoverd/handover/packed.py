"""A detached connection as a record, and the record as bytes (PROTOCOL.md). No I/O.

Nothing in it refers to the instance it comes from: whoever holds the record and the socket goes on
with the connection, be it a sibling or the very instance that detached it.
"""

import socket
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import accumulate, pairwise
from typing import Any, Literal, get_args

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


class _Cursor(msgspec.Struct):
    hello: bool
    live: bool
    seq: int
    threads: dict[str, int] | None
    resync: bool = False
    open: tuple[str, ...] = ()


class _Stream(msgspec.Struct):
    """What a stream's packet says beside sizes."""

    session: str
    key: str
    caller: Caller
    cursor: _Cursor
    messages: list[tuple[Literal["text", "bytes"], int]]


_MAX_FIELDS_BYTES = 32 * 1024
"""Of a packet, which has 64 KiB; more goes into the blob. Viewers with very many threads have it."""


def pack(state: HttpState | StreamState) -> tuple[dict[str, Any], bytes]:
    """The fields of a ``connection`` packet, and its blob."""
    if isinstance(state, HttpState):
        return {"kind": "http", "door": state.door, "hops": state.hops}, state.received
    token = (state.token or "").encode()
    bodies = [m if isinstance(m, bytes) else m.encode() for m in state.messages]
    cursor = state.cursor
    said = msgspec.json.encode(
        _Stream(
            session=state.session,
            key=state.key,
            caller=state.caller,
            cursor=_Cursor(
                hello=cursor.stage != "hello",
                live=cursor.stage == "live",
                seq=cursor.seq,
                threads=None if cursor.threads is None else dict(cursor.threads),
                resync=cursor.resync,
                open=cursor.open,
            ),
            messages=[
                ("bytes" if isinstance(message, bytes) else "text", len(body))
                for message, body in zip(state.messages, bodies, strict=True)
            ],
        )
    )
    fields: dict[str, Any] = {
        "kind": "stream",
        "door": state.door,
        "hops": state.hops,
        "token": None if state.token is None else len(token),
        "received": len(state.received),
        "unsent": len(state.unsent),
    }
    parts = [token, state.received, state.unsent, *bodies]
    if len(said) > _MAX_FIELDS_BYTES:
        fields["details"] = len(said)
        parts.append(said)
    else:
        fields |= msgspec.json.decode(said)
    return fields, b"".join(parts)


def unpack(fields: Mapping[str, Any], blob: bytes) -> HttpState | StreamState:
    """`pack` undone. Raises HandoverError for what no instance packs."""
    try:
        door = fields["door"]
        if door not in get_args(Door):
            raise ValueError(f"the door {door!r}")
        match fields["kind"]:
            case "http":
                return HttpState(door, blob, _size(fields, "hops"))
            case "stream":
                return _stream(fields, door, memoryview(blob))
            case other:
                raise ValueError(f"the kind {other!r}")
    # msgspec's errors are ValueErrors
    except (KeyError, TypeError, ValueError) as error:
        raise HandoverError(f"A connection was handed over in no known form: {error!r}.") from error


def _stream(fields: Mapping[str, Any], door: Door, blob: memoryview) -> StreamState:
    if "details" in fields:
        start = len(blob) - _size(fields, "details")
        if start < 0:
            raise ValueError("details longer than the blob")
        said = msgspec.json.decode(blob[start:], type=_Stream)
        blob = blob[:start]
    else:
        said = msgspec.convert(dict(fields), type=_Stream)
    sizes = [
        0 if fields["token"] is None else _size(fields, "token"),
        _size(fields, "received"),
        _size(fields, "unsent"),
        *(size for _, size in said.messages),
    ]
    if min(sizes) < 0 or sum(sizes) != len(blob):
        raise ValueError(f"{len(blob)} bytes, whose parts have {sum(sizes)}")
    token, received, unsent, *bodies = (
        bytes(blob[start:end]) for start, end in pairwise(accumulate(sizes, initial=0))
    )
    cursor = said.cursor
    return StreamState(
        door=door,
        session=said.session,
        key=said.key,
        caller=said.caller,
        token=None if fields["token"] is None else token.decode(),
        cursor=ViewerCursor(
            stage="live" if cursor.live else "catch_up" if cursor.hello else "hello",
            seq=cursor.seq,
            threads=cursor.threads,
            resync=cursor.resync,
            open=cursor.open,
        ),
        received=received,
        unsent=unsent,
        messages=tuple(
            body if kind == "bytes" else body.decode()
            for (kind, _), body in zip(said.messages, bodies, strict=True)
        ),
        hops=_size(fields, "hops"),
    )


def _size(fields: Mapping[str, Any], name: str) -> int:
    value = fields[name]
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise ValueError(f"{name}={value!r}")
    return value
