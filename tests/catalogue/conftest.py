"""A catalogue per test, in a real database; and, for the plain functions, one connection to it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from holdoverd.catalogue.store import Catalogue


@pytest.fixture
def catalogue(migrated: str) -> Iterator[Catalogue]:
    catalogue = Catalogue.open(migrated)
    yield catalogue
    catalogue.close()
