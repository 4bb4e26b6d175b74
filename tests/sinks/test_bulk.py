"""MariaDB's bulk command: the connection that has it, and how it encodes rows."""

from __future__ import annotations

import contextlib
import inspect
import math
from collections.abc import Iterator
from typing import Any

import msgspec
import pymysql
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pymysql.constants import SERVER_STATUS
from sqlalchemy import Column, Float, Integer, MetaData, String, Table, make_url
from sqlalchemy.dialects.mysql.pymysql import dialect

from tests.servers import MariaDB
from tornado_persist.sinks import bulk
from tornado_persist.sinks.bulk import Binary, BulkConnection

TABLE = Table("things", MetaData(), Column("name", String), Column("number", Integer), Column("part", Float))
NAMES = ["name", "number", "part"]
THING: Any = msgspec.defstruct("Thing", NAMES)
INSERT = b"INSERT INTO things (name, number, part) VALUES (?,?,?)"


def connect(url: str, **options: Any) -> BulkConnection:
    return BulkConnection(**dialect().create_connect_args(make_url(url))[1], charset="utf8mb4", **options)


def run(connection: BulkConnection, sql: str) -> list[tuple[Any, ...]]:
    with connection.cursor() as cursor:
        cursor.execute(sql)
        return list(cursor.fetchall())


def send(connection: BulkConnection, rows: list[tuple[str | None, int | None, float | None]]) -> None:
    things = [THING(*row) for row in rows]
    assert connection.prepare(INSERT)
    connection.execute_bulk(INSERT, Binary.join(Binary(TABLE).encode(NAMES, things)))


def prepared(server: MariaDB) -> int:
    return int(server.admin("SHOW GLOBAL STATUS LIKE 'Prepared_stmt_count'")[0][1])


@pytest.fixture
def connection(mysql_url: str) -> Iterator[BulkConnection]:
    with contextlib.closing(connect(mysql_url)) as connection:
        run(connection, "SET sql_mode = 'STRICT_ALL_TABLES'")
        run(
            connection,
            "CREATE TEMPORARY TABLE things (id INT AUTO_INCREMENT PRIMARY KEY,"
            " name LONGTEXT CHARACTER SET utf8mb4, number BIGINT, part DOUBLE)",
        )
        yield connection


TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=300)
ROWS = st.lists(
    st.tuples(
        st.none() | TEXT,
        st.none() | st.integers(-(2**63), 2**63 - 1),
        st.none() | st.floats(allow_nan=False, allow_infinity=False),
    ),
    min_size=1,
    max_size=20,
)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(rows=ROWS)
def test_the_table_has_what_was_sent(
    connection: BulkConnection, rows: list[tuple[str | None, int | None, float | None]]
) -> None:
    run(connection, "TRUNCATE things")
    send(connection, rows)
    stored = run(connection, "SELECT name, number, part FROM things ORDER BY id")
    assert stored == rows


@pytest.mark.parametrize("size", [0, 1, 250, 251, 252, 65_535, 65_536, 3_000_000])
@pytest.mark.parametrize("beside", [None, "a", "译"])
def test_texts_of_any_size_arrive(connection: BulkConnection, size: int, beside: str | None) -> None:
    send(connection, [("x" * size, 1, 0.5), (beside, 2, 0.5)])
    assert run(connection, "SELECT name FROM things ORDER BY id") == [("x" * size,), (beside,)]


@pytest.mark.parametrize("size", [0, 250, 251, 2**16 - 1, 2**16, 2**24 - 1, 2**24, 2**40])
def test_a_size_is_spelt_as_the_protocol_has_it(size: int) -> None:
    from pymysql.connections import _lenenc_int

    assert bulk._size(size).encode("latin-1") == b"\0" + _lenenc_int(size)


def test_a_row_that_is_refused_refuses_the_command(connection: BulkConnection) -> None:
    run(connection, "ALTER TABLE things ADD CHECK (number < 10)")
    with pytest.raises(pymysql.err.MySQLError) as caught:
        send(connection, [("a", 1, 0.5), ("b", 11, 0.5), ("c", 2, 0.5)])
    assert caught.value.args[0] == 4025
    connection.rollback()
    assert run(connection, "SELECT count(*) FROM things") == [(0,)]
    send(connection, [("a", 1, 0.5)])
    assert run(connection, "SELECT name FROM things") == [("a",)]


def test_a_statement_outlives_a_change_of_its_table(connection: BulkConnection) -> None:
    send(connection, [("a", 1, 0.5)])
    run(connection, "ALTER TABLE things MODIFY number INT, ADD COLUMN more INT DEFAULT 7")
    send(connection, [("b", 2, math.pi)])
    assert run(connection, "SELECT name, number, part, more FROM things ORDER BY id") == [
        ("a", 1, 0.5, 7),
        ("b", 2, math.pi, 7),
    ]


def test_a_connection_keeps_so_many_statements_and_forgets_the_one_not_used_longest(
    connection: BulkConnection, mariadb_server: MariaDB, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bulk, "PREPARED", 3)
    before = prepared(mariadb_server)
    send(connection, [("a", 1, 0.5)])
    for columns in (b"name", b"number", b"part"):
        assert connection.prepare(b"INSERT INTO things (" + columns + b") VALUES (?)")
        send(connection, [("b", 2, 0.5)])
    assert prepared(mariadb_server) - before == 3
    assert b"INSERT INTO things (name) VALUES (?)" not in connection._statements
    assert len(run(connection, "SELECT * FROM things")) == 4


def test_a_server_that_prepares_nothing_says_so_and_the_connection_goes_on(
    connection: BulkConnection, mariadb_server: MariaDB
) -> None:
    with mariadb_server.variable("max_prepared_stmt_count", 0):
        assert not connection.prepare(INSERT)
        assert run(connection, "SELECT 1") == [(1,)]
    send(connection, [("a", 1, 0.5)])
    assert len(run(connection, "SELECT * FROM things")) == 1


def test_what_the_server_does_not_understand_is_raised(connection: BulkConnection) -> None:
    with pytest.raises(pymysql.err.ProgrammingError, match="syntax"):
        connection.prepare(b"INSERT nonsense")
    send(connection, [("a", 1, 0.5)])


def test_pymysql_still_has_the_private_parts_that_this_stands_on(connection: BulkConnection) -> None:
    parts = {
        "_request_authentication": [],
        "_execute_command": ["command", "sql"],
        "_read_packet": ["packet_type"],
        "_read_ok_packet": [],
        "write_packet": ["payload"],
    }
    for name, parameters in parts.items():
        assert list(inspect.signature(getattr(pymysql.connections.Connection, name)).parameters)[1:] == parameters
    assert connection.bulk
    send(connection, [("a", 1, 0.5)])
    # What tells whether a transaction is open: known after every command, this one too.
    assert connection.server_status & SERVER_STATUS.SERVER_STATUS_IN_TRANS


def test_a_server_without_the_command_is_not_asked_for_it(
    connection: BulkConnection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connection, "bulk", False)  # as MySQL's greeting has it
    assert not connection.prepare(INSERT)
    assert connection._statements == {}
