"""SQLite alone: its file and locks, and whose fault its errors are."""

from __future__ import annotations

import contextlib
import sqlite3
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from pydantic import ValidationError

from tests.sinks.readers import ids, read_sqlite
from tornado_persist.errors import BatchRejected, SinkConflict, SinkError, SinkUnavailable
from tornado_persist.records.models import Batch
from tornado_persist.sinks import sqlite
from tornado_persist.sinks.sql import Blame
from tornado_persist.sinks.sqlite import SQLiteSettings, SQLiteSink
from tornado_persist.testing import session, task


@pytest.fixture(autouse=True)
def short_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sqlite, "LOCK_TIMEOUT", 0.05)


@pytest.fixture
def sink(tmp_path: Path) -> Iterator[SQLiteSink]:
    sink = SQLiteSink(SQLiteSettings(), tmp_path)
    sink.open()
    yield sink
    sink.close()


@contextlib.contextmanager
def other(sink: SQLiteSink) -> Iterator[sqlite3.Connection]:
    """Another connection to the same file."""
    with contextlib.closing(sqlite3.connect(sink.path, isolation_level=None)) as connection:
        yield connection


def failure(sink: SQLiteSink, batch: Batch) -> SinkError:
    with pytest.raises(SinkError) as caught:
        sink.write(batch)
    assert caught.value.__cause__ is None or not isinstance(caught.value.__cause__, SinkError)
    return caught.value


# The file


def test_a_relative_path_is_below_data_dir_and_its_directories_are_made(tmp_path: Path) -> None:
    sink = SQLiteSink(SQLiteSettings(path="deep/er/x.db"), tmp_path)
    sink.open()
    assert sink.describe() == f"SQLite {sqlite3.sqlite_version} at {tmp_path}/deep/er/x.db"
    sink.close()
    assert (tmp_path / "deep/er/x.db").is_file()


def test_an_absolute_path_is_taken_as_it_is(tmp_path: Path) -> None:
    sink = SQLiteSink(SQLiteSettings(path=str(tmp_path / "a?b#c%41.db")), Path("/nowhere"))
    sink.open()
    sink.close()
    assert (tmp_path / "a?b#c%41.db").is_file()


def test_an_empty_path_is_a_bad_configuration() -> None:
    with pytest.raises(ValidationError, match="path"):
        SQLiteSettings(path="")


def test_a_new_object_touches_nothing(tmp_path: Path) -> None:
    SQLiteSink(SQLiteSettings(), tmp_path / "not-there").close()
    assert list(tmp_path.iterdir()) == []


def test_a_commit_is_on_the_disk_and_readers_do_not_wait(sink: SQLiteSink) -> None:
    assert sink._connection is not None
    with sink._connection.begin():
        assert sink._connection.exec_driver_sql("PRAGMA journal_mode").scalar_one() == "wal"
        assert sink._connection.exec_driver_sql("PRAGMA synchronous").scalar_one() == 2


def test_times_and_json_are_readable_text(sink: SQLiteSink) -> None:
    sink.write(Batch([session("s", metadata={"名": "值"})]))
    with other(sink) as connection:
        row = connection.execute("SELECT typeof(created_at), created_at, metadata FROM translation_sessions").fetchone()
    assert row == ("text", "2025-09-30T16:35:00.123456+00:00", '{"名":"值"}')


@pytest.mark.parametrize("replace", [False, True])
def test_a_file_removed_or_replaced_under_it_is_noticed(sink: SQLiteSink, replace: bool) -> None:
    sink.write(Batch([session("s1")]))
    sink.path.unlink()
    if replace:
        sink.path.touch()
    for call in (sink.ping, lambda: sink.write(Batch([session("s2")]))):
        with pytest.raises(SinkUnavailable):
            call()
    sink.close()
    sink.open()
    sink.write(Batch([session("s2")]))
    assert ids(read_sqlite(sink.path)["session"]) == {"s2"}


def test_it_can_be_used_by_another_thread_than_the_one_that_opened_it(sink: SQLiteSink) -> None:
    thread = threading.Thread(target=sink.write, args=(Batch([session("s")]),))
    thread.start()
    thread.join()
    assert sink.find_sessions({"s"}) == {"s"}


# The tables


def test_the_switch_to_wal_waits_for_a_writer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sqlite, "LOCK_TIMEOUT", 10)
    sink = SQLiteSink(SQLiteSettings(), tmp_path)
    other = sqlite3.connect(sink.path, isolation_level=None, check_same_thread=False)
    other.execute("CREATE TABLE other (x)")
    other.execute("BEGIN IMMEDIATE")
    timer = threading.Timer(0.2, other.execute, ["COMMIT"])
    timer.start()
    sink.open()
    timer.join()
    with contextlib.closing(sqlite3.connect(sink.path)) as fresh:
        assert fresh.execute("PRAGMA journal_mode").fetchone() == ("wal",)
    other.close()
    sink.close()


