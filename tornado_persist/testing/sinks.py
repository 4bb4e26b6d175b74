"""Sinks in memory: one that works, and some that fail on command."""

from __future__ import annotations

import copy
import threading
from collections.abc import Collection, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, ClassVar, TypeAlias

from tornado_persist.errors import BatchRejected, SinkConflict, SinkUnavailable
from tornado_persist.records.models import (
    DEFAULTS,
    EXTRA,
    KINDS,
    Batch,
    Fields,
    Kind,
    Row,
    key_of,
    merge_extra,
)
from tornado_persist.records.queries import SHOWN, Query
from tornado_persist.sinks.base import Expiry, Removed, Sink, SinkSettings
from tornado_persist.sinks.reader import Page, Reader

#: What a sink holds: its rows by kind and key, the values of the fields in ``KEYS``.
Stored: TypeAlias = dict[Kind, dict[tuple[str, ...], Fields]]

#: Every field that a stored row has.
FIELDS: Mapping[Kind, tuple[str, ...]] = SHOWN


def complete(kind: Kind, row: Row | Fields) -> Fields:
    """A row as it is stored when it is new: fields left out have their defaults."""
    return {**dict.fromkeys(FIELDS[kind]), **DEFAULTS[kind], **row}


def merge(stored: Stored, batch: Batch) -> None:
    """What writing ``batch`` does to ``stored``: the merge rule, in its plainest form."""
    for kind in KINDS:
        for row in batch.rows(kind):
            key = key_of(kind, row)
            old = stored[kind].get(key)
            new = complete(kind, row) if old is None else {**old, **row, "created_at": old["created_at"]}
            if EXTRA in row:
                new[EXTRA] = merge_extra(old and old[EXTRA], row[EXTRA])
            stored[kind][key] = new


def nothing() -> Stored:
    """The content of an empty sink."""
    return {kind: {} for kind in KINDS}


class MemorySink(Sink[SinkSettings]):
    """Keeps its rows in :attr:`stored`, also when it is closed and opened again."""

    name: ClassVar[str] = "memory"
    Settings: ClassVar[type[SinkSettings]] = SinkSettings

    def __init__(self, settings: SinkSettings | None = None, data_dir: Path | None = None) -> None:
        super().__init__(settings or SinkSettings(), data_dir or Path())
        self.stored: Stored = nothing()
        #: Every batch written, in order.
        self.batches: list[Batch] = []
        self.is_open = False

    def open(self) -> None:
        self.is_open = True

    def write(self, batch: Batch) -> None:
        self._need_open()
        merge(self.stored, batch)
        self.batches.append(Batch(list(map(copy.copy, batch.sessions)), list(map(copy.copy, batch.tasks))))

    def ping(self) -> None:
        self._need_open()

    def close(self) -> None:
        self.is_open = False

    def describe(self) -> str:
        return "memory"

    def find_sessions(self, session_ids: Collection[str]) -> set[str]:
        self._need_open()
        return {session_id for session_id in session_ids if (session_id,) in self.stored["session"]}

    def reader(self) -> Reader:
        return MemoryReader(self)

    def delete_sessions(
        self, session_ids: Sequence[str], limit: int, expiry: Expiry | None = None, *, dry_run: bool = False
    ) -> Removed:
        self._need_open()
        sessions, tasks = dict(self.stored["session"]), dict(self.stored["task"])
        done = 0
        for session_id in session_ids:
            if expiry is None or self._is_expired(session_id, expiry):
                room = limit - (len(self.stored["session"]) - len(sessions)) - (len(self.stored["task"]) - len(tasks))
                its_tasks = sorted(key for key in tasks if key[0] == session_id)
                for key in its_tasks if dry_run else its_tasks[:room]:
                    del tasks[key]
                if not dry_run and len(its_tasks) >= room:
                    break
                sessions.pop((session_id,), None)
            done += 1
        removed = Removed(len(self.stored["session"]) - len(sessions), len(self.stored["task"]) - len(tasks), done)
        if not dry_run:
            self.stored = {"session": sessions, "task": tasks}
        return removed

    def delete_task(self, session_id: str, task_id: str) -> bool:
        self._need_open()
        return self.stored["task"].pop((session_id, task_id), None) is not None

    def find_expired(self, expiry: Expiry, after: str | None, limit: int) -> tuple[list[str], str | None]:
        self._need_open()
        kind: Kind = "session" if expiry.status is not None else "task"
        page = sorted({key[0] for key in self.stored[kind] if after is None or key[0] > after})[:limit]
        return [id for id in page if self._is_expired(id, expiry)], page[-1] if len(page) == limit else None

    def _is_expired(self, session_id: str, expiry: Expiry) -> bool:
        row = self.stored["session"].get((session_id,))
        rows = [row] if row else []
        rows += [task for key, task in self.stored["task"].items() if key[0] == session_id]
        status = row["status"] if row else None
        return status == expiry.status and all(datetime.fromisoformat(it["updated_at"]) <= expiry.before for it in rows)

    def _need_open(self) -> None:
        if not self.is_open:
            raise SinkUnavailable("the memory sink is not open")


