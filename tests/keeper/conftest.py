"""Fixtures of the keeper's tests: a bench with a real keeper, in each kind of isolation."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.keeper.bench import Bench, bench, needs_namespaces


@pytest.fixture
def keep() -> Iterator[Bench]:
    with bench() as made:
        yield made


@pytest.fixture(params=[pytest.param("namespaces", marks=needs_namespaces), "none"])
def isolation(request: pytest.FixtureRequest) -> str:
    """The keeper's option that asks for it."""
    return f"--isolation={request.param}"
