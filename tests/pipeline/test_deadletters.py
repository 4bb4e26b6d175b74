"""Rows that were refused: each a line, all or none, gone again past what the cursor knows, and counted while open."""

from __future__ import annotations

import errno
import hashlib
import json
import os
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from tests.rows import session, task
from tornado_persist.pipeline import deadletters
from tornado_persist.pipeline.deadletters import DeadLetters, OpenRows, RefusedRow
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


def test_a_link_in_a_directory_that_all_can_write_to_is_not_followed(tmp_path: Path) -> None:
    tmp_path.chmod(0o777)
    precious = tmp_path / "precious"
    precious.write_text("nothing of ours")
    letters = DeadLetters(tmp_path / "rejected.jsonl")
    letters.path.symlink_to(precious)
    with pytest.raises(OSError, match="symbolic link"):
        letters.append([refused("task", task())])
    assert precious.read_text() == "nothing of ours"


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


def count(rows: OpenRows) -> int:
    while rows.read_on():
        pass
    return len(rows)


def note(letters: DeadLetters, number: int, state: str) -> None:
    """As ``persistd rejected`` writes it."""
    line = letters.path.read_bytes().splitlines()[number]
    with letters.path.with_name("rejected.settled.jsonl").open("a") as file:
        file.write(json.dumps({"line": number + 1, "sha256": hashlib.sha256(line).hexdigest(), "state": state}) + "\n")


@pytest.mark.parametrize("step", [1, 1 << 20])
def test_a_row_is_open_until_it_is_retried_or_dropped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: int
) -> None:
    monkeypatch.setattr(deadletters, "STEP", step)
    letters = DeadLetters(tmp_path / "rejected.jsonl")
    rows = OpenRows(letters.path)
    assert (count(rows), rows.first) == (0, ())
    letters.append([refused("task", task(key)) for key in "abc"])
    letters.append([refused("session", session("s"))])
    assert count(rows) == 4
    assert [(row.kind, row.session_id, row.task_id) for row in rows.first] == [
        ("task", "s1", "a"),
        ("task", "s1", "b"),
        ("task", "s1", "c"),
        ("session", "s", ""),
    ]
    assert (rows.first[0].code, rows.first[0].message) == ("23514", "check failed")
    note(letters, 0, "sending")
    assert count(rows) == 4
    note(letters, 0, "retried")
    note(letters, 2, "dropped")
    note(letters, 1, "open")
    for it in (rows, OpenRows(letters.path)):  # after a restart too
        assert count(it) == 2
        assert [row.task_id for row in it.first] == ["b", ""]
    letters.append([refused("task", task("d"))])
    assert count(rows) == 3


def test_open_rows_follow_a_file_that_is_cut_replaced_edited_or_half_written(tmp_path: Path) -> None:
    letters = DeadLetters(tmp_path / "rejected.jsonl")
    letters.append([refused("task", task("a"))])
    length = letters.length()
    letters.append([refused("task", task("b"))])
    rows = OpenRows(letters.path)
    assert count(rows) == 2
    letters.cut(length)
    assert count(rows) == 1
    with letters.path.open("a") as file:
        file.write('{"kind": "ta')
        file.flush()
        assert count(rows) == 1, "the service may be just writing it"
        file.write("\n" + "[" * 100_000 + "\n")
    assert count(rows) == 3, "persistd rejected ls shows them as well"
    assert [row.message for row in rows.first[1:]] == ["this line is no JSON object"] * 2
    letters.path.rename(tmp_path / "moved.jsonl")
    assert count(rows) == 0
    letters.append([refused("task", task("c"))])
    letters.path.with_name("rejected.settled.jsonl").write_text("no note\n{}\n")
    assert count(rows) == 1


def test_the_oldest_open_rows_are_few_and_their_messages_short(tmp_path: Path) -> None:
    letters = DeadLetters(tmp_path / "rejected.jsonl")
    many = [refused("task", task(str(n))) for n in range(100)]
    letters.append([RefusedRow(row.kind, row.row, row.sink, row.code, "x" * 5000, AT) for row in many])
    rows = OpenRows(letters.path)
    assert count(rows) == 100
    assert [row.task_id for row in rows.first] == ["0", "1", "2", "3", "4"]
    assert {len(row.message) for row in rows.first} == {200}
