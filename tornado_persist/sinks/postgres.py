"""PostgreSQL and what speaks its protocol, through psycopg: upserts from arrays, and COPY for rows that are all new.

An upsert from arrays needs little of a server: no COPY, no temporary table, no savepoint. So it is all that a server
gets which refuses COPY.

A pooler in transaction mode gives each transaction another connection of the server. So nothing here lives longer than
a transaction: no setting, no temporary table, no prepared statement.
"""

from __future__ import annotations

import logging
import re
import select
import time
from collections.abc import Generator, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, TypeAlias, TypeVar

import psycopg
from psycopg.conninfo import make_conninfo
from pydantic import SecretStr
from sqlalchemy import URL, Connection, Engine, Table, event

from tornado_persist.errors import SinkUnavailable
from tornado_persist.records.models import KEYS, KINDS, Kind, Row
from tornado_persist.sinks.base import Caution
from tornado_persist.sinks.encoders import BLOCK, Encoder, batched
from tornado_persist.sinks.guard import GUARDED, NEVER
from tornado_persist.sinks.hosts import HOST_TIMEOUT, PROBES, SILENCE, check_hosts, hosts_of, listed
from tornado_persist.sinks.reader import READ_TIMEOUT
from tornado_persist.sinks.sql import CONNECT_TIMEOUT, LOCK_TIMEOUT, Blame, Fault, SQLSink, make_engine
from tornado_persist.sinks.sqlsettings import URLSettings
from tornado_persist.sinks.statements import quoted
from tornado_persist.sinks.tables import TABLES
from tornado_persist.telemetry import log

logger = log.get(__name__)
# It warns of what follows an error, such as a pipeline that the lost connection cannot end; the error itself is raised.
logging.getLogger("psycopg").setLevel(logging.ERROR)

Cursor: TypeAlias = psycopg.Cursor[Any]

#: With fewer rows it does not pay to try whether all of them are new.
_MANY = 500
#: Rows of a statement at most, and characters: a message has room for a gigabyte, and for 16 MiB on CockroachDB.
_ROWS = 1000
_CHARACTERS = 1 << 22
#: Seconds after the server's own time limit for a statement, until we give up on a silent server.
GRACE = 5

_PORT = 5432

#: libpq's parameters; the URL overrides them.
_CONNECTION = {
    "connect_timeout": str(CONNECT_TIMEOUT),
    "keepalives": "1",
    "keepalives_idle": str(SILENCE),
    "keepalives_interval": "3",
    "keepalives_count": str(PROBES),
    "tcp_user_timeout": str(SILENCE * 1000),
    "fallback_application_name": "tornado-persist",
}
#: And with several hosts: the one that can be written to, wherever it stands in the list.
_HOSTS = {"connect_timeout": str(HOST_TIMEOUT), "target_session_attrs": "read-write"}

#: What a transaction sets for itself, because a server, database, role or pooler may have set it otherwise.
_TRANSACTION = {
    "timezone": "UTC",
    "datestyle": "ISO",
    "client_min_messages": "warning",
    "lock_timeout": f"{LOCK_TIMEOUT}s",
}
#: "off" would answer before the commit is on the disk; the other levels all wait for at least that.
_DURABLE = "CASE current_setting('synchronous_commit') WHEN 'off' THEN set_config('synchronous_commit', 'on', true) END"
#: A statement that is cancelled is undone, but a COMMIT that is cancelled while it waits for a standby reports success.
_UNLIMITED = b"SET LOCAL statement_timeout = 0"
#: The beginning of a transaction that reads. An index scan gives rows in order. Without statistics, as in a table that
#: was just filled, the server would rather make a bitmap of all rows of a session, and sort them, for each page.
_READ = (
    "SET TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY; SET LOCAL enable_bitmapscan = off;"
    f"SET LOCAL timezone = 'UTC'; SET LOCAL datestyle = 'ISO'; SET LOCAL lock_timeout = '{LOCK_TIMEOUT}s';"
    f"SET LOCAL statement_timeout = '{round(READ_TIMEOUT * 1000)}ms'"
).encode()
#: The version that has a time limit for transactions.
_TRANSACTION_TIMEOUT = 170000

