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


class Prefetcher(Generic[T]):
    """Makes the next item in another thread while the database works on the last one.

    Without it the encoder and the database would take turns. A context manager: leaving it ends the thread.
    """

    def __init__(self, items: Iterator[T]) -> None:
        self._items = items
        self._pool: ThreadPoolExecutor | None = None
        self._begun: Future[T | None] | None = None

    def begin(self) -> None:
        """Start making the next item."""
        self._pool = self._pool or ThreadPoolExecutor(1, "encoder")
        self._begun = self._pool.submit(next, self._items, None)

    def take(self) -> T | None:
        """The next item; makes it here if it was not begun. None after the last."""
        begun, self._begun = self._begun, None
        return begun.result() if begun else next(self._items, None)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *args: object) -> None:
        if self._pool is not None:
            self._pool.shutdown()


class Encoder(ABC):
    """Encodes rows for a text protocol, column by column.

    Not row by row, because most columns need no check of each value: one search through all texts of a column shows
    that none needs escaping, and if none is null, they are used as they are.
    """

    #: The text for null.
    null: ClassVar[str]
    #: Written around a text, a time and JSON.
    quote: ClassVar[str]
    #: The characters that :meth:`escape` replaces.
    special: ClassVar[str]
    #: Written before, between and after the values of a row.
    opening: ClassVar[str]
    separator: ClassVar[str]
    closing: ClassVar[str]

    def __init__(self, table: Table) -> None:
        self._encoders = {column.name: self._encoder_for(column) for column in table.c}

    def encode(self, fields: Sequence[str], rows: Collection[Row]) -> list[str]:
        """Each row as a text. Call it for ``BLOCK`` rows at a time, which all hold ``fields``, in this order."""
        return self._join(self._encode_columns(fields, rows))

    def columns(self, fields: Sequence[str], rows: Collection[Row]) -> list[str]:
        """Each column as a text: its values between ``opening`` and ``closing``."""
        texts = []
        for column in self._encode_columns(fields, rows):
            quote = self.quote if column.quoted and not column.nulls else ""
            values = f"{quote}{self.separator}{quote}".join(self._complete(column, self.quote if column.quoted else ""))
            texts.append(f"{self.opening}{quote}{values}{quote}{self.closing}")
        return texts

    def values(self, fields: Sequence[str], row: Row) -> list[str]:
        """The values of one row, one text each, with quotes."""
        texts = []
        for name, value in zip(fields, astuple(row), strict=True):
            (text,), quoted, nulls = self._encoders[name]((value,))
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

    def _encode_columns(self, fields: Sequence[str], rows: Collection[Row]) -> list[EncodedColumn]:
        columns = zip(*map(astuple, rows), strict=True)
        return [self._encoders[name](values) for name, values in zip(fields, columns, strict=True)]

    def _join(self, columns: list[EncodedColumn]) -> list[str]:
        if not (self.quote or self.opening or self.closing):
            texts = [self._complete(column, "") for column in columns]
            return list(map(self.separator.join, zip(*texts, strict=True)))
        # Quotes are joined with the separators: a quarter less time than putting them around each value.
        pieces: list[Iterable[str]] = []
        between = self.opening
        for column in columns:
            quote = self.quote if column.quoted else ""
            pieces += [repeat(between if column.nulls else between + quote), self._complete(column, quote)]
            between = self.separator if column.nulls else quote + self.separator
        pieces.append(repeat(between.removesuffix(self.separator) + self.closing))
        return list(map("".join, zip(*pieces, strict=False)))

    def _complete(self, column: EncodedColumn, quote: str) -> Sequence[str]:
        """The texts. If some are null, fills in the nulls and quotes the others."""
        if not column.nulls:
            return column.texts  # type: ignore[return-value]
        null = self.null
        return [null if text is None else f"{quote}{text}{quote}" for text in column.texts]

    def _encoder_for(self, column: Column[Any]) -> Callable[[Sequence[Any]], EncodedColumn]:
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

    def _texts(self, values: Sequence[str | None]) -> EncodedColumn:
        nulls = False
        try:
            everything = "".join(values)  # type: ignore[arg-type]
        except TypeError:
            nulls = True
            everything = "".join(_present(values))
        if self._has_special(everything):
            escape = self.escape
            values = [value if value is None else escape(value) for value in values]
        return EncodedColumn(values, quoted=True, nulls=nulls)

    def _has_special(self, text: str) -> bool:
        return any(character in text for character in self.special)

    def _objects(self, values: Sequence[Any]) -> EncodedColumn:
        return self._texts([None if value is None else dump_json(value) for value in values])

    def _times(self, values: Sequence[str | None]) -> EncodedColumn:
        return _column(self.times, values, quoted=True)

    def _floats(self, values: Sequence[float | None]) -> EncodedColumn:
        return _column(self.floats, values, quoted=False)

    def _integers(self, values: Sequence[int | None]) -> EncodedColumn:
        return _column(_encode_integers, values, quoted=False)


class EncodedColumn(NamedTuple):
    """A column's values as texts, without the quotes."""

    texts: Sequence[str | None]
    quoted: bool  #: whether they need quotes
    nulls: bool  #: whether some are null


def _column(
    encode: Callable[[Sequence[T]], Sequence[str]], values: Sequence[T | None], *, quoted: bool
) -> EncodedColumn:
    if None not in values:
        return EncodedColumn(encode(values), quoted, nulls=False)  # type: ignore[arg-type]
    present = iter(encode(_present(values)))
    return EncodedColumn([None if value is None else next(present) for value in values], quoted, nulls=True)


def _encode_integers(values: Sequence[int]) -> Sequence[str]:
    return list(map(str, values))


def _present(values: Sequence[T | None]) -> list[T]:
    return [value for value in values if value is not None]
