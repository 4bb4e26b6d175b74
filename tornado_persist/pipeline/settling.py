"""Notes that nothing is to be done about rejected rows of what was deleted, as ``persistd rejected drop`` makes them.

Else ``persistd rejected retry`` would bring the rows back.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from tornado_persist.errors import RowsWait
from tornado_persist.files import fsync_directory, open_private, write_all
from tornado_persist.records.models import KEYS, KINDS

REASON = "deleted by a request"


def drop_rejected(path: Path, session_id: str, task_id: str | None = None) -> int:
    """Close the open lines of ``rejected.jsonl`` that have rows of a session, or of one task; returns how many.

    Raises:
        RowsWait: a retry or drop is at work.
        OSError: a file cannot be read or written; nothing was noted.
    """
    lines = list(_lines_of(path, session_id, task_id))
    if not lines:
        return 0
    settled = path.with_name(path.stem + ".settled.jsonl")
    fd = open_private(settled, os.O_RDWR | os.O_CREAT | os.O_APPEND)
    with os.fdopen(fd, "r+b") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise RowsWait("persistd rejected is at work on rejected rows; try again when it is done") from None
        content = file.read()
        whole = content.rfind(b"\n") + 1
        if whole < len(content):
            file.truncate(whole)  # a crash tore this note
        states = {note.get("sha256"): note.get("state") for note in map(_decode, content[:whole].splitlines())}
        notes = [line for line in lines if states.get(line["sha256"]) not in ("retried", "dropped")]
        if notes:
            before = os.fstat(fd).st_size
            try:
                write_all(fd, [b"".join(json.dumps(note, ensure_ascii=False).encode() + b"\n" for note in notes)])
                os.fsync(fd)
            except BaseException:
                os.ftruncate(fd, before)
                raise
            fsync_directory(settled.parent)
        return len(notes)


def _lines_of(path: Path, session_id: str, task_id: str | None) -> Iterator[dict[str, Any]]:
    """A note for each line with such a row."""
    at = datetime.now(UTC).isoformat()
    # Only lines that can hold the id are parsed; those of rows that were set aside are as a client wrote them.
    needles = [json.dumps(session_id, ensure_ascii=plain).encode() for plain in (True, False)]
    offset = 0
    try:
        with path.open("rb") as file:
            for number, line in enumerate(file, 1):
                if line.endswith(b"\n") and (b"\\u" in line or any(needle in line for needle in needles)):
                    key = _key(line)
                    if key and key[0] == session_id and (task_id is None or key[1:] == (task_id,)):
                        sha256 = hashlib.sha256(line[:-1]).hexdigest()
                        note = {"line": number, "offset": offset, "sha256": sha256, "state": "dropped", "at": at}
                        kind = KINDS[len(key) - 1]
                        yield {**note, "kind": kind, "key": "/".join(key), "reason": REASON}
                offset += len(line)
    except FileNotFoundError:
        return


def _key(line: bytes) -> tuple[str, ...]:
    """The key of the row in a line; empty if it has none."""
    found = _decode(line)
    row, kind = found.get("row"), found.get("kind")
    if kind not in KINDS or not isinstance(row, dict):
        return ()
    key = [row.get(name) for name in KEYS[kind]]
    return tuple(map(str, key)) if all(isinstance(part, str) for part in key) else ()


def _decode(line: bytes) -> dict[str, Any]:
    try:
        found = json.loads(line)
    except (ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}
