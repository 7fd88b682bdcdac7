"""One owner of sessions as a process of its own, which can be made to stop itself at any step.

``python -m tests.sessions.owner_process FOLDER GENERATION LIVE[,LIVE…]`` takes commands on stdin
and answers on stdout, one JSON object a line. It has the catalogue, the spool watch and the
sessions of a daemon, and no doors; orphans are adopted when told to, not by themselves.

    {"id": 1, "do": "prompt", "session": "s_…", "prompt": {…}}   → {"id": 1, "ok": …}
                                                                 or {"id": 1, "refused": CODE, …}
    {"id": 2, "do": "stop_at", "step": "send_request", "nth": 1}

Each step taken is told as ``{"step": NAME}``; the one to stop at as ``{"stopping": NAME}``, and
then the process sends itself SIGSTOP, once.
"""

import json
import os
import signal
import sys
import threading
import traceback
from pathlib import Path
from typing import Any

import trio
from sqlalchemy import Connection

from holdoverd.agents.presets import AgentSettings
from holdoverd.callers import Caller
from holdoverd.catalogue.store import Catalogue
from holdoverd.errors import HoldoverError, RequestError
from holdoverd.instance import boot_id
from holdoverd.main import make_paths
from holdoverd.sessions.making import Limits
from holdoverd.sessions.means import Instance
from holdoverd.sessions.service import Sessions
from holdoverd.sessions.spool import SpoolWatch

ACCOUNT = "me"
AGENT = AgentSettings(
    name="demo",
    command=(sys.executable, "-I", str(Path(__file__).with_name("counting_agent.py"))),
    preset="demo",
)
CALLER = Caller("default", ACCOUNT, frozenset(), None, admin=True)


def say(**told: Any) -> None:
    os.write(1, json.dumps(told).encode() + b"\n")


class Trap:
    """Stops the process before the `nth` step of that name from now on."""

    def __init__(self) -> None:
        self._step: str | None = None
        self._left = 0

    def set(self, step: str | None, nth: int) -> None:
        self._step, self._left = step, nth

    def observe(self, step: str) -> None:
        if step == self._step:
            self._left -= 1
            if self._left == 0:
                self._step = None
                say(stopping=step)
                # To this very thread: a signal to the process may let it run on for a moment.
                signal.pthread_kill(threading.get_ident(), signal.SIGSTOP)
        say(step=step)


class Owner:
    def __init__(self, sessions: Sessions, catalogue: Catalogue, trap: Trap) -> None:
        self._sessions = sessions
        self._catalogue = catalogue
        self._trap = trap

    async def obey(self, command: dict[str, Any]) -> None:
        number = command.pop("id")
        try:
            answer = await getattr(self, command.pop("do"))(**command)
        except RequestError as error:
            say(id=number, refused=error.code, message=str(error))
        except HoldoverError as error:
            say(id=number, defect=f"{type(error).__name__} is nothing to tell a client: {error}")
        except Exception:
            say(id=number, defect=traceback.format_exc())
        else:
            say(id=number, ok=answer)

    async def stop_at(self, step: str | None, nth: int) -> None:
        self._trap.set(step, nth)

    async def create(self, prompt: dict[str, Any]) -> Any:
        return json.loads(await self._sessions.create(CALLER, {"agent": "demo", "prompt": prompt}))

    async def adopt(self, session: str) -> None:
        await self._sessions.owned(session)

    async def prompt(self, session: str, prompt: dict[str, Any]) -> int:
        return (await self._sessions.prompt(CALLER, session, prompt))[0]

    async def end(self, session: str) -> None:
        await self._sessions.end(CALLER, session, False)

    async def view(self, session: str) -> Any:
        def read(cx: Connection) -> str:
            return self._sessions.get(cx, CALLER, session)

        return json.loads(await self._catalogue.read(read))

    async def list(self) -> Any:
        def read(cx: Connection) -> str:
            return self._sessions.list_sessions(cx, CALLER, limit=500)

        return [one["id"] for one in json.loads(await self._catalogue.read(read))["items"]]

    async def tidy(self) -> None:
        await self._sessions._clean_up()

    async def owns(self, session: str) -> bool:
        known = self._sessions._owned.get(session)
        return known is not None and not known.lost.is_set()


async def run(folder: Path, generation: int, live: set[int]) -> None:
    paths = make_paths(folder / "state", folder / "run")
    catalogue = Catalogue.open(f"sqlite:///{folder}/state/catalogue.db")
    watch = SpoolWatch(paths.spools)
    trap = Trap()
    async with trio.open_nursery() as nursery:
        await nursery.start(watch.run)
        sessions = Sessions(
            Instance(
                catalogue=catalogue,
                paths=paths,
                watch=watch,
                nursery=nursery,
                host="here",
                generation=generation,
                release="0",
                boot_id=boot_id(),
                roots=(),
                agents=lambda name: AGENT if name == "demo" else None,
                observe=trap.observe,
            ),
            Limits(1000, "demo"),
            lambda: live,
        )
        owner = Owner(sessions, catalogue, trap)
        say(id=0, ok="ready")
        rest = b""
        async for chunk in trio.lowlevel.FdStream(os.dup(0)):
            *lines, rest = (rest + chunk).split(b"\n")
            for line in lines:
                nursery.start_soon(owner.obey, json.loads(line))
        nursery.cancel_scope.cancel()


if __name__ == "__main__":
    trio.run(
        run, Path(sys.argv[1]), int(sys.argv[2]), {int(number) for number in sys.argv[3].split(",")}
    )
