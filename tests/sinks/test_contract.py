"""The contract of :mod:`tornado_persist.testing`, over every sink."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import psycopg
import pytest

from tests.sinks import readers
from tests.sinks.limits import file_size_limit
from tornado_persist.errors import BatchRejected
from tornado_persist.records.models import Batch, Kind
from tornado_persist.records.parser import Parser
from tornado_persist.sinks.jsonl import JSONLSink
from tornado_persist.sinks.mysql import MySQLSink
from tornado_persist.sinks.postgres import PostgresSink
from tornado_persist.sinks.sqlite import SQLiteSink
from tornado_persist.testing import (
    JSON_OBJECTS,
    KEYS_ALIKE,
    TEXTS,
    AppendSink,
    MemorySink,
    SinkContract,
    Stored,
    session,
    task,
)

CHECK = "ALTER TABLE translation_tasks ADD CONSTRAINT not_this CHECK (task_id <> 'refused')"
UNCHECK = "ALTER TABLE translation_tasks DROP CONSTRAINT not_this"


#: Free JSON at the ends of what the door takes, as it is sent.
AT_THE_ENDS = (
    '{"n": [-0, 1E5, 1.50, 1e-9999, 1.7976931348623157e308, ' + "9" * 308 + ", 0." + "1" * 4298 + "]}",
    '{"t": ["\\u4f60\\ud83d\\ude00", "\\u0001\\n\\/", "\\\\u0000", "[[[{{{"], "a": 1, "a": 2}',
    '{"a":' * 19 + "{}" + "}" * 19,
)


class Contract(SinkContract):
    """The contract that ships, and what follows from this package's own door."""

    def test_free_json_is_stored_as_the_door_takes_it(self, sink: Any) -> None:
        rows = []
        for number, text in enumerate(AT_THE_ENDS):
            fields = {name: value for name, value in session(f"s{number}").items() if not name.endswith("_at")}
            raw = json.dumps({"sessions": [{**fields, "metadata": "@"}]}).replace('"@"', text)
            (row,) = Parser().parse("session", raw.encode()).rows
            row.created_at = row.updated_at = session()["created_at"]
            rows.append(row)
        sink.write(Batch(rows))
        stored = self.read(sink)["session"]
        # As doubles: PostgreSQL keeps numbers exactly, and spells them out.
        found = [json.dumps(stored[(f"s{number}",)]["metadata"]) for number in range(len(rows))]
        assert [json.loads(text, parse_int=float) for text in found] == [
            json.loads(text, parse_int=float) for text in AT_THE_ENDS
        ]


class TestMemory(Contract):
    durable = False

    @pytest.fixture
    def sink(self) -> Iterator[MemorySink]:
        sink = MemorySink()
        sink.open()
        yield sink
        sink.close()

    def read(self, sink: MemorySink) -> Stored:
        return sink.stored

    @contextmanager
    def fault(self, sink: MemorySink) -> Iterator[None]:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("tornado_persist.testing.sinks.merge", _refuse)
            yield


class TestAppend(TestMemory):
    @pytest.fixture
    def sink(self) -> Iterator[MemorySink]:
        sink = AppendSink()
        sink.open()
        yield sink
        sink.close()


def _refuse(stored: Stored, batch: Batch) -> None:
    raise BatchRejected


class TestJSONL(Contract):
    shared = False

    @pytest.fixture
    def sink(self, tmp_path: Path) -> Iterator[JSONLSink]:
        sink = JSONLSink(JSONLSink.Settings(), tmp_path)
        sink.open()
        yield sink
        sink.close()

    def read(self, sink: JSONLSink) -> Stored:
        return readers.read_jsonl(sink.directory)

    @contextmanager
    def fault(self, sink: JSONLSink) -> Iterator[None]:
        # Room for the sessions and for some of the tasks.
        with file_size_limit(sink.path("task").stat().st_size + 2000):
            yield


class TestSQLite(Contract):
    @pytest.fixture
    def sink(self, tmp_path: Path) -> Iterator[SQLiteSink]:
        sink = SQLiteSink(SQLiteSink.Settings(path="x.db"), tmp_path)
        sink.open()
        yield sink
        sink.close()

    def read(self, sink: SQLiteSink) -> Stored:
        return readers.read_sqlite(sink.data_dir / "x.db")

    @contextmanager
    def fault(self, sink: SQLiteSink) -> Iterator[None]:
        with closing(sqlite3.connect(sink.data_dir / "x.db", isolation_level=None)) as connection:
            connection.execute(
                "CREATE TRIGGER not_this BEFORE INSERT ON translation_tasks WHEN NEW.task_id = 'refused'"
                " BEGIN SELECT RAISE(ABORT, 'refused'); END"
            )
            yield
            connection.execute("DROP TRIGGER not_this")


class TestPostgres(Contract):
    @pytest.fixture
    def sink(self, postgres_url: str, tmp_path: Path) -> Iterator[PostgresSink]:
        sink = PostgresSink(PostgresSink.Settings(url=postgres_url), tmp_path)
        sink.open()
        yield sink
        sink.close()

    def read(self, sink: PostgresSink) -> Stored:
        return readers.read_postgres(sink.settings.url.get_secret_value())

    @contextmanager
    def fault(self, sink: PostgresSink) -> Iterator[None]:
        with psycopg.connect(sink.settings.url.get_secret_value(), autocommit=True) as connection:
            connection.execute(CHECK)
            yield
            connection.execute(UNCHECK)


class TestMySQL(Contract):
    @pytest.fixture
    def sink(self, mysql_url: str, tmp_path: Path) -> Iterator[MySQLSink]:
        sink = MySQLSink(MySQLSink.Settings(url=mysql_url), tmp_path)
        sink.open()
        yield sink
        sink.close()

    def read(self, sink: MySQLSink) -> Stored:
        return readers.read_mysql(sink.settings.url.get_secret_value())

    @contextmanager
    def fault(self, sink: MySQLSink) -> Iterator[None]:
        url = sink.settings.url.get_secret_value()
        with closing(readers.connect_mysql(url)) as connection, connection.cursor() as cursor:
            cursor.execute(CHECK)
            yield
            cursor.execute(UNCHECK)


@pytest.mark.parametrize("kind", ["session", "task"])
def test_the_contract_writes_nothing_that_the_door_would_refuse(kind: Kind) -> None:
    rows = [session(key) if kind == "session" else task(key) for key in KEYS_ALIKE]
    if kind == "session":
        rows += [session(f"text {i}", metadata={"text": text}) for i, text in enumerate(TEXTS)]
        rows += [session(f"object {i}", metadata=value) for i, value in enumerate(JSON_OBJECTS)]
    else:
        rows += [task(f"text {i}", source_text=text) for i, text in enumerate(TEXTS)]
    sent = [{name: value for name, value in row.items() if name not in ("created_at", "updated_at")} for row in rows]
    assert Parser().parse(kind, json.dumps({f"{kind}s": sent}).encode()).rows == sent
