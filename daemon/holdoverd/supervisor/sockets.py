"""The folders, locks and listening sockets of `holdover up`."""

import contextlib
import errno
import fcntl
import os
import socket
from dataclasses import dataclass
from pathlib import Path

from holdoverd.errors import SettingsError
from holdoverd.supervisor.plan import Plan

BACKLOG = 1024  # connections wait here while no daemon lives


@dataclass(frozen=True)
class Sockets:
    """All of them open; the locks are held as long as `locks` are. `storage`: only where it runs."""

    public: socket.socket
    admin: socket.socket
    launch: socket.socket
    control: socket.socket
    notify: socket.socket
    workers: socket.socket
    locks: tuple[int, ...]
    storage: socket.socket | None = None

    def address(self) -> str:
        """The public listener as a URL; a wildcard address as the loopback that reaches it."""
        return _url(self.public)

    def storage_address(self) -> str | None:
        """Where S3 is, as a URL; None where no storage is run here."""
        return _url(self.storage) if self.storage is not None else None

    def close(self) -> None:
        for one in (
            self.public,
            self.admin,
            self.launch,
            self.control,
            self.notify,
            self.workers,
            self.storage,
        ):
            if one is not None:
                one.close()
        for fd in self.locks:
            os.close(fd)


def _url(listener: socket.socket) -> str:
    host, port = listener.getsockname()[:2]
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)  # noqa: S104  compared only
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def storage_environment(plan: Plan, sockets: Sockets) -> dict[str, str]:
    """How the storage that is run here is told to those who use it; nothing where there is none."""
    endpoint = sockets.storage_address()
    if endpoint is None or plan.storage is None:
        return {}
    return {
        "HOLDOVER_STORAGE_ENDPOINT": endpoint,
        "HOLDOVER_STORAGE_CREDENTIALS": str(plan.storage.keys),
    }


def open_sockets(plan: Plan) -> Sockets:
    """Make the folders, take both locks, listen. Raises `SettingsError` for what is in the way."""
    with contextlib.ExitStack() as undo:
        try:
            folders = [plan.state, plan.state / "spool", plan.runtime]
            folders += [
                plan.runtime / name for name in ("agents", "instances", "sessions", "workers")
            ]
            if plan.storage is not None:
                folders += [plan.storage.plan.data, plan.storage.plan.sockets]
            for folder in folders:
                folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            locks = []
            for folder in dict.fromkeys((plan.state, plan.runtime)):
                locks.append(_lock(folder))
                undo.callback(os.close, locks[-1])
            public = undo.enter_context(_tcp(plan.host, plan.port))
            admin = undo.enter_context(_unix(plan.admin_socket, socket.SOCK_STREAM))
            launch = undo.enter_context(_unix(plan.launch_socket, socket.SOCK_STREAM))
            control = undo.enter_context(_unix(plan.control_socket, socket.SOCK_STREAM))
            notify = undo.enter_context(_unix(plan.notify_socket, socket.SOCK_DGRAM))
            workers = undo.enter_context(_unix(plan.workers_socket, socket.SOCK_STREAM))
            storage = None
            if plan.storage is not None:
                # Of a storage that was killed: they would be taken for the new one's.
                for path in plan.storage.plan.sockets.glob("*.sock"):
                    path.unlink()
                # At any free port where that one is taken: URLs are signed with the port it got.
                with contextlib.suppress(SettingsError):
                    storage = undo.enter_context(_tcp(plan.storage.host, plan.storage.port))
                storage = storage or undo.enter_context(_tcp(plan.storage.host, 0))
        except OSError as error:
            what = f" {error.filename}" if error.filename else ""
            raise SettingsError(
                f"`holdover up` cannot set itself up{what}: {error.strerror or error}."
            ) from error
        for one in (public, admin, launch, control):
            # The flag is shared by all who hold the listener: with two daemons on it, one that
            # loses the race for a connection must not stand in accept().
            one.setblocking(False)
        notify.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
        undo.pop_all()
    return Sockets(public, admin, launch, control, notify, workers, tuple(locks), storage)


def _lock(folder: Path) -> int:
    fd = os.open(folder / "up.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        holder = os.pread(fd, 32, 0).decode(errors="replace").strip()
        os.close(fd)
        raise SettingsError(
            f"Another `holdover up` (process {holder or 'unknown'}) holds {folder}: use that one, "
            "stop it, or give this one a folder of its own with --state-dir."
        ) from error
    os.ftruncate(fd, 0)
    os.pwrite(fd, f"{os.getpid()}\n".encode(), 0)
    return fd


def _tcp(host: str, port: int) -> socket.socket:
    try:
        return socket.create_server(
            (host, port),
            family=socket.AF_INET6 if ":" in host else socket.AF_INET,
            backlog=BACKLOG,
        )
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise SettingsError(
                f"Port {port} of {host} is in use by another program: stop that, or choose "
                "another with `holdover up --port N` (0 takes any that is free)."
            ) from error
        raise SettingsError(
            f"{host} port {port} cannot be listened on: {error.strerror or error}."
        ) from error


def _unix(path: Path, kind: socket.SocketKind) -> socket.socket:
    """A socket at `path` that only its owner may use. What lies there is of a dead supervisor."""
    path.unlink(missing_ok=True)
    one = socket.socket(socket.AF_UNIX, kind)
    try:
        one.bind(str(path))
        path.chmod(0o600)
        if kind == socket.SOCK_STREAM:
            one.listen(BACKLOG)
    except BaseException:
        one.close()
        raise
    return one
