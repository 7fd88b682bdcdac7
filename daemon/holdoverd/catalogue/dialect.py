"""Where SQLite and PostgreSQL differ, and nothing else in the catalogue does.

A `Dialect` opens engines, gives turns to write and translates what the driver
raises. SQLite's is here, PostgreSQL's in `postgresql`.
"""

import contextlib
import os
import sqlite3
from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any, TypeVar

from sqlalchemy import Connection, Engine, create_engine, event
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import DBAPIError, SQLAlchemyError
from sqlalchemy.pool import QueuePool, StaticPool

from holdoverd.catalogue.turn import FileTurn
from holdoverd.errors import CatalogueError, HoldoverError, Internal

# How long a write waits for another instance's before it gives up: longer than any commit takes
# on a disk that works, shorter than a person waits.
TURN_TIMEOUT_S = 5.0

# Lines of about a kilobyte fill SQLite's usual 4 KiB badly, and each page of a commit costs two
# system calls: a burst of one session's lines takes a third less time with 8 KiB. With 16 KiB it
# takes half, but then many slow sessions, the usual case, write half as much again to the disk.
PAGE_BYTES = 8192

_ADDRESSES = "sqlite:////absolute/path or postgresql+psycopg://user@host/database"

_E = TypeVar("_E", bound=HoldoverError)


class Dialect(ABC):
    """One kind of database behind one address."""

    def __init__(self, url: URL) -> None:
        self.url = url
        self.name = url.render_as_string(hide_password=True)

    @abstractmethod
    def writer_engine(self) -> Engine:
        """An engine of one connection whose transactions take the write lock as they begin."""

    def beside_engine(self) -> Engine | None:
        """As `writer_engine`, of transactions that take no lock but those of the rows they ask for.

        For `Catalogue.write_beside`. None where the database has but one writer at a time.
        """
        return None

    def alone_engine(self) -> Engine | None:
        """An engine of one connection, of which each statement is stored once it has run.

        For `Catalogue.write_alone`. None where a transaction costs nothing more.
        """
        return None

    @abstractmethod
    def reader_engine(self, size: int) -> Engine:
        """An engine of up to `size` connections that cannot write."""

    @abstractmethod
    def begin_snapshot(self, cx: Connection) -> None:
        """See from now on, on a connection of `reader_engine`, what is committed now or a little later.

        A rollback ends it.
        """

    @abstractmethod
    def migration_engine(self) -> Engine:
        """An engine whose transactions exclude each other, and may take long."""

    @abstractmethod
    def check(self, cx: Connection) -> None:
        """Raises CatalogueError for a database that cannot hold a catalogue; before migrating."""

    @abstractmethod
    def turn(self, timeout_s: float = TURN_TIMEOUT_S) -> contextlib.AbstractContextManager[None]:
        """The turn of this process to write; raises CatalogueError when it does not come."""

    @abstractmethod
    def prepare(self) -> None:
        """Make the database exist before the first connection; called inside a turn."""

    @abstractmethod
    def in_transaction(self, cx: Connection) -> bool:
        """Whether the database still has the transaction open that `cx` believes to be in."""

    @abstractmethod
    def can_commit(self, cx: Connection) -> bool:
        """Whether a commit would store what was written: `in_transaction`, and it has not failed."""

    def listen(self, _channel: str) -> Any:
        """A connection that hears the hints of a channel (`catalogue/hints.py`); None: there are none.

        Blocks, and raises what the driver raises.
        """
        return None

    def conflict(self, _error: BaseException, /) -> bool:
        """Whether another's transaction came between: nothing is stored, and a rerun may be."""
        return False

    def lost(self, _error: BaseException, /) -> bool:
        """Whether the connection is gone, which says nothing about what was asked."""
        return False

    def mark(self, _cx: Connection, /) -> object:
        """What `committed` knows the transaction by that `cx` is in."""
        return None

    def committed(self, _mark: object, /) -> bool | None:
        """Whether a transaction whose commit lost its connection came about; None: unknown.

        May block for seconds.
        """
        return None

    @abstractmethod
    def translate(self, error: BaseException) -> BaseException:
        """What a foreign error means to a caller; errors that are not foreign come back as is."""

    @abstractmethod
    def close(self) -> None:
        """Release what the dialect itself holds open."""


