"""``invalid_rows = "set_aside"``: an invalid row costs itself alone, is durable before the answer, and is counted."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from tests.faults.test_kill import place
from tests.process import Persistd, persistd, wait_until
from tests.rows import session, task

CONFIG = "[records]\ninvalid_rows = 'set_aside'\n[buffer]\ncapacity = 100000\nflush_interval = 3600\n"


@pytest.fixture
def service(tmp_path: Path) -> Iterator[Persistd]:
    with Persistd(tmp_path, CONFIG) as running:
        yield running


def rejected(service: Persistd) -> list[dict[str, Any]]:
    path = service.data_dir / "rejected.jsonl"
    return [json.loads(line) for line in path.read_bytes().split(b"\n")[:-1]] if path.exists() else []


def accounting(service: Persistd) -> tuple[int, int, int]:
    """Accepted, written and rejected rows; nothing else, and balanced."""
    found = service.stats()["accounting"]
    assert found["accepted"] == found["written"] + found["merged"] + found["rejected"] + found["pending"]
    return found["accepted"], found["written"] + found["pending"], found["rejected"]


@pytest.mark.parametrize("name", ["sqlite", "postgres", "mysql", "jsonl"])
def test_one_bad_row_among_200_costs_itself_alone(name: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    at = place(name, request)
    rows = [task(f"t{number:03}", cost=number) for number in range(200)]
    rows[17] |= {"status": "cancelled", "row_index": "x"}
    with Persistd(tmp_path, f"sink = '{name}'\n{CONFIG}{at.table}") as service:
        answer = service.post("task", *rows)
        body = answer.json()
        assert (answer.status_code, body["status"], body["count"], body["rejected"]) == (200, "accepted", 199, 1)
        assert [error["loc"] for error in body["errors"]] == [["tasks", 17, "row_index"], ["tasks", 17, "status"]]
        assert body["ignored"] == ["cost"]
        (entry,) = rejected(service)
        assert entry["row"] == rows[17], "as it was sent"
        assert (entry["kind"], entry["code"], entry["sink"]) == ("task", "invalid", None)
        assert (entry["loc"], entry["message"]) == (body["errors"][0]["loc"], body["errors"][0]["msg"])
        service.flush()
        assert at.read(service.data_dir)["task"].keys() == {("s1", row["task_id"]) for row in rows} - {("s1", "t017")}
        assert accounting(service) == (200, 199, 1)
        service.kill()
        service.start()
        assert accounting(service) == (200, 199, 1)
        assert len(rejected(service)) == 1


def test_without_a_good_row_the_batch_is_refused_and_nothing_is_kept(service: Persistd) -> None:
    answer = service.post("task", task("a", status="x"), task("b", status="y"))
    assert (answer.status_code, answer.json()["count"], rejected(service)) == (422, 0, [])
    assert accounting(service) == (0, 0, 0)


def test_by_default_one_bad_row_refuses_its_batch(tmp_path: Path) -> None:
    with Persistd(tmp_path, "") as service:
        answer = service.post("task", task("a"), task("b", status="x"))
        assert (answer.status_code, rejected(service)) == (422, [])


def test_kill_minus_nine_keeps_them_and_cuts_off_what_the_sink_will_reject_again(service: Persistd) -> None:
    service.post("session", session("s1"))
    service.flush()
    trigger = "CREATE TRIGGER no BEFORE INSERT ON translation_tasks WHEN new.status = 'failed'"
    with closing(sqlite3.connect(service.data_dir / "persist.db")) as database:
        database.execute(f"{trigger} BEGIN SELECT raise(ABORT, 'no'); END")
    for number in range(5):
        assert service.post("task", task(f"g{number}"), task(f"b{number}", status=7)).json()["rejected"] == 1
        service.post("task", task(f"r{number}", status="failed"))
        if number == 2:
            service.flush()
    before = accounting(service)
    assert before[0] == 1 + 5 + 5 + 5
    service.kill()
    service.start()
    assert accounting(service) == before
    service.flush()
    entries = rejected(service)
    ids = [entry["row"]["task_id"] for entry in entries]
    assert sorted(ids) == sorted([f"{letter}{number}" for number in range(5) for letter in "br"]), "each once"
    assert accounting(service) == (16, 6, 10)
    wait_until(lambda: service.http.get("/health").json()["rejected_open_rows"] == 10, "them to be counted as open")


def test_a_row_that_is_no_object_is_shown_and_can_be_dropped(service: Persistd, tmp_path: Path) -> None:
    rows = [task("good"), 5, {"source_text": "长\n文"}, [1]]
    answer = service.http.post("/api/v1/persistence/tasks/batch", content=json.dumps({"tasks": rows}, indent=1))
    assert (answer.status_code, answer.json()["count"], answer.json()["rejected"]) == (200, 1, 3)
    assert [entry["row"] for entry in rejected(service)] == rows[1:]
    listed = persistd("rejected", "ls", "-c", str(service.file), cwd=tmp_path)
    assert (listed.returncode, listed.stdout.count("invalid")) == (0, 4), listed
    dropped = persistd("rejected", "drop", "--all", "-c", str(service.file), cwd=tmp_path)
    assert (dropped.returncode, dropped.stderr) == (0, "")


def test_a_retry_sends_them_once_the_setting_allows_them(service: Persistd, tmp_path: Path) -> None:
    service.post("task", task("good"), task("later", status="cancelled"))
    again = persistd("rejected", "retry", "--all", "-c", str(service.file), "--url", service.url, cwd=tmp_path)
    assert again.returncode == 1, again
    assert "status" in again.stderr
    service.stop()
    service.configure(CONFIG.replace("[records]", "[records]\nstatuses = ['pending', 'cancelled']"))
    service.start()
    done = persistd("rejected", "retry", "--all", "-c", str(service.file), "--url", service.url, cwd=tmp_path)
    assert (done.returncode, done.stdout) == (0, "1 row sent\nflushed: the sink has them\n"), done
    stored = place("sqlite", None).read(service.data_dir)["task"]  # type: ignore[arg-type]
    assert stored["s1", "later"]["status"] == "cancelled"
