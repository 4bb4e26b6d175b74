"""When rows go into the sink: by the timer, at capacity, on demand, after a failure, and at the end."""

from __future__ import annotations

import asyncio
import gc
import math
import time
from collections.abc import Awaitable, Callable
from contextvars import Context
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, TypeVar

from tornado.ioloop import PeriodicCallback

from tornado_persist.errors import FlushFailed, PersistError, SinkError, SinkUnavailable
from tornado_persist.pipeline import bisect
from tornado_persist.pipeline.backlog import Backlog
from tornado_persist.pipeline.backoff import Backoff
from tornado_persist.pipeline.buffer import Buffer
from tornado_persist.pipeline.checkpoint import Checkpointer
from tornado_persist.pipeline.chunks import ChunkSize
from tornado_persist.records.models import KINDS, Batch, Row
from tornado_persist.sinks.runner import SinkRunner
from tornado_persist.telemetry import log
from tornado_persist.telemetry.metrics import Flush, Metrics

T = TypeVar("T")

logger = log.get(__name__)

#: Bytes of the records of a chunk: a sink makes copies of the rows, in two or three forms.
CHUNK_BYTES = 16 << 20
#: Seconds in which rows gather after a flush that has left more than the capacity, and how many need not wait for it: a
#: transaction and the release of the journal's space cost some milliseconds, for few rows as for many. With 100 rows in
#: a request PostgreSQL takes a fifth more of them.
GATHER = 0.02
ENOUGH_ROWS = 5000
#: Written rows freed in one round of the event loop. All 20,000 of a chunk at once would hold it up for 8 ms.
FREE_ROWS = 500
#: Seconds between two lines of the log about flushes.
LINE_EVERY = 1.0
#: The wall clock was set if it is off by so much.
CLOCK_SET = timedelta(seconds=1)
#: Flushes in a row that fail with an unknown code before single rows are tried.
UNKNOWN_FAILURES = 3


@dataclass(frozen=True, slots=True)
class Flushed:
    """What a flush did: rows that the sink has committed, rows that it rejected, milliseconds, and what stopped it."""

    sessions: int = 0
    tasks: int = 0
    rejected: int = 0
    duration_ms: int = 0
    error: PersistError | None = None


