"""The catalogue as the daemon sees it: one writer thread with group commit, a few readers."""

from collections.abc import Callable
from typing import TypeVar

import trio
from sqlalchemy import Connection, Engine

from holdoverd.catalogue.dialect import Dialect, dialect_for
from holdoverd.catalogue.hints import Hints
from holdoverd.catalogue.migrate import migrate
from holdoverd.catalogue.readers import Readers
from holdoverd.catalogue.writer import Write, Writer
from holdoverd.metrics.counts import WriterCounts

T = TypeVar("T")


class Catalogue:
    """An open catalogue. Made by `Catalogue.open`; whoever opens it closes it.

    `write` and `read` take a function on a Connection (from `sessions`, `messages`, …, or a lambda
    around several of them) and run it in a thread of the catalogue's, in a transaction of its own
    as far as it can tell. The function must leave alone everything but the Connection: a write may
    be run more than once before one run counts. It must not commit, and not keep the Connection.
    """

    def __init__(self, dialect: Dialect) -> None:
        self._dialect = dialect
        self._writer = Writer(dialect, dialect.writer_engine())
        self._beside: Writer | None = None
        self._alone: Engine | None = None
        self._alone_turn = trio.CapacityLimiter(1)
        self._readers = Readers(dialect)
        self._closed = False

    @classmethod
    def open(cls, url: str) -> "Catalogue":
        """Open the catalogue at a SQLAlchemy address, creating and migrating it as needed.

        Blocks; call it before the event loop or in a thread. Instances that open it at the same
        time take turns. Raises CatalogueError: cannot be opened, or a newer release has changed it
        in a way this one does not understand.
        """
        dialect = dialect_for(url)
        try:
            migrate(dialect)
            return cls(dialect)
        except BaseException:
            dialect.close()
            raise

    async def write(self, fn: Callable[[Connection], T], *, size_hint: int = 0) -> T:
        """Run `fn` in a transaction; return its result once that is durably committed.

        Writes queued while a commit runs go into the next one together, in the order they came; an
        exception of one undoes that one alone and is raised here. Raises CatalogueError when the
        database refuses (disk full, read-only, locked, damaged) or when too many writes wait; this
        one is not stored then. After that, load a session again before going on with it.

        `size_hint`: about how many bytes it writes, where that is many; bounds the groups.

        Cancellation: a write once queued completes, so a caller that is cancelled meanwhile waits
        for it, gets its result and meets the cancellation at its next checkpoint. Cancelled before
        the call: nothing is queued.
        """
        await trio.lowlevel.checkpoint_if_cancelled()
        return await self._writer.submit(fn, size_hint)

    def begin_write(self, fn: Callable[[Connection], T], *, size_hint: int = 0) -> Write[T]:
        """As `write`, for a caller who has something to do before it waits for it.

        Which it has to: it is queued, cancelled or not. Raises CatalogueError at once where too many
        writes wait.
        """
        return self._writer.begin(fn, size_hint)

    async def write_beside(self, fn: Callable[[Connection], T]) -> T:
        """As `write`, but others' writes may come between what `fn` reads and its commit.

        So it has to lock each row that it goes by (``FOR UPDATE``). In SQLite, where one writes at a
        time, it is `write`; in PostgreSQL such writes wait for no turn.
        """
        await trio.lowlevel.checkpoint_if_cancelled()
        if self._beside is None:
            # Made when it is first asked for: few processes need a second connection to write.
            engine = self._dialect.beside_engine()
            self._beside = self._writer if engine is None else Writer(self._dialect, engine)
        return await self._beside.submit(fn, 0)

    async def write_alone(self, fn: Callable[[Connection], T]) -> T:
        """As `write`, of an `fn` that stores all it has to say by its last statement.

        In PostgreSQL each statement is a transaction of its own, and a failed one is not run again: a
        CatalogueError does not tell that nothing was stored. So what `fn` writes has to be such that
        its caller can find it, or write it twice. In SQLite it is `write`.
        """
        await trio.lowlevel.checkpoint_if_cancelled()
        if self._alone is None:
            self._alone = self._dialect.alone_engine()
            if self._alone is None:
                return await self._writer.submit(fn, 0)
        return await trio.to_thread.run_sync(
            self._write_alone, self._alone, fn, limiter=self._alone_turn
        )

    def hints(self, channel: str) -> Hints:
        """What is hinted at on a channel; its `run` is to be started."""
        return Hints(self._dialect, channel)

    async def read(self, fn: Callable[[Connection], T]) -> T:
        """Run `fn` on a snapshot of all that is committed; it cannot write.

        Raises CatalogueError when the database cannot be read, or when too many reads wait. Not
        cancelled in the middle: `fn` should be bounded.
        """
        await trio.lowlevel.checkpoint_if_cancelled()
        return await self._readers.submit(fn)

    @property
    def counts(self) -> WriterCounts:
        """What the writer has done so far; goes on changing."""
        return self._writer.counts

    @property
    def queued(self) -> int:
        """Writes that wait for the writer."""
        return self._writer.queued

    def close(self) -> None:
        """Finish the writes that are queued, then close. Blocks; harmless when called again."""
        if self._closed:
            return
        self._closed = True
        self._readers.close()
        self._writer.close()
        if self._beside is not None and self._beside is not self._writer:
            self._beside.close()
        if self._alone is not None:
            self._alone.dispose()
        self._dialect.close()

    def _write_alone(self, engine: Engine, fn: Callable[[Connection], T]) -> T:
        try:
            with engine.connect() as cx:
                try:
                    return fn(cx)
                except Exception as error:
                    if self._dialect.lost(error):
                        cx.invalidate()
                    raise
        except Exception as error:
            translated = self._dialect.translate(error)
            if translated is error:
                raise
            raise translated from error