def test_a_missing_column_is_named_when_it_opens(sink: SQLiteSink) -> None:
    with other(sink) as connection:
        connection.execute("ALTER TABLE translation_tasks DROP COLUMN confidence")
    with pytest.raises(SinkUnavailable, match="confidence"):
        sink.open()


def test_a_table_dropped_meanwhile_is_an_outage_that_opening_mends(sink: SQLiteSink) -> None:
    with other(sink) as connection:
        connection.execute("DROP TABLE translation_tasks")
    with pytest.raises(SinkUnavailable, match="translation_tasks"):
        sink.ping()
    error = failure(sink, Batch([session("s")], [task("t")]))
    assert isinstance(error, SinkUnavailable)
    assert not error.unknown_code
    assert "translation_tasks" in str(error)
    assert read_sqlite_sessions(sink) == []
    sink.close()
    sink.open()
    sink.write(Batch([session("s")], [task("t")]))
    assert read_sqlite_sessions(sink) == ["s"]


def read_sqlite_sessions(sink: SQLiteSink) -> list[str]:
    with other(sink) as connection:
        return [key for (key,) in connection.execute("SELECT session_id FROM translation_sessions")]


# Whose fault it is: a row's


@pytest.mark.parametrize("action", ["ABORT", "FAIL", "ROLLBACK"])
def test_a_triggers_raise_is_the_rows_fault(sink: SQLiteSink, action: str) -> None:
    with other(sink) as connection:
        connection.execute(
            "CREATE TRIGGER x BEFORE INSERT ON translation_tasks WHEN NEW.task_id = 'bad'"
            f" BEGIN SELECT RAISE({action}, 'not this one'); END"
        )
    error = failure(sink, Batch([session("s")], [task("a"), task("bad")]))
    assert isinstance(error, BatchRejected)
    assert (error.code, str(error)) == ("SQLITE_CONSTRAINT_TRIGGER", "not this one")
    assert read_sqlite(sink.path) == {"session": {}, "task": {}}
    sink.write(Batch([session("s")], [task("a")]))
    assert read_sqlite_sessions(sink) == ["s"]


def test_a_violated_constraint_is_the_rows_fault(sink: SQLiteSink) -> None:
    with other(sink) as connection:
        connection.execute("CREATE UNIQUE INDEX x ON translation_tasks (column_name)")
    error = failure(sink, Batch(tasks=[task("a"), task("b")]))
    assert isinstance(error, BatchRejected)
    assert error.code == "SQLITE_CONSTRAINT_UNIQUE"


def test_a_value_too_long_for_the_database_is_the_rows_fault(sink: SQLiteSink) -> None:
    assert sink._connection is not None
    sqlite._driver(sink._connection).setlimit(sqlite3.SQLITE_LIMIT_LENGTH, 10_000)
    error = failure(sink, Batch(tasks=[task("a", context="x" * 10_001)]))
    assert isinstance(error, BatchRejected)
    assert "x" * 10 not in str(error)


@pytest.mark.parametrize(
    "fields", [{"duration_ms": 2**63}, {"context": "\ud800"}, {"context": "a\udfffb"}], ids=["64 bits", "lead", "trail"]
)
def test_what_the_driver_cannot_pass_on_is_the_rows_fault(sink: SQLiteSink, fields: dict[str, object]) -> None:
    assert isinstance(failure(sink, Batch(tasks=[task("a", **fields)])), BatchRejected)


# Whose fault it is: not a row's


def test_a_file_locked_by_another_is_an_outage(sink: SQLiteSink) -> None:
    with other(sink) as connection:
        connection.execute("BEGIN IMMEDIATE")
        error = failure(sink, Batch([session("s")]))
        assert type(error) is SinkUnavailable
        assert (error.code, error.unknown_code) == ("SQLITE_BUSY", False)
        connection.execute("ROLLBACK")
    sink.write(Batch([session("s")]))
    assert read_sqlite_sessions(sink) == ["s"]


def test_a_full_disk_is_an_outage(sink: SQLiteSink) -> None:
    assert sink._connection is not None
    driver = sqlite._driver(sink._connection)
    (pages,) = driver.execute("PRAGMA page_count").fetchone()
    driver.execute(f"PRAGMA max_page_count = {pages + 2}").close()
    error = failure(sink, Batch([session("s")], [task("t", context="x" * 100_000)]))
    assert isinstance(error, SinkUnavailable)
    assert (error.code, error.unknown_code) == ("SQLITE_FULL", False)
    assert read_sqlite_sessions(sink) == []


def test_a_database_that_takes_no_writes_is_an_outage_that_ping_notices(sink: SQLiteSink) -> None:
    assert sink._connection is not None
    sqlite._driver(sink._connection).execute("PRAGMA query_only = ON").close()
    with pytest.raises(SinkUnavailable) as caught:
        sink.ping()
    assert caught.value.code == "SQLITE_READONLY"
    assert failure(sink, Batch([session("s")])).code == "SQLITE_READONLY"


