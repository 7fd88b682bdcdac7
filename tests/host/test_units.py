"""The units as text: systemd accepts them, and they agree with the settings beside them."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from holdoverd import settings
from holdoverd.deploy.installing import DOCUMENTS
from tests.host.machine import SOURCE
from tests.needs import needs_systemd_analyze

pytestmark = pytest.mark.slow

UNITS = SOURCE / "units"
FILES = sorted(path for path in UNITS.iterdir() if path.is_file())
IDS = [path.name for path in FILES]


def values(path: Path, key: str) -> list[str]:
    return re.findall(rf"^{key}=(.*)$", path.read_text(), re.MULTILINE)


@needs_systemd_analyze
def test_systemd_accepts_every_unit_and_the_daemon_stays_walled_in() -> None:
    done = subprocess.run(
        [SOURCE / "packaging/check-units"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.strip() == "units: ok"


@needs_systemd_analyze
@pytest.mark.parametrize(
    ("unit", "old", "new", "complaint"),
    [
        ("holdover.socket", "Backlog=", "", None),  # unchanged: the copy itself passes
        ("holdover.socket", "[Socket]", "[Socket]\nListenStraem=1", "ListenStraem"),
        ("holdoverd@.service.in", "NoNewPrivileges=yes", "", "NoNewPrivileges"),
        ("holdover-boot.service", "ExecStart=/bin/sh", "ExecStart=/bin/nosuch", "nosuch"),
    ],
)
def test_a_broken_unit_is_noticed(
    tmp_path: Path, unit: str, old: str, new: str, complaint: str | None
) -> None:
    for folder in ("units", "packaging", "daemon"):
        shutil.copytree(SOURCE / folder, tmp_path / folder)
    text = (tmp_path / "units" / unit).read_text()
    broken = text.replace(old, new)
    if "NoNew" in old:  # one protection less is within the threshold; several are not
        broken = re.sub(r"^(Protect|Restrict|SystemCall|Private)\w+=.*\n", "", broken, flags=re.M)
    (tmp_path / "units" / unit).write_text(broken)
    done = subprocess.run(
        [tmp_path / "packaging/check-units"], capture_output=True, text=True, check=False
    )
    if complaint is None:
        assert done.returncode == 0, done.stderr
    else:
        assert done.returncode != 0
        assert complaint in done.stdout + done.stderr


@pytest.mark.parametrize("path", FILES, ids=IDS)
def test_a_unit_opens_with_its_purpose_and_names_its_document(path: Path) -> None:
    assert path.read_text().startswith("# ")
    (document,) = values(path, "Documentation")
    shipped = document.removeprefix("file:/usr/local/share/doc/holdover/")
    assert shipped in DOCUMENTS


@pytest.mark.parametrize("path", FILES, ids=IDS)
def test_no_limit_can_take_a_socket_down(path: Path) -> None:
    """A service at its start limit fails the socket that triggers it, and all its visitors."""
    if ".socket" in path.name:
        assert values(path, "TriggerLimitIntervalSec") == ["0"]
    if ".service" in path.name:
        assert values(path, "StartLimitIntervalSec") == ["0"]


def test_every_unit_that_gets_the_doors_leaves_them_nonblocking() -> None:
    """At a unit's start systemd sets the flag as the unit says, for all holders of the socket."""
    for name in ("holdover-boot.service", "holdoverd@.service.in"):
        assert values(UNITS / name, "NonBlocking") == ["yes"]


def test_agents_are_bound_to_nothing_that_stops() -> None:
    unit = UNITS / "holdover-agent-ACCOUNT@.service.in"
    for key in ("PartOf", "BindsTo", "Requires", "Requisite", "StopPropagatedFrom"):
        assert values(unit, key) == []


def test_agents_keep_a_proc_of_their_own() -> None:
    """Each of these mounts over /proc; containers hide what a real kernel then refuses."""
    unit = UNITS / "holdover-agent-ACCOUNT@.service.in"
    forbidden = ("ProtectKernelTunables", "ProtectKernelLogs", "ProtectProc", "ProcSubset")
    for key in (*forbidden, "RestrictNamespaces", "ProtectHostname"):
        assert values(unit, key) == []


def test_no_instance_owns_the_runtime_folder() -> None:
    assert values(UNITS / "holdoverd@.service.in", "RuntimeDirectory") == []


def test_the_socket_takes_more_agents_than_the_daemon_launches() -> None:
    """The daemon refuses by name; systemd only drops the connection."""
    (connections,) = values(UNITS / "holdover-agent-ACCOUNT.socket.in", "MaxConnections")
    assert settings.load([], {}).sessions.max_live < int(connections)


def test_units_and_settings_name_the_same_things() -> None:
    defaults = settings.load([], {})
    assert values(UNITS / "holdover.socket", "ListenStream") == [defaults.server.listen]
    (descriptors,) = values(UNITS / "holdoverd@.service.in", "LimitNOFILE")
    # A connection is one descriptor, a session about four, and there are the daemon's own.
    needed = defaults.server.max_connections + 4 * defaults.sessions.max_live + 1000
    assert needed <= int(descriptors)


def test_storage_comes_out_where_the_settings_look_for_it() -> None:
    endpoint = settings.load([], {}).storage.endpoint
    assert values(UNITS / "holdover-s3.socket", "ListenStream") == [
        endpoint.removeprefix("http://")
    ]


def test_storage_and_its_door_have_no_network_but_what_is_let_out() -> None:
    for name in ("holdover-storage.service.in", "holdover-s3.service"):
        for key in ("PrivateNetwork", "PrivateTmp"):
            assert values(UNITS / name, key) == ["yes"]
        assert values(UNITS / name, "User") == ["holdover-storage"]
