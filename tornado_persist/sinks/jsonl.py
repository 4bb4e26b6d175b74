"""JSON lines: ``sessions.jsonl`` and ``tasks.jsonl``, for use by other tools.

One line is one merged row: the fields that were sent, with ``created_at`` and ``updated_at`` of what was merged into
that line. A key that is updated later gets another line. **Fold the lines of a key by the merge rule, in file order**:
the last value of every field holds (a ``null`` too), only ``created_at`` is the first line's; a field that no line has
holds its default.

The files are UTF-8, each line ends in ``\\n`` and holds no other one; U+2028, U+2029 and U+0085 may stand in a string,
so split at ``\\n`` alone. Files may be renamed (rotated) or truncated while the service runs: the next write goes to
the file that has the name then.

After a crash no line is there twice: what was written after the position that the service remembers is cut off, since
it will be written again. There is one gap: lines that were written after that position to a file that was then, before
the crash, rotated. They stay in the rotated file and are written again.

Only one service may write to a directory: the first write locks both files, and a second writer is refused. Other
programs may edit the files. A write looks at the last byte first, so a new row always has a line of its own, and a
complete JSON object is never cut off, with or without its newline.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import os
import stat
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

import msgspec
from pydantic import BaseModel, Field, ValidationError

from tornado_persist.errors import BatchRejected, SinkUnavailable
from tornado_persist.files import fsync_directory, make_directory, write_all
from tornado_persist.records.models import KINDS, PLURALS, Batch, Kind, Row
from tornado_persist.sinks.base import Sink, SinkSettings
from tornado_persist.telemetry import log

logger = log.get(__name__)

_encoder = msgspec.json.Encoder()
_PIECE = 512  # rows encoded and written at a time: what is held twice in memory is this much of a batch
_BLOCK = 65536  # bytes read at a time when looking for the last line's beginning
_TAIL = 4096  # bytes before a position that identify its file: the last lines, with keys and times


class JSONLSettings(SinkSettings):
    """``[sinks.jsonl]``"""

    #: Where the two files lie; a relative path is below ``data_dir``.
    dir: str = Field(default="jsonl", min_length=1, pattern=r"^[^\x00]+$")
    #: Whether other instances take updates of the same rows, each with a directory of its own; see docs/scaling.rst.
    writers: Literal["one", "several"] = "one"


class _Mark(BaseModel):
    """How far a file went, and by what it is known again.

    Not by device and inode: a device may have another number after a reboot, the inode of a file that was removed goes
    to the next one, and a rotation that copies and truncates keeps it. What stood before the position does tell: no
    other file has these lines, with these times, at this place. Only of an empty file the inode must do.
    """

    bytes: int = Field(ge=0)
    inode: int
    tail: str


class _Position(BaseModel):
    """Where the next write goes."""

    directory: str
    files: dict[Kind, _Mark]


@dataclass(slots=True)
class _File:
    """An open file and its identity: another file may get its name."""

    path: Path
    fd: int
    identity: tuple[int, int]  # device and inode
    locked: bool = False
    #: This object has written to it, so an unfinished last line is not from a crash.
    written: bool = False

    @property
    def size(self) -> int:
        return os.fstat(self.fd).st_size

    def moved(self) -> bool:
        """Whether the file was removed or renamed since it was opened, so that lines in it would be lost to readers."""
        try:
            found = self.path.stat()
        except FileNotFoundError:
            return True
        return (found.st_dev, found.st_ino) != self.identity


class JSONLSink(Sink[JSONLSettings]):
    """Appends lines, fsynced; a write that fails is cut off again."""

    name: ClassVar[str] = "jsonl"
    Settings: ClassVar[type[JSONLSettings]] = JSONLSettings

    def __init__(self, settings: JSONLSettings, data_dir: Path) -> None:
        super().__init__(settings, data_dir)
        self.directory = data_dir / settings.dir
        self._files: dict[Kind, _File] = {}
        # Lengths to cut back to, by file, after failed writes that could not be cut off at once. Kept over close().
        self._to_cut: dict[tuple[int, int], int] = {}
        # Every session_id in sessions.jsonl, once one was looked up.
        self._known: set[str] | None = None

    def path(self, kind: Kind) -> Path:
        """The file that holds the rows of a kind."""
        return self.directory / f"{PLURALS[kind]}.jsonl"

    def open(self) -> None:
        self.close()
        try:
            with _disk_errors(self.directory):
                make_directory(self.directory)
            for kind in KINDS:
                self._open_file(kind)
        except BaseException:
            self.close()
            raise

    def missing(self) -> list[str]:
        with _disk_errors(self.directory):
            return [str(path) for path in map(self.path, KINDS) if not path.exists()]

    def close(self) -> None:
        for file in self._files.values():
            with suppress(OSError):  # everything written is fsynced already
                os.close(file.fd)
        self._files = {}
        self._known = None

    def ping(self) -> None:
        self._follow()
        with _disk_errors(self.directory):
            disk = os.statvfs(self.directory)
            if disk.f_flag & os.ST_RDONLY:
                raise _os_error(errno.EROFS)
            if disk.f_blocks and not disk.f_bavail:  # some network file systems report no sizes
                raise _os_error(errno.ENOSPC)

    @property
    def address(self) -> str:
        return str(self.directory)

    def describe(self) -> str:
        return f"JSON lines in {self.directory}"

    def write(self, batch: Batch) -> None:
        self._follow()
        self._lock()
        kinds = [kind for kind in KINDS if batch.rows(kind)]
        try:
            for kind in kinds:
                file = self._files[kind]
                with _disk_errors(file.path):
                    self._cut(file)
                    # Not in open(), which would change the file while another service writes to it.
                    _finish_last_line(file)
                    # Until all files are fsynced, this is the length to cut back to after any failure.
                    self._to_cut[file.identity] = file.size
            for kind in kinds:
                self._append(kind, batch.rows(kind))
            for kind in kinds:
                with _disk_errors(self._files[kind].path):
                    os.fsync(self._files[kind].fd)
        except BaseException:
            for kind in kinds:
                # If this fails (the disk may be gone), the next write or open() does it first.
                with suppress(OSError):
                    self._cut(self._files[kind])
            raise
        for kind in kinds:
            self._to_cut.pop(self._files[kind].identity, None)
            self._files[kind].written = True
        if self._known is not None:
            self._known.update(row["session_id"] for row in batch.sessions)

    def position(self) -> dict[str, Any]:
        """Where both files end once what a failed write or a crash has left there is cut off; nothing is cut here."""
        self._follow()
        self._lock()
        marks: dict[Kind, _Mark] = {}
        for kind in KINDS:
            file = self._files[kind]
            with _disk_errors(file.path):
                end = self._to_cut.get(file.identity)
                end = _end_of_rows(file) if end is None else min(end, file.size)
                marks[kind] = _Mark(bytes=end, inode=file.identity[1], tail=_tail(file, end))
        return _Position(directory=str(self.directory.absolute()), files=marks).model_dump()

    def rewind(self, position: dict[str, Any]) -> None:
        """Cut off what was written after ``position``, durably.

        A file that is not the one of ``position`` any more, or has become shorter, stays as it is, with a warning: it
        was rotated or edited, and its lines may be the only copy of rows that are needed. Lines written after the
        position are then written twice; folding them gives the same result.
        """
        try:
            wanted = _Position.model_validate(position)
        except ValidationError:  # of another kind of sink
            return
        self._follow()
        if wanted.directory != str(self.directory.absolute()):
            return
        self._lock()
        self._known = None
        for kind, mark in wanted.files.items():
            file = self._files[kind]
            path = str(file.path)
            with _disk_errors(file.path):
                surplus = file.size - mark.bytes
                known = surplus >= 0 and _tail(file, mark.bytes) == mark.tail
                if not known or (mark.bytes == 0 and file.identity[1] != mark.inode):
                    logger.warning(
                        "file is not as it was left: lines that are written again may be there twice",
                        sink="jsonl",
                        file=path,
                        bytes=file.size,
                        expected=mark.bytes,
                    )
                elif surplus > 0:
                    os.ftruncate(file.fd, mark.bytes)
                    os.fsync(file.fd)
                    logger.warning("lines cut off to write them again", sink="jsonl", file=path, bytes=surplus)

    def find_sessions(self, session_ids: Collection[str]) -> set[str]:
        """Those that ``sessions.jsonl`` has, which must be read once for that; sessions rotated away do not count."""
        self._follow()
        if self._known is None:
            with _disk_errors(self.path("session")):
                self._known = _read_session_ids(self.path("session"))
        return self._known.intersection(session_ids)

    def _append(self, kind: Kind, rows: list[Row]) -> None:
        file = self._files[kind]
        for start in range(0, len(rows), _PIECE):
            try:
                # A row is a line as it is: 0.9 µs for one of 490 bytes, where a copy with converted times took 4.
                lines = _encoder.encode_lines(rows[start : start + _PIECE])
            except (ValueError, TypeError) as exc:  # an unpaired surrogate, or no JSON type at all
                raise BatchRejected(f"a {kind} cannot be written as JSON: {exc}", code=type(exc).__name__) from exc
            with _disk_errors(file.path):
                write_all(file.fd, [lines])

    def _follow(self) -> None:
        """Reopen the files if one is no longer under its name."""
        if not self._files:
            raise SinkUnavailable(f"{self.directory}: not open")
        for kind in KINDS:
            file = self._files[kind]
            with _disk_errors(file.path):
                moved = file.moved()
            if moved:
                self.open()
                return

    def _lock(self) -> None:
        """Be the only writer of both files, until they are closed.

        Not by open(): ``persistd check`` opens the files of a running service.
        """
        for file in self._files.values():
            if not file.locked:
                with _disk_errors(file.path):
                    try:
                        fcntl.flock(file.fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    except BlockingIOError:
                        raise SinkUnavailable(
                            f"{file.path}: another service writes to it; each service needs a directory of its own",
                            code="EWOULDBLOCK",
                        ) from None
                file.locked = True

    def _open_file(self, kind: Kind) -> None:
        path = self.path(kind)
        with _disk_errors(path):
            # O_NONBLOCK: opening a FIFO must not hang before it is seen to be one.
            fd = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NONBLOCK, 0o666)
            try:
                found = os.fstat(fd)
                if not stat.S_ISREG(found.st_mode):
                    raise SinkUnavailable(f"{path}: not a regular file", code="EINVAL")
                file = _File(path, fd, (found.st_dev, found.st_ino))
                self._cut(file)
                os.fsync(fd)
                # The entry lies in the directory that a symbolic link points into. Also for a file that was there
                # already: who made it may have crashed before this.
                fsync_directory(path.resolve().parent)
            except BaseException:
                os.close(fd)
                raise
        self._files[kind] = file

    def _cut(self, file: _File) -> None:
        """Finish what a failed write could not: cut its lines off."""
        length = self._to_cut.get(file.identity)
        if length is not None:
            if file.size > length:  # otherwise another program has shortened it
                os.ftruncate(file.fd, length)
            del self._to_cut[file.identity]


def _finish_last_line(file: _File) -> None:
    """See to it that the next row begins a line.

    An unfinished line is cut off if a crash may have left it, for its write was never reported done. A complete object
    only gets its newline, and so does text that another program has left since the last write.
    """
    keep, size = _end_of_lines(file), file.size
    if keep == size:
        return
    path = str(file.path)
    if file.written or _is_object(os.pread(file.fd, size - keep, keep)):
        write_all(file.fd, [b"\n"])
        logger.warning("last line had no newline: another program has changed the file", sink="jsonl", file=path)
    else:
        os.ftruncate(file.fd, keep)
        logger.warning("torn line cut off", sink="jsonl", file=path, bytes=size - keep)


def _end_of_rows(file: _File) -> int:
    """Where the file ends once :func:`_finish_last_line` has cut off what it would."""
    end, size = _end_of_lines(file), file.size
    return size if file.written or _is_object(os.pread(file.fd, size - end, end)) else end


def _is_object(content: bytes) -> bool:
    try:
        return isinstance(json.loads(content), dict)
    except (ValueError, RecursionError):
        return False


def _end_of_lines(file: _File) -> int:
    """The offset after the last newline."""
    end = file.size
    while end > 0:
        start = end - 1 if end == file.size else max(0, end - _BLOCK)  # usually the last byte is enough
        newline = os.pread(file.fd, end - start, start).rfind(b"\n")
        if newline >= 0:
            return start + newline + 1
        end = start
    return 0


def _tail(file: _File, end: int) -> str:
    """A digest of the bytes before ``end``."""
    start = max(0, end - _TAIL)
    return hashlib.blake2b(os.pread(file.fd, end - start, start), digest_size=16).hexdigest()


def _read_session_ids(path: Path) -> set[str]:
    known: set[str] = set()
    damaged = 0
    with path.open("rb") as lines:
        for line in lines:
            try:
                known.add(json.loads(line)["session_id"])
            except (ValueError, TypeError, KeyError, RecursionError):
                damaged += 1  # by another program or the disk; the other lines still count
    if damaged:
        logger.warning("lines without a session passed over", sink="jsonl", file=str(path), lines=damaged)
    return known


def _os_error(number: int) -> OSError:
    return OSError(number, os.strerror(number))


@contextmanager
def _disk_errors(path: Path) -> Iterator[None]:
    """Turn an OSError into ``SinkUnavailable``, with one line that names the file."""
    try:
        yield
    except OSError as exc:
        code = errno.errorcode.get(exc.errno or 0, "")
        raise SinkUnavailable(f"{path}: {exc.strerror or exc}", code=code) from exc