#: The types of a table's columns, without their lengths: a cast would cut what is too long.
_TYPES = "SELECT attname, atttypid::regtype::text FROM pg_attribute WHERE attrelid = %s::regclass AND attnum > 0"

#: SQLSTATEs, in full or by class: an entry of five characters takes precedence over one of two. Codes that are not here
#: are ambiguous: those that a trigger makes up, and those that a row's value may cause as well as the schema, such as
#: 54000 (an index entry too large), 44000 (a view's CHECK OPTION), 21000 and P0002 (a trigger's query), or XX000, which
#: extensions use for any error.
_BLAME = {
    # A value of the wrong form; a constraint; RAISE in a trigger.
    **dict.fromkeys(("22", "23", "P0001"), Blame.ROWS),
    # The server finds deadlocks. A lock timeout (55P03) is no conflict: the other transaction still goes on.
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
#: Server functions that may raise any code for a single row: RAISE in PL/pgSQL, and row security.
_FOR_ONE_ROW = {"exec_stmt_raise", "ExecWithCheckOptions"}


class PostgresSettings(URLSettings):
    """``[sinks.postgres]``."""

    schemes = ("postgresql", "postgres", "postgresql+psycopg")
    driver = "postgresql+psycopg"

    #: ``postgresql://user:password@host:port/database``, with libpq's parameters as its query. For a Unix socket the
    #: query's ``host`` is the directory. Several hosts: ``host:port,host:port``.
    url: SecretStr = SecretStr("postgresql://persist@localhost:5432/persist")

    @classmethod
    def _check_parts(cls, url: URL) -> URL:
        return check_hosts(url)

    @classmethod
    def _check_options(cls, options: Mapping[str, Any]) -> None:
        make_conninfo(**options)


T = TypeVar("T")


class _LimitedConnection(psycopg.Connection[Any]):
    """A connection that gives up on a server that does not answer."""

    #: Seconds for one answer.
    limit = float("inf")

    def wait(self, gen: Generator[Any, Any, T], *args: Any, **kwargs: Any) -> T:
        return super().wait(self._limited(gen), *args, **kwargs)

    def _limited(self, gen: Generator[Any, Any, T]) -> Generator[Any, Any, T]:
        """``gen``, as long as it takes no longer than the limit. It is resumed ten times a second."""
        deadline = time.monotonic() + self.limit
        try:
            wanted = next(gen)
            while True:
                ready = yield wanted
                if not ready and time.monotonic() > deadline:
                    self.pgconn.finish()
                    raise psycopg.OperationalError(f"the server has not answered for {self.limit:g} seconds")
                wanted = gen.send(ready)
        except StopIteration as done:
            result: T = done.value
            return result


#: A shortcut is skipped at most this many times in a row.
_LONGEST_PAUSE = 64


class Shortcut:
    """Whether to try a shortcut that may fail. After a failure it is skipped 1, 2, 4, … 64 times."""

    def __init__(self) -> None:
        self._pause = self._left = 0

    def worth_a_try(self) -> bool:
        """Call it once before each try."""
        self._left = max(0, self._left - 1)
        return not self._left

    def failed(self) -> None:
        self._pause = min(2 * self._pause or 1, _LONGEST_PAUSE)
        self._left = self._pause + 1

    def succeeded(self) -> None:
        self._pause = 0


class PostgresSink(SQLSink[PostgresSettings]):
    """Copies rows that are all new into their table; others go as one array for each column, for an upsert."""

    name = "postgres"
    Settings: ClassVar[type[PostgresSettings]] = PostgresSettings
    driver_error = psycopg.Error
    no_key_error = "42P10"
    explain = "EXPLAIN "
    ordered = '({})::text COLLATE "C"'
    clock = "SELECT EXTRACT(EPOCH FROM clock_timestamp())"

    #: The statement that begins each transaction.
    _settings: bytes
    #: The type of each column.
    _types: Mapping[Kind, Mapping[str, str]]

    def __init__(self, settings: PostgresSettings, data_dir: Path) -> None:
        super().__init__(settings, data_dir)
        # Whether the rows of a chunk are all new.
        self._all_new = {kind: Shortcut() for kind in KINDS}
        #: The tables that take no COPY, and why.
        self._no_copy: dict[Kind, str] = {}
        self._broke_at_copy = False

    @property
    def address(self) -> str:
        return self.settings.address

    def _create_engine(self) -> Engine:
        url = self.settings.parsed
        defaults = _CONNECTION
        if len(listed(url, "host")) > 1:
            defaults = _CONNECTION | _HOSTS
            hosts, ports = zip(*hosts_of(url, _PORT, self._hanging), strict=True)
            url = url.update_query_dict({"host": ",".join(hosts), "port": ",".join(map(str, ports))})
        arguments: dict[str, Any] = {key: value for key, value in defaults.items() if key not in url.query}
        # Behind a pooler a prepared statement would belong to another connection.
        arguments |= {"client_encoding": "UTF8", "prepare_threshold": None}
        engine = make_engine(url, isolation_level="READ COMMITTED", use_native_hstore=False, connect_args=arguments)
        event.listen(engine, "do_connect", partial(_connect, self.settings.answer_timeout + GRACE))
        # SQLAlchemy would read the version from what version() says, and fails where that says "CockroachDB".
        engine.dialect._get_server_version_info = _version  # type: ignore[method-assign]
        return engine

    def open(self) -> None:
        super().open()
        try:
            with self._faults():
                assert self._connection is not None
                self._try_copy(self._connection)
        except BaseException:
            self.close()
            raise

    def _try_copy(self, connection: Connection) -> None:
        """Find out which tables take COPY, after a savepoint. A server or a proxy may refuse it; row security does."""
        driver = _driver(connection)
        # A proxy may also close the connection. Once is enough to know, until the next connection.
        skip, self._broke_at_copy = self._broke_at_copy, False
        self._no_copy = dict.fromkeys(KINDS, "the connection ends at it") if skip else {}
        for kind in () if skip else KINDS:
            try:
                with self._transaction(connection, commit=False), psycopg.RawCursor(driver) as cursor:
                    cursor.execute("SAVEPOINT persist_new")
                    _copy(cursor, quoted(TABLES[kind].name), kind, quoted(KEYS[kind][0]), [], [], "")
                    cursor.execute("RELEASE SAVEPOINT persist_new")
            except psycopg.Error as exc:
                if driver.broken:
                    self._broke_at_copy = True
                    raise
                self._no_copy[kind] = self._fault(exc).message

    def _set_up(self, connection: Connection) -> None:
        driver = _driver(connection)
        settings = {**_TRANSACTION, "statement_timeout": f"{round(self.settings.answer_timeout * 1000)}ms"}
        if driver.info.server_version >= _TRANSACTION_TIMEOUT:
            settings["transaction_timeout"] = "0"
        calls = [f"set_config('{name}', '{value}', true)" for name, value in settings.items()]
        self._settings = f"SELECT {', '.join([*calls, _DURABLE])}".encode()
        with self._transaction(connection, commit=False):
            (encoding,) = driver.execute("SHOW server_encoding").fetchone() or ("",)
            if encoding != "UTF8":
                raise SinkUnavailable(f"the database's encoding is {encoding}, and it must be UTF8")

    def _begin(self, connection: Connection) -> None:
        driver = _driver(connection)
        with driver.pipeline():  # one round trip with the BEGIN, which goes before it
            driver.execute(self._settings)

    def _commit(self, connection: Connection) -> None:
        driver = _driver(connection)
        with driver.pipeline():
            driver.execute(_UNLIMITED)
            connection.commit()

    def _before_use(self, connection: Connection) -> None:
        # An idle server sends nothing, unless it closes the connection: after a time limit, or when it shuts down.
        if select.select([_driver(connection).fileno()], [], [], 0)[0]:
            before = self.describe()
            self.open()
            if self.describe() != before:  # another host, perhaps, and nobody else has noticed
                logger.info("sink up", sink=self.name, at=self.describe())

    def _check(self, connection: Connection) -> None:
        driver = _driver(connection)
        several = len(listed(self.settings.parsed, "host")) > 1
        self._place = (driver.info.host, driver.info.port) if several else None
        self._types = {
            kind: dict(driver.execute(_TYPES, [quoted(table.name)]).fetchall()) for kind, table in TABLES.items()
        }

    def _new_key(self, table: Table, old_name: str) -> str:
        key = ", ".join(KEYS["task"])
        return f"Run: ALTER TABLE {table.name} DROP CONSTRAINT {quoted(old_name)}, ADD PRIMARY KEY ({key})"

    def _cautions(self, connection: Connection) -> Iterator[Caution]:
        def ask(sql: str, *parameters: str) -> str:
            return str((_driver(connection).execute(sql.encode(), parameters or None).fetchone() or [""])[0])

        for kind in KINDS:
            table = TABLES[kind].name
            if ask("SELECT relpersistence FROM pg_class WHERE oid = %s::regclass", quoted(table)) == "u":
                yield Caution(
                    f"{table} is UNLOGGED: a crash of the server empties it", f"ALTER TABLE {table} SET LOGGED"
                )
        for name in ("fsync", "full_page_writes"):
            if ask(f"SHOW {name}") == "off":
                yield Caution(
                    f"{name} is off: a crash of the server's machine loses what it committed, or the database",
                    f"turn {name} on in postgresql.conf",
                )
        if ask("SHOW synchronous_standby_names") and ask("SHOW synchronous_commit") == "local":
            yield Caution(
                "synchronous_commit is local: a standby that takes over may lack what was committed",
                "set it to on, for the service's role or for all",
            )

    def _upsert(self, connection: Connection, kind: Kind, fields: Sequence[str], rows: Sequence[Row]) -> None:
        with psycopg.RawCursor(_driver(connection)) as cursor:
            never = self._never(kind, fields)
            columns = ", ".join(map(quoted, [*fields, *never]))
            if not self._insert_new(connection, cursor, kind, columns, fields, rows):
                types = self._types[kind]
                values = [f"unnest(${n}::{types.get(name, 'text')}[])" for n, name in enumerate(fields, 1)]
                values += [f"'{NEVER}'::timestamptz"] * len(never)
                insert = f"INSERT INTO {quoted(TABLES[kind].name)} ({columns}) SELECT {', '.join(values)}"
                statements = [f"{insert} {clause}".encode() for clause in self._clauses(kind, fields)]
                for block in batched(rows, _ROWS):
                    _merge(cursor, statements, kind, fields, block)

    def _insert_new(
        self,
        connection: Connection,
        cursor: Cursor,
        kind: Kind,
        columns: str,
        fields: Sequence[str],
        rows: Sequence[Row],
    ) -> bool:
        """Copy rows that are all new into their table; False if that does not work, and then nothing was written.

        This takes the server two thirds of the time of an upsert.
        """
        all_new = self._all_new[kind]
        if len(rows) < _MANY or kind in self._no_copy or not all_new.worth_a_try():
            return False
        # Without the unique index, dropped since the last look, COPY would add known rows once more.
        self._check_keys(connection, kind)
        cursor.execute("SAVEPOINT persist_new")
        try:
            end = f"\t{NEVER}" * len(self._never(kind, fields)) + "\n"
            _copy(cursor, quoted(TABLES[kind].name), kind, columns, fields, rows, end)
        except psycopg.Error:
            all_new.failed()
            if cursor.connection.broken:
                raise
            # A known row, or one that the table rejects: the upsert finds out which, and raises the right error.
            cursor.execute("ROLLBACK TO SAVEPOINT persist_new")
            return False
        cursor.execute("RELEASE SAVEPOINT persist_new")
        all_new.succeeded()
        return True

    def _connect_reader(self) -> Connection:
        connection = super()._connect_reader()
        _driver(connection).limit = READ_TIMEOUT + 1  # type: ignore[attr-defined]
        return connection

    def _begin_read(self, connection: Connection) -> None:
        _driver(connection).execute(_READ)

    def describe(self) -> str:
        if not self._no_copy:
            return self._description
        tables = " and ".join(TABLES[kind].name for kind in self._no_copy)
        return f"{self._description}, without COPY into {tables} ({next(iter(self._no_copy.values()))})"

    def _describe(self, connection: Connection) -> str:
        version = connection.exec_driver_sql("SHOW server_version").scalar_one()
        info = _driver(connection).info  # of several hosts the one that answered
        return f"PostgreSQL {version} at {info.host}:{info.port}/{info.dbname}"

    def _fault(self, error: Exception) -> Fault:
        assert isinstance(error, psycopg.Error)
        code = error.sqlstate or ""
        blame = _BLAME.get(code) or _BLAME.get(code[:2], Blame.UNKNOWN) if code else Blame.SERVER
        if blame is Blame.SERVER and error.diag.source_function in _FOR_ONE_ROW:
            blame = Blame.UNKNOWN
        if not code and isinstance(error, psycopg.DataError):
            blame = Blame.ROWS  # the driver's own: a text with a NUL
        if code == _NOT_NULL:
            # A column that none of our rows has is the schema's fault.
            tables = [table for table in TABLES.values() if table.name == error.diag.table_name]
            if tables and (error.diag.column_name or "") not in tables[0].c:
                blame = Blame.SERVER
        # The primary message alone: the detail shows the row. Values that some messages end with are cut, too.
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


class _ArrayText(Encoder):
    """PostgreSQL's arrays, one for each column."""

    null = "NULL"
    quote = '"'
    special = '\\"'
    opening, separator, closing = "{", ",", "}"

    def escape(self, text: str) -> str:
        return text.replace("\\", r"\\").replace('"', r"\"")


_COPY = {kind: _CopyText(GUARDED[kind]) for kind in KINDS}
_ARRAYS = {kind: _ArrayText(GUARDED[kind]) for kind in KINDS}


def _copy(
    cursor: Cursor, table: str, kind: Kind, columns: str, fields: Sequence[str], rows: Sequence[Row], end: str
) -> None:
    with cursor.copy(f"COPY {table} ({columns}) FROM STDIN".encode()) as copy:
        # The server reads one block while the next is encoded.
        for block in batched(rows, BLOCK):
            copy.write(end.join([*_COPY[kind].encode(fields, block), ""]))


def _merge(cursor: Cursor, statements: Sequence[bytes], kind: Kind, fields: Sequence[str], rows: Sequence[Row]) -> None:
    arrays = _ARRAYS[kind].columns(fields, rows)
    if len(rows) > 1 and sum(map(len, arrays)) > _CHARACTERS:
        middle = len(rows) // 2
        _merge(cursor, statements, kind, fields, rows[:middle])
        _merge(cursor, statements, kind, fields, rows[middle:])
        return
    for statement in statements:
        cursor.execute(statement, arrays)
        if cursor.rowcount == len(rows):
            break


def _connect(limit: float, dialect: Any, record: Any, arguments: Any, options: dict[str, Any]) -> _LimitedConnection:
    connection = _LimitedConnection.connect(**options)
    connection.limit = limit
    return connection


def _version(connection: Connection) -> tuple[int, int]:
    return divmod(_driver(connection).info.server_version, 10_000)


def _driver(connection: Connection) -> psycopg.Connection[Any]:
    driver: psycopg.Connection[Any] = connection.connection.driver_connection  # type: ignore[assignment]
    return driver
