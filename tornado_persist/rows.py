"""Rows as they wait for the sink: as small as Python has them, and alike where they hold the same fields.

A row holds just the fields that were sent, for a field left out says "keep what is stored". As a dict it would say so
by itself, but of a row's time most went into dicts: filled by the decoder, looked up field by field by the encoder,
when they had long left the cache, and freed. So there is a class for each set of fields (a *shape*), made when rows
with that set first come, and the rows of a shape are tuples with names: 160 bytes instead of 464, decoded in half the
time and read by column in half the time (``bench/parts.py``); together a row takes a fifth less of the processor.
There are as many shapes as there are sets of optional fields, 256 for tasks and 64 for sessions, and clients send few.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, cast

import msgspec
from msgspec import UNSET, UnsetType


class Row(msgspec.Struct, kw_only=True, gc=False, eq=False, forbid_unknown_fields=True):
    """The fields that were sent and, once accepted, the times of the first and the last update.

    To whoever does not care for speed it is a mapping from names to values that cannot be changed: ``row["status"]``,
    ``row.get("context")``, ``dict(row)``, ``{**row, ...}``; it equals any mapping with the same items.
    """

    # Texts, once they are set. No JSON decodes as such a type, so that a client's own field of that name is one that is
    # not in the specification.
    created_at: UnsetType = UNSET
    updated_at: UnsetType = UNSET

    def __getitem__(self, name: str) -> Any:
        if name in self.__struct_fields__ and (value := getattr(self, name)) is not UNSET:
            return value
        raise KeyError(name)

    def get(self, name: str, default: Any = None) -> Any:
        try:
            return self[name]
        except KeyError:
            return default

    def keys(self) -> list[str]:
        return [name for name in self.__struct_fields__ if getattr(self, name) is not UNSET]

    def items(self) -> list[tuple[str, Any]]:
        return [(name, getattr(self, name)) for name in self.keys()]

    def __iter__(self) -> Iterator[str]:
        return iter(self.keys())

    def __len__(self) -> int:
        return len(self.keys())

    def __contains__(self, name: object) -> bool:
        return name in self.keys()

    def __eq__(self, other: object) -> bool:
        return dict(self) == dict(other) if isinstance(other, Row | Mapping) else NotImplemented

    __hash__ = None  # type: ignore[assignment]


class Shapes:
    """The classes of one kind's rows, each made once."""

    def __init__(self, name: str, types: Mapping[str, Any]) -> None:
        """``types``: every field in the order of the specification, with the type that a decoder shall hold it to."""
        self._name = name
        self._types = types
        self._known: dict[frozenset[str], type[Row]] = {}
        self._together: dict[tuple[type[Row], type[Row]], type[Row]] = {}

    def find(self, names: Iterable[str]) -> type[Row]:
        """The class of rows with these fields.

        Raises:
            KeyError: there is no field of such a name.
        """
        wanted = frozenset(names)
        shape = self._known.get(wanted)
        if shape is None:
            if unknown := wanted - self._types.keys():
                raise KeyError(f"a {self._name} has no field {', '.join(sorted(unknown))}")
            fields = [(name, type_) for name, type_ in self._types.items() if name in wanted]
            # It inherits the options but for kw_only, so that these fields go before the two of Row.
            shape = cast(type[Row], msgspec.defstruct(self._name, fields, bases=(Row,), module=__name__))
            self._known[wanted] = shape
        return shape

    def row(self, fields: Mapping[str, Any]) -> Row:
        """A row with these fields, the times of its updates among them if it has any.

        Raises:
            KeyError: there is no field of some name.
        """
        return self.find(fields.keys() - Row.__struct_fields__)(**fields)

    def overlay(self, older: Row, newer: Row) -> Row:
        """``newer`` merged into ``older`` by the merge rule: a field that it has replaces.

        It may be changed, and be the result.
        """
        shape = type(newer)
        whole = shape if type(older) is shape else self._union(type(older), shape)
        # Mostly it is the newer row as it stands: clients send the same fields again, or more.
        merged = newer if whole is shape else whole(**{**dict(older), **dict(newer)})
        merged.created_at = older.created_at
        return merged

    def _union(self, one: type[Row], other: type[Row]) -> type[Row]:
        """The class of rows with the fields of both."""
        both = self._together.get((one, other))
        if both is None:
            names = {*one.__struct_fields__, *other.__struct_fields__}.difference(Row.__struct_fields__)
            both = self._together[one, other] = self.find(names)
        return both
