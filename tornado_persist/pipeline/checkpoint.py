"""Gives up journal space for what is settled: the cursor, and what has to be known before something is appended to."""

from __future__ import annotations

import asyncio
import contextlib
from typing import Any

from tornado_persist.errors import FlushFailed, SinkUnavailable
from tornado_persist.journal import Journal
from tornado_persist.pipeline.background import Background
from tornado_persist.pipeline.deadletters import DeadLetters, Refusal
from tornado_persist.sinks.runner import SinkRunner
from tornado_persist.telemetry import log

logger = log.get(__name__)

#: Seconds between two cursors. Each costs a sync, beside which batches wait for theirs; and what is settled after the
#: last one is but written once more after a crash, to the same effect.
EVERY = 0.5


class Releaser:
    """Tells the journal how far its records are settled, and where sink and rejected rows stood by then."""

    def __init__(self, journal: Journal, dead_letters: DeadLetters, *, released: int, state: dict[str, Any]) -> None:
        """``released`` and ``state`` are of the journal's cursor."""
        self._journal = journal
        self._dead_letters = dead_letters
        # What the cursor should say, and what it says.
        self._cursor = self._written = released, state
        self._writing = asyncio.Lock()
        self._background = Background()
        # Set while a cursor waits for its time, and when it is to be written at once.
        self._waiting = False
        self._hurry = asyncio.Event()
        self._due = 0.0
        self._anchored: SinkRunner | None = None
        # Of the file of refused rows, once there were any.
        self._rejected_bytes: int | None = None

    async def anchor(self, runner: SinkRunner) -> None:
        """Before the first write into a sink that appends, make known where it begins, so that a crash can go back.

        Raises:
            FlushFailed: the cursor cannot be written.
            SinkUnavailable: the sink cannot be asked.
        """
        if self._anchored is not runner:
            await self._make_known(position=await runner.position())
            self._anchored = runner

    async def put_aside(self, refused: list[Refusal]) -> None:
        """Make rows that the sink refused durable in their file.

        Raises:
            FlushFailed: the cursor cannot be written.
            OSError: the file cannot.
        """
        length = await asyncio.to_thread(self._dead_letters.length)
        known = self._cursor[1].get("rejected_bytes", length + 1)
        if length < known or (length > known and self._rejected_bytes is None):
            # It is new, or another hand has changed it, for of ours nothing can be past what is known before the first
            # of this life. Where the new lines begin is to be known before they are there.
            await self._make_known(rejected_bytes=length)
        self._rejected_bytes = await asyncio.to_thread(self._dead_letters.append, refused)
        file, first = str(self._dead_letters.path), refused[0]
        logger.error("rows rejected", rows=len(refused), file=file, code=first.code, error=first.message)

    async def release(self, seq: int, totals: dict[str, Any], runner: SinkRunner) -> None:
        """All records up to ``seq`` are settled; to be called before the next write.

        The cursor is written in the background, every so often and the newest one, or at once if the journal is full:
        rows go into the sink meanwhile. Where that fails, the journal tries again, or the next release does it for
        both.
        """
        try:
            position = await runner.position()
        except SinkUnavailable as exc:
            logger.error("journal space cannot be released now", error=str(exc))
            return
        state = {**self._cursor[1], "totals": totals, "position": position}
        if self._rejected_bytes is not None:
            state["rejected_bytes"] = self._rejected_bytes
        self._cursor = seq, state
        if not self._waiting:
            self._waiting = True
            self._background.spawn(self._write_in_time())
        if self._journal.problem:  # it may be full: batches are refused until there is room
            self._hurry.set()

    async def finish(self, timeout: float | None = None) -> None:
        """Write the cursor, and wait until that is done or has failed; ``timeout`` seconds at most."""
        if self._waiting:
            self._hurry.set()
        await self._background.finish(timeout)

    async def _write_in_time(self) -> None:
        loop = asyncio.get_running_loop()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout_at(self._due):
                await self._hurry.wait()
        self._hurry.clear()
        self._waiting = False  # what is settled from now on needs another
        self._due = loop.time() + EVERY
        await self._write()

    async def _make_known(self, **changes: Any) -> None:
        await self.finish()
        before = self._cursor
        seq, state = before
        if {name: state.get(name) for name in changes} != changes:
            self._cursor = seq, {**state, **changes}
            if not await self._write():
                self._cursor = before
                raise FlushFailed("The journal's cursor cannot be written")

    async def _write(self) -> bool:
        async with self._writing:
            cursor = self._cursor
            if cursor is not self._written:
                try:
                    if not await asyncio.to_thread(self._journal.release, *cursor):
                        return False
                except Exception:
                    logger.exception("a bug in the releaser")
                    return False
                self._written = cursor
            return True
