"""pydantic's annotations as msgspec's, so that what a field may be stands in one place.

A type or a kind of constraint that is not known here is an error at import, not a check that is silently left out.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from types import UnionType
from typing import Annotated, Any, Literal, Required, Union, get_args, get_origin, get_type_hints

import msgspec
from annotated_types import Ge, Le, MaxLen, MinLen
from pydantic.fields import FieldInfo


def types_of(record: type, patterns: Collection[str]) -> dict[str, Any]:
    """The fields of a TypedDict with their types for msgspec, required or not.

    Texts that have one of ``patterns`` are texts: whoever decodes them looks at the pattern.

    Raises:
        TypeError: a field is of a type, or has a constraint, that is not known here.
    """
    return {name: _type(hint, patterns) for name, hint in get_type_hints(record, include_extras=True).items()}


def required(record: type) -> frozenset[str]:
    """The fields of a TypedDict that are required."""
    # Its own __required_keys__ does not see that in annotations which are texts.
    hints = get_type_hints(record, include_extras=True)
    return frozenset(name for name, hint in hints.items() if get_origin(hint) is Required)


def fields_like(record: type, pattern: str) -> list[str]:
    """The fields of a TypedDict that have this pattern."""
    hints = get_type_hints(record, include_extras=True)
    return [name for name, hint in hints.items() if pattern in _patterns(hint)]


def _type(hint: Any, patterns: Collection[str]) -> Any:
    origin, arguments = get_origin(hint), get_args(hint)
    if origin is Required:
        return _type(arguments[0], patterns)
    if origin is Annotated:
        return Annotated[_type(arguments[0], patterns), _meta(arguments[1:], patterns)]
    if origin in (Union, UnionType):
        return Union[tuple(_type(argument, patterns) for argument in arguments)]  # noqa: UP007
    if origin is Literal or hint in (str, int, float, type(None), dict[str, Any]):
        return hint
    raise TypeError(f"there is no such type for msgspec: {hint}")


def _meta(metadata: tuple[Any, ...], patterns: Collection[str]) -> msgspec.Meta:
    limits: dict[str, Any] = {}
    for constraint in _constraints(metadata):
        match constraint:
            case MinLen():
                limits["min_length"] = constraint.min_length
            case MaxLen():
                limits["max_length"] = constraint.max_length
            case Ge():
                limits["ge"] = constraint.ge
            case Le():
                limits["le"] = constraint.le
            case _:
                # JSON cannot say NaN to msgspec.
                known = {"allow_inf_nan": (False,), "pattern": patterns}
                said = getattr(constraint, "__dict__", {"": constraint})
                if any(value not in known.get(name, ()) for name, value in said.items()):
                    raise TypeError(f"there is no such constraint for msgspec: {constraint}")
    return msgspec.Meta(**limits)


def _constraints(metadata: tuple[Any, ...]) -> Iterator[Any]:
    for item in metadata:
        yield from item.metadata if isinstance(item, FieldInfo) else [item]


def _patterns(hint: Any) -> Iterator[str]:
    """Every pattern within an annotation."""
    if get_origin(hint) is Annotated:
        for constraint in _constraints(hint.__metadata__):
            yield from [constraint.pattern] if hasattr(constraint, "pattern") else []
    for argument in get_args(hint):
        yield from _patterns(argument)
