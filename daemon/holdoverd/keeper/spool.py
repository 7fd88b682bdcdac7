"""What to do with the agent's stdout: the rules of the spool. No I/O, no clock.

The shell reads a chunk when `reading` says so, hands it to `data` and obeys the commands::

    OPEN --data--> Write --wrote all--> Measure --within the bound--> OPEN
                     |                     +-- over --> OVER  (retry: Measure)
                     +-- failed --> FULL  (retry: Write the rest; ROOM once it is out)
    any --end--> the end record behind whatever is unwritten --> DONE

In FULL and OVER the agent is not read: its pipe fills and holds it up. Nothing is thrown away.
"""

from __future__ import annotations

import enum
import json
from typing import NamedTuple

CHUNK_BYTES = 64 * 1024
"""One read from the agent: what a pipe holds. Also the most that is ever unwritten."""
RETRY_S = 1.0
"""How long the shell waits in FULL and OVER before it calls `retry`."""
MAX_BYTES = 1024**3
"""Default bound of the bytes allocated by one spool; ingested ranges are punched out."""


class Write(NamedTuple):
    """write(2) this once; then call `wrote` with the count, or `failed`."""

    data: memoryview


class Measure(NamedTuple):
    """Call `measured` with the bytes the file has allocated."""


class Tell(NamedTuple):
    """Tell the owner that the disk is full, or has room again."""

    full: bool


Command = Write | Measure | Tell


class State(enum.Enum):
    """Where the spool is; see the diagram above."""

    OPEN = "open"
    FULL = "full"
    OVER = "over"
    DONE = "done"


class SpoolRules:
    """Decides for one spool. `nonce` is the launch's, `limit_bytes` the bound while it runs."""

    def __init__(self, nonce: str, *, limit_bytes: int = MAX_BYTES) -> None:
        self.state = State.OPEN
        self._nonce = nonce
        self._limit_bytes = limit_bytes
        self._bounded = True
        self._rest = memoryview(b"")  # read from the agent, not yet in the file
        self._last = b"\n"  # the last byte the agent said; nothing said needs no newline
        self._ended = False

    @property
    def reading(self) -> bool:
        """Whether the agent's stdout may be read now."""
        return self.state is State.OPEN and not self._rest and not self._ended

    @property
    def waiting(self) -> bool:
        """Whether `retry` is to be called after `RETRY_S`."""
        return self.state in (State.FULL, State.OVER)

    @property
    def done(self) -> bool:
        """The end record is in the file, whole."""
        return self.state is State.DONE

    def data(self, chunk: bytes) -> list[Command]:
        """The agent said this, at most `CHUNK_BYTES` and not nothing."""
        assert self.reading, f"data in state {self.state.value}"
        assert 0 < len(chunk) <= CHUNK_BYTES, f"a chunk of {len(chunk)} bytes"
        self._last = chunk[-1:]
        self._rest = memoryview(chunk)
        return [Write(self._rest)]

    def wrote(self, count: int) -> list[Command]:
        """The first `count` bytes of the last Write are in the file."""
        assert 0 <= count <= len(self._rest), f"wrote {count} of {len(self._rest)}"
        if count == 0:
            # No progress and no error: not something Linux does with a regular file. Trying at
            # once would spin.
            return self.failed()
        self._rest = self._rest[count:]
        if self._rest:
            return [Write(self._rest)]
        commands: list[Command] = [Tell(False)] if self.state is State.FULL else []
        if self._ended:
            self.state = State.DONE
            return commands
        self.state = State.OPEN
        return [*commands, Measure()]

    def failed(self) -> list[Command]:
        """The write failed: the disk is full, or worse. Every error is treated alike.

        An I/O error may pass as a full disk may; the alternative, killing the agent, loses more.
        """
        if self.state is State.FULL:
            return []
        self.state = State.FULL
        return [Tell(True)]

    def measured(self, allocated_bytes: int) -> list[Command]:
        """The file has allocated so much now."""
        if self.state in (State.OPEN, State.OVER):
            over = self._bounded and allocated_bytes > self._limit_bytes
            self.state = State.OVER if over else State.OPEN
        return []

    def retry(self) -> list[Command]:
        """`RETRY_S` have passed in FULL or OVER."""
        match self.state:
            case State.FULL:
                return [Write(self._rest)]
            case State.OVER:
                return [Measure()]
            case _:
                return []

    def agent_gone(self) -> list[Command]:
        """Nobody can write to the pipe any more: take what it still holds, bound or not.

        That is a pipe's content at most, and waiting for a dead daemon to make room would leave
        a keeper behind.
        """
        self._bounded = False
        if self.state is State.OVER:
            self.state = State.OPEN
        return []

    def end(
        self,
        *,
        status: int | None,
        signal: int | None,
        oom: bool,
        at_ms: int,
        forks_refused: bool = False,
        stopped: bool = False,
    ) -> list[Command]:
        """Everything the agent said was given to `data`; finish with the end record."""
        assert not self._ended, "a spool ends once"
        self._ended = True
        cut = self._last != b"\n"
        record = end_record(
            self._nonce,
            status=status,
            signal=signal,
            oom=oom,
            cut=cut,
            at_ms=at_ms,
            forks_refused=forks_refused,
            stopped=stopped,
        )
        self._rest = memoryview(bytes(self._rest) + (b"\n" if cut else b"") + record)
        if self.state is State.FULL:
            return []  # `retry` writes it behind the rest
        self.state = State.OPEN
        return [Write(self._rest)]


def end_record(
    nonce: str,
    *,
    status: int | None,
    signal: int | None,
    oom: bool,
    cut: bool,
    at_ms: int,
    forks_refused: bool = False,
    stopped: bool = False,
) -> bytes:
    """The last line of a spool. `forks_refused` and `stopped` stand in it only where it is so."""
    record = {
        "type": "holdover_end",
        "nonce": nonce,
        "status": status,
        "signal": signal,
        "oom": oom,
        "cut": cut,
        "at": at_ms,
        **({"forks_refused": True} if forks_refused else {}),
        **({"stopped": True} if stopped else {}),
    }
    return json.dumps(record, separators=(",", ":")).encode("ascii") + b"\n"


class EndRecord(NamedTuple):
    """How the agent ended."""

    status: int | None  # exit code; None: killed by `signal`, or unknown
    signal: int | None
    oom: bool  # the kernel killed something in the unit for memory during the launch
    cut: bool  # the agent's last line had no newline
    at_ms: int


def parse_end_record(line: bytes, nonce: str) -> EndRecord | None:
    """The end record in this line (without or with its newline), or None: a noise line.

    A line with another nonce is the agent's own doing and means nothing.
    """
    if b"holdover_end" not in line:
        return None
    try:
        record = json.loads(line)
    except (ValueError, RecursionError):
        return None
    if not isinstance(record, dict) or record.get("type") != "holdover_end":
        return None
    told = record.get("nonce")
    if told != nonce:
        return None
    status, signal, at_ms = record.get("status"), record.get("signal"), record.get("at")
    return EndRecord(
        status=status if isinstance(status, int) else None,
        signal=signal if isinstance(signal, int) else None,
        oom=record.get("oom") is True,
        cut=record.get("cut") is True,
        at_ms=at_ms if isinstance(at_ms, int) else 0,
    )
