"""Deleting where the tables are not as the service makes them, or where the database refuses it."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from uuid import UUID

import psycopg
import pytest

from tornado_persist.errors import BatchRejected, SinkUnavailable
from tornado_persist.records.models import Batch
from tornado_persist.sinks.base import Expiry, Removed
from tornado_persist.sinks.postgres import PostgresSink
from tornado_persist.testing import T0, session, task


@pytest.fixture
def sink(postgres_url: str, tmp_path: Path) -> Iterator[PostgresSink]:
    sink = PostgresSink(PostgresSink.Settings(url=postgres_url), tmp_path)
    sink.open()
    yield sink
    sink.close()


def execute(url: str, *statements: str) -> None:
    with psycopg.connect(url, autocommit=True) as connection:
        for statement in statements:
            connection.execute(statement.encode())


def test_keys_may_be_of_another_type_and_times_without_a_zone(sink: PostgresSink, postgres_url: str) -> None:
    changes = "ALTER session_id TYPE uuid USING session_id::uuid, ALTER updated_at TYPE timestamp"
    for table in ("translation_sessions", "translation_tasks"):
        execute(postgres_url, f"ALTER TABLE {table} {changes}")
    sink.close()
    sink.open()
    one, two, three = (str(UUID(int=number)) for number in (1, 2, 3))
    tasks = [task(f"t{i}", session_id=id) for id in (one, two, three) for i in range(4)]
    sink.write(Batch([session(one, status="failed"), session(two, status="failed")], tasks))
    expired = Expiry("failed", T0 + timedelta(days=1))
    assert sink.find_expired(expired, None, 1) == ([one], one)
    assert sink.find_expired(expired, one, 1) == ([two], two)
    assert sink.find_expired(Expiry(None, T0), two, 5) == ([three], None)
    assert sink.delete_sessions([one], 3, expired) == Removed(0, 3, 0)
    assert sink.delete_sessions([one], 3, expired) == Removed(1, 1, 1)
    assert sink.delete_task(two, "t1")
    with pytest.raises(BatchRejected, match="invalid input syntax for type uuid"):
        sink.delete_sessions(["no uuid"], 3)
    assert sink.delete_sessions([two, three], 30) == Removed(1, 7, 2)


def test_a_row_that_others_refer_to_stays_with_all_of_its_session(sink: PostgresSink, postgres_url: str) -> None:
    sink.write(Batch([session("s")], [task("t", session_id="s")]))
    key = "session_id varchar(64) REFERENCES translation_sessions"
    execute(postgres_url, f"CREATE TABLE bills ({key})", "INSERT INTO bills VALUES ('s')")
    with pytest.raises(BatchRejected, match="violates foreign key constraint"):
        sink.delete_sessions(["s"], 10)
    assert sink.delete_sessions(["s"], 10, dry_run=True) == Removed(1, 1, 1), "nothing was deleted"


def test_a_missing_right_to_delete_is_no_fault_of_the_rows(sink: PostgresSink, postgres_url: str) -> None:
    sink.write(Batch([session("s")], [task("t", session_id="s")]))
    execute(postgres_url, "REVOKE DELETE ON translation_tasks FROM CURRENT_USER")
    with pytest.raises(SinkUnavailable, match="permission denied"):
        sink.delete_sessions(["s"], 10)
