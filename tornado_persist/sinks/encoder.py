"""Rows as the text that a driver's bulk protocol takes."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterator, Sequence
from datetime import datetime
from itertools import islice
from typing import Any, ClassVar, TypeVar

from sqlalchemy import JSON, Column, Float, Integer, Table

from tornado_persist.models import Row
from tornado_persist.sinks.tables import TimeType, dump_json

#: Rows that are encoded at a time: enough to spread the cost, few enough to stay in the cache.
_BLOCK = 500

T = TypeVar("T")


def batched(items: Collection[T], size: int) -> Iterator[list[T]]:
    """``items`` in lists of at most ``size``."""
    iterator = iter(items)
    while some := list(islice(iterator, size)):
        yield some


class Encoder(ABC):
    """Spells values for a text protocol, a column of some hundred rows at a time.

    By column and not by row, because most columns need no look at the single value: one search through all of a
    column's texts tells that nothing in them has to be escaped, and most times are the same few.
    """

    #: How null is spelt.
    null: ClassVar[str]
    #: What stands around a text, a time and JSON.
    quote: ClassVar[str]
    #: The characters that :meth:`escape` replaces.
    special: ClassVar[str]

    def __init__(self, table: Table) -> None:
        self._spellings = {column.name: self._spelling(column) for column in table.c}

    def blocks(self, fields: Sequence[str], rows: Sequence[Row]) -> Iterator[Iterator[tuple[str, ...]]]:
        """The values of ``rows`` in the order of ``fields``, as texts; some hundred rows at a time."""
        for block in batched(rows, _BLOCK):
            yield zip(*(self._spellings[name]([row[name] for row in block]) for name in fields), strict=True)

    @abstractmethod
    def escape(self, text: str) -> str: ...

    @abstractmethod
    def time(self, value: datetime) -> str:
        """Without quotes."""

    def number(self, value: float) -> str:
        return str(value)

    def _spelling(self, column: Column[Any]) -> Callable[[list[Any]], list[str]]:
        match column.type:
            case TimeType():
                return self._times
            case JSON():
                return self._objects
            case Float() | Integer():
                return self._numbers
            case _:
                return self._texts

    def _texts(self, values: list[str | None]) -> list[str]:
        everything = "".join([value for value in values if value is not None])
        if any(character in everything for character in self.special):
            values = [None if value is None else self.escape(value) for value in values]
        null, quote = self.null, self.quote
        if not quote:
            return [null if value is None else value for value in values]
        return [null if value is None else f"{quote}{value}{quote}" for value in values]

    def _objects(self, values: list[Any]) -> list[str]:
        return self._texts([None if value is None else dump_json(value) for value in values])

    def _times(self, values: list[datetime | None]) -> list[str]:
        spelt: dict[datetime | None, str] = {None: self.null}
        for value in values:
            if value not in spelt:
                assert value is not None
                spelt[value] = f"{self.quote}{self.time(value)}{self.quote}"
        return [spelt[value] for value in values]

    def _numbers(self, values: list[float | None]) -> list[str]:
        return [self.null if value is None else self.number(value) for value in values]
