"""Reads accepted records back, in order."""

from __future__ import annotations

from tornado_persist.journal.damaged import DamagedDirectory
from tornado_persist.journal.record import Record, moment
from tornado_persist.journal.scanner import Damage, Entry, Scanner
from tornado_persist.journal.segment import Segment
from tornado_persist.journal.state import Ledger

_GONE = (-1, -1, None)


class Reader:
    """One place in the journal, remembered from one :meth:`read` to the next, so that no index is needed."""

    def __init__(self, ledger: Ledger, damaged: DamagedDirectory) -> None:
        self._ledger = ledger
        self._damaged = damaged
        self._segment: Segment | None = None
        self._scanner: Scanner | None = None
        # The number that the next call is expected to go on after.
        self._after = -1
        # All up to this number was read, or is known not to be there.
        self._passed = 0
        self._explained = False
        self._bounds: tuple[int, int, int | None] = (0, 0, None)
        # A record that was read, but was too much for the last call.
        self._held: Entry | None = None

    def read(self, after: int, max_bytes: int) -> list[Record]:
        """See :meth:`Journal.read`."""
        if after != self._after:
            self.close()
            self._passed = after
            self._after = after
        records: list[Record] = []
        room = max_bytes
        try:
            while (entry := self._next()) is not None:
                room -= len(entry.body)
                if room < 0 and records:
                    self._held = entry
                    break
                records.append(Record(entry.seq, entry.kind, moment(entry.at), entry.rows, bytes(entry.body)))
                self._after = entry.seq
        finally:
            # The place is kept, the file is not held open: it may be released and deleted before the next call, and
            # would go on to take up its room on a disk that may be full.
            if self._scanner is not None:
                self._scanner.close()
        return records

    def close(self) -> None:
        """Forget the place."""
        if self._scanner is not None:
            self._scanner.close()
        self._segment = self._scanner = self._held = None
        self._after = -1
        self._explained = False

    def _next(self) -> Entry | None:
        if self._held is not None:
            entry, self._held = self._held, None
            return entry
        while True:
            segment, scanner = self._segment, self._scanner
            # The bounds are looked up once for many records: what lies before an old end is as good as ever.
            if segment is not None and scanner is not None and scanner.offset >= self._bounds[0]:
                self._bounds = self._ledger.bounds(segment) or _GONE
            if segment is None or scanner is None or self._bounds is _GONE:
                # At the beginning, or the segment was given up: all in it is released.
                if not self._enter(self._ledger.locate(self._passed + 1)):
                    return None
                continue
            end, last, limit = self._bounds
            try:
                item = scanner.next(end, limit)
            except FileNotFoundError:
                if self._ledger.bounds(segment) is not None:
                    raise
                self._bounds = _GONE  # released and deleted since the last call
                continue
            if isinstance(item, Entry):
                if item.seq > self._passed:
                    self._pass(item.seq - 1)
                    self._passed = item.seq
                    return item
            elif isinstance(item, Damage):
                segment.keep |= not self._damaged.keep(segment.path, item)
                self._explained = True
            else:
                self._pass(last if limit is None else limit - 1)
                if limit is None or not self._enter(self._ledger.following(segment)):
                    return None

    def _enter(self, segment: Segment | None) -> bool:
        if self._scanner is not None:
            self._scanner.close()
        self._segment = self._scanner = None
        if segment is None:
            return False
        self._bounds = (0, 0, None)
        try:
            self._scanner = Scanner(segment.path, segment.first)
        except FileNotFoundError:
            if self._ledger.bounds(segment) is not None:
                raise
            return True  # it was released and deleted just now; look again
        self._segment = segment
        return True

    def _pass(self, last: int) -> None:
        """There was damage, and then the record that follows ``last``: what is between is lost."""
        if self._explained and last > self._passed:
            self._ledger.add_hole(self._passed + 1, last)
            self._passed = last
        self._explained = False
