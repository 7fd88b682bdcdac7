"""From exec of `python -m holdoverd` to its `READY=1` datagram, with its two listening sockets
passed as systemd passes them and a catalogue that exists and holds sessions. Beside it, by turns,
`python -c 'import trio, sqlalchemy, msgspec, trio_websocket'`: what any program on these libraries
spends before its first line.
"""

import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from tests.bench.rows import Row
from tests.live.up import running

RUNS = 15
SESSIONS = 20
READY_S = 60.0
IMPORTS = "import trio, sqlalchemy, msgspec, trio_websocket"


def measure() -> Iterator[Row]:
    with tempfile.TemporaryDirectory(prefix="hb-") as name:
        folder = Path(name)
        with running(folder) as up:
            for _ in range(SESSIONS):
                session = up.new_session("history 100")["id"]
                up.wait_state(session, "idle")
                up.call("DELETE", f"/v1/sessions/{session}")
                up.wait_state(session, "ended")
        ours: list[float] = []
        theirs: list[float] = []
        for _ in range(RUNS + 1):
            ours.append(_ready_ms(folder))
            theirs.append(_imports_ms())
    yield Row("daemon start to READY", "ms", ours[1:], "importing its libraries alone", theirs[1:])


def _imports_ms() -> float:
    started = time.perf_counter()
    subprocess.run([sys.executable, "-c", IMPORTS], check=True)
    return (time.perf_counter() - started) * 1000


def _ready_ms(folder: Path) -> float:
    runtime = folder / "run"
    notify_path = runtime / "bench-notify.sock"
    with (
        socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notify,
        socket.create_server(("127.0.0.1", 0)) as public,
        socket.socket(socket.AF_UNIX) as admin,
        (folder / "output").open("ab") as output,
    ):
        for sock, path in ((notify, notify_path), (admin, runtime / "bench-admin.sock")):
            path.unlink(missing_ok=True)
            sock.bind(str(path))
        admin.listen(16)
        notify.settimeout(READY_S)
        env = {
            **os.environ,
            "HOLDOVER_STATE_DIR": str(folder / "state"),
            "HOLDOVER_RUNTIME_DIR": str(runtime),
            "HOLDOVER_CONFIG_DIR": str(folder / "config"),
            "NOTIFY_SOCKET": str(notify_path),
            "LISTEN_FDS": "2",
            "LISTEN_FDNAMES": "public:admin",
        }
        started = time.perf_counter()
        pid = os.fork()
        if pid == 0:
            _become_daemon(env, [public.fileno(), admin.fileno()], output.fileno())
        try:
            while b"READY=1" not in notify.recv(4096).split(b"\n"):
                pass
            return (time.perf_counter() - started) * 1000
        finally:
            os.kill(pid, signal.SIGTERM)
            os.waitpid(pid, 0)


def _become_daemon(env: dict[str, str], sockets: list[int], output: int) -> None:
    """In the child: LISTEN_PID has to be its own pid, and descriptors count from 3."""
    try:
        os.dup2(output, 2)
        copies = [os.dup(fd) for fd in sockets]
        for target, fd in enumerate(copies, start=3):
            os.dup2(fd, target, inheritable=True)
        command = [sys.executable, "-m", "holdoverd", "--generation", "1"]
        os.execve(command[0], command, {**env, "LISTEN_PID": str(os.getpid())})
    finally:
        os._exit(127)
