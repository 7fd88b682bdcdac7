"""What an agent is saying but has not finished: the open content blocks of its threads.

Deltas are never stored. Whoever attaches in mid-sentence gets, for each open block, one
``content_block_start`` line whose ``content_block`` holds the text so far, and then the deltas
that follow. This is the record that such snapshots are made from.
"""

from typing import Final

import msgspec
from msgspec import Raw

from .frames import MAIN, Frame, StreamEvent

MAX_OPEN_BLOCKS: Final = 256
# As much as a message may hold through the stream; a block that goes on beyond shows "…".
MAX_BLOCK_CHARS: Final = 16 * 1024 * 1024
# All blocks of a session together: a snapshot is one burst to one client.
MAX_TOTAL_CHARS: Final = 64 * 1024 * 1024
# Deltas of one character each would cost fifty times their text if kept one by one.
_JOIN_PARTS: Final = 256

# {block type: the field that its deltas add to}
_TEXT_FIELDS: Final = {
    "text": "text",
    "thinking": "thinking",
    "tool_use": "partial_json",
    "server_tool_use": "partial_json",
    "mcp_tool_use": "partial_json",
}


class _Block:
    """One open block: the agent's own `content_block`, and the text that came since."""

    __slots__ = ("_joined", "_parts", "chars", "frozen", "start", "stopped")

    def __init__(self, start: bytes) -> None:
        self.start = start
        self.chars = 0
        self.stopped = False
        self.frozen = False  # holds as much text as it may
        self._joined: list[str] = []
        self._parts: list[str] = []

    def add(self, text: str, room: int) -> int:
        """Append as much of `text` as `room` permits; returns the characters taken."""
        if self.frozen:
            return 0
        if len(text) > room:
            text, self.frozen = text[:room] + "…", True
        self._parts.append(text)
        if len(self._parts) >= _JOIN_PARTS:
            self._joined.append("".join(self._parts))
            self._parts.clear()
        self.chars += len(text)
        return len(text)

    def content(self) -> dict[str, object]:
        try:
            content = msgspec.json.decode(self.start, type=dict[str, object])
        except msgspec.DecodeError:
            # Numbers that fit no machine type, or a lone surrogate: the text matters, not these.
            content = {"type": "text"}
        field = _TEXT_FIELDS.get(str(content.get("type")), "text")
        already = content.get(field)
        text = "".join(self._joined) + "".join(self._parts)
        content[field] = already + text if isinstance(already, str) else text
        return content


class _Message:
    """The API message that a thread is in the middle of."""

    __slots__ = ("blocks", "id", "parent", "position", "session_id")

    def __init__(self, frame: Frame, position: int | None) -> None:
        event = frame.event
        self.id = event.message.id if event is not None and event.message is not None else None
        self.position = position
        self.parent = frame.parent_tool_use_id
        self.session_id = frame.session_id
        self.blocks: dict[int, _Block] = {}  # {index: block}, in the order they opened


