"""Full and failing disks: what cannot be kept is refused, acknowledged rows stay, and the service recovers."""

from __future__ import annotations

import os
import resource
import shutil
import subprocess
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from tests.faults.load import Client, Load, balanced
from tests.process import Persistd, wait_until
from tests.rows import task
from tests.sinks.readers import read_jsonl, read_sqlite
from tests.tools import require
from tornado_persist.records.models import Fields, Kind

#: Bytes of a small disk; less than the journal wants to see free before it goes on.
ROOM = 512 << 10


class Bulky(Client):
    """Sends rows that fill a disk soon."""

    def update(self, kind: Kind, key: str, **fields: Any) -> Fields:
        row = super().update(kind, key, **fields)
        row["file_path" if kind == "session" else "source_text"] = "长" * (500 if kind == "session" else 5000)
        return row


class Database:
    """An SQLite file on another disk than the service's data; it is down while its path is occupied."""

    def __init__(self, directory: Path) -> None:
        self.path = directory / "elsewhere" / "persist.db"
        self.config = f"[sinks.sqlite]\npath = '{self.path}'\n"
        self.path.parent.touch()

    def come_back(self) -> None:
        if self.path.parent.is_file():
            self.path.parent.unlink()


class Disk(ABC):
    """A small place for ``data_dir``."""

    def __init__(self, data_dir: Path, database: Database) -> None:
        self.data_dir = data_dir
        self.database = database

    #: A command that runs the service on it.
    prefix: tuple[str, ...] = ()

    @abstractmethod
    def make_room(self, service: Persistd) -> None: ...


class Limit(Disk):
    """A limit to the size of each file, which fails a write as a full disk does."""

    prefix = ("sh", "-c", f'ulimit -S -f {ROOM // 512}; exec "$@"', "sh")

    def make_room(self, service: Persistd) -> None:
        limit = (resource.RLIM_INFINITY, resource.RLIM_INFINITY)
        resource.prlimit(service.process.pid, resource.RLIMIT_FSIZE, limit)


class FileSystem(Disk):
    """A file system of its own. Room is made by the flush, once the database is back."""

    def make_room(self, service: Persistd) -> None:
        self.database.come_back()


@pytest.fixture
def database(tmp_path: Path) -> Database:
    return Database(tmp_path)


@pytest.fixture(params=["limit", "file system"])
def disk(request: pytest.FixtureRequest, tmp_path: Path, database: Database) -> Iterator[Disk]:
    data_dir = tmp_path / "data"
    if request.param == "limit":
        yield Limit(data_dir, database)
        return
    data_dir.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={8 * ROOM}", "tmpfs", str(data_dir)], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip(
            "a small file system cannot be mounted here, which takes root; files with a limit to their size are tested"
        )
    try:
        yield FileSystem(data_dir, database)
    finally:
        subprocess.run(["umount", str(data_dir)], check=True)


def refuses(service: Persistd) -> None:
    """Not ready, but alive, and it says when to retry."""
    response = service.post("task", task("refused", source_text="长" * 5000))
    assert response.status_code == 503
    assert response.json()["status"] == "rejected"
    assert int(response.headers["Retry-After"]) > 0
    ready = service.http.get("/health/ready")
    assert (ready.status_code, ready.json()["status"]) == (503, "not ready")
    assert response.json()["detail"] == ready.json()["detail"]
    assert service.http.get("/health/live").status_code == 200


def assert_all_written(service: Persistd, load: Load, database: Database) -> None:
    """All rows are written without a flush request, the accounting balances, and the clients' record agrees."""
    wait_until(lambda: service.stats()["accounting"]["pending"] == 0, "the flush")
    balanced(service.stats()["accounting"], load.record.acknowledged, load.record)
    load.record.check(read_sqlite(database.path))
    assert "Traceback" not in service.log_text()


def test_a_full_disk_refuses_loses_nothing_and_goes_on_when_there_is_room(
    tmp_path: Path, disk: Disk, database: Database
) -> None:
    config = f"[buffer]\nflush_interval = 0.1\n{database.config}"
    with Persistd(tmp_path, config, prefix=disk.prefix) as service:
        load = Load(service, seed=1, make=Bulky)
        with load:
            load.wait_for(20, status=503)
        refuses(service)
        assert "No space left" in service.log_text() or "File too large" in service.log_text()

        # The service starts with a full disk, and still has the waiting rows.
        service.kill()
        service.start()
        balanced(service.stats()["accounting"], load.record.acknowledged, load.record)
        with load:
            load.wait_for(20, status=503)
        refuses(service)

        with load:
            disk.make_room(service)
            load.wait_for(100)
        # A small disk may be full again: the clients may be faster than the flush.
        wait_until(lambda: service.http.get("/health/ready").status_code == 200, "readiness")
        database.come_back()
        assert_all_written(service, load, database)
        service.kill()
        service.start()
        service.flush()
        assert_all_written(service, load, database)


def test_released_journal_space_is_free_at_once(tmp_path: Path, database: Database) -> None:
    with Persistd(tmp_path, f"[buffer]\nflush_interval = 3600\nmax_rows = 2\n{database.config}") as service:
        for number in range(10):
            service.post("task", task(f"t{number}"))
        database.come_back()
        service.flush()
        wait_until(lambda: service.stats()["journal"]["bytes"] == 0, "the release")
        wait_until(lambda: not [*(service.data_dir / "journal").glob("*.seg")], "the segment to be deleted")
        # A deleted file takes up its space while it is open.
        wait_until(lambda: not [name for name in service.open_files() if name.endswith("(deleted)")], "its end")


