"""Reading rows back, with what was accepted before: a fresh read flushes first, and then asks the sink."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from contextvars import Context
from dataclasses import replace
from typing import Any, NamedTuple

import msgspec

from tornado_persist.errors import PersistError, ReadFailed
from tornado_persist.pipeline.backlog import Backlog
from tornado_persist.pipeline.flusher import Flusher
from tornado_persist.records.models import KEYS, KINDS, STATUSES, Fields, Kind
from tornado_persist.records.queries import FINISHED, Query
from tornado_persist.sinks.reader import Reader, ReadPool
from tornado_persist.sinks.runner import SinkRunner

#: Bytes of the rows of one answer, at most; a row that is longer comes alone.
MAX_BYTES = 8 << 20
#: What a session's progress is computed from, beside its tasks.
_COUNTED = ("status", "total_tasks", *(f"{status}_tasks" for status in FINISHED))
#: Seconds from one flush for the sake of reads to the next.
FLUSH_EVERY = 0.05

_encoder = msgspec.json.Encoder(decimal_format="number", enc_hook=str)


class Found(NamedTuple):
    """An answer's rows, each as JSON."""

    rows: list[bytes]
    last: tuple[str, ...] | None  #: the key after which the query goes on; None: there are no more rows
    total: int | None  #: rows that meet the conditions, if that was asked for


class Reads:
    """Reads of the flusher's sink."""

    def __init__(self, flusher: Flusher, backlog: Backlog, *, statuses: tuple[str, ...] = STATUSES) -> None:
        """``statuses``: those that counts of tasks always name."""
        self._flusher = flusher
        self._backlog = backlog
        self.statuses = statuses
        self._pool = ReadPool(flusher.runner.sink.reader, flusher.runner.sink.name)
        self._flush: asyncio.Task[PersistError | None] | None = None
        self._flushed_at = float("-inf")

    @property
    def pending(self) -> int:
        """Accepted rows that are not in the sink."""
        return sum(map(self._backlog.pending, KINDS))

    async def read_from(self, runner: SinkRunner) -> None:
        """Read from another sink from now on."""
        old, self._pool = self._pool, ReadPool(runner.sink.reader, runner.sink.name)
        await old.close()

    async def close(self) -> None:
        """Close the connections: before the sink, which is to be the last."""
        await self._pool.close()

    async def freshen(self, timeout: float) -> None:
        """Wait until every row accepted before the call is in the sink, or rejected.

        Callers share a flush that began after they came; for their sake at most one begins in ``FLUSH_EVERY`` seconds.

        Raises:
            ReadFailed: the sink is down, or it takes longer than ``timeout`` seconds.
        """
        through = self._backlog.accepted_through
        try:
            async with asyncio.timeout(timeout):
                while self._flusher.flushed_through < through:
                    if self._flusher.retry_in:  # while the sink fails only the backoff tries
                        raise ReadFailed("The database cannot be written to now, so what waits for it cannot be read")
                    joined = self._flush is not None and not self._flush.done()
                    if self._flush is None or self._flush.done():
                        self._flush = asyncio.create_task(self._flush_soon(), context=Context())
                    error = await asyncio.shield(self._flush)
                    if error is not None and not joined:
                        raise ReadFailed(f"What waits for the database cannot be read: {error}")
        except TimeoutError:
            raise ReadFailed(
                f"Rows that wait were not written in {timeout:g} seconds; fresh=false reads what is there"
            ) from None

    async def _flush_soon(self) -> PersistError | None:
        loop = asyncio.get_running_loop()
        await asyncio.sleep(max(0.0, self._flushed_at + FLUSH_EVERY - loop.time()))
        self._flushed_at = loop.time()
        return await self._flusher.flush_through(self._backlog.accepted_through)

    async def row(self, kind: Kind, key: tuple[str, ...], fields: tuple[str, ...] = ()) -> Fields | None:
        """One row; a session with ``tasks``, how many of each status are stored, and ``progress``. None: no such row.

        Raises:
            NotReadable, ReadFailed: see :meth:`ReadPool.read`.
        """
        where = {name: (value,) for name, value in zip(KEYS[kind], key, strict=True)}
        query = Query(kind, where, limit=1, fields=fields)

        def read(reader: Reader) -> Fields | None:
            rows = reader.page(query, MAX_BYTES).rows
            if rows and kind == "session" and not fields:
                self._add_counts(reader, rows)
            return _kept(rows[0]) if rows else None

        return await self._pool.read(read, one_row=True)

    async def page(self, query: Query, *, counts: bool = False, total: bool = False) -> Found:
        """Rows of a query. ``counts``: sessions with ``tasks`` and ``progress``; ``total``: count all of them.

        Raises:
            NotReadable, ReadFailed: see :meth:`ReadPool.read`.
        """

        wide = replace(query, fields=(*query.fields, *_COUNTED)) if counts and query.fields else query

        def read(reader: Reader) -> Found:
            rows, more = reader.page(wide, MAX_BYTES)
            if counts:
                self._add_counts(reader, rows)
                shown = {*query.shown(), "tasks", "progress"}
                rows = [{name: value for name, value in row.items() if name in shown} for row in rows]
            texts: list[bytes] = []
            size = 0
            for row in rows:
                encoded = encode(row)
                size += len(encoded) + 2
                if texts and size > MAX_BYTES:
                    more = True
                    break
                texts.append(encoded)
            last = tuple(str(rows[len(texts) - 1][name]) for name in KEYS[query.kind]) if more and texts else None
            return Found(texts, last, reader.count(query) if total else None)

        return await self._pool.read(read)

    def _add_counts(self, reader: Reader, rows: list[Fields]) -> None:
        counts = reader.count_tasks([row["session_id"] for row in rows])
        for row in rows:
            tasks = dict.fromkeys(self.statuses, 0) | dict(counts.get(row["session_id"], {}))
            row |= {"tasks": tasks, "progress": progress(row, tasks)}


def progress(session: Mapping[str, Any], tasks: Mapping[str, int]) -> float:
    """How much of a session is done, in percent: tasks completed or failed, of those stored or announced.

    A session without stored tasks counts by its own counters.
    """
    stored = sum(tasks.values())
    done = sum(tasks.get(status, 0) for status in FINISHED)
    if not stored:
        done = sum(_count(session.get(f"{status}_tasks")) for status in FINISHED)
    whole = max(_count(session.get("total_tasks")), stored)
    if not whole:
        return 100.0 if session.get("status") == "completed" else 0.0
    return round(min(100.0, 100 * done / whole), 1)


def _count(value: object) -> int:
    return value if isinstance(value, int) else 0  # SQLite keeps what somebody else has stored, whatever it is


def encode(row: Mapping[str, Any]) -> bytes:
    """A row as JSON."""
    return _encoder.encode(_kept(row))


def _kept(row: Mapping[str, Any]) -> Fields:
    """The row with its objects as text: msgspec writes no integer past 64 bits."""
    return {
        name: msgspec.Raw(json.dumps(value, ensure_ascii=False).encode()) if isinstance(value, dict) else value
        for name, value in row.items()
    }
