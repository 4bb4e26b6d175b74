"""What the dashboard shows: the last quarter of an hour, kept in memory, and the state now."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import cast

from tornado_persist import __version__
from tornado_persist.journal import Journal
from tornado_persist.pipeline.flusher import Flusher
from tornado_persist.pipeline.ingest import Ingest
from tornado_persist.records.models import KINDS
from tornado_persist.records.times import stamp
from tornado_persist.telemetry.metrics import Metrics, Reading
from tornado_persist.web import schemas
from tornado_persist.web.base import GetHandler, accounting, shown

#: Seconds between samples, and seconds that all samples span.
INTERVAL = 5.0
SPAN = 900.0
#: Handlers whose answer times are shown. A flush is slow by nature.
TIMED = ("SessionsBatch", "TasksBatch")


@dataclass(frozen=True, slots=True)
class Sample:
    """The state at ``at`` (seconds since 1970), and what happened in the interval that ended then.

    Rows a second; rows; bytes; milliseconds, None where nothing was timed.
    """

    at: float
    accepted: float
    written: float
    merged: float
    rejected: float
    pending: int
    in_memory: int
    journal_bytes: int
    flush_ms: float | None
    answer_p50_ms: float | None
    answer_p99_ms: float | None
    sink_up: bool


COLUMNS = tuple(Sample.__dataclass_fields__)


@dataclass(frozen=True, slots=True)
class _Mark:
    """Counters at a moment."""

    clock: float
    rows: tuple[int, ...]
    flushes: Reading
    answers: Reading


class Sampler:
    """Samples of the metrics, at most as many as ``SPAN`` holds."""

    def __init__(
        self,
        ingest: Ingest,
        flusher: Flusher,
        journal: Journal,
        metrics: Metrics,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """``clock``: seconds that never go back."""
        self._ingest = ingest
        self._flusher = flusher
        self._journal = journal
        self._metrics = metrics
        self._clock = clock
        self._samples: deque[Sample] = deque(maxlen=int(SPAN / INTERVAL))
        self._mark = self._counters()
        self._problem = ""

    def sample(self) -> None:
        """Take a sample; call this every ``INTERVAL`` seconds. It does not ask the sink."""
        last, now = self._mark, self._counters()
        seconds = now.clock - last.clock
        if seconds <= 0:
            return
        self._mark = now
        accepted, written, merged, rejected = ((b - a) / seconds for a, b in zip(last.rows, now.rows, strict=True))
        answers = now.answers - last.answers
        self._samples.append(
            Sample(
                round(time.time(), 3),
                round(accepted, 2),
                round(written, 2),
                round(merged, 2),
                round(rejected, 2),
                sum(map(self._ingest.pending, KINDS)),
                self._ingest.in_memory,
                self._journal.stats().bytes,
                _ms((now.flushes - last.flushes).mean),
                _ms(answers.quantile(0.5)),
                _ms(answers.quantile(0.99)),
                self._flusher.sink.up,
            )
        )
        self._note_problem()

    def columns(self) -> schemas.Samples:
        """The samples, the oldest first, as one list a column."""
        columns = {name: [getattr(sample, name) for sample in self._samples] for name in COLUMNS}
        return cast(schemas.Samples, columns)

    def _counters(self) -> _Mark:
        metrics = self._metrics
        terms = metrics.accepted, metrics.written, metrics.merged, metrics.rejected
        return _Mark(
            self._clock(),
            tuple(sum(map(rows, KINDS)) for rows in terms),
            Reading.of(metrics.flush_seconds),
            Reading.of(metrics.request_seconds, TIMED),
        )

    def _note_problem(self) -> None:
        """Note among the incidents, once each time, that batches are refused."""
        problem = self._ingest.problem
        if problem and problem != self._problem:
            self._metrics.incidents.add("intake", problem, datetime.now(UTC))
        self._problem = problem


def _ms(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds * 1000, 3)


class History(GetHandler):
    """``GET …/history``: the last 15 minutes, and the state now. Never waits for the sink."""

    async def get(self) -> None:
        self.set_header("Cache-Control", "no-store")
        self.reply(self._history(datetime.now(UTC)))

    def _history(self, now: datetime) -> schemas.History:
        app = self.application
        journal, waiting = app.journal.stats(), sum(map(app.ingest.pending, KINDS))
        sink, problem = app.flusher.sink, app.ingest.problem
        return {
            "now": now.timestamp(),
            "version": __version__,
            "started": stamp(app.metrics.started),
            "interval_seconds": INTERVAL,
            "span_seconds": SPAN,
            "intake": {"accepting": not problem, "problem": problem},
            "sink": {
                "name": sink.name,
                "description": sink.description,
                "up": sink.up,
                "since": shown(sink.since),
                "error": sink.error,
                "retry_in": round(app.flusher.retry_in, 1),
            },
            "waiting": {
                "rows": waiting,
                "in_memory": app.ingest.in_memory,
                "max_rows": app.ingest.max_rows,
                "capacity": app.flusher.capacity,
                "journal_bytes": journal.bytes,
                "journal_max_bytes": journal.max_bytes,
                "journal_records": journal.records,
                "oldest_seconds": journal.age(now),
                "next_flush": stamp(app.flusher.next_flush),
                "flush_seconds": app.flusher.interval,
            },
            "accounting": accounting(app.metrics.totals, waiting),
            "samples": app.sampler.columns(),
            "flushes": [
                {
                    "at": stamp(flush.at),
                    "rows": flush.rows,
                    "rejected": flush.rejected,
                    "seconds": flush.seconds,
                    "error": flush.error,
                }
                for flush in reversed(app.metrics.flushes)
            ],
            "incidents": [
                {
                    "first": stamp(incident.first),
                    "last": stamp(incident.last),
                    "what": incident.what,
                    "message": incident.message,
                    "code": incident.code,
                    "count": incident.count,
                }
                for incident in app.metrics.incidents
            ],
        }
