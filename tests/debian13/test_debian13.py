"""Debian 13: a package of its own, built on it; a host's life with it; and an upgrade from 12.

A folder of its own, since a worker takes folders whole, and this shares no machine with the others.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import needs
from tests.host import clean_root as roots
from tests.host import test_package as on_12
from tests.host.conftest import wheelhouse  # noqa: F401 - a fixture
from tests.host.machine import SOURCE, SOURCE_INSIDE, Machine
from tests.host.test_package import DEBS, FIRST, alone, apt, built, holdover
from tests.live.up import wait_until

pytestmark = [pytest.mark.host, pytest.mark.slow]

CLIENT = "daemon/holdoverd/web/static"
# As in test_package, so that the root is made once.
TWELVE = tuple(name for name in roots.HOST if name not in ("git", "make"))
BUILD_S = 900.0
UPGRADE_S = 900.0


@pytest.fixture(scope="module")
def package12(wheelhouse: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:  # noqa: F811
    return built(SOURCE, tmp_path_factory.mktemp("deb12"), wheelhouse)


@pytest.fixture(scope="module")
def package13(wheelhouse: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:  # noqa: F811
    """Built on 13, for its Python, from what the lock files name."""
    if needs.NO_MMDEBSTRAP:
        pytest.skip(needs.NO_MMDEBSTRAP)
    with Machine.enter(roots.debian(roots.HOST, "trixie"), network=True) as builder:
        builder.put_source()
        shutil.copytree(wheelhouse / "client", builder.path(f"{SOURCE_INSIDE}/{CLIENT}"))
        command = [f"{SOURCE_INSIDE}/packaging/deb", "--output", "/root/out", "--level", "1"]
        env = {**roots.trust_environment(), "SOURCE_DATE_EPOCH": "1"}
        made = builder.run(command, env=env, timeout_s=BUILD_S).stdout.strip()
        assert made.endswith(f"holdover_{FIRST}+deb13_amd64.deb")
        kept = tmp_path_factory.mktemp("deb13") / Path(made).name
        shutil.copyfile(builder.path(made), kept)
    return kept


def put(machine: Machine, package: Path) -> str:
    inside = f"{DEBS}/{package.name}"
    shutil.copyfile(package, machine.path(inside))
    return inside


def answered(machine: Machine, session: str, more_than: int = 2) -> None:
    def found() -> bool:
        shown = json.loads(holdover(machine, "session", "show", "--json", session))
        return bool(shown["state"] == "idle" and shown["last_seq"] > more_than)

    wait_until(found, "the demo has answered", 120)


@pytest.fixture(scope="module")
def packages(package13: Path) -> dict[str, Path]:
    return on_12.with_next(package13)


@pytest.fixture(scope="module")
def thirteen(packages: dict[str, Path]) -> Iterator[Machine]:
    with Machine.boot(roots.debian(roots.HOST, "trixie"), unified=True) as machine:
        for package in packages.values():
            put(machine, package)
        machine.write("/etc/holdover/holdover.d/test.toml", "[deploy]\nbake_s = 2\n")
        yield machine


async def test_a_host_lives_on_13_as_it_does_on_12(
    thirteen: Machine, packages: dict[str, Path]
) -> None:
    """What test_package shows of Debian 12, in its order, step by step."""
    on_12.test_an_install_gives_a_serving_host_and_a_session_within_half_a_minute(
        thirteen, packages
    )
    await on_12.test_an_upgrade_under_streams_refuses_loses_and_closes_nothing(thirteen, packages)
    on_12.test_a_broken_version_is_configured_and_taken_back(thirteen, packages)
    on_12.test_a_downgrade_is_a_deploy_too(thirteen, packages)
    apt(thirteen, "remove", "holdover")
    thirteen.run(["test", "-f", "/var/lib/holdover/catalogue.db"])
    on_12.test_a_purge_leaves_nothing(thirteen, packages)


@pytest.mark.soak  # minutes: a whole distribution
def test_a_host_is_upgraded_from_12_to_13_and_its_sessions_go_on(
    package12: Path, package13: Path
) -> None:
    """As the release notes of Debian have it; the package comes with the rest."""
    with Machine.boot(roots.debian(TWELVE), network=True, unified=True) as machine:
        # Nobody else on this network listens for them; see machine.py on networks.
        machine.write("/etc/systemd/system/holdover.socket.d/port.conf", PORTS.format(18780))
        machine.write("/etc/systemd/system/holdover-s3.socket.d/port.conf", PORTS.format(18781))
        apt(machine, "install", put(machine, package12))
        session = holdover(machine, "session", "new", "--agent", "demo", "hello").split()[0]
        answered(machine, session)
        before = json.loads(holdover(machine, "session", "show", "--json", session))["last_seq"]
        machine.write("/etc/apt/sources.list.d/debian.sources", roots.sources_of("trixie"))
        machine.run(["rm", "-f", "/etc/apt/sources.list"])
        env = {"DEBIAN_FRONTEND": "noninteractive", "APT_LISTCHANGES_FRONTEND": "none"}
        keep = ["-o", "Dpkg::Use-Pty=0", "-o", "Dpkg::Options::=--force-confold"]
        machine.run(["apt-get", "update"], env=env, timeout_s=UPGRADE_S)
        upgrade = ["apt-get", "-y", *keep, "full-upgrade", put(machine, package13)]
        machine.run(upgrade, env=env, timeout_s=UPGRADE_S)
        assert machine.read("/etc/debian_version").startswith("13")
        holdover(machine, "drain", "--migrate")
        alone(machine, 2)
        holdover(machine, "session", "send", session, "still there?")
        answered(machine, session, before)
        machine.reboot()
        wait_until(
            lambda: machine.run(["holdover", "status"], check=False).returncode == 0,
            "it serves after the reboot",
            120,
        )
        shown = json.loads(holdover(machine, "session", "show", "--json", session))
        assert shown["state"] == "dormant"
        status = json.loads(holdover(machine, "status", "--json"))
        assert status["health"]["release"] == FIRST
        holdover(machine, "session", "send", session, "and now?")
        answered(machine, session, shown["last_seq"])


PORTS = "[Socket]\nListenStream=\nListenStream=127.0.0.1:{}\n"
