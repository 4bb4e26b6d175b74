"""A look at a journal from outside, whether or not a service has it open: nothing is changed, and no lock is taken."""

from __future__ import annotations

import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, TypeAlias

from tornado_persist.errors import InputError
from tornado_persist.files import reason
from tornado_persist.journal.cursor import Cursor, CursorDamaged
from tornado_persist.journal.record import HEADER_SIZE, Record, moment
from tornado_persist.journal.scanner import Damage, Entry, Scanner, Tail
from tornado_persist.journal.segment import first_of, segment_path

#: A running service may be writing into the half that was the cursor just before.
_CURSOR_READS = 5


@dataclass(frozen=True, slots=True)
class Begin:
    """A segment begins: its file, and its bytes at that moment."""

    path: Path
    size: int


class Place(NamedTuple):
    """A record, and where it lies. ``size`` in bytes, its header included."""

    segment: str
    offset: int
    size: int
    record: Record


@dataclass(frozen=True, slots=True)
class Missing:
    """Numbers that should have a record, have none, and no damage explains it."""

    first: int
    last: int


Item: TypeAlias = Begin | Place | Damage | Tail | Missing


class Inspection:
    """One walk through a journal directory, by the rules of a start, but for what a start would change.

    A service may append, release and delete meanwhile: what it deletes is released, and passed over; what it adds in
    new segments is left out. The end of the last segment may be just being written: it is a ``torn`` tail then, as
    after a crash.
    """

    def __init__(self, directory: Path) -> None:
        """Reads the cursor.

        Raises:
            InputError: the directory cannot be read.
        """
        self.directory = directory
        #: What is wrong with the cursor; empty when it is well.
        self.problem = ""
        #: Only one half of the cursor is whole; it holds.
        self.torn = False
        try:
            self._firsts = self._list()
            #: Every record up to this one is released. It grows when the walk finds that the service has gone on.
            self.released = self._read_cursor()
        except OSError as exc:
            raise InputError(exc.filename or directory, f"cannot be read: {reason(exc)}") from None
        firsts = self._firsts
        self._next = firsts[0] if firsts and firsts[0] <= self.released else self.released + 1
        self._explained = False

    def walk(self) -> Iterator[Item]:
        """Everything there is, in order; each segment's items follow its :class:`Begin`.

        Raises:
            StartError: a record of a version that this program does not know.
            InputError: a file cannot be read.
        """
        for index, first in enumerate(self._firsts):
            path = segment_path(self.directory, first)
            try:
                # The size first: a segment that follows by the time of the listing says what of these bytes is void.
                found = path.stat()
                if not stat.S_ISREG(found.st_mode):
                    raise InputError(path, "is no regular file")
                size = found.st_size
                follows = self._firsts[index + 1 : index + 2] or [n for n in self._list() if n > first][:1]
                scanner = Scanner(path, first)
            except FileNotFoundError:
                # Released and deleted just now; and so are all before it.
                self.released = max(self.released, self._read_cursor())
                self._next = max(self._next, self.released + 1)
                continue
            except OSError as exc:
                raise InputError(path, f"cannot be read: {reason(exc)}") from None
            try:
                yield Begin(path, size)
                yield from self._scan(path, scanner, size, follows[0] if follows else None)
            except OSError as exc:
                raise InputError(path, f"cannot be read: {reason(exc)}") from None
            finally:
                scanner.close()

    def _scan(self, path: Path, scanner: Scanner, size: int, limit: int | None) -> Iterator[Item]:
        first = scanner.expected
        yield from self._expect(first)
        while True:
            before = scanner.offset, scanner.expected
            item = scanner.next(size, limit, torn_tail=limit is None)
            if item is None:
                break
            if isinstance(item, Damage) and (now := _size(path)) < size:
                # A service has cut a failed write off while it was being read. Once more from there.
                size = now
                scanner.close()
                scanner.offset, scanner.expected = before
                continue
            if isinstance(item, Entry):
                yield from self._expect(item.seq)
                self._next = item.seq + 1
                record = Record(item.seq, item.kind, moment(item.at), item.rows, bytes(item.body))
                yield Place(path.name, item.offset, HEADER_SIZE + len(item.body), record)
            else:
                self._explained |= isinstance(item, Damage)
                yield item
        if self._explained:
            # At least one record was here.
            self._next = max(self._next, first, scanner.expected) if limit is None else max(self._next, limit)
            self._explained = False

    def _expect(self, seq: int) -> Iterator[Missing]:
        """The next record has this number, or a later one."""
        if seq > self._next and not self._explained and seq - 1 > self.released:
            yield Missing(max(self._next, self.released + 1), seq - 1)
        self._next = max(self._next, seq)
        self._explained = False

    def _list(self) -> list[int]:
        return sorted(first for path in self.directory.iterdir() if (first := first_of(path.name)) is not None)

    def _read_cursor(self) -> int:
        cursor = Cursor(self.directory)
        for _ in range(_CURSOR_READS):
            try:
                checkpoint = cursor.read(self._firsts[0] if self._firsts else None)
            except CursorDamaged as exc:
                self.problem = str(exc)
            except IsADirectoryError as exc:
                self.problem = reason(exc)
            else:
                self.problem, self.torn = "", cursor.torn
                if checkpoint is not None:
                    return checkpoint.seq
                if self._firsts and self._firsts[0] != 1:
                    self.problem = "it is missing"
                break
        # As a start does: all there is counts.
        return self._firsts[0] - 1 if self._firsts else 0


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 2**63  # released and deleted; the open file is as it was
