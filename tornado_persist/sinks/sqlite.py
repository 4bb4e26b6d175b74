"""The embedded database."""

from __future__ import annotations

import re
import sqlite3
import time
from collections.abc import Iterator, Sequence
from contextlib import closing
from itertools import chain, islice
from pathlib import Path
from typing import Any, ClassVar

from msgspec.structs import astuple
from pydantic import Field
from sqlalchemy import JSON, URL, Connection, Engine, Table, event

from tornado_persist.errors import SinkUnavailable
from tornado_persist.records.models import Batch, Kind, Row
from tornado_persist.sinks.guard import GUARDED, NEVER
from tornado_persist.sinks.reader import READ_TIMEOUT
from tornado_persist.sinks.sql import LOCK_TIMEOUT, Blame, Fault, SQLSink, make_engine
from tornado_persist.sinks.sqlsettings import SQLSettings
from tornado_persist.sinks.statements import needed_columns, quoted
from tornado_persist.sinks.tables import TABLES, dump_json
from tornado_persist.sinks.walguard import WALGuard

#: Primary result codes that depend on the row; a trigger's RAISE counts as a constraint.
_ROWS = {sqlite3.SQLITE_CONSTRAINT, sqlite3.SQLITE_TOOBIG, sqlite3.SQLITE_MISMATCH}
#: Primary result codes of the server. SQLITE_ERROR may mean either.
_SERVER = {
    *(sqlite3.SQLITE_INTERNAL, sqlite3.SQLITE_PERM, sqlite3.SQLITE_ABORT, sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED),
    *(sqlite3.SQLITE_NOMEM, sqlite3.SQLITE_READONLY, sqlite3.SQLITE_INTERRUPT, sqlite3.SQLITE_IOERR),
    *(sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTFOUND, sqlite3.SQLITE_FULL, sqlite3.SQLITE_CANTOPEN),
    *(sqlite3.SQLITE_PROTOCOL, sqlite3.SQLITE_EMPTY, sqlite3.SQLITE_SCHEMA, sqlite3.SQLITE_MISUSE),
    *(sqlite3.SQLITE_NOLFS, sqlite3.SQLITE_AUTH, sqlite3.SQLITE_FORMAT, sqlite3.SQLITE_RANGE, sqlite3.SQLITE_NOTADB),
}
#: Seconds between two tries to get a lock that SQLite does not wait for.
RETRY_EVERY = 0.01
#: ``guard.NEVER`` in a third of the bytes: texts are compared, and it is the beginning of the whole one.
_NEVER = NEVER[:10]
#: Rows of one statement.
_STATEMENTS = (512, 64, 8, 1)

#: Messages of SQLITE_ERROR when a statement does not fit the schema. Others come from functions in triggers and in
#: indexes on expressions ("malformed JSON"), and may depend on the row.
_SCHEMA = re.compile(
    r"no such |near |cannot |unable to |unsafe use of |ON CONFLICT clause |table \S+ (has no column|may not)"
)


class SQLiteSettings(SQLSettings):
    """``[sinks.sqlite]``."""

    #: The database file; a relative path is below ``data_dir``.
    path: str = Field(default="persist.db", min_length=1)


