"""What holds for every SQL sink: which tables are refused, and what happens when several open at once."""

from __future__ import annotations

import contextlib
import sqlite3
import threading
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psycopg
import pytest
from pydantic import ValidationError
from sqlalchemy import Engine, event, make_url

from tests.servers import MariaDB, Postgres, Server, database_of
from tests.sinks import readers
from tornado_persist.errors import BatchRejected, SinkUnavailable
from tornado_persist.records.models import Batch
from tornado_persist.records.queries import Query
from tornado_persist.sinks import mysqlconnect, postgres, registry, sqlite
from tornado_persist.sinks.base import Sink
from tornado_persist.sinks.sql import SQLSink
from tornado_persist.testing import MemorySink, Stored, session, task

Make = Callable[..., SQLSink[Any]]

#: For a test of what only a database server has.
servers = pytest.mark.parametrize("name", ["postgres", "mysql"], indirect=True)

FIRST = datetime(2026, 1, 1, 12, 30, 0, 123456, tzinfo=UTC)
LATER = datetime(2026, 1, 2, tzinfo=UTC)


@pytest.fixture(params=["sqlite", "postgres", "mysql"])
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def place(name: str, tmp_path: Path, request: pytest.FixtureRequest) -> str:
    """The file or the URL of an empty database."""
    return str(tmp_path / "x.db") if name == "sqlite" else str(request.getfixturevalue(f"{name}_url"))


@pytest.fixture
def make(name: str, place: str, tmp_path: Path) -> Iterator[Make]:
    """Makes sinks on that database."""
    sinks: list[SQLSink[Any]] = []

    def make(**settings: Any) -> SQLSink[Any]:
        sink_class = registry.find(name)
        given = {"path" if name == "sqlite" else "url": place, **settings}
        sink = sink_class(sink_class.Settings.model_validate(given), tmp_path)
        assert isinstance(sink, SQLSink)
        sinks.append(sink)
        return sink

    yield make
    for sink in sinks:
        sink.close()


@pytest.fixture
def sink(make: Make) -> SQLSink[Any]:
    sink = make()
    sink.open()
    return sink


@pytest.fixture
def run(name: str, place: str) -> Iterator[Callable[[str], None]]:
    """Runs statements, parted by semicolons, as the owner of the database."""
    connection: Any
    match name:
        case "sqlite":
            connection = sqlite3.connect(place, isolation_level=None)
        case "postgres":
            connection = psycopg.connect(place, autocommit=True)
        case _:
            connection = readers.connect_mysql(place)
    with contextlib.closing(connection), contextlib.closing(connection.cursor()) as cursor:

        def run(sql: str) -> None:
            for statement in sql.split(";"):
                cursor.execute(statement)

        yield run


def read(name: str, place: str) -> Stored:
    return readers.read_sqlite(Path(place)) if name == "sqlite" else getattr(readers, f"read_{name}")(place)


# The URL of a server


@pytest.mark.parametrize(
    ("name", "scheme"),
    [
        *(("postgres", scheme) for scheme in ("postgresql", "postgres", "postgresql+psycopg")),
        *(("mysql", scheme) for scheme in ("mysql", "mariadb", "mysql+pymysql", "mariadb+pymysql")),
    ],
    indirect=["name"],
)
def test_the_usual_schemes_are_taken(make: Make, place: str, scheme: str) -> None:
    sink = make(url=f"{scheme}:{place.partition(':')[2]}")
    sink.open()
    sink.ping()


SECRET = "hush"


