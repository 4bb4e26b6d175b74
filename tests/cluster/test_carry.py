"""A machine is lost and its disk is left: what its instance had accepted is written from another machine."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.process import Persistd, persistd
from tests.rows import session, task
from tests.sinks.readers import read_postgres

#: Nothing is written by itself.
CONFIG = "sink = 'postgres'\n[buffer]\nflush_interval = 3600\n[sinks.postgres]\nurl = '{}'\nwriters = 'several'\n"


@pytest.fixture
def lost(tmp_path: Path, postgres_url: str) -> Path:
    """The directory of an instance that was killed with rows in its journal, one of them older than what is stored."""
    for name in ("lost", "other"):
        (tmp_path / name).mkdir()
    config = CONFIG.format(postgres_url)
    with Persistd(tmp_path / "lost", config) as one, Persistd(tmp_path / "other", config) as other:
        assert one.post("session", session("s", status="pending", metadata={"only": "here"})).status_code == 200
        assert one.post("task", *(task(f"t{n}", session_id="s") for n in range(500))).status_code == 200
        assert other.post("session", session("s", status="completed")).status_code == 200
        other.flush()
        one.kill()
    stored = read_postgres(postgres_url)
    assert (len(stored["session"]), len(stored["task"])) == (1, 0)
    return tmp_path / "lost"


def check(url: str) -> None:
    stored = read_postgres(url)
    assert len(stored["task"]) == 500
    (row,) = stored["session"].values()
    assert row["status"] == "completed", "what is newer stays"
    assert row["metadata"] == {"only": "here"}


def test_its_data_directory_goes_on_elsewhere(lost: Path, tmp_path: Path, postgres_url: str) -> None:
    (tmp_path / "new").mkdir()
    shutil.copytree(lost / "data", tmp_path / "new" / "data")
    with Persistd(tmp_path / "new", CONFIG.format(postgres_url)) as instance:
        accounting = instance.stats()["accounting"]
        assert (accounting["accepted"], accounting["pending"]) == (501, 501)
        instance.flush()
        assert instance.stats()["accounting"]["written"] == 501
        assert instance.stop() == 0
    check(postgres_url)


def test_an_instance_that_runs_takes_its_rows_with_their_times(lost: Path, tmp_path: Path, postgres_url: str) -> None:
    exported = tmp_path / "lost.jsonl"
    with exported.open("w") as file:
        done = persistd("journal", "export", "-c", str(lost / "persistd.toml"), cwd=lost)
        assert done.returncode == 0, done.stderr
        file.write(done.stdout)
    with Persistd(tmp_path / "other", CONFIG.format(postgres_url)) as other:
        done = persistd("import", "--keep-times", "--url", other.url, str(exported), cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        other.flush()
    check(postgres_url)
