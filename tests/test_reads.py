"""Reading back from the service as it is started: on each database, over outages, a reload, and with a slow read."""

from __future__ import annotations

import contextlib
import itertools
import random
import signal
import sqlite3
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from functools import partial
from pathlib import Path

import httpx
import psycopg
import pytest

from tests.faults.test_kill import place
from tests.process import AtWork, Persistd, wait_until
from tests.rows import session, task
from tests.servers import Server
from tests.sinks.readers import connect_mysql
from tornado_persist.records.queries import SHOWN

READS = "/api/v1/persistence"
DATABASES = ("sqlite", "postgres", "mysql")


class OwnWrites(AtWork):
    """Writers, and for each a reader: a fresh read shows at least all that the writer was answered for before it."""

    def __init__(self, service: Persistd, *, outages: bool = False, pairs: int = 8) -> None:
        """``outages``: reads may be refused with 503."""
        super().__init__(*(partial(self._work, do, n) for do in (self._write, self._read) for n in range(pairs)))
        self._service = service
        self._outages = outages
        #: For each writer, the last number that was accepted; and how often its reader had an answer.
        self.accepted = [-1] * pairs
        self.reads = [0] * pairs
        self.refused = 0

    def wait_for(self, more: int) -> None:
        """Until each reader has had so many more answers."""
        goals = [count + more for count in self.reads]
        self.wait_until(lambda: all(map(int.__ge__, self.reads, goals)), "every reader's answers")

    def _work(self, do: Callable[[httpx.Client, int], None], number: int) -> None:
        with httpx.Client(base_url=self._service.url, timeout=30) as http:
            while not self.stopping.is_set():
                do(http, number)

    def _write(self, http: httpx.Client, number: int) -> None:
        value = self.accepted[number] + 1
        row = task("t", session_id=f"s{number}", row_index=value)
        answer = http.post(f"{READS}/tasks/batch", json={"tasks": [row]})
        assert answer.status_code == 200, answer.text
        self.accepted[number] = value

    def _read(self, http: httpx.Client, number: int) -> None:
        accepted = self.accepted[number]
        lists = self.reads[number] % 3 == 0
        path = f"{READS}/sessions/s{number}/tasks"
        answer = http.get(f"{path}?fresh=true" if lists else f"{path}/t")
        if self._outages and answer.status_code == 503:
            assert int(answer.headers["Retry-After"]) > 0
            self.refused += 1
            time.sleep(0.05)
            return
        if accepted < 0 and answer.status_code == 404:
            return
        assert answer.status_code == 200, answer.text
        found = answer.json()["items"][:1] if lists else [answer.json()]
        assert accepted < 0 or found[0]["row_index"] >= accepted
        self.reads[number] += 1


@pytest.mark.parametrize("database", DATABASES)
def test_every_reader_sees_its_writers_rows(
    database: str, tmp_path: Path, request: pytest.FixtureRequest, soak: int
) -> None:
    at = place(database, request)
    with Persistd(tmp_path, f"sink = '{database}'\n{at.table}") as service:
        own = OwnWrites(service)
        with own:
            own.wait_for(25)
            end = time.monotonic() + (60 if soak else 0)
            while time.monotonic() < end:
                own.wait_for(1)
                time.sleep(0.5)
        sys.stdout.write(f"{sum(own.reads)} fresh reads, {sum(own.accepted)} batches\n")
        assert not service.log("a bug in the reader")


@contextlib.contextmanager
def outage(service: Persistd, server: Server | None) -> Iterator[None]:
    """The server is stopped; or, without one, another process writes to the SQLite file and does not end."""
    if server is not None:
        server.stop()
        try:
            yield
        finally:
            server.start()
    else:
        with closing(sqlite3.connect(service.data_dir / "persist.db", isolation_level=None)) as database:
            database.execute("BEGIN IMMEDIATE")
            yield


