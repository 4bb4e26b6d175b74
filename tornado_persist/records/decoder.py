"""The fast path from bytes to rows: msgspec decodes and checks well-formed batches, which nearly all are.

It reports no errors: it gives up, and the :mod:`judge <tornado_persist.records.judge>` says what is wrong. Both agree
on every body.
"""

from __future__ import annotations

from codecs import getincrementaldecoder
from collections.abc import Callable, Iterable
from datetime import UTC
from functools import cache
from itertools import chain, compress, repeat
from operator import attrgetter, is_not, itemgetter
from typing import Annotated, Any, TypeAlias

import msgspec
from msgspec import UNSET, Raw, UnsetType
from msgspec.structs import astuple

from tornado_persist.records.freejson import find_problem
from tornado_persist.records.models import FIELDS, INTEGERS, PLURALS, Key, Kind, Object, Row, Shapes, Time
from tornado_persist.records.rules import MAX_IGNORED, Parsed, Rules, shown_names
from tornado_persist.records.times import all_in_utc

#: Decodes a body into an object that has the list of its rows.
Decode: TypeAlias = Callable[[bytes], Any]

_PIECE = 16384  # bytes
_MAX_DROPPERS = 64
_VISIBLE = bytes(range(0x21, 0x7F))  # of ASCII


def fields_of(kind: Kind, *types: Any) -> list[str]:
    """The fields declared with one of these types."""
    return [name for name, declared in FIELDS[kind].items() if declared.type in types]


