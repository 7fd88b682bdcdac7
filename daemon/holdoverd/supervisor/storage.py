"""Storage under `holdover up`: SeaweedFS behind walls, and the door through which S3 comes out.

Two processes, both ended with the supervisor and started again whenever they die. The listening
socket is the supervisor's: while storage is started again, who wants it waits.
"""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace

import trio

from holdoverd.storage import door, enclose
from holdoverd.storage.keys import write_identities
from holdoverd.storage.plan import DOOR_FILE, READY_WITHIN_S, SIDE_PORTS, StoragePlan
from holdoverd.storage.serve import is_alive, is_ready
from holdoverd.supervisor import words
from holdoverd.supervisor.daemon import wait_ended
from holdoverd.supervisor.plan import StorageUp
from holdoverd.supervisor.restart import Restart

Popen = subprocess.Popen[bytes]

# Asked to stop it waits for connections that nobody closes; what it has acknowledged is kept anyway.
STOP_S = 2.0
LOOK_S = 10.0
MAX_SILENCE_S = 60.0
MAX_LOG_BYTES = 16 << 20


class Storage:
    """Keeps storage running; `say` gets a sentence whenever something happened to it.

    `walled` turns False where the kernel grants no walls; it is not tried again then.
    """

    def __init__(self, up: StorageUp, listener: socket.socket, say: Callable[[str], None]) -> None:
        self._up = up
        self._listener = listener
        self._say = say
        self._process: Popen | None = None
        self._door: Popen | None = None
        self.walled = True
        self._running = trio.CancelScope()
        self.ready = trio.Event()
        # Several of these a second would otherwise be told to the terminal.
        self._log = os.open(up.log, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)

    @property
    def pid(self) -> int:
        """The living SeaweedFS; 0 between two of them."""
        return self._process.pid if self._process is not None else 0

    async def run(self) -> None:
        """Start both again and again. Returns when storage never worked; files wait then."""
        write_identities(self._up.keys, self._up.plan.identities)
        self._tell_where()
        with self._running:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._keep_door)
                await self._keep_storage()
                nursery.cancel_scope.cancel()

    def _tell_where(self) -> None:
        """For `holdover storage doctor`, which has neither our port nor our folders."""
        host, port = self._listener.getsockname()[:2]
        host = f"[{host}]" if ":" in host else host
        told = {"endpoint": f"http://{host}:{port}", "keys": str(self._up.keys)}
        (self._up.plan.sockets / DOOR_FILE).write_text(json.dumps(told))

    async def _keep_door(self) -> None:
        restart = Restart()
        while True:
            started = trio.current_time()
            fd = self._listener.fileno()
            self._door = self._spawn(door.__file__, str(fd), str(self._up.plan.s3_socket), fds=[fd])
            await wait_ended(self._door)
            await trio.sleep(restart.died(trio.current_time() - started, was_ready=True) or 1)

    async def _keep_storage(self) -> None:
        restart = Restart()
        while True:
            started = trio.current_time()
            process = self._process = self._start()
            with trio.CancelScope() as watching:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(self._watch, process)
                    await wait_ended(process)
                    watching.cancel()
            self._process = None
            if process.returncode == enclose.REFUSED and self.walled:
                self.walled = False
                self._say(words.no_walls())
                continue
            was_ready, self.ready = self.ready.is_set(), trio.Event()
            delay_s = restart.died(trio.current_time() - started, was_ready)
            self._say(words.storage_died(process.returncode or 0, delay_s, self._up.log))
            if delay_s is None:
                return
            await trio.sleep(delay_s)

    def _start(self) -> Popen:
        plan = self._up.plan
        if self.walled:
            folders = f"{plan.data}:{plan.sockets}"
            return self._spawn(enclose.__file__, folders, *plan.command())
        return self._spawn(enclose.__file__, "-", *_with_free_ports(plan).command())

    def _spawn(self, script: str, *arguments: str, fds: list[int] | None = None) -> Popen:
        # Not trio's open_process; see Daemon._spawn.
        return subprocess.Popen(
            [sys.executable, "-I", "-S", script, str(os.getpid()), *arguments],
            stdin=subprocess.DEVNULL,
            stdout=self._log,
            stderr=self._log,
            pass_fds=fds or [],
            cwd=self._up.plan.data,
            umask=0o077,
            start_new_session=True,  # Ctrl-C is for us; storage is stopped last
        )

    async def _watch(self, process: Popen) -> None:
        """Set `ready` once it answers; kill it when it has been silent for too long."""
        answered = trio.current_time()
        while True:
            look = is_alive if self.ready.is_set() else is_ready
            well = await trio.to_thread.run_sync(
                look, self._up.plan.sockets, abandon_on_cancel=True
            )
            now = trio.current_time()
            if well:
                answered = now
                self.ready.set()
            elif now - answered > (MAX_SILENCE_S if self.ready.is_set() else READY_WITHIN_S):
                process.kill()
                return
            if os.fstat(self._log).st_size > MAX_LOG_BYTES:
                os.ftruncate(self._log, 0)
            await trio.sleep(LOOK_S if self.ready.is_set() else 0.2)

    async def stop(self) -> None:
        """TERM to both, and KILL to what is left after `STOP_S`."""
        self._running.cancel()
        both = [one for one in (self._door, self._process) if one is not None]
        _signal_all(both, signal.SIGTERM)
        with trio.move_on_after(STOP_S):
            for one in both:
                await wait_ended(one)
        _signal_all(both, signal.SIGKILL)
        for one in both:
            await wait_ended(one)

    def close(self) -> None:
        os.close(self._log)


def _with_free_ports(plan: StoragePlan) -> StoragePlan:
    """`plan` with ports that nobody listened on just now."""
    with contextlib.ExitStack() as held:
        taken = [
            held.enter_context(socket.create_server(("127.0.0.1", 0))).getsockname()[1]
            for _ in SIDE_PORTS
        ]
    return replace(plan, ports=tuple(taken))


def _signal_all(processes: list[Popen], number: signal.Signals) -> None:
    for one in processes:
        if one.poll() is None:
            one.send_signal(number)
