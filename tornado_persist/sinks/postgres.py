"""PostgreSQL, through psycopg's COPY."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, TypeAlias

import psycopg
from psycopg.conninfo import make_conninfo
from pydantic import SecretStr
from sqlalchemy import URL, Connection, Engine

from tornado_persist.errors import SinkUnavailable
from tornado_persist.records.models import KINDS, Kind, Row
from tornado_persist.sinks.encoders import BLOCK, Encoder, batched
from tornado_persist.sinks.sql import (
    CONNECT_TIMEOUT,
    LOCK_TIMEOUT,
    Blame,
    Fault,
    SQLSink,
    URLSettings,
    make_engine,
    on_conflict,
    place,
    quoted,
)
from tornado_persist.sinks.tables import TABLES

Cursor: TypeAlias = psycopg.Cursor[Any]

#: Rows from which on it pays to try whether all of them are new.
_MANY = 500

#: Libpq's; what the URL says goes before. A server that vanished without a word is noticed within a minute.
_CONNECTION = {
    "connect_timeout": str(CONNECT_TIMEOUT),
    "keepalives": "1",
    "keepalives_idle": "30",
    "keepalives_interval": "5",
    "keepalives_count": "4",
    "tcp_user_timeout": "30000",
    "fallback_application_name": "tornado-persist",
}

#: What a server, database or role may have set otherwise.
_SESSION = {
    "timezone": "UTC",
    "datestyle": "ISO",
    "client_min_messages": "warning",
    "lock_timeout": f"{LOCK_TIMEOUT}s",
    # For the temporary tables: a whole transaction of ordinary rows fits.
    "temp_buffers": "32MB",
    # Between two flushes there may be a night.
    "idle_session_timeout": "0",
}

#: SQLSTATEs, each whole or by its class: an entry of five characters goes before one of two. What is not here nobody
#: knows: the codes that a trigger makes up, and those that some value of a row may cause as well as the schema, such as
#: 54000 (an index entry too large), 44000 (a view's CHECK OPTION), 21000 and P0002 (a trigger's query), or XX000, by
#: which extensions say whatever is wrong.
_BLAME = {
    # A value of the wrong form; a constraint; RAISE in a trigger.
    **dict.fromkeys(("22", "23", "P0001"), Blame.ROWS),
    # A deadlock is found by the server; who waits longer than LOCK_TIMEOUT (55P03) waits for one that still goes on.
    **dict.fromkeys(("40001", "40P01"), Blame.CONFLICT),
    # A sequence has run out; damaged pages.
    **dict.fromkeys(("2200H", "XX001", "XX002"), Blame.SERVER),
    # The connection, the state of the transaction, who we are.
    **dict.fromkeys(("03", "08", "0B", "24", "25", "26", "28", "2D", "34", "3B", "40"), Blame.SERVER),
    # What the schema lacks or forbids; foreign servers.
    **dict.fromkeys(("0A", "0L", "0P", "2B", "3D", "3F", "42", "55", "HV"), Blame.SERVER),
    # Resources, an operator, the system and its files.
    **dict.fromkeys(("53", "57", "58", "72", "F0"), Blame.SERVER),
}
_NOT_NULL = "23502"


class PostgresSettings(URLSettings):
    """``[sinks.postgres]``."""

    schemes = ("postgresql", "postgres", "postgresql+psycopg")
    driver = "postgresql+psycopg"

    #: ``postgresql://user:password@host:port/database``, with libpq's parameters as its query. For a Unix socket the
    #: query's ``host`` is the directory.
    url: SecretStr = SecretStr("postgresql://persist@localhost:5432/persist")

    @classmethod
    def _check_options(cls, options: Mapping[str, Any]) -> None:
        make_conninfo(**options)


#: Times that a shortcut is left out at most.
_LONGEST_PAUSE = 64


class Shortcut:
    """Whether to try a shortcut that may fail. After a failure it is left out 1, 2, 4, … 64 times."""

    def __init__(self) -> None:
        self._pause = self._left = 0

    def worth_a_try(self) -> bool:
        """Asked once each time."""
        self._left = max(0, self._left - 1)
        return not self._left

    def failed(self) -> None:
        self._pause = min(2 * self._pause or 1, _LONGEST_PAUSE)
        self._left = self._pause + 1

    def succeeded(self) -> None:
        self._pause = 0


class PostgresSink(SQLSink[PostgresSettings]):
    """Copies new rows into their table; others into a temporary one, to merge them from there."""

    name = "postgres"
    Settings: ClassVar[type[PostgresSettings]] = PostgresSettings
    driver_error = psycopg.Error
    no_key_error = "42P10"
    explain = "EXPLAIN "

    def __init__(self, settings: PostgresSettings, data_dir: Path) -> None:
        super().__init__(settings, data_dir)
        # Whether the rows of a chunk are all new.
        self._all_new = {kind: Shortcut() for kind in KINDS}

    def _create_engine(self) -> Engine:
        url = self.settings.parsed
        arguments: dict[str, Any] = {key: value for key, value in _CONNECTION.items() if key not in url.query}
        # A plan kept for the temporary table would be wrong for the next one.
        arguments |= {"client_encoding": "UTF8", "prepare_threshold": None}
        return make_engine(url, isolation_level="READ COMMITTED", use_native_hstore=False, connect_args=arguments)

    def _set_up(self, connection: Connection) -> None:
        with self._transaction(connection), _driver(connection).cursor() as cursor:
            cursor.execute("SHOW server_encoding")
            (encoding,) = cursor.fetchone() or ("",)
            if encoding != "UTF8":
                raise SinkUnavailable(f"the database's encoding is {encoding}, and it must be UTF8")
            for name, value in _SESSION.items():
                # Older servers lack some of them.
                cursor.execute(
                    "SELECT set_config(%(name)s, %(value)s, false) WHERE current_setting(%(name)s, true) IS NOT NULL",
                    {"name": name, "value": value},
                )
            # "off" would answer before the commit is on the disk; the other levels all wait for at least that.
            cursor.execute(
                "SELECT set_config('synchronous_commit', 'on', false) WHERE current_setting('synchronous_commit')='off'"
            )

    def _check(self, connection: Connection) -> None:
        # Not everybody may make temporary tables; better known at once.
        self._begin_write(connection)
        with _driver(connection).cursor() as cursor:
            for kind in KINDS:
                self._empty_staging(cursor, kind)

    def _begin_write(self, connection: Connection) -> None:
        # The temporary tables that there are for sure, and not empty; a commit empties them.
        self._filled: set[Kind] = set()

    def _empty_staging(self, cursor: Cursor, kind: Kind) -> None:
        """Have the temporary table of this connection empty. It may have to be made: a pooler between may have changed
        the connection."""
        if kind in self._filled:
            cursor.execute(f"TRUNCATE {_staging(kind)}".encode())
        else:
            cursor.execute(_STAGING[kind].encode())
            self._filled.add(kind)

    def _upsert(self, connection: Connection, kind: Kind, fields: Sequence[str], rows: Sequence[Row]) -> None:
        columns = ", ".join(map(quoted, fields))
        with _driver(connection).cursor() as cursor:
            if not self._insert_new(connection, cursor, kind, columns, fields, rows):
                self._merge(cursor, kind, columns, fields, rows)

    def _insert_new(
        self,
        connection: Connection,
        cursor: Cursor,
        kind: Kind,
        columns: str,
        fields: Sequence[str],
        rows: Sequence[Row],
    ) -> bool:
        """Copy rows that are all new straight into their table; False, and nothing done, if that does not work.

        It takes the server three quarters of what the way over the staging table takes.
        """
        all_new = self._all_new[kind]
        if len(rows) < _MANY or not all_new.worth_a_try():
            return False
        # COPY is content with a table whose unique index was dropped meanwhile, and would copy known rows once more.
        self._check_keys(connection, kind)
        cursor.execute("SAVEPOINT persist_new")
        try:
            _copy(cursor, quoted(TABLES[kind].name), kind, columns, fields, rows)
        except psycopg.Error:
            if cursor.connection.broken:
                raise
            # A row that is there, or one that the table does not take, or a table into which nothing is copied (row
            # security): the other way tells, and puts the blame where it belongs.
            cursor.execute("ROLLBACK TO SAVEPOINT persist_new")
            all_new.failed()
            return False
        cursor.execute("RELEASE SAVEPOINT persist_new")
        all_new.succeeded()
        return True

    def _merge(self, cursor: Cursor, kind: Kind, columns: str, fields: Sequence[str], rows: Sequence[Row]) -> None:
        """Copy rows into the staging table, and upsert them from there."""
        staging = _staging(kind)
        self._empty_staging(cursor, kind)
        _copy(cursor, staging, kind, columns, fields, rows)
        # A fresh temporary table is read in the order in which it was filled, by key: a sort would cost a tenth.
        cursor.execute(
            f"INSERT INTO {quoted(TABLES[kind].name)} ({columns}) SELECT {columns} FROM {staging}"
            f" {on_conflict(kind, fields)}".encode()
        )

    def _describe(self, connection: Connection) -> str:
        version = connection.exec_driver_sql("SHOW server_version").scalar_one()
        return f"PostgreSQL {version} at {place(self.settings.parsed)}"

    def _fault(self, error: Exception) -> Fault:
        assert isinstance(error, psycopg.Error)
        code = error.sqlstate or ""
        blame = _BLAME.get(code) or _BLAME.get(code[:2], Blame.UNKNOWN) if code else Blame.SERVER
        if code == _NOT_NULL:
            # Of a column that no row of ours can fill, it is the schema's fault.
            tables = [table for table in TABLES.values() if table.name == error.diag.table_name]
            if tables and (error.diag.column_name or "") not in tables[0].c:
                blame = Blame.SERVER
        # The primary message alone: the detail shows the row. The value that some append goes, too.
        message = re.sub(r': ".*"$', "", error.diag.message_primary or str(error), flags=re.DOTALL)
        return Fault(blame, code, " ".join(message.split()))


class _CopyText(Encoder):
    """COPY's text format."""

    null = r"\N"
    quote = ""
    special = "\\\t\n\r"
    opening, separator, closing = "", "\t", ""

    def escape(self, text: str) -> str:
        return text.replace("\\", r"\\").replace("\t", r"\t").replace("\n", r"\n").replace("\r", r"\r")


_ENCODERS = {kind: _CopyText(TABLES[kind]) for kind in KINDS}


def _copy(cursor: Cursor, table: str, kind: Kind, columns: str, fields: Sequence[str], rows: Sequence[Row]) -> None:
    with cursor.copy(f"COPY {table} ({columns}) FROM STDIN".encode()) as copy:
        # The server takes in one block while the next is encoded.
        for block in batched(rows, BLOCK):
            copy.write("\n".join([*_ENCODERS[kind].encode(fields, block), ""]))


def _staging(kind: Kind) -> str:
    return f"persist_staging_{kind}"


def _make_staging(kind: Kind) -> str:
    dialect = URL.create("postgresql+psycopg").get_dialect()()
    columns = [f"{quoted(column.name)} {column.type.compile(dialect)}" for column in TABLES[kind].c]
    return f"CREATE TEMPORARY TABLE IF NOT EXISTS {_staging(kind)} ({', '.join(columns)}) ON COMMIT DELETE ROWS"


_STAGING = {kind: _make_staging(kind) for kind in KINDS}


def _driver(connection: Connection) -> psycopg.Connection[Any]:
    driver: psycopg.Connection[Any] = connection.connection.driver_connection  # type: ignore[assignment]
    return driver
