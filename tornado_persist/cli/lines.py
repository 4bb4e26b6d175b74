"""JSON Lines with rows in them: what the ``jsonl`` sink writes, rejected rows, and what ``journal export`` writes."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from tornado_persist.errors import InputError
from tornado_persist.records.models import EXTRA, KEYS, KINDS, Fields, Kind

#: Bytes of a line at most: what is longer is no row, and must not be read into memory to find that out.
MAX_LINE = 1 << 26

#: What the service gives each row itself, from the time at which it accepts it; the API has no such fields.
_OURS = ("created_at", "updated_at")


@dataclass(frozen=True, slots=True)
class Line:
    """One row; ``number`` counts from 1, ``content`` are its bytes in the file with the blank lines before it."""

    number: int
    content: bytes
    kind: Kind
    row: Fields


def read(file: BinaryIO, path: Path, stop: int, number: int = 0) -> Iterator[Line]:
    """The rows from where the file stands up to offset ``stop``; ``number`` lines have gone before. Blank lines count.

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
    """The row of a line, and its kind: as ``kind`` says, else as its key tells. Without the times that are not the
    client's to give.

    Raises:
        ValueError: it is none, and why.
    """
    found = decode(content)
    inner = found.get("row")
    row = dict(inner if isinstance(inner, dict) else found)
    given = found.get("kind")
    if row is not inner:
        row.pop("kind", None)
    if given is not None and given not in KINDS:
        raise ValueError(f"its kind is {json.dumps(given, ensure_ascii=False)}, and not session or task")
    # A task has its session's key as well.
    kind: Kind | None = given or next((kind for kind in reversed(KINDS) if KEYS[kind][-1] in row), None)
    if kind is None:
        raise ValueError("it has neither a task_id nor a session_id")
    for name in _OURS:
        row.pop(name, None)
    if isinstance(row.get(EXTRA), dict):
        # As a sink holds fields that are not in the specification; a client sends them beside the others.
        row |= row.pop(EXTRA)
    return kind, row


def decode(content: bytes) -> Fields:
    """The JSON object of a line.

    Raises:
        ValueError: there is none.
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
