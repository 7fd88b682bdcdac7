"""What processors say: the log's two ends, progress, what an exit status means."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from holdoverd.jobs.output import (
    HEAD_BYTES,
    TAIL_BYTES,
    Done,
    Failed,
    Later,
    Log,
    Progress,
    as_text,
    judge,
)


@given(st.lists(st.integers(0, 40_000), max_size=12))
def test_a_log_keeps_its_two_ends_however_it_comes(sizes: list[int]) -> None:
    whole = bytes(32 + n % 90 for n in range(sum(sizes)))
    log, at = Log(), 0
    for size in sizes:
        log.add(whole[at : at + size])
        at += size
    text = log.text()
    assert log.size == len(whole)
    if len(whole) <= HEAD_BYTES + TAIL_BYTES:
        assert text == whole.decode()
    else:
        missing = len(whole) - HEAD_BYTES - TAIL_BYTES
        assert text.startswith(whole[:HEAD_BYTES].decode())
        assert text.endswith(whole[-TAIL_BYTES:].decode())
        assert f"[… {missing} bytes left out …]" in text
    assert len(log._tail) <= 2 * TAIL_BYTES + 40_000


def test_a_log_is_text_whatever_was_said() -> None:
    log = Log()
    log.add(b"a\0\xff\n  last words \n\n")
    assert log.text() == "a��\n  last words \n\n"
    assert log.last_line() == "last words"
    assert Log().last_line() == ""


@given(st.binary(max_size=300), st.integers(1, 50))
def test_progress_survives_any_bytes(noise: bytes, step: int) -> None:
    progress = Progress()
    for at in range(0, len(noise), step):
        progress.feed(noise[at : at + step])
    progress.feed(b'\n{"bytes": 5, "total": 9}\n')
    assert (progress.done, progress.total) == (5, 9)


@pytest.mark.parametrize(
    "line",
    [b"[]", b'{"bytes": true}', b'{"bytes": -1}', b'{"retry_after_s": NaN}', b"x" * 9999, b"\xff"],
)
def test_progress_that_makes_no_sense_is_left_out(line: bytes) -> None:
    progress = Progress()
    progress.feed(line + b"\n")
    assert (progress.done, progress.total, progress.retry_after_s) == (None, None, None)


def test_what_an_end_means() -> None:
    assert judge(0, None, "chatter", None) == Done()
    assert judge(1, None, "no luck", None) == Failed(
        "The processor exited with status 1: no luck", final=False
    )
    assert judge(65, None, "no page", 5) == Failed(
        "The processor exited with status 65: no page", final=True
    )
    later = judge(75, None, "busy", None)
    assert isinstance(later, Later)
    assert later.after_s == 30
    assert judge(75, None, "busy", 5.0) == Later("The processor asked to be run later: busy", 5.0)
    killed = judge(None, 9, "", None)
    assert isinstance(killed, Failed)
    assert "when memory runs out; it said nothing" in killed.error


def test_a_result_is_text_or_a_file() -> None:
    assert as_text("ä".encode()) == "ä"
    assert as_text(b"a\0") is None
    assert as_text(b"\xff") is None
