"""Accepts launches and starts a keeper for each, as an agent unit's socket does under systemd."""

import contextlib
import os
import signal
import socket
import subprocess
from pathlib import Path

import trio

from holdoverd.supervisor.plan import Plan

# Above [sessions] max_live, since a keeper may still be ending when its successor starts.
SPARE_KEEPERS = 50
STOP_S = 10.0
MAX_LOG_BYTES = 16 << 20
LOG_CHECK_S = 10.0


class Agents:
    """The keepers that this supervisor has started."""

    def __init__(self, plan: Plan, listener: socket.socket) -> None:
        self._plan = plan
        self._listener = listener
        self._keepers: set[trio.Process] = set()
        self._log = os.open(
            plan.agents_log, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600
        )

    def running(self) -> list[int]:
        """Pids of the living keepers, those included that a killed supervisor left behind."""
        return sorted({one.pid for one in self._keepers} | _keepers_of(self._plan.runtime))

    async def serve(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Accept launches for ever. Cancelled: no new ones; keepers run on."""
        listener = trio.socket.from_stdlib_socket(self._listener)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._bound_log)
            task_status.started()
            while True:
                connection, _ = await listener.accept()
                with connection:
                    # The keeper has its copy; refused means closed, which the daemon understands.
                    await self._launch(connection, nursery)

    async def _launch(self, connection: trio.socket.SocketType, nursery: trio.Nursery) -> None:
        if len(self._keepers) >= self._plan.settings.sessions.max_live + SPARE_KEEPERS:
            return
        with contextlib.suppress(OSError):  # no process to be had: the closed connection says so
            # Non-blocking is ours alone: descriptor flags travel with the description.
            os.set_blocking(connection.fileno(), True)
            keeper = await trio.lowlevel.open_process(
                [*self._plan.keeper_command],
                stdin=connection.fileno(),
                stdout=subprocess.DEVNULL,
                stderr=self._log,
                env=dict(self._plan.keeper_environment),
                cwd="/",
                start_new_session=True,  # Ctrl-C is for us; agents are stopped in order
            )
            self._keepers.add(keeper)
            nursery.start_soon(self._reap, keeper)

    async def _reap(self, keeper: trio.Process) -> None:
        await keeper.wait()
        self._keepers.discard(keeper)

    async def _bound_log(self) -> None:
        """Agents write their stderr there; it is for looking at, not for keeping."""
        while True:
            await trio.sleep(LOG_CHECK_S)
            if os.fstat(self._log).st_size > MAX_LOG_BYTES:
                os.ftruncate(self._log, 0)

    async def stop(self, hurry: trio.Event) -> int:
        """TERM to every keeper, KILL to what is left after `STOP_S` or once `hurry` is set.

        A keeper gives its agent five seconds and then records its end. Returns how many had to
        be killed.
        """
        _signal_all(self.running(), signal.SIGTERM)
        with trio.move_on_after(STOP_S):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(_cancel_on, hurry, nursery.cancel_scope)
                while self.running():
                    for keeper in [*self._keepers]:
                        if keeper.poll() is not None:
                            self._keepers.discard(keeper)
                    await trio.sleep(0.05)
                nursery.cancel_scope.cancel()
        left = self.running()
        _signal_all(left, signal.SIGKILL)
        return len(left)

    def close(self) -> None:
        os.close(self._log)


async def _cancel_on(event: trio.Event, scope: trio.CancelScope) -> None:
    await event.wait()
    scope.cancel()


def _signal_all(pids: list[int], number: signal.Signals) -> None:
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)


def _keepers_of(runtime: Path) -> set[int]:
    """Our user's keepers that were started for `runtime`.

    Looked up rather than remembered in a file: a file would be wrong exactly when the supervisor
    was killed, which is when this is needed.
    """
    mark = b"HOLDOVER_RUNTIME_DIR=" + os.fsencode(runtime)
    found: set[int] = set()
    for entry in os.scandir("/proc"):
        if not entry.name.isdecimal():
            continue
        with contextlib.suppress(OSError):  # gone meanwhile, or another user's
            arguments = Path(entry.path, "cmdline").read_bytes().split(b"\0")
            if b"holdoverd.keeper" not in arguments or _is_zombie(entry.path):
                continue
            if mark in Path(entry.path, "environ").read_bytes().split(b"\0"):
                found.add(int(entry.name))
    return found


def _is_zombie(process: str) -> bool:
    return Path(process, "stat").read_text().rpartition(")")[2].split()[0] == "Z"
