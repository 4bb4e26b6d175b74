"""What a sink holds, and what writing does to it: the model that sinks are compared with."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeAlias

from tornado_persist.records.models import DEFAULTS, KEYS, KINDS, Batch, Fields, Kind, Row, Session, Task

#: What a sink holds: its rows by kind and key.
Stored: TypeAlias = dict[Kind, dict[str, Fields]]

#: Every field that a stored row has.
FIELDS: Mapping[Kind, tuple[str, ...]] = {
    "session": (*Session.__annotations__, "created_at", "updated_at"),
    "task": (*Task.__annotations__, "created_at", "updated_at"),
}


def complete(kind: Kind, row: Row | Fields) -> Fields:
    """A row as it is stored when it is new: what it leaves out has its default."""
    return {**dict.fromkeys(FIELDS[kind]), **DEFAULTS[kind], **row}


def merge(stored: Stored, batch: Batch) -> None:
    """What writing ``batch`` does to ``stored``: the merge rule, in its plainest form."""
    for kind in KINDS:
        for row in batch.rows(kind):
            key = row[KEYS[kind]]
            old = stored[kind].get(key)
            stored[kind][key] = complete(kind, row) if old is None else {**old, **row, "created_at": old["created_at"]}


def nothing() -> Stored:
    """What an empty sink holds."""
    return {kind: {} for kind in KINDS}
