"""Servers that lack something: it is found when the sink is opened, named, and gone around."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests import rows
from tests.process import Persistd, persistd
from tests.proxies import without_bulk, without_copy
from tests.servers import MariaDB, Postgres, database_of
from tests.sinks.readers import read_mysql, read_postgres
from tests.sinks.test_contract import TestMySQL as MySQL
from tests.sinks.test_contract import TestPostgres as PostgreSQL
from tornado_persist.errors import SinkUnavailable
from tornado_persist.records.models import Batch
from tornado_persist.sinks import postgres
from tornado_persist.sinks.mysql import MySQLSettings, MySQLSink
from tornado_persist.sinks.postgres import PostgresSettings, PostgresSink
from tornado_persist.testing import Stored, session, task

TABLES = "translation_sessions and translation_tasks"
#: A role that owns nothing, may make no temporary table, and is under row security, which allows no COPY.
POOR = """
CREATE ROLE poor LOGIN PASSWORD 'secret';
REVOKE ALL ON DATABASE "{name}" FROM PUBLIC;
GRANT CONNECT ON DATABASE "{name}" TO poor;
GRANT SELECT, INSERT, UPDATE, DELETE ON translation_sessions, translation_tasks TO poor;
ALTER TABLE translation_sessions ENABLE ROW LEVEL SECURITY;
ALTER TABLE translation_tasks ENABLE ROW LEVEL SECURITY;
CREATE POLICY all_rows ON translation_sessions USING (true);
CREATE POLICY all_rows ON translation_tasks USING (true);
"""


def many() -> Batch:
    """Rows enough for COPY."""
    return Batch(
        [session(f"s{n}") for n in range(postgres._MANY)],
        [task(f"t{n}") for n in range(postgres._MANY)],
    )


def counted(stored: Stored) -> tuple[int, int]:
    return len(stored["session"]), len(stored["task"])


ALL = (postgres._MANY, postgres._MANY)


# The contract


class TestPostgresWithoutCopy(PostgreSQL):
    @pytest.fixture
    def sink(self, postgres_url: str, postgres_server: Postgres, tmp_path: Path, copies: None) -> Iterator[Any]:
        with without_copy(postgres_server.port) as proxy:
            sink = PostgresSink(PostgresSettings(url=proxy.through(postgres_url)), tmp_path)
            sink.open()
            assert f"without COPY into {TABLES} (COPY is not supported)" in sink.describe()
            yield sink
            sink.close()


class TestPostgresWithoutRights(PostgreSQL):
    @pytest.fixture
    def sink(self, postgres_url: str, postgres_server: Postgres, tmp_path: Path, copies: None) -> Iterator[Any]:
        with poor(postgres_server, postgres_url, tmp_path) as url:
            sink = PostgresSink(PostgresSettings(url=url), tmp_path)
            sink.open()
            assert f"without COPY into {TABLES} (COPY FROM not supported with row-level security)" in sink.describe()
            yield sink
            sink.close()

    def read(self, sink: PostgresSink) -> Stored:
        return read_postgres(as_owner(sink))

    @contextmanager
    def fault(self, sink: PostgresSink) -> Iterator[None]:
        with super().fault(PostgresSink(PostgresSettings(url=as_owner(sink)), sink.data_dir)):
            yield


class TestMySQLWithoutBulk(MySQL):
    """And as against MySQL, which has no bulk command."""

    @pytest.fixture
    def sink(self, mysql_url: str, mariadb_server: MariaDB, tmp_path: Path) -> Iterator[MySQLSink]:
        with without_bulk(mariadb_server.port) as proxy:
            sink = MySQLSink(MySQLSettings(url=proxy.through(mysql_url)), tmp_path)
            sink.open()
            assert sink.describe().endswith(", without the bulk command (Unknown command)")
            yield sink
            sink.close()


@pytest.fixture
def copies(monkeypatch: pytest.MonkeyPatch) -> None:
    """A sink that can copy does so in every test, with a few rows."""
    monkeypatch.setattr(postgres, "_MANY", 1)


def as_owner(sink: PostgresSink) -> str:
    return sink.settings.url.get_secret_value().replace("poor:", "persist:")


@contextmanager
def poor(server: Postgres, url: str, directory: Path) -> Iterator[str]:
    """The URL for a role with the least rights."""
    owner = PostgresSink(PostgresSettings(url=url), directory)
    owner.open()
    owner.close()
    name = database_of(url)
    server.admin(POOR.format(name=name), name)
    try:
        yield url.replace("persist:", "poor:")
    finally:
        server.admin("DROP OWNED BY poor; DROP ROLE poor", name)


# What else is found


def test_a_connection_that_ends_at_copy_is_made_again_and_goes_without(
    postgres_url: str, postgres_server: Postgres, tmp_path: Path
) -> None:
    with without_copy(postgres_server.port, close=True) as proxy:
        sink = PostgresSink(PostgresSettings(url=proxy.through(postgres_url)), tmp_path)
        with pytest.raises(SinkUnavailable):
            sink.open()
        sink.open()
        assert sink.describe().endswith(f", without COPY into {TABLES} (the connection ends at it)")
        sink.write(many())
        sink.ping()
        sink.close()
        assert proxy.refused == 1
    assert counted(read_postgres(postgres_url)) == ALL
    # Another server, or a better proxy, is asked again.
    sink = PostgresSink(PostgresSettings(url=postgres_url), tmp_path)
    sink._broke_at_copy = True
    for lacks in (True, False):
        sink.open()
        assert ("without COPY" in sink.describe()) is lacks
    sink.close()


def test_a_server_of_another_name_is_taken_by_the_version_that_it_reports(
    postgres_url: str, postgres_server: Postgres, tmp_path: Path
) -> None:
    # As CockroachDB says it, and SQLAlchemy does not understand it.
    postgres_server.admin(
        "CREATE OR REPLACE FUNCTION pg_catalog.version() RETURNS text LANGUAGE sql AS"
        " $$ SELECT 'CockroachDB CCL v25.4.0 (x86_64-pc-linux-gnu)' $$",
        database_of(postgres_url),
    )
    sink = PostgresSink(PostgresSettings(url=postgres_url), tmp_path)
    sink.open()
    sink.write(many())
    assert "without" not in sink.describe()
    sink.close()
    assert counted(read_postgres(postgres_url)) == ALL


def test_a_connection_that_ends_at_the_bulk_command_is_made_again_and_goes_without(
    mysql_url: str, mariadb_server: MariaDB, tmp_path: Path
) -> None:
    with without_bulk(mariadb_server.port, close=True) as proxy:
        sink = MySQLSink(MySQLSettings(url=proxy.through(mysql_url)), tmp_path)
        with pytest.raises(SinkUnavailable):
            sink.open()
        sink.open()
        assert sink.describe().endswith(", without the bulk command (the connection ends at it)")
        sink.write(many())
        sink.close()
        assert proxy.refused == 1
    assert counted(read_mysql(mysql_url)) == ALL


def test_a_server_that_prepares_no_statement_says_so(mysql_url: str, mariadb_server: MariaDB, tmp_path: Path) -> None:
    sink = MySQLSink(MySQLSettings(url=mysql_url), tmp_path)
    with mariadb_server.variable("max_prepared_stmt_count", 0):
        sink.open()
        assert sink.describe().endswith(", without the bulk command (it prepares no statement now)")
        sink.write(many())
    sink.close()
    sink.open()
    assert "without" not in sink.describe()
    sink.close()
    assert counted(read_mysql(mysql_url)) == ALL


def test_a_setting_that_only_helps_may_be_refused_and_is_named(
    mysql_url: str, mariadb_server: MariaDB, tmp_path: Path
) -> None:
    with without_bulk(mariadb_server.port, settings=("completion_type", "innodb_lock_wait_timeout")) as proxy:
        sink = MySQLSink(MySQLSettings(url=proxy.through(mysql_url)), tmp_path)
        sink.open()
        assert sink.describe().endswith("(Unknown command), innodb_lock_wait_timeout, completion_type")
        assert sink._connection is not None
        found = sink._connection.exec_driver_sql("SELECT @@time_zone, @@sql_safe_updates, @@wait_timeout")
        assert tuple(found.one()) == ("+00:00", 0, 2147483)
        sink._connection.rollback()
        sink.write(many())
        sink.close()
    assert counted(read_mysql(mysql_url)) == ALL
    with without_bulk(mariadb_server.port, settings=("sql_mode",)) as proxy:
        sink = MySQLSink(MySQLSettings(url=proxy.through(mysql_url)), tmp_path)
        with pytest.raises(SinkUnavailable, match="sql_mode"):
            sink.open()


def test_check_and_the_log_say_once_what_a_server_lacks(
    postgres_url: str, postgres_server: Postgres, tmp_path: Path
) -> None:
    with without_copy(postgres_server.port) as proxy:
        config = f"sink = 'postgres'\n[sinks.postgres]\nurl = '{proxy.through(postgres_url)}'\n"
        with Persistd(tmp_path, config) as service:
            service.post("task", *(rows.task(f"t{n}") for n in range(postgres._MANY)))
            service.flush()
            lacks = f"without COPY into {TABLES} (COPY is not supported)"
            assert service.wait_for_log("sink up")["at"].endswith(lacks)
            checked = persistd("check", "-c", str(service.file), cwd=tmp_path)
            assert lacks in checked.stdout
            assert checked.returncode == 0, checked.stdout
            assert len(service.log("sink up")) == 1
    assert len(read_postgres(postgres_url)["task"]) == postgres._MANY
