"""Where messages end in what a WebSocket client sends (RFC 6455, section 5.2). No I/O.

trio-websocket tells nobody how far into a message it is, and cannot be asked for the bytes that it
holds. So they are looked at once more on their way to it: a connection that moves to another
instance takes along what came since the last message ended, and is read on from there.
"""

MAX_MESSAGE_BYTES = 16 * 1024 * 1024
# Headers take six bytes at least: room for fragments of 100 bytes. Smaller ones are somebody's who
# wants to see what happens.
MAX_RECORD_BYTES = MAX_MESSAGE_BYTES + 1024 * 1024

_CONTINUATION, _TEXT, _BINARY, _CLOSE, _PING, _PONG = 0, 1, 2, 8, 9, 10
_OPCODES = frozenset({_CONTINUATION, _TEXT, _BINARY, _CLOSE, _PING, _PONG})


class FrameScanner:
    """Fed with everything that a client sends behind its upgrade, in order.

    `messages` counts the whole data messages so far. `over`: nothing will follow that matters,
    because a close frame came, or bytes that are no WebSocket. `too_large`: a message is over
    `MAX_MESSAGE_BYTES`, or in more pieces than anybody needs. Neither is ever taken back, and
    after either nothing is recorded.
    """

    def __init__(self) -> None:
        self.messages = 0
        self.over = False
        self.too_large = False
        self._record = bytearray()
        self._at = 0  # how far the record has been looked at
        self._frame_at = 0  # where the present frame begins in it
        self._opcode = -1  # of the frame whose payload is being received; -1: at a header
        self._fin = False
        self._left = 0  # of its payload
        self._in_message = False  # the last data frame was not the last of its message
        self._message_bytes = 0

    @property
    def partial(self) -> bytes:
        """What came since the last message ended, without whole control frames.

        Those have had their effect already: a ping that came between two fragments has its pong.
        """
        return bytes(self._record)

    def feed(self, data: bytes | bytearray | memoryview) -> None:
        if self.over or self.too_large:
            return
        self._record += data
        while self._opcode >= 0 or self._parse_header():
            step = min(self._left, len(self._record) - self._at)
            self._at += step
            self._left -= step
            if self._left:
                break
            self._frame_ended()
            if self._at == len(self._record):
                break
        if len(self._record) > MAX_RECORD_BYTES:
            self.too_large = True
        if self.over or self.too_large:
            self._record = bytearray()

    def _parse_header(self) -> bool:
        """Enter the frame at `_at`; False while its header is not here, or is none."""
        record, at = self._record, self._at
        if self.over or self.too_large or len(record) < at + 2:
            return False
        first, second = record[at], record[at + 1]
        opcode, length = first & 0x0F, second & 0x7F
        control = opcode >= _CLOSE
        if (
            first & 0x70
            or opcode not in _OPCODES
            or not second & 0x80  # clients mask
            or (control and (length > 125 or not first & 0x80))
            or (not control and (opcode == _CONTINUATION) != self._in_message)
        ):
            self.over = True
            return False
        extended = {126: 2, 127: 8}.get(length, 0)
        if len(record) < at + 2 + extended + 4:
            return False
        if extended:
            length = int.from_bytes(record[at + 2 : at + 2 + extended], "big")
        self._frame_at = at
        self._at = at + 2 + extended + 4
        self._opcode, self._fin, self._left = opcode, bool(first & 0x80), length
        if not control:
            self._message_bytes += length
            self.too_large = self._message_bytes > MAX_MESSAGE_BYTES
        return not self.too_large

    def _frame_ended(self) -> None:
        if self._opcode >= _CLOSE:
            self.over = self._opcode == _CLOSE
            del self._record[self._frame_at : self._at]
            self._at = self._frame_at
        elif self._fin:
            self.messages += 1
            del self._record[: self._at]
            self._at = self._message_bytes = 0
            self._in_message = False
        else:
            self._in_message = True
        self._opcode = -1
