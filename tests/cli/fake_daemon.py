"""A small real server that speaks the part of the contract that the command line uses.

Threads, the standard library, and the protocol half of `websockets`; on a Unix socket and on
loopback at once. What a test wants to go wrong it says by `break_after`: the next streams end, like
those of a killed daemon, after so many frames.
"""

import base64
import contextlib
import hashlib
import json
import queue
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, urlsplit

from websockets.frames import Frame as WsFrame
from websockets.frames import Opcode
from websockets.protocol import Protocol, Side, State

from tests.cli.fake_files import FakeFiles
from tests.cli.model_session import Frame, ModelSession, wire

TOKEN = "hold_secret"
GUID = "258EAFA5-E914-47DA-95CA-C5AB0DC85B11"  # RFC 6455, section 1.3


class FakeDaemon:
    """The state of all sessions; every change is told to the open streams under one lock."""

    def __init__(self) -> None:
        self.lock = threading.Condition()
        self.sessions: dict[str, ModelSession] = {}
        self.details: dict[str, Frame] = {}
        self.streams: list[Stream] = []
        self.requests: list[tuple[str, str, Any]] = []  # (method, path, body), in order
        self.prompts: dict[str, Frame] = {}  # {id: answer}
        self.tokens: list[Frame] = []
        self.hits: list[Frame] = []  # what a search finds
        self.break_after: list[int] = []
        self.close_code: int | None = None
        self.live = False  # say replies word by word to whoever listens, instead of all at once
        self.fail_next: list[tuple[int, Frame]] = []
        self.drop_requests = 0
        self.url = ""
        self.files = FakeFiles()

    def add_session(self, session_id: str, **details: Any) -> ModelSession:
        with self.lock:
            model = self.sessions[session_id] = ModelSession()
            self.details[session_id] = {
                "id": session_id,
                "owner": "default",
                "account": "me",
                "agent": "demo",
                "cwd": "/srv/x",
                "title": None,
                "model": None,
                "permission_mode": "default",
                "state": "idle",
                "threads": [],
                "pending": [],
                "queued": [],
                "cost_usd": 0,
                "context": None,
                "generation": 1,
                "release": "0.1.0",
                "error": None,
                "created_at": 1,
                "updated_at": 1,
                "ended_at": None,
                **details,
            }
            return model

    def session(self, session_id: str) -> Frame:
        model = self.sessions[session_id].session()
        return {**model, **self.details[session_id]}

    def tell(self, session_id: str, frames: list[Frame]) -> None:
        """Send `frames` to the streams of a session; call with the lock held."""
        for stream in [*self.streams]:
            if stream.session_id == session_id:
                stream.push(frames)

    def prompt(self, session_id: str, body: Frame) -> tuple[int, Frame]:
        with self.lock:
            if body["id"] in self.prompts:
                return 200, self.prompts[body["id"]]
            model = self.sessions[session_id]
            content = {"message": {"content": [{"type": "text", "text": body["text"]}]}}
            self.tell(session_id, model.store("user", content, client_id=body["id"]))
            answer = self.prompts[body["id"]] = {"id": body["id"], "seq": len(model.messages)}
            reply = [f"{word} " for word in f"You said: {body['text'][:40]}".split(" ")]
            if self.live:
                speaker = threading.Thread(target=self._speak, args=(session_id, body["id"], reply))
                speaker.daemon = True
                speaker.start()
            else:
                self._reply(session_id, body["id"], reply)
            return 202, answer

    def _reply(self, session_id: str, prompt_id: str, words: list[str]) -> None:
        model = self.sessions[session_id]
        self.tell(session_id, model.begin_message() + model.begin_block())
        for word in words:
            self.tell(session_id, model.say(word))
        self.tell(session_id, model.finish())
        body = {"subtype": "success", "user_message_uuid": prompt_id}
        self.tell(session_id, model.store("result", body))

    def _speak(self, session_id: str, prompt_id: str, words: list[str]) -> None:
        """Like `_reply`, but each word only while somebody is there to hear it."""
        model = self.sessions[session_id]
        body = {"subtype": "success", "user_message_uuid": prompt_id}
        acts: list[Callable[[], list[Frame]]] = [model.begin_message, model.begin_block]
        acts += [partial(model.say, word) for word in words]
        acts += [model.finish, partial(model.store, "result", body)]
        for make in acts:
            with self.lock:
                assert self.lock.wait_for(lambda: self.streams, 60)
                self.tell(session_id, make())

    @contextmanager
    def serve(self, folder: Path) -> Iterator[tuple[Path, str]]:
        """(admin socket, public URL) while it serves."""
        path = folder / "admin.sock"
        servers = [_UnixServer(path, self), _TcpServer(self)]
        threads = [threading.Thread(target=one.serve_forever, args=(0.02,)) for one in servers]
        for thread in threads:
            thread.start()
        try:
            yield path, f"http://127.0.0.1:{servers[1].server_address[1]}"
        finally:
            for one in servers:
                one.shutdown()
                one.server_close()
            with self.lock:
                for stream in self.streams:
                    stream.cut()
            for thread in threads:
                thread.join(10)


