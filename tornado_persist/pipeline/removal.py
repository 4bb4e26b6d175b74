"""Deleting: what is deleted stays deleted, and nothing else goes.

First a flush, and a durable cursor: what a replay could bring back is then no longer in the journal. Then rows go in
pieces, each in the writer's turn and in a transaction of its own, so flushes go between. The session's own row is the
last, so that a delete which was interrupted can be repeated.

Rows that are accepted while a delete is at work stop it (:class:`RowsWait`): somebody still writes to the session. That
holds for those which a flush between two pieces has written, too: the cursor may not be durable past them, so a replay
could bring them back.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from tornado_persist.errors import (
    CannotDelete,
    FlushFailed,
    NotAccepting,
    NothingThere,
    PersistError,
    RowsWait,
    SinkUnavailable,
)
from tornado_persist.files import reason
from tornado_persist.pipeline.backlog import Backlog, Watch
from tornado_persist.pipeline.checkpoint import Checkpointer
from tornado_persist.pipeline.chunks import ChunkSize
from tornado_persist.pipeline.flusher import Flusher
from tornado_persist.pipeline.ingest import Ingest
from tornado_persist.pipeline.settling import drop_rejected
from tornado_persist.sinks.base import Expiry, Removed
from tornado_persist.sinks.runner import SinkRunner
from tornado_persist.telemetry import log
from tornado_persist.telemetry.deletions import DeletedBy
from tornado_persist.telemetry.metrics import Metrics
from tornado_persist.telemetry.refusals import printable

T = TypeVar("T")

logger = log.get(__name__)

#: Rows of one transaction at most.
PIECE = 5000
#: Sessions that one search looks at, and that one transaction deletes at most: each takes three or four statements.
LOOK = 2000
SESSIONS = 100


@dataclass(slots=True)
class Deleted:
    """What went, in rows; ``rejected`` are rows in ``rejected.jsonl`` that are closed now."""

    sessions: int = 0
    tasks: int = 0
    rejected: int = 0
    #: Sessions that were left out, because rows of theirs were accepted meanwhile.
    waiting: int = 0
    duration_ms: int = 0

    @property
    def nothing(self) -> bool:
        """Whether nothing went."""
        return not (self.sessions or self.tasks or self.rejected)


class Remover:
    """Deletes on request and by age. Only :class:`Flusher` gives it its turns at the sink."""

    def __init__(
        self,
        ingest: Ingest,
        backlog: Backlog,
        flusher: Flusher,
        checkpointer: Checkpointer,
        metrics: Metrics,
        *,
        rejected: Path,
    ) -> None:
        """``rejected``: the path of ``rejected.jsonl``."""
        self._ingest = ingest
        self._backlog = backlog
        self._flusher = flusher
        self._checkpointer = checkpointer
        self._metrics = metrics
        self._rejected = rejected
        self._closed = False

    def close(self) -> None:
        """The service shuts down: what is at work ends with its present piece."""
        self._closed = True

    async def delete_session(self, session_id: str, timeout: float) -> Deleted:
        """Delete a session, its tasks, and its rejected rows. The flush before it takes ``timeout`` seconds at most.

        Raises:
            NothingThere: there is neither a row of it nor a rejected one.
            RowsWait: newer rows of it were accepted meanwhile; it may be partly deleted.
            CannotDelete: this sink cannot delete.
            BatchRejected: the sink refuses it (a foreign key, for instance); it may be partly deleted.
            SinkUnavailable, FlushFailed, NotAccepting: it cannot be done now; it may be partly deleted.
        """
        with self._backlog.watching([session_id]) as watch, self._work("request", session_id=session_id) as work:
            at = self._ingest.mark()
            await self._flush(timeout)
            _refuse_newer(watch, f"session {session_id}")
            work.deleted.rejected = await self._drop_rejected(session_id)
            await self._in_turn(work, lambda: work.runner.note_deletion(session_id, "", at))

            async def delete(rows: int) -> Removed:
                _refuse_newer(watch, f"session {session_id}")
                return await work.runner.delete_sessions([session_id], rows)

            while not (await self._piece(work, delete)).done:
                pass
        self._ingest.forget([session_id])
        if work.deleted.nothing:
            raise NothingThere(f"There is no session {session_id}")
        return work.deleted

    async def delete_task(self, session_id: str, task_id: str, timeout: float) -> Deleted:
        """Delete one task and its rejected rows. Raises as :meth:`delete_session` does."""
        with (
            self._backlog.watching([session_id], task_id) as watch,
            self._work("request", session_id=session_id, task_id=task_id) as work,
        ):
            at = self._ingest.mark()
            await self._flush(timeout)
            _refuse_newer(watch, f"task {task_id}")
            work.deleted.rejected = await self._drop_rejected(session_id, task_id)
            await self._in_turn(work, lambda: work.runner.note_deletion(session_id, task_id, at))

            async def delete(rows: int) -> Removed:
                _refuse_newer(watch, f"task {task_id}")
                return Removed(0, int(await work.runner.delete_task(session_id, task_id)), 1)

            await self._piece(work, delete)
        if work.deleted.nothing:
            raise NothingThere(f"There is no task {task_id} in session {session_id}")
        return work.deleted

    async def clean(
        self,
        expiry: Expiry,
        by: DeletedBy,
        timeout: float,
        *,
        dry_run: bool = False,
        wanted: Callable[[], bool] = lambda: True,
    ) -> Deleted:
        """Delete the sessions that have expired, but none that got rows meanwhile; ``dry_run``: only count them.

        It ends early once it is no longer ``wanted``.

        Raises:
            CannotDelete, BatchRejected, SinkUnavailable, FlushFailed, NotAccepting: see :meth:`delete_session`.
        """
        after: str | None = None
        with self._work(by, dry_run=dry_run) as work:
            await self._flush(timeout)
            while wanted():
                found, after = await work.runner.find_expired(expiry, after, LOOK)
                if found:
                    with self._backlog.watching(found) as watch:
                        await self._flush(timeout)  # what came since the last one
                        for start in range(0, len(found), SESSIONS):
                            if wanted():
                                await self._delete_expired(work, found[start : start + SESSIONS], expiry, watch)
                if after is None:
                    break
            return work.deleted

    async def _delete_expired(self, work: _Work, session_ids: list[str], expiry: Expiry, watch: Watch) -> None:
        async def delete(rows: int) -> Removed:
            quiet = [id for id in left if id not in watch.seen]
            work.deleted.waiting += len(left) - len(quiet)
            left[:] = quiet
            return await work.runner.delete_sessions(left, rows, expiry, dry_run=work.dry_run)

        left = session_ids[:]
        while left:
            del left[: (await self._piece(work, delete)).done]
        self._ingest.forget(session_ids)

    async def _flush(self, timeout: float) -> None:
        """Everything accepted so far into the sink, and the cursor past it on the disk."""
        if not self._flusher.runner.can_delete:
            raise CannotDelete(f"The sink {self._flusher.runner.sink.name} cannot delete rows")
        through = self._backlog.accepted_through
        error = (await self._flusher.flush(timeout)).error
        if error is not None:
            raise error
        if not await self._checkpointer.make_durable(through):
            raise FlushFailed("The journal's cursor cannot be written, so a crash might bring deleted rows back")

    async def _drop_rejected(self, session_id: str, task_id: str | None = None) -> int:
        try:
            return await asyncio.to_thread(drop_rejected, self._rejected, session_id, task_id)
        except OSError as exc:
            raise FlushFailed(f"{exc.filename or self._rejected} cannot be read or written: {reason(exc)}") from exc

    @contextlib.contextmanager
    def _work(self, by: DeletedBy, *, dry_run: bool = False, **what: str) -> Iterator[_Work]:
        """One request or run: its sums, and its line in the log, also if it did not come to its end."""
        work = _Work(by, dry_run, Deleted(), ChunkSize(PIECE), self._flusher.runner)
        began = time.monotonic()
        problem = ""
        try:
            yield work
        except PersistError as exc:
            problem = str(exc)
            raise
        finally:
            deleted = work.deleted
            deleted.duration_ms = round((time.monotonic() - began) * 1000)
            if not (dry_run or deleted.nothing):
                figures = {"sessions": deleted.sessions, "tasks": deleted.tasks, "rejected": deleted.rejected}
                end = {"stopped": problem} if problem else {}
                keys = {name: printable(key) for name, key in what.items()}
                logger.info("deleted", by=by, **keys, **figures, ms=deleted.duration_ms, **end)

    async def _piece(self, work: _Work, delete: Callable[[int], Awaitable[Removed]]) -> Removed:
        began = time.monotonic()  # a turn that was long in coming makes the next piece smaller, which is right too
        removed = await self._in_turn(work, lambda: delete(work.size.rows))
        work.size.succeeded(work.size.rows, time.monotonic() - began)
        work.deleted.sessions += removed.sessions
        work.deleted.tasks += removed.tasks
        if not work.dry_run:
            self._metrics.deletions.add(work.by, {"session": removed.sessions, "task": removed.tasks})
        return removed

    async def _in_turn(self, work: _Work, call: Callable[[], Awaitable[T]]) -> T:
        async def in_turn(runner: SinkRunner) -> T:
            if self._closed:
                raise NotAccepting("The service is shutting down")
            if runner is not work.runner:
                raise SinkUnavailable("the sink was changed meanwhile; send the request again")
            return await call()

        return await self._flusher.in_turn(in_turn)


@dataclass(slots=True)
class _Work:
    by: DeletedBy
    dry_run: bool
    deleted: Deleted
    size: ChunkSize
    #: The sink at its beginning; a reload may switch to another.
    runner: SinkRunner


def _refuse_newer(watch: Watch, what: str) -> None:
    """Rows that were accepted since the flush are in the journal, and a replay would bring them back."""
    if watch.seen:
        raise RowsWait(f"Newer rows of {what} were accepted meanwhile")
