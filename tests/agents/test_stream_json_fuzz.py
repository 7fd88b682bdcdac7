"""Nothing an agent prints raises, and what is accepted is JSON by the strictest reader."""

import json
import random
from typing import NoReturn

from hypothesis import given, settings
from hypothesis import strategies as st

from holdoverd.agents.stream_json import Frame, LineSplitter, OversizeLine, classify

CORPUS = [
    rb'{"type":"assistant","message":{"id":"msg_1","content":[{"type":"text","text":"h\u00e9"}],'
    rb'"stop_reason":null},"parent_tool_use_id":null,"uuid":"u","session_id":"s"}',
    b'{"type":"user","message":{"role":"user","content":[{"type":"tool_result",'
    b'"tool_use_id":"t1","is_error":false}]},"tool_use_result":[1.5e3,true,null]}',
    b'{"type":"stream_event","event":{"type":"content_block_delta","index":0,'
    b'"delta":{"type":"text_delta","text":" \xe2\x82\xac \xf0\x9f\x98\x80"}}}',
    b'{"type":"control_request","request_id":"r","request":{"subtype":"can_use_tool",'
    b'"input":{"a":[{}]},"permission_suggestions":[]}}',
    b'{"type":"control_response","response":{"subtype":"success","request_id":"i",'
    b'"response":{"still_queued":["u2"]},"pending_permission_requests":[]}}',
    b'{"type":"result","total_cost_usd":0.1,"user_message_uuids":["p1"],"result_index":0}',
    b'{"type":"system","subtype":"task_updated","task_id":"a","patch":{"status":"x"}}',
    b'{"type":"holdover_end","nonce":"n","status":0,"signal":null,"oom":false,"at":1}',
    rb'{"type":"assistant","x":"\ud83d\ude00 \ud83d \\ud83d \" \\","y":-0.0}',
]
PIECES = [
    b'"', b"\\", b"{", b"}", b"[", b"]", b",", b":", b"null", b"NaN", b"1e999", b"\\u", b"\\ud800",
    b"\xff", b"\x00", b"\xe2\x80\xa8", b"0", b"-", b"9" * 40, b"true", b'"type"', b'"user"',
]  # fmt: skip


def refuse(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is not JSON")


def check(line: bytes) -> Frame:
    frame = classify(line)
    if frame.kind in {"noise", "invalid"} or frame.type is None:
        if frame.kind == "status":
            json.loads(frame.raw, parse_constant=refuse)
        return frame
    assert frame.raw.encode() == line
    value = json.loads(frame.raw, parse_constant=refuse)
    assert isinstance(value, dict)
    return frame


def test_a_hundred_thousand_damaged_lines() -> None:
    rng = random.Random(20_260_101)
    kinds: dict[str, int] = {}
    for _ in range(100_000):
        line = bytearray(rng.choice(CORPUS))
        for _ in range(rng.randint(1, 3)):
            at = rng.randrange(len(line) + 1)
            match rng.randrange(5):
                case 0:
                    line[at:at] = rng.choice(PIECES)
                case 1:
                    del line[at : at + rng.randint(1, 8)]
                case 2:
                    line[at : at + 1] = bytes([rng.randrange(256)])
                case 3:
                    line = line[:at]
                case _:
                    other = rng.choice(CORPUS)
                    line[at:] = other[rng.randrange(len(other)) :]
        kind = check(bytes(line)).kind
        kinds[kind] = kinds.get(kind, 0) + 1
    # The damage must leave enough whole, and break enough, for the test to mean something.
    assert kinds["invalid"] > 10_000
    assert sum(kinds.values()) - kinds["invalid"] - kinds.get("noise", 0) > 5_000


def test_random_bytes() -> None:
    rng = random.Random(7)
    splitter = LineSplitter(500)
    lines = 0
    for _ in range(2_000):
        for line in splitter.feed(rng.randbytes(rng.randrange(400))):
            lines += 1
            if isinstance(line, bytes):
                check(line)
                check(b"{" + line)
            else:
                assert isinstance(line, OversizeLine)
    assert lines > 500


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=[]), max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)  # fmt: skip
names = st.sampled_from(
    ["subtype", "uuid", "message", "event", "isReplay", "request_id", "request", "response",
     "status", "tasks", "patch", "total_cost_usd", "user_message_uuids", "nonce", "x"]
)  # fmt: skip
types = st.sampled_from(
    ["assistant", "user", "result", "system", "stream_event", "control_request",
     "control_response", "control_cancel_request", "holdover_end", "keep_alive", "other"]
)  # fmt: skip


@settings(max_examples=400)
@given(types, st.dictionaries(names, json_values, max_size=6), st.booleans())
def test_every_json_object_is_accepted_as_what_it_says_it_is(
    kind: str, fields: dict[str, object], escape: bool
) -> None:
    """Lone surrogates included, which Python writes and browsers read as escapes."""
    text = json.dumps({"type": kind, **fields}, ensure_ascii=True)
    if not escape:
        text = text if "\\ud" in text else json.dumps({"type": kind, **fields}, ensure_ascii=False)
    frame = check(text.encode())
    assert frame.kind not in {"invalid", "noise"}
    assert frame.type == kind


@given(st.binary(max_size=60))
def test_any_bytes_are_classified(line: bytes) -> None:
    check(line)
    check(b'{"type":"user","x":' + line + b"}")
