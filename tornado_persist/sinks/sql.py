"""What the three SQL sinks share: the connection, the tables, one transaction a batch, and whose fault an error is."""

from __future__ import annotations

import contextlib
import errno
import time
from abc import abstractmethod
from collections.abc import Collection, Iterator, Sequence
from datetime import datetime
from enum import Enum
from functools import partial
from operator import attrgetter
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

from sqlalchemy import (
    URL,
    Connection,
    Engine,
    NullPool,
    Table,
    create_engine,
    false,
    inspect,
    select,
    text,
    tuple_,
    update,
)
from sqlalchemy.exc import DBAPIError, StatementError

from tornado_persist.errors import BatchRejected, SinkConflict, SinkError, SinkUnavailable
from tornado_persist.records.models import EXTRA, FIELD_TIMES, KEYS, KINDS, Batch, Kind, Row
from tornado_persist.sinks import cautions, guard, removal
from tornado_persist.sinks.base import Caution, Expiry, Removed, Sink, Skew
from tornado_persist.sinks.encoders import batched
from tornado_persist.sinks.sqlreader import SQLReader
from tornado_persist.sinks.sqlsettings import SQLSettingsT, URLSettings
from tornado_persist.sinks.statements import (
    LOOKUP,
    group,
    needed_columns,
    on_conflict,
    quoted,
    updated,
    with_stored_extra,
)
from tornado_persist.sinks.tables import METADATA, TABLES

#: When the first of a row's updates was accepted.
_first_time = attrgetter("created_at")
#: Seconds after which a connection attempt fails.
CONNECT_TIMEOUT = 5
#: Seconds to wait for another writer's lock. Then the write fails and is tried again: a lock that is never released
#: shows up in the log; an endless wait would not.
LOCK_TIMEOUT = 5


class Blame(Enum):
    """Who is at fault."""

    ROWS = "a row: what depends on its values alone"
    SERVER = "the server or the schema"
    CONFLICT = "another writer won; the transaction was rolled back, and can be tried again at once"
    UNKNOWN = "unknown: a code that is in none of the lists"


class Fault(NamedTuple):
    """A driver's error, classified."""

    blame: Blame
    code: str  #: the driver's own
    message: str  #: without the row's contents, if possible


