"""All counters: ``/stats``, ``/metrics`` and the dashboard read them here. Units are rows and seconds."""

from __future__ import annotations

import copy
import math
from collections import deque
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import date, datetime
from typing import Any, Literal, TypeAlias

from prometheus_client import CollectorRegistry, Counter, Histogram, disable_created_metrics

from tornado_persist.records.models import KINDS, Kind
from tornado_persist.telemetry.clients import ClientDrops
from tornado_persist.telemetry.deletions import Deletions
from tornado_persist.telemetry.refusals import Denials, DroppedFields, Refusals

# Otherwise every counter and histogram has a gauge with the time of its creation.
disable_created_metrics()  # type: ignore[no-untyped-call]


@dataclass(frozen=True, slots=True)
class Reading:
    """A histogram at one moment, or what it gained between two."""

    #: Observations of at most each upper bound, by ascending bound; the last bound is infinite.
    at_most: Mapping[float, float]
    #: Of all observed values.
    sum: float

    @classmethod
    def of(cls, histogram: Histogram, handlers: Collection[str] = ()) -> Reading:
        """``histogram`` now, of these HTTP handlers together if it is by handler."""
        at_most: dict[float, float] = {}
        total = 0.0
        for sample in (sample for metric in histogram.collect() for sample in metric.samples):
            if handlers and sample.labels["handler"] not in handlers:
                continue
            if sample.name.endswith("_bucket"):
                bound = float(sample.labels["le"])
                at_most[bound] = at_most.get(bound, 0) + sample.value
            elif sample.name.endswith("_sum"):
                total += sample.value
        return cls(at_most, total)

    @property
    def count(self) -> int:
        """Observations."""
        return int(self.at_most.get(math.inf, 0))

    @property
    def mean(self) -> float | None:
        """None where nothing was observed."""
        count = self.count
        return self.sum / count if count else None

    def __sub__(self, earlier: Reading) -> Reading:
        gained = {bound: count - earlier.at_most.get(bound, 0) for bound, count in self.at_most.items()}
        return Reading(gained, self.sum - earlier.sum)

    def bound(self, q: float) -> float | None:
        """The least bound that a share of ``q`` of the observations does not pass; None where nothing was observed.

        That is all that buckets tell about a quantile. Infinite if it is above the last finite bound.
        """
        rank = q * self.count
        return next((bound for bound, count in self.at_most.items() if count and count >= rank), None)


def zeros() -> dict[Kind, int]:
    """No row of any kind."""
    return dict.fromkeys(KINDS, 0)


@dataclass(slots=True)
class Totals:
    """Rows by kind since the data directory was made; docs/accounting.rst explains the terms."""

    accepted: dict[Kind, int] = field(default_factory=zeros)
    written: dict[Kind, int] = field(default_factory=zeros)
    merged: dict[Kind, int] = field(default_factory=zeros)
    rejected: dict[Kind, int] = field(default_factory=zeros)
    #: Rows set aside at the door: accepted and rejected at once, beside the other numbers, and never in the journal.
    set_aside: dict[Kind, int] = field(default_factory=zeros)

    def at_checkpoint(self, accepted: Mapping[Kind, int]) -> dict[str, dict[Kind, int]]:
        """The totals once none of these ``accepted`` rows is pending, as the journal's cursor keeps them.

        ``merged`` is the rest: accepted rows that were neither written nor rejected.
        """
        written, rejected = dict(self.written), dict(self.rejected)
        merged = {kind: accepted[kind] - written[kind] - rejected[kind] for kind in KINDS}
        return {"accepted": dict(accepted), "written": written, "merged": merged, "rejected": rejected}

    @classmethod
    def of(cls, kept: Mapping[str, Any]) -> Totals:
        """From the result of :meth:`at_checkpoint`; missing numbers are 0."""
        return cls(
            **{
                name: {kind: int(kept.get(name, {}).get(kind, 0)) for kind in KINDS}
                for name in ("accepted", "written", "merged", "rejected")
            }
        )


