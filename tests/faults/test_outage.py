"""Outages of real databases under load: nothing acknowledged is lost, and at every moment the rows add up."""

from __future__ import annotations

import json
import re
import statistics
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import httpx
import psycopg
import pytest

from tests.faults.load import TERMS, Load
from tests.process import PATIENCE, Persistd, wait_until
from tests.rows import row, task
from tests.servers import PASSWORD, USER, MariaDB, Postgres, Server, database_of
from tests.sinks.readers import connect_mysql, read_mysql, read_postgres
from tornado_persist.records.models import KINDS, SHAPES, Batch, Fields, Kind
from tornado_persist.sinks.runner import STALLED_AFTER
from tornado_persist.testing import Stored, merge, nothing, same

#: Flushes by themselves, soon and often.
BUSY = "[buffer]\nflush_interval = 0.1\ncapacity = 500\n"
#: Flushes when told to.
MANUAL = "[buffer]\nflush_interval = 3600\ncapacity = 1000000\n"
#: More failures in a row than make the flusher suspect single rows.
MANY = 6
#: Seconds for the answer of /health, and for that to a batch.
HEALTH_LIMIT = 0.5
ANSWER_LIMIT = 0.05


@pytest.fixture
def soak(request: pytest.FixtureRequest) -> bool:
    """Whether the long form is asked for."""
    return bool(request.config.getoption("--soak"))


def config(server: Server, url: str, more: str = BUSY, **options: str) -> str:
    sink = "postgres" if isinstance(server, Postgres) else "mysql"
    table = "".join(f"{name} = {value}\n" for name, value in options.items())
    return f"sink = '{sink}'\n{more}[sinks.{sink}]\nurl = '{url}'\n{table}"


def read(server: Server, url: str) -> Stored:
    return read_postgres(url) if isinstance(server, Postgres) else read_mysql(url)


class Observer:
    """Looks at the service's health all the time: it is told within half a second, and readiness never ends."""

    def __init__(self, service: Persistd) -> None:
        self.url = service.url
        #: When each look at /health began, the seconds it took, and the status it gave.
        self.health: list[tuple[float, float, int]] = []
        self._stop = threading.Event()
        self._pool = ThreadPoolExecutor(1)

    def __enter__(self) -> Self:
        self._running = self._pool.submit(self._look)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        self._pool.shutdown()
        if error is None:
            self._running.result()

    def wait_for(self, status: int) -> None:
        """Until /health answers with this status."""
        seen = len(self.health)

        def answered() -> bool:
            if self._running.done():
                self._running.result()
            return any(answer == status for _, _, answer in self.health[seen:])

        wait_until(answered, f"/health to answer {status}")

    def _look(self) -> None:
        with httpx.Client(base_url=self.url, timeout=PATIENCE) as http:
            while not self._stop.wait(0.02):
                began = time.monotonic()
                status = http.get("/health").status_code
                seconds = time.monotonic() - began
                self.health.append((began, seconds, status))
                assert seconds < HEALTH_LIMIT, f"/health took {seconds:.3f} s"
                assert http.get("/health/ready").status_code == 200


@contextmanager
def under_load(service: Persistd, *, rows: int = 20) -> Iterator[tuple[Load, Observer]]:
    """Load on the service, of batches of so many rows at most, and watched, until the context ends."""
    with Observer(service) as observer, Load(service, seed=1, clients=2, keys=100, rows=rows) as load:
        yield load, observer


def wait_for_rows(load: Load, rows: int) -> None:
    """Until so many more are acknowledged."""
    goal = load.record.acknowledged + rows
    load.wait_until(lambda: load.record.acknowledged >= goal, f"{rows} more rows")


def assert_all_written(service: Persistd, load: Load, stored: Callable[[], Stored]) -> None:
    """The service writes all acknowledged rows by itself, and has acknowledged all rows sent."""
    wait_until(lambda: service.stats()["accounting"]["pending"] == 0, "the backlog to be written")
    load.record.check(stored())
    assert load.readings > 0
    assert (load.record.refused, load.record.unknown) == (0, 0)
    stats = service.stats()
    assert_balance(stats)
    assert (stats["accounting"]["accepted"], stats["accounting"]["rejected"]) == (load.record.sent, 0)
    wait_until(lambda: service.stats()["journal"]["records"] == 0, "the release of what was written")