class SQLSink(Sink[SQLSettingsT]):
    """Upserts batches into the two tables over one connection."""

    #: The root of the driver's exceptions.
    driver_error: ClassVar[type[Exception]]
    #: The beginning of an error's code and message if the table has no unique index for the upsert.
    no_key_error: ClassVar[str]
    #: Put before an upsert of no rows, so that no trigger runs.
    explain: ClassVar[str] = ""
    #: The query for the server's clock, in seconds since 1970; empty: it has none of its own.
    clock: ClassVar[str] = ""
    #: Orders values of any type by their bytes.
    ordered: ClassVar[str] = "{}"

    def __init__(self, settings: SQLSettingsT, data_dir: Path) -> None:
        super().__init__(settings, data_dir)
        self._engine: Engine | None = None
        self._connection: Connection | None = None
        self._description = self.name
        #: How often it was opened.
        self._openings = 0
        self._guarded = settings.writers == "several"
        #: Of several hosts in the URL the one that rows go to, with its port; and the one that did not answer a write.
        self._place: tuple[str, int] | None = None
        self._hanging: tuple[str, int] | None = None
        #: With one writer: the columns of times that the tables have all the same.
        self._left_times: dict[Kind, set[str]] = {}

    # What differs

    @abstractmethod
    def _create_engine(self) -> Engine:
        """By :func:`make_engine`."""

    @abstractmethod
    def _fault(self, error: Exception) -> Fault:
        """Classify an error of the driver by its code. Without a code it is an outage (a broken connection)."""

    @abstractmethod
    def _upsert(self, connection: Connection, kind: Kind, fields: Sequence[str], rows: Sequence[Row]) -> None:
        """Write ``rows``, which all carry exactly ``fields``, in this order, and are sorted by key."""

    @abstractmethod
    def _describe(self, connection: Connection) -> str:
        """Product, version and place."""

    def _stored(self, kind: Kind, name: str) -> str:
        """A stored row's column, in the clause of an upsert that changes it."""
        return f"{quoted(TABLES[kind].name)}.{quoted(name)}"

    def _sent(self, name: str) -> str:
        """The new value of a column, there."""
        return f"excluded.{quoted(name)}"

    def _changes(self, kind: Kind, fields: Sequence[str]) -> list[tuple[str, str]]:
        """What an upsert assigns to a stored row: names and expressions, in order."""
        if self._guarded:
            return guard.assignments(kind, fields, partial(self._stored, kind), self._sent, self.ordered)
        # One writer does not look at the times that an earlier "several" has left, but keeps them right.
        gone = {*FIELD_TIMES[kind].values()} - self._left_times.get(kind, set())
        changes = guard.newer_assignments(kind, fields, partial(self._stored, kind), self._sent)
        return [(name, value) for name, value in changes if name not in gone]

    def _clauses(self, kind: Kind, fields: Sequence[str]) -> list[str]:
        """What turns an INSERT into an upsert, in PostgreSQL and SQLite: to be tried in order, until no row is left."""
        clauses = [on_conflict(kind, self._changes(kind, fields))]
        if self._guarded:
            # It compares each row once, and not each field.
            stored = partial(self._stored, kind)
            newer = on_conflict(kind, guard.newer_assignments(kind, fields, stored, self._sent))
            clauses.insert(0, f"{newer} WHERE {guard.is_newer(stored, self._sent)}")
        return clauses

    def _never(self, kind: Kind, fields: Sequence[str]) -> list[str]:
        """Further columns of a new row, which all hold ``guard.NEVER``."""
        return guard.left_out(kind, fields) if self._guarded else []

    def _set_up(self, connection: Connection) -> None:
        """Prepare a new connection, before the tables are looked at."""

    def _check(self, connection: Connection) -> None:
        """Check that the database and its tables can be written to correctly."""

    def _cautions(self, connection: Connection) -> Iterator[Caution]:
        """Cautions for this kind of server alone."""
        yield from ()

    def _has_key(self, connection: Connection, kind: Kind) -> bool:
        """Whether the key columns have a unique index of their own, so that an upsert finds the stored row."""
        table = quoted(TABLES[kind].name)
        fields = [column.name for column in needed_columns(TABLES[kind])]
        columns = ", ".join(map(quoted, fields))
        try:
            connection.exec_driver_sql(
                f"{self.explain}INSERT INTO {table} ({columns}) SELECT {columns} FROM {table} WHERE 1 = 0"
                f" {on_conflict(kind, [(name, self._sent(name)) for name in updated(kind, fields)])}"
            ).close()
        except DBAPIError as exc:
            fault = self._fault(exc.orig) if isinstance(exc.orig, self.driver_error) else None
            if fault and f"{fault.code} {fault.message}".startswith(self.no_key_error):
                return False
            raise
        return True

    def _begin(self, connection: Connection) -> None:
        """Prepare a transaction."""

    def _check_written(self, connection: Connection) -> None:
        """Check, before the commit, that the transaction is still open."""

    def _commit(self, connection: Connection) -> None:
        """Commit it."""
        connection.commit()

    def _before_use(self, connection: Connection) -> None:
        """Check, before each use, that the connection is still usable."""

    def _connect_reader(self) -> Connection:
        """A new connection for reads, which another thread uses."""
        return self._create_engine().connect()

    @abstractmethod
    def _begin_read(self, connection: Connection) -> None:
        """Make a new transaction read-only, with one snapshot, and ``READ_TIMEOUT`` seconds for a statement."""

    # The interface

    def reader(self) -> SQLReader:
        return SQLReader(self._connect_reader, self._begin_read, self._faults, lambda: self._openings)

    def open(self) -> None:
        self.close()
        try:
            with self._faults():
                self._engine = self._create_engine()
                self._connection = connection = self._engine.connect()
                self._set_up(connection)
                self._make_tables(connection)
                if self._guarded:
                    begin = partial(self._transaction, connection)
                    guard.ensure(connection, begin, removal.prepare_notes, create=self.settings.create_tables)
                else:
                    self._find_left_times(connection)
                with self._transaction(connection, commit=False):
                    for table in TABLES.values():
                        # Now the server reports a missing column, not at the first write.
                        connection.execute(select(*needed_columns(table)).where(false()))
                    self._refuse_old_key(connection)
                    self._check_keys(connection, *KINDS)
                    self._check(connection)
                    self._description = self._describe(connection)
            self._openings += 1
        except BaseException:
            self.close()
            raise

    def missing(self) -> list[str]:
        self.close()
        if not self.settings.create_tables:
            return []
        try:
            with self._faults():
                self._engine = self._create_engine()
                self._connection = connection = self._engine.connect()
                self._set_up(connection)
                found = [f"table {table.name}" for table in self._missing(connection)]
                if self._guarded:
                    with self._transaction(connection, commit=False):
                        lacking = guard.alterations(connection)
                    found += [str(some) for some in lacking]
                self._description = self._describe(connection)
                return found
        finally:
            self.close()

    def write(self, batch: Batch) -> None:
        began = time.monotonic()
        try:
            self._write(batch)
        except SinkUnavailable:
            if isinstance(self.settings, URLSettings) and time.monotonic() - began >= self.settings.answer_timeout:
                # An old primary may take connections, and no commit, as its standbys have left it: try it last.
                self._hanging = self._place
            raise

    def _write(self, batch: Batch) -> None:
        with self._using() as connection:
            last = removal.last_deletion(connection) if self._guarded else ""
            for kind in KINDS:
                given: Sequence[Row] = batch.rows(kind)
                if last > guard.NEVER and min(map(_first_time, given), default="~") <= last:
                    given = removal.without_deleted(connection, kind, given)
                for fields, rows in group(kind, given):
                    if EXTRA in fields:
                        rows = with_stored_extra(connection, kind, rows, guarded=self._guarded)
                    self._upsert(connection, kind, fields, rows)

    def ping(self) -> None:
        with self._faults():
            connection = self._connected()
            with self._transaction(connection, commit=False):
                for table in TABLES.values():
                    # An update of no rows costs a round trip, and fails if a write would: because of a missing table,
                    # missing rights, or a read-only server.
                    connection.execute(update(table).values(updated_at=table.c.updated_at).where(false()))
                self._check_keys(connection, *KINDS)

    def clock_skew(self) -> Skew | None:
        if not self.clock:
            return None
        with self._faults():
            connection = self._connected()
            with self._transaction(connection, commit=False):
                began = time.time()
                theirs = float(connection.exec_driver_sql(self.clock).scalar_one())
                ended = time.time()
        return Skew((began + ended) / 2 - theirs, max(0.0, ended - began) / 2)

    def cautions(self) -> list[Caution]:
        with self._faults():
            connection = self._connected()
            with self._transaction(connection, commit=False):
                return [*cautions.of_tables(connection), *self._cautions(connection)]

    def close(self) -> None:
        connection, engine = self._connection, self._engine
        self._connection = self._engine = None
        for part in (connection and connection.close, engine and engine.dispose):
            if part:
                with contextlib.suppress(Exception):
                    part()

    def describe(self) -> str:
        return self._description

    def find_sessions(self, session_ids: Collection[str]) -> set[str]:
        key = TABLES["session"].c.session_id
        found: set[str] = set()
        with self._faults():
            connection = self._connected()
            with self._transaction(connection, commit=False):
                for some in batched(session_ids, LOOKUP):
                    # A tuple has no cast, which might not fit the column's type.
                    keys = [(id,) for id in some]
                    found.update(map(str, connection.scalars(select(key).where(tuple_(key).in_(keys)))))
        return found

    def find_updated(self, kind: Kind, keys: Collection[tuple[str, ...]]) -> dict[tuple[str, ...], datetime]:
        columns = TABLES[kind].c
        key = [columns[name] for name in KEYS[kind]]
        found: dict[tuple[str, ...], datetime] = {}
        with self._faults():
            connection = self._connected()
            with self._transaction(connection, commit=False):
                for some in batched(keys, LOOKUP):
                    rows = connection.execute(select(*key, columns.updated_at).where(tuple_(*key).in_(some)))
                    found.update((tuple(map(str, row[:-1])), row[-1]) for row in rows)
        return found

    def note_deletion(self, session_id: str, task_id: str, at: datetime) -> None:
        if self._guarded:
            with self._using() as connection:
                removal.note_deletion(connection, session_id, task_id, at)

    def delete_sessions(
        self, session_ids: Sequence[str], limit: int, expiry: Expiry | None = None, *, dry_run: bool = False
    ) -> Removed:
        with self._using(commit=not dry_run) as connection:
            return removal.delete_sessions(connection, session_ids, limit, expiry, dry_run=dry_run)

    def delete_task(self, session_id: str, task_id: str) -> bool:
        with self._using() as connection:
            return removal.delete_task(connection, session_id, task_id)

    def find_expired(self, expiry: Expiry, after: str | None, limit: int) -> tuple[list[str], str | None]:
        with self._using(commit=False) as connection:
            return removal.find_expired(connection, expiry, after, limit)

    # Inner parts

    @contextlib.contextmanager
    def _using(self, *, commit: bool = True) -> Iterator[Connection]:
        """The connection, within a transaction for which a row may be at fault."""
        with self._faults(writing=True):
            connection = self._connected()
            with self._transaction(connection, commit=commit):
                yield connection
                self._check_written(connection)

    def _connected(self) -> Connection:
        if self._connection is None:
            raise SinkUnavailable("the connection is closed")
        if self._connection.invalidated:
            # SQLAlchemy would reconnect by itself, without _set_up().
            raise SinkUnavailable("the connection was lost")
        self._before_use(self._connection)
        return self._connection

    def _check_keys(self, connection: Connection, *kinds: Kind) -> None:
        """Refuse a table where updating a row would add another row.

        Raises:
            SinkUnavailable: the key columns have no unique index of their own.
        """
        for kind in kinds:
            if not self._has_key(connection, kind):
                table, key = TABLES[kind].name, ", ".join(KEYS[kind])
                raise SinkUnavailable(
                    f"table {table} has no primary key or unique index on exactly ({key}): without one, each update of"
                    f" a row would add another row; CREATE UNIQUE INDEX {table}_key ON {table} ({key})"
                )

    def _refuse_old_key(self, connection: Connection) -> None:
        """Refuse a table that an earlier version made.

        Raises:
            SinkUnavailable: its primary key is ``task_id`` alone. The message gives the statements to run.
        """
        table = TABLES["task"]
        primary_key = inspect(connection).get_pk_constraint(table.name)
        if primary_key["constrained_columns"] == ["task_id"]:
            raise SinkUnavailable(
                f"the primary key of table {table.name} is task_id alone, as an earlier version made it, so tasks of"
                f" different sessions would overwrite each other. {self._new_key(table, primary_key['name'] or '')}"
            )

    def _new_key(self, table: Table, old_name: str) -> str:
        """A sentence that says how to give a table of an earlier version its new primary key."""
        return f"Run: ALTER TABLE {table.name} DROP PRIMARY KEY, ADD PRIMARY KEY ({', '.join(KEYS['task'])})"

    @contextlib.contextmanager
    def _transaction(self, connection: Connection, *, commit: bool = True) -> Iterator[None]:
        """Like ``connection.begin()``, but a rollback that fails does not hide why it was needed."""
        connection.begin()
        try:
            self._begin(connection)
            yield
            if commit:
                self._commit(connection)
            else:
                connection.rollback()
        except BaseException:
            try:
                connection.rollback()
            except Exception:
                # Its state is unknown, so it is closed; the next call opens another one.
                self.close()
            raise

    def _make_tables(self, connection: Connection) -> None:
        missing = self._missing(connection)
        while missing:
            if not self.settings.create_tables:
                raise SinkUnavailable(f"table {missing[0].name} does not exist, and create_tables is off")
            try:
                with self._transaction(connection):
                    METADATA.create_all(connection, tables=missing)
                return
            except DBAPIError:
                # Perhaps another process created one of them in the meantime.
                if self._connection is None or connection.invalidated:
                    raise
                before, missing = missing, self._missing(connection)
                if missing == before:
                    raise

    def _find_left_times(self, connection: Connection) -> None:
        self._left_times = {}
        try:
            with self._transaction(connection, commit=False):
                for kind, table in TABLES.items():
                    names = connection.execute(select(text("*")).select_from(table).where(false())).keys()
                    self._left_times[kind] = {*FIELD_TIMES[kind].values()}.intersection(names)
        except DBAPIError:
            # The right to read all columns may be missing; nothing else needs it.
            if self._connection is None or connection.invalidated:
                raise

    def _missing(self, connection: Connection) -> list[Table]:
        with self._transaction(connection, commit=False):
            inspector = inspect(connection)
            return [table for table in TABLES.values() if not inspector.has_table(table.name)]

    @contextlib.contextmanager
    def _faults(self, *, writing: bool = False) -> Iterator[None]:
        """The one place where a driver's errors become ours; unless ``writing``, all of them are plain outages.

        What no driver raises is a bug, and passes.
        """
        try:
            yield
        except Exception as exc:
            # SQLAlchemy's own text quotes the statement; the driver's error is what counts.
            cause = exc.orig if isinstance(exc, StatementError) and exc.orig is not None else exc
            error = self._translate(cause)
            if error is None:
                raise
            if not writing and (type(error) is not SinkUnavailable or error.unknown_code):
                error = SinkUnavailable(str(error), code=error.code)
            if error is cause:
                raise error from error.__cause__
            raise error from cause

    def _translate(self, cause: BaseException) -> SinkError | None:
        match cause:
            case SinkError():
                return cause
            case self.driver_error():
                return _error(self._fault(cause))
            case OverflowError():
                return BatchRejected("a number is beyond what the database can hold")
            case UnicodeEncodeError():
                return BatchRejected("a text holds an unpaired surrogate")
            case OSError():
                message = cause.strerror or type(cause).__name__
                place = f": {cause.filename}" if cause.filename else ""
                return SinkUnavailable(message + place, code=errno.errorcode.get(cause.errno or 0, ""))
            case _:
                return None


def _error(fault: Fault) -> SinkError:
    match fault.blame:
        case Blame.ROWS:
            return BatchRejected(fault.message, code=fault.code)
        case Blame.CONFLICT:
            return SinkConflict(fault.message, code=fault.code)
        case _:
            return SinkUnavailable(fault.message, code=fault.code, unknown_code=fault.blame is Blame.UNKNOWN)


def make_engine(url: URL, **options: Any) -> Engine:
    """An engine that pools nothing, resets nothing, and shows no parameters in its errors."""
    return create_engine(url, poolclass=NullPool, pool_reset_on_return=None, hide_parameters=True, **options)
