"""One answer to the question how the service is: ``persistd status``, ``/health``, ``/stats`` and the metrics agree."""

from __future__ import annotations

import json
import re
import signal
import sqlite3
import time
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from tests.cli.conftest import Command
from tests.process import Persistd, wait_until
from tests.rows import task
from tests.servers import MariaDB
from tornado_persist import __version__

MANUAL = "[buffer]\nflush_interval = 3600\n"
#: A sink that is down as long as a file has the place of its directory.
AWAY = "[sinks.sqlite]\npath = 'elsewhere/persist.db'\n"


def agreed(service: Persistd, command: Command, *, healthy: bool) -> dict[str, Any]:
    """The health that all give."""
    response = service.http.get("/health")
    health: dict[str, Any] = response.json()
    assert response.status_code == (200 if healthy else 503), health
    assert health["status"] == ("healthy" if healthy else "unhealthy")
    assert bool(health["reason"]) is not healthy
    stats = service.stats()["health"]
    assert stats["status"] == health["status"]
    assert service.http.get("/health/ready").status_code == (200 if health["accepting"] else 503)
    text = service.http.get("/metrics").text
    for name, value in (
        ("accepting", health["accepting"]),
        (f'sink_up{{sink="{health["sink"]["name"]}"}}', health["sink"]["up"]),
        ("rejected_open_rows", health["rejected_open_rows"]),
    ):
        assert f"\npersistd_{name} {float(value)}\n" in text
    code, said, _ = command("status", "--json")
    asked = json.loads(said)
    assert (code, asked["running"], asked["status"]) == (0 if healthy else 1, True, health["status"])
    code, said, complaint = command("status")
    assert (code, complaint) == (0 if healthy else 1, "")
    head = "is well" if healthy else "runs, but is not well"
    assert said.startswith(f"persistd {__version__} {head}, up for ")
    assert len(said.splitlines()) <= 10
    return health


def line(command: Command, name: str) -> str:
    """What ``persistd status`` says under this name."""
    found = re.search(rf"^{name} +(.*)$", command("status").out, re.MULTILINE)
    return found[1] if found else ""


def test_well(service: Persistd, command: Command) -> None:
    service.post("task", task("a"), task("b"))
    health = agreed(service, command, healthy=True)
    assert (health["database"], health["accepting"]) == ("healthy", True)
    assert health["sink"]["address"] == f"{service.data_dir}/persist.db"
    assert re.fullmatch(
        rf"{health['instance']['name']}, {service.url} on \S+, pid {service.process.pid}, data in {service.data_dir}",
        line(command, "service"),
    )
    assert line(command, "batches") == "accepted; none was refused"
    assert re.fullmatch(rf"sqlite at {service.data_dir}/persist.db, up since .* ago\)", line(command, "sink"))
    assert re.fullmatch(r"2 rows, the oldest for [\d.]+ s", line(command, "waiting"))
    assert re.fullmatch(r"2 of 100,000 rows, \d+ B of 256\.0 MiB", line(command, "memory"))
    assert re.fullmatch(r"\d+ B of 8\.0 GiB", line(command, "journal"))
    assert re.fullmatch(r"[\d.]+ .iB free", line(command, "disk"))
    assert line(command, "rejected") == "no row is open"
    service.post("task", task("c", status="bad"))
    assert re.fullmatch(r"accepted; 1 refused, the last .* ago to 127\.0\.0\.1: 422, .*", line(command, "batches"))


def test_it_is_found_although_the_configuration_was_changed_or_broken(service: Persistd, command: Command) -> None:
    for mistake in ("[server]\nport = 9\n", "[server\n", "[sinks.postgres]\nurl = 5\n"):
        service.file.write_text(mistake)
        assert command("status").code == 0


def test_the_database_is_dead(tmp_path: Path, command: Command) -> None:
    config = f'sink = "postgres"\n{MANUAL}[sinks.postgres]\nurl = "postgresql://me:hush@127.0.0.1:9/x"\n'
    with Persistd(tmp_path, config) as service:
        service.post("task", task("a"))
        health = agreed(service, command, healthy=False)
        assert (health["database"], health["accepting"]) == ("unhealthy", True)
        assert re.match(r"The sink postgres is down: .*Connection refused", health["reason"])
        assert line(command, "reason") == health["reason"]
        assert line(command, "sink").startswith("postgres at 127.0.0.1:9/x, down since ")
        assert "hush" not in json.dumps(health) + command("status").out
        said = command("check").out
        assert "it is not well\n       warning -> The sink postgres is down: " in said
        service.http.post("/api/v1/persistence/flush")
        assert 0 <= service.http.get("/health").json()["sink"]["retry_in"] <= 30