class MemoryReader(Reader):
    """Reads what a memory sink has stored."""

    def __init__(self, sink: MemorySink) -> None:
        self._sink = sink

    def open(self) -> None:
        self._sink.ping()

    def close(self) -> None:
        pass

    def page(self, query: Query, max_bytes: int) -> Page:
        rows = self._rows(query)
        if query.by_row:
            rows.sort(key=lambda row: (row["sheet_name"], row["row_index"], key_of(query.kind, row)))
        rows = [row for row in rows if query.after is None or key_of(query.kind, row) > query.after]
        taken: list[Fields] = []
        room = max_bytes
        for row in rows[: query.limit]:
            room -= sum(len(value) for value in row.values() if isinstance(value, str))
            if taken and room < 0:
                break
            names = [name for name in query.shown() if name != EXTRA or row[name] is not None]
            taken.append({name: row[name] for name in names})
        return Page(taken, len(taken) < len(rows))

    def count(self, query: Query) -> int:
        return len(self._rows(query))

    def count_tasks(self, session_ids: Collection[str]) -> Mapping[str, Mapping[str, int]]:
        found: dict[str, dict[str, int]] = {}
        for row in self._rows(Query("task", {"session_id": tuple(session_ids)})):
            counts = found.setdefault(row["session_id"], {})
            counts[row["status"]] = counts.get(row["status"], 0) + 1
        return found

    def _rows(self, query: Query) -> list[Fields]:
        self._sink.ping()
        return [
            row
            for _, row in sorted(self._sink.stored[query.kind].copy().items())
            if all(row[name] in values for name, values in query.where.items())
            and not any(row[name] in values for name, values in query.without.items())
            and all(row[name] >= time for name, time in query.since.items())
        ]


