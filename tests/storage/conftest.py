"""Storage as `holdover up` runs it, with its walls and its door."""

import os
import socket
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
import trio

from holdoverd.storage.keys import ensure_keys
from holdoverd.storage.plan import GIB, StoragePlan
from holdoverd.storage.serve import find_program
from holdoverd.supervisor.plan import StorageUp
from holdoverd.supervisor.storage import Storage
from tests.needs import NO_WEED

START_S = 90.0


@dataclass
class Running:
    """A living storage; `said` is what `holdover up` would have told."""

    storage: Storage
    up: StorageUp
    port: int
    said: list[str]

    async def wait_ready(self) -> None:
        with trio.fail_after(START_S):
            while not self.storage.ready.is_set():
                await trio.sleep(0.05)


@asynccontextmanager
async def running(folder: Path, *, walled: bool = True) -> AsyncIterator[Running]:
    """Run storage with its data in `folder`, and wait until it answers."""
    program = find_program()
    if program is None:
        pytest.skip(NO_WEED or "")
    plan = StoragePlan(
        program, folder / "data", folder / "run", folder / "run/identities.json", 20 * GIB
    )
    for one in (plan.data, plan.sockets):
        one.mkdir(mode=0o700, exist_ok=True)
    keys = folder / "keys.json"
    ensure_keys(keys)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        up = StorageUp(plan, "127.0.0.1", port, keys, folder / "log")
        said: list[str] = []
        storage = Storage(up, listener, said.append)
        storage.walled = walled
        here = Running(storage, up, port, said)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(storage.run)
            try:
                await here.wait_ready()
                yield here
            finally:
                with trio.CancelScope(shield=True):
                    await storage.stop()
                    storage.close()
            nursery.cancel_scope.cancel()


@pytest.fixture
def folder() -> Iterator[Path]:
    """With a short name, for sockets, and below /tmp, which the walls hide."""
    with tempfile.TemporaryDirectory(prefix="st-", dir="/tmp") as name:
        os.chmod(name, 0o755)
        yield Path(name)
