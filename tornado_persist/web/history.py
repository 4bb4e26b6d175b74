"""What the dashboard shows: the last quarter of an hour, kept in memory, and the state now."""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import cast

from tornado_persist.pipeline.health import Health, HealthSnapshot
from tornado_persist.records.models import KINDS
from tornado_persist.records.times import stamp
from tornado_persist.telemetry.metrics import REQUEST_SECONDS, Metrics, Reading
from tornado_persist.web import schemas
from tornado_persist.web.answers import accounting, client_drops, instance, open_rows, refused, sink, waiting
from tornado_persist.web.base import GetHandler

#: Seconds between samples, and seconds that all samples span.
INTERVAL = 5.0
SPAN = 900.0
#: Seconds that the answer times beside the charts span.
LATELY = 60.0
#: Handlers whose answers are counted and timed. A flush is slow by nature.
BATCHES = ("SessionsBatch", "TasksBatch")
#: Milliseconds; all that is known of a longer answer is that it was longer.
LIMIT_MS = REQUEST_SECONDS[-1] * 1000


@dataclass(frozen=True, slots=True)
class Sample:
    """The state at ``at`` (seconds since 1970), and what happened in the interval that ended then.

    Rows a second; refused batches; rows; bytes; milliseconds, None where nothing was timed. Answer times are the upper
    bounds of buckets, twice ``LIMIT_MS`` above the last one.
    """

    at: float
    accepted: float
    written: float
    merged: float
    rejected: float
    refused: int
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
    refused: int
    flushes: Reading
    answers: Reading
    statuses: Mapping[int, int]


class Sampler:
    """Samples of the metrics, at most as many as ``SPAN`` holds."""

    def __init__(
        self,
        health: Health,
        metrics: Metrics,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """``clock``: seconds that never go back."""
        self._health = health
        self._metrics = metrics
        self._clock = clock
        self._samples: deque[Sample] = deque(maxlen=int(SPAN / INTERVAL))
        self._marks: deque[_Mark] = deque([self._counters()], maxlen=int(SPAN / INTERVAL) + 1)
        self._problem = ""

    def sample(self) -> None:
        """Take a sample; call this every ``INTERVAL`` seconds. It does not ask the sink."""
        last, now = self._marks[-1], self._counters()
        seconds = now.clock - last.clock
        if seconds <= 0:
            return
        self._marks.append(now)
        accepted, written, merged, rejected = ((b - a) / seconds for a, b in zip(last.rows, now.rows, strict=True))
        answers = now.answers - last.answers
        snapshot = self._health.snapshot()
        self._samples.append(
            Sample(
                round(time.time(), 3),
                round(accepted, 2),
                round(written, 2),
                round(merged, 2),
                round(rejected, 2),
                now.refused - last.refused,
                snapshot.waiting.rows,
                snapshot.waiting.in_memory,
                snapshot.waiting.journal_bytes,
                _ms((now.flushes - last.flushes).mean),
                _bound_ms(answers, 0.5),
                _bound_ms(answers, 0.99),
                snapshot.sink.up,
            )
        )
        self._note_problem(snapshot)

    def columns(self) -> schemas.Samples:
        """The samples, the oldest first, as one list a column."""
        columns = {name: [getattr(sample, name) for sample in self._samples] for name in COLUMNS}
        return cast(schemas.Samples, columns)

    def answers(self) -> schemas.Answers:
        """Answers to batches, up to this moment."""
        now, first = self._counters(), self._marks[0]
        earlier = next((mark for mark in self._marks if mark.clock >= now.clock - LATELY), self._marks[-1])
        lately = now.answers - earlier.answers
        return {
            "p50_ms": _bound_ms(lately, 0.5),
            "p99_ms": _bound_ms(lately, 0.99),
            "limit_ms": LIMIT_MS,
            "statuses": [
                {"status": status, "total": count, "recent": count - first.statuses.get(status, 0)}
                for status, count in sorted(now.statuses.items())
            ],
        }

    def _counters(self) -> _Mark:
        metrics = self._metrics
        terms = metrics.accepted, metrics.written, metrics.merged, metrics.rejected
        return _Mark(
            self._clock(),
            tuple(sum(map(rows, KINDS)) for rows in terms),
            metrics.refusals.batches,
            Reading.of(metrics.flush_seconds),
            Reading.of(metrics.request_seconds, BATCHES),
            metrics.answers(BATCHES),
        )

    def _note_problem(self, snapshot: HealthSnapshot) -> None:
        """Note among the incidents, once each time, that batches are refused."""
        problem = snapshot.problem
        if problem and problem != self._problem:
            self._metrics.incidents.add("intake", problem, snapshot.at)
        self._problem = problem


def _ms(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds * 1000, 3)


def _bound_ms(answers: Reading, q: float) -> float | None:
    bound = answers.bound(q)
    return 2 * LIMIT_MS if bound == math.inf else _ms(bound)


class History(GetHandler):
    """``GET …/history``: the last 15 minutes, and the state now. Never waits for the sink."""

    scope = "read"

    async def get(self) -> None:
        self.reply(self._history())

    def _history(self) -> schemas.History:
        app = self.application
        snapshot = app.health.snapshot()
        return {
            "now": snapshot.at.timestamp(),
            "instance": instance(snapshot),
            "interval_seconds": INTERVAL,
            "span_seconds": SPAN,
            "intake": {"accepting": snapshot.accepting, "problem": snapshot.problem},
            "sink": sink(snapshot),
            "waiting": waiting(snapshot),
            "disk_free_bytes": snapshot.disk_free,
            "rejected_open": open_rows(snapshot),
            "reason": snapshot.reason,
            "caution": snapshot.caution,
            "accounting": accounting(app.metrics.totals, snapshot.waiting.rows),
            "refused": refused(app.metrics.refusals),
            "client_drops": client_drops(app.metrics.client_drops),
            "answers": app.sampler.answers(),
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
