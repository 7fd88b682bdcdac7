"""The supervisor with real processes and sockets; the daemon and the keepers are stand-ins."""

import http.client
import json
import os
import re
import select
import signal
import socket
import stat
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import trio

from holdoverd.supervisor import daemon as daemon_module

pytestmark = pytest.mark.slow

LONG_S = 60.0


class Up:
    """A running `holdover up` with its output."""

    def __init__(self, home: Path, *times: str, port: int = 0) -> None:
        self.home = home
        self.state = home / ".local" / "state" / "holdover"
        self.run = self.state / "run"
        (home / "mode").touch()
        env = {
            "HOME": str(home),
            "PATH": os.environ["PATH"],
            "PYTHONPATH": os.pathsep.join(sys.path),
            "STAND_IN": str(home / "mode"),
            "HOLDOVER_CONFIG_DIR": str(home / "etc"),
        }
        self.process = subprocess.Popen(
            [sys.executable, str(Path(__file__).with_name("drive.py")), str(port), *times],
            env=env,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        self.output = ""
        self._changed = threading.Condition()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            with self._changed:
                self.output += line
                self._changed.notify_all()
        with self._changed:
            self._changed.notify_all()

    def wait_says(self, pattern: str, times: int = 1) -> None:
        """Wait until `pattern` has been printed so often, or nothing more can come."""

        def said() -> bool:
            return len(re.findall(pattern, self.output)) >= times

        with self._changed:
            self._changed.wait_for(lambda: said() or not self._reader.is_alive(), LONG_S)
        assert said(), f"{pattern!r} did not come: {self.output}"

    def port(self) -> int:
        self.wait_says(r"address  http://127\.0\.0\.1:\d+")
        found = re.search(r"address  http://127\.0\.0\.1:(\d+)", self.output)
        assert found is not None
        return int(found[1])

    def health(self) -> dict[str, Any]:
        """What the stand-in daemon tells of itself; waits as long as none lives."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port(), timeout=LONG_S)
        connection.request("GET", "/healthz")
        answer: dict[str, Any] = json.loads(connection.getresponse().read())
        connection.close()
        return answer

    def launch(self, request: bytes = b"launch") -> dict[str, Any]:
        """Ask for a keeper as the daemon does; what the stand-in keeper tells of itself."""
        sockets = list((self.run / "agents").iterdir())
        assert len(sockets) == 1
        with socket.socket(socket.AF_UNIX) as one:
            one.settimeout(LONG_S)
            one.connect(str(sockets[0]))
            one.sendall(request)
            told: dict[str, Any] = json.loads(one.makefile().readline())
            return told

    def stop(self, number: int = signal.SIGINT) -> int:
        self.process.send_signal(number)
        return self.end()

    def end(self) -> int:
        code = self.process.wait(LONG_S)
        self._reader.join(LONG_S)
        return code


@pytest.fixture
def home() -> Iterator[Path]:
    """A home with a short name: below pytest's own folders, sockets' names would be too long."""
    with tempfile.TemporaryDirectory(prefix="up-", dir="/tmp") as name:
        yield Path(name)


@pytest.fixture
def up(home: Path) -> Iterator[Callable[..., Up]]:
    """Start supervisors; whatever is left of them is stopped at the end."""
    started: list[Up] = []

    def start(*times: str, port: int = 0, home: Path = home) -> Up:
        started.append(Up(home, *times, port=port))
        return started[-1]

    yield start
    for one in started:
        if one.process.poll() is None:
            one.stop(signal.SIGTERM)
        assert one.process.stdout is not None
        one.process.stdout.close()


def gone(pid: int) -> bool:
    """Wait for a process that is nobody's child here to be gone."""
    until = time.monotonic() + LONG_S
    while time.monotonic() < until:
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return True
        os.sched_yield()
    return False


def test_start_prints_address_login_and_next_line(up: Callable[..., Up]) -> None:
    one = up()
    one.wait_says("make install")
    assert "token hold_standin" in one.output
    assert 'session new --attach "hello"' in one.output
    token_file = one.state / "login-token"
    assert token_file.read_text() == "hold_standin\n"
    assert stat.S_IMODE(token_file.stat().st_mode) == 0o600


def test_sockets_and_folders_are_for_their_owner_only(up: Callable[..., Up]) -> None:
    one = up()
    one.wait_says("make install")
    for path in (one.state, one.run, one.run / "sessions", one.run / "instances"):
        assert stat.S_IMODE(path.stat().st_mode) == 0o700
    assert stat.S_IMODE((one.run / "admin.sock").stat().st_mode) == 0o600


def test_daemon_gets_its_folders_sockets_and_generation(up: Callable[..., Up]) -> None:
    one = up()
    told = one.health()
    assert told["args"] == ["--generation", "1"]
    assert told["env"]["STATE_DIRECTORY"] == str(one.state)
    assert told["env"]["HOLDOVER_RUNTIME_DIR"] == str(one.run)
    assert told["env"]["HOLDOVER_SERVER_PUBLIC_URL"] == f"http://127.0.0.1:{one.port()}"
    assert int((one.run / "daemon.pid").read_text()) == told["pid"]


def kill_and_wait(pid: int) -> None:
    """Until the process is gone: a signal that was sent has not arrived yet."""
    pidfd = os.pidfd_open(pid)
    try:
        os.kill(pid, signal.SIGKILL)
        assert select.select([pidfd], [], [], LONG_S)[0], f"process {pid} does not die"
    finally:
        os.close(pidfd)


def test_killed_daemon_is_started_again_and_no_connection_is_refused(up: Callable[..., Up]) -> None:
    one = up()
    pids = {one.health()["pid"]}
    for count in range(1, 4):
        kill_and_wait(one.health()["pid"])  # what it had accepted dies with it
        pids.add(one.health()["pid"])  # waits in the listening socket meanwhile
        one.wait_says("killed by signal 9", times=count)
    assert len(pids) == 4


def test_daemon_that_never_works_ends_the_supervisor(up: Callable[..., Up], home: Path) -> None:
    (home / "mode").write_text("exit")
    one = up()
    assert one.end() == 1
    assert one.output.count("exited with status 3") == 3
    assert "before it was ready, three times over" in one.output


def test_daemon_that_falls_silent_is_killed_and_started_again(
    up: Callable[..., Up], home: Path
) -> None:
    (home / "mode").write_text("silent")
    one = up("WATCHDOG_S=0.3")
    one.wait_says(r"killed by signal 9 \(it has been silent", times=2)


@pytest.mark.slow
def test_daemon_that_does_not_become_ready_is_killed(up: Callable[..., Up], home: Path) -> None:
    (home / "mode").write_text("mute")
    one = up("READY_WITHIN_S=0.5")
    assert one.end() == 1
    assert "was not ready after" in one.output


@pytest.mark.slow
def test_report_of_another_process_counts_for_nothing(up: Callable[..., Up], home: Path) -> None:
    (home / "mode").write_text("mute")
    one = up("READY_WITHIN_S=2")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as forger:
        until = time.monotonic() + LONG_S
        while time.monotonic() < until and one.process.poll() is None:
            try:
                forger.sendto(b"READY=1", str(one.run / "notify.sock"))
            except OSError:
                os.sched_yield()  # not there yet, or its queue is full
    one.wait_says("was not ready after")
    assert "make install" not in one.output


def test_launch_starts_a_keeper_of_its_own_session(up: Callable[..., Up]) -> None:
    """Ctrl-C on the terminal reaches the foreground's processes; agents are none of them."""
    one = up()
    one.wait_says("make install")
    told = one.launch()
    assert told["session"] == told["pid"]
    assert told["blocking"]


def test_ctrl_c_stops_daemon_and_agents_after_saying_so(up: Callable[..., Up]) -> None:
    one = up()
    daemon = one.health()["pid"]
    keepers = [one.launch()["pid"], one.launch()["pid"]]
    assert one.stop() == 0
    assert "with the daemon the 2 agents that run" in one.output
    assert all(gone(pid) for pid in [daemon, *keepers])


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_other_stop_signals_do_the_same(up: Callable[..., Up], number: signal.Signals) -> None:
    one = up()
    one.wait_says("make install")
    keeper = one.launch()["pid"]
    assert one.stop(number) == 0
    assert gone(keeper)


@pytest.mark.slow
def test_keeper_that_does_not_stop_is_killed_in_the_end(up: Callable[..., Up]) -> None:
    one = up("STOP_S=0.5")
    one.wait_says("make install")
    keeper = one.launch(b"stubborn")["pid"]
    assert one.stop() == 0
    assert "1 agents did not stop in time" in one.output
    assert gone(keeper)


@pytest.mark.slow
def test_second_ctrl_c_hurries(up: Callable[..., Up]) -> None:
    one = up("STOP_S=100000")
    one.wait_says("make install")
    keeper = one.launch(b"stubborn")["pid"]
    one.process.send_signal(signal.SIGINT)
    one.wait_says("Stopping")
    assert one.stop() == 0
    assert gone(keeper)


@pytest.mark.slow
def test_killed_supervisor_takes_the_daemon_along_and_leaves_the_agents(
    up: Callable[..., Up],
) -> None:
    one = up()
    daemon, keeper = one.health()["pid"], one.launch()["pid"]
    one.process.kill()
    one.end()
    assert gone(daemon)
    os.kill(keeper, 0)
    again = up()
    again.wait_says("make install")
    assert "token hold_standin" in again.output
    assert again.stop() == 0  # it finds the keeper that the first one started
    assert "the agent that runs" in again.output
    assert gone(keeper)


def test_daemon_outlives_the_worker_threads_of_its_supervisor(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The kernel sends a parent-death signal when the *thread* that started a child ends."""
    program = home / "echo.py"
    program.write_text(
        "import ctypes, os, signal, sys\n"
        "ctypes.CDLL(None).prctl(1, signal.SIGTERM, 0, 0, 0)\n"
        "while data := os.read(int(sys.argv[1]), 1): os.write(int(sys.argv[2]), data)\n"
    )

    monkeypatch.setattr("trio._core._thread_cache.IDLE_TIMEOUT", 0.01)
    ask_read, ask = os.pipe()
    told, told_write = os.pipe()

    async def start_then_let_threads_end() -> bytes:
        args = [sys.executable, str(program), str(ask_read), str(told_write)]
        process = daemon_module.Process(args, pass_fds=[ask_read, told_write], env=dict(os.environ))
        os.close(told_write)
        os.write(ask, b"1")
        first = await trio.to_thread.run_sync(os.read, told, 1)  # the signal is asked for by now
        while threading.active_count() > before:
            await trio.sleep(0)
        os.write(ask, b"2")
        second = os.read(told, 1)
        process.kill()
        await process.wait()
        assert process.returncode == -signal.SIGKILL
        return first + second

    before = threading.active_count()
    assert trio.run(start_then_let_threads_end) == b"12"
    for fd in (ask_read, ask, told):
        os.close(fd)


def test_second_up_says_who_holds_the_folder(up: Callable[..., Up]) -> None:
    first = up()
    first.wait_says("make install")
    second = up()
    assert second.end() == 1
    assert (
        f"Another `holdover up` (process {first.process.pid}) holds {first.state}" in second.output
    )


def test_port_in_use_is_named_with_the_way_out(up: Callable[..., Up], home: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        one = up(port=port)
        assert one.end() == 1
    assert f"Port {port} of 127.0.0.1 is in use by another program" in one.output
    assert "--port N" in one.output


def test_no_more_keepers_are_started_than_the_bound(up: Callable[..., Up], home: Path) -> None:
    """One over the bound is closed unread, which the daemon takes for a refusal."""
    (home / "etc").mkdir()
    (home / "etc" / "holdover.toml").write_text("[sessions]\nmax_live = 1\n")
    one = up("SPARE_KEEPERS=1")
    one.wait_says("make install")
    one.launch()
    one.launch()
    with socket.socket(socket.AF_UNIX) as third:
        third.settimeout(LONG_S)
        third.connect(str(next((one.run / "agents").iterdir())))
        assert third.recv(1) == b""


def control(up: Up, request: bytes) -> Any:
    with socket.socket(socket.AF_UNIX) as one:
        one.settimeout(LONG_S)
        one.connect(str(up.run / "supervisor.sock"))
        one.sendall(request)
        one.shutdown(socket.SHUT_WR)
        return json.loads(one.makefile().readline())


def test_control_socket_is_its_owners_and_refuses_what_it_does_not_understand(
    up: Callable[..., Up],
) -> None:
    one = up()
    one.port()
    assert stat.S_IMODE((one.run / "supervisor.sock").stat().st_mode) == 0o600
    assert control(one, b'{"op": "living"}\n') == {"ok": [1]}
    assert control(one, b'{"op": "state", "generation": 1}\n')["ok"]["running"] is True
    for request in (
        b"\n",
        b"[]\n",
        b'{"op": "living"}',
        b'{"op": "start", "generation": "1"}\n',
        b'{"op": "deploy", "python": 7}\n',
        b"x" * (64 * 1024 + 1),
        b'{"op": "' + b"\xff" * 10 + b'"}\n',
    ):
        assert "error" in control(one, request), request
    assert "No generation 7" in control(one, b'{"op": "start", "generation": 7}\n')["error"]
    assert "does not run" in control(one, b'{"op": "deploy", "python": "/nowhere"}\n')["error"]
    assert "No earlier release" in control(one, b'{"op": "rollback"}\n')["error"]
    assert one.health()["pid"]
