"""What a session and a task are: their fields and limits, the rows made of them, and batches of rows.

:class:`Session` and :class:`Task` declare every field once: name, type, limits, and whether it is required. msgspec
decodes by this declaration (the fast path of the :mod:`parser <tornado_persist.records.parser>`), pydantic validates
by it, and the API description shows it.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import Annotated, Any, Literal, NamedTuple, Required, TypeAlias, cast, get_args, get_origin, get_type_hints

import msgspec
from msgspec import UNSET, Raw, UnsetType
from pydantic import Field
from typing_extensions import TypedDict

from tornado_persist.records.times import PATTERN as TIME_PATTERN

MAX_INT32 = 2**31 - 1
MAX_INT64 = 2**63 - 1
MAX_TEXT = 1_048_576  # characters
MAX_DEPTH = 20  # levels of nested JSON; MariaDB's JSON stops at 31

#: No white space at either end, no control character.
KEY_PATTERN = r"^[^\s\p{Cc}](?:[^\p{Cc}]*[^\s\p{Cc}])?$"


def _limits(*, pattern: str | None = None, **limits: Any) -> tuple[Any, msgspec.Meta]:
    """Limits of a type for pydantic and for msgspec.

    msgspec does not get the pattern, whose syntax it does not know: the parser's fast path checks keys and times
    itself.
    """
    return Field(pattern=pattern, **limits), msgspec.Meta(**limits)


MAX_KEY = 64  # characters
Key = Annotated[str, *_limits(min_length=1, max_length=MAX_KEY, pattern=KEY_PATTERN)]
Name = Annotated[str, *_limits(max_length=255)]
FilePath = Annotated[str, *_limits(max_length=512)]
Provider = Annotated[str, *_limits(max_length=50)]
Text = Annotated[str, *_limits(max_length=MAX_TEXT)]
MAX_STATUS = 20  # characters
Status = Literal["pending", "processing", "completed", "failed"]
#: Those of the specification; ``records.statuses`` may name others.
STATUSES: tuple[str, ...] = get_args(Status)
#: A count that is left out is 0 when its row is first stored.
Count = Annotated[int, *_limits(ge=0, le=MAX_INT32)]
Index = Annotated[int, *_limits(ge=-MAX_INT32 - 1, le=MAX_INT32)]
Milliseconds = Annotated[int, *_limits(ge=0, le=MAX_INT64)]
# JSON decoded by msgspec holds no NaN and no infinity.
Confidence = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False), msgspec.Meta(ge=0, le=1)]
# What the pattern leaves open (a 30th of February) the parser finds.
Time = Annotated[str, *_limits(pattern=TIME_PATTERN)]
#: Free JSON. A row holds its text.
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


Kind: TypeAlias = Literal["session", "task"]
#: Fields and their values, as JSON has them.
Fields: TypeAlias = dict[str, Any]

#: In the order in which they are written: sessions before their tasks.
KINDS: tuple[Kind, ...] = ("session", "task")
#: The fields that identify a row: clients number their tasks from 0 in each session.
KEYS: Mapping[Kind, tuple[str, ...]] = {"session": ("session_id",), "task": ("session_id", "task_id")}
#: The name of the list in a request body, and of the rows in responses.
PLURALS: Mapping[Kind, str] = {"session": "sessions", "task": "tasks"}


class Declared(NamedTuple):
    """What is declared of a field."""

    type: Any  #: as pydantic and msgspec read it, limits included
    required: bool


def _declared(record: type) -> dict[str, Declared]:
    """The fields of a TypedDict. (Its own ``__required_keys__`` misses annotations that are texts.)"""
    hints = get_type_hints(record, include_extras=True).items()
    required = {name: get_args(hint)[0] for name, hint in hints if get_origin(hint) is Required}
    return {name: Declared(required.get(name, hint), name in required) for name, hint in hints}


def _bounds(declared: Any) -> tuple[int, int] | None:
    """The least and the largest of an integer type, null apart."""
    for part in (declared, *get_args(declared)):
        for meta in getattr(part, "__metadata__", ()):
            if part.__origin__ is int and isinstance(meta, msgspec.Meta):
                assert meta.ge is not None
                assert meta.le is not None
                return int(meta.ge), int(meta.le)
    return None


#: The declarations above by kind and field, in the order of the specification.
FIELDS: Mapping[Kind, Mapping[str, Declared]] = {"session": _declared(Session), "task": _declared(Task)}
#: The fields that hold integers, with the least and the largest.
INTEGERS: Mapping[Kind, Mapping[str, tuple[int, int]]] = {
    kind: {name: bounds for name, declared in fields.items() if (bounds := _bounds(declared.type))}
    for kind, fields in FIELDS.items()
}
#: Defaults of fields left out when a row is first stored; all other fields are null.
DEFAULTS: Mapping[Kind, Mapping[str, int]] = {
    kind: {name: 0 for name, declared in fields.items() if declared.type == Count} for kind, fields in FIELDS.items()
}


_read_names = msgspec.json.Decoder(dict[str, Raw] | None).decode

#: With ``unknown_fields = "keep"``: the object of a row's fields that are not in the specification.
EXTRA = "extra"
#: The fields that an update may lack, and the name of the time of each one's last update. Rows hold such times only if
#: several instances write to one place (``writers = "several"``).
FIELD_TIMES: Mapping[Kind, Mapping[str, str]] = {
    kind: {name: f"{name}_at" for name in (*(n for n, declared in fields.items() if not declared.required), EXTRA)}
    for kind, fields in FIELDS.items()
}


#: Fields of a row that the service has added.
_TIMES = {"created_at", "updated_at", *(time for times in FIELD_TIMES.values() for time in times.values())}


def merge_extra(stored: Mapping[str, Any] | None, sent: Mapping[str, Any]) -> dict[str, Any]:
    """What a sink holds as ``extra`` after ``sent`` was merged into it: name by name, and null removes a name."""
    return {name: value for name, value in {**(stored or {}), **sent}.items() if value is not None}


def merge_extra_text(stored: str | None, sent: Raw) -> Raw:
    """:func:`merge_extra` of JSON texts. No Python objects are made of the values, which may be large."""
    names = _joined(stored or "null", sent)
    return Raw(msgspec.json.encode({name: value for name, value in names.items() if bytes(value) != b"null"}))


class Row(msgspec.Struct, kw_only=True, gc=False, eq=False, forbid_unknown_fields=True):
    """The fields that were sent and, once accepted, the times of the first and the last update.

    It reads like a mapping from names to values: ``row["status"]``, ``row.get("context")``, ``dict(row)``,
    ``{**row, ...}``. It equals any mapping with the same items.

    Free JSON (``game_info``, ``metadata``) is kept as text: as objects, 10 MiB of it would be 250 MiB. The mapping
    reads it, so ``row["metadata"]`` is a ``dict``. The attribute ``row.metadata`` and ``msgspec.structs.astuple`` give
    the text, a ``msgspec.Raw``, which msgspec's encoder writes as it is and ``bytes()`` returns.
    """

    # Texts, once the row is accepted. No JSON decodes as this type, so a client cannot set them.
    created_at: UnsetType = UNSET
    updated_at: UnsetType = UNSET

    def __getitem__(self, name: str) -> Any:
        if name in self.__struct_fields__ and (value := getattr(self, name)) is not UNSET:
            return json.loads(bytes(value)) if type(value) is Raw else value
        raise KeyError(name)

    def get(self, name: str, default: Any = None) -> Any:
        try:
            return self[name]
        except KeyError:
            return default

    def keys(self) -> list[str]:
        return [name for name in self.__struct_fields__ if getattr(self, name) is not UNSET]

    def items(self) -> list[tuple[str, Any]]:
        return [(name, self[name]) for name in self.keys()]

    def as_kept(self) -> Fields:
        """The fields with their values as they are kept: free JSON as text."""
        return {name: getattr(self, name) for name in self.keys()}

    def as_json(self) -> bytes:
        """The fields that were sent as a JSON object in one line."""
        return msgspec.json.encode({name: value for name, value in self.as_kept().items() if name not in _TIMES})

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
    """The classes of one kind's rows: one for each set of fields, made when it is first needed."""

    def __init__(self, name: str, types: Mapping[str, Any]) -> None:
        """``types``: every field in the order of the specification, with its type for msgspec."""
        self._name = name
        self.types = types
        self._classes: dict[frozenset[str], type[Row]] = {}
        self._unions: dict[tuple[type[Row], type[Row]], type[Row]] = {}
        #: Whether a row of the second class has every field of one of the first, each as new as the row.
        self._plain: dict[tuple[type[Row], type[Row]], bool] = {}
        self._field_times = {name: f"{name}_at" for name in types if f"{name}_at" in types}

    def find(self, names: Iterable[str]) -> type[Row]:
        """The class of rows with these fields.

        Raises:
            KeyError: there is no field of such a name.
        """
        wanted = frozenset(names)
        shape = self._classes.get(wanted)
        if shape is None:
            if unknown := wanted - self.types.keys():
                raise KeyError(f"a {self._name} has no field {', '.join(sorted(unknown))}")
            fields = [(name, type_) for name, type_ in self.types.items() if name in wanted]
            # kw_only is not inherited, so these fields come before the two of Row.
            shape = cast(type[Row], msgspec.defstruct(self._name, fields, bases=(Row,), module=__name__))
            shape = self._classes.setdefault(wanted, shape)  # another thread may have made it meanwhile
        return shape

    def row(self, fields: Mapping[str, Any]) -> Row:
        """A row with these fields, and with the times of its updates if they are given; objects become text.

        Raises:
            KeyError: there is no field of such a name.
            ValueError: JSON cannot hold an object.
        """
        kept: Fields = {name: _text(value) if isinstance(value, dict) else value for name, value in fields.items()}
        return self.find(fields.keys() - Row.__struct_fields__)(**kept)

    def merge(self, older: Row, newer: Row) -> Row:
        """``newer`` merged into ``older``: its fields replace those of the same name, the others stay.

        ``newer`` may be changed and returned.
        """
        shape = type(newer)
        whole = shape if type(older) is shape else self._union(type(older), shape)
        if EXTRA in shape.__struct_fields__ and EXTRA in older.__struct_fields__:
            newer.extra = _join(older.extra, newer.extra)  # type: ignore[attr-defined]
        # Clients usually send the same fields again, or more: then the newer row is the result.
        merged = newer if whole is shape else whole(**{**older.as_kept(), **newer.as_kept()})
        merged.created_at = older.created_at
        return merged

    def merge_timed(self, older: Row, newer: Row) -> Row:
        """:meth:`merge` in the order of the rows' times, where each field has the time of its own last update.

        ``newer`` came later, but its time may be the earlier one. It counts as later where the times are the same.
        """
        older_shape, shape = type(older), type(newer)
        plain = self._plain.get((older_shape, shape))
        if plain is None:
            names = {*shape.__struct_fields__}
            plain = {*older_shape.__struct_fields__} <= names and names.isdisjoint(self._field_times.values())
            self._plain[older_shape, shape] = plain
        if plain and newer.updated_at >= older.updated_at:  # type: ignore[operator]  # the usual case
            return self.merge(older, newer)
        if newer.updated_at < older.updated_at:  # type: ignore[operator]
            older, newer = newer, older
        before, after = older.as_kept(), newer.as_kept()
        fields = {**before, **after, "created_at": min(before["created_at"], after["created_at"])}
        for name, time in self._field_times.items():
            fields.pop(time, None)
            then, now = (str(row.get(time, row["updated_at"])) if name in row else "" for row in (before, after))
            if then and now and name == EXTRA:
                first, last = (before, after) if then <= now else (after, before)
                fields[EXTRA] = _join(first[EXTRA], last[EXTRA])
            elif then > now:
                fields[name] = before[name]
            if (at := max(then, now)) and at != after["updated_at"]:
                fields[time] = at
        return self.find(fields.keys() - Row.__struct_fields__)(**fields)

    def _union(self, one: type[Row], other: type[Row]) -> type[Row]:
        """The class of rows with the fields of both."""
        both = self._unions.get((one, other))
        if both is None:
            names = {*one.__struct_fields__, *other.__struct_fields__}.difference(Row.__struct_fields__)
            both = self._unions[one, other] = self.find(names)
        return both


