"""A machine to test on: a container with a root of its own, in which nothing that is done lasts.

`Machine.boot()` starts a real systemd as PID 1; `Machine.enter()` a root without any systemd. Both
live on an overlay in memory, in a mount namespace that nobody else sees: when the test
run ends, even by SIGKILL, processes, mounts and files are gone with it. Nothing here waits for
time: systemd itself says when it has booted.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import queue
import select
import shutil
import signal
import socket
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

SOURCE = Path(__file__).resolve().parents[2]
# Where `put_source` lays the tree inside, and where the wheelhouse is bound.
SOURCE_INSIDE = "/usr/src/holdover"
WHEELHOUSE_INSIDE = "/usr/src/wheelhouse"

# A boot takes about five seconds on an idle machine.
BOOT_TIMEOUT_S = 120
COMMAND_TIMEOUT_S = 120

CONTROLLERS = ("memory", "pids", "cpu", "cpuacct")
CGROUPS = Path("/sys/fs/cgroup")
# Hierarchies in which a container needs a group of its own: for its limits, and, in the last two of
# cgroups v1 and at the top of v2 ("."), because two systemds in one group take each other's
# services for their own, and wait for them forever.
HIERARCHIES = (*CONTROLLERS, "systemd", "unified", ".")

# They wait for a network or a person, or are the test machine's own and no part of a host.
MASKED = (
    "systemd-networkd-wait-online.service",
    "systemd-firstboot.service",
    "systemd-timesyncd.service",
    "postgresql.service",
    "console-getty.service",
    "getty.target",
    "timers.target",
)
PATH_INSIDE = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

# $1 stage folder, $2 lower root, $3 name; the rest: nspawn and its arguments. What it runs inside
# says a file beside the stage: `boot` for systemd, else a stub; `boot-next` is for the next time.
STAGE = r"""
set -eu
stage=$1 lower=$2 name=$3
shift 3
mount -t tmpfs -o mode=0755 holdover-test "$stage"
mkdir "$stage/upper" "$stage/work" "$stage/root"
mount -t overlay overlay -o "lowerdir=$lower,upperdir=$stage/upper,workdir=$stage/work" "$stage/root"
# nspawn keeps a folder for each container there; ours leave no trace.
mkdir -p /run/systemd/nspawn
mount -t tmpfs -o mode=0700 holdover-test /run/systemd/nspawn
cd "$stage/root"
# A Holdover that this machine has of its own is no part of the test.
rm -rf opt/holdover etc/holdover etc/systemd/system/*holdover* etc/systemd/system/*/holdover* \
    var/lib/holdover* usr/local/bin/holdover usr/local/share/doc/holdover
mkdir -p usr/src etc/systemd/system
: >etc/machine-id
for unit in $MASKED; do ln -sfn /dev/null "etc/systemd/system/$unit"; done
for hierarchy in $HIERARCHIES; do
    [ -e "/sys/fs/cgroup/$hierarchy/cgroup.procs" ] || continue
    mkdir "/sys/fs/cgroup/$hierarchy/$name"
    echo $$ >"/sys/fs/cgroup/$hierarchy/$name/cgroup.procs"
done
cd /
while :; do
    status=0
    if [ -e "$stage.boot" ]; then
        "$@" --boot --notify-ready=yes || status=$?
    else
        "$@" --as-pid2 -- sleep infinity || status=$?
    fi
    # nspawn asks by 133 to be started again: the machine has rebooted.
    [ "$status" = 133 ] || mv "$stage.boot-next" "$stage.boot" 2>/dev/null || exit "$status"
done
"""

# nspawn mounts the controllers read-only; systemd believes in them after looking again.
ENABLE_LIMITS = r"""
set -eu
for controller in $CONTROLLERS; do
    [ ! -d "/sys/fs/cgroup/$controller" ] || mount -o remount,bind,rw "/sys/fs/cgroup/$controller"
