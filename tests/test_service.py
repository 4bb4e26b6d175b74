"""The whole service as a process: what it stores, and what it does at a signal."""

from __future__ import annotations

import itertools
import json
import signal
import socket
import sqlite3
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy

from tests import spec_client
from tests.process import PATIENCE, AtWork, Persistd, persistd
from tests.rows import body, session, task

MANUAL = "[buffer]\nflush_interval = 3600\n"


def sqlite_rows(service: Persistd, columns: str = "task_id", table: str = "translation_tasks") -> list[Any]:
    with sqlite3.connect(service.data_dir / "persist.db") as connection:
        return connection.execute(f"SELECT {columns} FROM {table} ORDER BY 1").fetchall()


def task_ids(url: str) -> set[str]:
    scheme = "postgresql+psycopg" if url.startswith("postgresql") else "mysql+pymysql"
    engine = sqlalchemy.create_engine(f"{scheme}://{url.partition('://')[2]}", poolclass=sqlalchemy.NullPool)
    with engine.connect() as connection:
        return {row[0] for row in connection.exec_driver_sql("SELECT task_id FROM translation_tasks")}


def test_the_tour_of_the_specification_ends_in_the_embedded_database(tmp_path: Path) -> None:
    with Persistd(tmp_path, MANUAL) as service:
        assert service.http.get("/health").json()["database"] == "healthy"
        row = task("test_001", session_id="test_session", batch_id="test_batch", source_text="Test")
        accepted = service.post("task", row).json()
        assert (accepted["status"], accepted["count"]) == ("accepted", 1)
        flushed = service.flush()
        assert (flushed["status"], flushed["sessions_written"], flushed["tasks_written"]) == ("flushed", 0, 1)
        assert sqlite_rows(service, "task_id, session_id, source_text, target_text, retry_count") == [
            ("test_001", "test_session", "Test", None, 0)
        ]


@pytest.mark.gen_test(timeout=PATIENCE)
async def test_the_client_of_the_specification_runs_unchanged(tmp_path: Path) -> None:
    async def use(url: str) -> Any:
        client = spec_client.PersistenceClient(url)
        await client.add_session(session("s1"))
        for number in range(150):
            await client.add_task(task(f"t{number}"))
        return await client.flush_all()  # type: ignore[no-untyped-call]  # it is as the specification has it

    with Persistd(tmp_path, MANUAL) as service:
        flushed = await use(service.url)
        assert (flushed["sessions_written"], flushed["tasks_written"]) == (1, 150)
        assert len(sqlite_rows(service)) == 150


@pytest.mark.parametrize("sink", ["postgres", "mysql", "jsonl"])
def test_one_word_in_the_configuration_sends_the_rows_elsewhere(
    tmp_path: Path, sink: str, request: pytest.FixtureRequest
) -> None:
    url = "" if sink == "jsonl" else request.getfixturevalue(f"{sink}_url")
    table = f"[sinks.{sink}]\nurl = '{url}'\n" if url else ""
    with Persistd(tmp_path, f"sink = '{sink}'\n{MANUAL}{table}") as service:
        service.post("task", task("a"), task("b"))
        assert service.flush()["tasks_written"] == 2
        if url:
            assert task_ids(url) == {"a", "b"}
            assert "secret" not in service.log_text()
        else:
            lines = (service.data_dir / "jsonl" / "tasks.jsonl").read_text().splitlines()
            assert [json.loads(line)["task_id"] for line in lines] == ["a", "b"]
        assert service.stop() == 0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_stop_signal_flushes_what_waits_and_exits_0(tmp_path: Path, number: signal.Signals) -> None:
    with Persistd(tmp_path, MANUAL) as service:
        service.post("task", task("a"))
        assert service.stop(number) == 0
        assert sqlite_rows(service) == [("a",)]
        assert [line["event"] for line in service.log()][-2:] == ["flush", "stopped"]


def test_a_request_in_flight_at_the_stop_signal_is_finished(tmp_path: Path) -> None:
    content = body("task", task("slow"))
    with Persistd(tmp_path, MANUAL) as service:
        host, port = service.http.base_url.host, service.http.base_url.port
        assert port is not None
        with socket.create_connection((host, port), timeout=PATIENCE) as connection:
            head = "POST /api/v1/persistence/tasks/batch HTTP/1.1\r\nHost: localhost\r\n"
            connection.sendall(f"{head}Content-Length: {len(content)}\r\n\r\n".encode() + content[:10])
            # An answer to another request shows that the server has seen the first one's headers.
            service.stats()
            service.send(signal.SIGTERM)
            service.wait_for_log("shutting down")
            connection.sendall(content[10:])
            assert connection.recv(100).startswith(b"HTTP/1.1 200 OK"), "without a content type it is JSON"
        assert service.process.wait(PATIENCE) == 0
        assert sqlite_rows(service) == [("slow",)]


