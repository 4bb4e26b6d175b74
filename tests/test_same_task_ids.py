"""Two workbooks whose tasks have the same ids, as clients number them from 0 in each session: nothing is mixed up."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.faults.test_kill import Place, place
from tests.process import Persistd, persistd, wait_until
from tests.rows import session, task
from tests.servers import MariaDB, Postgres
from tests.sinks.readers import read_jsonl, read_mysql, read_postgres, read_sqlite

IDS = [f"TASK_{number:04}" for number in range(20)]
MANUAL = "[buffer]\ncapacity = 100000\nflush_interval = 3600\n"


@pytest.fixture(params=["sqlite", "postgres", "mysql", "jsonl"])
def at(request: pytest.FixtureRequest) -> Place:
    return place(request.param, request)


def serve(directory: Path, at: Place, **variables: str) -> Persistd:
    return Persistd(directory, f"sink = '{at.name}'\n{MANUAL}{at.table}", variables=variables)


def send(service: Persistd, workbook: str) -> None:
    """The session, its tasks, and the translation of every other one."""
    done = [task(id, session_id=workbook, target_text=f"{id} of {workbook}", status="completed") for id in IDS[::2]]
    for kind, rows in (
        ("session", [session(workbook)]),
        ("task", [task(id, session_id=workbook, status="pending") for id in IDS]),
        ("task", done),
    ):
        assert service.post(kind, *rows).status_code == 200  # type: ignore[arg-type]


def assert_apart(service: Persistd, at: Place, *workbooks: str) -> None:
    """Each workbook has its own twenty tasks, and its own translations alone."""
    stored = at.read(service.data_dir)["task"]
    assert {key: (row["status"], row["target_text"]) for key, row in stored.items()} == {
        (workbook, id): ("pending", None) if number % 2 else ("completed", f"{id} of {workbook}")
        for workbook in workbooks
        for number, id in enumerate(IDS)
    }
    accounting = service.stats()["accounting"]
    assert accounting["accepted"] == accounting["written"] + accounting["merged"]


def test_buffered_together_and_flushed_apart(tmp_path: Path, at: Place) -> None:
    with serve(tmp_path, at) as service:
        send(service, "first")
        send(service, "second")
        service.flush()
        assert_apart(service, at, "first", "second")
        send(service, "third")
        service.flush()
        assert_apart(service, at, "first", "second", "third")


def test_over_kill_minus_nine(tmp_path: Path, at: Place) -> None:
    with serve(tmp_path, at) as service:
        send(service, "first")
        service.flush()
        send(service, "second")
        service.kill()
        service.start()
        service.flush()
        stored = at.read(service.data_dir)["task"]
        assert {workbook: {id for owner, id in stored if owner == workbook} for workbook in ("first", "second")} == {
            "first": set(IDS),
            "second": set(IDS),
        }
        assert {row["target_text"] for row in stored.values()} == {
            None,
            *(f"{id} of {workbook}" for id in IDS[::2] for workbook in ("first", "second")),
        }


@pytest.mark.parametrize("make", [Postgres, MariaDB])
def test_over_an_outage_of_the_database(tmp_path: Path, make: type[Postgres] | type[MariaDB]) -> None:
    with make() as server:
        url = server.fresh_database()
        name = "postgres" if make is Postgres else "mysql"
        read = read_postgres if make is Postgres else read_mysql
        at = Place(name, f"[sinks.{name}]\nurl = '{url}'\n", lambda data_dir: read(url))
        with serve(tmp_path, at) as service:
            send(service, "first")
            service.flush()
            server.stop()
            send(service, "second")
            assert service.http.post("/api/v1/persistence/flush").status_code == 503
            send(service, "third")
            server.start()
            wait_until(lambda: service.http.post("/api/v1/persistence/flush").status_code == 200, "the flush")
            assert_apart(service, at, "first", "second", "third")


@pytest.mark.parametrize(("name", "setting", "lies"), [("sqlite", "path", "d/p.db"), ("jsonl", "dir", "d/j")])
def test_over_an_outage_of_the_disk(tmp_path: Path, name: str, setting: str, lies: str) -> None:
    place, away = tmp_path / "d", tmp_path / "away"
    place.touch()  # a file, where its directory should be
    read = {"sqlite": read_sqlite, "jsonl": read_jsonl}[name]
    at = Place(name, f"[sinks.{name}]\n{setting} = '{tmp_path / lies}'\n", lambda data_dir: read(tmp_path / lies))
    with serve(tmp_path, at) as service:
        send(service, "first")
        assert service.http.post("/api/v1/persistence/flush").status_code == 503
        send(service, "second")
        place.rename(away)
        wait_until(lambda: service.http.post("/api/v1/persistence/flush").status_code == 200, "the flush")
        assert_apart(service, at, "first", "second")


def test_import_of_json_lines(tmp_path: Path, at: Place) -> None:
    lines = [{**task(id, session_id=book), "target_text": f"{id} of {book}"} for book in "ab" for id in IDS]
    file = tmp_path / "tasks.jsonl"
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    with serve(tmp_path, at) as service:
        done = persistd("import", str(file), "--url", service.url, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        service.flush()
        stored = at.read(service.data_dir)["task"]
    assert {key: row["target_text"] for key, row in stored.items()} == {
        (book, id): f"{id} of {book}" for book in "ab" for id in IDS
    }


def test_retry_of_rejected_rows(tmp_path: Path) -> None:
    lines = [
        {
            "kind": "task",
            "row": task("t", session_id=book, target_text=f"of {book}"),
            "sink": "sqlite",
            "code": "x",
            "message": "no",
            **dict.fromkeys(("created_at", "updated_at", "at"), "2025-09-30T16:35:00.000000+00:00"),
        }
        for book in "ab"
    ]
    with Persistd(tmp_path, MANUAL) as service:
        (service.data_dir / "rejected.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        # A newer update of the second session's task: only that row is out of date.
        assert service.post("task", task("t", session_id="b", target_text="newer")).status_code == 200
        done = persistd("rejected", "retry", "--all", "-c", str(service.file), "--url", service.url, cwd=tmp_path)
        assert (done.returncode, done.stdout) == (1, "1 row sent\nflushed: the sink has them\n"), done.stderr
        assert "task b/t is of" in done.stderr
        stored = place("sqlite", None).read(service.data_dir)["task"]  # type: ignore[arg-type]
    assert {key: row["target_text"] for key, row in stored.items()} == {("a", "t"): "of a", ("b", "t"): "newer"}
