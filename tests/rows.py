"""Rows and request bodies for tests."""

from __future__ import annotations

import json
from typing import Any

from tornado_persist.records.models import PLURALS, Fields, Kind


def session(session_id: str = "s1", /, **fields: Any) -> Fields:
    """A session with its required fields, and ``fields`` over them."""
    return {
        "session_id": session_id,
        "filename": "test.xlsx",
        "file_path": "/uploads/test.xlsx",
        "status": "processing",
        "llm_provider": "openai",
        **fields,
    }


def task(task_id: str = "t1", /, **fields: Any) -> Fields:
    """A task with its required fields, and ``fields`` over them."""
    return {
        "task_id": task_id,
        "session_id": "s1",
        "batch_id": "b1",
        "sheet_name": "Sheet1",
        "row_index": 1,
        "column_name": "Text",
        "source_text": "Hello",
        "status": "pending",
        **fields,
    }


def row(kind: Kind, key: str, /, **fields: Any) -> Fields:
    return session(key, **fields) if kind == "session" else task(key, **fields)


def body(kind: Kind, *rows: Fields) -> bytes:
    """A request body with these rows."""
    return json.dumps({PLURALS[kind]: rows}).encode()