@pytest.mark.parametrize(
    ("sink_name", "url"),
    [
        ("mysql", f"{SECRET}"),
        ("mysql", f"postgresql://u:{SECRET}@h/d"),
        ("mysql", f"mysql+mysqldb://u:{SECRET}@h/d"),
        ("mysql", f"mysql://u:{SECRET}@h:port/d"),
        ("mysql", f"mysql://u:{SECRET}@h"),
        ("mysql", f"mysql://u:{SECRET}@h/"),
        ("mysql", f"mysql://u:{SECRET}/d"),
        ("mysql", f"mysql://u:x@{SECRET}@h/d"),
        ("mysql", f"mysql://u:{SECRET}@h/d?sslmode=require"),
        ("mysql", f"mysql://u:{SECRET}@h1:1,h2:65536/d"),
        ("mysql", f"mysql://u:{SECRET}@h/d?read_timeout={SECRET}"),
        ("postgres", f"{SECRET}"),
        ("postgres", ""),
        ("postgres", f"postgresql:{SECRET}"),
        ("postgres", f"mysql://u:{SECRET}@h/d"),
        ("postgres", f"postgresql+psycopg2://u:{SECRET}@h/d"),
        ("postgres", f"postgresql://u:{SECRET}@h:port/d"),
        ("postgres", f"postgresql://u:{SECRET}/d"),
        ("postgres", f"postgresql://u:{SECRET}@h:0/d"),
        ("postgres", f"postgresql://u:{SECRET}@h:65536/d"),
        ("postgres", f"postgresql://u:x@{SECRET}@h/d"),
        ("postgres", f"postgresql://u:x@y/{SECRET}@h/d"),
        ("postgres", f"postgresql://u:x@y:{SECRET}@h/d"),
        ("postgres", f"postgresql://u:{SECRET}@h/d?{SECRET}=1"),
        ("postgres", f"postgresql://u:{SECRET}@h/d?ssl_mode={SECRET}"),
    ],
)
def test_a_malformed_url_is_refused_without_showing_the_password(sink_name: str, url: str) -> None:
    with pytest.raises(ValidationError) as caught:
        registry.find(sink_name).Settings.model_validate({"url": url})
    (error,) = caught.value.errors(include_input=False)
    assert error["loc"] == ("url",)
    assert SECRET not in str(caught.value) + str(error)


@servers
def test_the_password_is_in_no_text_of_the_sink(sink: SQLSink[Any], place: str) -> None:
    password = make_url(place).password
    assert password
    for text in (sink.describe(), repr(sink.settings), str(sink.settings), repr(sink._engine), vars(sink)):
        assert password not in str(text)


@servers
def test_a_database_that_does_not_exist_is_an_outage(make: Make, place: str) -> None:
    with pytest.raises(SinkUnavailable, match="no_such"):
        make(url=place.replace(database_of(place), "no_such")).open()


@servers
def test_a_server_that_is_gone_is_an_outage_and_a_wrong_password_too(
    make: Make, name: str, place: str, caplog: pytest.LogCaptureFixture
) -> None:
    server: Server
    with MariaDB() if name == "mysql" else Postgres() as server:
        sink = make(url=server.fresh_database())
        sink.open()
        server.kill()
        with pytest.raises(SinkUnavailable) as lost:
            sink.write(Batch([session("s")]))
        assert type(lost.value) is SinkUnavailable
        assert not lost.value.unknown_code
        sink.close()
        with pytest.raises(SinkUnavailable, match="refused"):
            sink.open()
        server.start()
        sink.open()
        sink.write(Batch([session("s")]))
        sink.close()
    with pytest.raises(SinkUnavailable, match=r"password authentication failed|Access denied") as caught:
        make(url=place.replace(":secret@", ":wrong-one@")).open()
    assert caught.value.code == ("1045" if name == "mysql" else "")
    assert "wrong-one" not in str(caught.value)
    assert "\n" not in str(caught.value)
    assert caplog.records == []


# Tables whose key is not unique by itself


COLUMNS = """
session_id varchar(64) {collate} NOT NULL, batch_id varchar(64) NOT NULL, sheet_name varchar(255) NOT NULL,
row_index integer NOT NULL, column_name varchar(255) NOT NULL, source_text text NOT NULL, target_text text,
context text, status varchar(20) NOT NULL, confidence double precision, error_message text,
retry_count integer NOT NULL DEFAULT 0, start_time {time}, end_time {time}, duration_ms bigint, extra text,
created_at {time} NOT NULL, updated_at {time} NOT NULL
"""
TYPES = {
    "sqlite": {"collate": "", "time": "text", "parted": ""},
    "postgres": {
        "collate": "",
        "time": "timestamptz",
        "parted": "PARTITION BY RANGE (created_at); CREATE TABLE p PARTITION OF translation_tasks DEFAULT",
    },
    "mysql": {
        "collate": "CHARACTER SET utf8mb4 COLLATE utf8mb4_bin",
        "time": "datetime(6)",
        "parted": "PARTITION BY HASH (year(created_at)) PARTITIONS 4",
    },
}
TABLE = "CREATE TABLE translation_tasks (task_id varchar(64) {collate} NOT NULL, " + COLUMNS
TWO_COLUMNS = TABLE + ", PRIMARY KEY (session_id, task_id, created_at)) {parted}"
SURROGATE = (
    "CREATE TABLE translation_tasks (id integer PRIMARY KEY {number}, task_id varchar(64) {collate} NOT NULL, "
    + COLUMNS
    + "); CREATE INDEX x ON translation_tasks (session_id, task_id)"
)
NUMBERS = {"sqlite": "", "postgres": "GENERATED ALWAYS AS IDENTITY", "mysql": "AUTO_INCREMENT"}


