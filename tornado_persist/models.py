"""The record types: what a session and a task are, their limits, and the parser from request bytes to rows.

Rows stay plain dicts that hold only the fields the client sent: a field's absence means "keep what is stored", which
no object with defaults could say, and no object per row has to be made. The checks run in pydantic's core straight over
the request bytes; what it cannot express (NUL, NaN and Infinity anywhere, depth of nested JSON, UTC) follows here.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Annotated, Any, Literal, Required, TypeAlias

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError, with_config
from typing_extensions import TypedDict

from tornado_persist.errors import FieldError, InvalidBatch, NotJSON

Kind: TypeAlias = Literal["session", "task"]
Row: TypeAlias = dict[str, Any]

#: In the order in which they are written: a session goes before its tasks.
KINDS: tuple[Kind, ...] = ("session", "task")
#: The field that identifies a row.
KEYS: Mapping[Kind, str] = {"session": "session_id", "task": "task_id"}
#: The name of the list in a request body, and of the rows in responses.
PLURALS: Mapping[Kind, str] = {"session": "sessions", "task": "tasks"}
#: What a field left out holds when its row is first stored; every other one is null.
DEFAULTS: Mapping[Kind, Mapping[str, int]] = {
    "session": {"total_tasks": 0, "completed_tasks": 0, "failed_tasks": 0, "processing_tasks": 0},
    "task": {"retry_count": 0},
}

MAX_INT32 = 2**31 - 1
MAX_INT64 = 2**63 - 1
MAX_TEXT = 1_048_576  # characters
MAX_DEPTH = 20  # levels of nested JSON; MariaDB's JSON stops at 31

_KEY_PATTERN = r"^[^\s\p{Cc}](?:[^\p{Cc}]*[^\s\p{Cc}])?$"
# ISO 8601 with a date and a time; datetime.fromisoformat alone would take week dates and any separator too. MySQL's
# DATETIME begins with the year 1000.
_TIME_PATTERN = r"^[1-9]\d{3}-\d\d-\d\d[T ]\d\d:\d\d(?::\d\d(?:\.\d{1,9})?)?(?:Z|[+-]\d\d:?\d\d)?$"


Key = Annotated[str, Field(min_length=1, max_length=64, pattern=_KEY_PATTERN)]
Name = Annotated[str, Field(max_length=255)]
FilePath = Annotated[str, Field(max_length=512)]
Provider = Annotated[str, Field(max_length=50)]
Text = Annotated[str, Field(max_length=MAX_TEXT)]
Status = Literal["pending", "processing", "completed", "failed"]
Count = Annotated[int, Field(ge=0, le=MAX_INT32)]
Index = Annotated[int, Field(ge=-MAX_INT32 - 1, le=MAX_INT32)]
Milliseconds = Annotated[int, Field(ge=0, le=MAX_INT64)]
Confidence = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]
# The parser turns it into a datetime afterwards, which costs less than a call from within the validation.
Time = Annotated[str, Field(pattern=_TIME_PATTERN)]
Object = dict[str, Any]


class Session(TypedDict, total=False):
    """One translated file and the state of its translation."""

    session_id: Required[Key]
    filename: Required[Name]
    file_path: Required[FilePath]
    status: Required[Status]
    game_info: Object | None
    llm_provider: Required[Provider]
    metadata: Object | None
    total_tasks: Count
    completed_tasks: Count
    failed_tasks: Count
    processing_tasks: Count


class Task(TypedDict, total=False):
    """One translated cell."""

    task_id: Required[Key]
    session_id: Required[Key]
    batch_id: Required[Key]
    sheet_name: Required[Name]
    row_index: Required[Index]
    column_name: Required[Name]
    source_text: Required[Text]
    target_text: Text | None
    context: Text | None
    status: Required[Status]
    confidence: Confidence | None
    error_message: Text | None
    retry_count: Count
    start_time: Time | None
    end_time: Time | None
    duration_ms: Milliseconds | None


@dataclass(slots=True)
class Batch:
    """Merged rows on their way to a sink: within a kind no key occurs twice.

    Each row also has ``created_at`` and ``updated_at``, the accept times of its first and last update; every time in a
    row is an aware ``datetime`` in UTC.
    """

    sessions: list[Row] = field(default_factory=list)
    tasks: list[Row] = field(default_factory=list)

    def rows(self, kind: Kind) -> list[Row]:
        return self.sessions if kind == "session" else self.tasks

    def __len__(self) -> int:
        return len(self.sessions) + len(self.tasks)

    def part(self, start: int, stop: int) -> Batch:
        """The rows from ``start`` to ``stop``, counted through sessions and then tasks."""
        before = len(self.sessions)
        return Batch(self.sessions[start:stop], self.tasks[max(0, start - before) : max(0, stop - before)])


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

    def parse(self, kind: Kind, body: bytes) -> list[Row]:
        """The rows of a request body, each holding just the fields that were sent, times in UTC.

        Raises:
            NotJSON: the body is not a JSON object.
            InvalidBatch: rows or fields are missing or wrong; its ``errors`` names the first 20.
        """
        name = PLURALS[kind]
        try:
            rows: list[Row] = self._adapters[kind].validate_json(body)[name]
        except ValidationError as exc:
            raise _refusal(kind, exc) from None
        errors = _forbidden_values(body)
        if not errors:
            errors = _time_errors(name, rows) if kind == "task" else _object_errors(name, rows)
        if errors:
            raise _invalid(kind, errors)
        return rows


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
        case "string_pattern_mismatch" if error["ctx"]["pattern"] == _KEY_PATTERN:
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


def _time_errors(name: str, rows: list[Row]) -> list[FieldError]:
    """Turns the times of tasks into datetimes in UTC; what is none, or leaves the years 1000 to 9999, is an error."""
    errors: list[FieldError] = []
    for index, row in enumerate(rows):
        for column in ("start_time", "end_time"):
            text = row.get(column)
            if text is not None:
                try:
                    row[column] = _in_utc(text)
                except (ValueError, OverflowError):
                    errors.append({"loc": [name, index, column], "msg": _TIME_MESSAGE})
    return errors


def _in_utc(text: str) -> datetime:
    time = datetime.fromisoformat(text)
    if time.tzinfo is None:
        return datetime.fromisoformat(text + "+00:00")  # a quarter of what time.replace(tzinfo=UTC) takes
    if time.tzinfo is not UTC:
        time = time.astimezone(UTC)
        if time.year < 1000:
            raise ValueError("too early")
    return time


def _object_errors(name: str, rows: list[Row]) -> list[FieldError]:
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

    The parser has taken the body as JSON, so a NUL can only stand in it as its escape. The three searches cost next to
    nothing; a body that has one of the words, even in a harmless text, is read a second time, slowly.
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