class _TcpServer(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, daemon: FakeDaemon) -> None:
        self.daemon = daemon
        self.needs_token = True
        super().__init__(("127.0.0.1", 0), _Handler)


class _UnixServer(ThreadingHTTPServer):
    daemon_threads = True
    address_family = socket.AF_UNIX

    def __init__(self, path: Path, daemon: FakeDaemon) -> None:
        self.daemon = daemon
        self.needs_token = False
        super().__init__(str(path), _Handler)  # type: ignore[arg-type]  # typeshed knows TCP only

    def server_bind(self) -> None:
        self.socket.bind(self.server_address)
        self.server_name, self.server_port = "localhost", 0

    def get_request(self) -> tuple[socket.socket, Any]:
        return self.socket.accept()[0], ("unix", 0)


class _Handler(BaseHTTPRequestHandler):
    server: Any
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None:
        """Tests read `requests` instead."""

    def do_GET(self) -> None:
        self._route("GET")

    def do_POST(self) -> None:
        self._route("POST")

    def do_DELETE(self) -> None:
        self._route("DELETE")

    def do_PATCH(self) -> None:
        self._route("PATCH")

    def _route(self, method: str) -> None:
        daemon: FakeDaemon = self.server.daemon
        parts = urlsplit(self.path)
        query = dict(parse_qsl(parts.query))
        length = int(self.headers.get("Content-Length") or 0)
        body = json.loads(self.rfile.read(length)) if length else None
        with daemon.lock:
            daemon.requests.append((method, self.path, body))
            if daemon.drop_requests:
                daemon.drop_requests -= 1
                self.close_connection = True
                return
            planned = daemon.fail_next.pop(0) if daemon.fail_next else None
        if planned is not None:
            self._send(*planned)
            return
        if self.server.needs_token and self.headers.get("Authorization") != f"Bearer {TOKEN}":
            self._fail(401, "unauthorized", "That token is not valid.")
            return
        try:
            self._answer(daemon, method, parts.path.split("/")[1:], query, body)
        except KeyError as error:
            self._fail(404, "not_found", f"There is no {error}.")

    def _answer(
        self, daemon: FakeDaemon, method: str, path: list[str], query: Frame, body: Any
    ) -> None:
        match (method, *path):
            case ("GET", "healthz"):
                self._send(200, {"status": "ok", "generation": 1, "release": "0.1.0"})
            case ("GET", "v1", "sessions"):
                with daemon.lock:
                    every = [daemon.session(one) for one in daemon.sessions]
                found = [s for s in every if query.get("state") in {None, s["state"]}]
                start, limit = int(query.get("cursor") or 0), int(query["limit"])
                more = str(start + limit) if len(found) > start + limit else None
                self._send(200, {"items": found[start : start + limit], "next": more})
            case ("POST", "v1", "sessions"):
                session_id = f"s_{len(daemon.sessions):016d}"
                daemon.add_session(session_id, title=body.get("title"))
                if "prompt" in body:
                    daemon.prompt(session_id, body["prompt"])
                self._send(201, daemon.session(session_id))
            case ("GET", "v1", "sessions", one):
                self._send(200, daemon.session(one))
            case ("DELETE", "v1", "sessions", one):
                daemon.details[one]["state"] = "ended"
                self._send(204, None)
            case ("GET", "v1", "search"):
                self._send(200, {"items": daemon.hits, "next": None})
            case ("POST", "v1", "sessions", one, "prompts"):
                daemon.session(one)
                self._send(*daemon.prompt(one, body))
            case ("POST", "v1", "sessions", one, "answers"):
                daemon.session(one)
                self._send(200, {"request_id": body["request_id"]})
            case ("POST", "v1", "sessions", one, "interrupt" | "resume"):
                daemon.session(one)
                self._send(202, {})
            case ("GET", "v1", "sessions", one, "messages"):
                start = int(query["after"])
                part = daemon.sessions[one].messages[start : start + int(query["limit"])]
                self._send(200, {"epoch": "e1", "messages": part})
            case ("GET", "v1", "sessions", one, "messages", seq, "body"):
                self._send(200, daemon.sessions[one].messages[int(seq) - 1]["body"])
            case ("GET", "v1", "sessions", one, "stream"):
                Stream(self, daemon, one).run(query)
            case ("POST", "v1", "tokens"):
                made = {
                    "id": f"t_{len(daemon.tokens):016d}",
                    "owner": "default",
                    "expires_at": None,
                }
                daemon.tokens.append({**made, **body})
                self._send(201, {**made, **body, "token": TOKEN})
            case ("POST", "v1", "login-codes"):
                url = f"http://127.0.0.1:8780/#login={(body or {}).get('owner', 'me')}"
                self._send(201, {"code": "c", "url": url, "expires_at": 1_800_000_000_000})
            case ("GET", "v1", "tokens"):
                self._send(200, {"items": daemon.tokens, "next": None})
            case ("DELETE", "v1", "tokens", one):
                before = len(daemon.tokens)
                daemon.tokens = [token for token in daemon.tokens if token["id"] != one]
                if len(daemon.tokens) == before:
                    raise KeyError(one)
                self._send(204, None)
            case _:
                self._send(*daemon.files.answer(method, path, query, body))

    def _fail(self, status: int, code: str, message: str) -> None:
        self._send(status, {"error": {"code": code, "message": message}})

    def _send(self, status: int, answer: Any) -> None:
        data = b"" if answer is None else json.dumps(answer).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        # Somebody may have read enough and hung up.
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            self.end_headers()
            if data:
                self.wfile.write(data)


