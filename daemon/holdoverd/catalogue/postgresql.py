"""The catalogue in PostgreSQL, for a team that has outgrown one machine.

The turn to write is a lock of the database's own, taken with the transaction and gone with it, so
that what a function has read is still true when it commits, as under SQLite's one lock.
SERIALIZABLE without such a lock was tried: of two instances that write without pause one had to begin
again more often than was sensible, because what conflicts is judged by whole pages and small tables.
A commit takes one wait for the disk, however many writes are in its group, so writing by turns is
fast enough for many hosts. And nobody can hold the others up for long: an instance that stands still
inside a transaction loses it within `IDLE_TIMEOUT_S`, sooner than the others stop waiting.

What workers write of the jobs they hold needs no such turn (`Catalogue.write_beside`): each locks the
one row that it changes. By turns, 32 workers claimed no more jobs a second than one did, since each
waited for the commits of all the others; beside one another they share those. Where a single
statement says it all, it goes alone (`Catalogue.write_alone`): one message to the server instead of
three or four, which is most of what so short a write costs. Nothing names such a transaction, so
whoever writes so has to see from the rows whether it came about.

The database may go away and come back at any moment. A read, or a group that was not being
committed, is run again on a new connection; if it cannot be, callers hear that the catalogue cannot
be reached. Where the connection broke during the commit itself, the database is asked afterwards
whether that came about.
"""

import contextlib
import time
from typing import Any

import psycopg
from psycopg import errors as pg
from psycopg.pq import TransactionStatus
from psycopg.types.string import StrDumperUnknown
from sqlalchemy import Connection, Engine, create_engine, event
from sqlalchemy.engine import URL
from sqlalchemy.exc import DBAPIError, SQLAlchemyError
from sqlalchemy.pool import NullPool, QueuePool, StaticPool

from holdoverd.catalogue.dialect import TURN_TIMEOUT_S, Dialect, caused
from holdoverd.errors import CatalogueError, Internal

CONNECT_TIMEOUT_S = 5
# Longer than any statement of ours takes; a read that comes here reads too much.
STATEMENT_TIMEOUT_S = 60
# Shorter than TURN_TIMEOUT_S.
IDLE_TIMEOUT_S = 4
# How long the database is waited for to say whether a commit came about.
OUTCOME_TIMEOUT_S = 5.0
MIGRATION_LOCK_TIMEOUT_S = 60

# Any number that others are unlikely to use in the same database: "hold" in ASCII.
_WRITE_LOCK = 0x686F6C64
_MIGRATION_LOCK = _WRITE_LOCK + 1
_OLDEST_SERVER = 130_000  # pg_current_xact_id

_TEXT_WITHOUT_NUL = "\N{REPLACEMENT CHARACTER}"


