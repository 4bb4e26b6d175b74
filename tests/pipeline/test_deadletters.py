"""Rows that the sink refused: each a line, all or none, and gone again past what the cursor knows."""

from __future__ import annotations

import errno
import json
import os
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from tests.rows import session, task
from tornado_persist.pipeline.deadletters import DeadLetters, RefusedRow
from tornado_persist.records.models import SHAPES, Fields, Kind
from tornado_persist.records.times import stamp

AT = datetime(2026, 1, 1, tzinfo=UTC)


def refused(kind: Kind, row: Fields) -> RefusedRow:
    accepted = SHAPES[kind].row({**row, "created_at": stamp(AT), "updated_at": stamp(AT)})
    return RefusedRow(kind, accepted, "postgres", "23514", "check failed", AT)


def test_a_line_has_the_row_as_it_was_sent_and_why_it_was_refused(tmp_path: Path) -> None:
    letters = DeadLetters(tmp_path / "rejected.jsonl")
    row = task("键", target_text=None, start_time=stamp(AT), source_text="a\nb")
    letters.append([refused("task", row), refused("session", session("s", metadata={"a": [1]}))])
    first, second = map(json.loads, letters.path.read_text(encoding="utf-8").splitlines())
    assert first == {
        "kind": "task",
        "row": row,
        "created_at": "2026-01-01T00:00:00.000000+00:00",
        "updated_at": "2026-01-01T00:00:00.000000+00:00",
        "sink": "postgres",
        "code": "23514",
        "message": "check failed",
        "at": "2026-01-01T00:00:00.000000+00:00",
    }
    assert second["row"]["metadata"] == {"a": [1]}


def test_cutting_forgets_what_came_after_a_length_and_never_lengthens(tmp_path: Path) -> None:
    letters = DeadLetters(tmp_path / "rejected.jsonl")
    assert (letters.length(), letters.cut(0), letters.cut(10)) == (0, 0, 0)
    assert not letters.path.exists()
    letters.append([refused("task", task("a"))])
    before = letters.length()
    letters.append([refused("task", task("b"))])
    assert letters.cut(before) > 0
    assert [json.loads(line)["row"]["task_id"] for line in letters.path.read_text().splitlines()] == ["a"]
    assert letters.cut(before + 100) == 0
    assert letters.length() == before


@pytest.mark.parametrize("call", ["writev", "fsync"])
def test_an_append_that_fails_leaves_the_file_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    letters = DeadLetters(tmp_path / "rejected.jsonl")
    letters.append([refused("task", task("a"))])
    before = letters.path.read_bytes()
    original = getattr(os, call)

    def fail(fd: int, *data: Any) -> Any:
        if data:
            original(fd, [bytes(data[0][0][:10])])  # the disk takes the beginning
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(os, call, fail)
        with pytest.raises(OSError, match="No space left"):
            letters.append([refused("task", task("b"))])
    assert letters.path.read_bytes() == before
