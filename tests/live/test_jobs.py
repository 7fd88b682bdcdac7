"""Jobs under a real `holdover up` with its storage: files put by URL, workers on demand, the CLI."""

from __future__ import annotations

import hashlib
import json
import os
import random
import signal
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.files.put import send
from tests.live.up import Up, holdover, running, wait_until
from tests.needs import NO_WEED

pytestmark = pytest.mark.slow

AWAY_S = 10

# Reads half a megabyte at a time, slowly, and says what it read; not while there is a file `hold`.
SLOW = """
import hashlib, os, pathlib, sys, time
digest = hashlib.sha256()
while pathlib.Path(sys.argv[0]).with_name("hold").exists():
    time.sleep(0.05)
while piece := sys.stdin.buffer.read(1 << 19):
    digest.update(piece)
    time.sleep(0.2)
print(digest.hexdigest(), os.environ["HOLDOVER_ATTEMPT"])
print("read it all", file=sys.stderr)
"""


@pytest.fixture(scope="module")
def up() -> Iterator[Up]:
    if NO_WEED:
        pytest.skip(NO_WEED)
    with tempfile.TemporaryDirectory(prefix="hj-") as folder:
        script = Path(folder) / "slow.py"
        script.write_text(SLOW)
        env = {
            "HOLDOVER_PROCESSORS_SLOW_COMMAND": f"{sys.executable} -I {script}",
            "HOLDOVER_DEPLOY_BAKE_S": "1",
            "HOLDOVER_JOBS_MAX_WORKERS": "3",
        }
        with running(Path(folder), storage=True, **env) as one:
            wait_until(lambda: storage_answers(one), "storage is there", 60)
            yield one


def storage_answers(up: Up) -> bool:
    status, _ = up.request("POST", "/v1/files", {"name": "x", "size": 1})
    return bool(status == 201)


def put(up: Up, data: bytes, job: dict[str, Any] | None = None) -> Any:
    """A file of one part; what completing it answers."""
    sha256 = hashlib.sha256(data).hexdigest()
    made = up.call("POST", "/v1/files", {"name": "a b.bin", "size": len(data), "sha256": sha256})
    (part,) = made["upload"]["parts"]
    answer = send("PUT", part["url"], data, part["headers"])
    assert answer.status == 200, answer
    parts = [{"number": 1, "etag": answer.headers["etag"]}]
    body: dict[str, Any] = {"parts": parts, **({"job": job} if job else {})}
    path = f"/v1/uploads/{made['upload']['id']}/complete"
    done = up.call("POST", path, body)
    assert up.call("POST", path, body)["file"] == done["file"]
    return done


def job_ended(up: Up, job: str, within_s: float = 60) -> Any:
    def look() -> Any:
        found = up.call("GET", f"/v1/jobs/{job}")
        return found if found["state"] in ("done", "dead", "cancelled") else None

    return wait_until(look, f"job {job} ended", within_s)


def test_an_upload_and_its_job_in_one_request(up: Up) -> None:
    data = random.Random(1).randbytes(3_000_000)
    answer = put(up, data, {"processor": "checksum", "params": {"algorithm": "sha512"}})
    job = answer["job"]
    assert job["files"] == [answer["file"]["id"]]
    ended = job_ended(up, job["id"])
    assert ended["result"] == {"text": hashlib.sha512(data).hexdigest() + "\n", "files": []}
    assert ended["attempt"] == 1


