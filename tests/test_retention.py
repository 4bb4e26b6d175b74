"""``[retention]`` in a running service: its mistakes, its reload, and what it deletes on a real database."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path

import psycopg
import pytest

from tests.process import Persistd, persistd
from tests.rows import session, task


@pytest.mark.parametrize(
    ("table", "complaint"),
    [
        ('completed = "5m"', 'retention.completed: should be 0 (never), or between "1h" and "36500d"'),
        ('failed = "-1"', "retention.failed: should be 0 (never)"),
        ('orphans = "90 days"', "retention.orphans: should be a number of seconds, or one with a unit"),
        ("every = 5", "retention.every: "),
        ('complete = "90d"', "did you mean completed?"),
    ],
)
def test_nonsense_is_refused_with_its_key(tmp_path: Path, table: str, complaint: str) -> None:
    (tmp_path / "persistd.toml").write_text(f"[retention]\n{table}\n")
    refused = persistd("run", "-c", "persistd.toml", cwd=tmp_path)
    assert refused.returncode == 2
    assert complaint in refused.stderr


def test_a_sink_that_cannot_delete_is_refused_with_a_retention(tmp_path: Path) -> None:
    (tmp_path / "persistd.toml").write_text('sink = "jsonl"\n[retention]\ncompleted = "90d"\n')
    refused = persistd("run", "-c", "persistd.toml", cwd=tmp_path)
    assert (refused.returncode, refused.stderr) == (2, "persistd: retention: sink jsonl cannot delete rows\n")
    with Persistd(tmp_path, 'sink = "jsonl"\n') as service:
        answer = service.http.delete("/api/v1/persistence/sessions/s1")
        assert (answer.status_code, answer.json()["detail"]) == (501, "The sink jsonl cannot delete rows")
        service.configure('sink = "jsonl"\n[retention]\ncompleted = "90d"\n')
        reload = persistd("reload", "-c", str(service.file), cwd=tmp_path)
        assert (reload.returncode, "retention: sink jsonl cannot delete rows" in reload.stderr) == (1, True), reload


def test_a_reload_changes_the_ages(tmp_path: Path, postgres_url: str) -> None:
    sink = f"sink = 'postgres'\n[sinks.postgres]\nurl = '{postgres_url}'\n"
    data_dir = tmp_path / "data"
    data_dir.mkdir()
    known = {"seen": datetime.now(UTC).isoformat(), "doubted": None, "leapt": False}
    (data_dir / "retention.json").write_text(json.dumps(known))
    with Persistd(tmp_path, sink) as service:
        for id, status in (("a", "completed"), ("b", "failed"), ("c", "processing")):
            service.post("session", session(id, status=status))
            service.post("task", task("t", session_id=id))
        service.flush()
        with psycopg.connect(postgres_url, autocommit=True) as database:
            for table in ("translation_sessions", "translation_tasks"):
                database.execute(f"UPDATE {table} SET updated_at = now() - interval '3 days'".encode())
            service.configure(f'{sink}[retention]\ncompleted = "2d"\nfailed = "10d"\n')
            code = persistd("reload", "-c", str(service.file), cwd=tmp_path)
            assert code.returncode == 0, code.stderr
            assert service.log("configuration reloaded")[0]["applied"] == ["retention.completed", "retention.failed"]
            cleaned = service.http.post("/api/v1/persistence/sessions/cleanup").json()
            assert (cleaned["sessions"], cleaned["tasks"]) == (1, 1)
            rows = database.execute("SELECT session_id FROM translation_sessions ORDER BY 1").fetchall()
        assert rows == [("b",), ("c",)]
