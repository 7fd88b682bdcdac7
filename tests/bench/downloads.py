"""What sixteen downloads cost everybody else: the seed problem. The p99 of `GET /v1/sessions` on a
kept connection, alone, and beside sixteen downloads of one file, which together take half of what
the machine gives them when nothing holds them back. Holdover is the real thing, `holdover up` with
its SeaweedFS; the bytes go from there to the clients, who run in a process of their own, and stand
behind everybody else (nice 19): elsewhere they would have processors of their own. So while they are
held to half of what the machine gave them on all of its processors, they keep to those that storage keeps
to; a second row has them on all, where they are in the daemon's way themselves. The bound is 1.3 times the
idle figure of the same round.

Beside it a control, to show what is avoided: a trio server of one process that answers a list of the
same size from memory, and sends the same file through its handler, 64 KiB at a time, to sixteen clients
at the same rate. And the bare minimum: the same server, answering from memory while the sixteen downloads
come from storage. What that one loses, any server on the same processors does.
"""

import http.client
import json
import os
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from urllib.parse import urlsplit

from holdoverd.storage.enclose import half_of
from tests.bench.rows import Row
from tests.live.up import Up, free_port, running

CLIENTS = 16
FILE_BYTES = 64 << 20
ROUNDS = 3
REQUESTS = 1000
PAUSE_S = 0.005
WARM_S = 0.5
CAPACITY_S = 3.0
SESSIONS = 20


def measure() -> list[Row]:
    with (
        tempfile.TemporaryDirectory(prefix="bd-", dir="/tmp") as name,
        running(Path(name), storage=True) as up,
    ):
        url = _put(up)
        for _ in range(SESSIONS):
            session = up.new_session()["id"]
            up.call("DELETE", f"/v1/sessions/{session}")
        made = up.call("POST", "/v1/tokens", {"name": "bench", "scopes": ["read"]})
        headers = {"Authorization": f"Bearer {made['token']}"}
        with downloading(url, 0) as taken:
            time.sleep(CAPACITY_S)
            capacity = taken() / CAPACITY_S
        rate = capacity / 2 / CLIENTS
        listing = _get(up.port, "/v1/sessions", headers)

        def ours() -> float:
            return _p99(up.port, "/v1/sessions", headers)

        file = Path(name) / "file"
        file.write_bytes(os.urandom(FILE_BYTES))
        body = Path(name) / "list"
        body.write_bytes(listing)
        with _control(file, body) as port:

            def theirs() -> float:
                return _p99(port, "/list", {})

            control_url = f"http://127.0.0.1:{port}/file?x"
            figures: dict[str, list[float]] = {
                k: [] for k in ("idle", "busy", "all", "bare", "c_idle", "c_busy")
            }
            shares: list[float] = []
            for _ in range(ROUNDS):
                figures["idle"].append(ours())
                with downloading(url, rate, apart=True) as taken:
                    time.sleep(WARM_S)
                    before, since = taken(), time.monotonic()
                    figures["busy"].append(ours())
                    shares.append((taken() - before) / (time.monotonic() - since) / rate / CLIENTS)
                    figures["bare"].append(theirs())
                with downloading(url, rate):
                    time.sleep(WARM_S)
                    figures["all"].append(ours())
                figures["c_idle"].append(theirs())
                with downloading(control_url, rate, apart=True):
                    time.sleep(WARM_S)
                    figures["c_busy"].append(theirs())
    details = {
        "capacity_mib_s": capacity / (1 << 20),
        "bytes_of_the_list": len(listing),
        "least_share_of_the_rate": min(shares),
    }
    return [
        Row(
            "`GET /v1/sessions` beside 16 downloads, p99",
            "ms",
            figures["busy"],
            "the same, idle",
            figures["idle"],
            at_most=1.3,
            details=details,
        ),
        Row(
            "the same, with the clients on all processors, p99",
            "ms",
            figures["all"],
            "the same, idle",
            figures["idle"],
        ),
        Row(
            "a list from memory beside the same downloads, p99",
            "ms",
            figures["bare"],
            "the same, idle",
            figures["c_idle"],
        ),
        Row(
            "a list beside 16 downloads through a Python handler, p99",
            "ms",
            figures["c_busy"],
            "the same, idle",
            figures["c_idle"],
        ),
    ]