#: A client can invent methods, and each would be a series for ever; all others count as one.
METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
OTHER = "other"

#: Flushes and incidents kept.
KEPT = 20

#: What went wrong: a flush failed, the sink rejected rows, damage lost rows, no batch is accepted, a batch was refused.
What: TypeAlias = Literal["flush", "rejected", "lost", "intake", "refused"]


@dataclass(frozen=True, slots=True)
class Flush:
    """A flush that ended at ``at`` (UTC): rows written and rejected, seconds, and the error that stopped it, if any."""

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
    """The last ``KEPT`` incidents. A repeated incident counts as one, or an outage would push out all others."""

    def __init__(self) -> None:
        self._kept: deque[Incident] = deque(maxlen=KEPT)

    def add(self, what: What, message: str, at: datetime, *, code: str = "", count: int = 1) -> None:
        """``count``: how many at once, in rows where rows are concerned."""
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


#: Upper bounds in seconds: one row takes a third of a millisecond, and a flush may wait for 8 seconds.
REQUEST_SECONDS = (0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
FLUSH_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
FLUSH_ROWS = (1, 10, 50, 100, 250, 500, 1000, 2500, 5000, 10_000, 25_000, 50_000, 100_000)
FSYNC_SECONDS = (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5)
#: Errors that a flush may end with; known from the start, so that the first of a kind shows as a rise from 0.
FAILURES = ("SinkUnavailable", "SinkConflict", "FlushFailed")


class Metrics:
    """What happened: to rows, since the data directory was made; all else, since the process started.

    Belongs to the event loop, but for ``fsync_seconds``, to which the journal's thread adds. ``registry`` holds what
    Prometheus's own objects count; rows are counted exactly, in :class:`Totals`.
    """

    def __init__(self, started: datetime) -> None:
        self.started = started
        self.totals = Totals()
        #: Rows that this start found in the journal, and accepted rows that damage to the journal has taken since.
        self.recovered = zeros()
        self.lost = zeros()
        self.registry = registry = CollectorRegistry()
        # By handler class, method and status: never by URL, whose number is unlimited.
        self.requests = Counter(
            "persistd_http_requests",
            "Requests answered, by handler class.",
            ["handler", "method", "status"],
            registry=registry,
        )
        self.request_seconds = Histogram(
            "persistd_http_request_duration_seconds",
            "Seconds from a request's first line to the end of its answer.",
            ["handler", "method"],
            registry=registry,
            buckets=REQUEST_SECONDS,
        )
        # Of flushes that wrote at least one row.
        self.flush_seconds = Histogram(
            "persistd_flush_duration_seconds",
            "Seconds of flushes that wrote rows.",
            registry=registry,
            buckets=FLUSH_SECONDS,
        )
        self.flush_rows = Histogram(
            "persistd_flush_rows", "Rows that a flush wrote.", registry=registry, buckets=FLUSH_ROWS
        )
        self.flush_failures = Counter(
            "persistd_flush_failures", "Flushes that an error stopped, by its class.", ["error"], registry=registry
        )
        for error in FAILURES:
            self.flush_failures.labels(error)
        self.fsync_seconds = Histogram(
            "persistd_journal_fsync_duration_seconds",
            "Seconds that it took to make a group of batches durable.",
            registry=registry,
            buckets=FSYNC_SECONDS,
        )
        self.last_flush: datetime | None = None
        #: The last flushes, the latest last.
        self.flushes: deque[Flush] = deque(maxlen=KEPT)
        self.incidents = Incidents()
        self.refusals = Refusals(lambda message, at: self.incidents.add("refused", message, at))
        self.denials = Denials()
        self.dropped = DroppedFields()
        self.client_drops = ClientDrops()
        self.deletions = Deletions()
        self._at_start = Totals()
        self._today: date | None = None
        self._today_count = 0

    def resume(self, totals: Totals) -> None:
        """Continue from the totals of the last process."""
        self.totals = totals
        self._at_start = copy.deepcopy(totals)

    def recover(self, kind: Kind, rows: int) -> None:
        """Count accepted rows that the last process left in the journal."""
        self.totals.accepted[kind] += rows
        self.recovered[kind] += rows

    def lose(self, kind: Kind, rows: int, at: datetime) -> None:
        """Take back accepted rows that the journal has lost."""
        self.totals.accepted[kind] -= rows
        self.lost[kind] += rows
        self.incidents.add("lost", f"Accepted rows ({kind}) were lost to damage of the journal", at, count=rows)

    def accepted(self, kind: Kind) -> int:
        """Rows accepted since the process started; never goes down, even if rows are lost afterwards."""
        gained = self.totals.accepted[kind] - self._at_start.accepted[kind] + self._set_aside(kind)
        return gained - self.recovered[kind] + self.lost[kind]

    def written(self, kind: Kind) -> int:
        """Rows that the sink has committed since the process started."""
        return self.totals.written[kind] - self._at_start.written[kind]

    def merged(self, kind: Kind) -> int:
        """Rows merged into another one since the process started."""
        return self.totals.merged[kind] - self._at_start.merged[kind]

    def rejected(self, kind: Kind) -> int:
        """Rows rejected since the process started, by the sink or at the door."""
        return self.totals.rejected[kind] - self._at_start.rejected[kind] + self._set_aside(kind)

    def _set_aside(self, kind: Kind) -> int:
        return self.totals.set_aside[kind] - self._at_start.set_aside[kind]

    def answered(self, handler: str, method: str, status: int, seconds: float) -> None:
        """Count one answer to a request; ``handler`` is the name of the handler's class. Costs 3 µs."""
        method = method if method in METHODS else OTHER
        self.requests.labels(handler, method, status).inc()
        self.request_seconds.labels(handler, method).observe(seconds)

    def answers(self, handlers: Collection[str]) -> dict[int, int]:
        """Answers of these handlers so far, by status."""
        counts: dict[int, int] = {}
        for sample in (sample for metric in self.requests.collect() for sample in metric.samples):
            if sample.labels["handler"] in handlers and sample.value:  # some series exist before their first answer
                status = int(sample.labels["status"])
                counts[status] = counts.get(status, 0) + int(sample.value)
        return counts

    def flushed(self, seconds: float, at: datetime, rows: int) -> None:
        """Count one flush that wrote rows and ended at ``at`` (UTC)."""
        self.flush_seconds.observe(seconds)
        self.flush_rows.observe(rows)
        self._today_count = self.flush_count_today(at) + 1
        self._today = at.date()
        self.last_flush = at

    def remember(self, flush: Flush) -> None:
        """Keep ``flush`` among the last ones.

        A failure like the one before replaces it, or an outage would push out all others.
        """
        if flush.error and not flush.rows and self.flushes and self.flushes[-1].error == flush.error:
            self.flushes.pop()
        self.flushes.append(flush)

    def failed(self, error: Exception, at: datetime, *, code: str = "") -> None:
        """Count one flush that ended with this error at ``at`` (UTC); ``code`` is the driver's own."""
        self.flush_failures.labels(type(error).__name__).inc()
        self.incidents.add("flush", str(error), at, code=code)

    @property
    def flush_count(self) -> int:
        """Flushes that wrote at least one row."""
        return Reading.of(self.flush_seconds).count

    def flush_count_today(self, now: datetime) -> int:
        """Flushes since the UTC day of ``now`` began."""
        return self._today_count if self._today == now.date() else 0

    def average_flush_ms(self) -> int:
        """Mean duration of a flush; 0 before the first."""
        return round((Reading.of(self.flush_seconds).mean or 0) * 1000)

    def average_batch_size(self) -> int:
        """Mean number of rows written by a flush; 0 before the first."""
        count = self.flush_count
        return round(sum(map(self.written, KINDS)) / count) if count else 0
