"""MySQL 8, MariaDB 10.6 or later, and what speaks their protocol, through PyMySQL."""

from __future__ import annotations

import inspect
import re
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import Any, ClassVar

import pymysql
from pydantic import SecretStr
from pymysql.constants import ER, SERVER_STATUS
from sqlalchemy import URL, Connection, Engine, event, text

from tornado_persist.errors import BatchRejected, SinkConflict, SinkUnavailable
from tornado_persist.records.models import KEYS, KINDS, Kind, Row
from tornado_persist.sinks import mysqlcodes, mysqltls
from tornado_persist.sinks.base import Caution
from tornado_persist.sinks.bulk import Binary, BulkConnection, without_offset
from tornado_persist.sinks.cautions import LONGEST_TEXT
from tornado_persist.sinks.encoders import BLOCK, Encoder, Prefetcher, batched
from tornado_persist.sinks.guard import GUARDED, NEVER
from tornado_persist.sinks.hosts import HOST_TIMEOUT, check_hosts, hosts_of
from tornado_persist.sinks.mysqlconnect import CLIENT, connect, number_of
from tornado_persist.sinks.reader import READ_TIMEOUT
from tornado_persist.sinks.sql import CONNECT_TIMEOUT, Fault, SQLSink, make_engine
from tornado_persist.sinks.sqlsettings import URLSettings
from tornado_persist.sinks.statements import needed_columns
from tornado_persist.sinks.tables import TABLES

#: Bytes of a statement at most, so that no second copy of many long rows has to be held.
_STATEMENT = 1 << 20
#: A value with more characters is sent separately if its row is too long for one statement.
_LONG = 256

#: Changes nothing, and is enough to see whether the server takes the bulk command.
_TRY_BULK = f"UPDATE {TABLES['session'].name} SET session_id = session_id WHERE session_id = ? AND 1 = 0".encode()


class MySQLSettings(URLSettings):
    """``[sinks.mysql]``."""

    schemes = ("mysql", "mariadb", "mysql+pymysql", "mariadb+pymysql")
    driver = "mysql+pymysql"
    needs_database = True

    #: ``mysql://user:password@host:port/database``, with PyMySQL's parameters as its query, ``unix_socket`` and the TLS
    #: options among them. Several hosts: ``host:port,host:port``; the first that can be written to is taken.
    url: SecretStr = SecretStr("mysql://persist@localhost:3306/persist")

    @classmethod
    def _check_parts(cls, url: URL) -> URL:
        mysqltls.arguments(url.query)
        return check_hosts(url)

    @classmethod
    def _check_options(cls, options: Mapping[str, Any]) -> None:
        inspect.signature(pymysql.connect).bind(**options)


