"""The generations of this supervisor: one daemon, two or more while a deploy is under way.

What is permanent is in ``generations.json``: the number that was used last, and the command of the
generation that was committed. Numbers are never used twice, since the catalogue knows instances
by them. `holdover up` begins with what it was itself started from; a release deployed from
elsewhere lasts as long as this supervisor.
"""

import json
import socket
import struct
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import trio

from holdoverd.deploy.uphost import progress_path
from holdoverd.jobs import roll
from holdoverd.supervisor.daemon import Daemon, Process
from holdoverd.supervisor.health import MAX_DATAGRAM_BYTES
from holdoverd.supervisor.plan import Plan
from holdoverd.supervisor.sockets import Sockets
from holdoverd.whole import write_whole

VERSION_S = 10.0
MAX_DEPLOY_STARTS = 5
MAX_REMEMBERED = 20

_UCRED = struct.Struct("3i")  # pid, uid, gid; unix(7)


class RefusedError(Exception):
    """What was asked for cannot be done; the message says why and what to do."""


@dataclass(frozen=True)
class Prepared:
    """A generation that may be started: its command, and the version of its code."""

    command: tuple[str, ...]
    release: str


@dataclass
class Record:
    """``generations.json``."""

    path: Path
    last: int = 0
    current: int = 0
    history: list[str] = field(default_factory=list)  # interpreters, in the order of commits

    @classmethod
    def read(cls, path: Path) -> "Record":
        """What was kept, or a beginning where nothing usable was."""
        try:
            kept = json.loads(path.read_text())
            return cls(path, int(kept["last"]), int(kept["current"]))
        except (OSError, ValueError, KeyError, TypeError):
            return cls(path)

    def next(self) -> int:
        self.last += 1
        self.write()
        return self.last

    def write(self) -> None:
        write_whole(self.path, json.dumps({"last": self.last, "current": self.current}) + "\n")


