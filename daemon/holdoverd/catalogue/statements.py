"""Statements on the hot path: written in Core, compiled once per dialect, run past Core.

Core's execution costs 30 to 100 µs a call in Python, more than the database takes; an ingest of
thousands of lines a second would spend its time there. What is lost is Core's type processing,
which Text, integers and floats do not have, and its wrapping of the driver's exceptions, which
`Dialect.translate` understands bare as well.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, closing
from importlib import import_module
from itertools import chain
from typing import Any

from sqlalchemy import (
    JSON,
    BindParameter,
    ClauseElement,
    ColumnElement,
    Connection,
    Select,
    Table,
    Text,
    bindparam,
    cast,
    func,
    insert,
    select,
)
from sqlalchemy.engine.interfaces import DBAPICursor

Row = Sequence[Any]
_Bind = Callable[[Row], Any]


class Statement:
    """One statement whose parameters come as rows of values, in the order of `keys`.

    `keys` are the names of its bind parameters; `build` makes it for a dialect's name.
    """

    def __init__(self, keys: Sequence[str], build: Callable[[str], ClauseElement]) -> None:
        self._keys = tuple(keys)
        self._build = build
        # {dialect name: (text, how a row becomes the driver's parameters, None: as it is)}
        self._compiled: dict[str, tuple[str, _Bind | None]] = {}

    def change(self, cx: Connection, row: Row) -> int:
        """Run it once; the number of rows it changed."""
        text, bind = self._for(cx)
        with self._cursor(cx) as cursor:
            cursor.execute(text, row if bind is None else bind(row))
            return cursor.rowcount

    def change_many(self, cx: Connection, rows: Sequence[Row]) -> int:
        """Run it for every row, at least one; the number of rows it changed."""
        text, bind = self._for(cx)
        with self._cursor(cx) as cursor:
            cursor.executemany(text, rows if bind is None else [bind(row) for row in rows])
            return cursor.rowcount

    def finds(self, cx: Connection, row: Row) -> bool:
        """Run a query; whether it found anything."""
        text, bind = self._for(cx)
        with self._cursor(cx) as cursor:
            cursor.execute(text, row if bind is None else bind(row))
            return cursor.fetchone() is not None

    def rows(self, cx: Connection, row: Row) -> Sequence[Row]:
        """Run a query, or a change that returns rows; all of them."""
        text, bind = self._for(cx)
        with self._cursor(cx) as cursor:
            cursor.execute(text, row if bind is None else bind(row))
            return cursor.fetchall()

    def value(self, cx: Connection, row: Row) -> Any:
        """Run a query; the first column of its first row, None where it found nothing."""
        text, bind = self._for(cx)
        with self._cursor(cx) as cursor:
            cursor.execute(text, row if bind is None else bind(row))
            found = cursor.fetchone()
            return None if found is None else found[0]

    def _cursor(self, cx: Connection) -> AbstractContextManager[DBAPICursor]:
        # Closed also when it raised: the traceback would keep it, and a cursor that lives keeps
        # the files of a connection open that has been closed.
        return closing(cx.connection.cursor())

    def _for(self, cx: Connection) -> tuple[str, _Bind | None]:
        name = cx.dialect.name
        found = self._compiled.get(name)
        if found is None:
            compiled: Any = self._build(name).compile(dialect=cx.dialect)
            if compiled.positional and len(compiled.positiontup) > len(self._keys):
                found = (self._numbered(cx), None)
            else:
                found = (compiled.string, self._bind_for(compiled))
            self._compiled[name] = found
        return found

    def _numbered(self, cx: Connection) -> str:
        """The text where parameters are places in `keys` (?1, ?2 …): one that occurs often is given
        once. Core writes such numbers as :1, in an order of its own.
        """
        numeric: Any = type(cx.dialect)
        compiled: Any = self._build(cx.dialect.name).compile(dialect=numeric(paramstyle="numeric"))
        places = {key: place for place, key in enumerate(self._keys, 1)}
        keys = compiled.positiontup
        return re.sub(r":(\d+)", lambda m: f"?{places[keys[int(m[1]) - 1]]}", compiled.string)

    def _bind_for(self, compiled: Any) -> _Bind | None:
        keys = self._keys
        if not compiled.positional:
            return lambda row: dict(zip(keys, row, strict=True))
        if tuple(compiled.positiontup) == keys:
            return None
        order = [keys.index(key) for key in compiled.positiontup]
        return lambda row: [row[index] for index in order]


def values(keys: Sequence[str]) -> dict[str, BindParameter[Any]]:
    """What INSERT and UPDATE of the named columns bind: parameters of the same names."""
    return {key: bindparam(key, unique=False) for key in keys}


def each_of(dialect: str, key: str) -> Select[Any]:
    """The texts of the JSON array that the parameter `key` holds: an IN of any length, in one text."""
    if dialect == "postgresql":
        array = func.json_array_elements_text(cast(bindparam(key, type_=Text), JSON))
    else:
        array = func.json_each(bindparam(key))
    return select(array.table_valued("value").c.value)


def inserting(table: Table, keys: Sequence[str]) -> Statement:
    """INSERT of the named columns; an existing key is the database's integrity error."""
    return Statement(keys, lambda _dialect: insert(table).values(values(keys)))