def assert_balance(stats: dict[str, Any]) -> None:
    """Promise 4, while nothing else runs."""
    rows = stats["accounting"]
    assert rows["accepted"] == sum(rows[term] for term in TERMS), rows


def assert_calm_log(service: Persistd, *, outages: int) -> None:
    """Two lines for each outage, none of them of a bug; the password is in no line, and no row was put aside."""
    for line in service.log_text().splitlines():
        entry = json.loads(line)  # anything else is not JSON: a traceback, a library's warning
        assert "exception" not in entry, entry
        assert entry["level"] in ("debug", "info", "warning"), entry
    assert PASSWORD not in service.log_text()
    changes = [line["event"] for line in service.log() if line["event"] in ("sink down", "sink up")]
    if changes[:1] == ["sink up"]:
        del changes[0]
    assert changes == ["sink down", "sink up"] * outages
    assert not (service.data_dir / "rejected.jsonl").exists()


# The server is away


@pytest.mark.alone
def test_a_database_that_is_down_at_the_start_gets_all_of_it_later(server: Server, url: str, tmp_path: Path) -> None:
    server.stop()
    with Persistd(tmp_path, config(server, url)) as service:
        with under_load(service) as (load, observer):
            observer.wait_for(503)
            wait_for_rows(load, 2000)
            server.start()
            wait_for_rows(load, 500)
        assert_all_written(service, load, lambda: read(server, url))
        assert {status for _, _, status in observer.health[:5]} == {503}
        assert_calm_log(service, outages=1)
        assert service.stop() == 0


@pytest.mark.alone
def test_a_database_restarted_under_load_gets_all_of_it(server: Server, url: str, tmp_path: Path, soak: bool) -> None:
    times = 10 if soak else 1
    with Persistd(tmp_path, config(server, url)) as service:
        with under_load(service) as (load, _observer):
            for number in range(1, times + 1):
                wait_for_rows(load, 1000)
                server.stop()
                service.wait_for_log("sink down", number)
                wait_for_rows(load, 200)
                server.start()
                service.wait_for_log("sink up", number + 1)
        assert_all_written(service, load, lambda: read(server, url))
        assert_calm_log(service, outages=times)


@pytest.mark.alone
def test_a_database_killed_under_load_gets_all_of_it(server: Server, url: str, tmp_path: Path, soak: bool) -> None:
    times = 10 if soak else 2
    with Persistd(tmp_path, config(server, url)) as service:
        with under_load(service) as (load, observer):
            for number in range(1, times + 1):
                wait_for_rows(load, 1000)
                server.kill()
                observer.wait_for(503)
                wait_for_rows(load, 200)
                server.start()
                service.wait_for_log("sink up", number + 1)
        assert_all_written(service, load, lambda: read(server, url))
        assert_calm_log(service, outages=times)


@pytest.mark.alone
def test_while_a_database_hangs_batches_and_health_are_answered_in_time(
    server: Server, url: str, tmp_path: Path, soak: bool, record_testsuite_property: Callable[[str, object], None]
) -> None:
    duration = 30.0 if soak else STALLED_AFTER + 1.5
    with Persistd(tmp_path, config(server, url)) as service:
        with under_load(service) as (load, observer):
            wait_for_rows(load, 1000)
            server.suspend()
            began = time.monotonic()
            try:
                observer.wait_for(503)
                noticed = time.monotonic() - began
                while time.monotonic() < began + duration:
                    wait_for_rows(load, 100)
                    assert service.http.get("/health").status_code == 503
                    assert service.http.get("/health/ready").status_code == 200
                ended = time.monotonic()
                assert service.stats()["accounting"]["pending"] > 0
            finally:
                server.resume()
            observer.wait_for(200)
        assert_all_written(service, load, lambda: read(server, url))
        assert_calm_log(service, outages=1)
    answers = [answer.seconds for answer in load.answers if began <= answer.at < ended]
    cuts = statistics.quantiles(answers, n=100)
    figures = {"batches": len(answers), "p50": cuts[49], "p95": cuts[94], "p99": cuts[98], "most": max(answers)}
    figures["health"] = max(seconds for at, seconds, _ in observer.health if began <= at < ended)
    figures["noticed"] = noticed
    record_testsuite_property(f"{server.scheme} hangs, seconds", figures)
    assert figures["p50"] < ANSWER_LIMIT, figures
    assert noticed < STALLED_AFTER + 5


