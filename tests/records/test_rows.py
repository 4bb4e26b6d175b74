"""A row is a mapping of the fields that were sent; merged, it is what a dict would be."""

from __future__ import annotations

import copy
import sys
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tornado_persist.records.models import Row, Shapes

shapes = Shapes("pet", {"name": str, "age": int, "colour": str})
fields = st.dictionaries(st.sampled_from(["name", "age", "colour"]), st.none() | st.integers(0, 3))


def test_a_row_reads_as_a_mapping_of_what_was_sent() -> None:
    row = shapes.row({"colour": None, "name": "Rex"})
    assert row == {"name": "Rex", "colour": None}
    assert row != {"name": "Rex"}
    assert row == copy.deepcopy(row)
    assert (list(row), len(row), dict(row)) == (["name", "colour"], 2, {"name": "Rex", "colour": None})
    assert ("colour" in row, "age" in row, "created_at" in row, "keys" in row) == (True, False, False, False)
    assert (row["name"], row.get("colour", 1), row.get("age", 1), {**row, "age": 3}["age"]) == ("Rex", None, 1, 3)
    for name in ("age", "created_at", "keys"):
        with pytest.raises(KeyError, match=name):
            row[name]


def test_the_times_of_its_updates_are_fields_once_they_are_set() -> None:
    row = shapes.row({"name": "Rex", "created_at": "1", "updated_at": "2"})
    assert type(row) is shapes.find(["name"])
    assert row.items() == [("name", "Rex"), ("created_at", "1"), ("updated_at", "2")]


def test_rows_with_the_same_fields_are_of_one_class() -> None:
    assert shapes.find(["name", "age"]) is shapes.find(["age", "name"]) is not shapes.find(["age"])


def test_a_field_that_no_row_has_is_an_error() -> None:
    with pytest.raises(KeyError, match="a pet has no field tail, wings"):
        shapes.row({"name": "Rex", "wings": 2, "tail": 1})


def test_json_has_the_fields_that_are_there_in_the_order_of_the_specification() -> None:
    row = shapes.row({"colour": "red", "name": "Rex"})
    assert msgspec.json.encode(row) == b'{"name":"Rex","colour":"red"}'


def test_no_json_sets_the_times() -> None:
    decoder = msgspec.json.Decoder(shapes.find(["name"]))
    for value in (b'"x"', b"null", b"{}"):
        with pytest.raises(msgspec.ValidationError):
            decoder.decode(b'{"name": "Rex", "created_at": ' + value + b"}")


@given(fields, fields)
def test_a_merged_row_is_what_a_dict_would_be(older: dict[str, Any], newer: dict[str, Any]) -> None:
    first, second = ({"created_at": at, "updated_at": at} for at in "12")
    merged = shapes.merge(shapes.row({**older, **first}), shapes.row({**newer, **second}))
    assert merged == {**older, **newer, "created_at": "1", "updated_at": "2"}
    assert type(merged) is shapes.find([*older, *newer])


def test_a_row_is_as_small_as_its_values() -> None:
    row: Row = shapes.row({"name": "Rex", "age": 3})
    assert sys.getsizeof(row) <= 16 + 8 * 4
