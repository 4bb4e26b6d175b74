"""The fast way from a request body to rows, for what is well-formed; it takes no body that pydantic would refuse.

msgspec decodes and checks in one pass. Mostly the rows of a body hold the same fields, and mostly those of the body
before: then they are decoded right into rows of that shape, all checks of the parser
included, in a third of the time of pydantic's core (``bench/parts.py``). Others become dicts first. The types are made
from pydantic's annotations, so there is nothing to keep in step. It tells no errors: a body that it does not take goes
to the parser, which says what is wrong with it, or that nothing is.
"""

from __future__ import annotations

from codecs import getincrementaldecoder
from collections.abc import Callable, Iterator
from operator import attrgetter
from typing import Annotated, Any, Required, TypeAlias

import msgspec
from typing_extensions import TypedDict

from tornado_persist.records.annotations import fields_like, required
from tornado_persist.records.hunch import Hunch
from tornado_persist.records.models import KEY_PATTERN, PLURALS, RECORDS, SHAPES, TYPES, Kind, Row
from tornado_persist.records.times import PATTERN as TIME_PATTERN
from tornado_persist.records.times import all_in_utc

#: Decodes a body into an object that has the list of its rows.
Decode: TypeAlias = Callable[[bytes], Any]

_PIECE = 16384  # bytes
_VISIBLE = bytes(range(0x21, 0x7F))  # of ASCII


class Decoder:
    """Decodes bodies of one kind whose rows hold plain fields: text, numbers, times, null."""

    def __init__(self, kind: Kind, *, max_batch: int | None, drop_unknown: bool) -> None:
        """``max_batch``: rows in one body at most; ``drop_unknown``: take rows with fields that no row has, without
        them.
        """
        self._name = PLURALS[kind]
        self._shapes = SHAPES[kind]
        self._types = TYPES[kind]
        self._drop_unknown = drop_unknown
        self._most = msgspec.Meta(max_length=max_batch)
        record = RECORDS[kind]
        self._required = required(record)
        # Required fields, all of them, so that every row has them.
        self._keys = [attrgetter(name) for name in fields_like(record, KEY_PATTERN)]
        self._times = fields_like(record, TIME_PATTERN)
        # Types made at run time are beyond the type checker.
        make: Any = TypedDict
        types = {name: Required[type_] if name in self._required else type_ for name, type_ in self._types.items()}
        rows = self._list_of(make(record.__name__, types, total=False))
        self._decode_any = msgspec.json.Decoder(make("Body", {self._name: rows})).decode
        self._decode_names = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode
        self._decoders: dict[frozenset[str], Decode] = {}
        # For a body like the last one, and whether bodies are worth that try.
        self._last: Decode | None = None
        self._alike = Hunch()

    def decode(self, body: bytes) -> list[Row] | None:
        """The rows, as :meth:`Parser.parse` gives them; None if that must look at the body."""
        # A NUL needs an escape, and a body without any is told 25 times as fast as one without this one.
        if b"\\" in body and b"\\u0000" in body:
            return None
        try:
            rows = self._rows_alike(body)
            if rows is None:
                if not self._drop_unknown:
                    return None
                rows = self._rows_unlike(body)
            if not all(_are_plain("".join(map(key, rows))) for key in self._keys):
                return None
            for name in self._times:
                _spell(rows, name)
        except (msgspec.MsgspecError, ValueError, RecursionError):
            return None
        return rows

    def _rows_alike(self, body: bytes) -> list[Row] | None:
        """The rows if all hold the fields that the last body's did, or else those of the first among them."""
        if not self._alike.worth_a_try():
            return None
        for decode in self._guesses(body):
            try:
                rows: list[Row] = getattr(decode(body), self._name)
            except msgspec.MsgspecError:
                continue
            self._last = decode
            self._alike.succeeded()
            return rows
        self._alike.failed()
        return None

    def _guesses(self, body: bytes) -> Iterator[Decode]:
        last = self._last
        if last is not None:
            yield last
        first = self._decoder_of_first(body)
        if first is not None and first is not last:
            yield first

    def _decoder_of_first(self, body: bytes) -> Decode | None:
        """For a body whose rows are all like its first one; None if that has fields that it should not have.

        The first row is taken to end at its first brace. Where one stands in a text, that is no JSON, and nothing is
        lost but some time.
        """
        start = body.find(b"{", body.find(b"[") + 1)
        try:
            names = frozenset(self._decode_names(body[start : body.find(b"}", start) + 1]))
        except (msgspec.MsgspecError, UnicodeDecodeError):
            return None
        if not self._required <= names <= self._types.keys():
            return None
        decode = self._decoders.get(names)
        if decode is None:
            rows = self._list_of(self._shapes.find(names))
            shape = msgspec.defstruct("Body", [(self._name, rows)], forbid_unknown_fields=True)
            decode = self._decoders[names] = msgspec.json.Decoder(shape).decode
        return decode

    def _rows_unlike(self, body: bytes) -> list[Row]:
        _check_utf8(body)
        find = self._shapes.find
        return [find(fields)(**fields) for fields in self._decode_any(body)[self._name]]

    def _list_of(self, row: Any) -> Any:
        return Annotated[list.__class_getitem__(row), self._most]


def _are_plain(keys: str) -> bool:
    """Whether there is no control character and no blank at all: then the pattern has nothing to say to any key."""
    if keys.isascii():  # six times as fast as what follows
        return not keys.encode().translate(None, _VISIBLE)
    return keys.isprintable() and " " not in keys


def _spell(rows: list[Row], name: str) -> None:
    """Spell the times of one column as rows hold them. Raises ValueError: one of them is none."""
    timed = rows
    try:
        texts = [*map(attrgetter(name), rows)]
    except AttributeError:  # rows of several shapes, or none has it
        texts = []
    if not all(texts) or not texts:
        timed = [row for row in rows if getattr(row, name, None) is not None]
        texts = [getattr(row, name) for row in timed]
    for row, text in zip(timed, all_in_utc(texts), strict=True):
        setattr(row, name, text)


def _check_utf8(body: bytes) -> None:
    """In the fields that are dropped msgspec does not look at it."""
    # In pieces that stay in the cache: 0.25 µs a row, half of what it costs at once.
    if not body.isascii():
        utf8 = getincrementaldecoder("utf-8")()
        view = memoryview(body)
        for start in range(0, len(body), _PIECE):
            utf8.decode(view[start : start + _PIECE])
        utf8.decode(b"", final=True)
