"""How the service is, for everybody who asks: the health endpoints, the figures, the dashboard, metrics and systemd."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime

from tornado_persist.journal import Journal
from tornado_persist.pipeline.backlog import Backlog
from tornado_persist.pipeline.buffer import Buffer
from tornado_persist.pipeline.flusher import Flusher
from tornado_persist.pipeline.ingest import Ingest
from tornado_persist.sinks.runner import SinkState


@dataclass(frozen=True, slots=True)
class Waiting:
    """What is accepted and not in the sink yet."""

    sessions: int  #: rows
    tasks: int  #: rows
    in_memory: int  #: rows; the others wait in the journal alone
    max_rows: int  #: rows that may be in memory
    capacity: int  #: rows that start a flush
    journal_bytes: int
    journal_max_bytes: int
    journal_records: int  #: batches that are not released
    oldest_seconds: float  #: age of the oldest of them; 0 if there is none

    @property
    def rows(self) -> int:
        """Of both kinds."""
        return self.sessions + self.tasks


@dataclass(frozen=True, slots=True)
class HealthSnapshot:
    """The service at one moment, as far as is known without asking the sink."""

    at: datetime  #: UTC
    problem: str  #: why no batch is accepted, in a sentence; empty while batches are accepted
    sink: SinkState
    next_flush: datetime  #: when the timer flushes (UTC)
    retry_in: float  #: seconds until a failed flush is tried again; 0 if none waits
    waiting: Waiting
    sync: str  #: when the journal makes batches durable: ``always``, ``interval``, ``off``

    @property
    def accepting(self) -> bool:
        """Whether a batch that comes now is accepted."""
        return not self.problem

    @property
    def healthy(self) -> bool:
        """Whether batches are accepted and the sink is up."""
        return self.accepting and self.sink.up


class Health:
    """Asks the parts. Nothing here waits, except :meth:`ping`, which waits half a second at most."""

    def __init__(self, ingest: Ingest, backlog: Backlog, buffer: Buffer, flusher: Flusher, journal: Journal) -> None:
        self._ingest = ingest
        self._backlog = backlog
        self._buffer = buffer
        self._flusher = flusher
        self._journal = journal

    def snapshot(self) -> HealthSnapshot:
        """The service now."""
        now, journal = datetime.now(UTC), self._journal.stats()
        return HealthSnapshot(
            at=now,
            problem=self._ingest.problem,
            sink=self._flusher.runner.state,
            next_flush=self._flusher.next_flush,
            retry_in=self._flusher.retry_in,
            waiting=Waiting(
                sessions=self._backlog.pending("session"),
                tasks=self._backlog.pending("task"),
                in_memory=len(self._buffer),
                max_rows=self._backlog.max_rows,
                capacity=self._flusher.capacity,
                journal_bytes=journal.bytes,
                journal_max_bytes=journal.max_bytes,
                journal_records=journal.records,
                oldest_seconds=journal.age(now),
            ),
            sync=journal.sync,
        )

    async def ping(self) -> HealthSnapshot:
        """The service now, after a ping of an idle sink; the ping goes on in the background if it takes longer.

        If the sink is up again, a flush that failed a while ago is tried at once.
        """
        if await self._flusher.runner.healthy():
            self._flusher.sink_is_up()
        return self.snapshot()
