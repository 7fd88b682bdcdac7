"""Statements on the hot path: written in Core, compiled once per dialect, run past Core.

Core's execution costs 30 to 100 µs a call in Python, more than the database takes; an ingest of
thousands of lines a second would spend its time there. What is lost is Core's type processing,
which Text, integers and floats do not have, and its wrapping of the driver's exceptions, which
`Dialect.translate` understands bare as well.
"""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, closing
from importlib import import_module
from itertools import chain
from typing import Any

from sqlalchemy import (
    JSON,
    BindParameter,
    ClauseElement,
    Column,
    ColumnElement,
    Connection,
    Select,
    Table,
    Text,
    bindparam,
    cast,
    column,
    func,
    insert,
    select,
    text,
    update,
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

    def rows(self, cx: Connection, row: Row) -> Sequence[Row]:
        """Run a query, or a change that returns rows; all of them."""
        text, bind = self._for(cx)
        with self._cursor(cx) as cursor:
            cursor.execute(text, row if bind is None else bind(row))
            return cursor.fetchall()

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


Given = Mapping[str, ColumnElement[Any]]
"""The columns of rows that are given as values, by the names that they were asked for with."""


class Many:
    """One statement about many rows that are given as values: ``… FROM (VALUES …) AS given``.

    The driver lets go of the interpreter's lock once per statement run, and has to win it back
    each time from an event loop that is busy with the next lines: for `executemany` that is once
    per row.

    `columns` are named after what they are compared with or stored in, which says their types;
    `build` makes the statement of them, for rows none of which is of nulls alone: with such ones they
    are filled up, so that a few texts serve for every number of rows. `shared` parameters stand
    before the rows: values that all have in common are bound once a statement, since the driver
    spends longer on binding a small value than the database on storing it.
    """

    # The largest fits every SQLite's 32,766 parameters with thirty columns; as many as that of one
    # session's lines may come at a time.
    SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)
    # Up to here what is missing is filled up.
    _FILLED = 256

    def __init__(
        self,
        columns: Mapping[str, Column[Any]],
        build: Callable[[Given], ClauseElement],
        shared: Sequence[str] = (),
    ) -> None:
        self._columns = columns
        self._build = build
        self._shared = tuple(shared)
        # {(dialect name, size): text}
        self._texts: dict[tuple[str, int], str] = {}

    def change(self, cx: Connection, rows: Sequence[Row], shared: Row = ()) -> int:
        """Run it for every row, in order; the number of rows it changed."""
        changed = 0
        for statement, values in self._filled(cx, rows, shared):
            with closing(cx.connection.cursor()) as cursor:
                cursor.execute(statement, values)
                changed += cursor.rowcount
        return changed

    def values(self, cx: Connection, rows: Sequence[Row], shared: Row = ()) -> list[Any]:
        """Run a query that finds one value: that of each run."""
        found = []
        for statement, values in self._filled(cx, rows, shared):
            with closing(cx.connection.cursor()) as cursor:
                cursor.execute(statement, values)
                row = cursor.fetchone()
                found.append(None if row is None else row[0])
        return found

    def _filled(
        self, cx: Connection, rows: Sequence[Row], shared: Row
    ) -> Iterator[tuple[str, list[Any]]]:
        first = 0
        while left := len(rows) - first:
            if left <= self._FILLED:
                size = next(size for size in self.SIZES if size >= left)
            else:
                size = next(size for size in reversed(self.SIZES) if size <= left)
            chunk = rows[first : first + size]
            first += len(chunk)
            values = [*shared, *chain.from_iterable(chunk)]
            values += [None] * (len(self._columns) * (size - len(chunk)))
            yield self._text(cx, size), values

    def _text(self, cx: Connection, size: int) -> str:
        name = cx.dialect.name
        text = self._texts.get((name, size))
        if text is None:
            before, row, after = self._parts(cx)
            text = self._texts[name, size] = before + ", ".join([row] * size) + after
        return text

    def _parts(self, cx: Connection) -> tuple[str, str, str]:
        """The text for one row, cut around it: Core would take milliseconds for many."""
        own: Any = cx.dialect
        dialect = own if own.positional else type(own)(paramstyle="format")
        compiled: Any = self._build(self._given()).compile(dialect=dialect)
        places = (*self._shared, *self._columns)
        assert tuple(compiled.positiontup) == places, "the shared first, then a row"
        before, opening, rest = compiled.string.partition(_VALUES)
        row, closing_, after = rest.partition(_AS_GIVEN)
        return before + opening, row, closing_ + after

    def _given(self) -> Given:
        types = [column.type for column in self._columns.values()]
        names = zip(self._columns, types, strict=True)
        row = text(f"{_VALUES[1:]}({', '.join(f':{name}' for name in self._columns)})")
        given = row.bindparams(*(bindparam(name, type_=of) for name, of in names))
        # Both databases call them so; only one would let us give them names.
        named = (column(f"column{place}", of) for place, of in enumerate(types, 1))
        return dict(zip(self._columns, given.columns(*named).subquery("given").c, strict=True))


_VALUES, _AS_GIVEN = "(VALUES ", ") AS given"


def inserting_many(table: Table, keys: Sequence[str], shared: Sequence[str] = ()) -> Many:
    """INSERT of the named columns for any number of rows; the first of `keys` is never null.

    `shared` are columns that have one value for all rows.
    """

    def build(given: Given) -> ClauseElement:
        alike = [bindparam(key, type_=table.c[key].type) for key in shared]
        rows = select(*alike, *given.values()).where(given[keys[0]].is_not(None))
        return insert(table).from_select([*shared, *keys], rows)

    return Many({key: table.c[key] for key in keys}, build, shared)


def updating_many(table: Table, keys: Sequence[str], where: Sequence[str]) -> Many:
    """UPDATE of the named columns in the rows that have the values of `where`, which are among them."""
    return Many(
        {key: table.c[key] for key in keys},
        lambda given: (
            update(table)
            .where(*(table.c[key] == given[key] for key in where))
            .values({key: given[key] for key in keys if key not in where})
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
