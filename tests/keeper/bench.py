"""A real keeper with a real agent, and the daemon's ends of it: for tests.

Waiting is for things that happen (a line from the keeper, a change of the spool, a process's
end), never for time. The timeouts only stop a test that has failed.
"""

from __future__ import annotations

import array
import contextlib
import fcntl
import json
import os
import select
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Self, TypeVar

import pytest
from inotify_simple import INotify, flags

from holdoverd.keeper import chain, protocol, spool

DEADLINE_S = 60.0
NONCE = "0123456789abcdef" * 2
DAEMON = Path(__file__).resolve().parents[2] / "daemon"
# The tree need not be installed: the path is put in by hand, because -I ignores PYTHONPATH.
KEEPER = (
    f"import sys; sys.path.insert(0, {str(DAEMON)!r}); "
    "from holdoverd.keeper.__main__ import main; sys.exit(main())"
)
PYTHON = (sys.executable, "-I", "-S", "-u", "-c")
ECHO = ("/bin/cat",)

Event = TypeVar("Event", bound=protocol.Event)


def _no_namespaces() -> str | None:
    """The reason to skip where unshare(1) fails, as in some containers; None where it works."""
    try:
        tried = subprocess.run([*chain.UNSHARE, "--", "true"], capture_output=True, check=False)
    except FileNotFoundError:
        return "needs unshare, not found on this machine"
    if tried.returncode == 0:
        return None
    return f"needs user and pid namespaces: {tried.stderr.decode(errors='replace').strip()}"


NO_NAMESPACES = _no_namespaces()
needs_namespaces = pytest.mark.skipif(NO_NAMESPACES is not None, reason=NO_NAMESPACES or "")


def python(code: str) -> tuple[str, ...]:
    """The argv of an agent written in Python."""
    return (*PYTHON, code)


