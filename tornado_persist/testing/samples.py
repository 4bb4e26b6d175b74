"""Rows as sinks are given them, and values that some sink could garble."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

from tornado_persist.records.models import MAX_INT32, MAX_INT64, SHAPES, Fields, Kind, Row
from tornado_persist.records.times import stamp

T0 = datetime(2025, 9, 30, 16, 35, 0, 123456, tzinfo=UTC)
SECOND = timedelta(seconds=1)


def session(session_id: str = "s", /, *, at: Any = T0, **fields: Any) -> Row:
    """A session as sinks are given them: what is required, ``fields``, and ``at`` for both its times.

    A time may be given as an aware ``datetime``; in the row it is a text.
    """
    file = {"filename": "test.xlsx", "file_path": "/uploads/test.xlsx", "status": "pending", "llm_provider": "openai"}
    return _spelt("session", {"session_id": session_id, **file, "created_at": at, "updated_at": at, **fields})


def task(task_id: str = "t", /, *, at: Any = T0, **fields: Any) -> Row:
    """A task as sinks are given them: what is required, ``fields``, and ``at`` for both its times; see session()."""
    ids = {"task_id": task_id, "session_id": "s", "batch_id": "b"}
    cell = {"sheet_name": "Sheet1", "row_index": 1, "column_name": "Text", "source_text": "Hello", "status": "pending"}
    return _spelt("task", {**ids, **cell, "created_at": at, "updated_at": at, **fields})


def _spelt(kind: Kind, fields: Fields) -> Row:
    return SHAPES[kind].row({name: in_row(value) for name, value in fields.items()})


def in_row(value: Any) -> Any:
    """A ``datetime`` in UTC as rows hold it, anything else as it is."""
    return stamp(value) if isinstance(value, datetime) and value.utcoffset() == timedelta(0) else value


# Texts: on their way through a statement, a COPY stream, JSON, or a line of a file.
TEXTS = (
    *("", " ", "  both ends  ", "two  blanks", "你好、世界", "\U0001f600\U0001f468\u200d\U0001f469\u200d\U0001f467"),
    *("𠜎", "it's", 'say "hi"', "`tick`", "''", '""', "\\", "\\\\", "\\'", "\\N", "\\.", "\n\\.\n", "\\n", "\\x41"),
    *("\\u0041", "\\0", "\t", "\n", "\r", "\r\n", "a\tb\nc\rd", "\n\n", "\u2028\u2029\x85", "\v\f\b\a\x1a\x1b\x7f"),
    *("\u00a0", "\ufeffBOM", "".join(map(chr, range(1, 32))), "".join(map(chr, range(127, 160)))),
    *("\uffff\ufffe\ufffd\U0010ffff", "e\u0301", "é", "<a href='#'>&amp;</a>", "--", "#", "/*", "NULL", "null"),
    *("%", "%%", "%s", "%(task_id)s", "%d", ":name", ":1", "::text", "?", "$1", "@a", "{}", "{0}", "${x}", "$$"),
    *("NaN", "0", "0x00", "true", "{", "[]", "'; DROP TABLE translation_tasks; --"),
)

# Keys that some collation takes for one another, or that a statement could garble.
KEYS_ALIKE = (
    *("key", "KEY", "Key", "kéy", "ke\u0301y", "kêy", "key\u0301", "\uff4b\uff45\uff59", "ke\u200by", "ke\u00ady"),
    *("key\u200d", "straße", "strasse", "STRASSE", "\u0131", "i", "I", "İ", "ss", "ß", "ẞ", "æ", "ae", "ﬁ", "fi"),
    *("Ω", "\u2126", "²", "2", "か", "が", "か\u3099", "カ", "ｶ", "\U0001f600", "\U0001f601", "👍", "👍🏽", "你", "好"),
    *("𠜎", "𠜱", "\ud7ff", "\ue000", "a b", "a  b", "a\u00a0b", "a\u2028b", "a\u3000b", "a", "aa", "a.", "a_", "a%"),
    *("_", "%", "é" * 64, "\U0001f600" * 64, "k" * 64, "k" * 63, "0", "00", "0.0", "-0", "1e0", "1", "null", "NULL"),
    *("it's", 'a"b', "a\\b", "\\", "\\N", "\\.", "a,b", "%s", "%(key)s", ":key", "?", "$1", "{0}", "--", "/*", "*/"),
    *("#", ";", "(", "\ufeff", "\uffff", "\U0010ffff"),
)

JSON_OBJECTS: tuple[dict[str, Any], ...] = (
    {},
    {"a": None, "b": True, "c": False, "d": 0, "e": 1, "f": "", "g": [], "h": {}},
    {"": "empty name", " ": 1, "null": None, "a.b": 1, "$ref": "$.a", "it's": 1, 'a"b': 1, "a\\b": 1, "键": "值"},
    {text: text for text in TEXTS},
    {"list": list(TEXTS)},
    {"integers": [0, -1, MAX_INT32, -(2**31), MAX_INT64, -(2**63), 2**53 + 1, 2**64, 10**30]},
    {"floats": [0.1, -0.5, 1.5, 1 / 3, 1e-7, 1.7976931348623157e308, 1e22, 5e-324, 123456789.123456789]},
    {"mixed": [1, "1", 1.5, True, None, [], {}, [[[]]], {"a": [{"b": [{}]}]}], "a": "null", "b": "[]", "c": "{}"},
    {"A": 1, "a": 2, "á": 3, "a\u0301": 4, "key order": {"z": 1, "a": 2, "aa": 3}},
)

#: For each kind a value for every field that may be left out.
FULL: Mapping[Kind, Fields] = {
    "session": {
        "game_info": {"game_name": "标题", "n": [1, 2.5, None]},
        "metadata": {"user_id": "user123"},
        "total_tasks": 100,
        "completed_tasks": 1,
        "failed_tasks": 2,
        "processing_tasks": 3,
    },
    "task": {
        "target_text": "你好",
        "context": "Greeting",
        "confidence": 0.95,
        "error_message": "none",
        "retry_count": 2,
        "start_time": T0 - SECOND,
        "end_time": T0,
        "duration_ms": 5000,
    },
}


def subsets(fields: Fields, present: bool) -> Iterator[Fields]:
    """Every subset of ``fields``; or, in the same order, what each of them lacks."""
    for chosen in itertools.product((True, False), repeat=len(fields)):
        yield {name: value for (name, value), taken in zip(fields.items(), chosen, strict=True) if taken is present}


def nested() -> dict[str, Any]:
    """An object of 20 levels, of objects and arrays in turn."""
    value: dict[str, Any] = {"最内": "\U0001f600"}
    for _ in range(9):
        value = {"k": [value]}
    return {"k": value}