@pytest.mark.alone
def test_a_backend_ended_in_mid_write_costs_nothing_but_the_time(
    server: Server, url: str, tmp_path: Path, soak: bool
) -> None:
    times = 50 if soak else 3
    large = "[buffer]\nflush_interval = 0.1\ncapacity = 3000\n"
    ended = 0
    with Persistd(tmp_path, config(server, url, large)) as service:
        with under_load(service, rows=200) as (load, _observer):
            for _ in range(times):
                # One connection at a time, so that it is the middle of a write and not of the one after the last.
                wait_until(lambda: server.end_writers(url) == 1, "a write in progress")
                ended += 1
                service.wait_for_log("sink up", ended + 1)
        assert_all_written(service, load, lambda: read(server, url))
        assert_calm_log(service, outages=times)


# The server is there, and refuses


def refuse_and_allow(
    service: Persistd, refuse: Callable[[], object], allow: Callable[[], object], stored: Callable[[], Stored]
) -> None:
    """Rows accepted while every write is refused are retried until they are written, and none is dropped."""
    expected = nothing()

    def send(kind: Kind, *rows: Fields) -> None:
        at = service.post(kind, *rows).json()["timestamp"]
        whole = [SHAPES[kind].row({**one, "created_at": at, "updated_at": at}) for one in rows]
        merge(expected, Batch(whole) if kind == "session" else Batch(tasks=whole))

    for kind in KINDS:
        send(kind, *(row(kind, f"{number}") for number in range(100)))
    service.flush()
    refuse()
    for attempt in range(MANY):
        for kind in KINDS:
            send(kind, *(row(kind, f"{number}", status="failed") for number in range(attempt * 10, 200, 7)))
        response = service.http.post("/api/v1/persistence/flush")
        assert (response.status_code, response.json()["rows_rejected"]) == (503, 0), response.text
        assert PASSWORD not in response.text
        assert_balance(service.stats())
    health, ready = service.http.get("/health"), service.http.get("/health/ready")
    assert (health.status_code, ready.status_code) == (503, 200)
    allow()
    wait_until(lambda: service.http.post("/api/v1/persistence/flush").status_code == 200, "the flush to go through")
    stats = service.stats()
    assert_balance(stats)
    assert (stats["accounting"]["pending"], stats["accounting"]["rejected"]) == (0, 0)
    same(stored(), expected)
    assert_calm_log(service, outages=1)


def test_a_read_only_server_is_an_outage(server: Server, url: str, tmp_path: Path) -> None:
    def read_only(on: bool) -> None:
        if isinstance(server, Postgres):
            server.set("default_transaction_read_only", "on" if on else "off")
        else:
            server.admin(f"SET GLOBAL read_only = {int(on)}")

    with Persistd(tmp_path, config(server, url, MANUAL)) as service:
        try:
            refuse_and_allow(service, lambda: read_only(True), lambda: read_only(False), lambda: read(server, url))
        finally:
            read_only(False)


@pytest.mark.parametrize("table", ["translation_sessions", "translation_tasks"])
def test_a_missing_table_is_an_outage(server: Server, url: str, tmp_path: Path, table: str) -> None:
    def rename(old: str, new: str) -> None:
        server.admin(f"ALTER TABLE {old} RENAME TO {new}", database_of(url))

    with Persistd(tmp_path, config(server, url)) as service:  # makes the tables
        service.stop()
    (tmp_path / "log").unlink()
    with Persistd(tmp_path, config(server, url, MANUAL, create_tables="false")) as service:
        refuse_and_allow(
            service, lambda: rename(table, "away"), lambda: rename("away", table), lambda: read(server, url)
        )