def test_a_client_that_never_finishes_does_not_hold_the_shutdown_up(tmp_path: Path) -> None:
    with Persistd(tmp_path, MANUAL) as service:
        service.stop()
        service.file.write_text("[server]\nport = 0\nshutdown_timeout = 1\n")
        service.start()
        assert service.http.base_url.port is not None
        address = (service.http.base_url.host, service.http.base_url.port)
        with socket.create_connection(address, timeout=PATIENCE) as connection:
            connection.sendall(
                b"POST /api/v1/persistence/tasks/batch HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9\r\n\r\n{"
            )
            service.stats()
            assert service.stop() == 0


def test_switching_the_sink_live_under_load_loses_no_accepted_row(tmp_path: Path, postgres_url: str) -> None:
    tables = f"[buffer]\ncapacity = 200\nflush_interval = 0.2\n[sinks.postgres]\nurl = '{postgres_url}'\n"
    accepted: set[str] = set()
    numbers = itertools.count()

    def load() -> None:
        number = next(numbers)
        rows = [task(f"{number}-{n}") for n in range(20)]
        response = service.post("task", *rows)
        assert response.status_code == 200, response.text
        accepted.update(row["task_id"] for row in rows)

    with Persistd(tmp_path, f"sink = 'sqlite'\n{tables}") as service:
        with AtWork(*[load] * 3) as clients:
            clients.wait_until(lambda: len(accepted) > 1000, "the first thousand rows")
            service.configure(f"sink = 'postgres'\n{tables}")
            service.send(signal.SIGHUP)
            service.wait_for_log("sink changed")
            already = len(accepted)
            clients.wait_until(lambda: len(accepted) > already + 1000, "a thousand more")
        service.flush()
        before = {row[0] for row in sqlite_rows(service)}
        after = task_ids(postgres_url)
        assert before
        assert after
        assert before | after == accepted
        assert service.stop() == 0


def test_a_new_sink_that_cannot_be_opened_leaves_the_old_one_and_says_so(tmp_path: Path) -> None:
    with Persistd(tmp_path, MANUAL) as service:
        service.configure(f"sink = 'postgres'\n{MANUAL}[sinks.postgres]\nurl = 'postgresql://me:hush@127.0.0.1:9/x'\n")
        service.send(signal.SIGHUP)
        said = service.wait_for_log("sink not changed")
        assert (said["level"], said["sink"], said["refused"]) == ("error", "sqlite", "postgres")
        service.post("task", task("a"))
        service.flush()
        assert sqlite_rows(service) == [("a",)]
        assert "hush" not in service.log_text()


def test_a_reload_changes_the_numbers_and_names_what_needs_a_restart(tmp_path: Path) -> None:
    with Persistd(tmp_path, MANUAL) as service:
        service.configure("[buffer]\ncapacity = 7\nflush_interval = 5\n[records]\nunknown_fields = 'reject'\n")
        service.send(signal.SIGHUP)
        service.wait_for_log("configuration reloaded")
        assert service.stats()["buffer"]["capacity"] == 7
        warnings = service.log("this setting changes only with a restart")
        assert [line["key"] for line in warnings] == ["records.unknown_fields"]


def test_a_reload_that_changes_the_writers_is_refused_and_a_restart_merges_the_waiting_rows_anew(
    tmp_path: Path,
) -> None:
    several = f"{MANUAL}[sinks.sqlite]\nwriters = 'several'\n"
    with Persistd(tmp_path, MANUAL) as service:
        service.post("task", task("a", context="first"))
        at = service.post("task", task("a", status="completed")).json()["timestamp"]
        service.configure(several)
        service.send(signal.SIGHUP)
        assert service.wait_for_log("configuration not reloaded")["error"].endswith(
            'sinks.sqlite.writers: from "one" to "several" needs a restart, which merges the waiting rows anew'
        )
        service.kill()
        service.start()
        service.flush()
        (row,) = sqlite_rows(service, "context, context_at, updated_at, target_text_at")
    assert (row[0], row[2]) == ("first", at)
    assert row[1] < at, "the field has the time of its own update"
    assert row[3].startswith("1970")


