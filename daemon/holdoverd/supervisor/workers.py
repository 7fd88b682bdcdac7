"""Starts a worker for each connection to the workers' socket, as its units do under systemd.

A worker asks for nothing and is asked for nothing afterwards: it works while there are jobs, and
goes. It outlives the daemon that asked for it.
"""

import contextlib
import signal
import subprocess
from collections.abc import Callable

import trio

from holdoverd.jobs import roll
from holdoverd.supervisor.plan import Plan
from holdoverd.supervisor.sockets import Sockets, storage_environment

STOP_S = 5.0


class Workers:
    """The workers that this supervisor has started."""

    def __init__(self, plan: Plan, sockets: Sockets, python: Callable[[], str]) -> None:
        """`python` gives the interpreter of the release whose workers are wanted now."""
        self._plan = plan
        self._python = python
        self._listener = sockets.workers
        self._environment = {**plan.environment, **storage_environment(plan, sockets)}
        self._running: set[trio.Process] = set()

    async def serve(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Accept for ever. Cancelled: no new ones; workers run on."""
        listener = trio.socket.from_stdlib_socket(self._listener)
        async with trio.open_nursery() as nursery:
            task_status.started()
            while True:
                connection, _ = await listener.accept()
                connection.close()
                await self._start(nursery)

    async def _start(self, nursery: trio.Nursery) -> None:
        # Those that a killed supervisor left behind count too.
        living, _ = roll.look(self._plan.runtime / "workers")
        if max(len(living), len(self._running)) >= self._plan.settings.jobs.max_workers:
            return
        python = self._python()
        with contextlib.suppress(OSError):  # no process to be had: it is asked for again
            worker = await trio.lowlevel.open_process(
                [python, *self._plan.worker_arguments],
                stdin=subprocess.DEVNULL,
                env={**self._environment, "HOLDOVER_RELEASE_DIR": str(roll.release_of(python))},
                start_new_session=True,  # Ctrl-C is for us; workers are stopped in order
            )
            self._running.add(worker)
            nursery.start_soon(self._reap, worker)

    async def _reap(self, worker: trio.Process) -> None:
        await worker.wait()
        self._running.discard(worker)

    async def stop(self) -> None:
        """TERM to every worker, which gives back its job; KILL after `STOP_S`."""
        for worker in self._running:
            worker.send_signal(signal.SIGTERM)
        with trio.move_on_after(STOP_S):
            while any(worker.poll() is None for worker in self._running):
                await trio.sleep(0.05)
        for worker in self._running:
            worker.kill()
