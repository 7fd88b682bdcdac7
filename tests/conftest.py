"""What tests of several folders share: the one PostgreSQL of a run, and catalogues in it.

A test that takes `migrated` runs on SQLite and on PostgreSQL. A file about one of them says so by
a fixture `database` of its own.
"""

from __future__ import annotations

import os
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from sqlalchemy import Connection
from xdist.remote import Producer
from xdist.scheduler import LoadScopeScheduling

from holdoverd.catalogue.dialect import dialect_for
from holdoverd.catalogue.store import Catalogue
from tests.needs import NO_POSTGRESQL
from tests.postgres import Postgres

# Daemons, keepers and agents are started hundreds of times here, and find their modules compiled, as
# installed ones do.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)

# A shell that starts us in the background has us ignore Ctrl-C, and so would all that we start. xdist's
# workers run tests in their main thread.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# What is right is right however long it takes: a busy machine stops any process for a second.
settings.register_profile("holdover", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("holdover")


class _ByFolder(LoadScopeScheduling):
    """A folder's tests run in one worker: they share machines, servers and browsers."""

    def _split_scope(self, nodeid: str) -> str:
        return nodeid.partition("::")[0].rpartition("/")[0]


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Producer) -> LoadScopeScheduling:
    return _ByFolder(config, log)


@pytest.fixture(autouse=True)
def _same_folder() -> Iterator[None]:
    """Some of what is tested changes the folder it stands in, like any program of root's."""
    here = os.getcwd()
    yield
    os.chdir(here)


@pytest.fixture(scope="session")
def postgres() -> Iterator[Postgres]:
    if NO_POSTGRESQL is not None:
        pytest.skip(NO_POSTGRESQL)
    server = Postgres()
    yield server
    server.remove()


@pytest.fixture(params=["sqlite", pytest.param("postgresql", marks=pytest.mark.slow)])
def database(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def url(database: str, tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[str]:
    """The address of a database with nothing in it."""
    if database == "sqlite":
        yield f"sqlite:///{tmp_path}/catalogue.db"
        return
    server: Postgres = request.getfixturevalue("postgres")
    name = server.create()
    yield server.url(name)
    server.drop(name)


@pytest.fixture(scope="session")
def sqlite_template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A catalogue freshly migrated; a copy costs a thousandth of the migrations."""
    path = tmp_path_factory.mktemp("template") / "catalogue.db"
    Catalogue.open(f"sqlite:///{path}").close()
    return path


@pytest.fixture(scope="session")
def postgresql_template(postgres: Postgres) -> str:
    name = postgres.create()
    Catalogue.open(postgres.url(name)).close()
    return name


@pytest.fixture
def migrated(database: str, tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[str]:
    """The address of a catalogue with nothing in it."""
    template: Any = request.getfixturevalue(f"{database}_template")
    if database == "sqlite":
        shutil.copy(template, tmp_path)
        yield f"sqlite:///{tmp_path}/catalogue.db"
        return
    # A copy would take a third of a second here, emptying it a thousandth of one.
    server: Postgres = request.getfixturevalue("postgres")
    yield server.url(template)
    server.empty(template)


@pytest.fixture
def cx(migrated: str) -> Iterator[Connection]:
    """A connection in one write transaction, which is dropped at the end."""
    dialect = dialect_for(migrated)
    engine = dialect.writer_engine()
    with engine.connect() as connection:
        connection.begin()
        yield connection
        connection.rollback()
    engine.dispose()
    dialect.close()
