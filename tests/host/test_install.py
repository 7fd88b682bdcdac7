"""`make install` on a clean Debian 12: into an image first, then on the system that booted it."""

from __future__ import annotations

import contextlib
import http.client
import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import needs
from tests.host import clean_root as roots
from tests.host.machine import SOURCE_INSIDE, WHEELHOUSE_INSIDE, Machine
from tests.live.up import wait_until

pytestmark = pytest.mark.host

SOCKETS = ("holdover.socket", "holdover-admin.socket", "holdover-agent-holdover-agent.socket")
# Where an install leaves something; the rest of the system is none of its business.
PLACES = ("/etc", "/opt", "/usr/local", "/var/lib", "/run/holdover")


@pytest.fixture(scope="module")
def image(wheelhouse: Path) -> Iterator[Machine]:
    """A clean Debian 12 in which no systemd runs, with Holdover installed into it."""
    if needs.NO_MMDEBSTRAP:
        pytest.skip(needs.NO_MMDEBSTRAP)
    with Machine.enter(roots.debian(roots.HOST)) as machine:
        machine.put_source()
        done = machine.install()
        assert "starts when systemd boots here" in done.stderr
        yield machine


@pytest.fixture(scope="module")
def booted(image: Machine) -> Machine:
    image.start_systemd()
    return image


def running(machine: Machine) -> dict[str, str]:
    """{unit: its current run}: unchanged means not restarted."""
    listing = machine.systemctl("list-units", "--plain", "--no-legend", "holdover*").stdout
    units = [line.split()[0] for line in listing.splitlines()]
    return {unit: machine.show(unit, "InvocationID") for unit in units}


def snapshot(machine: Machine) -> str:
    """Every file of the places an install touches, with what a rewrite would change."""
    find = ["find", *PLACES, "-not", "-type", "d", "-printf", "%p %i %T@ %m %U %l\\n"]
    lines = machine.run(find, check=False).stdout.splitlines()
    own = [line for line in sorted(lines) if "holdover" in line]
    assert len(own) > 100
    return "\n".join(own)


def healthz(machine: Machine) -> dict[str, object]:
    with contextlib.closing(http.client.HTTPConnection("127.0.0.1", 8780)) as connection:
        connection.sock = machine.connect_tcp(8780)
        connection.sock.settimeout(60)
        connection.request("GET", "/healthz")
        try:
            answer: dict[str, object] = json.loads(connection.getresponse().read())
        except TimeoutError:
            journal = machine.run(["journalctl", "--no-pager", "--lines=60"]).stdout
            pytest.fail(f"nobody answers\n{journal}")
    return answer


def test_into_an_image_everything_is_there_and_nothing_runs(image: Machine) -> None:
    record = json.loads(image.run(["cat", "/opt/holdover/releases/0.2.0/release.json"]).stdout)
    assert record["name"] == record["version"] == "0.2.0"
    assert image.run(["readlink", "/var/lib/holdover/current"]).stdout == "1\n"
    enabled = image.run(["systemctl", "is-enabled", "holdover.target", *SOCKETS]).stdout
    assert enabled.split() == ["enabled"] * 4
    help_text = image.run(["holdover", "--help"], user="nobody").stdout
    assert "Usage: holdover" in help_text


def test_again_into_the_image_changes_nothing(image: Machine) -> None:
    before = snapshot(image)
    assert "already installed, as generation 1" in image.install().stderr
    assert snapshot(image) == before


def test_the_release_is_readable_by_all_and_writable_by_root_alone(image: Machine) -> None:
    release = "/opt/holdover/releases/0.2.0"
    find = ["find", "/opt/holdover", "-not", "-type", "l"]
    assert image.run([*find, "-perm", "/022"]).stdout == ""
    assert image.run([*find, "-not", "-user", "root"]).stdout == ""
    imports = "import holdoverd.keeper, holdoverd.settings, trio, sqlalchemy, msgspec"
    image.run([f"{release}/bin/python", "-I", "-c", imports], user="holdover-agent")
    # Compiled when installed: the daemon's user could not store what it compiles.
    site = f"{release}/lib/python3.11/site-packages/holdoverd"
    assert image.run(["find", site, "-name", "errors.*.pyc"]).stdout.strip()
    # The release carries its units, and nothing to install more with.
    image.run(["test", "-f", f"{site}/units/holdoverd@.service.in"])
    assert image.run(["ls", f"{release}/bin/pip"], check=False).returncode != 0


def test_users_and_folders_are_as_the_units_expect(image: Machine) -> None:
    expected = {
        "/var/lib/holdover": "700 holdover holdover",
        "/var/lib/holdover/spool": "700 holdover holdover",
        "/var/lib/holdover-agent": "700 holdover-agent holdover-agent",
        "/etc/holdover": "755 root root",
    }
    found = image.run(["stat", "-c", "%n %a %U %G", *expected]).stdout
    assert dict(line.split(" ", 1) for line in found.splitlines()) == expected


def test_an_unprivileged_install_is_refused_with_the_way_out(image: Machine) -> None:
    command = [f"{SOURCE_INSIDE}/packaging/install", "--wheelhouse", WHEELHOUSE_INSIDE]
    refused = image.run(command, user="nobody", check=False)
    assert refused.returncode == 1
    assert refused.stderr == (
        "holdover: only root can change what is installed on a host; try `sudo make install`\n"
    )


