"""Where a client's WebSocket messages begin and end, and the bytes of the one under way.

RFC 6455, section 5.2. It understands lengths alone: what a frame says is the WebSocket library's.
No I/O. It serves the handover: a fresh wrapper elsewhere has to read from a message boundary.
"""

_CONTROL = 0x8


class MessageScanner:
    """Fed with all that a client sends after the upgrade.

    `kept`: everything since the last message boundary; control frames between the fragments of a
    message belong to it and are read again (a ping is answered twice then, which RFC 6455 allows).
    `messages`: how many data messages were whole so far. `lost`: a message is longer than
    `max_bytes`, and is not kept: this connection cannot be handed over any more.
    """

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self.kept = bytearray()
        self.messages = 0
        self.lost = False
        self._next = 0  # in `kept`: where the next frame begins
        self._open = False  # a message has begun and its last fragment is still to come

    def feed(self, data: bytes | bytearray) -> None:
        if self.lost:
            return
        self.kept += data
        boundary = 0
        while (end := self._frame_end()) is not None:
            first = self.kept[self._next]
            opcode, fin = first & 0x0F, bool(first & 0x80)
            if opcode < _CONTROL:
                self._open = not fin
                self.messages += fin
            self._next = end
            if not self._open:
                boundary = end
        if boundary:
            del self.kept[:boundary]
            self._next -= boundary
        # Headers and control frames come on top of what a message may have.
        if len(self.kept) > self._max_bytes + 64 * 1024:
            self.lost = True
            self.kept = bytearray()

    def _frame_end(self) -> int | None:
        """Where the next frame ends; None while it is not whole."""
        at, data = self._next, self.kept
        if len(data) < at + 2:
            return None
        length = data[at + 1] & 0x7F
        size = 2 + (4 if data[at + 1] & 0x80 else 0)
        if length == 126:
            if len(data) < at + 4:
                return None
            length = int.from_bytes(data[at + 2 : at + 4], "big")
            size += 2
        elif length == 127:
            if len(data) < at + 10:
                return None
            length = int.from_bytes(data[at + 2 : at + 10], "big")
            size += 8
        end = at + size + length
        return end if end <= len(data) else None
