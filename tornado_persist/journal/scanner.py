"""Goes through the records of one segment file, and says of all else in it what it is.

The same walk serves at open and for reading, so that both see the same records.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from tornado_persist.errors import StartError
from tornado_persist.files import read_at
from tornado_persist.journal.record import HEADER_SIZE, KIND_OF, MAGIC, VERSION, Header, decode, intact
from tornado_persist.records.models import Kind

#: Bytes read at a time; a record that is larger is read alone.
WINDOW = 1 << 20


class Entry(NamedTuple):
    """A good record."""

    offset: int
    seq: int
    kind: Kind
    at: int
    rows: int
    body: memoryview


@dataclass(frozen=True, slots=True)
class Damage:
    """Bytes that are no record of this place; ``seq``, ``kind`` and ``rows`` where a good header tells them."""

    segment: str
    offset: int
    size: int
    reason: str
    seq: int | None = None
    kind: Kind | None = None
    rows: int | None = None


@dataclass(frozen=True, slots=True)
class Tail:
    """Bytes at the end that were never acknowledged: ``torn`` by a crash, or else refused and made void."""

    offset: int
    size: int
    torn: bool


class Scanner:
    """A walk through one segment. :meth:`next` may be called again after the file has grown."""

    def __init__(self, path: Path, first: int) -> None:
        """``first``: the sequence number that the file's name gives. Raises OSError."""
        self._path = path
        self._name = path.name
        self._fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        self._data = b""
        self._start = 0
        self.offset = 0
        #: No record that follows has a lower number than this.
        self.expected = first

    def close(self) -> None:
        """Let go of the file. The walk may go on all the same, by opening it anew."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def next(self, end: int, limit: int | None, *, torn_tail: bool = False) -> Entry | Damage | Tail | None:
        """What comes next before offset ``end``; None at the end.

        ``limit`` is the first sequence number of the next segment. What would have this number or a later one is void
        here: the next segment was begun because that part of this one had failed. With ``torn_tail`` what lies at the
        end and is not whole is a write that a crash cut off, else it is damage.

        Raises:
            StartError: a record of a version that this program does not know.
            OSError: the file cannot be read, or opened anew.
        """
        start = self.offset
        if start >= end:
            return None
        if limit is not None and self.expected >= limit:
            self.offset = end
            return Tail(start, end - start, torn=False)
        header = self._header(start, end)
        if header is None:
            return self._lost(start, end, torn_tail)
        if header.version != VERSION or header.kind not in KIND_OF:
            raise StartError(
                f"journal segment {self._name} holds a record of format {header.version}.{header.kind}, "
                "which this version of tornado-persist does not know"
            )
        if header.seq < self.expected or (limit is not None and header.seq >= limit):
            return self._misplaced(start, end, limit)
        size = HEADER_SIZE + header.length
        stop = start + size
        index = self._load(start, min(size, end - start), end)
        data = self._data
        if stop > end or index + size > len(data) or not intact(data, index, header):
            return self._damaged(start, end, header, torn_tail)
        self.offset = stop
        self.expected = header.seq + 1
        body = memoryview(data)[index + HEADER_SIZE : index + size]
        return Entry(start, header.seq, KIND_OF[header.kind], header.at, header.rows, body)

    def _damaged(self, start: int, end: int, header: Header, torn_tail: bool) -> Damage | Tail:
        """The header is good, the body is not, or is not all there."""
        stop = start + HEADER_SIZE + header.length
        # A good header amid the body: bytes are missing, and the next record begins earlier than it did.
        found = self._find(start + 1, stop, end)
        if found is None and stop > end and torn_tail:
            self.offset = end
            return Tail(start, end - start, torn=True)
        self.offset = min(stop, end) if found is None else found
        self.expected = header.seq + 1
        kind = KIND_OF[header.kind]
        size = self.offset - start
        return Damage(self._name, start, size, "the checksum does not hold", header.seq, kind, header.rows)

    def _lost(self, start: int, end: int, torn_tail: bool) -> Damage | Tail:
        """There is no good header: how far it is to the next one."""
        found = self._find(start + 1, end, end)
        if found is None and torn_tail and (end - start < HEADER_SIZE or self._zeros(start, end)):
            self.offset = end
            return Tail(start, end - start, torn=True)
        self.offset = end if found is None else found
        return Damage(self._name, start, self.offset - start, "the header's checksum does not hold")

    def _misplaced(self, start: int, end: int, limit: int | None) -> Damage:
        """Records whose numbers do not belong here, all that follow one another: copied or renamed by another hand."""
        stop = start
        while (header := self._header(stop, end)) is not None and (
            header.seq < self.expected or (limit is not None and header.seq >= limit)
        ):
            stop = min(stop + HEADER_SIZE + header.length, end)
        self.offset = stop
        return Damage(self._name, start, stop - start, "the sequence numbers do not belong here")

    def _header(self, offset: int, end: int) -> Header | None:
        if end - offset < HEADER_SIZE:
            return None
        index = self._load(offset, HEADER_SIZE, end)  # which may change self._data
        return decode(self._data, index)

    def _find(self, start: int, stop: int, end: int) -> int | None:
        """Where the next good header begins, from ``start`` on and before ``stop``."""
        stop = min(stop, end - HEADER_SIZE + 1)
        while start < stop:
            index = self._load(start, HEADER_SIZE, end)
            found = self._data.find(MAGIC, index)
            if found < 0:
                past = self._start + len(self._data)
                if past - start < HEADER_SIZE:  # the file is shorter than it was
                    return None
                start = past - len(MAGIC) + 1  # the magic may begin in this window and end in the next
                continue
            start = self._start + found
            if start < stop and self._header(start, end) is not None:
                return start
            start += 1
        return None

    def _zeros(self, start: int, end: int) -> bool:
        for offset in range(start, end, WINDOW):
            if read_at(self._file(), offset, min(WINDOW, end - offset)).strip(b"\0"):
                return False
        return True

    def _load(self, offset: int, size: int, end: int) -> int:
        """Have ``size`` bytes from ``offset`` in the window, as far as the file has them; where they begin in it."""
        index = offset - self._start
        if index < 0 or index + size > len(self._data):
            self._data = read_at(self._file(), offset, min(max(size, WINDOW), end - offset))
            self._start = offset
            index = 0
        return index

    def _file(self) -> int:
        if self._fd < 0:
            self._fd = os.open(self._path, os.O_RDONLY | os.O_CLOEXEC)
        return self._fd
