"""The slow path from bytes to rows: what is wrong with a body, by row and field.

msgspec takes the body apart into the JSON of its fields; pydantic judges a row's fields by their declaration; what
pydantic cannot express (NUL, days that a month does not have, free JSON) is checked beside it. Rows are counted first,
and after 20 errors it stops, so that a body costs no more than its size.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from datetime import UTC
from typing import Any, Literal, Required, cast

import msgspec
from msgspec import Raw
from pydantic import ConfigDict, TypeAdapter, ValidationError, with_config
from typing_extensions import TypedDict

from tornado_persist.errors import FieldError, InvalidBatch, NotJSON
from tornado_persist.records import freejson
from tornado_persist.records.decoder import encode, fields_of, kept_object
from tornado_persist.records.models import (
    FIELDS,
    INTEGERS,
    KEY_PATTERN,
    PLURALS,
    Fields,
    Kind,
    Object,
    Row,
    Shapes,
    Status,
    Time,
)
from tornado_persist.records.rules import Parsed, Rules, Wrong, shown_names
from tornado_persist.records.times import in_utc

TIME_MESSAGE = "Input should be an ISO 8601 date and time in the years 1000 to 9999 (UTC)"
NO_OBJECT = "Input should be an object"
#: Commas up to which a list may be taken apart although its items are no objects: each is 56 bytes.
_MANY = 200_000
_WHERE = re.compile(r"\[(\d+)\]")


class Judge:
    """Reads bodies of one kind, or says what is wrong with them."""

    def __init__(self, kind: Kind, shapes: Shapes, rules: Rules) -> None:
        self._kind = kind
        self._name = PLURALS[kind]
        self._shapes = shapes
        self._rules = rules
        self._fields = {name: place for place, name in enumerate(FIELDS[kind])}
        self._objects = frozenset(fields_of(kind, Object, Object | None))
        self._times = fields_of(kind, Time, Time | None)
        scalars: Any = {}
        for name, (type_, required) in FIELDS[kind].items():
            if type_ is Status:
                type_ = shapes.types[name] if rules.statuses is None else Literal.__getitem__(rules.statuses)
            if name not in self._objects:
                scalars[name] = Required[type_] if required else type_
        judged = with_config(ConfigDict(strict=True))(TypedDict("judged", scalars, total=False))  # type: ignore[operator]
        self._judge_scalars = TypeAdapter[Fields](judged).validate_json
        body = msgspec.defstruct("Body", [(self._name, list[_Any])])
        self._count = msgspec.json.Decoder(body).decode
        self._take_apart = msgspec.json.Decoder(dict[str, Raw]).decode
        self._take_list_apart = msgspec.json.Decoder(list[Raw]).decode

    def judge(self, body: bytes) -> Parsed:
        """The rows of a body.

        Raises:
            NotJSON: it is not a JSON object.
            InvalidBatch: rows or fields are missing or wrong; its ``errors`` names the first 20.
        """
        marked = freejson.mark(body)
        count = self.count(marked)
        try:
            return self._judge(body, marked)
        except InvalidBatch as exc:
            exc.rows = count
            raise
        except RecursionError:
            raise NotJSON("The request body is nested too deep") from None

    def _judge(self, body: bytes, marked: bytes) -> Parsed:
        whole = self._object(marked)
        names = whole.keys() - {self._name}
        errors = [error for name in whole if name in names for error in self._unknown(whole[name], [name])]
        if self._name not in whole:
            errors.insert(0, {"loc": [self._name], "msg": "Field required"})
        if errors:
            raise self._invalid(errors)
        parsed = Parsed([], body)
        for index, text in enumerate(self._rows(bytes(whole[self._name]))):
            unknown: set[str] = set()
            row, found = self._judge_row(index, text, unknown)
            if row is not None and not found:
                parsed.rows.append(row)
                names |= unknown
                parsed.ignored_rows += bool(unknown)
            elif self._rules.invalid_rows == "set_aside":
                parsed.wrong.append(Wrong(index, freejson.unmark(text), InvalidBatch("", found).errors))
            errors += found
            if len(errors) >= InvalidBatch.MAX_ERRORS and self._rules.invalid_rows == "refuse":
                break
        if errors and (self._rules.invalid_rows == "refuse" or not parsed.rows):
            raise self._invalid(errors)
        if self._rules.unknown_fields == "ignore":
            parsed.ignored = shown_names(names)
        if parsed.wrong or self._zoned(parsed.rows):
            parsed.body = encode(self._name, parsed.rows)
        return parsed

    def count(self, body: bytes) -> int | None:
        """Count the rows, without reading them; None: it is no body with a list of objects.

        Raises:
            InvalidBatch: there are too many.
        """
        try:
            count = len(getattr(self._count(body), self._name))
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
            return None
        self._refuse_more(count)
        return count

    def _refuse_more(self, count: int) -> None:
        most = self._rules.max_batch
        if most is not None and count > most:
            message = (
                f"{count:,} rows came, and at most {most:,} go into one request (server.max_batch raises the limit)"
            )
            refusal = self._invalid([{"loc": [self._name], "msg": message}])
            refusal.rows = count
            raise refusal

    def _object(self, body: bytes) -> dict[str, Raw]:
        expected = f'expected a JSON object like {{"{self._name}": [...]}}'
        if not body.strip():
            raise NotJSON(f"The request body is empty; {expected}")
        try:
            body.decode()
            return self._take_apart(body)
        except UnicodeDecodeError as exc:
            raise NotJSON(f"The request body is not valid JSON (no UTF-8 at byte {exc.start}); {expected}") from None
        except msgspec.ValidationError:
            raise NotJSON(f"The request body is JSON, but no object; {expected}") from None
        except (msgspec.DecodeError, RecursionError) as exc:
            problem = str(exc).removeprefix("JSON is malformed: ")
            raise NotJSON(f"The request body is not valid JSON ({problem}); {expected}") from None

    def _rows(self, text: bytes) -> Iterator[bytes]:
        if text[:1] != b"[":
            raise self._invalid([{"loc": [self._name], "msg": "Input should be a valid list"}])
        if text.count(b",") > _MANY:
            try:
                msgspec.json.decode(text, type=list[_Any])
            except msgspec.ValidationError as exc:
                where = _WHERE.search(str(exc))
                raise self._invalid([{"loc": [self._name, int(where[1]) if where else 0], "msg": NO_OBJECT}]) from None
        rows = self._take_list_apart(text)
        self._refuse_more(len(rows))
        return map(bytes, rows)

    def _judge_row(self, index: int, text: bytes, unknown: set[str]) -> tuple[Row | None, list[FieldError]]:
        """A row, or its errors; the names of fields that are dropped are added to ``unknown``."""
        place: list[str | int] = [self._name, index]
        if text[:1] != b"{":
            return None, [{"loc": place, "msg": NO_OBJECT}]
        sent = self._take_apart(text)
        unknown |= sent.keys() - self._fields.keys()
        errors: list[FieldError] = []
        row: Fields = {}
        scalars: list[bytes] = []
        wrong: set[str] = set()  # fields about which pydantic need not be heard
        for name, raw in sent.items():
            value = bytes(raw)
            if name in unknown:
                errors += self._unknown(value, [*place, name])
            elif name in self._objects:
                found = _object_errors(value, [*place, name])
                errors += found
                if not found:
                    row[name] = kept_object(value)
            else:
                value, problem = _scalar(value, integer=name in INTEGERS[self._kind])
                if problem:
                    wrong.add(name)
                    errors.append({"loc": [*place, name], "msg": problem})
                scalars.append(b'"%s":%s' % (name.encode(), value))
        try:
            row |= self._judge_scalars(b"{" + b",".join(scalars) + b"}")
        except ValidationError as exc:
            for error in exc.errors(include_url=False, include_input=False):
                if error["loc"][0] not in wrong:
                    errors.append({"loc": [*place, *error["loc"]], "msg": _message(error)})
        else:
            errors += self._time_errors(row, place, wrong)
        if errors:
            last = len(self._fields)
            return None, sorted(errors, key=lambda error: self._fields.get(cast(str, error["loc"][2]), last))
        return self._shapes.row(row), []

    def _time_errors(self, row: Fields, place: list[str | int], wrong: set[str]) -> Iterator[FieldError]:
        """Writes the times in UTC; what is not a time, or leaves the years 1000 to 9999, is an error."""
        for name in self._times:
            text = row.get(name)
            if text is not None and name not in wrong:
                try:
                    row[name] = in_utc(text, self._rules.timezone)
                except ValueError:
                    yield {"loc": [*place, name], "msg": TIME_MESSAGE}

    def _unknown(self, value: Raw | bytes, place: list[str | int]) -> list[FieldError]:
        """Errors of a field that is not declared."""
        if self._rules.unknown_fields == "reject":
            return [{"loc": place, "msg": "This field is not in the specification"}]
        if self._rules.replay:
            return []
        name = cast(str, place[-1])
        if "\0" in name:
            return [{"loc": place, "msg": freejson.name_problem(name)}]
        found = freejson.locate(bytes(value), None)
        return [{"loc": [*place, *found[0]], "msg": found[1]}] if found else []

    def _zoned(self, rows: list[Row]) -> bool:
        """Whether the time zone of the rules may have been needed."""
        return self._rules.timezone is not UTC and any(
            getattr(row, name, None) is not None for row in rows for name in self._times
        )

    def _invalid(self, errors: list[FieldError]) -> InvalidBatch:
        where = ".".join(map(str, errors[0]["loc"]))
        return InvalidBatch(f"Invalid {self._kind} data format: {where}: {errors[0]['msg']}", errors)


class _Any(msgspec.Struct, gc=False):
    """Any object; nothing of it is read."""


def _object_errors(value: bytes, place: list[str | int]) -> list[FieldError]:
    if value == b"null":
        return []
    if value[:1] != b"{":
        return [{"loc": place, "msg": NO_OBJECT}]
    found = freejson.locate(value)
    return [{"loc": [*place, *found[0]], "msg": found[1]}] if found else []


def _scalar(value: bytes, *, integer: bool) -> tuple[bytes, str | None]:
    """A value as pydantic is given it, and what it must not judge: no large objects, no endless numbers."""
    match value[:1]:
        case b"{":
            return b"{}", None
        case b"[":
            return b"[]", None
        case b'"':
            problem = freejson.text_problem(value)
            return (b'""', problem) if problem else (value, None)
        case b"t" | b"f" | b"n":
            return value, None
    if len(value) > freejson.MAX_NUMBER:
        return b"0", freejson.TOO_LONG
    number = float(value)
    if number in (float("inf"), float("-inf")):
        return b"0", freejson.NOT_FINITE
    if integer and not value.lstrip(b"-").isdigit() and number.is_integer():
        return b"%d" % int(number), None
    return value, None


def _message(error: Mapping[str, Any]) -> str:
    """pydantic's own message, except where it would be unclear."""
    match error["type"]:
        case "string_pattern_mismatch" if error["ctx"]["pattern"] == KEY_PATTERN:
            return "A key has no white space at either end and no control characters"
        case "string_pattern_mismatch":
            return TIME_MESSAGE
        case _:
            return str(error["msg"])
