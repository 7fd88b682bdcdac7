"""A real PostgreSQL for the tests: Debian's, without a port, as a user that is not root.

One server for a run of the tests, a database for each test; `stop` and `start` are for those that
take it away.
"""

from __future__ import annotations

import os
import pwd
import shutil
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType

import psycopg

from holdoverd.catalogue import schema
from holdoverd.catalogue.migrate import OLDEST_USABLE
from tests.needs import postgresql_programs

# Nothing here has to outlive the machine.
_SETTINGS = {
    "listen_addresses": "",
    "fsync": "off",
    "full_page_writes": "off",
    "shared_buffers": "64MB",
    "max_connections": "100",
    "max_wal_size": "256MB",
    "autovacuum": "off",
}


class Postgres:
    """A server of its own folder. The caller calls `remove`. `settings` go before those of tests."""

    def __init__(self, settings: Mapping[str, str] = MappingProxyType({})) -> None:
        programs = postgresql_programs()
        assert programs is not None, "asked for by the tests' needs"
        self._programs = programs
        # A socket's path is bounded by 107 bytes; pytest's folders are longer than that.
        self.folder = Path(tempfile.mkdtemp(prefix="holdover-pg-"))
        self._data = self.folder / "data"
        self._as: list[str] = []
        if os.geteuid() == 0:  # which PostgreSQL refuses to run as
            user = pwd.getpwnam("postgres")
            os.chown(self.folder, user.pw_uid, user.pw_gid)
            self._as = [
                "setpriv",
                f"--reuid={user.pw_uid}",
                f"--regid={user.pw_gid}",
                "--clear-groups",
            ]
        self._databases = 0
        self._run("initdb", "-D", self._data, "-U", "holdover", "-A", "trust", "-N", "-E", "UTF8",
                  "--locale=C.UTF-8")  # fmt: skip
        text = "".join(f"{key} = '{value}'\n" for key, value in (_SETTINGS | settings).items())
        settings = self._data / "postgresql.auto.conf"
        settings.write_text(text + f"unix_socket_directories = '{self.folder}'\n")
        self.start()

    def start(self) -> None:
        self._run("pg_ctl", "-D", self._data, "-w", "-s", "-l", self.folder / "log", "start")

    def stop(self, mode: str = "immediate") -> None:
        """`immediate` is a crash: connections break where they are."""
        self._run("pg_ctl", "-D", self._data, "-w", "-s", "-m", mode, "stop")

    def remove(self) -> None:
        self.stop()
        shutil.rmtree(self.folder)

    def create(self) -> str:
        """A new database; its name."""
        self._databases += 1
        name = f"test_{self._databases}"
        self.sql("postgres", f"CREATE DATABASE {name} TEMPLATE template0")
        return name

    def drop(self, name: str) -> None:
        self.sql("postgres", f"DROP DATABASE {name} WITH (FORCE)")

    def empty(self, name: str) -> None:
        """A catalogue as it was when it had just been migrated."""
        tables = ["searched", *(table.name for table in reversed(schema.metadata.sorted_tables))]
        statements = [f"DELETE FROM {table}" for table in tables if table != "meta"]
        kept = f"DELETE FROM meta WHERE key <> '{OLDEST_USABLE}'"
        self.sql(name, *statements, kept)

    def url(self, name: str, user: str = "holdover") -> str:
        return f"postgresql+psycopg://{user}@/{name}?host={self.folder}"

    def sql(self, name: str, *statements: str) -> None:
        """Statements in a database, each a transaction of its own."""
        with psycopg.connect(
            host=str(self.folder), dbname=name, user="holdover", autocommit=True
        ) as cx:
            for statement in statements:
                cx.execute(statement.encode())

    def _run(self, program: str, *arguments: object) -> None:
        command: Sequence[str] = [
            *self._as,
            str(self._programs / program),
            *(str(argument) for argument in arguments),
        ]
        # Its output is the server's as well, which lives on: never a pipe to wait for.
        with (self.folder / "output").open("a+b") as output:
            ran = subprocess.run(
                command,
                cwd="/",
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                check=False,
            )
            output.seek(0)
            assert ran.returncode == 0, output.read().decode(errors="replace")