def own_table(name: str, ddl: str) -> str:
    types = {"number": NUMBERS[name], **TYPES[name]}
    return "DROP TABLE translation_tasks; " + ddl.format(**types)


def assert_refused(sink: SQLSink[Any]) -> None:
    sentence = (
        r"translation_tasks has no primary key or unique index on exactly \(session_id, task_id\).*CREATE UNIQUE INDEX"
    )
    for call in (sink.ping, sink.open):
        with pytest.raises(SinkUnavailable, match=sentence) as caught:
            call()
        assert not caught.value.unknown_code
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "ddl",
    [
        TWO_COLUMNS,
        SURROGATE,
        TABLE + ")",
        TABLE + "); CREATE UNIQUE INDEX x ON translation_tasks (session_id, task_id, row_index)",
    ],
    ids=["two columns", "surrogate", "none", "wider index"],
)
def test_a_table_whose_key_is_not_unique_by_itself_is_refused(
    sink: SQLSink[Any], run: Callable[[str], None], name: str, ddl: str
) -> None:
    run(own_table(name, ddl))
    assert_refused(sink)


@pytest.mark.parametrize(
    ("name", "index"),
    [
        ("sqlite", "CREATE UNIQUE INDEX x ON translation_tasks (session_id, task_id) WHERE row_index > 0"),
        ("sqlite", "CREATE UNIQUE INDEX x ON translation_tasks (session_id, lower(task_id))"),
        ("postgres", "CREATE UNIQUE INDEX x ON translation_tasks (session_id, task_id) WHERE row_index > 0"),
        ("postgres", "CREATE UNIQUE INDEX x ON translation_tasks (session_id, lower(task_id))"),
        ("mysql", "CREATE UNIQUE INDEX x ON translation_tasks (session_id, task_id(10))"),
    ],
    indirect=["name"],
)
def test_an_index_on_some_rows_or_a_part_of_the_key_does_not_do(
    sink: SQLSink[Any], run: Callable[[str], None], name: str, index: str
) -> None:
    run(own_table(name, f"{TABLE}); {index}"))
    assert_refused(sink)


def test_a_table_of_an_earlier_version_is_refused_and_the_sentence_says_how_to_change_it(
    sink: SQLSink[Any], run: Callable[[str], None], name: str, place: str
) -> None:
    run(own_table(name, TABLE + ", PRIMARY KEY (task_id))"))
    run(
        "INSERT INTO translation_tasks (task_id, session_id, batch_id, sheet_name, row_index, column_name, source_text,"
        " status, retry_count, created_at, updated_at) VALUES"
        " ('t', 'a', 'b', 's', 1, 'c', 'old', 'pending', 0, '2025-09-30 16:35:00', '2025-09-30 16:35:00')"
    )
    sink.close()
    with pytest.raises(SinkUnavailable, match="primary key of table translation_tasks is task_id alone") as caught:
        sink.open()
    for statement in str(caught.value).partition("Run: ")[2].split("; "):
        if statement.startswith("start the service"):
            sink.open()
            sink.close()
        else:
            run(statement.removeprefix("then "))
    sink.open()
    sink.write(Batch([], [task("t", session_id="b", source_text="new")]))
    assert {key: row["source_text"] for key, row in read(name, place)["task"].items()} == {
        ("a", "t"): "old",
        ("b", "t"): "new",
    }


def test_a_surrogate_key_beside_a_unique_index_is_served(
    make: Make, sink: SQLSink[Any], run: Callable[[str], None], name: str, place: str
) -> None:
    run(own_table(name, SURROGATE.replace("CREATE INDEX", "CREATE UNIQUE INDEX")))
    sink.close()
    sink.open()
    for context in ("a", "b"):
        sink.write(Batch([], [task(f"t{i:03}", context=context) for i in range(600)]))
    found = read(name, place)["task"]
    assert len(found) == 600
    assert {row["context"] for row in found.values()} == {"b"}


@pytest.mark.parametrize("name", ["sqlite", "postgres"], indirect=True)
def test_a_key_dropped_meanwhile_is_noticed_by_a_write_of_any_size(
    sink: SQLSink[Any], run: Callable[[str], None], name: str, place: str
) -> None:
    rows = [task(f"t{i:03}") for i in range(600)]
    sink.write(Batch([], rows[:10]))
    run(own_table(name, TABLE + ")"))
    for some in (rows, rows[:10]):
        with pytest.raises(SinkUnavailable) as caught:
            sink.write(Batch([], some))
        assert not caught.value.unknown_code
    assert read(name, place)["task"] == {}


