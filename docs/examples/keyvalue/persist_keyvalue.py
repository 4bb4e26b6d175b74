"""A sink for tornado-persist: rows as JSON in a key-value store, which here is one file.

The store is a table of SQLite with a key and a value, so that the example needs nothing else. What matters is the same
for any store: a write commits as a whole, a row is read, merged and written back, and every failure is told apart.
"""

from __future__ import annotations

import json
import sqlite3
import time
from collections.abc import Collection, Iterator, Mapping
from datetime import datetime
from pathlib import Path
from typing import ClassVar

from pydantic import Field

from tornado_persist.errors import BatchRejected, SinkUnavailable
from tornado_persist.records.models import (
    DEFAULTS,
    EXTRA,
    KINDS,
    Batch,
    Fields,
    Kind,
    Row,
    Session,
    Task,
    key_of,
    merge_extra,
)
from tornado_persist.records.queries import Query
from tornado_persist.sinks.base import Sink, SinkSettings
from tornado_persist.sinks.reader import READ_TIMEOUT, Page, Reader

FIELDS: dict[Kind, tuple[str, ...]] = {
    "session": (*Session.__annotations__, EXTRA),
    "task": (*Task.__annotations__, EXTRA),
}


class KeyValueSettings(SinkSettings):
    """``[sinks.keyvalue]``."""

    path: str = Field("rows.kv", min_length=1, description="the file; a relative path is below data_dir")


class KeyValueSink(Sink[KeyValueSettings]):
    """Keeps each row under its key, as a JSON object with every field."""

    name: ClassVar[str] = "keyvalue"
    Settings: ClassVar[type[KeyValueSettings]] = KeyValueSettings

    def __init__(self, settings: KeyValueSettings, data_dir: Path) -> None:
        super().__init__(settings, data_dir)
        self.path = data_dir / settings.path
        self._store: sqlite3.Connection | None = None

    def open(self) -> None:
        self.close()
        try:
            # No transactions but those begun below; the service calls from one thread, but not from this one.
            self._store = sqlite3.connect(self.path, isolation_level=None, check_same_thread=False, timeout=10)
            self._store.execute("PRAGMA synchronous = FULL")  # what is committed has to survive a power cut
            self._store.execute("CREATE TABLE IF NOT EXISTS rows (kind, key, value, PRIMARY KEY (kind, key))")
        except sqlite3.Error as exc:
            self.close()
            raise _unavailable(exc) from exc

    def write(self, batch: Batch) -> None:
        store = self._opened()
        try:
            with store:  # commits at the end, or rolls back
                store.execute("BEGIN IMMEDIATE")
                for kind in KINDS:
                    for row in batch.rows(kind):
                        _put(store, kind, row)
        except sqlite3.IntegrityError as exc:  # a constraint or a trigger: what is in the row is at fault
            raise BatchRejected(str(exc), code=exc.sqlite_errorname) from exc
        except sqlite3.Error as exc:  # anything else is nobody's fault who sent the row
            raise _unavailable(exc) from exc

    def ping(self) -> None:
        try:
            self._opened().execute("SELECT 1 FROM rows LIMIT 1")
        except sqlite3.Error as exc:
            raise _unavailable(exc) from exc

    def close(self) -> None:
        store, self._store = self._store, None
        if store is not None:
            store.close()

    def describe(self) -> str:
        return f"a key-value store at {self.path}"

    def reader(self) -> Reader:
        return KeyValueReader(self.path)

    # These two are needed by records.require_session and by `persistd rejected retry` alone.

    def find_sessions(self, session_ids: Collection[str]) -> set[str]:
        return {row["session_id"] for row in self._find("session", [(id,) for id in session_ids])}

    def find_updated(self, kind: Kind, keys: Collection[tuple[str, ...]]) -> dict[tuple[str, ...], datetime]:
        found = self._find(kind, keys)
        return {key_of(kind, row): datetime.fromisoformat(row["updated_at"]) for row in found}

    def _find(self, kind: Kind, keys: Collection[tuple[str, ...]]) -> list[Fields]:
        query = "SELECT value FROM rows WHERE kind = ? AND key IN (SELECT value FROM json_each(?))"
        try:
            found = self._opened().execute(query, (kind, json.dumps([json.dumps(key) for key in keys]))).fetchall()
        except sqlite3.Error as exc:
            raise _unavailable(exc) from exc
        return [json.loads(value) for (value,) in found]

    def _opened(self) -> sqlite3.Connection:
        if self._store is None:
            raise SinkUnavailable("the store is not open")
        return self._store


