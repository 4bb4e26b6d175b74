"""What the parts count, in one place: ``/stats``, ``/metrics`` and the dashboard all read this. Rows, seconds."""

from __future__ import annotations

import copy
from bisect import bisect_left
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date, datetime
from typing import Any, Literal, TypeAlias

from tornado_persist.records.models import KINDS, Kind


@dataclass(frozen=True, slots=True)
class Reading:
    """A histogram at one moment, or what came to it between two of them.

    ``counts[i]`` observations were at most ``bounds[i]`` and above the bound before it; the last count is of those
    above every bound. ``sum`` is of the observed values.
    """

    bounds: tuple[float, ...]
    counts: tuple[int, ...]
    sum: float

    @property
    def count(self) -> int:
        """Observations."""
        return sum(self.counts)

    @property
    def mean(self) -> float | None:
        """None where nothing was observed."""
        count = self.count
        return self.sum / count if count else None

    def __add__(self, other: Reading) -> Reading:
        counts = tuple(a + b for a, b in zip(self.counts, other.counts, strict=True))
        return Reading(self.bounds, counts, self.sum + other.sum)

    def __sub__(self, earlier: Reading) -> Reading:
        counts = tuple(a - b for a, b in zip(self.counts, earlier.counts, strict=True))
        return Reading(self.bounds, counts, self.sum - earlier.sum)

    def quantile(self, q: float) -> float | None:
        """The value that a share of ``q`` of the observations does not pass; None where nothing was observed.

        As exact as the bounds are close: within a bucket the values are taken to be spread evenly, and a value above
        the last bound shows as that bound.
        """
        rank = q * self.count
        if not self.count:
            return None
        below = 0
        for index, count in enumerate(self.counts[:-1]):
            if count and below + count >= rank:
                low = self.bounds[index - 1] if index else 0.0
                return low + (self.bounds[index] - low) * max(0.0, rank - below) / count
            below += count
        return self.bounds[-1]


class Histogram:
    """Counts observations by upper bound.

    One thread at a time may observe, any may read: the counts are copied in one step of the interpreter, so a reading
    is a state that was; its ``sum`` may lack the observation that is just being made.
    """

    __slots__ = ("_counts", "_sum", "bounds")

    def __init__(self, bounds: Sequence[float]) -> None:
        """``bounds``: ascending."""
        self.bounds = tuple(bounds)
        self._counts = [0] * (len(self.bounds) + 1)
        self._sum = 0.0

    def observe(self, value: float) -> None:
        """Count one value. Costs a fraction of a microsecond."""
        self._counts[bisect_left(self.bounds, value)] += 1
        self._sum += value

    def read(self) -> Reading:
        """How it stands."""
        return Reading(self.bounds, tuple(self._counts), self._sum)


def zeros() -> dict[Kind, int]:
    """No row of any kind."""
    return dict.fromkeys(KINDS, 0)


@dataclass(slots=True)
class Totals:
    """Rows by kind since the data directory was made; what each term means stands in docs/accounting.rst."""

    accepted: dict[Kind, int] = field(default_factory=zeros)
    written: dict[Kind, int] = field(default_factory=zeros)
    merged: dict[Kind, int] = field(default_factory=zeros)
    rejected: dict[Kind, int] = field(default_factory=zeros)

    def settled(self, accepted: Mapping[Kind, int]) -> dict[str, dict[Kind, int]]:
        """The totals at a moment when of these ``accepted`` rows none is pending, as the journal's cursor keeps them.

        ``merged`` is what is left: whatever was accepted, and is neither written nor rejected nor pending.
        """
        written, rejected = dict(self.written), dict(self.rejected)
        merged = {kind: accepted[kind] - written[kind] - rejected[kind] for kind in KINDS}
        return {"accepted": dict(accepted), "written": written, "merged": merged, "rejected": rejected}

    @classmethod
    def of(cls, kept: Mapping[str, Any]) -> Totals:
        """From what :meth:`settled` gave; what is not there is 0."""
        return cls(
            **{
                name: {kind: int(kept.get(name, {}).get(kind, 0)) for kind in KINDS}
                for name in ("accepted", "written", "merged", "rejected")
            }
        )


