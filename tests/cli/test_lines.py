"""Which rows are in a line, and what is said of a line that has none."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.rows import session, task
from tornado_persist.cli.lines import Line, parse, read
from tornado_persist.errors import InputError

TIMES = {"created_at": "2026-01-01T00:00:00+00:00", "updated_at": "2026-01-01T00:00:00+00:00"}


@pytest.mark.parametrize(
    ("line", "kind", "row"),
    [
        (task("a") | TIMES, "task", task("a")),
        (session("s") | TIMES, "session", session("s")),
        ({"kind": "task", **task("a")}, "task", task("a")),
        ({"kind": "session", "row": session("s"), "code": "23514", **TIMES}, "session", session("s")),
        ({"seq": 3, "at": "x", "kind": "task", "row": task("a") | {"own": 1}}, "task", task("a") | {"own": 1}),
        ({"row": task("a")}, "task", task("a")),
    ],
)
def test_the_kind_is_told_by_kind_or_else_by_the_key_and_our_times_are_left_out(
    line: dict[str, object], kind: str, row: dict[str, object]
) -> None:
    assert parse(json.dumps(line).encode()) == (kind, row)


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        (b'{"task_id": 1,}', "it is no JSON (Expecting property name enclosed in double quotes at character 15)"),
        (b"[1]", "it is JSON, but no object"),
        (b'{"x": 1}', "it has neither a task_id nor a session_id"),
        (b'{"kind": "sheet", "task_id": "a"}', 'its kind is "sheet", and not session or task'),
        (b'{"kind": [], "task_id": "a"}', "its kind is [], and not session or task"),
        (b'{"task_id": "\xff"}', "it is no UTF-8 (byte 14)"),
        (b"[" * 100_000, "it is nested too deep"),
    ],
)
def test_what_is_no_row_is_said(line: bytes, problem: str) -> None:
    with pytest.raises(ValueError, match=r".") as caught:
        parse(line)
    assert str(caught.value) == problem


def test_lines_give_back_the_file_and_a_broken_one_is_numbered(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    rows = [json.dumps(task("a")).encode(), b"", b"  ", json.dumps(session("s")).encode()]
    path.write_bytes(b"\n".join([*rows, b'{"task_id"']))
    found: list[Line] = []
    with path.open("rb") as file, pytest.raises(InputError) as caught:
        found.extend(read(file, path, path.stat().st_size))
    assert [line.number for line in found] == [1, 4]
    assert b"".join(line.content for line in found) == b"\n".join(rows) + b"\n"
    problem = "the file ends within this line (it is no JSON (Expecting ':' delimiter at character 11))"
    assert str(caught.value) == f"{path}, line 5: {problem}"


def test_a_last_line_that_is_whole_needs_no_line_end(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    path.write_bytes(json.dumps(task("a")).encode())
    with path.open("rb") as file:
        assert [line.row for line in read(file, path, path.stat().st_size)] == [task("a")]