def _put(up: Up) -> str:
    """A file in storage; the URL to read it by."""
    made = up.call("POST", "/v1/files", {"name": "a", "size": FILE_BYTES})
    parts = []
    for part in made["upload"]["parts"]:
        first = (part["number"] - 1) * made["upload"]["part_size"]
        size = min(made["upload"]["part_size"], FILE_BYTES - first)
        where = urlsplit(part["url"])
        connection = http.client.HTTPConnection(where.netloc, timeout=60)
        connection.request("PUT", f"{where.path}?{where.query}", os.urandom(size))
        answer = connection.getresponse()
        answer.read()
        parts.append({"number": part["number"], "etag": answer.headers["ETag"]})
        connection.close()
    up.call("POST", f"/v1/uploads/{made['upload']['id']}/complete", {"parts": parts})
    told = up.call("GET", f"/v1/files/{made['file']['id']}/download?redirect=false")
    return str(told["url"])


def _get(port: int, path: str, headers: dict[str, str]) -> bytes:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    connection.request("GET", path, headers=headers)
    body = connection.getresponse().read()
    connection.close()
    return body


def _p99(port: int, path: str, headers: dict[str, str]) -> float:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    times = []
    for _ in range(REQUESTS):
        started = time.perf_counter()
        connection.request("GET", path, headers=headers)
        answer = connection.getresponse()
        answer.read()
        times.append((time.perf_counter() - started) * 1000)
        assert answer.status == 200
        time.sleep(PAUSE_S)
    connection.close()
    return sorted(times)[int(len(times) * 0.99)]


@contextmanager
def downloading(url: str, rate: float, *, apart: bool = False) -> Iterator[Callable[[], int]]:
    """Sixteen clients in a process of their own, `rate` bytes a second each (0: as fast as it goes).

    `apart`: on the processors that storage keeps to. Gives what tells the bytes taken so far.
    """
    processors = os.sched_getaffinity(0)
    process = subprocess.Popen(
        ["nice", "-n", "19", sys.executable, "-m", "tests.bench.downloads", url, str(rate)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)},
        start_new_session=True,  # see `_clients`
    )
    os.sched_setaffinity(process.pid, half_of(processors) if apart else processors)
    assert process.stdin is not None
    assert process.stdout is not None
    out, into = process.stdout, process.stdin

    def taken() -> int:
        into.write(b"\n")
        into.flush()
        return int(json.loads(out.readline()))

    try:
        taken()  # they run
        yield taken
    finally:
        process.kill()
        process.wait()
        into.close()
        out.close()


def _download_for_ever(url: str, rate: float, taken: list[int], index: int) -> None:
    where = urlsplit(url)
    request = f"GET {where.path}?{where.query} HTTP/1.1\r\nHost: {where.netloc}\r\n"
    buffer = bytearray(256 << 10)
    started, got = time.monotonic(), 0
    while True:
        with socket.create_connection((where.hostname or "", where.port or 80)) as sock:
            sock.sendall(f"{request}Connection: close\r\n\r\n".encode())
            while count := sock.recv_into(buffer):
                got += count
                taken[index] = got
                if rate:
                    ahead_s = got / rate - (time.monotonic() - started)
                    if ahead_s > 0:
                        time.sleep(ahead_s)


def _clients(url: str, rate: float) -> None:
    # Where the kernel shares a processor out by login first, nice alone would stand back behind
    # nobody but ourselves.
    with suppress(OSError):
        Path("/proc/self/autogroup").write_text("19")
    taken = [0] * CLIENTS
    for index in range(CLIENTS):
        threading.Thread(
            target=_download_for_ever, args=(url, rate, taken, index), daemon=True
        ).start()
    for _ in sys.stdin:
        print(json.dumps(sum(taken)), flush=True)


@contextmanager
def _control(file: Path, body: Path) -> Iterator[int]:
    port = free_port()
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.bench.downloads", "serve", str(port), str(file), str(body)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)},
    )
    try:
        deadline = time.monotonic() + 30
        while time.monotonic() < deadline:
            try:
                _get(port, "/list", {})
                break
            except OSError:
                time.sleep(0.05)
        yield port
    finally:
        process.kill()
        process.wait()


def _serve(port: int, file: Path, body: Path) -> None:
    import trio

    listing = body.read_bytes()
    head = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n"

    async def handle(stream: trio.SocketStream) -> None:
        received = b""
        try:
            while data := await stream.receive_some():
                received += data
                while b"\r\n\r\n" in received:
                    request, _, received = received.partition(b"\r\n\r\n")
                    if request.startswith(b"GET /list"):
                        await stream.send_all(head % len(listing) + listing)
                        continue
                    await stream.send_all(head % file.stat().st_size)
                    with file.open("rb") as source:
                        while chunk := source.read(64 << 10):
                            await stream.send_all(chunk)
                    return
        except trio.BrokenResourceError:
            return

    trio.run(trio.serve_tcp, handle, port)


if __name__ == "__main__":
    if sys.argv[1] == "serve":
        _serve(int(sys.argv[2]), Path(sys.argv[3]), Path(sys.argv[4]))
    else:
        _clients(sys.argv[1], float(sys.argv[2]))
