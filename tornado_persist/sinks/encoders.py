"""Rows as the text that a driver's bulk protocol takes."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice, repeat
from typing import Any, ClassVar, Generic, NamedTuple, Self, TypeVar

from msgspec.structs import astuple
from sqlalchemy import JSON, Column, Float, Integer, Table

from tornado_persist.records.models import Row
from tornado_persist.sinks.tables import TimeType, dump_json

#: Rows to encode at a time: enough to spread the cost, few enough to stay in the cache.
BLOCK = 500

T = TypeVar("T")


def batched(items: Collection[T], size: int) -> Iterator[list[T]]:
    """``items`` in lists of at most ``size``."""
    iterator = iter(items)
    while some := list(islice(iterator, size)):
        yield some


class Ahead(Generic[T]):
    """Items of which the next is made in another thread while the database works on the last.

    Else the encoder and the database would take turns. Used as a context, which ends the thread.
    """

    def __init__(self, items: Iterator[T]) -> None:
        self._items = items
        self._pool: ThreadPoolExecutor | None = None
        self._begun: Future[T | None] | None = None

    def begin(self) -> None:
        """Begin to make the next item."""
        self._pool = self._pool or ThreadPoolExecutor(1, "encoder")
        self._begun = self._pool.submit(next, self._items, None)

    def take(self) -> T | None:
        """The next item, which is waited for, or made here if it was not begun; None after the last."""
        begun, self._begun = self._begun, None
        return begun.result() if begun else next(self._items, None)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *args: object) -> None:
        if self._pool is not None:
            self._pool.shutdown()


class Encoder(ABC):
    """Spells rows for a text protocol, column by column.

    By column and not by row, because most columns need no look at the single value: one search through all of a
    column's texts tells that nothing in them has to be escaped, and where none is null, they are taken as they are.
    """

    #: How null is spelt.
    null: ClassVar[str]
    #: What stands around a text, a time and JSON.
    quote: ClassVar[str]
    #: The characters that :meth:`escape` replaces.
    special: ClassVar[str]
    #: What stands before, between and after the values of a row.
    opening: ClassVar[str]
    separator: ClassVar[str]
    closing: ClassVar[str]

    def __init__(self, table: Table) -> None:
        self._spellings = {column.name: self._spelling(column) for column in table.c}

    def encode(self, fields: Sequence[str], rows: Collection[Row]) -> list[str]:
        """Each row as a text; to be called for ``BLOCK`` rows at a time, which all hold ``fields``, in this order."""
        return self._join(self._spell(fields, rows))

    def columns(self, fields: Sequence[str], rows: Collection[Row]) -> list[str]:
        """Each column as a text: its values between ``opening`` and ``closing``."""
        texts = []
        for column in self._spell(fields, rows):
            quote = self.quote if column.quoted and not column.nulls else ""
            values = f"{quote}{self.separator}{quote}".join(self._complete(column, self.quote if column.quoted else ""))
            texts.append(f"{self.opening}{quote}{values}{quote}{self.closing}")
        return texts

    def values(self, fields: Sequence[str], row: Row) -> list[str]:
        """The values of one row, each by itself, quotes and all."""
        texts = []
        for name, value in zip(fields, astuple(row), strict=True):
            (text,), quoted, nulls = self._spellings[name]((value,))
            quote = self.quote if quoted else ""
            texts.append(self.null if nulls else f"{quote}{text}{quote}")
        return texts

    @abstractmethod
    def escape(self, text: str) -> str: ...

    def times(self, values: Sequence[str]) -> Sequence[str]:
        """Times, as rows hold them, without quotes."""
        return values

    def floats(self, values: Sequence[float]) -> Sequence[str]:
        return list(map(repr, values))

    def _spell(self, fields: Sequence[str], rows: Collection[Row]) -> list[Spelt]:
        columns = zip(*map(astuple, rows), strict=True)
        return [self._spellings[name](values) for name, values in zip(fields, columns, strict=True)]

    def _join(self, columns: list[Spelt]) -> list[str]:
        if not (self.quote or self.opening or self.closing):
            texts = [self._complete(column, "") for column in columns]
            return list(map(self.separator.join, zip(*texts, strict=True)))
        # Quotes go with what stands between the columns: a quarter less than to put them around each value.
        pieces: list[Iterable[str]] = []
        between = self.opening
        for column in columns:
            quote = self.quote if column.quoted else ""
            pieces += [repeat(between if column.nulls else between + quote), self._complete(column, quote)]
            between = self.separator if column.nulls else quote + self.separator
        pieces.append(repeat(between.removesuffix(self.separator) + self.closing))
        return list(map("".join, zip(*pieces, strict=False)))

    def _complete(self, column: Spelt, quote: str) -> Sequence[str]:
        """The texts; if there are nulls among them, with these, and quotes around the others."""
        if not column.nulls:
            return column.texts  # type: ignore[return-value]
        null = self.null
        return [null if text is None else f"{quote}{text}{quote}" for text in column.texts]

    def _spelling(self, column: Column[Any]) -> Callable[[Sequence[Any]], Spelt]:
        match column.type:
            case TimeType():
                return self._times
            case JSON():
                return self._objects
            case Float():
                return self._floats
            case Integer():
                return self._integers
            case _:
                return self._texts

    def _texts(self, values: Sequence[str | None]) -> Spelt:
        nulls = False
        try:
            everything = "".join(values)  # type: ignore[arg-type]
        except TypeError:
            nulls = True
            everything = "".join(_present(values))
        if self._has_special(everything):
            escape = self.escape
            values = [value if value is None else escape(value) for value in values]
        return Spelt(values, quoted=True, nulls=nulls)

    def _has_special(self, text: str) -> bool:
        return any(character in text for character in self.special)

    def _objects(self, values: Sequence[Any]) -> Spelt:
        return self._texts([None if value is None else dump_json(value) for value in values])

    def _times(self, values: Sequence[str | None]) -> Spelt:
        return _column(self.times, values, quoted=True)

    def _floats(self, values: Sequence[float | None]) -> Spelt:
        return _column(self.floats, values, quoted=False)

    def _integers(self, values: Sequence[int | None]) -> Spelt:
        return _column(_spell_integers, values, quoted=False)


class Spelt(NamedTuple):
    """A column's values as texts, which still lack the quotes."""

    texts: Sequence[str | None]
    quoted: bool  #: whether quotes belong around them
    nulls: bool  #: whether there are any


def _column(spell: Callable[[Sequence[T]], Sequence[str]], values: Sequence[T | None], *, quoted: bool) -> Spelt:
    if None not in values:
        return Spelt(spell(values), quoted, nulls=False)  # type: ignore[arg-type]
    present = iter(spell(_present(values)))
    return Spelt([None if value is None else next(present) for value in values], quoted, nulls=True)


def _spell_integers(values: Sequence[int]) -> Sequence[str]:
    return list(map(str, values))


def _present(values: Sequence[T | None]) -> list[T]:
    return [value for value in values if value is not None]
