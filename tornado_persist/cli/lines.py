"""Rows in JSON Lines: those of ``export`` and ``journal export``, of the ``jsonl`` sink, and rejected rows."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, NoReturn

import msgspec

from tornado_persist.errors import InputError
from tornado_persist.records.models import EXTRA, KEYS, KINDS, Fields, Kind
from tornado_persist.records.rules import INVALID

#: Most bytes of a line. Anything longer is no row, and is not read into memory.
MAX_LINE = 1 << 26

#: Fields that the service sets when it accepts a row; the API does not have them.
_OURS = ("created_at", "updated_at")


@dataclass(frozen=True, slots=True)
class Line:
    """One row. ``number`` counts from 1; ``content`` is the line as it stands, with the blank lines before it."""

    number: int
    content: bytes
    kind: Kind
    row: Fields
    at: str  #: when its last update was accepted; empty: the line does not say


@dataclass(frozen=True, slots=True)
class Unread:
    """A line that is no row, or the rest of one. ``problem``: why; empty for the rest of a line."""

    number: int
    content: bytes
    problem: str


def read(file: BinaryIO, path: Path, stop: int, number: int = 0) -> Iterator[Line | Unread]:
    """The lines from the current position to offset ``stop``. ``number``: lines before it, blank ones included.

    Raises:
        InputError: the file ends within a line; the rest of it may be written yet.
        OSError: the file cannot be read.
    """
    offset = file.tell()
    blank = b""
    while offset < stop and (content := file.readline(min(MAX_LINE, stop - offset))):
        offset += len(content)
        number += 1
        if not content.strip():
            blank += content
            continue
        try:
            kind, row, at = parse_accepted(content, strict=True)
        except ValueError as exc:
            if not content.endswith(b"\n") and len(content) < MAX_LINE:
                raise InputError(path, f"the file ends within this line ({exc})", line=number) from None
            whole = content.endswith(b"\n")
            yield Unread(number, blank + content, str(exc) if whole else f"it is longer than {MAX_LINE >> 20} MiB")
            while not whole and (content := file.readline(min(MAX_LINE, stop - offset))):
                offset += len(content)
                whole = content.endswith(b"\n")
                yield Unread(number, content, "")
        else:
            yield Line(number, blank + content, kind, row, at)
        blank = b""


def parse(content: bytes, *, strict: bool = False) -> tuple[Kind, Fields]:
    """Kind and row of a line. Without a ``kind`` the key tells it. Fields that only the service sets are left out.

    Raises:
        ValueError: it is no row; says why. If ``strict``, also what :func:`load` refuses.
    """
    return parse_accepted(content, strict=strict)[:2]


def parse_accepted(content: bytes, *, strict: bool = False) -> tuple[Kind, Fields, str]:
    """:func:`parse`, and when the row's last update was accepted; empty if the line does not say.

    Raises as that does.
    """
    found = decode(content, strict=strict)
    inner = found.get("row")
    row = dict(inner if isinstance(inner, dict) else found)
    given = found.get("kind")
    if row is not inner:
        row.pop("kind", None)
    if given is not None and given not in KINDS:
        raise ValueError(f"its kind is {json.dumps(given, ensure_ascii=False)}, and not session or task")
    # A task has a session_id too, so it is tried first.
    kind: Kind | None = given or next((kind for kind in reversed(KINDS) if KEYS[kind][-1] in row), None)
    if kind is None:
        raise ValueError("it has neither a task_id nor a session_id")
    # A row of a database or of the jsonl sink; a rejected one; one of a journal.
    times = [place.get(name) for place, name in ((row, "updated_at"), (found, "updated_at"), (found, "at"))]
    at = next((time for time in times if isinstance(time, str)), "")
    for name in _OURS:
        row.pop(name, None)
    return kind, row if found.get("code") == INVALID else as_sent(row), at


def as_sent(row: Fields) -> Fields:
    """A row with ``extra``, where a sink holds fields that are not in the specification, as a client sends it."""
    extra = row.get(EXTRA)
    if not isinstance(extra, dict):
        return row
    return {name: value for name, value in row.items() if name != EXTRA} | extra


def encode(found: Fields) -> str:
    """A line without its end. Half of a surrogate pair, which a row that was set aside may hold, stays an escape."""
    return json.dumps(found, ensure_ascii=False).encode(errors="backslashreplace").decode()


def decode(content: bytes, *, strict: bool = False) -> Fields:
    """The JSON object of a line.

    Raises:
        ValueError: it is no JSON object, or has an integer that cannot be read; says why. If ``strict``, also what
            :func:`load` refuses.
    """
    try:
        text = content.decode().rstrip("\r\n")
    except UnicodeDecodeError as exc:
        raise ValueError(f"it is no UTF-8 (byte {exc.start + 1})") from None
    found = load(text) if strict else _load(text)
    if not isinstance(found, dict):
        raise ValueError("it is JSON, but no object")  # noqa: TRY004 - the file is wrong, not the program
    return found


def load(text: str | bytes) -> Any:
    """What this JSON stands for, if it can be written again as JSON.

    Raises:
        ValueError: it is no JSON, or has what no program can take for granted: integers of more than 4,300 digits,
            numbers beyond a double, half of a surrogate pair; says what.
    """
    try:
        found = _load(text, parse_float=_finite, parse_constant=_refuse)
        # Only escapes can hold a half. The last search is quick, and most rows have none.
        if ("\\ud" if isinstance(text, str) else b"\\ud") in text.lower():  # type: ignore[operator]
            json.dumps(found, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        raise ValueError("it has half of a surrogate pair") from None
    return found


def rows_of(text: bytes) -> Iterator[Fields | str]:
    """The objects of a JSON array, each by itself: for one that cannot be read, a sentence that names its key.

    Raises:
        ValueError: the whole is no JSON array; says why.
    """
    try:
        parts = [bytes(part) for part in msgspec.json.decode(text, type=list[msgspec.Raw])]
    except (msgspec.MsgspecError, RecursionError):  # half of a surrogate pair stops it
        whole = _load(text)
        if not isinstance(whole, list):
            raise ValueError("it is no JSON array") from None  # noqa: TRY004 - see decode
        parts = [json.dumps(part).encode() for part in whole]
    for part in parts:
        try:
            yield load(part)
        except ValueError as exc:
            yield f"{_key(part)} cannot be read: {exc}"


def members(text: bytes) -> dict[str, bytes]:
    """The members of a JSON object, each as text. Raises ValueError: it is none."""
    try:
        return {name: bytes(part) for name, part in msgspec.json.decode(text, type=dict[str, msgspec.Raw]).items()}
    except (msgspec.MsgspecError, RecursionError):
        whole = _load(text)
        if not isinstance(whole, dict):
            raise ValueError("it is no JSON object") from None  # noqa: TRY004 - see decode
        return {name: json.dumps(part).encode() for name, part in whole.items()}


def _key(row: bytes) -> str:
    """What the row is, for a message."""
    try:
        found = members(row)
        kind = next(kind for kind in reversed(KINDS) if KEYS[kind][-1] in found)
        return " ".join([f"the {kind}", *(str(load(found[name])) for name in KEYS[kind])])
    except (ValueError, StopIteration, KeyError):
        return "a row"


def _load(text: str | bytes, **hooks: Any) -> Any:
    """Raises ValueError, in words."""
    try:
        return json.loads(text, **hooks)
    except json.JSONDecodeError as exc:
        raise ValueError(f"it is no JSON ({exc.msg.removesuffix(' at')} at character {exc.colno})") from None
    except UnicodeDecodeError as exc:
        raise ValueError(f"it is no UTF-8 (byte {exc.start + 1})") from None
    except RecursionError:
        raise ValueError("it is nested too deep") from None
    except ValueError as exc:
        raise ValueError(str(exc) if isinstance(exc, _NotFinite) else "it has an integer of too many digits") from None


class _NotFinite(ValueError):
    """A number that is none, or beyond a double."""


def _finite(text: str) -> float:
    number = float(text)
    if math.isinf(number):
        raise _NotFinite("it has a number beyond the range of a double")
    return number


def _refuse(name: str) -> NoReturn:
    raise _NotFinite(f"it has {name}, which is no JSON")
