"""Mutated request bodies: both validators accept the same ones and read the same rows, and nothing but a refusal is
raised. ``pytest tests/fuzz --fuzz-examples 100000`` runs longer.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.rows import body, session, task
from tornado_persist.cli.lines import as_sent
from tornado_persist.errors import BatchRefused
from tornado_persist.records.models import FIELDS, KEYS, KINDS, PLURALS, Fields, Kind
from tornado_persist.records.parser import Parser
from tornado_persist.records.rules import Parsed

LIMIT = 4  # rows in a body
PARSERS = [
    Parser(max_batch=LIMIT),
    Parser(max_batch=LIMIT, unknown_fields="reject"),
    Parser(max_batch=LIMIT, statuses=["pending", "cancelled"], timezone=ZoneInfo("Europe/Berlin")),
    Parser(max_batch=LIMIT, invalid_rows="set_aside"),
    Parser(max_batch=LIMIT, unknown_fields="keep"),
    Parser(max_batch=LIMIT, unknown_fields="keep", invalid_rows="set_aside"),
    Parser(replay=True),
]
REPLAY = PARSERS[-1]
KEEPING = PARSERS[4:6]

texts = st.text(max_size=6) | st.sampled_from(
    ["a b", " a", "a\n", "\x7f", "\0", "\x85", "\ud800", "}{", '\\"', "k" * 65, "n" * 256]
)
moments = st.datetimes().map(str) | st.sampled_from(
    ["2025-02-30T00:00:00", "2025-09-30T16:35:00+08", "2025-09-30t16:35:00,5z", "2025-12-31T24:00:00"]
)
numbers = st.integers() | st.floats() | st.sampled_from([True, 2**31, 2**63, 10**400, 5.0, 1e18, 2.0**63])
values = st.recursive(
    st.none() | texts | moments | numbers,
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(texts, inner, max_size=2),
    max_leaves=4,
)
nested = st.integers(18, 23).map(lambda depth: json.loads('{"a":' * depth + "1" + "}" * depth))

#: Optional fields with values that are allowed, so that the rows of a body come with different sets of fields.
MORE: dict[Kind, dict[str, Any]] = {
    "session": {"game_info": {"tags": [1, 2.5, None]}, "metadata": None, "total_tasks": 3},
    "task": {
        "target_text": "你好",
        "context": None,
        "confidence": 0.5,
        "retry_count": 2,
        "start_time": "2025-09-30 16:35",
        "end_time": "2025-09-30T16:35:00.123456",
        "duration_ms": 5,
    },
}
#: Keys that are refused for a character at some place.
KEYS_WRONG = [" a", "a ", "a\n", "a\tb", "a\x7fb", "a\x85b", "\u3000a", "a\0"]
#: What a byte-level mutation may put into a body.
TOKENS = [b'"', b"\\", b"{", b"}", b"[", b"]", b",", b":", b"null", b"NaN", b"Infinity", b"1e999", b"-0", b"\\u0000"]
TOKENS += [b"\\ud800", b"\xff", b"\xed\xa0\x80", b"\xef\xbb\xbf", b"\0", b'"x":1,', b'"status":"failed",', b" "]


@st.composite
def valid(draw: st.DrawFn, kind: Kind) -> list[Fields]:
    """Rows that are accepted."""
    rows = []
    for number in range(draw(st.integers(1, LIMIT))):
        names = draw(st.sets(st.sampled_from(list(MORE[kind]))))
        row = session(f"s{number}") if kind == "session" else task(f"t{number}")
        rows.append(row | {name: MORE[kind][name] for name in names})
    return rows


@st.composite
def changed_json(draw: st.DrawFn, kind: Kind) -> bytes:
    """A body in which fields were replaced, added, renamed or taken away."""
    rows = draw(valid(kind))
    for _ in range(draw(st.integers(1, 3))):
        row = draw(st.sampled_from(rows))
        name = draw(st.sampled_from([*FIELDS[kind], "unknown", "created_at", "a\0b"]))
        match draw(st.sampled_from(["replace", "remove", "key"])):
            case "replace":
                row[name] = draw(texts | moments | numbers | values | nested)
            case "remove":
                row.pop(name, None)
            case "key":
                row[draw(st.sampled_from(KEYS[kind]))] = draw(st.sampled_from(KEYS_WRONG) | texts)
    whole: Fields = {PLURALS[kind]: rows}
    if not draw(st.integers(0, 9)):
        whole[draw(texts)] = draw(values)
    escaped = draw(st.booleans())
    return json.dumps(whole, ensure_ascii=escaped).encode("utf-8", "surrogatepass")


@st.composite
def changed_bytes(draw: st.DrawFn, kind: Kind) -> bytes:
    """A body with pieces overwritten, added, repeated or cut out."""
    raw = bytearray(json.dumps({PLURALS[kind]: draw(valid(kind))}, ensure_ascii=draw(st.booleans())).encode())
    for _ in range(draw(st.integers(1, 3))):
        start = draw(st.integers(0, len(raw)))
        stop = min(len(raw), start + draw(st.integers(0, 12)))
        piece = draw(st.sampled_from(TOKENS) | st.binary(max_size=3) | st.just(bytes(raw[start:stop]) * 2))
        raw[start:stop] = piece
    return bytes(raw)


def outcome(parse: Callable[[Kind, bytes], Parsed], kind: Kind, raw: bytes) -> Any:
    """What a body became, or else the refusal. Any other exception ends the test."""
    try:
        return exactly(parse(kind, raw))
    except BatchRefused as refusal:
        return type(refusal), str(refusal), getattr(refusal, "errors", None)


def exactly(parsed: Parsed) -> dict[str, Any]:
    """As texts, which differ for 1, 1.0 and True."""
    rows = [[(name, repr(value)) for name, value in row.items()] for row in parsed.rows]
    return {
        "rows": rows,
        "body": parsed.body,
        "ignored": (parsed.ignored, parsed.ignored_rows),
        "wrong": [(wrong.index, wrong.text, wrong.errors) for wrong in parsed.wrong],
    }


def agree(kind: Kind, raw: bytes) -> None:
    for parser in PARSERS:
        became = outcome(parser.parse, kind, raw)
        judgement = outcome(parser.validate, kind, raw)
        if parser is REPLAY:
            for one in (became, judgement):
                if isinstance(one, dict):
                    del one["ignored"]  # not compared
        assert became == judgement
        if isinstance(became, dict):
            # The journal's body gives the same rows under any later settings, and nothing changes again.
            assert exactly(REPLAY.parse(kind, became["body"]))["rows"] == became["rows"]
            sent = as_sent if parser in KEEPING else dict
            again = body(kind, *(sent(dict(row)) for row in parser.parse(kind, raw).rows))
            assert exactly(parser.parse(kind, again))["rows"] == became["rows"]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("mutate", [changed_json, changed_bytes])
def test_both_validators_agree_on_a_mutated_body(
    kind: Kind, mutate: Callable[[Kind], st.SearchStrategy[bytes]], fuzz_examples: int
) -> None:
    @settings(max_examples=fuzz_examples)
    @given(mutate(kind))
    def check(raw: bytes) -> None:
        agree(kind, raw)

    check()


@pytest.mark.parametrize("kind", KINDS)
def test_the_fast_path_takes_every_valid_body(kind: Kind, fuzz_examples: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else the tests above would compare pydantic with itself."""
    fast = [Parser(), Parser(unknown_fields="reject"), Parser(timezone=ZoneInfo("Asia/Shanghai"))]
    for parser in fast:
        monkeypatch.setattr(parser, "_judges", {})

    @settings(max_examples=fuzz_examples // 4)
    @given(valid(kind))
    def check(rows: list[Fields]) -> None:
        for parser in fast:
            assert len(parser.parse(kind, body(kind, *rows)).rows) == len(rows)

    check()
