"""A connection as a plain record: what another process needs to go on with its socket.

No I/O. `pack` and `unpack` are the `connection` packet of PROTOCOL.md and its blob.
"""

import socket
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from holdoverd.callers import Caller
from holdoverd.errors import HandoverError

Door = Literal["public", "admin"]

MAX_MESSAGES = 100_000
"""Whole messages received and not answered; more do not fit in what is read at once."""


@dataclass(frozen=True, slots=True)
class HttpState:
    """A connection without a request that is being answered.

    `received`: all bytes since the last request's end, so half a head, a whole upgrade that another
    instance has to answer, or nothing. `hops`: how often that upgrade has been passed on.
    """

    door: Door
    received: bytes = b""
    hops: int = 0


@dataclass(frozen=True, slots=True)
class StreamState:
    """A viewer's WebSocket in the middle.

    `key` is its Sec-WebSocket-Key, `cursor` what its viewer has been given (`Viewer.cursor`).
    `received`: bytes since the last message boundary; `unsent`: bytes that are said and not sent;
    `messages`: received whole and not yet answered. `hops`: how many instances have had it since
    the last that could go on with it.
    """

    door: Door
    session: str
    key: str
    caller: Caller
    cursor: Mapping[str, Any]
    token: str | None = field(default=None, repr=False)
    received: bytes = b""
    unsent: bytes = b""
    messages: Sequence[str | bytes] = ()
    hops: int = 0


@dataclass(slots=True)
class Detached:
    """A connection that nobody serves at the moment; whoever holds it attaches or closes it."""

    state: HttpState | StreamState
    socket: socket.socket

    def close(self) -> None:
        self.socket.close()


def pack(state: HttpState | StreamState) -> tuple[dict[str, Any], bytes]:
    """(the packet's fields, the blob)."""
    if isinstance(state, HttpState):
        return {"kind": "http", "door": state.door, "hops": state.hops}, state.received
    token = (state.token or "").encode()
    bodies = [m.encode() if isinstance(m, str) else m for m in state.messages]
    caller = state.caller
    fields = {
        "kind": "stream",
        "door": state.door,
        "hops": state.hops,
        "session": state.session,
        "key": state.key,
        "cursor": dict(state.cursor),
        "caller": {
            "owner": caller.owner,
            "account": caller.account,
            "scopes": sorted(caller.scopes),
            "token_id": caller.token_id,
            "admin": caller.admin,
        },
        "token": None if state.token is None else len(token),
        "received": len(state.received),
        "unsent": len(state.unsent),
        "messages": [
            ["text" if isinstance(m, str) else "bytes", len(body)]
            for m, body in zip(state.messages, bodies, strict=True)
        ],
    }
    return fields, b"".join((token, state.received, state.unsent, *bodies))


def unpack(fields: Mapping[str, Any], blob: bytes) -> HttpState | StreamState:
    """Raises HandoverError for what no instance packs."""
    try:
        door = fields["door"]
        if door not in ("public", "admin"):
            raise ValueError(door)
        if fields["kind"] == "http":
            return HttpState(door, blob, int(fields["hops"]))
        if fields["kind"] != "stream":
            raise ValueError(fields["kind"])
        who = fields["caller"]
        cut = _Cutter(blob)
        token_size = fields["token"]
        token = None if token_size is None else cut.take(token_size).decode()
        received, unsent = cut.take(fields["received"]), cut.take(fields["unsent"])
        messages: list[str | bytes] = []
        for kind, size in fields["messages"]:
            body = cut.take(size)
            messages.append(body.decode() if kind == "text" else body)
        if cut.left:
            raise ValueError("bytes left over")
        return StreamState(
            door=door,
            session=str(fields["session"]),
            key=str(fields["key"]),
            caller=Caller(
                str(who["owner"]),
                str(who["account"]),
                frozenset(map(str, who["scopes"])),
                who["token_id"],
                bool(who["admin"]),
            ),
            cursor=dict(fields["cursor"]),
            token=token,
            received=received,
            unsent=unsent,
            messages=tuple(messages),
            hops=int(fields["hops"]),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise HandoverError(f"A connection was handed over in no known form: {error!r}.") from error


class _Cutter:
    def __init__(self, blob: bytes) -> None:
        self._view = memoryview(blob)

    @property
    def left(self) -> int:
        return len(self._view)

    def take(self, size: int) -> bytes:
        if not 0 <= size <= len(self._view):
            raise ValueError(f"{size} bytes of {len(self._view)}")
        data = bytes(self._view[:size])
        self._view = self._view[size:]
        return data
