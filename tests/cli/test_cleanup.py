"""``persistd cleanup``, and the request behind it, against a running service."""

from __future__ import annotations

import json
import sqlite3
from contextlib import closing

import pytest

from tests.cli.conftest import Command
from tests.process import Persistd
from tests.rows import session, task

CLEANUP = "/api/v1/persistence/sessions/cleanup"


@pytest.fixture
def filled(service: Persistd) -> Persistd:
    """With three sessions of a task each that were last updated in 2020, and a new one."""
    for id, status in (("a", "completed"), ("b", "failed"), ("c", "processing"), ("new", "completed")):
        service.post("session", session(id, status=status))
        service.post("task", task("t", session_id=id))
    service.flush()
    with closing(sqlite3.connect(service.data_dir / "persist.db")) as database, database:
        for table in ("translation_sessions", "translation_tasks"):
            old = "2020-01-01T00:00:00.000000+00:00"
            database.execute(f"UPDATE {table} SET updated_at = '{old}' WHERE session_id <> 'new'")
    return service


def left(service: Persistd) -> list[str]:
    with closing(sqlite3.connect(service.data_dir / "persist.db")) as database:
        return [id for (id,) in database.execute("SELECT session_id FROM translation_sessions ORDER BY 1")]


def test_a_dry_run_says_what_would_go_and_then_it_goes(filled: Persistd, command: Command) -> None:
    words = ("cleanup", "--completed-days", "90", "--failed-days", "3000", "--url", filled.url)
    code, said, _ = command(*words, "--dry-run")
    assert (code, said.splitlines()[-1]) == (0, "1 session and 1 task would be deleted")
    assert left(filled) == ["a", "b", "c", "new"]
    code, said, _ = command(*words)
    assert (code, said.splitlines()[-1]) == (0, "1 session and 1 task deleted")
    assert left(filled) == ["b", "c", "new"]
    code, said, _ = command("cleanup", "--failed-days", "90", "--json", "--url", filled.url)
    assert json.loads(said)["rules"].keys() == {"failed"}
    assert left(filled) == ["c", "new"]
    stats = filled.stats()["deleted"]
    assert (stats["sessions"], stats["tasks"]) == (2, 2)
    metrics = filled.http.get("/metrics").text
    assert 'persistd_rows_deleted_total{by="cleanup",kind="task"} 2.0' in metrics


def test_without_an_age_it_is_refused(service: Persistd, command: Command) -> None:
    code, said, complaint = command("cleanup", "--url", service.url)
    assert (code, said) == (1, "")
    assert complaint.startswith("persistd: not cleaned: Nothing says what is old: give completed_days")


BAD_QUERIES = [
    ("complete_days=90", "The parameter 'complete_days' is unknown (did you mean completed_days?)"),
    ("x=1", "(completed_days, failed_days, orphans_days, dry_run, trust_clock)"),
    ("completed_days=0", "completed_days should be between 1 and 36500 days, not 0 (did you mean 1?)"),
    ("completed_days=99999", "did you mean 36500?"),
    ("completed_days=-3", "completed_days should be a whole number of days, such as 90, not '-3'"),
    ("completed_days=90d", "not '90d'"),
    ("completed_days=", "not ''"),
    ("completed_days=9&completed_days=10", "The parameter completed_days is there 2 times"),
    ("completed_days=9&dry_run=ture", "dry_run should be true or false, not 'ture' (did you mean true?)"),
    ("completed_days=%ff", "completed_days is no UTF-8"),
]


def test_bad_queries_are_named_with_the_nearest_right_one(service: Persistd) -> None:
    for query, detail in BAD_QUERIES:
        answer = service.http.post(f"{CLEANUP}?{query}")
        assert answer.status_code == 422, (query, answer.text)
        assert detail in answer.json()["detail"], query
    body = service.http.post(f"{CLEANUP}?completed_days=9", json={"completed_days": 9})
    assert (body.status_code, "not into a body" in body.json()["detail"]) == (422, True)


def test_deletes_over_http(filled: Persistd) -> None:
    sessions = "/api/v1/persistence/sessions"
    filled.post("session", session("会话/1"))
    filled.post("task", task("t/1", session_id="会话/1"), task("u", session_id="会话/1"))
    path = f"{sessions}/%E4%BC%9A%E8%AF%9D%2F1"
    gone = filled.http.delete(f"{path}/tasks/t%2F1")
    assert (gone.status_code, gone.json()["tasks_deleted"]) == (200, 1)
    assert filled.http.delete(f"{path}/tasks/t%2F1").status_code == 404
    gone = filled.http.delete(path)
    assert (gone.status_code, gone.json()["sessions_deleted"], gone.json()["tasks_deleted"]) == (200, 1, 1)
    assert filled.http.delete(path).json()["detail"] == "There is no session 会话/1"
    assert filled.http.delete(f"{sessions}/{'x' * 65}").status_code == 404
    assert filled.http.delete(f"{sessions}/a%00b").status_code == 404
    unknown = filled.http.delete(f"{sessions}/a?force=1")
    assert (unknown.status_code, unknown.json()["detail"]) == (422, "The parameter 'force' is unknown (none)")
    assert left(filled) == ["a", "b", "c", "new"]
    assert filled.stats()["refused"]["batches"] == 0, "none of these was meant as a batch"
    assert filled.http.delete(f"{sessions}/batch").status_code == 405
