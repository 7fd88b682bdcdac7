"""Keeping account of streams while the daemon is replaced under them. `Account` has no I/O.

The demo agent numbers its lines and says each one's hash; so what a stream saw is checked twice, by
the log's own `seq` and by what the agent said.
"""

import hashlib
import json
import random
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from holdover.client import Client
from holdover.exits import CommandError
from holdover.redial import Redial
from holdover.stream import Frame, Inbox, Item, Lost, Stream

Json = Mapping[str, Any]

TICK_S = 0.2


@dataclass
class Seen:
    """What one stream saw in one phase. `silence_s`: the longest without a message."""

    messages: int = 0
    lost: int = 0
    repeated: int = 0
    closed: int = 0
    silence_s: float = 0.0

    def add(self, other: "Seen") -> None:
        self.messages += other.messages
        self.lost += other.lost
        self.repeated += other.repeated
        self.closed += other.closed
        self.silence_s = max(self.silence_s, other.silence_s)

    def __str__(self) -> str:
        return (
            f"lost {self.lost}, repeated {self.repeated}, closed {self.closed}, longest silence "
            f"{self.silence_s * 1000:.0f} ms"
        )


class Account:
    """One stream's, from frame to frame; times in seconds of any clock.

    `after` and `epoch` go into the next connection's query. `live`: it shows what happens now.
    """

    def __init__(self, at: float) -> None:
        self.after: int | None = None
        self.epoch: str | None = None
        self.live = False
        self.phases: dict[str, Seen] = {}
        self._line = 0
        self._last = at
        self._now = Seen()

    def begin(self, phase: str, at: float) -> None:
        """From here on it counts for `phase`; a silence over the border counts for both."""
        self._now.silence_s = max(self._now.silence_s, at - self._last)
        self._now = self.phases.setdefault(phase, Seen())

    @property
    def now(self) -> Seen:
        return self._now

    def query(self) -> dict[str, str]:
        query = {"threads": "all"}
        if self.after is not None and self.epoch is not None:
            query |= {"after": str(self.after), "epoch": self.epoch}
        return query

    def frame(self, frame: Json, at: float) -> None:
        match frame.get("type"):
            case "hello":
                self.epoch = frame["session"]["epoch"]
                if frame.get("resync"):
                    self._now.lost += 1  # nobody has restored a backup meanwhile
            case "live":
                self.live = True
            case "messages":
                for message in frame["messages"]:
                    self._message(message, at)

    def _message(self, message: Json, at: float) -> None:
        seq = int(message["seq"])
        expected = seq if self.after is None else self.after + 1
        self._now.repeated += seq < expected
        self._now.lost += max(0, seq - expected)
        self.after = max(seq, self.after or 0)
        if (number := line_number(message)) is not None:
            if seq >= expected and self._line and number != self._line + 1:
                self._now.lost += 1
            self._line = max(number, self._line)
        self._now.messages += 1
        self._now.silence_s = max(self._now.silence_s, at - self._last)
        self._last = at

    def lost_connection(self) -> None:
        self.live = False
        self._now.closed += 1


def line_number(message: Json) -> int | None:
    """The number of a line of the demo's; None for anything else.

    -1 where it is not what the agent said: its hash does not fit.
    """
    body = message.get("body")
    inner = body.get("message") if isinstance(body, dict) else None
    content = inner.get("content") if isinstance(inner, dict) else None
    if message.get("kind") != "assistant" or not isinstance(content, list) or len(content) != 1:
        return None
    parts = str(content[0].get("text", "")).split(" ", 2)
    if len(parts) != 3 or not parts[0].startswith("#") or not parts[0][1:].isdecimal():
        return None
    fits = hashlib.sha256(parts[2].encode()).hexdigest() == parts[1]
    return int(parts[0][1:]) if fits else -1


class Watcher:
    """Follows one session in a thread and comes back by itself, like anybody's client."""

    def __init__(self, client: Client, session: str) -> None:
        self.session = session
        self.account = Account(time.monotonic())
        self.failure: str | None = None
        self._lock = threading.Lock()
        self._inbox = Inbox()
        self._stream = Stream(client, session, self._inbox)
        self._redial = Redial()
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def begin(self, phase: str) -> None:
        with self._lock:
            self.account.begin(phase, time.monotonic())

    def close(self) -> None:
        self._over.set()
        self._stream.drop()
        self._thread.join(1.0)

    def _run(self) -> None:
        self._stream.connect(self.account.query())
        while not self._over.is_set():
            item = self._inbox.get(TICK_S)
            if item is not None:
                with self._lock:
                    again_s = self._take(item)
                if again_s is not None and not self._over.wait(again_s):
                    self._stream.drop()
                    self._stream.connect(self.account.query())

    def _take(self, item: Item) -> float | None:
        """Seconds until the next connection is wanted; None while there is one."""
        match item:
            case Frame(connection, text) if connection == self._stream.connection:
                self.account.frame(json.loads(text), time.monotonic())
                self._redial.succeeded()
            case Lost(connection, reason, final) if connection == self._stream.connection:
                self.account.lost_connection()
                try:
                    if final is not None:
                        raise final
                    return self._redial.delay_s(random.random())  # noqa: S311  jitter
                except CommandError as error:
                    self.failure = f"{reason}: {error.message}"
                    self._over.set()
        return None
