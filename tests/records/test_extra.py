"""``unknown_fields = "keep"``: fields that are not in the specification go into ``extra``."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.rows import body, row
from tornado_persist.errors import InvalidBatch
from tornado_persist.records.models import KINDS, SHAPES, Kind
from tornado_persist.records.parser import Parser
from tornado_persist.records.rules import Parsed


@pytest.fixture(params=["parse", "validate"])
def parse(request: pytest.FixtureRequest) -> Any:
    return getattr(Parser(unknown_fields="keep", invalid_rows="set_aside"), request.param)


def replayed(kind: Kind, parsed: Parsed) -> list[dict[str, Any]]:
    return [dict(row) for row in Parser(replay=True).parse(kind, parsed.body).rows]


@pytest.mark.parametrize("kind", KINDS)
def test_each_row_keeps_its_own_and_a_replay_gives_the_same(parse: Any, kind: Kind) -> None:
    rows = [row(kind, "a", cost=1.5, tags=["x"]), row(kind, "b"), row(kind, "c", extra={"译": None})]
    parsed = parse(kind, body(kind, *rows))
    assert [kept.get("extra") for kept in parsed.rows] == [{"cost": 1.5, "tags": ["x"]}, None, {"extra": {"译": None}}]
    assert [dict(kept)[f"{kind}_id"] for kept in parsed.rows] == ["a", "b", "c"]
    assert (parsed.ignored, parsed.ignored_rows) == ([], 0)
    assert replayed(kind, parsed) == [dict(kept) for kept in parsed.rows]


def test_a_body_without_such_fields_is_journalled_as_it_came(parse: Any) -> None:
    sent = body("task", row("task", "a"))
    assert parse("task", sent).body == sent


def test_fields_beside_the_list_are_named_as_ignored(parse: Any) -> None:
    sent = json.dumps({"tasks": [row("task", "a", cost=1)], "client": "x"}).encode()
    parsed = parse("task", sent)
    assert (parsed.ignored, parsed.rows[0]["extra"]) == (["client"], {"cost": 1})


@pytest.mark.parametrize(
    ("value", "loc"),
    [("a\0", ("tasks", 1, "bad")), (float("inf"), ("tasks", 1, "bad")), ([[[[[]]]]] * 1, None)],
)
def test_what_no_sink_could_store_is_named_by_row_and_field(value: Any, loc: tuple[Any, ...] | None) -> None:
    sent = json.dumps({"tasks": [row("task", "a"), row("task", "b", bad=value)]}).encode()
    for parser in (Parser(unknown_fields="keep").parse, Parser(unknown_fields="keep").validate):
        if loc is None:
            assert parser("task", sent).rows[1]["extra"] == {"bad": value}
        else:
            with pytest.raises(InvalidBatch) as caught:
                parser("task", sent)
            assert caught.value.errors[0]["loc"] == list(loc)


def test_it_may_be_as_deep_as_other_objects() -> None:
    def nested(levels: int) -> Any:
        return [] if levels == 1 else [nested(levels - 1)]

    parser = Parser(unknown_fields="keep")
    assert parser.parse("task", body("task", row("task", "a", deep=nested(19)))).rows[0]["extra"]
    with pytest.raises(InvalidBatch, match="nested") as caught:
        parser.parse("task", body("task", row("task", "a", deep=nested(20))))
    assert caught.value.errors[0]["loc"][:3] == ["tasks", 0, "deep"]


def test_rows_beside_one_that_is_set_aside_keep_their_own(parse: Any) -> None:
    rows = [row("task", "a", n=0), row("task", "b", n=1, row_index="x"), row("task", "c", n=2)]
    parsed = parse("task", body("task", *rows))
    assert [(kept["task_id"], kept["extra"]) for kept in parsed.rows] == [("a", {"n": 0}), ("c", {"n": 2})]
    assert replayed("task", parsed) == [dict(kept) for kept in parsed.rows]


def test_beside_what_is_no_object_or_no_json(parse: Any) -> None:
    sent = json.dumps({"tasks": [row("task", "a", n=1), 5, row("task", "b", row_index=float("nan"))]}).encode()
    parsed = parse("task", sent)
    assert [kept["extra"] for kept in parsed.rows] == [{"n": 1}]
    assert [(wrong.index, b"NaN" in wrong.text) for wrong in parsed.wrong] == [(1, False), (2, True)]


def test_a_row_whose_fields_are_nested_too_deep_is_set_aside_alone(parse: Any) -> None:
    deep = json.loads("[" * 20 + "]" * 20)
    rows = [row("task", "a", deep=deep), row("task", "b", row_index="x"), row("task", "c", n=1)]
    parsed = parse("task", body("task", *rows))
    assert [kept["task_id"] for kept in parsed.rows] == ["c"]
    assert [(wrong.index, json.loads(wrong.text)) for wrong in parsed.wrong] == [(0, rows[0]), (1, rows[1])]
    assert parsed.wrong[0].errors[0]["loc"][:3] == ["tasks", 0, "deep"]
    assert replayed("task", parsed) == [dict(kept) for kept in parsed.rows]
    with pytest.raises(InvalidBatch) as caught:
        parse("task", body("task", *rows[:2]))
    assert (caught.value.rows, len(caught.value.errors)) == (2, 2)


def test_a_field_called_extra_that_was_dropped_does_not_come_back_with_a_replay() -> None:
    parsed = Parser().parse("task", body("task", row("task", "a", extra={"n": 1})))
    assert (parsed.ignored, "extra" in parsed.rows[0]) == (["extra"], False)
    assert "extra" not in replayed("task", parsed)[0]


def test_waiting_updates_merge_name_by_name_and_a_null_waits_too() -> None:
    shapes = SHAPES["task"]
    older = shapes.row({**row("task", "a"), "extra": {"a": 1, "b": {"x": 1}, "c": 3}})
    newer = shapes.row({**row("task", "a"), "extra": {"b": {"y": 2}, "c": None}})
    assert shapes.merge(older, newer)["extra"] == {"a": 1, "b": {"y": 2}, "c": None}


@pytest.mark.parametrize("value", [5, None, [1], "x", "deep"])
def test_a_replay_never_fails_for_a_clients_own_field_of_that_name(value: Any) -> None:
    deep: Any = {}
    for _ in range(30):
        deep = {"a": deep}
    sent = body("task", row("task", "a", extra=deep if value == "deep" else value), row("task", "b", extra={"n": 1}))
    first, second = Parser(replay=True).parse("task", sent).rows
    assert "extra" not in first
    assert second["extra"] == {"n": 1}
