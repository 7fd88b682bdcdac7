"""A real daemon behind a real port, and people who mean it no good.

Whatever comes is refused in words or hung up on; the agent works on, nothing is written to the log
that looks like a defect, and no token is to be found in the log or in any command line.
"""

import json
import os
import re
import socket
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from urllib.parse import quote

import pytest

from tests.live.up import Up, running, wait_until

pytestmark = pytest.mark.slow

ANSWER_S = 10.0


@pytest.fixture(scope="module")
def up() -> Iterator[Up]:
    with tempfile.TemporaryDirectory(prefix="hx-") as folder, running(Path(folder)) as one:
        yield one


@pytest.fixture(scope="module")
def token(up: Up) -> str:
    made = up.call("POST", "/v1/tokens", {"name": "guest", "owner": "guest", "scopes": ["read"]})
    return str(made["token"])


def said_to(up: Up, request: bytes, *, half_close: bool = True) -> bytes:
    """All that comes back until the door hangs up, or nothing more comes."""
    with socket.create_connection(("127.0.0.1", up.port), ANSWER_S) as sock:
        with suppress(OSError):  # it may hang up before it has heard everything
            sock.sendall(request)
            if half_close:
                sock.shutdown(socket.SHUT_WR)
        answer = b""
        with suppress(OSError):
            while chunk := sock.recv(65536):
                answer += chunk
        return answer


def head(method: str, target: bytes, *lines: bytes) -> bytes:
    return b"\r\n".join(
        [method.encode() + b" " + target + b" HTTP/1.1", b"Host: localhost", *lines, b"", b""]
    )


SMUGGLED = b"GET /smuggled HTTP/1.1\r\nHost: localhost\r\n\r\n"
MALFORMED = {
    "two lengths": head("POST", b"/login", b"Content-Length: 2", b"Content-Length: 40") + SMUGGLED,
    "length and chunks": head(
        "POST", b"/login", b"Content-Length: 4", b"Transfer-Encoding: chunked"
    )
    + b"0\r\n\r\n"
    + SMUGGLED,
    "chunked twice": head("POST", b"/login", b"Transfer-Encoding: chunked, chunked") + SMUGGLED,
    "a coding nobody knows": head("POST", b"/login", b"Transfer-Encoding: gzip") + SMUGGLED,
    "a space before the colon": head("GET", b"/healthz", b"Content-Length : 50") + SMUGGLED,
    "a bare CR in a header": head("GET", b"/healthz", b"X-A: b\rContent-Length: 50"),
    "a negative length": head("POST", b"/login", b"Content-Length: -1"),
    "a length in hex": head("POST", b"/login", b"Content-Length: 0x10") + b"{}",
    "NUL in the target": head("GET", b"/heal\0thz"),
    "invalid UTF-8 in the target": head("GET", b"/\xff\xfe"),
    "NUL in a header": head("GET", b"/healthz", b"X-A: \0"),
    "no host": b"GET /healthz HTTP/1.1\r\n\r\n",
    "two hosts": head("GET", b"/healthz", b"Host: evil.invalid"),
    "HTTP/2": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "TLS": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(200),
    "noise": bytes(range(256)) * 16,
}


@pytest.mark.parametrize("name", MALFORMED)
def test_what_is_malformed_is_refused_once_and_nothing_is_smuggled(up: Up, name: str) -> None:
    answer = said_to(up, MALFORMED[name])
    assert answer == b"" or answer.startswith(b"HTTP/1.1 4"), answer[:200]
    answers = re.findall(rb"^HTTP/1\.1 \d", answer, re.MULTILINE)
    assert len(answers) <= 1, "a second request came out of one"
    assert b"There is nothing at this address" not in answer


def ask(up: Up, method: str, path: str, token: str, *lines: str, body: object = None) -> bytes:
    data = b"" if body is None else json.dumps(body).encode()
    extra = [f"Authorization: Bearer {token}", "Connection: close", *lines]
    if data:
        extra += [f"Content-Length: {len(data)}", "Content-Type: application/json"]
    return said_to(
        up, head(method, path.encode(), *(line.encode() for line in extra)) + data, half_close=False
    )


HOSTILE_IDS = ("$(touch x)", "-p", "--help", "../../etc/passwd", "a\0b", "x" * 300, "\u202e", "%")