def test_a_reload_of_a_wrong_configuration_changes_nothing_and_says_why(tmp_path: Path) -> None:
    with Persistd(tmp_path, MANUAL) as service:
        service.file.write_text("[buffer]\ncapacity = 0\n")
        service.send(signal.SIGHUP)
        said = service.wait_for_log("configuration not reloaded")
        assert "buffer.capacity: " in said["error"]
        assert service.stats()["buffer"]["capacity"] == 1000


@pytest.mark.parametrize("url", ["postgresql://me:hush@127.0.0.1:9/x", "mysql://me:hush@127.0.0.1:9/x"])
def test_a_database_that_cannot_be_reached_does_not_end_the_start(tmp_path: Path, url: str) -> None:
    sink = "postgres" if url.startswith("postgresql") else "mysql"
    with Persistd(tmp_path, f"sink = '{sink}'\n{MANUAL}[sinks.{sink}]\nurl = '{url}'\n") as service:
        assert service.post("task", task("a")).status_code == 200
        health = service.http.get("/health")
        assert (health.status_code, health.json()["database"]) == (503, "unhealthy")
        assert service.http.get("/health/ready").status_code == 200
        response = service.http.post("/api/v1/persistence/flush")
        assert (response.status_code, response.json()["status"]) == (503, "error")
        assert "hush" not in service.log_text() + response.text
        assert "Traceback" not in service.log_text()


def test_a_database_that_refuses_the_password_does_not_end_the_start(tmp_path: Path, mysql_url: str) -> None:
    wrong = mysql_url.replace("secret", "wrong-hush")
    with Persistd(tmp_path, f"sink = 'mysql'\n{MANUAL}[sinks.mysql]\nurl = '{wrong}'\n") as service:
        service.post("task", task("a"))
        assert service.http.get("/health").status_code == 503
        assert "Access denied" in service.wait_for_log("sink down")["error"]
        assert "wrong-hush" not in service.log_text()


def test_the_log_never_holds_a_rows_contents(tmp_path: Path) -> None:
    with Persistd(tmp_path, MANUAL) as service:
        service.post("task", task("hidden-key", source_text="hidden-text"))
        service.post("task", task("hidden-key", status="hidden-status"))
        service.flush()
        service.wait_for_log("request", 3)  # it is written after the answer is sent
        requests = service.log("request")
        assert [(line["method"], line["status"]) for line in requests] == [("POST", 200), ("POST", 422), ("POST", 200)]
        assert "hidden" not in service.log_text()


def test_a_required_session_is_looked_up_in_the_sink(tmp_path: Path) -> None:
    config = f"{MANUAL}[records]\nrequire_session = true\n"
    with Persistd(tmp_path, config) as service:
        service.post("session", session("s1"))
        assert service.stop() == 0
        service.start()
        assert service.post("task", task("a", session_id="s1")).status_code == 200
        refused = service.post("task", task("b", session_id="s2"))
        assert refused.status_code == 422
        assert refused.json()["detail"] == "Session ID not found or invalid task data"


def test_a_second_service_on_the_same_data_is_refused_in_one_line(tmp_path: Path) -> None:
    with Persistd(tmp_path, MANUAL) as service:
        second = persistd("run", "-c", str(service.file), cwd=tmp_path)
        assert second.returncode == 1
        assert second.stderr.count("\n") == 1
        assert f"in use by another persistd (pid {service.process.pid})" in second.stderr


def test_a_taken_port_is_one_line_and_exit_code_1(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        refused = persistd("run", cwd=tmp_path, PERSISTD_SERVER__PORT=str(port))
    assert refused.returncode == 1
    assert refused.stderr == f"persistd: cannot listen on 127.0.0.1:{port}: Address already in use\n"


def test_a_replay_needs_neither_the_statuses_nor_the_time_zone_of_then(tmp_path: Path) -> None:
    wide = (
        '[records]\nstatuses = ["pending", "cancelled"]\ntimezone = "Asia/Shanghai"\n[buffer]\nflush_interval = 3600\n'
    )
    with Persistd(tmp_path, wide) as service:
        row = task("a", status="cancelled", start_time="2025-09-30T16:35:00")
        assert service.post("task", row).status_code == 200
        service.kill()
    with Persistd(tmp_path, MANUAL) as service:
        assert service.flush()["tasks_written"] == 1
        found = sqlite_rows(service, "status, start_time")
        assert found == [("cancelled", "2025-09-30T08:35:00.000000+00:00")]
        assert service.post("task", row).status_code == 422
