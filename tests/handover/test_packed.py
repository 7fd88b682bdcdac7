"""A detached connection's record, through the packet and the blob and back."""

import json
from dataclasses import replace

import pytest

from holdoverd.callers import Caller
from holdoverd.errors import HandoverError
from holdoverd.handover.packed import HttpState, StreamState, pack, unpack
from holdoverd.handover.wire import MAX_BLOB_BYTES, encode
from holdoverd.sessions.viewer import MAX_SUBSCRIPTIONS, ViewerCursor

STREAM = StreamState(
    door="public",
    session="s_1",
    key="dGhlIHNhbXBsZSBub25jZQ==",
    caller=Caller("alice", "alice", frozenset({"read", "sessions"}), "t_1", admin=False),
    token="hold_secret",
    cursor=ViewerCursor("live", 7, None, False, ("main",)),
    received=b"\x01\x85\0",
    unsent=b"\xff" * 10,
    messages=("", "é\0", b"\xff\xfe"),
    hops=2,
)


@pytest.mark.parametrize(
    "state",
    [
        HttpState("admin"),
        HttpState("public", b"GET / HT\0\xff", 3),
        STREAM,
        replace(STREAM, door="admin", token=None, received=b"", unsent=b"", messages=(), hops=0),
        replace(STREAM, caller=Caller("default", "a", frozenset({"admin"}), None, admin=True)),
        replace(STREAM, cursor=ViewerCursor("hello", 0, {"main": 0, "T\u2028": 12}, True)),
    ],
)
def test_what_is_packed_is_unpacked(state: HttpState | StreamState) -> None:
    fields, blob = pack(state)
    assert unpack(json.loads(json.dumps(fields)), blob) == state


def test_a_stream_with_as_much_as_there_can_be_fits_into_its_packet_and_blob() -> None:
    """256 threads with long names; a message half received, one half sent, three whole ones on
    their way through the library, and a queue full of them."""
    mib = 1024 * 1024
    threads = {f"{n:03}" + "\0" * 197: n for n in range(MAX_SUBSCRIPTIONS)}
    large = "x" * 16 * mib
    state = replace(
        STREAM,
        cursor=ViewerCursor("live", 0, threads, False, tuple(threads)),
        received=b"x" * 17 * mib,
        unsent=b"x" * 33 * mib,
        messages=(large, *["x" * (mib // 4)] * 63, large, large, large, *["x"] * 700),
    )
    fields, blob = pack(state)
    encode({"t": "connection", "id": 1 << 40, "index": 9999, **fields, "blob": len(blob)})
    assert len(blob) <= MAX_BLOB_BYTES
    assert unpack(fields, blob) == state


def test_secrets_are_neither_in_the_packet_nor_in_what_is_logged() -> None:
    fields, _ = pack(STREAM)
    assert "hold_secret" not in json.dumps(fields)
    assert "hold_secret" not in repr(STREAM)


@pytest.mark.parametrize(
    "change",
    [
        {"door": "back"},
        {"door": None},
        {"kind": "raw"},
        {"kind": None},
        {"session": None},
        {"hops": "1"},
        {"hops": True},
        {"details": 5},
        {"details": -1},
        {"received": 10**9},
        {"unsent": 9},
        {"received": 1.0},
    ],
)
def test_what_no_instance_packs_is_refused(change: dict[str, object]) -> None:
    fields, blob = pack(STREAM)
    with pytest.raises(HandoverError):
        unpack({**fields, **change}, blob)


@pytest.mark.parametrize("cut", [0, 1, 50, -1])
def test_a_blob_that_is_cut_or_longer_is_refused(cut: int) -> None:
    fields, blob = pack(STREAM)
    with pytest.raises(HandoverError):
        unpack(fields, blob[:cut])
    with pytest.raises(HandoverError):
        unpack(fields, blob + b"x")
