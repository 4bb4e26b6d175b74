"""The thread that sends: when a batch is due, what its answer means, when to try again, and what is told of it."""

from __future__ import annotations

import contextlib
import logging
import random
import secrets
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from tornado_persist.client.connection import Address, Connection, Unavailable, encode
from tornado_persist.client.queue import Queue, Reason

if TYPE_CHECKING:
    from typing_extensions import TypeAlias

    from tornado_persist.client.values import Kind, Row

logger = logging.getLogger("tornado_persist.client")

#: Seconds between two warnings.
WARN_EVERY = 60.0
#: Seconds until the first retry, and the most between two; doubled each time.
_FIRST_PAUSE = 0.5
_LONGEST_PAUSE = 30.0
#: Bytes of JSON around the rows.
_AROUND = 20

_Piece: TypeAlias = "list[tuple[Row, bytes]]"


@dataclass(frozen=True)
class Settings:
    """See :class:`Client`."""

    interval: float
    max_batch: int
    max_bytes: int
    gzip_from: int | None
    retries: int
    on_drop: Callable[[Sequence[Row], Reason], object] | None


class _Flush(NamedTuple):
    """Somebody waits until all before ``mark`` is sent."""

    future: Future[bool]
    mark: dict[Kind, int]
    lost: int  #: before it
    deadline: float
    database: bool


def pause(failures: int, after: float, chance: float) -> float:
    """Seconds until the next try, after so many in a row have failed.

    ``after``: what the service asked for; ``chance``: from 0 to 1, so that many clients do not come back at once.
    """
    if after > 0:
        return after * (1 + chance / 4)
    return min(_LONGEST_PAUSE, _FIRST_PAUSE * (1 << min(failures - 1, 10))) * (1 + chance) / 2


