"""The parts between the HTTP interface and a sink in memory, put together on a real journal."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar

from tests import rows
from tornado_persist.journal import Journal
from tornado_persist.pipeline.backlog import Backlog
from tornado_persist.pipeline.buffer import Buffer
from tornado_persist.pipeline.checkpoint import Checkpointer
from tornado_persist.pipeline.deadletters import DeadLetters, OpenRows
from tornado_persist.pipeline.flusher import Flusher
from tornado_persist.pipeline.health import Health, Instance
from tornado_persist.pipeline.ingest import FindSessions, Ingest
from tornado_persist.pipeline.reads import Reads
from tornado_persist.pipeline.removal import Remover
from tornado_persist.pipeline.retention import Retention
from tornado_persist.records.models import KINDS, Batch, Kind
from tornado_persist.records.parser import Parser
from tornado_persist.sinks.base import SinkSettings
from tornado_persist.sinks.runner import SinkRunner
from tornado_persist.telemetry.metrics import Metrics, Totals
from tornado_persist.testing import FlakySink
from tornado_persist.web.app import Api


class Rig:
    """What :class:`tornado_persist.service.Service` puts together, without its HTTP side and its signals."""

    def __init__(self, data_dir: Path, sink: FlakySink) -> None:
        self.data_dir = data_dir
        self.sink = sink

    async def start(
        self,
        *,
        interval: float = 3600,
        capacity: int = 1000,
        max_rows: int = 100_000,
        buffer_bytes: int = 1 << 28,
        max_batch: int = 1000,
        find_sessions: FindSessions | None = None,
        **journal: Any,
    ) -> None:
        self.metrics = Metrics(datetime.now(UTC))
        journal = {"on_sync": self.metrics.fsync_seconds.observe, **journal}
        self.journal = Journal(self.data_dir / "journal", self.data_dir / "damaged", **journal)
        checkpoint = await asyncio.to_thread(self.journal.open)
        self.metrics.resume(Totals.of(checkpoint.state.get("totals", {})))
        self.buffer = Buffer()
        self.backlog = Backlog(self.journal, self.buffer, self.metrics, max_rows=max_rows, max_bytes=buffer_bytes)
        await self.backlog.recover(checkpoint.seq)
        self.journal.start()
        self.runner = SinkRunner(self.sink, checkpoint.state.get("position"))
        dead_letters = DeadLetters(self.data_dir / "rejected.jsonl")
        checkpointer = Checkpointer(self.journal, dead_letters, checkpoint, self.metrics.totals.set_aside)
        self.flusher = Flusher(
            self.buffer,
            self.backlog,
            checkpointer,
            self.runner,
            self.metrics,
            interval=interval,
            capacity=capacity,
        )
        self.reads = Reads(self.flusher, self.backlog)
        self.ingest = Ingest(
            Parser(max_batch=max_batch),
            self.journal,
            self.backlog,
            self.buffer,
            set_aside=checkpointer.set_aside,
            added=self.flusher.poke,
            find_sessions=find_sessions,
        )
        self.remover = Remover(
            self.ingest,
            self.backlog,
            self.flusher,
            checkpointer,
            self.metrics,
            rejected=self.data_dir / "rejected.jsonl",
        )
        self.retention = Retention(self.remover, self.metrics, self.data_dir / "retention.json", timeout=5)
        self.health = Health(
            self.ingest,
            self.backlog,
            self.buffer,
            self.flusher,
            self.journal,
            open_rows=OpenRows(self.data_dir / "rejected.jsonl"),
            instance=Instance("rig", "", socket.gethostname(), os.getpid(), self.data_dir, self.metrics.started),
        )

    def api(self, *, max_body_bytes: int, flush_timeout: float = 10, **settings: Any) -> Api:
        """The HTTP interface to the parts."""
        return Api(
            *(self.ingest, self.flusher, self.health, self.remover, self.retention, self.metrics, self.reads),
            max_body_bytes=max_body_bytes,
            flush_timeout=flush_timeout,
            **settings,
        )

    async def switch(self, sink: FlakySink, timeout: float = 5) -> None:
        """Write to another sink, as a reload does."""
        await self.flusher.flush(timeout)
        old, self.runner = self.runner, SinkRunner(sink)
        self.flusher.write_to(self.runner)
        await old.close(timeout)

    async def stop(self) -> None:
        """End all parts, without a flush."""
        self.sink.release()
        await self.flusher.drain(0)
        await self.reads.close()
        await self.runner.close(5)
        await self.flusher.finish(5)
        await asyncio.to_thread(self.journal.close, 5)

    async def add(self, *keys: str, kind: Kind = "task", **fields: Any) -> None:
        """Accept one batch with these keys, all with the same ``fields``."""
        await self.ingest.accept(kind, rows.body(kind, *(rows.row(kind, key, **fields) for key in keys)))

    def stored(self, kind: Kind = "task") -> list[str]:
        """The keys in the sink, in the order in which they came there."""
        return [key[-1] for key in self.sink.stored[kind]]

    def pending(self) -> int:
        return sum(map(self.backlog.pending, KINDS))

    def assert_conserved(self) -> None:
        """Promise 4."""
        totals = self.metrics.totals
        for kind in KINDS:
            settled = totals.written[kind] + totals.merged[kind] + totals.rejected[kind]
            assert totals.accepted[kind] == settled + self.backlog.pending(kind), (kind, totals)


class BreakingSink(FlakySink):
    """Its ``number``-th write fails."""

    def __init__(self, number: int, settings: SinkSettings | None = None) -> None:
        super().__init__(settings)
        self.number = number

    def write(self, batch: Batch) -> None:
        if self.calls.count("write") == self.number - 1:
            self.fail_next()
        super().write(batch)


@asynccontextmanager
async def rig(data_dir: Path, sink: FlakySink | None = None, **options: Any) -> AsyncIterator[Rig]:
    """A running :class:`Rig`; at the end of a good test its rows must add up."""
    it = Rig(data_dir, sink or FlakySink())
    await it.start(**options)
    try:
        yield it
        it.assert_conserved()
    finally:
        await it.stop()


def answers(metrics: Metrics) -> dict[tuple[str, str, int], int]:
    """Answers so far, by handler, method and status."""
    return {
        (sample.labels["handler"], sample.labels["method"], int(sample.labels["status"])): int(sample.value)
        for metric in metrics.requests.collect()
        for sample in metric.samples
        if sample.value  # some series exist before their first answer
    }


T = TypeVar("T")


def run(coroutine: Coroutine[Any, Any, T]) -> T:
    """``asyncio.run``, but the thread's own event loop, if it has one, stays: without it nobody would close that."""
    loop = asyncio.new_event_loop()
    try:
        return loop.run_until_complete(coroutine)
    finally:
        loop.run_until_complete(loop.shutdown_asyncgens())
        loop.run_until_complete(loop.shutdown_default_executor())
        loop.close()


async def wait_until(condition: Callable[[], bool]) -> None:
    """Wait until ``condition()`` is true, 30 seconds at most."""
    async with asyncio.timeout(30):
        while not condition():
            await asyncio.sleep(0.001)
