"""Reads the records of one segment file, and classifies everything else in it: damage, or a tail to cut off."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from tornado_persist.errors import StartError
from tornado_persist.files import read_at
from tornado_persist.journal.record import HEADER_SIZE, MAGIC, Header, Record, decode, intact, to_datetime
from tornado_persist.records.models import Kind

#: Bytes read at a time; a record that is larger is read alone.
WINDOW = 1 << 20


class Extent(NamedTuple):
    """How far a segment can be read at one moment."""

    path: Path
    first: int
    end: int
    #: The first number of the next segment: this one and later ones are void here.
    limit: int | None
    #: The last number before ``end``, if all of that is acknowledged. Unknown for files, whose end may be torn.
    last: int | None = None

    @property
    def torn_tail(self) -> bool:
        """Whether an incomplete record at the end is a write that a crash cut off; else it is damage."""
        return self.limit is None and self.last is None


class Entry(NamedTuple):
    """A good record and its place; ``at`` in microseconds since 1970."""

    offset: int
    seq: int
    kind: Kind
    at: int
    rows: int
    body: memoryview

    @property
    def size(self) -> int:
        """Bytes in the file, with the header."""
        return HEADER_SIZE + len(self.body)

    def record(self) -> Record:
        """A copy of the record."""
        return Record(self.seq, self.kind, to_datetime(self.at), self.rows, bytes(self.body))


@dataclass(frozen=True, slots=True)
class Damage:
    """Bytes that should be a record and are none; ``seq``, ``kind`` and ``rows`` if the header is good."""

    segment: str
    offset: int
    size: int
    reason: str
    seq: int | None = None
    kind: Kind | None = None
    rows: int | None = None


@dataclass(frozen=True, slots=True)
class Tail:
    """Bytes at the end that were never acknowledged: ``torn`` by a crash, or else void, because they were refused."""

    offset: int
    size: int
    torn: bool


class Scanner:
    """One reading of one segment. :meth:`next` may be called again after the file has grown."""

    def __init__(self, extent: Extent) -> None:
        self._extent = extent
        self._fd = -1
        self._data = b""
        self._start = 0
        self.offset = 0
        #: No record that follows has a lower number than this.
        self.expected = extent.first

    def close(self) -> None:
        """Close the file; :meth:`next` opens it again."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def go_back(self, offset: int, expected: int) -> None:
        """Read again from here, as the file is now."""
        self.close()
        self.offset, self.expected, self._data = offset, expected, b""

    def next(self, extent: Extent) -> Entry | Damage | Tail | None:
        """The next item, if the segment reaches this far now; None at its end.

        Records with the next segment's number or a later one are void: that segment was begun because writing them
        failed.

        Raises:
            StartError: a record of a version that this program does not know.
            OSError: the file cannot be opened or read.
        """
        self._extent = extent
        end, limit = extent.end, extent.limit
        start = self.offset
        if start >= end:
            return None
        if limit is not None and self.expected >= limit:
            self.offset = end
            return Tail(start, end - start, torn=False)
        header = self._header(start)
        if header is None:
            return self._lost(start)
        kind = header.kind_name
        if kind is None:
            raise StartError(
                f"journal segment {extent.path.name} holds a record of format {header.version}.{header.kind}, "
                "which this version of tornado-persist does not know"
            )
        if header.seq < self.expected or (limit is not None and header.seq >= limit):
            return self._misplaced(start)
        size = HEADER_SIZE + header.length
        stop = start + size
        index = self._load(start, min(size, end - start))
        data = self._data
        if stop > end or index + size > len(data) or not intact(data, index, header):
            return self._damaged(start, header)
        self.offset = stop
        self.expected = header.seq + 1
        body = memoryview(data)[index + HEADER_SIZE : index + size]
        return Entry(start, header.seq, kind, header.at, header.rows, body)

    def _damaged(self, start: int, header: Header) -> Damage | Tail:
        """The header is good, the body is damaged or incomplete."""
        end, stop = self._extent.end, start + HEADER_SIZE + header.length
        # A good header inside the body: bytes are missing, so the next record begins earlier than it should.
        found = self._find(start + 1, stop)
        if found is None and stop > end and self._extent.torn_tail:
            self.offset = end
            return Tail(start, end - start, torn=True)
        self.expected = header.seq + 1
        return self._damage(start, min(stop, end) if found is None else found, "the checksum does not hold", header)

    def _lost(self, start: int) -> Damage | Tail:
        """There is no good header here: look for the next one."""
        end = self._extent.end
        found = self._find(start + 1, end)
        if found is None and self._extent.torn_tail and (end - start < HEADER_SIZE or self._zeros(start)):
            self.offset = end
            return Tail(start, end - start, torn=True)
        return self._damage(start, end if found is None else found, "the header's checksum does not hold")

    def _misplaced(self, start: int) -> Damage:
        """Records whose numbers do not belong here: files were copied or renamed from outside."""
        stop, end, limit = start, self._extent.end, self._extent.limit
        while (header := self._header(stop)) is not None and (
            header.seq < self.expected or (limit is not None and header.seq >= limit)
        ):
            stop = min(stop + HEADER_SIZE + header.length, end)
        return self._damage(start, stop, "the sequence numbers do not belong here")

    def _damage(self, start: int, stop: int, words: str, header: Header | None = None) -> Damage:
        self.offset = stop
        known = (header.seq, header.kind_name, header.rows) if header is not None else (None, None, None)
        return Damage(self._extent.path.name, start, stop - start, words, *known)

    def _header(self, offset: int) -> Header | None:
        if self._extent.end - offset < HEADER_SIZE:
            return None
        index = self._load(offset, HEADER_SIZE)  # which may change self._data
        return decode(self._data, index)

    def _find(self, start: int, stop: int) -> int | None:
        """The offset of the next good header, from ``start`` on and before ``stop``."""
        stop = min(stop, self._extent.end - HEADER_SIZE + 1)
        while start < stop:
            index = self._load(start, HEADER_SIZE)
            found = self._data.find(MAGIC, index)
            if found < 0:
                past = self._start + len(self._data)
                if past - start < HEADER_SIZE:  # the file is shorter than it was
                    return None
                start = past - len(MAGIC) + 1  # the magic may begin in this window and end in the next
                continue
            start = self._start + found
            if start < stop and self._header(start) is not None:
                return start
            start += 1
        return None

    def _zeros(self, start: int) -> bool:
        for offset in range(start, self._extent.end, WINDOW):
            if read_at(self._file(), offset, min(WINDOW, self._extent.end - offset)).strip(b"\0"):
                return False
        return True

    def _load(self, offset: int, size: int) -> int:
        """Read ``size`` bytes from ``offset`` into the window, or as many as there are; their index in it."""
        index = offset - self._start
        if index < 0 or index + size > len(self._data):
            self._data = read_at(self._file(), offset, min(max(size, WINDOW), self._extent.end - offset))
            self._start = offset
            index = 0
        return index

    def _file(self) -> int:
        if self._fd < 0:
            self._fd = os.open(self._extent.path, os.O_RDONLY | os.O_CLOEXEC)
        return self._fd
