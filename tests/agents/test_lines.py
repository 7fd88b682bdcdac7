"""Cutting stdout into lines: every cut of the stream gives the same lines."""

from collections.abc import Iterable
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from holdoverd.agents.lines import PREVIEW_BYTES, LineSplitter, OversizeLine
from holdoverd.agents.stream_json import classify


def split(chunks: Iterable[bytes], max_line: int = 1000) -> list[bytes | OversizeLine]:
    splitter = LineSplitter(max_line)
    return [line for chunk in chunks for line in splitter.feed(chunk)]


# T1, T3: two-, three- and four-byte characters, U+2028 unescaped, a carriage return.
STREAM = (
    '{"type":"assistant","text":"é € 😀 \u2028 \u2029 \x85 end"}\n'
    '{"type":"user"}\r\n'
    "\n"
    '{"type":"result"}\n'
).encode()
LINES = STREAM.split(b"\n")[:-1]


@pytest.mark.parametrize("at", range(len(STREAM) + 1))
def test_a_line_cut_at_every_byte_comes_out_whole(at: int) -> None:
    assert split([STREAM[:at], STREAM[at:]]) == LINES
    for line in LINES:
        assert classify(line).kind not in {"invalid", "noise"}


def test_bytes_one_by_one_come_out_as_lines() -> None:
    assert split(STREAM[i : i + 1] for i in range(len(STREAM))) == LINES


@given(st.lists(st.binary(max_size=40), max_size=20), st.data())
def test_any_cuts_give_the_lines_that_newlines_alone_give(
    pieces: list[bytes], data: st.DataObject
) -> None:
    stream = b"\n".join(pieces)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=8)))
    edges = [0, *cuts, len(stream)]
    splitter = LineSplitter()
    lines = [line for start, end in pairwise(edges) for line in splitter.feed(stream[start:end])]
    assert lines == stream.split(b"\n")[:-1]
    assert splitter.pending == len(stream.split(b"\n")[-1])


@given(st.lists(st.integers(0, 30), max_size=12), st.integers(1, 12))
def test_offsets_add_up_whatever_is_too_long(sizes: list[int], step: int) -> None:
    stream = b"".join(b"x" * size + b"\n" for size in sizes)
    splitter = LineSplitter(10)
    found = []
    for start in range(0, len(stream), step):
        found += splitter.feed(stream[start : start + step])
    assert [line.size if isinstance(line, OversizeLine) else len(line) for line in found] == sizes
    assert [isinstance(line, OversizeLine) for line in found] == [size > 10 for size in sizes]


def test_a_line_of_exactly_the_limit_is_a_line() -> None:
    assert split([b"x" * 10 + b"\n"], 10) == [b"x" * 10]
    assert split([b"x" * 4, b"x" * 6, b"\n"], 10) == [b"x" * 10]


def test_one_byte_more_is_skipped_and_the_next_line_is_whole() -> None:
    line = OversizeLine(11, b"x" * 11)
    assert split([b"x" * 11 + b"\nnext\n"], 10) == [line, b"next"]
    assert split([b"x" * 4, b"x" * 7, b"\nne", b"xt\n"], 10) == [line, b"next"]


def test_an_over_long_line_is_not_kept_in_memory() -> None:
    splitter = LineSplitter(10_000)
    for _ in range(1000):
        assert splitter.feed(b"y" * 5000) == []
    assert sum(map(len, splitter._parts)) == PREVIEW_BYTES
    assert splitter.pending == 5_000_000
    assert splitter.feed(b"\n") == [OversizeLine(5_000_000, b"y" * PREVIEW_BYTES)]
    assert splitter.pending == 0


def test_a_last_line_without_newline_is_told_and_can_be_discarded() -> None:
    """T5: what an agent's end cut off is no line."""
    splitter = LineSplitter()
    assert splitter.feed(b'{"type":"user"}\n{"type":"ass') == [b'{"type":"user"}']
    assert splitter.pending == 12
    assert splitter.discard() == 12
    assert splitter.feed(b'{"type":"result"}\n') == [b'{"type":"result"}']


def test_a_line_of_40_mib_comes_out_whole() -> None:
    """T2: in pieces of a pipe's size; its text is untouched and it is classified."""
    line = b'{"type":"user","message":{"content":"' + b"z" * (40 * 1024 * 1024) + b'"}}'
    stream = line + b'\n{"type":"result"}\n'
    splitter = LineSplitter()
    found: list[bytes | OversizeLine] = []
    for start in range(0, len(stream), 262_144):
        found += splitter.feed(stream[start : start + 262_144])
    assert found == [line, b'{"type":"result"}']
    frame = classify(line)
    assert frame.kind == "user"
    assert len(frame.raw) == len(line)
