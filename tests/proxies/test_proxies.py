"""Each front proxy's snippet, really run: TLS, HTTP, WebSocket and storage through it.

What stands in packaging/proxies is what runs, with ports, names' certificates and folders of the
test's own put in. Storage is a small server here, that says what came to it.
"""

from __future__ import annotations

import http.client
import json
import os
import shutil
import socket
import ssl
import subprocess
import sysconfig
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from websockets.sync.client import ClientConnection, connect

from tests.host.machine import SOURCE
from tests.live.up import Up, free_port, running, wait_until

pytestmark = pytest.mark.slow

SNIPPETS = SOURCE / "packaging/proxies"
AGENTS, FILES = "agents.example.org", "files.example.org"
PATH = (
    f"{sysconfig.get_path('scripts')}:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
)
PART_BYTES = 24 * 1024 * 1024
"""More than a part of an upload; no proxy's default lets it through."""


def replaced(text: str, *pairs: tuple[str, str]) -> str:
    for old, new in pairs:
        assert old in text, f"the snippet has no {old!r} any more"
        text = text.replace(old, new)
    return text


# --- the three ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class Place:
    """Where a proxy runs: its folder with the certificates, its port, Holdover's and storage's."""

    folder: Path
    port: int
    holdover: int
    storage: int

    @property
    def chain(self) -> Path:
        return self.folder / "chain.pem"

    @property
    def key(self) -> Path:
        return self.folder / "key.pem"


def nginx(place: Place) -> list[str]:
    text = replaced(
        (SNIPPETS / "nginx.conf").read_text(),
        ("listen 443 ssl", f"listen 127.0.0.1:{place.port} ssl"),
        ("127.0.0.1:8780", f"127.0.0.1:{place.holdover}"),
        ("127.0.0.1:8781", f"127.0.0.1:{place.storage}"),
        (f"/etc/ssl/certs/{AGENTS}.pem", str(place.chain)),
        (f"/etc/ssl/private/{AGENTS}.key", str(place.key)),
        (f"/etc/ssl/certs/{FILES}.pem", str(place.chain)),
        (f"/etc/ssl/private/{FILES}.key", str(place.key)),
    )
    (place.folder / "site").write_text(text)
    kinds = ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    folders = "".join(f"{kind}_temp_path {place.folder}/{kind};\n" for kind in kinds)
    (place.folder / "nginx.conf").write_text(
        # Its folder is ours alone; a worker of another user could not spool a body there.
        f"{'user root;' if os.geteuid() == 0 else ''} worker_processes 1;\n"
        f"daemon off; pid {place.folder}/pid; error_log stderr;\n"
        f"events {{}}\nhttp {{\naccess_log off;\n{folders}include {place.folder}/site;\n}}\n"
    )
    return ["nginx", "-e", "stderr", "-c", str(place.folder / "nginx.conf")]


def haproxy(place: Place) -> list[str]:
    text = replaced(
        (SNIPPETS / "haproxy.cfg").read_text(),
        ("bind :443", f"bind 127.0.0.1:{place.port}"),
        ("127.0.0.1:8780", f"127.0.0.1:{place.holdover}"),
        ("127.0.0.1:8781", f"127.0.0.1:{place.storage}"),
        ("/etc/haproxy/certs/", str(place.folder / "both.pem")),
    )
    (place.folder / "both.pem").write_text(place.chain.read_text() + place.key.read_text())
    (place.folder / "haproxy.cfg").write_text(text)
    return ["haproxy", "-db", "-f", str(place.folder / "haproxy.cfg")]


