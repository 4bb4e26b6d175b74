"""The record types: what a session and a task are, their limits, and batches of them on their way to a sink."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal, Required, TypeAlias, cast

import msgspec
from msgspec import UNSET, UnsetType
from pydantic import Field
from typing_extensions import TypedDict

from tornado_persist.records.annotations import types_of
from tornado_persist.records.times import PATTERN as TIME_PATTERN


class Row(msgspec.Struct, kw_only=True, gc=False, eq=False, forbid_unknown_fields=True):
    """The fields that were sent and, once accepted, the times of the first and the last update.

    To whoever does not care for speed it is a mapping from names to values that cannot be changed: ``row["status"]``,
    ``row.get("context")``, ``dict(row)``, ``{**row, ...}``; it equals any mapping with the same items.
    """

    # Texts, once they are set. No JSON decodes as such a type, so that a client's own field of that name is one that is
    # not in the specification.
    created_at: UnsetType = UNSET
    updated_at: UnsetType = UNSET

    def __getitem__(self, name: str) -> Any:
        if name in self.__struct_fields__ and (value := getattr(self, name)) is not UNSET:
            return value
        raise KeyError(name)

    def get(self, name: str, default: Any = None) -> Any:
        try:
            return self[name]
        except KeyError:
            return default

    def keys(self) -> list[str]:
        return [name for name in self.__struct_fields__ if getattr(self, name) is not UNSET]

    def items(self) -> list[tuple[str, Any]]:
        return [(name, getattr(self, name)) for name in self.keys()]

    def __iter__(self) -> Iterator[str]:
        return iter(self.keys())

    def __len__(self) -> int:
        return len(self.keys())

    def __contains__(self, name: object) -> bool:
        return name in self.keys()

    def __eq__(self, other: object) -> bool:
        return dict(self) == dict(other) if isinstance(other, Row | Mapping) else NotImplemented

    __hash__ = None  # type: ignore[assignment]


class Shapes:
    """The classes of one kind's rows, each made once."""

    def __init__(self, name: str, types: Mapping[str, Any]) -> None:
        """``types``: every field in the order of the specification, with the type that a decoder shall hold it to."""
        self._name = name
        self._types = types
        self._known: dict[frozenset[str], type[Row]] = {}
        self._together: dict[tuple[type[Row], type[Row]], type[Row]] = {}

    def find(self, names: Iterable[str]) -> type[Row]:
        """The class of rows with these fields.

        Raises:
            KeyError: there is no field of such a name.
        """
        wanted = frozenset(names)
        shape = self._known.get(wanted)
        if shape is None:
            if unknown := wanted - self._types.keys():
                raise KeyError(f"a {self._name} has no field {', '.join(sorted(unknown))}")
            fields = [(name, type_) for name, type_ in self._types.items() if name in wanted]
            # It inherits the options but for kw_only, so that these fields go before the two of Row.
            shape = cast(type[Row], msgspec.defstruct(self._name, fields, bases=(Row,), module=__name__))
            self._known[wanted] = shape
        return shape

    def row(self, fields: Mapping[str, Any]) -> Row:
        """A row with these fields, the times of its updates among them if it has any.

        Raises:
            KeyError: there is no field of some name.
        """
        return self.find(fields.keys() - Row.__struct_fields__)(**fields)

    def overlay(self, older: Row, newer: Row) -> Row:
        """``newer`` merged into ``older`` by the merge rule: a field that it has replaces.

        It may be changed, and be the result.
        """
        shape = type(newer)
        whole = shape if type(older) is shape else self._union(type(older), shape)
        # Mostly it is the newer row as it stands: clients send the same fields again, or more.
        merged = newer if whole is shape else whole(**{**dict(older), **dict(newer)})
        merged.created_at = older.created_at
        return merged

    def _union(self, one: type[Row], other: type[Row]) -> type[Row]:
        """The class of rows with the fields of both."""
        both = self._together.get((one, other))
        if both is None:
            names = {*one.__struct_fields__, *other.__struct_fields__}.difference(Row.__struct_fields__)
            both = self._together[one, other] = self.find(names)
        return both


Kind: TypeAlias = Literal["session", "task"]
#: Fields and their values, as JSON has them.
Fields: TypeAlias = dict[str, Any]

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

#: The fields of a task that hold a time.
TIMES = ("start_time", "end_time")

MAX_INT32 = 2**31 - 1
MAX_INT64 = 2**63 - 1
MAX_TEXT = 1_048_576  # characters
MAX_DEPTH = 20  # levels of nested JSON; MariaDB's JSON stops at 31

KEY_PATTERN = r"^[^\s\p{Cc}](?:[^\p{Cc}]*[^\s\p{Cc}])?$"

Key = Annotated[str, Field(min_length=1, max_length=64, pattern=KEY_PATTERN)]
Name = Annotated[str, Field(max_length=255)]
FilePath = Annotated[str, Field(max_length=512)]
Provider = Annotated[str, Field(max_length=50)]
Text = Annotated[str, Field(max_length=MAX_TEXT)]
Status = Literal["pending", "processing", "completed", "failed"]
Count = Annotated[int, Field(ge=0, le=MAX_INT32)]
Index = Annotated[int, Field(ge=-MAX_INT32 - 1, le=MAX_INT32)]
Milliseconds = Annotated[int, Field(ge=0, le=MAX_INT64)]
Confidence = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]
# What the pattern leaves open (a 30th of February) the parser finds.
Time = Annotated[str, Field(pattern=TIME_PATTERN)]
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


#: What the fields of a row may be, by pydantic's annotations and by msgspec's.
RECORDS: Mapping[Kind, type] = {"session": Session, "task": Task}
TYPES: Mapping[Kind, Mapping[str, Any]] = {
    kind: types_of(record, patterns=(KEY_PATTERN, TIME_PATTERN)) for kind, record in RECORDS.items()
}
#: The rows themselves.
SHAPES: Mapping[Kind, Shapes] = {kind: Shapes(kind, types) for kind, types in TYPES.items()}


@dataclass(slots=True)
class Batch:
    """Merged rows on their way to a sink: within a kind no key occurs twice.

    Each row also has ``created_at`` and ``updated_at``, the accept times of its first and last update. Every time in a
    row is a text in UTC and of one width, ``2025-09-30T16:35:00.000000+00:00`` (see ``times``).
    """

    sessions: list[Row] = field(default_factory=list)
    tasks: list[Row] = field(default_factory=list)

    def rows(self, kind: Kind) -> list[Row]:
        return self.sessions if kind == "session" else self.tasks

    def __len__(self) -> int:
        return len(self.sessions) + len(self.tasks)

    def parts(self, size: int) -> deque[Batch]:
        """All of it in batches of at most ``size`` rows."""
        return deque(self.part(start, start + size) for start in range(0, len(self), size))

    def part(self, start: int, stop: int) -> Batch:
        """The rows from ``start`` to ``stop``, counted through sessions and then tasks."""
        before = len(self.sessions)
        return Batch(self.sessions[start:stop], self.tasks[max(0, start - before) : max(0, stop - before)])