def test_the_command_line_from_submission_to_result(up: Up) -> None:
    data = b"some words\n" * 20_000
    file = put(up, data)["file"]["id"]
    ran = holdover(up, "job", "submit", "checksum", file, "--wait")
    assert (ran.returncode, ran.stdout) == (0, hashlib.sha256(data).hexdigest() + "\n"), ran.stderr
    # Text of 220 kB is kept as a file.
    ran = holdover(up, "job", "submit", "extract-text", file, "--wait", "--json")
    job = json.loads(ran.stdout)
    (made,) = job["result"]["files"]
    view = up.call("GET", f"/v1/files/{made}")
    assert (view["path"], view["size"], view["verified"]) == ("results", len(data), "sha256")
    url = up.call("GET", f"/v1/files/{made}/download?redirect=false")["url"]
    assert send("GET", url).body == data
    # That file is alone in its folder with its name, by which it is meant as well.
    ran = holdover(up, "job", "submit", "checksum", f"results/{view['name']}", "--wait")
    assert (ran.returncode, ran.stdout) == (0, hashlib.sha256(data).hexdigest() + "\n"), ran.stderr
    shown = holdover(up, "job", "show", job["id"][2:9])
    assert made in shown.stdout
    assert job["id"] in holdover(up, "job", "ls", "--state", "done").stdout
    assert holdover(up, "job", "log", job["id"]).stderr == "It said nothing.\n"
    assert holdover(up, "job", "retry", job["id"]).returncode == 5
    assert holdover(up, "job", "show", "j_nosuchjobatall00").returncode == 3
    refused = holdover(up, "job", "submit", "checksum", file, "-p", "algorithm=rot13")
    assert refused.returncode == 1
    assert "has to be one of" in refused.stderr
    hold = up.state.parent / "hold"
    hold.touch()
    slow = holdover(up, "job", "submit", "slow", file).stdout.strip()
    assert holdover(up, "job", "cancel", slow).returncode == 0
    hold.unlink()
    ran = holdover(up, "job", "retry", slow, "--wait")
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.startswith(hashlib.sha256(data).hexdigest())
    assert holdover(up, "job", "log", slow).stdout == "read it all\n"


def test_a_session_hears_of_the_end_of_its_job(up: Up) -> None:
    session = up.new_session("hello")["id"]
    up.wait_state(session, "idle")
    file = put(up, b"x")["file"]["id"]
    spec = {"processor": "checksum", "files": [file], "session": session}
    job = up.call("POST", "/v1/jobs", spec)["id"]

    def notices() -> list[Any]:
        return [
            message["body"]
            for message in up.log(session)
            if message["kind"] == "notice" and message["body"]["code"] == "job_ended"
        ]

    (notice,) = wait_until(notices, "the notice", 30)
    assert notice["text"] == f"The job {job} (checksum) is done."
    assert notice["data"]["result"]["text"].strip() == hashlib.sha256(b"x").hexdigest()
    time.sleep(2.5)  # two more looks at what is untold
    assert len(notices()) == 1


def test_jobs_go_on_over_a_killed_daemon_a_deploy_and_storage_that_is_away(up: Up) -> None:
    files = []
    for n in range(3):
        data = random.Random(n).randbytes(14_000_000)  # six seconds and more each
        files.append((put(up, data)["file"]["id"], hashlib.sha256(data).hexdigest()))
    hold = up.state.parent / "hold"
    hold.touch()  # so that none has read much before the last of them runs
    jobs = [
        up.call("POST", "/v1/jobs", {"processor": "slow", "files": [file]})["id"]
        for file, _ in files
    ]

    def all_run() -> bool:
        states = [up.call("GET", f"/v1/jobs/{job}") for job in jobs]
        return all(one["state"] == "running" and one["progress"] for one in states)

    wait_until(all_run, "all run", 60)
    # For ten seconds it takes connections and says nothing; then it is gone, and started again.
    storage = storage_pid(up)
    os.kill(storage, signal.SIGSTOP)
    hold.unlink()
    old = up.kill_daemon()
    back = time.monotonic() + AWAY_S
    up.wait_new_daemon(old)
    time.sleep(max(0.0, back - time.monotonic()))
    states = [up.call("GET", f"/v1/jobs/{job}")["state"] for job in jobs]
    os.kill(storage, signal.SIGKILL)
    assert states == ["running"] * 3
    deployed = holdover(up, "deploy")
    assert deployed.returncode == 0, deployed.stderr
    for job, (_, digest) in zip(jobs, files, strict=True):
        ended = job_ended(up, job, 90)
        assert (ended["state"], ended["attempt"]) == ("done", 1), ended
        assert ended["result"]["text"] == f"{digest} 1\n"


def storage_pid(up: Up) -> int:
    """The server itself; `holdover up` starts it again when it dies, which takes some seconds."""
    data = str(up.state / "storage")
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            try:
                command = (entry / "cmdline").read_bytes().split(b"\0")
            except OSError:
                continue
            if command[0].endswith(b"weed") and any(data.encode() in part for part in command):
                return int(entry.name)
    raise AssertionError("no storage runs")
