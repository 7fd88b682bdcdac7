"""What the long runs share: Holdover in a folder of its own, and a machine of its own."""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.host.machine import SOURCE, Machine
from tests.live.up import Up, running


@pytest.fixture
def up() -> Iterator[Up]:
    """In a folder with a short path, unlike pytest's own: sockets live in it."""
    folder = Path(tempfile.mkdtemp(prefix="hs-"))
    try:
        with running(folder) as instance:
            yield instance
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def machine() -> Iterator[Machine]:
    """Booted, Holdover installed."""
    subprocess.run([SOURCE / "packaging/wheelhouse"], check=True, timeout=900)
    with Machine.boot() as machine:
        machine.put_source()
        machine.install()
        yield machine
