"""The suite's own database servers: what the other tests rely on."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path
from typing import Any

import psycopg
import pymysql
import pytest

from tests import tools
from tests.servers import PASSWORD, USER, MariaDB, Postgres, Server, alive, database_of

DRIVER_ERRORS = (psycopg.Error, pymysql.err.Error, OSError)


def connect(server: Server, url: str, timeout: int = 10) -> Any:
    """A connection as the service's role, by the plain driver."""
    if isinstance(server, Postgres):
        return psycopg.connect(url, connect_timeout=timeout, autocommit=True)
    return pymysql.connect(
        host="127.0.0.1",
        port=server.port,
        user=USER,
        password=PASSWORD,
        database=database_of(url),
        autocommit=True,
        connect_timeout=timeout,
        read_timeout=timeout,
    )


def query(connection: Any, sql: str) -> list[tuple[Any, ...]]:
    with connection.cursor() as cursor:
        cursor.execute(sql)
        return list(cursor.fetchall()) if cursor.description else []


@pytest.fixture(params=["postgres_server", "mariadb_server"])
def server(request: pytest.FixtureRequest) -> Server:
    found = request.getfixturevalue(request.param)
    assert isinstance(found, Server)
    return found


def test_fresh_databases_are_empty_and_apart(server: Server) -> None:
    first, second = server.fresh_database(), server.fresh_database()
    try:
        assert first != second
        connection = connect(server, first)
        query(connection, "CREATE TABLE t (a INT)")
        connection.close()
        connection = connect(server, second)
        with pytest.raises(DRIVER_ERRORS):
            query(connection, "SELECT a FROM t")
        connection.close()
    finally:
        server.drop(first)
        server.drop(second)
    with pytest.raises(DRIVER_ERRORS):
        connect(server, first)


def test_drop_does_not_wait_for_open_transactions(server: Server) -> None:
    url = server.fresh_database()
    connection = connect(server, url)
    query(connection, "CREATE TABLE t (a INT)")
    query(connection, "BEGIN")
    query(connection, "INSERT INTO t VALUES (1)")
    began = time.monotonic()
    server.drop(url)
    assert time.monotonic() - began < 10
    with pytest.raises(DRIVER_ERRORS):
        query(connection, "SELECT a FROM t")
    connection.close()


def test_committed_rows_outlive_a_crash(server: Server, url: str) -> None:
    connection = connect(server, url)
    query(connection, "CREATE TABLE t (a INT)")
    query(connection, "INSERT INTO t VALUES (7)")
    family, port = server.processes(), server.port
    server.kill()
    connection.close()
    assert not server.running
    assert not any(alive(pid) for pid in family)
    with pytest.raises(DRIVER_ERRORS):
        connect(server, url)
    server.start()
    assert server.port == port
    connection = connect(server, url)
    assert query(connection, "SELECT a FROM t") == [(7,)]
    connection.close()


def test_restart_keeps_port_and_data(server: Server, url: str) -> None:
    connection = connect(server, url)
    query(connection, "CREATE TABLE t (a INT)")
    connection.close()
    server.restart()
    connection = connect(server, url)
    assert query(connection, "SELECT a FROM t") == []
    connection.close()


def test_suspended_server_does_not_answer(server: Server, url: str) -> None:
    server.suspend()
    try:
        with pytest.raises(DRIVER_ERRORS):
            connect(server, url, timeout=2)
    finally:
        server.resume()
    connection = connect(server, url)
    assert query(connection, "SELECT 1") == [(1,)]
    connection.close()


def test_drop_resumes_a_suspended_server(server: Server) -> None:
    url = server.fresh_database()
    server.suspend()
    server.drop(url)
    assert not server.suspended


def test_the_role_is_no_superuser(server: Server, url: str) -> None:
    connection = connect(server, url)
    with pytest.raises(DRIVER_ERRORS):
        query(connection, "CREATE DATABASE other")
    connection.close()


def test_defaults_are_unlike_the_services(postgres_server: Postgres, mariadb_server: MariaDB) -> None:
    assert postgres_server.admin("SHOW timezone") == [("Asia/Shanghai",)]
    assert mariadb_server.admin("SELECT @@global.time_zone, @@global.sql_mode") == [("+08:00", "")]
    # Durability is the servers' own.
    assert postgres_server.admin("SHOW fsync") == [("on",)]
    assert mariadb_server.admin("SELECT @@innodb_flush_log_at_trx_commit") == [(1,)]


