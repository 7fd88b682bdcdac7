"""Doors in memory. Where the catalogue is asked (tokens), the clock is real: its threads are not
seen by trio's autojump clock, which would jump over every deadline meanwhile. Tests of deadlines
use the admin door, which asks the catalogue nothing.
"""

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from holdoverd.catalogue.store import Catalogue
from tests.http.kit import Doors, open_catalogue, open_doors


@pytest.fixture(scope="module")
def catalogue(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Catalogue]:
    folder: Path = tmp_path_factory.mktemp("catalogue")
    catalogue = open_catalogue(folder)
    yield catalogue
    catalogue.close()


@pytest.fixture
async def doors(catalogue: Catalogue) -> AsyncIterator[Doors]:
    async with open_doors(catalogue, public_url="https://holdover.example") as doors:
        yield doors
