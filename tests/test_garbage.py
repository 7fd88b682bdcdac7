"""When memory is looked through for garbage; trio's clock is a mock."""

import gc
from collections.abc import Iterator

import pytest
import trio
from trio.testing import MockClock

from holdoverd import garbage
from holdoverd.garbage import LONGEST_S, due

MIB = 1024 * 1024


@pytest.fixture
def thresholds() -> Iterator[None]:
    before = gc.get_threshold()
    yield
    gc.set_threshold(*before)


def test_it_is_due_when_memory_has_doubled_or_after_a_while() -> None:
    assert not due(100 * MIB, 100 * MIB, 0)
    assert not due(200 * MIB, 100 * MIB, LONGEST_S - 1)
    assert due(200 * MIB + 1, 100 * MIB, 0)
    assert due(10 * MIB, 100 * MIB, LONGEST_S)


async def test_python_looks_through_the_young_alone_and_the_rest_is_looked_at_when_due(
    thresholds: None, autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    young, middle, _ = gc.get_threshold()
    memory = 100 * MIB
    collected: list[float] = []

    def collect() -> int:
        nonlocal memory
        memory = 150 * MIB
        collected.append(trio.current_time() - began)
        return 0

    monkeypatch.setattr(garbage, "memory_bytes", lambda pid: memory)
    monkeypatch.setattr(gc, "collect", collect)
    began = trio.current_time()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(garbage.run)
        await trio.sleep(9.5)
        assert gc.get_threshold()[:2] == (young, middle)
        assert gc.get_threshold()[2] > 10**9
        assert collected == []
        memory = 201 * MIB
        await trio.sleep(10)
        assert collected == [10.0], "once: what is left is the new measure"
        await trio.sleep(LONGEST_S)
        assert collected == [10.0, 10.0 + LONGEST_S]
        nursery.cancel_scope.cancel()
