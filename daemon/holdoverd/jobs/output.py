"""What a processor says, kept within bounds. No I/O."""

import json
from dataclasses import dataclass, field

HEAD_BYTES = 16 << 10
TAIL_BYTES = 48 << 10
MAX_TEXT_BYTES = 64 << 10
"""A result up to so many bytes of UTF-8 is kept as text with its job; another becomes a file."""
MAX_LINE_BYTES = 4096


@dataclass
class Log:
    """The beginning and the end of a stream of bytes, however long it is."""

    size: int = 0
    _head: bytearray = field(default_factory=bytearray)
    _tail: bytearray = field(default_factory=bytearray)

    def add(self, data: bytes) -> None:
        self.size += len(data)
        room = HEAD_BYTES - len(self._head)
        self._head += data[:room] if room > 0 else b""
        self._tail += data[max(room, 0) :]
        if len(self._tail) > 2 * TAIL_BYTES:  # not at every byte
            del self._tail[:-TAIL_BYTES]

    def text(self) -> str:
        """All of it, or its two ends with a line between that says how much is missing."""
        tail = bytes(self._tail[-TAIL_BYTES:])
        missing = self.size - len(self._head) - len(tail)
        between = f"\n[… {missing} bytes left out …]\n".encode() if missing else b""
        # Both databases hold text without NUL only.
        whole = (bytes(self._head) + between + tail).decode(errors="replace")
        return whole.replace("\0", "�")

    def last_line(self) -> str:
        """Its last line that says anything; "" without one."""
        lines = [line.strip() for line in self.text()[-4 * MAX_LINE_BYTES :].splitlines()]
        return next((line for line in reversed(lines) if line), "")


@dataclass
class Progress:
    """Lines of JSON from the progress descriptor: {"bytes", "total"?} or {"retry_after_s"}.

    What cannot be understood is left out: a processor's progress is not worth its result.
    """

    done: int | None = None
    total: int | None = None
    retry_after_s: float | None = None
    _rest: bytearray = field(default_factory=bytearray)

    def feed(self, data: bytes) -> None:
        self._rest += data
        while (end := self._rest.find(b"\n")) >= 0:
            line = bytes(self._rest[:end])
            del self._rest[: end + 1]
            self._line(line)
        if len(self._rest) > MAX_LINE_BYTES:
            self._rest.clear()

    def _line(self, line: bytes) -> None:
        try:
            said = json.loads(line)
        except ValueError:
            return
        if not isinstance(said, dict):
            return
        done, total, later = said.get("bytes"), said.get("total"), said.get("retry_after_s")
        if _is_count(done):
            self.done = done
            self.total = total if _is_count(total) else self.total
        if isinstance(later, int | float) and 0 <= later < float("inf"):
            self.retry_after_s = float(later)


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**53


def as_text(data: bytes) -> str | None:
    """A result as text; None where it is none, or holds a NUL, which no database's text may."""
    try:
        return None if b"\0" in data else data.decode()
    except UnicodeDecodeError:
        return None


# Exit statuses that mean something, after sysexits.h(3head). Any other but 0 is a failure that may
# pass, and is tried again.
FINAL_STATUSES = frozenset({64, 65, 66, 69, 78})  # misuse, bad data, no input, no agent, bad config
LATER_STATUS = 75  # EX_TEMPFAIL
LATER_S = 30.0


@dataclass(frozen=True, slots=True)
class Done:
    """It succeeded."""


@dataclass(frozen=True, slots=True)
class Failed:
    """It failed; `final`: trying again would change nothing."""

    error: str
    final: bool = False


@dataclass(frozen=True, slots=True)
class Later:
    """It shall be tried again after a while, at no cost."""

    why: str
    after_s: float


Verdict = Done | Failed | Later


def judge(
    status: int | None, signal: int | None, said: str, retry_after_s: float | None
) -> Verdict:
    """What a processor's end means. `said`: its last line on stderr."""
    if status == 0:
        return Done()
    words = f": {said}" if said else "; it said nothing on stderr"
    if signal is not None:
        hint = ", as the kernel does when memory runs out" if signal == 9 else ""
        return Failed(f"The processor was killed by signal {signal}{hint}{words}")
    if status == LATER_STATUS:
        return Later(
            f"The processor asked to be run later{words}",
            LATER_S if retry_after_s is None else retry_after_s,
        )
    return Failed(
        f"The processor exited with status {status}{words}", final=status in FINAL_STATUSES
    )