class MySQLSink(SQLSink[MySQLSettings]):
    """Upserts of many rows at a time, in one transaction."""

    name = "mysql"
    Settings: ClassVar[type[MySQLSettings]] = MySQLSettings
    driver_error = pymysql.err.MySQLError
    no_key_error = ""  # an upsert works without any
    ordered = "CAST({} AS BINARY)"
    clock = "SELECT UNIX_TIMESTAMP(NOW(6))"

    #: Bytes of a statement that the server takes.
    _packet: int

    def __init__(self, settings: MySQLSettings, data_dir: Path) -> None:
        super().__init__(settings, data_dir)
        #: Why rows do not go by MariaDB's bulk command; empty if they do, or on a server that never has it.
        self._no_bulk = ""
        self._broke_at_bulk = False

    @property
    def address(self) -> str:
        return self.settings.address

    def _create_engine(self, place: tuple[str, int] | None = None) -> Engine:
        """``place``: the only host to connect to."""
        url = self.settings.parsed
        limit = self.settings.answer_timeout
        timeouts = {"connect_timeout": CONNECT_TIMEOUT, "read_timeout": limit, "write_timeout": limit}
        arguments: dict[str, Any] = {key: value for key, value in timeouts.items() if key not in url.query}
        arguments |= {"charset": "utf8mb4", "autocommit": False}
        arguments |= mysqltls.arguments(url.query)
        places = hosts_of(url, 3306, self._hanging)
        if len(places) > 1 and "connect_timeout" not in url.query:
            arguments["connect_timeout"] = HOST_TIMEOUT
        url = url.difference_update_query((*mysqltls.OPTIONS, "host", "port"))
        if url.password:
            # The driver would take Latin-1.
            arguments["password"] = url.password.encode()
        engine = make_engine(
            url,
            # Read committed would lock less, but a server that logs statements refuses to write under it.
            isolation_level="REPEATABLE READ",
            connect_args=arguments,
        )
        choices = [{"host": host, "port": port} for host, port in ([place] if place else places)]
        event.listen(engine, "do_connect", partial(connect, choices or [{}]))
        return engine

    def open(self) -> None:
        try:
            super().open()
        except RuntimeError as exc:
            # PyMySQL's way to say that the server's authentication needs a package which is not installed.
            raise SinkUnavailable(str(exc)) from exc

    def _check(self, connection: Connection) -> None:
        # A command and some room for what the server counts besides.
        self._packet = int(connection.exec_driver_sql("SELECT @@max_allowed_packet").scalar_one()) - 16
        driver = _driver(connection)
        self._place = (driver.host, driver.port) if "," in self.address else None
        self._try_bulk(driver)
        for kind, column in [(owner, name) for owner in KINDS for name in KEYS[owner]]:
            collation = connection.execute(
                text(
                    "SELECT collation_name FROM information_schema.columns"
                    " WHERE table_schema = DATABASE() AND table_name = :table AND column_name = :column"
                ),
                {"table": TABLES[kind].name, "column": column},
            ).scalar()
            # A column without a collation holds bytes.
            if collation is not None and not collation.endswith("_bin"):
                raise SinkUnavailable(
                    f"{TABLES[kind].name}.{column} has the collation {collation}, which takes different keys for"
                    " the same; it must be a binary one"
                )
        for table in TABLES.values():
            # Of no rows: it fails without the right to insert, which the ping does not need.
            columns = ", ".join(_quoted(column.name) for column in needed_columns(table))
            connection.exec_driver_sql(
                f"INSERT INTO {_quoted(table.name)} ({columns}) SELECT {columns} FROM {_quoted(table.name)} WHERE 1 = 0"
            )

    def _try_bulk(self, driver: Any) -> None:
        """Find out whether rows can go by the bulk command. A proxy before MariaDB may not know it."""
        # Or close the connection. Once is enough to know, until the next connection.
        skip, self._broke_at_bulk, self._no_bulk = self._broke_at_bulk, False, ""
        if not driver.bulk:
            return
        try:
            if skip:
                self._no_bulk = "the connection ends at it"
            elif driver.prepare(_TRY_BULK):
                driver.execute_bulk(_TRY_BULK, b"\0\0")  # one row, whose text is empty
            else:
                self._no_bulk = "it prepares no statement now"
        except pymysql.err.MySQLError as exc:
            if not driver.open or not 0 < number_of(exc) < CLIENT:
                self._broke_at_bulk = True
                raise
            self._no_bulk = self._fault(exc).message
        driver.bulk = not self._no_bulk

    def _cautions(self, connection: Connection) -> Iterator[Caution]:
        for kind in KINDS:
            engine = connection.execute(
                text(
                    "SELECT engine FROM information_schema.tables"
                    " WHERE table_schema = DATABASE() AND table_name = :table"
                ),
                {"table": TABLES[kind].name},
            ).scalar()
            if engine != "InnoDB":
                yield Caution(
                    f"{TABLES[kind].name} is a table of {engine}, not InnoDB: a crash may leave half of a flush in it",
                    f"ALTER TABLE {TABLES[kind].name} ENGINE = InnoDB",
                )
        if self._packet < LONGEST_TEXT + 1024:
            yield Caution(
                f"max_allowed_packet is {self._packet + 16}: a row is rejected if a text in it takes more bytes, and it"
                f" may take {LONGEST_TEXT:,}",
                "SET GLOBAL max_allowed_packet = 16777216, and the same in the server's configuration",
            )
        if connection.exec_driver_sql("SELECT @@GLOBAL.innodb_flush_log_at_trx_commit").scalar_one() != 1:
            yield Caution(
                "innodb_flush_log_at_trx_commit is not 1: a crash of the server's machine loses what it committed in"
                " the last second",
                "SET GLOBAL innodb_flush_log_at_trx_commit = 1, and the same in the server's configuration",
            )

    def _has_key(self, connection: Connection, kind: Kind) -> bool:
        key = set(KEYS[kind])
        indexes: dict[str, list[str | None]] = {}
        for index, column in connection.execute(
            text(
                # Not an index on the beginning of the values.
                "SELECT index_name, IF(sub_part IS NULL, column_name, NULL) FROM information_schema.statistics"
                " WHERE table_schema = DATABASE() AND table_name = :table AND non_unique = 0"
            ),
            {"table": TABLES[kind].name},
        ):
            indexes.setdefault(index, []).append(column)
        return any(len(columns) == len(key) and set(columns) == key for columns in indexes.values())

    def _begin(self, connection: Connection) -> None:
        # Sent to the server, so that each answer says whether the transaction is still open.
        _query(_driver(connection), b"BEGIN")

    def _check_written(self, connection: Connection) -> None:
        _check_transaction(_driver(connection))

    def _upsert(self, connection: Connection, kind: Kind, fields: Sequence[str], rows: Sequence[Row]) -> None:
        never = self._never(kind, fields)
        columns = ", ".join(map(_quoted, [*fields, *never]))
        more = f",'{without_offset([NEVER])[0]}'" * len(never)
        # The duplicate may be in another unique index that somebody added: then this would update another key's row.
        # Null in the key turns that into an error. It must not be used to find rows that are older than what is stored:
        # where one statement of a transaction failed and the others were committed, Galera's nodes became inconsistent.
        keys = map(_quoted, KEYS[kind])
        changes = ", ".join(f"{key} = IF({key} = VALUES({key}), {key}, NULL)" for key in keys)
        changes += "".join(f", {_quoted(name)} = {value}" for name, value in self._changes(kind, fields))
        head = f"INSERT INTO {_quoted(TABLES[kind].name)} ({columns}) VALUES ".encode()
        tail = f" ON DUPLICATE KEY UPDATE {changes}".encode()
        driver = _driver(connection)
        literals = _Literals(driver, _LITERALS[kind], fields, head, tail, more)
        bulk = _Bulk(driver, _BINARY[kind], fields, head, tail, more)
        insert = bulk if bulk.prepare() else literals
        blocks = ((block, insert.encode(block)) for block in batched(rows, BLOCK))
        with Prefetcher(blocks) as statements:
            left = len(rows)
            while statement := statements.take():
                block, texts = statement
                left -= len(block)
                if left:  # the server works on one statement while the next is encoded
                    statements.begin()
                self._send(insert, literals, block, texts)

    def _stored(self, kind: Kind, name: str) -> str:
        return _quoted(name)

    def _sent(self, name: str) -> str:
        return f"VALUES({_quoted(name)})"  # the one spelling that both products know

    def _send(self, insert: _Insert, literals: _Literals, rows: Sequence[Row], texts: Sequence[str]) -> None:
        """Write ``rows``, encoded as ``texts``, in as few commands as possible."""
        data = insert.join(texts)
        room = self._packet - insert.overhead
        if len(data) <= min(room, _STATEMENT) or (len(rows) == 1 and len(data) <= room):
            insert.execute(data)
        elif len(rows) == 1:
            self._send_long(literals, rows[0])
        else:
            middle = len(rows) // 2
            self._send(insert, literals, rows[:middle], texts[:middle])
            self._send(insert, literals, rows[middle:], texts[middle:])

    def _send_long(self, insert: _Literals, row: Row) -> None:
        """Write a row that is too long for one command: first each long value into a session variable."""
        values = insert.values(row)
        used = []
        for number, value in enumerate(values):
            if len(value) > _LONG:
                values[number] = f"@persist_{number}"
                used.append(f"@persist_{number} = NULL")
                query = f"SET @persist_{number} = {value}".encode()
                if len(query) > self._packet:
                    raise _too_long(len(query))
                _query(insert.driver, query)
        data = f"({','.join(values)}{insert.more})".encode()
        if len(data) > self._packet - insert.overhead:
            raise _too_long(len(data))
        insert.execute(data)
        _query(insert.driver, f"SET {', '.join(used)}".encode())

    def _connect_reader(self) -> Connection:
        # Of several hosts the one that rows go to: another may not have yet what this one has.
        connection = self._create_engine(self._place).connect()
        driver = _driver(connection)
        driver.limit(READ_TIMEOUT + 1)
        maria = getattr(connection.dialect, "is_mariadb", False)
        limit = (
            f"max_statement_time = {READ_TIMEOUT}" if maria else f"max_execution_time = {round(READ_TIMEOUT * 1000)}"
        )
        with driver.cursor() as cursor:
            cursor.execute(f"SET SESSION {limit}")
            # Behind a balancer this may be another node of a Galera cluster than the writer's, and behind it.
            if cursor.execute("SHOW GLOBAL VARIABLES WHERE variable_name = 'wsrep_on' AND value = 'ON'"):
                cursor.execute("SET SESSION wsrep_sync_wait = 1")
        return connection

    def _begin_read(self, connection: Connection) -> None:
        _driver(connection).query(b"START TRANSACTION READ ONLY")

    def _describe(self, connection: Connection) -> str:
        version = connection.exec_driver_sql("SELECT VERSION()").scalar_one()
        product = "MariaDB" if getattr(connection.dialect, "is_mariadb", False) else "MySQL"
        driver = _driver(connection)
        several = "," in self.address  # the one that answered
        address = f"{driver.host}:{driver.port}/{self.settings.parsed.database}" if several else self.address
        lacks = [f"the bulk command ({self._no_bulk})"] if self._no_bulk else []
        lacks += driver.refused_settings
        without = f", without {', '.join(lacks)}" if lacks else ""
        return f"{product} {version} at {address}{without}"

    def _fault(self, error: Exception) -> Fault:
        number = number_of(error)
        message = str(error.args[-1]) if error.args else type(error).__name__
        # "Duplicate entry '...' for key", "Incorrect string value: '...' for column": without the value.
        message = re.sub(r" '.*' for (?=key |column )", " for ", message, count=1, flags=re.DOTALL)
        if number == ER.BAD_NULL_ERROR and any(f"'{key}'" in message for keys in KEYS.values() for key in keys):
            message = "a key is null, or another row has the same values in a unique index"
        # Older versions of PyMySQL do not tell the state.
        blame = mysqlcodes.blame(number, getattr(error, "sqlstate", None))
        return Fault(blame, str(number or ""), message or "the connection is closed")


