"""From the bytes of a request to rows, or to what is wrong with them.

There are two ways, and they agree on every body:

- :class:`Decoder`, the fast path: msgspec decodes and checks well-formed tasks, which are nearly all that comes, in a
  fraction of pydantic's time. It reports no errors. It gives up on a body that pydantic would
  refuse, and on a few that are unusual.
- :meth:`Parser.validate`: pydantic takes the other bodies and names the errors. What pydantic cannot express (NUL, NaN
  and Infinity anywhere, depth of nested JSON, days that a month does not have) is checked after it.
"""

from __future__ import annotations

import json
import math
from codecs import getincrementaldecoder
from collections.abc import Callable, Iterator, Mapping
from functools import cache
from itertools import compress, repeat
from operator import attrgetter, is_not, itemgetter
from typing import Annotated, Any, Literal, TypeAlias

import msgspec
from msgspec import UNSET, UnsetType
from msgspec.structs import astuple
from pydantic import ConfigDict, Field, TypeAdapter, ValidationError, with_config
from typing_extensions import TypedDict

from tornado_persist.errors import FieldError, InvalidBatch, NotJSON
from tornado_persist.records.models import (
    FIELDS,
    KEY_PATTERN,
    MAX_DEPTH,
    PLURALS,
    SHAPES,
    Fields,
    Key,
    Kind,
    Object,
    Row,
    Session,
    Task,
    Time,
)
from tornado_persist.records.times import all_in_utc, in_utc

#: Decodes a body into an object that has the list of its rows.
Decode: TypeAlias = Callable[[bytes], Any]

_PIECE = 16384  # bytes
_VISIBLE = bytes(range(0x21, 0x7F))  # of ASCII


def _fields_of(kind: Kind, *types: Any) -> list[str]:
    """The fields declared with one of these types."""
    return [name for name, declared in FIELDS[kind].items() if declared.type in types]


#: The fields of a task that hold a time.
_TIMES = _fields_of("task", Time, Time | None)
#: The fields of a session that hold free JSON.
_OBJECTS = _fields_of("session", Object, Object | None)


class Parser:
    """Turns request bodies into rows, or says what is wrong with them."""

    def __init__(self, *, max_batch: int | None = None, unknown_fields: Literal["ignore", "reject"] = "ignore") -> None:
        """``max_batch``: rows in one body at most; ``unknown_fields``: drop them, or refuse the batch."""
        config = ConfigDict(strict=True, extra="forbid" if unknown_fields == "reject" else "ignore")

        # Session and Task have no configuration of their own, so they take that of the body around them.
        @with_config(config)
        class SessionsBody(TypedDict):
            sessions: Annotated[list[Session], Field(max_length=max_batch)]

        @with_config(config)
        class TasksBody(TypedDict):
            tasks: Annotated[list[Task], Field(max_length=max_batch)]

        self._adapters: dict[Kind, TypeAdapter[Any]] = {
            "session": TypeAdapter(SessionsBody),
            "task": TypeAdapter(TasksBody),
        }
        self._decoder = Decoder("task", max_batch=max_batch, drop_unknown=unknown_fields == "ignore")

    def parse(self, kind: Kind, body: bytes) -> list[Row]:
        """The rows of a request body, each holding just the fields that were sent, times in UTC.

        Raises:
            NotJSON: the body is not a JSON object.
            InvalidBatch: rows or fields are missing or wrong; its ``errors`` names the first 20.
        """
        rows = self._decoder.decode(body) if kind == "task" else None
        return self.validate(kind, body) if rows is None else rows

    def validate(self, kind: Kind, body: bytes) -> list[Row]:
        """:meth:`parse` without the fast path."""
        name = PLURALS[kind]
        try:
            rows: list[Fields] = self._adapters[kind].validate_json(body)[name]
        except ValidationError as exc:
            raise _refusal(kind, exc) from None
        errors = _forbidden_values(body)
        if not errors:
            errors = _time_errors(name, rows) if kind == "task" else _object_errors(name, rows)
        if errors:
            raise _invalid(kind, errors)
        return [SHAPES[kind].row(row) for row in rows]


