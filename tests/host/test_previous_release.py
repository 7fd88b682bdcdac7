"""From the previous release to this one, on one catalogue, with its keepers and agents.

`tests/previous-release` names its commit and version. Release 0.1.0 knows of no handover: it is
stopped once this one accepts, its agents run on, and its viewers reconnect.
"""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.host.machine import SOURCE, Machine
from tests.host.test_deploy import holdover, settled
from tests.host.test_operator import agents

pytestmark = pytest.mark.host

COMMIT, VERSION = Path(__file__).parents[1].joinpath("previous-release").read_text().split()


@pytest.fixture(scope="module")
def previous_wheelhouse() -> Path:
    """What the previous release is built from: its own lock files say. Kept in `.build`."""
    folder = SOURCE / ".build" / f"previous-{COMMIT[:12]}"
    tree = folder / "tree"
    if not (tree / "packaging").is_dir():
        tree.mkdir(parents=True, exist_ok=True)
        packed = subprocess.run(
            ["git", "-C", str(SOURCE), "archive", COMMIT], capture_output=True, check=True
        ).stdout
        subprocess.run(["tar", "-x", "-C", tree], input=packed, check=True)
    subprocess.run([tree / "packaging/wheelhouse", folder / "wheelhouse"], check=True, timeout=900)
    return folder / "wheelhouse"


def test_this_release_takes_over_from_the_previous_one(
    clean_host: Machine, previous_wheelhouse: Path
) -> None:
    machine = clean_host
    machine.put_commit(COMMIT, "/usr/src/previous")
    shutil.copytree(previous_wheelhouse, machine.path("/usr/src/previous-wheelhouse"))
    machine.run(
        ["packaging/install", "--wheelhouse", "/usr/src/previous-wheelhouse"],
        cwd="/usr/src/previous",
        timeout_s=300,
    )
    assert machine.run(["ls", "/opt/holdover/releases"]).stdout == f"{VERSION}\n"
    session = holdover(machine, "session", "new", "--agent", "demo", "stream 3000 rate 5").split()[
        0
    ]
    before = agents(machine)
    assert len(before) == 1

    machine.install()
    assert settled(machine) == 2
    assert machine.show("holdoverd@1.service", "Result") == "success"
    assert agents(machine) == before, "its keeper is driven on"
    view = json.loads(holdover(machine, "session", "show", "--json", session))
    assert (view["state"], view["generation"]) == ("working", 2)
    said = view["last_seq"]
    holdover(machine, "session", "interrupt", session)
    holdover(machine, "session", "send", session, "and now?", "--wait")
    log = holdover(machine, "session", "log", "--json", session).splitlines()
    assert [json.loads(line)["seq"] for line in log] == list(range(1, len(log) + 1))
    assert len(log) > said

    # There is no gentle way back to a release that knows of no deploys: it is said so.
    refused = machine.run(["holdover", "deploy", VERSION], check=False)
    assert refused.returncode == 1
    assert "from before deploys" in refused.stderr
    assert settled(machine) == 2
    holdover(machine, "session", "end", session)