def test_a_mariadb_keeps_its_temporary_files_from_others_that_start(mariadb_server: MariaDB) -> None:
    assert mariadb_server.admin("SELECT @@tmpdir") == [(str(mariadb_server.directory),)]


def test_versions(postgres_server: Postgres, mariadb_server: MariaDB) -> None:
    assert postgres_server.version.startswith("PostgreSQL 1")
    assert mariadb_server.version.startswith("MariaDB 1")


def test_servers_die_with_a_killed_test_run(tmp_path: Path) -> None:
    # A run of its own, so that the fixtures' servers stay up.
    code = """
        import sys, time
        from tests.servers import MariaDB, Postgres
        for kind in (Postgres, MariaDB):
            server = kind()
            server.start()
            print(server.pid, server.directory, flush=True)
        time.sleep(600)
    """
    root = Path(__file__).resolve().parent.parent
    run = subprocess.Popen([sys.executable, "-c", textwrap.dedent(code)], stdout=subprocess.PIPE, text=True, cwd=root)
    assert run.stdout is not None
    started = [run.stdout.readline().split() for _ in range(2)]
    run.kill()
    run.wait()
    run.stdout.close()
    deadline = time.monotonic() + 20
    left = [(int(pid), Path(directory)) for pid, directory in started]
    while left and time.monotonic() < deadline:
        left = [(pid, directory) for pid, directory in left if alive(pid) or directory.exists()]
        time.sleep(0.05)
    assert left == []


@pytest.mark.skipif(not hasattr(signal, "SIGINT"), reason="needs signals")
def test_servers_end_with_an_interrupted_test_run() -> None:
    code = "import time; from tests.servers import Postgres; s = Postgres(); s.start(); print(s.pid, flush=True)"
    root = Path(__file__).resolve().parent.parent
    run = subprocess.Popen(
        [sys.executable, "-c", code + "; time.sleep(600)"],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        cwd=root,
        start_new_session=True,
    )
    assert run.stdout is not None
    pid = int(run.stdout.readline())
    os.killpg(run.pid, signal.SIGINT)
    run.wait()
    run.stdout.close()
    assert not alive(pid)


# Finding the programs


def program(directory: Path, name: str) -> Path:
    directory.mkdir(parents=True, exist_ok=True)
    path = directory / name
    path.write_text("#!/bin/sh\n")
    path.chmod(0o755)
    return path


def test_path_goes_before_the_other_directories(tmp_path: Path) -> None:
    inside, outside = program(tmp_path / "path", "initdb"), program(tmp_path / "15" / "bin", "initdb")
    pattern = str(tmp_path / "*" / "bin")
    assert tools.find("initdb", str(tmp_path / "path"), [pattern]) == inside
    assert tools.find("initdb", str(tmp_path), [pattern]) == outside


def test_the_newest_version_is_taken(tmp_path: Path) -> None:
    for version in ("9", "15", "13"):
        program(tmp_path / version / "bin", "initdb")
    assert tools.find("initdb", "", [str(tmp_path / "*" / "bin")]) == tmp_path / "15" / "bin" / "initdb"


def test_missing_names_the_tools(tmp_path: Path) -> None:
    every = [tool.title for tool in tools.TOOLS]
    assert [tool.title for tool in tools.missing("", [str(tmp_path)])] == every
    for name in tools.TOOLS[0].programs:
        program(tmp_path, name)
    assert [tool.title for tool in tools.missing("", [str(tmp_path)])] == every[1:]


LATER = tools.Tool("Later", ("later",))


def test_one_line_where_nothing_may_be_installed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(tools, "DIRECTORIES", ())
    monkeypatch.setattr(tools, "missing", lambda among: [tool for tool in among if tool in (tools.TOOLS[1], LATER)])
    monkeypatch.setattr(tools, "LONG", (LATER,))
    monkeypatch.setattr(tools, "_privilege", lambda manager: None)
    assert tools.main(["tests/cluster"]) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert err.splitlines() == [
        "bin/test: missing, and could not be installed here: "
        "MariaDB server (mariadbd, mariadb-install-db, my_print_defaults)"
    ]
    assert tools.main(["--soak=9"]) == 1
    assert capsys.readouterr().err.endswith("; Later (later)\n"), "only the long form of the suite needs it"


def test_a_missing_program_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tools, "find", lambda program: None)
    with pytest.raises(tools.ToolMissing, match="MariaDB server is missing"):
        tools.require("mariadbd")
    assert tools.describe("mariadbd") == "mariadbd missing"
