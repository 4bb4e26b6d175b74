"""The rows that are sent: tasks of about 500 bytes like the one in the specification, each made from its number."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

Row = dict[str, Any]

#: The three updates of a task, in order.
STAGES = ("pending", "processing", "completed")

_encode = json.JSONEncoder(ensure_ascii=False, separators=(",", ":")).encode


def key(number: int) -> str:
    """Of fixed width, so that keys sort like their numbers."""
    return f"task_{number:09}"


def task(number: int) -> Row:
    """A whole row."""
    return {
        **_head(number),
        "target_text": f"英雄{number}在黎明前到达了城门。",
        "context": "Opening scene, the guard",
        "status": "completed",
        "confidence": 0.5 + number % 50 / 100,
        "error_message": None,
        "retry_count": 2,
        "start_time": f"2025-09-30T16:35:{number % 60:02}.{number * 7919 % 1_000_000:06}",
        "end_time": f"2025-09-30T16:36:{number % 60:02}.{number * 7907 % 1_000_000:06}",
        "duration_ms": 60_000 + number % 1000,
    }


def stage(number: int, stage: int) -> Row:
    """The row that one of a task's updates sends; after the last one the stored row is ``task(number)``."""
    if stage == len(STAGES) - 1:
        return task(number)
    row = {**_head(number), "status": STAGES[stage], "context": task(number)["context"], "retry_count": stage}
    if stage:
        row["start_time"] = task(number)["start_time"]
    return row


def _head(number: int) -> Row:
    return {
        "task_id": key(number),
        "session_id": f"550e8400-e29b-41d4-a716-{number // 1000:012}",
        "batch_id": f"batch_{number // 100:06}",
        "sheet_name": "Sheet1",
        "row_index": number % 1_000_000,
        "column_name": "Text",
        "source_text": f"Line {number}: he came before dawn.",
    }


def body(rows: list[Row], name: str) -> bytes:
    """A request body with the list ``name``, as httpx encodes JSON."""
    return _encode({name: rows}).encode()


def bodies(first: int, count: int, batch: int, name: str) -> Iterator[bytes]:
    """The bodies of ``count`` whole rows, ``batch`` in each."""
    for start in range(first, first + count, batch):
        yield body([task(number) for number in range(start, min(start + batch, first + count))], name)


def lives(first: int, count: int, batch: int, name: str) -> Iterator[list[bytes]]:
    """For each ``batch`` tasks the bodies of their three updates."""
    for start in range(first, first + count, batch):
        numbers = range(start, min(start + batch, first + count))
        yield [body([stage(number, which) for number in numbers], name) for which in range(len(STAGES))]
