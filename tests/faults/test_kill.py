"""Processes that end, by SIGKILL at random moments and by SIGTERM: what was acknowledged stays, once, in its order."""

from __future__ import annotations

import json
import os
import random
import select
import sqlite3
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path

import httpx
import psycopg
import pytest

from tests.faults.load import Client, Load, balanced
from tests.process import PATIENCE, Persistd
from tests.rows import task
from tests.sinks.readers import read_jsonl, read_mysql, read_postgres, read_sqlite
from tornado_persist.records.models import KINDS, PLURALS, Fields, Kind, key_of
from tornado_persist.sinks.base import CHUNK_ROWS
from tornado_persist.testing import Stored, complete

#: Flushes when told to.
MANUAL = "[buffer]\nflush_interval = 3600\ncapacity = 1000000\n"
#: Rounds between two looks at what is stored.
LOOK_EVERY = 5


@dataclass(frozen=True)
class Place:
    """A sink for the tests."""

    name: str
    table: str
    read: Callable[[Path], Stored]
    #: Seconds that a flush may take.
    patience: int = PATIENCE


def place(name: str, request: pytest.FixtureRequest) -> Place:
    """An empty one. The reader is given ``data_dir``."""
    if name == "sqlite":
        return Place(name, "", lambda data_dir: read_sqlite(data_dir / "persist.db"))
    if name == "jsonl":
        return Place(name, "", lambda data_dir: read_jsonl(data_dir / "jsonl"))
    url = request.getfixturevalue(f"{name}_url")
    read = {"postgres": read_postgres, "mysql": read_mysql}[name]
    return Place(name, f"[sinks.{name}]\nurl = '{url}'\n", lambda data_dir: read(url))


def config(at: Place, rng: random.Random) -> str:
    """So small that there is always a flush, a release or a new segment on its way."""
    return f"""
sink = "{at.name}"
[buffer]
capacity = {rng.choice((10, 40, 1000))}
flush_interval = {rng.choice((0.05, 0.1))}
max_rows = {rng.choice((200, 1000))}
flush_timeout = {at.patience}
[journal]
segment_bytes = {rng.choice((4096, 10_000, 1 << 20))}
{at.table}"""


def kill_while_starting(service: Persistd, rng: random.Random, usual: float) -> None:
    """Start it and kill it within the time that this takes; the second half of it, when it opens its files."""
    reader = service.begin()
    select.select([reader], [], [], rng.uniform(usual / 2, usual))
    os.close(reader)
    service.kill()


def killed_under_load(
    service: Persistd, load: Load, at: Place, rng: random.Random, rounds: int, moment: Callable[[], None]
) -> None:
    """Load, kill, start, so often; ``moment`` returns when it is time to kill."""
    usual = 1.0
    for number in range(1, rounds + 1):
        with load:
            # Only after each client had an answer, or nothing would be at risk.
            load.wait_for(4)
            moment()
            service.kill()
        service.configure(config(at, rng))
        if rng.random() < 0.25:
            kill_while_starting(service, rng, usual)
        began = time.monotonic()
        service.start()
        usual = time.monotonic() - began
        if number % LOOK_EVERY == 0 or number == rounds:
            service.flush(at.patience)
            balanced(service.stats()["accounting"], load.record.acknowledged, load.record)
            load.record.check(at.read(service.data_dir))


def no_errors(service: Persistd) -> None:
    """The log has no errors: a killed process damages nothing."""
    assert "Traceback" not in service.log_text()
    assert [line for line in service.log() if line["level"] == "error"] == []


def each_line_once(data_dir: Path) -> int:
    """Check that no line is torn or duplicated; returns their number."""
    lines: Counter[tuple[Kind, tuple[str, ...], str]] = Counter()
    for kind in KINDS:
        content = (data_dir / "jsonl" / f"{PLURALS[kind]}.jsonl").read_bytes()
        assert content.endswith(b"\n")
        for line in content.splitlines():
            row = json.loads(line)
            lines[kind, key_of(kind, row), row["updated_at"]] += 1
    assert [line for line, count in lines.items() if count > 1] == []
    return len(lines)


