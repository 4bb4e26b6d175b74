"""Fields that are not in the specification, over HTTP and into every sink, with ``unknown_fields = "keep"``."""

from __future__ import annotations

import json
import sqlite3
from pathlib import Path

import pytest

from tests.faults.test_kill import place
from tests.process import Persistd, persistd
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


def test_journal_import_and_retry_carry_them(tmp_path: Path, request: pytest.FixtureRequest) -> None:
    """From the journal of one service and the lines of its sink into another, and through rejected.jsonl."""
    rows = [task("a", cost=1.5, usage={"in": 10}), task("b", extra={"extra": 1}), task("c")]
    expected = {"a": {"cost": 1.5, "usage": {"in": 10}}, "b": {"extra": {"extra": 1}}, "c": None}
    (tmp_path / "one").mkdir()
    (tmp_path / "two").mkdir()
    with Persistd(tmp_path / "one", f"sink = 'jsonl'\n{KEEP}") as one, Persistd(tmp_path / "two", KEEP) as two:
        options = ("-c", str(one.file))
        one.post("task", *rows)
        shown = persistd("journal", "show", "1", *options, cwd=one.directory)
        assert (shown.returncode, "cost" in shown.stdout) == (0, True), shown
        exported = tmp_path / "exported.jsonl"
        exported.write_text(persistd("journal", "export", *options, cwd=one.directory).stdout)
        one.flush()
        one.stop()
        database = two.data_dir / "persist.db"
        for file in (exported, one.data_dir / "jsonl" / "tasks.jsonl"):
            done = persistd("import", str(file), "--url", two.url, cwd=tmp_path)
            assert done.returncode == 0, done.stderr
            two.flush()
            stored = place("sqlite", request).read(two.data_dir)["task"]
            assert {id: row["extra"] for (_, id), row in stored.items()} == expected
            with sqlite3.connect(database) as connection:
                connection.execute("DELETE FROM translation_tasks")
            connection.close()
        trigger = "CREATE TRIGGER no BEFORE INSERT ON translation_tasks BEGIN SELECT raise(ABORT, 'no'); END"
        with sqlite3.connect(database) as connection:
            connection.execute(trigger)
        two.post("task", *rows)
        assert two.flush()["rows_rejected"] == 3
        with sqlite3.connect(database) as connection:
            connection.execute("DROP TRIGGER no")
        connection.close()
        done = persistd("rejected", "retry", "--all", "-c", str(two.file), cwd=two.directory)
        assert (done.returncode, done.stdout) == (0, "3 rows sent\nflushed: the sink has them\n"), done.stderr
        stored = place("sqlite", request).read(two.data_dir)["task"]
        assert {id: row["extra"] for (_, id), row in stored.items()} == expected
        notes = (two.data_dir / "rejected.settled.jsonl").read_text().splitlines()
        assert not any("row" in json.loads(note) for note in notes), "nothing was edited"
