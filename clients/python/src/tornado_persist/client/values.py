"""The fields of both records, and how the values that programs have become values that JSON has."""

from __future__ import annotations

import difflib
import math
import numbers
import operator
import os
from collections.abc import Iterable, Mapping
from datetime import date, datetime, timedelta, timezone
from decimal import Decimal
from enum import Enum
from typing import TYPE_CHECKING, Any, Literal, SupportsFloat, SupportsIndex, TypedDict, Union
from uuid import UUID

if TYPE_CHECKING:
    from typing_extensions import TypeAlias

Kind: TypeAlias = Literal["session", "task"]
#: A row as it is sent.
Row: TypeAlias = dict[str, Any]

# What a field takes. Scalars of numpy and pandas fit too: they have the methods of these protocols, or are subclasses.
Key: TypeAlias = Union[str, UUID, int, Enum]
Text: TypeAlias = Union[str, Enum]
FilePath: TypeAlias = Union[str, os.PathLike[str]]
Count: TypeAlias = Union[SupportsIndex, Decimal, float]
Number: TypeAlias = Union[SupportsFloat, SupportsIndex]
#: ISO 8601 as a text, or a time; one without an offset is local time.
Time: TypeAlias = Union[str, datetime]
Object: TypeAlias = Mapping[str, Any]


class _Session(TypedDict):
    session_id: Key
    filename: Text | FilePath
    file_path: FilePath
    status: Text
    llm_provider: Text


class Session(_Session, total=False):
    """The fields of a session. What is left out keeps its stored value, ``None`` clears it."""

    game_info: Object | None
    metadata: Object | None
    total_tasks: Count
    completed_tasks: Count
    failed_tasks: Count
    processing_tasks: Count


class _Task(TypedDict):
    task_id: Key
    session_id: Key
    batch_id: Key
    sheet_name: Text
    row_index: Count
    column_name: Text
    source_text: Text
    status: Text


class Task(_Task, total=False):
    """The fields of a task. What is left out keeps its stored value, ``None`` clears it."""

    target_text: Text | None
    context: Text | None
    confidence: Number | None
    error_message: Text | None
    retry_count: Count
    start_time: Time | None
    end_time: Time | None
    duration_ms: Count | timedelta | None


REQUIRED: Mapping[Kind, frozenset[str]] = {"session": Session.__required_keys__, "task": Task.__required_keys__}
FIELDS: Mapping[Kind, frozenset[str]] = {
    "session": Session.__required_keys__ | Session.__optional_keys__,
    "task": Task.__required_keys__ | Task.__optional_keys__,
}
#: The values of these identify a row; ids that are numbers become text.
KEYS: Mapping[Kind, tuple[str, ...]] = {"session": ("session_id",), "task": ("session_id", "task_id")}
_IDS = frozenset({"session_id", "task_id", "batch_id"})
_INTEGERS = frozenset(
    {
        *("total_tasks", "completed_tasks", "failed_tasks", "processing_tasks"),
        *("row_index", "retry_count", "duration_ms"),
    }
)
#: Values of just these types are sent as they are.
_PLAIN = frozenset({str, int, bool, type(None)})
#: Levels of a nested value; the service takes 20.
_DEEPEST = 64


def check(kind: Kind, names: Iterable[str]) -> None:
    """Raises TypeError: a required field is missing, or there is no such field."""
    given = set(names)
    fields = FIELDS[kind]
    for name in sorted(given - fields):
        close = difflib.get_close_matches(name, fields, 1)
        raise TypeError(f"{kind}() has no field {name!r}" + (f"; did you mean {close[0]!r}?" if close else ""))
    if missing := sorted(REQUIRED[kind] - given):
        raise TypeError(f"{kind}() lacks {', '.join(missing)}")


def prepare(kind: Kind, row: Row) -> None:
    """Make ``row`` one that JSON can hold, in place. It shares no changeable object with the caller afterwards.

    Raises:
        TypeError: a field is missing, there is no such field, or a value is of a type that cannot be sent.
    """
    if not (REQUIRED[kind] <= row.keys() <= FIELDS[kind]):
        check(kind, row)
    for name, value in row.items():
        # Not value.__class__, which a proxy such as Flask's has of what it stands for.
        if type(value) not in _PLAIN or (type(value) is int and name in _IDS):
            row[name] = _field(name, value)


