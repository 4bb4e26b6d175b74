"""From the bytes of a request to rows, or to what is wrong with them.

pydantic judges: what it refuses is refused, in its words. What it cannot express (NUL, NaN and Infinity anywhere, depth
of nested JSON, days that a month does not have) follows here. Tasks, which are nearly all of what comes, go through the
:mod:`decoder <tornado_persist.records.decoder>` first, and come here only if that does not take them.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError, with_config
from typing_extensions import TypedDict

from tornado_persist.errors import FieldError, InvalidBatch, NotJSON
from tornado_persist.records.decoder import Decoder
from tornado_persist.records.models import (
    KEY_PATTERN,
    MAX_DEPTH,
    PLURALS,
    SHAPES,
    TIMES,
    Fields,
    Kind,
    Row,
    Session,
    Task,
)
from tornado_persist.records.times import in_utc


class Parser:
    """Turns request bodies into rows, or says what is wrong with them."""

    def __init__(self, *, max_batch: int | None = None, unknown_fields: Literal["ignore", "reject"] = "ignore") -> None:
        """``max_batch``: rows in one body at most; ``unknown_fields``: drop them, or refuse the batch."""
        config = ConfigDict(strict=True, extra="forbid" if unknown_fields == "reject" else "ignore")

        # The row types have no configuration of their own, so that they take the one of the body around them.
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
        self._decoder: Decoder | None = Decoder("task", max_batch=max_batch, drop_unknown=unknown_fields == "ignore")

    def parse(self, kind: Kind, body: bytes) -> list[Row]:
        """The rows of a request body, each holding just the fields that were sent, times in UTC.

        Raises:
            NotJSON: the body is not a JSON object.
            InvalidBatch: rows or fields are missing or wrong; its ``errors`` names the first 20.
        """
        if kind == "task" and self._decoder is not None:
            decoded = self._decoder.decode(body)
            if decoded is not None:
                return decoded
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
    """pydantic's own words, but for what they would leave unclear."""
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
    """Spells the times of tasks in UTC; what is none, or leaves the years 1000 to 9999, is an error."""
    errors: list[FieldError] = []
    for index, row in enumerate(rows):
        for column in TIMES:
            text = row.get(column)
            if text is not None:
                try:
                    row[column] = in_utc(text)
                except ValueError:
                    errors.append({"loc": [name, index, column], "msg": _TIME_MESSAGE})
    return errors


def _object_errors(name: str, rows: list[Fields]) -> list[FieldError]:
    """What some sink could not store of the sessions' free JSON: it is too deep, or a number is beyond a double."""
    errors: list[FieldError] = []
    for index, row in enumerate(rows):
        for column in ("game_info", "metadata"):
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

    The parser has taken the body as JSON, so a NUL can only stand in it as its escape. A body that has one of the
    words, even in a harmless text, is read a second time, slowly.
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
