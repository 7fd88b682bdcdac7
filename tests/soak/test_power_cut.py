"""Nothing acknowledged is lost when the power goes, at any of many moments.

HOLDOVER_SOAK_POINTS sets how many (200).
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.needs import needs_root
from tests.soak.catalogue_workload import CatalogueWorkload
from tests.soak.daemon_workload import DaemonWorkload
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


def test_a_catalogue_that_does_not_sync_is_found_out() -> None:
    """The control: without it, a harness that loses nothing would look like a catalogue that does."""
    with pytest.raises(AssertionError, match=r"acknowledged|is gone|does not open|damaged"):
        cut_power(CatalogueWorkload(careless=True), points=20)