done
systemctl daemon-reexec
"""


def source_files() -> list[str]:
    """The tree as it stands now, without ignored files: paths from its root."""
    listing = subprocess.run(
        ["git", "-C", str(SOURCE), "ls-files", "-z", "-co", "--exclude-standard"],
        capture_output=True,
        check=True,
    ).stdout
    # Files removed from the work tree, but not yet from the index, are no part of it.
    return [n for n in map(os.fsdecode, listing.split(b"\0")) if n and os.path.lexists(SOURCE / n)]


def copy_source(tree: Path) -> None:
    """Lay those files into a folder of this machine's."""
    for name in source_files():
        (tree / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(SOURCE / name, tree / name)


class MachineError(Exception):
    """The machine did not do what a machine does; the message carries its console or output."""


class Machine:
    """A handle on one container. Close it, or use it as a context."""

    def __init__(self, lower: Path, *, network: bool, unified: bool = False) -> None:
        self._lower = lower
        self._network = network
        self._unified = unified
        self._name = f"holdover-test-{os.getpid()}-{os.urandom(3).hex()}"
        self._folder = Path(tempfile.mkdtemp(prefix="holdover-machine-"))
        self._stage: subprocess.Popen[bytes] | None = None
        self._notify: socket.socket | None = None
        self._said: queue.Queue[list[str] | None] = queue.Queue()
        self.leader = 0
        """PID 1 of the container, as this process sees it."""

    # -- Life ------------------------------------------------------------------------------------

    @classmethod
    def boot(
        cls, lower: Path = Path("/"), *, network: bool = False, unified: bool = False
    ) -> Machine:
        """Boot the system under `lower`; returns when systemd says that it is up.

        `unified`: with control groups of version 2 alone, as systemd 256 and newer want them; on a
        machine that has its controllers in version 1, limits are not enforced then.
        """
        machine = cls(lower, network=network, unified=unified)
        try:
            (machine._folder / "stage.boot").touch()
            machine._start()
            machine._wait_booted(previous_leader=0)
        except BaseException:
            machine.close()
            raise
        return machine

    @classmethod
    def enter(cls, lower: Path, *, network: bool = False) -> Machine:
        """A root without systemd: PID 1 is a stub that reaps, nothing else runs."""
        machine = cls(lower, network=network)
        try:
            machine._start()
            machine._wait_message("READY=1", previous_leader=0)
        except BaseException:
            machine.close()
            raise
        return machine

    def start_systemd(self) -> None:
        """Boot what was entered: the same files, now with systemd as PID 1."""
        previous = self.leader
        (self._folder / "stage.boot-next").touch()
        os.kill(previous, signal.SIGKILL)
        self._wait_booted(previous_leader=previous)

    def _start(self) -> None:
        address = self._folder / "notify"
        self._notify = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)
        self._notify.bind(str(address))
        threading.Thread(target=self._listen, args=(self._notify,), daemon=True).start()
        stage = self._folder / "stage"
        stage.mkdir()
        nspawn = ["systemd-nspawn", "--quiet", "--directory", str(stage / "root")]
        nspawn += ["--register=no", "--keep-unit", "--console=pipe"]
        nspawn += [f"--machine={self._name}", "--hostname=holdover-test"]
        nspawn += [] if self._network else ["--private-network"]
        wheelhouse = SOURCE / ".build/wheelhouse"
        if wheelhouse.is_dir():
            nspawn.append(f"--bind-ro={wheelhouse}:{WHEELHOUSE_INSIDE}")
        # A container outlives a killed nspawn. Not so in here: the parent death signal ends unshare
        # with the test run, however that ends, and the end of a pid namespace's first process ends
        # all others in it.
        start = ["setpriv", "--pdeathsig", "KILL", "unshare", "--mount", "--propagation", "private"]
        start += ["--pid", "--fork", "--kill-child", "--mount-proc"]
        start += ["sh", "-c", STAGE, "stage", str(stage), str(self._lower), self._name]
        with (self._folder / "console").open("wb") as console:
            self._stage = subprocess.Popen(
                [*start, *nspawn],
                stdin=subprocess.DEVNULL,
                stdout=console,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                env={
                    "PATH": PATH_INSIDE,
                    "NOTIFY_SOCKET": str(address),
                    "MASKED": " ".join(MASKED),
                    "HIERARCHIES": " ".join(HIERARCHIES),
                    **({"SYSTEMD_NSPAWN_UNIFIED_HIERARCHY": "1"} if self._unified else {}),
                },
            )

    def _listen(self, notify: socket.socket) -> None:
        """Take what nspawn says as it comes, until the container is closed.

        systemd tells it of each reload, and stands still once nobody has taken ten of them.
        """
        with contextlib.suppress(OSError):
            while said := notify.recv(4096):
                self._said.put(said.decode().splitlines())
        self._said.put(None)

    def _wait_message(self, wanted: str, *, previous_leader: int) -> None:
        """Wait until nspawn has named a leader other than the previous, and said `wanted`."""
        assert self._stage is not None
        deadline = time.monotonic() + BOOT_TIMEOUT_S
        while True:
            try:
                fields = self._said.get(timeout=0.2)
            except queue.Empty:
                if self._stage.poll() is not None:
                    raise MachineError(
                        f"the container ended while starting\n{self.console()}"
                    ) from None
                if time.monotonic() > deadline:
                    raise MachineError(
                        f"not up after {BOOT_TIMEOUT_S} s\n{self.console()}"
                    ) from None
                continue
            if fields is None:
                raise MachineError(f"the container was closed while starting\n{self.console()}")
            for field in fields:
                if field.startswith("X_NSPAWN_LEADER_PID="):
                    self.leader = self._outer_pid(int(field.partition("=")[2]))
            if wanted in fields and self.leader not in (0, previous_leader):
                return

    def _outer_pid(self, pid: int) -> int:
        """Our number of the container's PID 1, which nspawn, in its namespace, knows as `pid`."""
        assert self._stage is not None
        candidates = _children(self._stage.pid)
        while candidates:
            candidate = candidates.pop()
            with contextlib.suppress(ProcessLookupError, FileNotFoundError):  # it ended meanwhile
                status = Path(f"/proc/{candidate}/status").read_text()
                (line,) = (line for line in status.splitlines() if line.startswith("NSpid:"))
                if line.split()[-2:] == [str(pid), "1"]:
                    return candidate
            candidates += _children(candidate)
        raise MachineError(f"nspawn names a leader {pid} that cannot be found\n{self.console()}")

    def _wait_booted(self, *, previous_leader: int) -> None:
        self._wait_message("READY=1", previous_leader=previous_leader)
        self.run(["sh", "-c", ENABLE_LIMITS], env={"CONTROLLERS": " ".join(CONTROLLERS)})

    def go_first(self) -> None:
        """Have its processes go before what else this computer does, for what is to be measured."""
        with contextlib.suppress(FileNotFoundError):  # no such controller in version 1
            (CGROUPS / "cpu" / self._name / "cpu.shares").write_text("262144")

    def reboot(self, *, force: bool = False) -> None:
        """Reboot and wait until it is up again. Files stay; `force` skips stopping services."""
        previous = self.leader
        flags = ["--force", "--force"] if force else []
        # The command may die with the system that it reboots.
        self.run(["systemctl", "reboot", *flags], check=False)
        self._wait_booted(previous_leader=previous)

    def close(self) -> None:
        """End this container and nothing else; safe to call twice."""
        if self._stage is not None:
            with contextlib.suppress(ProcessLookupError):
                self._stage.kill()
            self._stage.wait()
            self._stage = None
        if self._notify is not None:
            with contextlib.suppress(OSError):
                self._notify.shutdown(socket.SHUT_RDWR)  # wakes the listener
            self._notify.close()
            self._notify = None
        self._remove_cgroups()
        shutil.rmtree(self._folder, ignore_errors=True)

    def _remove_cgroups(self) -> None:
        """The container's processes die with nspawn, but a moment later; its groups then empty."""
        for hierarchy in HIERARCHIES:
            top = CGROUPS / hierarchy / self._name
            if not top.is_dir():
                continue
            for process in (top, *top.rglob("cgroup.procs")):
                path = process / "cgroup.procs" if process.is_dir() else process
                for pid in _pids(path):
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(pid, signal.SIGKILL)
                        descriptor = os.pidfd_open(pid)
                        select.select([descriptor], [], [], 10)
                        os.close(descriptor)
            for folder, _, _ in os.walk(top, topdown=False):
                with contextlib.suppress(OSError):
                    os.rmdir(folder)

    def __enter__(self) -> Machine:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def console(self) -> str:
        """What the container printed so far, for error messages."""
        return (self._folder / "console").read_text(errors="replace")[-8000:]

    # -- Commands --------------------------------------------------------------------------------

    def _command(
        self, command: Sequence[str], user: str | None, env: Mapping[str, str] | None, cwd: str
    ) -> list[str]:
        enter = ["nsenter", "--target", str(self.leader)]
        enter += ["--mount", "--uts", "--ipc", "--net", "--pid", "--cgroup"]
        # Killing what we started kills nsenter; its child has to follow.
        drop = ["setpriv", "--pdeathsig", "KILL"]
        home = "/root"
        if user is not None:
            uid, gid, home = self.account(user)
            drop += [f"--reuid={uid}", f"--regid={gid}", "--init-groups", "--inh-caps=-all"]
        variables = {"PATH": PATH_INSIDE, "HOME": home, "LANG": "C.UTF-8", **(env or {})}
        settings = [f"{name}={value}" for name, value in variables.items()]
        return [*enter, *drop, "env", "-i", "-C", cwd, *settings, *command]

    def account(self, user: str) -> tuple[int, int, str]:
        """The uid, gid and home of a user of the machine."""
        for line in self.read("/etc/passwd").splitlines():
            name, _, uid, gid, _, home, _ = line.split(":")
            if name == user:
                return int(uid), int(gid), home
        raise MachineError(f"the machine has no user {user}")

    def run(
        self,
        command: Sequence[str],
        *,
        user: str | None = None,
        check: bool = True,
        env: Mapping[str, str] | None = None,
        cwd: str = "/",
        input: str | None = None,  # noqa: A002 - as subprocess.run calls it
        timeout_s: float = COMMAND_TIMEOUT_S,
    ) -> subprocess.CompletedProcess[str]:
        """Run a command inside, in a clean environment; `check` raises with its output."""
        done = subprocess.run(
            self._command(command, user, env, cwd),
            input=input,
            stdin=subprocess.DEVNULL if input is None else None,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=timeout_s,
            check=False,
        )
        if check and done.returncode:
            raise MachineError(
                f"`{' '.join(command)}` exited {done.returncode}\n{done.stdout}{done.stderr}"
            )
        return done

    def popen(
        self,
        command: Sequence[str],
        *,
        user: str | None = None,
        env: Mapping[str, str] | None = None,
        cwd: str = "/",
        **options: Any,
    ) -> subprocess.Popen[Any]:
        """Start a command inside; options as for Popen. Killing it kills the command."""
        return subprocess.Popen(self._command(command, user, env, cwd), **options)

    def systemctl(self, *arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        return self.run(["systemctl", "--no-pager", *arguments], check=check)

    def show(self, unit: str, name: str) -> str:
        """One property of a unit, as `systemctl show` prints it."""
        return self.systemctl("show", "--value", "--property", name, unit).stdout.strip()

    def journal(self, unit: str, *arguments: str) -> str:
        """What a unit said, as lines of text; arguments as for journalctl."""
        options = ["--no-pager", "--output=cat", *arguments]
        return self.run(["journalctl", "--unit", unit, *options]).stdout

    # -- Files and sockets -----------------------------------------------------------------------

    def path(self, inside: str) -> Path:
        """The outside name of a file inside; a Unix socket can be connected to by it, too.

        Absolute symlinks on the way are resolved by the outside: use it on plain paths.
        """
        return Path(f"/proc/{self.leader}/root") / inside.lstrip("/")

    def read(self, inside: str) -> str:
        return self.path(inside).read_text()

    def write(self, inside: str, text: str, *, mode: int = 0o644) -> None:
        path = self.path(inside)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        path.chmod(mode)

    def connect_tcp(self, port: int, host: str = "127.0.0.1") -> socket.socket:
        """A connected socket of the machine's network, for use out here."""
        with open(f"/proc/{self.leader}/ns/net") as namespace:
            made = _in_network(namespace.fileno(), lambda: socket.create_connection((host, port)))
        # As http.client does with its own: else a body waits 40 ms for its head to be acknowledged.
        made.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return made

    @contextlib.contextmanager
    def forwarded(self, port: int) -> Iterator[int]:
        """A port out here that leads to `port` of the machine, for programs that only know ports."""
        opened = contextlib.ExitStack()

        def serve() -> None:
            with contextlib.suppress(OSError):
                while True:
                    outer = opened.enter_context(listener.accept()[0])
                    inner = opened.enter_context(self.connect_tcp(port))
                    for ends in ((outer, inner), (inner, outer)):
                        threading.Thread(target=_carry, args=ends, daemon=True).start()

        with opened, socket.create_server(("127.0.0.1", 0)) as listener:
            accepting = threading.Thread(target=serve, daemon=True)
            accepting.start()
            try:
                yield int(listener.getsockname()[1])
            finally:
                listener.shutdown(socket.SHUT_RDWR)
                accepting.join()

    def put_source(self, inside: str = SOURCE_INSIDE) -> None:
        """Lay the tree as it stands now (no ignored files) inside, as a fresh clone would."""
        pack = ["tar", "--create", "--owner=0", "--group=0", "--directory", str(SOURCE)]
        packed = subprocess.run(
            [*pack, "--null", "--files-from=-"],
            input=b"\0".join(map(os.fsencode, source_files())),
            capture_output=True,
            check=True,
        ).stdout
        self._unpack(packed, inside)

    def put_commit(self, commit: str, inside: str) -> None:
        """Lay the tree of an earlier commit inside."""
        packed = subprocess.run(
            ["git", "-C", str(SOURCE), "archive", commit], capture_output=True, check=True
        ).stdout
        self._unpack(packed, inside)

    def _unpack(self, packed: bytes, inside: str) -> None:
        self.run(["mkdir", "-p", inside])
        unpack = self._command(["tar", "--extract", "--directory", inside], None, None, "/")
        subprocess.run(unpack, input=packed, check=True)

    def install(self, *arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Run packaging/install from the tree laid inside, without network."""
        command = [f"{SOURCE_INSIDE}/packaging/install", "--wheelhouse", WHEELHOUSE_INSIDE]
        return self.run([*command, *arguments], check=check)


def _pids(path: Path) -> list[int]:
    try:
        return [int(pid) for pid in path.read_text().split()]
    except OSError:
        return []


def _children(pid: int) -> list[int]:
    return _pids(Path(f"/proc/{pid}/task/{pid}/children"))


def _carry(source: socket.socket, target: socket.socket) -> None:
    """All bytes of the one into the other, until either is gone."""
    with contextlib.suppress(OSError):
        while data := source.recv(1 << 16):
            target.sendall(data)
    with contextlib.suppress(OSError):
        target.shutdown(socket.SHUT_WR)


def _in_network(namespace: int, connect: Any) -> socket.socket:
    """Call `connect` in a thread that has moved to another network namespace, and ends there."""
    libc = ctypes.CDLL(None, use_errno=True)
    clone_newnet = 0x40000000
    results: list[socket.socket] = []
    errors: list[BaseException] = []

    def inside() -> None:
        try:
            if libc.setns(namespace, clone_newnet) != 0:
                number = ctypes.get_errno()
                raise OSError(number, os.strerror(number))
            results.append(connect())
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=inside)
    thread.start()
    thread.join()
    if errors:
        raise errors[0]
    return results[0]
