"""Reads: a few threads that each keep a connection, and the tasks that wait for them.

What people wait for is mostly the way there and back, not the query: to take a connection from a pool,
begin and return it cost as much as a page of sessions, and so did the event loop's own way to a
thread. So a thread keeps its connection, a read is put into its hands directly, and the thread that
was busy last, whose caches are warm, is the next to be given one.
"""

import logging
import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from queue import SimpleQueue
from typing import Any, TypeVar, cast

import outcome
import trio
from sqlalchemy import Connection

from holdoverd.catalogue.dialect import Dialect
from holdoverd.errors import CatalogueError

T = TypeVar("T")

log = logging.getLogger(__name__)

READERS = 4
# Reads that may wait for one of the readers; beyond, "busy" at once is the better answer.
MAX_WAITING_READS = 10_000
# How long `close` waits for the reads under way, each of which is bounded.
CLOSE_TIMEOUT_S = 5.0


@dataclass(slots=True, eq=False)
class _Read:
    """One function to run, and the task that waits for it."""

    fn: Callable[[Connection], Any]
    task: trio.lowlevel.Task
    token: trio.lowlevel.TrioToken


_Hand = SimpleQueue[_Read | None]
"""Where a thread is given its next read; None: end."""


class Readers:
    """The threads, started as they are needed. `submit` from any trio task, `close` from anywhere."""

    def __init__(self, dialect: Dialect) -> None:
        self._dialect = dialect
        self._engine = dialect.reader_engine(READERS)
        self._lock = threading.Lock()  # around all below
        self._threads: list[threading.Thread] = []
        self._idle: list[_Hand] = []
        self._waiting: deque[_Read] = deque()
        self._closing = False

    async def submit(self, fn: Callable[[Connection], T]) -> T:
        """Run `fn` on a snapshot and wait for its result. See `Catalogue.read`."""
        read = _Read(fn, trio.lowlevel.current_task(), trio.lowlevel.current_trio_token())
        with self._lock:
            if self._closing:
                raise CatalogueError(
                    "The catalogue is closed: this instance is going away. Reconnect."
                )
            if self._idle:
                self._idle.pop().put(read)
            elif len(self._threads) < READERS:
                self._start(read)
            elif len(self._waiting) < MAX_WAITING_READS:
                self._waiting.append(read)
            else:
                raise CatalogueError(
                    f"The catalogue is busy: {MAX_WAITING_READS} reads are waiting. Try again "
                    "shortly."
                )

        def forget(_raise_cancel: object) -> trio.lowlevel.Abort:
            with self._lock:
                if read not in self._waiting:
                    return trio.lowlevel.Abort.FAILED  # under way: its end is waited for
                self._waiting.remove(read)
            return trio.lowlevel.Abort.SUCCEEDED

        return cast(T, await trio.lowlevel.wait_task_rescheduled(forget))

    def close(self) -> None:
        """Answer what waits and what is under way, then end the threads and their connections."""
        with self._lock:
            self._closing = True
            for hand in self._idle:
                hand.put(None)
            self._idle.clear()
        for thread in self._threads:
            thread.join(CLOSE_TIMEOUT_S)
        if any(thread.is_alive() for thread in self._threads):
            log.error("a read did not finish within %g s, leaving it", CLOSE_TIMEOUT_S)
        self._engine.dispose()

    def _start(self, read: _Read) -> None:
        hand: _Hand = SimpleQueue()
        hand.put(read)
        name = f"catalogue-reader-{len(self._threads) + 1}"
        thread = threading.Thread(target=self._run, args=(hand,), name=name, daemon=True)
        self._threads.append(thread)
        thread.start()

    # --- in the threads ---

    def _run(self, hand: _Hand) -> None:
        reader = _Reader(self._dialect, self._engine.connect)
        try:
            while (read := hand.get()) is not None:
                result = outcome.capture(reader.run, read.fn)
                # Before it is answered: whoever asks for two things in turn gets the same thread.
                self._ready(hand)
                _deliver(read, result)
        finally:
            reader.close()

    def _ready(self, hand: _Hand) -> None:
        with self._lock:
            if self._waiting:
                hand.put(self._waiting.popleft())
            elif self._closing:
                hand.put(None)
            else:
                self._idle.append(hand)


class _Reader:
    """The connection of one thread, opened when it is needed and again after it was lost."""

    def __init__(self, dialect: Dialect, connect: Callable[[], Connection]) -> None:
        self._dialect = dialect
        self._connect = connect
        self._connection: Connection | None = None

    def run(self, fn: Callable[[Connection], T]) -> T:
        """What `fn` gives; raises what it raises, and the driver's exceptions translated."""
        try:
            # One that waited here may have died meanwhile, with a database that is back by now.
            if self._connection is not None:
                try:
                    return self._once(self._connection, fn)
                except Exception as error:
                    if not self._dialect.lost(error):
                        raise
            self._connection = self._connect()
            return self._once(self._connection, fn)
        except Exception as error:
            translated = self._dialect.translate(error)
            if translated is error:
                raise
            raise translated from error

    def close(self) -> None:
        if self._connection is not None:
            self._connection.close()

    def _once(self, cx: Connection, fn: Callable[[Connection], T]) -> T:
        try:
            self._dialect.begin_snapshot(cx)
            return fn(cx)
        except BaseException as error:
            if self._dialect.lost(error):
                self._drop(cx)
            raise
        finally:
            if self._connection is cx:
                self._end_snapshot(cx)

    def _end_snapshot(self, cx: Connection) -> None:
        """Nothing was written: there is nothing to keep."""
        try:
            if cx.in_transaction():
                cx.rollback()
            else:  # nothing was run but past Core, which does not know of it
                cx.connection.rollback()
        except BaseException:
            self._drop(cx)
            raise

    def _drop(self, cx: Connection) -> None:
        self._connection = None
        cx.invalidate()  # or its rollback would be a second error
        cx.close()


def _deliver(read: _Read, result: outcome.Outcome[Any]) -> None:
    try:
        read.token.run_sync_soon(trio.lowlevel.reschedule, read.task, result)
    except trio.RunFinishedError:
        log.warning("the event loop ended before a read was answered, ignoring")
