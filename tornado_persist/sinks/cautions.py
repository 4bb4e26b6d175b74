"""Finds problems of a database's tables that cost no rows now, but may later."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from typing import Any

from sqlalchemy import Connection, Inspector, Integer, String, Table, Text, inspect
from sqlalchemy.dialects import mysql
from sqlalchemy.exc import SAWarning
from sqlalchemy.types import BigInteger, SmallInteger, TypeEngine

from tornado_persist.records.models import MAX_TEXT
from tornado_persist.sinks.base import Caution
from tornado_persist.sinks.tables import SESSIONS, TABLES, TASKS

#: Bytes that the longest text in a row may take.
LONGEST_TEXT = 4 * MAX_TEXT
#: Characters that each of MySQL's types for long texts holds for certain.
_MYSQL_TEXTS: Mapping[type[TypeEngine[Any]], int] = {mysql.TINYTEXT: 63, mysql.TEXT: 16_383}


def of_tables(connection: Connection) -> Iterator[Caution]:
    """Columns that are narrower than what the service accepts, and a foreign key from tasks to sessions."""
    inspector: Inspector = inspect(connection)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SAWarning)  # a column of a type that SQLAlchemy does not know
        for table in TABLES.values():
            yield from _narrow_columns(inspector, table)
        for key in inspector.get_foreign_keys(TASKS.name):
            if key["referred_table"] == SESSIONS.name:
                yield Caution(
                    f"a foreign key from {TASKS.name} to {SESSIONS.name} rejects each task that arrives before its"
                    " session",
                    f"drop the constraint {key['name']}, unless every client sends sessions first",
                )


def _narrow_columns(inspector: Inspector, table: Table) -> Iterator[Caution]:
    found = {column["name"]: column["type"] for column in inspector.get_columns(table.name)}
    for column in table.c:
        problem = _narrower(found.get(column.name), column.type)
        if problem:
            yield Caution(
                f"{table.name}.{column.name} {problem}", "make it as wide, or such rows are rejected and set aside"
            )


def _narrower(found: TypeEngine[Any] | None, ours: TypeEngine[Any]) -> str:
    """What a column does not take, which ours does; empty if it takes all."""
    match ours:
        case Text():
            needed = MAX_TEXT
        case BigInteger() if isinstance(found, Integer) and not isinstance(found, BigInteger):
            return "does not take integers of 64 bits"
        case Integer() if isinstance(found, SmallInteger | mysql.TINYINT | mysql.MEDIUMINT):
            return "does not take integers of 32 bits"
        case _:
            needed = getattr(ours, "length", None) or getattr(getattr(ours, "impl", None), "length", None) or 0
    if not isinstance(found, String):
        return ""
    room = found.length or _MYSQL_TEXTS.get(type(found))
    return f"takes {room:,} characters for certain, and a row may have {needed:,}" if room and room < needed else ""