def _field(name: str, value: Any) -> Any:
    try:
        plain = to_json(value)
    except TypeError as exc:
        raise TypeError(f"{name}: {exc}") from None
    if name in _IDS:
        if plain.__class__ in (int, float):
            # A column of numbers with a gap is a column of floats in pandas.
            return str(int(plain) if plain == int(plain) else plain)
        if isinstance(plain, (dict, list)):
            raise TypeError(f"{name}: a value of type {type(value).__name__} is no id")
    if name in _INTEGERS and plain.__class__ is float and plain.is_integer():
        return int(plain)
    return plain


def to_json(value: Any, depth: int = 0) -> Any:
    """What JSON has of a value that programs have; None for what is not a number or not a time.

    Raises:
        TypeError: there is no such thing, or it is nested too deep.
    """
    kind = type(value)
    if kind in _PLAIN:
        return value
    if kind is float:
        return value if math.isfinite(value) else None
    if isinstance(value, Enum):  # before str and int: it may be either, too
        return to_json(value.value, depth)
    if isinstance(value, (datetime, date)):
        return _time(value)
    if isinstance(value, str):
        return str.__str__(value) if issubclass(kind, str) else str(value)
    if isinstance(value, UUID):
        return str(value)
    if isinstance(value, os.PathLike):
        return os.fsdecode(value)
    if isinstance(value, Decimal):
        return _decimal(value)
    if isinstance(value, timedelta):  # pandas' too
        return None if value != value else value // timedelta(milliseconds=1)
    if depth > _DEEPEST:
        raise TypeError(f"nested in more than {_DEEPEST} levels")
    if isinstance(value, Mapping):
        return {_name(name): to_json(inner, depth + 1) for name, inner in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [to_json(inner, depth + 1) for inner in value]
    return _foreign(value, depth)


def _name(name: Any) -> str:
    plain = to_json(name)
    if isinstance(plain, str):
        return plain
    if plain.__class__ is int:
        return str(plain)
    raise TypeError(f"a name in an object is {type(name).__name__}, and must be text")


def _time(value: date) -> str | None:
    """ISO 8601 with the offset; one without an offset is local time, as programs mean it."""
    if value != value:  # pandas' NaT
        return None
    if not isinstance(value, datetime):
        return value.isoformat()
    if hasattr(value, "to_pydatetime"):  # pandas' Timestamp; microseconds are what databases keep
        value = value.to_pydatetime(warn=False)
        assert isinstance(value, datetime)
    if value.utcoffset() is None:
        try:
            value = value.astimezone()
        except (ValueError, OverflowError, OSError):  # the first or last day of the calendar, or before 1970 on Windows
            value = value.replace(tzinfo=timezone.utc)
    return value.isoformat()


def _decimal(value: Decimal) -> int | float | None:
    if not value.is_finite():
        return None
    return int(value) if value == value.to_integral_value() else float(value)


def _foreign(value: Any, depth: int) -> Any:
    """Scalars and arrays of numpy and pandas, which are not imported for this."""
    kind = type(value)
    origin = kind.__module__.partition(".")[0]
    if kind.__name__ in ("NAType", "NaTType") and origin == "pandas":
        return None
    if origin == "numpy":
        if kind.__name__ == "datetime64":
            return None if value != value else to_json(value.astype("datetime64[us]").item())
        if kind.__name__ == "timedelta64":
            return None if value != value else to_json(value.astype("timedelta64[us]").item())
        plain = value.tolist() if hasattr(value, "tolist") else value
        if type(plain) is not kind:  # a longdouble stays one
            return to_json(plain, depth + 1)
    if hasattr(kind, "__index__"):
        return int(operator.index(value))
    if isinstance(value, numbers.Real):
        return to_json(float(value))
    raise TypeError(f"a value of type {kind.__name__} cannot be sent")
