"""`holdover file put` and `get` of a file of random bytes, by turns with rclone (`copyto`, S3) against the
same SeaweedFS: parts of 16 MiB, four at a time, both. Ours declares and proves SHA-256 from end to end,
rclone MD5. The daemon's growth is that of its resident memory over all transfers; what crossed its
sockets is counted by a relay before its public port, and by the kernel on its connections to storage.

Ours is on the disk when it ends, there (`complete` waits for storage's) and here (`get` syncs before it
renames); rclone waits for neither. So each stands beside rclone twice: as it is, with the bound, and
followed by a sync(1) of the same file system.

HOLDOVER_BENCH_FILE_MIB says how large the file is, HOLDOVER_BENCH_RUNS how often it goes.
"""

import json
import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from tests.bench.rows import Row
from tests.live.up import Up, running

MIB = 1 << 20
FILE_MIB = int(os.environ.get("HOLDOVER_BENCH_FILE_MIB", "2048"))
RUNS = int(os.environ.get("HOLDOVER_BENCH_RUNS", "3"))


def measure() -> Iterator[Row]:
    with (
        tempfile.TemporaryDirectory(prefix="bf-", dir="/tmp") as name,
        running(Path(name), storage=True) as up,
        Relay(up.port) as relay,
    ):
        one = Transfers(up, relay.port)
        one.make_file()
        one.holdover("file", "put", "--to", "warm/", str(one.small))
        memory, storage_bytes = up_memory(up), storage_traffic(up)
        relay.count = 0
        here = one.folder / "back"
        puts: tuple[list[float], list[float], list[float]] = ([], [], [])
        gets: tuple[list[float], list[float], list[float]] = ([], [], [])
        crossed = []
        for _ in range(RUNS):
            before = relay.count
            puts[0].append(one.rate(lambda: one.holdover("file", "put", str(one.file))))
            plain, synced = one.rates(lambda: one.rclone("copyto", str(one.file), "s:bench/file"))
            puts[1].append(plain)
            puts[2].append(synced)
            gets[0].append(
                one.rate(
                    lambda: one.holdover("file", "get", "--force", "--to", str(here), "file.bin")
                )
            )
            crossed.append(relay.count - before)
            here.unlink()
            plain, synced = one.rates(lambda: one.rclone("copyto", "s:bench/file", str(here)))
            gets[1].append(plain)
            gets[2].append(synced)
            here.unlink()
            one.holdover("file", "rm", "file.bin")
            one.rclone("deletefile", "s:bench/file")
        details = {
            "mib": FILE_MIB,
            "daemon_grew_mib": round((up_memory(up) - memory) / MIB, 1),
            "daemon_clients_kib_a_round": [round(count / 1024, 1) for count in crossed],
            "daemon_storage_kib_in_all": round((storage_traffic(up) - storage_bytes) / 1024, 1),
        }
        print(json.dumps(details), file=sys.stderr)
    what = f"{FILE_MIB / 1024:g} GiB"
    for name, (ours, plain_ones, synced_ones) in {"put": puts, "get": gets}.items():
        title = f"`file {name}`, {what}"
        yield Row(title, "MiB/s", ours, "rclone", plain_ones, 0.9, details=details)
        yield Row(title, "MiB/s", ours, "rclone, then sync", synced_ones)