@pytest.mark.parametrize("identity", HOSTILE_IDS, ids=range(len(HOSTILE_IDS)))
def test_hostile_ids_are_just_not_there(up: Up, token: str, identity: str) -> None:
    for path in ("/v1/sessions/{}", "/v1/sessions/{}/messages?page=0", "/v1/files/{}"):
        answer = ask(up, "GET", path.format(quote(identity, safe="")), token)
        assert answer.startswith((b"HTTP/1.1 404", b"HTTP/1.1 400")), answer[:200]
    assert not Path("x").exists()


def test_foreign_origins_and_hosts_are_refused_before_any_upgrade(up: Up, token: str) -> None:
    upgrade = (
        "Upgrade: websocket",
        "Connection: Upgrade",
        "Sec-WebSocket-Version: 13",
        "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==",
        "Sec-WebSocket-Protocol: holdover.v1",
    )
    path = "/v1/sessions/s_none/stream"
    refused = ask(up, "GET", path, token, "Origin: https://evil.invalid", *upgrade)
    assert refused.startswith(b"HTTP/1.1 403"), refused[:200]
    rebound = said_to(
        up, b"GET /v1/sessions HTTP/1.1\r\nHost: evil.invalid\r\nConnection: close\r\n\r\n"
    )
    assert rebound.startswith(b"HTTP/1.1 403"), rebound[:200]


@pytest.mark.parametrize(
    "cwd", ["/etc", "/proc/self/root", "/srv/../etc", "relative", "/srv/\0", "/nowhere at all"]
)
def test_folders_outside_the_roots_are_refused_and_nothing_is_stored(up: Up, cwd: str) -> None:
    before = up.call("GET", "/v1/sessions")["items"]
    status, answer = up.request("POST", "/v1/sessions", {"agent": "demo", "cwd": cwd})
    assert status == 422, answer
    assert up.call("GET", "/v1/sessions")["items"] == before


def test_a_link_that_is_turned_round_meanwhile_leads_nowhere(up: Up) -> None:
    inside, link = up.home / "inside", up.home / "link"
    inside.mkdir()
    for target in ("inside", "/etc", "../../../../../../etc") * 3:
        draft = up.home / "link.new"
        draft.symlink_to(target)
        draft.replace(link)
        status, answer = up.request("POST", "/v1/sessions", {"agent": "demo", "cwd": str(link)})
        if target == inside.name:
            assert status == 201, answer
            assert answer["cwd"] == str(inside)
            up.call("DELETE", f"/v1/sessions/{answer['id']}?purge=true")
        else:
            assert status == 422, answer


def test_half_open_connections_cost_the_others_nothing(up: Up) -> None:
    waiting = [socket.create_connection(("127.0.0.1", up.port), ANSWER_S) for _ in range(200)]
    try:
        for sock in waiting:
            sock.sendall(b"GET /healthz HTTP/1.1\r\nHost: loc")
        assert up.healthy()
        assert said_to(up, head("GET", b"/healthz", b"Connection: close")).startswith(
            b"HTTP/1.1 200"
        )
    finally:
        for sock in waiting:
            sock.close()


def test_nothing_of_it_hurt_an_agent_or_left_a_trace_or_a_secret(up: Up, token: str) -> None:
    """The last of this file: it looks at what the others have left."""
    session = up.new_session("stream 20 rate 20")["id"]
    ask(up, "GET", "/v1/sessions", f"{token}x")
    up.wait_state(session, "idle")
    output = up.output()
    assert "Traceback" not in output
    assert "defect" not in output
    kept = [
        path.read_bytes()
        for path in up.state.rglob("*")
        if path.is_file() and path.name != "login-token"
    ]
    for secret in (token, (up.state / "login-token").read_text().strip()):
        # Tokens are kept as digests; `up` says the login that it has made, and to nobody else.
        assert not any(secret.encode() in data for data in kept)
        for entry in os.scandir("/proc"):
            if entry.name.isdecimal() and entry.name != str(os.getpid()):
                with suppress(OSError):
                    assert secret.encode() not in Path(entry.path, "cmdline").read_bytes()
    assert token not in output
    wait_until(up.healthy, "it serves on")
