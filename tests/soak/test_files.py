"""Files at full size: what the tests show in small, with what it took in files.md beside this file."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import trio

from holdoverd.storage.client import Store
from holdoverd.storage.credentials import load_credentials
from tests.files.weed import storage_settings
from tests.live.test_workspace_files import MIB, a_session, follow
from tests.live.up import Up, free_port, running, wait_until
from tests.needs import needs_weed

pytestmark = [pytest.mark.soak, needs_weed]

RESULTS = Path(__file__).with_name("files.md")
KILLS = int(os.environ.get("HOLDOVER_SOAK_FILE_KILLS", "16"))
TRANSFER_S = 60
URL_S = 5


def told(heading: str, text: str) -> None:
    """Keep a figure under its heading, beside those of the other tests."""
    found = RESULTS.read_text() if RESULTS.exists() else ""
    parts = dict(re.findall(r"^## (.+)\n\n(.+)\n", found, re.MULTILINE)) | {heading: text}
    RESULTS.write_text(
        "# Files at full size\n\nWritten by `make soak` (tests/soak/test_files.py).\n\n"
        + "\n".join(f"## {name}\n\n{said}\n" for name, said in sorted(parts.items()))
    )


def start(up: Up, *args: str) -> subprocess.Popen[bytes]:
    """The command line, as somebody at this machine types it."""
    env = {
        "PATH": os.environ["PATH"],
        "HOME": str(up.home),
        "HOLDOVER_RUNTIME_DIR": str(up.runtime),
    }
    env["PYTHONPATH"] = os.pathsep.join(path for path in sys.path if path)
    command = [sys.executable, "-m", "holdover", *args]
    return subprocess.Popen(
        command, cwd=up.home, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )


def holdover(up: Up, *args: str) -> bytes:
    process = start(up, *args)
    out, err = process.communicate(timeout=600)
    assert process.returncode == 0, err
    return out


# --- a file of an agent -------------------------------------------------------------------------

TRACED = "read,readv,recvfrom,recvmsg,write,writev,sendto,sendmsg,sendfile,splice"


@contextmanager
def counting(pid: int, folder: Path) -> Iterator[list[int]]:
    """How many bytes the daemon's calls moved, whatever they moved them between: pipes, sockets, files
    below `folder`, where workspace and storage are. Files elsewhere are its own program, of which it
    loads a part when it first needs it; SQLite's calls (pread, pwrite) are left out."""
    counted: list[int] = []
    output = folder / "calls"
    tracer = subprocess.Popen(
        ["strace", "-f", "-q", "-y", "-e", f"trace={TRACED}", "-e", "signal=none", "-s", "0",
         "-o", str(output), "-p", str(pid)],
        stderr=subprocess.DEVNULL,
    )  # fmt: skip
    status = Path(f"/proc/{pid}/status")
    wait_until(lambda: f"TracerPid:\t{tracer.pid}\n" in status.read_text(), "it is traced")
    try:
        yield counted
    finally:
        tracer.send_signal(signal.SIGINT)
        tracer.wait(60)
    counted.append(moved(output.read_text(), str(folder)))


def moved(calls: str, folder: str) -> int:
    """The bytes of the calls that strace tells of, but for files that lie outside of `folder`."""
    total = 0
    begun: dict[str, str] = {}  # {thread: its call, which another's line cut in two}
    for line in calls.splitlines():
        thread, _, call = line.partition(" ")
        if call.endswith("<unfinished ...>"):
            begun[thread] = call
            continue
        if call.lstrip().startswith("<..."):
            call = begun.pop(thread, "") + call
        result = re.search(r" = (\d+)$", call)
        file = re.search(r"\w+\(\d+<(/[^>]*)>", call)
        if result and (file is None or file[1].startswith(folder)):
            total += int(result[1])
    return total


def test_calls_are_counted_by_what_they_moved_between() -> None:
    calls = """\
10 read(5</t/f/a>, ""..., 9) = 7
10 read(5</usr/lib/a.pyc>, ""..., 9) = 1000
11 recvfrom(6<TCP:[1]>, <unfinished ...>
12 read(5</usr/lib/a.pyc>, <unfinished ...>
11 <... recvfrom resumed>""..., 9, 0, NULL, NULL) = 20
12 <... read resumed>""..., 9) = 1000
12 write(7<pipe:[9]>, ""..., 9) = 300
12 read(7<pipe:[9]>, 0x7f, 9) = -1 EAGAIN (Resource temporarily unavailable)
"""
    assert moved(calls, "/t/f") == 327