class Decoder:
    """The fast path for one kind of rows.

    Usually all rows of a body have the same fields. So it first decodes the rows into the class (the shape) of the
    first one. Where that fails, all rows go into one class that has every field, and from there into their shapes. And
    where that fails, fields are dropped, and numbers such as ``5000.0`` become integers.
    """

    def __init__(self, kind: Kind, shapes: Shapes, rules: Rules) -> None:
        self._name = PLURALS[kind]
        self._shapes = shapes
        self._rules = rules
        self._limit = msgspec.Meta(max_length=rules.max_batch)
        fields = FIELDS[kind]
        self._fields = fields.keys()
        self._types = {name: type_ for name, type_ in shapes.types.items() if name in fields}  # not extra
        self._required = frozenset(name for name, declared in fields.items() if declared.required)
        self._optional = [name for name in fields if name not in self._required]
        self._optional_values = [itemgetter(index) for index, name in enumerate(fields) if name in self._optional]
        self._keys = [attrgetter(name) for name in fields_of(kind, Key)]
        self._times = fields_of(kind, Time, Time | None)
        self._objects = fields_of(kind, Object, Object | None)
        self._integers = INTEGERS[kind]
        drop = rules.unknown_fields == "ignore"
        self._decode_whole = self._decoder_of(self._whole_row(forbid_unknown=True), forbid_unknown=True)
        self._decode_lax = self._decoder_of(self._whole_row(forbid_unknown=not drop, lax=True), forbid_unknown=not drop)
        self._decode_names = msgspec.json.Decoder(dict[str, Raw]).decode
        self._decode_all_names = msgspec.json.Decoder(list[dict[str, Raw]]).decode
        self._decoders: dict[frozenset[str], Decode] = {}
        self._droppers: dict[frozenset[str], tuple[Decode, type[Row]]] = {}
        self._converter = cache(self._make_converter)

    def decode(self, body: bytes) -> Parsed | None:
        """The parsed body, as the judge would return it; None if the judge must read the body."""
        # A NUL needs an escape. Most bodies have none at all, and to find that out first is 25 times as fast.
        if b"\\" in body and b"\\u0000" in body:
            return None
        try:
            parsed = Parsed(self._rows_alike(body) or [], body)
            if not parsed.rows:
                parsed = self._decode_mixed(body)
            rows = parsed.rows
            if not all(_are_plain("".join(map(key, rows))) for key in self._keys):
                return None
            zoned = False
            for name in self._times:
                zoned |= _normalise_times(rows, name, self._rules)
            if self._objects:
                _check_utf8(body)
                for name in self._objects:
                    _normalise_objects(rows, name)
        except (msgspec.MsgspecError, ValueError, RecursionError):
            return None
        if zoned:
            parsed.body = encode(self._name, rows)
        return parsed

    def _rows_alike(self, body: bytes) -> list[Row] | None:
        """The rows if all have the fields of the first one, and no other field is in the body.

        The first row is taken to end at its first brace. If that brace is part of a text, what stands before it is no
        JSON, and only some time is lost.
        """
        start = body.find(b"{", body.find(b"[") + 1)
        try:
            names = frozenset(self._decode_names(body[start : body.find(b"}", start) + 1]))
            if not self._required <= names <= self._fields:
                return None
            decode = self._decoders.get(names)
            if decode is None:
                decode = self._decoders[names] = self._decoder_of(self._shapes.find(names), forbid_unknown=True)
            rows: list[Row] = getattr(decode(body), self._name)
        except (msgspec.MsgspecError, UnicodeDecodeError):
            return None
        return rows

    def _decode_dropping(self, body: bytes) -> Parsed | None:
        """:meth:`_rows_alike` where the first row, and so every row, has fields that are dropped."""
        start = body.find(b"{", body.find(b"[") + 1)
        try:
            names = frozenset(self._decode_names(body[start : body.find(b"}", start) + 1]))
            unknown = sorted(names - self._fields)
            # The names are the client's, so there is a limit to the classes that are made for them.
            if not 0 < len(unknown) <= MAX_IGNORED or not self._required <= names:
                return None
            if names not in self._droppers and len(self._droppers) < _MAX_DROPPERS:
                self._droppers[names] = self._dropper(names, unknown)
            if names not in self._droppers:
                return None
            decode, shape = self._droppers[names]
            tuples = [*map(astuple, getattr(decode(body), self._name))]
        except (msgspec.MsgspecError, UnicodeDecodeError):
            return None
        _check_utf8(body)
        size = -len(unknown)
        _check_dropped(chain.from_iterable(values[size:] for values in tuples))
        return Parsed([shape(*values[:size]) for values in tuples], body, shown_names(set(unknown)), len(tuples))

    def _dropper(self, names: frozenset[str], unknown: list[str]) -> tuple[Decode, type[Row]]:
        declared = [(name, type_) for name, type_ in self._types.items() if name in names]
        dropped = [(f"dropped{number}", Raw) for number in range(len(unknown))]
        rename = {f"dropped{number}": name for number, name in enumerate(unknown)}
        both: Any = [*declared, *dropped]
        row = msgspec.defstruct("Dropping", both, rename=rename, gc=False, forbid_unknown_fields=True)
        return self._decoder_of(row, forbid_unknown=True), self._shapes.find(name for name, _ in declared)

    def _decode_mixed(self, body: bytes) -> Parsed:
        if self._rules.unknown_fields == "ignore" and not self._rules.replay:
            parsed = self._decode_dropping(body)
            if parsed is not None:
                return parsed
        try:
            return Parsed(self._shaped(self._decode_whole(body)), body)
        except msgspec.MsgspecError:
            _check_utf8(body)
            parsed = Parsed(self._shaped(self._decode_lax(body)), body)
        for name, (least, most) in self._integers.items():
            _make_integers(parsed.rows, name, least, most)
        if self._rules.unknown_fields == "ignore" and not self._rules.replay:
            self._name_ignored(parsed)
        return parsed

    def _shaped(self, decoded: Any) -> list[Row]:
        """Rows of the class that has every field, each in the class of its fields."""
        rows = [*map(astuple, getattr(decoded, self._name))]
        # Column by column, which is twice as fast as row by row.
        columns = (map(is_not, map(value, rows), repeat(UNSET)) for value in self._optional_values)
        present = zip(*columns, strict=True)
        converters = map(self._converter, present)
        return [shape(*take(row)) for row, (shape, take) in zip(rows, converters, strict=True)]

    def _name_ignored(self, parsed: Parsed) -> None:
        """Note which fields are dropped. Raises ValueError: in one of them is what no field may hold."""
        whole = self._decode_names(parsed.body)
        names = whole.keys() - {self._name}
        dropped = [whole[name] for name in names]
        for row in self._decode_all_names(whole[self._name]):
            if not row.keys() <= self._fields:
                parsed.ignored_rows += 1
                unknown = row.keys() - self._fields
                names |= unknown
                dropped += [row[name] for name in unknown]
        _check_dropped(dropped)
        parsed.ignored = shown_names(names)

    def _whole_row(self, *, forbid_unknown: bool, lax: bool = False) -> type:
        """A class with every field, which is UNSET where it is absent; ``lax``: integers may have a fraction."""
        fields: list[Any] = []
        for name, type_ in self._types.items():
            if lax and name in self._integers:
                type_ = type_ | float
            if name in self._required:
                fields.append((name, type_))
            else:
                fields.append((name, type_ if type_ is Raw else type_ | UnsetType, UNSET))
        return msgspec.defstruct("Whole", fields, kw_only=True, gc=False, forbid_unknown_fields=forbid_unknown)

    def _make_converter(self, present: tuple[bool, ...]) -> tuple[type[Row], Callable[[Any], Any]]:
        """The shape with these optional fields, and what takes its values from those of all fields."""
        names = self._required.union(compress(self._optional, present))
        return self._shapes.find(names), itemgetter(*(at for at, name in enumerate(self._fields) if name in names))

    def _decoder_of(self, row: type, *, forbid_unknown: bool) -> Decode:
        rows: Any = Annotated[list.__class_getitem__(row), self._limit]
        body = msgspec.defstruct("Body", [(self._name, rows)], forbid_unknown_fields=forbid_unknown)
        return msgspec.json.Decoder(body).decode


