"""The writer's thread: appends, makes durable, answers; and puts right what failed.

**Group commit** (DeWitt et al., "Implementation Techniques for Main Memory Database Systems", 1984): while one group is
on its way to the disk the next one gathers in the queue, and all of it shares the next ``fdatasync``. What comes in one
round of the event loop comes together: for the rest of it a batch waits for company, and one that is alone goes alone.

**A refused batch never comes back.** When a write or a sync fails, what the file holds of the group is cut off again,
durably, before anyone hears of it; should even that fail, a new segment that begins with the refused numbers makes it
void (see :meth:`Scanner.next`). Until one of the two has succeeded nobody is answered. The file that failed is not
written to again.
"""

from __future__ import annotations

import asyncio
import contextlib
import queue
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple, TypeAlias

from tornado_persist.errors import NotAccepting
from tornado_persist.files import reason
from tornado_persist.journal.record import HEADER_SIZE, encode
from tornado_persist.journal.segment import Segment
from tornado_persist.journal.state import Ledger
from tornado_persist.telemetry import log

logger = log.get(__name__)

Sync: TypeAlias = Literal["always", "interval", "off"]

#: Seconds between two syncs with ``sync = "interval"``.
SYNC_EVERY = 0.5
#: Seconds between two looks whether what failed works again.
TRY_EVERY = 1.0
#: Bytes of a group: more wait for the next one, so that the first need not wait for all of them.
GROUP_BYTES = 16 << 20
#: Said to a batch that comes after the end.
CLOSED = "The journal is closed"
#: Bytes that must be free before batches are accepted again after a failure; else the next one would fail again.
ROOM = 1 << 20


class Append(NamedTuple):
    """A batch that waits to be written."""

    kind: int
    at: int
    rows: int
    body: bytes
    future: asyncio.Future[int]

    @property
    def size(self) -> int:
        return HEADER_SIZE + len(self.body)


@dataclass(slots=True)
class _Failure:
    """What is to be put right: a segment that may hold refused records, and whom to tell once it does not."""

    segment: Segment | None
    refused: list[Append]
    room: int
    since: float
    try_at: float


