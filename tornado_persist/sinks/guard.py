"""How several instances write the same rows: whoever writes last, the stored row is the same.

A stored row is all accepted updates of its key, merged by the merge rule in the order of their accept times. So each
field is compared with the time of its own last update, and the later one stays:

- the required fields, which every update has, with ``updated_at``;
- an optional field with ``<field>_at``. Null there means ``updated_at``, the usual case. :data:`NEVER` means that no
  update had the field yet. A row from the buffer has ``<field>_at`` only if its newest update lacks the field.

Two instances may accept updates of one row in the same microsecond. Neither is the later one then; field by field the
larger value stays, so that all instances agree. ``extra`` is merged name by name, with one time for all names.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from sqlalchemy import Column, Connection, MetaData, Table, inspect
from sqlalchemy.exc import DBAPIError
from sqlalchemy.schema import CreateTable

from tornado_persist.errors import SinkUnavailable
from tornado_persist.records.models import EXTRA, FIELD_TIMES, KEYS, Kind
from tornado_persist.sinks.tables import DELETIONS, TABLES, TimeType

#: Earlier than every accept time; as a row holds times.
NEVER = "1970-01-01T00:00:00.000000+00:00"

_METADATA = MetaData()


def _guarded(kind: Kind) -> Table:
    table = TABLES[kind].to_metadata(_METADATA)
    for name in FIELD_TIMES[kind].values():
        table.append_column(Column(name, TimeType()))
    return table


#: The tables with the times of their optional fields.
GUARDED: Mapping[Kind, Table] = {kind: _guarded(kind) for kind in TABLES}


def left_out(kind: Kind, fields: Sequence[str]) -> list[str]:
    """The times that a new row needs, as :data:`NEVER`, for the fields that it does not have."""
    return [time for name, time in FIELD_TIMES[kind].items() if name not in fields]


def assignments(
    kind: Kind, fields: Sequence[str], stored: Callable[[str], str], sent: Callable[[str], str], ordered: str
) -> list[tuple[str, str]]:
    """What an upsert of rows with ``fields`` assigns to a stored row, in this order: MySQL goes from left to right.

    ``stored`` and ``sent`` make a column's name an expression for its stored and its new value. ``ordered`` is a
    pattern for an expression that orders values in the same way everywhere.
    """
    new, old = sent("updated_at"), stored("updated_at")
    changes = []

    def later(name: str, new_time: str, old_time: str) -> str:
        value, before = sent(name), stored(name)
        larger = f"{ordered.format(value)} > {ordered.format(before)}"
        return (
            f"CASE WHEN {new_time} > {old_time} OR ({new_time} = {old_time} AND ({before} IS NULL OR {larger}))"
            f" THEN {value} ELSE {before} END"
        )

    for name in fields:
        if name not in {*KEYS[kind], *FIELD_TIMES[kind], *FIELD_TIMES[kind].values(), "created_at", "updated_at"}:
            changes.append((name, later(name, new, old)))
    for name, time in FIELD_TIMES[kind].items():
        own = stored(time)
        before = f"COALESCE({own}, {old})"
        if name not in fields:
            changes.append((time, f"CASE WHEN {new} > {old} THEN {before} ELSE {own} END"))
            continue
        at = sent(time) if time in fields else new
        changes.append((name, sent(name) if name == EXTRA else later(name, at, before)))
        if time in fields:
            last = f"WHEN {at} > {before} THEN {at} ELSE {before} END"
            changes.append((time, f"CASE WHEN {own} IS NULL AND {old} >= {new} THEN NULL {last}"))
        else:
            changes.append((time, f"CASE WHEN {new} >= {old} THEN NULL WHEN {own} < {new} THEN {new} ELSE {own} END"))
    first, last = sent("created_at"), stored("created_at")
    changes.append(("created_at", f"CASE WHEN {first} < {last} THEN {first} ELSE {last} END"))
    changes.append(("updated_at", f"CASE WHEN {new} > {old} THEN {new} ELSE {old} END"))
    return changes


def newer_assignments(
    kind: Kind, fields: Sequence[str], stored: Callable[[str], str], sent: Callable[[str], str]
) -> list[tuple[str, str]]:
    """What :func:`assignments` comes to where even the first of a row's updates is newer than the stored row: the usual
    case, without a comparison for each field.
    """
    changes = [(name, sent(name)) for name in fields if name not in {*KEYS[kind], "created_at", "updated_at"}]
    for name, time in FIELD_TIMES[kind].items():
        if name not in fields:
            changes.append((time, f"COALESCE({stored(time)}, {stored('updated_at')})"))
        elif time not in fields:
            changes.append((time, "NULL"))
    return [*changes, ("updated_at", sent("updated_at"))]


def is_newer(stored: Callable[[str], str], sent: Callable[[str], str]) -> str:
    """The condition for :func:`newer_assignments`."""
    return f"{sent('created_at')} > {stored('updated_at')}"


class Alteration(NamedTuple):
    """What a table needs to get its missing columns, or to be made."""

    table: str
    columns: list[str]  #: none: all of it is missing
    statements: list[str]

    def __str__(self) -> str:
        return f"columns {', '.join(self.columns)} of table {self.table}" if self.columns else f"table {self.table}"


def alterations(connection: Connection) -> list[Alteration]:
    """The tables that are there and lack columns for times, and that of deletions, within a transaction."""
    dialect = connection.dialect
    quote = dialect.identifier_preparer.quote
    inspector = inspect(connection)
    found = []
    for kind, table in GUARDED.items():
        if not inspector.has_table(table.name):
            continue
        known = {column["name"] for column in inspector.get_columns(table.name)}
        missing = [name for name in FIELD_TIMES[kind].values() if name not in known]
        added = [f"ADD COLUMN {quote(name)} {table.c[name].type.compile(dialect=dialect)} NULL" for name in missing]
        together = added if dialect.name == "sqlite" else [", ".join(added)]
        if missing:
            statements = [f"ALTER TABLE {quote(table.name)} {columns}" for columns in together]
            found.append(Alteration(table.name, missing, statements))
    if not inspector.has_table(DELETIONS.name):
        made = " ".join(str(CreateTable(DELETIONS).compile(dialect=dialect)).split())
        found.append(Alteration(DELETIONS.name, [], [made]))
    return found


def add_missing(connection: Connection, *, create: bool) -> None:
    """Add the missing columns for the times, and the table of deletions, within a transaction.

    Raises:
        SinkUnavailable: ``create`` is false and some are missing. The message gives the statements.
    """
    statements = [statement for alteration in alterations(connection) for statement in alteration.statements]
    if statements and not create:
        wanted = "; ".join(statements)
        raise SinkUnavailable(
            f'writers = "several" needs more columns or tables, and create_tables is off. Run: {wanted}'
        )
    for statement in statements:
        connection.exec_driver_sql(statement)


def ensure(
    connection: Connection, transaction: Callable[[], Any], also: Callable[[Connection], None], *, create: bool
) -> None:
    """:func:`add_missing` in ``transaction``, then ``also``; another instance may do the same at the same time."""
    for attempt in range(3):
        try:
            with transaction():
                add_missing(connection, create=create)
                also(connection)
            return
        except DBAPIError:
            if attempt == 2 or connection.invalidated:
                raise
