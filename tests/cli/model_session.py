"""A session as a server holds it, in memory: the other side of `Cursor`, for tests without I/O.

It produces the frames that a stream would carry, live or to a viewer that comes later, and knows
what a faithful viewer must have shown in the end.
"""

import json
from typing import Any

Frame = dict[str, Any]


class ModelSession:
    """Grows by `say` (text in the making) and `store`; `attach` gives a viewer's first frames."""

    def __init__(self) -> None:
        self.messages: list[Frame] = []
        self.open: list[str] = []  # text of each open block of the main thread, by index
        self.pending: list[Frame] = []

    def session(self) -> Frame:
        return {
            "id": "s_0123456789abcdef",
            "epoch": "e1",
            "state": "working",
            "last_seq": len(self.messages),
            "pending": self.pending,
        }

    def attach(self, query: dict[str, str]) -> list[Frame]:
        """hello, what is missing, a snapshot of what is open, live."""
        after = int(query.get("after", 0))
        frames: list[Frame] = [{"type": "hello", "session": self.session(), "resync": False}]
        for first in range(after, len(self.messages), 2):
            frames.append({"type": "messages", "messages": self.messages[first : first + 2]})
        frames += [self._start(index, text) for index, text in enumerate(self.open)]
        return [*frames, {"type": "live"}]

    def begin_message(self) -> list[Frame]:
        self.open = []
        return [delta({"type": "message_start", "message": {}})]

    def begin_block(self) -> list[Frame]:
        self.open.append("")
        return [self._start(len(self.open) - 1, "")]

    def say(self, text: str) -> list[Frame]:
        """More text in the newest block."""
        self.open[-1] += text
        change = {"type": "text_delta", "text": text}
        event = {"type": "content_block_delta", "index": len(self.open) - 1, "delta": change}
        return [delta(event)]

    def finish(self) -> list[Frame]:
        """The newest block becomes a stored message."""
        text = self.open.pop()
        return self.store("assistant", {"message": {"content": [{"type": "text", "text": text}]}})

    def store(self, kind: str, body: Frame, thread: str = "main", **more: Any) -> list[Frame]:
        seq = len(self.messages) + 1
        message = {"seq": seq, "n": seq, "thread": thread, "kind": kind, "at": 0, "body": body}
        self.messages.append({**message, **more})
        return [{"type": "messages", "messages": [self.messages[-1]]}]

    def _start(self, index: int, text: str) -> Frame:
        block = {"type": "text", "text": text}
        return delta({"type": "content_block_start", "index": index, "content_block": block})


def delta(event: Frame, thread: str = "main") -> Frame:
    return {"type": "delta", "thread": thread, "body": {"type": "stream_event", "event": event}}


def wire(frame: Frame) -> str:
    return json.dumps(frame)
