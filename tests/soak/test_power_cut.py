"""Nothing acknowledged is lost when the power goes, at any of many moments.

HOLDOVER_SOAK_POINTS sets how many (200).
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.needs import needs_root, needs_weed
from tests.soak.catalogue_workload import CatalogueWorkload
from tests.soak.daemon_workload import DaemonWorkload
from tests.soak.files_workload import FilesWorkload
from tests.soak.power import Report, cut_power

pytestmark = [pytest.mark.soak, needs_root]

POINTS = int(os.environ.get("HOLDOVER_SOAK_POINTS", "200"))


RESULTS = Path(__file__).parent


def told(name: str, report: Report) -> None:
    """Keep the figures, in power-cuts-NAME.md beside this file."""
    figures = ", ".join(f"{count:,} {what}" for what, count in sorted(report.figures.items()))
    text = (
        f"# Power cuts: {name}\n\nWritten by `make soak` (tests/soak/test_power_cut.py).\n\n"
        f"{report.points} power cuts in {report.rounds} rounds of {report.seconds:.0f} s in all. "
        f"{report.acknowledged:,} acknowledgements; nothing acknowledged was lost, nothing stood "
        f"twice, and no log had a gap. Looked at after all cuts together: {figures}.\n"
    )
    print(text)
    (RESULTS / f"power-cuts-{name}.md").write_text(text)


def test_what_the_catalogue_acknowledged_survives_every_power_cut() -> None:
    report = cut_power(CatalogueWorkload(), points=POINTS)
    told("catalogue", report)
    assert report.points == POINTS
    # The cuts fell where they hurt: unsynced spools really lost bytes that messages had come from.
    assert report.figures["messages"] > POINTS
    assert report.figures["spools_shorter_than_offset"] > 0


def test_what_a_whole_daemon_showed_and_accepted_survives_every_power_cut() -> None:
    report = cut_power(DaemonWorkload(), points=POINTS)
    told("daemon", report)
    assert report.points == POINTS
    assert report.figures["messages"] > POINTS
    assert report.figures["resumed"] > POINTS // 2


# Each look at what is left starts a SeaweedFS.
FILE_POINTS = max(10, POINTS // 10)


@needs_weed
def test_a_file_that_was_ready_survives_every_power_cut() -> None:
    report = cut_power(FilesWorkload(), points=FILE_POINTS, points_per_round=10)
    told("files", report)
    assert report.points == FILE_POINTS
    assert report.figures["ready"] > FILE_POINTS


@needs_weed
def test_files_that_do_not_wait_for_the_disk_are_found_out() -> None:
    with pytest.raises(AssertionError, match=r"acknowledged|is gone"):
        cut_power(FilesWorkload(careless=True), points=20)


def test_a_catalogue_that_does_not_sync_is_found_out() -> None:
    """The control: without it, a harness that loses nothing would look like a catalogue that does."""
    with pytest.raises(AssertionError, match=r"acknowledged|is gone|does not open|damaged"):
        cut_power(CatalogueWorkload(careless=True), points=20)
