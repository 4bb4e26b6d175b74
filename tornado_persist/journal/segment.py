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
    """A segment and what is known of it. The writer changes it; others read it under the ledger's lock."""

    def __init__(self, path: Path, first: int, end: int = 0, last: int | None = None) -> None:
        """A file of ``end`` bytes, all durable, whose last good record is ``last``."""
        self.path = path
        self.first = first
        #: Bytes of acknowledged records. What the file holds past it is being written, or has to go.
        self.end = end
        #: The last sequence number before ``end``; ``first - 1`` when there is none.
        self.last = first - 1 if last is None else last
        #: Bytes that are known to be on the disk, and the last sequence number in them.
        self.synced = end
        self.synced_last = self.last
        #: The file may hold bytes past ``end`` that must not be there after a restart.
        self.dirty = False
        #: A sync failed while ``end`` was past ``synced``: what is between may be lost.
        self.doubtful = False
        #: What lies past ``end`` is void only by the name of the next segment.
        self.leftovers = False
        #: Damage in it could not be copied aside, so the file must not be deleted.
        self.keep = False
        self._fd = -1

    @classmethod
    def create(cls, directory: Path, first: int) -> Segment:
        """A new, empty segment; it is durable with its first :meth:`sync`. Raises OSError."""
        segment = cls(segment_path(directory, first), first)
        # A file of that name can hold nothing but refused records: a number once acknowledged is not given again.
        segment._open(os.O_CREAT | os.O_TRUNC)
        return segment

    def write(self, buffers: list[bytes | memoryview]) -> None:
        """Append, after what was written before. Raises OSError; part of it may then be in the file."""
        self.dirty = True
        write_all(self._fd, buffers)

    def sync(self) -> None:
        """Make the records written so far durable, and at the first time the file's name.

        Raises:
            OSError: it failed; the pages may be gone, and no later sync of this file can be believed.
        """
        try:
            if self.synced:
                os.fdatasync(self._fd)
            else:
                os.fsync(self._fd)
                fsync_directory(self.path.parent)
        except OSError:
            self.doubtful = self.end > self.synced
            raise

    def advance(self, end: int, last: int, *, synced: bool) -> None:
        """The file holds acknowledged records so far."""
        self.end, self.last = end, last
        self.dirty = False
        if synced:
            self.synced, self.synced_last = end, last

    def cut(self) -> None:
        """Durably remove what is past ``end``. Raises OSError.

        On a file opened anew: the descriptor that failed may say that all is well at its second fsync, though the pages
        were dropped at the first (Rebello et al., "Can Applications Recover from fsync Failures?", 2020).
        """
        self.close()
        fd = os.open(self.path, os.O_WRONLY | os.O_CLOEXEC)
        try:
            os.ftruncate(fd, self.end)
            os.fsync(fd)
        except OSError:
            self.doubtful = self.end > self.synced
            raise
        finally:
            os.close(fd)
        self.dirty = False
        if not self.doubtful:
            self.synced, self.synced_last = self.end, self.last

    def try_room(self, size: int) -> None:
        """Find out whether ``size`` bytes could be written to this empty segment, and make it durable, empty again.

        Raises:
            OSError: there is no room, or the disk does not take it.
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
        """Take over another's records that are not known to be on the disk, durably. Raises OSError."""
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
        self.path.unlink(missing_ok=True)
        if self.leftovers:  # they must be gone before the segment that makes them void may go
            fsync_directory(self.path.parent)

    def close(self) -> None:
        """Close the file; writing to it is over."""
        if self._fd >= 0:
            with contextlib.suppress(OSError):  # what counts has been synced, and its outcome was seen
                os.close(self._fd)
            self._fd = -1

    def _open(self, flags: int) -> None:
        self._fd = os.open(self.path, os.O_RDWR | os.O_CLOEXEC | flags, 0o666)
