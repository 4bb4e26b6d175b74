"""What the journal holds at this moment. No I/O.

The writer's thread changes it; other threads read it, under one short lock.
"""

from __future__ import annotations

import threading
import time
from bisect import bisect_right
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from tornado_persist.journal.record import to_datetime
from tornado_persist.journal.scanner import Extent
from tornado_persist.journal.segment import Segment

#: Microseconds between the accept times that are remembered: the precision of ``oldest``.
MARK_EVERY = 1_000_000


@dataclass(frozen=True, slots=True)
class Stats:
    """Bytes of all segments and their limit, unreleased records, when the oldest of them was accepted (UTC, at most a
    second too early), the sync mode, and the seconds since the oldest was accepted (0 when there is none).
    """

    bytes: int
    max_bytes: int
    records: int
    oldest: datetime | None
    sync: str
    age: float = 0.0


class State:
    """The segments in order, the last and the last released sequence number, and the gaps.

    A *gap* is a range of numbers without a record: damaged or missing. It counts as released as soon as everything
    before it is, because no caller will release it.

    There may be tens of millions of records, so nothing is kept for each of them. ``oldest`` comes from marks, one for
    each second of accept time.

    It is the source of a :class:`tornado_persist.journal.walk.Walk` over the acknowledged records.
    """

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self.segments: list[Segment] = []
        #: The segment that is appended to.
        self.active: Segment | None = None
        #: The last sequence number assigned.
        self.last = 0
        #: All up to this one are released, gaps included.
        self.released = 0
        self.bytes = 0
        self._full_for = 0
        self._gaps: list[tuple[int, int]] = []
        # Numbers, their accept times, and the same by the monotonic clock.
        self._marks: deque[tuple[int, int, float]] = deque()
        #: The last accept time, in microseconds; 0 if none is known.
        self.latest = 0
        self._lock = threading.Lock()

    # Appending.

    def add(self, segment: Segment) -> None:
        """Append to this segment from now on."""
        with self._lock:
            self.segments.append(segment)
            self.bytes += segment.end
            self.active = segment

    def retire(self) -> None:
        """Stop appending to the active segment."""
        with self._lock:
            segment, self.active = self.active, None
            if segment is not None and not segment.end:
                self.segments.remove(segment)

    def lose(self, segment: Segment) -> None:
        """The records of this segment are gone."""
        with self._lock:
            self.segments.remove(segment)
            self.bytes -= segment.end
            if segment is self.active:
                self.active = None
        self.add_gap(segment.first, segment.last)

    def replace(self, old: Segment, new: Segment) -> None:
        """``new`` has a copy of the records of ``old`` that a failed sync may have lost; append to it from now on."""
        with self._lock:
            self.bytes += new.end - (old.end - old.synced)
            old.end, old.last, old.sync_failed, old.void_tail = old.synced, old.synced_last, False, True
            self.segments.insert(bisect_right(self.segments, old.first, key=_first), new)
            self.active = new

    def acknowledge(self, segment: Segment, size: int, times: Sequence[int], *, synced: bool) -> None:
        """``size`` more bytes hold acknowledged records, one for each of these accept times (in microseconds)."""
        with self._lock:
            now = time.monotonic()
            for seq, at in enumerate(times, self.last + 1):
                self.mark(seq, at, now)
            self.bytes += size
            self.last += len(times)
            segment.advance(segment.end + size, self.last, synced=synced)

    def mark(self, seq: int, at: int, clock: float | None = None) -> None:
        """Remember when a record was accepted, unless the last mark is from the same second.

        ``clock``: that time by the monotonic clock; without it the difference to the wall clock counts.
        """
        self.latest = max(self.latest, at)
        if not self._marks or abs(at - self._marks[-1][1]) >= MARK_EVERY or self._marks[-1][0] <= self.released:
            if clock is None:
                clock = time.monotonic() - max(0.0, time.time() - at / 1_000_000)
            self._marks.append((seq, at, clock))
            self._drop_marks()

    def fits(self, size: int, more: int) -> bool:
        """Whether ``more`` bytes fit after ``size`` others. If not, the journal is full until they do."""
        if self._full_for or self.bytes + size + more > self.max_bytes:
            self._full_for = self._full_for or more
            return False
        return True

    @property
    def problem(self) -> str:
        """A sentence if the journal is full, else empty."""
        return f"The journal is full: {self.bytes} bytes of {self.max_bytes}" if self._full_for else ""

    # Releasing.

    def release(self, seq: int) -> None:
        """All records up to ``seq`` are released."""
        with self._lock:
            self.released = max(self.released, seq)
            self._release_gaps()

    def add_gap(self, first: int, last: int) -> None:
        """These numbers have no readable record; may be called again for the same ones."""
        with self._lock:
            first = max(first, self.released + 1)
            if first > last:
                return
            apart: list[tuple[int, int]] = []
            for other_first, other_last in self._gaps:
                if other_first <= last + 1 and first <= other_last + 1:
                    first, last = min(first, other_first), max(last, other_last)
                else:
                    apart.append((other_first, other_last))
            self._gaps = sorted([*apart, (first, last)])
            self._release_gaps()

    def after_gaps(self, seq: int) -> int:
        """The last number that is released when all up to ``seq`` are."""
        with self._lock:
            for first, last in self._gaps:
                if first <= seq + 1:
                    seq = max(seq, last)
            return seq

    def pop_released(self) -> list[Segment]:
        """Take out the segments that are wholly released; their files may be deleted, in this order."""
        popped: list[Segment] = []
        with self._lock:
            while self.segments and self.segments[0].last <= self.released:
                segment = self.segments[0]
                # A dirty one is cut first: if a power cut undid its deletion, its refused records would be back.
                if segment.dirty or (segment is self.active and not segment.end):
                    break
                if segment is self.active:
                    self.active = None
                popped.append(self.segments.pop(0))
                self.bytes -= segment.end
        return popped

    def has_room_again(self) -> bool:
        """Whether the journal was full and now has room for the batch that did not fit; True once."""
        room = bool(self._full_for) and self.bytes + self._full_for <= self.max_bytes
        if room:
            self._full_for = 0
        return room

    def keep_file(self, name: str) -> None:
        """Move the file of this segment to the damaged directory instead of deleting it."""
        with self._lock:
            for segment in self.segments:
                segment.keep_file |= segment.path.name == name

    def _release_gaps(self) -> None:
        while self._gaps and self._gaps[0][0] <= self.released + 1:
            self.released = max(self.released, self._gaps.pop(0)[1])
        self._drop_marks()

    def _drop_marks(self) -> None:
        """Keep the mark of the oldest unreleased record first, or that of one before it."""
        while len(self._marks) > 1 and self._marks[1][0] <= self.released + 1:
            self._marks.popleft()

    # Reading.

    def find(self, seq: int) -> Extent | None:
        """The segment that has this record, or else the first one with later records."""
        with self._lock:
            return self._extent(max(0, bisect_right(self.segments, seq, key=_first) - 1))

    def following(self, first: int) -> Extent | None:
        """The segment after the one that begins with ``first``, even if that one is gone."""
        with self._lock:
            return self._extent(bisect_right(self.segments, first, key=_first))

    def extent(self, first: int) -> Extent | None:
        """The segment that begins with ``first``; None when it is gone."""
        found = self.find(first)
        return found if found is not None and found.first == first else None

    def _extent(self, index: int) -> Extent | None:
        if index >= len(self.segments):
            return None
        segment, later = self.segments[index], self.segments[index + 1 : index + 2]
        limit = later[0].first if later and later[0].end else None
        return Extent(segment.path, segment.first, segment.end, limit, segment.last)

    def stats(self, sync: str) -> Stats:
        """The journal in figures."""
        with self._lock:
            records = self.last - self.released - sum(last - first + 1 for first, last in self._gaps)
            if records <= 0 or not self._marks:
                return Stats(self.bytes, self.max_bytes, 0, None, sync)
            _, at, clock = self._marks[0]
            age = max(0.0, time.monotonic() - clock)
            return Stats(self.bytes, self.max_bytes, records, to_datetime(at), sync, age)


def _first(segment: Segment) -> int:
    return segment.first