def dialect_for(url: str) -> Dialect:
    """The dialect of a SQLAlchemy address; raises CatalogueError naming what is understood."""
    try:
        parsed = make_url(url)
    except SQLAlchemyError as error:
        raise CatalogueError(
            f"The catalogue's address is no database URL; write it as {_ADDRESSES}."
        ) from error
    if parsed.drivername == "postgresql+psycopg":
        return _postgresql(parsed)
    if parsed.drivername != "sqlite":
        raise CatalogueError(
            f"The catalogue cannot be kept in {parsed.drivername}; write [catalogue] url as "
            f"{_ADDRESSES}."
        )
    if not parsed.database or parsed.database == ":memory:" or parsed.query:
        raise CatalogueError(
            f"The catalogue's address {parsed.render_as_string()} names no file; a catalogue must "
            "outlive its process. Write it as sqlite:////absolute/path."
        )
    return SQLiteDialect(parsed, Path(parsed.database))


def _postgresql(url: URL) -> Dialect:
    if not url.database or "password" in url.query:
        # Not shown: it may hold the password.
        raise CatalogueError(
            "The catalogue's PostgreSQL address names no database, or has its password among the "
            f"parameters; write it as {_ADDRESSES}."
        )
    try:
        # Here, because it takes longer to load than the rest of the catalogue.
        from holdoverd.catalogue.postgresql import PostgreSQLDialect
    except ImportError as error:
        raise CatalogueError(
            f"PostgreSQL needs psycopg, which cannot be loaded here ({error}); install "
            "holdover[daemon] with all it asks for."
        ) from error
    return PostgreSQLDialect(url)


class SQLiteDialect(Dialect):
    """SQLite in WAL mode with ``synchronous=FULL``: a commit is on the disk when it returns."""

    def __init__(self, url: URL, path: Path) -> None:
        super().__init__(url)
        self.path = path
        self._turn = FileTurn(path)

    def prepare(self) -> None:
        """Create the file for its owner's eyes alone (0600; SQLite's own files follow its mode)."""
        try:
            descriptor = os.open(
                self.path, os.O_CREAT | os.O_EXCL | os.O_RDWR | os.O_CLOEXEC, 0o600
            )
        except FileExistsError:
            return  # must not be opened here: closing it would drop SQLite's own POSIX locks
        except OSError as error:
            raise _from_os_error(self.path, error) from error
        os.close(descriptor)
        # The name must survive a power cut as surely as the commits that will go under it.
        folder = os.open(self.path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)

    def turn(self, timeout_s: float = TURN_TIMEOUT_S) -> contextlib.AbstractContextManager[None]:
        return self._turn.held(timeout_s)

    def close(self) -> None:
        self._turn.close()

    def writer_engine(self) -> Engine:
        # One connection, opened and used by the writer's thread; StaticPool keeps it until disposed.
        engine = self._engine(poolclass=StaticPool)

        @event.listens_for(engine, "connect")
        def configure(connection: sqlite3.Connection, _record: object) -> None:
            # Already WAL: a look at the header. The first time it needs the file to itself and
            # heeds no timeout, which is why the writer connects inside its turn.
            # The page size counts only where the file is still empty, so it stands first.
            _pragmas(
                connection,
                f"page_size={PAGE_BYTES}",
                "journal_mode=WAL",
                "synchronous=FULL",
                "journal_size_limit=67108864",
            )

        @event.listens_for(engine, "begin")
        def begin(connection: Connection) -> None:
            # Never deferred: an upgrade from reading to writing fails at once, whatever the
            # timeout, when another connection wrote in between.
            connection.exec_driver_sql("BEGIN IMMEDIATE")

        return engine

    def migration_engine(self) -> Engine:
        return self.writer_engine()

    def check(self, cx: Connection) -> None:
        """Any SQLite can."""

    def reader_engine(self, size: int) -> Engine:
        engine = self._engine(poolclass=QueuePool, pool_size=size, max_overflow=0)

        @event.listens_for(engine, "connect")
        def configure(connection: sqlite3.Connection, _record: object) -> None:
            _pragmas(connection, "query_only=ON")

        return engine

    def begin_snapshot(self, cx: Connection) -> None:
        # Past Core, which takes longer to begin than most reads to run.
        driver: Any = cx.connection.dbapi_connection
        driver.execute("BEGIN").close()

    def _engine(self, **options: Any) -> Engine:
        engine = create_engine(
            self.url,
            hide_parameters=True,  # they may be somebody's words, and errors go to the log
            # isolation_level None: the driver begins nothing by itself. The timeout is for
            # strangers (a shell, a backup); instances take turns and hardly ever meet here.
            connect_args={
                "isolation_level": None,
                "timeout": TURN_TIMEOUT_S,
                "check_same_thread": False,
            },
            **options,
        )

        @event.listens_for(engine, "connect")
        def configure(connection: sqlite3.Connection, _record: object) -> None:
            _pragmas(connection, "foreign_keys=ON", "trusted_schema=OFF")

        return engine

    def in_transaction(self, cx: Connection) -> bool:
        driver: Any = cx.connection.dbapi_connection
        return bool(driver.in_transaction)

    def can_commit(self, cx: Connection) -> bool:
        return self.in_transaction(cx)

    def translate(self, error: BaseException) -> BaseException:
        if isinstance(error, OSError):
            return _from_os_error(self.path, error)
        if not isinstance(error, SQLAlchemyError | sqlite3.Error):
            return error
        original = error.orig if isinstance(error, DBAPIError) else error
        if isinstance(original, sqlite3.IntegrityError):
            return caused(
                Internal(
                    f"A write contradicts what the catalogue holds ({original}); nothing of it "
                    "was stored. This is a defect of Holdover: please report it."
                ),
                error,
            )
        # Python 3.11 and newer name the code; None when the driver itself refused a call.
        code = getattr(original, "sqlite_errorcode", None)
        reason, remedy = _SQLITE_TROUBLE.get(code or -1) or _SQLITE_TROUBLE.get(
            (code or 0) & 0xFF, ("failed", "See the log for the cause.")
        )
        return caused(
            CatalogueError(f"The catalogue {self.path} {reason} ({original}). {remedy}"),
            error,
        )


