"""The keeper protocol, as the daemon imports it: everything by one name. PROTOCOL.md is its text.

The keeper itself imports `keeper_side` and `launch` alone.
"""

from holdoverd.keeper.keeper_side import (
    MAX_LINE_BYTES,
    MAX_REPLY_BYTES,
    SIGNALS,
    VERSION,
    KeeperSide,
)
from holdoverd.keeper.launch import launch_request, parse_launch_answer
from holdoverd.keeper.owner_side import (
    Ack,
    Error,
    Event,
    Exited,
    Full,
    OwnerSide,
    Pong,
    Replaced,
    Room,
    Stale,
    Welcome,
    end,
    hello,
    line,
    ping,
    signal,
)
from holdoverd.keeper.spool import EndRecord, parse_end_record

__all__ = [
    "MAX_LINE_BYTES",
    "MAX_REPLY_BYTES",
    "SIGNALS",
    "VERSION",
    "Ack",
    "EndRecord",
    "Error",
    "Event",
    "Exited",
    "Full",
    "KeeperSide",
    "OwnerSide",
    "Pong",
    "Replaced",
    "Room",
    "Stale",
    "Welcome",
    "end",
    "hello",
    "launch_request",
    "line",
    "parse_end_record",
    "parse_launch_answer",
    "ping",
    "signal",
]