class Decoder:
    """The fast path for one kind of rows, which hold texts, numbers, times and nulls.

    Mostly all rows of a body have the same fields. So it first decodes the rows right into the class (the shape) of the
    first one. Where that fails, all rows go into one class that has every field, and from there into their shapes.
    """

    def __init__(self, kind: Kind, *, max_batch: int | None, drop_unknown: bool) -> None:
        """``max_batch``: rows in one body at most; ``drop_unknown``: drop fields that are not declared, or give up."""
        self._name = PLURALS[kind]
        self._shapes = SHAPES[kind]
        self._limit = msgspec.Meta(max_length=max_batch)
        self._drop_unknown = drop_unknown
        fields = FIELDS[kind]
        self._fields = fields.keys()
        self._required = frozenset(name for name, declared in fields.items() if declared.required)
        self._optional = [name for name in fields if name not in self._required]
        self._optional_values = [itemgetter(index) for index, name in enumerate(fields) if name in self._optional]
        self._keys = [attrgetter(name) for name in _fields_of(kind, Key)]
        self._times = _fields_of(kind, Time, Time | None)
        self._decode_declared = self._decoder_of(_whole_row(kind, forbid_unknown=True), forbid_unknown=True)
        self._decode_any = self._decoder_of(_whole_row(kind, forbid_unknown=False), forbid_unknown=False)
        self._decode_names = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode
        self._decoders: dict[frozenset[str], Decode] = {}
        self._converter = cache(self._make_converter)

    def decode(self, body: bytes) -> list[Row] | None:
        """The rows, as :meth:`Parser.validate` gives them; None if that has to read the body."""
        # A NUL needs an escape. Most bodies have none at all, and to find that out first is 25 times as fast.
        if b"\\" in body and b"\\u0000" in body:
            return None
        try:
            rows = self._rows_alike(body)
            if rows is None:
                rows = self._rows_mixed(body)
            if not all(_are_plain("".join(map(key, rows))) for key in self._keys):
                return None
            for name in self._times:
                _normalise_times(rows, name)
        except (msgspec.MsgspecError, ValueError, RecursionError):
            return None
        return rows

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

    def _rows_mixed(self, body: bytes) -> list[Row]:
        try:
            decoded = self._decode_declared(body)
        except msgspec.MsgspecError:
            if not self._drop_unknown:
                raise
            _check_utf8(body)
            decoded = self._decode_any(body)
        rows = [*map(astuple, getattr(decoded, self._name))]
        # Column by column, which is twice as fast as row by row.
        columns = (map(is_not, map(value, rows), repeat(UNSET)) for value in self._optional_values)
        present = zip(*columns, strict=True)
        converters = map(self._converter, present)
        return [shape(*take(row)) for row, (shape, take) in zip(rows, converters, strict=True)]

    def _make_converter(self, present: tuple[bool, ...]) -> tuple[type[Row], Callable[[Any], Any]]:
        """The shape with these optional fields, and what takes its values from those of all fields."""
        names = self._required.union(compress(self._optional, present))
        return self._shapes.find(names), itemgetter(*(at for at, name in enumerate(self._fields) if name in names))

    def _decoder_of(self, row: type, *, forbid_unknown: bool) -> Decode:
        rows: Any = Annotated[list.__class_getitem__(row), self._limit]
        body = msgspec.defstruct("Body", [(self._name, rows)], forbid_unknown_fields=forbid_unknown)
        return msgspec.json.Decoder(body).decode


#: Rows that are counted at most in a body that is refused; each takes 24 bytes meanwhile.
_MOST_COUNTED = 100_000


def count_rows(kind: Kind, body: bytes) -> int | None:
    """Rows of a body that is refused; None: it has no list of objects, or an endless one."""
    if body.count(b"{") > _MOST_COUNTED:
        return None
    try:
        return len(getattr(_row_counters[kind](body), PLURALS[kind]))
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return None


def _row_counter(kind: Kind) -> Decode:
    rows: Any = list.__class_getitem__(msgspec.defstruct("Anything", [], gc=False))
    return msgspec.json.Decoder(msgspec.defstruct("Body", [(PLURALS[kind], rows)])).decode


_row_counters: dict[Kind, Decode] = {kind: _row_counter(kind) for kind in PLURALS}


def _whole_row(kind: Kind, *, forbid_unknown: bool) -> type:
    """A class with every field of a kind, which is UNSET where it is absent."""
    fields = FIELDS[kind].items()
    return msgspec.defstruct(
        kind,
        [(name, type_) if required else (name, type_ | UnsetType, UNSET) for name, (type_, required) in fields],
        kw_only=True,
        gc=False,
        forbid_unknown_fields=forbid_unknown,
    )


def _are_plain(keys: str) -> bool:
    """Whether there is no control character and no white space at all: then every key matches the pattern."""
    if keys.isascii():  # six times as fast as what follows
        return not keys.encode().translate(None, _VISIBLE)
    return keys.isprintable() and " " not in keys


def _normalise_times(rows: list[Row], name: str) -> None:
    """Write the times of one field as rows hold them (see ``times``). Raises ValueError: one is not a time."""
    timed = rows
    try:
        texts = [*map(attrgetter(name), rows)]
    except AttributeError:  # rows of several shapes, or without this field
        texts = []
    if not all(texts) or not texts:
        timed = [row for row in rows if getattr(row, name, None) is not None]
        texts = [getattr(row, name) for row in timed]
    for row, text in zip(timed, all_in_utc(texts), strict=True):
        setattr(row, name, text)


