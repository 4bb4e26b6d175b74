"""Dead letters: the rows that the sink refused, with the reason, one JSON line each."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from tornado_persist.files import fsync_directory, write_all
from tornado_persist.records.models import Kind, Row
from tornado_persist.records.times import stamp


@dataclass(frozen=True, slots=True)
class RefusedRow:
    """A row that the sink refused, and why."""

    kind: Kind
    row: Row
    sink: str
    code: str
    message: str
    at: datetime

    def line(self) -> bytes:
        """The line in the file: ``row`` has the fields that were sent, so that it can be sent again."""
        fields = {name: value for name, value in self.row.items() if name not in ("created_at", "updated_at")}
        entry = {
            "kind": self.kind,
            "row": fields,
            "created_at": self.row["created_at"],
            "updated_at": self.row["updated_at"],
            "sink": self.sink,
            "code": self.code,
            "message": self.message,
            "at": stamp(self.at),
        }
        return json.dumps(entry, ensure_ascii=False).encode() + b"\n"


class DeadLetters:
    """``rejected.jsonl``: appended, fsynced, and cut back to what the journal's cursor knows before a replay.

    The cut keeps a row from appearing twice over a crash: rows refused after the cursor was written are still in the
    journal, and will be refused again.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def length(self) -> int:
        """Bytes in the file. Raises OSError."""
        try:
            return self.path.stat().st_size
        except FileNotFoundError:
            return 0

    def cut(self, length: int) -> int:
        """Cut off what lies past ``length`` bytes; returns how many bytes that was. Raises OSError."""
        surplus = self.length() - length
        if surplus <= 0:
            return 0
        with self.path.open("r+b") as file:
            file.truncate(length)
            os.fsync(file.fileno())
        return surplus

    def append(self, rows: Sequence[RefusedRow]) -> int:
        """Add all of them durably, or none. Returns how many bytes the file then has.

        Raises:
            OSError: the file cannot be written; it is as it was.
        """
        fd = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o640)
        try:
            before = os.fstat(fd).st_size
            try:
                lines = b"".join(row.line() for row in rows)
                write_all(fd, [lines])
                os.fsync(fd)
            except BaseException:
                with contextlib.suppress(OSError):
                    os.ftruncate(fd, before)
                raise
            if before == 0:
                fsync_directory(self.path.parent)
            return before + len(lines)
        finally:
            os.close(fd)
