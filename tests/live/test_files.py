"""Files under a real `holdover up`: real daemon, real SeaweedFS, the real command line."""

import http.client
import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from tests.live.up import Up, running, wait_until
from tests.needs import needs_weed

pytestmark = [pytest.mark.slow, needs_weed]

MIB = 1 << 20


@pytest.fixture(scope="module")
def up() -> Iterator[Up]:
    with (
        tempfile.TemporaryDirectory(prefix="fi-", dir="/tmp") as name,
        running(Path(name), storage=True) as one,
    ):
        yield one


def holdover(up: Up, *args: str, stdin: bytes = b"") -> "subprocess.CompletedProcess[bytes]":
    """Run the command line as somebody at this machine does."""
    (up.home / "here").mkdir(exist_ok=True)
    return subprocess.run(
        [sys.executable, "-m", "holdover", *args],
        input=stdin,
        capture_output=True,
        cwd=up.home / "here",
        env={
            "PATH": os.environ["PATH"],
            "PYTHONPATH": os.pathsep.join(path for path in sys.path if path),
            "HOME": str(up.home),
            "HOLDOVER_RUNTIME_DIR": str(up.runtime),
        },
        timeout=120,
        check=False,
    )


def write(up: Up, name: str, size: int) -> bytes:
    (up.home / "here").mkdir(exist_ok=True)
    body = os.urandom(size)
    (up.home / "here" / name).write_bytes(body)
    return body


def download(url: str) -> tuple[http.client.HTTPResponse, bytes]:
    """What a client gets that knows a link and nothing else: at most one redirect, no header."""
    for _ in range(2):
        parts = urlsplit(url)
        connection = http.client.HTTPConnection(parts.netloc, timeout=60)
        connection.request("GET", f"{parts.path}?{parts.query}" if parts.query else parts.path)
        answer = connection.getresponse()
        body = answer.read()
        connection.close()
        if answer.status != 302:
            break
        url = answer.headers["Location"]
    return answer, body


def test_put_share_and_download_by_a_client_that_knows_only_the_link(up: Up) -> None:
    body = write(up, "report.bin", 40 * MIB)
    ran = holdover(up, "share", "--max-downloads", "1", "report.bin")
    assert ran.returncode == 0, ran.stderr
    url = ran.stdout.decode().strip()
    assert url.startswith(f"http://127.0.0.1:{up.port}/l/")
    answer, got = download(url)
    assert answer.status == 200
    assert got == body
    assert answer.headers["Content-Type"] == "application/octet-stream"
    assert answer.headers["Content-Disposition"].startswith('attachment; filename="report.bin"')
    assert download(url)[0].status == 410, "it was good for one"


@pytest.mark.parametrize("size", [0, 1, 16 * MIB, 33 * MIB])
def test_what_is_put_is_got_and_proved_by_storage(up: Up, size: int) -> None:
    body = write(up, f"a{size}", size)
    ran = holdover(up, "file", "put", "--json", "--to", "box/", f"a{size}")
    assert ran.returncode == 0, ran.stderr
    assert json.loads(ran.stdout)["verified"] == ("sha256" if size <= 16 * MIB else "parts")
    assert holdover(up, "file", "get", f"box/a{size}", "-").stdout == body
    ran = holdover(up, "file", "get", "--to", f"back{size}", f"box/a{size}")
    assert ran.returncode == 0, ran.stderr
    assert (up.home / "here" / f"back{size}").read_bytes() == body


def test_a_pipe_in_and_a_pattern_out(up: Up) -> None:
    for name in ("x.log", "y.log", "z.txt"):
        ran = holdover(up, "file", "put", "--to", "pipes/", "--name", name, "-", stdin=b"hello")
        assert ran.returncode == 0, ran.stderr
    ran = holdover(up, "file", "get", "--to", "logs/", "pipes/*.log")
    assert ran.returncode == 0, ran.stderr
    assert sorted(os.listdir(up.home / "here" / "logs")) == ["x.log", "y.log"]
    assert holdover(up, "file", "mv", "pipes/z.txt", "pipes/w.txt").returncode == 0
    listed = holdover(up, "file", "ls", "pipes/").stdout.decode()
    assert [line.split()[-1] for line in listed.splitlines()[1:]] == [
        "pipes/w.txt",
        "pipes/x.log",
        "pipes/y.log",
    ]
    assert holdover(up, "file", "rm", "--yes", "pipes/").returncode == 0
    assert holdover(up, "file", "ls", "pipes/").stdout == b""


def test_an_upload_goes_on_over_a_killed_daemon_and_killed_storage(up: Up) -> None:
    body = write(up, "big", 200 * MIB)
    arguments = [sys.executable, "-m", "holdover", "file", "put", "--json", "big"]
    process = subprocess.Popen(
        arguments,
        cwd=up.home / "here",
        env={**os.environ, "HOME": str(up.home), "HOLDOVER_RUNTIME_DIR": str(up.runtime),
             "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )  # fmt: skip
    data = up.state / "storage"
    wait_until(lambda: _bytes_below(data) > 60 * MIB, "a part of it is in storage")
    os.kill(up.daemon_pid(), signal.SIGKILL)
    os.kill(_weed_of(data), signal.SIGKILL)
    out, err = process.communicate(timeout=180)
    if process.returncode != 0:
        # Patience may end while all of it is down; then the same command goes on.
        wait_until(up.healthy, "the daemon is back")
        again = holdover(up, "file", "put", "--json", "big")
        assert again.returncode == 0, (err, again.stderr)
        out = again.stdout
    file = json.loads(out)
    assert (file["size"], file["state"]) == (len(body), "ready")
    assert holdover(up, "file", "get", file["id"], "-").stdout == body


def _bytes_below(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.glob("*.dat"))


def _weed_of(data: Path) -> int:
    """The SeaweedFS that keeps its data there."""
    mark = f"-dir={data}".encode()
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            try:
                if mark in (entry / "cmdline").read_bytes().split(b"\0"):
                    return int(entry.name)
            except OSError:
                continue
    raise AssertionError("there is no SeaweedFS")


def test_the_daemon_knows_the_disk_that_its_storage_is_on(up: Up) -> None:
    """What it calls syncfs on before a file is ready is its own folder, of the same file system."""
    held = [os.readlink(fd) for fd in Path(f"/proc/{up.daemon_pid()}/fd").iterdir()]
    assert str(up.state) in held


def test_storage_status_names_what_there_is(up: Up) -> None:
    ran = holdover(up, "storage", "status")
    assert ran.returncode == 0, ran.stderr
    assert b"http://127.0.0.1:" in ran.stdout


def test_no_signature_is_in_the_logs_or_the_catalogue(up: Up) -> None:
    """Runs last: after all of the above."""
    for path in [*up.state.glob("catalogue.db*"), up.state / "storage.log", up.folder / "output"]:
        assert b"X-Amz-Signature=" not in path.read_bytes(), path