def _are_plain(keys: str) -> bool:
    """Whether there is no control character and no white space at all: then every key matches the pattern."""
    if keys.isascii():  # six times as fast as what follows
        return not keys.encode().translate(None, _VISIBLE)
    return keys.isprintable() and " " not in keys


def _check_dropped(values: Iterable[Raw]) -> None:
    """Raises ValueError: in one of the fields that are dropped is what no field may hold."""
    if find_problem(b",".join(values), None):
        raise ValueError("a field that is dropped holds what no field may hold")


def encode(name: str, rows: Iterable[Row]) -> bytes:
    """A body with these rows, as they are: read again under any rules, it gives the same."""
    return msgspec.json.encode({name: list(rows)})


def _normalise_times(rows: list[Row], name: str, rules: Rules) -> bool:
    """Write the times of one field as rows hold them (see ``times``).

    Returns whether the time zone of the rules may have been needed. Raises ValueError: one is not a time.
    """
    timed = rows
    try:
        texts = [*map(attrgetter(name), rows)]
    except AttributeError:  # rows of several shapes, or without this field
        texts = []
    if not all(texts) or not texts:
        timed = [row for row in rows if getattr(row, name, None) is not None]
        texts = [getattr(row, name) for row in timed]
    for row, text in zip(timed, all_in_utc(texts, rules.timezone), strict=True):
        setattr(row, name, text)
    return bool(texts) and rules.timezone is not UTC


def _normalise_objects(rows: list[Row], name: str) -> None:
    """Keep the text of free JSON, without its white space. Raises ValueError: it is not what may be stored."""
    for row in rows:
        value = getattr(row, name, None)
        if value is not None:
            setattr(row, name, kept_object(bytes(value)))


def kept_object(text: bytes) -> Raw | None:
    """An object or null as rows hold it. Raises ValueError: it is neither, or holds what no sink could store."""
    if text == b"null":
        return None
    if text[:1] != b"{" or find_problem(text):
        raise ValueError("not an object that can be stored")
    return Raw(msgspec.json.format(text, indent=-1))


def _make_integers(rows: list[Row], name: str, least: int, most: int) -> None:
    """Numbers with a zero fraction become integers. Raises ValueError: one has another fraction, or is out of range."""
    for row in rows:
        value = getattr(row, name, None)
        if type(value) is float:
            if not (value.is_integer() and least <= int(value) <= most):
                raise ValueError("not an integer in range")
            setattr(row, name, int(value))


def _check_utf8(body: bytes) -> None:
    """Raises ValueError: the body is not UTF-8. msgspec does not check the fields that are dropped."""
    # In pieces that stay in the cache: half the time of decoding it at once.
    if not body.isascii():
        utf8 = getincrementaldecoder("utf-8")()
        view = memoryview(body)
        for start in range(0, len(body), _PIECE):
            utf8.decode(view[start : start + _PIECE])
        utf8.decode(b"", final=True)
