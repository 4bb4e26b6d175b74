"""The journal as the rest of the package uses it: open, append, read, release, close."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any

from tornado_persist.journal.cursor import Checkpoint, Cursor
from tornado_persist.journal.damaged import DamagedDirectory
from tornado_persist.journal.record import CODES, MAX_BODY, Record, to_datetime, to_microseconds
from tornado_persist.journal.recovery import Found, Recovery
from tornado_persist.journal.scanner import Damage, Entry
from tornado_persist.journal.state import State, Stats
from tornado_persist.journal.walk import Gap, Walk
from tornado_persist.journal.writer import CLOSED, Append, Sync, Writer, reject
from tornado_persist.records.models import Kind
from tornado_persist.telemetry import log

logger = log.get(__name__)


class Journal:
    """A directory of segments, and a cursor that says how far they are released.

    :meth:`append`, :meth:`stats` and the properties are for the event loop and never wait. :meth:`open`, :meth:`read`,
    :meth:`release` and :meth:`close` block: call them in worker threads, each in one thread at a time. A directory
    belongs to one journal at a time: see :class:`tornado_persist.files.DataDir`.
    """

    def __init__(
        self,
        directory: Path,
        damaged_dir: Path,
        *,
        sync: Sync = "always",
        segment_bytes: int = 64 << 20,
        max_bytes: int = 8 << 30,
        on_sync: Callable[[float], None] = lambda seconds: None,
    ) -> None:
        """``sync``: when a batch counts as accepted. ``"always"``: when it is on the disk; ``"interval"``: when the
        system has it, on the disk within half a second; ``"off"``: when the system has it, on the disk when the system
        decides. A segment holds ``segment_bytes`` at most, all of them ``max_bytes`` (a batch larger than that is
        always refused). ``on_sync`` is called in the writer's thread after each sync, with the seconds that it took.
        """
        self._directory = directory
        self._sync = sync
        self._state = State(max_bytes)
        self._damaged = DamagedDirectory(damaged_dir)
        cursor = Cursor(directory)
        self._recovery = Recovery(directory, cursor, self._damaged, self._state)
        self._writer = Writer(
            directory, self._state, cursor, self._damaged, sync=sync, segment_bytes=segment_bytes, on_sync=on_sync
        )
        self._loop: asyncio.AbstractEventLoop | None = None
        # The place of the last read: the number it ended with, and a record that did not fit.
        self._walk: Walk | None = None
        self._read_through = 0
        self._held: list[Entry] = []

    def open(self, stop: Callable[[], bool] = lambda: False) -> Checkpoint:
        """Make the directories, repair what a crash or a bad disk has left, and be ready to append.

        Returns what was released last. :attr:`found` says what waits after it. ``stop`` is asked between two records.

        Raises:
            Interrupted: ``stop`` was true.
            StartError: the directory cannot be used.
        """
        began = time.monotonic()
        checkpoint = self._writer.checkpoint = self._recovery.run(stop)
        self._writer.delete_released()
        logger.info(
            "journal opened",
            records=self.found.records,
            bytes=self._state.bytes,
            released=checkpoint.seq,
            ms=round((time.monotonic() - began) * 1000),
        )
        return checkpoint

    def start(self) -> None:
        """Begin to write; futures are answered in the running loop."""
        self._loop = asyncio.get_running_loop()
        self._writer.start()

    def append(self, kind: Kind, at: datetime, rows: int, body: bytes) -> asyncio.Future[int]:
        """Write a batch that was accepted at ``at`` (aware). The result is its sequence number, once it is accepted.

        Futures are answered in the order of their sequence numbers, which is the order of the calls. Cancelling a
        future does not take its batch back.

        The future raises NotAccepting if nothing of the batch was written or ever will be: see :attr:`problem`.
        """
        if self._loop is None:
            raise RuntimeError("the journal was not started")
        if len(body) > MAX_BODY:
            raise ValueError("the body is too long for a record")
        future: asyncio.Future[int] = self._loop.create_future()
        append = Append(CODES[kind], to_microseconds(at), rows, body, future)
        problem = self.problem
        if not problem and append.size > self._state.max_bytes:
            problem = f"The batch of {append.size} bytes is larger than the journal may be"
        if not problem and not self._writer.append(append):
            problem = CLOSED
        if problem:
            reject([future], problem)
        return future

    def read(self, after: int, max_bytes: int) -> list[Record]:
        """The records that follow sequence number ``after``, in order, with bodies of ``max_bytes`` in all; at least
        one, if there is one.

        Continuing after the last record returned is free; any other place costs a search of one segment. Segments
        may be released and deleted meanwhile.

        Raises:
            OSError: the journal cannot be read now (too many open files, for instance); nothing is skipped.
        """
        walk, held = self._walk, self._held
        if walk is None or after != self._read_through:
            walk, held = Walk(self._state, after + 1), []
        self._walk, self._held = None, []  # after an error the next call searches
        records: list[Record] = []
        size = 0
        try:
            for item in itertools.chain(held, walk):
                if isinstance(item, Entry) and item.seq > after:
                    size += len(item.body)
                    if records and size > max_bytes:
                        self._held = [item]
                        break
                    records.append(item.record())
                elif isinstance(item, Damage):
                    if not self._damaged.keep(self._directory / item.segment, item):
                        self._state.keep_file(item.segment)
                elif isinstance(item, Gap) and item.damaged:
                    self._state.add_gap(item.first, item.last)
        finally:
            # A deleted file that is still open takes up space, on a disk that may be full.
            walk.close()
        self._walk, self._read_through = walk, records[-1].seq if records else after
        return records

    def release(self, seq: int, state: dict[str, Any]) -> bool:
        """All records up to ``seq`` are done: free their space. :meth:`open` returns ``state`` with it.

        A lower ``seq`` than before changes only ``state``. False if the cursor could not be
        written, which the log says: nothing is freed then, and the writer tries again about every second.

        Raises:
            ValueError: there is no such record yet.
        """
        if seq > self._state.last:
            raise ValueError(f"record {seq} was never accepted; the last one is {self._state.last}")
        return self._writer.release(Checkpoint(seq, state))

    def close(self, timeout: float) -> bool:
        """Write what was appended before, make all of it durable, and stop.

        False if that takes more than ``timeout`` seconds. Batches that have no answer by then never get one: it is
        not known whether they will be replayed.
        """
        return self._writer.stop(timeout)

    @property
    def found(self) -> Found:
        """What waited after the cursor when the journal was opened: records, and rows by kind."""
        return self._recovery.found

    @property
    def last(self) -> int:
        """The last sequence number assigned, in this run or an earlier one; 0 when there is none."""
        return self._state.last

    @property
    def latest(self) -> datetime:
        """The last accept time (UTC) that the directory knows of, or 1970."""
        return to_datetime(self._state.latest)

    @property
    def released(self) -> int:
        """All records up to this one are released."""
        return self._state.released

    @property
    def full(self) -> bool:
        """Whether batches are refused because the journal has reached ``max_bytes``."""
        return bool(self._state.problem)

    @property
    def problem(self) -> str:
        """Why nothing can be accepted now, in a sentence; empty while all is well."""
        return self._writer.problem

    def stats(self) -> Stats:
        """The journal in figures."""
        return self._state.stats(self._sync)