@pytest.mark.alone
def test_the_database_hangs(tmp_path: Path, command: Command, mariadb_server: MariaDB, mysql_url: str) -> None:
    with Persistd(tmp_path, f"sink = 'mysql'\n{MANUAL}[sinks.mysql]\nurl = '{mysql_url}'\n") as service:
        agreed(service, command, healthy=True)
        mariadb_server.suspend()
        try:
            wait_until(lambda: service.http.get("/health").status_code == 503, "it to be noticed")
            health = agreed(service, command, healthy=False)
            assert (health["database"], health["accepting"]) == ("unhealthy", True)
            assert health["reason"] == "The sink mysql is down: it has not answered for 5 seconds"
            began = time.monotonic()
            assert command("status").code == 1
            assert time.monotonic() - began < 1
        finally:
            mariadb_server.resume()
        wait_until(lambda: service.http.get("/health").status_code == 200, "the database to be back")


def full(tmp_path: Path, config: str, **options: Any) -> Persistd:
    """A service without its sink that takes no more."""
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "elsewhere").touch()
    service = Persistd(tmp_path, f"{MANUAL}{config}{AWAY}", **options)
    rows = [task(f"t{number}", source_text="x" * 10_000) for number in range(5)]
    wait_until(lambda: service.post("task", *rows).status_code == 503, "it to be full")
    return service


def test_the_journal_is_full(tmp_path: Path, command: Command) -> None:
    with full(tmp_path, "[journal]\nsegment_bytes = 100_000\nmax_bytes = 300_000\n") as service:
        health = agreed(service, command, healthy=False)
        assert (health["database"], health["accepting"]) == ("unhealthy", False)
        assert re.match(r"The journal is full: \d+ bytes of 300000\. The sink sqlite is down: .+", health["reason"])
        assert health["waiting"]["journal_full_in_seconds"] == 0
        assert re.fullmatch(r"2\d\d\.\d KiB of 293\.0 KiB, full", line(command, "journal"))
        assert re.match(r"refused now; \d+ refused, the last .*: 503, The journal is full", line(command, "batches"))
        (service.data_dir / "elsewhere").unlink()
        service.flush()
        agreed(service, command, healthy=True)


def test_the_disk_is_full(tmp_path: Path, command: Command) -> None:
    limit = ("sh", "-c", 'ulimit -S -f 1024; exec "$@"', "sh")
    with full(tmp_path, "", prefix=limit) as service:
        health = agreed(service, command, healthy=False)
        assert health["accepting"] is False
        assert "File too large" in health["reason"]


def test_rows_are_refused_and_then_retried(service: Persistd, command: Command) -> None:
    service.flush()
    with closing(sqlite3.connect(service.data_dir / "persist.db")) as database, database:
        database.execute(
            "CREATE TRIGGER no BEFORE INSERT ON translation_tasks WHEN NEW.source_text = 'bad' "
            "BEGIN SELECT RAISE(ABORT, 'no bad text'); END"
        )
    service.post("task", *(task(key, source_text="bad") for key in "abc"), task("good"))
    service.flush()

    def open_rows(count: int) -> None:
        wait_until(lambda: service.http.get("/health").json()["rejected_open_rows"] == count, f"{count} open rows")
        agreed(service, command, healthy=True)

    open_rows(3)
    assert line(command, "rejected") == "3 rows open, see persistd rejected ls"
    first = service.http.get("/api/v1/persistence/history").json()["rejected_open"]["first"]
    assert [row["task_id"] for row in first] == ["a", "b", "c"]
    assert "no bad text" in first[0]["message"]
    service.kill()
    service.start()
    open_rows(3)
    assert command("rejected", "drop", "1").code == 0
    open_rows(2)
    with closing(sqlite3.connect(service.data_dir / "persist.db")) as database, database:
        database.execute("DROP TRIGGER no")
    assert command("rejected", "retry", "--all", "--url", service.url).code == 0
    open_rows(0)
    assert line(command, "rejected") == "no row is open"


def test_the_process_is_stopped(service: Persistd, command: Command) -> None:
    service.send(signal.SIGSTOP)
    began = time.monotonic()
    code, said, _ = command("status")
    assert time.monotonic() - began < 2
    place = f"persistd runs, pid {service.process.pid}, data in {service.data_dir}"
    assert (code, said) == (1, f"{place}, but is not well: no answer from {service.url}: it took more than 1 second\n")
    code, said, _ = command("check")
    assert code == 1
    assert re.search(rf"^service +no answer from {service.url}: it took more than 1 second$", said, re.MULTILINE)
    asked = json.loads(command("status", "--json").out)
    assert (asked["running"], asked["status"], asked["pid"]) == (True, "unhealthy", service.process.pid)
    service.send(signal.SIGCONT)
    wait_until(lambda: command("status").code == 0, "an answer")


def test_it_does_not_run(tmp_path: Path, command: Command) -> None:
    assert command("status") == (3, f"persistd does not run: no service has {tmp_path}/data\n", "")
    assert command("status", "--json") == (3, '{"running": false}\n', "")


def test_it_has_not_said_yet_where_it_answers(service: Persistd, command: Command) -> None:
    (service.data_dir / "service.json").write_text("")
    code, said, _ = command("status")
    assert code == 1
    assert said.endswith("it has not said yet where it answers; it may be reading its journal\n")
