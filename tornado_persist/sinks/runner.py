"""A sink on its own thread, as the event loop sees it."""

from __future__ import annotations

import asyncio
import contextlib
import queue
import threading
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from typing import Any, TypeVar

from tornado_persist.errors import BatchRejected, SinkConflict, SinkError, SinkUnavailable
from tornado_persist.records.models import Batch
from tornado_persist.sinks.availability import Availability
from tornado_persist.sinks.base import Expiry, Removed, Sink, Skew
from tornado_persist.sinks.clock import ClockWatch
from tornado_persist.sinks.reader import settle
from tornado_persist.telemetry import log, redaction

T = TypeVar("T")

logger = log.get(__name__)

#: A call that has not returned after so many seconds means that the sink is down.
STALLED_AFTER = 5.0
#: Tries of a write that conflicts with another writer. After them its caller writes fewer rows at a time.
CONFLICTS = 3


_SILENT = f"it has not answered for {STALLED_AFTER:g} seconds"


@dataclass(frozen=True, slots=True)
class SinkState:
    """What is known of a sink without asking it."""

    name: str
    address: str  #: where the rows go, without user and password; empty if the sink names no place
    description: str  #: by itself, without secrets
    up: bool
    since: datetime | None  #: when it came up or went down (UTC); None before its first answer
    error: str  #: why it is down; empty while it is up
    clock_skew: float | None = None  #: seconds that this machine's clock is ahead of the sink's; None: not known
    clock_problem: str = ""  #: a sentence, if that is too much


