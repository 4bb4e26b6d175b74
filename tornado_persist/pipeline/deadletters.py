"""Dead letters: the rejected rows, with the reason, one JSON line each; and how many of them are open."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from tornado_persist.errors import FieldError
from tornado_persist.files import fsync_directory, open_private, write_all
from tornado_persist.records.models import KINDS, Kind, Row
from tornado_persist.records.rules import INVALID
from tornado_persist.records.times import stamp

_NO_BREAKS = bytes.maketrans(b"\r\n", b"  ")
#: Bytes of a file read in one step.
STEP = 8 << 20
#: Open rows that are shown.
SHOWN = 5
#: Characters of a message that are shown, and of a key: one that was set aside may have any length.
MESSAGE = 200
KEY = 64


@dataclass(frozen=True, slots=True)
class RefusedRow:
    """A rejected row, and why."""

    kind: Kind
    row: Row
    sink: str
    code: str
    message: str
    at: datetime

    def line(self) -> bytes:
        """The line in the file: ``row`` has the fields that were sent, so that it can be sent again."""
        entry = {
            "created_at": self.row["created_at"],
            "updated_at": self.row["updated_at"],
            "sink": self.sink,
            "code": self.code,
            "message": self.message,
            "at": stamp(self.at),
        }
        told = json.dumps(entry, ensure_ascii=False).encode()[1:-1]
        return b'{"kind": "%b", "row": %b, %b}\n' % (self.kind.encode(), self.row.as_json(), told)


@dataclass(frozen=True, slots=True)
class InvalidRow:
    """A row that was set aside at the door, as it was sent: the specification does not allow it."""

    kind: Kind
    text: bytes
    errors: Sequence[FieldError]
    at: str

    def line(self) -> bytes:
        """The line in the file. ``row`` may be any JSON that came, and no sink has seen it."""
        entry = {
            "created_at": self.at,
            "updated_at": self.at,
            "message": self.errors[0]["msg"],
            "loc": self.errors[0]["loc"],
            "errors": list(self.errors),
            "at": self.at,
        }
        # Line breaks in JSON are white space: within a text they are escaped.
        row = self.text.translate(_NO_BREAKS)
        told = json.dumps(entry, ensure_ascii=False).encode()[1:-1]
        return b'%b, %b, "row": %b}\n' % (_INVALID_HEADS[self.kind], told, row)


#: How a line of a row that was set aside begins. The row itself is not read to know it: it may be beyond any reader.
_INVALID_HEADS: dict[Kind, bytes] = {
    kind: json.dumps({"code": INVALID, "sink": None, "kind": kind}).encode()[:-1] for kind in KINDS
}


class DeadLetters:
    """``rejected.jsonl``: appended, fsynced, and cut back to what the journal's cursor knows before a replay.

    The cut keeps a row from appearing twice over a crash: rows rejected after the cursor was written are still in the
    journal, and will be refused again. Rows that were set aside at the door are not, and stay.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def length(self) -> int:
        """Bytes in the file. Raises OSError."""
        try:
            return self.path.stat().st_size
        except FileNotFoundError:
            return 0

    def set_aside_past(self, length: int) -> dict[Kind, int]:
        """Rows set aside at the door, by kind, whose lines lie past ``length`` bytes. Raises OSError."""
        counts: dict[Kind, int] = dict.fromkeys(KINDS, 0)
        for kind, _ in self._invalid_lines(length):
            counts[kind] += 1
        return counts

    def cut(self, length: int) -> int:
        """Cut off rows that a sink rejected past ``length`` bytes; returns how many bytes that was. Raises OSError."""
        surplus = self.length() - length
        if surplus <= 0:
            return 0
        kept = b"".join(line for _, line in self._invalid_lines(length))
        if len(kept) == surplus:
            return 0
        if kept:
            # A new file: a crash must not cost what was acknowledged.
            aside = self.path.with_name(self.path.name + ".new")
            with self.path.open("rb") as old, aside.open("wb") as new:
                for start in range(0, length, STEP):
                    new.write(old.read(min(STEP, length - start)))
                new.write(kept)
                new.flush()
                os.fsync(new.fileno())
            aside.chmod(self.path.stat().st_mode & 0o777)
            aside.replace(self.path)
            fsync_directory(self.path.parent)
        else:
            self.truncate(length)
        return surplus - len(kept)

    def truncate(self, length: int) -> None:
        """Take back what was appended past ``length`` bytes. Raises OSError."""
        with self.path.open("r+b") as file:
            file.truncate(length)
            os.fsync(file.fileno())

    def _invalid_lines(self, start: int) -> Iterator[tuple[Kind, bytes]]:
        with contextlib.suppress(FileNotFoundError), self.path.open("rb") as file:
            file.seek(start)
            for line in file:
                for kind, head in _INVALID_HEADS.items():
                    if line.startswith(head) and line.endswith(b"\n"):
                        yield kind, line

    def append(self, rows: Sequence[RefusedRow | InvalidRow]) -> int:
        """Add all of them durably, or none. Returns how many bytes the file then has.

        Raises:
            OSError: the file cannot be written; it is as it was.
        """
        fd = open_private(self.path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
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


@dataclass(frozen=True, slots=True)
class OpenRow:
    """A rejected row that was neither retried nor dropped: what it is, and why and when it was rejected."""

    kind: str
    session_id: str
    task_id: str  #: empty for a session
    code: str
    message: str
    at: str  #: ISO 8601


class OpenRows:
    """Rejected rows that were neither retried nor dropped, counted from ``rejected.jsonl`` and the notes beside it.

    ``persistd rejected`` notes in ``rejected.settled.jsonl`` what was done about a line, identified by its SHA-256.
    Both files only grow, so each is read once, and then only what was added; from the start if one was replaced or cut.
    A row takes 16 bytes of memory. Blocking, and for one thread at a time.
    """

    def __init__(self, path: Path) -> None:
        self._lines = _Tail(path)
        self._notes = _Tail(path.with_name(path.stem + ".settled.jsonl"))
        # Where each open line is, and the beginning of its digest, from the oldest on.
        self._offsets, self._digests = array("Q"), array("Q")
        #: The oldest ones.
        self.first: tuple[OpenRow, ...] = ()

    def __len__(self) -> int:
        return len(self._digests)

    def read_on(self) -> bool:
        """Read the next step of what was added; whether there may be more. Raises OSError."""
        # The notes' end first: a note is newer than its line.
        if not (self._notes.measure() and self._lines.measure()):
            self._forget()
            return True
        changed = False
        for offset, line in self._lines.read():
            self._digests.append(_digest(hashlib.sha256(line[:-1]).digest()))
            self._offsets.append(offset)
            changed = True
        if not self._lines.at_end:
            return True
        closed = {_digest(digest) for _, line in self._notes.read() if (digest := _closed_digest(line))}
        if closed:
            kept = [i for i, digest in enumerate(self._digests) if digest not in closed]
            self._digests = array("Q", [self._digests[i] for i in kept])
            self._offsets = array("Q", [self._offsets[i] for i in kept])
        if changed or closed:
            self.first = tuple(_open_row(self._lines.line_at(offset)) for offset in self._offsets[:SHOWN])
        return not self._notes.at_end

    def _forget(self) -> None:
        self._offsets, self._digests, self.first = array("Q"), array("Q"), ()
        self._lines.position = self._notes.position = 0


class _Tail:
    """The lines of a file that were not read yet."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._inode = 0
        self._end = 0
        self.position = 0
        #: Whether the last :meth:`read` came to the end that was measured.
        self.at_end = False

    def measure(self) -> bool:
        """Where the file ends now; False if that is another file, or what was read has been cut. Raises OSError."""
        try:
            status = self._path.stat()
            inode, self._end = status.st_ino, status.st_size
        except FileNotFoundError:
            inode, self._end = 0, 0
        same = self.position == 0 or (inode == self._inode and self._end >= self.position)
        self._inode = inode
        return same

    def read(self) -> Iterator[tuple[int, bytes]]:
        """The next whole lines with their offsets, ``STEP`` bytes and one line at most. Raises OSError."""
        self.at_end = True
        if self.position == self._end:
            return
        stop = self.position + STEP
        with self._path.open("rb") as file:
            file.seek(self.position)
            for line in file:
                if self.position + len(line) > self._end or not line.endswith(b"\n"):
                    return  # it is being written
                if self.position >= stop:
                    self.at_end = False
                    return
                yield self.position, line
                self.position += len(line)

    def line_at(self, offset: int) -> bytes:
        """Raises OSError."""
        with self._path.open("rb") as file:
            file.seek(offset)
            return file.readline()


def _digest(sha256: bytes) -> int:
    return int.from_bytes(sha256[:8])


def _closed_digest(note: bytes) -> bytes:
    """The SHA-256 of the line that a note closes; empty if it closes none."""
    try:
        found = json.loads(note)
        return bytes.fromhex(found["sha256"]) if found["state"] in ("retried", "dropped") else b""
    except (ValueError, KeyError, TypeError, RecursionError):
        return b""  # ``persistd rejected`` reports it


def _open_row(line: bytes) -> OpenRow:
    """What can be read of the line; it may have been edited."""
    try:
        found = json.loads(line)
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict):
        return OpenRow("", "", "", "", "this line is no JSON object", "")
    row = found.get("row")
    if not isinstance(row, dict):
        row = {}
    kind, message = str(found.get("kind", "")), " ".join(str(found.get("message", "")).split())
    task_id = _shown_key(row.get("task_id", "")) if kind == "task" else ""
    code, at = str(found.get("code", "")), str(found.get("at", ""))
    return OpenRow(kind, _shown_key(row.get("session_id", "")), task_id, code, message[:MESSAGE], at)


def _shown_key(value: object) -> str:
    """Without halves of surrogate pairs, which no answer could hold."""
    return str(value)[:KEY].encode(errors="replace").decode()
