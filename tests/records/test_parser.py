"""What a request body may hold, and what is said about one that may not."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any

import pytest

from tests.rows import body, session, task
from tornado_persist.errors import InvalidBatch, NotJSON
from tornado_persist.records.models import DEFAULTS, KINDS, MAX_TEXT, Fields, Kind, Row, Session, Task
from tornado_persist.records.parser import Parser
from tornado_persist.records.times import stamp

parser = Parser(max_batch=1000)


def parse_one(kind: Kind, row: Fields) -> Row:
    (parsed,) = parser.parse(kind, body(kind, row)).rows
    return parsed


def refused(kind: Kind, row: Fields) -> list[tuple[Any, str]]:
    with pytest.raises(InvalidBatch) as caught:
        parser.parse(kind, body(kind, row))
    return [(tuple(error["loc"]), error["msg"]) for error in caught.value.errors]


def nested(depth: int) -> Any:
    """An object with ``depth`` levels."""
    return {} if depth == 1 else {"a": nested(depth - 1)}


def test_a_row_holds_just_the_fields_that_were_sent() -> None:
    assert parse_one("task", task(target_text=None)) == task(target_text=None)
    assert parse_one("session", session()) == session()


def test_every_documented_field_is_taken() -> None:
    full = session(
        "550e8400-e29b-41d4-a716-446655440000",
        game_info={"game_name": "Game Title", "tags": [1, 2.5, None, True]},
        metadata={"user_id": "user123"},
        total_tasks=100,
        completed_tasks=1,
        failed_tasks=2,
        processing_tasks=3,
    )
    assert parse_one("session", full) == full
    assert full.keys() == Session.__annotations__.keys()
    row = task(
        target_text="你好",
        context="Greeting",
        confidence=0.95,
        error_message=None,
        retry_count=0,
        start_time="2025-09-30T16:35:00",
        end_time="2025-09-30T16:35:05Z",
        duration_ms=5000,
    )
    assert row.keys() == Task.__annotations__.keys()
    assert parse_one("task", row) == {
        **row,
        "start_time": "2025-09-30T16:35:00.000000+00:00",
        "end_time": "2025-09-30T16:35:05.000000+00:00",
    }


def test_a_field_outside_the_specification_is_dropped_or_refused() -> None:
    assert parse_one("task", task(colour="red")) == task()
    strict = Parser(unknown_fields="reject")
    with pytest.raises(InvalidBatch) as caught:
        strict.parse("task", body("task", task(), task(colour="red")))
    assert caught.value.errors == [{"loc": ["tasks", 1, "colour"], "msg": "This field is not in the specification"}]


@pytest.mark.parametrize("kind", KINDS)
def test_each_required_field_is_missed_by_name(kind: Kind) -> None:
    full = session() if kind == "session" else task()
    for field in full:
        rest = {name: value for name, value in full.items() if name != field}
        assert refused(kind, rest) == [((f"{kind}s", 0, field), "Field required")]


@pytest.mark.parametrize("kind", KINDS)
def test_null_is_refused_for_required_fields_and_counters(kind: Kind) -> None:
    full = session() if kind == "session" else task()
    for field in [*full, *DEFAULTS[kind]]:
        ((loc, _),) = refused(kind, {**full, field: None})
        assert loc == (f"{kind}s", 0, field)


@pytest.mark.parametrize("kind", KINDS)
def test_null_is_taken_for_every_other_field(kind: Kind) -> None:
    full = session() if kind == "session" else task()
    annotations = Session.__annotations__ if kind == "session" else Task.__annotations__
    nullable = dict.fromkeys(annotations.keys() - full.keys() - DEFAULTS[kind].keys())
    assert len(nullable) == {"session": 2, "task": 7}[kind]
    assert parse_one(kind, full | nullable) == full | nullable


@pytest.mark.parametrize(
    "key",
    ["", " a", "a ", "\ta", "a\n", "a\u00a0", "\u3000a", "a\x07b", "a\x7fb", "a\x85b", "a\0b", "k" * 65],
)
@pytest.mark.parametrize("field", ["task_id", "session_id", "batch_id"])
def test_a_key_with_white_space_at_an_end_or_control_characters_or_a_wrong_length_is_refused(
    field: str, key: str
) -> None:
    ((loc, message),) = refused("task", task() | {field: key})
    assert loc == ("tasks", 0, field)
    assert "pattern" not in message, "a regular expression is no message for people"


@pytest.mark.parametrize("key", ["k" * 64, "a b", "键", "é", "e\u0301", "😀" * 64, "a\u200bb", "%s", "\\N", "'"])
def test_any_other_key_is_taken_as_it_is(key: str) -> None:
    assert parse_one("task", task(key))["task_id"] == key


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("status", "done"),
        ("status", "Pending"),
        ("row_index", "1"),
        ("row_index", 1.5),
        ("row_index", True),
        ("row_index", 2**31),
        ("row_index", -(2**31) - 1),
        ("retry_count", -1),
        ("retry_count", 2**31),
        ("duration_ms", -1),
        ("duration_ms", 2**63),
        ("duration_ms", 10**30),
        ("confidence", -0.01),
        ("confidence", 1.01),
        ("confidence", "0.5"),
        ("confidence", float("nan")),
        ("confidence", float("inf")),
        ("sheet_name", "x" * 256),
        ("column_name", "x" * 256),
        ("source_text", "x" * (MAX_TEXT + 1)),
        ("source_text", 5),
        ("target_text", ["x"]),
        ("context", "a\0b"),
        ("start_time", 1_700_000_000),
        ("start_time", "1700000000"),
        ("start_time", "yesterday"),
        ("start_time", "2025-09-30"),
        ("start_time", "2025-02-30T10:00:00"),
        ("start_time", "2025-09-30T25:00:00"),
        ("start_time", "2025-09-30T16:35:00 "),
        ("start_time", "0999-12-31T23:59:59"),
        ("end_time", "1000-01-01T00:00:00+01:00"),
        ("end_time", "9999-12-31T23:59:59-05:00"),
    ],
)
def test_a_task_field_of_the_wrong_type_or_out_of_range_is_named(field: str, value: Any) -> None:
    assert [loc for loc, _ in refused("task", task() | {field: value})] == [("tasks", 0, field)]


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("filename", "x" * 256),
        ("file_path", "x" * 513),
        ("llm_provider", "x" * 51),
        ("total_tasks", 2**31),
        ("total_tasks", -1),
        ("game_info", []),
        ("game_info", "{}"),
        ("metadata", 5),
    ],
)
def test_a_session_field_of_the_wrong_type_or_out_of_range_is_named(field: str, value: Any) -> None:
    assert [loc for loc, _ in refused("session", session() | {field: value})] == [("sessions", 0, field)]


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("row_index", -(2**31)),
        ("row_index", 2**31 - 1),
        ("retry_count", 2**31 - 1),
        ("duration_ms", 2**63 - 1),
        ("confidence", 0),
        ("confidence", 1),
        ("sheet_name", ""),
        ("sheet_name", "字" * 255),
        ("source_text", "😀" * MAX_TEXT),
        ("source_text", "NaN, Infinity and \\u0000 are words here"),
    ],
)
def test_the_ends_of_each_range_are_taken(field: str, value: Any) -> None:
    assert parse_one("task", task() | {field: value})[field] == value


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("2025-09-30T16:35:00", datetime(2025, 9, 30, 16, 35, tzinfo=UTC)),
        ("2025-09-30 16:35", datetime(2025, 9, 30, 16, 35, tzinfo=UTC)),
        ("2025-09-30T16:35:00Z", datetime(2025, 9, 30, 16, 35, tzinfo=UTC)),
        ("2025-09-30T16:35:00+08:00", datetime(2025, 9, 30, 8, 35, tzinfo=UTC)),
        ("2025-09-30T16:35:00-0330", datetime(2025, 9, 30, 20, 5, tzinfo=UTC)),
        ("2025-09-30T16:35:00.123456789Z", datetime(2025, 9, 30, 16, 35, 0, 123456, tzinfo=UTC)),
        ("1000-01-01T00:00:00", datetime(1000, 1, 1, tzinfo=UTC)),
        ("9999-12-31T23:59:59.999999", datetime(9999, 12, 31, 23, 59, 59, 999999, tzinfo=UTC)),
    ],
)
def test_times_come_out_in_utc(written: str, meant: datetime) -> None:
    assert parse_one("task", task(start_time=written))["start_time"] == stamp(meant)


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"  ",
        b"[]",
        b'"tasks"',
        b"null",
        b"{",
        b'{"tasks": [],}',
        b'{"tasks": []} x',
        b"\xff\xfe",
        b'{"tasks": "\xff"}',
        b'{"tasks": [], "x": "\x00"}',
        b'{"tasks": [], "x": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
    ],
)
def test_what_is_no_json_object_is_told_what_was_expected(raw: bytes) -> None:
    with pytest.raises(NotJSON, match=r'expected a JSON object like \{"tasks": \[\.\.\.\]\}'):
        parser.parse("task", raw)


@pytest.mark.parametrize("raw", [b"{}", b'{"tasks": null}', b'{"tasks": {}}', b'{"sessions": []}'])
def test_a_body_without_its_list_is_refused_by_name(raw: bytes) -> None:
    with pytest.raises(InvalidBatch) as caught:
        parser.parse("task", raw)
    assert caught.value.errors[0]["loc"] == ["tasks"]


@pytest.mark.parametrize("word", ["NaN", "Infinity", "-Infinity", '"a\\u0000"', '{"a\\u0000": 1}'])
@pytest.mark.parametrize("place", ['"metadata": {"a": [0, %s]}', '"unknown": [%s]', '"filename": %s'])
def test_nul_nan_and_infinity_are_refused_wherever_they_stand(place: str, word: str) -> None:
    text = json.dumps({"sessions": [session()]})[:-3] + ", " + place % word + "}]}"
    with pytest.raises((InvalidBatch, NotJSON)):
        parser.parse("session", text.encode())


@pytest.mark.parametrize("number", ["1e999", "-1e999", "1" + "0" * 400])
def test_a_nested_number_beyond_a_double_is_refused_by_its_place(number: str) -> None:
    text = json.dumps({"sessions": [session()]})[:-3] + ', "metadata": {"a": [0, ' + number + "]}}]}"
    with pytest.raises(InvalidBatch) as caught:
        parser.parse("session", text.encode())
    assert [error["loc"] for error in caught.value.errors] == [["sessions", 0, "metadata", "a", 1]]


def test_nested_json_may_be_20_levels_deep() -> None:
    assert parse_one("session", session(metadata=nested(20)))["metadata"] == nested(20)
    (((*start, _), _),) = [refused("session", session(game_info=nested(21)))[0]]
    assert start[:3] == ["sessions", 0, "game_info"]


def test_a_batch_may_have_max_batch_rows() -> None:
    small = Parser(max_batch=2)
    assert len(small.parse("task", body("task", task("a"), task("b"))).rows) == 2
    with pytest.raises(InvalidBatch, match=r"3 rows came, and at most 2 .*server.max_batch"):
        small.parse("task", body("task", task("a"), task("b"), task("c")))


def test_an_empty_batch_is_valid() -> None:
    assert parser.parse("task", b'{"tasks": []}').rows == []


def test_the_first_20_errors_are_named_and_no_value_is_repeated() -> None:
    rows = [task(f"t{n}", status="secret-value") for n in range(30)]
    with pytest.raises(InvalidBatch) as caught:
        parser.parse("task", body("task", *rows))
    assert [error["loc"] for error in caught.value.errors] == [["tasks", n, "status"] for n in range(20)]
    assert "secret-value" not in str(caught.value) + str(caught.value.errors)


def test_the_same_key_twice_in_a_batch_stays_two_rows_in_their_order() -> None:
    rows = parser.parse("task", body("task", task("a", status="pending"), task("a", status="failed"))).rows
    assert [row["status"] for row in rows] == ["pending", "failed"]
