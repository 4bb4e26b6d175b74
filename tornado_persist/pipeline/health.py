"""The health of the service, in one place.

The health endpoints, ``/stats``, the dashboard, the metrics, systemd's status line, the log and the commands all read
the same :class:`HealthSnapshot`.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections import deque
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from tornado_persist.journal import Journal
from tornado_persist.pipeline.backlog import Backlog
from tornado_persist.pipeline.buffer import Buffer
from tornado_persist.pipeline.deadletters import OpenRow, OpenRows
from tornado_persist.pipeline.flusher import Flusher
from tornado_persist.pipeline.ingest import Ingest
from tornado_persist.sinks.runner import SinkState
from tornado_persist.telemetry import log

logger = log.get(__name__)

#: Seconds that a snapshot waits for the disk.
DISK_PATIENCE = 0.4
#: Seconds over which the journal's growth is measured: twice the usual ``buffer.flush_interval``, because a journal
#: that is emptied at every flush does not grow.
GROWTH_WINDOW = 60.0
#: Seconds of samples needed for a rate: after a start, a flush comes first.
GROWTH_LEAST = 30.0
#: Seconds: a journal that takes longer than a week to fill up at the present rate does not fill up.
GROWTH_HORIZON = 7 * 86_400.0


@dataclass(frozen=True, slots=True)
class Instance:
    """Identifies this service."""

    name: str  #: as configured, or as kept in the data directory
    url: str  #: where it answers
    host: str  #: the machine's name
    pid: int
    data_dir: Path
    started: datetime  #: UTC
    started_clock: float = field(default_factory=time.monotonic)  #: the same by the clock that is never set


@dataclass(frozen=True, slots=True)
class Reloads:
    """How reloads of the configuration went, since the process started."""

    begun: int = 0
    done: int = 0
    #: Of the last one that is done: keys that it applied, keys that need a restart, and what failed, in sentences. If
    #: the configuration failed, no key was applied.
    applied: tuple[str, ...] = ()
    needs_restart: tuple[str, ...] = ()
    failed: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Waiting:
    """Rows that are accepted and not in the sink yet."""

    sessions: int  #: rows
    tasks: int  #: rows
    in_memory: int  #: rows; the others wait in the journal alone
    max_rows: int  #: rows that may be in memory
    memory_bytes: int  #: of the records whose rows are in memory
    memory_max_bytes: int
    capacity: int  #: rows that start a flush
    journal_bytes: int
    journal_max_bytes: int
    journal_records: int  #: batches that are not released
    oldest_seconds: float  #: age of the oldest of them; 0 if there is none
    journal_full_in: float | None  #: seconds until the journal is full at the present rate; None if it does not grow
    next_flush: datetime  #: when the timer flushes (UTC)
    flush_interval: float  #: seconds

    @property
    def rows(self) -> int:
        """Of both kinds."""
        return self.sessions + self.tasks


@dataclass(frozen=True, slots=True)
class HealthSnapshot:
    """The service at one moment, as far as is known without asking the sink."""

    at: datetime  #: UTC
    instance: Instance
    caution: str  #: what an operator should know of although all is well; empty: nothing
    problem: str  #: why no batch is accepted, in a sentence; empty while batches are accepted
    sink: SinkState
    retry_in: float  #: seconds until a failed flush is tried again; 0 if none waits
    waiting: Waiting
    sync: str  #: when the journal makes batches durable: ``always``, ``interval``, ``off``
    disk_free: int | None  #: bytes free on the disk of ``data_dir``; None if that is not known
    open_rows: int | None  #: rejected rows that were neither retried nor dropped; None if that is not known
    first_open: tuple[OpenRow, ...]  #: the oldest of them, a few
    reloads: Reloads

    @property
    def accepting(self) -> bool:
        """Whether a batch that comes now is accepted."""
        return not self.problem

    @property
    def healthy(self) -> bool:
        """Whether batches are accepted and the sink is up."""
        return self.accepting and self.sink.up

    @property
    def reason(self) -> str:
        """Why it is not healthy, in a sentence or two; empty while it is."""
        down = "" if self.sink.up else f"The sink {self.sink.name} is down: {self.sink.error}"
        return ". ".join(filter(None, (self.problem, down)))

    @property
    def uptime(self) -> float:
        """Seconds."""
        return time.monotonic() - self.instance.started_clock


class Growth:
    """How fast the journal grows. Flushes empty it again and again, so its lowest sizes are compared."""

    def __init__(self) -> None:
        self._samples: deque[tuple[float, int]] = deque()

    def add(self, now: float, size: int) -> None:
        """``size`` bytes at ``now``, in seconds that never go back."""
        self._samples.append((now, size))
        while self._samples[0][0] < now - GROWTH_WINDOW:
            self._samples.popleft()

    def full_in(self, room: int) -> float | None:
        """Seconds until it has grown by ``room`` bytes; None if it does not grow."""
        if not self._samples or self._samples[-1][0] - self._samples[0][0] < GROWTH_LEAST:
            return None
        middle = (self._samples[0][0] + self._samples[-1][0]) / 2
        early = min((size, at) for at, size in self._samples if at < middle)
        late = min((size, at) for at, size in self._samples if at >= middle)
        rate = (late[0] - early[0]) / (late[1] - early[1])
        if rate <= 0 or room / rate > GROWTH_HORIZON:
            return None
        return max(0.0, room / rate)


class Health:
    """Asks the parts. Nothing here waits for longer than half a second, and :meth:`snapshot` not at all."""

    def __init__(
        self,
        ingest: Ingest,
        backlog: Backlog,
        buffer: Buffer,
        flusher: Flusher,
        journal: Journal,
        *,
        open_rows: OpenRows,
        instance: Instance,
    ) -> None:
        self._ingest = ingest
        self._backlog = backlog
        self._buffer = buffer
        self._flusher = flusher
        self._journal = journal
        self._open_rows = open_rows
        self.instance = instance
        #: What an operator should know of although all is well; empty: nothing.
        self.caution = ""
        #: Replaced when a reload begins and when it is done.
        self.reloads = Reloads()
        self._growth = Growth()
        self._disk_free: int | None = None
        self._open: int | None = None
        self._first_open: tuple[OpenRow, ...] = ()
        self._looked_at = float("-inf")
        self._look: asyncio.Task[None] | None = None

    def snapshot(self) -> HealthSnapshot:
        """The service now, without I/O: the disk and the sink are as they were last seen."""
        now, journal = datetime.now(UTC), self._journal.stats()
        return HealthSnapshot(
            at=now,
            instance=self.instance,
            caution=self.caution,
            problem=self._ingest.problem,
            sink=self._flusher.runner.state,
            retry_in=self._flusher.retry_in,
            waiting=Waiting(
                sessions=self._backlog.pending("session"),
                tasks=self._backlog.pending("task"),
                in_memory=len(self._buffer),
                max_rows=self._backlog.max_rows,
                memory_bytes=self._buffer.bytes,
                memory_max_bytes=self._backlog.max_bytes,
                capacity=self._flusher.capacity,
                journal_bytes=journal.bytes,
                journal_max_bytes=journal.max_bytes,
                journal_records=journal.records,
                oldest_seconds=journal.age,
                journal_full_in=0.0 if self._journal.full else self._growth.full_in(journal.max_bytes - journal.bytes),
                next_flush=self._flusher.next_flush,
                flush_interval=self._flusher.interval,
            ),
            sync=journal.sync,
            disk_free=self._disk_free,
            open_rows=self._open,
            first_open=self._first_open,
            reloads=self.reloads,
        )

    async def look(self, *, max_age: float = 1.0) -> HealthSnapshot:
        """The service now, after a look at the disk, unless the last one is not older than ``max_age`` seconds.

        A slow look goes on in the background.
        """
        now = time.monotonic()
        if (self._look is None or self._look.done()) and now - self._looked_at >= max_age:
            self._looked_at = now
            self._growth.add(now, self._journal.stats().bytes)
            self._look = asyncio.create_task(self._look_at_disk())
        if self._look is not None and not self._look.done():
            await asyncio.wait([self._look], timeout=DISK_PATIENCE)
        return self.snapshot()

    async def ping(self, **how: float) -> HealthSnapshot:
        """As :meth:`look`, and after a ping of an idle sink; the ping goes on in the background if it takes longer.

        If the sink can be reached again, a flush that failed is tried at once. ``how``: for
        :meth:`~tornado_persist.sinks.runner.SinkRunner.healthy`.
        """
        await asyncio.gather(self._flusher.runner.healthy(**how), self.look())
        if self._flusher.runner.came_back():
            self._flusher.try_now()
        return self.snapshot()

    async def _look_at_disk(self) -> None:
        self._disk_free = await asyncio.to_thread(_free, self.instance.data_dir)
        try:
            while await asyncio.to_thread(self._open_rows.read_on):
                pass  # in steps, so that a shutdown need not wait for the end of a large file
        except OSError as exc:
            if self._open is not None:
                logger.warning("rejected rows cannot be counted", file=exc.filename, error=exc.strerror)
            self._open, self._first_open = None, ()
        except Exception:
            logger.exception("a bug in the look at the disk")
            self._open, self._first_open = None, ()
        else:
            self._open, self._first_open = len(self._open_rows), self._open_rows.first


def _free(directory: Path) -> int | None:
    try:
        status = os.statvfs(directory)
    except OSError:
        return None
    return status.f_bavail * status.f_frsize
