"""A whole `holdover up` on a disk that loses its power: agents that talk, prompts that are accepted.

``python -m tests.soak.daemon_workload FOLDER`` keeps state and homes in FOLDER, and what a reboot
empties elsewhere. It prints ``seen SESSION SEQ`` when a viewer got a message, and ``prompt SESSION
ID`` when a prompt was accepted: either is a promise.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import os
import shutil
import subprocess
import sys
import tempfile
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

import trio

from tests.live.kills import lines_of
from tests.live.up import START_S, Api, wait_until
from tests.live.watcher import Watcher

SESSIONS = 3
RATE = 40
PROMPT_EVERY_S = 0.3


@contextlib.contextmanager
def up(folder: Path) -> Iterator[Api]:
    """`holdover up` with its state in `folder`; its runtime folder is new each time.

    What has survived is looked at beneath the path it was written at, as after a reboot: `folder`
    is mounted at ``disk`` beside it, for this `up` alone.
    """
    runtime = Path(tempfile.mkdtemp(prefix="hp-"))
    (folder / "home").mkdir(parents=True, exist_ok=True)
    disk = folder.parent / "disk"
    disk.mkdir(exist_ok=True)
    environment = {
        **{key: value for key, value in os.environ.items() if not key.startswith("HOLDOVER_")},
        "HOME": str(disk / "home"),
        "HOLDOVER_STATE_DIR": str(disk / "state"),
        "HOLDOVER_RUNTIME_DIR": str(runtime),
        "HOLDOVER_CONFIG_DIR": str(runtime / "config"),
        "HOLDOVER_SESSIONS_DEFAULT_AGENT": "demo",
    }
    with (runtime / "output").open("ab") as output:
        process = subprocess.Popen(
            [
                *("unshare", "--mount", "sh", "-c", 'mount --bind "$0" "$1"; shift; exec "$@"'),
                *(str(folder), str(disk)),
                *(sys.executable, "-m", "holdover", "up", "--port=0", "--no-storage"),
            ],
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
        )
    api = Api(runtime / "admin.sock")
    try:
        wait_until(lambda: process.poll() is not None or api.healthy(), "it serves", START_S)
        assert process.poll() is None, (runtime / "output").read_text()
        yield api
    finally:
        process.terminate()
        process.wait(START_S)
        shutil.rmtree(runtime, ignore_errors=True)


class DaemonWorkload:
    """See `tests.soak.power.Workload`."""

    def command(self, folder: Path) -> Sequence[str]:
        return [sys.executable, "-m", "tests.soak.daemon_workload", str(folder)]

    def check(self, folder: Path, acknowledged: Sequence[str]) -> Counter[str]:
        seen: dict[str, int] = defaultdict(int)
        prompts: dict[str, set[str]] = defaultdict(set)
        for line in acknowledged:
            what, session, value = line.split()
            if what == "seen":
                seen[session] = max(seen[session], int(value))
            else:
                prompts[session].add(value)
        figures: Counter[str] = Counter()
        with up(folder) as api:
            listed = {view["id"] for view in api.call("GET", "/v1/sessions")["items"]}
            for session in seen.keys() | prompts.keys():
                assert session in listed, f"session {session} was acknowledged and is gone"
                figures += _check(api, session, seen[session], prompts[session])
            for session in list(listed & seen.keys())[:1]:
                # And it goes on: the agent is started again and answers. A prompt whose echo was
                # cut off runs again, and may be one without an end.
                api.prompt(session, "echo again")

                def rests(session: str = session) -> bool:
                    if api.session(session)["state"] == "idle":
                        return True
                    api.request("POST", f"/v1/sessions/{session}/interrupt", {})
                    return False

                wait_until(rests, "its agent has answered everything", 3 * START_S)
                assert api.session(session)["last_seq"] > seen[session]
                figures["resumed"] += 1
        return figures


def _check(api: Api, session: str, seen: int, prompts: set[str]) -> Counter[str]:
    log = api.log(session)
    seqs = [message["seq"] for message in log]
    assert seqs == list(range(1, len(log) + 1)), f"{session}: a gap or a duplicate"
    assert len(log) >= seen, f"{session}: {seen} were shown, {len(log)} are left"
    numbers = lines_of(log)
    # Every turn counts from 1; within one nothing is missing and nothing twice.
    for before, number in itertools.pairwise(numbers):
        assert number in (before + 1, 1), f"{session}: after line {before} came {number}"
    known = {message.get("client_id") for message in log if message["kind"] == "user"}
    assert prompts <= known, f"{session}: accepted prompts are gone: {prompts - known}"
    notices = [m["body"].get("code") for m in log if m["kind"] == "notice"]
    return Counter(messages=len(log), prompts=len(prompts), spool_cut=notices.count("spool_cut"))


async def main(folder: Path) -> None:
    with up(folder) as api:
        async with trio.open_nursery() as nursery:
            for _ in range(SESSIONS):
                say = f"lines 1000000 rate {RATE} size 300"
                view = await trio.to_thread.run_sync(partial(api.new_session, say))
                nursery.start_soon(_watch, api, view["id"])
                nursery.start_soon(_prompt, api, view["id"])


async def _watch(api: Api, session: str) -> None:
    watcher = Watcher(api.admin_socket, session, keep_bodies=False)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(watcher.run)
        told = 0
        while True:
            await watcher.wait(lambda w, told=told: len(w.seqs) > told, START_S)
            told = len(watcher.seqs)
            print("seen", session, watcher.seqs[-1], flush=True)


async def _prompt(api: Api, session: str) -> None:
    for number in itertools.count(1):
        await trio.sleep(PROMPT_EVERY_S * (1 + number % 7))
        text = f"echo {hashlib.sha256(str(number).encode()).hexdigest()}"
        prompt = await trio.to_thread.run_sync(api.prompt, session, text)
        print("prompt", session, prompt, flush=True)


if __name__ == "__main__":
    trio.run(main, Path(sys.argv[1]))
