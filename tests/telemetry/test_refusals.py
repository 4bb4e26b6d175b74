"""Refused batches: which are counted, which are told, and what a line has."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

import pytest
import structlog
from structlog.testing import capture_logs

from tornado_persist.telemetry.refusals import (
    EVERY,
    FAULTS,
    LINES_A_SECOND,
    LONGEST,
    TELL_EVERY,
    DroppedFields,
    Quota,
    Refusal,
    Refusals,
    printable,
)

NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)


def refusal(**changes: Any) -> Refusal:
    fields: dict[str, Any] = {
        "at": NOON,
        "kind": "task",
        "status": 422,
        "reason": "invalid",
        "detail": "Invalid task data format: tasks.3.status: no",
        "client": "10.0.0.7",
        "user_agent": "a client/1.0",
        "request_id": "r1",
        "path": "/api",
        "rows": 4,
        "loc": ("tasks", 3, "status"),
        "msg": "no",
    }
    return Refusal(**{**fields, **changes})


@pytest.fixture
def lines() -> Iterator[list[Any]]:
    structlog.reset_defaults()
    with capture_logs() as lines:
        yield lines


def test_a_fault_is_told_once_in_ten_seconds_and_then_how_often_it_was_held_back() -> None:
    quota = Quota()
    assert quota.take("a", 100) == (0, 0)
    assert [quota.take("a", 100 + second) for second in range(1, 10)] == [None] * 9
    assert quota.take("b", 105) == (0, 0)
    assert quota.take("a", 100 + EVERY) == (9, 0)
    assert quota.take("a", 100 + 2 * EVERY) == (0, 0)


def test_few_lines_a_second_are_written_and_every_refusal_is_counted() -> None:
    quota, told, written = Quota(), 0, 0
    for number in range(10_000):
        line = quota.take(f"fault {number % 1000}", number / 1000)
        if line is not None:
            told += 1 + sum(line)
            written += 1
    assert written == 10 * LINES_A_SECOND
    assert len(quota._keys) == FAULTS
    held = sum(held for _, held in quota._keys.values())
    assert told + held + quota._forgotten == 10_000


def test_batches_and_rows_are_counted_from_0_and_the_last_is_kept() -> None:
    noted = []
    refusals = Refusals(lambda message, at: noted.append((message, at)), clock=lambda: 1.0)
    assert ("task", 422, "invalid") in refusals.by_reason
    assert ("none", 404, "path") in refusals.by_reason
    assert (refusals.batches, sum(refusals.rows.values()), refusals.last) == (0, 0, None)
    for change in ({}, {"kind": "session", "rows": None}, {"kind": "none", "status": 404, "reason": "path"}):
        refusals.add(refusal(**change))
    assert refusals.batches == 3
    assert refusals.by_reason["task", 422, "invalid"] == refusals.by_reason["none", 404, "path"] == 1
    assert refusals.rows == {"session": 0, "task": 4}
    assert refusals.last is not None
    assert refusals.last.status == 404
    assert noted[0] == ("A batch of tasks was refused with 422 (invalid)", NOON)


def test_a_line_has_the_fault_and_the_client(lines: list[Any]) -> None:
    now = 50.0
    refusals = Refusals(clock=lambda: now)
    for row in range(3):
        refusals.add(refusal(loc=("tasks", row, "status")))
    now += EVERY
    refusals.add(refusal())
    assert [line.pop("held_back", 0) for line in lines] == [0, 2]
    assert lines[0] == {
        "event": "batch refused",
        "log_level": "warning",
        "kind": "task",
        "status": 422,
        "reason": "invalid",
        "msg": "no",
        "loc": "tasks.*.status",
        "rows": 4,
        "client": "10.0.0.7",
        "user_agent": "a client/1.0",
        "path": "/api",
        "request_id": "r1",
    }


def test_what_a_client_writes_is_cut_and_printable(lines: list[Any]) -> None:
    assert printable("a\x1b[31m\nb") == "a\N{REPLACEMENT CHARACTER}[31m\N{REPLACEMENT CHARACTER}b"
    assert printable("x" * 9999) == "x" * LONGEST + "…"
    long = "\n" + "y" * 100_000
    Refusals().add(refusal(user_agent=long, path=long, msg=long, loc=("tasks", 0, long)))
    assert len(str(lines)) < 6 * LONGEST
    assert "\\n" not in str(lines)


def test_dropped_fields_are_told_once_a_minute_for_each_kind() -> None:
    now = 0.0
    dropped = DroppedFields(clock=lambda: now)
    with capture_logs() as told:
        dropped.add("task", 2, ["cost"])
        dropped.add("task", 3, ["result"])
        dropped.add("session", 1, ["owner"])
        now = TELL_EVERY
        dropped.add("task", 4, ["result"])
    assert [(line["kind"], line["fields"], line["rows"]) for line in told] == [
        ("task", ["cost"], 2),
        ("session", ["owner"], 1),
        ("task", ["result"], 7),
    ]
    assert dropped.rows == {"session": 1, "task": 9}
