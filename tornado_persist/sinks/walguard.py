"""Keeps an SQLite WAL from being replayed into a file that it does not belong to.

SQLite takes any valid ``-wal`` beside a database for that database's own. After a crash the WAL holds committed rows.
If the database is a restored backup by then, replaying the WAL makes a mixture of both, which is corrupt.

So the header of the database gets a new number every minute in which rows are written (its ``application_id``), and the
file ``-id`` beside it has the two numbers that the file may have: the previous one, and the new one after a
checkpoint. A backup has an older number. A backup of the last minute that was moved here, not copied over the file, is
recognised by its inode.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import sqlite3
import time
from pathlib import Path
from typing import Any
from weakref import WeakValueDictionary

from tornado_persist.errors import SinkUnavailable
from tornado_persist.files import fsync_directory, open_private, replace_file, write_all

#: Seconds from one number to the next.
RENEW_EVERY = 60.0
#: Place of the number in a database's header.
_OFFSET, _SIZE = 68, 4

Identity = list[int]


class OpenFile:
    """A descriptor of a database file, closed when nobody has this object any more.

    To close any descriptor of a file gives up all locks of the process on it, those of SQLite's other connections as
    well ("How To Corrupt An SQLite Database File", sqlite.org). Another program would then take itself for the last
    one, and delete the WAL. So a process has one of a file, kept by the guard and by each connection that reads.
    """

    def __init__(self, fd: int) -> None:
        self.fd = fd

    def __del__(self) -> None:
        os.close(self.fd)


_files: WeakValueDictionary[tuple[int, int], OpenFile] = WeakValueDictionary()


def _open(path: Path) -> OpenFile:
    """Raises OSError."""
    status = path.stat()
    file = _files.get((status.st_dev, status.st_ino))
    if file is None:
        file = OpenFile(os.open(path, os.O_RDONLY | os.O_CLOEXEC))
        status = os.fstat(file.fd)
        _files[status.st_dev, status.st_ino] = file
    return file


class WALGuard:
    """Guards one database file: call begin() before the database is opened, and end() after it was closed."""

    def __init__(self, path: Path) -> None:
        self._path = path
        #: What each connection to the database has to keep until it is closed. None while the database is closed.
        self.file: OpenFile | None = None
        self._renewed_at = float("-inf")
        self._numbers: set[int] = set()
        self._database: Identity | None = None
        self._open_wal: Identity | None = None

    def begin(self) -> None:
        """Before the database is opened.

        Raises:
            SinkUnavailable: the WAL beside it is another file's. It was moved aside; next time it opens.
        """
        path = self._path = self._path.resolve()  # the files beside it are beside what a link leads to
        self._wal, self._shm, self._note = (path.with_name(path.name + end) for end in ("-wal", "-shm", "-id"))
        with contextlib.suppress(FileNotFoundError):
            self.file = _open(self._path)
        if self.file is None or not _identify(self._wal) or self._wal.stat().st_size == 0:
            return
        note = self._read_note()
        moved = note.get("database") != _identify(self._path) and note.get("wal") == _identify(self._wal)
        if note and (moved or self._number() not in note["numbers"]):
            aside = self._set_aside()
            self.end()
            raise SinkUnavailable(
                f"{self._path} is not the file that {self._wal.name} belongs to, a restored backup perhaps; the WAL was"
                f" moved to {aside.name}"
            )

    def opened(self) -> None:
        """After the first transaction on the open database."""
        if self.file is None:
            self.file = _open(self._path)
        self._database, self._open_wal = _identify(self._path), _identify(self._wal)

    def look(self, connection: sqlite3.Connection) -> None:
        """Before each use of the open database.

        Raises:
            SinkUnavailable: the file or its WAL was removed or replaced. It can be opened again.
        """
        if self._database is not None and _identify(self._path) != self._database:
            self._set_aside()
            raise SinkUnavailable(f"{self._path} was removed or replaced while it was open")
        if self._overwritten():
            self._set_aside()
            self._detach()
            raise SinkUnavailable(f"{self._path} was overwritten while it was open")
        if self._open_wal and _identify(self._wal) != self._open_wal:
            # SQLite still has it open: what it holds can go into the database.
            connection.execute("PRAGMA wal_checkpoint(FULL)").close()
            raise SinkUnavailable(f"{self._wal} was removed while it was open; what it held was saved")

    def unchanged(self) -> bool:
        """Whether the database is open, and still the file at its path. Changes nothing; any thread may ask."""
        return self._database is not None and _identify(self._path) == self._database

    def renew(self, connection: sqlite3.Connection) -> None:
        """After a write: give the database a new number if the last one is old enough. Raises nothing."""
        if not self._open_wal or time.monotonic() - self._renewed_at < RENEW_EVERY:
            return
        with contextlib.suppress(sqlite3.Error, OSError):
            connection.execute("PRAGMA wal_checkpoint(PASSIVE)").close()
            connection.execute("BEGIN IMMEDIATE").close()  # one process at a time
            try:
                (current,) = connection.execute("PRAGMA application_id").fetchone()
                # Otherwise a reader blocks the checkpoint, and the last number is only in the WAL.
                if current == self._number():
                    new = secrets.randbelow(2**31 - 1) + 1
                    note = {"numbers": [current, new], "database": self._database, "wal": self._open_wal}
                    replace_file(self._note, json.dumps(note).encode())
                    connection.execute(f"PRAGMA application_id = {new}").close()
                    self._renewed_at, self._numbers = time.monotonic(), {current, new}
                connection.execute("COMMIT").close()
            except BaseException:
                connection.execute("ROLLBACK").close()
                raise

    def end(self) -> None:
        """After the database was closed."""
        self.file, self._database, self._open_wal = None, None, None
        self._renewed_at, self._numbers = float("-inf"), set()

    def _overwritten(self) -> bool:
        if not self._open_wal or self._number() in self._numbers:
            return False
        self._numbers = set(self._read_note().get("numbers", ()))  # perhaps another process has renewed it
        return bool(self._numbers) and self._number() not in self._numbers

    def _number(self) -> int:
        """What the file itself has, without the WAL."""
        assert self.file is not None
        return int.from_bytes(os.pread(self.file.fd, _SIZE, _OFFSET), "big")

    def _set_aside(self) -> Path:
        """Rename the WAL, so that SQLite does not replay it. Deletes the files that are useless without it."""
        aside = self._wal.with_name(f"{self._wal.name}.{time.time_ns()}")
        with contextlib.suppress(FileNotFoundError):
            self._wal.rename(aside)
        for useless in (self._shm, self._note):
            useless.unlink(missing_ok=True)
        fsync_directory(self._path.parent)
        return aside

    def _detach(self) -> None:
        """Give the path a copy of the file: SQLite, on closing, writes the WAL into a file that still has its name."""
        assert self.file is not None
        copy = self._path.with_name(f"{self._path.name}.copy")
        fd = open_private(copy, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        try:
            offset = 0
            while data := os.pread(self.file.fd, 1 << 20, offset):
                write_all(fd, [data])
                offset += len(data)
            os.fsync(fd)
        finally:
            os.close(fd)
        copy.rename(self._path)

    def _read_note(self) -> dict[str, Any]:
        try:
            note = json.loads(self._note.read_bytes())
        except (OSError, ValueError):
            return {}
        return note if isinstance(note, dict) and isinstance(note.get("numbers"), list) else {}


def _identify(path: Path) -> Identity | None:
    try:
        status = path.stat()
    except FileNotFoundError:
        return None
    return [status.st_dev, status.st_ino]
