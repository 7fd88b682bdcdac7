"""Several daemons on one host, as systemd would run them, and nothing in between that could help.

The listening sockets, the launches and the folders are the supervisor's own code; each daemon is a
process of its own that was passed the same sockets. Tests start, signal and await them one by one.
"""

import contextlib
import dataclasses
import os
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Mapping, Sequence
from pathlib import Path

import trio

from holdoverd.supervisor import daemon as supervisor_daemon
from holdoverd.supervisor.agents import Agents
from holdoverd.supervisor.plan import Plan, UpOptions, make_plan
from holdoverd.supervisor.sockets import Sockets, open_sockets
from tests.live.forked import DAEMON, Forked, Nursery
from tests.live.up import START_S, Api

SHIM = Path(supervisor_daemon.__file__).with_name("shim.py")


class Instance:
    """One daemon's process."""

    def __init__(
        self, generation: int, process: "subprocess.Popen[bytes] | Forked", said: Path
    ) -> None:
        self.generation = generation
        self.process = process
        self._said = said
        self.pid = process.pid

    def output(self) -> str:
        return self._said.read_text()

    def send(self, number: signal.Signals) -> None:
        self.process.send_signal(number)

    async def wait_exit(self, timeout_s: float = START_S) -> int:
        """Its exit status; `subprocess.TimeoutExpired` with what it said where it does not."""
        pidfd = os.pidfd_open(self.pid) if self.process.poll() is None else None
        if pidfd is not None:
            try:
                with trio.move_on_after(timeout_s):
                    await trio.lowlevel.wait_readable(pidfd)
            finally:
                os.close(pidfd)
        status = self.process.poll()
        assert status is not None, f"generation {self.generation} lives on:\n{self.output()}"
        return status


class Host(Api):
    """The host: its folders, its sockets, and whoever lives on it."""

    def __init__(
        self, plan: Plan, sockets: Sockets, folder: Path, nursery: Nursery | None = None
    ) -> None:
        super().__init__(plan.admin_socket)
        self._nursery = nursery
        self.plan = plan
        self.sockets = sockets
        self.folder = folder
        self.instances: list[Instance] = []
        self.control = plan.runtime / "instances"

    @property
    def port(self) -> int:
        return int(self.sockets.public.getsockname()[1])

    def living(self) -> list[Instance]:
        return [one for one in self.instances if one.process.poll() is None]

    def story(self) -> str:
        """What the last instances said, for a failed test."""
        return "\n".join(
            f"--- generation {one.generation}, exit status {one.process.poll()}\n"
            + one.output()[-3000:]
            for one in self.instances[-3:]
        )

    async def start(
        self,
        generation: int,
        *,
        command: Sequence[str] | None = None,
        env: Mapping[str, str] | None = None,
        ready: bool = True,
    ) -> Instance:
        """Start a daemon, and wait for its READY unless told not to."""
        notify = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
        path = self.folder / f"notify-{generation}-{len(self.instances)}"
        notify.bind(str(path))
        fds = [self.sockets.public.fileno(), self.sockets.admin.fileno()]
        environment = {
            **self.plan.environment,
            "LISTEN_FDS": "2",
            "LISTEN_FDNAMES": "public:admin",
            "NOTIFY_SOCKET": str(path),
            **(env or {}),
        }
        said = self.folder / f"said-{generation}-{len(self.instances)}"
        with said.open("wb") as output:
            process = self._spawn(command, generation, environment, output.fileno(), fds)
        instance = Instance(generation, process, said)
        self.instances.append(instance)
        with notify:
            if ready:
                await self._wait_ready(instance, notify)
        return instance

    def _spawn(
        self,
        command: Sequence[str] | None,
        generation: int,
        environment: Mapping[str, str],
        output: int,
        fds: Sequence[int],
    ) -> "subprocess.Popen[bytes] | Forked":
        numbered = ("--generation", str(generation))
        if self._nursery is not None:
            return self._nursery.start(
                (*(command or (DAEMON,)), *numbered), environment, output, fds
            )
        program = command or (sys.executable, "-m", "holdoverd")
        shim = (sys.executable, "-I", "-S", str(SHIM), str(os.getpid()), ",".join(map(str, fds)))
        return subprocess.Popen(
            [*shim, *program, *numbered],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            pass_fds=fds,
            env=environment,
            start_new_session=True,
        )

    async def _wait_ready(self, instance: Instance, notify: socket.socket) -> None:
        told = trio.socket.from_stdlib_socket(notify)
        with trio.fail_after(START_S):
            async with trio.open_nursery() as nursery:

                async def ended() -> None:
                    status = await instance.wait_exit()
                    raise AssertionError(f"it ended with {status}:\n{instance.output()}")

                nursery.start_soon(ended)
                while b"READY=1" not in (await told.recv(4096)).split(b"\n"):
                    pass
                nursery.cancel_scope.cancel()


@contextlib.asynccontextmanager
async def host(folder: Path, *, nursery: Nursery | None = None, **env: str) -> AsyncIterator[Host]:
    """A host without any daemon yet; `folder` should have a short path: sockets live in it.

    With a `nursery` its daemons are forked there, and `command` is (module, argument…).
    """
    for name in ("run", "state", "home"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    environment = {
        **{key: value for key, value in os.environ.items() if not key.startswith("HOLDOVER_")},
        "HOME": str(folder / "home"),
        "HOLDOVER_STATE_DIR": str(folder / "state"),
        "HOLDOVER_RUNTIME_DIR": str(folder / "run"),
        "HOLDOVER_CONFIG_DIR": str(folder / "config"),
        "HOLDOVER_SESSIONS_DEFAULT_AGENT": "demo",
        **env,
    }
    plan = make_plan(dataclasses.replace(UpOptions(), port=0), environment)
    sockets = open_sockets(plan)
    try:
        # The daemons find them non-blocking, as with NonBlocking=yes; nobody may clear that.
        for one in (sockets.public, sockets.admin, sockets.launch):
            one.setblocking(False)
        agents = Agents(plan, sockets.launch)
        here = Host(plan, sockets, folder, nursery)
        async with trio.open_nursery() as tasks:
            await tasks.start(agents.serve)
            try:
                yield here
            finally:
                with trio.CancelScope(shield=True):
                    for instance in here.instances:
                        if instance.process.poll() is None:
                            instance.process.kill()
                            instance.process.wait()
                    hurry = trio.Event()
                    hurry.set()
                    await agents.stop(hurry)
                    with trio.move_on_after(START_S):
                        while agents.running():  # killed, and still to be reaped
                            await trio.sleep(0.02)
                tasks.cancel_scope.cancel()
        agents.close()
    finally:
        sockets.close()
