"""The fast path takes what clients usually send. It never takes what pydantic refuses, and reads all else the same."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from tests.rows import body, task
from tornado_persist.errors import BatchRefused
from tornado_persist.records.decoder import Decoder
from tornado_persist.records.models import KEYS, MAX_INT32, MAX_INT64, SHAPES, Fields, Task
from tornado_persist.records.parser import Parser
from tornado_persist.records.rules import Parsed, Rules

RULES = Rules(max_batch=3)
decoder = Decoder("task", SHAPES["task"], RULES)
parser = Parser(max_batch=3)
strict_decoder = Decoder("task", SHAPES["task"], Rules(max_batch=3, unknown_fields="reject"))
strict_parser = Parser(max_batch=3, unknown_fields="reject")

texts = st.text(max_size=8) | st.sampled_from(
    ["", " a", "a ", "a b", "\n", "\0", "\ud800", "x" * 64, "x" * 65, "x" * 256]
)
moments = st.sampled_from(
    [
        "2025-09-30T16:35:00",
        "2025-09-30 16:35",
        "2025-09-30T16:35:00.5+08:00",
        "2025-02-30T00:00:00",
        "0999-01-01T00:00",
    ]
)
numbers = st.sampled_from(
    [*(0, -1, 1, 0.5, 1.5, -0.0, 1.0, True, MAX_INT32, MAX_INT32 + 1, -MAX_INT32 - 2, MAX_INT64, MAX_INT64 + 1, 10**30)]
)
anything = st.none() | texts | moments | numbers | st.lists(st.none(), max_size=1) | st.dictionaries(texts, st.none())
#: Rows that are mostly right, with a few fields that are anything.
rows = st.builds(
    lambda changes, drop: {name: value for name, value in {**task("t"), **changes}.items() if name not in drop},
    st.dictionaries(st.sampled_from([*Task.__annotations__, "unknown"]), anything, max_size=3),
    st.sets(st.sampled_from(list(Task.__annotations__)), max_size=1),
)


def judged(raw: bytes, by: Parser = parser) -> Parsed | None:
    try:
        return by.validate("task", raw)
    except BatchRefused:
        return None


def agree(raw: bytes) -> None:
    for fast, slow in ((decoder, parser), (strict_decoder, strict_parser)):
        decoded = fast.decode(raw)
        if decoded is not None:
            judgement = judged(raw, slow)
            assert judgement is not None, "pydantic refuses it"
            assert exactly(decoded) == exactly(judgement)


def exactly(parsed: Parsed | None) -> list[object]:
    """As texts that tell 1 from 1.0 and from True."""
    assert parsed is not None
    return [*(sorted(map(repr, row.items())) for row in parsed.rows), parsed.ignored, parsed.ignored_rows, parsed.body]


@given(st.lists(rows, max_size=4))
def test_what_it_takes_the_parser_takes_and_reads_the_same(batch: list[Fields]) -> None:
    agree(json.dumps({"tasks": batch}).encode())
    agree(json.dumps({"tasks": batch}, ensure_ascii=False).encode("utf-8", "surrogatepass"))


@given(st.lists(rows, min_size=1, max_size=2), st.data())
def test_a_byte_that_is_changed_misleads_it_no_more_than_the_parser(batch: list[Fields], data: st.DataObject) -> None:
    raw = bytearray(json.dumps({"tasks": batch}, ensure_ascii=False).encode("utf-8", "surrogatepass"))
    raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(
        st.integers(0, 255) | st.sampled_from(list(b'"\\{}[],:0.eE-'))
    )
    agree(bytes(raw))


@given(texts)
@example("a\u2028b")
@example("a\u00a0")
@example("a\u200b")
@example("\x1f")
@example("k\U0001f600")
def test_keys_are_checked_as_the_parser_checks_them(key: str) -> None:
    agree(body("task", task(key), task("other")))


@pytest.mark.parametrize(
    "raw",
    [
        b'{"tasks": [], "x": "\xff"}',
        b'{"tasks": [], "\xc3": 1}',
        b'{"tasks": [], "x": "\xed\xa0\x80"}',
        b'{"tasks": [], "x": NaN}',
        b'{"tasks": [], "x": "\\u0000"}',
        b'{"tasks": [], "x": ' + b"[" * 1000 + b"]" * 1000 + b"}",
        b'{"tasks": []} x',
        b'\xef\xbb\xbf{"tasks": []}',
        b"",
    ],
)
def test_what_is_wrong_in_a_field_that_is_dropped_is_left_to_the_parser(raw: bytes) -> None:
    assert decoder.decode(raw) is None


def test_what_clients_usually_send_is_taken() -> None:
    full = {**dict.fromkeys(Task.__annotations__), **task("你好", source_text="a\nb", retry_count=1, confidence=1)}
    rows: list[Fields] = [
        {**full, "start_time": "2025-09-30T16:35:00", "more": 1},
        task("b", end_time="2025-09-30 16:35+08:00"),
    ]
    assert exactly(decoder.decode(body("task", *rows))) == exactly(parser.validate("task", body("task", *rows)))


def test_every_key_of_a_task_is_looked_at() -> None:
    for name in (*KEYS["task"], "batch_id"):
        assert decoder.decode(body("task", task() | {name: "a\u0085"})) is None


def test_rows_of_many_forms_are_taken_in_any_order() -> None:
    """What a decoder gives for a body does not depend on the bodies before it."""
    plain, more = task("a"), task("b", context="}{", confidence=0.5)
    null, dropped = task("c", context=None, end_time="2026-01-01T00:00:00"), task("d", unknown=[{"a": "}"}])
    bodies = [body("task", *some) for some in ([plain], [more, more], [plain, more, null], [dropped], [null], [])]
    for first in bodies:
        for second in bodies:
            one = Decoder("task", SHAPES["task"], RULES)
            for raw in (first, second, second, first):
                decoded = one.decode(raw)
                assert decoded is not None
                assert exactly(decoded) == exactly(judged(raw))


def test_where_no_field_may_be_dropped_it_takes_what_has_none_to_drop() -> None:
    for rows in ([task("a"), task("b")], [task("a"), task("b", context=None)], []):
        raw = body("task", *rows)
        assert exactly(strict_decoder.decode(raw)) == exactly(strict_parser.validate("task", raw))


def test_bodies_whose_rows_are_alike_are_decoded_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    one = Decoder("task", SHAPES["task"], RULES)
    monkeypatch.setattr(one, "_decode_mixed", None)
    for context in ("a", "b"):
        for raw in (body("task", task("a")), body("task", task("a", context=context), task("b", context=context))):
            assert exactly(one.decode(raw)) == exactly(judged(raw))


@pytest.mark.parametrize("name", ["unknown", "created_at", "updated_at"])
@pytest.mark.parametrize("value", [1, "x", None, [], {"a": 1}])
def test_a_field_that_no_row_has_is_dropped_or_left_to_the_parser(name: str, value: Any) -> None:
    for rows in ([task("a") | {name: value}], [task("a"), task("b") | {name: value}]):
        for raw in (body("task", *rows), b'{"x": 1, ' + body("task", task("a"))[1:]):
            assert strict_decoder.decode(raw) is None
            decoded = decoder.decode(raw)
            assert decoded is not None
            assert exactly(decoded) == exactly(judged(raw))