class Flusher:
    """The only writer of the sink: flushes follow one another, in the order in which their rows were accepted.

    What deletes takes its turn between two of them: see :meth:`in_turn`.
    """

    def __init__(
        self,
        buffer: Buffer,
        backlog: Backlog,
        checkpointer: Checkpointer,
        runner: SinkRunner,
        metrics: Metrics,
        *,
        interval: float,
        capacity: int,
    ) -> None:
        """``interval`` in seconds, ``capacity`` in rows."""
        self._buffer = buffer
        self._backlog = backlog
        self._checkpointer = checkpointer
        #: Changed by :meth:`write_to` alone.
        self.runner = runner
        self._metrics = metrics
        self.capacity = capacity
        #: Every record up to this one is done: its rows are in the sink, or rejected.
        self.flushed_through = checkpointer.released
        # Who holds it writes to the sink. First come, first served.
        self._turn = asyncio.Lock()
        self._flush_task: asyncio.Task[Flushed] | None = None
        self._background: asyncio.Task[None] | None = None
        self._refilling: asyncio.Task[None] | None = None
        self._backoff = Backoff()
        self._chunk_size = ChunkSize(runner.most_rows)
        self._retry: asyncio.TimerHandle | None = None
        self._unknown_failures = 0
        # Rows merged so far when the log last told of a flush.
        self._merged_before = sum(metrics.totals.merged.values())
        self._lines = _Lines(self._tell)
        self._timer: PeriodicCallback | None = None
        self._ending = False
        self.set_interval(interval)

    # By the timer, at capacity, after a failure.

    def set_interval(self, seconds: float) -> None:
        """Flush every so many seconds, from now on, counted from the end of each flush."""
        self._interval = timedelta(seconds=seconds)
        self._restart_timer(_now())

    @property
    def interval(self) -> float:
        """Seconds from one flush to the next."""
        return self._interval.total_seconds()

    @property
    def next_flush(self) -> datetime:
        """When the timer flushes next (UTC), as the wall clock is now."""
        at, clock = self._waits_since
        shift = _now() - at - timedelta(seconds=time.monotonic() - clock)
        return at + self._interval + (shift if abs(shift) > CLOCK_SET else timedelta())

    @property
    def retry_in(self) -> float:
        """Seconds until a flush that failed is tried again; 0 while none waits."""
        if self._retry is None:
            return 0.0
        return max(0.0, self._retry.when() - asyncio.get_running_loop().time())

    def poke(self) -> None:
        """Rows were accepted, or refused: start a flush if they reach the capacity, or the journal is full.

        While the sink fails only the backoff tries.
        """
        if self._due() and self._retry is None and not self._ending:
            self._start()

    def write_to(self, runner: SinkRunner) -> None:
        """Write to another sink from the next flush on, and flush now."""
        self.runner = runner
        self._backoff.succeeded()
        self._chunk_size = ChunkSize(runner.most_rows)
        self._set_retry(None)
        if any(map(self._backlog.pending, KINDS)):
            self._start()

    def try_now(self) -> None:
        """Retry now: the sink can be reached again."""
        if self._retry is not None:
            self._set_retry(0.0)

    def _due(self) -> bool:
        backlog = self._backlog
        if backlog.left_out() or backlog.read_back_through > self.flushed_through:
            return True
        return self._buffer.waiting() >= self.capacity or backlog.needs_room(self.flushed_through)

    def _tick(self) -> None:
        self._waits_since = _now(), time.monotonic()
        if self._retry is None:
            self._start()

    def _try_again(self) -> None:
        self._retry = None
        self._start()

    def _start(self) -> None:
        # PeriodicCallback must not run the flush itself: it would swallow its exception, and restarting the timer from
        # within its callback would leave two of them.
        if self._background is None or self._background.done():
            # In a context of its own: its log lines are not of the request that happened to start it.
            self._background = asyncio.create_task(self._flush_while_due(), context=Context())

    async def _flush_while_due(self) -> None:
        try:
            await self.flush_once()
            while self._due():
                if self._buffer.waiting() < ENOUGH_ROWS and not self._backlog.left_out():
                    await asyncio.sleep(GATHER)
                if self._retry is not None or self._ending:
                    break
                await self.flush_once()
        except Exception:
            logger.exception("a bug in the flusher")

    def _restart_timer(self, at: datetime) -> None:
        if self._ending:
            return
        self._stop_timer()
        self._timer = PeriodicCallback(self._tick, self._interval)
        self._timer.start()
        self._waits_since = at, time.monotonic()

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.stop()

    def _set_retry(self, delay: float | None) -> None:
        if self._retry is not None:
            self._retry.cancel()
            self._retry = None
        if delay is not None and not self._ending:
            self._retry = asyncio.get_running_loop().call_later(delay, self._try_again)

    # On demand, and at the end.

    async def flush_once(self) -> Flushed:
        """Write everything that waits in memory; joins a flush in progress. What could not be written waits again.

        It does not wait for the journal's cursor: a millisecond or two in which the next flush writes already.
        """
        if self._flush_task is None or self._flush_task.done():
            self._flush_task = asyncio.create_task(self._flush(), context=Context())
        return await asyncio.shield(self._flush_task)

    async def flush(self, timeout: float) -> Flushed:
        """A barrier: when the result has no ``error``, every row accepted before the call is in the sink, or rejected.

        Waits ``timeout`` seconds at most; the flush goes on after that. The counts are of all rows written during the
        call, by a flush that was in progress too.
        """
        began, before = time.monotonic(), self._counts()
        error: PersistError | None
        try:
            async with asyncio.timeout(timeout):
                error = await self.flush_through(self._backlog.accepted_through)
        except TimeoutError:
            error = FlushFailed(f"The flush takes more than {timeout:g} seconds; it goes on, and nothing is lost")
        # Afterwards the journal's space is free.
        await self._checkpointer.finish(timeout - (time.monotonic() - began))
        return self._since(before, began, error)

    async def in_turn(self, work: Callable[[SinkRunner], Awaitable[T]]) -> T:
        """Run ``work`` while no flush is in progress: no row is on its way, and none goes until it returns."""
        async with self._turn:
            return await work(self.runner)

    async def flush_through(self, seq: int) -> PersistError | None:
        """Flush until the rows of record ``seq`` are in the sink; without the wait for the journal's cursor."""
        while self.flushed_through < seq:
            joined = self._flush_task is not None and not self._flush_task.done()
            error = (await self.flush_once()).error
            if error is not None and not joined:
                return error
        return None

    async def drain(self, timeout: float) -> None:
        """Stop the timer, and flush until nothing is pending or ``timeout`` seconds are over."""
        self._ending = True
        self._stop_timer()
        self._set_retry(None)
        deadline = time.monotonic() + timeout
        pauses = Backoff(most=1.0)  # of its own: there is not the time for long ones
        while any(map(self._backlog.pending, KINDS)) and (left := deadline - time.monotonic()) > 0:
            if (await self.flush(left)).error:
                await asyncio.sleep(max(0.0, min(pauses.failed(), deadline - time.monotonic())))

    async def finish(self, timeout: float) -> None:
        """After :meth:`drain`: wait for a flush that is still in progress, ``timeout`` seconds at most."""
        deadline = time.monotonic() + timeout
        tasks = (self._flush_task, self._background, self._refilling)
        going = [task for task in tasks if task is not None and not task.done()]
        if going:
            await asyncio.wait(going, timeout=timeout)
        await self._checkpointer.finish(deadline - time.monotonic())
        self._lines.write()

    # One flush.

    async def _flush(self) -> Flushed:
        async with self._turn:
            return await self._flush_in_turn()

    async def _flush_in_turn(self) -> Flushed:
        began, before, taken = time.monotonic(), self._counts(), 0
        error: PersistError | None = None
        try:
            await self._refill()
            through, accepted = self._backlog.merged_through, dict(self._backlog.merged_rows)
            rows = self._buffer.take()
            began, taken = time.monotonic(), len(rows)
            runner = self.runner
            if rows:
                await self._checkpointer.record_position(runner)
            while rows:
                await self._write(rows.pop(self._buffer.fitting(self._chunk_size.rows, CHUNK_BYTES)), runner)
                if rows:
                    # Drivers leave reference cycles that hold the rows. Large rows are few objects, so the collector
                    # would not run by itself before 256 MiB of written rows are held.
                    gc.collect(1)
                self._refill_ahead()
            if through > self.flushed_through:
                self.flushed_through = through
                await self._checkpointer.release(through, self._metrics.totals.at_checkpoint(accepted), runner)
        except (SinkError, FlushFailed) as exc:
            error = exc
        finally:
            for kind, merged in self._buffer.restore().items():
                self._metrics.totals.merged[kind] += merged
        flushed = self._since(before, began, error)
        self._report(flushed, taken, time.monotonic() - began)
        return flushed

    async def _write(self, chunk: Batch, runner: SinkRunner) -> None:
        began = time.monotonic()
        outcome = await bisect.write(chunk, runner, isolate_unknown=self._unknown_failures >= UNKNOWN_FAILURES)
        if outcome.error is not None:
            if not outcome.error.unknown_code:  # that is for bisection
                self._chunk_size.failed(len(chunk))
        elif outcome.conflicting_rows:
            self._chunk_size.conflicted(outcome.conflicting_rows)
        elif not outcome.refused:
            self._chunk_size.succeeded(len(chunk), time.monotonic() - began)
        totals = self._metrics.totals
        for part in outcome.written:
            self._buffer.release(part)
            for kind in KINDS:
                totals.written[kind] += len(part.rows(kind))
        if outcome.refused:
            await self._checkpointer.save_refused(outcome.refused)
            for refused in outcome.refused:
                self._buffer.release(Batch([refused.row]) if refused.kind == "session" else Batch(tasks=[refused.row]))
                totals.rejected[refused.kind] += 1
            first = outcome.refused[0]
            self._metrics.incidents.add(
                "rejected", first.message, first.at, code=first.code, count=len(outcome.refused)
            )
        if outcome.error is not None:
            raise outcome.error
        asyncio.get_running_loop().call_soon(_free, [*chunk.sessions, *chunk.tasks])

    async def _refill(self) -> None:
        try:
            await self._backlog.refill()
        except OSError as exc:
            raise FlushFailed(f"The journal cannot be read: {exc.strerror}") from exc

    def _refill_ahead(self) -> None:
        """While the sink writes the next rows, read others into the room that these have left."""
        if self._backlog.left_out() and (self._refilling is None or self._refilling.done()):
            self._refilling = asyncio.create_task(self._refill_quietly())

    async def _refill_quietly(self) -> None:
        try:
            await self._refill()
        except FlushFailed:
            pass  # the next flush gets the same error, and reports it
        except Exception:
            logger.exception("a bug in the flusher")

    # Its report.

    def _counts(self) -> tuple[int, int, int]:
        """Sessions and tasks written, and rows rejected, so far."""
        totals = self._metrics.totals
        return totals.written["session"], totals.written["task"], sum(totals.rejected.values())

    def _since(self, before: tuple[int, int, int], began: float, error: PersistError | None) -> Flushed:
        sessions, tasks, rejected = (now - then for now, then in zip(self._counts(), before, strict=True))
        return Flushed(sessions, tasks, rejected, round((time.monotonic() - began) * 1000), error)

    def _report(self, flushed: Flushed, taken: int, seconds: float) -> None:
        """Count the flush, log it, and decide when to try next."""
        rows, now, error = flushed.sessions + flushed.tasks, _now(), flushed.error
        if rows:
            self._metrics.flushed(seconds, now, rows)
            self._restart_timer(now)
        if taken or error:
            self._metrics.remember(Flush(now, rows, flushed.rejected, seconds, str(error or "")))
        figures = {"rows": rows, "rejected": flushed.rejected, "ms": flushed.duration_ms}
        if error is None:
            self._backoff.succeeded()
            self._unknown_failures = 0
            self._set_retry(None)
            if taken:
                self._lines.flushed(figures)
            return
        self._unknown_failures += isinstance(error, SinkUnavailable) and error.unknown_code
        delay = self._backoff.failed()
        self._set_retry(delay)
        code = error.code if isinstance(error, SinkError) else ""
        self._metrics.failed(error, now, code=code)
        waiting = sum(map(self._backlog.pending, KINDS))
        self._lines.failed(**figures, waiting=waiting, retry_in=round(delay, 2), error=str(error), code=code)

    def _tell(self, figures: dict[str, int]) -> None:
        """The line of the log about one flush, or about the flushes of a second."""
        merged = sum(self._metrics.totals.merged.values())
        requests = self._backlog.pop_request_ids(self.flushed_through)
        clients = self._backlog.pop_clients(self.flushed_through)
        logger.info("flush", **figures, merged=merged - self._merged_before, requests=requests, clients=clients)
        self._merged_before = merged


