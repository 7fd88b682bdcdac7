"""Group commit: one thread that writes, many tasks that wait.

A commit costs an fsync, which takes as long for one write as for five hundred. So the thread takes
all that queued up while the last commit ran, runs it in one transaction, commits once and wakes
everyone with one message to the event loop.

A group first runs bare, because almost always nothing fails. When a function raises, the whole
group is rolled back and run again with a savepoint around each, so that only the one that raised
is undone. Savepoints from the start would cost every write what only failures need.

Functions of a kind may know how to run together with fewer statements than one by one (`Together`).
A bare group does that with those that stand beside each other; the second run never does.
"""

import logging
import random
import threading
import time
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Generic, Literal, Self, TypeVar, cast

import outcome
import trio
from sqlalchemy import Connection, Engine

from holdoverd.catalogue.dialect import Dialect
from holdoverd.errors import CatalogueError
from holdoverd.metrics.counts import WriterCounts

T = TypeVar("T")

log = logging.getLogger(__name__)

# Writes waiting. At a thousand commits a second and 512 a group this is well under a second of
# work; a queue that grows beyond means a disk that does not keep up, and waiting longer is no help.
MAX_QUEUE = 10_000
MAX_GROUP = 512
# Bounds the memory and the length of one transaction; a single larger write goes alone.
MAX_GROUP_BYTES = 16 * 1024 * 1024
# How long `close` waits for the queue: longer than TURN_TIMEOUT_S, since one turn may be missed.
CLOSE_TIMEOUT_S = 30.0
# Of a group that others' transactions came between. With SQLite's one writer none does.
MAX_ATTEMPTS = 8


class Together(ABC):
    """A function for the writer that returns nothing, and can be run together with others like it."""

    __slots__ = ()

    @property
    @abstractmethod
    def apart_by(self) -> object:
        """Two that have this in common are not run together."""

    @abstractmethod
    def __call__(self, cx: Connection) -> None:
        """Run this one alone."""

    @classmethod
    @abstractmethod
    def run(cls, cx: Connection, them: Sequence[Self]) -> None:
        """Run them all, as if one after the other. May raise whatever one of them would."""


@dataclass(slots=True, eq=False)
class Write(Generic[T]):
    """One function to run, and what became of it. `result` is the thread's until `over`."""

    fn: Callable[[Connection], T]
    size_hint: int
    token: trio.lowlevel.TrioToken
    queued_at: float
    result: outcome.Outcome[T] | None = None
    over: bool = False
    """It is committed, or has failed."""
    task: trio.lowlevel.Task | None = None
    """Which waits for it, if one does so already."""

    async def wait(self) -> T:
        """What `fn` has returned or raised, once it is over. Not cancelled; no checkpoint if it is."""
        if self.over:
            assert self.result is not None, "what is over has come to a result"
            return self.result.unwrap()
        self.task = trio.lowlevel.current_task()

        def refuse(_raise_cancel: object) -> trio.lowlevel.Abort:
            return trio.lowlevel.Abort.FAILED  # a queued write completes, cancelled or not

        return cast(T, await trio.lowlevel.wait_task_rescheduled(refuse))