def _check_utf8(body: bytes) -> None:
    """Raises ValueError: the body is not UTF-8. msgspec does not check the fields that are dropped."""
    # In pieces that stay in the cache: half the time of decoding it at once.
    if not body.isascii():
        utf8 = getincrementaldecoder("utf-8")()
        view = memoryview(body)
        for start in range(0, len(body), _PIECE):
            utf8.decode(view[start : start + _PIECE])
        utf8.decode(b"", final=True)


def _refusal(kind: Kind, exc: ValidationError) -> NotJSON | InvalidBatch:
    found = exc.errors(include_url=False, include_input=False, include_context=True)
    first = found[0]
    expected = f'expected a JSON object like {{"{PLURALS[kind]}": [...]}}'
    if first["type"] == "json_invalid":
        problem = str(first["ctx"]["error"])
        if problem.startswith("EOF while parsing a value at line 1 column 0"):
            return NotJSON(f"The request body is empty; {expected}")
        return NotJSON(f"The request body is not valid JSON ({problem}); {expected}")
    if not first["loc"]:
        return NotJSON(f"The request body is JSON, but no object; {expected}")
    return _invalid(
        kind, [{"loc": list(error["loc"]), "msg": _message(error)} for error in found[: InvalidBatch.MAX_ERRORS]]
    )


def _message(error: Mapping[str, Any]) -> str:
    """pydantic's own message, except where it would be unclear."""
    match error["type"]:
        case "string_pattern_mismatch" if error["ctx"]["pattern"] == KEY_PATTERN:
            return "A key has no white space at either end and no control characters"
        case "string_pattern_mismatch":
            return _TIME_MESSAGE
        case "extra_forbidden":
            return "This field is not in the specification"
        case "too_long" if "field_type" in error["ctx"]:
            return f"At most {error['ctx']['max_length']} rows go into one request"
        case _:
            return str(error["msg"])


_TIME_MESSAGE = "Input should be an ISO 8601 date and time in the years 1000 to 9999 (UTC)"


def _invalid(kind: Kind, errors: list[FieldError]) -> InvalidBatch:
    where = ".".join(map(str, errors[0]["loc"]))
    return InvalidBatch(f"Invalid {kind} data format: {where}: {errors[0]['msg']}", errors)


def _time_errors(name: str, rows: list[Fields]) -> list[FieldError]:
    """Writes the times of tasks in UTC; what is not a time, or leaves the years 1000 to 9999, is an error."""
    errors: list[FieldError] = []
    for index, row in enumerate(rows):
        for column in _TIMES:
            text = row.get(column)
            if text is not None:
                try:
                    row[column] = in_utc(text)
                except ValueError:
                    errors.append({"loc": [name, index, column], "msg": _TIME_MESSAGE})
    return errors


def _object_errors(name: str, rows: list[Fields]) -> list[FieldError]:
    """Errors in the sessions' free JSON, of which some sink could not store all: too deep, or a number too large."""
    errors: list[FieldError] = []
    for index, row in enumerate(rows):
        for column in _OBJECTS:
            value = row.get(column)
            if value:
                errors.extend({"loc": [name, index, column, *loc], "msg": msg} for loc, msg in _walk(value, (), 1))
    return errors


def _walk(value: Any, loc: tuple[str | int, ...], depth: int) -> Iterator[tuple[tuple[str | int, ...], str]]:
    if isinstance(value, dict | list):
        if depth > MAX_DEPTH:
            yield loc, f"JSON may be nested at most {MAX_DEPTH} levels deep"
            return
        for key, item in value.items() if isinstance(value, dict) else enumerate(value):
            yield from _walk(item, (*loc, key), depth + 1)
    elif isinstance(value, float):
        if not math.isfinite(value):
            yield loc, "Input should be a finite number"
    elif isinstance(value, int):
        try:
            float(value)
        except OverflowError:
            yield loc, "Input should be a number within the range of a double"


def _forbidden_values(body: bytes) -> list[FieldError]:
    """NUL, NaN and Infinity anywhere in the body, in ignored fields and nested JSON too.

    The body is known to be JSON, so a NUL can only be in it as an escape. A body that has one of these words, even in a
    harmless text, is read a second time, slowly.
    """
    if not (b"\\u0000" in body or b"NaN" in body or b"Infinity" in body):
        return []
    return [{"loc": list(loc), "msg": msg} for loc, msg in _walk_forbidden(json.loads(body), ())]


def _walk_forbidden(value: Any, loc: tuple[str | int, ...]) -> Iterator[tuple[tuple[str | int, ...], str]]:
    if isinstance(value, dict):
        for key, item in value.items():
            if "\0" in key:
                yield loc, "A field's name has no NUL character"
            yield from _walk_forbidden(item, (*loc, key))
    elif isinstance(value, list):
        for index, item in enumerate(value):
            yield from _walk_forbidden(item, (*loc, index))
    elif isinstance(value, str):
        if "\0" in value:
            yield loc, "Input should be a string without NUL characters"
    elif isinstance(value, float) and not math.isfinite(value):
        yield loc, "Input should be a finite number"