class FlakySink(MemorySink):
    """A memory sink that fails on command. The commands may come from any thread.

    It holds its user to the interface: after a write that raised ``SinkUnavailable`` it wants ``close`` and ``open``,
    and says so with a ``RuntimeError``. After ``SinkConflict`` it does not.
    """

    name: ClassVar[str] = "flaky"

    def __init__(self, settings: SinkSettings | None = None, data_dir: Path | None = None) -> None:
        super().__init__(settings, data_dir)
        #: While true, all methods but ``close`` and ``describe`` raise ``SinkUnavailable``.
        self.down = False
        #: A batch with a row that has one of these ids is rejected.
        self.refused: set[str] = set()
        #: A batch with a row that has one of these ids fails with an unknown code (``SinkUnavailable``,
        #: ``unknown_code``).
        self.suspected: set[str] = set()
        #: The methods called, in order.
        self.calls: list[str] = []
        #: Set while a write is held, see :meth:`hold`.
        self.holding = threading.Event()
        self._failures: list[BaseException] = []
        self._go = threading.Event()
        self._go.set()
        self._broken = False

    def fail_next(self, count: int = 1, error: type[BaseException] | BaseException = SinkUnavailable) -> None:
        """Make the next ``count`` writes raise ``error`` (``SinkConflict``, for one), and write nothing."""
        make = error if isinstance(error, type) else lambda: copy.copy(error)
        self._failures += [make() for _ in range(count)]

    def hold(self) -> None:
        """Make writes wait, before they do anything, until :meth:`release`."""
        self._go.clear()

    def release(self) -> None:
        """Let the write that is held, and the later ones, go on."""
        self._go.set()

    def open(self) -> None:
        self.calls.append("open")
        self._need_up()
        self._broken = False
        super().open()

    def write(self, batch: Batch) -> None:
        self.calls.append("write")
        if self._broken:
            raise RuntimeError("write() after SinkUnavailable, without close() and open()")
        self.holding.set()
        released = self._go.wait(60)  # a test that forgets release() must not hang its run
        self.holding.clear()
        try:
            if not released:
                raise RuntimeError("release() was not called")
            self._need_up()
            if self._failures:
                raise self._failures.pop(0)
            ids = [row[f"{kind}_id"] for kind in KINDS for row in batch.rows(kind)]
            for id in ids:
                if id in self.refused:
                    raise BatchRejected(f"{id} is refused", code="refused")
            for id in ids:
                if id in self.suspected:
                    raise SinkUnavailable(f"something is odd about {id}", code="odd", unknown_code=True)
        except SinkConflict:
            raise
        except SinkUnavailable:
            self._broken = True
            raise
        super().write(batch)

    def ping(self) -> None:
        self.calls.append("ping")
        self._need_up()
        super().ping()

    def close(self) -> None:
        self.calls.append("close")
        super().close()

    def find_sessions(self, session_ids: Collection[str]) -> set[str]:
        self.calls.append("find_sessions")
        self._need_up()
        return super().find_sessions(session_ids)

    def delete_sessions(
        self, session_ids: Sequence[str], limit: int, expiry: Expiry | None = None, *, dry_run: bool = False
    ) -> Removed:
        self.calls.append("delete_sessions")
        self._need_up()
        return super().delete_sessions(session_ids, limit, expiry, dry_run=dry_run)

    def delete_task(self, session_id: str, task_id: str) -> bool:
        self.calls.append("delete_task")
        self._need_up()
        return super().delete_task(session_id, task_id)

    def find_expired(self, expiry: Expiry, after: str | None, limit: int) -> tuple[list[str], str | None]:
        self.calls.append("find_expired")
        self._need_up()
        return super().find_expired(expiry, after, limit)

    def _need_up(self) -> None:
        if self.down:
            raise SinkUnavailable("the flaky sink is down", code="down")


class AppendSink(FlakySink):
    """A flaky sink whose writes add up: :attr:`batches` shows a batch twice that was written twice.

    It has a position, so that a test can check that rows repeated after a crash are stored once. The crash itself
    is a new runner over the same object, for a new object starts empty.
    """

    name: ClassVar[str] = "append"
    #: What was appended stays.
    delete_sessions, delete_task, find_expired = Sink.delete_sessions, Sink.delete_task, Sink.find_expired

    def position(self) -> dict[str, Any]:
        self.calls.append("position")
        self._need_up()
        self._need_open()
        return {"sink": self.name, "batches": len(self.batches)}

    def rewind(self, position: dict[str, Any]) -> None:
        self.calls.append("rewind")
        self._need_up()
        self._need_open()
        if position.get("sink") == self.name:
            del self.batches[position["batches"] :]
            self.stored = nothing()
            for batch in self.batches:
                merge(self.stored, batch)
