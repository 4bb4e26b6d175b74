"""The embedded database."""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

from pydantic import Field
from sqlalchemy import URL, Connection, Engine, NullPool, create_engine, event
from sqlalchemy.dialects.sqlite import insert

from tornado_persist.errors import SinkUnavailable
from tornado_persist.models import KEYS, Kind, Row
from tornado_persist.sinks.sql import LOCK_TIMEOUT, Fault, SQLSettings, SQLSink, updated
from tornado_persist.sinks.tables import TABLES

#: Result codes that depend on the row; triggers' RAISE is among the constraints.
_ROWS = {sqlite3.SQLITE_CONSTRAINT, sqlite3.SQLITE_TOOBIG, sqlite3.SQLITE_MISMATCH}


class SQLiteSettings(SQLSettings):
    """``[sinks.sqlite]``."""

    #: The database file; a relative path is below ``data_dir``.
    path: str = Field(default="persist.db", min_length=1)


class SQLiteSink(SQLSink[SQLiteSettings]):
    """Upserts into an SQLite file, in WAL mode; a commit is on the disk."""

    name = "sqlite"
    Settings: ClassVar[type[SQLiteSettings]] = SQLiteSettings
    driver_error = sqlite3.Error

    @property
    def path(self) -> Path:
        """The database file."""
        return (self.data_dir / self.settings.path).absolute()

    def _create_engine(self) -> Engine:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        engine = create_engine(
            URL.create("sqlite", database=str(self.path)),
            poolclass=NullPool,
            pool_reset_on_return=None,
            hide_parameters=True,
            # Without isolation_level the driver begins no transactions by itself; see below.
            connect_args={"timeout": LOCK_TIMEOUT, "isolation_level": None, "check_same_thread": False},
        )
        # Takes the write lock, or waits for it, at the start: one that begins as a reader may be refused later on
        # without waiting.
        event.listen(engine, "begin", lambda connection: connection.exec_driver_sql("BEGIN IMMEDIATE"))
        return engine

    def _set_up(self, connection: Connection) -> None:
        driver = _driver(connection)
        # Where WAL is not to be had (some network file systems) SQLite stays with its rollback journal, durable too.
        driver.execute("PRAGMA journal_mode = WAL").close()
        driver.execute("PRAGMA synchronous = FULL").close()

    def _check(self, connection: Connection) -> None:
        self._identity = self._identify()

    def _before_use(self, connection: Connection) -> None:
        if self._identify() != self._identity:
            raise SinkUnavailable(f"{self.path} was removed or replaced while it was open")

    def _identify(self) -> tuple[int, int]:
        # SQLite would go on writing to a file that has lost its name, and all of it would vanish at the end.
        status = self.path.stat()
        return status.st_dev, status.st_ino

    def _upsert(self, connection: Connection, kind: Kind, fields: Sequence[str], rows: Sequence[Row]) -> None:
        statement = insert(TABLES[kind])
        connection.execute(
            statement.on_conflict_do_update(
                index_elements=[KEYS[kind]],
                set_={name: statement.excluded[name] for name in updated(kind, fields)},
            ),
            rows,
        )

    def _describe(self, connection: Connection) -> str:
        return f"SQLite {sqlite3.sqlite_version} at {self.path}"

    def _fault(self, error: Exception) -> Fault:
        code = getattr(error, "sqlite_errorcode", 0)
        message = str(error)
        rows = code & 0xFF in _ROWS
        if code == sqlite3.SQLITE_CONSTRAINT_NOTNULL:
            # "NOT NULL constraint failed: table.column": of a column that no row of ours can fill, the schema's fault.
            table, _, column = message.rpartition(": ")[2].partition(".")
            rows = any(column in known.c for known in TABLES.values() if known.name == table)
        return Fault(rows, getattr(error, "sqlite_errorname", ""), message)


def _driver(connection: Connection) -> Any:
    return connection.connection.driver_connection