class PostgreSQLDialect(Dialect):
    """One PostgreSQL database; a commit is on its disk when it returns."""

    def __init__(self, url: URL) -> None:
        super().__init__(url)
        # Nothing else of the address: its query may hold a password as well.
        host = url.host or url.query.get("host") or "this machine"
        self.name = f"{url.database} on {host}"

    # --- engines ---

    def writer_engine(self) -> Engine:
        # One connection, opened and used by the writer's thread; kept until disposed.
        # READ COMMITTED: every statement sees what there was when the lock was had, or later.
        engine = self._engine(StaticPool, "READ COMMITTED")

        @event.listens_for(engine, "begin")
        def begin(connection: Connection) -> None:
            # The number names the transaction, for `committed`.
            found = connection.exec_driver_sql(
                f"SELECT pg_advisory_xact_lock({_WRITE_LOCK}), pg_current_xact_id()::text"
            )
            connection.info["transaction"] = found.one()[1]

        return engine

    def beside_engine(self) -> Engine:
        # The driver begins nothing by itself, so that beginning and asking for the transaction's
        # number is one message to the server; short writes consist of little else.
        engine = self._engine(StaticPool, "AUTOCOMMIT")

        @event.listens_for(engine, "begin")
        def begin(connection: Connection) -> None:
            driver: Any = connection.connection.dbapi_connection
            found = driver.execute("BEGIN; SELECT pg_current_xact_id()::text")
            found.nextset()
            connection.info["transaction"] = found.fetchone()[0]

        return engine

    def alone_engine(self) -> Engine:
        return self._engine(QueuePool, "AUTOCOMMIT", pool_size=1, max_overflow=0)

    def reader_engine(self, size: int) -> Engine:
        return self._engine(
            QueuePool,
            "REPEATABLE READ",
            "-c default_transaction_read_only=on",
            pool_size=size,
            max_overflow=0,
        )

    def begin_snapshot(self, cx: Connection) -> None:
        """The driver begins with the first statement."""

    def migration_engine(self) -> Engine:
        # READ COMMITTED: what is seen is what there is once the lock has been waited for.
        engine = self._engine(
            NullPool,
            "READ COMMITTED",
            f"-c lock_timeout={MIGRATION_LOCK_TIMEOUT_S}s -c statement_timeout=0",
        )

        @event.listens_for(engine, "begin")
        def begin(connection: Connection) -> None:
            connection.exec_driver_sql(f"SELECT pg_advisory_xact_lock({_MIGRATION_LOCK})")

        return engine

    def _engine(self, pool: Any, isolation: str, options: str = "", **settings: Any) -> Engine:
        own = self.url.query.get("options", "")
        engine = create_engine(
            self.url,
            poolclass=pool,
            isolation_level=isolation,
            hide_parameters=True,
            connect_args={
                "application_name": "holdover",
                "client_encoding": "utf8",
                "connect_timeout": CONNECT_TIMEOUT_S,
                # A host that vanished without a word is noticed within half a minute.
                "keepalives_idle": 10,
                "keepalives_interval": 5,
                "keepalives_count": 3,
                "tcp_user_timeout": 20_000,
                "options": (
                    f"{own if isinstance(own, str) else ' '.join(own)} "
                    # Whatever the server's default: a write that returned survives a power cut.
                    "-c synchronous_commit=on "
                    f"-c lock_timeout={round(TURN_TIMEOUT_S * 1000)} "
                    f"-c statement_timeout={STATEMENT_TIMEOUT_S}s "
                    f"-c idle_in_transaction_session_timeout={IDLE_TIMEOUT_S}s "
                    f"{options}"
                ),
            },
            **settings,
        )

        @event.listens_for(engine, "connect")
        def configure(connection: Any, _record: object) -> None:
            connection.adapters.register_dumper(str, _Text)

        return engine

    def check(self, cx: Connection) -> None:
        version, encoding = cx.exec_driver_sql(
            "SELECT current_setting('server_version_num')::int, current_setting('server_encoding')"
        ).one()
        if version < _OLDEST_SERVER:
            raise CatalogueError(
                f"The catalogue's server {self.name} is PostgreSQL {version // 10_000}; Holdover "
                f"needs {_OLDEST_SERVER // 10_000} or newer."
            )
        if encoding != "UTF8":
            raise CatalogueError(
                f"The database {self.name} has the encoding {encoding} and cannot hold every text; "
                "make one with `createdb --encoding=UTF8 --template=template0`."
            )

    def listen(self, channel: str) -> Any:
        cx = self._engine(NullPool, "AUTOCOMMIT").raw_connection()
        cx.detach()  # or the pool would close it with what it was wrapped in
        driver: Any = cx.dbapi_connection
        driver.execute(f"LISTEN {channel}")
        return driver

    # --- transactions ---

    def turn(self, _timeout_s: float = TURN_TIMEOUT_S) -> contextlib.AbstractContextManager[None]:
        """Taken with each transaction; see `writer_engine`."""
        return contextlib.nullcontext()

    def prepare(self) -> None:
        """The database is made by whoever runs the server."""

    def in_transaction(self, cx: Connection) -> bool:
        return _status(cx) in (TransactionStatus.INTRANS, TransactionStatus.INERROR)

    def can_commit(self, cx: Connection) -> bool:
        # In a failed transaction COMMIT rolls back, and reports no error.
        return _status(cx) == TransactionStatus.INTRANS

    def conflict(self, error: BaseException, /) -> bool:
        return isinstance(_original(error), pg.SerializationFailure | pg.DeadlockDetected)

    def lost(self, error: BaseException, /) -> bool:
        original = _original(error)
        if not isinstance(original, psycopg.OperationalError | psycopg.InterfaceError):
            return False
        state = original.sqlstate
        return state is None or state.startswith("08") or state in _GOING

    def mark(self, cx: Connection, /) -> object:
        return cx.info.get("transaction")

    def committed(self, mark: object, /) -> bool | None:
        deadline = time.monotonic() + OUTCOME_TIMEOUT_S
        engine = self._engine(NullPool, "AUTOCOMMIT")
        while True:
            with contextlib.suppress(SQLAlchemyError, psycopg.Error), engine.connect() as cx:
                found = cx.exec_driver_sql(
                    "SELECT pg_xact_status(%s::text::xid8)", (str(mark),)
                ).scalar_one()
                # "in progress": its backend has not yet noticed that we are gone.
                if found != "in progress":
                    return None if found is None else bool(found == "committed")
            if time.monotonic() > deadline:
                return None
            time.sleep(0.1)

    def translate(self, error: BaseException) -> BaseException:
        if not isinstance(error, SQLAlchemyError | psycopg.Error):
            return error
        original = _original(error)
        if isinstance(original, psycopg.IntegrityError):
            # The constraint's name, and not the values: DETAIL holds those.
            diag = original.diag
            return caused(
                Internal(
                    "A write contradicts what the catalogue holds "
                    f"({diag.message_primary or diag.constraint_name}); nothing of it was stored. "
                    "This is a defect of Holdover: please report it."
                ),
                error,
            )
        what, remedy = self._trouble(original)
        return caused(CatalogueError(f"The catalogue {self.name} {what}. {remedy}"), error)

    def close(self) -> None:
        """The engines are closed by whoever asked for them."""

    def _trouble(self, error: BaseException) -> tuple[str, str]:
        """What happened, and what to do next."""
        if self.lost(error):
            return (
                f"cannot be reached ({_said(error)})",
                "Agents run on, and what they say is kept; it is tried again with the next "
                "request. Look at the database server and the network between.",
            )
        state = getattr(error, "sqlstate", None) or ""
        for prefix, trouble in _TROUBLE.items():
            if state.startswith(prefix):
                what, remedy = trouble
                return f"{what} ({_said(error)})", remedy
        return f"failed ({_said(error)})", "See the database server's log for the cause."


