"""A real `holdover up` for tests: its daemon can be killed, stopped and asked things.

Everything lives in a temporary folder, the public port is one the kernel chose, and whatever was
started is gone when the context ends.
"""

import contextlib
import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

START_S = 60.0
"""A timeout, not a figure: what the slowest machine may take to start a daemon."""


def wait_until(condition: Callable[[], Any], what: str, timeout_s: float = START_S) -> Any:
    """Poll `condition` until it is true, for things of other processes that send no event."""
    deadline = time.monotonic() + timeout_s
    pause = threading.Event()
    while not (value := condition()):
        if time.monotonic() > deadline:
            raise TimeoutError(f"waited {timeout_s:.0f} s in vain until {what}")
        pause.wait(0.02)
    return value


class _UnixConnection(http.client.HTTPConnection):
    def __init__(self, path: Path, timeout_s: float) -> None:
        super().__init__("localhost", timeout=timeout_s)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(str(self._path))


class Api:
    """The admin door, one request a connection."""

    def __init__(self, admin_socket: Path) -> None:
        self.admin_socket = admin_socket

    def request(
        self, method: str, path: str, body: Any = None, *, timeout_s: float = START_S
    ) -> tuple[int, Any]:
        """(status, JSON or None)."""
        connection = _UnixConnection(self.admin_socket, timeout_s)
        try:
            data = None if body is None else json.dumps(body).encode()
            headers = {"Content-Type": "application/json"} if data else {}
            connection.request(method, path, data, headers)
            response = connection.getresponse()
            text = response.read()
            return response.status, json.loads(text) if text else None
        finally:
            connection.close()

    def call(self, method: str, path: str, body: Any = None) -> Any:
        """The JSON of an answer that must be a success."""
        status, answer = self.request(method, path, body)
        assert status < 300, f"{method} {path}: {status} {answer}"
        return answer

    def healthy(self) -> bool:
        with contextlib.suppress(OSError, http.client.HTTPException):
            return self.request("GET", "/healthz", timeout_s=2)[0] == 200
        return False

    def new_session(self, text: str | None = None, **spec: Any) -> Any:
        if text is not None:
            spec["prompt"] = {"id": str(uuid4()), "text": text}
        return self.call("POST", "/v1/sessions", {"agent": "demo", **spec})

    def prompt(self, session: str, text: str) -> str:
        prompt_id = str(uuid4())
        self.call("POST", f"/v1/sessions/{session}/prompts", {"id": prompt_id, "text": text})
        return prompt_id

    def session(self, session: str) -> Any:
        return self.call("GET", f"/v1/sessions/{session}")

    def log(self, session: str) -> list[Any]:
        """Every message of a session."""
        messages: list[Any] = []
        while True:
            after = messages[-1]["seq"] if messages else 0
            answer = self.call("GET", f"/v1/sessions/{session}/messages?after={after}&limit=500")
            if not answer["messages"]:
                return messages
            messages += answer["messages"]

    def wait_state(self, session: str, *states: str, timeout_s: float = START_S) -> Any:
        def reached() -> Any:
            view = self.session(session)
            return view if view["state"] in states else None

        return wait_until(reached, f"session {session} is {' or '.join(states)}", timeout_s)


class Up(Api):
    """A running `holdover up`."""

    def __init__(self, process: "subprocess.Popen[bytes]", folder: Path, port: int) -> None:
        self.runtime = folder / "run"
        super().__init__(self.runtime / "admin.sock")
        self.process = process
        self.folder = folder
        self.state = folder / "state"
        self.home = folder / "home"
        self.port = port

    def daemon_pid(self) -> int:
        return int((self.runtime / "daemon.pid").read_text())

    def kill_daemon(self, sig: int = signal.SIGKILL) -> int:
        """Signal the daemon; returns its pid."""
        pid = self.daemon_pid()
        os.kill(pid, sig)
        return pid

    def wait_new_daemon(self, old: int) -> None:
        wait_until(lambda: self.daemon_pid() != old and self.healthy(), "another daemon serves")

    def output(self) -> str:
        return (self.folder / "output").read_text()


def holdover(up: Up, *arguments: str) -> "subprocess.CompletedProcess[str]":
    """Run the command line in another terminal, as it were."""
    return subprocess.run(
        [sys.executable, "-m", "holdover", *arguments],
        env={**os.environ, "HOLDOVER_RUNTIME_DIR": str(up.runtime)},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


@contextlib.contextmanager
def running(folder: Path, *, storage: bool = False, **env: str) -> Iterator[Up]:
    """`holdover up` in `folder`, which should have a short path: sockets live in it."""
    for name in ("run", "state", "home"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    port = free_port()
    environment = {
        **{key: value for key, value in os.environ.items() if not key.startswith("HOLDOVER_")},
        "HOME": str(folder / "home"),
        "HOLDOVER_STATE_DIR": str(folder / "state"),
        "HOLDOVER_RUNTIME_DIR": str(folder / "run"),
        "HOLDOVER_CONFIG_DIR": str(folder / "config"),
        "HOLDOVER_SESSIONS_DEFAULT_AGENT": "demo",
        **env,
    }
    with (folder / "output").open("ab") as output:
        process = subprocess.Popen(
            [
                *(sys.executable, "-m", "holdover", "up", f"--port={port}"),
                *(() if storage else ("--no-storage",)),
            ],
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    up = Up(process, folder, port)
    try:
        wait_until(lambda: process.poll() is not None or up.healthy(), "holdover up serves")
        assert process.poll() is None, up.output()
        yield up
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])