def key_of(kind: Kind, row: Row | Mapping[str, Any]) -> tuple[str, ...]:
    """The values of the fields in ``KEYS``.

    Raises:
        KeyError: the row lacks one of them.
    """
    return tuple(row[name] for name in KEYS[kind])


def _join(older: Raw, newer: Raw) -> Raw:
    """Two objects in one. A null stays: the sink may hold a value under that name."""
    return Raw(msgspec.json.encode(_joined(older, newer)))


def _joined(older: str | Raw, newer: Raw) -> dict[str, Raw]:
    return {**(_read_names(older) or {}), **(_read_names(newer) or {})}


def _text(value: Object) -> Raw:
    return Raw(json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode())


def _kept_type(declared: Any) -> Any:
    """The type by which msgspec decodes a field: free JSON stays text."""
    return Raw if declared in (Object, Object | None) else declared


@cache
def shapes_with(kind: Kind, statuses: tuple[str, ...] | None) -> Shapes:
    """The classes of rows whose status is one of these, or any text of its length.

    There are several sets of classes, because a type that names the statuses makes msgspec look them up and not make a
    new text for each row.
    """
    status: Any = (
        Literal.__getitem__(statuses) if statuses else Annotated[str, *_limits(min_length=1, max_length=MAX_STATUS)]
    )
    types = {name: _kept_type(declared.type) for name, declared in FIELDS[kind].items()}
    times = dict.fromkeys(FIELD_TIMES[kind].values(), str)
    return Shapes(kind, {**types, "status": status, EXTRA: Raw, **times})


#: The classes of rows by kind, with the statuses of the specification.
SHAPES: Mapping[Kind, Shapes] = {kind: shapes_with(kind, STATUSES) for kind in KINDS}


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

    def pop(self, size: int) -> Batch:
        """Take the first ``size`` rows out of it."""
        first = self.part(0, size)
        del self.tasks[: len(first.tasks)], self.sessions[: len(first.sessions)]
        return first

    def part(self, start: int, stop: int) -> Batch:
        """The rows from ``start`` to ``stop``, counted through sessions and then tasks."""
        before = len(self.sessions)
        return Batch(self.sessions[start:stop], self.tasks[max(0, start - before) : max(0, stop - before)])
