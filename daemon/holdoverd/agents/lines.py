"""Cutting an agent's stdout into lines, in bounded memory and without a step per byte."""

from dataclasses import dataclass
from typing import Final

# A tool result that holds an image or a big file exceeds the 1 MiB at which the vendor's own
# libraries give up; beyond this a line is skipped, never the session killed.
MAX_LINE_BYTES: Final = 64 * 1024 * 1024
PREVIEW_BYTES: Final = 4096


@dataclass(frozen=True, slots=True)
class OversizeLine:
    """A line longer than the splitter's limit; its bytes are gone but for the beginning.

    `size` counts the whole line without its newline, so that offsets still add up.
    """

    size: int
    preview: bytes


class LineSplitter:
    """Cuts a byte stream at ``\\n`` and nowhere else (U+2028 is legal inside JSON strings).

    Keeps at most `max_line` bytes: a longer line comes out as `OversizeLine` once it ends.
    """

    def __init__(self, max_line: int = MAX_LINE_BYTES) -> None:
        self._max_line = max_line
        self._parts: list[bytes] = []
        self._pending = 0
        self._overflowing = False

    @property
    def pending(self) -> int:
        """Bytes of the unfinished last line, including those an over-long one has dropped."""
        return self._pending

    def feed(self, chunk: bytes) -> list[bytes | OversizeLine]:
        """Every line that `chunk` completes, without newlines, in order.

        A line's bytes in the stream are its length (or `OversizeLine.size`) plus one.
        """
        pieces = chunk.split(b"\n")
        tail = pieces.pop()
        if not pieces:
            self._keep(tail)
            return []
        lines: list[bytes | OversizeLine] = []
        if self._pending:
            self._keep(pieces[0])
            lines.append(self._finish())
            del pieces[0]
        if len(chunk) <= self._max_line:
            lines.extend(pieces)
        else:
            lines.extend(
                piece
                if len(piece) <= self._max_line
                else OversizeLine(len(piece), piece[:PREVIEW_BYTES])
                for piece in pieces
            )
        if tail:
            self._keep(tail)
        return lines

    def discard(self) -> int:
        """Forget the unfinished last line; returns how many bytes it had."""
        dropped = self._pending
        self._parts, self._pending, self._overflowing = [], 0, False
        return dropped

    def _keep(self, piece: bytes) -> None:
        if not piece:
            return
        self._pending += len(piece)
        if self._overflowing:
            return
        self._parts.append(piece)
        if self._pending > self._max_line:
            self._overflowing = True
            self._parts = [b"".join(self._parts)[:PREVIEW_BYTES]]

    def _finish(self) -> bytes | OversizeLine:
        whole = self._parts[0] if len(self._parts) == 1 else b"".join(self._parts)
        line = OversizeLine(self._pending, whole) if self._overflowing else whole
        self.discard()
        return line
