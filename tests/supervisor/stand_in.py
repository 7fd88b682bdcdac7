"""A stand-in for the daemon: takes the sockets, says READY, answers what `holdover up` asks.

What it should do wrong is in the file named by STAND_IN, read at every start: ``exit`` ends at
once, ``mute`` never says READY, ``silent`` says WATCHDOG=1 once and no more.
"""

import contextlib
import json
import os
import socket
import sys
import threading
from http.server import BaseHTTPRequestHandler
from pathlib import Path

mode = Path(os.environ["STAND_IN"]).read_text().strip()


class Handler(BaseHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        """Quiet."""

    def do_GET(self) -> None:
        known = self.headers.get("Authorization") == "Bearer hold_standin"
        shown = {"pid": os.getpid(), "args": sys.argv[1:], "env": dict(os.environ)}
        self.answer(200 if known or self.path == "/healthz" else 401, shown)

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        self.answer(201, {"token": "hold_standin"})

    def answer(self, status: int, body: object) -> None:
        data = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)


def serve(listener: socket.socket) -> None:
    while True:
        connection, _ = listener.accept()
        # A blocking accept does not pass O_NONBLOCK of the shared description on.
        with connection, contextlib.suppress(OSError):
            Handler(connection, ("peer", 0), None)  # type: ignore[arg-type]


def notify(text: str) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as one:
        one.sendto(text.encode(), os.environ["NOTIFY_SOCKET"])


if mode == "exit":
    sys.exit(3)
assert os.environ["LISTEN_PID"] == str(os.getpid())
assert os.environ["LISTEN_FDNAMES"] == "public:admin"
for number in (3, 4):
    door = socket.socket(fileno=number)
    door.setblocking(True)
    threading.Thread(target=serve, args=(door,), daemon=True).start()
if mode != "mute":
    notify("READY=1\nSTATUS=stand-in")
if mode == "silent":
    notify("WATCHDOG=1")
threading.Event().wait()
