"""What the journal holds at this moment, as the threads that write, read and release agree on it. No I/O."""

from __future__ import annotations

import threading
from bisect import bisect_right
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from tornado_persist.journal.record import moment
from tornado_persist.journal.segment import Segment

#: Microseconds between accept times that are remembered: how exact ``oldest`` is.
MARK_EVERY = 1_000_000


@dataclass(frozen=True, slots=True)
class Stats:
    """Bytes of all segments, and at most; records that are not released, and when the oldest of them was accepted (UTC,
    at most a second before); when bytes are made durable.
    """

    bytes: int
    max_bytes: int
    records: int
    oldest: datetime | None
    sync: str

    def age(self, now: datetime) -> float:
        """Seconds since the oldest was accepted; 0 when there is none, or the clock was set back."""
        return max(0.0, (now - self.oldest).total_seconds()) if self.oldest else 0.0


class Ledger:
    """The segments in order, how far they are acknowledged and released, and the numbers that have no record.

    A number without a record is in a *hole*: its record was damaged, or is missing. A hole counts as released as soon
    as all before it is; nobody will ever come to release it.

    There may be tens of millions of records, so nothing is kept for each: ``oldest`` is found by marks, one for a
    second of accept time.
    """

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self.segments: list[Segment] = []
        self.active: Segment | None = None
        #: The last sequence number that was given.
        self.last = 0
        #: All up to this one are released, holes included.
        self.released = 0
        self.bytes = 0
        #: A segment is wholly released, but the writer has it in hand: take it later.
        self.put_off = False
        self._busy = False
        self._full_for = 0
        self._holes: list[tuple[int, int]] = []
        self._marks: deque[tuple[int, int]] = deque()
        self._lock = threading.Lock()

    # The writer's side.

    def begin(self) -> Segment | None:
        """The segment to append to. Until :meth:`settle` it is not given up, though all in it be released."""
        with self._lock:
            self._busy = True
            return self.active

    def settle(self) -> None:
        """The writer is done with the active segment for now."""
        with self._lock:
            self._busy = False

    def add(self, segment: Segment) -> None:
        """Append to this segment from now on."""
        with self._lock:
            self.segments.append(segment)
            self.bytes += segment.end
            self.active = segment

    def retire(self) -> None:
        """Append no more to the active segment."""
        with self._lock:
            segment, self.active = self.active, None
            if segment is not None and not segment.end:
                self.segments.remove(segment)

    def replace(self, old: Segment, new: Segment) -> None:
        """``new`` has taken over what was doubtful in ``old``; append to it from now on."""
        with self._lock:
            if old in self.segments:  # else all of it was released meanwhile
                self.bytes -= old.end - old.synced
            old.end, old.last, old.doubtful, old.leftovers = old.synced, old.synced_last, False, True
            self.bytes += new.end
            self.segments.insert(bisect_right(self.segments, old.first, key=_first), new)
            self.active = new

    def acknowledge(self, segment: Segment, size: int, times: Sequence[int], *, synced: bool) -> None:
        """``size`` more bytes hold acknowledged records, one for each of these accept times (in microseconds)."""
        with self._lock:
            for seq, at in enumerate(times, self.last + 1):
                self.mark(seq, at)
            self.bytes += size
            self.last += len(times)
            segment.advance(segment.end + size, self.last, synced=synced)

    def mark(self, seq: int, at: int) -> None:
        """Remember when a record was accepted, unless the last one remembered was about as late."""
        if not self._marks or abs(at - self._marks[-1][1]) >= MARK_EVERY or self._marks[-1][0] <= self.released:
            self._marks.append((seq, at))
            self._drop_marks()

    def fits(self, size: int, more: int) -> bool:
        """Whether ``more`` bytes fit after ``size`` others; if not the journal is full until there is room for them."""
        with self._lock:
            if self._full_for or self.bytes + size + more > self.max_bytes:
                self._full_for = self._full_for or more
                return False
            return True

    # The releasing side.

    def release(self, seq: int) -> None:
        """All records up to ``seq`` are released."""
        with self._lock:
            self.released = max(self.released, seq)
            self._skip_holes()

    def add_hole(self, first: int, last: int) -> None:
        """These numbers have no record that can be read; may be said more than once."""
        with self._lock:
            first = max(first, self.released + 1)
            if first > last:
                return
            apart: list[tuple[int, int]] = []
            for other_first, other_last in self._holes:
                if other_first <= last + 1 and first <= other_last + 1:
                    first, last = min(first, other_first), max(last, other_last)
                else:
                    apart.append((other_first, other_last))
            self._holes = sorted([*apart, (first, last)])
            self._skip_holes()

    def after_holes(self, seq: int) -> int:
        """The last number that is released when all up to ``seq`` are."""
        with self._lock:
            for first, last in self._holes:
                if first <= seq + 1:
                    seq = max(seq, last)
            return seq

    def _skip_holes(self) -> None:
        while self._holes and self._holes[0][0] <= self.released + 1:
            self.released = max(self.released, self._holes.pop(0)[1])
        self._drop_marks()

    def _drop_marks(self) -> None:
        """The first one is of the oldest record that is not released, or of one before it."""
        while len(self._marks) > 1 and self._marks[1][0] <= self.released + 1:
            self._marks.popleft()

    def take_released(self) -> list[Segment]:
        """Take the segments that are wholly released out of the books; their files may be deleted, in this order."""
        gone: list[Segment] = []
        with self._lock:
            self.put_off = False
            while self.segments and self.segments[0].last <= self.released:
                segment = self.segments[0]
                if segment is self.active and not segment.end:
                    break
                # A dirty one's refused records would be back, should the deletion not outlast a power cut.
                if segment.dirty or (segment is self.active and self._busy):
                    self.put_off = True
                    break
                if segment is self.active:
                    self.active = None
                gone.append(self.segments.pop(0))
                self.bytes -= segment.end
        return gone

    def has_room_again(self) -> bool:
        """Whether the journal was full and is no more, for the batch that did not fit; True once."""
        with self._lock:
            room = bool(self._full_for) and self.bytes + self._full_for <= self.max_bytes
            if room:
                self._full_for = 0
            return room

    @property
    def problem(self) -> str:
        """That the journal is full: a batch did not fit, and nothing has made room for it since. Else empty."""
        return f"The journal is full: {self.bytes} bytes of {self.max_bytes}" if self._full_for else ""

    # The reading side.

    def locate(self, seq: int) -> Segment | None:
        """The segment that has this record, or else the first one that has later ones."""
        with self._lock:
            index = bisect_right(self.segments, seq, key=_first)
            return self.segments[max(0, index - 1)] if self.segments else None

    def following(self, segment: Segment) -> Segment | None:
        """The next one; of a segment that is gone, too."""
        with self._lock:
            return self._following(segment)

    def _following(self, segment: Segment) -> Segment | None:
        index = bisect_right(self.segments, segment.first, key=_first)
        return self.segments[index] if index < len(self.segments) else None

    def bounds(self, segment: Segment) -> tuple[int, int, int | None] | None:
        """Where a segment's acknowledged bytes end, the last number in them, and the first number of the next segment.

        None when it is gone.
        """
        with self._lock:
            if segment not in self.segments:
                return None
            following = self._following(segment)
            return segment.end, segment.last, following.first if following and following.end else None

    def holds(self, segment: Segment) -> bool:
        """Whether some of a segment is not released."""
        with self._lock:
            return segment.last > self.released

    def stats(self, sync: str) -> Stats:
        with self._lock:
            records = self.last - self.released - sum(last - first + 1 for first, last in self._holes)
            oldest = moment(self._marks[0][1]) if records > 0 and self._marks else None
            return Stats(self.bytes, self.max_bytes, max(0, records), oldest, sync)


def _first(segment: Segment) -> int:
    return segment.first
