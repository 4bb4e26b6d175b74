"""The writer's thread: it alone changes the journal's files. It appends, syncs, answers, releases, and repairs.

**Group commit** (DeWitt et al., "Implementation Techniques for Main Memory Database Systems", 1984): while one group is
on its way to the disk, the next one gathers in the queue and shares the next ``fdatasync``. All batches of one turn of
the event loop are handed over together.

**A refused batch never comes back.** When a write or a sync fails, the writer first cuts off, durably, what the file
holds of the group. If that fails too, it begins a new segment whose name makes the refused records void (see
:meth:`Scanner.next`). The group is answered once one of the two has succeeded. The file that failed is not
written to again.

**Deleted files.** Before each answer the writer checks that the active segment is still the file of its name, and
every second that all segments are. If not, it refuses batches, and restores the segments from the descriptors that are
still open, as soon as their directory exists.

**Releases** come through the same queue, so no other thread touches a segment while it is in use.
"""

from __future__ import annotations

import asyncio
import contextlib
import queue
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple, TypeAlias

from tornado_persist.errors import NotAccepting
from tornado_persist.files import reason
from tornado_persist.journal.cursor import Checkpoint, Cursor
from tornado_persist.journal.damaged import DamagedDirectory
from tornado_persist.journal.record import HEADER_SIZE, encode
from tornado_persist.journal.segment import Segment
from tornado_persist.journal.state import State
from tornado_persist.telemetry import log

logger = log.get(__name__)

Sync: TypeAlias = Literal["always", "interval", "off"]

#: Seconds between two syncs with ``sync = "interval"``.
SYNC_EVERY = 0.5
#: Seconds between two tries of what has failed.
TRY_EVERY = 1.0
#: The oldest segments are held open, so that they can be restored: the rows in memory are from these.
HELD = 64
#: Bytes of a group. Further batches go into the next one, so that they do not delay this one.
GROUP_BYTES = 16 << 20
#: The answer to a batch that arrives after the close.
CLOSED = "The journal is closed"
#: Bytes that must be free before batches are accepted again after a failure; with less the next would fail again.
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


class Release(NamedTuple):
    """A cursor that waits to be written; ``done`` says whether it was."""

    checkpoint: Checkpoint
    done: Future[bool]


class _Gone(OSError):
    """A segment was deleted or replaced."""


@dataclass(slots=True)
class _Failure:
    """What must be repaired: a segment that may hold refused records, and the batches to answer once it does not."""

    segment: Segment | None
    refused: list[Append]
    room: int
    since: float
    try_at: float