_FREE_SPACE = "Free space on that filesystem; nothing was stored and the next try may succeed."

# {SQLite result code, primary or extended: (what happened, what to do next)}
# https://sqlite.org/rescode.html
_SQLITE_TROUBLE = {
    sqlite3.SQLITE_FULL: ("has no room left: the disk is full", _FREE_SPACE),
    # The shared-memory file is allocated on opening; on a full disk that fails as an I/O error.
    sqlite3.SQLITE_IOERR_SHMSIZE: ("has no room left: the disk is full", _FREE_SPACE),
    sqlite3.SQLITE_READONLY: (
        "cannot be written: it is read-only",
        "Check its owner and mode, those of its folder, and that the filesystem is not mounted "
        "read-only.",
    ),
    sqlite3.SQLITE_BUSY: (
        "is locked by another program",
        "Find who holds it (fuser FILE), end it or wait for it, then try again.",
    ),
    sqlite3.SQLITE_LOCKED: (
        "is locked by another program",
        "Find who holds it (fuser FILE), end it or wait for it, then try again.",
    ),
    sqlite3.SQLITE_IOERR: (
        "could not be read or written: the disk reported an error",
        "Look for disk errors in the kernel's log (journalctl -k) before anything else.",
    ),
    sqlite3.SQLITE_CANTOPEN: (
        "cannot be opened",
        "Check that its folder exists and that the daemon's user may write there.",
    ),
    sqlite3.SQLITE_CORRUPT: (
        "is damaged",
        "Stop Holdover, keep a copy of the file as it is, and restore the last backup.",
    ),
    sqlite3.SQLITE_NOTADB: (
        "is not an SQLite database",
        "Check [catalogue] url; if the file was a catalogue once, restore the last backup.",
    ),
    sqlite3.SQLITE_TOOBIG: (
        "cannot hold a text this large",
        "Send it in parts, or as a file.",
    ),
}


def _from_os_error(path: Path, error: OSError) -> CatalogueError:
    return caused(
        CatalogueError(
            f"The catalogue {path} cannot be opened or created: {error.strerror or error}. Check "
            "that its folder exists, has room, and that the daemon's user may write there."
        ),
        error,
    )


def caused(new: _E, cause: BaseException) -> _E:
    """`new`, raised because of `cause`."""
    new.__cause__ = cause
    return new


def _pragmas(connection: sqlite3.Connection, *pragmas: str) -> None:
    for pragma in pragmas:
        connection.execute(f"PRAGMA {pragma}").close()