class SinkRunner:
    """Runs a sink's blocking calls one after the other in one daemon thread, opening the sink when a call needs it.

    The thread is a daemon, not one of an executor, because an executor's threads are joined at exit: a database that
    hangs would keep the process from ending. After ``SinkUnavailable`` the sink is closed, so that the next call begins
    with a new connection. Any exception that a sink must not raise is logged with its traceback and becomes
    ``SinkUnavailable``.
    """

    def __init__(self, sink: Sink[Any], rewind_to: dict[str, Any] | None = None) -> None:
        """``rewind_to``: the position for :meth:`Sink.rewind`, when the sink is first opened."""
        self.sink = sink
        self._rewind_to = rewind_to
        #: What ``sink.describe()`` said when it was last opened.
        self.description = sink.name
        self._availability = Availability()
        self._clock = ClockWatch(time.monotonic())
        self._since: datetime | None = None
        self._opened = False
        self._busy_since: float | None = None
        self._checked_at = float("-inf")
        self._ping: asyncio.Task[None] | None = None
        self._closed = False
        self._waiting: set[asyncio.Future[Any]] = set()
        self._calls: queue.SimpleQueue[tuple[Callable[..., Any], tuple[Any, ...], asyncio.Future[Any]] | None]
        self._calls = queue.SimpleQueue()
        self._loop = asyncio.get_running_loop()
        self._thread = threading.Thread(target=self._run, name=f"sink-{sink.name}", daemon=True)
        self._thread.start()

    async def open(self) -> None:
        """Open the sink if it is not open.

        Raises:
            SinkUnavailable: see :meth:`Sink.open`.
        """
        await self._ask(lambda: None)

    async def write(self, batch: Batch) -> None:
        """:meth:`Sink.write`, with its exceptions. It is tried ``CONFLICTS`` times while it conflicts."""
        try:
            await self._call(self._insist, self.sink.write, batch)
        except BatchRejected:
            self._note(self._availability.write_ended)  # it has looked at the rows
            raise
        except SinkConflict:  # fewer rows may go through: see `gave_up`
            raise
        except SinkUnavailable as exc:
            self._note(self._availability.write_ended, exc)
            raise
        self._note(self._availability.write_ended)

    def gave_up(self, error: SinkUnavailable) -> None:
        """Writes are not tried again for now; not the sink, but its caller knows when conflicts are too many.

        The sink is opened anew for the next one: of several servers another one may be free of what is in the way.
        """
        self._note(self._availability.write_ended, error)
        if not self._closed:
            self._submit(self._close_sink, ())

    @property
    def most_rows(self) -> int:
        """Rows of a write at most."""
        most: int = self.sink.settings.max_chunk_rows
        return most

    async def position(self) -> dict[str, Any] | None:
        """:meth:`Sink.position`, with its exceptions."""
        if type(self.sink).position is Sink.position:
            return None  # no call to the thread
        return await self._ask(self.sink.position)

    async def find_sessions(self, session_ids: Collection[str]) -> set[str]:
        """:meth:`Sink.find_sessions`, with its exceptions."""
        return await self._ask(self.sink.find_sessions, session_ids)

    # A delete that fails says nothing about writes, a missing right for one: the next write or ping will tell.

    @property
    def can_delete(self) -> bool:
        """Whether the sink has the methods that delete."""
        return type(self.sink).delete_sessions is not Sink.delete_sessions

    async def note_deletion(self, session_id: str, task_id: str, at: datetime) -> None:
        """:meth:`Sink.note_deletion`, with its exceptions; conflicts as in :meth:`write`."""
        if type(self.sink).note_deletion is not Sink.note_deletion:
            await self._call(self._insist, self.sink.note_deletion, session_id, task_id, at)

    async def delete_sessions(
        self, session_ids: Sequence[str], limit: int, expiry: Expiry | None = None, *, dry_run: bool = False
    ) -> Removed:
        """:meth:`Sink.delete_sessions`, with its exceptions; conflicts as in :meth:`write`."""
        delete = partial(self.sink.delete_sessions, dry_run=dry_run)
        return await self._call(self._insist, delete, session_ids, limit, expiry)

    async def delete_task(self, session_id: str, task_id: str) -> bool:
        """:meth:`Sink.delete_task`, with its exceptions; conflicts as in :meth:`write`."""
        return await self._call(self._insist, self.sink.delete_task, session_id, task_id)

    async def find_expired(self, expiry: Expiry, after: str | None, limit: int) -> tuple[list[str], str | None]:
        """:meth:`Sink.find_expired`, with its exceptions; conflicts as in :meth:`write`."""
        return await self._call(self._insist, self.sink.find_expired, expiry, after, limit)

    async def healthy(self, *, wait: float = 0.4, max_age: float = 1.0) -> bool:
        """Whether the sink is up, as far as is known within ``wait`` seconds.

        An idle sink is pinged, unless a call ended in the last ``max_age`` seconds. A busy one counts as before until
        its call takes ``STALLED_AFTER`` seconds; it is pinged only to read its clock again, and nobody waits for that.
        """
        now, idle = time.monotonic(), self._busy_since is None
        if not self._closed and ((idle and now - self._checked_at > max_age) or self._clock.is_due(now)):
            if self._ping is None or self._ping.done():
                self._ping = asyncio.create_task(self._ping_quietly())
            if idle:
                await asyncio.wait([self._ping], timeout=wait)
        if self._stalled and self._availability.up is not False:
            self._note(self._availability.stalled, SinkUnavailable(_SILENT))
        return self.up

    def came_back(self) -> bool:
        """Whether a ping has gone through after one that failed; asked once for each time."""
        return self._availability.came_back()

    @property
    def up(self) -> bool:
        """Whether the last write went through, nothing failed since, and no call hangs."""
        return bool(self._availability.up) and not self._stalled

    @property
    def state(self) -> SinkState:
        """What is known now. Never calls the sink and never waits."""
        error = self._availability.error or (_SILENT if self._stalled else "")
        return SinkState(
            self.sink.name,
            self.sink.address,
            self.description,
            self.up,
            self._since,
            error,
            self._clock.seconds,
            self._clock.problem,
        )

    @property
    def _stalled(self) -> bool:
        busy_since = self._busy_since  # the thread may be done with it between two looks
        return busy_since is not None and time.monotonic() - busy_since > STALLED_AFTER

    async def close(self, timeout: float) -> None:
        """Close the sink; after ``timeout`` seconds abandon a call that hangs. Never raises.

        Every call that still waits then ends with ``SinkUnavailable``.
        """
        if self._closed:
            return
        closing = self._submit(self._close_sink, ())
        self._closed = True
        self._calls.put(None)
        await asyncio.wait([closing], timeout=timeout)
        for future in self._waiting - {closing}:
            if not future.done():
                future.set_exception(SinkUnavailable("the sink was closed"))
                future.exception()  # marks it as retrieved, in case no caller waits for it

    async def _ping_quietly(self) -> None:
        skew = None
        with contextlib.suppress(SinkUnavailable):
            skew = await self._ask(self._ping_and_read_clock)
        match self._clock.note(skew, time.monotonic()):
            case "off":
                logger.warning("clock off", sink=self.sink.name, problem=self._clock.problem)
            case "right":
                logger.info("clock right again", sink=self.sink.name)

    async def _ask(self, function: Callable[..., T], *args: Any) -> T:
        """Call the sink for anything but a write."""
        try:
            result = await self._call(function, *args)
        except SinkUnavailable as exc:
            self._note(self._availability.ping_ended, exc)
            raise
        self._note(self._availability.ping_ended)
        return result

    async def _call(self, function: Callable[..., T], *args: Any) -> T:
        if self._closed:
            raise SinkUnavailable("the sink is closed")
        result: T = await self._submit(self._guarded, (function, args))
        return result

    def _note(self, event: Callable[[str], None], error: SinkUnavailable | None = None) -> None:
        if self._closed:
            return
        before, self._checked_at = self._availability.up, time.monotonic()
        event(str(error) if error else "")
        if self._availability.up is before:
            return
        self._since = datetime.now(UTC)
        if self._availability.up:
            logger.info("sink up", sink=self.sink.name, at=self.description)
        else:
            code = error.code if error else ""
            logger.warning("sink down", sink=self.sink.name, error=self._availability.error, code=code)

    def _submit(self, function: Callable[..., Any], args: tuple[Any, ...]) -> asyncio.Future[Any]:
        future = self._loop.create_future()
        self._waiting.add(future)
        future.add_done_callback(self._waiting.discard)
        self._calls.put((function, args, future))
        return future

    # In the sink's thread.

    def _run(self) -> None:
        while (call := self._calls.get()) is not None:
            function, args, future = call
            if future.done():  # given up by close()
                continue
            self._busy_since = time.monotonic()
            result: Any = None
            error: BaseException | None = None
            try:
                result = function(*args)
            except BaseException as exc:
                error = exc
            self._busy_since = None
            del call, function, args  # do not hold written rows until the next call
            try:
                self._loop.call_soon_threadsafe(settle, future, result, error)
            except RuntimeError:  # the loop is closed
                return

    def _insist(self, function: Callable[..., T], *args: Any) -> T:
        """The function's result, in spite of some conflicts."""
        for _ in range(CONFLICTS - 1):
            with contextlib.suppress(SinkConflict):
                return function(*args)
            if self._closed:
                break
        return function(*args)

    def _ping_and_read_clock(self) -> Skew | None:
        self.sink.ping()
        try:
            return self.sink.clock_skew()
        except SinkUnavailable:  # writes go through: a place that cannot tell the time is no outage
            return None

    def _guarded(self, function: Callable[..., T], args: tuple[Any, ...]) -> T:
        try:
            if not self._opened:
                self.sink.open()
                if self._rewind_to is not None:
                    self.sink.rewind(self._rewind_to)
                    self._rewind_to = None
                self._opened = True
                self.description = self.sink.describe()
            result = function(*args)
            self.description = self.sink.describe()  # it may have moved to another host by itself
            return result
        except SinkError as exc:
            # The driver's message goes to the log, into answers and to the dead letters.
            exc.args = (redaction.mask(str(exc)),)
            if isinstance(exc, SinkUnavailable) and not isinstance(exc, SinkConflict):
                self._close_sink()
            raise
        except Exception as exc:
            logger.exception("a bug in the sink", sink=self.sink.name)
            self._close_sink()
            raise SinkUnavailable(f"a bug in sink {self.sink.name}: {type(exc).__name__}") from exc

    def _close_sink(self) -> None:
        self._opened = False
        self.sink.close()
