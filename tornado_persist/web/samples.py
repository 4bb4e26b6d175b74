"""The last quarter of an hour, kept in memory, so that whoever looks sees at once how it came to this."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime

from tornado_persist.journal import Journal
from tornado_persist.pipeline.flusher import Flusher
from tornado_persist.pipeline.ingest import Ingest
from tornado_persist.records.models import KINDS
from tornado_persist.telemetry.metrics import Metrics, Reading

#: Seconds from one sample to the next, and those that all of them span.
INTERVAL = 5.0
SPAN = 900.0
#: Handlers whose answer times are shown: the two that clients wait for all day. A flush takes its time by nature.
TIMED = ("SessionsBatch", "TasksBatch")


@dataclass(frozen=True, slots=True)
class Sample:
    """How things stood at ``at`` (seconds since 1970), and what came to pass in the interval that ended there.

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


#: The columns of a history, in the order of :class:`Sample`.
COLUMNS = tuple(Sample.__dataclass_fields__)


@dataclass(frozen=True, slots=True)
class _Mark:
    """Counters at a moment."""

    clock: float
    rows: tuple[int, ...]
    flushes: Reading
    answers: Reading


class History:
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
        """Take one; call it every ``INTERVAL`` seconds. The sink is not asked."""
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

    def columns(self) -> dict[str, list[float | int | bool | None]]:
        """The samples, the oldest first, as one list a column."""
        return {name: [getattr(sample, name) for sample in self._samples] for name in COLUMNS}

    def _counters(self) -> _Mark:
        metrics = self._metrics
        terms = metrics.accepted, metrics.written, metrics.merged, metrics.rejected
        return _Mark(
            self._clock(),
            tuple(sum(map(rows, KINDS)) for rows in terms),
            metrics.flush_seconds.read(),
            metrics.requests.seconds_of(*TIMED),
        )

    def _note_problem(self) -> None:
        """The journal tells nobody that it turns batches away; here it gets among the incidents, once each time."""
        problem = self._ingest.problem
        if problem and problem != self._problem:
            self._metrics.incidents.add("intake", problem, datetime.now(UTC))
        self._problem = problem


def _ms(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds * 1000, 3)
