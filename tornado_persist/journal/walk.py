"""Reads the records of all segments in order, and accounts for every number: a record, damage, or a gap.

There is one reader for three uses: a start, which repairs what the walk reports; a backlog that is read back while the
service runs; and ``persistd journal``, which looks from outside. The walk itself changes nothing.
"""

from __future__ import annotations

import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

from tornado_persist.errors import InputError
from tornado_persist.files import reason
from tornado_persist.journal.cursor import Cursor
from tornado_persist.journal.scanner import Damage, Entry, Extent, Scanner, Tail
from tornado_persist.journal.segment import first_of, segment_path
from tornado_persist.journal.state import State

#: A running service may be writing one half of the cursor while the other is being read.
_CURSOR_READS = 5


@dataclass(frozen=True, slots=True)
class Begin:
    """A segment begins: its file, the number in its name, and its bytes at that moment."""

    path: Path
    first: int
    size: int


@dataclass(frozen=True, slots=True)
class Gap:
    """Unreleased numbers without a record; ``damaged`` if damage explains it, else they are missing."""

    first: int
    last: int
    damaged: bool


Item: TypeAlias = Begin | Entry | Damage | Tail | Gap
#: Where a walk finds the segments: the files in a directory, or the acknowledged records of an open journal.
Source: TypeAlias = "Directory | State"


class Walk:
    """An iterator over all items. It stops at the current end: iterate again after more was appended."""

    def __init__(self, source: Source, start: int) -> None:
        """``start``: the first number to account for."""
        self._source = source
        #: The lowest number that is not accounted for yet.
        self.expected = start
        # Damage lies between the last record and here.
        self._damaged = False
        self._scanner: Scanner | None = None
        self._items = self._read()

    def __iter__(self) -> Walk:
        return self

    def __next__(self) -> Item:
        """Raises OSError when a file cannot be read, and StartError for a record of an unknown version. The walk is
        over then.
        """
        item = next(self._items)
        if item is None:
            raise StopIteration
        return item

    def close(self) -> None:
        """Close the file, but keep the place. The next item opens it again, or skips it if it was deleted."""
        if self._scanner is not None:
            self._scanner.close()

    def _read(self) -> Iterator[Item | None]:
        """All items; None is the end for now."""
        extent = self._source.find(self.expected)
        first = 0
        while True:
            if extent is None:
                yield None
            else:
                first = extent.first
                yield from self._read_segment(extent)
            extent = self._source.following(first)

    def _read_segment(self, extent: Extent) -> Iterator[Item | None]:
        scanner = self._scanner = Scanner(extent)
        yield Begin(extent.path, extent.first, extent.end)
        yield from self._account(extent.first)
        while True:
            place = scanner.offset, scanner.expected
            try:
                item = scanner.next(extent)
            except FileNotFoundError:
                if self._source.extent(extent.first) is not None:
                    raise
                break
            if isinstance(item, Entry):
                if item.seq > self.expected:
                    yield from self._account(item.seq)
                self.expected, self._damaged = max(self.expected, item.seq + 1), False
            elif isinstance(item, Damage):
                now = self._source.extent(extent.first)
                if now is not None and now.end < extent.end:
                    # The service has cut off a failed write in the meantime. Read again from here.
                    extent = now
                    scanner.go_back(*place)
                    continue
                self._damaged = True
            elif item is None:
                now = extent if extent.last is None else self._source.extent(extent.first)
                if now is None:
                    break
                if now != extent:
                    extent = now
                    continue
                if self._damaged:
                    yield from self._account(self._end(extent, scanner))
                if extent.limit is not None or extent.last is None:
                    break
            yield item
        self._damaged = False
        scanner.close()

    def _account(self, seq: int) -> Iterator[Gap]:
        """The next record has this number or a later one, so those before it have none."""
        first = max(self.expected, self._source.released + 1)
        if first < seq:
            yield Gap(first, seq - 1, self._damaged)
        self.expected = max(self.expected, seq)
        self._damaged = False

    def _end(self, extent: Extent, scanner: Scanner) -> int:
        """The first number that can follow a segment with damage at its end."""
        if extent.limit is not None:
            return extent.limit
        if extent.last is not None:
            return extent.last + 1
        # At least one record was here; its number must not be given again.
        return max(scanner.expected, self.expected + 1)


class Directory:
    """The segments as files, whether or not a service has them open."""

    def __init__(self, path: Path, firsts: list[int], released: int) -> None:
        """``firsts``: the numbers in the names of the segments, sorted."""
        self.path = path
        self.released = released
        self._firsts = firsts

    def walk(self) -> Walk:
        """A walk through all of them."""
        return Walk(self, min([self.released + 1, *self._firsts[:1]]))

    # A walk calls these: where to begin, where to go on, and how a segment is now (None once it is deleted).

    def find(self, seq: int) -> Extent | None:
        return self.following(0)

    def following(self, first: int) -> Extent | None:
        later = (self.extent(other) for other in self._firsts if other > first)
        return next((extent for extent in later if extent is not None), None)

    def extent(self, first: int) -> Extent | None:
        path = segment_path(self.path, first)
        try:
            # The size first: a segment that is there afterwards says which of these bytes are void.
            found = path.stat()
        except FileNotFoundError:
            self._look_again()
            return None
        if not stat.S_ISREG(found.st_mode):
            raise InputError(path, "is no regular file")
        later = [n for n in self._firsts if n > first] or [n for n in segments_in(self.path) if n > first]
        return Extent(path, first, found.st_size, later[0] if later else None)

    def _look_again(self) -> None:
        """A segment is gone: the service may have released more."""


class Inspection(Directory):
    """A look at the journal from outside, by the rules of a start. It changes nothing and takes no lock.

    A service may append, release and delete meanwhile. Segments that it deletes are released, and skipped; new
    segments are ignored. The end of the last segment may be in the middle of being written: it is a ``torn`` tail
    then, as after a crash.
    """

    def __init__(self, path: Path) -> None:
        """Reads the cursor.

        Raises:
            StartError: a later version wrote the cursor.
            InputError: the directory cannot be read.
        """
        #: What is wrong with the cursor; empty if nothing is.
        self.problem = ""
        #: Only one half of the cursor is whole; it holds.
        self.torn = False
        try:
            super().__init__(path, segments_in(path), 0)
            self._look_again()
        except OSError as exc:
            raise InputError(exc.filename or path, f"cannot be read: {reason(exc)}") from None

    def items(self) -> Iterator[Item]:
        """Everything there is, in order; each segment's items follow its :class:`Begin`.

        Raises:
            StartError: a record of a version that this program does not know.
            InputError: a file cannot be read.
        """
        path, walk = self.path, self.walk()
        try:
            for item in walk:
                if isinstance(item, Begin):
                    path = item.path
                yield item
        except OSError as exc:
            raise InputError(exc.filename or path, f"cannot be read: {reason(exc)}") from None
        finally:
            walk.close()

    def _look_again(self) -> None:
        cursor = Cursor(self.path)
        for _ in range(_CURSOR_READS):
            checkpoint, self.problem = cursor.load(self._firsts[0] if self._firsts else None)
            self.torn = cursor.torn
            if not self.problem:
                break
        self.released = max(self.released, checkpoint.seq)


def segments_in(directory: Path) -> list[int]:
    """The numbers in the names of the segments, sorted. Raises OSError."""
    return sorted(first for path in directory.iterdir() if (first := first_of(path.name)) is not None)
