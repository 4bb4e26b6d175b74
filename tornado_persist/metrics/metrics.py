"""What the parts count, in one place: ``/stats``, ``/metrics`` and the dashboard all read this. Rows, seconds."""

from __future__ import annotations

import copy
from collections import deque
from dataclasses import dataclass, field
from datetime import date, datetime

from tornado_persist.metrics.histogram import Histogram
from tornado_persist.metrics.recent import KEPT, Flush, Incidents
from tornado_persist.metrics.requests import Requests
from tornado_persist.metrics.totals import Totals, zeros
from tornado_persist.models import KINDS, Kind

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
