"""What the doors' tests share: a listener in memory, a session service of dicts, an HTTP client.

The service is a real, small one: it stores what it is told and hands out viewers over memory
channels. The catalogue behind tokens and logins is the real one, on a file.
"""

import json
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import ExitStack, asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal

import h11
import trio
import trio.testing
from sqlalchemy import Connection
from trio_websocket import WebSocketConnection, wrap_client_stream

from holdoverd.callers import Caller
from holdoverd.catalogue import tokens
from holdoverd.catalogue.store import Catalogue
from holdoverd.errors import Conflict, NotFound
from holdoverd.http.app import App
from holdoverd.http.connection import Limits
from holdoverd.http.context import Context
from holdoverd.http.server import Server, serve
from holdoverd.ids import now_ms
from holdoverd.sessions.viewer import ViewerClosed, ViewerCursor, ViewerDetached

KEY = "dGhlIHNhbXBsZSBub25jZQ=="  # RFC 6455's own example
PROMPT_ID = "0e3c6d3a-2e0f-4a3e-9f10-6a6f3c1d2b4e"


class FakeViewer:
    """Frames that the test pushes; `end` closes after them.

    `number` is its place among the viewers. `before`: the one that was detached, and whose frames
    that were not given come here.
    """

    def __init__(
        self, number: int = 0, before: "FakeViewer | None" = None, **opened_with: object
    ) -> None:
        self.number = number
        self.opened_with = opened_with
        self.subscribed: list[tuple[str, int | None]] = []
        self.closed = False
        self._detached = False
        self._waiting: trio.CancelScope | None = None
        self._send, self._receive = (
            (before._send, before._receive)
            if before is not None
            else trio.open_memory_channel[str | Exception](10_000)
        )

    def push(self, frame: str) -> None:
        self._send.send_nowait(frame)

    def end(self, code: int, reason: str = "") -> None:
        self._send.send_nowait(ViewerClosed(code, reason))

    def fail(self, error: Exception) -> None:
        self._send.send_nowait(error)

    async def next_frame(self) -> str:
        frame: str | Exception = ViewerDetached("detached")
        if not self._detached:
            with trio.CancelScope() as self._waiting:
                frame = await self._receive.receive()
        if isinstance(frame, Exception):
            raise frame
        return frame

    def subscribe(self, thread: str, after_n: int | None) -> None:
        self.subscribed.append((thread, after_n))
        self.push(json.dumps({"type": "messages", "messages": [], "of": thread}))

    def detach(self) -> ViewerCursor | None:
        self._detached = True
        if self._waiting is not None:
            self._waiting.cancel()
        return ViewerCursor("live", self.number, None)

    def close(self) -> None:
        self.closed = True


@dataclass(frozen=True)
class FakePage:
    json_text: str
    sealed: bool
    etag: str


