"""A catalogue per test, on a real file; and, for the plain functions, one connection to it."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import Connection

from holdoverd.catalogue.dialect import dialect_for
from holdoverd.catalogue.store import Catalogue


@pytest.fixture
def url(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path}/catalogue.db"


@pytest.fixture(scope="session")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A catalogue freshly migrated; a copy costs a thousandth of the migrations."""
    path = tmp_path_factory.mktemp("template") / "catalogue.db"
    Catalogue.open(f"sqlite:///{path}").close()
    return path


@pytest.fixture
def catalogue(url: str, tmp_path: Path, template: Path) -> Iterator[Catalogue]:
    shutil.copy(template, tmp_path)
    catalogue = Catalogue.open(url)
    yield catalogue
    catalogue.close()


@pytest.fixture
def cx(url: str, tmp_path: Path, template: Path) -> Iterator[Connection]:
    """A connection in one write transaction, which is dropped at the end."""
    shutil.copy(template, tmp_path)
    dialect = dialect_for(url)
    engine = dialect.writer_engine()
    with engine.connect() as connection:
        connection.begin()
        yield connection
        connection.rollback()
    engine.dispose()
    dialect.close()
