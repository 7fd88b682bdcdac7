"""One SeaweedFS for all of these tests, and a bucket of its own for each that asks."""

import secrets
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from holdoverd.storage.client import Store
from tests.files.house import House, open_house
from tests.files.weed import KEYS, running_weed, storage_settings
from tests.needs import NO_WEED


@pytest.fixture(scope="session")
def weed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The endpoint of a running server."""
    if NO_WEED:
        pytest.skip(NO_WEED)
    with running_weed(tmp_path_factory.mktemp("weed")) as endpoint:
        yield endpoint


@pytest.fixture
def bucket() -> str:
    return f"t-{secrets.token_hex(8)}"


@pytest.fixture
async def store(weed: str, bucket: str) -> Store:
    found = Store(storage_settings(weed, bucket=bucket), KEYS)
    await found.ensure_bucket()
    return found


@pytest.fixture
async def house(weed: str, bucket: str, tmp_path: Path) -> AsyncIterator[House]:
    async with open_house(weed, tmp_path, bucket=bucket) as found:
        yield found