class Stream:
    """One WebSocket of the fake."""

    def __init__(self, handler: _Handler, daemon: FakeDaemon, session_id: str) -> None:
        self.session_id = session_id
        self._handler = handler
        self._daemon = daemon
        self._socket = handler.connection
        self._protocol = Protocol(Side.SERVER, state=State.OPEN, max_size=32 << 20)
        # A thread of its own writes, as the real daemon has two tasks: a server that does not read
        # while it writes would wait for a client that does the same.
        self._unsent: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
        with daemon.lock:
            self._left = daemon.break_after.pop(0) if daemon.break_after else 1 << 30

    def run(self, query: Frame) -> None:
        """Shake hands, then read until the end."""
        self._handler.close_connection = True
        key = self._handler.headers["Sec-WebSocket-Key"]
        accept = base64.b64encode(hashlib.sha1(f"{key}{GUID}".encode()).digest()).decode()
        self._socket.sendall(
            "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            f"Sec-WebSocket-Protocol: holdover.v1\r\nSec-WebSocket-Accept: {accept}\r\n\r\n".encode()
        )
        writer = threading.Thread(target=self._write, daemon=True)
        writer.start()
        with self._daemon.lock:
            if self._daemon.close_code is not None or self.session_id not in self._daemon.sessions:
                self._protocol.send_close(self._daemon.close_code or 4004)
                self._flush()
            else:
                self._daemon.streams.append(self)
                self.push(self._daemon.sessions[self.session_id].attach(query))
                self._daemon.lock.notify_all()
        try:
            while data := self._socket.recv(65_536):
                self._protocol.receive_data(data)
                for frame in self._protocol.events_received():
                    assert isinstance(frame, WsFrame)
                    if frame.opcode is Opcode.TEXT:
                        self._client_frame(json.loads(bytes(frame.data)))
                with self._daemon.lock:
                    self._flush()
        except OSError:
            return
        finally:
            with self._daemon.lock:
                if self in self._daemon.streams:
                    self._daemon.streams.remove(self)
                self.cut()
            writer.join(10)

    def push(self, frames: list[Frame]) -> None:
        """Send frames; cut the connection when its share is used up. With the lock held."""
        for frame in frames:
            if self._left <= 0:
                self.cut()
                if self in self._daemon.streams:
                    self._daemon.streams.remove(self)
                return
            self._left -= 1
            self._protocol.send_text(wire(frame).encode())
            self._flush()

    def cut(self) -> None:
        """End as a killed process does, once what was pushed is out: without a closing handshake."""
        self._unsent.put(None)

    def _client_frame(self, frame: Frame) -> None:
        daemon = self._daemon
        with daemon.lock:
            daemon.requests.append(("WS", frame["type"], frame))
            daemon.lock.notify_all()
        answer: Frame = {}
        if frame["type"] == "prompt":
            _, answer = daemon.prompt(self.session_id, frame)
        with daemon.lock:
            self.push([{"type": "ok", "ref": frame.get("ref"), **answer}])

    def _flush(self) -> None:
        for data in self._protocol.data_to_send():
            self._unsent.put(data)

    def _write(self) -> None:
        with contextlib.suppress(OSError):
            while data := self._unsent.get():
                self._socket.sendall(data)
            self._socket.shutdown(socket.SHUT_RDWR)
