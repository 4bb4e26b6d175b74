"""Reading from a SQL database: the same statements for all three."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import AbstractContextManager, suppress
from datetime import UTC, datetime
from functools import partial
from itertools import accumulate, takewhile
from typing import Any

import msgspec
from sqlalchemy import (
    JSON,
    ColumnElement,
    Connection,
    LargeBinary,
    Select,
    Text,
    bindparam,
    cast,
    column,
    false,
    func,
    literal,
    literal_column,
    or_,
    select,
    table,
    text,
    tuple_,
)
from sqlalchemy.exc import DataError, DBAPIError
from sqlalchemy.types import NullType

from tornado_persist.errors import SinkUnavailable
from tornado_persist.records.models import EXTRA, KEYS, KINDS, Fields, Kind
from tornado_persist.records.queries import Query
from tornado_persist.records.times import in_utc, stamp
from tornado_persist.sinks.reader import Page, Reader
from tornado_persist.sinks.tables import TABLES, TimeType

_TYPES = {column.name: column.type for table in TABLES.values() for column in table.c}
_OBJECTS = {name for name, type_ in _TYPES.items() if isinstance(type_, JSON)}
_TIMES = {name for name, type_ in _TYPES.items() if isinstance(type_, TimeType)}
#: What may be long.
_LONG = _OBJECTS | {name for name, type_ in _TYPES.items() if isinstance(type_, Text)}
#: With so few rows their lengths need not be asked for first.
_FEW = 1


class SQLReader(Reader):
    """Reads over one connection. Columns are named, and those that a table does not have are left out."""

    def __init__(
        self,
        connect: Callable[[], Connection],
        begin: Callable[[Connection], None],
        faults: Callable[[], AbstractContextManager[None]],
        openings: Callable[[], int],
    ) -> None:
        """``begin`` begins a read-only transaction with one snapshot and a time limit; ``faults`` translates errors.

        ``openings``: how often the sink was opened. After another time this connection may lead to another server.
        """
        self._connect, self._begin, self._faults, self._openings = connect, begin, faults, openings
        self._opened_at = 0
        self._connection: Connection | None = None
        self._columns: dict[Kind, set[str]] = {}

    def open(self) -> None:
        self.close()
        self._opened_at = self._openings()
        with self._faults():
            self._connection = self._connect()
        for kind in KINDS:
            self._columns[kind] = self._run(partial(_columns, kind))

    def close(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            with suppress(Exception):
                connection.close()
            with suppress(Exception):
                connection.engine.dispose()

    def page(self, query: Query, max_bytes: int) -> Page:
        found: Page = self._run(lambda connection: self._page(connection, query, max_bytes))
        return found

    def count(self, query: Query) -> int:
        def ask(connection: Connection) -> int:
            statement = select(func.count()).select_from(_table(query.kind))
            conditions = self._conditions(connection, query)
            return int(connection.execute(statement.where(*conditions)).scalar_one())

        found: int = self._run(ask)
        return found

    def count_tasks(self, session_ids: Collection[str]) -> Mapping[str, Mapping[str, int]]:
        session_id, status = _column("session_id"), _column("status")
        statement = select(session_id, status, func.count()).select_from(_table("task"))
        statement = statement.where(session_id.in_(_values(session_ids))).group_by(session_id, status)
        found: dict[str, dict[str, int]] = {}
        for key, name, count in self._run(lambda connection: connection.execute(statement).fetchall()):
            found.setdefault(str(key), {})[str(name)] = int(count)
        return found

    def _run(self, function: Callable[[Connection], Any]) -> Any:
        if self._opened_at != self._openings():
            # The sink may write to a new primary by now, and the old one may still answer with what it had.
            self.open()
        connection = self._connection
        with self._faults():
            if connection is None or connection.invalidated:
                raise SinkUnavailable("the connection is closed")
            connection.begin()
            try:
                self._begin(connection)
                return function(connection)
            finally:
                with suppress(Exception):  # the next read finds out
                    connection.rollback()

    def _page(self, connection: Connection, query: Query, max_bytes: int) -> Page:
        names = [name for name in query.shown() if name in self._columns[query.kind]]
        conditions = self._conditions(connection, query)
        if query.after is not None:
            conditions.append(_after(connection, query, query.after))
        key = [_column(name) for name in _open_key(query)]
        order = [column("sheet_name"), column("row_index"), *key] if query.by_row else key

        def ordered(statement: Select[Any], limit: int) -> Any:
            return connection.execute(
                statement.select_from(_table(query.kind)).where(*conditions).order_by(*order).limit(limit)
            )

        count, more = query.limit, False
        long = [name for name in names if name in _LONG]
        if long and query.limit > _FEW:
            # The lengths first: a thousand rows of the longest texts would be gigabytes.
            sizes = ordered(select(_size(connection, long)), query.limit + 1).scalars().all()
            fitting = len([*takewhile(lambda total: total <= max_bytes, accumulate(map(int, sizes[: query.limit])))])
            count = max(1, fitting)
            more = len(sizes) > count
        wanted = {name: _as_text(connection, name) for name in names}
        try:
            found = ordered(select(*wanted.values()), count + (not more)).fetchall()
        except DataError as exc:
            # PostgreSQL has times that Python has not: infinity, and years before 1 and after 9999.
            wanted |= {name: cast(column(name), Text).label(None) for name in names if name in _TIMES}
            try:
                found = ordered(select(*wanted.values()), count + (not more)).fetchall()
            except DBAPIError:
                raise exc from None
        more = more or len(found) > count
        return Page([_row(names, values) for values in found[:count]], more)

    def _conditions(self, connection: Connection, query: Query) -> list[ColumnElement[bool]]:
        mysql = _is_mysql(connection)
        conditions: list[ColumnElement[bool]] = []
        for name, values in query.where.items():
            conditions.append(column(name).in_(_values(values)))
            if mysql and name not in KEYS[query.kind]:
                # The usual collations take different texts for the same.
                exact = cast(literal_column(f"CONVERT(`{name}` USING utf8mb4)"), LargeBinary)
                conditions.append(exact.in_([cast(_value(value), LargeBinary) for value in values]))
        conditions += [column(name).not_in(_values(values)) for name, values in query.without.items()]
        for name, time in query.since.items():
            conditions.append(column(name) >= _value(_time(connection, time)))
        return conditions


def _columns(kind: Kind, connection: Connection) -> set[str]:
    return {*connection.execute(select(text("*")).select_from(_table(kind)).where(false())).keys()}


def _table(kind: Kind) -> Any:
    # Without the columns' types: nothing is cast, neither what is compared nor what is read.
    return table(TABLES[kind].name)


def _column(name: str) -> ColumnElement[Any]:
    return column(name)


def _value(value: Any) -> ColumnElement[Any]:
    return bindparam(None, value, type_=NullType(), unique=True)


def _values(values: Collection[str]) -> ColumnElement[Any]:
    return bindparam(None, [*values], type_=NullType(), unique=True, expanding=True)


def _open_key(query: Query) -> tuple[str, ...]:
    """The part of the key that orders the rows: MariaDB sorts them all if the order names what is the same in each."""
    first, *rest = KEYS[query.kind]
    return tuple(rest) if rest and len(query.where.get(first, ())) == 1 else KEYS[query.kind]


def _after(connection: Connection, query: Query, key: tuple[str, ...]) -> ColumnElement[bool]:
    """The rows after a key, in a form for which the database begins at the right place of its index."""
    names = _open_key(query)
    columns, values = [*map(_column, names)], [*map(_value, key[-len(names) :])]
    if len(names) == 1:
        return columns[0] > values[0]
    if not _is_mysql(connection):
        return tuple_(*columns) > tuple_(*values)
    # It reads the index from its beginning for a comparison of rows.
    return or_(columns[0] > values[0], (columns[0] == values[0]) & (columns[1] > values[1]))


def _size(connection: Connection, names: Sequence[str]) -> ColumnElement[int]:
    """Bytes of a row's long values; in SQLite characters."""
    length = func.length if connection.dialect.name == "sqlite" else func.octet_length
    total: ColumnElement[int] = literal(0, literal_execute=True)
    for name in names:
        total = total + func.coalesce(length(_as_text(connection, name)), literal_column("0"))
    return total


