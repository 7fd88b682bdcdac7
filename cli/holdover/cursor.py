"""Where a viewer stands in a session: which messages it has, which words it has shown. No I/O.

Frames of the stream go in, events for the screen come out. The promise is that over any number of
broken connections each message comes out once and in order, and each word of a sentence that was
being written once: what a snapshot or a finished message repeats is cut away.

Only the main thread's text is followed word by word; a sub-agent's appears when it is stored.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

Json = Mapping[str, Any]

# The owner of a session keeps no more than this either; the stored message brings the rest.
MAX_BLOCK_CHARS = 16 << 20
MAX_BLOCKS = 256

# {type of a content block: (its text's key, type of its deltas)}. Tool input in the making is not
# shown: half a JSON object tells nobody anything.
_TEXT_KINDS = {"text": ("text", "text_delta"), "thinking": ("thinking", "thinking_delta")}


@dataclass(frozen=True)
class Opened:
    """The stream is (again) open. `resync`: what was shown before is no longer the log."""

    session: Json
    resync: bool


@dataclass(frozen=True)
class Stored:
    """The next message of the log; `shown` = {index in its content: characters already shown}."""

    message: Json
    shown: Mapping[int, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Text:
    """More of a block being written; `fresh` when it is the beginning of one.

    `kind` is ``text`` or ``thinking``.
    """

    kind: str
    text: str
    fresh: bool


@dataclass(frozen=True)
class Level:
    """The session as it is now."""

    session: Json


@dataclass(frozen=True)
class Status:
    """The latest live-only frame of one name."""

    name: str
    body: Json


@dataclass(frozen=True)
class Live:
    """Everything stored has been sent; what follows happens now."""


@dataclass(frozen=True)
class Answered:
    """The answer to a frame of ours: ``ok``, ``page``, ``pong`` or ``error``."""

    frame: Json


Event = Opened | Stored | Text | Level | Status | Live | Answered


class StreamGapError(Exception):
    """The server left something out; connecting again with the cursor brings it."""


@dataclass
class _Block:
    """One block being written: what the screen shows of it, and how far the server has come.

    After a new connection the server may begin the block again: then it is `detached`, `at` goes
    back to 0, and nothing is shown until it has passed what is on the screen.
    """

    kind: str
    parts: list[str] = field(default_factory=list)
    size: int = 0
    at: int = 0
    detached: bool = False
    started: bool = False

    def shown(self) -> str:
        """All that is on the screen of it. Joined on demand: appending stays cheap."""
        if len(self.parts) > 1:
            self.parts = ["".join(self.parts)]
        return self.parts[0] if self.parts else ""

    def advance(self, text: str) -> Text | None:
        """The server wrote `text` next; return what of it has to be shown."""
        if self.at < self.size:
            shown = self.shown()
            if not shown.startswith(text[: self.size - self.at], self.at):
                # Not the block we knew: another one, which happens to begin alike.
                text = shown[: self.at] + text
                self.parts, self.size, self.at, self.started = [], 0, 0, False
            else:
                known = min(len(text), self.size - self.at)
                self.at += known
                text = text[known:]
        text = text[: MAX_BLOCK_CHARS - self.size]
        if not text:
            return None
        fresh, self.started = not self.started, True
        self.parts.append(text)
        self.size += len(text)
        self.at = self.size
        return Text(self.kind, text, fresh)


class Cursor:
    """The state of one viewer.

    `after` is the seq of the last message given out, None before the first; `epoch` the log it
    belongs to. Both go into the next connection's query.
    """

    def __init__(self, after: int | None = None, epoch: str | None = None) -> None:
        self.after = after
        self.epoch = epoch
        self._blocks: dict[int, _Block] = {}  # {index in the agent's message: block}

    def query(self) -> dict[str, str]:
        """The stream's query parameters that continue where this viewer stands."""
        query = {"threads": "all"}
        if self.after is not None:
            query["after"] = str(self.after)
            if self.epoch is not None:
                query["epoch"] = self.epoch
        return query

    def receive(self, frame: Json) -> list[Event]:
        """Events for one frame, none for what was seen before.

        Raises `StreamGapError` when a message is missing; the cursor still stands before it.
        """
        match frame.get("type"):
            case "hello":
                return self._hello(frame)
            case "messages":
                events: list[Event] = []
                for message in frame["messages"]:
                    events += self._message(message)
                return events
            case "delta":
                return self._delta(frame) if frame.get("thread") == "main" else []
            case "delta_reset":
                if frame.get("thread") == "main":
                    self._detach()
                return []
            case "live":
                return [Live()]
            case "session":
                return [Level(frame["session"])]
            case "status":
                return [Status(str(frame.get("name")), frame.get("body") or {})]
            case "ok" | "error" | "page" | "pong":
                return [Answered(frame)]
            case _:
                return []  # additions to the wire are free

    def _hello(self, frame: Json) -> list[Event]:
        session = frame["session"]
        resync = bool(frame.get("resync"))
        if resync:
            self.after = None
            self._blocks.clear()
        if self.after is None and session.get("last_seq") == 0:
            self.after = 0
        self.epoch = session.get("epoch")
        self._detach()
        return [Opened(session, resync)]

    def _message(self, message: Json) -> list[Event]:
        seq = message["seq"]
        if self.after is not None and seq <= self.after:
            return []
        if self.after is not None and seq != self.after + 1:
            raise StreamGapError(f"message {seq} came after message {self.after}")
        self.after = seq
        if message.get("thread") != "main":
            return [Stored(message)]
        if message.get("kind") == "assistant":
            return [Stored(message, self._close_blocks(message))]
        if message.get("kind") in {"result", "notice"}:
            # The turn, or the agent, is over: what is half written stays so.
            self._blocks.clear()
        return [Stored(message)]

    def _close_blocks(self, message: Json) -> dict[int, int]:
        """Match the stored content with the blocks on the screen, in their order."""
        shown: dict[int, int] = {}
        for at, (kind, text) in enumerate(texts(message)):
            index = next((i for i in sorted(self._blocks) if self._blocks[i].kind == kind), None)
            if kind not in _TEXT_KINDS or index is None:
                continue
            block = self._blocks.pop(index)
            if block.size and text.startswith(block.shown()):
                shown[at] = block.size
        return shown

    def _detach(self) -> None:
        for block in self._blocks.values():
            block.detached = True
            block.at = 0

    def _delta(self, frame: Json) -> list[Event]:
        body = frame.get("body")
        event = body.get("event") if isinstance(body, dict) else None
        if not isinstance(event, dict):
            return []
        index = event.get("index")
        match event.get("type"):
            case "message_start":
                self._blocks = {i: b for i, b in self._blocks.items() if b.detached}
            case "content_block_start" if isinstance(index, int):
                return self._block_start(index, event.get("content_block"))
            case "content_block_delta" if isinstance(index, int):
                block = self._blocks.get(index)
                delta = event.get("delta")
                if block is not None and not block.detached and isinstance(delta, dict):
                    key, kind = _TEXT_KINDS[block.kind]
                    if delta.get("type") == kind and isinstance(delta.get(key), str):
                        return _some(block.advance(delta[key]))
        return []

    def _block_start(self, index: int, content: object) -> list[Event]:
        if not isinstance(content, dict) or content.get("type") not in _TEXT_KINDS:
            self._blocks.pop(index, None)
            return []
        block = self._blocks.get(index)
        if block is None or not block.detached or block.kind != content["type"]:
            if len(self._blocks) >= MAX_BLOCKS:
                return []
            block = self._blocks[index] = _Block(content["type"])
        block.detached = False
        text = content.get(_TEXT_KINDS[block.kind][0])
        return _some(block.advance(text)) if isinstance(text, str) else []


def texts(message: Json) -> list[tuple[str, str]]:
    """(type, text) of each part of a message's content; text is "" for what has none."""
    body = message.get("body")
    inner = body.get("message") if isinstance(body, dict) else None
    content = inner.get("content") if isinstance(inner, dict) else None
    if isinstance(content, str):
        return [("text", content)]
    found: list[tuple[str, str]] = []
    for part in content if isinstance(content, list) else []:
        kind = part.get("type") if isinstance(part, dict) else None
        text = part.get(_TEXT_KINDS[kind][0]) if kind in _TEXT_KINDS else ""
        found.append((str(kind), text if isinstance(text, str) else ""))
    return found


def _some(event: Text | None) -> list[Event]:
    return [] if event is None else [event]