@dataclass
class FakeSessions:
    """Sessions as a dict. `calls` is what came through; `fail` is raised by every call if set."""

    sessions: dict[str, dict[str, Any]] = field(default_factory=dict)
    calls: list[tuple[object, ...]] = field(default_factory=list)
    viewers: list[FakeViewer] = field(default_factory=list)
    fail: Exception | None = None
    gate: trio.Event | None = None  # when set, prompts wait for it
    page_text: str = '{"thread":"main","page":0,"sealed":true,"epoch":"e1","messages":[]}'

    async def _call(self, name: str, caller: Caller, *arguments: object) -> None:
        self._note(name, caller, *arguments)

    def _note(self, name: str, caller: Caller, *arguments: object) -> None:
        self.calls.append((name, caller.owner, *arguments))
        if self.fail is not None:
            raise self.fail

    def _find(self, caller: Caller, session: str) -> dict[str, Any]:
        found = self.sessions.get(session)
        if found is None or (found["owner"] != caller.owner and not caller.admin):
            raise NotFound(f"No session {session}.")
        return found

    async def create(self, caller: Caller, spec: dict[str, object]) -> str:
        await self._call("create", caller, spec)
        session = {"id": f"s_{len(self.sessions)}", "owner": caller.owner, **spec}
        self.sessions[str(session["id"])] = session
        return json.dumps(session)

    def list_sessions(self, _cx: Connection, caller: Caller, **query: object) -> str:
        self._note("list", caller, query)
        items = [s for s in self.sessions.values() if caller.admin or s["owner"] == caller.owner]
        return json.dumps({"items": items, "next": None})

    def get(self, _cx: Connection, caller: Caller, session: str) -> str:
        self._note("get", caller, session)
        return json.dumps(self._find(caller, session))

    async def patch(self, caller: Caller, session: str, changes: dict[str, object]) -> str:
        await self._call("patch", caller, session, changes)
        found = self._find(caller, session)
        found.update(changes)
        return json.dumps(found)

    async def end(self, caller: Caller, session: str, *, purge: bool) -> None:
        await self._call("end", caller, session, purge)
        self._find(caller, session)

    async def prompt(
        self, caller: Caller, session: str, prompt: dict[str, object]
    ) -> tuple[int, dict[str, object]]:
        await self._call("prompt", caller, session, prompt)
        self._find(caller, session)
        if self.gate is not None:
            await self.gate.wait()
        return 202, {"id": prompt["id"], "seq": 7}

    async def cancel_prompt(self, caller: Caller, session: str, prompt_id: str) -> None:
        await self._call("cancel_prompt", caller, session, prompt_id)

    async def answer(
        self, caller: Caller, session: str, answer: dict[str, object]
    ) -> dict[str, object]:
        await self._call("answer", caller, session, answer)
        raise Conflict("Answered already.", extra={"answered_by": "bob"})

    async def interrupt(
        self, caller: Caller, session: str, *, cancel_queued: bool
    ) -> dict[str, object]:
        await self._call("interrupt", caller, session, cancel_queued)
        return {}

    async def resume(self, caller: Caller, session: str) -> dict[str, object]:
        await self._call("resume", caller, session)
        return {}

    async def page(
        self, caller: Caller, session: str, thread: str, page: int, epoch: str | None
    ) -> FakePage:
        await self._call("page", caller, session, thread, page, epoch)
        return FakePage(self.page_text, '"sealed":true' in self.page_text, '"e1-0-100"')

    async def log(self, caller: Caller, session: str, after: int, limit: int) -> str:
        await self._call("log", caller, session, after, limit)
        return '{"epoch":"e1","messages":[]}'

    async def body(self, caller: Caller, session: str, seq: int) -> str:
        await self._call("body", caller, session, seq)
        return '{"text":"\u2028 whole"}'

    async def open_viewer(
        self,
        caller: Caller,
        session: str,
        *,
        after: int | None,
        epoch: str | None,
        threads: Literal["all", "main"],
    ) -> FakeViewer:
        await self._call("open_viewer", caller, session)
        self._find(caller, session)
        viewer = FakeViewer(len(self.viewers), after=after, epoch=epoch, threads=threads)
        self.viewers.append(viewer)
        return viewer

    async def attach_viewer(self, caller: Caller, session: str, cursor: ViewerCursor) -> FakeViewer:
        await self._call("attach_viewer", caller, session)
        self._find(caller, session)
        viewer = FakeViewer(len(self.viewers), self.viewers[cursor.seq])
        self.viewers.append(viewer)
        return viewer


class MemoryListener(trio.abc.Listener[trio.abc.HalfCloseableStream]):
    """Connections in memory; `fail` is raised by the next accept."""

    def __init__(self) -> None:
        self._send, self._receive = trio.open_memory_channel[
            trio.abc.HalfCloseableStream | OSError
        ](10_000)
        self.closed = False

    def connect(self) -> trio.StapledStream[Any, Any]:
        ours, theirs = trio.testing.memory_stream_pair()
        self._send.send_nowait(theirs)
        return ours

    def connect_lockstep(self) -> trio.StapledStream[Any, Any]:
        """Without buffers: nothing is sent until it is received."""
        ours, theirs = trio.testing.lockstep_stream_pair()
        self._send.send_nowait(theirs)
        return ours

    def fail(self, error: OSError) -> None:
        self._send.send_nowait(error)

    async def accept(self) -> trio.abc.HalfCloseableStream:
        item = await self._receive.receive()
        if isinstance(item, OSError):
            raise item
        return item

    async def aclose(self) -> None:
        self.closed = True
        await trio.lowlevel.checkpoint()


@dataclass(frozen=True)
class Answer:
    status: int
    headers: dict[str, str]
    body: bytes

    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def code(self) -> str:
        """The error's code; asserts that it is the contract's form."""
        error = self.json()["error"]
        assert self.headers["content-type"] == "application/json"
        assert error["message"]
        return str(error["code"])


class Client:
    """A strict HTTP/1.1 client on any stream: whatever h11 does not accept fails the test."""

    def __init__(self, stream: trio.abc.HalfCloseableStream) -> None:
        self.stream = stream
        self._h11 = h11.Connection(h11.CLIENT)
        self.continued = False

    async def send(self, data: bytes) -> None:
        await self.stream.send_all(data)

    async def answer(self, method: bytes = b"GET") -> Answer:
        """Read one answer. For bytes sent by hand: h11 is told a request was sent."""
        if self._h11.our_state is h11.DONE:
            self._h11.start_next_cycle()
        if self._h11.our_state is h11.IDLE:
            self._h11.send(h11.Request(method=method, target="/", headers=[("Host", "x")]))
            self._h11.send(h11.EndOfMessage())
        body = b""
        response = None
        while True:
            event = self._h11.next_event()
            if event is h11.NEED_DATA:
                self._h11.receive_data(bytes(await self.stream.receive_some()))
            elif isinstance(event, h11.InformationalResponse):
                self.continued = True
            elif isinstance(event, h11.Response):
                response = event
            elif isinstance(event, h11.Data):
                body += event.data
            elif isinstance(event, h11.EndOfMessage):
                assert response is not None
                headers = {k.decode(): v.decode("latin-1") for k, v in response.headers}
                return Answer(response.status_code, headers, body)
            else:
                raise AssertionError(f"the connection closed without an answer: {event!r}")

    async def ask(
        self,
        method: str,
        path: str,
        body: object = None,
        *,
        raw: bytes | None = None,
        **headers: str,
    ) -> Answer:
        """Send a request and read its answer; header names have _ for -."""
        if body is not None:
            raw = json.dumps(body).encode()
        lines = [f"{method} {path} HTTP/1.1"]
        headers.setdefault("Host", "localhost:8780")
        if raw is not None:
            headers["Content_Length"] = str(len(raw))
        lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
        await self.send("\r\n".join([*lines, "", ""]).encode("latin-1") + (raw or b""))
        return await self.answer(method.encode())

    async def closed(self) -> bool:
        """Has the server closed? Waits for it."""
        return await self.stream.receive_some() == b""


