"""Fixtures of the keeper's tests: a bench with a real keeper, in each kind of isolation."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.keeper.bench import Bench, bench


@pytest.fixture
def keep() -> Iterator[Bench]:
    with bench() as made:
        yield made


@pytest.fixture(params=["namespaces", "none"])
def isolation(request: pytest.FixtureRequest) -> str:
    """The option that asks for it; with namespaces forbidden on this machine, that half fails."""
    return f"--isolation={request.param}"
