"""A catalogue per test, in a real database; and, for the plain functions, one connection to it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from sqlalchemy import Connection

from holdoverd.catalogue.dialect import dialect_for
from holdoverd.catalogue.store import Catalogue


@pytest.fixture
def catalogue(migrated: str) -> Iterator[Catalogue]:
    catalogue = Catalogue.open(migrated)
    yield catalogue
    catalogue.close()


@pytest.fixture
def cx(migrated: str) -> Iterator[Connection]:
    """A connection in one write transaction, which is dropped at the end."""
    dialect = dialect_for(migrated)
    engine = dialect.writer_engine()
    with engine.connect() as connection:
        connection.begin()
        yield connection
        connection.rollback()
    engine.dispose()
    dialect.close()
