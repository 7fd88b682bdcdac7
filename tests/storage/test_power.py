"""A file that was called ready is there after a power cut; many cuts, and the control, are in tests/soak."""

import pytest

from tests.needs import needs_loop, needs_weed
from tests.soak.files_workload import FilesWorkload
from tests.soak.power import cut_power

pytestmark = [pytest.mark.slow, needs_loop, needs_weed]


def test_a_file_that_was_ready_survives_a_power_cut() -> None:
    report = cut_power(FilesWorkload(), points=2)
    assert report.figures["ready"] > 0