class Writer:
    """The writer thread and its queue. `begin` from any trio task, `close` from anywhere.

    `engine` has one connection, and is the thread's from now on.
    """

    def __init__(self, dialect: Dialect, engine: Engine) -> None:
        self._dialect = dialect
        self._engine = engine
        self.counts = WriterCounts()
        self._queue: deque[Write[Any]] = deque()
        self._changed = threading.Condition()
        self._closing = False
        # How far the transaction of the thread has come, and what the dialect knows it by.
        self._step: Literal["connecting", "writing", "committing"] = "connecting"
        self._mark: object = None
        self._thread = threading.Thread(target=self._run, name="catalogue-writer", daemon=True)
        self._thread.start()

    @property
    def queued(self) -> int:
        return len(self._queue)

    async def submit(self, fn: Callable[[Connection], T], size_hint: int) -> T:
        """Queue `fn` and wait until it is committed or has failed. See `Catalogue.write`."""
        return await self.begin(fn, size_hint).wait()

    def begin(self, fn: Callable[[Connection], T], size_hint: int) -> Write[T]:
        """Queue `fn`, for a caller who has something to do meanwhile and then waits for it."""
        write = Write(fn, size_hint, trio.lowlevel.current_trio_token(), time.perf_counter())
        with self._changed:
            if self._closing:
                raise CatalogueError(
                    "The catalogue is closed: this instance is going away. Reconnect."
                )
            if len(self._queue) >= MAX_QUEUE:
                raise CatalogueError(
                    f"The catalogue is busy: {MAX_QUEUE} writes are waiting for the disk. Try "
                    "again shortly; if it stays so, look at the disk's speed and health."
                )
            self._queue.append(write)
            self._changed.notify()
        return write

    def close(self) -> None:
        """Write what is queued, then end the thread and close its connection."""
        with self._changed:
            self._closing = True
            self._changed.notify()
        self._thread.join(CLOSE_TIMEOUT_S)
        if self._thread.is_alive():
            log.error(
                "the catalogue's writer did not finish within %g s, leaving it", CLOSE_TIMEOUT_S
            )

    # --- in the thread ---

    def _run(self) -> None:
        while group := self._next_group():
            began = time.perf_counter()
            self._write(group)
            self._count(group, began)
            _deliver(group)
        # The last connection to close checkpoints the log, so closing is a write as well.
        try:
            with self._dialect.turn():
                self._engine.dispose()
        except CatalogueError as error:
            log.warning("the catalogue closes without its turn: %s", error)
            self._engine.dispose()

    def _count(self, group: list[Write[Any]], began: float) -> None:
        counts, ended = self.counts, time.perf_counter()
        counts.groups += 1
        counts.writes += len(group)
        counts.commit_s.observe(ended - began)
        counts.wait_s.observe(ended - group[0].queued_at)
        for write in group:
            # Others are the caller's own business: NotOwner, for one.
            if isinstance(write.result, outcome.Error) and isinstance(
                write.result.error, CatalogueError
            ):
                counts.failed += 1

    def _next_group(self) -> list[Write[Any]]:
        """All that waits, within the bounds of a group; empty when the writer is to end."""
        with self._changed:
            while not self._queue and not self._closing:
                self._changed.wait()
            group: list[Write[Any]] = []
            size = 0
            while self._queue and len(group) < MAX_GROUP:
                size += self._queue[0].size_hint
                if group and size > MAX_GROUP_BYTES:
                    break
                group.append(self._queue.popleft())
            return group

    def _write(self, group: list[Write[Any]]) -> None:
        """Set `result` of every write in the group."""
        for attempt in range(MAX_ATTEMPTS):
            try:
                self._try(group)
            except Exception as error:
                # The database itself failed: at the beginning, at the commit, or in between.
                # Whatever the connection has come to, the next transaction begins with a new one.
                self._engine.dispose()
                if self._stands(error):
                    return
                if self._again(error, attempt):
                    continue
                failure = self._dialect.translate(error)
                for write in group:
                    write.result = outcome.Error(_for_one(failure))
            return

    def _stands(self, error: Exception) -> bool:
        """Whether the group is stored, although its commit failed: nobody told us of it."""
        if self._step != "committing" or not self._dialect.lost(error):
            return False
        committed = self._dialect.committed(self._mark)
        if committed is False:
            self._step = "writing"  # and may be run again, like one that was never committed
        return committed is True

    def _again(self, error: Exception, attempt: int) -> bool:
        """Whether another try makes sense, after a pause."""
        if attempt == MAX_ATTEMPTS - 1:
            return False
        if self._dialect.conflict(error):
            # Of two that keep getting into each other's way, one has to come first.
            time.sleep(random.uniform(0, 0.005 * 2**attempt))  # noqa: S311
            return True
        return attempt == 0 and self._step == "writing" and self._dialect.lost(error)

    def _try(self, group: list[Write[Any]]) -> None:
        """One transaction for the group."""
        self._step = "connecting"
        with self._dialect.turn(), self._engine.connect() as cx:
            try:
                self._write_bare(cx, group)
            except _Raised:
                self._write_apart(cx, group)

    @contextmanager
    def _transaction(self, cx: Connection) -> Iterator[None]:
        self._step = "writing"
        with cx.begin():
            self._mark = self._dialect.mark(cx)
            try:
                yield
            except Exception as error:
                if self._dialect.lost(error):
                    cx.invalidate()  # or its rollback would be a second error
                raise
            self._step = "committing"

    def _write_bare(self, cx: Connection, group: list[Write[Any]]) -> None:
        with self._transaction(cx):
            for run in _runs(group):
                try:
                    _run_bare(cx, run)
                except BaseException as error:
                    if self._ends_all(error):
                        raise
                    raise _Raised from error
                self._check_open(cx)

    def _write_apart(self, cx: Connection, group: list[Write[Any]]) -> None:
        with self._transaction(cx):
            for write in group:
                savepoint = cx.begin_nested()
                try:
                    write.result = outcome.Value(write.fn(cx))
                except BaseException as error:
                    write.result = outcome.Error(self._dialect.translate(error))
                    if self._ends_all(error) or not self._dialect.in_transaction(cx):
                        # The error ended the whole transaction, as a full disk may: nothing of
                        # the group is stored, and every caller has to know.
                        raise
                    savepoint.rollback()
                else:
                    self._check_open(cx)
                    savepoint.commit()

    def _ends_all(self, error: BaseException) -> bool:
        """Whether the error is the transaction's and not the function's."""
        return self._dialect.conflict(error) or self._dialect.lost(error)

    def _check_open(self, cx: Connection) -> None:
        # A function may swallow the error that ended the transaction. Then the driver would store
        # what the others write one statement at a time, and its commit, which does nothing without
        # a transaction, would have everyone told that all is well.
        if not self._dialect.can_commit(cx):
            raise CatalogueError(
                "The database ended a transaction before its commit; nothing of it was stored. "
                "Try again; if it repeats, look at the disk and the log."
            )


