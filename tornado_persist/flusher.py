"""Moves what waits in the buffer into the sink: by the clock, at capacity, on demand, and at the end."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from tornado.ioloop import PeriodicCallback

from tornado_persist import log
from tornado_persist.buffer import Buffer
from tornado_persist.errors import FlushFailed, PersistError, SinkError
from tornado_persist.metrics import Metrics
from tornado_persist.models import KINDS, Batch, Kind
from tornado_persist.sinks.runner import SinkRunner

logger = log.get(__name__)

#: Rows in one transaction of the sink.
CHUNK_ROWS = 10_000
#: Seconds between tries while draining.
DRAIN_PAUSE = 0.25


@dataclass(frozen=True, slots=True)
class Flushed:
    """What a flush did: rows the sink has committed, the milliseconds it took, and what stopped it, if anything."""

    sessions: int = 0
    tasks: int = 0
    duration_ms: int = 0
    error: PersistError | None = None


class Flusher:
    """The only one that writes to the sink: one flush at a time."""

    def __init__(self, buffer: Buffer, runner: SinkRunner, metrics: Metrics, *, interval: float, capacity: int) -> None:
        """``interval`` in seconds, ``capacity`` in rows."""
        self._buffer = buffer
        self._runner = runner
        self._metrics = metrics
        self.capacity = capacity
        self._one_at_a_time = asyncio.Lock()
        self._background: asyncio.Task[None] | None = None
        self._queued: asyncio.Task[Flushed] | None = None
        self._failing = False
        self._merged_before = 0
        self._timer: PeriodicCallback | None = None
        self.set_interval(interval)

    # When to flush.

    def set_interval(self, seconds: float) -> None:
        """Flush every so many seconds, counted from now and then from the end of each flush."""
        self._interval = timedelta(seconds=seconds)
        self._restart_timer(_now())

    def poke(self) -> None:
        """Rows were added: start a flush if they reach the capacity.

        After a failure only the timer tries again; else every batch that arrives in an outage would.
        """
        if self._buffer.waiting() >= self.capacity and not self._failing:
            self._start()

    def _tick(self) -> None:
        self.next_flush = _now() + self._interval
        self._start()

    def _start(self) -> None:
        # PeriodicCallback must not run the flush itself: it would swallow its exception, and restarting the timer from
        # within its callback would leave two of them.
        if self._background is None or self._background.done():
            self._background = asyncio.create_task(self._flush_in_background())

    async def _flush_in_background(self) -> None:
        try:
            await self.flush_once()
            while self._buffer.waiting() >= self.capacity and not self._failing:
                await self.flush_once()
        except Exception:
            logger.exception("a bug in the flusher")

    def _restart_timer(self, at: datetime) -> None:
        self._stop_timer()
        self._timer = PeriodicCallback(self._tick, self._interval)
        self._timer.start()
        #: When the timer flushes next (UTC).
        self.next_flush = at + self._interval

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.stop()

    def waiting(self, kind: Kind) -> int:
        """Rows of this kind that are not in the sink yet, those of a flush in progress included."""
        return self._buffer.count(kind)

    # The flush.

    async def flush_once(self) -> Flushed:
        """Write everything that waits, after a flush in progress. What could not be written waits again."""
        async with self._one_at_a_time:
            self._queued = None
            batch = self._buffer.take()
            if not len(batch):
                return Flushed()
            began = time.monotonic()
            counts: dict[Kind, int] = dict.fromkeys(KINDS, 0)
            error: SinkError | None = None
            try:
                for chunk in _chunks(batch, CHUNK_ROWS):
                    await self._runner.write(chunk)
                    self._buffer.release(chunk)
                    for kind in KINDS:
                        counts[kind] += len(chunk.rows(kind))
                        self._metrics.written[kind] += len(chunk.rows(kind))
            except SinkError as exc:
                error = exc
            finally:
                self._metrics.merged += self._buffer.restore()
            seconds = time.monotonic() - began
            self._note(sum(counts.values()), seconds, error)
            return Flushed(counts["session"], counts["task"], round(seconds * 1000), error)

    def _note(self, rows: int, seconds: float, error: SinkError | None) -> None:
        self._failing = error is not None
        milliseconds = round(seconds * 1000)
        if rows:
            now = _now()
            self._metrics.flushed(seconds, now)
            self._restart_timer(now)
        if error is None:
            merged, self._merged_before = self._metrics.merged - self._merged_before, self._metrics.merged
            logger.info("flush", rows=rows, merged=merged, ms=milliseconds)
        else:
            waiting = len(self._buffer)
            logger.warning(
                "flush failed", rows=rows, waiting=waiting, ms=milliseconds, error=str(error), code=error.code
            )

    async def flush(self, timeout: float) -> Flushed:
        """A barrier: when the result has no ``error``, every row accepted before the call is committed in the sink.

        Waits ``timeout`` seconds at most; the flush goes on after that. The counts are of all rows committed during the
        call, by a flush that was in progress too.
        """
        began = time.monotonic()
        before = dict(self._metrics.written)
        if self._queued is None:  # calls that come before it begins share it
            self._queued = asyncio.create_task(self.flush_once())
        flush = self._queued
        await asyncio.wait([flush], timeout=timeout)
        if flush.done():
            error: PersistError | None = flush.result().error
        else:
            error = FlushFailed(f"The flush takes more than {timeout:g} seconds; it goes on, and nothing is lost")
        written = {kind: self._metrics.written[kind] - before[kind] for kind in KINDS}
        return Flushed(written["session"], written["task"], round((time.monotonic() - began) * 1000), error)

    async def drain(self, timeout: float) -> None:
        """Stop the timer, and flush until nothing waits or ``timeout`` seconds are over."""
        self._stop_timer()
        deadline = time.monotonic() + timeout
        while len(self._buffer) and (left := deadline - time.monotonic()) > 0:
            if (await self.flush(left)).error:
                await asyncio.sleep(min(DRAIN_PAUSE, max(0.0, deadline - time.monotonic())))

    # The sink.

    async def switch(self, runner: SinkRunner, timeout: float) -> None:
        """Write to another sink from now on.

        What waits is first flushed into the old one; what that does not take within ``timeout`` seconds goes to the new
        one. A call that hangs in the old sink is given up: it may yet commit there rows that the new one gets as well.
        """
        await self.flush(timeout)
        old, self._runner = self._runner, runner
        await old.close(timeout)
        self._failing = False
        self.poke()

    async def sink_healthy(self) -> bool:
        """Whether the sink answers; known within half a second."""
        return await self._runner.healthy()

    async def find_sessions(self, session_ids: Collection[str]) -> set[str]:
        """Those of ``session_ids`` that the sink has.

        Raises:
            SinkUnavailable: it cannot be asked now.
        """
        return await self._runner.find_sessions(session_ids)


def _chunks(batch: Batch, size: int) -> Iterator[Batch]:
    """Parts of at most ``size`` rows, sessions before tasks."""
    for start in range(0, len(batch), size):
        after_sessions = max(0, start - len(batch.sessions))
        sessions = batch.sessions[start : start + size]
        yield Batch(sessions, batch.tasks[after_sessions : after_sessions + size - len(sessions)])


def _now() -> datetime:
    return datetime.now(UTC)