class SQLiteSink(SQLSink[SQLiteSettings]):
    """Upserts into an SQLite file, in WAL mode; a commit is on the disk."""

    name = "sqlite"
    Settings: ClassVar[type[SQLiteSettings]] = SQLiteSettings
    driver_error = sqlite3.Error
    no_key_error = "SQLITE_ERROR ON CONFLICT clause does not match"

    def __init__(self, settings: SQLiteSettings, data_dir: Path) -> None:
        super().__init__(settings, data_dir)
        self._guard = WALGuard(self.path)

    @property
    def path(self) -> Path:
        """The database file."""
        return (self.data_dir / self.settings.path).absolute()

    @property
    def address(self) -> str:
        return str(self.path)

    def missing(self) -> list[str]:
        return super().missing() if self.path.exists() else [str(self.path)]

    def _create_engine(self) -> Engine:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._guard.begin()
        engine = make_engine(
            URL.create("sqlite", database=str(self.path)),
            # Without isolation_level the driver begins no transactions by itself; see below.
            connect_args={"timeout": LOCK_TIMEOUT, "isolation_level": None, "check_same_thread": False},
        )
        # Takes the write lock at the start, or waits for it: a transaction that begins as a reader may be refused later
        # without waiting.
        event.listen(engine, "begin", lambda connection: connection.exec_driver_sql("BEGIN IMMEDIATE"))
        return engine

    def _set_up(self, connection: Connection) -> None:
        driver = _driver(connection)
        # If another process changes the mode at the same time, SQLite may refuse without waiting for the lock.
        deadline = time.monotonic() + LOCK_TIMEOUT
        while True:
            try:
                # Where WAL is not available (some network file systems) SQLite keeps its rollback journal, which is
                # durable too.
                driver.execute("PRAGMA journal_mode = WAL").close()
                break
            except sqlite3.OperationalError as exc:
                if exc.sqlite_errorcode & 0xFF != sqlite3.SQLITE_BUSY or time.monotonic() > deadline:
                    raise
                time.sleep(RETRY_EVERY)
        driver.execute("PRAGMA synchronous = FULL").close()

    def _check(self, connection: Connection) -> None:
        self._guard.opened()

    def _new_key(self, table: Table, old_name: str) -> str:
        # SQLite cannot change a primary key.
        columns = ", ".join(column.name for column in needed_columns(table))
        return (
            f"Run: ALTER TABLE {table.name} RENAME TO {table.name}_old; start the service, which makes the new table;"
            f" then INSERT OR IGNORE INTO {table.name} ({columns}) SELECT {columns} FROM {table.name}_old"
        )

    def _before_use(self, connection: Connection) -> None:
        # SQLite would go on writing to a deleted file, and all of it would be lost.
        self._guard.look(_driver(connection))

    def write(self, batch: Batch) -> None:
        super().write(batch)
        if self._connection is not None:
            self._guard.renew(_driver(self._connection))

    def close(self) -> None:
        super().close()
        self._guard.end()

    def _upsert(self, connection: Connection, kind: Kind, fields: Sequence[str], rows: Sequence[Row]) -> None:
        never = self._never(kind, fields)
        columns = ", ".join(map(quoted, [*fields, *never]))
        head = f"INSERT INTO {quoted(TABLES[kind].name)} ({columns}) VALUES "
        marks = ["?"] * len(fields) + [f"'{_NEVER}'"] * len(never)
        one = f"({', '.join(marks)})"
        clauses = self._clauses(kind, fields)
        driver = _driver(connection)
        most = driver.getlimit(sqlite3.SQLITE_LIMIT_VARIABLE_NUMBER) // len(fields)
        values = _values(kind, fields, rows)
        left = len(rows)
        # Many rows in a statement: the driver releases the GIL for each statement, and under load waits to get it back.
        # One row in a statement took fifty times as long. Few sizes, because the driver caches prepared statements.
        for size in _STATEMENTS:
            if size <= most:
                inserts = head + ", ".join([one] * size)
                statements = [f"{inserts} {clause}" for clause in clauses]
                for _ in range(left // size):
                    given = [*chain.from_iterable(islice(values, size))]
                    for statement in statements:
                        with closing(driver.execute(statement, given)) as done:
                            if done.rowcount == size:
                                break
                left %= size

    def _connect_reader(self) -> Connection:
        file = self._guard.file
        if file is None or not self._guard.unchanged():  # another file might take the WAL beside it for its own
            raise SinkUnavailable(f"{self.path} is not open")
        # Read-only, so that it never removes the WAL when it is closed.
        place = f"{self.path.resolve().as_uri()}?mode=ro"
        options: dict[str, Any] = {"timeout": READ_TIMEOUT, "isolation_level": None, "check_same_thread": False}
        engine = make_engine(URL.create("sqlite"), creator=lambda: sqlite3.connect(place, uri=True, **options))
        connection = engine.connect()
        connection.info["file"] = file  # kept until the connection is closed
        return connection

    def _begin_read(self, connection: Connection) -> None:
        if not self._guard.unchanged():
            raise SinkUnavailable(f"{self.path} was closed, removed or replaced")
        deadline = time.monotonic() + READ_TIMEOUT
        driver = _driver(connection)
        driver.set_progress_handler(lambda: time.monotonic() > deadline, 10_000)
        driver.execute("BEGIN").close()

    def _describe(self, connection: Connection) -> str:
        return f"SQLite {sqlite3.sqlite_version} at {self.path}"

    def _fault(self, error: Exception) -> Fault:
        code = getattr(error, "sqlite_errorcode", None)
        message = str(error)
        return Fault(_blame(code, message), getattr(error, "sqlite_errorname", ""), message)


def _blame(code: int | None, message: str) -> Blame:
    if code is None:
        return Blame.SERVER  # the driver's own: a closed database
    if code == sqlite3.SQLITE_BUSY_SNAPSHOT:
        return Blame.CONFLICT
    primary = code & 0xFF
    if code == sqlite3.SQLITE_CONSTRAINT_NOTNULL:
        # "NOT NULL constraint failed: table.column": a column that none of our rows has is the schema's fault.
        table, _, column = message.rpartition(": ")[2].partition(".")
        ours = any(column in known.c for known in TABLES.values() if known.name == table)
        return Blame.ROWS if ours else Blame.SERVER
    if primary in _ROWS:
        return Blame.ROWS
    if primary in _SERVER or (primary == sqlite3.SQLITE_ERROR and _SCHEMA.match(message)):
        return Blame.SERVER
    return Blame.UNKNOWN


def _values(kind: Kind, fields: Sequence[str], rows: Sequence[Row]) -> Iterator[Sequence[Any]]:
    """The rows as the driver takes them: JSON as text."""
    values = map(astuple, rows)
    objects = {name for name in fields if isinstance(GUARDED[kind].c[name].type, JSON)}
    if not objects:
        return values
    return (
        [
            dump_json(value) if name in objects and value is not None else value  # null stays null
            for name, value in zip(fields, row, strict=True)
        ]
        for row in values
    )


def _driver(connection: Connection) -> Any:
    return connection.connection.driver_connection