@pytest.mark.skipif(shutil.which("strace") is None, reason="needs strace, not found")
def test_a_gibibyte_of_an_agents_crosses_no_daemon() -> None:
    size = 1024 * MIB
    with (
        tempfile.TemporaryDirectory(prefix="sf-", dir="/tmp") as name,
        running(Path(name), storage=True) as up,
    ):
        session, cwd = a_session(up)
        with (cwd / "made.bin").open("wb") as file:
            for _ in range(size // (16 * MIB)):
                file.write(os.urandom(16 * MIB))
        expected = sum_of(cwd / "made.bin")
        with counting(up.daemon_pid(), Path(name)) as counted:
            began = time.monotonic()
            file_id = up.call("POST", f"/v1/sessions/{session}/files", {"path": "made.bin"})[
                "file"
            ]["id"]
            while up.call("GET", f"/v1/files/{file_id}")["state"] == "uploading":
                time.sleep(1)
            took = time.monotonic() - began
            link = up.call("POST", f"/v1/files/{file_id}/links", {})["url"]
            assert follow(link)[:2] == (size, expected)
    (crossed,) = counted
    told(
        "A file of an agent",
        f"1 GiB from a workspace to storage in {took:.0f} s, and by a link to a client: all reads and"
        f" writes of the daemon meanwhile, of every kind but the database's, {crossed / 1024:.0f} KiB.",
    )
    assert crossed < 256 * 1024


def sum_of(path: Path) -> str:
    import hashlib

    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(MIB):
            digest.update(chunk)
    return digest.hexdigest()


# --- URLs of five seconds -----------------------------------------------------------------------


class SlowDoor:
    """A port before storage's through which so many bytes a second go, each way, of all together."""

    def __init__(self, port: int, behind: int, rate: int) -> None:
        self._behind = behind
        self._rate = rate
        self._lock = threading.Lock()
        self._next_s = {True: 0.0, False: 0.0}
        self._listener = socket.create_server(("127.0.0.1", port), backlog=100)

    def __enter__(self) -> SlowDoor:
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
            threading.Thread(target=self._carry, args=(outside,), daemon=True).start()

    def _carry(self, outside: socket.socket) -> None:
        with outside, socket.create_connection(("127.0.0.1", self._behind)) as inside:
            back = threading.Thread(target=self._pour, args=(inside, outside, False), daemon=True)
            back.start()
            self._pour(outside, inside, True)
            back.join()

    def _pour(self, source: socket.socket, target: socket.socket, up: bool) -> None:
        try:
            while data := source.recv(65_536):
                with self._lock:
                    now = time.monotonic()
                    self._next_s[up] = max(now, self._next_s[up]) + len(data) / self._rate
                    wait_s = self._next_s[up] - now
                time.sleep(wait_s)
                target.sendall(data)
            target.shutdown(socket.SHUT_WR)
        except OSError:
            return


def test_a_minute_of_transfer_by_urls_of_five_seconds() -> None:
    size = 96 * MIB
    port = free_port()
    env = {
        "HOLDOVER_STORAGE_URL_LIFETIME_S": str(URL_S),
        "HOLDOVER_STORAGE_PUBLIC_ENDPOINT": f"http://127.0.0.1:{port}",
    }
    with (
        tempfile.TemporaryDirectory(prefix="su-", dir="/tmp") as name,
        running(Path(name), storage=True, **env) as up,
    ):
        door = json.loads((up.runtime / "storage/door.json").read_text())["endpoint"]
        with SlowDoor(port, int(door.rpartition(":")[2]), size // TRANSFER_S):
            (up.home / "a.bin").write_bytes(os.urandom(size))
            took = []
            for command in (("file", "put", "a.bin"), ("file", "get", "--to", "back", "a.bin")):
                began = time.monotonic()
                holdover(up, *command)
                took.append(time.monotonic() - began)
            assert (up.home / "back").read_bytes() == (up.home / "a.bin").read_bytes()
    assert min(took) > TRANSFER_S * 0.9, "it was slow enough to show anything"
    told(
        "URLs of five seconds",
        f"96 MiB through a door of {size // TRANSFER_S / MIB:.1f} MiB/s, each URL good for {URL_S} s:"
        f" put in {took[0]:.0f} s, got in {took[1]:.0f} s, byte for byte.",
    )


# --- kills of the daemon ------------------------------------------------------------------------


def test_a_daemon_killed_at_any_moment_leaves_rows_and_bytes_that_agree() -> None:
    """The whole daemon, at moments spread evenly over the sending of three files."""
    with (
        tempfile.TemporaryDirectory(prefix="sk-", dir="/tmp") as name,
        running(Path(name), storage=True) as up,
    ):
        for index in range(3):
            (up.home / f"f{index}").write_bytes(os.urandom(20 * MIB + index))
        names = [f"f{index}" for index in range(3)]
        began = time.monotonic()
        holdover(up, "file", "put", *names)
        calm_s = time.monotonic() - began
        survived = again = 0
        for kill in range(KILLS):
            process = start(up, "file", "put", "--to", f"k{kill}/", *names)
            time.sleep(calm_s * (kill + 0.5) / KILLS)
            before = up.kill_daemon()
            _, err = process.communicate(timeout=300)
            up.wait_new_daemon(before)
            if process.returncode == 0:
                survived += 1
            else:
                again += 1
                assert b"Traceback" not in err, err
                holdover(up, "file", "put", "--to", f"k{kill}/", *names)
        up.call("POST", "/v1/admin/storage/sweep", {"dry_run": False, "older_than_s": 0})
        files = []
        cursor = ""
        while True:
            page = up.call("GET", f"/v1/files?limit=500{cursor}")
            files += page["items"]
            if page["next"] is None:
                break
            cursor = f"&cursor={page['next']}"
        door = json.loads((up.runtime / "storage/door.json").read_text())
        keys = load_credentials({"HOLDOVER_STORAGE_CREDENTIALS": door["keys"]})
        assert keys is not None
        store = Store(storage_settings(door["endpoint"]), keys)
        held, more = trio.run(store.list_keys, "f/")
        assert more is None
        sizes = sorted(file["size"] for file in files if file["state"] == "ready")
        assert sorted(key.size for key in held) == sizes
        found = {(file["path"], file["name"]) for file in files if file["state"] == "ready"}
        for kill in range(KILLS):
            assert {(f"k{kill}", one) for one in names} <= found
        assert up.call("POST", "/v1/admin/storage/sweep", {"older_than_s": 0})["found"] == {}
    told(
        "Kills of the daemon",
        f"{KILLS} × `kill -9` at moments spread over a `put` of three files: {survived} times the"
        f" command went on by itself, {again} times it was typed again; afterwards every ready row had"
        " its bytes and all bytes a row.",
    )