class Insertion:
    """INSERT of the named columns for any number of rows, many rows to a statement.

    The driver lets go of the interpreter's lock once per statement run, and has to win it back
    each time from an event loop that is busy with the next lines: for `executemany` that is once
    per row. And it spends longer on binding a small value than the database on storing it, so
    `shared` columns, which have one value for all rows, are bound once a statement.
    """

    # The largest fits every SQLite's 32,766 parameters with twenty columns and to spare; each is
    # compiled when first used.
    SIZES = (256, 16, 1)

    def __init__(self, table: Table, keys: Sequence[str], shared: Sequence[str] = ()) -> None:
        self._statements = [
            (size, _inserting_rows(table, keys, shared, size)) for size in self.SIZES
        ]

    def change_many(self, cx: Connection, rows: Sequence[Row], shared: Row = ()) -> None:
        """Insert every row, in order; `shared` are the values of those columns."""
        done = 0
        for size, statement in self._statements:
            while len(rows) - done >= size:
                chunk = rows[done : done + size]
                statement.change(cx, list(chain(shared, chain.from_iterable(chunk))))
                done += size


def _inserting_rows(
    table: Table, keys: Sequence[str], shared: Sequence[str], count: int
) -> Statement:
    names = [{key: f"{key}_{index}" for key in keys} for index in range(count)]
    return Statement(
        [*shared, *(name for row in names for name in row.values())],
        lambda _dialect: insert(table).values(
            [
                {**values(shared), **{key: bindparam(name) for key, name in row.items()}}
                for row in names
            ]
        ),
    )


def upserting(
    table: Table,
    keys: Sequence[str],
    *,
    at_first: Mapping[str, ColumnElement[Any]] | None = None,
    extra_keys: Sequence[str] = (),
) -> Statement:
    """INSERT, or where the primary key exists UPDATE of every other named column.

    `at_first` are columns given by an expression when the row is new and left alone after;
    `extra_keys` name the parameters in those expressions.
    """
    primary = [column.name for column in table.primary_key]

    def build(dialect: str) -> ClauseElement:
        # The same clause in both, but each dialect has a class of its own for it; imported here,
        # because PostgreSQL's takes longer to load than the rest of the catalogue.
        dialects = import_module(f"sqlalchemy.dialects.{dialect}")
        new: Any = dialects.insert(table)
        new = new.values({**values(keys), **(at_first or {})})
        upsert: ClauseElement = new.on_conflict_do_update(
            index_elements=primary,
            set_={key: new.excluded[key] for key in keys if key not in primary},
        )
        return upsert

    return Statement((*keys, *extra_keys), build)
