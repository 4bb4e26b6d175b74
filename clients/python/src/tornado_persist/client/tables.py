"""Rows of tables: a pandas DataFrame, or any iterable of mappings."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from tornado_persist.client.values import FIELDS, Kind, Row, check


def rows_of(kind: Kind, table: Any, columns: Mapping[str, str], constants: Mapping[str, Any]) -> Iterator[Row]:
    """The rows, under the names of fields. ``columns``: fields by the names of their columns.

    pandas is not imported for this: a DataFrame is what has ``columns`` and ``itertuples``.

    Raises:
        TypeError: there is no such field or column, or a required field is nowhere; before the first row for a
            DataFrame.
    """
    if unknown := {*columns.values(), *constants} - FIELDS[kind]:
        check(kind, {*unknown, *FIELDS[kind]})
    if hasattr(table, "itertuples"):
        return _frame(kind, table, columns, constants)
    return _mappings(kind, table, columns, constants)


def _frame(kind: Kind, frame: Any, columns: Mapping[str, str], constants: Mapping[str, Any]) -> Iterator[Row]:
    if missing := columns.keys() - set(frame.columns):
        raise TypeError(f"the table has no column {', '.join(map(str, sorted(missing)))}")
    named = {name: columns.get(name, name) for name in frame.columns}
    taken = {name: field for name, field in named.items() if field in FIELDS[kind] and field not in constants}
    if len(set(taken.values())) < len(taken):
        raise TypeError("two columns hold the same field")
    check(kind, {*taken.values(), *constants})
    rows = frame[list(taken)].itertuples(index=False, name=None)
    return ({**dict(zip(taken.values(), values)), **constants} for values in rows)


def _mappings(kind: Kind, rows: Any, columns: Mapping[str, str], constants: Mapping[str, Any]) -> Iterator[Row]:
    for row in rows:
        if not isinstance(row, Mapping):
            raise TypeError(f"a row is of type {type(row).__name__}, and must be a mapping")
        named = {columns.get(name, name): value for name, value in row.items()}
        yield {**{name: value for name, value in named.items() if name in FIELDS[kind]}, **constants}
