"""Notes that nothing is to be done about rejected rows of what was deleted, as ``persistd rejected drop`` makes them.

Else ``persistd rejected retry`` would bring the rows back.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import io
import json
import os
import re
from collections.abc import Iterator
from datetime import UTC, datetime
from itertools import chain, islice
from pathlib import Path
from typing import Any, BinaryIO

from tornado_persist.errors import RowsWait
from tornado_persist.files import fsync_directory, open_private, write_all
from tornado_persist.records.models import KEYS, KINDS

REASON = "deleted by a request"
#: Bytes that are searched at a time, and notes that are written at a time.
BLOCK = 1 << 20
NOTES = 1000
# Rows that were set aside are as a client wrote them: ``"a\/b"``, ``"\u4f60"``, in theory ``"session\u005fid"``.
_ESCAPED_ID = re.compile(rb'"session_id"\s*:\s*"[^"\\]*\\')
_ESCAPED_ASCII = re.compile(rb"\\u00[2-7]")


def drop_rejected(path: Path, session_id: str, task_id: str | None = None) -> int:
    """Close the open lines of ``rejected.jsonl`` that have rows of a session, or of one task; returns how many.

    Raises:
        RowsWait: a retry or drop is at work.
        OSError: a file cannot be read or written; nothing was noted.
    """
    notes = _notes_of(path, session_id, task_id)
    first = next(notes, None)
    if first is None:
        return 0
    settled = path.with_name(path.stem + ".settled.jsonl")
    fd = open_private(settled, os.O_RDWR | os.O_CREAT | os.O_APPEND)
    with os.fdopen(fd, "r+b") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise RowsWait("persistd rejected is at work on rejected rows; try again when it is done") from None
        closed, whole = _read_closed(file)
        file.truncate(whole)  # a crash may have torn the last note
        count = 0
        new = (note for note in chain([first], notes) if bytes.fromhex(note["sha256"]) not in closed)
        try:
            while some := list(islice(new, NOTES)):
                write_all(fd, [b"".join(json.dumps(note, ensure_ascii=False).encode() + b"\n" for note in some)])
                count += len(some)
            if count:
                os.fsync(fd)
                fsync_directory(settled.parent)
        except BaseException:
            os.ftruncate(fd, whole)
            raise
        return count


def _read_closed(file: BinaryIO) -> tuple[set[bytes], int]:
    """The digests of lines that are closed, and the length of the whole notes."""
    states: dict[bytes, bool] = {}
    whole = 0
    for line in file:
        if line.endswith(b"\n"):
            whole += len(line)
            note = _decode(line)
            with contextlib.suppress(ValueError):
                states[bytes.fromhex(str(note.get("sha256")))] = note.get("state") in ("retried", "dropped")
    return {digest for digest, closed in states.items() if closed}, whole


def _notes_of(path: Path, session_id: str, task_id: str | None) -> Iterator[dict[str, Any]]:
    """A note for each line with such a row."""
    at = datetime.now(UTC).isoformat()
    for number, offset, line in _candidates(path, json.dumps(session_id, ensure_ascii=False).encode()):
        key = _key(line)
        if key and key[0] == session_id and (task_id is None or key[1:] == (task_id,)):
            where = {"line": number, "offset": offset, "sha256": hashlib.sha256(line[:-1]).hexdigest()}
            told = {"kind": KINDS[len(key) - 1], "key": "/".join(key), "reason": REASON}
            yield {**where, "state": "dropped", "at": at, **told}


def _candidates(path: Path, needle: bytes) -> Iterator[tuple[int, int, bytes]]:
    """Lines that may hold a session's id, with their number and offset; not one that is being written.

    A block is looked at as a whole first: most have no such line, and it takes a third of the time.
    """
    number = offset = 0
    with contextlib.suppress(FileNotFoundError), path.open("rb") as file:
        while block := file.read(BLOCK):
            block += file.readline()
            if not _may_hold(needle, block):
                number += block.count(b"\n")
                offset += len(block)
                continue
            for line in io.BytesIO(block):
                number += 1
                if line.endswith(b"\n") and _may_hold(needle, line):
                    yield number, offset, line
                offset += len(line)


def _may_hold(needle: bytes, text: bytes) -> bool:
    """Whether ``text`` has this id, or a session_id or its name with an escape, as a client may write them."""
    return needle in text or (
        b"\\" in text and (_ESCAPED_ID.search(text) is not None or _ESCAPED_ASCII.search(text) is not None)
    )


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