class _Lines:
    """Bounds the lines about flushes: ``POST /flush`` lets a client cause as many flushes as it likes.

    Flushes within a second of a line share the next one.
    """

    def __init__(self, tell: Callable[[dict[str, int]], None]) -> None:
        """``tell`` writes the line about good flushes."""
        self._tell = tell
        self._told = self._told_failure = -math.inf
        self._sums: dict[str, int] = {}
        self._flushes = self._held_back = 0
        self._timer: asyncio.TimerHandle | None = None

    def flushed(self, figures: dict[str, int]) -> None:
        """A flush went well, with these figures: write them now, or, added up, once a second is over."""
        self._sums = {name: self._sums.get(name, 0) + figure for name, figure in figures.items()}
        self._flushes += 1
        wait = self._told + LINE_EVERY - time.monotonic()
        if wait <= 0:
            self.write()
        elif self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(wait, self.write, context=Context())

    def failed(self, **figures: Any) -> None:
        """A flush failed; tells also how many failures had no line of their own."""
        self.write()
        now = time.monotonic()
        if now - self._told_failure < LINE_EVERY:
            self._held_back += 1
            return
        more = {"held_back": self._held_back} if self._held_back else {}
        self._told_failure, self._held_back = now, 0
        logger.warning("flush failed", **figures, **more)

    def write(self) -> None:
        """Write what is held back."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._flushes:
            several = {"flushes": self._flushes} if self._flushes > 1 else {}
            self._tell({**self._sums, **several})
            self._told, self._sums, self._flushes = time.monotonic(), {}, 0


def _free(rows: list[Row]) -> None:
    """Free written rows, a few in each round of the event loop."""
    del rows[-FREE_ROWS:]
    if rows:
        asyncio.get_running_loop().call_soon(_free, rows)


def _now() -> datetime:
    return datetime.now(UTC)
