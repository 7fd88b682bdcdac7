"""Machines for the tests in this folder. Each is made when the first test asks for it.

host         this system's root, booted, Holdover installed; one for the whole run: leave it
             as you found it
deploy_host  another of that kind, for tests that replace what runs there
clean_host   a clean Debian 12, booted, nothing installed yet; one per module
clean_root   a clean Debian 12 without any systemd running, with network, without the tree; one
             per module
"""

from __future__ import annotations

import contextlib
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import needs
from tests.host import clean_root as roots
from tests.host.machine import SOURCE, Machine, MachineError


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Whatever boots a machine is marked so, and can be left out by its mark."""
    here = Path(__file__).parent
    for item in items:
        fixtures = getattr(item, "fixturenames", ())
        if here in item.path.parents and {"host", "deploy_host", "clean_host", "clean_root"} & {
            *fixtures
        }:
            item.add_marker(pytest.mark.host)
            item.add_marker(pytest.mark.slow)


@pytest.fixture(scope="session")
def wheelhouse() -> Path:
    """All that a release is built from, downloaded once and kept in `.build`."""
    subprocess.run([SOURCE / "packaging/wheelhouse"], check=True, timeout=900)
    return SOURCE / ".build/wheelhouse"


def prove_limits(machine: Machine) -> None:
    """300 MiB must die under a limit of 60; a runaway in a test would hit this machine else."""
    eat = ["/usr/bin/python3", "-I", "-c", "b'x' * (300 << 20)"]
    options = ["--quiet", "--wait", "--collect"]
    free = machine.run(["systemd-run", *options, *eat], check=False)
    limited = machine.run(["systemd-run", *options, "-p", "MemoryMax=60M", *eat], check=False)
    if free.returncode != 0 or limited.returncode == 0:
        raise MachineError(
            "limits do not work in this container: 300 MiB without a limit exited "
            f"{free.returncode}, under MemoryMax=60M {limited.returncode}\n{free.stderr}"
        )


@pytest.fixture(scope="session")
def host(wheelhouse: Path) -> Iterator[Machine]:
    with installed() as machine:
        yield machine


@pytest.fixture(scope="session")
def deploy_host(wheelhouse: Path) -> Iterator[Machine]:
    with installed() as machine:
        yield machine


@contextlib.contextmanager
def installed() -> Iterator[Machine]:
    if needs.NO_NSPAWN:
        pytest.skip(needs.NO_NSPAWN)
    with Machine.boot() as machine:
        prove_limits(machine)
        machine.put_source()
        machine.install()
        yield machine


@pytest.fixture(scope="module")
def clean_host(wheelhouse: Path) -> Iterator[Machine]:
    if needs.NO_MMDEBSTRAP:
        pytest.skip(needs.NO_MMDEBSTRAP)
    with Machine.boot(roots.debian(roots.HOST)) as machine:
        machine.put_source()
        yield machine


@pytest.fixture(scope="module")
def clean_root() -> Iterator[Machine]:
    if needs.NO_MMDEBSTRAP:
        pytest.skip(needs.NO_MMDEBSTRAP)
    with Machine.enter(roots.debian(roots.FRESH), network=True) as machine:
        yield machine
