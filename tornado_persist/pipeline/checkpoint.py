"""The journal's cursor: which records are done, and the positions of the sink and the dead letters at that point."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Sequence
from typing import Any

from tornado_persist.errors import FlushFailed, SinkUnavailable
from tornado_persist.journal import Checkpoint, Journal
from tornado_persist.pipeline.deadletters import DeadLetters, InvalidRow, RefusedRow
from tornado_persist.records.models import Kind
from tornado_persist.sinks.runner import SinkRunner
from tornado_persist.telemetry import log

logger = log.get(__name__)

#: Seconds between two cursors. Each costs an fsync that competes with those of the batches. After a crash, rows written
#: since the last cursor are written again, with the same result.
EVERY = 0.5


class Checkpointer:
    """Releases journal space for records that are done, and makes rejected rows durable before that."""

    def __init__(
        self, journal: Journal, dead_letters: DeadLetters, checkpoint: Checkpoint, set_aside: dict[Kind, int]
    ) -> None:
        """``checkpoint``: what the journal's cursor says now; ``set_aside``: counts of rows set aside at the door."""
        self._journal = journal
        self._dead_letters = dead_letters
        # What the cursor should say, and what it says.
        self._cursor = self._written = checkpoint
        self._writing: asyncio.Task[None] | None = None
        # Set while a cursor waits for its time, and when it is to be written at once.
        self._waiting = False
        self._hurry = asyncio.Event()
        self._due = 0.0
        self._position_known: SinkRunner | None = None
        # Length of the dead-letter file, once this process has appended to it. The cursor names it together with the
        # rows set aside by then: those in lines past it are counted at the next start.
        self._rejected_bytes: int | None = None
        self._set_aside = set_aside
        self._appending = asyncio.Lock()

    @property
    def released(self) -> int:
        """Every record up to this one is done."""
        return self._cursor.seq

    async def record_position(self, runner: SinkRunner) -> None:
        """Before the first write into a sink that appends, put its position into the cursor: a crash rewinds to it.

        Raises:
            FlushFailed: the cursor cannot be written.
            SinkUnavailable: the sink cannot be asked.
        """
        if self._position_known is not runner:
            await self._record(position=await runner.position())
            self._position_known = runner

    async def save_refused(self, rows: list[RefusedRow]) -> None:
        """Append rejected rows to the dead letters, durably.

        Raises:
            FlushFailed: the cursor or the dead letters cannot be written.
        """
        async with self._appending:
            _, self._rejected_bytes = await self._append(rows)
        file, first = str(self._dead_letters.path), rows[0]
        logger.error("rows rejected", rows=len(rows), file=file, code=first.code, error=first.message)

    @contextlib.asynccontextmanager
    async def set_aside(self, rows: Sequence[InvalidRow]) -> AsyncIterator[None]:
        """Append rows set aside at the door, durably, while the rest of their batch is accepted within.

        They are taken back if that fails: any answer but 200 means that nothing was taken.

        Raises:
            FlushFailed: the cursor or the dead letters cannot be written.
        """
        async with self._appending:
            before, after = await self._append(rows)
            try:
                yield
            except BaseException:
                try:
                    await asyncio.to_thread(self._dead_letters.truncate, before)
                except OSError as exc:  # a client that sends them again has them there twice
                    file = str(self._dead_letters.path)
                    logger.error("rows that were set aside cannot be taken back", file=file, error=exc.strerror)
                raise
            self._rejected_bytes = after
            for row in rows:
                self._set_aside[row.kind] += 1

    async def _append(self, rows: Sequence[RefusedRow | InvalidRow]) -> tuple[int, int]:
        """The length of the dead letters before and after it."""
        try:
            length = await asyncio.to_thread(self._dead_letters.length)
            known = self._cursor.state.get("rejected_bytes", length + 1)
            if length < known or (length > known and self._rejected_bytes is None):
                # The file is new or was edited externally; record its length before appending.
                await self._record(rejected_bytes=length, set_aside=dict(self._set_aside))
            return length, await asyncio.to_thread(self._dead_letters.append, rows)
        except OSError as exc:
            file = exc.filename or self._dead_letters.path
            raise FlushFailed(f"{file} cannot be written: {exc.strerror}") from exc

    async def release(self, seq: int, totals: dict[str, Any], runner: SinkRunner) -> None:
        """Release all records up to ``seq``; call it before the next write.

        The cursor is written in the background, at most every :data:`EVERY` seconds and the newest one; at once if the
        journal is full. If that fails, the journal tries again, or the next release does it for both.
        """
        try:
            position = await runner.position()
        except SinkUnavailable as exc:
            logger.error("journal space cannot be released now", error=str(exc))
            return
        state = {**self._cursor.state, "totals": totals, "position": position}
        if self._rejected_bytes is not None:
            state |= {"rejected_bytes": self._rejected_bytes, "set_aside": dict(self._set_aside)}
        self._cursor = Checkpoint(seq, state)
        if not self._waiting:
            self._waiting = True
            self._writing = asyncio.create_task(self._write_in_time(self._writing))
        if self._journal.problem:  # it may be full: batches are refused until there is room
            self._hurry.set()

    async def finish(self, timeout: float | None = None) -> None:
        """Write the cursor, and wait until that is done or has failed; ``timeout`` seconds at most."""
        if self._waiting:
            self._hurry.set()
        if self._writing is not None:
            await asyncio.wait([self._writing], timeout=None if timeout is None else max(0.0, timeout))

    async def make_durable(self, seq: int) -> bool:
        """Whether the cursor on the disk says that all records up to ``seq`` are done; writes it now if need be."""
        await self.finish()
        if self._written.seq < seq <= self._cursor.seq:
            await self._write()
        return self._written.seq >= seq

    async def _write_in_time(self, previous: asyncio.Task[None] | None) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout_at(self._due):
                await self._hurry.wait()
        if previous is not None:
            await asyncio.wait([previous])
        self._hurry.clear()
        self._waiting = False  # what is done from now on needs another
        self._due = asyncio.get_running_loop().time() + EVERY
        await self._write()

    async def _record(self, **changes: Any) -> None:
        await self.finish()
        before = self._cursor
        if {name: before.state.get(name) for name in changes} != changes:
            self._cursor = Checkpoint(before.seq, {**before.state, **changes})
            if not await self._write():
                self._cursor = before
                raise FlushFailed("The journal's cursor cannot be written")

    async def _write(self) -> bool:
        cursor = self._cursor
        if cursor is not self._written:
            try:
                if not await asyncio.to_thread(self._journal.release, cursor.seq, cursor.state):
                    return False
            except Exception:
                logger.exception("a bug in the checkpointer")
                return False
            self._written = cursor
        return True