@pytest.mark.parametrize("name", ["sqlite", "postgres", "mysql", "jsonl"])
def test_what_was_acknowledged_outlives_a_kill_at_any_moment(
    tmp_path: Path, request: pytest.FixtureRequest, rng: random.Random, rounds: int, name: str
) -> None:
    at = place(name, request)
    with Persistd(tmp_path, config(at, rng)) as service:
        load = Load(service, seed=rng.randrange(10**9), rows=5)
        killed_under_load(service, load, at, rng, rounds, lambda: time.sleep(rng.uniform(0, 0.2)))
        accounting = service.stats()["accounting"]
        assert (accounting["pending"], accounting["rejected"]) == (0, 0)
        if name == "jsonl":
            assert each_line_once(service.data_dir) == accounting["written"]
        assert load.readings >= rounds
        assert load.count(None) > 0, "some request was always in flight"
        no_errors(service)


class SometimesBad(Client):
    """Sends rows that the sink refuses, too: each with a key of its own, once."""

    def batch(self) -> tuple[Kind, list[Fields]]:
        kind, rows = super().batch()
        # Few, since each costs some commits.
        if kind == "task" and self.rng.random() < 0.1:
            bad = self.update("task", f"bad-{self.name}-{next(self._new)}", status="failed")
            rows.insert(self.rng.randint(0, len(rows)), bad)
        return kind, rows


def refuse_failed_tasks(name: str, service: Persistd, request: pytest.FixtureRequest) -> None:
    """By means of the database, in the table that the service has made."""
    if name == "sqlite":
        with closing(sqlite3.connect(service.data_dir / "persist.db")) as connection:
            connection.execute(
                "CREATE TRIGGER no_failures BEFORE INSERT ON translation_tasks WHEN NEW.status = 'failed'"
                " BEGIN SELECT RAISE(ABORT, 'no failures here'); END"
            )
    else:
        with psycopg.connect(request.getfixturevalue("postgres_url"), autocommit=True) as server:
            server.execute("ALTER TABLE translation_tasks ADD CONSTRAINT no_failures CHECK (status <> 'failed')")


def size_of_refused(data_dir: Path) -> int:
    path = data_dir / "rejected.jsonl"
    return path.stat().st_size if path.exists() else 0


def refused(data_dir: Path) -> list[Fields]:
    """The tasks in ``rejected.jsonl``, as they would have been stored."""
    path = data_dir / "rejected.jsonl"
    entries = [json.loads(line) for line in path.read_bytes().splitlines()] if path.exists() else []
    return [
        complete("task", entry["row"]) | {name: entry[name] for name in ("created_at", "updated_at")}
        for entry in entries
    ]


