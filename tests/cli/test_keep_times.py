"""Rows sent again with their accept times: a stale file, or a rejected row, undoes nothing newer on any instance."""

from __future__ import annotations

import contextlib
import json
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.cli.conftest import Command
from tests.process import Persistd, persistd
from tests.rows import body, session, task
from tests.sinks.readers import read_postgres, read_sqlite

TASKS = "/api/v1/persistence/tasks/batch"
MANUAL = "[buffer]\nflush_interval = 3600\n"


@pytest.fixture
def instances(tmp_path: Path, postgres_url: str) -> Iterator[list[Persistd]]:
    config = f"sink = 'postgres'\n{MANUAL}[sinks.postgres]\nurl = '{postgres_url}'\nwriters = 'several'\n"
    with contextlib.ExitStack() as stack:
        for name in "ab":
            (tmp_path / name).mkdir()
        yield [stack.enter_context(Persistd(tmp_path / name, config)) for name in "ab"]


def run(service: Persistd, *arguments: str) -> Any:
    return persistd(*arguments, "-c", str(service.file), cwd=service.directory)


def test_an_old_export_undoes_nothing_newer_written_or_waiting_over_a_crash(
    instances: list[Persistd], postgres_url: str, tmp_path: Path
) -> None:
    one, other = instances
    one.post("session", session("s1"))
    one.post("task", task("old", context="kept"), task("written"), task("waiting"), task("gone"))
    exported = tmp_path / "rows.jsonl"
    done = run(one, "export", "-o", str(exported))
    assert done.returncode == 0, done.stderr
    before = read_postgres(postgres_url)
    for key in ("written", "waiting"):
        answer = other.post("task", task(key, status="completed", target_text="new")).json()
        if key == "written":
            other.flush()
    assert one.http.delete("/api/v1/persistence/sessions/s1/tasks/gone").status_code == 200
    done = run(one, "import", str(exported), "--keep-times")
    assert (done.returncode, done.stdout.strip().endswith("5 rows sent")) == (0, True), done.stderr + done.stdout
    one.kill()
    one.start()
    one.flush()
    other.flush()
    stored = read_postgres(postgres_url)
    found = {key[1]: row for key, row in stored["task"].items()}
    assert {key: row["status"] for key, row in found.items()} == {
        "old": "pending",
        "written": "completed",
        "waiting": "completed",
    }
    assert found["waiting"]["updated_at"] == answer["timestamp"]
    assert found["waiting"]["target_text"] == "new"
    assert found["old"] == before["task"]["s1", "old"], "with the times of then"
    assert stored["session"] == before["session"]
    accounting = one.stats()["accounting"]
    assert accounting["accepted"] == accounting["written"] + accounting["merged"]
    # Without the option it is a new update.
    assert run(one, "import", str(exported), "--again").returncode == 0
    one.flush()
    stored = read_postgres(postgres_url)
    assert {key[1]: row["status"] for key, row in stored["task"].items()} == dict.fromkeys([*found, "gone"], "pending")


def test_a_journals_export_has_the_times_too(instances: list[Persistd], tmp_path: Path) -> None:
    one, other = instances
    first = one.post("task", task("a", status="pending")).json()["timestamp"]
    for service, name in ((one, "x"), (other, "y")):
        done = run(service, "journal", "export", "-o", str(tmp_path / name))
        assert done.returncode == 0, done.stderr
        if service is one:
            assert run(other, "import", str(tmp_path / name), "--keep-times").returncode == 0
    (line,) = map(json.loads, (tmp_path / "y").read_text().splitlines())
    assert (line["at"], line["row"]["task_id"]) == (first, "a")


def test_one_writer_and_lines_without_a_time_are_refused_in_a_sentence(
    service: Persistd, command: Command, tmp_path: Path
) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_text(json.dumps({**task("a"), "updated_at": "2025-01-01T00:00:00+00:00"}) + "\n")
    done = command("import", str(file), "--keep-times")
    assert (done.code, 'needs writers = "several"' in done.err) == (1, True), done.err
    file.write_text(json.dumps(task("a")) + "\n")
    done = command("import", str(file), "--keep-times", "--again")
    assert (done.code, "line 1: it does not say when it was accepted" in done.err) == (1, True), done.err
    assert service.stats()["accounting"]["accepted"] == 0


def test_a_time_that_none_can_be_is_refused(tmp_path: Path) -> None:
    with Persistd(tmp_path, f"{MANUAL}[sinks.sqlite]\nwriters = 'several'\n") as service:
        for at in ("soon", "2999-01-01T00:00:00Z", "1970-01-01T00:00:00Z"):
            answer = service.http.post(TASKS, content=body("task", task("a")), headers={"X-Persist-At": at})
            assert (answer.status_code, "X-Persist-At" in answer.json()["detail"]) == (422, True), at
        assert service.stats()["accounting"]["accepted"] == 0
        # A field of the journal's name is not ours if a client sends it.
        forged = b'{"accepted_at":"2020-01-01T00:00:00.000000+00:00",' + body("task", task("a"))[1:]
        sent = service.http.post(TASKS, content=forged).json()
        service.kill()
        service.start()
        service.flush()
        (row,) = read_sqlite(service.data_dir / "persist.db")["task"].values()
        assert row["updated_at"] == sent["timestamp"]


def test_a_rejected_row_goes_under_what_was_updated_since(tmp_path: Path) -> None:
    with Persistd(tmp_path, f"{MANUAL}[sinks.sqlite]\nwriters = 'several'\n") as service:
        path = service.data_dir / "persist.db"

        def sql(statement: str) -> None:
            with contextlib.closing(sqlite3.connect(path)) as database, database:
                database.execute(statement)

        service.post("task", task("a"))
        service.flush()
        sql(
            "CREATE TRIGGER no BEFORE INSERT ON translation_tasks WHEN NEW.source_text = 'bad'"
            " BEGIN SELECT RAISE(ABORT, 'no'); END"
        )
        service.post("task", task("a", source_text="bad", context="only there"))
        service.flush()
        newer = service.post("task", task("a", status="completed")).json()["timestamp"]
        service.flush()
        sql("DROP TRIGGER no")
        assert run(service, "rejected", "retry", "--all").returncode == 1, "it was updated since"
        done = run(service, "rejected", "retry", "--all", "--keep-times")
        assert done.returncode == 0, done.stderr
        (row,) = read_sqlite(path)["task"].values()
        assert (row["status"], row["context"], row["updated_at"]) == ("completed", "only there", newer)
        assert row["source_text"] == task("a")["source_text"]