class Doors:
    """A server in memory with both doors."""

    def __init__(
        self,
        context: Context,
        sessions: FakeSessions,
        server: Server,
        listeners: dict[str, MemoryListener],
        nursery: trio.Nursery,
        stack: ExitStack,
    ) -> None:
        self.context = context
        self.sessions = sessions
        self.server = server
        self.listeners = listeners
        self._nursery = nursery
        self._stack = stack

    async def serve_also(self, listeners: Mapping[str, Sequence[trio.abc.Listener[Any]]]) -> None:
        """Serve on more listeners; real ones are closed with the doors, after the server."""
        await self._nursery.start(self.server.serve, listeners)
        for group in listeners.values():
            for listener in group:
                if isinstance(listener, trio.SocketListener):
                    self._stack.callback(listener.socket.close)

    def client(self, door: str = "public") -> Client:
        return Client(self.listeners[door].connect())

    async def ask(self, method: str, path: str, body: object = None, **headers: str) -> Answer:
        """One request on a connection of its own, by the public door."""
        return await self.client().ask(method, path, body, **headers)

    async def admin(self, method: str, path: str, body: object = None, **headers: str) -> Answer:
        return await self.client("admin").ask(method, path, body, **headers)

    async def token(
        self, owner: str = "alice", scopes: tuple[str, ...] = ("read", "sessions")
    ) -> tuple[str, str]:
        """A token for `owner`: (secret, id)."""
        answer = await self.admin(
            "POST", "/v1/tokens", {"name": "t", "owner": owner, "scopes": list(scopes)}
        )
        assert answer.status == 201, answer.body
        return answer.json()["token"], answer.json()["id"]

    @asynccontextmanager
    async def websocket(
        self,
        path: str = "/v1/sessions/s_0/stream",
        *,
        door: str = "admin",
        token: str | None = None,
        lockstep: bool = False,
    ) -> AsyncIterator[WebSocketConnection]:
        listener = self.listeners[door]
        stream = listener.connect_lockstep() if lockstep else listener.connect()
        headers = [] if token is None else [(b"authorization", f"Bearer {token}".encode())]
        async with trio.open_nursery() as nursery:
            ws = await wrap_client_stream(
                nursery,
                stream,
                "localhost",
                path,
                subprotocols=["holdover.v1"],
                extra_headers=headers,
                max_message_size=64 * 1024 * 1024,
            )
            yield ws
            nursery.cancel_scope.cancel()


@asynccontextmanager
async def open_doors(
    catalogue: Catalogue,
    *,
    max_connections: int = 10_000,
    limits: Limits | None = None,
    sessions: FakeSessions | None = None,
    **settings: Any,
) -> AsyncIterator[Doors]:
    """`sessions`: those of another instance's doors as well."""
    sessions = sessions or FakeSessions()
    context = Context(
        catalogue=catalogue,
        sessions=sessions,
        generation=3,
        release="1.2.3",
        default_account="holdover-agent",
        **settings,
    )
    listeners = {"public": MemoryListener(), "admin": MemoryListener()}
    with ExitStack() as stack:
        async with trio.open_nursery() as nursery:
            server: Server = await nursery.start(
                partial(
                    serve,
                    {door: [listener] for door, listener in listeners.items()},
                    App(context),
                    max_connections=max_connections,
                    limits=limits,
                )
            )
            yield Doors(context, sessions, server, listeners, nursery, stack)
            nursery.cancel_scope.cancel()


def open_catalogue(folder: Path) -> Catalogue:
    return Catalogue.open(f"sqlite:///{folder}/catalogue.db")


async def stored_token(catalogue: Catalogue, owner: str, scopes: tuple[str, ...]) -> str:
    """A token straight from the catalogue."""
    token = tokens.new_token()
    now = now_ms()

    def store(cx: Any) -> None:
        tokens.ensure_owner(cx, owner, account=None, default_account="holdover-agent", now=now)
        tokens.create_token(cx, token, name="t", owner=owner, scopes=scopes, now=now)

    await catalogue.write(store)
    return token