@pytest.mark.parametrize("name", ["sqlite", "postgres"])
def test_a_refused_row_is_put_aside_once_whenever_the_process_is_killed(
    tmp_path: Path, request: pytest.FixtureRequest, rng: random.Random, rounds: int, name: str
) -> None:
    at = place(name, request)

    def stored_or_refused(data_dir: Path) -> Stored:
        everything = at.read(data_dir)
        for row in refused(data_dir):
            assert everything["task"].setdefault(key_of("task", row), row) is row, "it is stored, or was refused before"
        return everything

    def after_a_refusal() -> None:
        before, deadline = size_of_refused(service.data_dir), time.monotonic() + PATIENCE
        while size_of_refused(service.data_dir) == before and time.monotonic() < deadline:
            time.sleep(0.001)
        time.sleep(rng.uniform(0, 0.005))

    with Persistd(tmp_path, config(at, rng)) as service:
        refuse_failed_tasks(name, service, request)
        load = Load(service, seed=rng.randrange(10**9), rows=5, pause=0.02, make=SometimesBad)
        # A hundred such rows take over a thousand transactions to isolate: half a minute on a busy machine.
        everywhere = replace(at, read=stored_or_refused, patience=4 * PATIENCE)
        killed_under_load(service, load, everywhere, rng, max(5, rounds // 4), after_a_refusal)
        bad = refused(service.data_dir)
        assert bad
        assert {row["status"] for row in bad} == {"failed"}
        assert all(row["status"] != "failed" for row in at.read(service.data_dir)["task"].values())
        assert service.stats()["accounting"]["rejected"] == len(bad)
        assert "Traceback" not in service.log_text()
        assert {line["event"] for line in service.log() if line["level"] == "error"} == {"rows rejected"}


def test_rows_refused_by_the_very_first_flush_are_put_aside_once_over_a_crash(
    tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    at = place("postgres", request)
    with Persistd(tmp_path, f"sink = 'postgres'\n{MANUAL}{at.table}") as service:
        refuse_failed_tasks("postgres", service, request)
        service.post("task", task("bad", status="failed"))
        for number in range(CHUNK_ROWS // 1000):
            service.post("task", *(task(f"{number}-{n}") for n in range(1000)))
        # Another transaction has this key, so that the flush's second chunk waits for its end.
        service.post("task", task("locked"))
        with psycopg.connect(request.getfixturevalue("postgres_url")) as other, ThreadPoolExecutor() as pool:
            other.execute(
                "INSERT INTO translation_tasks (task_id, session_id, batch_id, sheet_name, row_index, column_name,"
                " source_text, status, created_at, updated_at)"
                " VALUES ('locked', 's1', '', '', 0, '', '', 'pending', now(), now())"
            )
            flushing = pool.submit(service.http.post, "/api/v1/persistence/flush")
            service.wait_for_log("rows rejected")
            service.kill()
            assert isinstance(flushing.exception(), httpx.TransportError)
            other.rollback()
        assert [row["task_id"] for row in refused(service.data_dir)] == ["bad"]
        service.start()
        service.flush()
        assert [row["task_id"] for row in refused(service.data_dir)] == ["bad"]
        accounting = service.stats()["accounting"]
        assert accounting == {
            "accepted": CHUNK_ROWS + 2,
            "written": CHUNK_ROWS + 1,
            "merged": 0,
            "rejected": 1,
            "pending": 0,
        }
        assert len(at.read(service.data_dir)["task"]) == CHUNK_ROWS + 1


# SIGTERM


def stopped_under_load(service: Persistd, load: Load) -> float:
    """SIGTERM while all clients are at work; when that was."""
    with load:
        load.wait_for(100)
        at = time.monotonic()
        assert service.stop() == 0
    return at


def test_at_sigterm_every_request_in_flight_has_its_answer_and_all_that_was_accepted_is_stored(tmp_path: Path) -> None:
    at = "[buffer]\ncapacity = 50\nflush_interval = 0.1\n"
    with Persistd(tmp_path, at) as service:
        load = Load(service, seed=1, clients=8, rows=5)
        signalled = stopped_under_load(service, load)
        in_flight = [answer.status for answer in load.answers if answer.at < signalled < answer.at + answer.seconds]
        assert in_flight
        assert set(in_flight) <= {200, 503}
        assert service.log("stopped")[0]["left_in_journal"] == 0
        load.record.check(read_sqlite(service.data_dir / "persist.db"))
        assert "Traceback" not in service.log_text()


def test_at_sigterm_with_the_database_down_the_journal_keeps_what_was_accepted(
    tmp_path: Path, postgres_url: str
) -> None:
    sink = "sink = 'postgres'\n[buffer]\ncapacity = 50\nflush_interval = 0.1\n[sinks.postgres]\nurl = '{}'\n"
    nobody = "postgresql://persist:secret@127.0.0.1:9/x"
    with Persistd(tmp_path, sink.format(nobody), server="shutdown_timeout = 1") as service:
        load = Load(service, seed=1, clients=8, rows=5)
        for _ in range(2):
            signalled = stopped_under_load(service, load)
            in_flight = [answer.status for answer in load.answers if answer.at < signalled < answer.at + answer.seconds]
            assert set(in_flight) <= {200, 503}
            left = service.log("stopped")[-1]["left_in_journal"]
            service.start()
            accounting = service.stats()["accounting"]
            assert accounting["accepted"] == load.record.acknowledged, "what was not answered was not taken"
            assert accounting["pending"] == left
        service.configure(sink.format(postgres_url))
        assert service.stop() == 0
        service.start()
        service.flush()
        load.record.check(read_postgres(postgres_url))
        balanced(service.stats()["accounting"], load.record.acknowledged, load.record)
        assert "Traceback" not in service.log_text()


def test_rows_deleted_by_hand_after_a_flush_stay_deleted_over_a_crash(
    tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    """As the page on operations says: flush first, then delete."""
    at = place("postgres", request)
    with Persistd(tmp_path, f"sink = 'postgres'\n{MANUAL}{at.table}") as service:
        service.post("task", *(task(f"gone-{n}") for n in range(100)), task("kept"))
        service.flush()
        with psycopg.connect(request.getfixturevalue("postgres_url"), autocommit=True) as operator:
            operator.execute("DELETE FROM translation_tasks WHERE task_id LIKE 'gone-%'")
        service.kill()
        service.start()
        service.flush()
        accounting = service.stats()["accounting"]
    assert (accounting["accepted"], accounting["written"], accounting["pending"]) == (101, 101, 0)
    assert [row["task_id"] for row in at.read(service.data_dir)["task"].values()] == ["kept"]