class _Text(StrDumperUnknown):
    """Text as PostgreSQL takes it: everything but NUL, which it cannot store.

    A line of an agent's holds none, being JSON; a name that it made up may.
    """

    def dump(self, obj: str) -> Any:
        return super().dump(obj.replace("\0", _TEXT_WITHOUT_NUL) if "\0" in obj else obj)


# The server is stopping, starting, or has ended this connection by itself.
_GOING = frozenset({"57P01", "57P02", "57P03", "57P05", "25P03"})

# {the beginning of an SQLSTATE: (what happened, what to do next)}; the first that fits counts.
# https://www.postgresql.org/docs/current/errcodes-appendix.html
_TROUBLE = {
    "25006": (
        "cannot be written: it is read-only",
        "Point [catalogue] url at the primary server; after a failover, at the new one.",
    ),
    "28": ("refuses the login", "Check user and password in [catalogue] url, and pg_hba.conf."),
    "3D000": ("does not exist", "Make it: `createdb --encoding=UTF8 --template=template0 NAME`."),
    "40": (
        "was changed by others again and again meanwhile; nothing was stored",
        "Try again shortly.",
    ),
    "42501": (
        "does not let this user do that",
        "Let the user of [catalogue] url own the database.",
    ),
    "53100": ("has no room left: the disk is full", "Free space there; nothing was stored."),
    "53300": (
        "takes no more connections",
        "Raise max_connections of the server: each instance and each worker needs up to seven.",
    ),
    "53": ("lacks memory or connections", "Look at the database server's limits and its log."),
    "55P03": (
        "is locked by another program, or an instance that does not get on",
        "Find who holds it in pg_stat_activity, end it or wait for it, then try again.",
    ),
    "57014": (
        "took too long and was stopped",
        "Look at the load of the database server, then try again.",
    ),
    "58": ("could not be read or written", "Look at the database server's disk and its log."),
    "XX001": (
        "is damaged",
        "Stop Holdover, keep a copy of the database as it is, and restore the last backup.",
    ),
}


def _original(error: BaseException) -> BaseException:
    if isinstance(error, DBAPIError) and error.orig is not None:
        return error.orig
    return error


def _said(error: BaseException) -> str:
    """The first line of what the driver says: the rest may hold values."""
    primary = error.diag.message_primary if isinstance(error, psycopg.Error) else None
    lines = (primary or str(error)).strip().splitlines()
    return lines[0][:300] if lines else type(error).__name__


def _status(cx: Connection) -> TransactionStatus:
    driver: Any = cx.connection.dbapi_connection
    status: TransactionStatus = driver.info.transaction_status
    return status
