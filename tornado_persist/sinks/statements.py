"""The parts of upserts that the SQL sinks share: rows by their fields, the clause, ``extra``."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from copy import copy
from datetime import datetime
from operator import attrgetter
from typing import Any

from msgspec import Raw
from sqlalchemy import Column, ColumnElement, Connection, Table, Text, cast, func, null, select, tuple_, type_coerce

from tornado_persist.records.models import EXTRA, KEYS, Kind, Row, key_of, merge_extra_text
from tornado_persist.sinks import guard
from tornado_persist.sinks.encoders import batched
from tornado_persist.sinks.tables import TimeType

#: Keys in one lookup query.
LOOKUP = 500


def group(kind: Kind, rows: Sequence[Row]) -> Iterator[tuple[Sequence[str], list[Row]]]:
    """The rows by the set of fields they carry, each group sorted by key; the fields in the order of its rows.

    Writers that take their locks in one order do not deadlock. Those of rows with different fields still may: one
    statement comes before the other.
    """
    shapes = [*dict.fromkeys(map(type, rows))]
    groups: dict[type[Row], list[Row]] = {shape: [] for shape in shapes}
    if len(shapes) == 1:  # the usual case
        groups[shapes[0]] = [*rows]
    else:
        for row in rows:
            groups[type(row)].append(row)
    for shape, members in groups.items():
        # By the last column first: two sorts of texts take a third of the time of one by pairs.
        for name in reversed(KEYS[kind]):
            members.sort(key=attrgetter(name))
        yield shape.__struct_fields__, members


def needed_columns(table: Table) -> list[Column[Any]]:
    """The columns that a table must have; ``extra`` is needed by rows that have it alone."""
    return [column for column in table.c if column.name != EXTRA]


def with_stored_extra(connection: Connection, kind: Kind, rows: Sequence[Row], *, guarded: bool) -> list[Row]:
    """Copies of the rows, with the ``extra`` that the table must hold afterwards.

    It merges name by name, which no statement can say for every database. The rows read stay locked until the commit,
    so another writer cannot come between.
    """
    columns = guard.GUARDED[kind].c
    key = [columns[name] for name in KEYS[kind]]
    time: ColumnElement[Any] = func.coalesce(columns.extra_at, columns.updated_at) if guarded else null()
    stored: dict[tuple[str, ...], tuple[str | None, datetime | None]] = {}
    for some in batched([key_of(kind, row) for row in rows], LOOKUP):
        query = select(*key, cast(columns.extra, Text), type_coerce(time, TimeType))
        query = query.where(tuple_(*key).in_(some)).with_for_update()
        stored.update((tuple(map(str, found[:-2])), (found[-2], found[-1])) for found in connection.execute(query))
    whole = []
    for row in rows:
        merged = copy(row)
        before, since = stored.get(key_of(kind, row), (None, None))
        sent: Raw = row.extra  # type: ignore[attr-defined]
        if before and since and since > datetime.fromisoformat(row.get("extra_at") or row["updated_at"]):
            before, sent = bytes(sent).decode(), Raw(before.encode())
        merged.extra = merge_extra_text(before, sent)  # type: ignore[attr-defined]
        whole.append(merged)
    return whole


def updated(kind: Kind, fields: Sequence[str]) -> list[str]:
    """Those of ``fields`` that an update changes in a stored row."""
    return [name for name in fields if name not in (*KEYS[kind], "created_at")]


def quoted(name: str) -> str:
    """A quoted name in standard SQL."""
    return f'"{name}"'


def on_conflict(kind: Kind, changes: Sequence[tuple[str, str]]) -> str:
    """The clause that turns an INSERT into an upsert, in PostgreSQL and SQLite."""
    assigned = ", ".join(f"{quoted(name)} = {value}" for name, value in changes)
    return f"ON CONFLICT ({', '.join(map(quoted, KEYS[kind]))}) DO UPDATE SET {assigned}"