def caddy(place: Place) -> list[str]:
    tls = f"\ttls {place.chain} {place.key}\n"
    text = replaced(
        (SNIPPETS / "Caddyfile").read_text(),
        (f"{AGENTS} {{\n", f"https://{AGENTS}:{place.port} {{\n\tbind 127.0.0.1\n{tls}"),
        (f"{FILES} {{\n", f"https://{FILES}:{place.port} {{\n\tbind 127.0.0.1\n{tls}"),
        ("127.0.0.1:8780", f"127.0.0.1:{place.holdover}"),
        ("127.0.0.1:8781", f"127.0.0.1:{place.storage}"),
    )
    head = "{\n\tadmin off\n\tauto_https off\n\tpersist_config off\n}\n"
    (place.folder / "Caddyfile").write_text(head + text)
    return ["caddy", "run", "--adapter", "caddyfile", "--config", str(place.folder / "Caddyfile")]


PROXIES: dict[str, Callable[[Place], list[str]]] = {
    "nginx": nginx,
    "haproxy": haproxy,
    "caddy": caddy,
}


# --- what stands around them -------------------------------------------------------------------


@dataclass
class Front:
    """A running proxy, and how to speak through it."""

    port: int
    trust: ssl.SSLContext
    up: Up
    token: str

    def request(
        self,
        name: str,
        method: str,
        path: str,
        body: Any = None,
        headers: dict[str, str] | None = None,
    ) -> tuple[int, bytes]:
        connection = http.client.HTTPSConnection("127.0.0.1", self.port, timeout=60)
        plain = socket.create_connection(("127.0.0.1", self.port), 60)
        connection.sock = self.trust.wrap_socket(plain, server_hostname=name)
        with closing(connection):
            connection.request(
                method, path, body, {"Host": f"{name}:{self.port}", **(headers or {})}
            )
            answer = connection.getresponse()
            return answer.status, answer.read()

    def watch(self, session: str) -> ClientConnection:
        return connect(
            f"wss://{AGENTS}:{self.port}/v1/sessions/{session}/stream?after=0",
            sock=socket.create_connection(("127.0.0.1", self.port), 60),
            ssl=self.trust,
            server_hostname=AGENTS,
            subprotocols=["holdover.v1"],  # type: ignore[list-item]
            origin=f"https://{AGENTS}:{self.port}",  # type: ignore[arg-type]
            additional_headers={"Authorization": f"Bearer {self.token}"},
            max_size=16 * 1024 * 1024,
        )


class Storage(BaseHTTPRequestHandler):
    """Says what came: the Host it was asked by, and how many bytes."""

    protocol_version = "HTTP/1.1"

    def do_PUT(self) -> None:
        left = size = int(self.headers["Content-Length"])
        while left:
            left -= len(self.rfile.read(min(left, 65536)))
        said = json.dumps({"host": self.headers["Host"], "size": size}).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(said)))
        self.end_headers()
        self.wfile.write(said)

    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("Content-Length", str(PART_BYTES))
        self.end_headers()
        self.wfile.write(b"x" * PART_BYTES)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - as its base calls it
        pass


@contextmanager
def storage() -> Iterator[int]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Storage)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield server.server_address[1]
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def certificate(place: Place) -> None:
    """For both names, by nobody else's authority than its own."""
    subprocess.run(
        [
            *("openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256"),
            *("-nodes", "-days", "2", "-subj", f"/CN={AGENTS}"),
            *("-addext", f"subjectAltName=DNS:{AGENTS},DNS:{FILES}"),
            *("-keyout", place.key, "-out", place.chain),
        ],
        check=True,
        capture_output=True,
    )


@pytest.fixture(params=list(PROXIES), scope="module")
def front(request: pytest.FixtureRequest) -> Iterator[Front]:
    name: str = request.param
    for program in (name, "openssl"):
        if shutil.which(program, path=PATH) is None:
            pytest.skip(f"needs {program}, not found on this machine")
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="holdover-")))
        port = free_port()
        up = stack.enter_context(
            running(
                folder / "up",
                HOLDOVER_SERVER_PUBLIC_URL=f"https://{AGENTS}:{port}",
                HOLDOVER_SERVER_TRUSTED_PROXIES="127.0.0.1",
            )
        )
        place = Place(folder, port, up.port, stack.enter_context(storage()))
        certificate(place)
        output = stack.enter_context((folder / "output").open("wb"))
        process = subprocess.Popen(
            PROXIES[name](place),
            env={"PATH": PATH, "HOME": str(folder)},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
        )
        try:
            trust = ssl.create_default_context(cafile=str(place.chain))
            token = up.call("POST", "/v1/tokens", {"name": "t", "scopes": ["sessions", "read"]})
            found = Front(port, trust, up, token["token"])

            def answers() -> bool:
                assert process.poll() is None, (folder / "output").read_text()
                try:
                    return found.request(AGENTS, "GET", "/healthz")[0] == 200
                except OSError:
                    return False

            wait_until(answers, f"{name} answers", 30)
            yield found
        finally:
            process.terminate()
            process.wait(30)


