"""One generation's daemon: its process started, watched, started again."""

import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import trio

from holdoverd.supervisor import words
from holdoverd.supervisor.health import LOOK_S, WATCHDOG_S, Health, parse_notify
from holdoverd.supervisor.plan import Plan
from holdoverd.supervisor.restart import Restart
from holdoverd.supervisor.sockets import Sockets, storage_environment

STOP_S = 5.0
_SHIM = Path(__file__).with_name("shim.py")


class Process:
    """A child started by this very thread.

    `trio.run_process` and the like start it from a worker thread; that thread ends when it has
    been idle for a while, and the kernel counts this as the death of the parent (PR_SET_PDEATHSIG
    in prctl(2)): the daemon would be told to stop ten seconds after its start.
    """

    def __init__(self, args: list[str], *, pass_fds: list[int], env: dict[str, str]) -> None:
        self._popen = subprocess.Popen(
            args,
            stdin=subprocess.DEVNULL,
            pass_fds=pass_fds,
            env=env,
            start_new_session=True,  # Ctrl-C is for us; the daemon is stopped in order
        )
        self._pidfd = os.pidfd_open(self._popen.pid)
        self.pid = self._popen.pid

    @property
    def returncode(self) -> int | None:
        """As `subprocess.Popen.returncode`: None while it lives, -N when killed by signal N."""
        return self._popen.returncode

    async def wait(self) -> None:
        """Wait for its end; once reaped, a second call returns at once."""
        if self._popen.returncode is None:
            await trio.lowlevel.wait_readable(self._pidfd)
            self._popen.wait()
            os.close(self._pidfd)

    def terminate(self) -> None:
        self._popen.terminate()

    def kill(self) -> None:
        self._popen.kill()


class Daemon:
    """Keeps the daemon of one generation running, as its unit would.

    `restarts` is asked whenever it has died: a candidate is not started again. `failure` says in
    words how it died last. `say` gets a sentence whenever something happened to it.
    """

    def __init__(
        self,
        plan: Plan,
        sockets: Sockets,
        *,
        generation: int,
        command: Sequence[str],
        restarts: Callable[[int], bool],
        started: Callable[[], None],
        say: Callable[[str], None],
    ) -> None:
        self._plan = plan
        self._sockets = sockets
        self._command = (*command, "--generation", str(generation))
        self._restarts = restarts
        self._started = started
        self._say = say
        self._process: subprocess.Popen[bytes] | None = None
        self._health: Health | None = None
        self._wanted = True
        self._pause = trio.CancelScope()
        self.generation = generation
        self.gave_up = False
        self.failure: str | None = None

    @property
    def pid(self) -> int:
        """The living process; 0 between two of them."""
        return self._process.pid if self._process is not None else 0

    @property
    def ready(self) -> bool:
        return self._process is not None and self._health is not None and self._health.ready

    async def run(self) -> None:
        """Start it again and again, until it is not to be, or has never worked (`gave_up`)."""
        restart = Restart()
        while self._wanted:
            started = trio.current_time()
            health = self._health = Health(started)
            process = self._process = self._spawn()
            self._started()
            reason = await self._until_dead(process, health)
            self._process = None
            status = process.returncode or 0
            self.failure = words.how_died(status, reason)
            if not self._wanted or not self._restarts(status):
                return
            delay_s = restart.died(trio.current_time() - started, health.ready)
            self._say(words.died(self.failure, delay_s))
            if delay_s is None:
                self.gave_up = True
                return
            with trio.CancelScope() as self._pause:
                await trio.sleep(delay_s)

    def _spawn(self) -> subprocess.Popen[bytes]:
        # Not trio's open_process: it starts the child from a worker thread, and the shim's
        # PR_SET_PDEATHSIG would fire when that thread, idle for ten seconds, ends (prctl(2)).
        fds = [self._sockets.public.fileno(), self._sockets.admin.fileno()]
        environment = {
            **self._plan.environment,
            **storage_environment(self._plan, self._sockets),
            "LISTEN_FDS": str(len(fds)),
            "LISTEN_FDNAMES": "public:admin",
            "NOTIFY_SOCKET": str(self._plan.notify_socket),
            "WATCHDOG_USEC": str(round(WATCHDOG_S * 1_000_000)),
        }
        if self._plan.settings.sources["server.public_url"] == "default":
            environment["HOLDOVER_SERVER_PUBLIC_URL"] = self._sockets.address()
        shim = [sys.executable, "-I", "-S", str(_SHIM), str(os.getpid())]
        return subprocess.Popen(
            [*shim, ",".join(map(str, fds)), *self._command],
            stdin=subprocess.DEVNULL,
            pass_fds=fds,
            env=environment,
            start_new_session=True,  # Ctrl-C is for us; the daemon is stopped in order
        )

    async def _until_dead(self, process: subprocess.Popen[bytes], health: Health) -> str | None:
        """Wait for the process to end; the reason when it had to be killed for silence."""
        reason: str | None = None
        while process.returncode is None:
            # A report may bring the next deadline nearer while we wait: look now and then.
            now = trio.current_time()
            with trio.move_on_at(min(max(health.check_at(), now + 0.05), now + LOOK_S)):
                await wait_ended(process)
                break
            if reason is None and (reason := health.overdue(trio.current_time())):
                process.kill()
        return reason

    def heard(self, datagram: bytes) -> bool:
        """Take in a report of the process; True when it says READY for the first time."""
        if self._health is None:
            return False
        return self._health.heard(parse_notify(datagram), trio.current_time())

    def kill(self) -> None:
        """End it at once and for good."""
        self._wanted = False
        self._pause.cancel()
        if self._process is not None and self._process.poll() is None:
            self._process.kill()

    async def stop(self) -> None:
        """TERM, and KILL after `STOP_S`; a daemon lets go of its agents, it does not stop them."""
        self._wanted = False
        self._pause.cancel()
        process = self._process
        if process is None or process.returncode is not None:
            return
        process.terminate()
        with trio.move_on_after(STOP_S):
            await wait_ended(process)
        if process.returncode is None:
            process.kill()
            await wait_ended(process)


async def wait_ended(process: subprocess.Popen[bytes]) -> None:
    """Until the process is gone; its `returncode` is set then."""
    if process.poll() is not None:
        return
    pidfd = os.pidfd_open(process.pid)
    try:
        await trio.lowlevel.wait_readable(pidfd)
    finally:
        os.close(pidfd)
    process.poll()