def test_an_incomplete_wheelhouse_is_refused_before_anything_is_made(image: Machine) -> None:
    other = "/usr/src/changed"
    image.put_source(other)
    image.run(["sh", "-c", f"echo >>{other}/units/holdover.slice; mkdir -p /usr/src/empty"])
    command = [f"{other}/packaging/install", "--wheelhouse", "/usr/src/empty"]
    refused = image.run(command, check=False)
    assert refused.returncode == 1
    assert "packaging/wheelhouse /usr/src/empty" in refused.stderr
    assert image.run(["ls", "/opt/holdover/releases"]).stdout == "0.2.0\n"
    assert image.run(["readlink", "/var/lib/holdover/current"]).stdout == "1\n"


def test_two_installs_at_once_are_one_too_many(image: Machine) -> None:
    hold = "exec 9>/opt/holdover/.lock; flock 9; exec /usr/src/holdover/packaging/install"
    refused = image.run(["sh", "-c", hold], check=False)
    assert refused.returncode == 1
    assert "another install or uninstall holds /opt/holdover/.lock" in refused.stderr


def test_the_image_boots_with_its_doors_open(booted: Machine) -> None:
    for unit in (*SOCKETS, "holdover.target"):
        assert booted.show(unit, "ActiveState") == "active", unit
    assert healthz(booted)["status"] == "ok"
    assert booted.systemctl("list-units", "--failed", "--plain", "--no-legend").stdout == ""


def test_again_on_the_running_system_restarts_nothing(booted: Machine) -> None:
    before, files = running(booted), snapshot(booted)
    assert "already installed, as generation 1" in booted.install().stderr
    assert running(booted) == before
    assert snapshot(booted) == files


def test_a_changed_tree_becomes_a_release_and_a_generation_of_its_own(booted: Machine) -> None:
    assert healthz(booted)["generation"] == 1
    agents = booted.show(SOCKETS[2], "InvocationID")
    changed = "/usr/src/changed"
    booted.put_source(changed)
    booted.run(["sh", "-c", f"echo '# changed' >>{changed}/daemon/holdoverd/errors.py"])
    command = [f"{changed}/packaging/install", "--wheelhouse", WHEELHOUSE_INSIDE]
    assert "Holdover 0.2.0+1 is installed and runs as generation 2" in booted.run(command).stderr
    assert booted.run(["readlink", "/var/lib/holdover/current"]).stdout == "2\n"
    assert healthz(booted)["generation"] == 2
    # It leaves by itself, now that the deploy is permanent and it owns nothing.
    wait_until(
        lambda: booted.show("holdoverd@1.service", "ActiveState") == "inactive", "generation 1 left"
    )
    assert booted.show("holdoverd@1.service", "Result") == "success"
    # The doors never closed, and the old release stays whole, to go back to.
    assert booted.show(SOCKETS[2], "InvocationID") == agents
    for generation, release in ((1, "0.2.0"), (2, "0.2.0+1")):
        unit = booted.read(f"/etc/systemd/system/holdoverd@{generation}.service")
        assert f"ExecStart=/opt/holdover/releases/{release}/bin/python" in unit
    assert "0.2.0+1" in booted.read("/etc/systemd/system/holdover-agent-holdover-agent@.service")
    assert booted.run(["readlink", "/usr/local/bin/holdover"]).stdout == (
        "/opt/holdover/releases/0.2.0+1/bin/holdover\n"
    )


def test_a_release_that_cannot_start_leaves_the_old_one_serving_and_booting(
    booted: Machine,
) -> None:
    broken = "/usr/src/broken"
    booted.put_source(broken)
    booted.run(["sh", "-c", f"echo 'raise SystemExit(1)' >{broken}/daemon/holdoverd/main.py"])
    command = [f"{broken}/packaging/install", "--wheelhouse", WHEELHOUSE_INSIDE]
    failed = booted.run(command, check=False)
    assert failed.returncode == 1
    assert "journalctl -u holdover-deploy@3.service" in failed.stderr
    assert booted.run(["readlink", "/var/lib/holdover/current"]).stdout == "2\n"
    assert booted.show("holdoverd@3.service", "ActiveState") in ("inactive", "failed")
    assert healthz(booted)["generation"] == 2
    # Trying again uses no number twice, and builds nothing again.
    failed = booted.run(command, check=False)
    assert "journalctl -u holdover-deploy@4.service" in failed.stderr
    assert "Building" not in failed.stderr
    assert healthz(booted)["generation"] == 2


def test_going_back_to_a_tree_installed_before_builds_nothing(booted: Machine) -> None:
    done = booted.install()
    assert "Building" not in done.stderr
    assert "Holdover 0.2.0 is installed and runs as generation 5" in done.stderr
    assert healthz(booted)["generation"] == 5


def test_uninstall_keeps_data_and_the_numbers_then_purge_keeps_nothing(booted: Machine) -> None:
    catalogue = booted.path("/var/lib/holdover/catalogue.db").stat().st_ino
    done = booted.run([f"{SOURCE_INSIDE}/packaging/uninstall"])
    assert "kept" in done.stderr
    assert running(booted) == {}
    left = booted.run(["find", *PLACES, "-name", "*holdover*"], check=False).stdout.split()
    assert sorted(left) == [
        "/etc/holdover",
        "/opt/holdover",
        "/var/lib/holdover",
        "/var/lib/holdover-agent",
        "/var/lib/holdover-storage",
    ]
    assert booted.path("/var/lib/holdover/catalogue.db").stat().st_ino == catalogue
    assert booted.read("/opt/holdover/last-generation") == "5\n"

    booted.run([f"{SOURCE_INSIDE}/packaging/uninstall", "--purge"])
    assert booted.run(["find", *PLACES, "-name", "*holdover*"], check=False).stdout == ""
    assert "holdover" not in booted.read("/etc/passwd") + booted.read("/etc/group")
    # And a third time there is nothing to do.
    booted.run([f"{SOURCE_INSIDE}/packaging/uninstall", "--purge"])