# Opening


def test_many_who_open_at_once_make_the_tables_once(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sqlite, "LOCK_TIMEOUT", 10)
    monkeypatch.setitem(mysqlconnect._SESSION, "lock_wait_timeout", "30")
    monkeypatch.setitem(postgres._TRANSACTION, "lock_timeout", "30s")
    errors: list[BaseException] = []
    sinks = [make() for _ in range(6)]
    barrier = threading.Barrier(len(sinks))

    def open_it(sink: SQLSink[Any]) -> None:
        barrier.wait()
        try:
            sink.open()
        except BaseException as exc:
            errors.append(exc)

    threads = [threading.Thread(target=open_it, args=(sink,)) for sink in sinks]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []


def test_without_create_tables_a_missing_table_is_named(make: Make) -> None:
    with pytest.raises(SinkUnavailable, match="translation_sessions does not exist"):
        make(create_tables=False).open()


# Rows


def test_null_in_a_required_field_is_the_rows_fault(sink: SQLSink[Any], name: str) -> None:
    with pytest.raises(BatchRejected) as caught:
        sink.write(Batch([], [task("a", status=None)]))
    codes = {"sqlite": "SQLITE_CONSTRAINT_NOTNULL", "postgres": "23502", "mysql": "1048"}
    assert caught.value.code == codes[name]


# Looking rows up


def test_find_updated_tells_the_last_update_of_the_rows_that_are_there(sink: SQLSink[Any]) -> None:
    sink.write(Batch([session("s", at=FIRST)], [task("a", at=FIRST), task("A", at=FIRST)]))
    sink.write(Batch([], [task("a", at=LATER)]))
    assert sink.find_updated("task", [("s", "a"), ("s", "A"), ("s", "none"), ("other", "a")]) == {
        ("s", "a"): LATER,
        ("s", "A"): FIRST,
    }
    assert sink.find_updated("session", [*((f"s{n}",) for n in range(1200)), ("s",)]) == {("s",): FIRST}
    assert sink.find_updated("session", []) == {}


def test_a_sink_that_cannot_says_so() -> None:
    with pytest.raises(NotImplementedError, match="cannot look rows up"):
        Sink.find_updated(MemorySink(), "task", [("s", "a")])


# Reading


@pytest.mark.parametrize("where", [{"session_id": ("b",)}, {}], ids=["of a session", "of all"])
def test_a_page_begins_at_its_place_in_the_index(
    sink: SQLSink[Any], run: Callable[[str], None], name: str, where: dict[str, tuple[str, ...]]
) -> None:
    for session_id in ("a", "b"):
        sink.write(Batch([], [task(f"t{number:05}", session_id=session_id) for number in range(20_000)]))
    if name == "postgres" and not where:  # without statistics it takes so small a table for smaller
        run("ANALYZE translation_tasks")
    plans: list[str] = []

    def explain(connection: Any, cursor: Any, statement: str, parameters: Any, *_: Any) -> None:
        with contextlib.closing(connection.connection.cursor()) as own:
            own.execute(f"EXPLAIN {'QUERY PLAN' if name == 'sqlite' else ''} {statement}", parameters)
            plans.append(str(own.fetchall()))

    reader = sink.reader()
    reader.open()
    event.listen(Engine, "before_cursor_execute", explain)
    try:
        page = reader.page(Query("task", where, after=("b", "t00999")), 1 << 20)
    finally:
        event.remove(Engine, "before_cursor_execute", explain)
        reader.close()
    assert [row["task_id"] for row in page.rows] == [f"t{number:05}" for number in range(1000, 1100)]
    sorts = {"sqlite": "TEMP B-TREE", "postgres": "Sort", "mysql": "filesort"}[name]
    # Both parts of the key are looked up; in MySQL's plan this is the length of what is.
    found = {
        "sqlite": "session_id=? AND task_id>?" if where else "(session_id,task_id)>(?,?)",
        "postgres": "Index Cond: (((session_id)::text = 'b'::text) AND ((task_id)::text > 't00999'::text))"
        if where
        else "Index Cond: (ROW((session_id)::text, (task_id)::text) > ROW('b'::text, 't00999'::text))",
        "mysql": f"'{2 * (64 * 4 + 2)}'",
    }[name]
    assert len(plans) == 2
    for plan in plans:
        assert found in plan
        assert sorts not in plan
