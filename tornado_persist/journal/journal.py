"""The durable journal: every accepted batch, in the order of acceptance, until its rows are elsewhere for good."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any

from tornado_persist.files import reason
from tornado_persist.journal.cursor import Checkpoint, Cursor
from tornado_persist.journal.damaged import DamagedDirectory
from tornado_persist.journal.reader import Reader
from tornado_persist.journal.record import CODES, MAX_BODY, Record, microseconds
from tornado_persist.journal.recovery import Found, Recovery
from tornado_persist.journal.scanner import Damage
from tornado_persist.journal.segment import Segment
from tornado_persist.journal.state import Ledger, Stats
from tornado_persist.journal.writer import CLOSED, TRY_EVERY, Append, Sync, Writer, reject
from tornado_persist.records.models import Kind
from tornado_persist.telemetry import log

logger = log.get(__name__)


class Journal:
    """A directory of segments, and a cursor that says how far they are released.

    :meth:`append`, :meth:`stats` and the properties belong to the event loop and never wait. :meth:`open`,
    :meth:`read`, :meth:`release` and :meth:`close` block; call them in threads, each in one at a time. One journal at a
    time has a directory: see :class:`tornado_persist.files.DataDir`.
    """

    def __init__(
        self,
        directory: Path,
        damaged_dir: Path,
        *,
        sync: Sync = "always",
        segment_bytes: int = 64 << 20,
        max_bytes: int = 8 << 30,
        on_damage: Callable[[Damage], None] | None = None,
        on_sync: Callable[[float], None] = lambda seconds: None,
    ) -> None:
        """``sync``: when a batch counts as accepted; ``"always"``: when it is on the disk, ``"interval"``: when the
        system has it, on the disk within half a second, ``"off"``: when the system has it, on the disk when the system
        likes. A segment holds ``segment_bytes`` at most, all of them ``max_bytes`` (a batch larger than that is always
        refused). ``on_damage`` is called once for each damage that was not known, in the thread that comes upon it;
        ``on_sync`` in the writer's thread after each sync, with the seconds that it took.
        """
        self._sync = sync
        self._ledger = Ledger(max_bytes)
        self._cursor = Cursor(directory)
        self._damaged = DamagedDirectory(damaged_dir, on_damage)
        self._recovery = Recovery(directory, self._cursor, self._damaged, self._ledger)
        self._reader = Reader(self._ledger, self._damaged)
        self._writer = Writer(
            directory, self._ledger, sync=sync, segment_bytes=segment_bytes, tend=self._tend, on_sync=on_sync
        )
        self._loop: asyncio.AbstractEventLoop | None = None
        self._closed = False
        self._releasing = threading.Lock()
        # A release that could not be written, to be tried again at this time.
        self._unwritten: Checkpoint | None = None
        self._try_at = 0.0

    # From the outside in.

    def open(self) -> Checkpoint:
        """Make the directories, put in order what a crash or a bad disk has left, and be ready to append.

        Returns what was released last. :attr:`found` says what waits after it.

        Raises:
            StartError: one line about what cannot be worked with.
        """
        began = time.monotonic()
        checkpoint = self._recovery.run()
        self._drop_released()
        logger.info(
            "journal opened",
            records=self.found.records,
            bytes=self._ledger.bytes,
            released=checkpoint.seq,
            ms=round((time.monotonic() - began) * 1000),
        )
        return checkpoint

    def start(self) -> None:
        """Begin to write; futures are answered in the running loop."""
        self._loop = asyncio.get_running_loop()
        self._writer.start()

    def append(self, kind: Kind, at: datetime, rows: int, body: bytes) -> asyncio.Future[int]:
        """Write a batch that was accepted at ``at`` (aware). Its sequence number comes when it counts as accepted.

        Futures are answered in the order of their sequence numbers, which is the order of the calls. A future that is
        cancelled does not take its batch back.

        The future raises NotAccepting when nothing of the batch was taken, nor ever will be: see :attr:`problem`.
        """
        if self._loop is None:
            raise RuntimeError("the journal was not started")
        if len(body) > MAX_BODY:
            raise ValueError("the body is too long for a record")
        future: asyncio.Future[int] = self._loop.create_future()
        append = Append(CODES[kind], microseconds(at), rows, body, future)
        problem = CLOSED if self._closed else self.problem
        if not problem and append.size > self._ledger.max_bytes:
            problem = f"The batch of {append.size} bytes is larger than the journal may be"
        if problem:
            reject([future], problem)
        else:
            self._writer.put(append)
        return future

    def read(self, after: int, max_bytes: int) -> list[Record]:
        """The records that follow sequence number ``after``, in order, bodies of ``max_bytes`` in all; one at least.

        Empty when no accepted record follows. Going on from the last record returned costs nothing; from anywhere else
        one segment is searched.

        Raises:
            OSError: the journal cannot be read now (too many open files, for instance); nothing is skipped.
        """
        return self._reader.read(after, max_bytes)

    def release(self, seq: int, state: dict[str, Any]) -> bool:
        """All records up to ``seq`` are elsewhere for good; ``state`` is what :meth:`open` shall give back with it.

        A lower ``seq`` than before takes nothing back: only ``state`` is new then. False when the cursor could not be
        written, which the log says; nothing is given up then, and it is tried again about every second.

        Raises:
            ValueError: there is no such record yet.
        """
        if seq > self._ledger.last:
            raise ValueError(f"record {seq} was never accepted; the last one is {self._ledger.last}")
        with self._releasing:
            return self._release(Checkpoint(seq, state))

    def close(self, timeout: float) -> bool:
        """Write what was appended before, make all of it durable, and stop.

        False if that takes more than ``timeout`` seconds. Answers that are still out by then never come, for nobody
        knows whether those batches will be back.
        """
        self._closed = True
        done = self._writer.stop(timeout)
        self._reader.close()
        return done

    # How it is.

    @property
    def found(self) -> Found:
        """What waited after the cursor when the journal was opened: records, and rows by kind."""
        return self._recovery.found

    @property
    def last(self) -> int:
        """The last sequence number that was given, in this life or an earlier one; 0 when there is none."""
        return self._ledger.last

    @property
    def released(self) -> int:
        """All records up to this one are released."""
        return self._ledger.released

    @property
    def problem(self) -> str:
        """Why nothing can be accepted now, in a sentence; empty while all is well."""
        return self._writer.fault or self._ledger.problem

    def stats(self) -> Stats:
        """The journal in figures."""
        return self._ledger.stats(self._sync)

    # Giving up space.

    def _release(self, checkpoint: Checkpoint) -> bool:
        """With the lock on releasing."""
        seq = self._ledger.after_holes(max(checkpoint.seq, self._ledger.released))
        try:
            self._cursor.write(Checkpoint(seq, checkpoint.state))
        except OSError as exc:
            if self._unwritten is None:
                logger.error("journal cursor cannot be written", error=reason(exc))
            self._unwritten = checkpoint
            self._try_at = time.monotonic() + TRY_EVERY
            return False
        if self._unwritten is not None:
            self._unwritten = None
            logger.info("journal cursor can be written again")
        self._ledger.release(seq)
        self._drop_released()
        return True

    def _drop_released(self) -> None:
        """Delete the segments that are wholly released."""
        for segment in self._ledger.take_released():
            self._remove(segment)
        if self._ledger.has_room_again():
            logger.info("journal has room again", bytes=self._ledger.bytes)

    def _remove(self, segment: Segment) -> None:
        try:
            if segment.keep:
                segment.close()
                self._damaged.move(segment.path)
            else:
                segment.remove()
        except OSError as exc:
            # The cursor says that it is not needed, so the next start deletes it.
            logger.warning("journal segment cannot be deleted", segment=segment.path.name, error=reason(exc))

    def _tend(self) -> None:
        """In the writer's thread, about every second: what nobody else may come back to."""
        again = self._unwritten is not None and time.monotonic() >= self._try_at
        if (again or self._ledger.put_off) and self._releasing.acquire(blocking=False):
            try:
                if again and self._unwritten is not None:
                    self._release(self._unwritten)
                else:
                    self._drop_released()
            finally:
                self._releasing.release()
