"""Hints that there is something new in the catalogue, across processes and hosts.

PostgreSQL tells those that LISTEN when a transaction with a NOTIFY is committed; SQLite tells nobody.
A hint makes somebody look sooner than he would have anyway, and that is all: it may be lost, it may
come for nothing, and whoever waits for one looks now and then without.
"""

import contextlib
import logging
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import trio
from sqlalchemy import Connection

if TYPE_CHECKING:
    from holdoverd.catalogue.dialect import Dialect

log = logging.getLogger(__name__)

AGAIN_S = 5.0
"""Between two tries to hear hints from a database that is away."""


def hint(cx: Connection, channel: str) -> None:
    """Hint at what this transaction writes, once it is committed."""
    if cx.dialect.name == "postgresql":
        cx.exec_driver_sql(f"NOTIFY {channel}")


class Hints:
    """Hears the hints of one channel, while `run` runs. Made by `Catalogue.hints`.

    listening   whether hints are heard just now; never, where the database has none.
    """

    def __init__(self, dialect: "Dialect", channel: str) -> None:
        self._dialect = dialect
        self._channel = channel
        self.listening = False

    async def run(self, wake: Callable[[], None]) -> None:
        """Call `wake` at every hint, and when hints are heard again after a while without.

        Returns at once where the database gives none; otherwise never.
        """
        while True:
            connection: Any = None
            try:
                # Whoever stops does not wait for a database that does not answer.
                connection = await trio.to_thread.run_sync(
                    self._dialect.listen, self._channel, abandon_on_cancel=True
                )
                if connection is None:
                    return
                self.listening = True
                wake()
                await self._hear(connection, wake)
            except Exception as error:  # whatever it is, looking without hints goes on
                log.info(
                    "no hints from the catalogue, trying again in %g s: %s",
                    AGAIN_S,
                    type(error).__name__,
                )
            finally:
                self.listening = False
                if connection is not None:
                    with contextlib.suppress(Exception):
                        connection.close()
            await trio.sleep(AGAIN_S)

    async def _hear(self, connection: Any, wake: Callable[[], None]) -> None:
        """Raises psycopg.OperationalError when the connection is gone."""
        libpq = connection.pgconn
        while True:
            await trio.lowlevel.wait_readable(libpq.socket)
            libpq.consume_input()
            heard = False
            while libpq.notifies() is not None:
                heard = True
            if heard:
                wake()