class Writer:
    """Owns the files. :meth:`append`, :meth:`release` and :meth:`stop` are for other threads."""

    def __init__(
        self,
        directory: Path,
        state: State,
        cursor: Cursor,
        damaged: DamagedDirectory,
        *,
        sync: Sync,
        segment_bytes: int,
        on_sync: Callable[[float], None],
    ) -> None:
        """``on_sync`` is called after each sync of a segment, with the seconds that it took."""
        self._directory = directory
        self._state = state
        self._cursor = cursor
        self._damaged = damaged
        self._sync = sync
        self._segment_bytes = segment_bytes
        self._on_sync = on_sync
        # Why nothing can be written; empty while all is well.
        self._fault = ""
        self._failure: _Failure | None = None
        # Some segment holds refused records that only the next segment's name makes void.
        self._voided = False
        self._reported_full = False
        self._synced_at = 0.0
        # A cursor that could not be written, and when to try again.
        self._unwritten: Checkpoint | None = None
        # Since when files are missing, when to look for them next, and what to write into a new cursor.
        self._gone_since: float | None = None
        self._look_at = 0.0
        #: What the cursor says.
        self.checkpoint = Checkpoint(0)
        self._retry_at = 0.0
        # What this turn of the event loop has brought so far, and the turns before it.
        self._turn: list[Append] = []
        self._queue: queue.SimpleQueue[list[Append] | Release | None] = queue.SimpleQueue()
        self._stopped = False
        self._handover = threading.RLock()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread = threading.Thread(target=self._run, name="journal", daemon=True)

    @property
    def problem(self) -> str:
        """Why nothing can be accepted now, in a sentence; empty while all is well."""
        return CLOSED if self._stopped else self._fault or self._state.problem

    def start(self) -> None:
        """Begin; answers go to the running loop."""
        self._loop = asyncio.get_running_loop()
        self._thread.start()

    def append(self, append: Append) -> bool:
        """Write this, and answer its future; False after the end. For the event loop."""
        with self._handover:
            if self._stopped:
                return False
            if not self._turn and self._loop is not None:
                self._loop.call_soon(self._hand_over)
            self._turn.append(append)
        return True

    def _hand_over(self) -> None:
        # All batches of one turn together: the first of them would wake the thread, which would then sync the few that
        # are there. Of eight requests of one row 2.7 shared a sync instead of 4.8, for 1.15 times the processor time.
        with self._handover:
            if self._turn:
                self._queue.put(self._turn)
                self._turn = []

    def release(self, checkpoint: Checkpoint) -> bool:
        """Write the cursor, and delete the segments that are wholly released; False if it could not be written."""
        done: Future[bool] = Future()
        with self._handover:
            if self._stopped or self._loop is None:
                return False
            self._queue.put(Release(checkpoint, done))
        return done.result()

    def stop(self, timeout: float) -> bool:
        """Stop after everything queued so far; False if that takes more than ``timeout`` seconds."""
        with self._handover:
            self._stopped = True
            self._hand_over()
            self._queue.put(None)
        if self._loop is None:
            return True
        self._thread.join(timeout)
        return not self._thread.is_alive()

    def _run(self) -> None:
        stopping = False
        while not stopping:
            group, releases, stopping = self._next_group()
            try:
                for release in releases:  # first, because they may free space
                    self._answer_release(release)
                self._commit(group)
                self._maintain()
            except Exception:
                logger.exception("a bug in the journal's writer")
        # A refusal is answered once it is certain.
        while self._failure is not None and self._failure.refused:
            time.sleep(self._timeout())
            self._maintain()
        self._finish()

    def _next_group(self) -> tuple[list[Append], list[Release], bool]:
        """Everything that waits, or nothing when :meth:`_maintain` is due; and whether to stop after it."""
        group: list[Append] = []
        releases: list[Release] = []
        size = 0
        try:
            request = self._queue.get(timeout=self._timeout())
            while request is not None:
                if isinstance(request, Release):
                    releases.append(request)
                else:
                    group += request
                    size += sum(append.size for append in request)
                if size >= GROUP_BYTES:
                    return group, releases, False
                request = self._queue.get_nowait()
        except queue.Empty:
            return group, releases, False
        return group, releases, True

    def _timeout(self) -> float:
        """Seconds until :meth:`_maintain` is due."""
        now = time.monotonic()
        if self._gone_since is not None:
            return min(max(0.0, self._look_at - now), TRY_EVERY)
        if self._failure is not None:
            return min(max(0.0, self._failure.try_at - now), TRY_EVERY)
        if self._unsynced() is not None:
            return min(max(0.0, self._synced_at + SYNC_EVERY - now), SYNC_EVERY)
        return TRY_EVERY

    # Writing.

    def _commit(self, group: list[Append]) -> None:
        while group:
            if self._fault:
                self._refuse(group, self._fault)
                return
            taken = self._write(group)
            if not taken:
                if not self._reported_full:
                    logger.warning("journal is full", bytes=self._state.bytes, max_bytes=self._state.max_bytes)
                    self._reported_full = True
                self._refuse(group, self._state.problem)
                return
            group = group[taken:]

    def _write(self, group: list[Append]) -> int:
        """Write as many as one segment takes, with one sync, and answer them; how many. 0: the journal is full."""
        state = self._state
        segment = state.active
        part: list[Append] = []
        try:
            fresh = segment is None or segment.end + group[0].size > self._segment_bytes
            room = self._segment_bytes - (0 if fresh or segment is None else segment.end)
            buffers: list[bytes | memoryview] = []
            size = 0
            for seq, append in enumerate(group, state.last + 1):
                if (part and size + append.size > room) or not state.fits(size, append.size):
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
                segment = Segment.create(self._directory, state.last + 1)
                state.add(segment)
            segment.write(buffers)
            synced = self._sync == "always" or not segment.synced
            if synced:
                self._make_durable(segment)
            if not segment.in_place():
                raise _Gone
            first = state.last + 1
            state.acknowledge(segment, size, [append.at for append in part], synced=synced)
        except _Gone:
            self._report_gone()
            if segment is not None:
                with contextlib.suppress(OSError):
                    segment.cut_open()
            self._refuse(part, self._fault)
        except Exception as exc:
            if not isinstance(exc, OSError):
                logger.exception("a bug in the journal's writer")
            self._fail(segment, part, exc)
        else:
            self._reported_full = False
            self._call(_accept, [append.future for append in part], first)
        return len(part)

    def _retire(self, segment: Segment) -> None:
        """The segment is full."""
        if self._sync == "interval":
            self._sync_segment(segment)
        segment.close()
        self._state.retire()

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
        segment = self._state.active
        if self._sync == "interval" and segment is not None and segment.end > segment.synced:
            return segment
        return None

    # Failing, and going on.

    def _fail(self, segment: Segment | None, refused: list[Append], exc: Exception) -> None:
        """Refuse these, and write nothing until writing works again."""
        if segment is not None:
            segment.close()
            self._state.retire()
        self._fault = _sentence(exc)
        now = time.monotonic()
        room = max(sum(append.size for append in refused), min(ROOM, self._segment_bytes))
        self._failure = _Failure(segment, refused, room, now, now + TRY_EVERY)
        logger.error("journal cannot be written", error=_words(exc), refused=len(refused))
        self._cut(self._failure)

    def _maintain(self) -> None:
        """Do what is due: a sync, or another try of what failed."""
        now = time.monotonic()
        unsynced = self._unsynced()
        if self._failure is not None:
            if now >= self._failure.try_at:
                self._failure.try_at = now + TRY_EVERY
                self._cut(self._failure)
                self._resume(self._failure)
                self.delete_released()  # not possible while refused records were in the way
        elif unsynced is not None and now >= self._synced_at + SYNC_EVERY:
            try:
                self._sync_segment(unsynced)
            except OSError as exc:
                self._fail(unsynced, [], exc)
        if self._unwritten is not None and now >= self._retry_at:
            self._release(self._unwritten)
        if self._failure is None and now >= self._look_at:
            self._look_at = now + TRY_EVERY
            self._check_files()

    # Deleted files.

    def _check_files(self) -> None:
        segments = self._state.segments[:HELD]
        if self._state.active is not None and self._state.active not in segments:
            segments.append(self._state.active)
        for segment in segments:
            segment.hold()
        missing = [segment for segment in segments if segment.end and not segment.in_place()]
        no_cursor = self._unwritten is None and self.checkpoint.state and not self._cursor.path.exists()
        if (missing or no_cursor) and self._gone_since is None:
            self._report_gone()
        if self._gone_since is not None:
            try:
                self._restore(missing)
            except OSError as exc:
                self._fault = f"The journal's files were removed, and cannot be restored: {reason(exc)}"

    def _report_gone(self) -> None:
        self._gone_since = time.monotonic()
        self._look_at = 0.0
        self._fault = f"The journal's files in {self._directory} were removed"
        logger.error("journal files removed", directory=str(self._directory))

    def _restore(self, missing: list[Segment]) -> None:
        """Write missing segments again, and a cursor; batches are taken again after that. Raises OSError."""
        assert self._gone_since is not None
        self._directory.stat()
        for segment in missing:
            if not segment.restore():
                logger.error("journal records lost", first=segment.first, last=segment.last)
                self._state.lose(segment)
        if self._state.active is not None and not self._state.active.in_place():
            self._state.active.close()
            self._state.retire()
        self._cursor.write(self.checkpoint)
        seconds = round(time.monotonic() - self._gone_since, 1)
        self._gone_since, self._fault = None, ""
        logger.info("journal files restored", segments=len(missing), seconds=seconds)

    def _cut(self, failure: _Failure) -> None:
        """Cut the refused records off the file, and answer them."""
        segment = failure.segment
        if segment is not None and segment.dirty:
            try:
                segment.cut()
            except OSError as exc:
                self._fault = _sentence(exc)
                return
        self._answer_refused(failure)

    def _answer_refused(self, failure: _Failure) -> None:
        self._refuse(failure.refused, self._fault)
        failure.refused = []

    def _resume(self, failure: _Failure) -> None:
        """Begin a new segment if there is room for one. It takes over acknowledged records that may not be on the disk.

        Its name makes void what could not be cut off the old one.
        """
        old, new = failure.segment, None
        try:
            if old is not None and old.sync_failed and old.last > self._state.released:
                new = Segment.create(self._directory, old.synced_last + 1)
                new.copy_from(old)
                self._state.replace(old, new)
            else:
                new = Segment.create(self._directory, self._state.last + 1)
                new.probe_room(failure.room)
                self._state.add(new)
        except OSError as exc:
            self._fault = _sentence(exc)
            if new is not None:
                self._drop_empty(new)
            return
        if old is not None and old.dirty:
            old.dirty, old.void_tail = False, True
            self._voided = True
        self._answer_refused(failure)
        self._failure = None
        self._fault = ""
        logger.info("journal can be written again", seconds=round(time.monotonic() - failure.since, 1))

    def _drop_empty(self, segment: Segment) -> None:
        """Delete a segment without a record, unless its name may make refused records void.

        In that case the next start cuts those off, and then deletes it.
        """
        segment.close()
        if not self._voided and not (self._failure is not None and self._failure.refused):
            with contextlib.suppress(OSError):
                segment.path.unlink()

    def _finish(self) -> None:
        """The last sync, before the process ends."""
        for segment in self._state.segments:
            try:
                if segment.end > segment.synced:
                    segment.cut()  # there is nothing past its end; but this syncs, whether it is open or not
            except OSError as exc:
                logger.error("journal may not be on the disk", segment=segment.path.name, error=reason(exc))
            segment.let_go()
            if segment.end:
                segment.close()
            else:
                self._drop_empty(segment)

    # Releasing.

    def _answer_release(self, release: Release) -> None:
        try:
            release.done.set_result(self._release(release.checkpoint))
        except Exception as exc:
            release.done.set_exception(exc)

    def _release(self, checkpoint: Checkpoint) -> bool:
        state = self._state
        seq = state.after_gaps(max(checkpoint.seq, state.released))
        try:
            self._cursor.write(Checkpoint(seq, checkpoint.state, state.latest))
        except OSError as exc:
            if self._unwritten is None:
                logger.error("journal cursor cannot be written", error=reason(exc))
            self._unwritten = checkpoint
            self._retry_at = time.monotonic() + TRY_EVERY
            return False
        self.checkpoint = Checkpoint(seq, checkpoint.state, state.latest)
        if self._unwritten is not None:
            self._unwritten = None
            logger.info("journal cursor can be written again")
        state.release(seq)
        self.delete_released()
        return True

    def delete_released(self) -> None:
        """Delete the segments that are wholly released. For the writer's thread, or before it is started."""
        for segment in self._state.pop_released():
            try:
                segment.close()
                segment.let_go()
                if segment.keep_file:
                    self._damaged.move(segment.path)
                else:
                    segment.remove()
            except OSError as exc:
                # By the cursor it is not needed, so the next start deletes it.
                logger.warning("journal segment cannot be deleted", segment=segment.path.name, error=reason(exc))
        if self._state.has_room_again():
            logger.info("journal has room again", bytes=self._state.bytes)

    # Answers, given in the event loop.

    def _refuse(self, group: list[Append], message: str) -> None:
        if group:
            self._call(reject, [append.future for append in group], message)

    def _call(self, function: Callable[..., None], *args: object) -> None:
        if self._loop is not None:
            with contextlib.suppress(RuntimeError):  # the loop is closed: no caller is left
                self._loop.call_soon_threadsafe(function, *args)


def _accept(futures: list[asyncio.Future[int]], first: int) -> None:
    for seq, future in enumerate(futures, first):
        if not future.done():  # it was cancelled; the record stays
            future.set_result(seq)


def reject(futures: list[asyncio.Future[int]], message: str) -> None:
    """Answer that nothing was accepted, and why."""
    for future in futures:
        if not future.done():
            future.set_exception(NotAccepting(message))
            future.exception()  # otherwise asyncio would complain if the caller has gone


def _words(exc: Exception) -> str:
    return reason(exc) if isinstance(exc, OSError) else type(exc).__name__


def _sentence(exc: Exception) -> str:
    return f"The journal cannot be written: {_words(exc)}"
