"""Statements on the hot path: written in Core, compiled once per dialect, run past Core.

Core's own execution costs 50 to 100 µs a call in Python, more than the database takes; an ingest
of thousands of lines a second would spend its time there. What is lost is Core's type processing,
which Text, integers and floats do not have.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from sqlalchemy import (
    BindParameter,
    ClauseElement,
    ColumnElement,
    Connection,
    CursorResult,
    Table,
    bindparam,
    insert,
)
from sqlalchemy.dialects import postgresql, sqlite

Row = Sequence[object]


class Statement:
    """One statement whose parameters come as rows of values, in the order of `keys`.

    `keys` are the names of its bind parameters; `build` makes it for a dialect's name.
    """

    def __init__(self, keys: Sequence[str], build: Callable[[str], ClauseElement]) -> None:
        self._keys = tuple(keys)
        self._build = build
        # {dialect name: (text, order of the keys, None where the driver takes them by name)}
        self._compiled: dict[str, tuple[str, tuple[int, ...] | None]] = {}

    def one(self, cx: Connection, row: Row) -> CursorResult[Any]:
        """Run it once."""
        text, order = self._for(cx)
        return cx.exec_driver_sql(text, self._bind(row, order))

    def many(self, cx: Connection, rows: Sequence[Row]) -> int:
        """Run it for every row, at least one; the number of rows it changed."""
        text, order = self._for(cx)
        return cx.exec_driver_sql(text, [self._bind(row, order) for row in rows]).rowcount

    def _for(self, cx: Connection) -> tuple[str, tuple[int, ...] | None]:
        name = cx.dialect.name
        found = self._compiled.get(name)
        if found is None:
            compiled: Any = self._build(name).compile(dialect=cx.dialect)
            order = None
            if compiled.positional:
                order = tuple(self._keys.index(key) for key in compiled.positiontup)
            found = self._compiled[name] = (compiled.string, order)
        return found

    def _bind(self, row: Row, order: tuple[int, ...] | None) -> Any:
        if order is None:
            return dict(zip(self._keys, row, strict=True))
        return tuple([row[index] for index in order])


def values(keys: Sequence[str]) -> dict[str, BindParameter[Any]]:
    """What INSERT and UPDATE of the named columns bind: parameters of the same names."""
    return {key: bindparam(key, unique=False) for key in keys}


def inserting(table: Table, keys: Sequence[str]) -> Statement:
    """INSERT of the named columns; an existing key is the database's integrity error."""
    return Statement(keys, lambda _dialect: insert(table).values(values(keys)))


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
        # The same clause in both, but each dialect has a class of its own for it.
        new: Any = (sqlite if dialect == "sqlite" else postgresql).insert(table)
        new = new.values({**values(keys), **(at_first or {})})
        upsert: ClauseElement = new.on_conflict_do_update(
            index_elements=primary,
            set_={key: new.excluded[key] for key in keys if key not in primary},
        )
        return upsert

    return Statement((*keys, *extra_keys), build)
