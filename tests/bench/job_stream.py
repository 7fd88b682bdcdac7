"""What a 1 GiB file costs the host on its way through `checksum`: the worker's memory at its highest,
what worker and runner write to disk meanwhile, and the daemon's share of the processor, all read from
/proc. A real `holdover up` with its storage; the file is put by pre-signed URLs beforehand. Beside the
job's rate, a plain boto3 program that streams the same object into hashlib.
"""

import contextlib
import hashlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from holdoverd.jobs import roll
from tests.bench.rows import Row
from tests.files.put import send
from tests.live.up import Up, running, wait_until

SIZE = int(os.environ.get("HOLDOVER_BENCH_JOB_BYTES") or 1 << 30)
RUNS = 3
MAX_WORKER_BYTES = 64 << 20
PART_BYTES = 16 << 20

PLAIN = """
import hashlib, json, sys
import boto3
given = json.loads(sys.argv[1])
s3 = boto3.client("s3", endpoint_url=given["endpoint"], region_name="us-east-1",
                  aws_access_key_id=given["access_key"], aws_secret_access_key=given["secret_key"])
body = s3.get_object(Bucket=given["bucket"], Key=given["key"])["Body"]
digest = hashlib.sha256()
while piece := body.read(1 << 20):
    digest.update(piece)
print(digest.hexdigest())
"""


def measure() -> list[Row]:
    with (
        tempfile.TemporaryDirectory(prefix="hj-") as folder,
        running(Path(folder), storage=True) as up,
    ):
        wait_until(lambda: up.request("POST", "/v1/files", NEW)[0] == 201, "storage is there", 90)
        file, digest = _put(up)
        ours, theirs, peaks, written, idle = [], [], [], [], []
        for _ in range(RUNS):
            took_s, peak, wrote, daemon_s = _one_job(up, file, digest)
            ours.append(SIZE / took_s / 1e6)
            peaks.append(peak / 1e6)
            written.append(wrote / 1024**2)
            idle.append(100 * daemon_s / took_s)
            began = time.monotonic()
            assert _plain(up, file) == digest
            theirs.append(SIZE / (time.monotonic() - began) / 1e6)
    bound = [MAX_WORKER_BYTES / 1e6] * RUNS
    size = f"{SIZE / 1024**3:g} GiB through checksum"
    return [
        Row(f"{size}: rate", "MB/s", ours, "plain boto3 and hashlib", theirs),
        Row(
            "the same: worker's memory at its highest",
            "MB",
            peaks,
            "64 MiB",
            bound,
            at_most=1.0,
        ),
        # "Nothing": not the file. A result and the beats of a job are some pages.
        Row("the same: written to disk by worker and processor", "MiB", written, "1 MiB",
            [1.0] * RUNS, at_most=1.0),
        Row("the same: the daemon's processor time", "%", idle, "5 % of a core", [5.0] * RUNS,
            at_most=1.0),
    ]  # fmt: skip


NEW: dict[str, Any] = {"name": "x", "size": 1}


def _put(up: Up) -> tuple[str, str]:
    """The file's id and its sha256."""
    pattern = os.urandom(PART_BYTES)
    whole = hashlib.sha256()
    for _ in range(SIZE // PART_BYTES):
        whole.update(pattern)
    part_sha256 = hashlib.sha256(pattern).hexdigest()
    declared = {"name": "big", "size": SIZE, "sha256": whole.hexdigest()}
    made = up.call("POST", "/v1/files", declared)
    upload, parts = made["upload"], []
    for number in range(1, SIZE // PART_BYTES + 1):
        asked = {"numbers": [number], "sha256": {str(number): part_sha256}}
        (part,) = up.call("POST", f"/v1/uploads/{upload['id']}/parts", asked)["parts"]
        answer = send("PUT", part["url"], pattern, part["headers"])
        assert answer.status == 200, answer
        parts.append({"number": number, "etag": answer.headers["etag"]})
    up.call("POST", f"/v1/uploads/{upload['id']}/complete", {"parts": parts})
    return made["file"]["id"], whole.hexdigest()


def _one_job(up: Up, file: str, digest: str) -> tuple[float, int, int, float]:
    """(seconds, the worker's peak bytes, bytes written by it and its children, daemon's CPU s)."""
    daemon = up.daemon_pid()
    cpu_before = _cpu_s(daemon)
    began = time.monotonic()
    job = up.call("POST", "/v1/jobs", {"processor": "checksum", "files": [file]})["id"]
    peak = wrote = 0
    while True:
        for pid in _workers(up):
            with contextlib.suppress(OSError, ValueError):
                peak = max(peak, _status_bytes(pid, "VmHWM"))
                wrote = max(wrote, sum(_written(one) for one in (pid, *_below(pid))))
        found = up.call("GET", f"/v1/jobs/{job}")
        if found["state"] not in ("ready", "running"):
            break
        time.sleep(0.2)
    took_s = time.monotonic() - began
    assert found["result"] == {"text": digest + "\n", "files": []}, found
    return took_s, peak, wrote, _cpu_s(daemon) - cpu_before


def _workers(up: Up) -> list[int]:
    folder = up.runtime / "workers"
    living, _ = roll.look(folder)
    return [int((folder / f"{worker}{roll.SUFFIX}").read_text()) for worker in living]


def _below(pid: int) -> Iterator[int]:
    for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split():
        yield int(child)
        yield from _below(int(child))


def _status_bytes(pid: int, name: str) -> int:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) * 1024
    raise ValueError(name)


def _written(pid: int) -> int:
    for line in Path(f"/proc/{pid}/io").read_text().splitlines():
        if line.startswith("write_bytes:"):
            return int(line.split()[1])
    raise ValueError(pid)


def _cpu_s(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _plain(up: Up, file: str) -> str:
    import sqlite3

    with contextlib.closing(sqlite3.connect(up.state / "catalogue.db")) as catalogue:
        (key,) = catalogue.execute("SELECT key FROM files WHERE id = ?", [file]).fetchone()
    keys = json.loads((up.state / "storage-keys.json").read_text())
    status = up.call("GET", "/v1/admin/storage")
    given = {**keys, "key": key, "endpoint": status["endpoint"], "bucket": status["bucket"]}
    done = subprocess.run(
        [sys.executable, "-c", PLAIN, json.dumps(given)], capture_output=True, text=True, check=True
    )
    return done.stdout.strip()