class OpenBlocks:
    """The open blocks of one agent process, fed with every frame in order.

    Bounded: `MAX_OPEN_BLOCKS` blocks (the thread silent longest loses its own first),
    `MAX_BLOCK_CHARS` and `MAX_TOTAL_CHARS` of text.
    """

    def __init__(
        self,
        *,
        max_blocks: int = MAX_OPEN_BLOCKS,
        max_block_chars: int = MAX_BLOCK_CHARS,
        max_total_chars: int = MAX_TOTAL_CHARS,
    ) -> None:
        self._max_blocks = max_blocks
        self._max_block_chars = max_block_chars
        self._max_total_chars = max_total_chars
        self._messages: dict[str, _Message] = {}  # {thread: message}, oldest start first
        self._total_chars = 0
        self._blocks = 0

    def apply(self, frame: Frame, position: int | None = None) -> None:
        """Follow `frame`; `position` is the caller's mark for it (the line's spool offset)."""
        if frame.kind == "delta":
            if frame.event is not None:
                self._follow(frame, frame.event, position)
        elif not self._messages:
            pass  # nothing is open, so nothing can close
        elif frame.kind == "assistant":
            self._close_block(frame.thread, frame.message_id)
        elif frame.kind == "result":
            # A background sub-agent may well be speaking on; its own message_stop closes it.
            self._close_thread(frame.thread)
        elif frame.subtype == "task_notification" and frame.tool_use_id is not None:
            self._close_thread(frame.tool_use_id)

    def close(self, thread: str) -> None:
        """Nothing that is open in `thread` will go on: its agent has ended or was interrupted."""
        self._close_thread(thread)

    def snapshot(self) -> list[tuple[str, str]]:
        """``(thread, line)`` for each open block, in the order threads and blocks opened."""
        lines: list[tuple[str, str]] = []
        for thread, message in self._messages.items():
            for index, block in message.blocks.items():
                event = {
                    "type": "content_block_start",
                    "index": index,
                    "content_block": block.content(),
                }
                line = {
                    "type": "stream_event",
                    "event": event,
                    "session_id": message.session_id,
                    "parent_tool_use_id": message.parent,
                }
                lines.append((thread, msgspec.json.encode(line).decode()))
        return lines

    def replay_from(self) -> int | None:
        """The least position of a ``message_start`` whose message is not over; None if all are.

        An owner that starts afresh and applies the frames from here on knows what this one knows.
        """
        positions = [m.position for m in self._messages.values() if m.position is not None]
        return min(positions, default=None)

    def _follow(self, frame: Frame, event: StreamEvent, position: int | None) -> None:
        thread = frame.thread
        match event.type:
            case "message_start":
                self._close_thread(thread)
                if len(self._messages) >= self._max_blocks:
                    self._close_thread(next(iter(self._messages)))
                self._messages[thread] = _Message(frame, position)
            case "content_block_start" if event.index is not None:
                # Without a message_start: this owner began to read in mid-message.
                message = self._messages.get(thread)
                if message is None:
                    if len(self._messages) >= self._max_blocks:
                        self._close_thread(next(iter(self._messages)))
                    message = self._messages[thread] = _Message(frame, position)
                self._drop(message, event.index)
                self._make_room(thread)
                message.blocks[event.index] = _Block(self._start(event.content_block))
                self._blocks += 1
            case "content_block_delta" if event.delta is not None and event.index is not None:
                message = self._messages.get(thread)
                block = message.blocks.get(event.index) if message is not None else None
                delta = event.delta
                text = delta.text or delta.thinking or delta.partial_json
                if block is not None and text:
                    room = min(
                        self._max_block_chars - block.chars,
                        self._max_total_chars - self._total_chars,
                    )
                    self._total_chars += block.add(text, max(room, 0))
            case "content_block_stop" if event.index is not None:
                message = self._messages.get(thread)
                if message is not None and event.index in message.blocks:
                    message.blocks[event.index].stopped = True
            case "message_stop":
                self._close_thread(thread)
            case _:
                pass  # message_delta, ping, and whatever is added to the set later

    def _start(self, content_block: Raw) -> bytes:
        start = bytes(content_block)  # a copy: the Raw would keep its whole line alive
        if not start.startswith(b"{") or len(start) > self._max_block_chars:
            return b'{"type":"text"}'
        return start

    def _make_room(self, thread: str) -> None:
        """Forget the oldest other thread with blocks, or else this one's oldest block."""
        if self._blocks < self._max_blocks:
            return
        for other, message in self._messages.items():
            if other != thread and message.blocks:
                self._close_thread(other)
                return
        own = self._messages[thread]
        self._drop(own, next(iter(own.blocks)))

    def _close_block(self, thread: str, message_id: str | None) -> None:
        """The whole block has come as an assistant frame: one frame per block, in order.

        The frame may come before or after its ``content_block_stop``; a block that has stopped
        is the one meant, else the first one open.
        """
        message = self._messages.get(thread)
        if message is None or not message.blocks:
            return
        if None not in (message.id, message_id) and message.id != message_id:
            return
        stopped = (index for index, block in message.blocks.items() if block.stopped)
        self._drop(message, next(stopped, next(iter(message.blocks))))

    def _close_thread(self, thread: str) -> None:
        message = self._messages.pop(thread, None)
        for block in message.blocks.values() if message is not None else ():
            self._total_chars -= block.chars
            self._blocks -= 1

    def _drop(self, message: _Message, index: int) -> None:
        block = message.blocks.pop(index, None)
        if block is not None:
            self._total_chars -= block.chars
            self._blocks -= 1


__all__ = ["MAIN", "MAX_BLOCK_CHARS", "MAX_OPEN_BLOCKS", "MAX_TOTAL_CHARS", "OpenBlocks"]
