"""Predecessors that stand still while a deploy runs: found by their silence, and killed.

Instances watch each other, but one that is alone has nobody who would miss it, and its watchdog is
patient. Whoever deploys is there anyway.

A predecessor is asked for a word once it is READY: a start may take its time. One of a release that
has no control socket is left to its watchdog. Nothing is believed of what is said; that it is said
is enough, whether by one that serves or one that drains: the loop turns.
"""

import contextlib
import select
import socket
import struct
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType

from holdoverd.deploy.control import HELLO, MAX_PACKET_BYTES, control_sockets
from holdoverd.deploy.hosts import Host
from holdoverd.deploy.layout import InstallError
from holdoverd.deploy.pulse import LOOK_S, SILENT_S, Pulse

SEEK_S = 0.5

_UCRED = struct.Struct("3i")  # pid, uid, gid; unix(7)


class Ear:
    """One predecessor's control socket, which beats twice a second to whoever has said hello."""

    def __init__(self, path: Path) -> None:
        """Raises OSError: nobody listens there, or so many wait that there is no telling."""
        self._sock = socket.socket(
            socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC
        )
        try:
            self._sock.connect(str(path))
            self._sock.send(HELLO)
            credentials = self._sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size)
        except BaseException:
            self._sock.close()
            raise
        self.pid: int = _UCRED.unpack(credentials)[0]
        self.pulse = Pulse(time.monotonic())

    def fileno(self) -> int:
        return self._sock.fileno()

    def close(self) -> None:
        self._sock.close()

    def heard(self) -> bool | None:
        """Whether anything was said; None once its process, or this connection, has ended."""
        heard = False
        while True:
            try:
                # Descriptors that came along would be closed by the kernel.
                said = self._sock.recv(MAX_PACKET_BYTES)
            except BlockingIOError:
                return heard
            except OSError:
                return None
            if not said:
                return None
            heard = True


class Watch:
    """Listens to all generations before `generation`, in a thread, for as long as it is entered."""

    def __init__(self, host: Host, generation: int, say: Callable[[str], None]) -> None:
        self._host = host
        self._generation = generation
        self._say = say
        self._folder = host.control_path(generation).parent
        self._ears: dict[int, Ear] = {}  # {generation: …}
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> "Watch":
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._over.set()
        self._thread.join()
        self.close()

    def close(self) -> None:
        """Listen to nobody any more; what `with` does at its end."""
        while self._ears:
            self._ears.popitem()[1].close()

    def _run(self) -> None:
        seek_at = time.monotonic()
        while not self._over.is_set():
            if time.monotonic() >= seek_at:
                self._seek()
                seek_at = time.monotonic() + SEEK_S
            if self._ears:
                select.select(list(self._ears.values()), [], [], LOOK_S)
            else:
                self._over.wait(LOOK_S)
            self._listen()

    def _seek(self) -> None:
        """Ask those for a word who are new here, or have been started again."""
        for generation, path in control_sockets(self._folder):
            if generation >= self._generation or generation in self._ears:
                continue
            with contextlib.suppress(OSError, InstallError):
                if self._host.ready(generation):
                    self._ears[generation] = Ear(path)

    def _listen(self) -> None:
        for generation, ear in list(self._ears.items()):
            heard = ear.heard()
            if heard is None:
                # It has died, and will be started again; or it has too many operators.
                ear.close()
                del self._ears[generation]
            elif ear.pulse.look(time.monotonic(), heard=heard):
                self._end(generation, ear)

    def _end(self, generation: int, ear: Ear) -> None:
        ear.pulse = Pulse(time.monotonic())
        with contextlib.suppress(OSError, InstallError):
            self._host.end_process(generation, ear.pid)
            self._say(
                f"generation {generation} has given no sign of life for {SILENT_S:.0f} s; process "
                f"{ear.pid} is killed, to be started again"
            )