class Transfers:
    def __init__(self, up: Up, port: int) -> None:
        self.up = up
        self.folder = up.folder
        self.file = up.folder / "file.bin"
        self.small = up.folder / "small.bin"
        door = json.loads((up.runtime / "storage/door.json").read_text())
        keys = json.loads(Path(door["keys"]).read_text())
        token = up.call("POST", "/v1/tokens", {"name": "bench", "scopes": ["files", "read"]})
        plain = {"PATH": os.environ["PATH"], "HOME": str(up.home)}
        self._ours = {
            **plain,
            "PYTHONPATH": os.pathsep.join(path for path in sys.path if path),
            "HOLDOVER_URL": f"http://127.0.0.1:{port}",
            "HOLDOVER_TOKEN": token["token"],
        }
        self._theirs = {
            **plain,
            "RCLONE_CONFIG": "/dev/null",
            "RCLONE_CONFIG_S_TYPE": "s3",
            "RCLONE_CONFIG_S_PROVIDER": "SeaweedFS",
            "RCLONE_CONFIG_S_ENDPOINT": door["endpoint"],
            "RCLONE_CONFIG_S_ACCESS_KEY_ID": keys["access_key"],
            "RCLONE_CONFIG_S_SECRET_ACCESS_KEY": keys["secret_key"],
            "RCLONE_S3_CHUNK_SIZE": "16M",
            "RCLONE_S3_UPLOAD_CONCURRENCY": "4",
            "RCLONE_MULTI_THREAD_STREAMS": "4",
            "RCLONE_MULTI_THREAD_CUTOFF": "32M",
            "RCLONE_MULTI_THREAD_CHUNK_SIZE": "16M",
        }

    def make_file(self) -> None:
        with self.file.open("wb") as file:
            for _ in range(FILE_MIB // 16):
                file.write(os.urandom(16 * MIB))
        self.small.write_bytes(b"hello")
        self.rclone("mkdir", "s:bench")

    def holdover(self, *args: str) -> None:
        command = [sys.executable, "-m", "holdover", *args]
        subprocess.run(command, env=self._ours, check=True, stdout=subprocess.DEVNULL)

    def rclone(self, *args: str) -> None:
        program = Path(sys.executable).with_name("rclone")
        found = str(program) if program.exists() else shutil.which("rclone")
        assert found is not None, "rclone is among the development dependencies"
        subprocess.run([found, *args], env=self._theirs, check=True)

    def rate(self, act: Callable[[], None]) -> float:
        """MiB a second."""
        return self.rates(act, sync=False)[0]

    def rates(self, act: Callable[[], None], *, sync: bool = True) -> tuple[float, float]:
        """MiB a second, of `act` alone and until the disk has it."""
        if sync:
            self._sync()  # what others have left
        started = time.perf_counter()
        act()
        plain_s = time.perf_counter() - started
        if sync:
            self._sync()
        return round(FILE_MIB / plain_s, 1), round(FILE_MIB / (time.perf_counter() - started), 1)

    def _sync(self) -> None:
        subprocess.run(["sync", "-f", str(self.folder)], check=True)


def up_memory(up: Up) -> int:
    status = Path(f"/proc/{up.daemon_pid()}/status").read_text()
    found = re.search(r"^VmRSS:\s+(\d+) kB", status, re.MULTILINE)
    assert found is not None
    return int(found[1]) * 1024


def storage_traffic(up: Up) -> int:
    """Bytes on the daemon's open connections over TCP, as ss(8) tells; 0 where there is none."""
    if shutil.which("ss") is None:
        return 0
    told = subprocess.run(["ss", "-tinpOH"], capture_output=True, text=True, check=True).stdout
    mine = [line for line in told.splitlines() if f"pid={up.daemon_pid()}," in line]
    numbers = re.findall(r"bytes_(?:sent|received):(\d+)", "\n".join(mine))
    return sum(map(int, numbers))


class Relay:
    """A port before the daemon's, which counts what goes through it, both ways."""

    def __init__(self, port: int) -> None:
        self._behind = port
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=100)
        self.port = self._listener.getsockname()[1]
        self.count = 0
        self._lock = threading.Lock()

    def __enter__(self) -> "Relay":
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._listener.close()

    def _accept(self) -> None:
        while True:
            try:
                outside, _ = self._listener.accept()
            except OSError:
                return
            inside = socket.create_connection(("127.0.0.1", self._behind))
            for pair in ((outside, inside), (inside, outside)):
                threading.Thread(target=self._pour, args=pair, daemon=True).start()

    def _pour(self, source: socket.socket, target: socket.socket) -> None:
        try:
            while data := source.recv(65_536):
                with self._lock:
                    self.count += len(data)
                target.sendall(data)
            target.shutdown(socket.SHUT_WR)
        except OSError:
            return
