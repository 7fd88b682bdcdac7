"""How long a line takes from the agent's write to its viewer, at 2,000 lines of 1 KiB a second: 100
sessions of 20 lines a second, one viewer each. Beside it, by turns in the same run, a relay that
starts the same 100 agents itself and passes each line on to its viewer with trio-websocket, without
understanding, numbering or storing it.

Each line carries the moment it was said by the clock that all processes of a machine share; one
client process with 100 trio-websocket connections, the same for both, notes when the frame with it
has come. The 50th and 99th percentile over all lines of a run; no bound was asked for, the relay
tells what the machine, the agents and the client cost by themselves.
"""

import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import trio
from trio_websocket import ConnectionClosed, WebSocketRequest, open_websocket, serve_websocket

from tests.bench.rows import Row
from tests.live.up import Up, running, wait_until

ROOT = Path(__file__).resolve().parents[2]
AGENT = Path(__file__).with_name("ticking.py")
SESSIONS = int(os.environ.get("BENCH_SESSIONS", "100"))
RATE = 20
SECONDS = int(os.environ.get("BENCH_SECONDS", "10"))
RUNS = 3
LEAD_NS = 2_000_000_000
"""From the prompt to the first line: every agent has it by then."""

_SAID = re.compile(r"said=(\d{20})")


# --- the client: python -m tests.bench.latency view PORT TOKEN PATH… -------------------------------


async def view(port: int, token: str, paths: list[str]) -> None:
    """Print ``live`` once all are, then [lines, p50 ms, p99 ms] when each has had all its lines."""
    taken: list[int] = []
    waiting = len(paths)
    headers = [(b"Authorization", f"Bearer {token}".encode())] if token else []

    async def one(path: str) -> None:
        nonlocal waiting
        had = 0
        url = f"ws://127.0.0.1:{port}{path}"
        async with open_websocket(
            "127.0.0.1", port, path, use_ssl=False, subprotocols=["holdover.v1"],
            extra_headers=headers, max_message_size=16 * 1024 * 1024,
        ) as connection:  # fmt: skip
            while had < RATE * SECONDS:
                try:
                    text = await connection.get_message()
                except ConnectionClosed as closed:
                    sys.exit(f"{url} was closed: {closed.reason}")
                now = time.monotonic_ns()
                if text == '{"type":"live"}':
                    waiting -= 1
                    if not waiting:
                        print("live", flush=True)
                    continue
                found = [now - int(said) for said in _SAID.findall(text)]
                had += len(found)
                taken.extend(found)

    async with trio.open_nursery() as nursery:
        for path in paths:
            nursery.start_soon(one, path)
    taken.sort()
    figures = [taken[len(taken) // 2] / 1e6, taken[len(taken) * 99 // 100] / 1e6]
    print(json.dumps([len(taken), *figures]), flush=True)


# --- the relay: python -m tests.bench.latency relay ------------------------------------------------


async def relay() -> None:
    """Print the port; start the agents once a line on stdin is their prompt."""
    prompt = trio.Event()
    text = ""

    async def serve(request: WebSocketRequest) -> None:
        connection = await request.accept(subprotocol="holdover.v1")
        async with trio.open_nursery() as nursery:
            process: trio.Process = await nursery.start(
                lambda task_status: trio.run_process(
                    [sys.executable, "-I", "-S", str(AGENT)], stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE, task_status=task_status,
                )
            )  # fmt: skip
            assert process.stdin is not None
            assert process.stdout is not None
            await connection.send_message('{"type":"live"}')
            await prompt.wait()
            said = {"type": "user", "message": {"role": "user", "content": text}}
            await process.stdin.send_all(json.dumps(said).encode() + b"\n")
            rest = b""
            async for chunk in process.stdout:
                *lines, rest = (rest + chunk).split(b"\n")
                if lines:
                    batch = b",".join(lines).decode()
                    await connection.send_message(f'{{"type":"messages","messages":[{batch}]}}')
                if any(line.startswith(b'{"type": "result"') for line in lines):
                    process.stdin.close()
        await connection.aclose()

    async with trio.open_nursery() as nursery:
        server = await nursery.start(serve_websocket, serve, "127.0.0.1", 0, None)
        print(server.port, flush=True)
        text = await trio.to_thread.run_sync(sys.stdin.readline)
        prompt.set()


# --- the measurement -------------------------------------------------------------------------------


def _client(port: int, token: str, paths: list[str]) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, "-m", "tests.bench.latency", "view", str(port), token, *paths],
        cwd=ROOT, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip


def _figures(client: "subprocess.Popen[str]", go: Any) -> list[float]:
    assert client.stdout is not None
    with client.stdout as stdout:
        assert stdout.readline() == "live\n", "not all viewers became live"
        go(f"{time.monotonic_ns() + LEAD_NS} {RATE} {SECONDS}")
        answer = stdout.readline()
    assert client.wait() == 0, "the viewers failed; see above"
    figures: list[float] = json.loads(answer)
    assert figures[0] == SESSIONS * RATE * SECONDS, "every line once"
    return figures[1:]


def _holdover(up: Up, token: str, sessions: list[str]) -> list[float]:
    paths = [
        f"/v1/sessions/{session}/stream?after={up.session(session)['last_seq']}"
        f"&epoch={up.session(session)['epoch']}"
        for session in sessions
    ]

    def go(text: str) -> None:
        for session in sessions:
            up.prompt(session, text)

    return _figures(_client(up.port, token, paths), go)


def _relay() -> list[float]:
    server = subprocess.Popen(
        [sys.executable, "-m", "tests.bench.latency", "relay"],
        cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert server.stdin is not None
    assert server.stdout is not None
    stdin = server.stdin

    def go(text: str) -> None:
        stdin.write(text + "\n")
        stdin.flush()

    try:
        return _figures(_client(int(server.stdout.readline()), "", ["/"] * SESSIONS), go)
    finally:
        server.kill()
        server.wait()
        server.stdin.close()
        server.stdout.close()


def measure() -> Iterator[Row]:
    ours: list[list[float]] = []
    theirs: list[list[float]] = []
    with tempfile.TemporaryDirectory(prefix="hb-") as temporary:
        folder = Path(temporary)
        (folder / "config").mkdir()
        command = json.dumps([sys.executable, "-I", "-S", str(AGENT)])
        (folder / "config" / "holdover.toml").write_text(
            f"[sessions]\nmax_live = {SESSIONS + 10}\n[agents.ticking]\ncommand = {command}\n"
        )
        with running(folder) as up:
            token = up.call("POST", "/v1/tokens", {"name": "bench", "scopes": ["read"]})["token"]
            sessions = [
                up.call("POST", "/v1/sessions", {"agent": "ticking"})["id"] for _ in range(SESSIONS)
            ]
            for session in sessions:
                up.wait_state(session, "idle")
            for _ in range(RUNS + 1):
                ours.append(_holdover(up, token, sessions))
                wait_until(
                    lambda: all(up.session(s)["state"] == "idle" for s in sessions), "all is quiet"
                )
                theirs.append(_relay())
    for at, name in enumerate(("p50", "p99")):
        # The first of each warms.
        yield Row(
            f"line to viewer, {SESSIONS * RATE:,} lines/s over {SESSIONS} sessions, {name}", "ms",
            [run[at] for run in ours[1:]], "a relay of the same agents",
            [run[at] for run in theirs[1:]],
        )  # fmt: skip


if __name__ == "__main__":
    if sys.argv[1] == "relay":
        trio.run(relay)
    else:
        trio.run(view, int(sys.argv[2]), sys.argv[3], sys.argv[4:])
