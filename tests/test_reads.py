"""Reading back from the service as it is started: on each database, over an outage, and with a slow read."""

from __future__ import annotations

import sqlite3
import threading
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import httpx
import pytest

from tests.process import Persistd
from tests.rows import session, task
from tests.servers import Postgres

READS = "/api/v1/persistence"


def own_writes(service: Persistd, writer: int, rounds: int) -> None:
    """Write, and read each row at once."""
    with httpx.Client(base_url=service.url) as http:
        for number in range(rounds):
            row = task("t", session_id=f"s{writer}", row_index=number)
            assert http.post(f"{READS}/tasks/batch", json={"tasks": [row]}).status_code == 200
            found = http.get(f"{READS}/sessions/s{writer}/tasks/t")
            assert found.status_code == 200, found.text
            assert found.json()["row_index"] == number


@pytest.mark.parametrize("database", ["sqlite", "postgres", "mysql"])
def test_every_reader_sees_its_writers_rows(database: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    config = ""
    if database != "sqlite":
        config = f'sink = "{database}"\n[sinks.{database}]\nurl = "{request.getfixturevalue(f"{database}_url")}"\n'
    errors: list[BaseException] = []

    def guarded(function: Callable[[], None]) -> None:
        try:
            function()
        except BaseException as exc:
            errors.append(exc)

    with Persistd(tmp_path, config) as service:
        threads = [
            threading.Thread(target=guarded, args=[lambda writer=writer: own_writes(service, writer, 25)])
            for writer in range(8)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert not errors, errors[0]
        assert not service.log("a bug in the reader")


def test_an_outage_is_a_503_and_reads_go_on_after_it(
    tmp_path: Path, postgres_server: Postgres, postgres_url: str
) -> None:
    config = f'sink = "postgres"\n[sinks.postgres]\nurl = "{postgres_url}"\n'
    with Persistd(tmp_path, config) as service:
        service.post("session", session("s"))
        assert service.http.get(f"{READS}/sessions/s").status_code == 200
        postgres_server.stop()
        service.post("session", session("s", status="completed"))
        for path in ("sessions/s", "sessions"):
            refused = service.http.get(f"{READS}/{path}")
            assert (refused.status_code, refused.headers["Retry-After"]) == (503, "5")
        postgres_server.start()
        deadline = time.monotonic() + 30
        while (found := service.http.get(f"{READS}/sessions/s")).status_code == 503 and time.monotonic() < deadline:
            time.sleep(0.1)
        assert found.json()["status"] == "completed"


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
        began = time.monotonic()
        answers: list[httpx.Response] = []

        def read() -> None:
            answers.append(httpx.get(f"{service.url}{READS}/tasks", timeout=20))

        thread = threading.Thread(target=read)
        thread.start()
        service.post("session", session("other"))
        assert httpx.get(f"{service.url}{READS}/sessions", timeout=20).status_code == 200
        assert time.monotonic() - began < 3
        thread.join()
        assert answers[0].status_code == 503
        assert "more than 5 seconds" in answers[0].json()["detail"]
        assert time.monotonic() - began < 8
