"""A table of bodies as real clients send them: what is stored, or what is answered. And what no body may cost."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any
from zoneinfo import ZoneInfo

import pytest

from tests.rows import body, session, task
from tornado_persist.errors import InvalidBatch, NotJSON
from tornado_persist.records.freejson import NOT_FINITE, NUL, SURROGATE, TOO_LONG
from tornado_persist.records.judge import TIME_MESSAGE
from tornado_persist.records.models import SHAPES, Fields, Kind
from tornado_persist.records.parser import Parser

DEFAULT = Parser(max_batch=3)
REJECT = Parser(max_batch=3, unknown_fields="reject")
WIDE = Parser(max_batch=3, statuses=["pending", "cancelled"], timezone=ZoneInfo("Asia/Shanghai"))
BERLIN = Parser(timezone=ZoneInfo("Europe/Berlin"))
ASIDE = Parser(max_batch=3, invalid_rows="set_aside")
REPLAY = Parser(replay=True)


def raw_task(name: str, text: str) -> bytes:
    """A task whose field ``name`` is this JSON."""
    row = {**task(), name: "@"}
    return json.dumps({"tasks": [row]}).replace('"@"', text).encode()


def raw_session(name: str, text: str) -> bytes:
    return json.dumps({"sessions": [{**session(), name: "@"}]}).replace('"@"', text).encode()


#: A task's field as it is sent, and as it is kept.
KEPT = [
    ("duration_ms", "5000.0", 5000),
    ("row_index", "1e3", 1000),
    ("row_index", "-0.0", 0),
    ("row_index", "-2E2", -200),
    ("retry_count", "2147483647.0", 2147483647),
    ("duration_ms", "9007199254740991.0", 9007199254740991),
    ("confidence", "1", 1.0),
    ("source_text", '"\\ud83d\\ude00"', "😀"),
    ("source_text", '"\\\\ud83d"', "\\ud83d"),
    ("start_time", '"2025-09-30T16:35:00+0800"', "2025-09-30T08:35:00.000000+00:00"),
    ("start_time", '"2025-09-30T16:35:00+08"', "2025-09-30T08:35:00.000000+00:00"),
    ("start_time", '"2025-09-30t16:35:00z"', "2025-09-30T16:35:00.000000+00:00"),
    ("start_time", '"2025-09-30T16:35:00,5Z"', "2025-09-30T16:35:00.500000+00:00"),
    ("start_time", '"2025-12-31T24:00:00"', "2026-01-01T00:00:00.000000+00:00"),
    ("start_time", '"2025-12-31 24:00"', "2026-01-01T00:00:00.000000+00:00"),
    ("start_time", '"2025-12-31T24:00:00.000000"', "2026-01-01T00:00:00.000000+00:00"),
    ("start_time", '"2025-12-31T24:00:00.000000+00:00"', "2026-01-01T00:00:00.000000+00:00"),
]


@pytest.mark.parametrize(("name", "sent", "kept"), KEPT)
def test_a_field_is_kept_as(name: str, sent: str, kept: Any) -> None:
    raw = raw_task(name, sent)
    for parsed in (DEFAULT.parse("task", raw), DEFAULT.validate("task", raw), REJECT.parse("task", raw)):
        assert repr(parsed.rows[0][name]) == repr(kept)
        assert parsed.body == raw
        assert REPLAY.parse("task", parsed.body).rows == parsed.rows


HALF = raw_task("source_text", '"cut \\ud83d"')
#: A body, and the first error: its loc and message.
REFUSED: list[tuple[Kind, bytes, list[str | int], str]] = [
    ("task", HALF, ["tasks", 0, "source_text"], SURROGATE),
    ("task", raw_task("task_id", '"\\ude00"'), ["tasks", 0, "task_id"], SURROGATE),
    ("task", raw_task("colour", '["\\ud83d"]'), ["tasks", 0, "colour", 0], SURROGATE),
    ("task", raw_task("colour", '{"\\ud83d": 1}'), ["tasks", 0, "colour"], SURROGATE),
    ("session", raw_session("metadata", '{"a": "\\ud83d"}'), ["sessions", 0, "metadata", "a"], SURROGATE),
    ("task", raw_task("context", '"a\\u0000b"'), ["tasks", 0, "context"], NUL),
    ("task", raw_task("duration_ms", "5000.5"), ["tasks", 0, "duration_ms"], "Input should be a valid integer"),
    ("task", raw_task("duration_ms", "1e999"), ["tasks", 0, "duration_ms"], NOT_FINITE),
    ("task", raw_task("confidence", "NaN"), ["tasks", 0, "confidence"], NOT_FINITE),
    ("task", raw_task("row_index", "NaN"), ["tasks", 0, "row_index"], NOT_FINITE),
    ("task", raw_task("cost", "-Infinity"), ["tasks", 0, "cost"], NOT_FINITE),
    ("task", raw_task("cost", "1e999"), ["tasks", 0, "cost"], NOT_FINITE),
    ("task", raw_task("cost", "9" * 4301), ["tasks", 0, "cost"], NOT_FINITE),
    ("task", raw_task("cost", "0." + "1" * 4301), ["tasks", 0, "cost"], TOO_LONG),
    ("session", raw_session("metadata", '{"a": [1e-99999]}'), ["sessions", 0, "metadata", "a", 0], TOO_LONG),
    ("session", raw_session("metadata", "[1]"), ["sessions", 0, "metadata"], "Input should be an object"),
    ("task", raw_task("start_time", '"2025-12-31T24:00:01"'), ["tasks", 0, "start_time"], TIME_MESSAGE),
    ("task", raw_task("start_time", '"2025-12-31T23:59:60"'), ["tasks", 0, "start_time"], TIME_MESSAGE),
    ("task", raw_task("start_time", '"9999-12-31T24:00:00"'), ["tasks", 0, "start_time"], TIME_MESSAGE),
    ("task", b'{"tasks": [5]}', ["tasks", 0], "Input should be an object"),
    ("task", b'{"tasks": 5}', ["tasks"], "Input should be a valid list"),
    ("task", b'{"x": {"\\ud800": 1}, "tasks": []}', ["x"], SURROGATE),
]


@pytest.mark.parametrize(("kind", "raw", "loc", "message"), REFUSED)
def test_a_body_is_refused_by_name(kind: Kind, raw: bytes, loc: list[str | int], message: str) -> None:
    for parse in (DEFAULT.parse, DEFAULT.validate):
        with pytest.raises(InvalidBatch) as caught:
            parse(kind, raw)
        found = caught.value.errors[0]
        assert found["loc"] == loc
        assert found["msg"].startswith(message)


@pytest.mark.parametrize("depth", [*range(20, 60, 7), *range(900, 1010, 3), 100_000])
def test_nesting_without_end_is_refused_and_no_bug(depth: int) -> None:
    deep = "[" * depth + "1e999" + "]" * depth
    bodies: list[tuple[Kind, bytes]] = [
        ("task", raw_task("x", deep)),
        ("session", raw_session("metadata", deep)),
        ("session", raw_session("metadata", f'{{"a": {deep}}}')),
    ]
    for kind, raw in bodies:
        with pytest.raises((InvalidBatch, NotJSON)):
            DEFAULT.parse(kind, raw)


def test_a_byte_order_mark_is_skipped() -> None:
    raw = body("task", task())
    parsed = DEFAULT.parse("task", b"\xef\xbb\xbf" + raw)
    assert parsed.rows == [task()]
    assert parsed.body == raw
    with pytest.raises(NotJSON):
        DEFAULT.parse("task", b"\xef\xbb\xbf" * 2 + raw)


def test_dropped_fields_are_named_once_and_their_rows_counted() -> None:
    rows = [task("a", result=1, cost=0.5), task("b"), task("c", cost=1, created_at="2025-01-01T00:00:00")]
    parsed = DEFAULT.parse("task", body("task", *rows))
    assert (parsed.ignored, parsed.ignored_rows) == (["cost", "created_at", "result"], 2)
    many = DEFAULT.parse("task", body("task", task(**{f"{n:03}" + "x" * 99: 1 for n in range(30)}))).ignored
    assert many == [f"{n:03}" + "x" * 61 for n in range(20)]
    assert DEFAULT.parse("task", b'{"tasks": [], "source": "x"}').ignored == ["source"]
    assert REPLAY.parse("task", body("task", task(cost=1))).rows == [task()]
    with pytest.raises(InvalidBatch, match="cost: This field is not in the specification"):
        REJECT.parse("task", body("task", task(cost=1)))


@pytest.mark.parametrize("count", [4, 2500])
def test_more_rows_than_max_batch_are_counted(count: int) -> None:
    lists: list[list[Fields]] = [[task(f"t{n}") for n in range(count)], [{}] * count]
    for rows in lists:
        with pytest.raises(InvalidBatch) as caught:
            DEFAULT.parse("task", body("task", *rows))
        (error,) = caught.value.errors
        assert error["loc"] == ["tasks"]
        assert error["msg"].startswith(f"{count:,} rows came, and at most 3 go into one request (server.max_batch")


def test_statuses_and_the_time_zone_are_the_operators_and_a_replay_needs_neither() -> None:
    raw = body("task", task(status="cancelled", start_time="2025-09-30T16:35:00"))
    for parse in (WIDE.parse, WIDE.validate):
        parsed = parse("task", raw)
        (row,) = parsed.rows
        assert (row["status"], row["start_time"]) == ("cancelled", "2025-09-30T08:35:00.000000+00:00")
        for other in (REPLAY, Parser(replay=True, timezone=ZoneInfo("America/New_York"))):
            assert other.parse("task", parsed.body).rows == parsed.rows
            assert other.validate("task", parsed.body).rows == parsed.rows
        with pytest.raises(InvalidBatch, match="'pending' or 'cancelled'"):
            parse("task", body("task", task(status="completed")))
    for sent, kept in (
        ("2025-10-26T02:30:00", "2025-10-26T00:30:00.000000+00:00"),  # twice that night: the first
        ("2025-07-01 12:00", "2025-07-01T10:00:00.000000+00:00"),
        ("2025-07-01T24:00:00", "2025-07-01T22:00:00.000000+00:00"),
        ("2025-07-01T12:00:00Z", "2025-07-01T12:00:00.000000+00:00"),
    ):
        rows = BERLIN.parse("task", body("task", *[task(start_time=sent)] * 9)).rows
        assert {row["start_time"] for row in rows} == {kept}


def test_wrong_rows_are_set_aside_as_they_were_sent() -> None:
    good, wrong = task("a", start_time="2025-09-30T16:35:00"), {**task("b"), "status": "done", "row_index": "x"}
    raw = body("task", good, wrong)
    parsed = ASIDE.parse("task", raw)
    assert [row["task_id"] for row in parsed.rows] == ["a"]
    (aside,) = parsed.wrong
    assert (aside.index, json.loads(aside.text)) == (1, wrong)
    assert [error["loc"] for error in aside.errors] == [["tasks", 1, "row_index"], ["tasks", 1, "status"]]
    assert REPLAY.parse("task", parsed.body).rows == parsed.rows
    half = HALF.replace(b'"row_index": 1', b'"row_index": NaN')[10:-1]
    parsed = ASIDE.parse("task", body("task", good)[:-2] + b", " + half[1:] + b"}")
    assert b"NaN" in parsed.wrong[0].text
    assert b'"cut \\ud83d"' in parsed.wrong[0].text
    with pytest.raises(InvalidBatch):
        ASIDE.parse("task", body("task", wrong))


def test_free_json_is_kept_as_text_and_read_as_objects() -> None:
    raw = raw_session("metadata", '{ "n": [1.50, 123456789012345678901234567890], "t": "\\u4f60\\n" }')
    for parse in (DEFAULT.parse, DEFAULT.validate):
        (row,) = parse("session", raw).rows
        kept = row.metadata  # type: ignore[attr-defined]
        assert bytes(kept) == b'{"n":[1.50,123456789012345678901234567890],"t":"\\u4f60\\n"}'
        assert row["metadata"] == {"n": [1.5, 123456789012345678901234567890], "t": "你\n"}


def test_what_is_told_of_a_refused_body_is_short() -> None:
    long = "k" * 5_000_000
    with pytest.raises(InvalidBatch) as caught:
        REJECT.parse("task", body("task", *[task(**{long: 1})] * 3))
    assert len(str(caught.value)) <= 500
    assert all(len(str(step)) <= 64 for error in caught.value.errors for step in error["loc"])


SIZE = 10 << 20
#: The beginning of a body, what is repeated up to 10 MiB, and its end.
SESSION = json.dumps({"sessions": [session()]})[:-3].encode() + b', "metadata": {"a": [0'
TASK = json.dumps({"tasks": [task()]})[:-3].encode()
HEAVY: list[tuple[str, bytes, bytes, bytes]] = [
    ("session", SESSION, b",[]", b"]}}]}"),
    ("session", SESSION, b',{"a":[[]]}', b"]}}]}"),
    ("session", SESSION, b",1e100", b"]}}]}"),
    ("session", SESSION, b',"\\ud83d\\ude00"', b"]}}]}"),
    ("session", SESSION, b',"["', b"]}}]}"),
    ("session", SESSION, b",NaN", b"]}}]}"),
    ("session", SESSION, b"," + b"[" * 21 + b"]" * 21, b"]}}]}"),
    ("session", SESSION, b"," + b"[" * 18 + b"]" * 18, b"]}}]}"),
    ("task", TASK + b', "x": [0', b"," + b"[" * 90 + b"]" * 90, b"]}]}"),
    ("task", TASK + b', "x": [0', b",[]", b"]}]}"),
    ("task", TASK + b', "status": [0', b",[]", b"]}]}"),
    ("task", b'{"tasks": [{}', b",{}", b"]}"),
    ("task", b'{"tasks": [0', b",0", b"]}"),
    ("task", b'{"x": [0', b",{}", b'], "tasks": []}'),
    ("task", b'{"tasks": [' + TASK[11:] + b"}", b"," + TASK[11:] + b"}", b"]}"),
]
COST = """
import resource, sys, time
from tests.records.test_bodies import HEAVY, SIZE
from tornado_persist.errors import BatchRefused
from tornado_persist.records.parser import Parser
parser = Parser(max_batch=1000)
kind, start, piece, end = HEAVY[int(sys.argv[1])]
body = start + piece * ((SIZE - len(start) - len(end)) // len(piece)) + end
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
began = time.process_time()
try:
    parser.parse(kind, body)
except BatchRefused as exc:
    assert len(str(exc)) <= 500
print(time.process_time() - began, (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024)
"""


@pytest.mark.parametrize("number", range(len(HEAVY)))
def test_no_body_costs_more_than_its_size(number: int) -> None:
    """In a process of its own, for its peak of memory. The bounds leave room for a slow machine."""
    ran = subprocess.run([sys.executable, "-c", COST, str(number)], capture_output=True, text=True, check=True)
    seconds, mebibytes = map(float, ran.stdout.split())
    assert seconds < 1
    assert mebibytes < 300


def test_half_a_million_dropped_fields_cost_little() -> None:
    row = {**task(), **{f"k{n:06}": 1 for n in range(500_000)}}
    parsed = DEFAULT.parse("task", body("task", row))
    assert len(parsed.ignored) == 20
    assert parsed.ignored_rows == 1


@pytest.mark.parametrize("value", [float("nan"), "\ud800"])
def test_a_row_takes_no_object_that_json_cannot_hold(value: object) -> None:
    with pytest.raises(ValueError, match=r"."):
        SHAPES["session"].row(session(metadata={"x": value}))