class Owner:
    """One connection to a keeper, spoken with the daemon's own half of the protocol."""

    def __init__(self, path: Path) -> None:
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.socket.settimeout(DEADLINE_S)
        self.socket.connect(str(path))
        self.events: list[protocol.Event] = []
        self._rules = protocol.OwnerSide()

    def greet(self, epoch: int) -> protocol.Welcome:
        self.send(protocol.hello(epoch))
        return self.wait(protocol.Welcome)

    def send(self, data: bytes) -> None:
        self.socket.sendall(data)

    def wait(self, kind: type[Event]) -> Event:
        """The next event of this kind; earlier ones of other kinds are dropped."""
        while True:
            while self.events:
                event = self.events.pop(0)
                if isinstance(event, kind):
                    return event
            data = self.socket.recv(65536)
            assert data, f"the keeper hung up before {kind.__name__}"
            self.events += self._rules.receive(data)

    def wait_closed(self) -> list[protocol.Event]:
        """Everything said until the keeper hung up."""
        with contextlib.suppress(ConnectionResetError):
            while data := self.socket.recv(65536):
                self.events += self._rules.receive(data)
        return self.events

    def close(self) -> None:
        self.socket.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class Bench:
    """A folder with listener, lock and spool, and the keeper launched with them."""

    def __init__(self, folder: Path, spool_folder: Path | None = None) -> None:
        self.folder = folder
        self.home = folder / "home"
        self.home.mkdir()
        self.listener_path = folder / "k.sock"
        self.lock_path = folder / "k.lock"
        self.spool_path = (spool_folder or folder) / "k.spool"
        self.stderr_path = folder / "stderr"
        self.keeper: subprocess.Popen[bytes] | None = None
        self.agent_pid = 0
        self.runner: tuple[str, ...] = (sys.executable, "-I", "-c", KEEPER)
        self._inotify = INotify()

    # --------------------------------------------------------------------------------- launching

    def request(self, argv: tuple[str, ...], **changes: Any) -> dict[str, Any]:
        request: dict[str, Any] = {
            "session": "s_test",
            "launch": "l_test",
            "nonce": NONCE,
            "owner_epoch": 7,
            "argv": list(argv),
            "env": {},
            "cwd": None,
            "workspace": "s_test",
            "roots": [],
            "lookup": {"transcripts": [], "uuids": []},
        }
        return request | changes

    def start(self, *options: str, inherited: Mapping[str, str] | None = None) -> socket.socket:
        """Start a keeper; the daemon's end of its launch connection."""
        ours, theirs = socket.socketpair()
        ours.settimeout(DEADLINE_S)
        with theirs, open(self.stderr_path, "ab") as stderr:
            self.keeper = subprocess.Popen(
                [*self.runner, *options],
                stdin=theirs,
                stdout=subprocess.DEVNULL,
                stderr=stderr,
                env={"PATH": os.environ["PATH"], "HOME": str(self.home), **(inherited or {})},
            )
        return ours

    def descriptors(self) -> list[int]:
        """[listener, lock, spool], as the daemon makes them; the caller closes them."""
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        listener.bind(str(self.listener_path))
        listener.listen(16)
        lock = os.open(self.lock_path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        spool_fd = os.open(
            self.spool_path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600
        )
        self._inotify.add_watch(self.spool_path, flags.MODIFY)
        return [listener.detach(), lock, spool_fd]

    def launch(
        self,
        argv: tuple[str, ...],
        *options: str,
        inherited: Mapping[str, str] | None = None,
        **changes: Any,
    ) -> dict[str, Any]:
        """The whole launch; the keeper's answer. `changes` are fields of the request."""
        ours = self.start(*options, inherited=inherited)
        with ours:
            fds = self.descriptors()
            self.send(ours, protocol.launch_request(self.request(argv, **changes)), fds)
            for fd in fds:
                os.close(fd)
            answer = self.answer(ours)
        self.agent_pid = answer.get("agent_pid", 0)
        return answer

    def launched(self, argv: tuple[str, ...], *options: str, **changes: Any) -> dict[str, Any]:
        """`launch` that has to succeed."""
        answer = self.launch(argv, *options, **changes)
        assert answer["ok"], (answer, self.stderr())
        return answer

    @staticmethod
    def send(connection: socket.socket, data: bytes, fds: list[int]) -> None:
        ancillary = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
        sent = connection.sendmsg([data], ancillary)
        connection.sendall(data[sent:])

    @staticmethod
    def answer(connection: socket.socket) -> dict[str, Any]:
        data = b""
        while chunk := connection.recv(65536):
            data += chunk
        return protocol.parse_launch_answer(data)

    def owner(self, epoch: int | None = 7) -> Owner:
        """A connection, greeted unless `epoch` is None."""
        owner = Owner(self.listener_path)
        if epoch is not None:
            owner.greet(epoch)
        return owner

    # ----------------------------------------------------------------------------------- watching

    def stderr(self) -> str:
        return self.stderr_path.read_text(errors="replace") if self.stderr_path.exists() else ""

    def spooled(self) -> bytes:
        return self.spool_path.read_bytes()

    def wait_spool(self, enough: Callable[[bytes], object]) -> bytes:
        """The spool's content once `enough` says so."""
        deadline = time.monotonic() + DEADLINE_S
        while not enough(data := self.spooled()):
            left = deadline - time.monotonic()
            assert left > 0, (data[-300:], self.stderr())
            self._inotify.read(timeout=int(left * 1000))
        return data

    def wait_stderr(self, text: str) -> None:
        """Until the keeper (or agent) has said this on stderr."""
        with INotify() as inotify:
            inotify.add_watch(self.stderr_path, flags.MODIFY)
            deadline = time.monotonic() + DEADLINE_S
            while text not in self.stderr():
                left = deadline - time.monotonic()
                assert left > 0, self.stderr()
                inotify.read(timeout=int(left * 1000))

    def wait_end(self) -> tuple[bytes, spool.EndRecord]:
        """The agent's output and the end record, once the keeper has ended by itself."""
        assert self.keeper is not None
        assert self.keeper.wait(DEADLINE_S) == 0, self.stderr()
        data = self.spooled()
        assert data.endswith(b"\n")
        start = data.rfind(b"\n", 0, -1) + 1
        record = spool.parse_end_record(data[start:], NONCE)
        assert record is not None, data[-300:]
        return data[:start], record

    def lock_is_held(self) -> bool:
        with open(self.lock_path, "rb") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                return True
            return False

    def wait_lock_free(self) -> None:
        subprocess.run(["flock", "--wait", str(DEADLINE_S), self.lock_path, "true"], check=True)

    def close(self) -> None:
        if self.keeper is not None and self.keeper.poll() is None:
            self.keeper.kill()
            self.keeper.wait()
            # Whatever it kept dies with it; the lock tells when.
            if self.lock_path.exists():
                self.wait_lock_free()
        self._inotify.close()


@contextlib.contextmanager
def bench(spool_folder: Path | None = None) -> Iterator[Bench]:
    """A bench in a folder with a short name: a Unix socket's path has at most 107 bytes."""
    folder = Path(tempfile.mkdtemp(prefix="hk-"))
    made = Bench(folder, spool_folder)
    try:
        yield made
    finally:
        made.close()
        shutil.rmtree(folder, ignore_errors=True)


def wait_gone(pid: int) -> None:
    """Until this process (ours or not) has ended."""
    try:
        pidfd = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    try:
        ready, _, _ = select.select([pidfd], [], [], DEADLINE_S)
        assert ready, f"process {pid} is still there"
    finally:
        os.close(pidfd)


def status_of(pid: int) -> dict[str, str]:
    """/proc/PID/status."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return {name: value.strip() for name, _, value in (line.partition(":") for line in lines)}


def json_lines(data: bytes) -> list[Any]:
    return [json.loads(line) for line in data.splitlines()]