def test_a_new_column_that_must_be_filled_is_the_schemas_fault(sink: SQLiteSink) -> None:
    with other(sink) as connection:
        (ddl,) = connection.execute("SELECT sql FROM sqlite_master WHERE name = 'translation_tasks'").fetchone()
        connection.execute("DROP TABLE translation_tasks")
        connection.execute(ddl.replace("task_id VARCHAR(64)", "region TEXT NOT NULL, task_id VARCHAR(64)", 1))
    sink.close()
    sink.open()
    error = failure(sink, Batch(tasks=[task("a")]))
    assert isinstance(error, SinkUnavailable)
    assert not error.unknown_code
    assert "region" in str(error)


@pytest.mark.parametrize(
    "change",
    [
        "ALTER TABLE translation_tasks DROP COLUMN context",
        "CREATE TRIGGER x BEFORE INSERT ON translation_tasks BEGIN INSERT INTO nowhere VALUES (1); END",
        "CREATE TRIGGER x BEFORE INSERT ON translation_tasks BEGIN SELECT nowhere; END",
        "DROP TABLE translation_tasks; CREATE VIEW translation_tasks AS SELECT 1 AS task_id",
        "DROP TABLE translation_tasks; CREATE TABLE translation_tasks (task_id TEXT)",
    ],
)
def test_what_does_not_fit_the_schema_is_an_outage(sink: SQLiteSink, change: str) -> None:
    with other(sink) as connection:
        connection.executescript(change)
    error = failure(sink, Batch([session("s")], [task("a"), task("b", context="x")]))
    assert type(error) is SinkUnavailable
    assert (error.code, error.unknown_code) == ("SQLITE_ERROR", False)
    assert read_sqlite_sessions(sink) == []


# Whose fault it is: another writer's, or unknown


def test_an_error_of_a_function_in_the_schema_is_suspect(sink: SQLiteSink) -> None:
    with other(sink) as connection:
        connection.execute("CREATE INDEX x ON translation_tasks (json_extract(context, '$.a'))")
    error = failure(sink, Batch([session("s")], [task("a", context="{}"), task("b", context="no JSON")]))
    assert isinstance(error, SinkUnavailable)
    assert (error.code, error.unknown_code, str(error)) == ("SQLITE_ERROR", True, "malformed JSON")
    assert read_sqlite_sessions(sink) == []
    sink.write(Batch([session("s")], [task("a", context="{}")]))


def test_a_snapshot_that_another_writer_made_stale_is_a_conflict(
    sink: SQLiteSink, monkeypatch: pytest.MonkeyPatch
) -> None:
    stale = sqlite3.OperationalError("database is locked")
    stale.sqlite_errorcode, stale.sqlite_errorname = sqlite3.SQLITE_BUSY_SNAPSHOT, "SQLITE_BUSY_SNAPSHOT"

    def fail(*args: object) -> None:
        raise stale

    with monkeypatch.context() as patch:
        patch.setattr(sink, "_upsert", fail)
        assert isinstance(failure(sink, Batch([session("s")])), SinkConflict)
    sink.write(Batch([session("s")]))


def test_an_error_of_the_driver_without_a_code_is_an_outage(sink: SQLiteSink) -> None:
    fault = sink._fault(sqlite3.ProgrammingError("Cannot operate on a closed database."))
    assert (fault.blame, fault.code) == (Blame.SERVER, "")


def test_a_file_that_is_no_database_is_an_outage(tmp_path: Path) -> None:
    (tmp_path / "persist.db").write_bytes(b"something else entirely " * 100)
    with pytest.raises(SinkUnavailable) as caught:
        SQLiteSink(SQLiteSettings(), tmp_path).open()
    assert caught.value.code == "SQLITE_NOTADB"


@pytest.mark.parametrize(("path", "code"), [("file/x.db", "EEXIST"), ("", "SQLITE_CANTOPEN")])
def test_a_path_that_cannot_be_is_an_outage(tmp_path: Path, path: str, code: str) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "directory").mkdir()
    with pytest.raises(SinkUnavailable) as caught:
        SQLiteSink(SQLiteSettings(path=path or "directory"), tmp_path).open()
    assert caught.value.code == code


def test_a_closed_sink_says_so(sink: SQLiteSink) -> None:
    sink.close()
    sink.close()
    for call in (sink.ping, lambda: sink.write(Batch([session("s")])), lambda: sink.find_sessions({"s"})):
        with pytest.raises(SinkUnavailable, match="closed"):
            call()


def test_a_bug_is_not_dressed_up_as_an_outage(sink: SQLiteSink) -> None:
    with pytest.raises(AttributeError):
        sink.write(Batch(tasks=[None]))  # type: ignore[list-item]
    sink.write(Batch([session("s")]))
    assert read_sqlite_sessions(sink) == ["s"]