class Generations:
    """Starts and stops daemons by generation; `say` gets a sentence whenever something happened."""

    def __init__(self, plan: Plan, sockets: Sockets, say: Callable[[str], None]) -> None:
        self._plan = plan
        self._sockets = sockets
        self._say = say
        self._record = Record.read(plan.state / "generations.json")
        if not self._record.current:
            self._record.current = self._record.next()
        first = Prepared(plan.daemon_command, "")
        self._prepared = {self._record.current: first}
        self._record.history = [first.command[0]]
        self._living: dict[int, Daemon] = {}
        self._failures: dict[int, str] = {}
        self._deploying: Process | None = None
        self._nursery: trio.Nursery | None = None
        self.ready = trio.Event()
        self.gave_up = False

    @property
    def current(self) -> int:
        return self._record.current

    @property
    def pid(self) -> int:
        """The committed generation's process; 0 between two of them."""
        daemon = self._living.get(self.current)
        return daemon.pid if daemon is not None else 0

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Keep the committed generation running; returns only when it never worked (`gave_up`)."""
        async with trio.open_nursery() as self._nursery:
            self._nursery.start_soon(self._listen)
            self.start(self.current)
            self._want_workers()
            task_status.started()

    async def _listen(self) -> None:
        """Read reports; only those of a daemon's own process count (NotifyAccess=main)."""
        notify = trio.socket.from_stdlib_socket(self._sockets.notify)
        while True:
            data, extra, flags, _ = await notify.recvmsg(
                MAX_DATAGRAM_BYTES, socket.CMSG_SPACE(_UCRED.size)
            )
            sender = next((d for _, t, d in extra if t == socket.SCM_CREDENTIALS), b"")
            if len(sender) != _UCRED.size or flags & socket.MSG_TRUNC:
                continue
            pid = _UCRED.unpack(sender)[0]
            for daemon in self._living.values():
                if daemon.pid == pid and daemon.heard(data):
                    self.ready.set()

    # -- what a deploy asks for -------------------------------------------------------------------

    def start(self, generation: int) -> None:
        """Have a prepared generation started; does nothing where it lives."""
        prepared = self._known(generation)
        if generation in self._living:
            return
        self._failures.pop(generation, None)
        daemon = Daemon(
            self._plan,
            self._sockets,
            generation=generation,
            command=prepared.command,
            restarts=lambda status: self._restarts(generation, status),
            started=self._write_pid,
            say=self._say,
        )
        self._living[generation] = daemon
        assert self._nursery is not None, "daemons are started while `run` runs"
        self._nursery.start_soon(self._keep, daemon)

    def _restarts(self, generation: int, status: int) -> bool:
        """Whether a daemon that has died is started again.

        A candidate is not: its deploy takes it back. One that leaves by itself while a newer one
        serves has nothing left to do.
        """
        newer = any(g > generation and d.ready for g, d in self._living.items())
        return generation <= self.current and not (status == 0 and newer)

    async def _keep(self, daemon: Daemon) -> None:
        await daemon.run()
        del self._living[daemon.generation]
        if daemon.failure is not None:
            self._failures[daemon.generation] = daemon.failure
            while len(self._failures) > MAX_REMEMBERED:
                del self._failures[min(self._failures)]
        if daemon.gave_up and daemon.generation == self.current:
            self.gave_up = True
            assert self._nursery is not None
            self._nursery.cancel_scope.cancel()

    def _write_pid(self) -> None:
        # Others read it at any moment.
        write_whole(self._plan.runtime / "daemon.pid", f"{self.pid}\n", mode=0o644)

    def kill(self, generation: int) -> None:
        if (daemon := self._living.get(generation)) is not None:
            daemon.kill()

    async def stop(self, generation: int) -> None:
        if (daemon := self._living.get(generation)) is not None:
            await daemon.stop()

    async def stop_all(self) -> None:
        """All at once: agents go on until somebody ends them, whoever owned their sessions."""
        async with trio.open_nursery() as nursery:
            for daemon in list(self._living.values()):
                nursery.start_soon(daemon.stop)

    def state(self, generation: int) -> dict[str, Any]:
        """{"running", "ready", "failure", "release"}; `failure`: how it has died, if it has."""
        daemon = self._living.get(generation)
        died = daemon.failure if daemon is not None else self._failures.get(generation)
        return {
            "running": daemon is not None,
            "ready": daemon is not None and daemon.ready,
            "failure": f"it {died}" if died else None,
            "release": self._known(generation).release,
        }

    def command(self, generation: int) -> list[str]:
        return list(self._known(generation).command)

    def chosen(self) -> dict[str, str]:
        """What this supervisor has decided where the configuration leaves it open."""
        return {"HOLDOVER_SESSIONS_DEFAULT_AGENT": self._plan.agent}

    def living(self) -> list[int]:
        return sorted(self._living)

    def address(self) -> tuple[str, int]:
        """The public listener; a wildcard as the loopback that reaches it."""
        where = urlsplit(self._sockets.address())
        assert where.hostname is not None
        assert where.port is not None
        return where.hostname, where.port

    def commit(self, generation: int) -> None:
        """From now on this is the generation that is kept running."""
        prepared = self._known(generation)
        if generation == self.current:
            return
        self._record.current = generation
        self._record.write()
        self._record.history.append(prepared.command[0])
        del self._record.history[:-MAX_REMEMBERED]
        self._write_pid()
        self._want_workers()

    def python(self) -> str:
        """The interpreter of the committed generation's release, which its workers run on, too."""
        return self._prepared[self.current].command[0]

    def _want_workers(self) -> None:
        """Have workers of other releases go once they have finished."""
        roll.want(self._plan.runtime / "workers", roll.release_of(self.python()))

    def _known(self, generation: int) -> Prepared:
        if generation not in self._prepared:
            raise RefusedError(f"No generation {generation} was prepared here.")
        return self._prepared[generation]

    # -- deploys ----------------------------------------------------------------------------------

    def earlier(self) -> str:
        """The interpreter of the release before the present one. Raises RefusedError."""
        now = self._prepared[self.current].command[0]
        others = [python for python in self._record.history if python != now]
        if not others:
            raise RefusedError("No earlier release was ever permanent here.")
        return others[-1]

    async def prepare(self, python: str | None) -> int:
        """A new generation of the code that `python` runs; None: of this very environment.

        Raises RefusedError.
        """
        command = self._plan.daemon_command if python is None else (python, "-m", "holdoverd")
        release = await _version(command[0], self._plan.environment)
        generation = self._record.next()
        self._prepared[generation] = Prepared(command, release)
        for old in sorted(self._prepared)[:-MAX_REMEMBERED]:
            if old != self.current and old not in self._living:
                del self._prepared[old]
        return generation

    async def deploy(self, python: str | None) -> int:
        """Prepare a generation and begin its deploy. Raises RefusedError."""
        generation = await self.prepare(python)
        if self._deploying is not None:  # only now: two may have asked at once
            raise RefusedError("A deploy is under way; wait for it, or see `holdover status`.")
        progress_path(self._plan.runtime, generation).unlink(missing_ok=True)
        self._deploying = self._start_deploy(generation)
        assert self._nursery is not None
        self._nursery.start_soon(self._follow_deploy, generation)
        return generation

    def deploying(self) -> bool:
        return self._deploying is not None

    def _start_deploy(self, generation: int) -> Process:
        return Process(
            [sys.executable, "-m", "holdoverd.deploy", "--up", "--generation", str(generation)],
            pass_fds=[],
            env=dict(self._plan.environment),
        )

    async def _follow_deploy(self, generation: int) -> None:
        """Killed in the middle, it is started again and goes on from what it finds."""
        starts = 1
        while (process := self._deploying) is not None:
            try:
                await process.wait()
            except trio.Cancelled:
                process.terminate()
                raise
            killed = process.returncode is not None and process.returncode < 0
            if not killed or starts >= MAX_DEPLOY_STARTS:
                self._deploying = None
            else:
                starts += 1
                self._deploying = self._start_deploy(generation)


async def _version(python: str, env: Mapping[str, str]) -> str:
    """The version of the code that an interpreter would run. Raises RefusedError."""
    code = "import holdoverd; print(holdoverd.__version__)"
    try:
        with trio.fail_after(VERSION_S):
            done = await trio.run_process(
                [python, "-c", code],
                capture_stdout=True,
                capture_stderr=True,
                check=False,
                env=env,
            )
    except (OSError, trio.TooSlowError) as error:
        raise RefusedError(f"{python} does not run: {error or 'no answer'}.") from error
    if done.returncode:
        last = done.stderr.decode(errors="replace").strip().splitlines()[-1:]
        raise RefusedError(f"{python} has no usable Holdover: {''.join(last)[:300]}")
    return done.stdout.decode(errors="replace").strip()