class _Insert(ABC):
    """One upsert's command, whose rows change."""

    def __init__(
        self, driver: Any, encoder: Encoder, fields: Sequence[str], head: bytes, tail: bytes, more: str
    ) -> None:
        """``head`` and ``tail``: what stands before and after the rows in a statement; ``more``: in each row after its
        values.
        """
        self.driver = driver
        self.more = more
        self._encoder, self._fields, self._head, self._tail = encoder, fields, head, tail

    def encode(self, rows: Sequence[Row]) -> list[str]:
        return self._encoder.encode(self._fields, rows)

    @property
    @abstractmethod
    def overhead(self) -> int:
        """Bytes beside those of the rows."""

    @abstractmethod
    def join(self, texts: Sequence[str]) -> bytes: ...

    @abstractmethod
    def execute(self, data: bytes) -> None: ...


class _Literals(_Insert):
    """A statement with the rows in it."""

    @property
    def overhead(self) -> int:
        return len(self._head) + len(self._tail)

    def values(self, row: Row) -> list[str]:
        return self._encoder.values(self._fields, row)

    def join(self, texts: Sequence[str]) -> bytes:
        if self.more:
            texts = [f"{text[:-1]}{self.more})" for text in texts]
        return ",".join(texts).encode()

    def execute(self, data: bytes) -> None:
        _query(self.driver, b"".join((self._head, data, self._tail)))


