"""Storage under `holdover up`, with the real SeaweedFS."""

import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import trio

from holdoverd.storage.client import Store
from holdoverd.storage.credentials import load_credentials
from tests.files.put import send
from tests.files.weed import storage_settings
from tests.needs import needs_root
from tests.storage.conftest import Running, running

pytestmark = pytest.mark.slow


def store_of(here: Running) -> Store:
    keys = load_credentials({"HOLDOVER_STORAGE_CREDENTIALS": str(here.up.keys)})
    assert keys is not None
    return Store(storage_settings(f"http://127.0.0.1:{here.port}"), keys)


async def put(store: Store, key: str, body: bytes) -> None:
    upload = await store.create_multipart(key)
    part = await store.upload_part(key, upload, 1, body)
    await store.complete(key, upload, [part])


async def get(store: Store, key: str) -> bytes:
    url = store.sign_get(key, "attachment", "application/octet-stream", 60)
    answer = await trio.to_thread.run_sync(send, "GET", url)
    assert answer.status == 200, answer
    return answer.body


async def test_killed_it_comes_back_with_what_it_had_and_nobody_is_refused(folder: Path) -> None:
    body = os.urandom(3 << 20)
    async with running(folder) as here:
        store = store_of(here)
        await store.ensure_bucket()
        await put(store, "f/a", body)
        killed = here.storage.pid
        os.kill(killed, signal.SIGKILL)
        while here.storage.pid == killed:
            await trio.sleep(0.01)
        # Through the door at once, while nobody is behind it: it waits, and is answered.
        await trio.to_thread.run_sync(send, "GET", f"http://127.0.0.1:{here.port}/status")
        await here.wait_ready()
        assert await get(store, "f/a") == body
        assert "killed by signal 9; starting it again" in here.said[0]
        # What it says of itself holds neither its keys nor a signature.
        log = here.up.log.read_text()
        assert log
        secret = json.loads(here.up.keys.read_text())["secret_key"]
        assert secret not in log
        assert "X-Amz-Signature" not in log
    # Stopped, it comes back as well.
    async with running(folder) as here:
        assert await get(store_of(here), "f/a") == body
        assert here.said == []


async def test_only_its_signed_door_can_be_reached_from_outside(folder: Path) -> None:
    async with running(folder) as here:
        for kind in ("net", "mnt", "user"):
            inside = os.readlink(f"/proc/{here.storage.pid}/ns/{kind}")
            assert inside != os.readlink(f"/proc/self/ns/{kind}")
        with socket.create_connection(("127.0.0.1", here.port)) as probe:
            probe.sendall(b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
            assert probe.recv(20).startswith(b"HTTP/1.1 403")
        # /tmp holds none of its sockets, and looks empty to it but for what it was given.
        seen = os.listdir(f"/proc/{here.storage.pid}/root/tmp")
        assert folder.name in seen
        assert all(name == folder.name or name.startswith("seaweedfs-") for name in seen)


@needs_root
async def test_another_user_finds_no_file_and_no_socket_of_it(folder: Path) -> None:
    look = """
import os, socket, sys
os.setgroups([]); os.setgid(65534); os.setuid(65534)
top, pid = sys.argv[1:]
open_ones = []
for path in [f"{top}/run/s3.sock", f"{top}/run/filer.sock"]:
    try:
        socket.socket(socket.AF_UNIX).connect(path)
        open_ones.append(path)
    except OSError:
        pass
for path in [f"{top}/data", f"{top}/run", f"{top}/keys.json", f"{top}/log", f"/proc/{pid}/root/tmp"]:
    try:
        os.listdir(path) if os.path.isdir(path) else open(path)
        open_ones.append(path)
    except OSError:
        pass
print(open_ones)
"""
    async with running(folder) as here:
        done = await trio.run_process(
            [sys.executable, "-c", look, str(folder), str(here.storage.pid)],
            capture_stdout=True,
        )
        assert done.stdout == b"[]\n"


async def test_without_walls_it_says_so_and_serves_all_the_same(folder: Path) -> None:
    """As in a container whose kernel grants no user namespaces."""
    async with running(folder, walled=False) as here:
        assert os.readlink(f"/proc/{here.storage.pid}/ns/net") == os.readlink("/proc/self/ns/net")
        store = store_of(here)
        await store.ensure_bucket()
        await put(store, "f/a", b"hello")
        assert await get(store, "f/a") == b"hello"


def test_refused_walls_end_in_a_status_of_their_own(folder: Path) -> None:
    from holdoverd.storage import enclose

    command = [sys.executable, "-I", "-S", enclose.__file__, str(os.getpid()), str(folder / "no")]
    done = subprocess.run([*command, "/bin/true"], capture_output=True, text=True, check=False)
    assert done.returncode == enclose.REFUSED
    assert done.stderr.startswith("no walls to be had: ")


async def test_bytes_go_through_the_door_both_ways_however_many(folder: Path) -> None:
    """Eight at a time, 8 MiB each: nothing is lost, mixed or stuck."""
    async with running(folder) as here:
        store = store_of(here)
        await store.ensure_bucket()
        bodies = {f"f/{n}": os.urandom(1 << 20) * 8 for n in range(8)}
        async with trio.open_nursery() as nursery:
            for key, body in bodies.items():
                nursery.start_soon(put, store, key, body)
        assert [await get(store, key) == body for key, body in bodies.items()] == [True] * 8