@pytest.mark.parametrize("database", DATABASES)
def test_reads_are_refused_in_an_outage_and_right_after_it(
    database: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    at = place(database, request)
    fixture = {"postgres": "postgres_server", "mysql": "mariadb_server"}.get(database)
    server: Server | None = request.getfixturevalue(fixture) if fixture else None
    config = f"sink = '{database}'\n[buffer]\nflush_timeout = 1\n{at.table}"
    with Persistd(tmp_path, config) as service:
        own = OwnWrites(service, outages=True)
        with own:
            own.wait_for(3)
            with outage(service, server):
                wait_until(lambda: own.refused >= 8, "refused reads")
                own.raise_error()
            own.wait_for(3)
        for number, accepted in enumerate(own.accepted):
            answers = [service.http.get(f"{READS}/sessions/s{number}/tasks/t")]
            while answers[-1].status_code == 503 and len(answers) < 20:  # on a busy machine a flush may take a second
                answers.append(service.http.get(f"{READS}/sessions/s{number}/tasks/t"))
            assert answers[-1].json()["row_index"] == accepted
        assert "Traceback" not in service.log_text()


@pytest.mark.parametrize("database", DATABASES)
def test_pages_hold_each_task_once_while_tasks_are_updated(
    database: str, tmp_path: Path, request: pytest.FixtureRequest, soak: int
) -> None:
    """5,000 tasks; 100,000 in the long form."""
    at, count = place(database, request), 100_000 if soak else 5000
    ids = [f"t{number:06}" for number in range(count)]
    with Persistd(tmp_path, f"sink = '{database}'\n[buffer]\nflush_interval = 0.2\n{at.table}") as service:
        for start in range(0, count, 1000):
            assert service.post("task", *map(task, ids[start : start + 1000])).status_code == 200
        service.flush()
        updates, dice = 0, random.Random(1)

        def update() -> None:
            nonlocal updates
            rows = [task(id, status="completed", sheet_name="另") for id in dice.sample(ids, 200)]
            assert http.post(f"{READS}/tasks/batch", json={"tasks": rows}).status_code == 200
            updates += 1
            time.sleep(0.01)

        with httpx.Client(base_url=service.url, timeout=30) as http, AtWork(update) as writer:
            for number, limit in enumerate(itertools.cycle((61, 173, 1000))):
                writer.raise_error()
                if number >= 3 and updates >= 20:
                    break
                found: list[str] = []
                url: str | None = f"{READS}/sessions/s1/tasks?limit={limit}&fields=status"
                while url:
                    answer = service.http.get(url)
                    assert answer.status_code == 200, answer.text
                    found += [row["task_id"] for row in answer.json()["items"]]
                    url = answer.json()["next_url"]
                assert found == ids


def test_a_reload_that_changes_the_sink_moves_the_reads(tmp_path: Path, request: pytest.FixtureRequest) -> None:
    """Reads go on meanwhile: each is of one database, and none fails."""
    places = {name: place(name, request) for name in DATABASES}
    # The tables of both servers stay in the file; a change of its first line is what is applied.
    tables = "".join(at.table for at in places.values())

    def config(name: str) -> str:
        return f"sink = '{name}'\n{tables}"

    with Persistd(tmp_path, config("sqlite")) as service:
        statuses = set()

        def read() -> None:
            for path in ("sessions/sqlite", "sessions?fresh=true", "sessions/sqlite?fresh=false"):
                statuses.add(http.get(f"{READS}/{path}").status_code)

        def stored() -> list[str]:
            found = service.http.get(f"{READS}/sessions?fresh=true").json()
            return [row["session_id"] for row in found["items"]]

        with httpx.Client(base_url=service.url, timeout=30) as http, AtWork(*[read] * 4):
            for number, name in enumerate((*DATABASES, "sqlite", "postgres")):
                if number:
                    service.configure(config(name))
                    service.send(signal.SIGHUP)
                    service.wait_for_log("configuration reloaded", number)
                seen = [name] if number >= len(DATABASES) else []
                assert stored() == seen
                service.post("session", session(name))
                assert stored() == [name]
                assert service.http.get(f"{READS}/sessions/{name}").status_code == 200
        # 503: the read was on its way in the sink that was closed.
        assert statuses <= {200, 404, 503}
        assert {200, 404} <= statuses
        assert "Traceback" not in service.log_text()


@pytest.mark.parametrize("database", ["postgres", "mysql"])
def test_no_answer_holds_the_guards_of_several_writers(
    database: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    at = place(database, request)
    with Persistd(tmp_path, f"sink = '{database}'\n{at.table}writers = 'several'\n") as service:
        service.post("session", session("s1", metadata={"a": 1}))
        service.post("task", task("t", context="x"), task("u", status="failed"))
        one = service.http.get(f"{READS}/sessions/s1").json()
        assert one.keys() == {*SHOWN["session"], "tasks", "progress", "pending"} - {"extra"}
        listed = service.http.get(f"{READS}/sessions/s1/tasks?status=failed").json()["items"]
        assert [(row["task_id"], row.keys()) for row in listed] == [("u", {*SHOWN["task"]} - {"extra"})]
        # Over an update of one field, which the guards keep apart.
        service.post("task", {**task("t"), "status": "completed"})
        found = service.http.get(f"{READS}/sessions/s1/tasks/t").json()
        assert (found["status"], found["context"]) == ("completed", "x")
        assert service.http.delete(f"{READS}/sessions/s1").json()["tasks_deleted"] == 2


@pytest.mark.parametrize("database", DATABASES)
def test_a_table_of_ones_own_without_extra_is_read(
    database: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    at = place(database, request)
    with Persistd(tmp_path, f"sink = '{database}'\n{at.table}") as service:
        service.post("session", session("s1"))
        service.post("task", task("t"))
        service.flush()
        for table in ("translation_sessions", "translation_tasks"):
            execute(database, at.table, service, f"ALTER TABLE {table} DROP COLUMN extra")
            execute(database, at.table, service, f"ALTER TABLE {table} ADD COLUMN ours VARCHAR(9) DEFAULT 'x'")
    with Persistd(tmp_path, f"sink = '{database}'\n{at.table}") as service:
        service.post("session", session("s1", total_tasks=2))
        service.post("task", task("t", status="completed"))
        found = service.http.get(f"{READS}/sessions/s1").json()
        assert (found["total_tasks"], found["tasks"]["completed"], found["progress"]) == (2, 1, 50.0)
        assert found.keys() & {"extra", "ours"} == set()
        (row,) = service.http.get(f"{READS}/tasks?fields=extra,status").json()["items"]
        assert row == {"session_id": "s1", "task_id": "t", "status": "completed"}
        assert service.http.post(f"{READS}/recovery/restore/s1").json()["tasks"] == []


@pytest.mark.parametrize(
    ("database", "odd"),
    [("sqlite", "'soon', total_tasks = 'many'"), ("postgres", "'infinity'"), ("mysql", "'0000-00-00 00:00:00'")],
)
def test_what_others_have_stored_stops_neither_a_list_nor_a_cleanup(
    database: str, odd: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    at = place(database, request)
    with Persistd(tmp_path, f"sink = '{database}'\n{at.table}") as service:
        service.post("session", *(session(id, status="completed") for id in ("new", "odd", "old")))
        service.flush()
        for id, time in (("odd", odd), ("old", "'2020-01-01 00:00:00'")):
            update = f"UPDATE translation_sessions SET updated_at = {time} WHERE session_id = '{id}'"
            execute(database, at.table, service, update)
        listed = service.http.get(f"{READS}/sessions?counts=true").json()
        assert [row["session_id"] for row in listed["items"]] == ["new", "odd", "old"]
        assert service.http.get(f"{READS}/sessions/odd").json()["updated_at"] == odd.split("'")[1] + (
            ".000000" if database == "mysql" else ""
        )
        for dry_run in ("true", "false"):
            answer = service.http.post(f"{READS}/sessions/cleanup?completed_days=1&dry_run={dry_run}")
            assert (answer.status_code, answer.json()["sessions"]) == (200, 1), answer.text
        left = service.http.get(f"{READS}/sessions?fields=status").json()["items"]
        assert [row["session_id"] for row in left] == ["new", "odd"], "what has no time does not expire"
        assert "a bug" not in service.log_text()


def execute(database: str, table: str, service: Persistd, sql: str) -> None:
    url = table.partition("'")[2].partition("'")[0]
    if database == "sqlite":
        with closing(sqlite3.connect(service.data_dir / "persist.db", isolation_level=None)) as sqlite:
            sqlite.execute(sql)
    elif database == "postgres":
        with psycopg.connect(url, autocommit=True) as postgres:
            postgres.execute(sql.encode())
    else:
        with closing(connect_mysql(url)) as mysql, mysql.cursor() as cursor:
            cursor.execute(sql)


def test_a_slow_read_ends_and_holds_up_no_write(tmp_path: Path) -> None:
    with Persistd(tmp_path) as service:
        service.post("session", session("s"))
        service.post("task", task("t"))
        service.flush()
        with closing(sqlite3.connect(service.data_dir / "persist.db", isolation_level=None)) as database:
            # Rows that take very long to compute.
            database.execute("ALTER TABLE translation_tasks RENAME TO others")
            database.execute(
                "CREATE VIEW translation_tasks AS WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n"
                " LIMIT 1000000000) SELECT o.* FROM n, others AS o WHERE i < 0"
            )
        answers: list[tuple[httpx.Response, float]] = []

        def read() -> None:
            began = time.monotonic()
            answer = httpx.get(f"{service.url}{READS}/tasks", timeout=20)
            answers.append((answer, time.monotonic() - began))

        threads = [threading.Thread(target=read) for _ in range(2)]
        threads[0].start()
        service.post("session", session("other"))
        assert httpx.get(f"{service.url}{READS}/sessions", timeout=20).status_code == 200
        threads[1].start()
        service.post("session", session("another"))
        row = httpx.get(f"{service.url}{READS}/sessions/another?fields=status", timeout=20)
        assert (row.status_code, answers) == (200, []), "two slow lists hold up no single row"
        for thread in threads:
            thread.join()
        for answer, seconds in answers:
            assert answer.status_code == 503
            assert "more than 5 seconds" in answer.json()["detail"]
            assert seconds < 8
        # The database has given them up, too: their threads are free.
        assert "busy" not in service.http.get(f"{READS}/sessions").text
