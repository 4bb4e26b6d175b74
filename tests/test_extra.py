"""Fields that are not in the specification, over HTTP and into every sink, with ``unknown_fields = "keep"``."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import pytest

from tests.faults.test_kill import place
from tests.process import Persistd
from tests.rows import session, task

KEEP = "[records]\nunknown_fields = 'keep'\n[buffer]\ncapacity = 100000\nflush_interval = 3600\n"


@pytest.mark.parametrize("name", ["sqlite", "postgres", "mysql", "jsonl"])
def test_they_merge_name_by_name_in_the_buffer_in_the_sink_and_over_a_crash(
    name: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    at = place(name, request)
    with Persistd(tmp_path, f"sink = '{name}'\n{KEEP}{at.table}") as service:
        answer = service.post("task", task("t", cost=1.5, usage={"in": 10, "out": 20}, note="x"))
        assert "ignored" not in answer.json()
        service.post("task", task("t", token_count=30, note=None))
        service.post("session", session("s1", owner="译者"))
        service.flush()
        service.post("task", task("t", usage={"in": 11}, cost=None))
        service.kill()
        # The setting of today does not decide about what was accepted under another one.
        service.configure(f"sink = '{name}'\n{KEEP.replace('keep', 'ignore')}{at.table}")
        service.start()
        service.post("task", task("t", dropped=1))
        service.flush()
        stored = at.read(service.data_dir)
    assert stored["task"]["s1", "t"]["extra"] == {"usage": {"in": 11}, "token_count": 30}
    assert stored["session"][("s1",)]["extra"] == {"owner": "译者"}


def test_a_table_without_the_column_says_so_and_takes_rows_without_such_fields(
    tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    at = place("sqlite", request)
    with Persistd(tmp_path, KEEP) as service:
        with sqlite3.connect(service.data_dir / "persist.db") as database:
            database.execute("ALTER TABLE translation_tasks DROP COLUMN extra")
        database.close()
        service.post("task", task("plain"))
        service.flush()
        service.post("task", task("t", cost=1))
        failed = service.http.post("/api/v1/persistence/flush")
        assert failed.status_code == 503
        assert "extra" in failed.json()["detail"]
        with sqlite3.connect(service.data_dir / "persist.db") as database:
            database.execute("ALTER TABLE translation_tasks ADD COLUMN extra TEXT")
        database.close()
        service.flush()
        assert at.read(service.data_dir)["task"]["s1", "t"]["extra"] == {"cost": 1}
