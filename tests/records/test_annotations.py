"""What a field may be is said once, by pydantic's annotations; what of them is not known ends the import."""

from __future__ import annotations

from typing import Annotated, Any, Required

import msgspec
import pytest
from pydantic import Field
from typing_extensions import TypedDict

from tornado_persist.records.annotations import fields_like, required, types_of


class Pet(TypedDict, total=False):
    name: Required[Annotated[str, Field(min_length=1, max_length=3, pattern="^x")]]
    age: Annotated[int, Field(ge=0, le=30)] | None
    more: dict[str, Any]


@pytest.mark.parametrize(
    ("field", "good", "bad"),
    [("name", b'"abc"', [b'""', b'"abcd"', b"1"]), ("age", b"null", [b"-1", b"31", b"1.5"]), ("more", b"{}", [b"[]"])],
)
def test_a_type_takes_what_the_annotation_does(field: str, good: bytes, bad: list[bytes]) -> None:
    decoder = msgspec.json.Decoder(types_of(Pet, patterns=["^x"])[field])
    decoder.decode(good)
    for one in bad:
        with pytest.raises(msgspec.ValidationError):
            decoder.decode(one)


def test_fields_are_found_by_their_pattern() -> None:
    assert fields_like(Pet, "^x") == ["name"]


def test_required_fields_are_told() -> None:
    assert required(Pet) == {"name"}


@pytest.mark.parametrize(
    "hint", [bytes, list[str], Annotated[int, Field(multiple_of=2)], Annotated[str, Field(pattern="a")]]
)
def test_a_type_or_constraint_that_is_not_known_is_an_error(hint: Any) -> None:
    make: Any = TypedDict
    with pytest.raises(TypeError, match="there is no such"):
        types_of(make("Odd", {"field": hint}), patterns=["b"])
