"""The hot statements exist for both databases, whichever way the driver takes its parameters."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.dialects.postgresql import psycopg

from holdoverd.catalogue import changes, instances, messages, rows, searched, sessions, tokens
from holdoverd.catalogue.statements import Many, Statement


@dataclass
class Driver:
    """A connection's cursor that keeps what it was given."""

    dialect: Any
    ran: list[tuple[str, Any]]
    rowcount: int = 1

    @property
    def connection(self) -> Driver:
        return self

    def cursor(self) -> Driver:
        return self

    def execute(self, text: str, parameters: Any) -> None:
        self.ran.append((text, parameters))

    def close(self) -> None:
        self.ran.append(("closed", None))


def statements() -> Iterator[tuple[str, Statement]]:
    for module in (changes, instances, messages, rows, sessions, tokens):
        for name, value in vars(module).items():
            if isinstance(value, Statement):
                yield f"{module.__name__}.{name}", value
    everything = (
        "owner",
        "state",
        "agent",
        "contains",
        "begins",
        "before_at",
        "before_id",
        "count",
    )
    yield "sessions._listing", sessions._listing(everything)


def of_many() -> Iterator[tuple[str, Many]]:
    for module in (changes, messages, searched):
        for name, value in vars(module).items():
            if isinstance(value, Many):
                yield f"{module.__name__}.{name}", value
    for keys, with_messages in ((("last_seq", "title"), True), (("state",), False), ((), False)):
        yield f"changes._fences({keys})", changes._fences(keys, with_messages)


STATEMENTS = list(statements())
OF_MANY = list(of_many())


def test_all_are_looked_at() -> None:
    assert len(STATEMENTS) > 8
    assert len(OF_MANY) > 8


@pytest.mark.parametrize(("name", "statement"), STATEMENTS)
@pytest.mark.parametrize(
    "dialect", [sqlite.dialect(), psycopg.dialect()], ids=["sqlite", "psycopg"]
)
def test_every_value_arrives_at_its_parameter(
    name: str, statement: Statement, dialect: Any
) -> None:
    row = [f"value of {key}" for key in statement._keys]
    driver = Driver(dialect, [])
    assert statement.change(driver, row) == 1  # type: ignore[arg-type]
    (text, parameters), closed = driver.ran
    assert closed == ("closed", None)
    if dialect.name == "postgresql":
        assert parameters == dict(zip(statement._keys, row, strict=True))
        assert all(f"%({key})" in text for key in statement._keys)
    else:
        compiled = statement._build("sqlite").compile(dialect=dialect)
        places = re.findall(r"\?(\d*)", text)
        assert set(parameters) == set(row)
        # ?3 is the third parameter, wherever it stands; a bare ? is the next one.
        assert [parameters[int(n) - 1 if n else at] for at, n in enumerate(places)] == [
            f"value of {key}"
            for key in compiled.positiontup  # type: ignore[attr-defined]
        ]


@pytest.mark.parametrize(("name", "many"), OF_MANY)
@pytest.mark.parametrize(("count", "times"), [(1, 1), (3, 1), (256, 1), (300, 2), (2500, 4)])
@pytest.mark.parametrize(
    "dialect", [sqlite.dialect(), psycopg.dialect()], ids=["sqlite", "psycopg"]
)
def test_every_row_arrives_at_its_place(
    name: str, many: Many, count: int, times: int, dialect: Any
) -> None:
    driver = Driver(dialect, [])
    columns = list(many._columns)
    rows = [[f"{key} of {number}" for key in columns] for number in range(count)]
    many.change(driver, rows, many._shared)  # type: ignore[arg-type]
    runs = [ran for ran in driver.ran if ran[0] != "closed"]
    assert len(runs) == times
    assert max(len(parameters) for _, parameters in runs) <= 32766
    assert driver.ran.count(("closed", None)) == len(runs)
    arrived: list[list[Any]] = []
    for text, parameters in runs:
        before, _, given = text.partition("(VALUES ")
        marks = r"\?" if dialect.name == "sqlite" else r"%s(?:::[A-Z ]+)?"
        one = rf"\({', '.join([marks] * len(columns))}\)"
        assert re.match(rf"(?:{one}(?:, |\) AS given))+", given), text
        assert len(re.findall(marks, text)) == len(parameters)
        assert len(re.findall(marks, before)) == len(many._shared)
        assert tuple(parameters[: len(many._shared)]) == many._shared
        values = parameters[len(many._shared) :]
        arrived += [values[at : at + len(columns)] for at in range(0, len(values), len(columns))]
    filling = [None] * len(columns)
    assert [row for row in arrived if row != filling] == rows
    assert arrived[:count] == rows[: len(arrived)]


def test_upserts_are_spelled_alike_in_both() -> None:
    upsert = dict(STATEMENTS)["holdoverd.catalogue.changes._UPSERT_THREAD"]
    for dialect in (sqlite.dialect(), postgresql.dialect()):
        text = str(upsert._build(dialect.name).compile(dialect=dialect))
        tail = text.partition(" ON CONFLICT (session, thread) DO UPDATE SET ")[2]
        assert [part.split(" = ")[0] for part in tail.split(", ")] == [
            "parent_thread",
            "title",
            "n",
            "state",
        ]  # not `position`: a thread stays where it was opened


def test_starting_loads_neither_migrations_nor_the_other_database() -> None:
    """Each would add a tenth of a second and more to every start of an instance."""
    program = (
        f"import sys; sys.path[:0] = {[path for path in sys.path if path]!r}\n"
        "from holdoverd.catalogue import instances, sessions, store, tokens\n"
        "print([n for n in ('alembic', 'sqlalchemy.dialects.postgresql') if n in sys.modules])"
    )
    ran = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert ran.stdout.strip() == "[]"