# --- through each ------------------------------------------------------------------------------


def test_requests_reach_the_daemon_under_the_public_name(front: Front) -> None:
    status, body = front.request(AGENTS, "GET", "/healthz")
    assert (status, json.loads(body)["status"]) == (200, "ok")
    own = {"Authorization": f"Bearer {front.token}", "Origin": f"https://{AGENTS}:{front.port}"}
    assert front.request(AGENTS, "GET", "/v1/sessions", headers=own)[0] == 200
    other = own | {"Origin": "https://evil.example"}
    assert front.request(AGENTS, "GET", "/v1/sessions", headers=other)[0] == 403
    # A megabyte goes through; what is too much is refused by Holdover, in its own words.
    big = json.dumps({"title": "x" * (1024 * 1024)})
    status, body = front.request(
        AGENTS, "POST", "/v1/sessions", big, own | {"Content-Type": "application/json"}
    )
    assert (status, json.loads(body)["error"]["code"]) == (413, "too_large")


def test_what_a_client_says_of_itself_is_not_believed(front: Front) -> None:
    """Failed logins count by the address that the proxy saw, whatever X-Forwarded-For is sent."""
    statuses = []
    for number in range(11):
        headers = {
            "Content-Type": "application/json",
            "Origin": f"https://{AGENTS}:{front.port}",
            "X-Forwarded-For": f"192.0.2.{number}",
        }
        statuses.append(
            front.request(AGENTS, "POST", "/login", '{"token":"hold_wrong"}', headers)[0]
        )
    assert statuses[0] == 401
    assert statuses[-1] == 429


def test_a_stream_comes_through_word_by_word_both_ways(front: Front) -> None:
    session = front.up.new_session()["id"]
    with front.watch(session) as stream:
        assert json.loads(stream.recv(30))["type"] == "hello"
        while json.loads(stream.recv(30))["type"] != "live":
            pass
        prompt = {"type": "prompt", "id": str(uuid4()), "text": "stream 40 rate 20", "ref": "1"}
        stream.send(json.dumps(prompt))
        came: list[float] = []
        answered = False
        while len(came) < 20:
            frame = json.loads(stream.recv(30))
            answered = answered or (frame["type"], frame.get("ref")) == ("ok", "1")
            if frame["type"] == "delta":
                came.append(time.monotonic())
        assert answered
        # Twenty words at twenty a second: kept back and sent together they would come at once.
        assert came[-1] - came[0] > 0.3
        # A frame far beyond any buffer, up: a prompt of two megabytes.
        prompt = {"type": "prompt", "id": str(uuid4()), "text": "y" * 2_000_000, "ref": "2"}
        stream.send(json.dumps(prompt))
        while (frame := json.loads(stream.recv(30))).get("ref") != "2":
            pass
        assert frame["type"] == "ok"


def test_storage_beside_the_daemon_is_asked_by_the_name_that_was_signed(front: Front) -> None:
    status, body = front.request(
        FILES, "PUT", "/holdover/part?X-Amz-Signature=1", b"x" * PART_BYTES
    )
    assert status == 200, body[:500]
    assert json.loads(body) == {"host": f"{FILES}:{front.port}", "size": PART_BYTES}
    status, body = front.request(FILES, "GET", "/holdover/part?X-Amz-Signature=1")
    assert (status, len(body)) == (200, PART_BYTES)