class _Bulk(_Insert):
    """A prepared statement, and the rows for it."""

    @property
    def overhead(self) -> int:
        return BulkConnection.overhead(len(self._fields))

    @cached_property
    def _statement(self) -> bytes:
        parameters = b",".join([b"?"] * len(self._fields))
        return b"".join((self._head, b"(", parameters, self.more.encode(), b")", self._tail))

    def prepare(self) -> bool:
        """Whether the server takes it."""
        prepared: bool = self.driver.prepare(self._statement)
        return prepared

    def join(self, texts: Sequence[str]) -> bytes:
        return Binary.join(texts)

    def execute(self, data: bytes) -> None:
        self.driver.execute_bulk(self._statement, data)
        _check_transaction(self.driver)


class _LiteralEncoder(Encoder):
    """SQL literals."""

    null = "NULL"
    quote = "'"
    special = "\\'"
    opening, separator, closing = "(", ",", ")"

    def escape(self, text: str) -> str:
        return text.replace("\\", r"\\").replace("'", "''")

    def times(self, values: Sequence[str]) -> Sequence[str]:
        return without_offset(values)

    def floats(self, values: Sequence[float]) -> Sequence[str]:
        # Without an exponent it would be a decimal number, and be rounded as one.
        return [text if "e" in text else text + "e0" for text in map(repr, values)]


_LITERALS = {kind: _LiteralEncoder(GUARDED[kind]) for kind in KINDS}
_BINARY = {kind: Binary(GUARDED[kind]) for kind in KINDS}


def _driver(connection: Connection) -> Any:
    return connection.connection.driver_connection


def _query(driver: Any, query: bytes) -> None:
    """Run a statement of a transaction."""
    driver.query(query)
    _check_transaction(driver)


def _check_transaction(driver: Any) -> None:
    """Look at the server's last answer.

    Raises:
        SinkConflict: it says that no transaction is open. A Galera node that undoes ours for another node's write, or
            for an ALTER TABLE, may still answer a bulk command "OK"; statements after it would be a transaction of
            their own, and COMMIT would succeed.
    """
    if not driver.server_status & SERVER_STATUS.SERVER_STATUS_IN_TRANS:
        raise SinkConflict("the server ended the transaction, and has undone it")


def _quoted(name: str) -> str:
    return f"`{name}`"


def _too_long(size: int) -> BatchRejected:
    return BatchRejected(f"a value of {size} bytes does not fit into the server's max_allowed_packet", code="1153")
