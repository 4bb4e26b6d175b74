"""A WAL goes into its own database, or nowhere: backups restored beside it, and files removed under the service."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from multiprocessing import get_context
from pathlib import Path

import pytest

from tests.process import Persistd
from tests.rows import task as sent_task
from tests.sinks.readers import ids, read_sqlite
from tornado_persist.errors import SinkUnavailable
from tornado_persist.records.models import Batch
from tornado_persist.sinks import sqlite, walguard
from tornado_persist.sinks.sqlite import SQLiteSettings, SQLiteSink
from tornado_persist.testing import task

ROWS = 600


def open_sink(directory: Path) -> SQLiteSink:
    sink = SQLiteSink(SQLiteSettings(), directory)
    sink.open()
    return sink


def write(sink: SQLiteSink, *prefixes: str) -> None:
    for prefix in prefixes:
        sink.write(Batch(tasks=[task(f"{prefix}{number:03}") for number in range(ROWS)]))


def backup(path: Path, to: Path) -> None:
    """As the page on operations says."""
    with contextlib.closing(sqlite3.connect(path)) as one, contextlib.closing(sqlite3.connect(to)) as other:
        one.backup(other)


def crash(work: Callable[[Path], SQLiteSink], directory: Path) -> None:
    """Do it in another process, which is killed then, with the sink open."""

    def run() -> None:
        sink = work(directory)
        assert sink.describe()
        os.kill(os.getpid(), signal.SIGKILL)

    process = get_context("fork").Process(target=run)
    process.start()
    process.join(30)
    assert process.exitcode == -signal.SIGKILL


def a_minute_and_a_backup_later(directory: Path) -> SQLiteSink:
    """Rows; a backup; more rows, the last of them in the WAL alone."""
    sink = open_sink(directory)
    write(sink, "a")
    backup(sink.path, directory / "backup.db")
    walguard.RENEW_EVERY = 0.0
    write(sink, "b", "c")
    walguard.RENEW_EVERY = 60.0
    write(sink, "d")
    return sink


def keys(path: Path) -> set[str]:
    """The first letters of the tasks that there are, whole groups of them, in a sound database."""
    with contextlib.closing(sqlite3.connect(path)) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
    found = sorted(ids(read_sqlite(path)["task"]))
    letters = {key[0] for key in found}
    assert len(found) == ROWS * len(letters)
    return letters


def test_after_a_crash_the_wal_is_replayed_into_its_own_database_wherever_that_is(tmp_path: Path) -> None:
    (tmp_path / "one").mkdir()
    crash(a_minute_and_a_backup_later, tmp_path / "one")
    assert (tmp_path / "one" / "persist.db-wal").stat().st_size
    shutil.copytree(tmp_path / "one", tmp_path / "two")
    open_sink(tmp_path / "two").close()
    assert keys(tmp_path / "two" / "persist.db") == set("abcd")


@pytest.mark.parametrize("way", ["copied over it", "moved there"])
def test_the_wal_of_another_file_is_moved_aside_and_not_replayed(tmp_path: Path, way: str) -> None:
    crash(a_minute_and_a_backup_later, tmp_path)
    (shutil.copyfile if way == "copied over it" else shutil.move)(tmp_path / "backup.db", tmp_path / "persist.db")
    with pytest.raises(SinkUnavailable, match="restored backup"):
        open_sink(tmp_path)
    sink = open_sink(tmp_path)
    write(sink, "e")
    sink.close()
    assert keys(tmp_path / "persist.db") == set("ae")
    (aside,) = tmp_path.glob("persist.db-wal.*")
    assert aside.stat().st_size


def test_a_backup_of_the_last_minute_that_is_moved_there_is_noticed(tmp_path: Path) -> None:
    def work(directory: Path) -> SQLiteSink:
        sink = open_sink(directory)
        write(sink, "a")
        backup(sink.path, directory / "backup.db")
        write(sink, "b")
        return sink

    crash(work, tmp_path)
    shutil.move(tmp_path / "backup.db", tmp_path / "persist.db")
    with pytest.raises(SinkUnavailable, match="restored backup"):
        open_sink(tmp_path)
    open_sink(tmp_path).close()
    assert keys(tmp_path / "persist.db") == {"a"}


def test_a_wal_removed_while_it_is_open_costs_no_row(tmp_path: Path) -> None:
    def work(directory: Path) -> SQLiteSink:
        sink = open_sink(directory)
        write(sink, "a")
        (directory / "persist.db-wal").unlink()
        with pytest.raises(SinkUnavailable, match="was removed while it was open"):
            sink.ping()
        sink.close()
        sink.open()
        write(sink, "b")
        return sink

    crash(work, tmp_path)
    assert keys(tmp_path / "persist.db") == set("ab")


@pytest.mark.parametrize("way", ["copied over it", "moved there"])
def test_a_database_replaced_while_it_is_open_gets_nothing_of_the_old_one(tmp_path: Path, way: str) -> None:
    sink = open_sink(tmp_path)
    write(sink, "a")
    backup(sink.path, tmp_path / "backup.db")
    for _ in range(2):  # two minutes
        sink._guard._renewed_at = float("-inf")
        write(sink, "b")
    write(sink, "c")
    (shutil.copyfile if way == "copied over it" else shutil.move)(tmp_path / "backup.db", tmp_path / "persist.db")
    with pytest.raises(SinkUnavailable, match=r"overwritten|replaced"):
        write(sink, "d")
    sink.close()
    sink.open()
    write(sink, "e")
    sink.close()
    assert keys(tmp_path / "persist.db") == set("ae")


def test_two_processes_share_a_file_without_a_false_alarm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(walguard, "RENEW_EVERY", 0.0)
    monkeypatch.setattr(sqlite, "LOCK_TIMEOUT", 30)

    def work(directory: Path) -> None:
        sink = open_sink(directory)
        for _ in range(20):
            write(sink, "b")

    one = get_context("fork").Process(target=work, args=(tmp_path,))
    one.start()
    sink = open_sink(tmp_path)
    for _ in range(20):
        write(sink, "a")
    one.join(60)
    assert one.exitcode == 0
    write(sink, "a")
    sink.close()
    assert keys(tmp_path / "persist.db") == set("ab")


def test_a_restored_backup_is_served_after_a_crash(tmp_path: Path) -> None:
    """The steps that the page on operations gives."""
    with Persistd(tmp_path) as service:
        database = service.data_dir / "persist.db"
        service.post("task", sent_task("old"))
        service.flush()
        backup(database, tmp_path / "backup.db")
        service.post("task", sent_task("new"))
        service.flush()
        service.kill()
    for name in ("persist.db", "persist.db-wal", "persist.db-shm"):
        with contextlib.suppress(FileNotFoundError):
            (database.parent / name).rename(tmp_path / name)
    shutil.copyfile(tmp_path / "backup.db", database)
    with Persistd(tmp_path) as service:
        service.post("task", sent_task("later"))
        service.flush()
        assert service.stop() == 0
    # What the journal still had is written once more.
    assert ids(read_sqlite(database)["task"]) >= {"old", "later"}


def test_a_sink_that_is_opened_anew_beside_a_reader_leaves_no_file_that_another_program_takes_for_its_own(
    tmp_path: Path,
) -> None:
    sink = open_sink(tmp_path)
    write(sink, "a")
    reader = sink.reader()
    reader.open()
    sink.close()
    sink.open()
    write(sink, "b")
    wal = tmp_path / "persist.db-wal"
    before = wal.stat().st_ino
    # The last program that closes a database deletes its WAL.
    other = "import sqlite3, sys; sqlite3.connect(sys.argv[1]).execute('SELECT * FROM translation_tasks').fetchone()"
    subprocess.run([sys.executable, "-c", other, str(sink.path)], check=True)
    assert wal.stat().st_ino == before
    write(sink, "c")
    sink.close()
    reader.close()
    assert keys(sink.path) == {"a", "b", "c"}
    assert sink.path not in {link.resolve() for link in Path("/proc/self/fd").iterdir()}
