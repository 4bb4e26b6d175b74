"""Rows as sinks are given them."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

from tornado_persist.records.models import SHAPES, Fields, Kind, Row
from tornado_persist.records.times import stamp

T0 = datetime(2025, 9, 30, 16, 35, 0, 123456, tzinfo=UTC)
SECOND = timedelta(seconds=1)


def session(session_id: str = "s", /, *, at: Any = T0, **fields: Any) -> Row:
    """A session as sinks are given them: what is required, ``fields``, and ``at`` for both its times.

    A time may be given as an aware ``datetime``; in the row it is a text.
    """
    file = {"filename": "test.xlsx", "file_path": "/uploads/test.xlsx", "status": "pending", "llm_provider": "openai"}
    return _spelt("session", {"session_id": session_id, **file, "created_at": at, "updated_at": at, **fields})


def task(task_id: str = "t", /, *, at: Any = T0, **fields: Any) -> Row:
    """A task as sinks are given them: what is required, ``fields``, and ``at`` for both its times; see session()."""
    ids = {"task_id": task_id, "session_id": "s", "batch_id": "b"}
    cell = {"sheet_name": "Sheet1", "row_index": 1, "column_name": "Text", "source_text": "Hello", "status": "pending"}
    return _spelt("task", {**ids, **cell, "created_at": at, "updated_at": at, **fields})


def _spelt(kind: Kind, fields: Fields) -> Row:
    return SHAPES[kind].row({name: in_row(value) for name, value in fields.items()})


def in_row(value: Any) -> Any:
    """A ``datetime`` in UTC as rows hold it, anything else as it is."""
    return stamp(value) if isinstance(value, datetime) and value.utcoffset() == timedelta(0) else value