#: Upper bounds in seconds: one row takes a third of a millisecond, and a flush may wait for 8 seconds.
SECONDS = (0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
#: A client can make up methods, and each would be a series for ever; all others count as one.
METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
OTHER = "other"


@dataclass(slots=True)
class _Series:
    count: int
    seconds: Histogram


class Requests:
    """By handler class, method and status: never by URL, of which there is no end."""

    def __init__(self) -> None:
        self._series: dict[tuple[str, str, int], _Series] = {}
        self._seconds: dict[tuple[str, str], Histogram] = {}

    def observe(self, handler: str, method: str, status: int, seconds: float) -> None:
        """Count one answer. This is on the way of every request: one look-up, and it costs about a microsecond."""
        series = self._series.get((handler, method, status))
        if series is None:
            series = self._find(handler, method if method in METHODS else OTHER, status)
        series.count += 1
        series.seconds.observe(seconds)

    def _find(self, handler: str, method: str, status: int) -> _Series:
        key = handler, method, status
        if key not in self._series:
            seconds = self._seconds.setdefault((handler, method), Histogram(SECONDS))
            self._series[key] = _Series(0, seconds)
        return self._series[key]

    def counts(self) -> Iterator[tuple[str, str, int, int]]:
        """Handler, method, status and the answers so far."""
        for (handler, method, status), series in self._series.items():
            yield handler, method, status, series.count

    def seconds(self) -> Iterator[tuple[str, str, Reading]]:
        """Handler, method, and the seconds from the request's first line to the answer's end."""
        for (handler, method), histogram in self._seconds.items():
            yield handler, method, histogram.read()

    def seconds_of(self, *handlers: str) -> Reading:
        """The answer times of these handlers together."""
        together = Histogram(SECONDS).read()
        for handler, _method, reading in self.seconds():
            if handler in handlers:
                together += reading
        return together


#: Of each, so many are remembered.
KEPT = 20

#: What went wrong: a flush failed, rows were refused by the sink, rows were lost to damage, batches are turned away.
What: TypeAlias = Literal["flush", "rejected", "lost", "intake"]


@dataclass(frozen=True, slots=True)
class Flush:
    """A flush that ended at ``at`` (UTC): rows written and refused, seconds, and what stopped it, if anything did."""

    at: datetime
    rows: int
    rejected: int
    seconds: float
    error: str = ""


@dataclass(slots=True)
class Incident:
    """Something that went wrong ``count`` times in a row, first and last at these times (UTC)."""

    first: datetime
    last: datetime
    what: What
    message: str
    code: str = ""
    count: int = 1


class Incidents:
    """The last ``KEPT`` incidents. One that repeats itself stays one, or an outage would push out all else."""

    def __init__(self) -> None:
        self._kept: deque[Incident] = deque(maxlen=KEPT)

    def add(self, what: What, message: str, at: datetime, *, code: str = "", count: int = 1) -> None:
        """``count``: how often at once; rows, where it is about rows."""
        for incident in self._kept:
            if (incident.what, incident.message, incident.code) == (what, message, code):
                incident.last, incident.count = at, incident.count + count
                self._kept.remove(incident)
                self._kept.append(incident)
                return
        self._kept.append(Incident(at, at, what, message, code, count))

    def __iter__(self) -> Iterator[Incident]:
        """The latest first."""
        return reversed(self._kept)

    def __len__(self) -> int:
        return len(self._kept)


FLUSH_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
FLUSH_ROWS = (1, 10, 50, 100, 250, 500, 1000, 2500, 5000, 10_000, 25_000, 50_000, 100_000)
FSYNC_SECONDS = (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5)
#: Errors that a flush may end with; known from the start, so that the first of a kind shows as a rise from 0.
FAILURES = ("SinkUnavailable", "SinkConflict", "FlushFailed")


@dataclass(slots=True)
class Metrics:
    """What happened: to rows, since the data directory was made; all else, since the process started.

    Belongs to the event loop, but for ``fsync_seconds``, to which the journal's thread adds.
    """

    started: datetime
    totals: Totals = field(default_factory=Totals)
    #: Rows that this start found in the journal, and accepted rows that damage to the journal has taken since.
    recovered: dict[Kind, int] = field(default_factory=zeros)
    lost: dict[Kind, int] = field(default_factory=zeros)
    #: Flushes that wrote at least one row: the time each took, and the rows it wrote.
    flush_seconds: Histogram = field(default_factory=lambda: Histogram(FLUSH_SECONDS))
    flush_rows: Histogram = field(default_factory=lambda: Histogram(FLUSH_ROWS))
    #: Flushes that something stopped, by the class of the error.
    flush_failures: dict[str, int] = field(default_factory=lambda: dict.fromkeys(FAILURES, 0))
    #: Each time that the journal was made durable.
    fsync_seconds: Histogram = field(default_factory=lambda: Histogram(FSYNC_SECONDS))
    requests: Requests = field(default_factory=Requests)
    last_flush: datetime | None = None
    #: The last flushes, the latest last.
    flushes: deque[Flush] = field(default_factory=lambda: deque(maxlen=KEPT))
    incidents: Incidents = field(default_factory=Incidents)
    _at_start: Totals = field(default_factory=Totals)
    _today: date | None = None
    _today_count: int = 0

    def resume(self, totals: Totals) -> None:
        """Count on from where the last process got."""
        self.totals = totals
        self._at_start = copy.deepcopy(totals)

    def recover(self, kind: Kind, rows: int) -> None:
        """Count accepted rows that the last process left in the journal."""
        self.totals.accepted[kind] += rows
        self.recovered[kind] += rows

    def lose(self, kind: Kind, rows: int, at: datetime) -> None:
        """Rows counted as accepted are not in the journal any more; they wait no longer, and nobody will write them."""
        self.totals.accepted[kind] -= rows
        self.lost[kind] += rows
        self.incidents.add("lost", f"Accepted rows ({kind}) were lost to damage of the journal", at, count=rows)

    def accepted(self, kind: Kind) -> int:
        """Rows accepted since the process started; never goes down, whatever is lost afterwards."""
        gained = self.totals.accepted[kind] - self._at_start.accepted[kind]
        return gained - self.recovered[kind] + self.lost[kind]

    def written(self, kind: Kind) -> int:
        """Rows that the sink has committed since the process started."""
        return self.totals.written[kind] - self._at_start.written[kind]

    def merged(self, kind: Kind) -> int:
        """Rows that went into another one since the process started."""
        return self.totals.merged[kind] - self._at_start.merged[kind]

    def rejected(self, kind: Kind) -> int:
        """Rows that the sink has refused since the process started."""
        return self.totals.rejected[kind] - self._at_start.rejected[kind]

    def flushed(self, seconds: float, at: datetime, rows: int) -> None:
        """Count one flush that wrote rows and ended at ``at`` (UTC)."""
        self.flush_seconds.observe(seconds)
        self.flush_rows.observe(rows)
        self._today_count = self.flush_count_today(at) + 1
        self._today = at.date()
        self.last_flush = at

    def remember(self, flush: Flush) -> None:
        """Keep it among the last flushes.

        One that failed just like the one before takes its place, or an outage would push out all others.
        """
        if flush.error and not flush.rows and self.flushes and self.flushes[-1].error == flush.error:
            self.flushes.pop()
        self.flushes.append(flush)

    def failed(self, error: Exception, at: datetime, *, code: str = "") -> None:
        """Count one flush that ended with this error at ``at`` (UTC); ``code`` is the driver's own."""
        name = type(error).__name__
        self.flush_failures[name] = self.flush_failures.get(name, 0) + 1
        self.incidents.add("flush", str(error), at, code=code)

    @property
    def flush_count(self) -> int:
        """Flushes that wrote at least one row."""
        return self.flush_seconds.read().count

    def flush_count_today(self, now: datetime) -> int:
        """Flushes since the UTC day of ``now`` began."""
        return self._today_count if self._today == now.date() else 0

    def average_flush_ms(self) -> int:
        """Mean duration of a flush; 0 before the first."""
        return round((self.flush_seconds.read().mean or 0) * 1000)

    def average_batch_size(self) -> int:
        """Mean number of rows written by a flush; 0 before the first."""
        count = self.flush_count
        return round(sum(map(self.written, KINDS)) / count) if count else 0