class KeyValueReader(Reader):
    """Reads rows beside the sink, over a connection of its own. It looks at every row; a larger store has an index."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._store: sqlite3.Connection | None = None

    def open(self) -> None:
        self.close()
        try:
            self._store = sqlite3.connect(f"{self._path.as_uri()}?mode=ro", uri=True, check_same_thread=False)
        except sqlite3.Error as exc:
            raise _unavailable(exc) from exc

    def close(self) -> None:
        store, self._store = self._store, None
        if store is not None:
            store.close()

    def page(self, query: Query, max_bytes: int) -> Page:
        found = self._rows(query, query.after)
        if query.by_row:
            found = iter(sorted(found, key=lambda it: (it[0]["sheet_name"], it[0]["row_index"], it[0]["task_id"])))
        rows: list[Fields] = []
        size = 0
        for row, length in found:
            size += length
            if rows and (len(rows) == query.limit or size > max_bytes):
                return Page(rows, more=True)
            rows.append({name: row[name] for name in query.shown() if name != EXTRA or row[EXTRA] is not None})
        return Page(rows, more=False)

    def count(self, query: Query) -> int:
        return sum(1 for _ in self._rows(query))

    def count_tasks(self, session_ids: Collection[str]) -> Mapping[str, Mapping[str, int]]:
        counts: dict[str, dict[str, int]] = {}
        for row, _ in self._rows(Query("task", {"session_id": tuple(session_ids)})):
            its = counts.setdefault(row["session_id"], {})
            its[row["status"]] = its.get(row["status"], 0) + 1
        return counts

    def _rows(self, query: Query, after: tuple[str, ...] | None = None) -> Iterator[tuple[Fields, int]]:
        """Rows that meet the conditions, in the order of their keys, each with the length of its text."""
        deadline = time.monotonic() + READ_TIMEOUT
        if self._store is None:
            raise SinkUnavailable("the store is not open")
        select = "SELECT value FROM rows WHERE kind = ? AND key > ? ORDER BY key"
        try:
            # One statement sees one state of the store.
            for (value,) in self._store.execute(select, (query.kind, json.dumps(after) if after else "")):
                if time.monotonic() > deadline:
                    raise SinkUnavailable(f"the read took more than {READ_TIMEOUT:g} seconds")
                row = json.loads(value)
                if (
                    all(row[name] in values for name, values in query.where.items())
                    and all(row[name] not in values for name, values in query.without.items())
                    and all(row[name] >= at for name, at in query.since.items())
                ):
                    yield row, len(value)
        except sqlite3.Error as exc:
            raise _unavailable(exc) from exc


def _put(store: sqlite3.Connection, kind: Kind, row: Row) -> None:
    """The merge rule: a field that the row has replaces the stored one, a field that it has not stays."""
    key = json.dumps(key_of(kind, row))  # a task is known by its session and its own id
    found = store.execute("SELECT value FROM rows WHERE kind = ? AND key = ?", (kind, key)).fetchone()
    stored: Fields = json.loads(found[0]) if found else {EXTRA: None}
    if found is None:
        merged = {**dict.fromkeys(FIELDS[kind]), **DEFAULTS[kind], **row}
    else:
        merged = {**stored, **row, "created_at": stored["created_at"]}
    if EXTRA in row:  # the fields that the specification does not name; they merge one by one
        merged[EXTRA] = merge_extra(stored[EXTRA], row[EXTRA])
    store.execute("REPLACE INTO rows VALUES (?, ?, ?)", (kind, key, json.dumps(merged)))


def _unavailable(error: sqlite3.Error) -> SinkUnavailable:
    return SinkUnavailable(str(error), code=getattr(error, "sqlite_errorname", ""))