def test_a_table_dropped_while_the_service_runs_is_created_again(server: Server, url: str, tmp_path: Path) -> None:
    with Persistd(tmp_path, config(server, url, MANUAL)) as service:
        service.post("task", task("before"))
        service.flush()
        server.admin("DROP TABLE translation_tasks", database_of(url))
        service.post("task", task("after"), task("later"))
        wait_until(lambda: service.http.post("/api/v1/persistence/flush").status_code == 200, "the flush")
        assert sorted(id for _, id in read(server, url)["task"]) == ["after", "later"]
        assert service.stats()["accounting"] == {"accepted": 3, "written": 3, "merged": 0, "rejected": 0, "pending": 0}
        assert_calm_log(service, outages=1)


def test_missing_rights_are_an_outage(server: Server, url: str, tmp_path: Path) -> None:
    database = database_of(url)
    if isinstance(server, Postgres):
        tables = "ON ALL TABLES IN SCHEMA public"
        taken, given = f"REVOKE INSERT, UPDATE {tables} FROM {USER}", f"GRANT INSERT, UPDATE {tables} TO {USER}"
    else:
        tables = "ON `{}`.*".format(database.replace("_", r"\_"))
        taken, given = f"REVOKE INSERT, UPDATE {tables} FROM {USER}", f"GRANT INSERT, UPDATE {tables} TO {USER}"

    def refuse() -> None:
        server.admin(taken, database)
        if isinstance(server, MariaDB):
            # It looks at the rights to a database when a connection enters it.
            for (connection,) in server.admin(f"SELECT id FROM information_schema.processlist WHERE db = '{database}'"):
                if server.admin("SELECT CONNECTION_ID()") != [(connection,)]:
                    server.admin(f"KILL {connection}")

    with Persistd(tmp_path, config(server, url, MANUAL)) as service:
        refuse_and_allow(service, refuse, lambda: server.admin(given, database), lambda: read(server, url))


# A ping works, and a write does not


def watch(service: Persistd, seconds: float) -> set[int]:
    """The answers of /health during so many seconds."""
    deadline, seen = time.monotonic() + seconds, set()
    while time.monotonic() < deadline:
        seen.add(service.http.get("/health").status_code)
        time.sleep(0.05)
    return seen


def test_a_sink_that_takes_no_write_is_unhealthy_all_the_time(server: Server, url: str, tmp_path: Path) -> None:
    database = database_of(url)
    with Persistd(tmp_path, config(server, url)) as service:
        service.post("task", *(task(f"{number}") for number in range(100)))
        wait_until(lambda: service.stats()["accounting"]["written"] == 100, "the first rows")
        if isinstance(server, Postgres):  # an UPDATE of nothing, by which the service pings, is allowed still
            refuse = f"REVOKE INSERT ON ALL TABLES IN SCHEMA public FROM {USER}"
            allow = f"GRANT INSERT ON ALL TABLES IN SCHEMA public TO {USER}"
        else:
            refuse = "ALTER TABLE translation_tasks ADD theirs INT NOT NULL"
            allow = "ALTER TABLE translation_tasks DROP theirs"
        server.admin(refuse, database)
        service.post("task", *(task(f"{number}", status="failed") for number in range(100)))
        service.wait_for_log("sink down")
        assert watch(service, 12) == {503}
        metrics = service.http.get("/metrics").text
        failures = sum(map(float, re.findall(r"^persistd_flush_failures_total\{.*\} (.*)$", metrics, re.MULTILINE)))
        assert 5 < failures < 25, "the waits grow"
        server.admin(allow, database)
        wait_until(lambda: service.stats()["accounting"]["pending"] == 0, "the rest")
        assert service.http.get("/health").status_code == 200
        assert {row["status"] for row in read(server, url)["task"].values()} == {"failed"}
        assert_calm_log(service, outages=1)


def test_locked_tables_are_noticed(server: Server, url: str, tmp_path: Path) -> None:
    with Persistd(tmp_path, config(server, url)) as service:
        service.post("task", task("a"))
        wait_until(lambda: service.stats()["accounting"]["written"] == 1, "the first row")
        with closing(connect_other(server, url)) as other, closing(other.cursor()) as cursor:
            cursor.execute("LOCK TABLE translation_tasks" + (" WRITE" if isinstance(server, MariaDB) else ""))
            service.post("task", *(task(f"{number}") for number in range(100)))
            service.wait_for_log("sink down")
            assert watch(service, 8) == {503}
            cursor.execute("UNLOCK TABLES" if isinstance(server, MariaDB) else "ROLLBACK")
            wait_until(lambda: service.stats()["accounting"]["pending"] == 0, "the rest")
        assert service.http.get("/health").status_code == 200
        assert len(read(server, url)["task"]) == 101
        assert_calm_log(service, outages=1)


