"""Reading a spool ahead: the same lines, once and in order, however they are read."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import trio
import trio.testing

from holdoverd.agents.stream_json import OversizeLine
from holdoverd.catalogue.records import LaunchRow
from holdoverd.sessions import spool as spool_module
from holdoverd.sessions.spool import Spool, SpoolReader, Wake


@pytest.fixture(autouse=True)
def small_reads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spool_module, "READ_BYTES", 100)
    monkeypatch.setattr(spool_module, "AHEAD_BYTES", 300)
    monkeypatch.setattr(Spool.read, "__defaults__", (100,))


@pytest.fixture
def spool(tmp_path: Path) -> Iterator[Spool]:
    opened = Spool(tmp_path / "spool")
    yield opened
    opened.close()


def reader_of(spool: Spool, *lines: bytes) -> SpoolReader:
    with spool.path.open("ab") as file:
        file.write(b"".join(line + b"\n" for line in lines))
    launch = LaunchRow("l", "s", "nonce", 1, "live", 0, 0, 0, 0, "boot")
    return SpoolReader(launch, spool)


def numbered(count: int) -> list[bytes]:
    return [json.dumps({"type": "system", "subtype": "x", "n": n}).encode() for n in range(count)]


@pytest.mark.parametrize("ahead", range(6))
def test_lines_come_once_and_in_order_however_many_reads_were_ahead(
    spool: Spool, ahead: int
) -> None:
    lines = numbered(60)
    reader = reader_of(spool, *lines)
    came: list[str] = []
    position = 0
    while (frames := reader.read_frames()) is not None:
        for size, frame in frames:
            assert not isinstance(frame, OversizeLine)
            came.append(frame.raw)
            position += size + 1
        for _ in range(ahead):
            reader.read_ahead()
    assert came == [line.decode() for line in lines]
    assert position == spool.size()


def test_no_more_is_read_ahead_than_a_commit_may_hold(spool: Spool) -> None:
    reader = reader_of(spool, *numbered(100))
    assert reader.read_frames()
    reads = 0
    while reader.read_ahead():
        reads += 1
    assert reads == 3
    assert reader.position == 400


def test_nothing_is_read_ahead_at_the_end_of_the_file(spool: Spool) -> None:
    reader = reader_of(spool, b'{"type":"x"}')
    assert len(reader.read_frames() or ()) == 1
    assert not reader.read_ahead()
    assert reader.read_frames() is None


def test_a_line_too_long_to_be_kept_is_not_read_ahead(
    spool: Spool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is given back to the disk there would lie behind lines that are not stored yet."""
    monkeypatch.setattr(spool_module, "MAX_LINE_BYTES", 150)
    reader = reader_of(spool, *numbered(2), b"x" * 1000, *numbered(1))
    assert reader.read_frames()
    while reader.read_ahead():
        pass
    assert reader.overflowing
    assert reader.position <= 300


def test_reading_ahead_goes_on_behind_a_line_of_many_reads(spool: Spool) -> None:
    reader = reader_of(spool, b"x" * 2000, *numbered(60))
    while not reader.read_frames():
        while reader.read_ahead():
            pass
    assert reader.read_ahead()


async def test_a_bell_remembers_one_ring_and_wakes_who_waits() -> None:
    bell = Wake()
    bell.ring()
    bell.ring()
    await bell.wait_rung()
    with trio.move_on_after(0) as scope:
        await bell.wait_rung()
    assert scope.cancelled_caught, "both rings were one"
    async with trio.open_nursery() as nursery:
        nursery.start_soon(bell.wait_rung)
        await trio.testing.wait_all_tasks_blocked()
        bell.ring()
        bell.ring()
    with trio.move_on_after(0) as scope:
        await bell.wait_rung()
    assert scope.cancelled_caught, "who waited has heard both"
