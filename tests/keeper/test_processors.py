"""Which processors are left to an agent."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor

import pytest

from holdoverd.keeper.processors import VARIABLE, beyond, keep_off


@pytest.mark.parametrize(
    ("spare", "processors", "left"),
    [
        (1, {0}, {0}),
        (1, {0, 1}, {1}),
        (1, {3, 1, 2}, {2, 3}),
        (2, {0, 1, 2, 3}, {2, 3}),
        (9, {4, 5}, {5}),
    ],
)
def test_the_first_are_spared_and_one_is_always_left(
    spare: int, processors: set[int], left: set[int]
) -> None:
    assert beyond(spare, processors) == left


@pytest.mark.parametrize("said", [None, "0", "-1", "", "all", "1"])
def test_only_a_number_of_them_has_it_keep_off(said: str | None) -> None:
    def kept_to() -> set[int]:  # in a thread of its own, which ends with what it asked for
        keep_off({} if said is None else {VARIABLE: said})
        return os.sched_getaffinity(0)

    processors = os.sched_getaffinity(0)
    with ThreadPoolExecutor(1) as apart:
        got = apart.submit(kept_to).result()
    assert got == (beyond(1, processors) if said == "1" else processors)