class Writer:
    """Owns the end of the journal. :meth:`put` is for the event loop; the rest but :meth:`stop` runs in its thread."""

    def __init__(
        self,
        directory: Path,
        ledger: Ledger,
        *,
        sync: Sync,
        segment_bytes: int,
        tend: Callable[[], None],
        on_sync: Callable[[float], None] = lambda seconds: None,
    ) -> None:
        """``tend`` is called after each group, and at least once in ``TRY_EVERY`` seconds; ``on_sync`` after each sync,
        with the seconds that it took.
        """
        self._directory = directory
        self._ledger = ledger
        self._sync = sync
        self._segment_bytes = segment_bytes
        self._tend = tend
        self._on_sync = on_sync
        #: Why nothing can be written; empty while all is well.
        self.fault = ""
        self._failure: _Failure | None = None
        # Refused records lie in some segment, void by the name of the next one alone.
        self._voided = False
        self._told_full = False
        self._synced_at = 0.0
        # What this round of the event loop brought so far, and the rounds before it.
        self._round: list[Append] = []
        self._handing_over = threading.Lock()
        self._queue: queue.SimpleQueue[list[Append] | None] = queue.SimpleQueue()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread = threading.Thread(target=self._run, name="journal", daemon=True)

    def start(self) -> None:
        """Begin; answers go to the running loop."""
        self._loop = asyncio.get_running_loop()
        self._thread.start()

    def put(self, append: Append) -> None:
        """Write this, and answer its future."""
        with self._handing_over:
            if not self._round and self._loop is not None:
                self._loop.call_soon(self._hand_over)
            self._round.append(append)

    def _hand_over(self) -> None:
        # A whole round at once. Woken by the first batch of it, the thread would take the interpreter from the loop
        # after a millisecond, and sync what there is by then: of eight requests of one row 2.7 instead of 4.8, so that
        # the service took 1.15 times the processor time for each, and PostgreSQL 0.89 times as many.
        with self._handing_over:
            if self._round:
                self._queue.put(self._round)
                self._round = []

    def stop(self, timeout: float) -> bool:
        """End after what was put before; False if that takes more than ``timeout`` seconds."""
        if self._thread.ident is None:
            return True
        self._hand_over()
        self._queue.put(None)
        self._thread.join(timeout)
        return not self._thread.is_alive()

    def _run(self) -> None:
        stopping = False
        while not stopping:
            group, stopping = self._next_group()
            try:
                self._commit(group)
                self._look_after()
                self._tend()
            except Exception:
                logger.exception("a bug in the journal's writer")
        # Nobody is told of a refusal before it is for good.
        while self._failure is not None and self._failure.refused:
            time.sleep(self._patience())
            self._look_after()
        self._finish()

    def _next_group(self) -> tuple[list[Append], bool]:
        """All that waits, or nothing when it is time to look after something; and whether to stop after it."""
        group: list[Append] = []
        size = 0
        try:
            round_ = self._queue.get(timeout=self._patience())
            while round_ is not None:
                group += round_
                size += sum(append.size for append in round_)
                if size >= GROUP_BYTES:
                    return group, False
                round_ = self._queue.get_nowait()
        except queue.Empty:
            return group, False
        return group, True

    def _patience(self) -> float:
        now = time.monotonic()
        if self._failure is not None:
            return min(max(0.0, self._failure.try_at - now), TRY_EVERY)
        if self._unsynced() is not None:
            return min(max(0.0, self._synced_at + SYNC_EVERY - now), SYNC_EVERY)
        return TRY_EVERY

    # Writing.

    def _commit(self, group: list[Append]) -> None:
        while group:
            if self.fault:
                self._refuse(group, self.fault)
                return
            taken = self._write(group)
            problem = "" if taken else self._ledger.problem
            if problem:  # else a release has just made room
                if not self._told_full:
                    logger.warning("journal is full", bytes=self._ledger.bytes, max_bytes=self._ledger.max_bytes)
                    self._told_full = True
                self._refuse(group, problem)
                return
            group = group[taken:]

    def _write(self, group: list[Append]) -> int:
        """Write as many as one segment takes, with one sync; how many were dealt with. 0: the journal is full."""
        ledger = self._ledger
        segment = ledger.begin()
        part: list[Append] = []
        try:
            fresh = segment is None or segment.end + group[0].size > self._segment_bytes
            room = self._segment_bytes - (0 if fresh or segment is None else segment.end)
            buffers: list[bytes | memoryview] = []
            size = 0
            for seq, append in enumerate(group, ledger.last + 1):
                if (part and size + append.size > room) or not ledger.fits(size, append.size):
                    break
                part.append(append)
                buffers += encode(seq, append.kind, append.at, append.rows, append.body), append.body
                size += append.size
            if not part:
                return 0
            if fresh and segment is not None and segment.end:
                self._retire(segment)
                segment = None
            if segment is None:
                segment = Segment.create(self._directory, ledger.last + 1)
                ledger.add(segment)
            segment.write(buffers)
            synced = self._sync == "always" or not segment.synced
            if synced:
                self._make_durable(segment)
            first = ledger.last + 1
            ledger.acknowledge(segment, size, [append.at for append in part], synced=synced)
        except Exception as exc:
            if not isinstance(exc, OSError):
                logger.exception("a bug in the journal's writer")
            self._fail(segment, part, exc)
        else:
            self._told_full = False
            ledger.settle()  # before the answer: who has it may release the segment, and then it can go at once
            self._call(_accept, [append.future for append in part], first)
        finally:
            ledger.settle()
        return len(part)

    def _retire(self, segment: Segment) -> None:
        """The segment is full."""
        if self._sync == "interval":
            self._sync_segment(segment)
        segment.close()
        self._ledger.retire()

    def _sync_segment(self, segment: Segment) -> None:
        if segment.end > segment.synced:
            self._make_durable(segment)
            segment.advance(segment.end, segment.last, synced=True)
        self._synced_at = time.monotonic()

    def _make_durable(self, segment: Segment) -> None:
        began = time.perf_counter()
        segment.sync()
        self._on_sync(time.perf_counter() - began)

    def _unsynced(self) -> Segment | None:
        """The segment that waits for its next sync."""
        segment = self._ledger.active
        if self._sync == "interval" and segment is not None and segment.end > segment.synced:
            return segment
        return None

    # Failing, and going on.

    def _fail(self, segment: Segment | None, refused: list[Append], exc: Exception) -> None:
        """Nothing of ``refused`` may stay; write no more until it works again."""
        if segment is not None:
            segment.close()
            self._ledger.retire()
        self.fault = _sentence(exc)
        now = time.monotonic()
        room = max(sum(append.size for append in refused), min(ROOM, self._segment_bytes))
        self._failure = _Failure(segment, refused, room, now, now + TRY_EVERY)
        logger.error("journal cannot be written", error=_words(exc), refused=len(refused))
        self._cut(self._failure)

    def _look_after(self) -> None:
        """What the clock asks for: a sync, or another try of what failed."""
        now = time.monotonic()
        if self._failure is not None:
            if now >= self._failure.try_at:
                self._failure.try_at = now + TRY_EVERY
                self._cut(self._failure)
                self._renew(self._failure)
        elif self._unsynced() is not None and now >= self._synced_at + SYNC_EVERY:
            segment = self._ledger.begin()
            try:
                if segment is not None:  # else released and gone just now
                    self._sync_segment(segment)
            except OSError as exc:
                self._fail(segment, [], exc)
            finally:
                self._ledger.settle()

    def _cut(self, failure: _Failure) -> None:
        """Take what was refused out of the file, and say so to those who wait for it."""
        segment = failure.segment
        if segment is not None and segment.dirty:
            try:
                segment.cut()
            except OSError as exc:
                self.fault = _sentence(exc)
                return
        self._settle(failure)

    def _settle(self, failure: _Failure) -> None:
        refused, failure.refused = failure.refused, []
        self._refuse(refused, self.fault)

    def _renew(self, failure: _Failure) -> None:
        """Begin a new segment if there is room for one; with what was acknowledged and may not be on the disk, if any.

        Its name makes void whatever could not be cut off the old one.
        """
        old, new = failure.segment, None
        try:
            if old is not None and old.doubtful and self._ledger.holds(old):
                new = Segment.create(self._directory, old.synced_last + 1)
                new.copy_from(old)
                self._ledger.replace(old, new)
            else:
                new = Segment.create(self._directory, self._ledger.last + 1)
                new.try_room(failure.room)
                self._ledger.add(new)
        except OSError as exc:
            self.fault = _sentence(exc)
            if new is not None:
                self._drop_empty(new)
            return
        if old is not None and old.dirty:
            old.dirty, old.leftovers = False, True
            self._voided = True
        self._settle(failure)
        self._failure = None
        self.fault = ""
        logger.info("journal can be written again", seconds=round(time.monotonic() - failure.since, 1))

    def _drop_empty(self, segment: Segment) -> None:
        """Delete a segment without a record, unless its name may be what keeps refused records from coming back.

        Then the next start deletes it, once it has cut those off.
        """
        segment.close()
        if not self._voided and not (self._failure is not None and self._failure.refused):
            with contextlib.suppress(OSError):
                segment.path.unlink()

    def _finish(self) -> None:
        """The last sync, before the process ends."""
        for segment in self._ledger.segments[:]:
            try:
                if segment.end > segment.synced:
                    segment.cut()  # past its end there is nothing; but this syncs, whether it is open or not
            except FileNotFoundError:  # released just now
                continue
            except OSError as exc:
                logger.error("journal may not be on the disk", segment=segment.path.name, error=reason(exc))
            if segment.end:
                segment.close()
            else:
                self._drop_empty(segment)
        with contextlib.suppress(queue.Empty):
            while (late := self._queue.get_nowait()) is not None:
                self._refuse(late, CLOSED)

    # Answers, given in the event loop.

    def _refuse(self, group: Iterable[Append], message: str) -> None:
        futures = [append.future for append in group]
        if futures:
            self._call(reject, futures, message)

    def _call(self, function: Callable[..., None], *args: object) -> None:
        if self._loop is not None:
            with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits any more
                self._loop.call_soon_threadsafe(function, *args)


def _accept(futures: list[asyncio.Future[int]], first: int) -> None:
    for seq, future in enumerate(futures, first):
        if not future.done():  # whoever waited may have gone; the record stays
            future.set_result(seq)


def reject(futures: list[asyncio.Future[int]], message: str) -> None:
    """Tell those who wait that nothing was taken, and why."""
    for future in futures:
        if not future.done():
            future.set_exception(NotAccepting(message))
            future.exception()  # whoever waits gets it; nobody else needs the "never retrieved" message


def _words(exc: Exception) -> str:
    return reason(exc) if isinstance(exc, OSError) else type(exc).__name__


def _sentence(exc: Exception) -> str:
    return f"The journal cannot be written: {_words(exc)}"