class Sender:
    """Sends what is in the queue, one request at a time, and answers to those who wait for it."""

    def __init__(self, address: Address, settings: Settings, queue: Queue, changed: threading.Condition) -> None:
        """``changed`` guards ``queue`` and whatever else is shared."""
        self._address = address
        self._settings = settings
        self._queue = queue
        self._changed = changed
        self._closing = False
        self._flushes: list[_Flush] = []
        #: All before it is due.
        self._due = queue.mark()
        self._next_time = time.monotonic() + settings.interval
        #: A failed batch is sent again then; how often it has failed.
        self._retry_at = 0.0
        self._failures = 0
        # What one request may have at most: less than the settings say, if the service takes less.
        self._max_batch = settings.max_batch
        self._max_bytes = settings.max_bytes
        self._instance = secrets.token_hex(8)
        #: Of the dropped rows, those that the service knows of, and those that were logged.
        self._reported = 0
        self._logged = 0
        self._log_at = 0.0
        self._complain_at = 0.0
        #: Threads that are in ``on_drop``.
        self._telling: set[int] = set()

    # From other threads

    def flush(self, timeout: float, database: bool) -> Future[bool]:
        """Its result is whether all that waits now was accepted, once that is known."""
        future: Future[bool] = Future()
        with self._changed:
            if self._queue.closed:
                future.set_result(False)
                return future
            self._due = self._queue.mark()
            deadline = time.monotonic() + timeout
            self._flushes = [flush for flush in self._flushes if not flush.future.cancelled()]
            self._flushes.append(_Flush(future, self._due, self._queue.lost, deadline, database))
            self._changed.notify_all()
        return future

    def stop(self) -> None:
        """Send all that waits, then end."""
        with self._changed:
            self._closing = True
            self._retry_at = 0.0
            self._changed.notify_all()

    def abandon(self) -> None:
        """Give up what waits, and take nothing more; nobody waits for the thread any longer."""
        with self._changed:
            rows = self._queue.close()
            if rows:
                self._queue.last_error = self._queue.last_error or "closed before everything was sent"
            flushes, self._flushes = self._flushes, []
            self._changed.notify_all()
        for flush in flushes:
            _resolve(flush, False)
        if rows and not self._telling:  # if it hangs there, it would here
            self.dropped(rows, "closed")
        self._log(time.monotonic(), last=True)

    def dropped(self, rows: Sequence[Row], reason: Reason) -> None:
        """Tell of rows that were dropped; not while the queue is locked. What ``on_drop`` gives is only counted."""
        thread = threading.get_ident()
        if self._settings.on_drop is not None and thread not in self._telling:
            self._telling.add(thread)
            try:
                self._settings.on_drop(rows, reason)
            except (Exception, SystemExit):  # SystemExit would end the thread that sends, and nothing else
                if (now := time.monotonic()) >= self._complain_at:
                    self._complain_at = now + WARN_EVERY
                    _log(logging.ERROR, "on_drop failed", exc_info=True)
            finally:
                self._telling.discard(thread)
        if self._queue.closed:
            self._log(time.monotonic())

    # The thread

    def run(self) -> None:
        """Send until :meth:`stop`, and all that waits then."""
        try:
            self._run()
        except Exception:
            _log(logging.ERROR, "a bug in the client", exc_info=True)
            self.abandon()

    def _run(self) -> None:
        with self._address.connect() as http:
            connection = Connection(http, gzip_from=self._settings.gzip_from)
            while True:
                with self._changed:
                    ready = self._wait()
                    if ready and not self._queue.passed(self._due):
                        kind, rows = self._queue.take(self._max_batch)
                    else:
                        rows = []
                if rows:
                    try:
                        self._send(connection, kind, rows)
                    except Exception as exc:
                        _log(logging.ERROR, "a bug in the client", exc_info=True)
                        with self._changed:
                            rows = self._queue.on_their_way()
                        self._drop(rows, "bug", repr(exc))
                    with self._changed:
                        self._queue.put_back()  # whatever has not left
                        self._changed.notify_all()
                self._resolve_flushes(connection)
                self._log(time.monotonic())
                with self._changed:
                    if self._queue.closed or (self._closing and not len(self._queue) and not self._flushes):
                        return

    def _wait(self) -> bool:
        """Wait until there is something to do; whether a batch is due."""
        now = time.monotonic()
        if now >= self._next_time:
            self._next_time = now + self._settings.interval
            self._due = self._queue.mark()
        if self._closing or self._queue.waiting >= self._settings.max_batch:
            self._due = self._queue.mark()
        if self._queue.closed:
            return False
        until = self._next_time
        if not self._queue.passed(self._due):
            if now >= self._retry_at:
                return True
            until = self._retry_at
        elif self._closing or any(self._queue.passed(flush.mark) for flush in self._flushes):
            return False
        if self._queue.total_dropped > self._logged:
            until = min(until, max(self._log_at, now))
        self._changed.wait(min(until - now, threading.TIMEOUT_MAX))
        return False

    def _send(self, connection: Connection, kind: Kind, rows: Sequence[Row]) -> None:
        """Send these rows, in as many requests as it takes. What has not left the queue is to be tried again."""
        pieces = self._pieces(rows)
        while pieces:
            piece = pieces.popleft()
            with self._changed:
                total = self._queue.total_dropped
            news = f"{total}; since={self._reported}; client={self._instance}" if total > self._reported else ""
            try:
                answer = connection.post(kind, [text for _, text in piece], news)
            except Unavailable as exc:
                self._failures += 1
                if self._failures > self._settings.retries:
                    self._failures = 0
                    self._drop([row for row, _ in piece], "unavailable", str(exc))
                    continue
                with self._changed:
                    self._queue.last_error = str(exc)
                    self._retry_at = time.monotonic() + pause(self._failures, exc.after, random.random())
                return
            self._failures = 0
            if answer.accepted:
                self._reported = max(self._reported, total) if news else self._reported
                with self._changed:
                    self._queue.accepted([row for row, _ in piece], answer.set_aside)
                    self._changed.notify_all()
            elif answer.wrong:
                self._drop([piece[place][0] for place in sorted(answer.wrong)], "invalid", answer.problem)
                if rest := [pair for place, pair in enumerate(piece) if place not in answer.wrong]:
                    pieces.appendleft(rest)
            elif answer.status in (400, 413, 422) and len(piece) > 1:
                # It is too large, or it is not said which row is wrong.
                half = len(piece) // 2
                if answer.too_many:
                    self._max_batch = min(self._max_batch, half)
                if answer.status == 413:
                    self._max_bytes = min(self._max_bytes, sum(len(text) + 1 for _, text in piece) // 2 + _AROUND)
                pieces.extendleft([piece[half:], piece[:half]])
            else:
                reasons: dict[int, Reason] = {400: "invalid", 413: "too_large", 422: "invalid"}
                self._drop([row for row, _ in piece], reasons.get(answer.status, "refused"), answer.problem)

    def _pieces(self, rows: Sequence[Row]) -> deque[_Piece]:
        """The rows with their JSON, so many in a piece as may be in one request."""
        pieces: deque[_Piece] = deque()
        room = 0
        for row, text in encode(rows):
            if isinstance(text, str):
                self._drop([row], "invalid", text)
                continue
            if not pieces or len(text) + 1 > room:
                pieces.append([])
                room = self._max_bytes - _AROUND
            pieces[-1].append((row, text))
            room -= len(text) + 1
        return pieces

    def _drop(self, rows: Sequence[Row], reason: Reason, problem: str) -> None:
        with self._changed:
            self._queue.last_error = problem
            dropped = self._queue.drop(rows, reason)
            self._changed.notify_all()
        if dropped:
            self.dropped(rows, reason)

    def _resolve_flushes(self, connection: Connection) -> None:
        """Answer those whose rows have all left."""
        with self._changed:
            done = [flush for flush in self._flushes if self._queue.passed(flush.mark)]
            self._flushes = [flush for flush in self._flushes if flush not in done]
            lost = self._queue.lost
        for flush in done:
            good = flush.lost == lost
            left = flush.deadline - time.monotonic()
            if flush.database and not flush.future.cancelled():
                problem = connection.flush(left) if left > 0 else "no time is left"
                if problem:
                    with self._changed:
                        self._queue.last_error = problem
                good = good and not problem
            _resolve(flush, good)

    def _log(self, now: float, *, last: bool = False) -> None:
        """Warn of dropped rows, once a minute. ``last``: now, if there are any."""
        with self._changed:
            new = self._queue.total_dropped - self._logged
            if new <= 0 or (now < self._log_at and not last):
                return
            self._logged += new
            self._log_at = now + WARN_EVERY
            stats = self._queue.stats()
        reasons = ", ".join(f"{count} {reason}" for reason, count in sorted(stats.dropped.items()))
        problem = f"; last error: {stats.last_error}" if stats.last_error else ""
        _log(logging.WARNING, "%d rows were dropped, in all %s%s", new, reasons, problem)


def _log(level: int, message: str, *values: object, exc_info: bool | None = None) -> None:
    with contextlib.suppress(Exception):  # a handler's; neither the caller nor the thread that sends can help it
        logger.log(level, message, *values, exc_info=exc_info)


def _resolve(flush: _Flush, good: bool) -> None:
    if flush.future.set_running_or_notify_cancel():
        flush.future.set_result(good)