SLOW_TRIGGER = """
CREATE FUNCTION slow() RETURNS trigger LANGUAGE plpgsql AS $$BEGIN PERFORM pg_sleep(0.004); RETURN NEW; END$$;
CREATE TRIGGER slow BEFORE INSERT OR UPDATE ON translation_tasks FOR EACH ROW EXECUTE FUNCTION slow();
"""


def test_a_backlog_of_more_rows_than_a_time_limit_allows_drains(
    postgres_server: Postgres, postgres_url: str, tmp_path: Path
) -> None:
    rows = 1000  # more than four seconds' work, most of it sleep: on a busy machine, too, few tries find what passes
    with Persistd(tmp_path, config(postgres_server, postgres_url, MANUAL, answer_timeout="2")) as service:
        service.post("task", task("0"))
        service.flush()
        postgres_server.admin(SLOW_TRIGGER, database_of(postgres_url))
        postgres_server.admin(f"ALTER ROLE {USER} SET statement_timeout = '100ms'")  # ours goes before it
        try:
            service.post("task", *(task(f"{number}") for number in range(rows)))
            flush = "/api/v1/persistence/flush"
            wait_until(lambda: service.http.post(flush).status_code == 200, "the backlog to drain")
        finally:
            postgres_server.admin(f"ALTER ROLE {USER} RESET ALL")
        assert len(read_postgres(postgres_url)["task"]) == rows
        assert 1 <= len(service.log("flush failed")) <= 5
        assert [line for line in service.log("flush failed") if line["code"] != "57014"] == []


# Another writer holds locks


def test_a_deadlock_is_tried_again_at_once(server: Server, url: str, tmp_path: Path) -> None:
    count = 200  # rows that the other one changes: MariaDB ends the smaller of two transactions
    keys = [f"{number:03}" for number in range(count)]
    with Persistd(tmp_path, config(server, url, MANUAL)) as service, ThreadPoolExecutor(2) as pool:
        service.post("task", *(task(key) for key in keys))
        service.flush()
        for round in range(1, 4):
            change = f"UPDATE translation_tasks SET context = 'theirs {round}' WHERE session_id = 's1' AND"
            with closing(connect_other(server, url)) as other, closing(other.cursor()) as cursor:
                cursor.execute(f"{change} task_id > '000'")
                service.post("task", task(keys[0], retry_count=round), task(keys[-1], retry_count=round))
                flush = pool.submit(service.flush)
                # It has the first row, and waits for the last one; now the other one waits for the first.
                wait_until(lambda: waits_for_a_lock(server, url), "the service to wait for a lock")
                cursor.execute(f"{change} task_id = '000'")
                other.commit()
            assert flush.result()["tasks_written"] == 2
            stored = read(server, url)["task"]
            assert {stored["s1", key]["retry_count"] for key in (keys[0], keys[-1])} == {round}
            assert {stored["s1", key]["context"] for key in keys} == {f"theirs {round}"}
        assert service.log("flush failed") == []
        assert_calm_log(service, outages=0)
    if isinstance(server, Postgres):
        assert server.log.read_text().count("deadlock detected") >= 3


def connect_other(server: Server, url: str) -> Any:
    """Another client's connection, in a transaction that is never the deadlock victim."""
    if isinstance(server, MariaDB):
        other = connect_mysql(url)
        other.autocommit(False)
        return other
    return psycopg.connect(
        host=str(server.directory),
        port=server.port,
        user="postgres",
        dbname=database_of(url),
        options="-c deadlock_timeout=60s",
    )


def waits_for_a_lock(server: Server, url: str) -> bool:
    if isinstance(server, Postgres):
        waiting = f"pg_stat_activity WHERE datname = '{database_of(url)}' AND wait_event_type = 'Lock'"
    else:
        waiting = "information_schema.innodb_trx WHERE trx_state = 'LOCK WAIT'"
    return server.admin(f"SELECT count(*) FROM {waiting}") == [(1,)]