def test_a_full_journal_refuses_until_the_database_is_back(tmp_path: Path, database: Database) -> None:
    limits = "[journal]\nsegment_bytes = 100_000\nmax_bytes = 300_000\n"
    config = f"[buffer]\nflush_interval = 0.1\nmax_rows = 10\n{limits}{database.config}"
    with Persistd(tmp_path, config) as service:
        load = Load(service, seed=1, make=Bulky)
        with load:
            load.wait_for(20, status=503)
        refuses(service)
        assert "The journal is full" in service.http.get("/health/ready").json()["detail"]
        assert service.stats()["journal"]["bytes"] <= 300_000
        assert sum(file.stat().st_size for file in (service.data_dir / "journal").glob("*.seg")) <= 300_000
        # A restart reads the full journal back, and it is as full as before.
        service.kill()
        service.start()
        balanced(service.stats()["accounting"], load.record.acknowledged, load.record)
        with load:
            load.wait_for(20, status=503)
            database.come_back()
            load.wait_for(100)
        assert_all_written(service, load, database)
        wait_until(lambda: service.http.get("/health/ready").status_code == 200, "the release of what was written")
        assert service.wait_for_log("journal has room again")


def test_a_full_journal_starts_a_flush(tmp_path: Path) -> None:
    limits = "[journal]\nsegment_bytes = 100_000\nmax_bytes = 300_000\n"
    with Persistd(tmp_path, f"[buffer]\ncapacity = 100_000\nflush_interval = 3600\n{limits}") as service:
        rows = [task(f"t{n}", source_text="x" * 5000) for n in range(200)]
        sent = 0
        while sent < len(rows):
            if service.post("task", rows[sent]).status_code == 200:
                sent += 1
            else:
                wait_until(lambda: service.http.get("/health/ready").status_code == 200, "room in the journal")
        assert service.wait_for_log("journal is full")
        assert service.stats()["accounting"]["accepted"] == len(rows)
        service.flush()
        assert service.stats()["accounting"]["written"] == len(rows)


def test_a_batch_whose_sync_fails_is_refused_and_never_appears(tmp_path: Path) -> None:
    # Only the journal calls fdatasync here. The 5th call fails and so does the 9th.
    failing = [str(require("strace")), "-D", "-f", "-o", str(tmp_path / "trace"), "-e", "trace=fdatasync"]
    failing += ["-e", "inject=fdatasync:error=EIO:when=5+4"]
    config = "sink = 'jsonl'\n[buffer]\nflush_interval = 3600\n"
    with Persistd(tmp_path, config, prefix=failing) as service:
        load = Load(service, seed=1)
        with load:
            load.wait_for(3, status=503)
            load.wait_for(5)
        assert "EIO" in (tmp_path / "trace").read_text()
        assert service.wait_for_log("journal cannot be written")["error"] == "Input/output error"
        service.wait_for_log("journal can be written again")
        service.kill()
        service.start()
        service.flush()
        load.record.check(read_jsonl(service.data_dir / "jsonl"))
        balanced(service.stats()["accounting"], load.record.acknowledged, load.record)
        assert load.record.unknown == 0, "so that what was refused is known not to be there"
        assert "Traceback" not in service.log_text()


@pytest.fixture
def ext4(tmp_path: Path) -> Iterator[Path]:
    """A small ext4 of its own, at ``tmp_path/data``."""
    image, data_dir = tmp_path / "image", tmp_path / "data"
    data_dir.mkdir()
    image.write_bytes(b"")
    os.truncate(image, 32 << 20)
    made = shutil.which("mkfs.ext4") and subprocess.run(["mkfs.ext4", "-q", image], check=True, capture_output=True)
    mounted = made and subprocess.run(["mount", "-o", "loop", image, data_dir], capture_output=True, check=False)
    if not mounted or mounted.returncode:
        pytest.skip("an ext4 image cannot be mounted here: that takes root and loop devices")
    try:
        yield data_dir
    finally:
        subprocess.run(["umount", data_dir], check=True)


def test_a_stop_ends_in_time_on_a_disk_that_went_read_only(tmp_path: Path, ext4: Path) -> None:
    config = f"[buffer]\nflush_interval = 3600\n[sinks.sqlite]\npath = '{tmp_path}/persist.db'\n"
    with Persistd(tmp_path, config, server="shutdown_timeout = 3") as service:
        assert service.post("task", task("a")).status_code == 200
        subprocess.run(["mount", "-o", "remount,abort", ext4], capture_output=True, check=False)
        with ThreadPoolExecutor(1) as pool:
            pool.submit(service.post, "task", task("b"))
            service.wait_for_log("journal cannot be written")
            began = time.monotonic()
            assert service.stop() == 1
            assert time.monotonic() - began < 6
        assert "Traceback" not in service.log_text()
        assert service.log_text().count("the journal could not be closed: ") == 1


def test_a_stop_on_a_disk_that_went_read_only_without_a_request_leaves_no_traceback(tmp_path: Path, ext4: Path) -> None:
    config = f"[buffer]\nflush_interval = 3600\n[sinks.sqlite]\npath = '{tmp_path}/persist.db'\n"
    with Persistd(tmp_path, config, server="shutdown_timeout = 3") as service:
        subprocess.run(["mount", "-o", "remount,abort", ext4], capture_output=True, check=False)
        assert service.stop() in (0, 1)
        assert "Traceback" not in service.log_text()
