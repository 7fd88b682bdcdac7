"""Two hundred workers killed while jobs run, on each database: none lost, each published once."""

from pathlib import Path

import pytest

from tests.jobs.test_worker import kill_workers
from tests.jobs.yard import open_yard

pytestmark = pytest.mark.soak


def test_two_hundred_killed_workers_lose_nothing_and_publish_once(
    tmp_path: Path, migrated: str
) -> None:
    with open_yard(tmp_path, migrated) as yard:
        kill_workers(yard, kills=200)
