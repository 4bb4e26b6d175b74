"""Rows in JSON Lines: files of the ``jsonl`` sink, rejected rows, and the output of ``journal export``."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

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


def read(file: BinaryIO, path: Path, stop: int, number: int = 0) -> Iterator[Line]:
    """The rows from the current position to offset ``stop``. ``number``: lines before it, blank ones included.

    Raises:
        InputError: a line is no row.
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
            kind, row = parse(content)
        except ValueError as exc:
            cut = not content.endswith(b"\n") and len(content) < MAX_LINE
            problem = f"the file ends within this line ({exc})" if cut else str(exc)
            raise InputError(path, problem, line=number) from None
        yield Line(number, blank + content, kind, row)
        blank = b""


def parse(content: bytes) -> tuple[Kind, Fields]:
    """Kind and row of a line. Without a ``kind`` the key tells it. Fields that only the service sets are left out.

    Raises:
        ValueError: it is no row; says why.
    """
    found = decode(content)
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
    for name in _OURS:
        row.pop(name, None)
    return kind, row if found.get("code") == INVALID else as_sent(row)


def as_sent(row: Fields) -> Fields:
    """A row with ``extra``, where a sink holds fields that are not in the specification, as a client sends it."""
    extra = row.get(EXTRA)
    if not isinstance(extra, dict):
        return row
    return {name: value for name, value in row.items() if name != EXTRA} | extra


def encode(found: Fields) -> str:
    """A line without its end. Half of a surrogate pair, which a row that was set aside may hold, stays an escape."""
    return json.dumps(found, ensure_ascii=False).encode(errors="backslashreplace").decode()


def decode(content: bytes) -> Fields:
    """The JSON object of a line.

    Raises:
        ValueError: it is no JSON object; says why.
    """
    try:
        found = json.loads(content.decode().rstrip("\r\n"))
    except UnicodeDecodeError as exc:
        raise ValueError(f"it is no UTF-8 (byte {exc.start + 1})") from None
    except json.JSONDecodeError as exc:
        raise ValueError(f"it is no JSON ({exc.msg.removesuffix(' at')} at character {exc.colno})") from None
    except RecursionError:
        raise ValueError("it is nested too deep") from None
    if not isinstance(found, dict):
        raise ValueError("it is JSON, but no object")  # noqa: TRY004 - the file is wrong, not the program
    return found
