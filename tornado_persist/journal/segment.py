"""One segment: an append-only file, named by the sequence number of its first record."""

from __future__ import annotations

import contextlib
import os
import re
from pathlib import Path

from tornado_persist.files import fsync_directory, read_at, write_all
from tornado_persist.journal.scanner import WINDOW

_NAME = re.compile(r"(\d{20})\.seg")


def segment_path(directory: Path, first: int) -> Path:
    """The file of the segment that begins with this sequence number."""
    return directory / f"{first:020}.seg"


def first_of(name: str) -> int | None:
    """The sequence number in a segment's file name; None for any other name."""
    match = _NAME.fullmatch(name)
    return int(match[1]) or None if match else None


class Segment:
    """A segment and its state. The writer changes it; others read it under the state's lock."""

    def __init__(self, path: Path, first: int, end: int = 0) -> None:
        """A file of ``end`` bytes, all durable."""
        self.path = path
        self.first = first
        #: Bytes of acknowledged records. What the file holds past it is being written, or must be cut off.
        self.end = end
        #: The last sequence number before ``end``; ``first - 1`` when there is none.
        self.last = first - 1
        #: Bytes that are known to be on the disk, and the last sequence number in them.
        self.synced = end
        self.synced_last = self.last
        #: The file may hold bytes past ``end`` that must not be there after a restart.
        self.dirty = False
        #: A sync failed while ``end`` was past ``synced``: what is between may be lost.
        self.sync_failed = False
        #: What lies past ``end`` is void only because of the next segment's name.
        self.void_tail = False
        #: Damage in it could not be copied aside, so the file must not be deleted.
        self.keep_file = False
        self._fd = -1
        # Keeps the file readable while nothing else has it open, so that a deleted file can be restored.
        self._spare = -1
        self._identity = (0, 0)

    @classmethod
    def create(cls, directory: Path, first: int) -> Segment:
        """A new, empty segment; it is durable with its first :meth:`sync`. Raises OSError."""
        segment = cls(segment_path(directory, first), first)
        # A file of that name can only hold refused records: an acknowledged number is never given again.
        segment._fd = os.open(segment.path, os.O_RDWR | os.O_CLOEXEC | os.O_CREAT | os.O_TRUNC, 0o666)
        segment._identity = _identity(os.fstat(segment._fd))
        return segment

    def hold(self) -> None:
        """Keep the file open, if that is possible."""
        if self._fd < 0 and self._spare < 0:
            with contextlib.suppress(OSError):
                self._spare = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC)
                self._identity = _identity(os.fstat(self._spare))

    def in_place(self) -> bool:
        """Whether the file is still in its place: neither it nor its directory was deleted or replaced."""
        try:
            found = os.stat(self.path)  # noqa: PTH116 - called for every batch
        except (FileNotFoundError, NotADirectoryError):
            return False
        except OSError:  # a write will report the reason
            return True
        return (self._fd < 0 and self._spare < 0) or _identity(found) == self._identity

    def cut_open(self) -> None:
        """Durably remove what is past ``end`` from a file that has no name any more. Raises OSError."""
        os.ftruncate(self._fd, self.end)
        os.fsync(self._fd)
        os.lseek(self._fd, self.end, os.SEEK_SET)
        self.dirty = False

    def restore(self) -> bool:
        """Write a deleted file again, durably; False if it was not open. Raises OSError."""
        source = self._fd if self._fd >= 0 else self._spare
        if source < 0:
            return False
        aside = self.path.with_suffix(".new")
        fd = os.open(aside, os.O_RDWR | os.O_CLOEXEC | os.O_CREAT | os.O_TRUNC, 0o666)
        try:
            for offset in range(0, self.end, WINDOW):
                write_all(fd, [read_at(source, offset, min(WINDOW, self.end - offset))])
            os.fsync(fd)
            aside.rename(self.path)
            fsync_directory(self.path.parent)
        except OSError:
            os.close(fd)
            raise
        active = self._fd >= 0
        self.close()
        self.let_go()
        self._fd, self._spare = (fd, -1) if active else (-1, fd)
        self._identity = _identity(os.fstat(fd))
        self.dirty, self.sync_failed = False, False
        self.synced, self.synced_last = self.end, self.last
        return True

    def write(self, buffers: list[bytes | memoryview]) -> None:
        """Append. Raises OSError; part of it may then be in the file."""
        self.dirty = True
        write_all(self._fd, buffers)

    def sync(self) -> None:
        """Make the records written so far durable, and the first time the file's name too.

        Raises:
            OSError: the pages may be gone; do not trust a later sync of this file.
        """
        try:
            if self.synced:
                os.fdatasync(self._fd)
            else:
                os.fsync(self._fd)
                fsync_directory(self.path.parent)
        except OSError:
            self.sync_failed = self.end > self.synced
            raise

    def advance(self, end: int, last: int, *, synced: bool) -> None:
        """The file holds acknowledged records so far."""
        self.end, self.last = end, last
        self.dirty = False
        if synced:
            self.synced, self.synced_last = end, last

    def cut(self) -> None:
        """Durably remove what is past ``end``. Raises OSError.

        It opens the file again: on the descriptor that failed a second fsync may succeed although the first dropped the
        pages (Rebello et al., "Can Applications Recover from fsync Failures?", 2020).
        """
        self.close()
        fd = os.open(self.path, os.O_WRONLY | os.O_CLOEXEC)
        try:
            os.ftruncate(fd, self.end)
            os.fsync(fd)
        except OSError:
            self.sync_failed = self.end > self.synced
            raise
        finally:
            os.close(fd)
        self.dirty = False
        if not self.sync_failed:
            self.synced, self.synced_last = self.end, self.last

    def probe_room(self, size: int) -> None:
        """Check that ``size`` bytes can be written to this empty segment, then make it durable, empty.

        Raises:
            OSError: there is no room, or the disk fails.
        """
        try:
            os.posix_fallocate(self._fd, 0, size)
            os.pwrite(self._fd, bytes(min(size, 4096)), 0)
            os.fsync(self._fd)
        finally:
            os.ftruncate(self._fd, 0)
        os.fsync(self._fd)
        fsync_directory(self.path.parent)

    def copy_from(self, other: Segment) -> None:
        """Copy another's records that may not be on the disk, durably. Raises OSError."""
        source = os.open(other.path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            for offset in range(other.synced, other.end, WINDOW):
                self.write([read_at(source, offset, min(WINDOW, other.end - offset))])
        finally:
            os.close(source)
        self.sync()
        self.advance(other.end - other.synced, other.last, synced=True)

    def remove(self) -> None:
        """Delete the file. Raises OSError."""
        self.close()
        self.let_go()
        self.path.unlink(missing_ok=True)
        if self.void_tail:  # it must be gone before the segment that makes it void
            fsync_directory(self.path.parent)

    def close(self) -> None:
        """Close the file; writing to it is over."""
        if self._fd >= 0:
            with contextlib.suppress(OSError):  # everything that counts was synced before
                os.close(self._fd)
            self._fd = -1

    def let_go(self) -> None:
        """Undo :meth:`hold`."""
        if self._spare >= 0:
            with contextlib.suppress(OSError):
                os.close(self._spare)
            self._spare = -1


def _identity(status: os.stat_result) -> tuple[int, int]:
    return status.st_dev, status.st_ino
