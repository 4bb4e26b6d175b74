"""Which rows are in a line, and what is said of a line that has none."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.rows import session, task
from tornado_persist.cli.lines import MAX_LINE, Line, Unread, load, parse, read, rows_of
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
    found: list[Line | Unread] = []
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
        assert [line.row for line in read(file, path, path.stat().st_size) if isinstance(line, Line)] == [task("a")]


#: JSON texts that some programs write and others cannot read, and what is said of them.
UNREADABLE = {
    "1" * 5000: "it has an integer of too many digits",
    "1e999": "it has a number beyond the range of a double",
    "-Infinity": "it has -Infinity, which is no JSON",
    "NaN": "it has NaN, which is no JSON",
    '"\\uD83d"': "it has half of a surrogate pair",
    "[1,": "it is no JSON (Expecting value at character 4)",
    '"': "it is no JSON (Unterminated string starting at character 1)",
}


@pytest.mark.parametrize("text", UNREADABLE, ids=list(UNREADABLE.values()))
def test_what_could_not_be_written_again_is_not_read(text: str) -> None:
    for content in (text, text.encode()):
        with pytest.raises(ValueError, match=r".") as caught:
            load(content)
        assert str(caught.value) == UNREADABLE[text]
    assert load('{"a": ["\\ud83d\\ude00", 1.5, -0.0, 1e308]}') == {"a": ["\N{GRINNING FACE}", 1.5, -0.0, 1e308]}


@pytest.mark.parametrize("text", list(UNREADABLE)[:5], ids=list(UNREADABLE.values())[:5])
def test_a_row_that_cannot_be_read_costs_itself_alone(text: str) -> None:
    wrong = f'{{"task_id": "b", "session_id": "s", "x": {text}}}'
    found = list(rows_of(f"[{json.dumps(task('a'))}, {wrong}, {json.dumps(task('c'))}]".encode()))
    assert found == [task("a"), f"the task s b cannot be read: {UNREADABLE[text]}", task("c")]
    assert list(rows_of(b'[{"x": 1e999}]')) == ["a row cannot be read: it has a number beyond the range of a double"]


def test_a_line_that_is_too_long_is_not_held_in_memory_and_the_next_is_read(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    with path.open("wb") as file:
        file.write(b"[" + b" " * (2 * MAX_LINE) + b"]\n" + json.dumps(task("a")).encode() + b"\n")
    with path.open("rb") as file:
        found = list(read(file, path, path.stat().st_size))
    assert [(line.number, len(line.content) <= MAX_LINE) for line in found] == [(1, True)] * 3 + [(2, True)]
    assert [line.problem for line in found if isinstance(line, Unread)] == ["it is longer than 64 MiB", "", ""]
    assert isinstance(found[3], Line)
    assert found[3].row == task("a")
    assert sum(len(line.content) for line in found) == path.stat().st_size
