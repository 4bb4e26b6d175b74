"""Rows that are accepted and not yet in the sink: in memory up to a limit, the rest only in the journal.

The journal holds every accepted batch until it is released. The buffer holds those up to some sequence number, merged.
Past ``max_rows`` rows in the buffer, or ``max_bytes`` bytes of their records, later batches are only counted here, and
read back in order once there is room. A new batch goes into the buffer only if no earlier one waits in the journal
alone, so the buffer keeps the journal's order.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime

from tornado_persist.errors import BatchRefused
from tornado_persist.journal import Journal, Record
from tornado_persist.pipeline.buffer import Buffer
from tornado_persist.records.models import Kind, Row
from tornado_persist.records.parser import HUGE, Parser
from tornado_persist.records.times import stamp
from tornado_persist.telemetry import log
from tornado_persist.telemetry.metrics import Metrics

logger = log.get(__name__)

#: Bytes read from the journal at a time: a compromise between speed and a responsive event loop.
READ_BYTES = 1 << 20
#: Request ids kept while their batches wait. An outage may hold back more than an operator would read.
REQUEST_IDS_KEPT = 1000
#: Request ids, and clients, named in one line of the log.
REQUEST_IDS_NAMED = 20
#: Clients known while their rows wait.
CLIENTS_KEPT = 1000


class Watch:
    """Of which of some sessions rows were accepted since it was made."""

    def __init__(self, session_ids: Iterable[str], task_id: str | None = None) -> None:
        """``task_id``: only rows of this task count."""
        self._session_ids = frozenset(session_ids)
        self._task_id = task_id
        self.seen: set[str] = set()

    def look(self, kind: Kind, rows: Iterable[Row]) -> None:
        """Rows that were accepted just now."""
        for row in rows:
            if row["session_id"] in self._session_ids and (
                self._task_id is None or (kind == "task" and row["task_id"] == self._task_id)
            ):
                self.seen.add(row["session_id"])


class Backlog:
    """Fills the buffer, from requests while there is room, else from the journal."""

    def __init__(self, journal: Journal, buffer: Buffer, metrics: Metrics, *, max_rows: int, max_bytes: int) -> None:
        """``max_rows``: rows in memory at most; ``max_bytes``: bytes of their records at most."""
        self._journal = journal
        self._buffer = buffer
        self._metrics = metrics
        self.max_rows = max_rows
        self.max_bytes = max_bytes
        # Accepted rows were valid then; limits that became stricter since must not lose them.
        self._parser = Parser(replay=True)
        self._refilling = asyncio.Lock()
        # Read and not merged, for lack of room; only `refill` uses it.
        self._read: list[Record] = []
        # The requests whose batches wait, with the sequence numbers of their records, in that order.
        self._pending_request_ids: deque[tuple[int, str]] = deque(maxlen=REQUEST_IDS_KEPT)
        self._watches: list[Watch] = []
        # Who has sent what waits, and the first and the last record of each.
        self._pending_clients: dict[tuple[str, str], tuple[int, int]] = {}
        #: The last record that was accepted, and the last whose rows are in the buffer, or past it.
        self.accepted_through = 0
        self.merged_through = 0
        #: The last record that was read back; its rows have waited long enough.
        self.read_back_through = 0
        #: Rows accepted up to ``merged_through``.
        self.merged_rows: dict[Kind, int] = {}

    def left_out(self) -> bool:
        """Whether accepted batches wait in the journal alone."""
        return self.merged_through < self.accepted_through

    def needs_room(self, flushed_through: int) -> bool:
        """Whether the journal accepts no more, and holds batches past ``flushed_through``."""
        return bool(self._journal.problem) and self.accepted_through > flushed_through

    def pending(self, kind: Kind) -> int:
        """Accepted rows that are neither in the sink nor rejected: those in memory, and those in the journal alone."""
        outside = self._metrics.totals.accepted[kind] - self.merged_rows[kind]
        return outside + self._buffer.count(kind)

    def admit(self, seq: int, kind: Kind, rows: list[Row], at: str, size: int) -> None:
        """Count a batch that the journal has made durable, and merge it if there is room; ``size``: of its record."""
        in_turn = not self.left_out()
        self.accepted_through = seq
        if request_id := log.request_id.get():
            self._pending_request_ids.append((seq, request_id))
        if client := log.client.get():
            first, _ = self._pending_clients.get(client, (seq, seq))
            if len(self._pending_clients) < CLIENTS_KEPT or first < seq:
                self._pending_clients[client] = first, seq
        self._metrics.totals.accepted[kind] += len(rows)
        for watch in self._watches:
            watch.look(kind, rows)
        if in_turn and self._room(len(rows), size):
            self._merge(seq, kind, rows, at, size)

    @contextmanager
    def watching(self, session_ids: Iterable[str], task_id: str | None = None) -> Iterator[Watch]:
        """Watch these sessions, or one task, from now on: every record past ``accepted_through``."""
        watch = Watch(session_ids, task_id)
        self._watches.append(watch)
        try:
            yield watch
        finally:
            self._watches.remove(watch)

    def pop_request_ids(self, through: int) -> list[str]:
        """Forget the requests of records up to ``through``; returns the first :data:`REQUEST_IDS_NAMED` of them."""
        named: list[str] = []
        ids = self._pending_request_ids
        while ids and ids[0][0] <= through:
            _, request_id = ids.popleft()
            if len(named) < REQUEST_IDS_NAMED:
                named.append(request_id)
        return named

    def pop_clients(self, through: int) -> list[str]:
        """Who sent records up to ``through``: addresses, those with a token as ``name@address``; at most
        :data:`REQUEST_IDS_NAMED`, and one more for all others.
        """
        done = [client for client, (first, _) in self._pending_clients.items() if first <= through]
        for client in done:
            last = self._pending_clients[client][1]
            if last <= through:
                del self._pending_clients[client]
            else:
                self._pending_clients[client] = through + 1, last
        named = [f"{token}@{address}" if token else address for address, token in done[:REQUEST_IDS_NAMED]]
        return [*named, f"{len(done) - len(named)} more"] if len(done) > len(named) else named

    async def refill(self, stop: Callable[[], bool] = lambda: False) -> None:
        """Read batches back from the journal, in order, while there is room, and until ``stop`` says so between reads.

        Raises OSError when the journal cannot be read.
        """
        async with self._refilling:
            while self.left_out() and self._room(1, 1) and not stop():
                accepted = self.accepted_through  # it may grow during the read
                records = [record for record in self._read if record.seq > self.merged_through]
                self._read = []
                if not records:
                    records = await asyncio.to_thread(self._journal.read, self.merged_through, READ_BYTES)
                if not records:  # the journal has reported the rest as damaged
                    self.merged_through = accepted
                for at, record in enumerate(records):
                    if record.seq > self.accepted_through:
                        break
                    if not self._room(record.rows, record.size):
                        self._read = records[at:]
                        break
                    await self._read_back(record)
                else:
                    await asyncio.sleep(0)  # let requests run
                    continue
                break
            if not self.left_out():
                self._forget_lost()

    async def recover(self, released: int, stop: Callable[[], bool] = lambda: False) -> None:
        """Count what the journal holds past the record ``released``, and fill the buffer from it; see :meth:`refill`.

        The totals are those at ``released``. Raises OSError when the journal cannot be read.
        """
        self.merged_rows = dict(self._metrics.totals.accepted)
        for kind, rows in self._journal.found.rows.items():
            self._metrics.recover(kind, rows)
        self.merged_through = released
        self.accepted_through = self._journal.last
        await self.refill(stop)
        self.read_back_through = 0

    async def _read_back(self, record: Record) -> None:
        rows: list[Row] = []
        at = ""
        try:
            if len(record.body) >= HUGE:
                parsed = await asyncio.to_thread(self._parser.parse, record.kind, record.body)
            else:
                parsed = self._parser.parse(record.kind, record.body)
            rows, at = parsed.rows, parsed.at
        except BatchRefused as exc:
            # Only a journal of another version can hold such a record.
            logger.error("a journal record cannot be read", seq=record.seq, rows=record.rows, error=str(exc))
        self._merge(record.seq, record.kind, rows, at or stamp(record.at), record.size)
        self.read_back_through = record.seq

    def _merge(self, seq: int, kind: Kind, rows: list[Row], at: str, size: int) -> None:
        self._metrics.totals.merged[kind] += self._buffer.add(kind, rows, at, size)
        self.merged_rows[kind] += len(rows)
        self.merged_through = seq

    def _forget_lost(self) -> None:
        """Stop counting rows whose records were damaged on the disk after they were accepted."""
        for kind, accepted in self._metrics.totals.accepted.items():
            lost = accepted - self.merged_rows[kind]
            if lost:
                logger.error("accepted rows were lost to damage of the journal", kind=kind, rows=lost)
                self._metrics.lose(kind, lost, datetime.now(UTC))

    def _room(self, rows: int, size: int) -> bool:
        """Whether so many rows and bytes fit; a batch that is larger than the whole limit is merged alone."""
        waiting = len(self._buffer)
        return not waiting or (waiting + rows <= self.max_rows and self._buffer.bytes + size <= self.max_bytes)
