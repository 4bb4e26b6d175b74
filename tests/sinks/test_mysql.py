"""MySQL alone: its URL, session, packets and collations, and whose fault its errors are."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pymysql
import pytest

from tests import galera
from tests.process import AtWork
from tests.servers import MariaDB, database_of, free_port
from tests.sinks.readers import connect_mysql, ids, read_mysql
from tornado_persist.cli.check import hint
from tornado_persist.errors import BatchRejected, SinkConflict, SinkError, SinkUnavailable
from tornado_persist.records.models import Batch
from tornado_persist.sinks import mysql, mysqlconnect
from tornado_persist.sinks.hosts import HOST_TIMEOUT
from tornado_persist.sinks.mysql import MySQLSettings, MySQLSink
from tornado_persist.sinks.sql import Blame
from tornado_persist.sinks.sqlreader import SQLReader
from tornado_persist.testing import session, task

Run = Callable[[str], None]


@pytest.fixture(autouse=True)
def short_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("lock_wait_timeout", "innodb_lock_wait_timeout"):
        monkeypatch.setitem(mysqlconnect._SESSION, name, "1")


#: For tests of stored rows: by the bulk command, and by plain statements, for MySQL, which has no bulk command.
both_ways = pytest.mark.parametrize("way", ["bulk", "literals"], indirect=True)


@pytest.fixture
def way(request: pytest.FixtureRequest) -> str:
    """How rows go to the server."""
    return str(getattr(request, "param", "bulk"))


@pytest.fixture
def make(way: str, mysql_url: str, mariadb_server: MariaDB, tmp_path: Path) -> Iterator[Callable[..., MySQLSink]]:
    sinks = []
    prepared = mariadb_server.variable("max_prepared_stmt_count", 0) if way == "literals" else None

    def make(url: str = mysql_url, **settings: Any) -> MySQLSink:
        sinks.append(MySQLSink(MySQLSettings(url=url, **settings), tmp_path))
        return sinks[-1]

    with prepared or contextlib.nullcontext():
        yield make
    for sink in sinks:
        sink.close()


@pytest.fixture
def sink(make: Callable[..., MySQLSink]) -> MySQLSink:
    sink = make()
    sink.open()
    return sink


@pytest.fixture
def owner(mysql_url: str) -> Iterator[Run]:
    """Runs SQL in the database."""
    with contextlib.closing(connect_mysql(mysql_url)) as connection, connection.cursor() as cursor:

        def run(sql: str) -> None:
            cursor.execute(sql)

        yield run


def failure(sink: MySQLSink, batch: Batch) -> SinkError:
    with pytest.raises(SinkError) as caught:
        sink.write(batch)
    return caught.value


def value(sink: MySQLSink, expression: str) -> Any:
    assert sink._connection is not None
    with sink._connection.begin():
        return sink._connection.exec_driver_sql(f"SELECT {expression}").scalar_one()


# The URL


def test_a_password_may_have_any_character(
    make: Callable[..., MySQLSink], mysql_url: str, mariadb_server: MariaDB
) -> None:
    mariadb_server.admin("CREATE USER other@'%' IDENTIFIED BY '密/@:?码'")
    mariadb_server.admin(f"GRANT ALL ON `{database_of(mysql_url)}`.* TO other@'%'")
    try:
        sink = make(mysql_url.replace("persist:secret@", "other:%E5%AF%86%2F%40%3A%3F%E7%A0%81@"))
        sink.open()
        sink.write(Batch([session("s")]))
        sink.close()
    finally:
        mariadb_server.admin("DROP USER other@'%'")


def test_of_several_hosts_the_first_that_can_be_written_to_is_taken_and_named(
    make: Callable[..., MySQLSink], mysql_url: str, mariadb_server: MariaDB
) -> None:
    name, port = database_of(mysql_url), mariadb_server.port
    with MariaDB() as other, socket.create_server(("127.0.0.1", 0)) as silent:
        other.admin(f"CREATE DATABASE {name}")
        other.admin(f"GRANT ALL ON {name}.* TO persist@'%'")
        ports = (free_port(), silent.getsockname()[1], other.port, port)
        url = f"mysql://persist:secret@{','.join(f'127.0.0.1:{n}' for n in ports)}/{name}"
        with other.variable("read_only", 1):
            sink = make(url)
            began = time.monotonic()
            sink.open()
            assert time.monotonic() - began < 2 * HOST_TIMEOUT
            assert sink.describe() == f"{mariadb_server.version} at 127.0.0.1:{port}/{name}"
            sink.write(Batch([session("s")]))
            with mariadb_server.variable("read_only", 1):
                sink.close()
                with pytest.raises(SinkUnavailable, match=f"127.0.0.1:{port}: it is read-only") as caught:
                    sink.open()
                assert caught.value.code == "1290"
                assert "refused" in str(caught.value)
        url = f"mysql://persist:secret@127.0.0.1:{other.port},127.0.0.1:{port}/{name}"
        sink = make(url, answer_timeout=0.5)
        sink.open()
        at_other = f" at 127.0.0.1:{other.port}/"
        assert at_other in sink.describe()
        with contextlib.closing(connect_mysql(f"mysql://persist:secret@127.0.0.1:{other.port}/{name}")) as holder:
            holder.cursor().execute("LOCK TABLES translation_sessions WRITE")
            assert failure(sink, Batch([session("t")])).code == "2013"
            sink.open()
            assert at_other not in sink.describe(), "the one that did not answer is tried last"
            sink.write(Batch([session("t")]))
    assert ids(read_mysql(mysql_url)["session"]) == {"s", "t"}


def test_describe_names_product_version_and_place(sink: MySQLSink, mysql_url: str, mariadb_server: MariaDB) -> None:
    assert sink.describe() == f"{mariadb_server.version} at {mysql_url.partition('@')[2]}"


def test_an_authentication_that_needs_another_package_is_an_outage_that_names_it(
    make: Callable[..., MySQLSink],
) -> None:
    # MySQL 8 asks for this one by default, and only a MySQL server does.
    message = "'cryptography' package is required for sha256_password or caching_sha2_password auth methods"

    def connect(self: object, sock: object = None) -> None:
        raise RuntimeError(message)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pymysql.connections.Connection, "connect", connect)
        with pytest.raises(SinkUnavailable, match="cryptography"):
            make().open()


# The session


@both_ways
def test_the_session_is_strict_and_utc_under_any_server_settings(
    make: Callable[..., MySQLSink], mysql_url: str, mariadb_server: MariaDB
) -> None:
    row = task("a", context="\\'\"`翻译🈳\\", target_text="\\")
    with (
        mariadb_server.variable("sql_mode", "ANSI_QUOTES,NO_BACKSLASH_ESCAPES,PIPES_AS_CONCAT"),
        mariadb_server.variable("time_zone", "-05:00"),
        mariadb_server.variable("wait_timeout", 10),
        mariadb_server.variable("completion_type", "RELEASE"),
        mariadb_server.variable("character_set_server", "latin1"),
    ):
        sink = make()
        sink.open()
        modes = value(sink, "@@sql_mode").split(",")
        assert "STRICT_ALL_TABLES" in modes
        assert not {"ANSI_QUOTES", "NO_BACKSLASH_ESCAPES", "PIPES_AS_CONCAT"} & set(modes)
        assert value(sink, "@@time_zone") == "+00:00"
        assert value(sink, "@@wait_timeout") > 24 * 3600
        sink.write(Batch(tasks=[row]))
        sink.write(Batch(tasks=[row]))
    found = read_mysql(mysql_url)["task"]["s", "a"]
    assert {name: found[name] for name in row} == row


@both_ways
def test_rows_go_by_the_bulk_command_where_the_server_takes_it(
    way: str, sink: MySQLSink, mariadb_server: MariaDB
) -> None:
    def prepared() -> int:
        return int(mariadb_server.admin("SHOW GLOBAL STATUS LIKE 'Prepared_stmt_count'")[0][1])

    before = prepared()
    sink.write(Batch([session("s")], [task("a"), task("b")]))
    sink.write(Batch([session("s")], [task("a"), task("b")]))
    assert prepared() - before == (2 if way == "bulk" else 0)


class LoggingMariaDB(MariaDB):
    """With a binary log of statements."""

    def _command(self) -> list[str]:
        return [*super()._command(), "--log-bin=log", "--server-id=1", "--binlog-format=STATEMENT"]


def test_a_server_that_logs_statements_gets_statements(tmp_path: Path) -> None:
    server = LoggingMariaDB()
    try:
        server.start()
        url = server.fresh_database()
        sink = MySQLSink(MySQLSettings(url=url), tmp_path)
        sink.open()
        sink.write(Batch([session("s")], [task("a"), task("b")]))
        sink.close()
        assert ids(read_mysql(url)["task"]) == {"a", "b"}
        (logged,) = [row[5] for row in server.admin("SHOW BINLOG EVENTS") if "'b'" in str(row[5])]
        assert "translation_tasks" in logged
    finally:
        server.close()


@both_ways
def test_a_value_too_long_is_refused_and_never_cut(sink: MySQLSink, mysql_url: str) -> None:
    error = failure(sink, Batch(tasks=[task("a", column_name="x" * 256)]))
    assert isinstance(error, BatchRejected)
    assert error.code == "1406"
    assert read_mysql(mysql_url)["task"] == {}


# Keys


@both_ways
def test_keys_that_differ_by_case_accent_width_or_a_trailing_space_are_separate(
    sink: MySQLSink, mysql_url: str
) -> None:
    keys = ["a", "A", "á", "a\u0301", "ａ", "a ", "ß", "ss", "İ", "i", "\U0001f600", "\U0001f601"]
    sink.write(Batch([session(key) for key in keys], [task(key, session_id=key) for key in keys]))
    stored = read_mysql(mysql_url)
    assert {key[-1] for key in stored["session"]} == {key[-1] for key in stored["task"]} == set(keys)
    assert sink.find_sessions(["A", "ä", "a "]) == {"A", "a "}


@pytest.mark.parametrize(("collation", "fine"), [("utf8mb4_general_ci", False), ("utf8mb4_bin", True)])
def test_a_key_column_that_takes_different_keys_for_the_same_is_refused(
    sink: MySQLSink, owner: Run, collation: str, fine: bool
) -> None:
    owner(f"ALTER TABLE translation_tasks MODIFY task_id varchar(64) COLLATE {collation} NOT NULL")
    if fine:
        sink.open()
    else:
        with pytest.raises(SinkUnavailable, match="task_id has the collation utf8mb4_general_ci"):
            sink.open()


def test_tables_whose_keys_are_refused_are_converted_as_the_page_says(
    sink: MySQLSink, owner: Run, mysql_url: str
) -> None:
    sink.write(Batch([session("s")], [task("a", session_id="s")]))
    usual = "varchar(64) CHARACTER SET utf8mb4 COLLATE utf8mb4_general_ci NOT NULL"
    owner(f"ALTER TABLE translation_sessions MODIFY session_id {usual}")
    owner(f"ALTER TABLE translation_tasks MODIFY session_id {usual}, MODIFY task_id {usual}")
    owner(
        "ALTER TABLE translation_tasks ADD CONSTRAINT tasks_session"
        " FOREIGN KEY (session_id) REFERENCES translation_sessions (session_id)"
    )
    with pytest.raises(SinkUnavailable, match="has the collation utf8mb4_general_ci") as refused:
        sink.open()
    assert "docs/sinks.rst" in hint("mysql", refused.value)
    page = (Path(__file__).parent.parent.parent / "docs" / "sinks.rst").read_text()
    block = page[page.index("    ALTER TABLE translation_tasks DROP FOREIGN KEY") :].partition("\n\n")[0]
    for statement in filter(str.strip, block.split(";")):
        owner(statement)
    sink.open()
    sink.write(Batch([session("S")], [task("A", session_id="S"), task("a", session_id="S")]))
    assert set(read_mysql(mysql_url)["task"]) == {("s", "a"), ("S", "A"), ("S", "a")}
    error = failure(sink, Batch([], [task("b", session_id="none")]))
    assert isinstance(error, BatchRejected), "the foreign key is there again"


# Packets


@both_ways
def test_statements_stay_within_a_small_packet(
    make: Callable[..., MySQLSink], mysql_url: str, mariadb_server: MariaDB
) -> None:
    with mariadb_server.variable("max_allowed_packet", 16 * 1024):
        sink = make()
        sink.open()
        # Escaping doubles some, UTF-8 triples others.
        tasks = [task(f"{i:03}", context="'" * (i * 30), target_text="译" * (i * 10)) for i in range(200)]
        sink.write(Batch([session("s")], tasks))
        sink.write(Batch([session("s")], tasks))
    stored = read_mysql(mysql_url)["task"]
    assert {key: (row["context"], row["target_text"]) for key, row in stored.items()} == {
        ("s", row["task_id"]): (row["context"], row["target_text"]) for row in tasks
    }


@both_ways
def test_a_row_longer_than_a_packet_goes_value_by_value(
    make: Callable[..., MySQLSink], mysql_url: str, mariadb_server: MariaDB, owner: Run
) -> None:
    with mariadb_server.variable("max_allowed_packet", 16 * 1024):
        sink = make()
        sink.open()
        # The row arrives whole: what looks at it in the database never sees half of it.
        owner("ALTER TABLE translation_tasks ADD CHECK (length(source_text) > 9000 AND length(context) > 9000)")
        long = {"source_text": "s'" * 5000, "target_text": "译" * 4000, "context": "\\" * 6000 + "c" * 3500}
        rows = [task("a", **long), task("b", **{**long, "context": "q" * 9001, "target_text": None})]
        meta = {"metadata": {"k": "值'\\" * 1500}, "game_info": {"k": "\n" * 4000}}
        sink.write(Batch([session("s", **meta)], rows))
        assert value(sink, "@persist_6") is None
    stored = read_mysql(mysql_url)
    for row in rows:
        assert {name: stored["task"]["s", row["task_id"]][name] for name in row} == row
    assert {name: stored["session"][("s",)][name] for name in meta} == meta


@both_ways
def test_a_value_longer_than_a_packet_is_the_rows_fault(
    make: Callable[..., MySQLSink], mysql_url: str, mariadb_server: MariaDB
) -> None:
    with mariadb_server.variable("max_allowed_packet", 16 * 1024):
        sink = make()
        sink.open()
        error = failure(sink, Batch([session("s")], [task("a"), task("b", context="x" * 17_000)]))
        assert isinstance(error, BatchRejected)
        assert "max_allowed_packet" in str(error)
        assert "xxx" not in str(error)
        assert read_mysql(mysql_url) == {"session": {}, "task": {}}
        sink.write(Batch([session("s")], [task("a", context="x" * 16_000)]))
    assert ids(read_mysql(mysql_url)["task"]) == {"a"}


# Whose fault it is: a row's


SIGNAL = """
CREATE TRIGGER x BEFORE INSERT ON translation_tasks FOR EACH ROW
IF NEW.context = 'bad' THEN SIGNAL SQLSTATE '45000' SET MESSAGE_TEXT = 'not this one'; END IF
"""


@both_ways
@pytest.mark.parametrize(
    ("change", "code"),
    [
        ("ALTER TABLE translation_tasks ADD CONSTRAINT x CHECK (context <> 'bad')", "4025"),
        ("ALTER TABLE translation_tasks MODIFY target_text text NOT NULL", "1048"),
        ("ALTER TABLE translation_tasks MODIFY context varchar(2)", "1406"),
        ("ALTER TABLE translation_tasks MODIFY context enum('ok')", "1265"),
        ("ALTER TABLE translation_tasks MODIFY sheet_name varchar(255) CHARACTER SET latin1", "1366"),
        ("ALTER TABLE translation_tasks MODIFY sheet_name datetime", "1292"),
        ("ALTER TABLE translation_tasks MODIFY duration_ms smallint", "1264"),
        ("ALTER TABLE translation_tasks PARTITION BY RANGE (row_index) (PARTITION p VALUES LESS THAN (9))", None),
        (
            "ALTER TABLE translation_tasks ADD FOREIGN KEY (session_id) REFERENCES translation_sessions (session_id)",
            "1452",
        ),
        (SIGNAL, "1644"),
    ],
)
def test_what_depends_on_a_rows_values_is_the_rows_fault(
    sink: MySQLSink, owner: Run, mysql_url: str, change: str, code: str | None
) -> None:
    if code is None:
        owner("ALTER TABLE translation_tasks DROP PRIMARY KEY, ADD PRIMARY KEY (task_id, row_index)")
    owner(change)
    sheet = "2025-01-01" if "datetime" in change else "Sheet1"
    good = task("good", session_id="s", context="ok", target_text="", duration_ms=1, sheet_name=sheet)
    wrong = {"session_id": "none", "context": "bad", "target_text": None, "duration_ms": 99999, "row_index": 10}
    bad = [task(key, **wrong, sheet_name="表格") for key in ("b1", "b2")]
    error = failure(sink, Batch([session("s")], [good, *bad]))
    assert isinstance(error, BatchRejected)
    assert error.code == (code or "1526")
    assert "bad" not in str(error)
    assert "表格" not in str(error)
    assert not any(read_mysql(mysql_url).values())
    sink.write(Batch([session("s")], [good]))
    assert ids(read_mysql(mysql_url)["session"]) == {"s"}


@both_ways
def test_a_duplicate_in_another_unique_index_is_the_rows_fault_and_updates_no_other_row(
    sink: MySQLSink, owner: Run, mysql_url: str
) -> None:
    sink.write(Batch([session("s")], [task("a", context="same")]))
    owner("ALTER TABLE translation_tasks ADD UNIQUE (context(10))")
    before = read_mysql(mysql_url)
    error = failure(sink, Batch(tasks=[task("b", context="same", row_index=7)]))
    assert isinstance(error, BatchRejected)
    assert "unique index" in str(error)
    assert read_mysql(mysql_url) == before
    sink.write(Batch(tasks=[task("a", context="same", row_index=8)]))
    assert read_mysql(mysql_url)["task"]["s", "a"]["row_index"] == 8


@both_ways
@pytest.mark.parametrize(
    "fields", [{"duration_ms": 2**63}, {"context": "\ud800"}, {"context": "a\udcff"}], ids=["64 bits", "lead", "trail"]
)
def test_what_cannot_be_stored_is_the_rows_fault(sink: MySQLSink, fields: dict[str, object]) -> None:
    assert isinstance(failure(sink, Batch(tasks=[task("a", **fields)])), BatchRejected)


# Whose fault it is: not a row's


@both_ways
@pytest.mark.parametrize(
    ("change", "code"),
    [
        ("DROP TABLE translation_tasks", "1146"),
        ("ALTER TABLE translation_tasks DROP COLUMN context", "1054"),
        ("ALTER TABLE translation_tasks ADD region varchar(9) NOT NULL", "1364"),
        ("CREATE TRIGGER x BEFORE INSERT ON translation_tasks FOR EACH ROW INSERT INTO nowhere VALUES (1)", "1146"),
    ],
)
def test_what_depends_on_the_schema_is_an_outage(
    sink: MySQLSink, owner: Run, mysql_url: str, change: str, code: str
) -> None:
    owner(change)
    error = failure(sink, Batch([session("s")], [task("a", context="x")]))
    assert type(error) is SinkUnavailable
    assert (error.code, error.unknown_code) == (code, False)
    assert sink.find_sessions({"s"}) == set()


def test_fields_beyond_the_specification_need_their_column_and_no_others_do(
    make: Callable[..., MySQLSink], sink: MySQLSink, owner: Run
) -> None:
    owner("ALTER TABLE translation_tasks DROP COLUMN extra")
    again = make()
    again.open()
    again.write(Batch(tasks=[task("a")]))
    missing = failure(again, Batch(tasks=[task("b", extra={"n": 1})]))
    assert (missing.code, "extra" in str(missing)) == ("1054", True)


def test_a_missing_table_is_noticed_by_ping(sink: MySQLSink, owner: Run) -> None:
    owner("DROP TABLE translation_tasks")
    with pytest.raises(SinkUnavailable, match="translation_tasks") as caught:
        sink.ping()
    assert caught.value.code == "1146"


@both_ways
def test_missing_rights_are_an_outage_that_ping_or_open_notices(
    sink: MySQLSink, mysql_url: str, mariadb_server: MariaDB
) -> None:
    pattern = database_of(mysql_url).replace("_", r"\_")
    mariadb_server.admin(rf"REVOKE UPDATE ON `{pattern}`.* FROM persist@'%'")
    sink.close()
    sink.open()
    with pytest.raises(SinkUnavailable) as caught:
        sink.ping()
    assert caught.value.code == "1142"
    assert isinstance(failure(sink, Batch([session("s")])), SinkUnavailable)
    mariadb_server.admin(rf"REVOKE INSERT ON `{pattern}`.* FROM persist@'%'")
    sink.close()
    with pytest.raises(SinkUnavailable, match="INSERT") as caught:
        sink.open()
    assert caught.value.code == "1142"


@both_ways
def test_a_server_that_turns_read_only_is_an_outage_that_ping_notices(sink: MySQLSink, mariadb_server: MariaDB) -> None:
    with mariadb_server.variable("read_only", 1):
        with pytest.raises(SinkUnavailable) as caught:
            sink.ping()
        assert caught.value.code == "1290"
        assert failure(sink, Batch([session("s")])).code == "1290"
    sink.write(Batch([session("s")]))


@both_ways
def test_another_writers_lock_is_a_conflict_and_not_an_endless_wait(sink: MySQLSink, owner: Run) -> None:
    sink.write(Batch([session("s")]))
    owner("BEGIN")
    owner("UPDATE translation_sessions SET status = 'failed'")
    error = failure(sink, Batch([session("new"), session("s")]))
    assert isinstance(error, SinkConflict)
    assert error.code == "1205"
    owner("ROLLBACK")
    assert sink.find_sessions({"new"}) == set()
    sink.write(Batch([session("new"), session("s")]))


@both_ways
def test_a_killed_connection_is_an_outage_that_opening_mends(
    sink: MySQLSink, mysql_url: str, mariadb_server: MariaDB
) -> None:
    for call in (sink.ping, lambda: sink.write(Batch([session("s")], [task("a")]))):
        mariadb_server.admin(f"KILL {value(sink, 'connection_id()')}")
        with pytest.raises(SinkUnavailable):
            call()
        with pytest.raises(SinkUnavailable):
            call()
        sink.close()
        sink.open()
    sink.write(Batch([session("s")], [task("a")]))
    assert ids(read_mysql(mysql_url)["session"]) == {"s"}


# Whose fault it is: another writer's, or unknown


@both_ways
def test_a_deadlock_is_a_conflict_after_which_the_connection_goes_on(
    sink: MySQLSink, mysql_url: str, mariadb_server: MariaDB, monkeypatch: pytest.MonkeyPatch
) -> None:
    batch = Batch([], [task("a"), task("b", context="x")])
    sink.write(Batch([session(f"s{i}") for i in range(50)]))
    sink.write(batch)
    connection, upsert = sink._connection, sink._upsert
    with contextlib.closing(connect_mysql(mysql_url)) as other, other.cursor() as cursor:
        cursor.execute("SET innodb_lock_wait_timeout = 60")
        cursor.execute("BEGIN")
        # The transaction with fewer changes is the victim: it must be the sink's.
        cursor.execute("UPDATE translation_sessions SET status = 'failed'")
        lock = "UPDATE translation_tasks SET status = 'failed' WHERE session_id = 's' AND task_id = %s"
        cursor.execute(lock, ["b"])
        waiting = threading.Thread(target=cursor.execute, args=(lock, ["a"]))

        def upsert_and_be_waited_for(*args: Any) -> None:
            upsert(*args)
            if not waiting.ident:
                waiting.start()
                deadline = time.monotonic() + 30
                query = "SELECT 1 FROM information_schema.innodb_trx WHERE trx_state = 'LOCK WAIT'"
                while not mariadb_server.admin(query) and time.monotonic() < deadline:
                    time.sleep(0.15)  # the server renews that table ten times a second

        monkeypatch.setattr(sink, "_upsert", upsert_and_be_waited_for)
        error = failure(sink, batch)
        waiting.join()
        cursor.execute("COMMIT")
    assert isinstance(error, SinkConflict)
    assert (error.code, error.unknown_code) == ("1213", False)
    assert {row["status"] for row in read_mysql(mysql_url)["task"].values()} == {"failed"}
    sink.write(batch)
    assert sink._connection is connection
    assert {row["status"] for row in read_mysql(mysql_url)["task"].values()} == {"pending"}


@both_ways
@pytest.mark.parametrize("end", ["ROLLBACK", "COMMIT", "ALTER TABLE translation_tasks COMMENT 'x'"])
def test_a_transaction_that_ends_within_a_write_is_a_conflict(sink: MySQLSink, mysql_url: str, end: str) -> None:
    batch = Batch([session("s")], [task("a"), task("b")])
    driver = mysql._driver(sink._connection)  # type: ignore[arg-type]
    connection, check = sink._connection, mysql._check_transaction

    def end_it_after_an_insert(driver: Any) -> None:
        check(driver)
        patch.undo()
        driver.query(end)
        check(driver)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(mysql, "_check_transaction", end_it_after_an_insert)
        error = failure(sink, batch)
    assert isinstance(error, SinkConflict)
    assert "ended the transaction" in str(error)
    sink.write(batch)
    assert sink._connection is connection
    assert mysql._driver(sink._connection) is driver  # type: ignore[arg-type]
    assert ids(read_mysql(mysql_url)["task"]) == {"a", "b"}


@pytest.mark.skipif(galera.LIBRARY is None, reason="Galera's library is not installed (Debian: galera-4)")
@pytest.mark.parametrize("way", ["bulk", "literals"])
def test_a_transaction_that_galera_aborts_is_a_conflict_and_loses_no_row(tmp_path: Path, way: str) -> None:
    with galera.Node() as server, server.variable("max_prepared_stmt_count", 0 if way == "literals" else 99):
        url = server.fresh_database()
        sink = MySQLSink(MySQLSettings(url=url), tmp_path)
        sink.open()
        conflicts = 0

        def alter() -> None:
            for change in ("ADD INDEX IF NOT EXISTS x (row_index)", "DROP INDEX IF EXISTS x"):
                with contextlib.suppress(pymysql.err.OperationalError):  # the node may refuse one of them
                    cursor.execute(f"ALTER TABLE translation_tasks {change}")
            time.sleep(0.05)

        with (
            contextlib.closing(sink),
            contextlib.closing(connect_mysql(url)) as connection,
            connection.cursor() as cursor,
            AtWork(alter),
        ):
            for number in range(40):
                rows = [task(f"{number:02}-{row:04}") for row in range(2000)]
                while True:
                    try:
                        sink.write(Batch([], rows))
                        break
                    except SinkConflict:
                        conflicts += 1
        assert conflicts > 0
        assert len(read_mysql(url)["task"]) == 40 * 2000


@both_ways
@pytest.mark.parametrize(
    ("state", "number", "expected", "unknown_code"),
    [
        ("40001", 1213, SinkConflict, False),
        ("HY000", 1020, SinkConflict, False),
        ("HY000", 1205, SinkConflict, False),
        # What a Galera cluster and TiDB say of a transaction that lost, and their SQLSTATE with a number nobody knows.
        ("HY000", 1180, SinkConflict, False),
        ("HY000", 9007, SinkConflict, False),
        ("HY000", 8002, SinkConflict, False),
        ("HY000", 8022, SinkConflict, False),
        ("HY000", 8028, SinkConflict, False),
        ("40001", 5678, SinkConflict, False),
        ("08S01", 1047, SinkUnavailable, False),
        ("HY000", 5678, SinkUnavailable, True),
        ("42000", 1118, SinkUnavailable, True),
        ("HY000", 1105, SinkUnavailable, True),
        ("HY000", 1114, SinkUnavailable, False),
        ("HY000", 1021, SinkUnavailable, False),
        ("42S02", 1146, SinkUnavailable, False),
        ("HY000", 2013, SinkUnavailable, False),
        # What would be the server's fault, were it not the trigger's for one row.
        ("45000", 1205, SinkUnavailable, True),
        ("45000", 1114, SinkUnavailable, True),
        ("45000", 1146, SinkUnavailable, True),
        ("45000", 5678, SinkUnavailable, True),
    ],
)
def test_a_number_of_a_triggers_own_is_a_conflict_or_an_outage_or_suspect(
    sink: MySQLSink,
    owner: Run,
    mysql_url: str,
    state: str,
    number: int,
    expected: type[SinkUnavailable],
    unknown_code: bool,
) -> None:
    owner(SIGNAL.replace("45000", state).replace("MESSAGE_TEXT", f"MYSQL_ERRNO = {number}, MESSAGE_TEXT"))
    connection = sink._connection
    error = failure(sink, Batch([session("s")], [task("a"), task("b", context="bad")]))
    assert type(error) is expected
    assert (error.code, error.unknown_code, str(error)) == (str(number), unknown_code, "not this one")
    assert not any(read_mysql(mysql_url).values())
    if number < 2000:  # else the driver takes the connection for lost
        sink.write(Batch([session("s")], [task("a")]))
        assert sink._connection is connection


@both_ways
def test_a_row_too_large_for_its_page_is_suspect(sink: MySQLSink, owner: Run) -> None:
    columns = ", ".join(f"ADD c{i} varchar(255) CHARACTER SET latin1 AS (left(context, 255)) STORED" for i in range(60))
    owner("SET innodb_strict_mode = OFF")  # else the table itself would be refused
    owner(f"ALTER TABLE translation_tasks ROW_FORMAT = COMPACT, {columns}")
    error = failure(sink, Batch([], [task("a"), task("b", context="x" * 255)]))
    assert isinstance(error, SinkUnavailable)
    assert (error.code, error.unknown_code) == ("1118", True)
    sink.write(Batch([], [task("a")]))


@pytest.mark.parametrize(
    "error", [pymysql.err.InterfaceError(0, ""), pymysql.err.InternalError("Packet sequence number wrong - got 1")]
)
def test_an_error_of_the_driver_without_a_number_is_an_outage(sink: MySQLSink, error: Exception) -> None:
    fault = sink._fault(error)
    assert (fault.blame, fault.code) == (Blame.SERVER, "")
    assert fault.message


def test_a_server_that_stops_fails_the_write_in_time(make: Callable[..., MySQLSink], mariadb_server: MariaDB) -> None:
    sink = make(answer_timeout=1)
    sink.open()
    mariadb_server.suspend()
    began = time.monotonic()
    try:
        with pytest.raises(SinkUnavailable, match="timed out"):
            sink.write(Batch([session("s")]))
    finally:
        mariadb_server.resume()
    assert time.monotonic() - began < 5
    sink.open()
    sink.write(Batch([session("s")]))


def test_what_will_cost_a_row_some_day_is_told(
    make: Callable[..., MySQLSink], mariadb_server: MariaDB, mysql_url: str
) -> None:
    sink = make()
    sink.open()
    assert sink.cautions() == []
    with (
        mariadb_server.variable("max_allowed_packet", 1 << 20),
        mariadb_server.variable("innodb_flush_log_at_trx_commit", 2),
    ):
        for change in ("ENGINE = MyISAM", "MODIFY context TEXT", "MODIFY sheet_name VARCHAR(100) NOT NULL"):
            mariadb_server.admin(f"ALTER TABLE translation_tasks {change}", database_of(mysql_url))
        again = make()
        again.open()
        problems = [caution.problem for caution in again.cautions()]
    assert [problem.partition(":")[0] for problem in problems] == [
        "translation_tasks.sheet_name takes 100 characters for certain, and a row may have 255",
        "translation_tasks.context takes 16,383 characters for certain, and a row may have 1,048,576",
        "translation_tasks is a table of MyISAM, not InnoDB",
        "max_allowed_packet is 1048576",
        "innodb_flush_log_at_trx_commit is not 1",
    ]


def test_a_users_time_limit_for_a_statement_does_not_matter(
    make: Callable[..., MySQLSink], mariadb_server: MariaDB, mysql_url: str
) -> None:
    make().open()
    mariadb_server.admin(
        "CREATE TRIGGER slow BEFORE INSERT ON translation_tasks FOR EACH ROW"
        " SET NEW.context = CONCAT('slow', SLEEP(0.01))",
        database_of(mysql_url),
    )
    with mariadb_server.variable("max_statement_time", 0.1):
        sink = make()
        sink.open()
        sink.write(Batch(tasks=[task(f"{number}") for number in range(30)]))


def test_a_silent_machine_is_noticed_by_tcp(sink: MySQLSink) -> None:
    assert sink._connection is not None
    driver = mysql._driver(sink._connection)
    assert driver._sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) == 10_000
    assert driver._sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE) == 10
    assert driver._read_timeout == 60, "and a statement has its time"


def test_a_read_is_read_only_and_has_a_time_limit(sink: MySQLSink) -> None:
    reader = sink.reader()
    assert isinstance(reader, SQLReader)
    reader.open()
    limit = "SELECT @@max_statement_time"
    assert reader._run(lambda connection: connection.exec_driver_sql(limit).scalar_one()) == 5
    with pytest.raises(SinkUnavailable, match="READ ONLY"):
        reader._run(lambda connection: connection.exec_driver_sql("DELETE FROM translation_tasks"))
    reader.close()
