"""One instance's sessions in this process: real catalogue, real spools, real keepers, no doors.

Agents are one-line Python programs; keepers run without namespaces, so that no root is needed.
"""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from uuid import uuid4

import trio

from holdoverd.callers import Caller
from holdoverd.catalogue.store import Catalogue
from holdoverd.sessions.launcher import Paths
from holdoverd.sessions.making import Limits
from holdoverd.sessions.means import Instance
from holdoverd.sessions.owner import OwnedSession
from holdoverd.sessions.service import Sessions
from holdoverd.sessions.spool import SpoolWatch
from holdoverd.settings import AgentSettings, Preset

WAIT_S = 60.0
"""A timeout, not a figure."""

ADMIN = Caller("default", "acct", frozenset({"admin"}), None, admin=True)
BOB = Caller("bob", "acct", frozenset({"sessions"}), "t_bob", admin=False)

STAYS = "import sys, time\nfor _ in sys.stdin: pass\ntime.sleep(600)"
DEAF = "import time\ntime.sleep(600)"
CLOSES_STDIN = "import os, time\nos.close(0)\ntime.sleep(600)"


def catalogue_url(folder: Path) -> str:
    """Where a house has its catalogue; a test may put another in its place."""
    return f"sqlite:///{folder}/catalogue.db"


@dataclass
class House:
    folder: Path
    catalogue: Catalogue
    paths: Paths
    nursery: trio.Nursery
    sessions: Sessions
    keepers: list["subprocess.Popen[bytes]"] = field(default_factory=list)
    answering: bool = True
    """Whether a keeper is started for a launch; else the connection is closed at once."""

    async def new(self, text: str | None = None, **spec: Any) -> Any:
        if text is not None:
            spec["prompt"] = a_prompt(text)
        return json.loads(await self.sessions.create(ADMIN, {"cwd": str(self.folder), **spec}))

    async def view(self, session: str) -> Any:
        return json.loads(
            await self.catalogue.read(lambda cx: self.sessions.get(cx, ADMIN, session))
        )

    async def owned(self, session: str) -> OwnedSession:
        return await self.sessions.owned(session)

    async def accept_launches(
        self, path: Path, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
    ) -> None:
        listener = trio.socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        await listener.bind(str(path))
        listener.listen(16)
        with listener:
            task_status.started()
            while True:
                connection, _ = await listener.accept()
                with connection:
                    if self.answering:
                        os.set_blocking(connection.fileno(), True)
                        self.keepers.append(start_keeper(connection.fileno()))

    def kill_keepers(self) -> None:
        for keeper in self.keepers:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(keeper.pid, signal.SIGKILL)
            keeper.wait()


def start_keeper(connection: int) -> "subprocess.Popen[bytes]":
    return subprocess.Popen(
        [sys.executable, "-m", "holdoverd.keeper", "--isolation=none"],
        stdin=connection,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)},
        start_new_session=True,
    )


def a_prompt(text: str = "hi") -> dict[str, Any]:
    return {"id": str(uuid4()), "text": text}


@contextlib.asynccontextmanager
async def a_house(
    folder: Path,
    program: str,
    *,
    max_live: int = 100,
    preset: Preset | None = None,
    resume_args: Sequence[str] = (),
    env: Mapping[str, str] | None = None,
) -> AsyncIterator[House]:
    """Sessions whose agent is `python -c program`."""
    paths = Paths(folder / "spool", folder / "sessions", folder / "agents")
    for path in (paths.spools, paths.sessions, paths.agents):
        path.mkdir(exist_ok=True)
    command = (sys.executable, "-c", program)
    agent = AgentSettings("a", command, dict(env or {}), tuple(resume_args), preset)
    catalogue = Catalogue.open(catalogue_url(folder))
    house: House | None = None
    try:
        async with trio.open_nursery() as nursery:
            watch = SpoolWatch(paths.spools)
            await nursery.start(watch.run)
            instance = Instance(
                catalogue=catalogue, paths=paths, watch=watch, nursery=nursery, host="h",
                generation=1, release="0", boot_id="boot", roots=[str(folder)],
                agents=lambda _name: agent,
            )  # fmt: skip
            sessions = Sessions(instance, Limits(max_live, "a"), lambda: {1})
            house = House(folder, catalogue, paths, nursery, sessions)
            await nursery.start(house.accept_launches, paths.agents / "acct.sock")
            await nursery.start(sessions.run)
            yield house
            nursery.cancel_scope.cancel()
    finally:
        catalogue.close()
        if house is not None:
            house.kill_keepers()


async def wait_until(condition: Callable[[], Any], what: str) -> None:
    """For what happens in other processes and sends no event."""
    with trio.move_on_after(WAIT_S):
        while not condition():
            await trio.sleep(0.02)
        return
    raise TimeoutError(f"waited {WAIT_S:.0f} s in vain until {what}")