def _runs(group: list[Write[Any]]) -> list[list[Write[Any]]]:
    """The group in its order, cut into what is run together."""
    runs: list[list[Write[Any]]] = []
    apart: set[object] = set()
    kind: type[Together] | None = None
    for write in group:
        fn = write.fn
        before, kind = kind, type(fn) if isinstance(fn, Together) else None
        if not isinstance(fn, Together) or kind is not before or fn.apart_by in apart:
            runs.append([write])
            apart.clear()
        else:
            runs[-1].append(write)
        if isinstance(fn, Together):
            apart.add(fn.apart_by)
    return runs


def _run_bare(cx: Connection, run: list[Write[Any]]) -> None:
    first = run[0]
    if len(run) == 1:
        first.result = outcome.Value(first.fn(cx))
        return
    type(first.fn).run(cx, [write.fn for write in run])  # type: ignore[attr-defined]
    for write in run:
        write.result = outcome.Value(None)


class _Raised(Exception):
    """A function of the group raised; whose fault that is shows in the second run."""


def _for_one(failure: BaseException) -> BaseException:
    """The group's failure for one caller: an exception of its own, for tracebacks grow by raising."""
    if not isinstance(failure, CatalogueError):
        return failure
    own = CatalogueError(failure.message)
    own.__cause__ = failure.__cause__ or failure
    return own


def _deliver(group: list[Write[Any]]) -> None:
    """Wake the tasks of a group, one message to each event loop (there is one, outside of tests)."""
    for token in {write.token for write in group}:
        try:
            token.run_sync_soon(_wake, [write for write in group if write.token is token])
        except trio.RunFinishedError:
            log.warning("the event loop ended before its writes were answered, ignoring")


def _wake(group: list[Write[Any]]) -> None:
    for write in group:
        assert write.result is not None, "every write of a group has come to a result"
        write.over = True
        if write.task is not None:
            trio.lowlevel.reschedule(write.task, write.result)