def _as_text(connection: Connection, name: str) -> ColumnElement[Any]:
    if name in _OBJECTS and connection.dialect.name == "postgresql":
        return cast(column(name), Text).label(None)
    return column(name)


def _is_mysql(connection: Connection) -> bool:
    return connection.dialect.name in ("mysql", "mariadb")


def _time(connection: Connection, time: str) -> Any:
    if connection.dialect.name == "sqlite":
        return time
    at = datetime.fromisoformat(time)
    return at.replace(tzinfo=None) if _is_mysql(connection) else at


def _row(names: Sequence[str], values: Sequence[Any]) -> Fields:
    row: Fields = dict(zip(names, values, strict=True))
    for name, shown in _SHOWN.items():
        if (value := row.get(name)) is not None:
            row[name] = shown(value)
    if EXTRA in row and row[EXTRA] is None:
        del row[EXTRA]
    return row


def _object(value: Any) -> Any:
    """Free JSON as its text; what somebody else has stored and is no JSON, as it is."""
    if not isinstance(value, str):
        return value
    raw = value.encode()
    try:
        msgspec.json.decode(raw, type=msgspec.Raw)
    except msgspec.DecodeError:
        return value
    return msgspec.Raw(raw)


def _time_shown(value: Any) -> Any:
    if isinstance(value, str):
        try:
            return in_utc(value)
        except ValueError:
            return value
    if isinstance(value, datetime):
        return stamp(value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC))
    return value


#: How the values of some fields become those of a row.
_SHOWN: Mapping[str, Callable[[Any], Any]] = dict.fromkeys(_OBJECTS, _object) | dict.fromkeys(_TIMES, _time_shown)
