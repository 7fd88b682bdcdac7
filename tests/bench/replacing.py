"""What replacing a server costs those who use it: Holdover, nginx, HAProxy, a plain service.

``python -m tests.bench.replacing``; writes replacing.md beside this file. The load is the same for
all: STREAMS WebSockets of RATE lines of 1 KiB a second, and VISITORS new connections a second with
a request each. Every arm is left alone for STEADY_S, then replaced REPLACEMENTS times, one every
EVERY_S seconds, so that all are watched equally long; its listening socket is held by this harness, as systemd would (but for nginx and HAProxy,
which hold their own). All of it shares one machine, over loopback.

* Holdover: another daemon is started beside the one that serves, which hands over all sessions and
  leaves (`[drain] mode = "migrate"`).
* nginx, HAProxy: a reload (`nginx -s reload`; USR2 to HAProxy's master) of a proxy in front of a
  plain backend, which is *not* replaced. Most patient: as they come, old workers stay until their
  last connection has closed. Bounded: `worker_shutdown_timeout 2s`, `hard-stop-after 2s`, without
  which old workers pile up behind long-lived streams.
* plain service: uvicorn, `systemctl restart` done by hand: TERM, wait, start again on the same
  listening socket.

A stream that was closed is opened again after 50 ms. Lines missed: those that were said meanwhile
and never came; Holdover's viewers come back with a cursor, the plain service has none.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import trio
from trio_websocket import ConnectionClosed, HandshakeError, open_websocket_url

from tests.live import generations
from tests.live.kills import LineWatcher
from tests.live.test_handover import Visitors
from tests.live.up import free_port

STREAMS = int(os.environ.get("HOLDOVER_BENCH_STREAMS", "20"))
VISITORS = int(os.environ.get("HOLDOVER_BENCH_VISITORS", "50"))
REPLACEMENTS = int(os.environ.get("HOLDOVER_BENCH_REPLACEMENTS", "5"))
RATE = 20
STEADY_S = 10.0
EVERY_S = 10.0
START_S = 30.0
BOUND_S = 2
RESULTS = Path(__file__).with_name("replacing.md")


@dataclass(frozen=True)
class Cost:
    """Of one arm. Times in seconds."""

    arm: str
    connections: int
    failed: int
    broken: int
    missed: int
    steady_p99_s: float
    p99_s: float


@dataclass
class PlainStream:
    """A client of the plain service, which has no cursor to come back with."""

    port: int
    last: int = 0
    missed: int = 0
    closed: int = 0

    async def run(self) -> None:
        while True:
            with contextlib.suppress(OSError, HandshakeError, trio.TooSlowError):
                async with open_websocket_url(f"ws://127.0.0.1:{self.port}/stream") as connection:
                    with contextlib.suppress(ConnectionClosed):
                        while True:
                            self._take(await connection.get_message())
                self.closed += 1
            await trio.sleep(0.05)

    def _take(self, text: str) -> None:
        number = int(text.split(" ", 1)[0])
        if self.last:
            self.missed += max(0, number - self.last - 1)
        self.last = number


Replace = Callable[[], Awaitable[None]]


async def measure_plain(arm: str, port: int, replace: Replace) -> Cost:
    streams = [PlainStream(port) for _ in range(STREAMS)]
    visitors = Visitors(port)
    async with trio.open_nursery() as nursery:
        for stream in streams:
            nursery.start_soon(stream.run)
        with trio.fail_after(START_S):
            while not all(stream.last for stream in streams):
                await trio.sleep(0.05)
        nursery.start_soon(visitors.run, VISITORS)
        await trio.sleep(STEADY_S)
        steady, visitors.times_s = visitors.times_s, []
        for stream in streams:
            stream.closed = stream.missed = 0
        await _replace(replace)
        nursery.cancel_scope.cancel()
    return Cost(
        arm=arm,
        connections=len(visitors.times_s) + len(visitors.lost),
        failed=len(visitors.lost),
        broken=sum(stream.closed for stream in streams),
        missed=sum(stream.missed for stream in streams),
        steady_p99_s=_p99(steady),
        p99_s=_p99(visitors.times_s),
    )


async def _replace(replace: Replace) -> None:
    """Raises AssertionError where a replacement takes longer than it may."""
    due = trio.current_time()
    for _ in range(REPLACEMENTS):
        due += EVERY_S
        await replace()
        assert trio.current_time() < due, f"replacing it took over {EVERY_S:.0f} s"
        await trio.sleep_until(due)


async def holdover(folder: Path) -> Cost:
    async with generations.host(folder, HOLDOVER_DRAIN_MODE="migrate") as host:
        await host.start(1)
        say = f"lines {RATE * 600} rate {RATE} size 1024"
        ids = [
            (await trio.to_thread.run_sync(partial(host.new_session, say)))["id"]
            for _ in range(STREAMS)
        ]
        token = host.call("POST", "/v1/tokens", {"name": "bench", "scopes": ["read"]})["token"]
        # By TCP, as the others' clients.
        dial = partial(socket.create_connection, ("127.0.0.1", host.port))
        watchers = [LineWatcher(host.admin_socket, one, dial=dial, token=token) for one in ids]
        visitors = Visitors(host.port)

        async def replace() -> None:
            before = host.living()
            await host.start(len(host.instances) + 1)
            for one in before:
                await one.wait_exit()

        async with trio.open_nursery() as nursery:
            for watcher in watchers:
                nursery.start_soon(watcher.run)
            for watcher in watchers:
                with trio.fail_after(START_S):
                    await watcher.live.wait()
            nursery.start_soon(visitors.run, VISITORS)
            await trio.sleep(STEADY_S)
            steady, visitors.times_s = visitors.times_s, []
            await _replace(replace)
            nursery.cancel_scope.cancel()
        # That no line is missing or repeated the watchers have asserted, line by line.
        return Cost(
            arm="Holdover",
            connections=len(visitors.times_s) + len(visitors.lost),
            failed=len(visitors.lost),
            broken=sum(w.connects - 1 for w in watchers),
            missed=0,
            steady_p99_s=_p99(steady),
            p99_s=_p99(visitors.times_s),
        )


@contextlib.asynccontextmanager
async def plain_service(listener: socket.socket) -> AsyncIterator[Replace]:
    """uvicorn on a socket that outlives it; what it gives restarts it."""
    t0 = repr(time.time())

    def start() -> subprocess.Popen[bytes]:
        fd = listener.fileno()
        return subprocess.Popen(
            [
                *(sys.executable, "-m", "uvicorn", "tests.bench.plain_app:app"),
                *(f"--fd={fd}", "--log-level=critical", "--timeout-graceful-shutdown=5"),
            ],
            pass_fds=[fd],
            env={**os.environ, "T0": t0, "RATE": str(RATE)},
        )

    process = start()

    async def restart() -> None:
        nonlocal process
        process.terminate()
        await trio.to_thread.run_sync(process.wait)
        process = start()

    try:
        await _answers(listener.getsockname()[1])
        yield restart
    finally:
        process.kill()
        process.wait()


async def plain(_folder: Path) -> Cost:
    with socket.create_server(("127.0.0.1", 0), backlog=1024) as listener:
        async with plain_service(listener) as restart:
            port = listener.getsockname()[1]
            return await measure_plain("plain service (uvicorn), restarted", port, restart)


async def nginx(folder: Path, *, bounded: bool) -> Cost:
    with socket.create_server(("127.0.0.1", 0), backlog=1024) as backend:
        async with plain_service(backend):
            port, config = free_port(), folder / "nginx.conf"
            timeout = f"worker_shutdown_timeout {BOUND_S}s;" if bounded else ""
            config.write_text(
                f"worker_processes 2; daemon off; pid {folder}/nginx.pid; error_log stderr crit;\n"
                f"{timeout} events {{ worker_connections 4096; }}\n"
                "http { access_log off;\n"
                f"  client_body_temp_path {folder}/b; proxy_temp_path {folder}/p;\n"
                f"  fastcgi_temp_path {folder}/f; uwsgi_temp_path {folder}/u;\n"
                f"  scgi_temp_path {folder}/s;\n"
                f"  server {{ listen 127.0.0.1:{port}; location / {{\n"
                f"    proxy_pass http://127.0.0.1:{backend.getsockname()[1]};\n"
                "    proxy_http_version 1.1; proxy_read_timeout 1h;\n"
                "    proxy_set_header Upgrade $http_upgrade;\n"
                '    proxy_set_header Connection "upgrade"; } } }\n'
            )
            command = [_program("nginx"), "-p", str(folder), "-c", str(config)]
            async with _running(command, port):

                async def reload() -> None:
                    await trio.run_process([*command, "-s", "reload"])

                how = f"at most {BOUND_S} s for old workers" if bounded else "most patient"
                return await measure_plain(f"nginx, reloaded, {how}", port, reload)


async def haproxy(folder: Path, *, bounded: bool) -> Cost:
    with socket.create_server(("127.0.0.1", 0), backlog=1024) as backend:
        async with plain_service(backend):
            port, config = free_port(), folder / "haproxy.cfg"
            stop = f"hard-stop-after {BOUND_S}s" if bounded else ""
            config.write_text(
                f"global\n  stats socket {folder}/s.sock mode 600 expose-fd listeners\n  {stop}\n"
                "defaults\n  mode http\n  timeout connect 5s\n  timeout client 1h\n"
                "  timeout server 1h\n  timeout tunnel 1h\n"
                f"frontend f\n  bind 127.0.0.1:{port}\n  default_backend b\n"
                f"backend b\n  server s 127.0.0.1:{backend.getsockname()[1]}\n"
            )
            command = [_program("haproxy"), "-W", "-q", "-f", str(config)]
            async with _running(command, port) as process:

                async def reload() -> None:
                    process.send_signal(signal.SIGUSR2)

                how = f"at most {BOUND_S} s for old workers" if bounded else "most patient"
                return await measure_plain(f"HAProxy, reloaded, {how}", port, reload)


def _program(name: str) -> str:
    found = shutil.which(name, path=f"{os.environ['PATH']}:/usr/sbin")
    if found is None:
        raise SystemExit(f"{name} is needed for this: apt-get install {name}")
    return found


@contextlib.asynccontextmanager
async def _running(command: list[str], port: int) -> AsyncIterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL, start_new_session=True)
    try:
        await _answers(port)
        yield process
    finally:
        # Old workers hang on their streams: the whole group is ours.
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


async def _answers(port: int) -> None:
    with trio.fail_after(START_S):
        while True:
            visitors = Visitors(port)
            await visitors._visit()
            if visitors.answered:
                return
            await trio.sleep(0.05)


def _p99(times_s: list[float]) -> float:
    ordered = sorted(times_s)
    return ordered[round(0.99 * (len(ordered) - 1))]


ARMS: tuple[Callable[[Path], Awaitable[Cost]], ...] = (
    holdover,
    partial(nginx, bounded=False),
    partial(nginx, bounded=True),
    partial(haproxy, bounded=False),
    partial(haproxy, bounded=True),
    plain,
)


def table(costs: list[Cost]) -> str:
    lines = [
        "| what was replaced | connections failed | WebSockets broken | lines missed "
        "| answered within, 99 of 100 (left alone) |",
        "|---|---:|---:|---:|---:|",
    ]
    for cost in costs:
        lines.append(
            f"| {cost.arm} | {cost.failed} of {cost.connections} | {cost.broken} | {cost.missed} "
            f"| {cost.p99_s * 1000:.0f} ms ({cost.steady_p99_s * 1000:.0f} ms) |"
        )
    return "\n".join(lines)


def main() -> None:
    costs: list[Cost] = []
    for arm in ARMS:
        folder = Path(tempfile.mkdtemp(prefix="hb-"))
        try:
            costs.append(trio.run(arm, folder))
        finally:
            shutil.rmtree(folder, ignore_errors=True)
        print(table(costs[-1:]).splitlines()[-1], file=sys.stderr, flush=True)
    shown = table(costs)
    print(shown)
    assert __doc__ is not None
    what = __doc__.split("\n\n", 1)[1]
    RESULTS.write_text(
        "# Replacing a server under load\n\nWritten by `python -m tests.bench.replacing`.\n\n"
        f"{shown}\n\n{STREAMS} streams, {VISITORS} visitors a second, {REPLACEMENTS} replacements in "
        f"{REPLACEMENTS * EVERY_S:.0f} s, on {os.cpu_count()} cores; load average of the minute before, by others: "
        f"{os.getloadavg()[0]:.1f}.\n\n## What is compared\n\n{what}"
    )


if __name__ == "__main__":
    main()
